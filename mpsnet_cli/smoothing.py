"""Motion in, calmer Motion out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d

from mpsnet_cli.geometry import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    nearest_rotation,
    perspective_to_weak,
)
from mpsnet_cli.motion import JOINTS, Motion

Floats = NDArray[np.floating]

MAX_SIGMA = 0.2  # s; width of the Gaussian at strength 1
DEFAULT_STRENGTH = 0.1  # mild; chosen on the example's truth: benchmarks/smoothing.py


def smooth_motion(motion: Motion, strength: float) -> Motion:
    """Smooth rotations, translation and betas over time with one Gaussian of strength · 0.2 s.

    Rotations are averaged on SO(3) (chordal mean), so neither the wrap at π nor the axis-angle
    double cover can be seen. Nothing is averaged across a hole in the frames. `cam` follows the
    translation; `joints3d` and `joints2d` are left as they were and must be computed anew from the
    body. Strength 0 returns the motion unchanged.
    """
    sigma = strength * MAX_SIGMA * motion.fps  # frames
    if sigma == 0:
        return motion

    def smooth(values: Floats) -> Floats:
        return smooth_values(values, motion.frame_ids, sigma=sigma)

    rotations = axis_angle_to_matrix(motion.pose.reshape(-1, JOINTS, 3))
    pose = matrix_to_axis_angle(nearest_rotation(smooth(rotations)))
    transl = smooth(motion.transl.astype(np.float64))
    cam = perspective_to_weak(
        transl,
        motion.bboxes,
        focal_length=motion.focal_length,
        principal_point=motion.principal_point,
    )
    return replace(
        motion,
        pose=pose.reshape(len(motion), -1).astype(np.float32),
        betas_per_frame=smooth(motion.betas_per_frame.astype(np.float64)).astype(np.float32),
        transl=transl.astype(np.float32),
        cam=cam.astype(np.float32),
    )


def smooth_values(values: Floats, frame_ids: NDArray[np.int64], *, sigma: float) -> Floats:
    """Average values (N, …) over time with a Gaussian of `sigma` frames, not across holes."""
    pieces = np.split(values, np.flatnonzero(np.diff(frame_ids) != 1) + 1)
    return np.concatenate([gaussian_filter1d(p, sigma, axis=0, mode="nearest") for p in pieces])
