"""New movements out of few takes: played, mirrored, recombined, and posed anew.

Everything is done to anatomical angles, which add and interpolate as numbers, and whose ranges are
convex (see anatomy.py). A movement is, in this order:

1. a stretch of a take, at another speed, perhaps mirrored;
2. perhaps its upper body or its arms out of another stretch, or a mean of the two;
3. perhaps legs, arms, trunk or head that go smoothly from one key posture to the next. These are
   variations of ARM_POSTURES and LEG_POSTURES, of which clips are full and the takes are not, or
   just any that the joints allow;
4. a smooth random motion of all joints, a few degrees;
5. a turn about y by any angle, and a tilt, mostly slight.

What runs into itself is thrown away and drawn again, a few times at most.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.synth.anatomy import (
    GREATEST,
    LEAST,
    ROOT,
    floor_path,
    limit,
    mirror,
    overlap,
    pose,
)
from mpsnet_cli.synth.repertoire import FPS, Movement, Repertoire, load_repertoire
from mpsnet_cli.synth.retarget import COLLAR_SHARE

__all__ = ["Movement", "Repertoire", "draw_movement", "load_repertoire"]

Array = NDArray[np.float64]

# SMPL joints; pairs: left, right; of a limb in the order of the tables below.
TRUNK, NECK = [3, 6, 9], [12, 15]
ARMS = [13, 16, 18, 20], [14, 17, 19, 21]  # collar, shoulder, elbow, wrist
LEGS = [1, 4, 7, 10], [2, 5, 8, 11]  # hip, knee, ankle, toes
BOTH_ARMS, BOTH_LEGS = ARMS[0] + ARMS[1], LEGS[0] + LEGS[1]
UPPER = TRUNK + NECK + BOTH_ARMS
BENDING = TRUNK + NECK
PARTS = TRUNK, NECK, *ARMS, *LEGS

# Arms, degrees, left: roll (-67 is the middle), forwards -, up +; elbow, palm back; wrist: away
# from the thumb, back.
ARM_POSTURES = np.array(
    [
        (-62, 0, -82, 12, 10, 0, 0),  # hanging
        (-62, 5, -75, 25, 10, 0, 0),
        (8, 36, -52, 105, 20, 0, 20),  # hand on the hip
        (-15, -35, -72, 100, 0, 0, 0),  # hand on the belly, arms crossed
        (0, -50, -62, 110, 20, 0, 0),
        (-60, -20, -72, 90, 10, 0, 0),  # forearm forwards
        (-65, -55, -50, 135, 20, 0, 0),  # hand at the mouth, a telephone
        (-95, -15, -35, 135, 0, 0, 0),  # hand at the shoulder
        (-115, -15, -20, 95, 0, 0, 10),  # waving
        (-110, -10, 25, 75, 0, 0, 10),
        (-67, -25, 72, 20, 0, 0, 0),  # up
        (-67, -45, 40, 25, 0, 0, 0),
        (-90, -30, 35, 120, 0, 0, 0),  # hand on the head
        (-105, 5, 40, 125, 0, 0, 0),  # hand behind the head
        (-67, 0, 5, 10, 0, 0, 0),  # sideways
        (-67, 5, -30, 20, 0, 0, 0),
        (-67, -85, 0, 12, 0, 0, 0),  # forwards
        (-67, -60, -30, 30, 0, 0, 0),
        (-30, -75, -20, 60, 0, 0, 0),  # holding something big
        (-30, -115, -15, 60, 0, 0, 0),  # across the chest
        (-45, -100, -25, 115, 0, 0, 0),  # hand on the other shoulder
        (0, 35, -68, 70, -20, 0, 0),  # behind the back
        (-67, 35, -60, 20, 0, 0, 0),  # backwards
    ],
    float,
)  # fmt: skip

# Legs, degrees, left: hip: back +, outwards, apart; knee; toes pointed.
LEG_POSTURES = np.array(
    [
        (0, 5, 3, 3, 0),  # standing
        (-3, 10, 22, 4, 0),  # apart
        (-4, 0, -14, 8, 0),  # crossed
        (-32, 0, 3, 18, 0),  # a step
        (16, 0, 3, 12, 10),
        (-35, 5, 8, 60, -25),  # knees bent
        (-88, 5, 10, 88, 0),  # on a chair
        (-82, 12, 22, 75, 5),
        (-84, 0, -10, 70, 10),
        (-112, 12, 18, 138, -22),  # crouching
        (-88, 0, 8, 8, 20),  # on the floor
        (-92, 42, 30, 122, 15),  # cross-legged
        (0, 0, 8, 105, 45),  # kneeling
        (-35, 0, 8, 145, 50),
        (-88, 5, 8, 92, 0),  # on the other knee
        (-75, 0, 5, 75, -10),  # a lunge
        (15, 0, 5, 45, -15),
        (-80, 5, 5, 95, 15),  # a knee raised
        (-70, 0, 5, 12, 15),  # a kick
        (10, 0, 5, 90, 25),
        (0, 5, 42, 8, 15),  # raised sideways
    ],
    float,
)  # fmt: skip

SPEED = 0.25  # deviation of the log of the speed at which a take is played
SPEEDS = 0.6, 1.6
SWAY = 0.25  # by which the speed goes up and down
OTHER_UPPER, OTHER_ARMS, MEAN = 0.25, 0.1, 0.15  # shares of movements out of two stretches
ANYTHING = 0.03  # share of movements that are nothing but keys, any posture
KEYED_LEGS, KEYED_ARMS, KEYED_ARM, KEYED_TRUNK, KEYED_NECK = 0.15, 0.3, 0.15, 0.15, 0.3
ANYWHERE = 0.6  # share of movements that begin in any direction; people are filmed rather in front
TOWARDS = 0.8  # rad, deviation of the others from facing z, where the camera is
ANY_KEY = 0.1  # share of keys that are not out of the tables
SAME_SIDES = 0.5  # share of keys whose left and right limb are out of the same row
VARIATION = 0.08  # deviation of a key from the table, of a joint's range
EASE = 0.15  # deviation of trunk and neck from straight, of their range
PACE = np.radians((40, 180))  # rad/s, from key to key
SHORTEST = 0.35  # s, from key to key
WAVES = np.array([0.25, 0.6, 1.4])  # Hz, of the random motion of all joints
WAVE = 0.02 * np.array([1, 0.6, 0.3])  # amplitude of each, of a joint's range
ROOT_RANGE = np.radians((60, 120, 60))  # what counts as the root's range in that
TILT = np.radians(6)  # deviation of the whole's tilt, each of pitch and roll
TILTED, TUMBLED = 0.03, 0.005  # shares with a large tilt, with any
LARGE_TILTS = np.radians((20, 100))
TOUCH = 0.035  # m, by which soft parts may lie in each other
TRIES = 4


def draw_movement(
    repertoire: Repertoire, rng: np.random.Generator, *, frames: int, fps: float = FPS
) -> Movement:
    """Draw a movement. The same state of `rng` gives the same one.

    A single frame is one of a movement, at a fraction of its cost. The body stays on what it
    stands, sits or lies on, but where its legs are a take's: there it moves as it did in the take.
    """
    times = np.arange(frames) / fps
    least = np.inf
    for _ in range(TRIES):
        candidate = _compose(repertoire, rng, times)
        rotations = pose(candidate.angles)
        depth = overlap(rotations).max()
        if depth < least:
            least, chosen, turned = depth, candidate, rotations
        if depth <= TOUCH:
            break
    path = chosen.path
    if path is None:
        path = floor_path(turned) if frames > 1 else np.zeros((1, 3))
    tilt = _draw_tilt(rng)
    turned[:, ROOT] = tilt @ turned[:, ROOT]
    return Movement(turned, path @ tilt.T, fps, chosen.name)


class _Draft(NamedTuple):
    angles: Array  # (N, 24, 3) rad
    path: Array | None  # (N, 3) m; None where the legs are not a take's
    name: str


def _compose(repertoire: Repertoire, rng: np.random.Generator, times: Array) -> _Draft:
    """Draw all but the tilt."""
    path: Array | None
    angles, path, name = _play(repertoire, rng, times)
    anywhere = rng.random() < ANYWHERE
    heading = rng.uniform(0, 2 * np.pi) if anywhere else rng.normal(0, TOWARDS)
    heading -= angles[0, ROOT, 1]
    anything = rng.random() < ANYTHING
    mix = rng.random()
    if not anything and mix < OTHER_UPPER + OTHER_ARMS + MEAN:
        other, _, other_name = _play(repertoire, rng, times)
        share = np.zeros((24, 1))
        if mix < OTHER_UPPER:
            share[UPPER] = 1
        elif mix < OTHER_UPPER + OTHER_ARMS:
            share[BOTH_ARMS] = 1
        else:
            share[:] = rng.uniform(0.25, 0.75)
            path = None
        other[:, ROOT, 1] = angles[:, ROOT, 1]
        angles += share * (other - angles)
        name += f" and {other_name}"
    share = np.ones((24, 1)) if anything else _draw_keyed(rng)
    if share.any():
        legs = share[LEGS[0][0]]
        share[ROOT] = 0
        angles[:, ROOT, ::2] *= 1 - 0.7 * legs
        angles += share * (_play_keys(rng, times, share, anything) - angles)
        path = None if legs > 0 else path
        name += ", posed"
    angles = limit(angles + _draw_waves(rng, times))
    angles[:, ROOT, 1] += heading
    if path is not None:
        turn = np.exp(1j * heading) * (path[:, 2] + 1j * path[:, 0])
        path = np.stack([turn.imag, path[:, 1], turn.real], axis=1)
    return _Draft(angles, path, name)


def _play(
    repertoire: Repertoire, rng: np.random.Generator, times: Array
) -> tuple[Array, Array, str]:
    """Play a stretch of a take: angles, path from 0, the take's name.

    What lasts longer than the take at its slowest goes to and fro in it.
    """
    odds, starts = repertoire.odds, repertoire.starts
    about = int(np.searchsorted(odds, rng.random() * odds[-1], side="right"))
    take = int(np.searchsorted(starts, about, side="right")) - 1
    first, length = int(starts[take]), int(starts[take + 1] - starts[take]) - 1
    lasting = max(times[-1] * FPS, 1)
    fitting = max(length / lasting, SPEEDS[0])
    speed = min(max(np.exp(rng.normal(0, SPEED)), SPEEDS[0]), SPEEDS[1], fitting)
    rhythm, beat = 2 * np.pi * rng.uniform(0.2, 0.6), rng.uniform(0, 2 * np.pi)
    sway = SWAY / rhythm * (np.cos(beat) - np.cos(rhythm * times + beat))
    start = about - first - rng.random() * speed * times[-1] * FPS
    start = min(max(start, 0), max(length - speed * times[-1] * FPS, 0))
    moments = start + speed * FPS * (times + sway)
    moments = length - np.abs(length - moments % (2 * length))

    whole = np.minimum(moments.astype(int), length - 1)
    around = np.clip(whole + _AROUND, 0, length)
    t = moments - whole
    weights = _CATMULL_ROM @ np.stack([t**3, t**2, t, np.ones_like(t)])
    tracks = np.einsum("kn,knjc->njc", weights, repertoire.tracks[first + around])
    angles, path = tracks[:, :24], tracks[:, 24] - tracks[0, 24]
    if rng.random() < 0.5:
        return mirror(angles), path * (-1, 1, 1), f"{repertoire.names[take]} mirrored"
    return angles, path, repertoire.names[take]


def _draw_keyed(rng: np.random.Generator) -> Array:
    """Draw which joints go from key to key, and how much of them: (24, 1), 0..1."""
    share = np.zeros((24, 1))
    arms = rng.random()
    for joints, chosen in (
        (BOTH_LEGS, rng.random() < KEYED_LEGS),
        (ARMS[0], arms < KEYED_ARMS + KEYED_ARM / 2),
        (ARMS[1], arms < KEYED_ARMS or KEYED_ARMS + KEYED_ARM / 2 < arms < KEYED_ARMS + KEYED_ARM),
        (TRUNK, rng.random() < KEYED_TRUNK),
        (NECK, rng.random() < KEYED_NECK),
    ):
        if chosen:
            share[joints] = rng.uniform(0.7, 1)
    return share


def _play_keys(rng: np.random.Generator, times: Array, share: Array, anything: bool) -> Array:
    """Go from key posture to key posture by least jerk, at a pace, not all limbs equally far."""
    count = 3 + int(times[-1] / SHORTEST)
    keys = _draw_keys(rng, count, 1.0 if anything else ANY_KEY)
    still = rng.random(len(PARTS))[_PART, None]
    keys[1:] -= still * (keys[1:] - keys[0])
    pace = np.exp(rng.uniform(*np.log(PACE)))
    ways = np.sqrt((((keys[1:] - keys[:-1]) * share) ** 2).sum(axis=2).max(axis=1))
    steps = np.maximum(ways / pace, SHORTEST)
    ends = np.cumsum(steps)
    moments = times + rng.uniform(0, steps[0])
    last = np.searchsorted(ends, moments, side="right")
    s = (1 - (ends[last] - moments) / steps[last])[:, None, None]
    return keys[last] + s**3 * (10 - 15 * s + 6 * s**2) * (keys[last + 1] - keys[last])


def _draw_keys(rng: np.random.Generator, count: int, anyhow: float) -> Array:
    """Draw postures (K, 24, 3); each part of each is, with the chance `anyhow`, just any."""
    keys = VARIATION * rng.standard_normal((count, 24, 3))
    keys[:, BENDING] *= EASE / VARIATION
    keys = keys[:, _LIKE] * _RANGES
    for table, limbs in ((_ARM_TABLE, ARMS), (_LEG_TABLE, LEGS)):
        rows = rng.integers(len(table), size=(count, 2))
        rows[:, 1] = np.where(rng.random(count) < SAME_SIDES, *rows.T)
        keys[:, limbs[0]] += table[rows[:, 0]]
        keys[:, limbs[1]] += table[rows[:, 1]] * (1, -1, -1)
    places = rng.random((count, 24, 3))[:, _LIKE]
    just_any = (rng.random((count, len(PARTS))) < anyhow)[:, _PART]
    return np.where(just_any[..., None], LEAST + places * _RANGES, keys)


def _draw_waves(rng: np.random.Generator, times: Array) -> Array:
    """Draw a smooth random motion of all joints: (N, 24, 3), rad."""
    rates = 2 * np.pi * WAVES * rng.uniform(0.7, 1.4, 3)
    sines, cosines = rng.standard_normal((2, 3, 72)) * rng.random()
    phases = times[:, None] * rates
    waves = (WAVE * np.sin(phases)) @ sines + (WAVE * np.cos(phases)) @ cosines
    return waves.reshape(-1, 24, 3) * _RANGES


def _draw_tilt(rng: np.random.Generator) -> Array:
    """Draw a rotation (3, 3) of the whole: mostly a slight one, about a horizontal axis."""
    kind = rng.random()
    if kind < TUMBLED:
        return Rotation.random(random_state=rng).as_matrix()
    axis = rng.standard_normal(2)
    if kind < TUMBLED + TILTED:
        axis *= rng.uniform(*LARGE_TILTS) / np.linalg.norm(axis)
    else:
        axis *= TILT
    return Rotation.from_rotvec([axis[0], 0, axis[1]]).as_matrix()


def _arm_table() -> Array:
    """Angles (rows, 4, 3) of the left arm's joints, by ARM_POSTURES."""
    roll, front, up, elbow, palm, aside, back = np.radians(ARM_POSTURES).T
    zero = 0 * roll
    joints = (
        (zero, COLLAR_SHARE * front, COLLAR_SHARE * up),
        (roll, (1 - COLLAR_SHARE) * front, (1 - COLLAR_SHARE) * up),
        (palm / 2, -elbow, zero),
        (palm / 2, aside, back),
    )
    return np.array(joints).transpose(2, 0, 1)


def _leg_table() -> Array:
    """Angles (rows, 4, 3) of the left leg's joints, by LEG_POSTURES."""
    hip, out, apart, knee, toes = np.radians(LEG_POSTURES).T
    zero = 0 * hip
    joints = (hip, out, apart), (knee, zero, zero), (toes, zero, zero), (zero, zero, zero)
    return np.array(joints).transpose(2, 0, 1)


_AROUND = np.array([[-1], [0], [1], [2]])  # frames
_CATMULL_ROM = 0.5 * np.array([(-1, 2, -1, 0), (3, -5, 0, 2), (-3, 4, 1, 0), (1, -1, 0, 0)])
_RANGES = GREATEST - LEAST
_RANGES[ROOT] = ROOT_RANGE
_ARM_TABLE, _LEG_TABLE = _arm_table(), _leg_table()
_PART = np.zeros(24, int)  # of each joint, the root and the hands are of none
_LIKE = np.arange(24)  # the joint that each bends like
for _number, _joints in enumerate(PARTS):
    _PART[_joints] = _number
for _joints in (TRUNK, NECK, ARMS[0][:2], ARMS[1][:2]):
    _LIKE[_joints] = _joints[-1]
