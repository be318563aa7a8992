from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mpsnet_cli.cli.features import features
from mpsnet_cli.progress import Reporter


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(features, [str(argument) for argument in arguments])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stand in for the work, and note how it was asked for."""
    noted: dict[str, Any] = {"found": [range(3), range(4)]}

    def load_model(*arguments: Any, **keywords: Any) -> Any:
        assert isinstance(keywords.pop("report"), Reporter)
        noted["model"] = arguments, keywords
        return SimpleNamespace()

    def extract_features(*arguments: Any, **keywords: Any) -> Any:
        report = keywords.pop("report")
        assert isinstance(report, Reporter)
        for sentence in noted.get("lost", []):
            report.lose(sentence)
        noted["features"] = arguments[:1], keywords
        return iter(noted["found"])

    def save_sequences(*arguments: Any) -> None:
        noted["saved"] = arguments

    monkeypatch.setattr("mpsnet_cli.weights.load_model", load_model)
    monkeypatch.setattr("mpsnet_cli.features.extract_features", extract_features)
    monkeypatch.setattr("mpsnet_cli.datasets.save_sequences", save_sequences)
    return noted


def test_arguments_arrive(calls: dict[str, Any], tmp_path: Path) -> None:
    clip, out = tmp_path / "clip.mp4", tmp_path / "out.npz"
    clip.touch()
    result = call(clip, "-o", out, "-w", "w", "--device", "cpu", "--precision", "fp32",
                  "--batch-size", "3", "--detector", "d.pt", "--boxes", "full")  # fmt: skip
    assert result.exit_code == 0, result.output
    keywords = {"device": "cpu", "precision": "fp32", "batch_size": 3}
    assert calls["model"] == (("w",), keywords)
    assert calls["features"] == ((clip,), {"boxes": "full", "detector": "d.pt"})
    assert calls["saved"] == (out, [range(3), range(4)])
    assert result.output == f"{out}: 2 sequences, 7 frames\n"


def test_other_voices(calls: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    assert call(tmp_path, "-o", out, "-q").output == f"{out}\n"
    done = json.loads(call(tmp_path, "-o", out, "--json").output)
    assert done == {"event": "done", "file": str(out), "sequences": 2, "frames": 7}
    assert "saved" in calls


def test_nobody_is_no_file(calls: dict[str, Any], tmp_path: Path) -> None:
    calls["found"] = []
    result = call(tmp_path, "-o", tmp_path / "out.npz")
    assert result.exit_code == 3
    assert "Nobody was found" in result.output
    assert "saved" not in calls


def test_what_could_not_be_read_shows_in_the_exit_code(
    calls: dict[str, Any], tmp_path: Path
) -> None:
    calls["lost"] = ["b.mp4 is empty."]
    result = call(tmp_path, "-o", tmp_path / "out.npz")
    assert result.exit_code == 4
    assert "b.mp4 is empty." in result.output
    assert "Only a part of" in result.output
    assert calls.pop("saved")
    calls["found"] = []
    result = call(tmp_path, "-o", tmp_path / "out.npz")
    assert result.exit_code == 1
    assert "Nothing of" in result.output
    assert "saved" not in calls


def test_an_existing_file_is_kept(calls: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    out.touch()
    assert "--overwrite replaces it" in call(tmp_path, "-o", out).output
    assert "model" not in calls
    assert call(tmp_path, "-o", out, "--overwrite").exit_code == 0


def test_usage(tmp_path: Path) -> None:
    assert call(tmp_path / "nothing.mp4", "-o", "x.npz").exit_code == 2
    assert call(tmp_path).exit_code == 2
