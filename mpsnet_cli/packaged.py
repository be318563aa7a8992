"""The files that ship with the tool, the repository's weights/: where they lie, and their bytes."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from mpsnet_cli.errors import WeightsError

PACKAGED: dict[str, str] = {  # sha256 by file name, of every network in weights/
    "mpsnet-starter.safetensors": (
        "31b8e9534b89a2b36eba4dfa179f7f1e27d1133d6c517dfdfdb48932695bf01e"
    ),
    "person-starter.pt": "fb291f6d0c54dc98324f1c02562f603299fdcd3323c8351ab0dbb36eb4e8a5f6",
}


def packaged_folder() -> Path | None:
    """Return the folder of the files that ship with the tool, if it is installed."""
    package = importlib.util.find_spec("mpsnet_cli_weights")  # setup.cfg makes it of weights/
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0])


def packaged_file(name: str) -> Path | None:
    """Return a file that ships with the tool, if it is installed."""
    folder = packaged_folder()
    return folder / name if folder and (folder / name).is_file() else None


def checked_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal.

    Raises WeightsError for a file of the packaged folder that is not as it shipped; files of
    anywhere else, and others there, may hold what they will.
    """
    digest = file_sha256(path)
    folder = packaged_folder()
    if folder and path.parent.resolve() == folder.resolve():
        shipped = PACKAGED.get(path.name, digest)
        if digest != shipped:
            raise WeightsError(
                f"{path} is not the file that shipped with this version (its sha256 is {digest}, "
                f"and must be {shipped}): install mpsnet-cli again."
            )
    return digest


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
