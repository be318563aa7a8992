from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise, repeat
from pathlib import Path

import av
import clips
import imageio_ffmpeg
import numpy as np
import pytest
from clips import make_clip

from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import VideoInfo, VideoWriter, frames, probe, read_frames, writer

NTSC = Fraction(30_000, 1001)
UNEVEN = [0.04 * k + (0.02 if k % 3 == 1 else 0.0) for k in range(40)]  # s
KINDS = {  # file name: what it is made of
    "b-frames.mp4": {},
    "matroska.mkv": {},
    "starts-late.ts": {},
    "reordered.avi": {},
    "old.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "web.webm": {"codec": "libvpx-vp9"},
    "fragments.mp4": {"container_options": {"movflags": "+frag_keyframe+empty_moov"}},
    "uneven.mp4": {"times": UNEVEN},
}


@pytest.fixture(params=KINDS)
def clip(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_clip(
        tmp_path / request.param, frames=40, **{"options": {"g": "10"}, **KINDS[request.param]}
    )


def read(path: Path, **limits: float) -> list[frames.Frame]:
    return list(read_frames(probe(path), report=Reporter(), **limits))


def copy(source: Path, target: Path, **limits: float) -> list[str]:
    """Decode and encode again; return the warnings."""
    video, report = probe(source), Reporter()
    fps = None if video.is_vfr else video.fps
    with VideoWriter(target, fps=fps, audio_from=video, report=report) as out:
        for frame in read_frames(video, report=report, **limits):
            out.write(frame.image, frame.time)
    return report.warnings


def encode(path: Path, images: Iterable[np.ndarray], fps: Fraction = Fraction(25)) -> None:
    with VideoWriter(path, fps=fps, report=Reporter()) as out:
        for k, image in enumerate(images):
            out.write(image, 7 + k / float(fps))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def ffmpeg(*arguments: str | Path) -> bytes:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def noise(count: int, size: tuple[int, int] = (128, 96)) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size[::-1], 3), np.uint8) for _ in range(count)]


# --- probe ---------------------------------------------------------------------------------------


def test_of_frames_with_one_timestamp_each_comes_a_moment_later(tmp_path: Path) -> None:
    stamps = [0.04 * (k - k % 3) for k in range(12)]
    clip = make_clip(tmp_path / "a.mkv", frames=12, times=stamps, codec="ffv1")
    frames = read(clip)
    assert [frame.index for frame in frames] == list(range(12))
    times = np.array([frame.time for frame in frames])
    assert (np.diff(times) > 0).all()
    np.testing.assert_allclose(times, stamps, atol=1e-3)
    np.testing.assert_array_equal(times[::3], np.round(stamps[::3], 3))
    assert copy(clip, tmp_path / "again.mp4") == []
    assert len(read(tmp_path / "again.mp4")) == 12


def test_frames_that_vp8_never_shows_do_not_count(tmp_path: Path) -> None:
    source, clip = make_clip(tmp_path / "a.mkv", frames=60), tmp_path / "a.webm"
    for number in (1, 2):  # such frames come of a second pass
        ffmpeg(
            *("-i", source, "-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16"),
            *("-pass", str(number), "-passlogfile", tmp_path / "log", clip),
        )
    with av.open(str(clip)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) > 60
    video, original = probe(clip), probe(source)
    assert (video.frame_count, video.fps) == (60, original.fps)
    assert not video.is_vfr
    assert [frame.index for frame in read(clip)] == list(range(60))


def test_every_frame_is_counted_and_timed(clip: Path) -> None:
    video = probe(clip)
    assert video.frame_count == len(video.times) == 40
    expected = UNEVEN if clip.name == "uneven.mp4" else np.arange(40) / 25
    np.testing.assert_allclose(video.times - video.times[0], expected, atol=1e-3)
    assert video.is_vfr == (clip.name == "uneven.mp4")
    assert video.fps == 25
    assert video.duration == pytest.approx(1.6)
    assert (video.width, video.height, video.has_audio) == (64, 48, False)
    assert not video.warnings


def test_times_are_as_stored(tmp_path: Path) -> None:
    video = probe(make_clip(tmp_path / "a.ts"))
    packets = av.open(str(video.path)).demux(video=0)
    assert video.times[0] == min(float(p.pts * p.time_base) for p in packets if p.size) > 0


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_ntsc_rate_is_exact(tmp_path: Path, name: str) -> None:
    video = probe(make_clip(tmp_path / name, frames=40, fps=NTSC))
    assert video.fps == NTSC
    assert not video.is_vfr


def test_a_few_dropped_frames_leave_the_rate_constant(tmp_path: Path) -> None:
    times = [k / 25 for k in range(50) if k not in (7, 20, 21)]
    video = probe(make_clip(tmp_path / "a.mkv", frames=47, times=times))
    assert (video.fps, video.is_vfr, video.frame_count) == (25, False, 47)
    np.testing.assert_allclose(video.times, times, atol=1e-3)


def test_false_rate_is_replaced_by_that_of_the_times(tmp_path: Path) -> None:
    times = [k / 25 for k in range(20)]
    video = probe(make_clip(tmp_path / "a.mkv", frames=20, times=times, fps=Fraction(9000)))
    assert (video.fps, video.is_vfr) == (25, False)
    assert len(video.warnings) == 1
    assert "9000 Hz: 25 is used" in video.warnings[0]


@pytest.mark.parametrize(("scale", "rate"), [(1, 90_000), (1000, 1), (1, 0), (0, 0)])
def test_absurd_rate_gives_25_fps(tmp_path: Path, scale: int, rate: int) -> None:
    path = make_clip(tmp_path / "a.avi", codec="mpeg4")
    data = bytearray(path.read_bytes())
    struct.pack_into("<II", data, data.index(b"strh") + 28, scale, rate)
    struct.pack_into("<I", data, data.index(b"avih") + 8, 0)
    path.write_bytes(data)
    video, report = probe(path), Reporter()
    assert (video.fps, video.duration) == (25, pytest.approx(0.4))
    np.testing.assert_allclose(
        [frame.time for frame in read_frames(video, report=report)], np.arange(10) / 25
    )
    # FFmpeg itself puts 25 for 0; what we replace is told.
    assert len(report.warnings) == (0 if rate == 0 else 1)


def test_stream_without_timestamps_is_counted(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.h264")
    video = probe(path)
    assert (video.frame_count, video.fps, video.is_stamped) == (10, 25, False)
    assert "no usable timestamps" in video.warnings[0]
    assert [clips.number(frame.image) for frame in read(path)] == list(range(10))


def test_one_frame(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=1)
    video = probe(path)
    assert (video.frame_count, video.fps, video.duration) == (1, 25, 0.04)
    assert len(read(path)) == 1


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.mp4", frames=40, options={"g": "10"})
    path = tmp_path / "a.mp4"
    ffmpeg("-ss", "0.52", "-i", whole, "-c", "copy", path)
    assert probe(path).frame_count == 40 - 13
    assert [clips.number(frame.image) for frame in read(path)] == list(range(13, 40))


def test_sound_is_noticed(tmp_path: Path) -> None:
    assert probe(make_clip(tmp_path / "a.mp4", audio="aac")).has_audio


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"just some text\n" * 100, "not a video"),
        (np.random.default_rng(0).bytes(50_000), "not a video"),
        (b"ffconcat version 1.0\nfile real.mp4\n", "not a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nreal.mp4\n#EXT-X-ENDLIST\n", "not a vi"),
    ],
    ids=["empty", "text", "noise", "concat", "playlist"],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    make_clip(tmp_path / "real.mp4")
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        probe(path)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        probe(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        probe(tmp_path / "none.mp4")
    with pytest.raises(InputError, match="cannot be read"):
        probe(tmp_path / ("long" * 100 + ".mp4"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    path.chmod(0)
    with pytest.raises(InputError, match="permissions"):
        probe(path)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    ffmpeg("-i", clips.make_sound(tmp_path / "a.wav"), path)
    with pytest.raises(InputError, match="sound but no picture"):
        probe(path)


def test_mp4_without_index_is_refused(tmp_path: Path) -> None:
    path = clips.truncate(make_clip(tmp_path / "a.mp4", pictures=noise(20), size=(128, 96)), 0.6)
    with pytest.raises(InputError, match="moov"):
        probe(path)


def test_undecodable_content_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    data = path.read_bytes()
    start, stop = data.index(b"mdat") + 4, data.index(b"moov") - 4
    path.write_bytes(data[:start] + bytes(stop - start) + data[stop:])
    with pytest.raises(InputError, match=r"No frame .* can be decoded"):
        probe(path)


def test_unknown_codec_is_refused(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.avi", codec="mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(InputError, match="codec"):
        probe(path)


def test_gigantic_frames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpsnet_cli.video.info.MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(InputError, match="64x48 px"):
        probe(make_clip(tmp_path / "a.mp4"))


# --- frame_range ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((None, None), range(12)),
        ((0.08, None), range(2, 12)),
        ((0.081, 0.16), range(3, 4)),
        ((None, 0.36), range(9)),
        ((None, 0.361), range(10)),
        ((None, 0.41), range(11)),
        ((0.36, 99.0), range(9, 12)),
    ],
)
def test_frame_range(limits: tuple[float | None, float | None], expected: range) -> None:
    assert cut_video().frame_range(*limits) == expected


@pytest.mark.parametrize("limits", [(-1.0, None), (0.5, 0.5), (0.2, 0.1), (0.4, None)])
def test_empty_frame_range_is_refused(limits: tuple[float, float | None]) -> None:
    with pytest.raises(InputError):
        cut_video().frame_range(*limits)


def cut_video() -> VideoInfo:
    """Ten frames from 5 s on at 25 fps, of twelve that the file promises."""
    return VideoInfo(
        path=Path("a.mp4"),
        width=64,
        height=48,
        fps=Fraction(25),
        frame_count=12,
        rotation=0,
        has_audio=False,
        is_vfr=False,
        duration=0.4,
        times=5 + np.arange(10) / 25,
    )


# --- read_frames ---------------------------------------------------------------------------------


def test_frames_come_whole_and_in_order(clip: Path) -> None:
    video, decoded = probe(clip), read(clip)
    assert [clips.number(frame.image) for frame in decoded] == list(range(40))
    assert [frame.index for frame in decoded] == list(range(40))
    assert [frame.time for frame in decoded] == list(video.times)
    assert all(frame.image.flags.c_contiguous for frame in decoded)
    assert {(frame.image.shape, frame.image.dtype.name) for frame in decoded} == {
        ((48, 64, 3), "uint8")
    }


@pytest.mark.parametrize(("start", "end"), [(0.9, None), (0.52, 1.1), (None, 0.5), (1.56, None)])
def test_excerpt_equals_the_part_of_the_whole(
    clip: Path, start: float | None, end: float | None
) -> None:
    wanted = probe(clip).frame_range(start, end)
    part, whole = read(clip, start=start, end=end), read(clip)
    assert [frame.index for frame in part] == list(wanted)
    for frame in part:
        assert frame.time == whole[frame.index].time
        np.testing.assert_array_equal(frame.image, whole[frame.index].image)


def test_a_late_start_seeks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=100, options={"g": "10"})
    decoded = 0
    decode_packet = frames.decode_packet

    def count(*arguments: object) -> list[av.VideoFrame]:
        nonlocal decoded
        decoded += len(pictures := decode_packet(*arguments))
        return pictures

    monkeypatch.setattr(frames, "decode_packet", count)
    assert [frame.index for frame in read(path, start=3.6)] == list(range(90, 100))
    assert decoded <= 20


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_and_pixel_aspect_are_as_ffmpeg_applies_them(
    tmp_path: Path, rotation: int
) -> None:
    path = make_clip(
        tmp_path / "a.mp4",
        pictures=noise(2),
        rotation=rotation,
        pixel_aspect=Fraction(4, 3),
        size=(128, 96),
        options={"crf": "1"},
    )
    video = probe(path)
    size = (171, 96) if rotation == 180 else (96, 171)
    assert (video.width, video.height, video.rotation) == (*size, rotation)
    scale = f"scale={size[0]}:{size[1]}:flags=bilinear"
    raw = ffmpeg("-i", path, "-vf", scale, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    expected = np.frombuffer(raw, np.uint8).reshape(-1, *size[::-1], 3).astype(int)
    for frame in read(path):
        assert frame.image.flags.c_contiguous
        assert np.abs(frame.image - expected[frame.index]).mean() < 8


@pytest.mark.parametrize("flip", ["-display_hflip", "-display_vflip"])
@pytest.mark.parametrize("rotation", [0, 90, 270])
def test_mirrored_clips_are_as_ffmpeg_shows_them(tmp_path: Path, flip: str, rotation: int) -> None:
    plain = make_clip(tmp_path / "a.mp4", pictures=noise(2), size=(128, 96), options={"crf": "1"})
    path = tmp_path / "mirrored.mp4"
    ffmpeg("-display_rotation", rotation, flip, "-i", plain, "-c", "copy", path)
    video = probe(path)
    assert video.mirrored
    assert not probe(plain).mirrored
    raw = ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    expected = np.frombuffer(raw, np.uint8).reshape(-1, video.height, video.width, 3).astype(int)
    for frame in read(path):
        assert frame.image.flags.c_contiguous
        assert np.abs(frame.image - expected[frame.index]).mean() < 8


def test_hdr_is_told_of(tmp_path: Path) -> None:
    plain = make_clip(tmp_path / "a.mp4")
    path = tmp_path / "hlg.mp4"
    ffmpeg("-i", plain, "-c", "copy", "-bsf:v", "h264_metadata=transfer_characteristics=18", path)
    assert any("is HDR (HLG), whose colours" in sentence for sentence in probe(path).warnings)
    assert not probe(plain).warnings


@pytest.mark.parametrize("colourspace", ["itu601", "itu709"])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_colours_are_right(
    tmp_path: Path, colourspace: str, full_range: bool, pix_fmt: str
) -> None:
    path = make_clip(
        tmp_path / "a.mp4",
        pictures=[solid(255, 40, 0)] * 2,
        colourspace=colourspace,
        full_range=full_range,
        pix_fmt=pix_fmt,
    )
    np.testing.assert_allclose(read(path)[1].image.mean((0, 1)), (255, 40, 0), atol=4)


def solid(*colour: int) -> np.ndarray:
    return np.full((48, 64, 3), colour, np.uint8)


def test_changing_frame_size_is_scaled_and_told(tmp_path: Path) -> None:
    small = make_clip(tmp_path / "small.h264", frames=4)
    large = make_clip(tmp_path / "large.h264", frames=4, size=(128, 96))
    path = tmp_path / "both.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    report = Reporter()
    decoded = list(read_frames(probe(path), report=report))
    assert [frame.image.shape for frame in decoded] == [(48, 64, 3)] * 8
    assert [clips.number(frame.image) for frame in decoded] == [0, 1, 2, 3, 0, 1, 2, 3]
    assert any("changes from frame 4 on" in sentence for sentence in report.warnings)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi"])
def test_a_cut_file_gives_what_decodes_and_tells_the_loss(tmp_path: Path, name: str) -> None:
    codec = "mpeg4" if name.endswith("avi") else "libx264"
    path = make_clip(
        tmp_path / name,
        pictures=noise(60),
        size=(128, 96),
        codec=codec,
        options={"g": "10"},
        container_options={"movflags": "+faststart"} if name.endswith("mp4") else None,
    )
    whole = read(path)
    video, report = probe(clips.truncate(path, 0.6)), Reporter()
    assert video.frame_count == len(video.frame_range()) == 60
    decoded = list(read_frames(video, report=report))
    assert 25 < len(decoded) <= len(video.times) < 45
    for frame in decoded[:-1]:
        np.testing.assert_array_equal(frame.image, whole[frame.index].image)
    assert report.losses == [
        f"{60 - len(decoded)} of 60 frames of {path} are damaged or missing: "
        "the results cover the rest."
    ]
    assert len(read(path, end=0.8)) == len(video.frame_range(end=0.8)) == 20


def test_damage_in_the_middle_leaves_a_gap(tmp_path: Path) -> None:
    path = make_clip(
        tmp_path / "a.mp4", pictures=noise(40), size=(128, 96), options={"g": "1", "bf": "0"}
    )
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        spoilt = packets[20].pos, packets[22].pos
    data = bytearray(path.read_bytes())
    data[slice(*spoilt)] = bytes(spoilt[1] - spoilt[0])
    path.write_bytes(data)
    video, report = probe(path), Reporter()
    decoded = list(read_frames(video, report=report))
    assert [frame.index for frame in decoded] == [k for k in range(40) if k not in (20, 21)]
    assert [frame.time for frame in decoded] == [video.times[frame.index] for frame in decoded]
    assert "2 of 40 frames" in report.losses[0]


def test_reading_ahead_is_bounded_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_clip(tmp_path / "a.mp4", frames=60)
    converted = []
    rgb = frames._rgb
    monkeypatch.setattr(frames, "_rgb", lambda *a: converted.append(1) or rgb(*a))
    threads = threading.active_count()
    reader = read_frames(probe(path), report=Reporter())
    for _ in range(3):
        next(reader)
    reader.close()
    assert len(converted) <= 3 + frames.PREFETCH
    assert threading.active_count() == threads


def test_errors_while_reading_reach_the_reader(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "a.mp4")
    video = probe(path)
    path.unlink()
    with pytest.raises(InputError, match="does not exist"):
        list(read_frames(video, report=Reporter()))


# --- VideoWriter ---------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [Fraction(25), NTSC, Fraction(24_000, 1001), Fraction(19, 2)])
def test_constant_rate_is_written_exactly(tmp_path: Path, fps: Fraction) -> None:
    path = tmp_path / "a.mp4"
    encode(path, map(clips.picture, range(40)), fps)
    video = probe(path)
    assert (video.frame_count, video.fps, video.is_vfr) == (40, fps, False)
    np.testing.assert_allclose(video.times, np.arange(40) / float(fps), atol=1e-6)
    assert [clips.number(frame.image) for frame in read(path)] == list(range(40))
    assert names(tmp_path) == ["a.mp4"]


def test_variable_rate_is_written_exactly(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mp4", frames=40, times=UNEVEN)
    assert copy(source, tmp_path / "b.mp4") == []
    video = probe(tmp_path / "b.mp4")
    assert (video.frame_count, video.is_vfr) == (40, True)
    np.testing.assert_allclose(video.times, UNEVEN, atol=0.51 / 90_000)


def test_frames_at_one_time_are_all_written(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=None, report=Reporter()) as out:
        for k, time in enumerate([0.0, 0.04, 0.04, 0.1]):
            out.write(clips.picture(k), time)
    assert [clips.number(frame.image) for frame in read(tmp_path / "a.mp4")] == [0, 1, 2, 3]


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (30, 60, 200), (128, 128, 128)])
def test_colours_are_kept(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    path = tmp_path / "a.mp4"
    encode(path, [solid(*colour)])
    np.testing.assert_allclose(read(path)[0].image.mean((0, 1)), colour, atol=3)
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert (context.color_range, context.pix_fmt) == (1, "yuv420p")


@pytest.mark.parametrize("size", [(63, 47), (64, 47), (63, 48), (1, 1)])
def test_odd_sizes_are_extended_by_their_own_edge(tmp_path: Path, size: tuple[int, int]) -> None:
    encode(tmp_path / "a.mp4", [np.full((*size[::-1], 3), 200, np.uint8)])
    written = read(tmp_path / "a.mp4")[0].image
    assert written.shape[:2] == tuple(side + side % 2 for side in size[::-1])
    np.testing.assert_allclose(written, 200, atol=2)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "aac"), ("a.ts", "aac"), ("a.avi", "libmp3lame"), ("a.mkv", "libopus"),
     ("b.mkv", "flac")],
)  # fmt: skip
def test_sound_is_copied(tmp_path: Path, name: str, codec: str) -> None:
    video = "mpeg4" if name == "a.avi" else "libx264"
    source = make_clip(tmp_path / name, frames=50, codec=video, audio=codec, clicks=[1.0])
    assert copy(source, tmp_path / "out.mp4") == []
    before, after = sound_packets(source), sound_packets(tmp_path / "out.mp4")
    if name == "a.ts":  # there each packet has a header (ADTS) that mp4 does not want
        before = [data[7:] for data in before]
    assert len(before) > 10
    assert after == before


def sound_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_sound_that_mp4_players_do_not_take_is_converted_and_told(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.mov", frames=50, audio="pcm_s16le")
    [warning] = copy(source, tmp_path / "out.mp4")
    assert "(pcm_s16le) is converted to AAC" in warning
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.audio[0].codec.canonical_name == "aac"


def test_unusable_sound_leaves_the_video_silent_and_is_told(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "a.avi", codec="mpeg4", frames=20, audio="libmp3lame")
    data = bytearray(source.read_bytes())
    struct.pack_into("<H", data, data.rindex(b"strf") + 8, 0x7777)  # an unknown codec's number
    source.write_bytes(data)
    [warning] = copy(source, tmp_path / "out.mp4")
    assert "is silent" in warning
    assert probe(tmp_path / "out.mp4").frame_count == 20


CLICKS = [1.0, 2.0, 3.0]  # s, when the screen flashes and the sound clicks


@pytest.mark.parametrize("limits", [{}, {"start": 0.7}, {"start": 0.73, "end": 2.61}])
@pytest.mark.parametrize(
    ("name", "codec", "audio_start"),
    [
        ("a.mp4", "aac", 0.0),
        ("late.mp4", "aac", 0.5),
        ("a.ts", "aac", 0.0),
        ("a.mov", "pcm_s16le", 0.0),
    ],
)
def test_sound_and_picture_stay_together(
    tmp_path: Path, name: str, codec: str, audio_start: float, limits: dict[str, float]
) -> None:
    flash = [any(c - 1e-6 <= k / 25 < c + 0.1 for c in CLICKS) for k in range(100)]
    source = make_clip(
        tmp_path / name,
        pictures=[solid(*[255 * on] * 3) for on in flash],
        audio=codec,
        audio_start=audio_start,
        clicks=CLICKS,
    )
    copy(source, tmp_path / "out.mp4", **limits)
    flashes, clicks = onsets(tmp_path / "out.mp4")
    assert len(flashes) == 3 - ("end" in limits)
    np.testing.assert_allclose(clicks, flashes, atol=0.003)
    wanted = probe(source).frame_range(**limits)
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.duration / av.time_base == pytest.approx(len(wanted) / 25, abs=1 / 25)


def onsets(path: Path) -> tuple[list[float], list[float]]:
    """Return when the screen turns white and when the sound sets in, in seconds."""
    bright = [(frame.time, frame.image.mean() > 127) for frame in read(path)]
    flashes = [time for (_, dark), (time, on) in pairwise(bright) if on and not dark]
    loud: list[float] = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            [samples] = frame.to_ndarray()
            loud += (
                np.flatnonzero(np.abs(samples) > 0.1) / frame.sample_rate + frame.time
            ).tolist()
    return flashes, [b for a, b in pairwise([-1.0, *loud]) if b - a > 0.1]


@pytest.mark.parametrize(
    "name", ["a b.mp4", "ünï 漢.mp4", "it's \"so\".mp4", "per%03d.mp4", "-i.mp4", "a:b.mp4",
             "pipe:0.mp4", "concat:a|b.mp4", "[x]*,;.mp4",
             pytest.param("no text \udcff.mp4", marks=pytest.mark.skipif(
                 sys.platform != "linux", reason="file names are text here"))],
)  # fmt: skip
def test_any_name_is_just_a_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_clip(Path("plain.mp4"), audio="aac").rename(name)
    Path("out").mkdir()
    assert copy(Path(name), Path("out") / name) == []
    assert names(Path("out")) == [name]
    video = probe(Path("out") / name)
    assert (video.frame_count, video.has_audio) == (10, True)


def test_a_dying_encoder_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    def kill_in_the_middle(out: VideoWriter) -> None:
        with out:
            for k, image in enumerate(noise(60, (640, 480))):
                if k == 30:
                    out._ffmpeg.kill()
                out.write(image, k / 25)

    (tmp_path / "a.mp4").write_text("the old one")
    out = VideoWriter(tmp_path / "a.mp4", fps=Fraction(25), report=Reporter())
    with pytest.raises(OutputError, match="killed by SIGKILL"):
        kill_in_the_middle(out)
    assert out._ffmpeg._process.returncode is not None
    assert names(tmp_path) == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_text() == "the old one"


def test_the_error_has_the_words_of_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "PRESET", "nosuch")
    with pytest.raises(OutputError, match=r"ffmpeg says: .*nosuch"):
        encode(tmp_path / "a.mp4", noise(10))
    assert names(tmp_path) == []


def test_an_interrupt_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> Iterator[np.ndarray]:
        yield from noise(10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "a.mp4", interrupted())
    assert names(tmp_path) == []


def test_ctrl_c_while_ffmpeg_is_busy_is_not_lost(tmp_path: Path) -> None:
    image = noise(1, (320, 240))[0]

    def frames() -> Iterator[np.ndarray]:
        yield image  # ffmpeg is there when the next one is asked for
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        yield from repeat(image, 10_000)

    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "a.mp4", frames())
    assert names(tmp_path) == []


def test_no_frame_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"):
        encode(tmp_path / "a.mp4", [])
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["none/a.mp4", "file/a.mp4", "folder.mp4"])
def test_an_impossible_place_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        encode(tmp_path / name, [solid(0, 0, 0)])
    assert names(tmp_path) == ["file", "folder.mp4"]


# --- real clips ----------------------------------------------------------------------------------


def test_real_clips_are_counted(shared: Path) -> None:
    dancer = probe(shared / "clips/dancer.avi")
    assert (dancer.frame_count, dancer.fps, dancer.is_vfr) == (1571, 25, False)
    assert (dancer.width, dancer.height, dancer.has_audio) == (518, 496, True)
    pedestrians = probe(shared / "clips/pedestrians.avi")
    assert (pedestrians.frame_count, pedestrians.fps) == (795, 10)


@pytest.mark.slow
def test_a_real_clip_survives_whole(shared: Path, tmp_path: Path) -> None:
    source, target = shared / "clips/dancer.avi", tmp_path / "out.mp4"
    assert copy(source, target) == []
    before, after = probe(source), probe(target)
    assert (after.frame_count, after.fps) == (1571, 25)
    np.testing.assert_allclose(after.times, before.times - before.times[0], atol=1e-6)
    assert after.duration == pytest.approx(before.duration, abs=1 / 25)
    assert sound_packets(target) == sound_packets(source)
