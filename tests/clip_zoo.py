"""Small clips of every kind that a batch may meet, and what is to become of each.

Sound ones differ in container, codec, pixel format, size, rate, rotation, sound and name; the
others are such clips spoilt. Equal seeds give equal zoos.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from clips import make_clip, sound_packets, truncate

from mpsnet_cli.batch.outcome import Status

SIZES = [(160, 120), (120, 160), (176, 144), (192, 108), (240, 180), (320, 240)]  # px
RATES = [Fraction(8), Fraction(10), Fraction(25, 2), Fraction(15), Fraction(15_000, 1001)]  # Hz
QUICK = {"libx264": {"preset": "ultrafast"},
         "libx265": {"preset": "ultrafast", "x265-params": "log-level=none"},
         "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}}  # fmt: skip

SOUND_ONES: dict[str, dict[str, Any]] = {  # extension, and what `make_clip` is to do with it
    "plain.mp4": {},
    "sound.mp4": {"audio": "aac", "clicks": [0.5]},
    "odd.mkv": {"codec": "ffv1", "size": (161, 123)},
    "odd.mp4": {"pix_fmt": "yuv444p", "size": (173, 129)},
    "rotated.mov": {"rotation": 90, "audio": "pcm_s16le"},
    "upside-down.mp4": {"rotation": 180},
    "rotated.mp4": {"rotation": 270, "audio": "aac"},
    "uneven.mp4": {"uneven": True},
    "uneven.mkv": {"uneven": True, "audio": "libopus"},
    "10-bit.mp4": {"pix_fmt": "yuv420p10le"},
    "10-bit-hevc.mkv": {"codec": "libx265", "pix_fmt": "yuv420p10le"},
    "hevc.mp4": {"codec": "libx265", "audio": "aac"},
    "vp9.webm": {"codec": "libvpx-vp9", "audio": "libopus"},
    "10-bit.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "grey.mkv": {"codec": "ffv1", "pix_fmt": "gray"},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "full_range": True},
    "old.avi": {"codec": "mpeg4", "options": {"bf": "2"}, "audio": "libmp3lame"},
    "stream.ts": {"audio": "aac"},
    "dvd.mpg": {"codec": "mpeg2video", "fps": Fraction(25)},
    "flash.flv": {"codec": "flv"},
    "fragments.mp4": {"container_options": {"movflags": "+frag_keyframe+empty_moov"}},
    "anamorphic.mp4": {"pixel_aspect": Fraction(4, 3)},
    "one-frame.mp4": {"frames": 1},
    "SHOUTED.MP4": {},
    "SHOUTED.MOV": {"audio": "aac"},
    "Shouted.Mkv": {},
}

NAMES = [
    "-rf", "--help", "$(touch owned)", "`touch owned`; touch owned", "<script>alert(1)<",
    "it's \"so\"", "two\nlines", "per%03d", "pipe:0", "concat:a|b", "[x]*,;{y}?!#&=", "ünï 漢字 🕺",
    "e\u0301", "\u202egpm.4pm", " spaces ", "dots...", "CON", "no text \udcff", "\x1b[31mred",
    "long" * 60, "漢字" * 40, "clip.json", "report.html", "overlay", "#1", "~", "%2e%2e",
    "\\..\\up",
]  # fmt: skip


@dataclass(frozen=True)
class Inmate:
    """A clip, and what is to become of it when the whole frame is taken for a person.

    words: of its sentence, if it has one; it names the clip, too
    """

    path: Path
    status: Status = "done"
    words: str = ""


def make_zoo(folder: Path, count: int, *, seed: int, spoilt: float = 0.25) -> list[Inmate]:
    """Write so many clips into a folder and those below it, a part of them `spoilt`."""
    rng = random.Random(seed)
    bad = round(spoilt * count)
    kinds = [list(SPOILT)[k % len(SPOILT)] for k in range(bad)]
    kinds += [list(SOUND_ONES)[k % len(SOUND_ONES)] for k in range(count - bad)]
    rng.shuffle(kinds)
    names = rng.sample(NAMES, len(NAMES))
    places = ["", "a", "b/c", "A twin", "<b>&"]
    zoo = []
    for number, kind in enumerate(kinds):
        stem, extension = kind.rsplit(".", 1)
        # Half of them with a hostile name, as long as there are some; others share theirs.
        name = names.pop() if names and number % 2 else f"{stem}-{number // 9}"
        path = folder / places[number % len(places)] / f"{name}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        while path.exists():
            path = path.with_name(f"{number}-{path.name}")
        zoo.append(_make(path, kind, rng))
    return zoo


def _make(path: Path, kind: str, rng: random.Random) -> Inmate:
    # Encoders do not take every name: it gets its own when it is written.
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        plain = Path(scratch) / f"clip{path.suffix}"
        if kind in SOUND_ONES:
            _film(plain, rng, **SOUND_ONES[kind])
            inmate = Inmate(path)
        else:
            make, status, words = SPOILT[kind]
            make(plain, rng)
            inmate = Inmate(path, status, words)
        plain.rename(path)
    return inmate


def _film(path: Path, rng: random.Random, *, uneven: bool = False, **options: Any) -> Path:
    options.setdefault("fps", rng.choice(RATES))
    options.setdefault("frames", round(rng.uniform(1, 3) * options["fps"]))
    options.setdefault("size", rng.choice(SIZES))
    options.setdefault("codec", "libx264")
    options.setdefault("options", QUICK.get(options["codec"], {}))
    if uneven:
        steps = [rng.uniform(0.5, 2) / float(options["fps"]) for _ in range(options["frames"])]
        options["times"] = np.cumsum(steps).tolist()
    return make_clip(path, **options)


def _noise(path: Path, rng: random.Random, **options: Any) -> Path:
    """Film what does not compress, so that the frames are nearly all of the file."""
    pixels = np.random.default_rng(rng.randrange(2**32))
    pictures = [pixels.integers(0, 256, (96, 128, 3), np.uint8) for _ in range(30)]
    return make_clip(path, pictures=pictures, size=(128, 96), fps=Fraction(10),
                     **{"options": {"g": "5"}, **options})  # fmt: skip


def _empty(path: Path, rng: random.Random) -> None:  # noqa: ARG001
    path.touch()


def _text(path: Path, rng: random.Random) -> None:
    path.write_text("just some text\n" * rng.randrange(1, 200))


def _random_bytes(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(20_000))


def _playlist(path: Path, rng: random.Random) -> None:  # noqa: ARG001
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n/etc/passwd\n#EXT-X-ENDLIST\n")


def _sound_alone(path: Path, rng: random.Random) -> None:
    with av.open(str(path), "w") as container:
        for packet in sound_packets(container, "aac", 0.0, rng.uniform(1, 3), []):
            container.mux(packet)


def _cut_before_index(path: Path, rng: random.Random) -> None:
    truncate(_noise(path, rng), rng.uniform(0.1, 0.9))


def _without_header(path: Path, rng: random.Random) -> None:
    data = _film(path, rng).read_bytes()
    path.write_bytes(rng.randbytes(64) + data[64:])


def _without_content(path: Path, rng: random.Random) -> None:
    data = _film(path, rng).read_bytes()
    start, stop = data.index(b"mdat") + 4, data.index(b"moov") - 4
    path.write_bytes(data[:start] + bytes(stop - start) + data[stop:])


def _unknown_codec(path: Path, rng: random.Random) -> None:
    data = _film(path, rng, codec="mpeg4").read_bytes()
    path.write_bytes(data.replace(b"FMP4", b"ZZZZ"))


def _cut(path: Path, rng: random.Random) -> None:
    options: dict[str, dict[str, Any]] = {
        ".mp4": {"container_options": {"movflags": "+faststart"}},
        ".avi": {"codec": "mpeg4"},
    }
    truncate(_noise(path, rng, **options.get(path.suffix, {})), rng.uniform(0.4, 0.7))


def _holed(path: Path, rng: random.Random) -> None:
    data = bytearray(_noise(path, rng, options={"g": "1", "bf": "0"}).read_bytes())
    middle = rng.randrange(len(data) // 3, len(data) // 2)
    data[middle : middle + len(data) // 6] = bytes(len(data) // 6)
    path.write_bytes(data)


Spoil = Callable[[Path, random.Random], None]
NO_VIDEO = "is not a video file: give an mp4"
ONLY_PART = "Only a part of"
SPOILT: dict[str, tuple[Spoil, Status, str]] = {
    "empty.mp4": (_empty, "failed", "is empty (0 bytes): copy or download it again"),
    "text.mp4": (_text, "failed", NO_VIDEO),
    "text.Mov": (_text, "failed", NO_VIDEO),
    "random.mkv": (_random_bytes, "failed", NO_VIDEO),
    "playlist.mp4": (_playlist, "failed", NO_VIDEO),
    "sound-alone.mp4": (_sound_alone, "failed", "has sound but no picture: give a video"),
    "cut-before-index.mp4": (_cut_before_index, "failed", "cut off before its index"),
    "no-header.mp4": (_without_header, "failed", NO_VIDEO),
    "no-content.mp4": (_without_content, "failed", "can be decoded: it is damaged or encrypted"),
    "unknown-codec.avi": (_unknown_codec, "failed", "is unknown: convert it to an ordinary mp4"),
    "cut.mp4": (_cut, "partial", ONLY_PART),
    "cut.mkv": (_cut, "partial", ONLY_PART),
    "cut.avi": (_cut, "partial", ONLY_PART),
    "holed.mp4": (_holed, "partial", ONLY_PART),
}
