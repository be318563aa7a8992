"""A body for tests that is quick to pose and easy to predict: a ball of SMPL's size."""

from __future__ import annotations

import numpy as np
import trimesh
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Ball:
    """Stands in for BodyModel: radius 0.5 m + 0.1 m × the first beta; the pose bends nothing."""

    name = "ball"

    def __init__(self, subdivisions: int = 2) -> None:
        sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
        self.sphere = np.asarray(sphere.vertices, np.float32)  # (V, 3), radius 1
        self.faces = np.asarray(sphere.faces, np.int32)

    def __call__(self, pose: Floats, betas: Floats) -> tuple[Floats, Floats]:
        radius = np.float32(0.5) + np.float32(0.1) * betas[:, :1, None]
        return radius * self.sphere, np.zeros((len(pose), 24, 3), np.float32)
