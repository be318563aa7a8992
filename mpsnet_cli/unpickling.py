"""Pickles from outside, read without running anything that is in them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from mpsnet_cli.errors import MpsnetError

# The C unpickler reserves memory for whatever memo index a file names, so that a dozen bytes can
# take all there is, and it cannot be told to stop after an object; the Python one keeps its memo in
# a dict. typeshed does not know the inside of it.
PythonUnpickler: Any = pickle._Unpickler


class Record:
    """Something that a pickle wanted built: its arguments and its state, and no behaviour."""

    __slots__ = ("args", "state")

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Record:
        record = object.__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class RecordUnpickler(PythonUnpickler):
    """Builds records of the classes in `allowed`, by their dotted names, and nothing else.

    Where a pickle asks for anything else, what `refuse` makes of its name is raised.
    """

    def __init__(
        self,
        file: BinaryIO,
        allowed: Mapping[str, type[Record]],
        refuse: Callable[[str], MpsnetError],
        *,
        encoding: str = "ASCII",
    ) -> None:
        super().__init__(file, encoding=encoding)
        self._allowed, self._refuse = allowed, refuse

    def find_class(self, module: str, name: str) -> type[Record]:
        wanted = f"{module}.{name}"
        if wanted not in self._allowed:
            raise self._refuse(wanted)
        return self._allowed[wanted]
