from __future__ import annotations

import codecs
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from mpsnet_cli.body import readers
from mpsnet_cli.body.readers import read_arrays
from mpsnet_cli.errors import BodyError

VALUES = np.arange(24.0).reshape(2, 3, 4)


def read(content: Any, protocol: int = 2) -> np.ndarray:
    """Read the entry `x` of a pickle of `content`, or of the bytes of one."""
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol)
    return read_arrays(data, ["x"], name="SMPL.pkl")["x"]


class Python2Pickler(pickle._Pickler):
    """Writes bytes and text as Python 2 wrote its strings."""

    def save_string(self, value: bytes | str) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        if self.proto == 0:
            self.write(b"S" + repr(raw)[1:].encode() + b"\n")
        else:
            self.write(b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch = {**pickle._Pickler.dispatch, bytes: save_string, str: save_string}  # noqa: RUF012


def python2_pickle(content: Any, protocol: int) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol).dump(content)
    return stream.getvalue().replace(b"numpy._core", b"numpy.core").replace(b"e._csc", b"e.csc")


@pytest.fixture
def chumpy(monkeypatch: pytest.MonkeyPatch) -> tuple[type, type]:
    """chumpy's Ch and Select, as far as pickling goes."""
    classes = []
    for module, name in (("chumpy.ch", "Ch"), ("chumpy.reordering", "Select")):
        home = types.ModuleType(module)
        made = type(name, (), {"__module__": module})
        setattr(home, name, made)
        monkeypatch.setitem(sys.modules, module, home)
        classes.append(made)
    monkeypatch.setitem(sys.modules, "chumpy", types.ModuleType("chumpy"))
    return classes[0], classes[1]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        VALUES,
        np.asfortranarray(VALUES.astype(np.float32)),
        VALUES.astype(">f8"),
        VALUES.astype(np.uint32)[:, ::2],
        np.arange(5, dtype=np.int64),
        VALUES > 3,
    ],
    ids=["c", "fortran", "big-endian", "strided", "integers", "flags"],
)
def test_arrays_of_every_protocol(array: np.ndarray, protocol: int) -> None:
    found = read({"x": array, "J": None, "nested": [{"a": (array, 1.5)}]}, protocol)
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_arrays_of_python_2(protocol: int) -> None:
    raw = np.frombuffer(bytes(range(256)), np.float32).copy()  # every byte there is
    content = {"bs_type": "lrotmin", "x": raw.reshape(8, 8)}
    np.testing.assert_array_equal(read(python2_pickle(content, protocol)), raw.reshape(8, 8))


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", [sparse.csc_matrix, sparse.csr_matrix])
def test_sparse_matrices_come_dense(kind: type, protocol: int) -> None:
    dense = np.where(np.random.default_rng(0).random((24, 50)) < 0.1, 0.25, 0.0)
    np.testing.assert_array_equal(read({"x": kind(dense)}, protocol), dense)
    np.testing.assert_array_equal(read(python2_pickle({"x": kind(dense)}, 2)), dense)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_chumpy_objects_come_as_their_value(chumpy: tuple[type, type], protocol: int) -> None:
    ch, view = chumpy[0](), chumpy[1]()
    ch.__dict__.update(x=VALUES, _dirty_vars={"x"}, _itr=3, dterms=["x"])
    view.__dict__.update(a=ch, idxs=np.arange(1, 24, 2), preferred_shape=(2, 3, 2))
    np.testing.assert_array_equal(read({"x": ch}, protocol), VALUES)
    np.testing.assert_array_equal(read({"x": view}, protocol), VALUES[..., 1::2])
    assert "chumpy" in pickle.dumps(ch, protocol).decode("latin1")


class Call:
    """Pickles as the call of a function, which is how pickles run code."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


HOSTILE: dict[str, Callable[[str, str], Any]] = {
    "a shell": lambda _, folder: Call(os.system, f"mkdir {folder}"),
    "a function": lambda _, folder: Call(os.mkdir, folder),
    "eval": lambda code, _: Call(eval, code),
    "exec": lambda code, _: Call(exec, code),
    "deep inside": lambda code, _: {"x": VALUES, "deep": [({"down": Call(eval, code)},)]},
    "in an array": lambda code, _: np.array([Call(eval, code)], dtype=object),
    "in an allowed call": lambda code, _: Call(
        codecs.encode, Call(str, Call(eval, code)), "latin1"
    ),
    "in a matrix": lambda code, _: altered(sparse.csc_matrix(np.eye(2)), more=Call(eval, code)),
}


def altered(thing: Any, **attributes: Any) -> Any:
    thing.__dict__.update(attributes)
    return thing


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("case", HOSTILE)
def test_nothing_in_a_pickle_runs(case: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    content = HOSTILE[case](f"__import__('os').mkdir({str(marker)!r})", str(marker))
    data = pickle.dumps({"x": content}, protocol)
    with pytest.raises(BodyError, match=r"asks to run (posix|builtins|__builtin__)\.\w+, which"):
        read(data)
    assert not marker.exists()
    pickle.loads(data)
    assert marker.exists()  # so the pickle does bite


@pytest.mark.parametrize(
    "name",
    [
        "posix system", "builtins getattr", "__builtin__ eval", "numpy load", "numpy ndarray.dump",
        "numpy.core.multiarray _reconstruct.__class__", "importlib import_module",
        "chumpy.ch.sys exit", "chumpy.ch MatVecMult", "mpsnet_cli.body.readers _Instance",
    ],
)  # fmt: skip
def test_other_names_are_refused_by_name(name: str) -> None:
    module, attribute = name.split(" ")
    text = [struct.pack("<BB", 0x8C, len(part)) + part.encode() for part in (module, attribute)]
    for data in (f"c{module}\n{attribute}\n.".encode(), b"\x80\x04" + b"".join(text) + b"\x93."):
        with pytest.raises(BodyError, match=rf"^SMPL.pkl asks to run {module}\.{attribute}, which"):
            read(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        pickle.dumps({"x": VALUES})[:-40],
        b"Pa persistent id\n.",
        b"\x82\x01.",  # an extension code
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo index of two thousand million
        b"\x80\x04\x96" + struct.pack("<Q", 1 << 62) + b".",  # an endless bytearray
        b"cnumpy\nndarray\n}b.",  # state for a class
        b"cnumpy\nndarray\nN}\x8c\x04args\x8c\x01as\x86b.",  # attributes for a class
        b"(ccopy_reg\n_reconstructor\nccopy_reg\n_reconstructor\ntR.",
        pickle.dumps([VALUES]),
        pickle.dumps({"y": VALUES}),
    ],
)
def test_broken_pickles_are_body_errors(data: bytes) -> None:
    with pytest.raises(BodyError, match=r"^SMPL.pkl "):
        read(data)
    np.testing.assert_array_equal(read({"x": VALUES}), VALUES)  # nothing stuck to the reader


def test_broken_arrays_are_body_errors(chumpy: tuple[type, type]) -> None:
    matrix = sparse.csc_matrix(np.eye(4))
    outside = altered(matrix.copy(), indices=np.array([0, 1, 2, 400000000], np.int32))
    vast = altered(matrix.copy(), _shape=(1 << 40, 1 << 40))
    loop = chumpy[0]()
    loop.x = loop
    deep = chumpy[1]()
    deep.__dict__.update(a=deep, idxs=np.arange(2))
    beyond = chumpy[1]()
    beyond.__dict__.update(a=VALUES, idxs=np.array([400000000]))
    longer = python2_pickle({"x": VALUES}, 2).replace(
        b"K\x02K\x03K\x04\x87", b"K\x02K\x03K\x09\x87"
    )
    for x in (
        None, "text", 3.0, [1, 2], {"x": 1}, np.float64(3), outside, vast, loop, deep, beyond,
        np.array(["a"]), np.zeros(2, "V8"), np.array([None]), np.zeros(2, "f4,O"), longer,
    ):  # fmt: skip
        with pytest.raises(BodyError, match=r"x is not an array of numbers|asks to run"):
            read(x if isinstance(x, bytes) else {"x": x})


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def test_npz_arrays_are_read_and_objects_refused(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    bomb = np.array([Call(eval, f"open({str(marker)!r}, 'w')")], dtype=object)
    np.testing.assert_array_equal(read(npz(x=VALUES, other=bomb)), VALUES)
    with pytest.raises(BodyError, match="pickled Python objects"):
        read(npz(x=bomb))
    assert not marker.exists()
    with pytest.raises(BodyError, match="lacks x"):
        read(npz(y=VALUES))


def test_broken_npz_are_body_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = npz(x=VALUES)
    middle = len(whole) // 3
    header = io.BytesIO()
    with zipfile.ZipFile(header, "w") as archive:  # says 8 TB, holds none
        shape = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
        archive.writestr(
            "x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(shape) + 1) + shape + b"\n"
        )
    for data in (
        whole[:-30],
        whole[:middle] + bytes(20) + whole[middle + 20 :],
        b"PK nonsense",
        header.getvalue(),
    ):
        with pytest.raises(BodyError, match=r"^SMPL\.pkl is damaged"):
            read(data)
    monkeypatch.setattr(readers, "MAX_BYTES", 1 << 20)
    with pytest.raises(BodyError, match="x is larger than 1 MiB"):
        read(npz(x=np.zeros(1 << 18)))  # a few kB of file
