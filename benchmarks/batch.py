"""Compare one batch with a run for each clip, and the memory of a long clip with a short one's.

    python -m benchmarks.batch [--clips 20] [--minutes 30] [--weights FILE]

The clips are cut from examples/walk.mp4, with the whole frame for a person. Half of the single runs
come before the batch and half after it, as other work on a machine slows both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ffmpeg
import imageio_ffmpeg

from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.untrained import untrained_network
from mpsnet_cli.weights import UNTRAINED, save_network, save_untrained

WALK = Path(__file__).parent.parent / "examples" / "walk.mp4"
LENGTH = 6  # s, of the example
SMALL = MPSNetConfig(crop_size=32)  # for the long clip: memory, not speed, is looked at
LONG_FPS, LONG_SIZE = 3, "160x90"


class Cost(NamedTuple):
    """What a command took, its processes together."""

    seconds: float
    cpu_seconds: float
    peak: float  # MiB, of the largest of the processes


def cost_of(*arguments: str | Path) -> Cost:
    """Run `mpsnet` and measure it."""
    command = [sys.executable, "-m", "mpsnet_cli", *map(str, arguments), "--boxes", "full", "-q"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)  # the usage of its workers is in it
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed")
    seconds = time.perf_counter() - began
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def write(path: Path, source: Path = WALK, *, start: float = 0, **options: object) -> Path:
    """Write a part of a clip, the example as a rule, repeated as often as need be."""
    ffmpeg.output(ffmpeg.input(str(source), ss=start, stream_loop=-1), str(path), **options).run(
        cmd=imageio_ffmpeg.get_ffmpeg_exe(), quiet=True
    )
    return path


def compare_batch(folder: Path, count: int, weights: Path) -> None:
    """Print what separate runs and one batch of the same clips take."""
    clips = [
        write(folder / f"{k:02}.mp4", start=k % LENGTH * 0.8, t=1, s="640x360")
        for k in range(count)
    ]
    out = ("--weights", weights, "--out")

    def singly(part: Sequence[Path]) -> list[Cost]:
        return [cost_of("run", clip, *out, folder / "runs") for clip in part]

    runs = singly(clips[: count // 2])
    batch = cost_of("batch", *clips, *out, folder / "batch")
    runs += singly(clips[count // 2 :])
    total = Cost(sum(r.seconds for r in runs), sum(r.cpu_seconds for r in runs), 0)
    print(f"| {count} clips | s | s of CPU |\n|---|---|---|")
    print(f"| {count} × `mpsnet run` | {total.seconds:.0f} | {total.cpu_seconds:.0f} |")
    print(f"| `mpsnet batch` | {batch.seconds:.0f} | {batch.cpu_seconds:.0f} |")
    print(
        f"| ratio | {total.seconds / batch.seconds:.1f} "
        f"| {total.cpu_seconds / batch.cpu_seconds:.1f} |\n",
        flush=True,
    )


def compare_length(folder: Path, minutes: int, weights: Path) -> None:
    """Print the peak memory of a short clip and of a long one."""
    print("| clip | frames | peak memory |\n|---|---|---|")
    once = write(folder / "once.mp4", t=LENGTH, r=LONG_FPS, s=LONG_SIZE, bf=0, an=None)
    for length in (1, minutes):
        clip = write(folder / f"{length}.mp4", once, t=60 * length, codec="copy")
        cost = cost_of("batch", clip, "--weights", weights, "--out", folder / "out", "--no-meshes")
        frames = 60 * length * LONG_FPS
        print(f"| {length} min | {frames} | {cost.peak:.0f} MiB |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--weights", type=Path, help="Default: untrained ones of the real size.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = options.weights or save_untrained(folder / UNTRAINED.file, seed=0).path
        small = save_network(
            untrained_network(0, SMALL), folder / "small.safetensors", name="untrained (small)",
            trained=False, licence=UNTRAINED.licence, sources={}, note="", overwrite=False,
        )  # fmt: skip
        compare_batch(folder, options.clips, weights)
        compare_length(folder, options.minutes, small.path)


if __name__ == "__main__":
    main()
