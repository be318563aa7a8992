from __future__ import annotations

import numpy as np
import pytest
from conftest import DATA
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.body.joint_sets import HIPS
from mpsnet_cli.evaluation.metrics import (
    acceleration,
    acceleration_error,
    mean_distance,
    pa_mpjpe,
    procrustes_aligned,
    root_aligned,
)

TOLERANCE = 1e-4  # mm


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray]:
    with np.load(DATA / "goldens" / "f_metrics.npz") as file:
        return dict(file)


def points(frames: int = 7, joints: int = 14, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, 0.3, (frames, joints, 3))


def test_the_release_measures_the_same(golden: dict[str, NDArray]) -> None:
    """Its arithmetic is float32, which an acceleration error of a metre and more shows."""
    pred, gt = (root_aligned(golden[key], HIPS) for key in ("pred", "gt"))
    for found, key in (
        (mean_distance(pred, gt), "mpjpe_mm"),
        (pa_mpjpe(pred, gt), "pa_mpjpe_mm"),
        (acceleration_error(pred, gt), "accel_err_mm"),
        (mean_distance(acceleration(pred), np.zeros((38, 14, 3))), "accel_pred"),
    ):
        np.testing.assert_allclose(found, golden[key], rtol=2e-7, atol=TOLERANCE)


def test_the_release_aligns_the_same(golden: dict[str, NDArray]) -> None:
    pred, gt = (root_aligned(golden[key], HIPS) for key in ("pred", "gt"))
    np.testing.assert_allclose(procrustes_aligned(pred, gt), golden["pa_aligned"], atol=1e-6)
    mirrored = procrustes_aligned(golden["pred"], golden["gt_mirror"])
    np.testing.assert_allclose(mirrored, golden["pa_mirror"], atol=1e-6)


def test_mpvpe_of_the_release_is_the_distance_of_its_vertices() -> None:
    offset = np.array([0.003, 0.0, 0.004])  # 5 mm, without any alignment
    vertices = points(3, 6890)
    np.testing.assert_allclose(mean_distance(vertices + offset, vertices), 5.0)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_every_similarity_is_undone(scale: float) -> None:
    true = points()
    turn = Rotation.random(len(true), rng=1).as_matrix()
    shift = np.random.default_rng(2).normal(0, 5, (len(true), 1, 3))
    moved = scale * true @ turn + shift
    assert pa_mpjpe(moved, true).max() < 1e-9
    assert mean_distance(moved, true).min() > 10


def test_a_reflection_is_not_undone() -> None:
    true = points()
    mirrored = true * [-1, 1, 1]
    aligned = procrustes_aligned(mirrored, true)
    assert pa_mpjpe(mirrored, true).min() > 10
    # What was applied is proper: the handedness of three bones is that of the mirror image still.
    bones = [np.diff(p[:, :4], axis=1) for p in (aligned, mirrored, true)]
    sides = [np.sign(np.linalg.det(b)) for b in bones]
    np.testing.assert_array_equal(sides[0], sides[1])
    np.testing.assert_array_equal(sides[0], -sides[2])


def test_no_other_similarity_is_better() -> None:
    pred, true = points(1, seed=1), points(1, seed=2)
    best = ((procrustes_aligned(pred, true) - true) ** 2).sum()
    aligned = procrustes_aligned(pred, true)
    centre = aligned.mean(axis=1, keepdims=True)
    for k in range(50):
        rng = np.random.default_rng(k)
        turn = Rotation.from_rotvec(rng.normal(0, 0.05, 3)).as_matrix()
        other = (aligned - centre) @ turn * (1 + rng.normal(0, 0.05)) + centre
        other += rng.normal(0, 0.02, 3)
        assert ((other - true) ** 2).sum() > best


def test_flat_and_straight_points_are_aligned_too() -> None:
    """A planar or collinear set has no unique rotation, but its error is well defined."""
    for flat in ([1, 1, 0], [1, 0, 0]):
        true = points() * flat
        turn = Rotation.random(rng=3).as_matrix()
        assert pa_mpjpe(0.5 * true @ turn + 1, true).max() < 1e-9


def test_points_that_coincide_go_to_the_centre() -> None:
    true = points()
    aligned = procrustes_aligned(np.ones_like(true), true)
    expected = np.broadcast_to(true.mean(axis=1, keepdims=True), true.shape)
    np.testing.assert_allclose(aligned, expected, atol=1e-12)
    assert (pa_mpjpe(true, np.ones_like(true)) < 1e-9).all()


def test_constant_acceleration_is_measured_exactly() -> None:
    time = np.arange(30.0)[:, None, None]
    gravity = np.array([0, 0.009, 0])  # m/frame²
    start, speed = points(1), points(1, seed=1)
    falling = start + speed * time + 0.5 * gravity * time**2
    uniform = start - 2 * speed * time
    np.testing.assert_allclose(acceleration(falling) - gravity, 0, atol=1e-13)
    np.testing.assert_allclose(acceleration_error(falling, uniform), np.full(28, 9.0))
    assert acceleration_error(falling, falling + 3).max() < 1e-6


def test_jitter_of_one_frame_counts_in_three() -> None:
    still = np.zeros((9, 2, 3))
    jump = still.copy()
    jump[4, :, 0] = 0.01
    np.testing.assert_allclose(acceleration_error(jump, still), [0, 0, 10, 20, 10, 0, 0])


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_short_sequences_have_no_acceleration(frames: int) -> None:
    assert acceleration_error(points(frames), points(frames)).shape == (0,)
    assert pa_mpjpe(points(frames), points(frames)).shape == (frames,)


def test_root_is_the_mean_of_its_points() -> None:
    rooted = root_aligned(points() + 4, HIPS)
    np.testing.assert_allclose(rooted[:, list(HIPS)].mean(axis=1), 0, atol=1e-12)


@pytest.mark.parametrize(
    ("pred", "true", "match"),
    [
        (points(3), points(4), r"\(3, 14, 3\) and \(4, 14, 3\)"),
        (points(3)[..., :2], points(3)[..., :2], "should both be"),
        (points(3, 0), points(3, 0), "J > 0"),
        (np.full((2, 3, 3), np.nan), points(2, 3), "finite"),
    ],
)
def test_nonsense_is_refused(pred: NDArray, true: NDArray, match: str) -> None:
    for metric in (mean_distance, pa_mpjpe, acceleration_error):
        with pytest.raises(ValueError, match=match):
            metric(pred, true)
