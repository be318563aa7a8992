"""What is drawn by chance: nested tuples of numbers and arrays, and the tensors of many of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

# A number or an array where a record is drawn; where n are stacked a float32 tensor (n, …).
Value: TypeAlias = Any
Record = TypeVar("Record", bound=tuple[Any, ...])


def stack(records: Sequence[Record], device: torch.device) -> Record:
    """Stack records of the same shape on a device; all of it travels as one array."""
    leaves = [[*_leaves(record)] for record in records]
    table = np.array([np.concatenate(row) for row in leaves], np.float32)
    widths = [leaf.size for leaf in leaves[0]]
    columns = iter(torch.from_numpy(table).to(device).split(widths, dim=1))

    def like(record: Value) -> Value:
        if isinstance(record, tuple):
            return type(record)(*map(like, record))
        return next(columns).view(len(records), *np.shape(record))

    return like(records[0])


def _leaves(record: Value) -> Iterator[NDArray[Any]]:
    if isinstance(record, tuple):
        for value in record:
            yield from _leaves(value)
    else:
        yield np.ravel(record)
