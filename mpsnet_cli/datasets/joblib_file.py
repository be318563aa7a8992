"""Arrays out of a joblib file that somebody else made, running nothing that the file asks for.

A joblib file is a pickle in which every numpy array is an object that describes it, with its bytes
right after that object in the stream. A pickle is a program: it names callables, and the unpickler
calls them. Here the few names that such a file needs stand for inert records; any other name is
refused before anything is imported. The arrays stay on the disk until they are used: a database has
up to a dozen gigabytes.
"""

from __future__ import annotations

import math
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.errors import InputError
from mpsnet_cli.unpickling import PythonUnpickler, Record, RecordUnpickler

# First bytes of files that are often taken for one.
COMPRESSED = "is compressed: load it with joblib and dump it again without `compress`"
OTHERS = {
    b"\x1f\x8b": COMPRESSED,  # gzip
    b"x": COMPRESSED,  # zlib
    b"BZ": COMPRESSED,  # bzip2
    b"\xfd7zX": COMPRESSED,  # xz
    b"]\0\0": COMPRESSED,  # lzma
    b"\x04\x22M\x18": COMPRESSED,  # lz4
    b"PK": "is a zip archive (torch.save writes such), not a joblib file",
    b"\x89HDF": "is an HDF5 file, not a joblib file",
}


def read_joblib(path: Path) -> dict[str, NDArray[Any]]:
    """Read a joblib file of one dictionary; return its arrays, memory-mapped and read-only.

    Entries that are no arrays are left out. Raises InputError, with one sentence, for a file that
    is unreadable, compressed, holds Python objects in an array, or names anything to be run.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            for magic, what in OTHERS.items():
                if head.startswith(magic):
                    raise InputError(f"{path} {what}.")
            file.seek(0)
            content = _Unpickler(file, path).load()
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # pickle and numpy break in ways of their own
        raise InputError(f"{path} is damaged, or no joblib file: {error or 'cut off'}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no dictionary of arrays.")
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, np.ndarray)
    }


class _Wrapper(Record):
    """joblib's description of the array whose bytes follow; its attributes as state."""


class _Dtype(Record):
    """numpy's dtype(code, align, copy) with state (version, byte order, ...)."""


_ALLOWED: dict[str, type[Record]] = {
    "joblib.numpy_pickle.NumpyArrayWrapper": _Wrapper,
    "numpy.ndarray": Record,  # the class that a wrapper asks for
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray.scalar": Record,
    "numpy._core.multiarray.scalar": Record,
    "_codecs.encode": Record,  # how protocol 2 writes the bytes of a scalar
}


def _refusal(path: Path, wanted: str) -> InputError:
    return InputError(
        f"{path} asks to run {wanted}, which a database of arrays never needs: it was not run. Get "
        "the file again from where it is published."
    )


class _Unpickler(RecordUnpickler):
    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file, _ALLOWED, partial(_refusal, path))
        self.file = file
        self.path = path

    def load_build(self) -> None:
        super().load_build()
        if isinstance(self.stack[-1], _Wrapper):
            self.stack[-1] = self._array(self.stack[-1].state)

    dispatch: ClassVar = {**PythonUnpickler.dispatch, pickle.BUILD[0]: load_build}

    def _array(self, state: dict[str, Any]) -> NDArray[Any]:
        """Map the array that starts where the file stands, and step over it."""
        dtype = self._dtype(state["dtype"])
        shape = tuple(state["shape"])
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"an array has the shape {shape}")
        if state.get("numpy_array_alignment_bytes") is not None:  # since joblib 1.2
            self.file.seek(self.file.read(1)[0], 1)
        offset, size = self.file.tell(), math.prod(shape) * dtype.itemsize
        if self.file.seek(0, 2) < offset + size:
            raise ValueError("it ends in the middle of an array")
        self.file.seek(offset + size)
        order: Literal["C", "F"] = "F" if state["order"] == "F" else "C"
        if size == 0:  # which cannot be mapped
            return np.empty(shape, dtype)
        return np.memmap(self.path, dtype, mode="r", offset=offset, shape=shape, order=order)

    def _dtype(self, record: _Dtype) -> np.dtype[Any]:
        code = record.args[0]
        if code in ("O", "O8"):
            raise InputError(
                f"{self.path} holds an array of pickled Python objects, which are never read: save "
                "its entries as arrays of numbers or text."
            )
        if not re.fullmatch(r"[biuf][1248]|U\d{1,5}", code):
            raise ValueError(f"an array is of type {code!r}")
        return np.dtype(code).newbyteorder(record.state[1])
