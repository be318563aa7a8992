from __future__ import annotations

import json
from typing import Any

import pytest

from mpsnet_cli.cli.reporting import JsonReporter, PlainReporter, QuietReporter, TerminalReporter
from mpsnet_cli.progress import Reporter


def work(report: Reporter) -> None:
    with report.stage("detect", total=3) as advance:
        for _ in range(3):
            advance(1)
    report.warn("The [odd] thing was skipped.")
    report.warn("The [odd] thing was skipped.")


class Recorder(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def on_start(self, *args: Any) -> None:
        self.calls.append(("start", *args))

    def on_advance(self, *args: Any) -> None:
        self.calls.append(("advance", *args))

    def on_finish(self, stage: str, done: int, seconds: float) -> None:
        assert seconds >= 0
        self.calls.append(("finish", stage, done))


def test_stages_are_timed_and_warnings_said_once() -> None:
    report = Recorder()
    work(report)
    assert report.calls == [
        ("start", "detect", 3),
        *(("advance", "detect", done, 3) for done in (1, 2, 3)),
        ("finish", "detect", 3),
    ]
    assert report.seconds.keys() == {"detect"}
    assert report.warnings == ["The [odd] thing was skipped."]


def test_a_failed_stage_is_finished_too() -> None:
    report = Recorder()
    with pytest.raises(ZeroDivisionError), report.stage("draw") as advance:  # noqa: PT012
        advance(2)
        1 / 0  # noqa: B018
    assert report.calls[-1] == ("finish", "draw", 2)


def test_the_same_stage_twice_adds_up() -> None:
    report = Recorder()
    with report.stage("draw"):
        pass
    first = report.seconds["draw"]
    with report.stage("draw"):
        pass
    assert report.seconds["draw"] > first


def test_json_events_are_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    work(JsonReporter())
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", "finish", "warning"]
    assert events[1]["done"] == 3


@pytest.mark.parametrize("reporter", [PlainReporter, QuietReporter, TerminalReporter])
def test_everything_else_goes_to_stderr(
    reporter: type[Reporter], capsys: pytest.CaptureFixture[str]
) -> None:
    work(reporter())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("The [odd] thing was skipped.") == 1
    assert ("detect" in captured.err) is (reporter is not QuietReporter)
