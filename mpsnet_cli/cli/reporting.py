"""What a command shows while it works: bars on a terminal, lines in a log, or JSON events."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mpsnet_cli.progress import Reporter

LINE_EVERY = 10.0  # s between progress lines in a log
EVENT_EVERY = 0.5  # s between progress events


class QuietReporter(Reporter):
    """Show only warnings, on stderr."""

    def on_warning(self, sentence: str) -> None:
        click.echo(f"warning: {sentence}", err=True)


class PlainReporter(QuietReporter):
    """One line when a stage has ended, and one every ten seconds until then, on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._began = self._last = 0.0

    def on_start(self, stage: str, total: int | None) -> None:  # noqa: ARG002
        self._began = self._last = time.perf_counter()

    def on_advance(self, stage: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        if now - self._last < LINE_EVERY:
            return
        self._last = now
        rate = done / (now - self._began)
        left = f", {(total - done) / rate:.0f} s left" if total and rate else ""
        click.echo(f"{stage}: {done}/{total or '?'}, {rate:.1f}/s{left}", err=True)

    def on_finish(self, stage: str, done: int, seconds: float) -> None:
        click.echo(f"{stage}: {done} in {seconds:.1f} s", err=True)


class JsonReporter(Reporter):
    """One JSON object a line, on stdout."""

    def __init__(self) -> None:
        super().__init__()
        self._last = 0.0

    def emit(self, event: str, **fields: Any) -> None:
        """Print one event."""
        click.echo(json.dumps({"event": event, **fields}))

    def on_start(self, stage: str, total: int | None) -> None:
        self._last = time.perf_counter()
        self.emit("start", stage=stage, total=total)

    def on_advance(self, stage: str, done: int, total: int | None) -> None:
        now = time.perf_counter()
        if now - self._last >= EVENT_EVERY:
            self._last = now
            self.emit("progress", stage=stage, done=done, total=total)

    def on_finish(self, stage: str, done: int, seconds: float) -> None:
        self.emit("finish", stage=stage, done=done, seconds=round(seconds, 3))

    def on_warning(self, sentence: str) -> None:
        self.emit("warning", text=sentence)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "")


class TerminalReporter(Reporter):
    """A bar with rate and time left for each stage, on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def on_start(self, stage: str, total: int | None) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
        )
        self._task = self._progress.add_task(stage, total=total)
        self._progress.start()

    def on_advance(self, stage: str, done: int, total: int | None) -> None:  # noqa: ARG002
        if self._progress:
            self._progress.update(self._task, completed=done)

    def on_finish(self, stage: str, done: int, seconds: float) -> None:  # noqa: ARG002
        if self._progress:
            self._progress.update(self._task, total=done)
            self._progress.stop()
            self._progress = None

    def on_warning(self, sentence: str) -> None:
        self._console.print(Text.assemble(("warning: ", "yellow"), sentence))


def make_reporter(style: str | None) -> Reporter:
    """Choose the reporter for `--json`, `--quiet`, a terminal or a log."""
    if style == "json":
        return JsonReporter()
    if style == "quiet":
        return QuietReporter()
    return TerminalReporter() if sys.stderr.isatty() else PlainReporter()
