from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpsnet_cli.body.skeleton import JOINT_NAMES, PARENTS
from mpsnet_cli.synth.mocap import Take, read_takes
from mpsnet_cli.synth.retarget import blend, lengthen, retarget

# Rough T-pose of an adult, m; the left half of the pairs is mirrored.
REST = np.array(
    [(0, 0, 0), (0.08, -0.08, 0), (-0.08, -0.08, 0), (0, 0.12, -0.02), (0.11, -0.42, -0.01),
     (-0.11, -0.42, -0.01), (0, 0.25, -0.04), (0.1, -0.85, -0.06), (-0.1, -0.85, -0.06),
     (0, 0.31, -0.05), (0.13, -0.9, 0.07), (-0.13, -0.9, 0.07), (0, 0.53, -0.03),
     (0.08, 0.45, -0.02), (-0.08, 0.45, -0.02), (0, 0.61, -0.01), (0.18, 0.46, -0.02),
     (-0.18, 0.46, -0.02), (0.44, 0.45, -0.05), (-0.44, 0.45, -0.05), (0.67, 0.45, -0.05),
     (-0.67, 0.45, -0.05), (0.75, 0.45, -0.06), (-0.75, 0.45, -0.06)]
)  # fmt: skip

SEGMENTS = {
    ("left_hip", "left_knee"): "lfemur",
    ("right_hip", "right_knee"): "rfemur",
    ("left_knee", "left_ankle"): "ltibia",
    ("right_knee", "right_ankle"): "rtibia",
    ("left_shoulder", "left_elbow"): "lhumerus",
    ("right_shoulder", "right_elbow"): "rhumerus",
    ("left_elbow", "left_wrist"): "lradius",
    ("right_elbow", "right_wrist"): "rradius",
    ("left_wrist", "left_hand"): "lhand",
    ("right_wrist", "right_hand"): "rhand",
}


@pytest.fixture(scope="module")
def takes(shared: Path) -> dict[str, Take]:
    found = read_takes(shared / "mocap" / "cmu-subjects-01-02-03.tar.xz", ["02_01", "02_08"])
    return {
        name: Take(take.skeleton, take.rotations[::20], take.root[::20])
        for name, take in found.items()
    }


def pose_joints(movement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SMPL's forward kinematics: joints (N, 24, 3) and global rotations (N, 24, 3, 3)."""
    turned, joints = movement.copy(), np.zeros((len(movement), 24, 3))
    for j in range(1, 24):
        parent = PARENTS[j]
        turned[:, j] = turned[:, parent] @ movement[:, j]
        joints[:, j] = joints[:, parent] + turned[:, parent] @ (REST[j] - REST[parent])
    return joints, turned


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


@pytest.mark.parametrize("name", ["02_01", "02_08"])
def test_limbs_point_where_the_take_points(takes: dict[str, Take], name: str) -> None:
    take = takes[name]
    joints, _ = pose_joints(retarget(take, REST))
    ends, skeleton = take.positions(), take.skeleton
    for (start, end), bone in SEGMENTS.items():
        ours = joints[:, JOINT_NAMES.index(end)] - joints[:, JOINT_NAMES.index(start)]
        b = skeleton[bone]
        theirs = ends[:, b] - ends[:, skeleton.parents[b]]
        assert angles(ours, theirs).max() < 0.01, bone


@pytest.mark.parametrize("name", ["02_01", "02_08"])
def test_feet_head_and_trunk_follow_the_take(takes: dict[str, Take], name: str) -> None:
    take = takes[name]
    _, turned = pose_joints(retarget(take, REST))
    bones, skeleton = take.rotations, take.skeleton
    for joint, bone in (("pelvis", "root"), ("spine3", "thorax"), ("head", "head")):
        np.testing.assert_allclose(
            turned[:, JOINT_NAMES.index(joint)], bones[:, skeleton[bone]], atol=1e-9
        )
    for side in "lr":
        ankle = {"l": "left_ankle", "r": "right_ankle"}[side]
        toe = {"l": "left_foot", "r": "right_foot"}[side]
        forward = (REST[JOINT_NAMES.index(toe)] - REST[JOINT_NAMES.index(ankle)]) * (1, 0, 1)
        ours = turned[:, JOINT_NAMES.index(ankle)] @ forward
        theirs = bones[:, skeleton[f"{side}foot"]] @ skeleton.offsets[skeleton[f"{side}foot"]]
        assert angles(ours, theirs).max() < 20  # the sole against the instep: a constant


@pytest.mark.parametrize("name", ["02_01", "02_08"])
def test_joints_bend_the_way_people_do(takes: dict[str, Take], name: str) -> None:
    movement = retarget(takes[name], REST)
    turns = np.degrees(Rotation.from_matrix(movement.reshape(-1, 3, 3)).as_rotvec())
    by_joint = turns.reshape(len(movement), 24, 3).swapaxes(0, 1)
    vectors = dict(zip(JOINT_NAMES, by_joint, strict=True))
    for side in ("left", "right"):
        knee, ankle = vectors[f"{side}_knee"], vectors[f"{side}_ankle"]
        assert knee[:, 0].min() > -10  # never hyperextended
        assert np.abs(knee[:, 1:]).max() < 15  # a hinge
        assert np.linalg.norm(ankle, axis=1).max() < 60
        assert np.linalg.norm(vectors[f"{side}_wrist"], axis=1).max() < 90
        inward = vectors[f"{side}_elbow"][:, 1] * (-1 if side == "left" else 1)
        assert inward.min() > -10
    assert Rotation.from_matrix(movement[:, 0]).apply([0, 1, 0])[:, 1].min() > 0.8  # upright


def test_blend_goes_the_shortest_way() -> None:
    first = np.tile(np.eye(3), (4, 24, 1, 1))
    second = first.copy()
    second[:, 5] = Rotation.from_euler("y", 90, degrees=True).as_matrix()
    half = blend(first, second, 0.5)
    np.testing.assert_allclose(
        half[:, 5], np.tile(Rotation.from_euler("y", 45, degrees=True).as_matrix(), (4, 1, 1))
    )
    np.testing.assert_allclose(half[:, :5], first[:, :5])
    joints = np.arange(24) == 3
    np.testing.assert_allclose(blend(first, second, joints), first, atol=1e-12)
    np.testing.assert_allclose(blend(first, second, 1), second, atol=1e-12)


@pytest.mark.parametrize("frames", [50, 75, 300])
def test_a_lengthened_walk_keeps_its_rhythm(frames: int) -> None:
    def swing(count: int) -> np.ndarray:
        movement = np.tile(np.eye(3), (count, 24, 1, 1))
        phase = np.sin(2 * np.pi * np.arange(count) / 30)
        movement[:, 1] = Rotation.from_euler("x", 0.6 * phase[:, None]).as_matrix()
        return movement

    long = lengthen(swing(75), frames, overlap=6)
    assert long.shape == (frames, 24, 3, 3)
    np.testing.assert_allclose(long, swing(frames), atol=1e-9)
