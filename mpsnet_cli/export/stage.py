"""What every exporter starts from: people who move in a world with y up, and the camera.

Frame of the world: right-handed, metres, y up, as glTF, USD and OBJ readers have it. With
`world="camera"` the camera stands at its origin and looks along -z, so that a point is the camera
frame's (x, -y, -z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.blender.clip import stretches
from mpsnet_cli.body import BodyModel

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Performer:
    """One person's motion in the world, times ascending.

    A vertex of the posed body is lbs(rotations, betas) + transl, where the body turns about its
    pelvis of the T-pose: the pelvis is at rest_joints[0] + transl.
    """

    id: int  # of the track
    name: str  # person_01, …
    gender: str
    times: Floats  # (N,) s, from the start of the clip
    frame_ids: NDArray[np.int64]  # (N,) source frame nearest to each time
    rotations: Floats  # (N, 24, 3, 3) local, in SMPL's joint order; the root's in the world
    transl: Floats  # (N, 3) m
    betas: Floats  # (10,) the one shape that skeleton and rest mesh have
    betas_per_time: Floats  # (N, 10) what vertex-exact formats pose with
    rest_joints: Floats  # (24, 3) m, of the T-pose with `betas`
    joints2d: Floats  # (N, 24, 2) px of the source image, where it was seen there
    bboxes: Floats  # (N, 4) square box cx, cy, w, h, px of the source image

    def __len__(self) -> int:
        return len(self.times)

    def seen(self, fps: float) -> Floats:
        """Find the times (R, 2), s, from which and to which the person is seen without a hole.

        The person is there until the frame after the second of the two, at `fps` of the stage. The
        rule lies with the add-on for Blender, which has nothing else of this package.
        """
        return stretches(self.times, self.frame_ids, fps)


@dataclass(frozen=True)
class Camera:
    """The clip's camera: where it is in the world, and how it projects.

    A point of the world is rotation.T @ (point - position) in axes x right, y up, z backwards.
    """

    position: Floats  # (3,) m
    rotation: Floats  # (3, 3) columns: the camera's right, up and backwards in the world
    focal_length: float  # px
    principal_point: Floats  # (2,) px
    image_size: tuple[int, int]  # width, height, px


@dataclass(frozen=True)
class Stage:
    """All that is exported of a clip."""

    name: str  # of the clip
    people: Sequence[Performer]
    camera: Camera
    fps: float  # Hz: of the source, or the rate that all times are multiples of
    uniform: bool  # whether all times are k / fps, of whole k
    trained: bool  # False: the weights were random, and every format says so
    weights: str  # name of the weights
    body: BodyModel
    video: str | None  # the source clip, if it is known where it is
