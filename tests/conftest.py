from __future__ import annotations

import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"


def pytest_configure() -> None:
    """Let tests be interrupted: whoever is started in the background ignores Ctrl-C."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The workplace's shared folder: real clips, a detector, mocap. Not part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "clips").is_dir():
        pytest.skip("needs ../shared, which is not here")
    return folder


@pytest.fixture(scope="session")
def bf16() -> None:
    """Skip where the CPU does not convolve in bf16."""
    from mpsnet_cli.model.backbone import can_round_to_bf16

    if not can_round_to_bf16():
        pytest.skip("needs a CPU that convolves in bf16")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of untrained weights."""
    from mpsnet_cli.weights import save_untrained

    return save_untrained(tmp_path_factory.mktemp("weights") / "untrained.safetensors", seed=0).path


@pytest.fixture
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weights of the machine's are found, and none are written there."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MPSNET_WEIGHTS", raising=False)
    monkeypatch.setattr("mpsnet_cli.weights.packaged_folder", lambda: None)
