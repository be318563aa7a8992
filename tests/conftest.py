from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The workplace's shared folder: real clips, a detector, mocap. Not part of the project."""
    folder = ROOT.parent / "shared"
    if not (folder / "clips").is_dir():
        pytest.skip("needs ../shared, which is not here")
    return folder
