from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import batch_work
import pytest
from batch_work import Dies, PoolHere
from clips import make_clip

from mpsnet_cli.batch import plan
from mpsnet_cli.batch.plan import make_plan
from mpsnet_cli.errors import InputError
from mpsnet_cli.video import VideoInfo


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "Pool", PoolHere)


def new(video: VideoInfo, folder: Path) -> Any:  # noqa: ARG001
    return "new"


@pytest.mark.usefixtures("here")
def test_good_and_broken_clips(tmp_path: Path) -> None:
    good, text, gone = (tmp_path / name for name in ("good.mp4", "text.mp4", "gone.mp4"))
    make_clip(good, frames=50)
    text.write_text("I am not a video.")
    asked = []

    def state_of(video: VideoInfo, folder: Path) -> Any:
        asked.append((video.path, folder))
        return "partial"

    names = {good: "a/good", text: "text", gone: "gone"}
    first, second, third = make_plan(names, tmp_path / "out", state_of=state_of)
    assert (first.clip, first.name, first.state) == (good, "a/good", "partial")
    assert (first.frames, first.seconds, first.size) == (50, 2.0, good.stat().st_size)
    assert asked == [(good, tmp_path / "out" / "a" / "good")]
    assert (second.state, second.size) == ("broken", 17)
    assert "not a video" in str(second.sentence)
    assert (third.state, third.size) == ("broken", 0)
    assert "does not exist" in str(third.sentence)
    assert second.traceback is third.traceback is None


@pytest.mark.usefixtures("here")
def test_a_part_of_each_clip(tmp_path: Path) -> None:
    clips = {make_clip(tmp_path / f"{n}.mp4", frames=n): str(n) for n in (5, 50)}
    short, long = make_plan(clips, tmp_path, state_of=new, start=1.0, end=1.6)
    assert (long.frames, round(long.seconds, 3)) == (15, 0.6)
    assert short.state == "broken"
    assert "past the end" in str(short.sentence)


@pytest.mark.usefixtures("here")
def test_what_ends_the_process_or_has_a_bug_is_broken(tmp_path: Path) -> None:
    def make() -> Any:
        def look(clip: Path, tell: Any) -> Any:  # noqa: ARG001
            raise {"dies": Dies("signal 11"), "bug": ZeroDivisionError("by me")}[clip.name]

        return look

    dies, bug = make_plan(
        {tmp_path / "dies": "dies", tmp_path / "bug": "bug"}, tmp_path, state_of=new, make=make
    )
    assert dies.state == bug.state == "broken"
    assert "signal 11" in str(dies.sentence)
    assert bug.sentence == "ZeroDivisionError: by me"
    assert "look" in str(bug.traceback)


@pytest.mark.usefixtures("here")
def test_a_state_that_cannot_be_told(tmp_path: Path) -> None:
    def state_of(video: VideoInfo, folder: Path) -> Any:  # noqa: ARG001
        raise InputError("There is no boxes file b.")

    (planned,) = make_plan({make_clip(tmp_path / "a.mp4"): "a"}, tmp_path, state_of=state_of)
    assert (planned.state, planned.sentence) == ("broken", "There is no boxes file b.")


@pytest.mark.usefixtures("here")
def test_it_ends_when_told(tmp_path: Path) -> None:
    clips = {make_clip(tmp_path / f"{n}.mp4"): str(n) for n in range(3)}
    asked: list[bool] = []

    def go_on() -> bool:
        asked.append(True)
        return len(asked) < 3

    planned = make_plan(clips, tmp_path, state_of=new, go_on=go_on)
    assert [each.name for each in planned] == ["0", "1"]


def test_nothing_to_look_at_starts_no_process(tmp_path: Path) -> None:
    assert make_plan({}, tmp_path, state_of=new) == []


@pytest.mark.skipif(os.name != "posix", reason="Windows has no signals")
def test_real_processes(tmp_path: Path) -> None:
    """A decoder that crashes ends neither the plan nor the batch."""
    good, bad = make_clip(tmp_path / "good.mp4"), tmp_path / "bad.mp4"
    bad.touch()
    first, second = make_plan(
        {bad: "bad", good: "good"}, tmp_path, state_of=new, make=batch_work.make_crashing_looker
    )
    assert (first.name, first.state) == ("bad", "broken")
    assert f"signal {signal.SIGSEGV.value}" in str(first.sentence)
    assert (second.state, second.frames) == ("new", 10)
