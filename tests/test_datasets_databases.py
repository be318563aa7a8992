from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from databases import eval_db, small_db, write
from numpy.typing import NDArray

from mpsnet_cli.datasets.databases import read_database
from mpsnet_cli.datasets.joblib_file import read_joblib
from mpsnet_cli.errors import InputError
from mpsnet_cli.progress import Reporter

ARRAYS: dict[str, NDArray[Any]] = {
    "floats": np.arange(12.0).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "big_endian": np.arange(5, dtype=">f4"),
    "text": np.array(["a", "longer", "ü"]),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3)),
    "scalar": np.array(2.5),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_joblib_files_read_as_joblib_reads_them(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "f.pt"
    joblib.dump({**ARRAYS, "number": 3, "np": np.float64(1)}, path, protocol=protocol)
    theirs, ours = joblib.load(path), read_joblib(path)
    assert ours.keys() == ARRAYS.keys()
    for key, array in ours.items():
        assert array.dtype == ARRAYS[key].dtype
        np.testing.assert_array_equal(array, theirs[key])


def test_arrays_stay_on_the_disk(tmp_path: Path) -> None:
    path = write(tmp_path / "f.pt", {"features": np.ones((100, 2048), np.float32)})
    features = read_joblib(path)["features"]
    assert isinstance(features, np.memmap)
    assert not features.flags.writeable


class Payload:
    """Leaves a file behind when it is unpickled by whoever trusts it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


def test_the_payload_of_these_tests_works(tmp_path: Path) -> None:
    """Otherwise the next test could not fail."""
    joblib.load(write(tmp_path / "f.pt", small_db(frame_id=Payload(tmp_path / "trace"))))
    assert (tmp_path / "trace").exists()


def hostile(trace: Path) -> dict[str, Any]:
    payload = Payload(trace)
    return {
        "in the dictionary": small_db(frame_id=payload),
        "in place of it": payload,
        "as a key": {(payload,): np.zeros(3)},
        "in an array of objects": small_db(img_name=np.array([payload], object)),
    }


@pytest.mark.parametrize("where", hostile(Path()))
def test_nothing_in_a_database_is_run(tmp_path: Path, where: str) -> None:
    trace = tmp_path / "trace"
    path = write(tmp_path / "f.pt", hostile(trace)[where])
    with pytest.raises(InputError, match=r"asks to run \w+\.system|pickled Python objects"):
        read_database(path, Reporter())
    assert not trace.exists()


@pytest.mark.parametrize(
    "call",
    [
        b"cbuiltins\neval\n(S'open(TRACE, \"w\")'\ntR.",
        b"cnumpy\nload\n(VTRACE\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(VTRACE\ntR.",
        b"cjoblib.numpy_pickle\nload\n(VTRACE\ntR.",
        b"cjoblib.numpy_pickle\nNumpyArrayWrapper.read\n(VTRACE\ntR.",
    ],
)
def test_names_that_are_not_known_are_refused_by_name(tmp_path: Path, call: bytes) -> None:
    path = tmp_path / "f.pt"
    path.write_bytes(call)
    name = ".".join(call[1:].decode().split("\n")[:2])
    with pytest.raises(InputError, match=f"asks to run {name}, .* not run") as caught:
        read_joblib(path)
    assert len(caught.value.message.splitlines()) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80",
        b"not a pickle at all",
        pickle.dumps([1, 2]),
        b"\x80\x04cnumpy\nndarray\nK\x01b.",  # state for a class
        b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}b.",  # an array of nothing
        b"\x80\x04r\xff\xff\xff\x7fN.",  # a memo index that costs the C unpickler 17 GB
        b"\x80\x04" + b"(" * 100_000,
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "f.pt"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"f\.pt") as caught:
        read_joblib(path)
    assert len(caught.value.message.splitlines()) == 1


def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.pt", small_db(2)).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_joblib(path)


@pytest.mark.parametrize("compress", ["zlib", "gzip", "bz2", "lzma", "xz"])
def test_compressed_files_say_so(tmp_path: Path, compress: str) -> None:
    path = write(tmp_path / "f.pt", small_db(), compress=(compress, 1))
    with pytest.raises(InputError, match="is compressed: load it with joblib and dump it again"):
        read_joblib(path)


def test_torch_files_say_so(tmp_path: Path) -> None:
    import torch

    torch.save({"features": torch.zeros(3)}, tmp_path / "f.pt")
    with pytest.raises(InputError, match=r"zip archive \(torch.save writes such\)"):
        read_joblib(tmp_path / "f.pt")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_joblib(tmp_path / "none.pt")


def test_the_official_layout(tmp_path: Path) -> None:
    """Sequences in np.unique's order, without the frames marked invalid, whatever lies between."""
    db, report = eval_db(), Reporter()
    found = read_database(write(tmp_path / "3dpw_test_db.pt", db), report)
    assert [s.name for s in found] == ["a_0", "b_0", "c_0"]
    assert report.warnings == ["3dpw_test_db.pt: 16 of 115 frames are marked invalid: dropped."]
    for sequence in found:
        rows = np.flatnonzero((db["vid_name"] == sequence.name) & (db["valid"] == 1))
        np.testing.assert_array_equal(sequence.frame_ids, db["frame_id"][rows])
        np.testing.assert_array_equal(sequence.features, db["features"][rows])
        np.testing.assert_array_equal(sequence.joints3d, db["joints3D"][rows])
        np.testing.assert_array_equal(sequence.pose, db["pose"][rows])
        np.testing.assert_array_equal(sequence.betas, db["shape"][rows])
        assert (sequence.body, sequence.joint_set, sequence.fps) == ("smpl", "common14", 30)


def test_people_may_be_interleaved(tmp_path: Path) -> None:
    names = np.array(["b", "a"] * 10)
    db = small_db(vid_name=names)
    a, b = read_database(write(tmp_path / "f.pt", db), Reporter())
    np.testing.assert_array_equal(a.features, db["features"][1::2])
    np.testing.assert_array_equal(b.features, db["features"][::2])


def test_features_of_whole_sequences_stay_on_the_disk(tmp_path: Path) -> None:
    (found,) = read_database(write(tmp_path / "f.pt", small_db()), Reporter())
    assert isinstance(found.features, np.memmap)


def test_2d_joints_go_into_the_box(tmp_path: Path) -> None:
    box = np.tile([100.0, 50.0, 40.0, 40.0], (20, 1))
    joints = np.zeros((20, 14, 3), np.float32)
    joints[:, 0] = [100, 50, 1]
    joints[:, 1] = [124, 26, 0.5]  # the corner of a box 1.2 times as wide
    joints[:, 2] = [np.nan, 26, 1]
    report = Reporter()
    path = write(tmp_path / "f_25fps.pt", small_db(bbox=box, joints2D=joints))
    (found,) = read_database(path, report)
    np.testing.assert_allclose(found.bboxes[0], [100, 50, 48, 48])
    np.testing.assert_allclose(found.joints2d[0, :3], [[0, 0, 1], [1, -1, 0.5], [0, 0, 0]])
    assert report.warnings == ["f_25fps.pt: 2D joints that are not numbers count as not known."]
    (found,) = read_database(write(tmp_path / "no_box.pt", small_db(joints2D=joints)), report)
    assert found.joints2d is None


def test_14_joints_beside_49_take_their_places(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    joints = rng.normal(size=(20, 49, 3)).astype(np.float32)
    small = np.ones((20, 14, 3), np.float32)
    box = np.tile([0.0, 0.0, 10.0, 10.0], (20, 1))
    path = write(tmp_path / "f.pt", small_db(joints3D=joints, joints2D=small, bbox=box))
    (found,) = read_database(path, Reporter())
    assert found.joint_set == "spin49"
    np.testing.assert_array_equal(found.joints3d, joints)
    assert (found.joints2d[:, 25:39, 2] == 1).all()
    assert found.joints2d[..., 2].sum() == 20 * 14


def test_labels_that_are_not_numbers_are_dropped_and_counted(tmp_path: Path) -> None:
    db = small_db(pose=np.ones((20, 72)), frame_id=np.arange(100, 120))
    db["pose"][3, 5] = np.nan
    db["joints3D"][3] = np.inf
    db["features"][7, 0] = np.nan
    report = Reporter()
    (found,) = read_database(write(tmp_path / "f_30fps.pt", db), report)
    assert report.warnings == ["f_30fps.pt: dropped 2 of 20 frames whose labels are not numbers."]
    assert found.frame_ids.tolist() == [k for k in range(100, 120) if k not in (103, 107)]
    db["features"][:] = np.nan
    with pytest.raises(InputError, match="no usable frames"):
        read_database(write(tmp_path / "f.pt", db), Reporter())


def test_a_pose_of_zeros_is_not_known(tmp_path: Path) -> None:
    """Human3.6M's preprocessing fills in what nobody has measured."""
    db = small_db(pose=np.zeros((20, 72)), shape=np.zeros((20, 10)))
    report = Reporter()
    (found,) = read_database(write(tmp_path / "h36m_25fps.pt", db), report)
    assert (found.pose, found.betas) == (None, None)
    assert found.joints3d is not None
    assert report.warnings == ["h36m_25fps.pt: a pose of nothing but zeros counts as not known."]


@pytest.mark.parametrize(
    "frame_id", [2 * np.arange(20) + 1, [f"img_{2 * k:06d}.jpg" for k in range(20)]]
)
def test_every_second_frame_of_a_clip_is_a_clip(tmp_path: Path, frame_id: Any) -> None:
    path = write(tmp_path / "h36m_25fps.pt", small_db(frame_id=np.array(frame_id)))
    (found,) = read_database(path, Reporter())
    assert found.frame_ids.tolist() == list(range(20))


def test_valid_may_have_another_name_and_form(tmp_path: Path) -> None:
    valid = np.ones((20, 1))
    valid[4] = 0
    (found,) = read_database(write(tmp_path / "f.pt", small_db(valid_i=valid)), Reporter())
    assert found.frame_ids.tolist() == [k for k in range(20) if k != 4]


def test_frame_rates_are_those_of_the_data_or_assumed_aloud(tmp_path: Path) -> None:
    for name, fps, warned in (
        ("3dpw_val_db.pt", 30, False),
        ("h36m_train_25fps_nosmpl_db.pt", 25, False),
        ("mpii3d_val_db.pt", 30, True),
    ):
        report = Reporter()
        path = write(tmp_path / name, small_db())
        assert read_database(path, report)[0].fps == fps
        assert any("30 frames/s assumed" in text for text in report.warnings) == warned
        assert read_database(path, Reporter(), fps=12.5)[0].fps == 12.5


def test_frame_ids_that_do_not_ascend_are_counted_anew(tmp_path: Path) -> None:
    report = Reporter()
    path = write(tmp_path / "f.pt", small_db(frame_id=np.zeros(20, int)))
    (found,) = read_database(path, report)
    assert found.frame_ids.tolist() == list(range(20))
    assert any("frame_id does not ascend" in text for text in report.warnings)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"features": None}, "lacks features"),
        ({"vid_name": None, "features": None}, "lacks vid_name, features"),
        ({"joints3D": np.zeros((20, 17, 3))}, r"joints3D has the shape \(20, 17, 3\).*14 or 49"),
        ({"joints3D": np.zeros((19, 14, 3))}, r"joints3D holds float64 \(19, 14, 3\)"),
        ({"joints2D": np.zeros((20, 14, 2))}, "joints2D"),
        ({"features": np.zeros((20, 512))}, r"features holds .*\(20, 512\).*\(20, 2048\)"),
        ({"pose": np.zeros((20, 69))}, "pose holds"),
        ({"shape": np.zeros((20, 11))}, "shape holds"),
        ({"bbox": np.array(["x"] * 20)}, "bbox holds"),
        ({"vid_name": np.zeros(20)}, "vid_name holds float64"),
        ({"vid_name": np.array("x")}, "is empty"),
        ({"frame_id": np.zeros(20)}, "frame_id holds float64"),
        ({"valid": np.zeros((20, 2))}, "valid holds"),
    ],
)
def test_another_layout_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        read_database(write(tmp_path / "f.pt", small_db(**changes)), Reporter())
    assert len(caught.value.message.splitlines()) == 1


def test_an_empty_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        read_database(write(tmp_path / "f.pt", small_db(0)), Reporter())
    with pytest.raises(InputError, match="lacks vid_name"):
        read_database(write(tmp_path / "f.pt", {}), Reporter())
