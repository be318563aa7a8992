from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from motions import make_motion

from mpsnet_cli.errors import InputError
from mpsnet_cli.motion import Motion, Track

KEYS = {
    "format": (), "track_id": (), "body": (), "weights": (), "gender": (), "trained": (),
    "shape": (), "fps": (), "image_size": (2,), "focal_length": (), "principal_point": (2,),
    "frame_ids": (40,), "times": (40,), "pose": (40, 72), "betas": (10,),
    "betas_per_frame": (40, 10), "transl": (40, 3), "cam": (40, 3), "bboxes": (40, 4),
    "camera_scale": (),
    "joints3d": (40, 24, 3), "joints2d": (40, 24, 2), "scores": (40,), "interpolated": (40,),
}  # fmt: skip


def test_saved_keys_and_shapes_are_the_documented_ones(tmp_path: Path) -> None:
    make_motion().save(tmp_path / "person_01.npz")
    with np.load(tmp_path / "person_01.npz", allow_pickle=False) as file:
        assert {key: file[key].shape for key in file.files} == KEYS
        assert str(file["format"]) == "mpsnet-motion/1"
        assert file["pose"].dtype == np.float32
        assert file["times"].dtype == np.float64
        assert file["frame_ids"].dtype == np.int64
        assert file["interpolated"].dtype == bool
    assert [path.name for path in tmp_path.iterdir()] == ["person_01.npz"]


def test_load_gives_back_what_was_saved(tmp_path: Path) -> None:
    motion = make_motion(shape="frame")
    motion.save(tmp_path / "m.npz")
    again = Motion.load(tmp_path / "m.npz")
    assert again.name == "person_01"
    for name, value in vars(motion).items():
        assert np.array_equal(getattr(again, name), value), name


def test_posed_betas_follow_the_shape() -> None:
    motion = make_motion(betas=np.ones(10, np.float32))
    assert (motion.posed_betas == 1).all()
    assert motion.posed_betas.shape == (40, 10)
    per_frame = make_motion(shape="frame")
    assert (per_frame.posed_betas == per_frame.betas_per_frame).all()


def rewrite(path: Path, **changes: object) -> None:
    with np.load(path) as file:
        arrays = {**dict(file), **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "mpsnet-motion/9"}, "mpsnet-motion/9"),
        ({"format": None}, "no format key"),
        ({"pose": None}, "lacks pose"),
        ({"pose": np.zeros((40, 71), np.float32)}, r"Motion.pose has shape \(40, 71\)"),
        ({"shape": "round"}, "'round'"),
        ({"times": np.array(1.0)}, "not a valid motion file"),
        ({"camera_scale": 0.0}, "camera_scale is 0.0, not a positive number"),
        ({"camera_scale": "wide"}, "not a valid motion file"),
        ({"pose": np.array([object()])}, "allow_pickle"),
    ],
)
def test_bad_files_get_a_sentence(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    path = tmp_path / "m.npz"
    make_motion().save(path)
    rewrite(path, **changes)
    with pytest.raises(InputError, match=sentence):
        Motion.load(path)


def test_files_of_another_kind_get_a_sentence(tmp_path: Path) -> None:
    text, empty, single = tmp_path / "a.npz", tmp_path / "b.npz", tmp_path / "c.npz"
    text.write_text("hello")
    empty.write_bytes(b"")
    with single.open("wb") as file:
        np.save(file, np.zeros(3))
    cut = tmp_path / "d.npz"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pose.npy", b"x" * 1000)
    cut.write_bytes(buffer.getvalue())
    for path in (text, empty, single, cut, tmp_path / "missing.npz"):
        with pytest.raises(InputError, match=path.name):
            Motion.load(path)


def test_track_refuses_what_is_not_a_track() -> None:
    boxes, ones = np.zeros((2, 4), np.float32), np.ones(2, np.float32)
    filled = np.zeros(2, bool)
    assert len(Track(1, np.array([3, 7]), boxes, ones, filled)) == 2
    with pytest.raises(ValueError, match="ascending"):
        Track(1, np.array([3, 3]), boxes, ones, filled)
    with pytest.raises(ValueError, match=r"Track.boxes has shape \(2, 4\), expected \(1, 4\)"):
        Track(1, np.array([3]), boxes, ones, filled)
