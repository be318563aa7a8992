"""Archives of plain arrays, checked as far as any archive can be."""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from mpsnet_cli.errors import InputError

NO_FORMAT = "no format key"


def read_npz(
    path: Path, *, what: str, only: Collection[str] | None = None
) -> tuple[str, dict[str, Any]]:
    """Read the arrays of an .npz by name, or `only` these, and what its key `format` says.

    Raises InputError, naming `what` it should have been, if it is no archive, damaged, or holds
    pickled objects.
    """
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("it is not an .npz archive")
            with np.load(path, allow_pickle=False) as archive:
                keys = [key for key in archive.files if only is None or key in only]
                arrays = {key: archive[key] for key in keys}
            if odd := [key for key, value in arrays.items() if not isinstance(value, np.ndarray)]:
                raise ValueError(f"{odd[0]} in it is no array")
    except Exception as error:  # a damaged or hostile archive can raise anything
        raise InputError(f"{path} is not a readable {what}: {error}.") from error
    return str(arrays.pop("format", NO_FORMAT)), arrays
