"""Which way is up, where the floor is, and feet that stay on it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, minimum_filter1d
from scipy.sparse import csc_array, diags_array
from scipy.sparse.linalg import spsolve

from mpsnet_cli.body import JOINT_NAMES, BodyModel
from mpsnet_cli.export.stage import Floats, Performer, Stage
from mpsnet_cli.export.staging import kinematics, turned
from mpsnet_cli.progress import Reporter

ANKLES = (JOINT_NAMES.index("left_ankle"), JOINT_NAMES.index("right_ankle"))
FEET = (JOINT_NAMES.index("left_foot"), JOINT_NAMES.index("right_foot"))
NECK = JOINT_NAMES.index("neck")

# Standing: the neck is as far from the ankles as the body's straight legs and back allow.
BENT, STRAIGHT = 0.88, 0.96  # of that distance; who is bent more does not count, straighter fully
ENOUGH = 1.0  # frames of one person's standing that are enough to tell which way is up
AGREEING = 0.5  # length of the median of their directions: 1 where all are the same
UP_STEPS = 50  # of Weiszfeld's iteration, which has converged to 1e-6 long before

FLOOR_PERCENTILE = 1.0  # of the frames' lowest soles: a few wrong frames do not lower the floor

# Contact: a point of the sole that is low and slow.
CONTACT_SPEED = 0.5  # m/s; feet that swing move at two to five
STEADYING = 0.05  # s, width of the Gaussian that takes the trembling from positions before
CONTACT_HEIGHT = 0.05  # m above the lowest that either foot is within
LEVEL_SECONDS = 1.0  # s around, which is longer than a jump
SAME_STEP = 0.2  # s: frames farther apart say nothing of how a foot moved between them

PATH_MEMORY = 30.0  # s, over which a corrected path comes back to the estimated one
EASING = 0.02  # s, over which a horizontal correction begins and ends
SETTLING = 0.1  # s, the same of a vertical one

PITCHES = np.deg2rad([-70, -40, -15, 0, 15, 40, 70])  # of a foot: which of its points is lowest


class Tilt(NamedTuple):
    """How the camera stood before the world was turned upright."""

    pitch: float  # degrees that it looks down
    roll: float  # degrees that its right side is raised
    height: float  # m above the floor


def upright(stage: Stage, report: Reporter) -> tuple[Stage, Tilt]:
    """Turn the world so that people stand upright in it, the floor, y = 0, under the lowest feet.

    Up is the geometric median, over all frames of all people, of the direction from between the
    ankles to the neck; frames count as far as the person stands, that is, has legs and back
    straight. Half of them may be wrong without moving it far. The camera keeps its heading: it
    looks along -z, only pitch and roll are gone from the world and stay with the camera. Where
    nobody stands, the user is told and the camera is taken to be level.
    """
    up = _median_up(*_bodies_up(stage))
    if up is None:
        report.warn(
            "Nobody stands upright, so nothing tells which way is up: the camera is taken to be "
            "level."
        )
        up = stage.camera.rotation[:, 1]
    rotation = _levelling(stage.camera.rotation.T @ up) @ stage.camera.rotation.T
    level = turned(stage, rotation, np.zeros(3))
    lowest = [_soles(person, level.body)[..., 1].min(axis=1) for person in level.people]
    floor = np.percentile(np.concatenate(lowest), FLOOR_PERCENTILE, method="lower")
    level = turned(level, np.eye(3), np.array([0, -floor, 0]))
    right, _, backwards = level.camera.rotation.T
    pitch, roll = np.rad2deg(np.arcsin(np.clip([backwards[1], right[1]], -1, 1)))
    return level, Tilt(float(pitch), float(roll), float(level.camera.position[1]))


def grounded(stage: Stage, report: Reporter) -> list[Floats]:
    """Find the offsets (N, 3), m, of the root that keep feet from sinking and from sliding.

    The floor is y = 0, flat. A point of the sole is in contact where it moves by less than
    CONTACT_SPEED and is less than CONTACT_HEIGHT above the lowest that the person's feet are within
    LEVEL_SECONDS. While there is contact, the path of the root takes up the movement of the points
    in contact (their mean, for both feet), and the lowest of them is set on the floor. The offset
    c(t) is the one that minimises

        ∫ contact · |ċ + v|² + |c|² / PATH_MEMORY² + EASING² · |c̈|²,

    horizontally, with v the velocity of the points in contact, and likewise vertically; then
    whatever still is below the floor is lifted. Who never touches the floor is told of.
    """
    offsets = []
    for person in stage.people:
        soles = _soles(person, stage.body)
        contact = _contacts(soles, person.times, stage.fps)
        if not contact.any():
            report.warn(f"The feet of person {person.id} never rest, so nothing holds them still.")
        offset = _still(soles, contact, person.times)
        offset[:, 1] = _on_floor(soles[..., 1], contact, person.times)
        offsets.append(offset)
    return offsets


def _bodies_up(stage: Stage) -> tuple[Floats, Floats]:
    """Find where each body of each frame points, (M, 3), and how far it stands, (M,), 0 to 1.

    That the neck is a little before or behind the ankles in the T-pose already is taken off.
    """
    directions, weights = [], []
    for person in stage.people:
        _, joints = kinematics(person, stage.body)
        axis = joints[:, NECK] - joints[:, ANKLES].mean(axis=1)
        length = np.linalg.norm(axis, axis=1)
        rest = person.rest_joints[NECK] - person.rest_joints[list(ANKLES)].mean(axis=0)
        stretch = length / np.linalg.norm(rest)
        weights.append(np.clip((stretch - BENT) / (STRAIGHT - BENT), 0, 1))
        lean = person.rotations[:, 0] @ (rest / np.linalg.norm(rest) - [0, 1, 0])
        directions.append(axis / length[:, None] - lean)
    return np.concatenate(directions), np.concatenate(weights)


def _median_up(directions: Floats, weights: Floats) -> Floats | None:
    """Find the direction (3,) with the least sum of distances to weighted ones (M, 3).

    None where they are too few, or too many of them contradict each other. Weiszfeld, "Sur le point
    pour lequel la somme des distances de n points donnés est minimum", 1937.
    """
    if weights.sum() < ENOUGH:
        return None
    median = weights @ directions / weights.sum()
    for _ in range(UP_STEPS):
        pull = weights / np.maximum(np.linalg.norm(directions - median, axis=1), 1e-9)
        median = pull @ directions / pull.sum()
    length = np.linalg.norm(median)
    return median / length if length > AGREEING else None


def _levelling(up: Floats) -> Floats:
    """Find the rotation that takes `up` (3,) to y, and the camera's heading to -z.

    The heading is where -z points, or, looking straight down or up, where the picture's upper or
    lower edge is.
    """
    backwards = np.array([0.0, 0, 1])
    if abs(up[2]) > np.cos(np.deg2rad(5)):
        backwards = np.array([0.0, -np.sign(up[2]), 0])
    backwards = backwards - up * (backwards @ up)
    backwards /= np.linalg.norm(backwards)
    return np.stack([np.cross(up, backwards), up, backwards])


def _soles(person: Performer, body: BodyModel) -> Floats:
    """Follow the points (N, K, 3) of a person's soles: those that touch a floor at some pitch.

    A point moves with the one joint that its skin is most of, ankle or foot.
    """
    rest_vertices = body(np.zeros((1, 72)), person.betas[None])[0][0].astype(np.float64)
    owner = body.skinning_weights.argmax(axis=1)
    rotations, positions = kinematics(person, body)
    downwards = np.stack([0 * PITCHES, -np.cos(PITCHES), np.sin(PITCHES)], axis=-1)
    points = []
    for joint in (*ANKLES, *FEET):
        skin = rest_vertices[owner == joint]
        for offset in skin[np.unique((skin @ downwards.T).argmax(axis=0))]:
            arm = rotations[:, joint] @ (offset - person.rest_joints[joint])
            points.append(positions[:, joint] + arm)
    return np.stack(points, axis=1)


def _contacts(soles: Floats, times: Floats, fps: float) -> NDArray[np.bool_]:
    """Tell which points (N, K) of the soles are in contact, see `grounded`."""
    if len(times) == 1:
        return np.ones(soles.shape[:2], bool)
    steady = gaussian_filter1d(soles, STEADYING * fps, axis=0, mode="nearest")
    speed = np.linalg.norm(np.gradient(steady, times, axis=0), axis=-1)
    heights = soles[..., 1]
    window = max(1, round(LEVEL_SECONDS * fps))
    level = minimum_filter1d(heights.min(axis=1), window)
    return (speed < CONTACT_SPEED) & (heights < level[:, None] + CONTACT_HEIGHT)


def _still(soles: Floats, contact: NDArray[np.bool_], times: Floats) -> Floats:
    """Find the horizontal offset (N, 3) that holds the points in contact where they are."""
    offset = np.zeros((len(times), 3))
    if len(times) < 3:
        return offset
    steps = np.diff(times)
    both = contact[1:] & contact[:-1] & (steps < SAME_STEP)[:, None]
    held = both.any(axis=1)
    movement = np.diff(soles, axis=0) * both[..., None]
    velocity = movement.sum(axis=1) / np.maximum(both.sum(axis=1), 1)[:, None] / steps[:, None]
    change = _derivative(times)
    bend = _derivative((times[1:] + times[:-1]) / 2) @ change
    around = np.gradient(times)  # s, each time's share of the whole
    weigh = diags_array(held * steps)
    matrix = (
        change.T @ weigh @ change
        + diags_array(around / PATH_MEMORY**2)
        + EASING**2 * bend.T @ diags_array(around[1:-1]) @ bend
    )
    wanted = -change.T @ (weigh @ velocity[:, [0, 2]])
    offset[:, [0, 2]] = spsolve(csc_array(matrix), wanted)
    return offset


def _on_floor(heights: Floats, contact: NDArray[np.bool_], times: Floats) -> Floats:
    """Find the vertical offset (N,) that sets the points in contact on the floor, none below."""
    lowest = heights.min(axis=1)
    held = contact.any(axis=1)
    offset = np.zeros(len(times))
    if len(times) == 1:
        return -lowest
    if held.any():
        change = _derivative(times)
        weigh = diags_array(held * np.gradient(times))
        matrix = weigh + SETTLING**2 * change.T @ diags_array(np.diff(times)) @ change
        offset = spsolve(csc_array(matrix), -(weigh @ lowest))
    return np.maximum(offset, -lowest)


def _derivative(times: Floats) -> csc_array:
    """Make the matrix (N-1, N) that turns values at `times` into their rate of change between."""
    rate = 1 / np.diff(times)
    bands = np.stack([-rate, rate])
    return csc_array(diags_array(bands, offsets=[0, 1], shape=(len(rate), len(times))))
