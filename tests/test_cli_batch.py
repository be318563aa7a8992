from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from clips import make_clip

from mpsnet_cli.batch import batch
from mpsnet_cli.batch.batch import Conclusion, Listener, Plan, Request
from mpsnet_cli.batch.outcome import Outcome, Status
from mpsnet_cli.batch.plan import Planned
from mpsnet_cli.batch.unit import Models
from mpsnet_cli.batch.workers import Share
from mpsnet_cli.cli import main
from mpsnet_cli.cli.batch_listeners import TerminalListener, plain, span
from mpsnet_cli.job import Arguments
from mpsnet_cli.motion import Motion

MANIFEST = {"people": [{"id": 1}, {"id": 2}], "frames": 10}
HOSTILE = "a\x1b[31m\nb\ud800"


def outcome(name: str, status: Status = "done", sentence: str | None = None) -> Outcome:
    has_result = status in ("done", "kept", "nobody")
    return Outcome(
        Path("in", f"{name}.mp4"),
        name,
        status,
        sentence,
        folder=Path("out", name) if has_result else None,
        manifest=MANIFEST if has_result else None,
        seconds=2.0,
    )


def planned(name: str, **facts: Any) -> Planned:
    facts = {"state": "new", "frames": 50, "seconds": 2.0, "size": 3_000_000, **facts}
    return Planned(Path("in", f"{name}.mp4"), name, Path("out", name), is_to_do=True, **facts)


PLAN = Plan(
    [
        planned("a"),
        planned(HOSTILE),
        Planned(Path("in/c.mp4"), "c", Path("out/c"), sentence="It is no video."),
    ],
    [Share("cpu", 2)],
    rate=5.0,
    is_guess=True,
)


class Wired:
    """Stands in for the batch, and plays one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome, **facts: Any) -> None:
        self.requests: list[tuple[str, Request]] = []
        self.conclusion = Conclusion(outcomes, **{"unfinished": 0, **facts})
        monkeypatch.setattr(batch, "run_batch", self.run)
        monkeypatch.setattr(batch, "plan_batch", self.plan)

    def run(self, request: Request, listener: Listener) -> Conclusion:
        self.requests.append(("run", request))
        listener.on_plan(PLAN)
        for each in self.conclusion.outcomes:
            if each.status != "kept":
                listener.on_start(each.name)
                listener.on_progress(each.name, "detect", 5, 50)
                listener.on_start(each.name)  # its process died
                listener.on_progress(each.name, "reconstruct", 25, 50)
            listener.on_finish(each)
        listener.on_warning(f"Odd: {HOSTILE}")
        return self.conclusion

    def plan(self, request: Request, listener: Listener) -> None:
        self.requests.append(("plan", request))
        listener.on_plan(PLAN)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, list(map(str, arguments)))


def test_defaults_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    wired = Wired(monkeypatch, outcome("a"))
    result = call("batch", "in", "more*.mp4")
    assert result.exit_code == 0, result.output
    assert wired.requests == [("run", Request((Path("in"), Path("more*.mp4")), Path("out")))]


def test_run_with_several_videos_is_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    wired = Wired(monkeypatch, outcome("a"))
    assert call("run", "a.mp4", "b.mp4", "--smooth", 0).exit_code == 0
    request = Request((Path("a.mp4"), Path("b.mp4")), Path("out"), Arguments(smooth=0.0))
    assert wired.requests == [("run", request)]


def test_options_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    wired = Wired(monkeypatch, outcome("a"))
    result = call(
        *("batch", "in", "-o", "there", "-r", "--workers", 3, "--watch", "--resume-any"),
        *("--weights", "w", "--body", "smpl", "--gender", "male", "--smpl-path", "S"),
        *("--device", "cuda:1", "--precision", "bf16", "--batch-size", 7, "--export", "glb,bvh"),
        *("--start", 1, "--boxes", "full", "--detector", "d", "--person", 2, "--no-meshes"),
    )
    assert result.exit_code == 0, result.output
    assert wired.requests == [
        (
            "run",
            Request(
                (Path("in"),),
                Path("there"),
                Arguments(start=1.0, boxes="full", detector="d", people=(2,), meshes=False),
                Models("w", "smpl", "male", Path("S"), "bf16", 7),
                device="cuda:1",
                existing="any",
                formats=("glb", "bvh"),
                recursive=True,
                workers=3,
                watch=True,
            ),
        )
    ]
    call("batch", "in", "--overwrite", "--workers", "auto")
    assert wired.requests[1][1] == Request((Path("in"),), Path("out"), existing="replace")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("in", "--workers", 0),
        ("in", "--workers", "many"),
        ("in", "--overwrite", "--resume-any"),
        ("in", "--boxes", "people.csv"),
        ("in", "--smooth", 2),
    ],
)
def test_wrong_usage(arguments: tuple[object, ...]) -> None:
    assert call("batch", *arguments).exit_code == 2


def test_run_knows_resume_any_too() -> None:
    assert call("run", "a.mp4", "--overwrite", "--resume-any").exit_code == 2


FAILED = outcome("b", "failed", "It is odd.")


@pytest.mark.parametrize(
    ("outcomes", "facts", "code", "words"),
    [
        ([outcome("a"), outcome("b", "kept"), outcome("c", "nobody", "Nobody.")], {}, 0, ""),
        ([], {}, 1, "There are no clips in what was given: check the names"),
        ([outcome("a"), FAILED], {}, 5, "1 of 2 clips failed: see out/report.html."),
        ([outcome("a", "partial", "Only a part.")], {}, 5, "1 of 1 clips failed"),
        ([outcome("a"), outcome("b", "stopped", "No space.")],
         {"unfinished": 3, "no_room": "No space."}, 1, "no room for them: No space."),
        ([outcome("a"), outcome("b", "stopped", "Stopped.")],
         {"unfinished": 3, "interrupted": True}, 130, "Stopped with 1 of 5 clips done"),
    ],
)  # fmt: skip
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    outcomes: list[Outcome],
    facts: dict[str, Any],
    code: int,
    words: str,
) -> None:
    Wired(monkeypatch, *outcomes, **facts)
    for style in ([], ["--json"], ["--quiet"]):
        result = call("batch", "in", *style)
        assert result.exit_code == code, result.output
        assert words in result.stderr


def test_ctrl_c_before_anything_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(batch, "run_batch", interrupted)
    result = call("batch", "in")
    assert (result.exit_code, result.stderr) == (130, "Stopped.\n")


def test_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    Wired(monkeypatch, outcome("a"), FAILED, outcome(HOSTILE), outcome("d", "kept"))
    result = call("batch", "in")
    lines = result.stderr.splitlines()
    assert "[1/3] a: 2 people, 10 frames in 2.0 s" in lines
    assert "[2/3] b: failed: It is odd." in lines
    assert "[3/3] a�[31m b�: 2 people, 10 frames in 2.0 s" in lines
    assert "[4/3] d: 2 people, 10 frames, done before" in lines
    assert "warning: Odd: a�[31m b�" in lines
    assert "\x1b" not in result.output
    assert result.stdout == f"2 done, 1 failed, 1 kept\n{Path('out/report.html')}\n"


def test_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    wired = Wired(monkeypatch)
    result = call("batch", "in", "--dry-run")
    assert [kind for kind, _ in wired.requests] == ["plan"]
    assert result.exit_code == 0
    assert result.stderr == ""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines()]
    assert ["a", "2.0 s", "3.0 MB", "new", "10.0 s"] in rows
    assert ["c", "", "0.0 MB", "broken: It is no video.", ""] in rows
    assert "\x1b" not in result.stdout
    assert (
        "3 clips, 4.0 s; 2 to do, about 20.0 s at 5 frames/s for each worker, guessed; "
        "1 worker on cpu, 2 threads each." in result.stdout
    )


def test_json_events(monkeypatch: pytest.MonkeyPatch) -> None:
    Wired(monkeypatch, outcome("a"), FAILED)
    result = call("batch", "in", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "plan"
    assert kinds[-1] == "done"
    assert {"clip_started", "progress", "clip_finished", "warning"} < set(kinds)
    assert events[0]["clips"][1]["name"] == HOSTILE
    assert events[0]["clips"][0]["estimate"] == 10.0
    finished = [event for event in events if event["event"] == "clip_finished"]
    assert [each["status"] for each in finished] == ["done", "failed"]
    assert finished[0]["manifest"] == MANIFEST
    assert events[-1]["done"] == events[-1]["failed"] == 1
    assert events[-1]["report"] == str(Path("out/report.html"))


def test_quiet_prints_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    Wired(monkeypatch, outcome("a"), FAILED, outcome("c", "kept"))
    result = call("batch", "in", "-q")
    assert result.stdout.splitlines() == [str(Path("out/a")), str(Path("out/c"))]
    assert "b: failed: It is odd." in result.stderr


def test_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    Wired(monkeypatch, outcome("a", "kept"), outcome("b", "kept"))
    result = call("batch", "in")
    assert result.exit_code == 0
    assert "Nothing to do: all 2 clips were done before." in result.stdout


def test_bars_count_the_frames_of_all_clips() -> None:
    with TerminalListener(Path("out")) as shown:
        assert isinstance(shown, TerminalListener)
        shown.on_plan(PLAN)
        total, *_ = shown._progress.tasks
        assert (total.completed, total.total) == (0, 100)
        shown.on_start("a")
        shown.on_progress("a", "detect", 50, 50)
        assert total.completed == 0
        shown.on_progress("a", "reconstruct", 20, 80)  # rows, of more people than one
        assert total.completed == round(50 * 20 / 80)
        shown.on_start("a")
        assert [task.description for task in shown._progress.tasks[1:]] == ["a: reconstruct"]
        shown.on_finish(outcome("a"))
        assert (total.completed, len(shown._progress.tasks)) == (50, 1)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0.0 s"), (8.44, "8.4 s"), (185, "3:05"), (3753, "1:02:33")]
)
def test_spans(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_texts_cannot_steer_a_terminal() -> None:
    assert plain("ü\t\n é\x07\u202e") == "ü é��"


def test_two_clips_through_the_real_network(untrained: Path, tmp_path: Path) -> None:
    """As a user would start it, and again: then everything is done."""
    for name in ("a/clip.mp4", "b/clip.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        make_clip(tmp_path / "in" / name, frames=3, size=(64, 96))
    (tmp_path / "in" / "bad.mp4").write_text("no video")
    command = [sys.executable, "-m", "mpsnet_cli", "batch", "in", "-r", "--boxes", "full"]
    command += ["--weights", str(untrained), "--workers", "1", "--no-meshes", "--json"]
    command += ["--export", "glb"]

    def run() -> list[dict[str, Any]]:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 5, done.stderr
        assert done.stderr.count("\n") == 1
        return [json.loads(line) for line in done.stdout.splitlines()]

    events = run()
    finished = {each["name"]: each for each in events if each["event"] == "clip_finished"}
    assert {name: each["status"] for name, each in finished.items()} == {
        "a/clip": "done",
        "b/clip": "done",
        "bad": "failed",
    }
    warnings = [each["text"] for each in events if each["event"] == "warning"]
    assert sum("untrained" in text for text in warnings) == 1
    for name in ("a/clip", "b/clip"):
        assert any("untrained" in text for text in finished[name]["manifest"]["warnings"])
        result = tmp_path / "out" / name
        assert Motion.load(result / "person_01.npz").frame_ids.tolist() == [0, 1, 2]
        assert (result / "exports" / "clip.glb").is_file()
    motions = [tmp_path / "out" / name / "person_01.npz" for name in ("a/clip", "b/clip")]
    assert motions[0].read_bytes() == motions[1].read_bytes()  # equal clips
    before = motions[0].stat().st_mtime_ns
    command[:] = command[:-2]
    events = run()
    assert [each["status"] for each in events if each["event"] == "clip_finished"] == [
        "failed",
        "kept",
        "kept",
    ]
    assert not [each for each in events if each["event"] == "clip_started"]
    assert motions[0].stat().st_mtime_ns == before
