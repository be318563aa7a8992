"""How Blender is found and run; what it writes is in test_blender_scene.py."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stages import make_stage

from mpsnet_cli.errors import OutputError
from mpsnet_cli.export import blender
from mpsnet_cli.export.blender import find_blender, write_blend, write_fbx


@pytest.fixture(autouse=True)
def without_blender(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MPSNET_BLENDER", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}:/bin:/usr/bin")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr("shutil.which", _which(tmp_path / "programs"))


def _which(programs: Path) -> Callable[..., str | None]:
    """Find only what a test has put there, whatever the machine has."""

    def which(name: str | Path) -> str | None:
        path = Path(name) if Path(name).is_absolute() else programs / name
        return str(path) if path.is_file() else None

    return which


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_no_blender_is_said_with_the_way_out() -> None:
    with pytest.raises(OutputError, match=r"none was found: install it, or `pip install bpy`"):
        find_blender()


def test_blender_on_the_path_runs_in_the_background(tmp_path: Path) -> None:
    path = program(tmp_path / "programs" / "blender", "")
    command = find_blender()
    assert command[0] == str(path)
    assert {"--background", "--factory-startup"} <= set(command)
    assert command[-1] == "--python"


def test_the_variable_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "programs" / "blender", "")
    given = program(tmp_path / "blender-4.5", "")
    monkeypatch.setenv("MPSNET_BLENDER", str(given))
    assert find_blender()[0] == str(given)


def test_a_python_runs_the_script_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = program(tmp_path / "python3.11", "")
    monkeypatch.setenv("MPSNET_BLENDER", str(given))
    assert find_blender() == [str(given), "-I"]


def test_a_variable_that_names_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSNET_BLENDER", "/nowhere/blender")
    with pytest.raises(OutputError, match=r"\$MPSNET_BLENDER is /nowhere/blender, which is no"):
        find_blender()


def test_this_python_if_it_has_bpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "bpy")
    assert find_blender() == [sys.executable, "-I"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo Blender 4.5; echo 'RuntimeError: no room' >&2; exit 3", "code 3.: RuntimeError: no"),
        ("exit 1", "no message"),
        ("exit 0", "wrote no .blend"),
        ("exec sleep 60", "no end after 1 s"),
    ],
)
def test_failures_are_one_sentence_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    program(tmp_path / "programs" / "blender", script)
    monkeypatch.setattr(blender, "START_SECONDS", 1.0)
    monkeypatch.setattr(blender, "SECONDS_PER_POSE", 0.0)
    folder = tmp_path / "out"
    folder.mkdir()
    with pytest.raises(OutputError, match=message) as raised:
        write_blend(folder / "walk.blend", make_stage(1, 2), advance=lambda _: None)
    assert "\n" not in raised.value.message
    assert list(folder.iterdir()) == []


def test_what_blender_wrote_takes_the_name(tmp_path: Path) -> None:
    program(tmp_path / "programs" / "blender", 'for last; do true; done; echo scene > "$last"')
    done: list[int] = []
    stage = make_stage(2, 8)
    write_fbx(tmp_path / "walk.fbx", stage, advance=done.append)
    assert (tmp_path / "walk.fbx").read_text() == "scene\n"
    assert sum(done) == sum(len(person) for person in stage.people)
    assert {path.name for path in tmp_path.iterdir()} == {"walk.fbx", "programs"}
