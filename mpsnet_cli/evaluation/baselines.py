"""What knows nothing of the pictures: errors that a network's are to be held against. Numpy only.

Points go in as (N, J, 3), metres, as in metrics.py.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpsnet_cli.evaluation.metrics import acceleration_error
from mpsnet_cli.geometry import axis_angle_to_matrix, matrix_to_axis_angle, nearest_rotation

Floats = NDArray[np.float64]


def mean_person(pose: ArrayLike, betas: ArrayLike) -> tuple[Floats, Floats]:
    """Average people: poses (N, 72), axis-angle, and betas (N, 10) to one (72,) and one (10,).

    Rotations are averaged joint by joint, the root's too, by their chordal mean.
    """
    rotmats = axis_angle_to_matrix(np.asarray(pose, np.float64).reshape(-1, 24, 3))
    mean = matrix_to_axis_angle(nearest_rotation(rotmats.mean(axis=0)))
    return mean.reshape(-1), np.asarray(betas, np.float64).mean(axis=0)


def constant_velocity_error(true: ArrayLike) -> Floats:
    """Measure what a body that does not accelerate gets wrong: mean ‖t″‖, (N−2,) mm/frame².

    Of all that moves evenly, or not at all, it is the acceleration error; it is also, in mm, how
    far x_n = 2 x_(n−1) − x_(n−2), extrapolated from the two true frames before, is from the truth.
    """
    return acceleration_error(np.zeros_like(true), true)
