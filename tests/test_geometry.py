from __future__ import annotations

import numpy as np
from conftest import DATA
from scipy.stats import special_ortho_group

from mpsnet_cli.geometry import (
    axis_angle_to_matrix,
    before_rays,
    default_focal_length,
    matrix_to_axis_angle,
    nearest_rotation,
    perspective_to_weak,
    project,
    ray_rotations,
    weak_to_perspective,
)

rng = np.random.default_rng(0)
CAM = np.stack([rng.uniform(0.6, 1.2, 50), *rng.normal(0, 0.1, (2, 50))], axis=1)
SIDE = rng.uniform(80, 600, 50)
BBOXES = np.stack([rng.uniform(0, 1280, 50), rng.uniform(0, 720, 50), SIDE, SIDE], axis=1)
FOCAL, CENTRE = 1468.6, np.array([640.0, 360.0])


def test_rotations_match_the_golden() -> None:
    golden = np.load(DATA / "goldens" / "c_rotations.npz")
    regular = golden["rotmat"][np.abs(np.linalg.det(golden["rotmat"]) - 1) < 1e-4]
    axis_angle = golden["aa"][np.abs(np.linalg.det(golden["rotmat"]) - 1) < 1e-4]
    assert len(regular) > 190
    assert np.abs(axis_angle_to_matrix(axis_angle) - regular).max() < 1e-5
    assert np.abs(axis_angle_to_matrix(matrix_to_axis_angle(regular)) - regular).max() < 1e-5
    ordinary = np.linalg.norm(axis_angle, axis=1) < 3.1
    difference = matrix_to_axis_angle(regular)[ordinary] - axis_angle[ordinary]
    assert np.abs(difference).max() < 1e-5


def test_rotations_keep_leading_axes() -> None:
    vectors = rng.normal(0, 0.5, (3, 24, 3))
    assert axis_angle_to_matrix(vectors).shape == (3, 24, 3, 3)
    assert np.allclose(matrix_to_axis_angle(axis_angle_to_matrix(vectors)), vectors)


def test_nearest_rotation_undoes_scale_and_never_reflects() -> None:
    rotations = special_ortho_group.rvs(3, size=20, random_state=1)
    assert np.allclose(nearest_rotation(2.5 * rotations), rotations)
    projected = nearest_rotation(rotations * [1, 1, -1])
    assert np.allclose(np.linalg.det(projected), 1)


def test_weak_camera_agrees_with_the_official_image_camera() -> None:
    golden = np.load(DATA / "goldens" / "e_cam.npz")
    width, height = golden["img_wh"]
    transl = weak_to_perspective(
        golden["cam"],
        golden["bbox_used"],
        focal_length=FOCAL,
        principal_point=golden["img_wh"] / 2,
    )
    assert np.abs(transl[:, :2] - golden["orig_cam"][:, 2:]).max() < 1e-5
    scale = 2 * FOCAL / transl[:, 2]
    assert np.abs(scale / width - golden["orig_cam"][:, 0]).max() < 1e-5
    assert np.abs(scale / height - golden["orig_cam"][:, 1]).max() < 1e-5


def test_perspective_agrees_with_weak_camera_at_the_pelvis() -> None:
    transl = weak_to_perspective(CAM, BBOXES, focal_length=FOCAL, principal_point=CENTRE)
    weak = BBOXES[:, :2] + SIDE[:, None] / 2 * CAM[:, :1] * CAM[:, 1:]
    assert np.allclose(project(transl, focal_length=FOCAL, principal_point=CENTRE), weak)


def test_perspective_to_weak_inverts() -> None:
    transl = weak_to_perspective(CAM, BBOXES, focal_length=FOCAL, principal_point=CENTRE)
    back = perspective_to_weak(transl, BBOXES, focal_length=FOCAL, principal_point=CENTRE)
    assert np.allclose(back, CAM)


def test_rays_turn_the_axis_to_the_middles_of_boxes_by_the_shortest_way() -> None:
    boxes = np.concatenate([BBOXES, [[*CENTRE, 100, 100]]])
    rays = ray_rotations(boxes, focal_length=FOCAL, principal_point=CENTRE)
    axes = project(rays[:, :, 2], focal_length=FOCAL, principal_point=CENTRE)
    assert np.allclose(axes, boxes[:, :2])
    assert np.allclose(matrix_to_axis_angle(rays)[:, 2], 0)  # none rolls
    assert np.allclose(rays[-1], np.eye(3))
    of_each = ray_rotations(
        boxes,
        focal_length=np.where(np.arange(len(boxes)) % 2, 2 * FOCAL, FOCAL),
        principal_point=np.tile(CENTRE, (len(boxes), 1)),
    )
    assert np.allclose(of_each[::2], rays[::2])
    assert not np.allclose(of_each[1], rays[1])


def test_before_its_ray_a_camera_sees_the_middle_of_the_box_ahead() -> None:
    rng = np.random.default_rng(0)
    joints = np.float32(rng.normal(0, 0.5, (5, 24, 3)) + [2, -1, 6])
    pose = np.float32(rng.normal(0, 1, (5, 72)))
    boxes = np.full((5, 4), 100.0)
    boxes[:, :2] = project(joints[:, 0], focal_length=FOCAL, principal_point=CENTRE)
    rays = ray_rotations(boxes, focal_length=FOCAL, principal_point=CENTRE)
    turned_pose, turned = before_rays(pose, joints, rays)
    assert np.allclose(turned[:, 0, :2], 0, atol=1e-5)
    assert np.allclose(np.linalg.norm(turned, axis=2), np.linalg.norm(joints, axis=2), atol=1e-5)
    assert np.array_equal(turned_pose[:, 3:], pose[:, 3:])
    back = rays @ axis_angle_to_matrix(turned_pose[:, :3])
    assert np.allclose(back, axis_angle_to_matrix(pose[:, :3]), atol=1e-5)


def test_default_focal_length_is_the_diagonal() -> None:
    assert default_focal_length((300, 400)) == 500
