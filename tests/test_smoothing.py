from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from motions import make_motion
from scipy.spatial.transform import Rotation

from mpsnet_cli.geometry import axis_angle_to_matrix, weak_to_perspective
from mpsnet_cli.motion import Motion
from mpsnet_cli.smoothing import smooth_motion


def rotation_error(a: Motion, b: Motion) -> float:
    """Mean angle, rad, between the joint rotations of two motions."""
    left = Rotation.from_rotvec(a.pose.reshape(-1, 3))
    right = Rotation.from_rotvec(b.pose.reshape(-1, 3))
    return float((left.inv() * right).magnitude().mean())


def test_strength_zero_changes_nothing() -> None:
    motion = make_motion()
    assert smooth_motion(motion, 0) is motion


def test_noise_on_a_smooth_motion_shrinks() -> None:
    truth = make_motion(100)
    rng = np.random.default_rng(0)
    noisy = replace(
        truth,
        pose=(truth.pose + rng.normal(0, 0.05, truth.pose.shape)).astype(np.float32),
        transl=(truth.transl + rng.normal(0, 0.02, truth.transl.shape)).astype(np.float32),
    )
    calm = smooth_motion(noisy, 0.3)
    assert rotation_error(calm, truth) < 0.6 * rotation_error(noisy, truth)
    assert (
        np.abs(calm.transl - truth.transl).mean() < 0.6 * np.abs(noisy.transl - truth.transl).mean()
    )


def test_a_constant_motion_stays() -> None:
    motion = make_motion(30)
    constant = replace(motion, pose=np.tile(motion.pose[:1], (30, 1)))
    assert rotation_error(smooth_motion(constant, 1), constant) < 1e-3


def test_turning_through_pi_has_no_jump() -> None:
    """The axis-angle flips sign at π; the rotation does not, nor may its smoothed version."""
    motion = make_motion(60)
    turn = Rotation.from_rotvec(np.linspace(2.8, 3.5, 60)[:, None] * [0, 1, 0])
    pose = motion.pose.copy()
    pose[:, :3] = turn.as_rotvec()
    assert np.abs(np.diff(pose[:, 1])).max() > 6  # the flip is in the input
    calm = smooth_motion(replace(motion, pose=pose), 0.5)
    step = np.diff(axis_angle_to_matrix(calm.pose[:, :3]), axis=0)
    assert np.abs(step).max() < 0.02
    true, found = turn[10:50].as_matrix(), axis_angle_to_matrix(calm.pose[10:50, :3])
    assert np.abs(true - found).max() < 1e-3


def test_a_hole_is_never_bridged() -> None:
    motion = make_motion(40)
    frame_ids = np.concatenate([np.arange(20), np.arange(100, 120)])
    transl = np.repeat([[0.0, 0, 3], [5, 0, 3]], 20, axis=0).astype(np.float32)
    calm = smooth_motion(replace(motion, frame_ids=frame_ids, transl=transl), 1)
    assert np.allclose(calm.transl, transl)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_short_motions_work(frames: int) -> None:
    assert len(smooth_motion(make_motion(frames), 1)) == frames


def test_cam_follows_the_translation() -> None:
    calm = smooth_motion(make_motion(), 0.5)
    again = weak_to_perspective(
        calm.cam,
        calm.bboxes,
        focal_length=calm.focal_length,
        principal_point=calm.principal_point,
    )
    assert np.allclose(again, calm.transl, atol=1e-4)
