"""Compare the peak memory of `mpsnet run` on one minute and on ten minutes of the same clip.

    python -m benchmarks.memory CLIP --weights FILE --detector FILE

The clip is looped and brought to ten frames a second, so that the long run takes minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import ffmpeg
import imageio_ffmpeg

from benchmarks.stages import end_to_end
from mpsnet_cli.weights import find_weights

FPS = 10


def looped(clip: Path, seconds: int, folder: Path) -> Path:
    """Write a clip of that length, of nothing but repetitions."""
    path = folder / f"{seconds}.mp4"
    source = ffmpeg.input(str(clip), stream_loop=-1)
    ffmpeg.output(source, str(path), t=seconds, r=FPS, preset="veryfast").run(
        cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True
    )
    return path


def main() -> None:
    """Print one line for each length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--detector", default="yolo11n.pt")
    options = parser.parse_args()
    weights = find_weights(options.weights)
    with tempfile.TemporaryDirectory() as folder:
        for seconds in (60, 600):
            clip = looped(options.clip, seconds, Path(folder))
            frames, taken, peak = end_to_end(clip, weights, options.detector)
            print(f"{seconds} s, {frames} frames: peak {peak:.0f} MiB, {taken:.0f} s", flush=True)


if __name__ == "__main__":
    main()
