from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip

from mpsnet_cli.errors import InputError
from mpsnet_cli.npz import read_npz
from mpsnet_cli.synth.shards import read_shard
from mpsnet_cli.tracking import read_boxes
from mpsnet_cli.video import probe


def header(shape: tuple[int, ...]) -> bytes:
    """An .npy that claims a shape, and holds nothing."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def encrypted(data: bytes) -> bytes:
    """The same archive with the flag of encryption on its first member, in both places."""
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    whole = bytearray(data)
    for place in (local + 6, central + 8):
        (flags,) = struct.unpack_from("<H", whole, place)
        struct.pack_into("<H", whole, place, flags | 1)
    return bytes(whole)


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


GOOD = archive({"frame_ids.npy": header((0,))})
HOSTILE: dict[str, Callable[[], bytes]] = {
    "a member that is no array": lambda: archive({"frame_ids": b"hello", "track_ids": b""}),
    "an array larger than any memory": lambda: archive({"frame_ids.npy": header((10**11, 2048))}),
    "encrypted": lambda: encrypted(archive({"frame_ids.npy": header((3,))})),
    "of an unknown compression": lambda: GOOD.replace(
        struct.pack("<H", zipfile.ZIP_STORED) + GOOD[10:14], struct.pack("<H", 99) + GOOD[10:14]
    ),
    "of damaged LZMA": lambda: archive(
        {"frame_ids.npy": header((3,)) * 50}, zipfile.ZIP_LZMA
    ).replace(b"\x5d\x00", b"\xff\xff"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_whatever_an_archive_holds_it_is_told_of_in_a_sentence(tmp_path: Path, what: str) -> None:
    path = tmp_path / "odd.npz"
    path.write_bytes(HOSTILE[what]())
    video = probe(make_clip(tmp_path / "clip.mp4"))
    for read in (lambda: read_npz(path, what="file"), lambda: read_shard(path),
                 lambda: read_boxes(path, video)):  # fmt: skip
        with pytest.raises(InputError, match=r"odd\.npz is not"):
            read()
