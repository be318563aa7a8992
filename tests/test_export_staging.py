from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from stages import (
    LATE,
    free_body,
    make_motions,
    make_stage,
    posed_vertices,
    see,
)

from mpsnet_cli.export.floor import grounded, upright
from mpsnet_cli.export.result import Result
from mpsnet_cli.export.stage import Floats, Performer, Stage
from mpsnet_cli.export.staging import (
    kinematics,
    locked,
    project,
    resampled,
    set_stage,
    shifted,
    turned,
)
from mpsnet_cli.motion import Motion, Shape
from mpsnet_cli.progress import Reporter

BODY = free_body()
TURN = Rotation.from_euler("zyx", [20, -70, 35], degrees=True).as_matrix()


def stage_of(motions: list[Motion], *, start: float = 0.0, origin: float = 0.0) -> Stage:
    return set_stage(Result("clip", Path(), motions, origin, start), BODY)


def joints_of(stage: Stage, person: Performer) -> Floats:
    """The joints (N, 24, 3) in the world, by the body's own model."""
    pose = Rotation.from_matrix(person.rotations.reshape(-1, 3, 3)).as_rotvec().reshape(-1, 72)
    return stage.body.joints(pose, person.betas_per_time) + person.transl[:, None]


@pytest.mark.parametrize("shape", ["person", "frame"])
def test_the_world_is_the_cameras_turned_to_y_up(shape: Shape) -> None:
    motions = make_motions(frames=12, shape=shape)
    stage = stage_of(motions)
    for person, motion in zip(stage.people, motions, strict=True):
        vertices, _ = BODY(motion.pose, motion.posed_betas)
        seen = (vertices + motion.transl[:, None]) * [1, -1, -1]
        np.testing.assert_allclose(posed_vertices(stage, person), seen, atol=2e-5)
        np.testing.assert_allclose(person.rest_joints, BODY.rest_joints(motion.betas))
        assert np.abs(see(joints_of(stage, person), stage.camera) - person.joints2d).max() < 0.01


def test_a_turned_world_keeps_every_vertex_in_its_place() -> None:
    stage, shift = make_stage(frames=8), np.array([1.0, -2, 3])
    after = turned(stage, TURN, shift)
    for before, person in zip(stage.people, after.people, strict=True):
        there = posed_vertices(stage, before) @ TURN.T + shift
        np.testing.assert_allclose(posed_vertices(after, person), there, atol=2e-5)
        joints2d = see(joints_of(after, person), after.camera)
        assert np.abs(joints2d - person.joints2d).max() < 0.01


def test_kinematics_and_projection_are_the_bodys_and_the_cameras() -> None:
    stage = turned(make_stage(frames=8, pitch=12), TURN, np.zeros(3))
    for person in stage.people:
        rotations, joints = kinematics(person, BODY)
        np.testing.assert_allclose(joints, joints_of(stage, person), atol=1e-5)
        np.testing.assert_allclose(np.linalg.det(rotations), 1)
        np.testing.assert_allclose(project(stage.camera, joints), see(joints, stage.camera))


def test_slerp_half_way() -> None:
    stage = make_stage(people=1, frames=2, fps=10)
    person = stage.people[0]
    axes = np.random.default_rng(1).normal(size=(24, 3))
    axes *= 2.5 / np.linalg.norm(axes, axis=1, keepdims=True)  # rad
    keys = np.stack([np.zeros((24, 3)), axes])
    rotations = Rotation.from_rotvec(keys.reshape(-1, 3)).as_matrix().reshape(2, 24, 3, 3)
    rotations = TURN @ rotations
    moved = resampled(replace(stage, people=[replace(person, rotations=rotations)]), 20).people[0]
    assert moved.times.tolist() == [0, 0.05, 0.1]
    half = TURN @ Rotation.from_rotvec(axes / 2).as_matrix()
    np.testing.assert_allclose(moved.rotations[1], half, atol=1e-12)
    np.testing.assert_allclose(moved.rotations[::2], rotations, atol=1e-12)
    np.testing.assert_allclose(moved.transl[1], person.transl.mean(axis=0))


def test_resampled_bodies_are_where_the_camera_sees_them() -> None:
    stage = resampled(make_stage(pitch=10, frames=12, fps=30), 24)
    assert stage.uniform
    assert stage.fps == 24
    for person, last in zip(stage.people, (8, 8), strict=True):
        first = 0 if person.id == 1 else 4  # LATE frames at 30 Hz are 4 at 24
        np.testing.assert_array_equal(person.times * 24, np.arange(first, last + 1))
        np.testing.assert_array_equal(person.frame_ids, np.rint(person.times * 30))
        assert np.abs(see(joints_of(stage, person), stage.camera) - person.joints2d).max() < 0.01


def test_times_that_are_on_the_grid_keep_their_values() -> None:
    stage = make_stage(fps=29.97, frames=15)
    after = resampled(stage, 29.97)
    for before, person in zip(stage.people, after.people, strict=True):
        for name in ("times", "frame_ids", "transl", "betas_per_time"):
            np.testing.assert_array_equal(getattr(person, name), getattr(before, name))
        np.testing.assert_allclose(person.rotations, before.rotations, atol=1e-12)


def without(motion: Motion, gone: list[int]) -> Motion:
    keep = ~np.isin(motion.frame_ids, gone)
    names = ("frame_ids", "times", "pose", "betas_per_frame", "transl", "cam", "bboxes",
             "joints3d", "joints2d", "scores", "interpolated")  # fmt: skip
    return replace(motion, **{name: getattr(motion, name)[keep] for name in names})


def test_a_hole_is_bridged() -> None:
    whole = make_motions(people=1)[0]
    stage = stage_of([without(whole, [7, 8, 9])])
    assert not stage.uniform
    person = resampled(stage, 25).people[0]
    np.testing.assert_allclose(person.times, np.arange(20) / 25)
    np.testing.assert_array_equal(person.frame_ids, np.arange(20))
    before, after = (stage_of([whole]).people[0].transl[row] for row in (6, 10))
    np.testing.assert_allclose(person.transl[8], (before + after) / 2, atol=1e-6)


def test_a_late_person_stays_late() -> None:
    motions = make_motions()
    stage = stage_of(motions)
    assert stage.uniform
    assert [who.times[0] for who in stage.people] == [0, LATE / 25]
    alone = stage_of(motions[1:])
    np.testing.assert_array_equal(alone.people[0].times, stage.people[1].times)


def test_time_begins_at_the_first_frame_asked_for() -> None:
    motions = [replace(who, times=who.times + 3.2) for who in make_motions()]
    gone = list(range(7))
    later = [without(who, gone) for who in motions]
    stage = stage_of(later, origin=3.2, start=0.25)  # the frame at 0.28 is the first after it
    assert stage.uniform
    assert [float(who.times[0]) for who in stage.people] == [0, 0]


def test_milliseconds_are_rounding_and_a_phones_clock_is_not() -> None:
    motion = make_motions(people=1, fps=30)[0]
    rounded = stage_of([replace(motion, times=np.round(motion.times, 3))])
    assert rounded.uniform
    np.testing.assert_array_equal(rounded.people[0].times, np.arange(20) / 30)
    uneven = motion.times + 0.01 * np.sin(motion.frame_ids)
    stage = stage_of([replace(motion, times=uneven)])
    assert not stage.uniform
    np.testing.assert_array_equal(stage.people[0].times, uneven)
    even = resampled(stage, 30).people[0].times * 30
    np.testing.assert_allclose(even, np.arange(round(even[0]), round(even[-1]) + 1))


def test_a_person_of_one_frame() -> None:
    motion = without(make_motions(people=1, fps=30)[0], [*range(7), *range(8, 20)])
    stage = stage_of([motion])
    person = resampled(stage, 24).people[0]
    assert person.times.tolist() == [6 / 24]
    np.testing.assert_allclose(person.rotations, stage.people[0].rotations)
    level, _ = upright(stage, Reporter())
    assert np.abs(locked(level)[0]).max() == 0
    assert grounded(level, Reporter())[0].shape == (1, 3)


def test_locked_people_stay_above_where_they_start() -> None:
    stage = make_stage(people=3)
    after = shifted(resampled(stage, 60), locked(stage), stage)
    for before, person in zip(stage.people, after.people, strict=True):
        pelvis = person.rest_joints[0] + person.transl
        start = before.rest_joints[0] + before.transl[0]
        np.testing.assert_allclose(pelvis[:, [0, 2]], np.tile(start[[0, 2]], (len(person), 1)))
        np.testing.assert_allclose(
            pelvis[:, 1] - start[1], 0.05 * (person.times - person.times[0]), atol=1e-9
        )


def still(frames: int = 60) -> tuple[Stage, Performer]:
    """One person in the T-pose, and a stage for it."""
    stage = make_stage(people=1, frames=frames)
    rotations = np.tile(np.eye(3), (frames, 24, 1, 1))
    return stage, replace(stage.people[0], rotations=rotations, transl=np.zeros((frames, 3)))


def standing(stage: Stage, *, lying: float = 0.0, knees: float = 0.0) -> Stage:
    """Straighten the people of a stage, facing anywhere; a part of them lies or floats about."""
    rng, people = np.random.default_rng(5), []
    for person in stage.people:
        count = len(person)
        rotations = np.tile(np.eye(3), (count, 24, 1, 1))
        headings = rng.uniform(0, 360, (count, 1))
        rotations[:, 0] = Rotation.from_euler("y", headings, degrees=True).as_matrix()
        falls = rng.permutation(count) < lying * count
        rotations[falls, 0] = Rotation.random(falls.sum(), rng=rng).as_matrix()
        rotations[:, 1:3] = Rotation.from_euler("x", -knees, degrees=True).as_matrix()
        rotations[:, 4:6] = Rotation.from_euler("x", knees, degrees=True).as_matrix()
        people.append(replace(person, rotations=rotations))
    return replace(stage, people=people)


@pytest.mark.parametrize(("pitch", "roll"), [(0, 0), (25, 4), (-35, -20), (70, 10)])
def test_upright_takes_pitch_and_roll_out_of_the_world(pitch: float, roll: float) -> None:
    looking = Rotation.from_euler("XZ", [-pitch, roll], degrees=True).as_matrix()
    level = standing(make_stage(people=2, frames=60), lying=0.3)
    level = replace(level, camera=replace(level.camera, rotation=looking))
    as_seen = turned(level, looking.T, np.zeros(3))
    np.testing.assert_allclose(as_seen.camera.rotation, np.eye(3), atol=1e-12)
    report = Reporter()
    found, tilt = upright(as_seen, report)
    assert not report.warnings
    error = Rotation.from_matrix(found.camera.rotation.T @ looking).magnitude()
    assert np.rad2deg(error) < 0.3
    assert tilt.pitch == pytest.approx(pitch, abs=0.3)
    assert tilt.height == found.camera.position[1]
    for person, before in zip(found.people, level.people, strict=True):
        moved = person.transl - before.transl  # the path is the same but for the floor's height
        assert np.abs(moved[:, [0, 2]]).max() < 0.05
        assert np.ptp(moved[:, 1]) < 0.05
        there = see(joints_of(found, person), found.camera)
        assert np.abs(there - see(joints_of(level, before), level.camera)).max() < 0.01


@pytest.mark.parametrize("up", [1, -1])
def test_a_camera_that_looks_straight_down_or_up(up: int) -> None:
    level = standing(make_stage(people=1))
    looking = Rotation.from_euler("x", -90 * up, degrees=True).as_matrix()
    level = replace(level, camera=replace(level.camera, rotation=looking))
    found, tilt = upright(turned(level, looking.T, np.zeros(3)), Reporter())
    np.testing.assert_allclose(found.camera.rotation, looking, atol=0.02)
    assert tilt.pitch == pytest.approx(90 * up, abs=1)


def test_the_floor_is_under_the_lowest_feet() -> None:
    stage, rng = standing(make_stage(frames=30, pitch=15)), np.random.default_rng(2)
    for person in stage.people:  # the feet in any position, the rest straight
        bend = rng.normal(0, 0.3, (4 * len(person), 3))
        bends = Rotation.from_rotvec(bend).as_matrix().reshape(-1, 4, 3, 3)
        person.rotations[:, [7, 8, 10, 11]] = bends
    found, _ = upright(stage, Reporter())
    lowest = [posed_vertices(found, who)[..., 1].min() for who in found.people]
    assert min(lowest) == pytest.approx(0, abs=0.01)


def test_nobody_stands() -> None:
    stage = standing(make_stage(pitch=10), knees=100)
    report = Reporter()
    found, tilt = upright(stage, report)
    assert "Nobody stands" in report.warnings[0]
    assert (tilt.pitch, tilt.roll) == pytest.approx((0, 0), abs=1e-9)
    np.testing.assert_allclose(found.camera.rotation, np.eye(3), atol=1e-12)


def test_people_who_contradict_each_other() -> None:
    stage, person = still()
    rotations = person.rotations.copy()
    rotations[::2, 0] = np.diag([1.0, -1, -1])  # every other frame upside down
    report = Reporter()
    _, tilt = upright(replace(stage, people=[replace(person, rotations=rotations)]), report)
    assert "Nobody stands" in report.warnings[0]
    assert tilt.pitch == pytest.approx(0, abs=1e-9)


def walk(frames: int = 90, fps: float = 30) -> tuple[Stage, list[int]]:
    """Make a person walk on y = 0, the standing foot's ankle and sole exactly still.

    The sole stays level; which foot stands changes at every step. Returns the stage and the ankle
    that stands at each frame.
    """
    stage = standing(make_stage(people=1, frames=frames, fps=fps))
    person = stage.people[0]
    swing = 0.45 * np.sin(2 * np.pi * 0.9 * person.times)
    rotations = np.tile(np.eye(3), (frames, 24, 1, 1))
    for side, sign in ((0, 1), (1, -1)):
        angles = np.stack([sign * swing, 0 * swing, 0 * swing], -1)
        rotations[:, 1 + side] = Rotation.from_rotvec(angles).as_matrix()
        rotations[:, 7 + side] = Rotation.from_rotvec(-angles).as_matrix()
    person = replace(person, rotations=rotations, transl=np.zeros((frames, 3)))
    ankles = kinematics(person, BODY)[1][:, [7, 8]]
    stands = [int(np.cos(2 * np.pi * 0.9 * time) > 0) for time in person.times]
    transl = np.zeros((frames, 3))
    for row in range(1, frames):
        foot = stands[row]
        transl[row] = transl[row - 1] + ankles[row - 1, foot] - ankles[row, foot]
    stage = replace(stage, people=[replace(person, transl=transl)])
    low = posed_vertices(stage, stage.people[0])[..., 1].min(axis=1)
    people = [replace(stage.people[0], transl=transl - low[:, None] * [0, 1, 0])]
    return replace(stage, people=people), [7 + foot for foot in stands]


def with_path(stage: Stage, offset: Floats) -> Stage:
    people = [replace(who, transl=who.transl + offset) for who in stage.people]
    return replace(stage, people=people)


def sliding(stage: Stage, stands: list[int]) -> Floats:
    """How fast the standing foot's ankle moves horizontally, m/s, from frame to frame."""
    ankles = kinematics(stage.people[0], BODY)[1]
    same = [row for row in range(1, len(stands)) if stands[row] == stands[row - 1]]
    moved = [ankles[row, stands[row]] - ankles[row - 1, stands[row]] for row in same]
    return np.linalg.norm(np.array(moved)[:, [0, 2]], axis=1) * stage.fps


def test_a_sliding_foot_stops() -> None:
    stage, stands = walk()
    times = stage.people[0].times
    drift = np.stack([0.08 * np.sin(3 * times), 0.03 * np.sin(2 * times), 0.15 * times], -1)
    estimated = with_path(stage, drift)
    assert sliding(stage, stands).max() < 1e-9
    assert np.median(sliding(estimated, stands)) > 0.15
    report = Reporter()
    after = shifted(estimated, grounded(estimated, report), estimated)
    assert not report.warnings
    assert np.median(sliding(after, stands)) < 0.02
    lowest = posed_vertices(after, after.people[0])[..., 1].min(axis=1)
    assert lowest.min() > -0.003
    assert lowest.max() < 0.02
    strides = np.diff(after.people[0].transl - stage.people[0].transl, axis=0)
    assert np.linalg.norm(strides, axis=1).max() * stage.fps < 0.25  # no jumps


def test_a_walk_that_does_not_slide_stays_as_it_is() -> None:
    stage, _ = walk()
    offset = grounded(stage, Reporter())[0]
    assert np.abs(offset - offset.mean(axis=0)).max() < 0.02


def test_a_standing_person_is_held_and_lifted_out_of_the_floor() -> None:
    stage, person = still()
    stage = replace(stage, people=[replace(person, transl=person.times[:, None] * [0.3, -0.1, 0])])
    after = shifted(stage, grounded(stage, Reporter()), stage)
    transl = after.people[0].transl
    np.testing.assert_array_less(np.ptp(transl, axis=0), [0.003, 0.01, 1e-9])
    assert transl[:, 0].mean() == pytest.approx(0.3 * person.times.mean(), abs=0.01)
    assert posed_vertices(after, after.people[0])[..., 1].min() == pytest.approx(0, abs=0.005)


def test_a_jump_stays_a_jump() -> None:
    stage, person = still()
    times = person.times
    height = np.maximum(0, 3.5 * (times - 0.5) - 4.9 * (times - 0.5) ** 2) * (times > 0.5)
    person = replace(person, transl=np.stack([0 * times, height, 0 * times], -1))
    stage = replace(stage, people=[person])
    after = shifted(stage, grounded(stage, Reporter()), stage)
    risen = after.people[0].transl[:, 1]
    np.testing.assert_allclose(risen - risen[0], height, atol=0.01)


def test_feet_that_never_rest_are_told_of() -> None:
    stage, person = still()
    moving = replace(person, transl=person.times[:, None] * [2.0, 0, 0])
    report = Reporter()
    offset = grounded(replace(stage, people=[moving]), report)[0]
    assert "never rest" in report.warnings[0]
    assert np.abs(offset[:, [0, 2]]).max() == 0
