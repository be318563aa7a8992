from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from stages import make_stage

from mpsnet_cli.body import BONE_NAMES, PARENTS
from mpsnet_cli.export.bvh import continued, euler_angles, write_bvh
from mpsnet_cli.export.stage import Floats, Performer, Stage
from mpsnet_cli.geometry import matrix_to_axis_angle

with warnings.catch_warnings():
    warnings.simplefilter("ignore", PendingDeprecationWarning)  # of how it imports PyGLM
    import bvhio


def write(path: Path, stage: Stage, person: Performer) -> Path:
    advanced: list[int] = []
    write_bvh(path, stage, person, advance=advanced.append)
    assert sum(advanced) == len(person)
    return path


def joints_of(stage: Stage, person: Performer) -> Floats:
    pose = matrix_to_axis_angle(person.rotations).reshape(-1, 72)
    betas = np.tile(person.betas, (len(person), 1))
    return stage.body.joints(pose, betas) + person.transl[:, None]


def positions(path: Path, bones: list[str]) -> Floats:
    """Where another program finds the bones (N, len(bones), 3), cm."""
    root = bvhio.readAsHierarchy(str(path))
    frames = bvhio.readAsBvh(str(path)).FrameCount
    found = np.empty((frames, len(bones), 3))
    for frame in range(frames):
        root.loadPose(frame)
        place = {joint.Name: joint.PositionWorld for joint, *_ in root.layout()}
        found[frame] = [place[bone].to_tuple() for bone in bones]
    return found


@pytest.mark.parametrize("fps", [30, 30000 / 1001])
def test_another_reader_finds_the_joints_where_the_body_has_them(
    tmp_path: Path, fps: float
) -> None:
    stage = make_stage(people=2, frames=12, fps=fps, seed=3)
    for person in stage.people:
        path = write(tmp_path / f"{person.name}.bvh", stage, person)
        found = positions(path, BONE_NAMES)
        np.testing.assert_allclose(found, 100 * joints_of(stage, person), atol=1e-3)
        file = bvhio.readAsBvh(str(path))
        assert (file.FrameCount, file.FrameTime) == (len(person), 1 / fps)


def test_a_whole_turn_and_a_knee_bent_beyond_a_right_angle_stay_smooth(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=60)
    person = stage.people[0]
    turn = np.linspace(0, 4 * np.pi, 60)[:, None]
    rotations = person.rotations.copy()
    rotations[:, 0] = Rotation.from_euler("y", turn).as_matrix() @ rotations[:, 0]
    rotations[:, 4] = Rotation.from_euler("x", turn / 5).as_matrix()
    rotations[:, 16] = Rotation.from_euler("z", -turn / 5).as_matrix()
    person = replace(person, rotations=rotations)
    path = write(tmp_path / "p.bvh", stage, person)
    np.testing.assert_allclose(
        positions(path, BONE_NAMES), 100 * joints_of(stage, person), atol=1e-3
    )
    rows = np.loadtxt(path, skiprows=path.read_text().splitlines().index("MOTION") + 3)
    assert np.abs(np.diff(rows[:, 3:], axis=0)).max() < 40
    assert rows[-1, 3] - rows[0, 3] == pytest.approx(720, abs=40)


def test_angles_are_the_rotation_even_in_gimbal_lock() -> None:
    rng = np.random.default_rng(1)
    angles = rng.uniform(-np.pi, np.pi, (400, 3))
    angles[:200, 1] = np.pi / 2 * rng.choice([-1, 1], 200)
    angles[100:200, 1] += rng.normal(0, 1e-8, 100)
    rotations = Rotation.from_euler("YZX", angles).as_matrix()
    for found in (euler_angles(rotations), continued(euler_angles(rotations))):
        back = Rotation.from_euler("YZX", found).as_matrix()
        np.testing.assert_allclose(back, rotations, atol=1e-12)


def test_continued_undoes_every_ambiguity() -> None:
    """Smooth angles, through the lock and beyond a turn, come back but for the first frame's."""
    time = np.linspace(0, 1, 200)[:, None]
    smooth = np.concatenate([7 * time, 0.2 + 2.6 * time, 0.3 - 5 * time], axis=1)
    rotations = Rotation.from_euler("YZX", smooth).as_matrix()
    wrapped = euler_angles(rotations)
    assert np.abs(np.diff(wrapped, axis=0)).max() > 2
    np.testing.assert_allclose(continued(wrapped), smooth, atol=1e-9)


def test_the_skeleton_is_the_persons_own_and_ends_at_the_skin(tmp_path: Path) -> None:
    stage = make_stage(people=2, frames=3)
    crowns = []
    for person in stage.people:
        root = bvhio.readAsBvh(str(write(tmp_path / "p.bvh", stage, person))).Root
        joints = {joint.Name: joint for joint, *_ in root.layout()}
        assert sorted(joints) == sorted(BONE_NAMES)
        assert root.Offset.to_tuple() == (0, 0, 0)
        for joint, (name, parent) in enumerate(zip(BONE_NAMES, PARENTS, strict=True)):
            if joint:
                offset = 100 * (person.rest_joints[joint] - person.rest_joints[parent])
                np.testing.assert_allclose(joints[name].Offset, offset, atol=1e-5)
                assert joints[name] in joints[BONE_NAMES[parent]].Children
        vertices, _ = stage.body(np.zeros((1, 72)), person.betas[None])
        for name in ("Head", "L_Hand", "R_Hand", "L_Foot", "R_Foot"):
            end = person.rest_joints[BONE_NAMES.index(name)] + np.array(joints[name].EndSite) / 100
            assert np.linalg.norm(vertices[0] - end, axis=1).min() < 1e-6
        crowns.append(joints["Head"].EndSite.y)
        assert joints["L_Hand"].EndSite.x > 5 > -5 > joints["R_Hand"].EndSite.x
        assert min(joints["L_Foot"].EndSite.z, joints["R_Foot"].EndSite.z) > 5
        assert crowns[-1] > 10
    assert crowns[0] != crowns[1]


def test_one_frame(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=1)
    person = stage.people[0]
    path = write(tmp_path / "p.bvh", stage, person)
    np.testing.assert_allclose(
        positions(path, BONE_NAMES), 100 * joints_of(stage, person), atol=1e-3
    )
