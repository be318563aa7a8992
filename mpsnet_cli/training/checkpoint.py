"""What a run leaves behind as it goes: at any moment, even that of a kill, the files are whole."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.progress import Reporter

FORMAT = "mpsnet-training/1"
RESUME = "resume.pt"


@contextmanager
def run_folder(out: Path, *, resume: bool) -> Iterator[None]:
    """Make the folder of a run, and keep other runs out of it.

    Raises OutputError where it cannot be written, is in use, or holds a run that is not resumed.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".lock", timeout=0):
            if not resume and (out / RESUME).exists():
                raise OutputError(
                    f"{out} holds a training run: --resume continues it, -o names another folder."
                )
            yield
    except Timeout as error:
        raise OutputError(
            f"Another run is writing to {out}: wait for it, or pass another -o."
        ) from error
    except OSError as error:
        raise OutputError(f"Cannot write to {out}: {error.strerror or error}.") from error


def replace_file(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, wait until the disk has it, and rename it.

    Raises OutputError where that fails, as on a full disk; an older file of the name then stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        part.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state of tensors, numbers and texts. Raises OutputError as `replace_file`."""
    buffer = io.BytesIO()  # torch's own writer turns a full disk into an error without its cause
    torch.save({"format": FORMAT, **state}, buffer)
    replace_file(path, buffer.getvalue())


def load_checkpoint(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    """Read the `keys` of a state onto the CPU, running nothing that the file asks for.

    Raises InputError for a file that `save_checkpoint` did not write or that lacks one of them.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader breaks in as many ways as a file can be wrong
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a checkpoint in the format {FORMAT}.")
    if missing := [key for key in keys if key not in state]:
        raise InputError(f"{path} lacks {missing[0]}.")
    return {key: state[key] for key in keys}


def take_up(
    out: Path,
    *,
    identity: Mapping[str, Any],
    keys: Sequence[str],
    restore: Callable[[dict[str, Any]], None],
    report: Reporter,
) -> None:
    """Give the `keys` of a run's checkpoint to `restore`; without one the run starts anew, said.

    Raises InputError for a checkpoint of another run, or one that does not fit.
    """
    path = out / RESUME
    if not path.exists():
        report.warn(f"{out} has no checkpoint yet: training starts at its beginning.")
        return
    state = load_checkpoint(path, ("identity", *keys))
    _require_same_run(path, state["identity"], identity)
    try:
        restore(state)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} does not fit this run: {reason}") from error


def _require_same_run(path: Path, theirs: str, ours: Mapping[str, Any]) -> None:
    """Compare what a checkpoint says of its run, JSON, with this one's. Raises InputError."""
    try:
        found = json.loads(theirs)
        wanted = json.loads(json.dumps(ours))
        for name in (*wanted, *found):
            if found.get(name) != wanted.get(name):
                raise InputError(
                    f"{path} is of another run: its {name} is {found.get(name)}, and this one's is "
                    f"{wanted.get(name)}. Pass another -o; network.weights goes on from what its "
                    "last file of weights has learnt."
                )
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} does not fit this run: {error}") from error


class MetricsFile:
    """A CSV file whose first column is the number of steps done; each row is there once written."""

    def __init__(self, path: Path, columns: Sequence[str], *, done: int) -> None:
        """Keep the rows of an older file up to the step `done`, and go on after them."""
        self.path = path
        self.columns = list(columns)
        kept = [",".join(cells) for cells in (self.columns, *self._rows_until(done))]
        replace_file(path, "".join(f"{line}\n" for line in kept).encode())
        self._file = path.open("ab", buffering=0)  # a row must not wait in memory for a kill

    def _rows_until(self, done: int) -> list[list[str]]:
        if not self.path.is_file() or done == 0:
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        whole = (row for row in rows if len(row) == len(self.columns) and row[0].isdecimal())
        return [row for row in whole if int(row[0]) <= done]

    def write(self, row: Mapping[str, Any]) -> None:
        """Append the columns of a row; None leaves one empty. Raises OutputError where it fails."""
        values = (row[name] for name in self.columns)
        line = ",".join("" if value is None else format(value, ".9g") for value in values) + "\n"
        try:
            if self._file.write(line.encode()) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def flush(self) -> None:
        """Wait until the disk has all rows. Raises OutputError where that fails."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"Cannot write {path}: {error.strerror or error}. The last checkpoint is kept: make room "
        "there and continue with --resume."
    )
