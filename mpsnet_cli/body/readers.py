"""Arrays out of files that somebody else made, running nothing that the file asks for.

SMPL is distributed as pickles of numpy arrays, scipy sparse matrices and chumpy objects, mostly
written by Python 2. A pickle is a program: it names callables, and the unpickler calls them. Here
each name that a body model needs stands for an inert `Record`, which only remembers what it was
given; any other name is refused before anything is imported. The arrays are then built from the
records by the code below, which trusts no type, shape or size in them.
"""

from __future__ import annotations

import io
import re
from collections.abc import Collection
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mpsnet_cli.errors import BodyError
from mpsnet_cli.unpickling import Record, RecordUnpickler

MAX_BYTES = 1 << 30  # of a file, and of one array in it; the largest SMPL file is a quarter of it


def read_arrays(data: bytes, keys: Collection[str], *, name: str) -> dict[str, NDArray[Any]]:
    """Read the arrays `keys` from the bytes of an .npz or a pickle called `name` in messages.

    Sparse matrices come dense, chumpy objects as the array that they stand for; whatever else the
    file holds is left alone. Raises BodyError, with one sentence that says what is wrong where.
    """
    try:
        if data[:2] == b"PK":
            return _read_npz(data, keys, name)
        return _read_pickle(data, keys, name)
    except BodyError:
        raise
    except Exception as error:  # pickle, zipfile, zlib and numpy each break in ways of their own
        raise BodyError(f"{name} is damaged, or no body model at all: {error}.") from error


def _read_npz(data: bytes, keys: Collection[str], name: str) -> dict[str, NDArray[Any]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        _require(keys, archive.files, name)
        for key in keys:
            if archive.zip.getinfo(f"{key}.npy").file_size > MAX_BYTES:
                raise BodyError(f"{name}: {key} is larger than {MAX_BYTES >> 20} MiB.")
        try:
            return {key: archive[key] for key in keys}
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            raise BodyError(
                f"{name} holds pickled Python objects, which are never read from an .npz: "
                "save its entries as plain arrays, or give the original .pkl."
            ) from error


def _read_pickle(data: bytes, keys: Collection[str], name: str) -> dict[str, NDArray[Any]]:
    unpickler = RecordUnpickler(
        io.BytesIO(data), _ALLOWED, partial(_refusal, name), encoding="latin1"
    )
    content = unpickler.load()
    if not isinstance(content, dict):
        raise BodyError(f"{name} holds no dictionary of arrays, so it is no body model.")
    _require(keys, content, name)
    arrays = {}
    for key in keys:
        try:
            arrays[key] = _array(content[key])
        except Exception as error:  # the records are as the file's author liked
            raise BodyError(f"{name}: {key} is not an array of numbers: {error}.") from error
    return arrays


def _require(keys: Collection[str], present: Collection[Any], name: str) -> None:
    missing = [key for key in keys if key not in present]
    if missing:
        raise BodyError(f"{name} lacks {', '.join(missing)}, so it is no SMPL body.")


class _Array(Record):
    """numpy's _reconstruct(type, shape, code) with state (version, shape, dtype, fortran, raw)."""


class _Buffer(Record):
    """numpy's _frombuffer(raw, dtype, shape, order), since pickle protocol 5."""


class _Dtype(Record):
    """numpy's dtype(code, align, copy) with state (version, byte order, ...)."""


class _Encoded(Record):
    """_codecs.encode(text, "latin1"): how Python 3 writes bytes for Python 2."""


class _Csc(Record):
    """A scipy sparse matrix, its attributes as state."""


class _Csr(Record):
    """The same by rows."""


class _Ch(Record):
    """A chumpy array; its value is x."""


class _Select(Record):
    """A chumpy view; its value is a.ravel()[idxs].reshape(preferred_shape)."""


class _Instance(Record):
    """copyreg._reconstructor(type, base, state): how old protocols make an empty instance."""

    def __new__(cls, *args: Any) -> Any:
        return args[0]()


_ALLOWED: dict[str, type[Record]] = {
    "numpy.dtype": _Dtype,
    "numpy.ndarray": Record,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy._core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": Record,
    "numpy._core.multiarray.scalar": Record,
    "numpy.core.numeric._frombuffer": _Buffer,
    "numpy._core.numeric._frombuffer": _Buffer,
    "scipy.sparse.csc.csc_matrix": _Csc,
    "scipy.sparse._csc.csc_matrix": _Csc,
    "scipy.sparse.csr.csr_matrix": _Csr,
    "scipy.sparse._csr.csr_matrix": _Csr,
    "chumpy.ch.Ch": _Ch,
    "chumpy.reordering.Select": _Select,
    "_codecs.encode": _Encoded,
    "copy_reg._reconstructor": _Instance,
    "copyreg._reconstructor": _Instance,
    "__builtin__.object": Record,
    "builtins.object": Record,
    "__builtin__.set": Record,  # chumpy's list of what has changed
    "builtins.set": Record,
}


def _refusal(name: str, wanted: str) -> BodyError:
    return BodyError(
        f"{name} asks to run {wanted}, which a body model never needs: it was not run. Get the "
        "file again from https://smpl.is.tue.mpg.de."
    )


def _array(value: Any) -> NDArray[Any]:
    if isinstance(value, (_Csc, _Csr)):
        return _dense(value)
    if isinstance(value, _Select):
        state = value.state
        view = _plain(state["a"]).ravel()[_plain(state["idxs"])]
        return view.reshape(state.get("preferred_shape", -1))
    return _plain(value)


def _plain(value: Any) -> NDArray[Any]:
    """Build an array, or the array in a chumpy object; nesting further is not followed."""
    if isinstance(value, _Ch):
        value = value.state["x"]
    if isinstance(value, _Array):
        _, shape, dtype, fortran, raw = value.state
    elif isinstance(value, _Buffer):
        raw, dtype, shape, order = value.args
        fortran = order == "F"
    else:
        raise TypeError(f"found {type(value).__name__.lstrip('_')}")
    flat = np.frombuffer(_raw(raw), _dtype(dtype))
    return flat.reshape(shape, order="F" if fortran else "C")


def _raw(value: Any) -> bytes | bytearray:
    if isinstance(value, _Encoded):
        value = value.args[0]
    return value.encode("latin1") if isinstance(value, str) else value


def _dtype(record: Any) -> np.dtype[Any]:
    code = record.args[0]
    if not re.fullmatch("[biuf][1248]", code):
        raise TypeError(f"its type {code!r} is no plain number")
    return np.dtype(code).newbyteorder(record.state[1])


def _dense(record: _Csc | _Csr) -> NDArray[Any]:
    state = record.state
    rows, columns = state["_shape"] if "_shape" in state else state["shape"]
    entries, indices, starts = (_plain(state[key]) for key in ("data", "indices", "indptr"))
    if not 0 < rows * columns <= MAX_BYTES // entries.itemsize:
        raise ValueError(f"its shape is ({rows}, {columns})")
    make = sparse.csc_matrix if isinstance(record, _Csc) else sparse.csr_matrix
    matrix = make((entries, indices, starts), shape=(rows, columns))
    matrix.check_format(full_check=True)  # toarray() trusts the indices
    return matrix.toarray()
