"""The house: who may import whom, and what the light commands must not load."""

from __future__ import annotations

import ast
import configparser
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from mpsnet_cli.cli import COMMANDS

PACKAGE = ROOT / "mpsnet_cli"
LAYERS = [
    {"_version", "errors", "progress", "geometry", "windows", "colours"},
    {"npz", "unpickling", "packaged", "blender", "kept"},
    {"motion", "video"},
    {"model", "body", "crops"},
    {"posing", "weights", "tracking", "smoothing", "datasets"},
    {"render", "export"},
    {"pipeline", "synth"},
    {"job", "attention", "features", "evaluation"},
    {"training", "batch", "doctor"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: number for number, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # An extension of Blender's goes by a name that Blender gives it.
            assert node.level == 0 or home(path) == "blender", f"{path} has a relative import"
            names.add(node.module or "")
    return names


def home(path: Path) -> str:
    """The part of the house that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "mpsnet_cli" or len(parts) == 1 or parts[1] == home(path):
            continue
        assert LEVEL[parts[1]] < LEVEL[home(path)], f"{home(path)} must not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_click_stays_in_the_command_line(path: Path) -> None:
    if home(path) not in {"cli", "errors"}:
        assert not any(name.split(".")[0] == "click" for name in imported(path))


def test_every_module_has_a_place() -> None:
    assert {home(path) for path in MODULES} == set(LEVEL)


@pytest.mark.parametrize(
    "code",
    [
        "import mpsnet_cli",
        "from mpsnet_cli.cli import main; main(['--help'], standalone_mode=False)",
        *(
            f"from mpsnet_cli.cli import main; main(['{command}', '--help'], standalone_mode=False)"
            for command in COMMANDS
        ),
    ],
)
def test_light_commands_load_nothing_heavy(code: str) -> None:
    heavy = "{'torch', 'cv2', 'av', 'scipy', 'ultralytics', 'smplx', 'pyrender'}"
    check = f"import sys; {code}; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True)


def test_setup_lists_every_package() -> None:
    """setup.cfg cannot both search for packages and map weights/ to one."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert listed == found | {"mpsnet_cli_weights"}


def test_public_names_exist() -> None:
    import mpsnet_cli

    for name in mpsnet_cli.__all__:
        assert getattr(mpsnet_cli, name)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mpsnet_cli.nonsense  # noqa: B018


def test_changelog_knows_the_version() -> None:
    from mpsnet_cli import __version__

    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
