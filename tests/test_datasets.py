from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from databases import small_db, write

from mpsnet_cli.datasets import Sequence, load_sequences, read_sequences, save_sequences
from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.progress import Reporter


def sequence(frames: int = 5, **changes: Any) -> Sequence:
    rng = np.random.default_rng(frames)

    def floats(*shape: int) -> np.ndarray:
        return rng.random((frames, *shape), np.float32)

    made = Sequence(
        name="a walk/1",
        body="free-1",
        fps=29.97,
        frame_ids=np.array([*range(frames - 1), frames + 3]),
        features=floats(2048),
        joint_set="smpl24",
        joints3d=floats(24, 3),
        joints2d=floats(24, 3),
        pose=floats(72),
        betas=floats(10),
        bboxes=floats(4),
    )
    return replace(made, **changes)


UNLABELLED = {"joint_set": "none", "joints3d": None, "joints2d": None, "pose": None, "betas": None}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = [sequence(), sequence(3, **UNLABELLED, bboxes=None)]
    path = tmp_path / "new" / "s.npz"
    save_sequences(path, written)
    for found, expected in zip(read_sequences(path, Reporter()), written, strict=True):
        for name, value in vars(expected).items():
            kept = getattr(found, name)
            assert type(kept) is type(value)
            assert np.array_equal(kept, value) if isinstance(value, np.ndarray) else kept == value
    assert [file.name for file in path.parent.iterdir()] == ["s.npz"]


def test_order_is_kept_beyond_ten(tmp_path: Path) -> None:
    save_sequences(tmp_path / "s.npz", (sequence(2, name=str(k)) for k in range(12)))
    assert [s.name for s in load_sequences(tmp_path / "s.npz")] == [str(k) for k in range(12)]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"features": np.zeros((4, 7), np.float32)}, r"features has shape \(4, 7\).*\(5, 7\)"),
        ({"features": np.zeros(5, np.float32)}, r"features has shape \(5,\)"),
        ({"joint_set": "common14"}, r"joints3d has shape \(5, 24, 3\).*\(5, 14, 3\)"),
        ({"joint_set": "coco"}, "joint_set 'coco'"),
        ({"joint_set": "none"}, "joints3d"),
        ({"betas": np.zeros(10, np.float32)}, "betas"),
        ({"fps": 0.0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"frame_ids": np.array([0, 1, 1, 2, 3])}, "ascending"),
        ({"frame_ids": np.arange(5.0)}, "whole numbers"),
    ],
)
def test_a_sequence_that_does_not_fit_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        sequence(**changes)


def arrays_of(path: Path) -> dict[str, Any]:
    save_sequences(path, [sequence()])
    with np.load(path) as file:
        return dict(file)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "mpsnet-motion/1"}, "not a mpsnet-sequences/1 file"),
        ({"000000/features": None}, "sequence 000000 lacks features"),
        ({"000000/pose": np.zeros((5, 3))}, r"pose has shape \(5, 3\)"),
        ({"000000/pose": np.full((5, 72), np.nan)}, "pose holds values that are not finite"),
        ({"000000/fps": np.array(["x"])}, "sequence 000000"),
        ({"000000/frame_ids": np.array(3)}, "sequence 000000"),
        ({"000000/betas": np.array([{}], object)}, "allow_pickle"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    path = tmp_path / "s.npz"
    arrays = {**arrays_of(path), **changes}
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(InputError, match=match) as caught:
        load_sequences(path)
    assert str(path) in caught.value.message


def test_the_frame_rate_of_own_files_is_theirs(tmp_path: Path) -> None:
    save_sequences(tmp_path / "s.npz", [sequence()])
    with pytest.raises(InputError, match="its own frame rate: leave --fps 50 out"):
        read_sequences(tmp_path / "s.npz", Reporter(), fps=50)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez(path, format="mpsnet-sequences/1")
    with pytest.raises(InputError, match="holds no sequences"):
        read_sequences(path, Reporter())
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="not a readable file of sequences"):
        read_sequences(path, Reporter())
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(InputError, match=r"not an \.npz archive"):
        load_sequences(tmp_path / "a.npy")
    with pytest.raises(InputError, match="No such file"):
        read_sequences(tmp_path / "none.npz", Reporter())
    whole = tmp_path / "whole.npz"
    save_sequences(whole, [sequence()])
    path.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(InputError, match="not a readable file of sequences"):
        read_sequences(path, Reporter())


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Cannot write"):
        save_sequences(Path("/proc/none/s.npz"), [sequence()])
    path = tmp_path / "s.npz"
    save_sequences(path, [sequence()])
    before = path.read_bytes()

    def broken():
        yield sequence()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        save_sequences(path, broken())
    assert path.read_bytes() == before


def test_a_database_is_read_as_well(tmp_path: Path) -> None:
    path = write(tmp_path / "db.pt", small_db())
    (found,) = read_sequences(path, Reporter(), fps=50)
    assert (found.name, found.body, found.fps, len(found)) == ("walk", "smpl", 50, 20)
