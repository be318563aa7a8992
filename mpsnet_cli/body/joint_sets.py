"""Which joints a label, a prediction or a metric speaks of, and how one set follows from another.

smpl24    the joints of SMPL's own skeleton, as JOINT_NAMES
common14  the fourteen that the benchmarks compare: ankles to head top, without the pelvis
spin49    SPIN's 25 of OpenPose followed by 24 of several data sets; 14 of these are common14
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.errors import InputError

JointSet = Literal["smpl24", "common14", "spin49", "none"]
JOINT_SETS: tuple[str, ...] = get_args(JointSet)
SIZES: dict[str, int] = {"smpl24": 24, "common14": 14, "spin49": 49}

COMMON14_NAMES = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle",
    "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
    "neck", "head_top",
)  # fmt: skip
HIPS = (2, 3)  # in common14; their mean is the root that joint errors are measured from

# Rows of each set that are common14. SMPL has no head top: its head joint is as near as it comes.
COMMON14_ROWS: dict[str, tuple[int, ...]] = {
    "smpl24": (8, 5, 2, 1, 4, 7, 21, 19, 17, 16, 18, 20, 12, 15),
    "common14": tuple(range(14)),
    "spin49": tuple(range(25, 39)),
}
H36M_JOINTS = 17  # rows of the regressor that the benchmarks use on SMPL's vertices
COMMON14_OF_H36M = (6, 5, 4, 1, 2, 3, 16, 15, 14, 11, 12, 13, 8, 10)

# spin49 out of 54: SMPL's 24 joints, then 21 of its vertices, then 9 regressed from all of them.
SPIN_VERTICES = (
    332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787,
    2746, 2319, 2445, 2556, 2673, 6191, 5782, 5905, 6016, 6133,
)  # fmt: skip
SPIN_EXTRA_JOINTS = 9
SPIN49_OF_54 = (
    24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34,
    8, 5, 45, 46, 4, 7, 21, 19, 17, 16, 18, 20, 47, 48, 49, 50, 51, 52, 53, 24, 26, 25, 28, 27,
)  # fmt: skip

MAX_BYTES = 64 << 20  # of a regressor file; a dense one of 17 rows has 1 MB


def to_common14(joints: NDArray[np.floating], joint_set: str) -> NDArray[np.floating]:
    """Pick common14 (…, 14, D) out of the joints (…, J, D) of a set."""
    return joints[..., list(COMMON14_ROWS[joint_set]), :]


def common14_from_vertices(
    vertices: NDArray[np.float32], regressor: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Regress common14 (N, 14, 3) from vertices (N, V, 3), as the benchmarks do.

    `regressor` (17, V) is J_regressor_h36m, see `load_joint_regressor`.
    """
    return regressor[list(COMMON14_OF_H36M)] @ vertices


def load_joint_regressor(path: Path, joints: int = H36M_JOINTS) -> NDArray[np.float32]:
    """Read a joint regressor (joints, V) from a plain .npy file.

    J_regressor_h36m.npy has 17 rows and J_regressor_extra.npy 9; both come with SPIN's data. Raises
    InputError for a file that is unreadable, holds pickled objects, or is no such matrix.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
        with path.open("rb") as file:
            matrix = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a readable joint regressor (.npy): {error}.") from error
    if matrix.ndim != 2 or len(matrix) != joints or matrix.dtype.kind != "f":
        raise InputError(
            f"{path} holds {matrix.dtype} {matrix.shape}, and a joint regressor has {joints} rows "
            "of one number for each vertex."
        )
    if not np.isfinite(matrix).all():
        raise InputError(f"{path} holds numbers that are not finite.")
    return matrix.astype(np.float32)
