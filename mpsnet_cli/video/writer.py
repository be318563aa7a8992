"""Video out: frames to H.264, with the sound of the source."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from threading import Thread
from types import TracebackType

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.errors import OutputError
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video.info import CONTAINERS, VideoInfo, open_container

CRF, PRESET = 20, "veryfast"  # x264: visually clean, and slower presets cost more than drawing
TICK = Fraction(1, 90_000)  # s, the unit of time at a variable rate
MP4_SOUND = {"aac", "ac3", "alac", "eac3", "flac", "mp2", "mp3", "opus"}  # what players take in mp4
COMPLAINT = 2  # lines of what ffmpeg says that are passed on: causes come before consequences


class VideoWriter:
    """Encode frames to an mp4 (H.264, 4:2:0, BT.709) in a process beside the caller's.

    The frames go to ffmpeg as NUT, which is raw video with timestamps: constant and variable rates
    are both exact. The first frame is shown at 0. A frame of odd width or height gets its last
    column or row twice, as 4:2:0 needs even ones. In the end the sound of `audio_from` that goes
    with the frames is added: copied, or converted to AAC where players do not take it in an mp4.

    A context manager: the file gets its name when it is complete. Until then all is in a hidden
    folder beside it, which is removed on any exception.

    Raises:
        OutputError: no frame was written, the folder cannot be written, or ffmpeg failed.
    """

    def __init__(
        self,
        path: Path,
        *,
        fps: Fraction | None,
        audio_from: VideoInfo | None = None,
        report: Reporter,
    ) -> None:
        """Prepare to write `path`, at a constant rate of `fps` Hz or, for None, a variable one."""
        self._path = Path(path)
        self._tick = TICK if fps is None else 1 / fps
        self._audio_from = audio_from
        self._report = report
        self._ffmpeg: _Ffmpeg | None = None
        self._first_time = self._last_time = 0.0  # s, of the frames written so far
        self._next_tick = 0

    def __enter__(self) -> VideoWriter:
        try:
            self._folder = tempfile.TemporaryDirectory(
                dir=self._path.parent, prefix=f".{self._path.name}-", ignore_cleanup_errors=True
            )
        except OSError as error:
            raise _unwritable(self._path, error) from error
        return self

    def write(self, image: NDArray[np.uint8], time: float) -> None:
        """Append an RGB image (height, width, 3) that is shown at `time`.

        Times are seconds on the clock of `audio_from`, ascending, and start anywhere.
        """
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), "edge")
        if self._ffmpeg is None:
            self._first_time = time
            self._start(image)
        self._last_time = time
        tick = round((time - self._first_time) / float(self._tick))
        tick = max(tick, self._next_tick)  # of two frames at one time, both are shown
        self._next_tick = tick + 1
        frame = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(image), "rgb24")
        frame.pts, frame.time_base = tick, self._tick
        try:
            self._nut.mux(self._stream.encode(frame))
        except (OSError, av.FFmpegError) as error:
            raise self._failed() from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            if self._ffmpeg:
                self._ffmpeg.kill()
                with suppress(OSError, av.FFmpegError):  # a stream that nobody reads any more
                    self._nut.close()
                self._ffmpeg.finish()
            self._folder.cleanup()

    def _start(self, image: NDArray[np.uint8]) -> None:
        pictures = (
            ffmpeg.input("pipe:", format="nut", probesize=32, analyzeduration=0)
            .filter("scale", out_color_matrix="bt709", out_range="tv")
            .filter("format", "yuv420p")
            .filter("setparams", colorspace="bt709", color_primaries="bt709", color_trc="bt709")
        )
        self._ffmpeg = _Ffmpeg(
            pictures.output(
                "picture",
                vcodec="libx264",
                crf=CRF,
                preset=PRESET,
                fps_mode="passthrough",
                enc_time_base=str(self._tick),
                movflags="+faststart",
            ),
            picture=self._temporary("picture"),
        )
        # By number: FFmpeg then writes itself, where a Python file's write would swallow a Ctrl-C.
        self._nut = av.open(f"pipe:{self._ffmpeg.stdin.fileno()}", "w", format="nut")
        self._stream = self._nut.add_stream("rawvideo", rate=1 / self._tick)
        self._stream.height, self._stream.width = image.shape[:2]
        self._stream.pix_fmt = "rgb24"
        self._stream.time_base = self._stream.codec_context.time_base = self._tick

    def _finish(self) -> None:
        if self._ffmpeg is None:
            raise OutputError(f"{self._path} is not written: there is no frame to put into it.")
        with suppress(OSError, av.FFmpegError):  # ffmpeg itself tells more about why
            self._nut.close()
        if self._ffmpeg.finish():
            raise self._failed()
        result = self._temporary("picture")
        if self._audio_from and self._audio_from.has_audio:
            result = self._add_sound(self._audio_from)
        try:
            result.replace(self._path)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def _add_sound(self, source: VideoInfo) -> Path:
        """Return a file with picture and sound, or the one without if the sound is unusable."""
        with open_container(source.path) as container:
            begins = (container.start_time or 0) / av.time_base
            codecs = {
                stream.codec.canonical_name if stream.codec_context else "of an unknown codec"
                for stream in container.streams.audio
            }
        skipped = self._first_time - begins
        excerpt = {"ss": skipped} if skipped > 0 else {}
        if self._last_time < source.times[-1]:
            excerpt["t"] = self._last_time - self._first_time + float(1 / source.fps)
        picture, both = self._temporary("picture"), self._temporary("both")
        sound = ffmpeg.input(
            "sound", protocol_whitelist="file", format_whitelist=CONTAINERS, **excerpt
        )
        complaint = ""
        for codec in ["copy", "aac"] if codecs <= MP4_SOUND else ["aac"]:
            self._ffmpeg = _Ffmpeg(
                ffmpeg.output(
                    ffmpeg.input("picture").video,
                    sound.audio,
                    "both",
                    vcodec="copy",
                    acodec=codec,
                    map_chapters=-1,
                    movflags="+faststart",
                ),
                picture=picture,
                sound=source.path,
                both=both,
            )
            complaint = self._ffmpeg.finish()
            if not complaint:
                break
        if complaint:
            self._report.warn(f"{self._path} is silent: the sound is unusable ({complaint}).")
            return picture
        if codec == "aac":
            self._report.warn(
                f"The sound of {source.path} ({', '.join(sorted(codecs))}) is converted to AAC."
            )
        return both

    def _temporary(self, name: str) -> Path:
        return Path(self._folder.name) / f"{name}.mp4"

    def _failed(self) -> OutputError:
        complaint = self._ffmpeg.finish() if self._ffmpeg else ""
        return OutputError(f"{self._path} cannot be encoded, ffmpeg says: {complaint}.")


class _Ffmpeg:
    """A running ffmpeg, its standard input, and what it complains about.

    Its inputs and outputs are called by the keywords that say which files they are: ffmpeg-python
    takes only text, which not every file's name is.
    """

    def __init__(self, output: ffmpeg.Stream, **files: Path) -> None:
        command = ffmpeg.compile(
            output.global_args("-loglevel", "error"),
            cmd=imageio_ffmpeg.get_ffmpeg_exe(),
            overwrite_output=True,
        )
        self._process = subprocess.Popen(
            [f"file:{files[word]}" if word in files else word for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdin
        assert self._process.stderr
        self.stdin, self._stderr = self._process.stdin, self._process.stderr
        self._lines: list[str] = []
        self._listener = Thread(target=self._listen)
        self._listener.start()

    def finish(self) -> str:
        """Wait for the end; return what went wrong, or nothing."""
        with suppress(BrokenPipeError):
            self.stdin.close()
        code = self._process.wait()
        self._listener.join()
        self._stderr.close()
        if code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return (", ".join(self._lines) or f"exit code {code}") if code else ""

    def _listen(self) -> None:
        for line in self._stderr:  # to the end, lest ffmpeg waits for a full pipe
            if len(self._lines) < COMPLAINT:
                text = line.decode(errors="replace").strip()
                self._lines.append(re.sub(r"^(\[[^]]* @ [^]]*\] )+", "", text).rstrip("."))

    def kill(self) -> None:
        """Stop it, if it still runs."""
        self._process.kill()


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{path} cannot be written ({error.strerror}): free the disk or choose another folder."
    )
