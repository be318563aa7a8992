from __future__ import annotations

import json
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from mpsnet_cli.cli.doctor import _show, doctor
from mpsnet_cli.doctor import CHECKS, Finding

FINE = [
    Finding("Python", "3.12.1, ~/venv/bin/python", group="program"),
    Finding("OpenGL", "no EGL", "note", "EGL does not work here.", group="devices"),
    Finding("decode", "ok: 4 frames", group="self-test", seconds=0.123),
    Finding("detect", "skipped: no detector", "skipped", group="self-test", seconds=0.1),
]
BROKEN = [
    Finding("weights", "No weights found.", "failed", "get them", group="files"),
    Finding("encode", "failed: no encoder", "failed", group="self-test", seconds=2.0),
    Finding("encode", "failed: no sound", "failed", group="self-test", seconds=1.0),
]


@pytest.fixture
def findings(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the doctor finds, to be changed."""
    found = list(FINE)

    def examine() -> Iterator[Finding]:
        yield from found

    monkeypatch.setattr("mpsnet_cli.doctor.examine", examine)
    return found


@pytest.mark.usefixtures("findings")
def test_a_machine_that_has_all() -> None:
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 0
    assert result.output == (
        "program\n"
        "  Python         3.12.1, ~/venv/bin/python\n"
        "\n"
        "devices\n"
        "- OpenGL         no EGL\n"
        "                 > EGL does not work here.\n"
        "\n"
        "self-test\n"
        "  decode         ok: 4 frames (0.1 s)\n"
        "- detect         skipped: no detector\n"
        "\n"
        "All that `mpsnet run` needs is here.\n"
    )


def test_what_is_broken_is_marked_and_named(findings: list[Finding]) -> None:
    findings += BROKEN
    result = CliRunner().invoke(doctor)
    assert result.exit_code == 1
    assert "\n! weights        No weights found.\n                 > get them\n" in result.output
    assert "\n! encode         failed: no encoder (2.0 s)\n" in result.output
    assert result.output.endswith(
        "\n\n`mpsnet run` cannot do its work here, see: weights, encode.\n"
    )


def test_json_is_one_object(findings: list[Finding]) -> None:
    result = CliRunner().invoke(doctor, ["--json"])
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert answer["ok"] is True
    assert [Finding(**finding) for finding in answer["findings"]] == findings
    findings += BROKEN
    result = CliRunner().invoke(doctor, ["--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False


def test_lines_are_folded_for_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Finding("x" * 10, "a/long-path " * 20, "note", "do this " * 20, group="files")
    monkeypatch.setenv("COLUMNS", "80")
    _show(long)
    assert len(capsys.readouterr().out.splitlines()) == 2
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    _show(long)
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert len(lines) > 4
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("- xxxxxxxxxx     a/long-path a/long-path ")
    assert {line[:17].strip() for line in lines[1:]} == {""}
    assert [line[17:19] for line in lines].count("> ") == 1


def test_names_fit_their_column() -> None:
    assert max(len(check.name) for check in CHECKS) < 15
