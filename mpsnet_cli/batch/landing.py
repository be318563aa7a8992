"""Clips that land in a folder while it is watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

SETTLE = 5.0  # s that a file must have stayed as it is


class Landing:
    """Tells which files have arrived, each once, or again if it was changed since.

    Time is measured here and not by the files' own clock, which may be another machine's.
    """

    def __init__(
        self, *, settle: float = SETTLE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settle = settle
        self._clock = clock
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}  # how it was, and since when
        self._taken: dict[Path, tuple[int, int]] = {}

    def take(self, paths: Iterable[Path]) -> list[Path]:
        """Return those of the files of now that have stopped growing since the last times."""
        now, arrived = self._clock(), []
        for path in paths:
            try:
                stat = path.stat()
            except OSError:  # gone again
                self._seen.pop(path, None)
                continue
            stamp = (stat.st_size, stat.st_mtime_ns)
            if self._taken.get(path) == stamp:
                continue
            before, since = self._seen.setdefault(path, (stamp, now))
            if before != stamp:
                self._seen[path] = (stamp, now)
            elif now - since >= self._settle:
                self._taken[path] = stamp
                del self._seen[path]
                arrived.append(path)
        return arrived
