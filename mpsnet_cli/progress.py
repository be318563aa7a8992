"""How the stages tell whoever is watching what they do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Reporter:
    """Time the stages and collect the warnings; show nothing.

    The command line derives its terminal, plain, JSON and quiet reporters from this by overriding
    the four hooks at the end.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.losses: list[str] = []  # those warnings that make the result a partial one

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Run one stage; yield `advance(n)`, to be called as `n` more units of `total` are done.

        A stage that runs again under the same name adds to its seconds.
        """
        done = 0

        def advance(count: int = 1) -> None:
            nonlocal done
            done += count
            self.on_advance(name, done, total)

        self.on_start(name, total)
        began = time.perf_counter()
        try:
            yield advance
        finally:
            took = time.perf_counter() - began
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            self.on_finish(name, done, took)

    def warn(self, sentence: str) -> None:
        """Tell the user, once, of something skipped, replaced or doubtful."""
        if sentence not in self.warnings:
            self.warnings.append(sentence)
            self.on_warning(sentence)

    def lose(self, sentence: str) -> None:
        """Warn that a part of the input could not be used, so that the result is a partial one."""
        if sentence not in self.losses:
            self.losses.append(sentence)
        self.warn(sentence)

    def on_start(self, stage: str, total: int | None) -> None:
        """React to a stage that begins."""

    def on_advance(self, stage: str, done: int, total: int | None) -> None:
        """React to progress within a stage."""

    def on_finish(self, stage: str, done: int, seconds: float) -> None:
        """React to a stage that ends, well or badly."""

    def on_warning(self, sentence: str) -> None:
        """React to a new warning."""
