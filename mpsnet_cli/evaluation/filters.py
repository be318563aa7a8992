"""Smoothing of predicted rotations: the tool's own, and the official evaluation's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.smoothing import smooth_rotations, smooth_values, width_in_frames

Floats = NDArray[np.floating]

RELEASE_RATE = 0.3


def tool_filter(
    rotmats: Floats, betas: Floats, frame_ids: NDArray[np.int64], *, strength: float, fps: float
) -> tuple[Floats, Floats]:
    """Smooth rotations (N, 24, 3, 3) and betas (N, 10) as `smooth_motion` does a Motion's."""
    width = width_in_frames(strength, fps)
    return (
        smooth_rotations(rotmats, frame_ids, width=width),
        smooth_values(betas, frame_ids, width=width),
    )


def release_filter(rotmats: Floats) -> Floats:
    """Smooth rotations (N, J, 3, 3) as the official evaluation's `--filter`: a recursion.

    S_0 = R_0, S_t = S_(t−1) exp(0.3 log(S_(t−1)ᵀ R_t)) for each joint: a step of 0.3 on the
    shortest way from the last smooth rotation to the new one, whatever lies between the frames.
    """
    shape = rotmats.shape
    calm = np.empty(shape, np.float64)
    last = Rotation.from_matrix(rotmats[0])
    for frame, new in enumerate(rotmats):
        step = (last.inv() * Rotation.from_matrix(new)).as_rotvec()
        last = last * Rotation.from_rotvec(RELEASE_RATE * step)
        calm[frame] = last.as_matrix()
    return calm
