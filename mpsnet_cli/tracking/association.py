"""From people in single images to tracklets, with ultralytics' ByteTrack or BoT-SORT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.tracking.detector import BATCH, MIN_SCORE, Detections, quiet_ultralytics
from mpsnet_cli.video import Frame

Tracker = Literal["bytetrack", "botsort"]

MEMORY = 30  # frames out of sight after which the tracker gives a person up

# The defaults of ultralytics' bytetrack.yaml and botsort.yaml.
SETTINGS = {
    "track_high_thresh": 0.25,  # score of the boxes that are matched first
    "track_low_thresh": MIN_SCORE,  # score of the boxes that may continue what is left unmatched
    "new_track_thresh": 0.25,  # score that begins a tracklet
    "track_buffer": MEMORY,
    "match_thresh": 0.8,  # largest 1 - IoU · score of a match
    "fuse_score": True,
    # BoT-SORT only: follow a moving camera, but compare no appearance (another network to fetch).
    "gmc_method": "sparseOptFlow",
    "with_reid": False,
    "proximity_thresh": 0.5,
    "appearance_thresh": 0.8,
}

LEVELS = 8  # of each colour channel in a histogram
TORSO = (0.25, 0.15, 0.75, 0.6)  # x1, y1, x2, y2 within the box: clothes, little background
SAMPLES = 24  # pixels across and down the torso


@dataclass(frozen=True)
class Tracklet:
    """One person's detections, for as long as the tracker did not lose them."""

    frames: NDArray[np.int64]  # (N,) source frame indices, ascending
    boxes: NDArray[np.float32]  # (N, 4) x1, y1, x2, y2, px
    scores: NDArray[np.float32]  # (N,) 0..1
    colours: NDArray[np.float64]  # (LEVELS³,) RGB histogram of the clothes

    def __len__(self) -> int:
        return len(self.frames)


class PeopleFinder(Protocol):
    """What `find_people` needs of a `Detector`."""

    double_iou: float  # beyond which two boxes may be one person's

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]: ...


def associate(
    frames: Iterable[Frame],
    detector: PeopleFinder,
    *,
    tracker: Tracker = "bytetrack",
    advance: Callable[[int], None] = lambda _: None,
) -> tuple[list[Tracklet], NDArray[np.int64]]:
    """Detect and follow people through the frames; return tracklets and all frame indices.

    BATCH frames are held at a time.
    """
    follower = _make_tracker(tracker)
    growing: dict[int, list[tuple[int, NDArray[np.float32], np.float32]]] = {}
    colours: dict[int, NDArray[np.float64]] = {}
    indices: list[int] = []
    for batch in _batches(frames):
        found = detector.detect([frame.image for frame in batch])
        for frame, people in zip(batch, found, strict=True):
            follower.update(_Boxes(people.boxes, people.scores), frame.image)
            # Not what update() returns: that lacks the first frame of every tracklet, as ByteTrack
            # believes in one only when it meets the person a second time.
            for state in follower.tracked_stracks:
                who, box = state.track_id, people.boxes[state.idx]
                growing.setdefault(who, []).append((frame.index, box, people.scores[state.idx]))
                if state.is_activated:
                    colours[who] = colours.get(who, 0) + clothes_colours(frame.image, box)
        indices += [frame.index for frame in batch]
        advance(len(batch))
    tracklets = [_tracklet(growing[who], histogram) for who, histogram in colours.items()]
    return tracklets, np.array(indices, np.int64)


def clothes_colours(image: NDArray[np.uint8], box: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the RGB histogram (LEVELS³,), summing to 1, of the torso of the person in a box."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = box
    left, top, right, bottom = TORSO
    columns = x1 + (x2 - x1) * np.linspace(left, right, SAMPLES)
    rows = y1 + (y2 - y1) * np.linspace(top, bottom, SAMPLES)
    columns, rows = columns.astype(int).clip(0, width - 1), rows.astype(int).clip(0, height - 1)
    levels = image[rows[:, None], columns].reshape(-1, 3) // (256 // LEVELS)
    bins = levels @ np.array([LEVELS**2, LEVELS, 1])
    return np.bincount(bins, minlength=LEVELS**3) / len(bins)


def _tracklet(
    rows: list[tuple[int, NDArray[np.float32], np.float32]], colours: NDArray[np.float64]
) -> Tracklet:
    frames, boxes, scores = zip(*rows, strict=True)
    return Tracklet(np.array(frames, np.int64), np.stack(boxes), np.array(scores), colours)


def _batches(frames: Iterable[Frame]) -> Iterator[list[Frame]]:
    iterator = iter(frames)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _make_tracker(name: Tracker) -> Any:
    with quiet_ultralytics():
        from ultralytics.trackers import BOTSORT, BYTETracker
    return {"bytetrack": BYTETracker, "botsort": BOTSORT}[name](SimpleNamespace(**SETTINGS))


@dataclass(frozen=True)
class _Boxes:
    """What ultralytics' trackers look at in its own `Boxes`."""

    xyxy: NDArray[np.float32]  # (N, 4)
    conf: NDArray[np.float32]  # (N,)

    def __len__(self) -> int:
        return len(self.conf)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> _Boxes:
        return _Boxes(self.xyxy[chosen], self.conf[chosen])

    @property
    def cls(self) -> NDArray[np.float32]:
        return np.zeros_like(self.conf)

    @property
    def xywh(self) -> NDArray[np.float32]:
        corner, opposite = self.xyxy[:, :2], self.xyxy[:, 2:]
        return np.concatenate([(corner + opposite) / 2, opposite - corner], axis=1)
