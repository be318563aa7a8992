from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpsnet_cli.datasets.amass import read_amass
from mpsnet_cli.errors import InputError
from mpsnet_cli.progress import Reporter


def save(path: Path, **arrays: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return path


def poses(width: int, frames: int = 4) -> np.ndarray:
    return np.random.default_rng(width).normal(size=(frames, width))


@pytest.mark.parametrize("rate", ["mocap_framerate", "mocap_frame_rate"])
@pytest.mark.parametrize("width", [72, 156, 165])
def test_the_body_is_taken_and_the_hands_are_not(tmp_path: Path, width: int, rate: str) -> None:
    path = save(tmp_path / "m.npz", poses=poses(width), **{rate: 120.0})
    (motion,) = read_amass(path, Reporter())
    assert (motion.name, motion.fps, motion.pose.shape) == ("m.npz", 120, (4, 72))
    assert motion.pose.dtype == np.float32
    np.testing.assert_allclose(motion.pose[:, :66], poses(width)[:, :66], rtol=1e-6)
    assert (motion.pose[:, 66:] == 0).all()


def test_smplx_in_parts(tmp_path: Path) -> None:
    whole = poses(66)
    path = save(
        tmp_path / "m.npz", root_orient=whole[:, :3], pose_body=whole[:, 3:], mocap_frame_rate=60
    )
    (motion,) = read_amass(path, Reporter())
    np.testing.assert_allclose(motion.pose[:, :66], whole, rtol=1e-6)


def test_a_folder_is_searched_and_other_files_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "b" / "2.npz", poses=poses(156), mocap_framerate=60)
    save(tmp_path / "a" / "1.npz", poses=poses(156), mocap_framerate=120)
    save(tmp_path / "a" / "shape.npz", betas=np.zeros(10))
    save(tmp_path / "a" / "nan.npz", poses=np.full((2, 156), np.nan), mocap_framerate=120)
    report = Reporter()
    motions = read_amass(tmp_path, report)
    assert [(m.name, m.fps) for m in motions] == [("a/1.npz", 120), ("b/2.npz", 60)]
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith("Skipped 2 of 4 files; the first: ")
    with pytest.raises(InputError, match="holds no AMASS motions"):
        read_amass(save(tmp_path / "c" / "x.npz", betas=np.zeros(1)).parent, report)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"betas": np.zeros(10)}, "holds no poses"),
        ({"poses": poses(63), "mocap_framerate": 60}, r"\(4, 63\)"),
        ({"poses": np.zeros(72), "mocap_framerate": 60}, r"\(72,\)"),
        ({"poses": poses(72)}, "does not say its frame rate"),
        ({"poses": poses(72), "mocap_framerate": 0.0}, "frame rate"),
        ({"poses": poses(72), "mocap_framerate": "x"}, "frame rate"),
        ({"poses": poses(72, 0), "mocap_framerate": 60}, "no frames"),
        ({"poses": np.array([{}], object), "mocap_framerate": 60}, "allow_pickle"),
        ({"root_orient": poses(3), "pose_body": poses(63, 5)}, "holds no poses"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read_amass(save(tmp_path / "m.npz", **arrays), Reporter())


def test_a_file_that_is_no_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    path.write_text("nothing")
    with pytest.raises(InputError, match=r"not a readable \.npz"):
        read_amass(path, Reporter())
