"""Poses from AMASS (Mahmood et al., ICCV 2019) and files laid out like it, for the motion prior."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.errors import InputError
from mpsnet_cli.npz import read_npz
from mpsnet_cli.progress import Reporter

BODY_VALUES = 66  # root and 21 joints, which SMPL, SMPL-H and SMPL-X share
RATES = ("mocap_framerate", "mocap_frame_rate", "fps")  # SMPL-H's and SMPL-X's spelling, and ours


@dataclass(frozen=True)
class Poses:
    """A motion without a person: the root is turned relative to AMASS's world, z up."""

    name: str
    fps: float  # Hz
    pose: NDArray[np.float32]  # (N, 72) axis-angle, rad, SMPL joint order; the hands are zero


def read_amass(path: Path, report: Reporter) -> list[Poses]:
    """Read the motions of an .npz file, or of every one in a folder and the folders in it.

    `poses` may be of SMPL (N, 72), SMPL-H (N, 156) or SMPL-X (N, 165); SMPL-X's `root_orient` and
    `pose_body` will do as well. Files of a folder that hold no motion (AMASS has a shape.npz for
    each subject), or values that are not numbers, are skipped and counted. Raises InputError for a
    file that cannot be used, and for a folder with no motion at all.
    """
    if not path.is_dir():
        return [_read(path, path.name)]
    files = sorted(path.rglob("*.npz"))
    motions, skipped = [], []
    for file in files:
        try:
            motions.append(_read(file, str(file.relative_to(path))))
        except InputError as error:
            skipped.append(error.message)
    if not motions:
        raise InputError(f"{path} holds no AMASS motions ({len(files)} .npz files looked at).")
    if skipped:
        report.warn(f"Skipped {len(skipped)} of {len(files)} files; the first: {skipped[0]}")
    return motions


def _read(path: Path, name: str) -> Poses:
    wanted = {"poses", "root_orient", "pose_body", *RATES}
    _, arrays = read_npz(path, what=".npz", only=wanted)
    if "poses" not in arrays and {"root_orient", "pose_body"} <= arrays.keys():
        parts = arrays["root_orient"], arrays["pose_body"]
        if all(part.ndim == 2 for part in parts) and len(parts[0]) == len(parts[1]):
            arrays["poses"] = np.concatenate(parts, axis=1)
    if "poses" not in arrays:
        raise InputError(f"{path} holds no poses.")
    poses, rate = arrays["poses"], next((arrays[key] for key in RATES if key in arrays), None)
    if poses.dtype.kind != "f" or poses.ndim != 2 or poses.shape[1] < BODY_VALUES:
        raise InputError(
            f"{path}: poses is {poses.dtype} {poses.shape}, "
            "and must be (N, 72), (N, 156) or (N, 165)."
        )
    if rate is None or rate.size != 1 or rate.dtype.kind not in "fiu" or not 0 < rate < np.inf:
        raise InputError(f"{path} does not say its frame rate ({' or '.join(RATES[:2])}).")
    if len(poses) == 0 or not np.isfinite(poses[:, :BODY_VALUES]).all():
        raise InputError(f"{path} holds no frames, or values that are not numbers.")
    pose = np.zeros((len(poses), 72), np.float32)
    pose[:, :BODY_VALUES] = poses[:, :BODY_VALUES]
    return Poses(name, float(rate.item()), pose)
