"""Motion in, calmer Motion out.

Smoothing is Whittaker's (1922): of all curves x it is the one that stays near the values y and
hardly bends, the least of Σ |x_t − y_t|² + λ Σ |x_(t−1) − 2 x_t + x_(t+1)|². At the same noise left
over it blurs a motion less than a Gaussian does, which flattens every turning point.

The global orientation is fitted with Cauchy's loss instead of squares: where a network is of two
minds whether somebody faces left or right, a few frames are half a turn off, and they are left out
rather than averaged in. Nobody turns round and back in so few frames. Limbs do move as fast, so
theirs are squares.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solveh_banded

from mpsnet_cli.geometry import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    nearest_rotation,
    perspective_to_weak,
)
from mpsnet_cli.motion import JOINTS, Motion

Floats = NDArray[np.floating]

LONGEST = 0.2  # s; width at strength 1
DEFAULT_STRENGTH = 0.2  # chosen on held-out sequences and true motions: benchmarks/smoothing.py
LONGEST_IN_FRAMES = 1000.0  # a curve that is stiffer still cannot be solved for in float64
SCALE = 0.1  # distance of rotation matrices, about 4°, from which on a frame counts less,
USUAL = 3  # or so many times the median one, if that is more: all of a fast motion is far away
ROUNDS = 10  # of weighing frames anew
BEND = (1.0, -2.0, 1.0)  # second difference


def smooth_motion(motion: Motion, strength: float) -> Motion:
    """Smooth rotations, translation and betas over time, as a Gaussian of strength · 0.2 s would.

    Rotations are averaged on SO(3) (chordal mean), so neither the wrap at π nor the axis-angle
    double cover can be seen. Nothing is averaged across a hole in the frames. `cam` follows the
    translation; `joints3d` and `joints2d` are left as they were and must be computed anew from the
    body. Strength 0 returns the motion unchanged.
    """
    if strength == 0:
        return motion
    width = width_in_frames(strength, motion.fps)
    rotations = axis_angle_to_matrix(motion.pose.reshape(-1, JOINTS, 3))
    pose = matrix_to_axis_angle(smooth_rotations(rotations, motion.frame_ids, width=width))
    transl = smooth_values(motion.transl, motion.frame_ids, width=width)
    betas = smooth_values(motion.betas_per_frame, motion.frame_ids, width=width)
    cam = perspective_to_weak(
        transl,
        motion.bboxes,
        focal_length=motion.focal_length,
        principal_point=motion.principal_point,
    )
    return replace(
        motion,
        pose=pose.reshape(len(motion), -1).astype(np.float32),
        betas_per_frame=betas.astype(np.float32),
        transl=transl.astype(np.float32),
        cam=cam.astype(np.float32),
    )


def width_in_frames(strength: float, fps: float) -> float:
    """Return the deviation, frames, of the Gaussian that halves the same frequency."""
    return min(strength * LONGEST * fps, LONGEST_IN_FRAMES)


def smooth_rotations(rotmats: Floats, frame_ids: NDArray[np.int64], *, width: float) -> Floats:
    """Smooth the rotations (N, J, 3, 3) of each joint, the root first, not across holes.

    Of the root, flips of a few frames are left out.
    """
    values = rotmats.reshape(len(rotmats), -1)
    pieces = [
        np.concatenate([_fit(p[:, :9], width, SCALE), _fit(p[:, 9:], width, math.inf)], axis=1)
        for p in _runs(values, frame_ids)
    ]
    return nearest_rotation(np.concatenate(pieces).reshape(rotmats.shape))


def smooth_values(values: Floats, frame_ids: NDArray[np.int64], *, width: float) -> Floats:
    """Smooth values (N, K), not across holes."""
    return np.concatenate([_fit(piece, width, math.inf) for piece in _runs(values, frame_ids)])


def _runs(values: Floats, frame_ids: NDArray[np.int64]) -> list[Floats]:
    return np.split(values, np.flatnonzero(np.diff(frame_ids) != 1) + 1)


def _fit(values: Floats, width: float, scale: float) -> Floats:
    """Return the curve (N, K) nearest to the values that hardly bends.

    The loss of a frame is Cauchy's, log(1 + distance² / scale²), or least squares for a scale
    without end. Its minimum is found by weighing frames by 1 / (1 + distance² / scale²) again and
    again (Holland and Welsch, 1977).
    """
    count = len(values)
    if count < len(BEND):
        return values.astype(np.float64)
    bands = np.zeros((len(BEND), count))  # the lower half of DᵀD, D being second differences
    for i, first in enumerate(BEND):
        for k, second in enumerate(BEND[i:]):
            bands[k, i : count - len(BEND) + 1 + i] += first * second
    # The answer to a frequency ω, 1 / (1 + λ ω⁴), is a half where that of the Gaussian is one,
    # exp(-ω² width² / 2): λ = width⁴ / (2 ln 2)².
    bands *= width**4 / (2 * math.log(2)) ** 2
    weights = np.ones(count)
    for _ in range(ROUNDS):
        system = bands.copy()
        system[0] += weights
        fitted = solveh_banded(system, weights[:, None] * values, lower=True)
        if math.isinf(scale):
            break
        distances = np.linalg.norm(values - fitted, axis=1)
        weights = 1 / (1 + (distances / max(scale, USUAL * float(np.median(distances)))) ** 2)
    return fitted
