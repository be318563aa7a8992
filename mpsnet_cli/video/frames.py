"""The frames of a video, decoded ahead of their reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain

import av
import cv2
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from numpy.typing import NDArray

from mpsnet_cli.progress import Reporter
from mpsnet_cli.video.info import (
    VideoInfo,
    decode_packet,
    open_container,
    picture_stream,
    read_packets,
)

PREFETCH = 4  # frames decoded ahead of the reader
SD_HEIGHT = 576  # px, up to which video of unstated colour matrix is BT.601; above, BT.709
UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
UPRIGHT = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}


@dataclass(frozen=True)
class Frame:
    """One decoded frame."""

    index: int  # its place among the frames of the file, from 0; a lost frame leaves a gap
    time: float  # s, presentation time as stored: the first frame's need not be 0
    image: NDArray[np.uint8]  # (height, width, 3) RGB, upright, contiguous


def read_frames(
    video: VideoInfo,
    *,
    start: float | None = None,
    end: float | None = None,
    report: Reporter,
) -> Generator[Frame]:
    """Yield the frames from `start` to `end` (seconds since the first frame), decoding ahead.

    Frames that do not decode are left out, and `report.lose` is told how many: those by which the
    yielded ones fall short of `len(video.frame_range(start, end))`.

    Raises:
        InputError: the range selects nothing, or the file can no longer be read.
    """
    wanted = video.frame_range(start, end)
    for sentence in video.warnings:
        report.warn(sentence)
    count = 0
    for frame in _ahead(_frames(video, wanted, report)):
        yield frame
        count += 1
    if count < len(wanted):
        report.lose(
            f"{len(wanted) - count} of {len(wanted)} frames of {video.path} are damaged or "
            "missing: the results cover the rest."
        )


def _frames(video: VideoInfo, wanted: range, report: Reporter) -> Generator[Frame]:
    converter = VideoReformatter()  # one for all frames: setting it up costs as much as one frame
    size = None
    for index, time, picture in _pictures_from(video, wanted.start):
        if index >= wanted.stop:
            return
        if size not in (None, (picture.width, picture.height)):
            report.warn(
                f"The frame size of {video.path} changes from frame {index} on: all frames are "
                f"scaled to {video.width}x{video.height} px."
            )
        size = picture.width, picture.height
        if index >= wanted.start:
            yield Frame(index, time, _rgb(video, picture, converter))


def _pictures_from(video: VideoInfo, first: int) -> Iterator[tuple[int, float, av.VideoFrame]]:
    """Decode from `first` or any frame before it, by seeking if that leads there."""
    if first and video.is_stamped:
        pictures = _pictures(video, seek=float(video.times[first]))
        head = next(pictures, None)
        if head and head[0] <= first:
            return chain([head], pictures)
    return _pictures(video)


def _pictures(
    video: VideoInfo, seek: float | None = None
) -> Generator[tuple[int, float, av.VideoFrame]]:
    """Decode from the beginning or from `seek` (s): indices, times (s) and pictures."""
    with open_container(video.path) as container:
        stream = picture_stream(video.path, container)
        stream.thread_type = "AUTO"
        tick = stream.time_base or Fraction(1)  # s
        if seek is not None:
            with suppress(av.FFmpegError):  # then it just starts at the beginning
                container.seek(round(seek / tick), stream=stream)
        # A packet known to be cut short would only make a threaded decoder drop its neighbours.
        packets = (packet for packet in read_packets(container, stream) if not packet.is_corrupt)
        index = -1
        for packet in chain(packets, [None]):
            for picture in decode_packet(stream, packet):
                index += 1
                if video.is_stamped and picture.pts is not None:
                    time = picture.pts * tick.numerator / tick.denominator
                    index = max(index, int(np.searchsorted(video.times, time)))
                yield index, float(video.times[min(index, len(video.times) - 1)]), picture


def _rgb(
    video: VideoInfo, picture: av.VideoFrame, converter: VideoReformatter
) -> NDArray[np.uint8]:
    """Convert to RGB, scale to square pixels and the size of the first frame, turn upright."""
    size = (video.width, video.height)
    width, height = size[::-1] if video.rotation in (90, 270) else size
    is_hd = picture.height > SD_HEIGHT and not picture.format.is_rgb
    rgb = converter.reformat(
        picture,
        width,
        height,
        "rgb24",
        src_colorspace=(Colorspace.ITU709 if is_hd and picture.colorspace == UNSPECIFIED else None),
        threads=1,
    )
    image: NDArray[np.uint8] = np.asarray(rgb.to_ndarray(), np.uint8)
    if video.mirrored:
        image = np.asarray(cv2.flip(image, 1), np.uint8)
    return cv2.rotate(image, UPRIGHT[video.rotation]) if video.rotation else image


def _ahead(frames: Generator[Frame]) -> Iterator[Frame]:
    """Yield from `frames`, which run up to `PREFETCH` items ahead in a thread of their own."""
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, frames, None) for _ in range(PREFETCH))
        try:
            while (frame := pending.popleft().result()) is not None:
                pending.append(pool.submit(next, frames, None))
                yield frame
        finally:
            for future in pending:
                future.cancel()
            pool.submit(frames.close)
