"""Which sixteen frames the temporal encoder sees for each frame of a track."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

WINDOW = 16  # frames; the paper's T (§4)
TARGET = 8  # position of the frame that a window describes

Edges = Literal["hold", "repeat"]


def window_indices(frame_ids: NDArray[np.int64], *, edges: Edges = "hold") -> NDArray[np.int64]:
    """Return, for each of N frames, the rows (N, 16) of its window; column 8 is the frame itself.

    `frame_ids` (N,) are ascending source frame indices. A window never bridges a hole in them:
    every consecutive run is treated as a sequence of its own. Where a window reaches past the
    run's ends, `hold` takes the nearest frame of the run; `repeat` fills the whole window with the
    frame itself, as the official demo does for the first 8 and last 7 frames.
    """
    rows = np.arange(len(frame_ids))
    starts = np.flatnonzero(np.diff(frame_ids, prepend=frame_ids[:1] - 2) != 1)
    run = np.searchsorted(starts, rows, side="right") - 1
    first = starts[run][:, None]
    last = np.append(starts[1:], len(rows))[run][:, None] - 1
    window = rows[:, None] + np.arange(-TARGET, WINDOW - TARGET)
    if edges == "repeat":
        outside = (window[:, :1] < first) | (window[:, -1:] > last)
        return np.where(outside, rows[:, None], window)
    return np.clip(window, first, last)
