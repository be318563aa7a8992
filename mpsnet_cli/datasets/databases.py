"""Preprocessed databases of the VIBE and TCMR lineage (3DPW, MPI-INF-3DHP, Human3.6M): joblib .pt.

A database is one dictionary of arrays over all frames of all people: `vid_name` (N,) text,
`features` (N, 2048), `joints3D` (N, 14 or 49, 3) m, and where known `joints2D` (N, 14 or 49, 3) px
and confidence, `pose` (N, 72), `shape` (N, 10), `bbox` (N, 4) cx, cy, w, h px, `frame_id` (N,),
`valid` or `valid_i` (N,). Frames that are not valid are dropped before anything else, as the
release does, so that its windows bridge the gaps.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.body.joint_sets import COMMON14_ROWS, JointSet
from mpsnet_cli.datasets.joblib_file import read_joblib
from mpsnet_cli.datasets.sequences import Sequence
from mpsnet_cli.errors import InputError
from mpsnet_cli.progress import Reporter

TARGET_SCALE = 1.2  # side of the square that 2D targets refer to, in sides of a database's bbox
DEFAULT_FPS = 30.0
FEATURE_DIM = 2048  # of the lineage's backbone
REQUIRED = ("vid_name", "features")
SHAPES: dict[str, tuple[int, ...]] = {"pose": (72,), "shape": (10,), "bbox": (4,)}
SETS: dict[int, JointSet] = {14: "common14", 49: "spin49"}  # by the number of joints

Array = NDArray[Any]


def read_database(path: Path, report: Reporter, *, fps: float | None = None) -> list[Sequence]:
    """Read a database as one sequence for each of its `vid_name`, in the order of np.unique.

    `fps` is 30 for 3DPW, and what names like h36m_25fps say, if not given; where that says nothing
    either, 30 is assumed and warned of. Joints come as common14, or as spin49 if either of the two
    kinds has 49; those beyond the database's own 14 are zero, with confidence 0. Frames with labels
    that are not numbers are dropped, and warned of with their count.

    Raises InputError, with one sentence, for a file that is unsafe, damaged, empty, lacks a key, or
    has an array of another shape.
    """
    arrays = _checked(read_joblib(path), path)
    n = len(arrays["vid_name"])
    keep = np.ones(n, bool)
    if "valid" in arrays:
        keep &= arrays["valid"] != 0
        if not keep.all():
            report.warn(f"{path.name}: {n - keep.sum()} of {n} frames are marked invalid: dropped.")
    numbers = keep.copy()
    for name in ("features", "joints3D", *SHAPES):
        if name in arrays:
            numbers &= _finite_rows(arrays[name])
    if lost := int((keep & ~numbers).sum()):
        report.warn(f"{path.name}: dropped {lost} of {n} frames whose labels are not numbers.")
    keep &= numbers
    if not keep.any():
        raise InputError(f"{path} holds no usable frames.")
    fps = fps or _fps(path, report)
    sequences = []
    for name in np.unique(arrays["vid_name"]):
        rows = np.flatnonzero(arrays["vid_name"] == name)
        ids = _frame_ids(arrays, rows, f"{path.name}, {name}", report)
        kept = keep[rows]
        if kept.any():
            sequences.append(_sequence(str(name), arrays, rows[kept], ids[kept], fps, path, report))
    return sequences


def _checked(arrays: dict[str, Array], path: Path) -> dict[str, Array]:
    """Return the arrays that are used, or raise InputError for one that is missing or misshapen."""
    if missing := [key for key in REQUIRED if key not in arrays]:
        raise InputError(
            f"{path} lacks {', '.join(missing)}: it is no preprocessed database of this lineage."
        )
    n = len(arrays["vid_name"]) if arrays["vid_name"].ndim else 0
    if n == 0:
        raise InputError(f"{path} is empty.")
    if "valid_i" in arrays:
        arrays.setdefault("valid", arrays["valid_i"])

    def check(name: str, shape: tuple[int, ...], kinds: str) -> None:
        if arrays[name].shape != shape or arrays[name].dtype.kind not in kinds:
            what = "text" if kinds == "U" else "numbers"
            raise InputError(
                f"{path}: {name} holds {arrays[name].dtype} {arrays[name].shape}, "
                f"and must hold {what} {shape}."
            )

    check("vid_name", (n,), "U")
    check("features", (n, FEATURE_DIM), "f")
    for name in SHAPES.keys() & arrays.keys():
        check(name, (n, *SHAPES[name]), "fiu")
    for name in {"joints3D", "joints2D"} & arrays.keys():
        found = arrays[name]
        if found.ndim != 3 or found.shape[1] not in SETS:
            raise InputError(
                f"{path}: {name} has the shape {found.shape}, and must be (N, 14 or 49, 3)."
            )
        check(name, (n, found.shape[1], 3), "f")
    if "frame_id" in arrays:
        arrays["frame_id"] = _numbers(arrays["frame_id"])
        check("frame_id", (n,), "iu")
    if "valid" in arrays:
        if arrays["valid"].size == n:  # some write it as a column
            arrays["valid"] = arrays["valid"].reshape(n)
        check("valid", (n,), "biuf")
    return arrays


def _numbers(names: Array) -> Array:
    """Return the numbers that frames' names end in, "img_000012"; numbers as they are."""
    if names.dtype.kind != "U":
        return names
    found = [re.search(r"(\d{1,9})\D*$", str(name)) for name in names.ravel()]
    return np.array([int(match[1]) for match in found if match], np.int64)


def _finite_rows(array: Array) -> NDArray[np.bool_]:
    rows = np.empty(len(array), bool)
    step = max(1, (64 << 20) // max(1, array[:1].nbytes))  # rows of 64 MiB at once
    for start in range(0, len(array), step):
        part = np.isfinite(array[start : start + step])
        rows[start : start + step] = part.reshape(len(part), -1).all(axis=1)
    return rows


def _fps(path: Path, report: Reporter) -> float:
    name = path.name.lower()
    if "3dpw" in name:
        return 30.0
    if said := re.search(r"(\d+)fps", name):
        return float(said[1])
    report.warn(
        f"{path.name} does not say its frame rate: {DEFAULT_FPS:g} frames/s assumed (--fps sets "
        "it); only accelerations in mm/s² depend on it."
    )
    return DEFAULT_FPS


def _frame_ids(
    arrays: dict[str, Array], rows: NDArray[np.int64], where: str, report: Reporter
) -> NDArray[np.int64]:
    if "frame_id" in arrays:
        ids = arrays["frame_id"][rows].astype(np.int64)
        steps = np.diff(ids)
        if (steps > 0).all():  # a database of every second frame of its clips is as good as any
            return ids // max(1, int(np.gcd.reduce(steps)))
        report.warn(f"{where}: frame_id does not ascend; frames are counted from 0 instead.")
    return np.arange(len(rows))


def _sequence(
    name: str,
    arrays: dict[str, Array],
    rows: NDArray[np.int64],
    frame_ids: NDArray[np.int64],
    fps: float,
    path: Path,
    report: Reporter,
) -> Sequence:
    # Consecutive rows are taken as a slice, which leaves them on the disk.
    consecutive = rows[-1] - rows[0] == len(rows) - 1
    taken: Any = slice(rows[0], rows[-1] + 1) if consecutive else rows

    def get(key: str) -> NDArray[np.float32] | None:
        return arrays[key][taken].astype(np.float32, copy=False) if key in arrays else None

    features, joints3d, joints2d, bboxes = map(get, ("features", "joints3D", "joints2D", "bbox"))
    assert features is not None
    if bboxes is not None:
        bboxes = np.concatenate([bboxes[:, :2], TARGET_SCALE * bboxes[:, 2:]], axis=1)
    if joints2d is not None:
        joints2d = None if bboxes is None else _in_box(joints2d, bboxes, path, report)
    pose, betas = get("pose"), get("shape")
    if pose is not None and not pose.any():  # what Human3.6M's preprocessing writes for "not known"
        report.warn(f"{path.name}: a pose of nothing but zeros counts as not known.")
        pose = betas = None
    known = [joints for joints in (joints3d, joints2d) if joints is not None]
    count = max((joints.shape[1] for joints in known), default=0)
    return Sequence(
        name=name,
        body="smpl",
        fps=fps,
        frame_ids=frame_ids,
        features=features,
        joint_set=SETS.get(count, "none"),
        joints3d=_widened(joints3d, count),
        joints2d=_widened(joints2d, count),
        pose=pose,
        betas=betas,
        bboxes=bboxes,
    )


def _in_box(
    joints: NDArray[np.float32], bboxes: NDArray[np.float32], path: Path, report: Reporter
) -> NDArray[np.float32]:
    """Turn x, y (N, J, 3) from px to [-1, 1]² of the boxes; what is not a number is not known."""
    xy = 2 * (joints[..., :2] - bboxes[:, None, :2]) / bboxes[:, None, 2:]
    confidence = np.clip(joints[..., 2:], 0, 1)
    known = np.isfinite(np.concatenate([xy, confidence], axis=-1)).all(axis=-1, keepdims=True)
    if not known.all():
        report.warn(f"{path.name}: 2D joints that are not numbers count as not known.")
    return np.where(known, np.concatenate([xy, confidence], axis=-1), 0).astype(np.float32)


def _widened(joints: NDArray[np.float32] | None, count: int) -> NDArray[np.float32] | None:
    """Put common14 into their places among `count` joints."""
    if joints is None or joints.shape[1] == count:
        return joints
    wide = np.zeros((len(joints), count, 3), np.float32)
    wide[:, COMMON14_ROWS["spin49"]] = joints
    return wide
