"""`Sequence`, what training and evaluation read, and its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.body.joint_sets import JOINT_SETS, SIZES, JointSet
from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.npz import read_npz

FORMAT = "mpsnet-sequences/1"
LABELS = ("joints3d", "joints2d", "pose", "betas", "bboxes")  # each may be unknown

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Sequence:
    """One person's static features over the frames of a clip, with what is known of the truth.

    Everything has a Motion's axes (x right, y down, z forward, metres). In sequences of `mpsnet
    features` they are those of a camera that looks at the middle of each crop, which is all that a
    crop can show; a database's labels are taken as they come, before the camera of the whole
    picture. Labels that are not known are None. Raises ValueError, naming the field, for one that
    does not fit.
    """

    name: str
    body: str  # "smpl" or "free-1": whose pose, betas and joints
    fps: float  # Hz
    frame_ids: NDArray[np.int64]  # (N,) of the source, strictly ascending; frames may be missing
    features: Floats  # (N, D) from the backbone; 2048 of ResNet-50
    joint_set: JointSet = "none"  # of joints3d and joints2d
    joints3d: Floats | None = None  # (N, J, 3) m, about any root; zero for joints not known
    joints2d: Floats | None = None  # (N, J, 3) x, y in the [-1, 1]² of bboxes, confidence 0..1
    pose: Floats | None = None  # (N, 72) axis-angle, rad, as Motion.pose
    betas: Floats | None = None  # (N, 10)
    bboxes: Floats | None = None  # (N, 4) cx, cy, w, h px: the square that the camera refers to

    def __post_init__(self) -> None:
        n, joints = len(self.frame_ids), SIZES.get(self.joint_set)
        if self.joint_set not in JOINT_SETS:
            raise ValueError(f"joint_set {self.joint_set!r} is none of {', '.join(JOINT_SETS)}")
        if not (np.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps is {self.fps}, and must be above 0")
        if self.frame_ids.dtype.kind != "i" or (np.diff(self.frame_ids) <= 0).any():
            raise ValueError("frame_ids are not ascending whole numbers")
        for name, shape in (
            ("features", (n, self.features.shape[-1])),
            ("joints3d", (n, joints, 3)),
            ("joints2d", (n, joints, 3)),
            ("pose", (n, 72)),
            ("betas", (n, 10)),
            ("bboxes", (n, 4)),
        ):
            found = getattr(self, name)
            if found is None and name in LABELS:
                continue
            if found.shape != shape:
                raise ValueError(f"{name} has shape {found.shape}, and must be {shape}")

    def __len__(self) -> int:
        return len(self.frame_ids)


def save_sequences(path: Path, sequences: Iterable[Sequence]) -> None:
    """Write sequences as one .npz of plain arrays; it appears under its name only once complete.

    Features are hardly compressible, so nothing is. Raises OutputError where it cannot be written.
    """
    arrays: dict[str, Any] = {"format": FORMAT}
    for number, sequence in enumerate(sequences):
        for name, value in vars(sequence).items():
            if value is not None:
                arrays[f"{number:06d}/{name}"] = value
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error}.") from error
    finally:
        part.unlink(missing_ok=True)


def load_sequences(path: Path) -> list[Sequence]:
    """Read what `save_sequences` wrote.

    Raises InputError if the file is not that: unreadable, of another format, empty, with pickled
    objects, or with an array that is missing, of the wrong shape or not finite.
    """
    found, arrays = read_npz(path, what="file of sequences")
    if found != FORMAT:
        raise InputError(f"{path} is not a {FORMAT} file (found: {found}).")
    grouped: dict[str, dict[str, Any]] = {}
    for key, array in arrays.items():
        number, _, name = key.partition("/")
        grouped.setdefault(number, {})[name] = array
    if not grouped:
        raise InputError(f"{path} holds no sequences.")
    return [_sequence(values, f"{path}, sequence {key}") for key, values in sorted(grouped.items())]


def _sequence(values: dict[str, Any], where: str) -> Sequence:
    fields = {field.name: field for field in dataclasses.fields(Sequence)}
    required = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise InputError(f"{where} lacks {', '.join(missing)}.")
    for name in ("features", *LABELS):
        if name in values:
            array = values[name]
            if array.dtype.kind != "f" or not np.isfinite(array).all():
                raise InputError(f"{where}: {name} holds values that are not finite numbers.")
            values[name] = array.astype(np.float32, copy=False)
    try:
        return Sequence(
            **{
                name: array.item() if array.ndim == 0 else array
                for name, array in values.items()
                if name in fields
            }
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: {error}.") from error
