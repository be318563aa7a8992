"""Rotations, and the two cameras: weak-perspective in a person's box, perspective in the image.

Numpy and scipy only. Camera frame everywhere: OpenCV, x right, y down, z forward, metres.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

Floats = NDArray[np.floating]


def axis_angle_to_matrix(axis_angle: Floats) -> NDArray[np.float64]:
    """Turn axis-angle vectors (…, 3), rad, into rotation matrices (…, 3, 3)."""
    flat = Rotation.from_rotvec(axis_angle.reshape(-1, 3)).as_matrix()
    return flat.reshape(*axis_angle.shape, 3)


def matrix_to_axis_angle(matrices: Floats) -> NDArray[np.float64]:
    """Turn rotation matrices (…, 3, 3) into axis-angle vectors (…, 3), rad, angle in [0, π]."""
    flat = Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_rotvec()
    return flat.reshape(matrices.shape[:-1])


def nearest_rotation(matrices: Floats) -> Floats:
    """Project matrices (…, 3, 3) onto SO(3): the rotation nearest in the Frobenius norm.

    Of a weighted sum of rotations this is their chordal mean (Hartley et al., IJCV 2013, §5.3).
    """
    u, _, vt = np.linalg.svd(matrices)
    u[..., :, 2] *= np.linalg.det(u @ vt)[..., None]
    return u @ vt


def default_focal_length(image_size: ArrayLike) -> float:
    """Guess a focal length, px, for an uncalibrated camera: the image diagonal of (W, H)."""
    return float(np.hypot(*np.asarray(image_size, np.float64)))


def weak_to_perspective(
    cam: Floats, bboxes: Floats, *, focal_length: float, principal_point: ArrayLike
) -> NDArray[np.float64]:
    """Place the person in the image's camera frame.

    `cam` (N, 3) is s, tx, ty of the weak-perspective camera whose image [-1, 1]² is the square box
    `bboxes` (N, 4) = cx, cy, w, h, px. Returns translations (N, 3), metres, for which perspective
    projection with `focal_length`, px, agrees with the weak camera at the person's depth.
    """
    scale = cam[:, :1].astype(np.float64) * bboxes[:, 2:3]
    xy = cam[:, 1:] + 2 * (bboxes[:, :2] - np.asarray(principal_point)) / scale
    return np.concatenate([xy, 2 * focal_length / scale], axis=1)


def perspective_to_weak(
    transl: Floats, bboxes: Floats, *, focal_length: float, principal_point: ArrayLike
) -> NDArray[np.float64]:
    """Invert `weak_to_perspective`: translations (N, 3), metres, to weak cameras (N, 3)."""
    scale = 2 * focal_length / transl[:, 2:].astype(np.float64)
    xy = transl[:, :2] - 2 * (bboxes[:, :2] - np.asarray(principal_point)) / scale
    return np.concatenate([scale / bboxes[:, 2:3], xy], axis=1)


def ray_rotations(
    bboxes: Floats, *, focal_length: ArrayLike, principal_point: ArrayLike
) -> NDArray[np.float64]:
    """Return what turns the optical axis to the middle of each box, by the shortest way: (N, 3, 3).

    One camera for all boxes, or one for each: (N,) focal lengths and (N, 2) principal points.
    A crop shows a person as a camera does that is turned so, and a network that knows nothing but
    crops says how the body stands before that one (see Li et al., CLIFF, ECCV 2022).
    """
    focal_lengths = np.asarray(focal_length)[..., None]
    x, y = ((bboxes[:, :2] - np.asarray(principal_point)) / focal_lengths).T
    off_axis = np.hypot(x, y)
    angle_per_offset = np.arctan(off_axis) / np.maximum(off_axis, 1e-12)
    return Rotation.from_rotvec(
        angle_per_offset[:, None] * np.stack([-y, x, 0 * x], axis=1)
    ).as_matrix()


def before_rays(
    pose: Floats, joints3d: Floats, rays: Floats
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Turn poses (N, 72), axis-angle, and joints (N, J, 3) to what a camera turned so would see.

    `rays` (N, 3, 3) are those of `ray_rotations`: crops alone show no more of a person than that.
    """
    turned = pose.astype(np.float32)
    turned[:, :3] = matrix_to_axis_angle(rays.swapaxes(1, 2) @ axis_angle_to_matrix(pose[:, :3]))
    return turned, (joints3d @ rays).astype(np.float32)


def project(points: Floats, *, focal_length: float, principal_point: ArrayLike) -> Floats:
    """Project camera-frame points (…, 3), metres, to image points (…, 2), px."""
    return focal_length * points[..., :2] / points[..., 2:] + np.asarray(principal_point)
