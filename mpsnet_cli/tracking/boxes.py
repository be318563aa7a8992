"""Boxes that the user gives instead of having people detected.

They are taken at their word: checked, and their gaps filled as those of detected tracks, but
neither smoothed nor dropped.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.errors import InputError
from mpsnet_cli.motion import Motion, Track
from mpsnet_cli.npz import NO_FORMAT, read_npz
from mpsnet_cli.tracking.refine import fill_gaps
from mpsnet_cli.video import VideoInfo

MOT_COLUMNS = ("frame", "id", "left", "top", "width", "height", "score")
LARGEST = 10  # image sizes; a larger box belongs to another clip


class _Rows(NamedTuple):
    frames: NDArray[np.float64]  # (N,) source frame indices
    ids: NDArray[np.float64]  # (N,)
    boxes: NDArray[np.float64]  # (N, 4) x1, y1, x2, y2, px
    scores: NDArray[np.float64]  # (N,)


def read_boxes(path: Path, video: VideoInfo) -> list[Track]:
    """Read the people's boxes in `video` from a file, one track for each id in it.

    The file is one of
    - MOT-challenge csv: frame from 1, id, left, top, width, height in px and, if known, a score;
    - .npz of `frame_ids` (N,) from 0, `track_ids` (N,), `boxes` (N, 4) x1, y1, x2, y2 in px and,
      if known, `scores` (N,);
    - a person_NN.npz that this tool wrote: crops are cut as they were for it.

    Raises InputError for a file that is not readable, holds no boxes, or holds some that cannot be
    those of people in `video`.
    """
    is_npz = zipfile.is_zipfile(path)
    rows = _read_npz(path) if is_npz else _read_mot(path)
    _check(rows, path, video, first_frame=0 if is_npz else 1)
    tracks = []
    for track_id in np.unique(rows.ids):
        mine = np.flatnonzero(rows.ids == track_id)
        mine = mine[np.argsort(rows.frames[mine])]
        frames, boxes = rows.frames[mine].astype(np.int64), rows.boxes[mine].astype(np.float32)
        clip_frames = np.arange(video.frame_count)
        tracks.append(fill_gaps(int(track_id), frames, boxes, rows.scores[mine], clip_frames))
    return tracks


def given_tracks(boxes: str, video: VideoInfo) -> list[Track]:
    """Take the people of `video` as the user gives them: a file of boxes, see `read_boxes`, or
    "full" for one person who fills every frame."""
    return [full_frame_track(video)] if boxes == "full" else read_boxes(Path(boxes), video)


def full_frame_track(video: VideoInfo) -> Track:
    """Return the track of one person who fills every frame of `video`."""
    count = video.frame_count
    return Track(
        id=1,
        frames=np.arange(count),
        boxes=np.tile(np.array([0, 0, video.width, video.height], np.float32), (count, 1)),
        scores=np.ones(count, np.float32),
        interpolated=np.zeros(count, bool),
    )


def _read_mot(path: Path) -> _Rows:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as MOT csv or .npz: {error}.") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        cells = line.split(",")
        if not line.strip() or (number == 1 and cells[0].strip() == MOT_COLUMNS[0]):
            continue
        try:
            frame, track_id, left, top, width, height, score = map(float, [*cells, "-1"][:7])
        except ValueError as error:
            raise InputError(
                f"{path}, line {number}: expected numbers {', '.join(MOT_COLUMNS)}, "
                f"found {line[:60]!r}."
            ) from error
        score = 1.0 if score < 0 else score  # MOT's -1: not known
        rows.append((frame - 1, track_id, left, top, left + width, top + height, score))
    table = np.array(rows, float).reshape(-1, 7)
    return _Rows(table[:, 0], table[:, 1], table[:, 2:6], table[:, 6])


def _read_npz(path: Path) -> _Rows:
    found, arrays = read_npz(path, what=".npz of boxes")
    if found != NO_FORMAT:
        return _read_motion(path)
    try:
        frames, ids, boxes = (
            arrays[key].astype(float) for key in ("frame_ids", "track_ids", "boxes")
        )
        scores = arrays["scores"].astype(float) if "scores" in arrays else np.ones(frames.shape)
    except KeyError as error:
        raise InputError(f"{path} is not an .npz of boxes: it lacks {error.args[0]}.") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} is not a readable .npz of boxes: {error}.") from error
    return _Rows(frames, ids, boxes, scores)


def _read_motion(path: Path) -> _Rows:
    motion = Motion.load(path)
    detected = ~motion.interpolated
    return _Rows(
        frames=motion.frame_ids[detected].astype(float),
        ids=np.full(detected.sum(), motion.track_id, float),
        boxes=motion.boxes[detected].astype(float),
        scores=motion.scores[detected].astype(float),
    )


def _check(rows: _Rows, path: Path, video: VideoInfo, *, first_frame: int) -> None:
    """Raise InputError for rows that cannot be boxes of people in `video`."""
    frames, ids, boxes, scores = rows
    shapes = [array.shape for array in rows]
    count = frames.size
    if shapes != [(count,), (count,), (count, 4), (count,)]:
        raise InputError(f"{path}: frames, ids, boxes and scores do not fit together: {shapes}.")
    if count == 0:
        raise InputError(f"{path} holds no boxes.")

    def refuse(wrong: NDArray[np.bool_] | np.bool_, why: str) -> None:
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{path}: the box of person {ids[row]:g} in frame {frames[row] + first_frame:g} "
                f"{why}."
            )

    refuse(~np.isfinite(np.column_stack(rows)).all(axis=1), "holds a number that is not finite")
    refuse((ids % 1 != 0) | (ids < 1), "has an id that is not 1, 2, 3, …")
    refuse(frames % 1 != 0, "has a frame that is not a whole number")
    last_frame = video.frame_count - 1 + first_frame
    refuse(
        (frames < 0) | (frames >= video.frame_count),
        f"is outside {video.path}, which has the frames {first_frame} to {last_frame}",
    )
    size = np.array([video.width, video.height])
    low, high = boxes[:, :2], boxes[:, 2:]
    refuse((high <= low).any(axis=1), "has no positive width and height")
    refuse(
        ((high <= 0) | (low >= size) | (high - low > LARGEST * size)).any(axis=1),
        f"does not fit the image of {video.width} x {video.height} px",
    )
    refuse((scores < 0) | (scores > 1), "has a score that is not from 0 to 1")
    order = np.lexsort((frames, ids))
    again = (np.diff(frames[order]) == 0) & (np.diff(ids[order]) == 0)
    repeated = np.zeros(count, bool)
    repeated[order[1:]] = again
    refuse(repeated, "is there twice")
