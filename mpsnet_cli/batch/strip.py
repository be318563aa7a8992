"""A result at a glance: a few of its frames side by side, kept beside its manifest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.batch.outcome import Outcome
from mpsnet_cli.errors import InputError
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import probe, read_frames

STRIP = "strip.jpg"
FRAMES = 4
WIDTH, HEIGHT = 256, 144  # px that a frame takes at most
GAP = 4  # px between frames
FILM = 24  # grey level of the gaps
QUALITY = 72  # of the JPEG: 10 to 25 kB in all
LARGEST = 1 << 20  # bytes; a file that holds more was not made here


class Strip(NamedTuple):
    """A picture of frames, from left to right."""

    jpeg: bytes
    width: int  # px
    height: int


def keep_strip(outcome: Outcome) -> Strip | None:
    """Return a result's strip: the one beside its manifest, or one made and put there now.

    It shows the overlay, or the clip where there is none. None if neither decodes, and for a clip
    without a result: what ended its worker must not end whoever reports it.
    """
    if outcome.folder is None or outcome.manifest is None:
        return None
    path = outcome.folder / STRIP
    if (strip := _read(path)) or not (frames := _frames(outcome)):
        return strip
    strip = _film(frames)
    with suppress(OSError):  # one that cannot be kept is made again next time
        part = path.with_name(f".{STRIP}.part")
        part.write_bytes(strip.jpeg)
        part.replace(path)
    return strip


def _read(path: Path) -> Strip | None:
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    content = path.read_bytes()
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    return None if image is None else Strip(content, *image.shape[1::-1])


def _frames(outcome: Outcome) -> list[NDArray[np.uint8]]:
    """Read frames spread evenly over the overlay, or over what was worked on of the clip."""
    assert outcome.folder is not None
    assert outcome.manifest is not None
    with suppress(InputError):
        if outcome.manifest["overlay"]:
            return list(_spread(outcome.folder / Path(outcome.manifest["overlay"]).name))
        asked = outcome.manifest["arguments"]
        return list(_spread(outcome.clip, start=asked["start"], end=asked["end"]))
    return []


def _spread(
    path: Path, *, start: float | None = None, end: float | None = None
) -> Iterator[NDArray[np.uint8]]:
    video = probe(path)
    there = video.frame_range(start, end)[: len(video.times)]
    middles = (np.arange(FRAMES) + 0.5) / FRAMES * len(there)
    for index in sorted({there[int(middle)] for middle in middles}):
        second = float(video.times[index] - video.times[0])
        with closing(read_frames(video, start=second, report=Reporter())) as frames:
            if frame := next(frames, None):
                yield _fitted(frame.image)


def _fitted(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = min(WIDTH / width, HEIGHT / height, 1)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _film(frames: list[NDArray[np.uint8]]) -> Strip:
    """Put the frames, all of one size, side by side."""
    gap = np.full((len(frames[0]), GAP, 3), FILM, np.uint8)
    film = np.hstack([part for frame in frames for part in (gap, frame)][1:])
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(film, cv2.COLOR_RGB2BGR), options)
    return Strip(encoded.tobytes(), film.shape[1], film.shape[0])
