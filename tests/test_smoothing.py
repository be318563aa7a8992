from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from motions import make_motion
from scipy.spatial.transform import Rotation

from mpsnet_cli.cli.run import run
from mpsnet_cli.geometry import axis_angle_to_matrix, weak_to_perspective
from mpsnet_cli.motion import Motion
from mpsnet_cli.smoothing import (
    DEFAULT_STRENGTH,
    smooth_motion,
    smooth_rotations,
    smooth_values,
    width_in_frames,
)


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


def test_even_motion_stays() -> None:
    line = np.linspace([0.0, 1, 2], [3.0, -2, 9], 50)
    np.testing.assert_allclose(smooth_values(line, np.arange(50), width=6), line, atol=1e-9)


def test_a_gaussian_of_the_same_width_halves_the_same_frequency() -> None:
    width = 2.5
    frequency = np.sqrt(2 * np.log(2)) / width
    wave = np.sin(frequency * np.arange(400))[:, None]
    calm = smooth_values(wave, np.arange(400), width=width)
    np.testing.assert_allclose(calm[100:300], wave[100:300] / 2, rtol=0.03)  # of differences


def test_values_are_the_least_squares_fit() -> None:
    """Against the normal equations, written down whole."""
    values = np.random.default_rng(0).normal(size=(30, 2))
    bend = np.diff(np.eye(30), n=2, axis=0)
    strictness = 1.7**4 / (2 * np.log(2)) ** 2
    expected = np.linalg.solve(np.eye(30) + strictness * bend.T @ bend, values)
    np.testing.assert_allclose(smooth_values(values, np.arange(30), width=1.7), expected)


def test_a_few_frames_turned_round_are_left_out() -> None:
    """As where a network wavers between facing left and right; averaging would give neither."""
    turn = Rotation.from_rotvec(np.linspace(0.3, 0.9, 60)[:, None] * [0, 1, 0])
    wavering = turn.as_matrix()[:, None].copy()
    flipped = [20, 21, 23, 40]
    wavering[flipped, 0] = (turn[flipped] * Rotation.from_rotvec([0, 3.0, 0])).as_matrix()
    calm = Rotation.from_matrix(smooth_rotations(wavering, np.arange(60), width=1.2)[:, 0])
    assert np.degrees((calm.inv() * turn).magnitude()).max() < 3


def test_who_turns_round_does_turn_round() -> None:
    """Half a turn in a third of a second, at 30 frames/s: no flip, and not lost."""
    angle = np.pi * np.clip((np.arange(60) - 25) / 10, 0, 1)
    turn = Rotation.from_rotvec(angle[:, None] * [0, 1, 0])
    calm = smooth_rotations(turn.as_matrix()[:, None], np.arange(60), width=1.2)[:, 0]
    off = (Rotation.from_matrix(calm).inv() * turn).magnitude()
    assert np.degrees(off).max() < 12
    assert np.degrees(off[:15]).max() < 0.1


@pytest.mark.parametrize(
    ("joint", "degrees", "seconds"), [(0, 60, 0.4), (0, 90, 0.5), (18, 90, 0.3)]
)
def test_one_quick_gesture_in_a_calm_clip_stays(joint: int, degrees: float, seconds: float) -> None:
    """There and back: neither a swing of the hips nor a wave of a forearm is a flip."""
    time = np.arange(150) / 30 - 2.5
    angle = np.cos(np.pi * time / seconds) ** 2 * (np.abs(time) < seconds / 2)
    still = np.random.default_rng(0).normal(0, 0.01, (150, 24, 3))
    still[:, joint, 1] += np.radians(degrees) * angle
    rotations = Rotation.from_rotvec(still.reshape(-1, 3)).as_matrix().reshape(150, 24, 3, 3)
    calm = smooth_rotations(rotations, np.arange(150), width=1.2)
    peak = np.degrees(Rotation.from_matrix(calm[75, joint]).magnitude())
    assert 0.85 * degrees < peak < degrees


@pytest.mark.parametrize("fps", [1000, 1e6, 1e80])
def test_no_frame_rate_breaks_it(fps: float) -> None:
    values = np.ones((500, 3))
    width = width_in_frames(1, fps)
    np.testing.assert_allclose(smooth_values(values, np.arange(500), width=width), 1, atol=1e-3)


def test_the_command_smooths_as_much_as_the_function() -> None:
    (smooth,) = (p for p in run.params if p.name == "smooth")
    assert smooth.default == DEFAULT_STRENGTH


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
