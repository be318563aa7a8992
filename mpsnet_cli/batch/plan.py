"""What there is to do: every clip looked at before any is begun."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mpsnet_cli.batch.pool import Done, Lost, Make, Pool, Raised, Tell, work_off
from mpsnet_cli.batch.workers import count_cores
from mpsnet_cli.errors import MpsnetError
from mpsnet_cli.video import VideoInfo, probe

MAX_LOOKERS = 4  # processes that look at clips; more would wait for the disk
CLIPS_EACH = 8  # that a process should have to look at, as it takes a second to start

State = Literal["new", "partial", "done", "other", "broken"]
StateOf = Callable[[VideoInfo, Path], State]


@dataclass(frozen=True)
class Planned:
    """A clip, and what is known of it beforehand.

    folder: of its result
    state: as `job.state_of` tells, or "broken" if it cannot be used
    size: bytes
    seconds, frames: that are asked for of it
    sentence, traceback: why it is broken
    """

    clip: Path
    name: str
    folder: Path
    state: State = "broken"
    size: int = 0
    seconds: float = 0.0
    frames: int = 0
    sentence: str | None = None
    traceback: str | None = None
    is_to_do: bool = False  # whether workers have anything to do on it


def make_plan(
    names: Mapping[Path, str],
    out: Path,
    *,
    state_of: StateOf,
    start: float | None = None,
    end: float | None = None,
    go_on: Callable[[], bool] = lambda: True,
    make: Make | None = None,
) -> list[Planned]:
    """Look at clips, in processes of their own: what a clip does to one is not done to the batch.

    `names` are those of clips and of their results below `out`. `start` and `end` are seconds of
    every clip. The plan is in the order of the names, and ends early when `go_on` says no.
    """
    plan = {clip: Planned(clip, name, out / name, size=_size(clip)) for clip, name in names.items()}
    looked: set[Path] = set()
    count = min(MAX_LOOKERS, count_cores(), math.ceil(len(plan) / CLIPS_EACH))
    with Pool([make or make_looker] * count) as pool:
        for event in work_off(deque(plan), pool, go_on=go_on):
            clip = event.item
            match event:
                case Done(_, video):
                    plan[clip] = _assessed(plan[clip], video, start, end, state_of)
                case Raised(_, fault):
                    plan[clip] = replace(
                        plan[clip], sentence=fault.sentence, traceback=fault.traceback
                    )
                case Lost(_, how):
                    plan[clip] = replace(
                        plan[clip],
                        sentence=f"{clip} cannot be looked at: it ends the process ({how}).",
                    )
                case _:
                    continue
            looked.add(clip)
    return [planned for clip, planned in plan.items() if clip in looked]


def make_looker() -> Callable[[Path, Tell], VideoInfo]:
    """Return what looks at a clip."""
    return lambda clip, _: probe(clip)


def _size(clip: Path) -> int:
    try:
        return clip.stat().st_size
    except OSError:
        return 0  # and why, `probe` tells


def _assessed(
    planned: Planned,
    video: VideoInfo,
    start: float | None,
    end: float | None,
    state_of: StateOf,
) -> Planned:
    try:
        frames = len(video.frame_range(start, end))
        state = state_of(video, planned.folder)
    except MpsnetError as error:
        return replace(planned, sentence=error.message)
    seconds = frames / float(video.fps)
    return replace(planned, state=state, frames=frames, seconds=seconds)
