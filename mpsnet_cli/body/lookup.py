"""Which body a run uses, and where its file lies."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from mpsnet_cli.errors import BodyError

if TYPE_CHECKING:
    import torch

    from mpsnet_cli.body.model import BodyModel

FREE_BODY = "free-1"
FREE_BODY_FILE = Path(__file__).parent / "data" / "free-1.npz"
GENDERS = ("neutral", "male", "female")
SMPL_VARIABLE = "MPSNET_SMPL"
SMPL_SITE = "https://smpl.is.tue.mpg.de"

# SMPL_NEUTRAL.npz, SMPL_MALE.pkl, basicModel_f_lbs_10_207_0_v1.0.0.pkl, ...
_SMPL_FILE = re.compile(r"(?:smpl_|basicmodel_)(neutral|male|female|m|f)(?:_lbs.*)?\.(?:npz|pkl)")
_SMPL_FOLDERS = ("", "smpl", "models", "smpl/models")  # as smplx and SMPL's own archive lay it out


def load_body(
    name: str | None = None,
    *,
    path: Path | str | None = None,
    gender: str = "neutral",
    device: str | torch.device = "cpu",
) -> BodyModel:
    """Load a body: "free-1", "smpl" of a `gender`, "smpl-neutral" and so on; None for the best.

    SMPL is looked for in `path` (a file, or a folder with SMPL's files), else in $MPSNET_SMPL,
    else in the folder smpl of the user data folder. None takes SMPL if it is found, else the free
    body; `name` of the result says which it became. Raises BodyError where what was asked for is
    not there, is of another gender by its file name, or is not SMPL.
    """
    if name is not None and name.startswith("smpl-"):
        name, gender = "smpl", name.removeprefix("smpl-")
    if name not in (None, "smpl", FREE_BODY) or gender not in GENDERS:
        raise BodyError(f"No body is called {name} {gender}: there are free-1 and smpl-GENDER.")
    if name == FREE_BODY and path is not None:
        raise BodyError(f"The body {FREE_BODY} needs no SMPL file, but {path} was given.")
    found = None if name == FREE_BODY else _find_smpl(path, gender)
    if found is not None:
        return _load_smpl(found, gender, device)
    if name == "smpl":
        raise BodyError(
            f"SMPL {gender} is not here: get it from {SMPL_SITE} and give its place "
            f"(--smpl-path or ${SMPL_VARIABLE}), or put it into {_user_folder()}."
        )
    if gender != "neutral":
        raise BodyError(
            f"{FREE_BODY} is neutral only, and no SMPL {gender} was found: leave the gender out, "
            f"or give the place of SMPL (--smpl-path or ${SMPL_VARIABLE})."
        )
    return _load_free_body(device)


def _find_smpl(path: Path | str | None, gender: str) -> Path | None:
    """Find the SMPL file of a gender; None where no place was given and the usual one has none.

    Raises BodyError where a place was given, by `path` or $MPSNET_SMPL, and has no such file.
    """
    given = path or os.environ.get(SMPL_VARIABLE)
    place = Path(given).expanduser() if given else _user_folder()
    if place.is_file():
        said = _gender_of(place) or gender
        if said != gender:
            raise BodyError(f"{place} is {said}, but {gender} was asked for: say --gender {said}.")
        return place
    try:
        candidates = [
            file
            for folder in _SMPL_FOLDERS
            if (place / folder).is_dir()
            for file in sorted((place / folder).iterdir(), key=_preference)
            if _gender_of(file) == gender and file.is_file()
        ]
    except OSError as error:
        raise BodyError(f"{place} cannot be read: {error.strerror}.") from error
    if candidates:
        return candidates[0]
    if given:
        state = f"holds no SMPL {gender} file" if place.is_dir() else "does not exist"
        raise BodyError(
            f"{place} {state}: it should have SMPL_{gender.upper()}.pkl or .npz, from {SMPL_SITE}."
        )
    return None


def _load_smpl(file: Path, gender: str, device: str | torch.device) -> BodyModel:
    from mpsnet_cli.body.arrays import read_smpl
    from mpsnet_cli.body.model import BodyModel
    from mpsnet_cli.body.readers import MAX_BYTES

    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise BodyError(f"{file} has {size >> 20} MiB, more than any SMPL file.")
        data = file.read_bytes()
    except OSError as error:
        raise BodyError(f"{file} cannot be read: {error.strerror}.") from error
    return BodyModel(
        f"smpl-{gender}",
        read_smpl(data, name=file.name),
        source=file,
        sha256=hashlib.sha256(data).hexdigest(),
        device=device,
    )


def _load_free_body(device: str | torch.device) -> BodyModel:
    from mpsnet_cli.body.arrays import read_free_body
    from mpsnet_cli.body.model import BodyModel

    data = FREE_BODY_FILE.read_bytes()
    return BodyModel(
        FREE_BODY,
        read_free_body(data),
        source=FREE_BODY_FILE,
        sha256=hashlib.sha256(data).hexdigest(),
        device=device,
    )


def _gender_of(file: Path) -> str | None:
    match = _SMPL_FILE.fullmatch(file.name.lower())
    return {"m": "male", "f": "female"}.get(match[1], match[1]) if match else None


def _preference(file: Path) -> tuple[bool, bool, str]:
    """Order files of one gender: SMPL_* before basicModel_*, .npz before .pkl."""
    name = file.name.lower()
    return not name.startswith("smpl_"), not name.endswith(".npz"), name


def _user_folder() -> Path:
    return platformdirs.user_data_path("mpsnet-cli") / "smpl"
