"""The batch as a whole: mostly in one process, with pretended work; signals in real ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import batch_work
import pytest
from batch_work import PoolHere, pretend
from clips import make_clip
from filelock import FileLock

from mpsnet_cli.batch import batch, landing, plan
from mpsnet_cli.batch.batch import Conclusion, Listener, Plan, Request, plan_batch, run_batch
from mpsnet_cli.batch.outcome import Outcome
from mpsnet_cli.batch.unit import Models
from mpsnet_cli.body import load_body
from mpsnet_cli.errors import DeviceError, MpsnetError, OutputError, WeightsError
from mpsnet_cli.export.result import CLIP_FORMAT
from mpsnet_cli.job import Arguments, identity
from mpsnet_cli.video import probe
from mpsnet_cli.weights import read_info

TESTS = Path(__file__).parent


class Heard(Listener):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.events: list[tuple[str, ...]] = []
        self.outcomes: dict[str, Outcome] = {}
        self.warnings: list[str] = []

    def on_plan(self, plan: Plan) -> None:
        self.plans.append(plan)

    def on_start(self, name: str) -> None:
        self.events.append(("start", name))

    def on_progress(self, name: str, stage: str, done: int, total: int | None) -> None:
        self.events.append(("progress", name, stage, f"{done}/{total}"))

    def on_finish(self, outcome: Outcome) -> None:
        self.events.append(("finish", outcome.name))
        self.outcomes[outcome.name] = outcome

    def on_warning(self, sentence: str) -> None:
        self.warnings.append(sentence)

    @property
    def statuses(self) -> dict[str, str]:
        return {name: outcome.status for name, outcome in self.outcomes.items()}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "Pool", PoolHere)
    monkeypatch.setattr(batch, "Pool", PoolHere)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4").read_bytes()


@pytest.fixture
def folder(tmp_path: Path, clip: bytes) -> Any:
    """Makes a folder of clips of these names."""

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(clip)
        return tmp_path / "in"

    return make


def run(inputs: Path, *, make: Any = None, **options: Any) -> tuple[Conclusion, Heard]:
    heard = Heard()
    options = {"recursive": True, "workers": 1, "arguments": Arguments(boxes="full"), **options}
    request = Request((inputs,), inputs.parent / "out", **options)
    return run_batch(request, heard, make=make or batch_work.make_pretending), heard


def written(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder.parent / "out" / "report.json").read_text())
    return report


@pytest.mark.usefixtures("here")
def test_a_precision_that_is_not_here_ends_it_before_it_begins(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpsnet_cli.model.inference.can_round_to_bf16", lambda: False)
    inputs = folder("a.mp4")
    with pytest.raises(DeviceError, match="does not compute in bf16"):
        run(inputs, models=Models(precision="bf16"), device="cpu")
    assert not (inputs.parent / "out" / "report.json").exists()


@pytest.mark.usefixtures("here")
def test_every_kind_of_end(folder: Any) -> None:
    inputs = folder("a/good.mp4", "b/good.mp4", "nobody.mp4", "part.mp4", "fails.mp4", "bug.mp4",
                    "dies.mp4", "dies_once.mp4")  # fmt: skip
    (inputs / "broken.mp4").write_text("not a video")
    conclusion, heard = run(inputs)
    assert heard.statuses == {
        "broken": "failed",
        "a/good": "done",
        "b/good": "done",
        "nobody": "nobody",
        "part": "partial",
        "fails": "failed",
        "bug": "failed",
        "dies": "failed",
        "dies_once": "done",
    }
    assert list(conclusion.outcomes) == list(heard.outcomes.values())
    assert (conclusion.unfinished, conclusion.interrupted, conclusion.no_room) == (0, False, None)
    outcomes = heard.outcomes
    assert "not a video" in str(outcomes["broken"].sentence)
    assert outcomes["fails"].sentence == "It is odd."
    assert outcomes["bug"].sentence == "ZeroDivisionError: by me"
    assert "pretend" in str(outcomes["bug"].traceback)
    assert "twice" in str(outcomes["dies"].sentence)
    assert "signal 9" in str(outcomes["dies"].sentence)
    assert [outcomes[name].attempts for name in ("dies", "dies_once", "a/good")] == [2, 2, 1]
    assert ("progress", "a/good", "detect", "3/10") in heard.events
    assert heard.warnings.count("The weights are pretended.") == 1  # though every clip says so
    assert "a/good: Its name is good." in heard.warnings
    assert "b/good: Its name is good." in heard.warnings
    report = written(inputs)
    assert report["unfinished"] == 0
    assert {each["name"]: each["status"] for each in report["clips"]} == heard.statuses
    assert (inputs.parent / "out" / "report.html").is_file()


@pytest.mark.usefixtures("here")
def test_units_carry_what_was_asked_for(folder: Any) -> None:
    units = []

    def work(unit: Any, tell: Any) -> Any:
        units.append(unit)
        return pretend(unit, tell)

    inputs = folder("sub/x.mp4")
    arguments = Arguments(boxes="full", smooth=0.5)
    shares = []

    def make(models: Any, share: Any) -> Any:
        shares.append((models, share.device))
        return work

    models = batch.Models(weights="w", gender="male")
    run(inputs, make=make, arguments=arguments, existing="any", formats=("glb",), models=models,
        device="cpu")  # fmt: skip
    (unit,) = units
    assert unit == batch.Unit(
        inputs / "sub" / "x.mp4",
        "sub/x",
        inputs.parent / "out" / "sub" / "x",
        arguments,
        existing="any",
        formats=("glb",),
    )
    assert shares == [(models, "cpu")]


@pytest.mark.usefixtures("here")
def test_the_report_is_true_at_any_time(folder: Any) -> None:
    inputs = folder("a.mp4", "b.mp4", "c.mp4")
    states = []

    class Reading(Heard):
        def on_start(self, name: str) -> None:
            path = inputs.parent / "out" / "report.json"
            report = json.loads(path.read_text()) if path.exists() else {"clips": []}
            states.append((name, [each["name"] for each in report["clips"]]))

    run_batch(Request((inputs,), inputs.parent / "out", workers=1), Reading(),
              make=batch_work.make_pretending)  # fmt: skip
    assert states == [("a", []), ("b", ["a"]), ("c", ["a", "b"])]


def finish(path: Path, result: Path, weights: Path, **facts: Any) -> None:
    """Write what a finished result of this clip says."""
    found = identity(
        probe(path),
        Arguments(boxes="full"),
        weights=read_info(weights),
        body=load_body("free-1"),
        detector=None,
    )
    manifest = {"format": CLIP_FORMAT, **batch_work.MANIFEST, **found, **facts}
    result.mkdir(parents=True)
    (result / "clip.json").write_text(json.dumps(manifest))


@pytest.mark.usefixtures("here")
def test_what_is_done_is_kept_and_tells_how_long_the_rest_takes(
    folder: Any, untrained: Path, tmp_path: Path
) -> None:
    inputs = folder("done.mp4", "new.mp4", "other.mp4", "part.mp4")
    out = tmp_path / "out"
    finish(inputs / "done.mp4", out / "done", untrained, frames_per_second=2.0)
    finish(inputs / "other.mp4", out / "other", untrained, arguments={}, frames_per_second=4.0)
    finish(inputs / "part.mp4", out / "part", untrained, complete=False, frames_per_second=9.0)
    models = batch.Models(weights=str(untrained), body="free-1")
    conclusion, heard = run(inputs, models=models, existing="any")
    (found,) = heard.plans
    assert {each.name: each.state for each in found.clips} == {
        "done": "done",
        "new": "new",
        "other": "other",
        "part": "done",
    }
    assert (found.rate, found.is_guess) == (4.0, False)
    assert found.total_seconds == 2 * 10 / 4.0
    assert heard.statuses == {"done": "kept", "new": "done", "other": "kept", "part": "partial"}
    assert ("start", "done") not in heard.events
    assert heard.outcomes["done"].folder == out / "done"
    assert len(conclusion.outcomes) == 4
    # Overwriting, everything is to do, and with exports there may be something.
    for options in ({"existing": "replace"}, {"formats": ("glb",)}):
        _, heard = run(inputs, models=models, **options)
        assert ("start", "done") in heard.events, options


@pytest.mark.usefixtures("here")
def test_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    conclusion, heard = run(tmp_path / "in", make=None)
    assert conclusion == Conclusion([], 0)
    assert [list(each.clips) for each in heard.plans] == [[]]


@pytest.mark.usefixtures("here")
def test_a_dry_run_writes_nothing(folder: Any, tmp_path: Path) -> None:
    inputs, heard = folder("a.mp4"), Heard()
    plan_batch(Request((inputs,), tmp_path / "out"), heard)
    (found,) = heard.plans
    assert [(each.name, each.state, each.is_to_do) for each in found.clips] == [("a", "new", True)]
    assert found.is_guess
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
def test_a_full_disk_stops_what_is_not_begun(folder: Any) -> None:
    inputs = folder("a.mp4", "full.mp4", "z.mp4")
    conclusion, heard = run(inputs)
    assert heard.statuses == {"a": "done", "full": "stopped"}
    assert conclusion.unfinished == 1
    assert "No space left on device" in str(conclusion.no_room)
    assert not conclusion.interrupted
    assert written(inputs)["unfinished"] == 1


@pytest.mark.usefixtures("here")
def test_a_worker_that_cannot_be_made_ends_the_batch(folder: Any) -> None:
    def make(models: Any, share: Any) -> Any:  # noqa: ARG001
        raise WeightsError("The weights are damaged.")

    class Real(PoolHere):
        def events(self) -> Any:
            for event in super().events():
                raise MpsnetError(event.fault.sentence)  # as a Pool does
                yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "Pool", Real)
        inputs = folder("a.mp4", "b.mp4")
        (inputs / "broken.mp4").touch()
        with pytest.raises(MpsnetError, match="damaged"):
            run(inputs, make=make)
    assert written(inputs)["unfinished"] == 2
    assert [each["name"] for each in written(inputs)["clips"]] == ["broken"]


@pytest.mark.usefixtures("here")
def test_a_second_batch_on_one_folder_refuses(folder: Any, tmp_path: Path) -> None:
    inputs = folder("a.mp4")
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".batch.lock"), pytest.raises(OutputError, match="Another"):
        run(inputs)
    run(inputs)


def test_a_folder_that_cannot_be_written(folder: Any, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="cannot be written"):
        run(folder("a.mp4"))


@pytest.mark.usefixtures("here")
def test_watching(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips are taken up as they land, and a broken one again when it has become whole."""
    monkeypatch.setattr(batch, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(batch, "Landing", partial(landing.Landing, settle=0.0))
    inputs = folder("a.mp4")
    (inputs / "late.mp4").write_text("the beginning of")

    class Landing(Heard):
        def on_finish(self, outcome: Outcome) -> None:
            super().on_finish(outcome)
            if outcome.name == "a":
                folder("sub/b.mp4", "late.mp4")
            if len(self.statuses) == 3 and set(self.statuses.values()) == {"done"}:
                os.kill(os.getpid(), signal.SIGINT)

    heard = Landing()
    request = Request((inputs,), inputs.parent / "out", recursive=True, workers=1, watch=True)
    before = signal.getsignal(signal.SIGINT)
    conclusion = run_batch(request, heard, make=batch_work.make_pretending)
    assert signal.getsignal(signal.SIGINT) == before
    assert heard.statuses == {"a": "done", "sub/b": "done", "late": "done"}
    assert [event for event in heard.events if event == ("finish", "late")] == [
        ("finish", "late")
    ] * 2
    assert not conclusion.interrupted  # it had nothing left to do
    assert written(inputs)["unfinished"] == 0


SCRIPT = """
import sys
from pathlib import Path
import batch_work
from mpsnet_cli.batch.batch import Listener, Request, run_batch
from mpsnet_cli.job import Arguments

class Told(Listener):
    def on_start(self, name):
        print("start", name, flush=True)
    def on_finish(self, outcome):
        print(outcome.status, outcome.name, flush=True)

if __name__ == "__main__":
    request = Request((Path("in"),), Path("out"), Arguments(boxes="full"), workers=1)
    conclusion = run_batch(request, Told(), make=batch_work.make_pretending)
    print(conclusion.interrupted, conclusion.unfinished)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals")
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_interrupts_in_real_processes(folder: Any, tmp_path: Path, kind: signal.Signals) -> None:
    """The clip at work is stopped at once, the next is not begun, no process stays."""
    folder("slow1.mp4", "slow2.mp4")
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    with subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "start slow1\n"
        while not (file := tmp_path / "out" / "slow1.pid").exists():
            assert process.poll() is None
            time.sleep(0.05)
        # A terminal sends Ctrl-C to all of the group; `kill` sends SIGTERM to the one process.
        (os.killpg if kind == signal.SIGINT else os.kill)(process.pid, kind)
        output, errors = process.communicate(timeout=30)
    assert output.splitlines() == ["stopped slow1", "True 1"]
    assert errors == ""
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["unfinished"] == 1
    assert {each["status"] for each in report["clips"]} == {"stopped"}
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
