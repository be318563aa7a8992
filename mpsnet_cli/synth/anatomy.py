"""What people's joints can do: postures as anatomical angles, their ranges, what runs into what.

A posture is an array (…, 24, 3) of angles, rad, about SMPL's axes in the T-pose (x to the left,
y up, z forward). A joint's rotation is a twist about its bone, by the component of the axis that
the bone lies along, and then a swing, the rotation vector of the other two components:

    R = exp(swing) exp(twist)

Two joints differ. The root turns about y last, R = exp(heading) exp(tilt), and its heading counts
on beyond π. The upper arm rolls as it is raised: a palm that faces the thigh when the arm hangs
faces the head when it is up, half a turn from the T-pose's. So its x is what its twist differs
from ROLL_PER_ELEVATION times its elevation, a line fitted to the arms of the CMU takes.

Angles add and interpolate as numbers. The singular swing, π, is out of reach of every joint, and
of a root that does not stand on its head.

**Ranges.** Each angle has a least and a greatest value; the swing of hips and shoulders moreover
lies within the four quarters of superellipses (|a|³ + |b|³ = 1) that these span. The set is convex:
what is between two possible postures is possible. The numbers are the average ranges of D. C. Boone
and S. P. Azen, "Normal Range of Motion of Joints in Male Subjects", J. Bone Joint Surg. 61-A (1979)
756–759, for arms and legs, and of the American Academy of Orthopaedic Surgeons, "Joint Motion:
Method of Measuring and Recording" (1965), for neck and trunk; where ours differ the table says why.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.body.skeleton import JOINT_NAMES, MIRRORED, PARENTS
from mpsnet_cli.synth.actor import walk

Array = NDArray[np.float64]

ROOT = 0
SHOULDERS = [16, 17]
BALL_JOINTS = [1, 2, 16, 17]
ARMS = [13, 14, 16, 17, 18, 19, 20, 21, 22, 23]
ROLL_PER_ELEVATION = -0.82  # of the shoulder alone; -0.7 with what the collar adds

# Joint, least and greatest x, y, z in degrees; of a pair the left one, of which the right is the
# mirror image. For the left side x bends trunk and knee, extends the hip, points the toes, turns
# the palm back; y turns outwards, takes the arm back; z raises the arm, spreads the leg.
RANGES = (
    # Trunk: bends 80 forwards, 25 back, 35 sideways, turns 45; most of it low, as in the takes.
    ("spine1", (-10, 45), (-15, 15), (-14, 14)),
    ("spine2", (-8, 25), (-17, 17), (-12, 12)),
    ("spine3", (-18, 12), (-13, 13), (-14, 14)),
    # Neck: 45 forwards, back and sideways, turns 60. The takes bend the two joints against each
    # other by 15 more: SMPL's neck leans forward at rest.
    ("neck", (-25, 25), (-20, 20), (-22, 22)),
    ("head", (-35, 45), (-45, 45), (-27, 27)),
    # Hip: bends 122, extends 10 (20 as a stride ends, the pelvis helping), turns 47, spreads 46,
    # crosses 27.
    ("left_hip", (-122, 20), (-47, 47), (-27, 46)),
    # Knee: bends 143, and 150 under the body's weight; its axis is a little oblique.
    ("left_knee", (-5, 150), (-12, 12), (-12, 12)),
    # Ankle: points 56, lifts 13, and 35 under the body's weight; rolls 37 in and 21 out.
    ("left_ankle", (-35, 56), (-30, 25), (-37, 21)),
    ("left_foot", (-50, 25), (-5, 5), (-15, 15)),
    # Arm: 141 across the front, 45 back, and from 95 below the T-pose to 90 above it; turns 69 in,
    # and 104 out when it hangs, of which 80 is kept. 15 % of its swing is the collar's.
    ("left_collar", (-5, 5), (-21, 8), (-15, 15)),
    ("left_shoulder", (-147, 8), (-120, 40), (-85, 80)),
    # Elbow: bends 143. Half of the forearm's turn, 76 in and 82 out, is the wrist's.
    ("left_elbow", (-35, 45), (-143, 3), (-8, 8)),
    # Wrist: bends 76 either way, 22 towards the thumb, 36 away from it.
    ("left_wrist", (-35, 45), (-22, 36), (-76, 75)),
)

# T-posed joints of the free body, m from the pelvis; of a pair the left one.
_REST = {
    "pelvis": (0, 0, 0), "left_hip": (0.076, -0.075, 0.004), "spine1": (0, 0.115, -0.022),
    "left_knee": (0.108, -0.419, -0.014), "spine2": (0, 0.252, -0.036),
    "left_ankle": (0.095, -0.852, -0.057), "spine3": (0, 0.306, -0.045),
    "left_foot": (0.132, -0.896, 0.067), "neck": (0, 0.525, -0.026),
    "left_collar": (0.084, 0.452, -0.021), "head": (0, 0.611, -0.008),
    "left_shoulder": (0.179, 0.458, -0.024), "left_elbow": (0.436, 0.445, -0.047),
    "left_wrist": (0.668, 0.45, -0.049), "left_hand": (0.752, 0.446, -0.056),
}  # fmt: skip

# What runs into what: balls on the limbs (joint that carries it, centre in the T-pose, radius, m)
# into capsules (two carried ends, radius). The left half of the body.
_ARM = (
    ("left_elbow", (0.436, 0.445, -0.047), 0.040),
    ("left_elbow", (0.550, 0.450, -0.048), 0.035),
    ("left_wrist", (0.668, 0.450, -0.049), 0.030),
    ("left_wrist", (0.740, 0.440, -0.050), 0.030),
    ("left_wrist", (0.810, 0.435, -0.050), 0.025),
)
_LEG = (
    ("left_knee", (0.108, -0.419, -0.010), 0.055),
    ("left_knee", (0.100, -0.630, -0.050), 0.050),
    ("left_ankle", (0.100, -0.870, -0.070), 0.045),
    ("left_foot", (0.135, -0.900, 0.100), 0.035),
)
_CAPSULES = (
    ("head", (0.0, 0.590, 0.020), "head", (0.0, 0.690, 0.020), 0.085),
    ("pelvis", (0.070, -0.060, 0.020), "spine3", (0.060, 0.400, 0.005), 0.095),  # half the trunk
    ("left_hip", (0.085, -0.120, 0.010), "left_hip", (0.105, -0.400, -0.010), 0.065),
    ("left_knee", (0.105, -0.440, -0.020), "left_knee", (0.095, -0.840, -0.055), 0.045),
    ("left_elbow", (0.450, 0.445, -0.047), "left_elbow", (0.660, 0.450, -0.049), 0.035),
)
_ARM_MEETS = (True, True, True, True, False), (True, True, True, True, True)  # its side, the other
_LEG_MEETS = (False, False, False, False, False), (False, False, True, True, False)


def _of_side(name: str, side: int) -> int:
    return JOINT_NAMES.index(name if side > 0 else name.replace("left", "right"))


def _ranges() -> tuple[Array, Array]:
    """Least and greatest angles (24, 3), rad; the root's are all, the hands' none."""
    least, greatest = np.zeros((24, 3)), np.zeros((24, 3))
    least[ROOT], greatest[ROOT] = -1e9, 1e9
    for name, *ranges in RANGES:
        for side in (1, -1):
            both = np.radians(ranges) * np.array([1, side, side])[:, None]
            joint = _of_side(name, side)
            least[joint], greatest[joint] = both.min(axis=1), both.max(axis=1)
    return least, greatest


def _solids() -> tuple[list[int], Array, Array, Array]:
    """Carriers (P,), centres in them (P, 3) and radii (P,) of balls, capsules' starts, their ends.

    And the least distances (B, C) of balls from capsules, m, -inf where they may not meet.
    """
    balls, starts, ends, clearances = [], [], [], []
    radii = np.array([capsule[-1] for capsule in _CAPSULES * 2])
    for side in (1, -1):
        for first, start, last, end, radius in _CAPSULES:
            starts.append((_of_side(first, side), np.multiply(start, (side, 1, 1)), radius))
            ends.append((_of_side(last, side), np.multiply(end, (side, 1, 1)), radius))
        for limb, met in ((_ARM, _ARM_MEETS), (_LEG, _LEG_MEETS)):
            meets = np.concatenate(met[::side])
            for name, place, radius in limb:
                balls.append((_of_side(name, side), np.multiply(place, (side, 1, 1)), radius))
                clearances.append(np.where(meets, radius + radii, -np.inf))
    carriers, places, all_radii = map(list, zip(*balls, *starts, *ends, strict=True))
    return carriers, places - REST[carriers], np.array(all_radii), np.array(clearances)


LEAST, GREATEST = _ranges()
REST = np.array(
    [
        np.multiply(_REST[name.replace("right", "left")], (-1 if "right" in name else 1, 1, 1))
        for name in JOINT_NAMES
    ]
)
_TWISTS = np.zeros((24, 3), bool)  # which angle is the twist: about y but for the arms, about x
_TWISTS[:, 1] = True
_TWISTS[ARMS] = True, False, False
_ROLL = ROLL_PER_ELEVATION * np.array([1, -1])  # per z of the left and the right shoulder
_MIDDLE = (LEAST + GREATEST)[SHOULDERS, 0] / 2
_CARRIERS, _CENTRES, _RADII, _CLEARANCES = _solids()
_SPLIT = len(_CLEARANCES), len(_CLEARANCES) + _CLEARANCES.shape[1]


def measure(rotations: Array) -> Array:
    """Find the angles (N, 24, 3) of consecutive frames (N, 24, 3, 3) of one person."""
    turned = rotations.copy()
    turned[:, ROOT] = turned[:, ROOT].swapaxes(1, 2)  # R⁻¹ = exp(-tilt) exp(-heading)
    whole = Rotation.from_matrix(turned.reshape(-1, 3, 3))
    quaternions = whole.as_quat(canonical=True).reshape(*rotations.shape[:2], 4)
    halves = np.arctan2(quaternions[..., :3], quaternions[..., 3:])
    twist = np.where(_TWISTS, 2 * halves, 0)
    swing = (whole * Rotation.from_rotvec(twist.reshape(-1, 3)).inv()).as_rotvec()
    angles = twist + swing.reshape(twist.shape)
    angles[:, ROOT] *= -1
    angles[:, ROOT, 1] = np.unwrap(angles[:, ROOT, 1])
    roll = angles[:, SHOULDERS, 0] - angles[:, SHOULDERS, 2] * _ROLL
    angles[:, SHOULDERS, 0] = _MIDDLE + (roll - _MIDDLE + np.pi) % (2 * np.pi) - np.pi
    return angles


def pose(angles: Array) -> Array:
    """Turn angles (…, 24, 3) into rotations (…, 24, 3, 3) relative to the parent joint."""
    turned = angles.copy()
    turned[..., SHOULDERS, 0] += angles[..., SHOULDERS, 2] * _ROLL
    turned[..., ROOT, :] *= -1
    twist = np.where(_TWISTS, turned, 0).reshape(-1, 3)
    swing = turned.reshape(-1, 3) - twist
    whole = Rotation.from_rotvec(swing) * Rotation.from_rotvec(twist)
    rotations = whole.as_matrix().reshape(*angles.shape, 3)
    rotations[..., ROOT, :, :] = rotations[..., ROOT, :, :].swapaxes(-1, -2)
    return rotations


def limit(angles: Array) -> Array:
    """Bring angles (…, 24, 3) into their ranges: to the nearest, swings in their cone to zero."""
    limited = np.clip(angles, LEAST, GREATEST)
    balls = limited[..., BALL_JOINTS, :]
    bounds = np.where(balls < 0, LEAST[BALL_JOINTS], GREATEST[BALL_JOINTS])
    used = np.where(_TWISTS[BALL_JOINTS], 0, balls / bounds)
    reach = np.cbrt((used**3).sum(axis=-1, keepdims=True))
    limited[..., BALL_JOINTS, :] /= np.where(_TWISTS[BALL_JOINTS], 1, np.maximum(reach, 1))
    return limited


def mirror(angles: Array) -> Array:
    """Exchange left and right of angles (…, 24, 3)."""
    return angles[..., MIRRORED, :] * (1, -1, -1)


def joints(rotations: Array, rest: Array = REST) -> tuple[Array, Array]:
    """Place joints (N, 24, 3), m, and turn their axes (N, 24, 3, 3); the pelvis stays.

    `rest` (24, 3) or (N, 24, 3) are those of the T-pose: the free body's from its pelvis, or other.
    """
    local = np.zeros((*rotations.shape[:2], 4, 4))
    local[..., :3, :3] = rotations
    local[..., :3, 3] = rest
    local[:, 1:, :3, 3] -= rest[..., PARENTS[1:], :]
    local[..., 3, 3] = 1
    placed = [local[:, ROOT]]
    for joint in range(1, 24):  # after its parent
        placed.append(placed[PARENTS[joint]] @ local[:, joint])
    whole = np.stack(placed, axis=1)
    return whole[..., :3, 3], whole[..., :3, :3]


def overlap(rotations: Array) -> Array:
    """Measure how deep limbs lie in each other, the trunk and the head: (N,), m, 0 for not at all.

    It is approximate: a limb is a few balls, what they meet are capsules.
    """
    balls, starts, ends = np.split(_landmarks(rotations), _SPLIT, axis=1)
    along = ends - starts
    away = balls[:, :, None] - starts[:, None]
    share = (away * along[:, None]).sum(axis=-1) / (along**2).sum(axis=-1)[:, None]
    nearest = np.clip(share, 0, 1)[..., None] * along[:, None]
    depth = _CLEARANCES - np.linalg.norm(away - nearest, axis=-1)
    return np.maximum(depth, 0).max(axis=(1, 2))


def floor_path(rotations: Array) -> Array:
    """Find the root's path (N, 3), m, from 0, on which what is lowest stays where it is.

    That is how a body moves that always touches the floor: it steps, sits or crawls, never jumps.
    """
    bottoms = _landmarks(rotations) - _RADII[:, None] * (0, 1, 0)
    path = walk(bottoms, np.arange(len(_RADII)))
    return path - path[0]


def _landmarks(rotations: Array) -> Array:
    """Place the centres (N, P, 3), m, of balls and of the starts and the ends of capsules."""
    places, turned = joints(rotations)
    return places[:, _CARRIERS] + (turned[:, _CARRIERS] @ _CENTRES[..., None])[..., 0]
