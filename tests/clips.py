"""Small clips for the tests, made on the spot. Every frame shows its own number as a bar code."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 8  # a frame shows its number modulo 256, one bit per column, highest bit first
SAMPLE_RATE = 48_000  # Hz
CLICK = 0.02  # seconds that a click lasts


def picture(number: int, size: tuple[int, int] = (64, 48)) -> NDArray[np.uint8]:
    """Draw `number` as white and black columns: (height, width, 3) RGB."""
    width, height = size
    columns = np.arange(width) * BITS // width
    bits = number % 2**BITS >> (BITS - 1 - columns) & 1
    image = np.empty((height, width, 3), np.uint8)
    image[:] = (bits * 255)[None, :, None]
    return image


def number(image: NDArray[np.uint8]) -> int:
    """Read back the number of a decoded `picture`, whatever its size."""
    bits = [column.mean() > 127 for column in np.array_split(image, BITS, axis=1)]
    return sum(int(bit) << place for place, bit in enumerate(reversed(bits)))


def make_clip(
    path: Path,
    *,
    frames: int = 10,
    size: tuple[int, int] = (64, 48),
    fps: Fraction = Fraction(25),
    times: Sequence[float] | None = None,
    pictures: Sequence[NDArray[np.uint8]] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    colourspace: str = "itu601",
    full_range: bool = False,
    options: dict[str, str] | None = None,
    pixel_aspect: Fraction = Fraction(1),
    rotation: int = 0,
    audio: str | None = None,
    audio_start: float = 0.0,
    clicks: Sequence[float] = (),
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a clip of numbered frames (or of `pictures`), in the container that `path` names.

    `times` (seconds) makes the frame rate variable; `rotation` is the display rotation in degrees
    counter-clockwise; `audio` names an audio codec, silent but for `clicks` (seconds).
    """
    pictures = pictures or [picture(k, size) for k in range(frames)]
    tick = 1 / fps if times is None else Fraction(1, 90_000)
    with av.open(str(path), "w", options=container_options or {}) as container:
        video = container.add_stream(codec, rate=fps, options=options or {})
        video.width, video.height, video.pix_fmt = size[0], size[1], pix_fmt
        video.time_base = video.codec_context.time_base = tick
        video.codec_context.sample_aspect_ratio = pixel_aspect
        video.color_range = 2 if full_range else 1
        video.colorspace = {"itu709": 1, "itu601": 6}[colourspace]
        if rotation:
            video.set_display_rotation(rotation)
        seconds = float(len(pictures) / fps) if times is None else times[-1] + float(1 / fps)
        packets = sound_packets(container, audio, audio_start, seconds, clicks) if audio else []
        for k, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(
                format=pix_fmt,
                dst_colorspace=colourspace,
                dst_color_range="JPEG" if full_range else "MPEG",
            )
            frame.time_base = tick
            frame.pts = k if times is None else round(times[k] / tick)
            packets += video.encode(frame)
        packets += video.encode()
        container.mux(sorted(packets, key=lambda packet: packet.dts * packet.time_base))
    return path


def sound_packets(
    container: av.container.OutputContainer,
    codec: str,
    start: float,
    seconds: float,
    clicks: Sequence[float],
) -> list[av.Packet]:
    """Add a track of sound to a clip, and return what is to be muxed."""
    stream = container.add_stream(codec, rate=SAMPLE_RATE, layout="mono")
    sound = click_track(seconds, clicks)[round(start * SAMPLE_RATE) :]
    frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
    frame.sample_rate, frame.time_base = SAMPLE_RATE, Fraction(1, SAMPLE_RATE)
    frame.pts = round(start * SAMPLE_RATE)
    return [*stream.encode(frame), *stream.encode()]


def click_track(seconds: float, clicks: Sequence[float]) -> NDArray[np.int16]:
    """Make mono sound, silent but for a 1 kHz burst at each of `clicks`."""
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    on = np.zeros(len(time), bool)
    for click in clicks:
        on |= (time >= click) & (time < click + CLICK)
    return (on * np.sin(2 * np.pi * 1000 * time) * 20_000).astype(np.int16)


def make_sound(path: Path, seconds: float = 1.0) -> Path:
    """Write a .wav file: a clip with sound and no picture."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(click_track(seconds, [seconds / 2]).tobytes())
    return path


def truncate(path: Path, fraction: float) -> Path:
    """Cut the file after `fraction` of its bytes."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path
