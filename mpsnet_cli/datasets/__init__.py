"""Features over time with what is known of the truth, from other projects' files and our own."""

from __future__ import annotations

import zipfile
from pathlib import Path

from mpsnet_cli.datasets.databases import read_database
from mpsnet_cli.datasets.sequences import Sequence, load_sequences, save_sequences
from mpsnet_cli.errors import InputError
from mpsnet_cli.progress import Reporter

__all__ = ["Sequence", "load_sequences", "read_database", "read_sequences", "save_sequences"]


def read_sequences(path: Path, report: Reporter, *, fps: float | None = None) -> list[Sequence]:
    """Read sequences from an .npz of ours (`load_sequences`) or a database (`read_database`).

    `fps` is for databases, which do not say theirs. Raises InputError where an .npz, which does,
    is given one.
    """
    if path.suffix == ".npz" or zipfile.is_zipfile(path):
        if fps is not None:
            raise InputError(f"{path} says its own frame rate: leave --fps {fps:g} out.")
        return load_sequences(path)
    return read_database(path, report, fps=fps)
