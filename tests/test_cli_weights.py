from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mpsnet_cli.cli.weights import weights
from mpsnet_cli.errors import WeightsError
from mpsnet_cli.model.config import MPSNetConfig, WeightsInfo
from mpsnet_cli.weights import official, save_untrained

INFO = WeightsInfo(Path("w.safetensors"), "ours", True, "MIT", MPSNetConfig(), {}, "", "ab" * 32)


pytestmark = pytest.mark.usefixtures("empty_home")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(weights, arguments)


class Recorder:
    """Stands in for a function: notes how it was called."""

    def __init__(self, result: WeightsInfo = INFO) -> None:
        self.result = result
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __call__(self, *arguments: Any, **keywords: Any) -> WeightsInfo:
        self.calls.append((arguments, keywords))
        return self.result


@pytest.mark.parametrize(
    ("command", "callee", "expected"),
    [
        (
            ["import", "a.tar", "b.tar", "-o", "c"],
            "mpsnet_cli.weights.official.import_official",
            ((Path("a.tar"), Path("b.tar"), Path("c")), {"overwrite": False}),
        ),
        (
            ["init", "--seed", "7", "--output", "c", "--overwrite"],
            "mpsnet_cli.weights.save_untrained",
            ((Path("c"),), {"seed": 7, "overwrite": True}),
        ),
        (
            ["pull"],
            "mpsnet_cli.weights.official.pull_official",
            ((), {"url": official.ARCHIVE_URL, "overwrite": False, "quiet": True}),
        ),
        (
            ["pull", "--url", "http://here/x.zip", "--overwrite"],
            "mpsnet_cli.weights.official.pull_official",
            ((), {"url": "http://here/x.zip", "overwrite": True, "quiet": True}),
        ),
    ],
)
def test_arguments_arrive(
    monkeypatch: pytest.MonkeyPatch, command: list[str], callee: str, expected: Any
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(callee, recorder)
    result = call(*command)
    assert recorder.calls == [expected]
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        "w.safetensors", "ours", "trained: yes; licence: MIT", f"sha256 {'ab' * 32}",
    ]  # fmt: skip


def test_pack_says_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source := tmp_path / "w.safetensors").write_bytes(b"long")
    (made := tmp_path / "small").write_bytes(bytes(1_234_567))
    recorder = Recorder(replace(INFO, path=made))
    monkeypatch.setattr("mpsnet_cli.weights.pack_weights", recorder)
    result = call("pack", str(source), "--name", "n", "--licence", "l", "-o", "small")
    texts = {"name": "n", "licence": "l", "note": None}
    assert recorder.calls == [((source, Path("small")), {**texts, "overwrite": False})]
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[0] == str(made)
    assert result.output.splitlines()[-2:] == [f"sha256 {'ab' * 32}", "1.2 MB (1,234,567 bytes)"]


def test_list_shows_what_is_found_and_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.safetensors", tmp_path / "[red]bad.safetensors"

    def read_info(path: Path) -> WeightsInfo:
        if path == bad:
            raise WeightsError(f"{path} is broken.")
        return INFO

    monkeypatch.setattr("mpsnet_cli.weights.available", lambda: [("here", good), ("there", bad)])
    monkeypatch.setattr("mpsnet_cli.weights.read_info", read_info)
    result = call("list")
    assert result.exit_code == 0
    assert "→" in next(line for line in result.output.splitlines() if str(good) in line)
    assert "ours" in result.output
    assert "trained: yes; licence: MIT" in result.output
    assert "ab" * 32 in result.output
    assert f"{bad} is broken. (there)" in result.output
    assert "get it: mpsnet weights pull" in result.output
    assert "not here: starter (synthetic)" in result.output


def test_show_describes_a_real_file(tmp_path: Path) -> None:
    path = save_untrained(tmp_path / "untrained.safetensors", seed=1).path
    result = call("show", str(path))
    path.unlink()
    assert result.exit_code == 0, result.output
    for text in ("untrained (random, seed 1)", "CC0-1.0", "free-1", "1×2048",
                 "23,508,032", "9,176,581", "3,469,469", "36,154,082", "4,240,410,112",
                 "attention moca, integration hafi"):  # fmt: skip
        assert text in result.output
    costs = {line.split("│")[1].strip(): line for line in result.output.splitlines() if "│" in line}
    for what, ours, theirs in (
        ("parameters, M", "36.15", "39.63"),
        ("multiply-adds (half the FLOPs), G", "4.24", "4.45"),
        ("file, MB", "144.9", "331"),
    ):
        assert [cell.strip() for cell in costs[what].split("│")[2:4]] == [ours, theirs]


@pytest.mark.parametrize(
    "command", [["show"], ["show", "nothing"], ["import", "a", "b", "-o", "c"]]
)
def test_errors_are_one_sentence(command: list[str]) -> None:
    result = call(*command)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1
