"""What `mpsnet batch` shows: a bar and the running clips, lines in a log, or JSON events."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn
from rich.table import Table
from rich.text import Text

from mpsnet_cli.batch.batch import Conclusion, Listener, Plan
from mpsnet_cli.batch.outcome import Outcome
from mpsnet_cli.batch.report import REPORT_HTML
from mpsnet_cli.batch.storage import shown
from mpsnet_cli.batch.workers import describe
from mpsnet_cli.cli.reporting import EVENT_EVERY

STATES = {
    "new": "new",
    "partial": "partial",
    "done": "done",
    "other": "of another job",
    "broken": "broken",
}
THROUGH = "reconstruct"  # the stage that takes the time: its progress counts as a clip's


class Shown(Listener):
    """A listener that shows what it hears, from when it is entered until it is left."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> Shown:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def on_end(self, conclusion: Conclusion) -> None:
        """React to the end of the batch."""


class QuietListener(Shown):
    """Print result folders on stdout, and what went wrong on stderr."""

    def on_finish(self, outcome: Outcome) -> None:
        if outcome.folder:
            click.echo(click.format_filename(shown(outcome.folder)))
        if not outcome.succeeded:
            click.echo(line_of(outcome), err=True)

    def on_warning(self, sentence: str) -> None:
        click.echo(f"warning: {plain(sentence)}", err=True)


class JsonListener(Shown):
    """One JSON object a line, on stdout."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self._last: dict[str, float] = {}

    def emit(self, event: str, **fields: Any) -> None:
        """Print one event."""
        click.echo(json.dumps({"event": event, **fields}, default=_written))

    def on_plan(self, plan: Plan) -> None:
        self.emit(
            "plan",
            clips=[
                {**dataclasses.asdict(clip), "estimate": round(plan.seconds(clip), 1)}
                for clip in plan.clips
            ],
            workers=[dataclasses.asdict(share) for share in plan.shares],
            frames_per_second=plan.rate,
            is_guess=plan.is_guess,
            estimate=round(plan.total_seconds, 1),
        )

    def on_start(self, name: str) -> None:
        self.emit("clip_started", name=name)

    def on_progress(self, name: str, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done == total or now - self._last.get(name, 0.0) >= EVENT_EVERY:
            self._last[name] = now
            self.emit("progress", name=name, stage=stage, done=done, total=total)

    def on_finish(self, outcome: Outcome) -> None:
        self._last.pop(outcome.name, None)
        self.emit("clip_finished", **dataclasses.asdict(outcome))

    def on_warning(self, sentence: str) -> None:
        self.emit("warning", text=sentence)

    def on_end(self, conclusion: Conclusion) -> None:
        statuses = Counter(outcome.status for outcome in conclusion.outcomes)
        self.emit(
            "done",
            clips=len(conclusion.outcomes) + conclusion.unfinished,
            **{str(status): count for status, count in statuses.items()},
            unfinished=conclusion.unfinished,
            interrupted=conclusion.interrupted,
            report=self.out / REPORT_HTML,
        )


class PlainListener(Shown):
    """The plan, then one line for each clip that ends, on stderr."""

    def __init__(self, out: Path, *, stderr: bool = True) -> None:
        super().__init__(out)
        self.console = Console(stderr=stderr, markup=False, highlight=False, soft_wrap=True)
        self.planned: set[str] = set()
        self.finished: set[str] = set()

    def on_plan(self, plan: Plan) -> None:
        self.planned |= {clip.name for clip in plan.clips}
        if not plan.clips:
            self.console.print("There are no clips.")
            return
        self.console.print(table_of(plan), soft_wrap=False)
        self.console.print(totals_of(plan))

    def on_finish(self, outcome: Outcome) -> None:
        self.finished.add(outcome.name)
        style = "" if outcome.succeeded else "red"
        place = f"[{len(self.finished)}/{len(self.planned)}] "
        self.console.print(Text(place + line_of(outcome), style))

    def on_warning(self, sentence: str) -> None:
        self.console.print(Text.assemble(("warning: ", "yellow"), plain(sentence)))

    def on_end(self, conclusion: Conclusion) -> None:
        if not conclusion.outcomes:
            return
        counts = Counter(outcome.status for outcome in conclusion.outcomes)
        if set(counts) == {"kept"}:
            click.echo(f"Nothing to do: all {len(conclusion.outcomes)} clips were done before.")
        else:
            click.echo(", ".join(f"{count} {status}" for status, count in counts.items()))
        click.echo(shown(self.out / REPORT_HTML))


class TerminalListener(PlainListener):
    """Below the lines a bar over the frames of all clips, and one for each running clip."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeLeftColumn(),
            console=self.console,
            transient=True,
        )
        self._all = self._progress.add_task("all frames", total=0)
        self._frames: dict[str, int] = {}  # of the clips to do
        self._through: dict[str, float] = {}  # of them, those that are reconstructed
        self._tasks: dict[str, TaskID] = {}

    def __exit__(self, *error: Any) -> None:
        self._progress.stop()

    def on_plan(self, plan: Plan) -> None:
        super().on_plan(plan)
        self._frames |= {clip.name: clip.frames for clip in plan.clips if clip.is_to_do}
        self._count()

    def on_start(self, name: str) -> None:
        self._progress.start()
        if name not in self._tasks:  # or it is begun again
            self._tasks[name] = self._progress.add_task(plain(name), total=None)

    def on_progress(self, name: str, stage: str, done: int, total: int | None) -> None:
        words = f"{plain(name)}: {stage}"
        self._progress.update(self._tasks[name], description=words, completed=done, total=total)
        if stage == THROUGH and total:
            self._through[name] = self._frames[name] * done / total
            self._count()

    def on_finish(self, outcome: Outcome) -> None:
        if outcome.name in self._tasks:
            self._progress.remove_task(self._tasks.pop(outcome.name))
        if outcome.status != "stopped":
            self._through[outcome.name] = self._frames.get(outcome.name, 0)
            self._count()
        super().on_finish(outcome)

    def _count(self) -> None:
        through, frames = round(sum(self._through.values())), sum(self._frames.values())
        self._progress.update(self._all, completed=through, total=frames)


def listening(style: str | None, out: Path, *, dry_run: bool = False) -> Shown:
    """Choose the listener for `--json`, `--quiet`, `--dry-run`, a terminal or a log."""
    if style == "json":
        return JsonListener(out)
    if style == "quiet":
        return QuietListener(out)
    if dry_run:
        return PlainListener(out, stderr=False)
    return TerminalListener(out) if sys.stderr.isatty() else PlainListener(out)


def _written(value: Any) -> str:
    return shown(value) if isinstance(value, Path) else str(value)


def table_of(plan: Plan) -> Table:
    """Show the clips of a plan."""
    table = Table()
    table.add_column("clip", overflow="fold")
    for column in ("length", "size"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    table.add_column("estimate", justify="right", no_wrap=True)
    for clip in plan.clips:
        state = STATES[clip.state]
        table.add_row(
            Text(plain(clip.name)),
            span(clip.seconds) if clip.frames else "",
            f"{clip.size / 1e6:.1f} MB",
            Text(plain(f"{state}: {clip.sentence}" if clip.sentence else state)),
            span(plan.seconds(clip)) if clip.is_to_do and clip.frames else "",
        )
    return table


def totals_of(plan: Plan) -> str:
    """Sum a plan up in one line."""
    to_do = sum(clip.is_to_do for clip in plan.clips)
    words = f"{len(plan.clips)} clips, {span(sum(clip.seconds for clip in plan.clips))}"
    if not to_do:
        return f"{words}: nothing to do."
    if any(clip.is_to_do and not clip.frames for clip in plan.clips):
        # Clips behind URLs are not looked into before they are worked on.
        return f"{len(plan.clips)} clips; {to_do} to do; {describe(plan.shares)}."
    basis = "guessed" if plan.is_guess else "as results here took"
    return (
        f"{words}; {to_do} to do, about {span(plan.total_seconds)} at {plan.rate:g} frames/s "
        f"for each worker, {basis}; {describe(plan.shares)}."
    )


def line_of(outcome: Outcome) -> str:
    """Say in one line what became of a clip."""
    words = outcome.sentence or "done"
    if outcome.manifest and outcome.status in ("done", "kept"):
        people, frames = len(outcome.manifest["people"]), outcome.manifest["frames"]
        words = f"{people} {'person' if people == 1 else 'people'}, {frames} frames"
        if outcome.status == "kept":
            words += ", done before"
        else:
            words += f" in {span(outcome.seconds)}"
    if outcome.status in ("failed", "partial", "stopped"):
        words = f"{outcome.status}: {words}"
    return plain(f"{outcome.name}: {words}")


def span(seconds: float) -> str:
    """Write a time: 8.4 s, 3:05, 1:02:33."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def plain(text: str) -> str:
    """Make a text one line that cannot steer a terminal: file names may hold anything."""
    return "".join(c if c.isprintable() else "�" for c in " ".join(text.split()))
