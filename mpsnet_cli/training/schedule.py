"""The learning rate over a run that knows its end: up in a line, then even, down as a cosine."""

from __future__ import annotations

import math

LAST_RATE = 0.01  # of the highest rate, at the end


def share_of_rate(
    seen: int, *, total: int, warmup: int, batch_size: int, falling: float = 1.0
) -> float:
    """Return what share of the highest rate a step has that comes after `seen` of `total` samples.

    It rises over the first `warmup`, not from 0 but from the step's own batch, and falls over the
    last share `falling` (below 1: Hägele et al., NeurIPS 2024).
    """
    rise = min(1.0, (seen + batch_size) / max(1, warmup))
    fallen = 1 - (1 - min(1.0, seen / total)) / falling
    fall = (1 + math.cos(math.pi * max(0.0, fallen))) / 2
    return rise * (LAST_RATE + (1 - LAST_RATE) * fall)
