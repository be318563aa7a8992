"""From tracklets to one track per person over the clip.

In this order:

1. Doubles go. A detector also frames the upper half of a person, or one without an outstretched
   arm. Such a box is cut from the whole one, so three of its four sides are the same; a child in
   front of a parent shares fewer. A detector that is known for doubles may say from what IoU on two
   boxes are one person's, if they show clothes of the same colours: two people who dance as one
   would be taken for one, too. Of two tracklets that are doubles for most of the time of one, the
   one that covers less goes.
2. Doubtful ones go: lamp posts, shadows, faint reflections. These have a median score less than
   half of that of the clip's most certain tracklet. As the rule is relative, one badly visible
   person alone in a clip stays. A clear mirror image is a person to a detector, and stays too.
3. Fragments of one person are joined across gaps longer than the tracker's memory, the likeliest
   pair first, if the later one begins where the earlier one was heading or stopped, in about the
   same size, and in clothes of about the same colours. Neither aspect may fail, nor all be weak.
   So are two that are doubles where they overlap, as the tracker went from one to the other.
4. Gaps are filled by linear interpolation if they are short, or if the person is in the same place
   on either side, where it is the detector that failed. Longer ones remain holes.
5. Short ones go.
6. Boxes are smoothed, so that crops do not jitter: outliers of one or two frames are replaced, then
   each box is read off a parabola fitted to the nine frames around it (Savitzky-Golay). It has no
   lag, halves the detector's noise, divides its jitter (second differences) by six, and keeps fast
   motion: at 25 fps a jump of a third of the body's height loses 2 % of the height.

Boxes are the visible part of a person, as the detector's are: they end at the image's border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from mpsnet_cli.errors import InputError
from mpsnet_cli.motion import Track
from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking.association import MEMORY, Tracklet

MIN_FRAMES = 25  # what the official demo keeps

# What each aspect of a join may amount to if all others are perfect.
JOIN_GAP = 250  # frames out of sight
JOIN_REACH = 0.5  # body heights between where a fragment should begin and does …
JOIN_DRIFT = 0.03  # … and so much more per frame out of sight (walking, at 25 fps) …
JOIN_REACH_MAX = 2.0  # … up to this
JOIN_SIZE = np.log(1.5)  # ratio of body heights, logarithm
JOIN_COLOURS = 0.5  # Hellinger distance of the clothes' colours, 0..1
JOIN_HISTORY = 10  # detections that tell velocity and size at a fragment's end
JOIN_COAST = 60  # frames, for which a person may keep the velocity

DOUBLE_SIDES = 3  # of a box's four sides that are another's, too
DOUBLE_TOLERANCE = 0.12  # of the other box's width or height
DOUBLE_COLOURS = 0.3  # Hellinger distance of the clothes' colours, where IoU is what tells
DOUBLE_SHARE = 0.6  # of a double's frames, at least

DOUBTFUL = 0.5  # of the most certain tracklet's median score

FILL_GAP = MEMORY  # frames
FILL_GAP_STILL = 2 * MEMORY  # frames, if the boxes on either side overlap …
STILL_IOU = 0.5  # … this much

OUTLIER_FRAMES = 5  # span of the median that shows an outlier
OUTLIER = 0.1  # body heights (position) or log ratio (size) off the median
SMOOTH_FRAMES = 9  # span of the fitted parabola


def refine_tracks(
    tracklets: Sequence[Tracklet],
    clip_frames: NDArray[np.int64],
    *,
    min_frames: int = MIN_FRAMES,
    double_iou: float = 1.0,
    report: Reporter,
) -> list[Track]:
    """Make one track per person of the tracklets in a clip with the frame indices `clip_frames`.

    Two boxes whose IoU is beyond `double_iou` may be one person's. Tracks are numbered from 1 in
    order of first appearance, those that appear together from left to right. One with fewer than
    `min_frames` frames goes, unless it lasts as long as the clip. Says how many tracks were dropped
    and why.
    """
    whole = drop_doubles(tracklets, double_iou)
    certain = drop_doubtful(whole)
    people = join_fragments(certain, double_iou)
    filled = [fill_gaps(0, p.frames, p.boxes, p.scores, clip_frames) for p in people]
    shortest = min(min_frames, len(clip_frames))
    tracks = [track for track in filled if len(track) >= shortest]
    dropped = {
        "of parts of a person": len(tracklets) - len(whole),
        "too uncertain": len(whole) - len(certain),
        f"shorter than {shortest} frames (--min-frames)": len(filled) - len(tracks),
    }
    if total := sum(dropped.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
        report.warn(f"Dropped {total} track{'s' * (total > 1)}: {reasons}.")
    tracks.sort(key=lambda track: (track.frames[0], track.boxes[0, 0]))
    return [replace(smooth(track), id=number) for number, track in enumerate(tracks, start=1)]


def choose_people(
    tracks: Sequence[Track], *, max_people: int | None = None, people: Sequence[int] = ()
) -> list[Track]:
    """Keep the tracks with the ids `people`, or all; of these the `max_people` most prominent.

    Prominence is the height of the boxes, summed over the frames. Ids stay as they are. Raises
    InputError for an id that no track has.
    """
    ids = {track.id for track in tracks}
    if tracks and (unknown := sorted(set(people) - ids)):
        raise InputError(
            f"There is no person {', '.join(map(str, unknown))} in the clip: "
            f"its people are {', '.join(map(str, sorted(ids)))}."
        )
    chosen = [track for track in tracks if not people or track.id in people]
    if max_people is not None:
        chosen.sort(key=lambda track: -float((track.boxes[:, 3] - track.boxes[:, 1]).sum()))
        chosen = sorted(chosen[:max_people], key=lambda track: track.id)
    return chosen


def join_fragments(tracklets: Sequence[Tracklet], double_iou: float = 1.0) -> list[Tracklet]:
    """Join tracklets that are one person's, the most likely pair first.

    What is joined is compared again as a whole: each fragment adds to what is known of the clothes.
    """
    people = list(tracklets)
    costs = np.array([[_join_cost(a, b, double_iou) for b in people] for a in people])
    while people and costs.min() < 1:
        i, j = divmod(int(costs.argmin()), len(people))
        people[i] = joined = _concatenate(people[i], people[j])
        costs[i] = [_join_cost(joined, other, double_iou) for other in people]
        costs[:, i] = [_join_cost(other, joined, double_iou) for other in people]
        del people[j]
        costs = np.delete(np.delete(costs, j, axis=0), j, axis=1)
    return people


def drop_doubles(tracklets: Sequence[Tracklet], double_iou: float = 1.0) -> list[Tracklet]:
    """Drop tracklets whose boxes are those, or cut from those, of a larger or longer one."""
    area = {id(t): _area(t.boxes).sum() for t in tracklets}
    return [
        a
        for a in tracklets
        if not any(
            area[id(b)] > area[id(a)] and _is_double(a, b, double_iou).mean() >= DOUBLE_SHARE
            for b in tracklets
        )
    ]


def drop_doubtful(tracklets: Sequence[Tracklet]) -> list[Tracklet]:
    """Drop tracklets much less certain than the most certain one."""
    medians = [float(np.median(t.scores)) for t in tracklets]
    least = DOUBTFUL * max(medians, default=0.0)
    return [t for t, median in zip(tracklets, medians, strict=True) if median >= least]


def fill_gaps(
    track_id: int,
    frames: NDArray[np.int64],
    boxes: NDArray[np.float32],
    scores: NDArray[np.floating],
    clip_frames: NDArray[np.int64],
) -> Track:
    """Make a track of detections (N,), (N, 4), (N,) in a clip with the indices `clip_frames`.

    Boxes that are filled in are flagged and score 0.
    """
    missing = np.diff(frames) - 1
    still = (missing <= FILL_GAP_STILL) & (_iou(boxes[:-1], boxes[1:]) >= STILL_IOU)
    fill = np.append((missing <= FILL_GAP) | still, False)
    wanted = clip_frames[(clip_frames >= frames[0]) & (clip_frames <= frames[-1])]
    detected = np.isin(wanted, frames)
    keep = detected | fill[np.searchsorted(frames, wanted, side="right") - 1]
    wanted, detected = wanted[keep], detected[keep]
    filled = np.stack([np.interp(wanted, frames, side) for side in boxes.T], axis=1)
    all_scores = np.zeros(len(wanted), np.float32)
    all_scores[detected] = scores
    return Track(track_id, wanted, filled.astype(np.float32), all_scores, ~detected)


def smooth(track: Track) -> Track:
    """Smooth a track's boxes over time, every run of consecutive frames by itself."""
    starts = np.flatnonzero(np.diff(track.frames) > 1) + 1
    boxes = [_smooth_run(run) for run in np.split(track.boxes, starts)]
    return replace(track, boxes=np.concatenate(boxes))


def _smooth_run(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smooth centre and logarithm of the size of boxes (N, 4) on consecutive frames."""
    corner, size = boxes[:, :2].astype(float), (boxes[:, 2:] - boxes[:, :2]).astype(float)
    height = np.median(size[:, 1])
    values = np.concatenate([(corner + size / 2) / height, np.log(size)], axis=1)
    median = median_filter(values, (OUTLIER_FRAMES, 1), mode="nearest")
    values = np.where(np.abs(values - median) > OUTLIER, median, values)
    span = min(SMOOTH_FRAMES, (len(values) - 1) // 2 * 2 + 1)
    if span > 3:  # a parabola through three points smooths nothing
        values = _fit_parabolas(values, span)
    centre, half = values[:, :2] * height, np.exp(values[:, 2:]) / 2
    return np.concatenate([centre - half, centre + half], axis=1).astype(np.float32)


def _fit_parabolas(values: NDArray[np.floating], span: int) -> NDArray[np.floating]:
    """Replace each row by that of the parabola fitted to the `span` rows around it.

    At the ends, by the first or last whole parabola: Savitzky and Golay's filter, which
    scipy.signal has too, but importing that takes a second.
    """
    half = span // 2
    powers = np.arange(-half, half + 1)[:, None] ** np.arange(3)
    fit = powers @ np.linalg.pinv(powers)  # (span, span): values to fitted values
    windows = np.lib.stride_tricks.sliding_window_view(values, span, axis=0)  # (…, columns, span)
    middle = windows @ fit[half]
    return np.concatenate([fit[:half] @ values[:span], middle, fit[half + 1 :] @ values[-span:]])


def _join_cost(a: Tracklet, b: Tracklet, double_iou: float) -> float:
    """Say how unlikely it is that `b` goes on where `a` ended: 0..1, 1 for never."""
    gap = int(b.frames[0] - a.frames[-1])
    if a.frames[0] < b.frames[0] <= a.frames[-1] < b.frames[-1]:
        share = float(_is_double(a, b, double_iou)[a.frames >= b.frames[0]].mean())
        return 1 - share if share >= DOUBLE_SHARE else 1.0
    if not 0 < gap <= JOIN_GAP:
        return 1.0
    end, end_velocity, end_height = _state(a, slice(-JOIN_HISTORY, None), at=-1)
    start, start_velocity, start_height = _state(b, slice(JOIN_HISTORY), at=0)
    coast = min(gap, JOIN_COAST)
    miss = min(
        _distance(start, end, end + end_velocity * coast),
        _distance(end, start, start - start_velocity * coast),
    )
    reach = min(JOIN_REACH + JOIN_DRIFT * gap, JOIN_REACH_MAX) * np.sqrt(end_height * start_height)
    terms = (
        miss / reach,
        abs(np.log(end_height / start_height)) / JOIN_SIZE,
        _unlikeness(a, b) / JOIN_COLOURS,
        np.sqrt(gap / JOIN_GAP),
    )
    return min(1.0, float(np.linalg.norm(terms)))


def _state(
    tracklet: Tracklet, rows: slice, *, at: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return centre (2,) at one end, velocity (2,) per frame and height there, px."""
    boxes, frames = tracklet.boxes[rows].astype(float), tracklet.frames[rows]
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    elapsed = max(1, int(frames[-1] - frames[0]))
    velocity = (centres[-1] - centres[0]) / elapsed
    return centres[at], velocity, float(np.median(boxes[:, 3] - boxes[:, 1]))


def _distance(
    point: NDArray[np.float64], start: NDArray[np.float64], end: NDArray[np.float64]
) -> float:
    """Return the distance of a point (2,) from the segment between two others."""
    along = end - start
    share = np.clip((point - start) @ along / max(float(along @ along), 1e-9), 0, 1)
    return float(np.linalg.norm(start + share * along - point))


def _unlikeness(a: Tracklet, b: Tracklet) -> float:
    """Return the Hellinger distance of the colours of their clothes, 0..1."""
    overlap = np.sqrt(a.colours / a.colours.sum() * b.colours / b.colours.sum()).sum()
    return float(np.sqrt(max(0.0, 1 - overlap)))


def _is_double(a: Tracklet, b: Tracklet, double_iou: float) -> NDArray[np.bool_]:
    """Tell in which of a's frames (N,) its box is b's, or one of the two is cut from the other."""
    boxes = np.stack([np.interp(a.frames, b.frames, side) for side in b.boxes.T], axis=1)
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    common = (np.abs(a.boxes - boxes) <= DOUBLE_TOLERANCE * size).sum(axis=1)
    same = common >= DOUBLE_SIDES
    if _unlikeness(a, b) <= DOUBLE_COLOURS:
        same |= _iou(a.boxes, boxes) >= double_iou
    present = (a.frames >= b.frames[0]) & (a.frames <= b.frames[-1])
    return present & same


def _concatenate(a: Tracklet, b: Tracklet) -> Tracklet:
    """Put two tracklets together; where both have a box, the larger one is taken."""
    boxes = np.concatenate([a.boxes, b.boxes])
    scores = np.concatenate([a.scores, b.scores])
    frames = np.concatenate([a.frames, b.frames])
    order = np.lexsort((-_area(boxes), frames))
    frames, first = np.unique(frames[order], return_index=True)
    rows = order[first]
    return Tracklet(frames, boxes[rows], scores[rows], a.colours + b.colours)


def _iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return intersection over union (N,) of boxes (N, 4), pair by pair."""
    common = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = common.clip(0).prod(axis=1)
    return intersection / (_area(a) + _area(b) - intersection)


def _area(boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
