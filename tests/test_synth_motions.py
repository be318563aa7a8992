from __future__ import annotations

import numpy as np
import pytest

from mpsnet_cli.body.skeleton import JOINT_NAMES
from mpsnet_cli.synth.anatomy import GREATEST, LEAST, joints, limit, measure, overlap, pose
from mpsnet_cli.synth.motions import (
    ARM_POSTURES,
    ARMS,
    LEG_POSTURES,
    LEGS,
    Movement,
    Repertoire,
    draw_movement,
    load_repertoire,
)
from mpsnet_cli.synth.repertoire import gather

DRAWS = 400
WRISTS, KNEES, ELBOWS = [20, 21], [4, 5], [18, 19]


@pytest.fixture(scope="module")
def train() -> Repertoire:
    return load_repertoire("train")


@pytest.fixture(scope="module")
def movements(train: Repertoire) -> list[Movement]:
    return [
        draw_movement(train, np.random.default_rng(seed), frames=16) for seed in range(DRAWS // 2)
    ]


@pytest.fixture(scope="module")
def singles(train: Repertoire) -> np.ndarray:
    """Rotations (DRAWS, 24, 3, 3) of single frames."""
    draws = [draw_movement(train, np.random.default_rng((1, k)), frames=1) for k in range(DRAWS)]
    return np.concatenate([movement.rotations for movement in draws])


def joint(name: str) -> int:
    return JOINT_NAMES.index(name)


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


@pytest.mark.parametrize("frames", [1, 40])
def test_the_same_dice_give_the_same_movement(train: Repertoire, frames: int) -> None:
    first, second, third = (
        draw_movement(train, np.random.default_rng(seed), frames=frames) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.rotations, second.rotations)
    np.testing.assert_array_equal(first.path, second.path)
    assert first.name == second.name
    assert np.abs(first.rotations - third.rotations).max() > 0.1


def test_draws_are_movements(movements: list[Movement]) -> None:
    for movement in movements:
        assert movement.rotations.shape == (16, 24, 3, 3)
        assert movement.rotations.dtype == movement.path.dtype == np.float64
        assert movement.path.shape == (16, 3)
        np.testing.assert_array_equal(movement.path[0], 0)
        square = movement.rotations @ movement.rotations.swapaxes(2, 3)
        np.testing.assert_allclose(square - np.eye(3), 0, atol=1e-9)
        np.testing.assert_allclose(np.linalg.det(movement.rotations), 1, atol=1e-9)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_joints_stay_in_their_ranges(split: str) -> None:
    repertoire = load_repertoire(split)
    for seed in range(60):
        movement = draw_movement(repertoire, np.random.default_rng(seed), frames=24)
        angles = measure(movement.rotations)
        np.testing.assert_allclose(limit(angles)[:, 1:], angles[:, 1:], atol=1e-6)


def test_neither_knees_nor_elbows_bend_backwards(singles: np.ndarray) -> None:
    angles = np.degrees(measure(singles))
    assert angles[:, KNEES, 0].min() >= -5.001
    assert (angles[:, ELBOWS, 1] * (-1, 1)).min() >= -3.001
    assert np.ptp(angles[:, KNEES, 0]) > 120  # they do bend
    assert np.ptp(angles[:, ELBOWS, 1]) > 120


def test_feet_point_where_feet_can(singles: np.ndarray) -> None:
    places, axes = joints(singles)
    for side in ("left", "right"):
        knee, ankle, toes = (joint(f"{side}_{part}") for part in ("knee", "ankle", "foot"))
        shank = places[:, ankle] - places[:, knee]
        assert angle(shank, places[:, toes] - places[:, ankle]).max() < 130
        assert angle(shank, axes[:, ankle] @ [0, -1, 0]).max() < 75  # the sole is never up


def test_limbs_are_seldom_in_each_other(singles: np.ndarray, movements: list[Movement]) -> None:
    assert np.quantile(overlap(singles), 0.98) < 0.036  # m
    deepest = [overlap(movement.rotations).max() for movement in movements]
    assert np.quantile(deepest, 0.95) < 0.036
    assert max(deepest) < 0.07


def test_they_move_like_the_takes(train: Repertoire, movements: list[Movement]) -> None:
    def measured(movement: Movement) -> tuple[np.ndarray, np.ndarray]:
        angles = np.delete(measure(movement.rotations), [0, 22, 23], axis=1)
        speed = np.abs(np.diff(angles, axis=0)).max(axis=2) * movement.fps
        change = np.abs(np.diff(angles, n=2, axis=0)).max(axis=2) * movement.fps**2
        return speed, change

    for ours, theirs in zip(
        zip(*map(measured, movements), strict=True),
        zip(*map(measured, train.takes), strict=True),
        strict=True,
    ):
        quantiles = (0.5, 0.9, 0.99)
        drawn = np.quantile(np.concatenate(ours), quantiles)
        taken = np.quantile(np.concatenate(theirs), quantiles)
        assert (drawn < 1.8 * taken).all(), (drawn, taken)
        assert (drawn > 0.4 * taken).all(), (drawn, taken)  # the takes tremble
        assert np.concatenate(ours).max() < 2 * np.concatenate(theirs).max()


def test_paths_are_those_of_people(movements: list[Movement]) -> None:
    speeds = [np.linalg.norm(np.diff(m.path, axis=0), axis=1).max() * m.fps for m in movements]
    assert 0.3 < np.median(speeds) < 2  # m/s
    assert max(speeds) < 12


def test_most_people_are_upright_and_face_anywhere(singles: np.ndarray) -> None:
    tilt = angle(singles[:, 0] @ [0, 1, 0], np.array([0.0, 1, 0]))
    assert 0.75 < np.mean(tilt < 30) < 0.95
    assert np.mean(tilt > 60) > 0.01
    facing = singles[:, 0] @ [0, 0, 1]
    octants, _ = np.histogram(np.arctan2(facing[:, 0], facing[:, 2]), 8, (-np.pi, np.pi))
    assert octants.min() > DRAWS / 8 / 2


def test_arms_and_legs_do_more_than_in_the_takes(train: Repertoire, singles: np.ndarray) -> None:
    walks = [take.rotations for take in train.takes if take.name in ("02_01", "02_03", "03_01")]
    spread = [measure(rotations)[:, 1:].std(axis=0) for rotations in (singles, *walks)]
    for walked in spread[1:]:
        assert (spread[0][[15, 16, 0, 1]].max(axis=1) > 1.3 * walked[[15, 16, 0, 1]].max(1)).all()
    places, axes = joints(singles)
    up = axes[:, 9, :, 1][:, None]
    high = ((places[:, WRISTS] - places[:, [15]]) * up).sum(axis=2) > 0
    assert 0.08 < high.mean() < 0.4  # hands over the head's joint
    seated = np.degrees(measure(singles)[:, [1, 2], 0]).max(axis=1) < -60
    assert 0.02 < seated.mean() < 0.25


def test_a_single_frame_is_one_of_a_movement(train: Repertoire, singles: np.ndarray) -> None:
    middles = np.stack(
        [
            draw_movement(train, np.random.default_rng((2, k)), frames=9).rotations[4]
            for k in range(DRAWS)
        ]
    )
    for ours, theirs in zip(joints(singles), joints(middles), strict=True):
        for quantile in (0.1, 0.5, 0.9):
            found, wanted = (np.quantile(x, quantile, axis=0) for x in (ours, theirs))
            assert np.abs(found - wanted).mean() < 0.08


def test_left_and_right_are_alike(singles: np.ndarray) -> None:
    angles = measure(singles)
    for left, right in ((16, 17), (18, 19), (1, 2), (4, 5)):
        gap = angles[:, left].mean(axis=0) - angles[:, right].mean(axis=0) * (1, -1, -1)
        assert np.abs(gap).max() < 5 * angles[:, left].std(axis=0).max() / np.sqrt(DRAWS)


def test_key_postures_are_possible() -> None:
    from mpsnet_cli.synth.motions import _ARM_TABLE, _LEG_TABLE

    assert len(_ARM_TABLE) == len(ARM_POSTURES)
    assert len(_LEG_TABLE) == len(LEG_POSTURES)
    for limb, table in ((ARMS[0], _ARM_TABLE), (LEGS[0], _LEG_TABLE)):
        angles = np.zeros((len(table), 24, 3))
        angles[:, ARMS[0]] = _ARM_TABLE[0]
        angles[:, limb] = table
        np.testing.assert_allclose(limit(angles), angles, atol=np.radians(0.1))
        assert overlap(pose(angles)).max() < 0.07  # variations set crossed legs apart
    assert (LEAST <= GREATEST).all()


def test_another_rate_shows_the_same_at_other_times(train: Repertoire) -> None:
    slow = draw_movement(train, np.random.default_rng(8), frames=5, fps=10)
    fast = draw_movement(train, np.random.default_rng(8), frames=13, fps=30)
    assert (slow.fps, fast.fps) == (10, 30)
    np.testing.assert_allclose(slow.rotations, fast.rotations[::3], atol=1e-9)


def test_a_short_take_goes_to_and_fro() -> None:
    angles = np.zeros((12, 24, 3))
    angles[:, 4, 0] = np.linspace(0, 1, 12)
    take = Movement(pose(angles), np.zeros((12, 3)), 30.0, "knee")
    repertoire = gather([take])
    for seed in range(20):
        movement = draw_movement(repertoire, np.random.default_rng(seed), frames=120)
        speed = np.abs(np.diff(measure(movement.rotations)[:, 1:], axis=0)).max() * 30
        assert np.isfinite(movement.rotations).all()
        assert speed < np.radians(700)


def test_names_tell_the_takes(train: Repertoire, movements: list[Movement]) -> None:
    told = {name.split(" mirrored")[0].split(",")[0] for m in movements for name in
            m.name.split(" and ")}  # fmt: skip
    assert told <= set(train.names)
    assert len(told) > 15
