"""The learning rate over a run that knows its end: up in a line, down as a cosine."""

from __future__ import annotations

import math

LAST_RATE = 0.01  # of the highest rate, at the end


def share_of_rate(seen: int, *, total: int, warmup: int, batch_size: int) -> float:
    """Return what share of the highest rate a step has that comes after `seen` of `total` samples.

    It rises over the first `warmup`, not from 0 but from the step's own batch.
    """
    rise = min(1.0, (seen + batch_size) / max(1, warmup))
    fall = (1 + math.cos(math.pi * min(1.0, seen / total))) / 2
    return rise * (LAST_RATE + (1 - LAST_RATE) * fall)
