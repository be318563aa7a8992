"""A body that performs a movement on the floor, before a camera, with its ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.crops import square_boxes
from mpsnet_cli.geometry import matrix_to_axis_angle, perspective_to_weak
from mpsnet_cli.motion import Motion
from mpsnet_cli.synth.scene import View

if TYPE_CHECKING:  # it needs torch
    from mpsnet_cli.body import BodyModel

SOLE = 0.03  # m above the lowest vertex of the T-pose: what may touch the floor
CONTACT = 0.008  # m, over which a sole's grip fades


@dataclass(frozen=True)
class Performance:
    """What one person does before a camera in N frames; points are in the camera frame."""

    pose: NDArray[np.float32]  # (N, 72) axis-angle, rad, the root's in the camera frame
    betas: NDArray[np.float32]  # (10,)
    transl: NDArray[np.float32]  # (N, 3) m
    joints: NDArray[np.float32]  # (N, 24, 3) m, before transl
    vertices: NDArray[np.float32]  # (N, V, 3) m, transl included
    soles: NDArray[np.float32]  # (N, 2, 3) m, world: middle of left and right, at its lowest height

    def boxes(self, view: View) -> NDArray[np.float32]:
        """Find the tight boxes (N, 4), x1, y1, x2, y2, px, of the body within the image."""
        pixels = view.project(self.vertices)
        corners = np.concatenate([pixels.min(axis=1), pixels.max(axis=1)], axis=1)
        return np.clip(corners, 0, np.tile(view.size, 2)).astype(np.float32)

    def motion(self, view: View, body: BodyModel, *, track_id: int, fps: float) -> Motion:
        """Write it down as the tool would, had it seen everything right."""
        count = len(self.pose)
        bboxes = square_boxes(self.boxes(view))
        cam = perspective_to_weak(
            self.transl,
            bboxes,
            focal_length=view.focal_length,
            principal_point=view.principal_point,
        )
        return Motion(
            track_id=track_id,
            body=body.name,
            gender=body.gender,
            weights="ground truth",
            trained=True,
            shape="person",
            fps=fps,
            image_size=np.array(view.size, np.float64),
            focal_length=view.focal_length,
            principal_point=np.array(view.principal_point),
            frame_ids=np.arange(count),
            times=np.arange(count) / fps,
            pose=self.pose,
            betas=self.betas,
            betas_per_frame=np.tile(self.betas, (count, 1)),
            transl=self.transl,
            cam=cam.astype(np.float32),
            bboxes=bboxes,
            camera_scale=1.0,
            joints3d=self.joints,
            joints2d=view.project(self.joints + self.transl[:, None]),
            scores=np.ones(count, np.float32),
            interpolated=np.zeros(count, bool),
        )


def perform(
    movement: NDArray[np.float64],
    body: BodyModel,
    betas: ArrayLike,
    *,
    view: View,
    start: tuple[float, float],
    yaw: float,
) -> Performance:
    """Let a body carry out a movement (N, 24, 3, 3), see retarget.py, on the floor of the world.

    It starts above `start` (x, z), m, turned by `yaw`, rad, from facing the camera's way. SMPL
    turns the body about its pelvis joint p in the T-pose, so with camera c = R w + t of world
    points w, R its rotation: global orientation R R_root and transl R (p + path) + t - p.
    """
    betas = np.asarray(betas, np.float32)
    shapes = np.tile(betas, (len(movement), 1))
    turned = movement.copy()
    turned[:, 0] = Rotation.from_euler("y", yaw).as_matrix() @ movement[:, 0]
    world, _ = body(matrix_to_axis_angle(turned).reshape(-1, 72), shapes)
    rest, _ = body(np.zeros((1, 72)), betas[None])
    low = rest[0, :, 1] < rest[0, :, 1].min() + SOLE
    feet = [np.flatnonzero(low & side) for side in (rest[0, :, 0] > 0, rest[0, :, 0] < 0)]
    path = walk(world, np.concatenate(feet))
    path += (start[0] - path[0, 0], 0, start[1] - path[0, 2])
    world = world + path[:, None].astype(np.float32)
    soles = np.stack([world[:, foot].mean(axis=1) for foot in feet], axis=1)
    soles[..., 1] = np.stack([world[:, foot, 1].min(axis=1) for foot in feet], axis=1)

    turned[:, 0] = view.rotation @ turned[:, 0]
    pose = matrix_to_axis_angle(turned).reshape(-1, 72).astype(np.float32)
    vertices, joints = body(pose, shapes)
    pelvis = joints[0, 0]
    transl = (view.from_world(pelvis + path) - pelvis).astype(np.float32)
    return Performance(pose, betas, transl, joints, vertices + transl[:, None], soles)


def walk(vertices: NDArray[np.floating], soles: NDArray[np.int_]) -> NDArray[np.float64]:
    """Find the path (N, 3), m, on which a posed body walks over the floor y = 0 without sliding.

    `vertices` (N, V, 3) are posed in world axes about a root that stays where it is; `soles` index
    the vertices that may touch the floor. In each frame the lowest of them touches it, and between
    frames the body moves so that what touches stays. A foot is always down: this is for walking
    and standing, not for running and jumping. The path starts above the origin.
    """
    points = vertices[:, soles].astype(np.float64)
    floor = points[..., 1].min(axis=1)
    grip = np.exp(-(points[..., 1] - floor[:, None]) / CONTACT)
    grip = grip[:-1] * grip[1:]
    grip /= grip.sum(axis=1, keepdims=True)
    path = np.zeros((len(points), 3))
    path[1:] = np.cumsum(-np.einsum("ns,nsc->nc", grip, np.diff(points, axis=0)), axis=0)
    path[:, 1] = -floor
    return path
