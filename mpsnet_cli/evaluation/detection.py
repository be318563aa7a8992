"""How well people are found: average precision against the truth, recall against another detector.

Numpy only. Boxes are (N, 4), x1, y1, x2, y2, of one picture; a clip or a data set is a sequence of
such arrays. A box is found by one other at most, and finds one at most.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from mpsnet_cli.tracking.association import PeopleFinder

Floats = NDArray[np.float64]
FRAMES_AT_ONCE = 8


def iou(first: ArrayLike, second: ArrayLike) -> Floats:
    """Divide what each two boxes of (N, 4) and (M, 4) share by what they cover: (N, M), 0..1."""
    a, b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (first, second))
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    covered = areas[0][:, None] + areas[1] - shared
    return shared / np.where(covered > 0, covered, 1)


def match(found: ArrayLike, truth: ArrayLike, *, least: float = 0.5) -> NDArray[np.bool_]:
    """Say which of the boxes `found` (N, 4), best first, are those of somebody true: (N,).

    Each takes, of those not taken yet, the one it overlaps most, if its IoU is `least` or more (as
    PASCAL VOC's and COCO's evaluations do).
    """
    overlaps = iou(found, truth)
    hits = np.zeros(len(overlaps), bool)
    if overlaps.shape[1]:
        for row, overlap in enumerate(overlaps):
            best = overlap.argmax()
            if overlap[best] >= least:
                hits[row] = True
                overlaps[:, best] = -1
    return hits


def average_precision(
    found: Sequence[ArrayLike],
    scores: Sequence[ArrayLike],
    truth: Sequence[ArrayLike],
    *,
    least: float = 0.5,
) -> float:
    """Integrate precision over recall, 0..1, the precision made never to rise with recall.

    Of each picture: boxes found, best first, their scores, and the true boxes. NaN without any
    true box. AP50 is `least` = 0.5; there is one class.
    """
    total = sum(len(np.reshape(boxes, (-1, 4))) for boxes in truth)
    if not total:
        return float("nan")
    hits = [match(f, t, least=least) for f, t in zip(found, truth, strict=True)]
    order = np.argsort(-np.concatenate([np.ravel(s) for s in scores]), kind="stable")
    right = np.cumsum(np.concatenate(hits)[order])
    precision = right / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(right, prepend=0) * precision).sum() / total)


def recall(
    found: Sequence[ArrayLike], reference: Sequence[ArrayLike], *, least: float = 0.5
) -> float:
    """Find what share of the reference boxes of all pictures is found, 0..1; NaN without any.

    Pairs are made from the greatest IoU down to `least`.
    """
    pairs = total = 0
    for boxes, wanted in zip(found, reference, strict=True):
        overlaps = iou(boxes, wanted)
        total += overlaps.shape[1]
        while overlaps.size and overlaps.max() >= least:
            row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
            overlaps[row], overlaps[:, column] = -1, -1
            pairs += 1
    return pairs / total if total else float("nan")


def compare_detectors(
    frames: Iterable[NDArray[np.uint8]],
    detector: PeopleFinder,
    reference: PeopleFinder,
    *,
    score: float,
    reference_score: float,
    least: float = 0.5,
) -> tuple[float, float]:
    """Run two detectors over a clip: what share of each one's boxes the other has too.

    First the recall of the reference's boxes of at least `reference_score` in the detector's of at
    least `score`; then the other way round, which is precision if the reference misses nobody.
    `frames` are RGB images (H, W, 3) of one size.
    """
    left = iter(frames)
    sides: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    while images := list(islice(left, FRAMES_AT_ONCE)):
        for boxes, finder, floor in zip(
            sides, (detector, reference), (score, reference_score), strict=True
        ):
            boxes += [each.boxes[each.scores >= floor] for each in finder.detect(images)]
    return recall(*sides, least=least), recall(*sides[::-1], least=least)
