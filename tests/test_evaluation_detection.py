from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from mpsnet_cli.evaluation.detection import (
    average_precision,
    compare_detectors,
    iou,
    match,
    recall,
)
from mpsnet_cli.tracking.detector import Detections, quiet_ultralytics

NOBODY = np.zeros((0, 4))
SQUARE, BESIDE, FAR = [0, 0, 2, 2], [1, 0, 3, 2], [9, 9, 11, 11]


def test_iou_of_rectangles() -> None:
    expected = [[1, 1 / 3, 0, 1 / 4], [1 / 3, 1, 0, 1 / 4]]
    found = iou([SQUARE, BESIDE], [SQUARE, BESIDE, FAR, [1, 1, 2, 2]])
    np.testing.assert_allclose(found, expected)
    assert iou(NOBODY, [SQUARE]).shape == (0, 1)
    assert iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]) == 0  # of no size, and no warning


def test_nobody_is_found_twice() -> None:
    assert match([SQUARE, SQUARE, FAR], [FAR, SQUARE]).tolist() == [True, False, True]
    assert match([BESIDE], [SQUARE]).tolist() == [False]
    assert match([BESIDE], [SQUARE], least=0.3).tolist() == [True]
    assert match([SQUARE], NOBODY).tolist() == [False]


def test_average_precision_by_hand() -> None:
    """Right, wrong, right: precision 1 up to recall 1/2, then 2/3."""
    found, scores = [[SQUARE, BESIDE], [SQUARE]], [[0.9, 0.8], [0.7]]
    truth = [[SQUARE], [SQUARE]]
    assert average_precision(found, scores, truth) == pytest.approx(0.5 + 0.5 * 2 / 3)
    assert average_precision(truth, [[0.1], [0.2]], truth) == 1
    assert average_precision([NOBODY, NOBODY], [[], []], truth) == 0
    assert math.isnan(average_precision([[SQUARE]], [[1]], [NOBODY]))


def test_average_precision_is_ultralytics() -> None:
    """But for their 101 points, between which they interpolate."""
    with quiet_ultralytics():
        from ultralytics.utils.metrics import ap_per_class
    rng = np.random.default_rng(0)
    found, scores, truth, hits = [], [], [], []
    for _ in range(60):
        low = rng.uniform(0, 90, (5, 2))
        boxes = np.concatenate([low, low + rng.uniform(20, 40, (5, 2))], axis=1)
        seen = np.concatenate([boxes[:4] + rng.normal(0, 3, (4, 4)), boxes[:2] + 30])
        scores.append(np.sort(rng.random(6))[::-1])
        found.append(seen[rng.permutation(6)])
        truth.append(boxes)
        hits.append(match(found[-1], boxes))
    right, score = np.concatenate(hits)[:, None], np.concatenate(scores)
    theirs = ap_per_class(right, score, np.zeros(len(score)), np.zeros(300))[5][0, 0]
    assert average_precision(found, scores, truth) == pytest.approx(theirs, abs=0.01)
    assert 0.2 < theirs < 0.9


def test_recall_pairs_the_best_first() -> None:
    near = [0.1, 0, 2.1, 2]
    # Were `near` given to SQUARE's first box in order, the second would be left alone.
    assert recall([[SQUARE, near]], [[near, [-0.6, 0, 1.4, 2]]]) == 1
    assert recall([[SQUARE], NOBODY], [[SQUARE, FAR], [SQUARE]]) == pytest.approx(1 / 3)
    assert recall([[SQUARE, SQUARE, FAR]], [[SQUARE]]) == 1
    assert math.isnan(recall([[SQUARE]], [NOBODY]))


class Told:
    """A detector that finds what it is told, picture by picture."""

    def __init__(self, boxes: Sequence[Sequence[Sequence[float]]], scores: Sequence[float]) -> None:
        self._left = list(boxes)
        self._scores = np.array(scores, np.float32)
        self.double_iou = 1.0

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        told = [np.array(self._left.pop(0), np.float32).reshape(-1, 4) for _ in images]
        return [Detections(boxes, self._scores[: len(boxes)]) for boxes in told]


def test_two_detectors_on_a_clip() -> None:
    count = 10  # more than go through at once
    ours = Told([[SQUARE, FAR, BESIDE]] * count, [0.9, 0.5, 0.1])
    theirs = Told([[SQUARE, [20, 20, 30, 30]]] * count, [0.9, 0.6])
    frames = [np.zeros((8, 8, 3), np.uint8)] * count
    found, known = compare_detectors(frames, ours, theirs, score=0.3, reference_score=0.5)
    assert (found, known) == (0.5, 0.5)
