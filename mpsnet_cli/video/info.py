"""What a video file holds, and when its frames are shown."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from numpy.typing import NDArray

from mpsnet_cli.errors import InputError

DEFAULT_FPS = Fraction(25)  # Hz, for a clip that tells nothing usable
MIN_FPS, MAX_FPS = Fraction(1, 100), Fraction(1000)  # Hz, a rate outside these is absurd
MAX_DROPPED = 0.1  # part of a constant rate's frames that may be missing; more is a variable rate
FPS_SLACK = 2 * MAX_DROPPED  # relative error of a declared rate that is not worth a warning
MOMENT = 1e-4  # s, by which a frame comes after another one of the same timestamp
JITTER = 1e-3  # s, deviation from an even grid that is rounding, not a variable rate
HEADER_SLACK = 0.5  # s, by which a header may overstate the length of an undamaged file
MAX_CLAIM = 24 * 3600  # s, a header that claims more is not believed
HDR = {16: "PQ", 18: "HLG"}  # transfer functions, as ITU-T H.273 numbers them
MAX_PIXELS = 8192 * 4320  # 8K; a larger frame is a mistake or an attack

# Playlists, image sequences and devices are left out: they lead to other files and hosts.
CONTAINERS = (
    "mov,mp4,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,mxf,nut,ivf,gif,apng,"
    "h264,hevc,obu,m4v,mjpeg,dv,rm,wtv,yuv4mpegpipe"
)


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` found in a video file.

    `frame_count` is what the file promises. It exceeds `len(times)` where the file was cut off,
    and it exceeds the number of frames that decode where the file is damaged.
    """

    path: Path
    width: int  # px as displayed: upright, with square pixels
    height: int
    fps: Fraction  # Hz, from the times where the metadata contradicts them; the mean if `is_vfr`
    frame_count: int
    rotation: int  # degrees counter-clockwise that bring a stored picture upright: 0, 90, 180, 270
    has_audio: bool
    is_vfr: bool  # variable frame rate: the times do not lie on an even grid
    duration: float  # s, from the first frame's start to the end of the last one in `times`
    mirrored: bool = False  # a stored picture is flipped, left for right, before it is rotated
    is_stamped: bool = True  # False: frames carry no usable times; the n-th is shown at `times[n]`
    times: NDArray[np.float64] = field(  # (n,) s, ascending, as stored: need not start at 0
        default_factory=lambda: np.zeros(1), repr=False, compare=False
    )
    warnings: tuple[str, ...] = ()  # sentences for the user, which `read_frames` passes on

    def frame_range(self, start: float | None = None, end: float | None = None) -> range:
        """Return the indices of the frames shown from `start` up to, not including, `end`.

        Both are seconds since the first frame. Frames that are promised but missing are taken to
        follow the last one at `fps`, so the length is what an undamaged file would give.

        Raises:
            InputError: the range is empty, or starts after the end of the video.
        """
        start = 0.0 if start is None else start
        if start < 0 or (end is not None and end <= start):
            raise InputError(
                f"There are no frames from {start:g} s to {end} s: "
                "the start must be 0 or more, and the end greater than it."
            )
        since = self.times - self.times[0] + JITTER / 1000  # a frame on a limit is not before it
        first = int(np.searchsorted(since, start))
        if first == len(since):
            raise InputError(
                f"The start, {start:g} s, is past the end of {self.path} "
                f"({self.duration:.2f} s): give a smaller one."
            )
        if end is None:
            return range(first, self.frame_count)
        stop = int(np.searchsorted(since, end))
        if stop == len(since):
            stop += math.ceil((end - since[-1]) * self.fps) - 1
        return range(first, min(stop, self.frame_count))


def probe(path: Path) -> VideoInfo:
    """Find out what a video file holds, from all timestamps and the first decoded frame.

    Raises:
        InputError: the file cannot be read, is no video, or no frame of it decodes.
    """
    path = Path(path)
    with open_container(path) as container:
        stream = picture_stream(path, container)
        scan = _scan(path, container, stream)
        clock = _clock(path, stream, scan.stamps)
        rotation, mirrored = _orientation(scan.picture)
        width, height = _square_pixels(stream)
        if rotation in (90, 270):
            width, height = height, width
        return VideoInfo(
            path=path,
            width=width,
            height=height,
            fps=clock.fps,
            frame_count=len(clock.times) + _missing(container, stream, scan, clock.fps),
            rotation=rotation,
            mirrored=mirrored,
            has_audio=bool(container.streams.audio),
            is_vfr=clock.is_vfr,
            duration=float(clock.times[-1] - clock.times[0]) + float(1 / clock.fps),
            is_stamped=clock.is_stamped,
            times=clock.times,
            warnings=(*clock.warnings, *_hdr_warning(path, scan.picture)),
        )


def open_container(path: Path) -> InputContainer:
    """Open a local media file for reading, and nothing else that its name or content may mean.

    Raises:
        InputError: there is no such file, or it is no media file that can be read.
    """
    try:
        if not path.exists():
            raise InputError(f"{path} does not exist: check the name.")
        if not path.is_file():
            raise InputError(f"{path} is not a file: give the name of one video.")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty (0 bytes): copy or download it again.")
        return av.open(
            f"file:{path}",
            options={"protocol_whitelist": "file", "format_whitelist": CONTAINERS},
        )
    except PermissionError as error:
        raise InputError(f"{path} may not be read by this user: change its permissions.") from error
    except av.FFmpegError as error:
        raise _not_a_video(path) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): copy it elsewhere.") from error


def _not_a_video(path: Path) -> InputError:
    with path.open("rb") as file:
        is_mp4 = file.read(8)[4:] == b"ftyp"
    if is_mp4:
        return InputError(
            f"{path} is an mp4 that was cut off before its index (the moov box), so nothing in it "
            "can be found: copy or download it again."
        )
    return InputError(f"{path} is not a video file: give an mp4, mov, mkv, avi, webm or the like.")


def picture_stream(path: Path, container: InputContainer) -> av.VideoStream:
    """Return the stream of the moving picture, or raise InputError if there is none to use."""
    streams = [
        stream
        for stream in container.streams.video
        if not stream.disposition & Disposition.attached_pic  # the cover of a song
    ]
    if not streams and container.streams.audio:
        raise InputError(f"{path} has sound but no picture: give a video.")
    if not streams:
        raise _not_a_video(path)
    if not streams[0].codec_context:
        raise InputError(f"The codec of {path} is unknown: convert it to an ordinary mp4.")
    width, height = _square_pixels(streams[0])
    if width * height > MAX_PIXELS:
        raise InputError(
            f"The frames of {path} are {width}x{height} px, which is more than 8K: "
            "scale the video down first."
        )
    return streams[0]


def _square_pixels(stream: av.VideoStream) -> tuple[int, int]:
    """Return the stored width and height, the width scaled so that pixels are square."""
    return max(1, round(stream.width * (stream.sample_aspect_ratio or 1))), stream.height


def _orientation(picture: av.VideoFrame) -> tuple[int, bool]:
    """Return `rotation` and `mirrored` of a stored picture.

    What brings it upright turns it by multiples of 90°, after a flip if its determinant is
    negative: selfie cameras write that, and an angle alone cannot say it.
    """
    angle, mirrored = float(picture.rotation), False
    data: Any = picture.side_data.get("DISPLAYMATRIX")
    if data:
        (a, b, _), (c, d, _), _ = np.frombuffer(data, np.int32).reshape(3, 3).astype(float)
        if mirrored := bool(a * d < b * c):
            angle = -math.degrees(math.atan2(-b, -a))
    return round(angle / 90) * 90 % 360, mirrored


def _hdr_warning(path: Path, picture: av.VideoFrame) -> tuple[str, ...]:
    kind = HDR.get(int(picture.color_trc or 0))
    if kind is None:
        return ()
    return (
        f"{path} is HDR ({kind}), whose colours are not converted: they are paler than they should "
        "be. If people are missed, convert it to SDR first.",
    )


class _Scan(NamedTuple):
    """What demuxing the whole file, and decoding no more than one frame, tells."""

    stamps: list[int | None]  # of the shown frames, in decoding order, in ticks
    picture: av.VideoFrame  # the first that decodes
    end: float  # s, of the last packet of any stream


def _scan(path: Path, container: InputContainer, stream: av.VideoStream) -> _Scan:
    stamps: list[int | None] = []
    pictures: list[av.VideoFrame] = []
    end = 0.0
    for packet in read_packets(container):
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index == stream.index:
            pictures = pictures or decode_packet(stream, packet)
            if _is_shown(packet, stream):
                stamps.append(packet.pts)
    pictures = pictures or decode_packet(stream, None)
    if not pictures or not stamps:
        raise InputError(
            f"No frame of {path} can be decoded: it is damaged or encrypted; "
            "copy or download it again."
        )
    return _Scan(stamps, pictures[0], end)


def _is_shown(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Tell whether a packet holds a frame to show, and not one that others only refer to.

    Edit lists hide frames, and VP8 has some of its own, of which the first byte tells (RFC 6386,
    §9.1: show_frame).
    """
    if stream.codec_context.codec.canonical_name == "vp8" and not memoryview(packet)[0] & 0x10:
        return False
    return not packet.is_discard


def read_packets(container: InputContainer, *streams: av.VideoStream) -> Iterator[av.Packet]:
    """Yield the packets of some streams, or of all, up to where the file ends or breaks off."""
    try:
        for packet in container.demux(*streams):
            if packet.size:  # neither PyAV's flush packets nor AVI's empty "frame dropped" ones
                yield packet
    except av.FFmpegError:
        return  # what is missing shows in the count


def decode_packet(stream: av.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
    """Return the frames that a packet completes, or for None the rest; none if it is damaged."""
    try:
        return stream.decode(packet)
    except av.FFmpegError:
        return []  # what is missing shows in the count


class _Clock(NamedTuple):
    fps: Fraction
    is_vfr: bool
    is_stamped: bool
    times: NDArray[np.float64]
    warnings: tuple[str, ...] = ()


def _clock(path: Path, stream: av.VideoStream, stamps: list[int | None]) -> _Clock:
    """Settle times and frame rate: by the timestamps, else by the metadata, else at 25 fps."""
    count, tick = len(stamps), stream.time_base or Fraction(1)
    known = sorted(stamp for stamp in stamps if stamp is not None)
    span = (known[-1] - known[0]) * tick if len(known) == count else Fraction(0)
    mean = (count - 1) / span if span else Fraction(0)
    declared = [rate for rate in (stream.average_rate, stream.base_rate) if _is_sane(rate)]
    fallback = declared[0] if declared else DEFAULT_FPS
    if not _is_sane(mean) and not len(known) == count == 1:
        warning = f"{path} has no usable timestamps: {float(fallback):g} fps are assumed."
        return _Clock(fallback, False, False, np.arange(count) / float(fallback), (warning,))

    times = np.array(known, np.float64) * tick.numerator / tick.denominator
    if (np.diff(times) == 0).any():
        moments = MOMENT * np.arange(count)
        later = np.maximum.accumulate(times - moments) + moments
        times = np.where(later - times > MOMENT / 2, later, times)  # the others stay exact
    rates = [*declared, mean.limit_denominator(1001)] if mean else [fallback]
    even = [rate for rate in rates if _is_even(times, rate, float(tick))]
    fps = even[0] if even else rates[-1]
    # AVI stores no presentation times: if the decoder reorders frames, theirs may be made up.
    is_avi = stream.container.format.name == "avi"
    is_stamped = not (is_avi and stream.codec_context.has_b_frames and known == stamps)
    claim = stream.average_rate or stream.base_rate
    if _is_sane(claim) and (not even or abs(claim / fps - 1) < FPS_SLACK):
        return _Clock(fps, not even, is_stamped, times)
    warning = f"{path} claims a frame rate of {claim or 0} Hz: {float(fps):g} is used instead."
    return _Clock(fps, not even, is_stamped, times, (warning,))


def _is_sane(rate: Fraction | None) -> TypeGuard[Fraction]:
    return rate is not None and MIN_FPS <= rate <= MAX_FPS


def _is_even(times: NDArray[np.float64], rate: Fraction, tick: float) -> bool:
    """Tell whether ascending times (s) lie on a grid of `rate`, few of its places being empty.

    They may be off by the rounding to `tick` (s), which in AVI is a whole frame and never off.
    """
    places = (times - times[0]) * float(rate)
    nearest = np.round(places)
    slack = max(JITTER * float(rate), min(tick * float(rate), 0.25))
    return bool(
        np.abs(places - nearest).max() <= slack
        and (np.diff(nearest) > 0).all()
        and nearest[-1] + 1 <= len(times) * (1 + MAX_DROPPED)
    )


def _missing(container: InputContainer, stream: av.VideoStream, scan: _Scan, fps: Fraction) -> int:
    """Count the frames that the file promises beyond those that can be read."""
    readable = len(scan.stamps)
    indexed = sum(entry.size > 0 and not entry.is_discard for entry in stream.index_entries)
    if indexed > readable:
        return indexed - readable
    claimed = 0.0  # by headers that are known to hold a length, though not always the exact one
    if container.format.name == "avi":
        claimed = stream.frames - readable
    elif container.format.name in ("matroska,webm", "flv"):
        claimed = ((container.duration or 0) / av.time_base - scan.end) * float(fps)
    return round(claimed) if HEADER_SLACK * fps < claimed < MAX_CLAIM * fps else 0
