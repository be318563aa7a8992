"""From the bones of a recording to SMPL's joint rotations.

A movement is an array (N, 24, 3, 3) of rotations relative to the parent joint, the root's relative
to the world: y up, a person in SMPL's T-pose stands along +y and faces +z.

**Retargeting.** SMPL's global rotation R_j takes segment j from the T-pose to its posed state; a
take's G_b does the same for bone b from the take's own rest pose (see mocap.py). The rest poses
differ (legs apart, elbows rolled), so R_j = G_b A_j, where the constant A_j = F_b F_jᵀ takes the
T-posed segment to the resting bone. F_j and F_b are corresponding orthonormal frames, each made of
a direction x that must agree exactly and an axis y that fixes the roll about it:

    limbs         x along the segment, y the hinge about which the next joint flexes
    feet, toes    x the way the toes point, y the sole's normal (the shank, on the take's side)
    torso, head   A_j = 1: both are upright at rest

Limbs thus keep their recorded directions exactly, whatever the proportions of the two bodies.
Two things that the takes do not record are supplied: the collar bones follow the upper arms, and
half of the forearm's pronation moves from the wrist to the elbow, where it twists the skin less.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.body.skeleton import PARENTS
from mpsnet_cli.synth.mocap import ROOT, Take

Array = NDArray[np.float64]

TORSO = {0: ROOT, 3: "lowerback", 6: "upperback", 9: "thorax", 12: "lowerneck", 15: "head"}
# SMPL joint, its child, its hinge in the T-pose; ASF bone, the bone that flexes about that hinge.
LIMBS = (
    (1, 4, (1, 0, 0), "lfemur", "ltibia"),
    (2, 5, (1, 0, 0), "rfemur", "rtibia"),
    (4, 7, (1, 0, 0), "ltibia", "ltibia"),
    (5, 8, (1, 0, 0), "rtibia", "rtibia"),
    (16, 18, (0, -1, 0), "lhumerus", "lradius"),
    (17, 19, (0, 1, 0), "rhumerus", "rradius"),
    (18, 20, (0, -1, 0), "lradius", "lradius"),
    (19, 21, (0, 1, 0), "rradius", "rradius"),
    (20, 22, (0, 0, -1), "lhand", "lhand"),
    (21, 23, (0, 0, 1), "rhand", "rhand"),
)
FEET = ((7, 10, "ltoes", "lfoot", "ltibia"), (8, 11, "rtoes", "rfoot", "rtibia"))
COLLARS = ((13, 16, 18), (14, 17, 19))  # collar, shoulder, elbow
FOREARMS = ((18, 20), (19, 21))  # elbow, wrist
CHEST = 9

COLLAR_SHARE = 0.15  # of the upper arm's swing away from the T-pose


def retarget(take: Take, rest_joints: NDArray[np.floating]) -> Array:
    """Carry a take over to SMPL's joints: a movement (N, 24, 3, 3) at the take's own rate.

    `rest_joints` (24, 3) are the T-posed joints of the body; only their directions matter. The
    mathematics stand at the top of this module.
    """
    skeleton, bones = take.skeleton, take.rotations
    turned = np.empty((len(bones), len(PARENTS), 3, 3))  # R_j
    for joint, bone in TORSO.items():
        turned[:, joint] = bones[:, skeleton[bone]]
    for joint, child, hinge, bone, flexing in LIMBS:
        smpl = _frame(rest_joints[child] - rest_joints[joint], hinge)
        asf = _frame(skeleton.offsets[skeleton[bone]], skeleton.axes[skeleton[flexing]][:, 0])
        turned[:, joint] = bones[:, skeleton[bone]] @ asf @ smpl.T
    for ankle, ball, toes, foot, shank in FEET:
        smpl = _frame((rest_joints[ball] - rest_joints[ankle]) * (1, 0, 1), (0, 1, 0))
        asf = _frame(skeleton.offsets[skeleton[toes]], -skeleton.offsets[skeleton[shank]])
        turned[:, ankle] = bones[:, skeleton[foot]] @ asf @ smpl.T
        turned[:, ball] = bones[:, skeleton[toes]] @ asf @ smpl.T
    for elbow, wrist in FOREARMS:
        pronation = _twist(
            turned[:, elbow].swapaxes(1, 2) @ turned[:, wrist],
            rest_joints[wrist] - rest_joints[elbow],
        )
        turned[:, elbow] @= Rotation.from_rotvec(pronation / 2).as_matrix()
    for collar, shoulder, elbow in COLLARS:
        arm = rest_joints[elbow] - rest_joints[shoulder]
        raised = turned[:, CHEST].swapaxes(1, 2) @ turned[:, shoulder] @ arm
        swing = Rotation.from_rotvec(COLLAR_SHARE * _swing(arm, raised)).as_matrix()
        turned[:, collar] = turned[:, CHEST] @ swing
    turned[:, 22:] = turned[:, 20:22]  # SMPL's hands are stiff
    local = turned.copy()
    local[:, 1:] = turned[:, PARENTS[1:]].swapaxes(2, 3) @ turned[:, 1:]
    return local


def _frame(direction: ArrayLike, axis: ArrayLike) -> Array:
    """Make the orthonormal frame (3, 3), as columns, of a direction and an axis across it."""
    x = np.asarray(direction, float)
    x = x / np.linalg.norm(x)
    z = np.cross(x, np.asarray(axis, float))
    z /= np.linalg.norm(z)
    return np.stack([x, np.cross(z, x), z], axis=1)


def _twist(rotations: Array, axis: Array) -> Array:
    """Take the part about `axis` of rotations (N, 3, 3) (swing–twist), as vectors (N, 3), rad.

    Its angle lies within ±π, whatever full turns a recording has gone through: half of it is used.
    """
    unit = axis / np.linalg.norm(axis)
    quaternions = Rotation.from_matrix(rotations).as_quat(canonical=True)
    half = np.arctan2(quaternions[:, :3] @ unit, quaternions[:, 3])
    return 2 * half[:, None] * unit


def _swing(start: Array, ends: Array) -> Array:
    """Find the shortest turns from direction `start` (3,) to `ends` (N, 3): vectors (N, 3), rad."""
    across = np.cross(start, ends)
    length = np.linalg.norm(across, axis=1, keepdims=True)
    angle = np.arctan2(length, ends @ start[:, None])
    return across * angle / np.maximum(length, 1e-12)


def blend(first: Array, second: Array, weights: ArrayLike) -> Array:
    """Turn one movement towards another along geodesics, by weights 0..1 that broadcast (N, 24)."""
    step = Rotation.from_matrix((first.swapaxes(2, 3) @ second).reshape(-1, 3, 3)).as_rotvec()
    weights = np.broadcast_to(weights, first.shape[:2])
    return first @ Rotation.from_rotvec(step * weights.reshape(-1, 1)).as_matrix().reshape(
        first.shape
    )


def lengthen(movement: Array, frames: int, *, overlap: int) -> Array:
    """Repeat the part of a periodic movement that repeats best, until it lasts `frames` frames.

    Each repeat fades into the next over `overlap` frames. The longest-lasting, best matching pair
    of moments is used: a walk of two and a half strides gives a loop of two.
    """
    vectors = movement[:, :, :2].reshape(len(movement), -1)  # two rows tell a rotation
    starts = range((len(movement) - overlap) // 2)
    ends = range(len(movement) // 2, len(movement) - overlap)
    costs = [
        [np.square(vectors[i : i + overlap] - vectors[j : j + overlap]).sum() for j in ends]
        for i in starts
    ]
    start, end = np.unravel_index(np.argmin(costs), np.shape(costs))
    end += ends[0]
    fade = np.linspace(0, 1, overlap + 2)[1:-1, None]
    seam = blend(movement[end : end + overlap], movement[start : start + overlap], fade)
    cycle = np.concatenate([movement[start + overlap : end], seam])
    repeats = -(-(frames - end) // len(cycle))
    return np.concatenate([movement[:end], seam, *[cycle] * max(repeats, 0)])[:frames]
