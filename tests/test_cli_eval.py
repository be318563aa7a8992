from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from databases import small_db, write
from test_datasets import sequence

import mpsnet_cli.body
import mpsnet_cli.body.joint_sets
import mpsnet_cli.datasets
import mpsnet_cli.evaluation.evaluate
import mpsnet_cli.evaluation.pixels
import mpsnet_cli.tracking
import mpsnet_cli.video
import mpsnet_cli.weights
from mpsnet_cli.cli.eval import eval as command
from mpsnet_cli.cli.reporting import JsonReporter
from mpsnet_cli.datasets import save_sequences
from mpsnet_cli.evaluation.result import Coverage, Errors
from mpsnet_cli.evaluation.result import Result as Evaluation


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, list(map(str, arguments)))


VALUES = {
    "pa_mpjpe": np.array([40.0, 50.0, 60.0]),
    "mpjpe": np.array([70.0, 80.0, 90.0]),
    "acceleration": np.array([7.0]),
    "acceleration_per_s2": np.array([6300.0]),
}


class Wired:
    """Stands in for what the command calls, and keeps what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.model = SimpleNamespace(
            device="some device", weights=SimpleNamespace(name="w", trained=False)
        )
        self.body = SimpleNamespace(name="free-1")
        self.result = Evaluation(
            (Errors("courtyard", 3, VALUES),),
            "these joints",
            Coverage(true=5, missed=2, spurious=1),
        )
        for module, name, result in (
            (mpsnet_cli.weights, "load_model", self.model),
            (mpsnet_cli.body, "load_body", self.body),
            (mpsnet_cli.body.joint_sets, "load_joint_regressor", "the regressor"),
            (mpsnet_cli.datasets, "read_sequences", "the sequences"),
            (mpsnet_cli.evaluation.evaluate, "evaluate", self.result),
            (mpsnet_cli.video, "probe", "the clip"),
            (mpsnet_cli.tracking, "given_tracks", "the boxes"),
            (mpsnet_cli.evaluation.pixels, "load_truth", "the truth"),
            (mpsnet_cli.evaluation.pixels, "evaluate_clip", self.result),
        ):
            monkeypatch.setattr(module, name, self._recorder(name, result))

    def _recorder(self, name: str, result: Any) -> Any:
        def record(*arguments: Any, **keywords: Any) -> Any:
            self.report = keywords.pop("report", None)
            self.calls[name] = (arguments, keywords)
            return result

        return record


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> Wired:
    return Wired(monkeypatch)


def test_a_database_goes_where_it_should(wired: Wired) -> None:
    result = call(
        "x_test_db.pt", "--weights", "w", "--body", "smpl", "--smpl-path", "s", "--fps", 25,
        "--joint-regressor", "j.npy", "--release-batching", "--smooth", "release",
        "--device", "cpu", "--precision", "fp32", "--batch-size", 3,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (path, _), keywords = wired.calls["read_sequences"]
    assert (path, keywords) == (Path("x_test_db.pt"), {"fps": 25})
    assert wired.calls["load_model"] == (
        ("w",), {"device": "cpu", "precision": "fp32", "batch_size": 3},
    )  # fmt: skip
    assert wired.calls["load_body"] == (("smpl",), {"path": Path("s"), "device": "some device"})
    assert wired.calls["load_joint_regressor"] == ((Path("j.npy"),), {})
    assert wired.calls["evaluate"] == (
        ("the sequences", wired.model, wired.body),
        {"joint_regressor": "the regressor", "release_batching": True, "smooth": "release"},
    )
    assert "evaluate_clip" not in wired.calls


def test_defaults_are_the_paper_s(wired: Wired) -> None:
    call("x.npz")
    assert wired.calls["evaluate"][1] == {
        "joint_regressor": None, "release_batching": False, "smooth": 0,
    }  # fmt: skip
    assert wired.calls["load_body"][0] == (None,)


def test_a_clip_goes_where_it_should(wired: Wired) -> None:
    result = call("walk.mp4", "--truth", "t.npz", "--boxes", "b.csv", "--smooth", 0.1)
    assert result.exit_code == 0, result.output
    assert wired.calls["given_tracks"] == (("b.csv", "the clip"), {})
    assert wired.calls["evaluate_clip"] == (
        ("the clip", "the truth", wired.model, wired.body), {"tracks": "the boxes", "smooth": 0.1},
    )  # fmt: skip
    assert "person-frames: 5 true, 2 missed; 1 found that are nobody's" in result.output
    call("walk.mp4", "--truth", "t.npz")
    assert wired.calls["evaluate_clip"][1]["tracks"] is None


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["x.mp4", "--boxes", "b.csv"], "--boxes is for a clip, which needs --truth"),
        (["x.mp4", "--truth", "t", "--release-batching"], "are for databases"),
        (["x.mp4", "--truth", "t", "--joint-regressor", "j"], "are for databases"),
        (["x.mp4", "--truth", "t", "--fps", "3"], "are for databases"),
        (["x.mp4", "--truth", "t", "--smooth", "release"], "are for databases"),
        (["x.pt", "--smooth", "official"], "not a valid float"),
        (["x.pt", "--smooth", "2"], "not in the range"),
        (["x.pt", "--smooth", "nan"], "not a finite number"),
        (["x.pt", "--fps", "0"], "not in the range"),
        ([], "Missing argument 'DATA'"),
    ],
)
def test_wrong_usage(wired: Wired, arguments: list[str], text: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())
    assert not wired.calls


def test_the_table_stands_beside_the_paper_s(wired: Wired) -> None:
    shown = call("3dpw_test_db.pt").output
    assert "weights: w (untrained: the numbers mean nothing)" in shown
    assert "body: free-1\njoints: these joints\n" in shown
    assert "smoothing: none\n" in shown
    rows = [line.split() for line in shown.splitlines()]
    for row in (
        "courtyard 3 50.0 80.0 7.0 6300.0",
        "all frames 3 50.0 80.0 7.0 6300.0",
        "MPS-Net's paper, 3DPW 52.1 84.3 7.4 –",
    ):
        assert row.split() in rows
    assert "the paper prints mm/s², its release computes mm/frame²" in shown
    assert "MPS-Net's paper" not in call("x.pt", "--smooth", 0.3).output
    told = call("x.pt", "--smooth", "release", "--release-batching").output
    assert "smoothing: release\nbatches: of 8 windows that mix" in told
    assert "MPS-Net's paper" not in call("3dpw.mp4", "--truth", "t").output
    wired.model.weights.trained = True
    assert "untrained" not in call("x.pt").output


def test_json_has_it_all(wired: Wired) -> None:
    result = call("3dpw_test_db.pt", "--json")
    (line,) = result.output.splitlines()
    done = json.loads(line)
    assert isinstance(wired.report, JsonReporter)
    assert done["event"] == "done"
    assert (done["weights"], done["trained"], done["body"]) == ("w", False, "free-1")
    assert (done["smooth"], done["release_batching"]) == (0, False)
    assert done["people"] == {"true": 5, "missed": 2, "spurious": 1}
    assert done["joints"] == "these joints"
    assert done["sequences"] == [
        {"name": "courtyard", "frames": 3, "pa_mpjpe": 50, "mpjpe": 80, "acceleration": 7,
         "acceleration_per_s2": 6300},
    ]  # fmt: skip
    assert done["pooled"]["pa_mpjpe"] == 50
    assert done["paper"] == {
        "data": "3DPW", "pa_mpjpe": 52.1, "mpjpe": 84.3, "mpvpe": 99.7, "acceleration": 7.4,
    }  # fmt: skip
    assert json.loads(call("x.pt", "--json").output)["paper"] is None


def test_sequences_are_really_evaluated(untrained: Path, tmp_path: Path) -> None:
    save_sequences(tmp_path / "s.npz", [sequence(20, name="yard"), sequence(4, name="short")])
    result = call(tmp_path / "s.npz", "--weights", untrained, "--body", "free-1", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "yard" in result.output
    assert "MPVPE" in result.output
    assert "Skipped 1 of 2 sequences, which have fewer than 16 frames: short." in result.output
    assert "untrained" in result.output


class Payload:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.trace}",)


def test_errors_are_one_sentence(untrained: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    databases = {
        "asks to run": small_db(valid=Payload(trace)),
        "lacks features": small_db(features=None),
        "is empty": small_db(0),
        "it takes 16 frames": small_db(15),
        "(N, 14 or 49, 3)": small_db(joints3D=np.zeros((20, 24, 3))),
    }
    for text, content in databases.items():
        path = write(tmp_path / "f_30fps.pt", content)
        result = call(path, "--weights", untrained, "--body", "free-1", "--device", "cpu")
        assert result.exit_code == 1
        (error,) = [line for line in result.output.splitlines() if line.startswith("Error: ")]
        assert text in error
    assert not trace.exists()
