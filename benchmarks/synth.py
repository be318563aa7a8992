"""Time synthetic samples: the rasterisers alone, whole crops, and crops on their way to the disk.

python -m benchmarks.synth [--device cuda] [--crops 256] [--size 224] [--workers 2]
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from mpsnet_cli.body import load_body
from mpsnet_cli.model.inference import resolve_device
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.gbuffer import Rasteriser, rasterise
from mpsnet_cli.synth.samples import Samples
from mpsnet_cli.synth.shards import SAMPLES_PER_SHARD, Recipe, write_shards

ROUNDS = 5
DISTANCE = 4.0  # m
HEIGHT = 2.0  # m that the picture covers there


def rate(work: Callable[[], object], count: int, device: torch.device) -> str:
    """Time rounds of work on `count` crops, the first one aside: median, slowest and fastest."""
    rates = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(count / (time.perf_counter() - began))
    rates = rates[1:]
    return f"{statistics.median(rates):.0f} crops/s ({min(rates):.0f} to {max(rates):.0f})"


def bodies(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Stand people of various shapes in various poses before the camera."""
    rng = np.random.default_rng(0)
    body = load_body("free-1")
    pose = rng.normal(0, 0.3, (count, 72))
    pose[:, :3] = np.pi, 0, 0
    vertices, _ = body(pose, rng.normal(0, 1, (count, 10)))
    vertices -= vertices.mean(axis=1, keepdims=True) - np.array([0, 0, DISTANCE], np.float32)
    return torch.tensor(vertices, device=device), torch.tensor(body.faces, device=device)


def main() -> None:
    """Print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--crops", type=int, default=64)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2, help="for the last line, on a CPU")
    options = parser.parse_args()
    device, count, size = resolve_device(options.device), options.crops, options.size
    vertices, faces = bodies(count, device)
    view = {
        "focal": torch.full((count,), size / HEIGHT * DISTANCE),
        "principal": torch.full((count, 2), size / 2),
    }
    print(f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads, {size} px")
    for method in get_args(Rasteriser):
        draw = functools.partial(rasterise, vertices, faces, **view, size=size, method=method)
        print(f"rasterise, {method}: {rate(draw, count, device)}", flush=True)

    rasteriser: Rasteriser = "cv2" if device.type == "cpu" else "torch"
    make = functools.partial(Samples, 0, size=size, device=str(device), rasteriser=rasteriser)
    samples = make()
    draws = functools.partial(samples.crops, range(count))
    print(f"whole crops, {rasteriser}: {rate(draws, count, device)}", flush=True)

    workers = options.workers if device.type == "cpu" else 1
    recipe = Recipe(kind="crops", seed=0, size=size, split="train", frames=1)
    seconds = []
    for shards in (1, 3):  # per worker; their difference leaves the start-up out
        with tempfile.TemporaryDirectory() as folder:
            number = workers * shards * SAMPLES_PER_SHARD["crops"]
            began = time.perf_counter()
            write_shards(
                make, Path(folder), recipe, start=0, count=number, workers=workers,
                report=Reporter(),
            )  # fmt: skip
            seconds.append(time.perf_counter() - began)
            bytes_each = sum(path.stat().st_size for path in Path(folder).glob("*.npz")) / number
    written = workers * 2 * SAMPLES_PER_SHARD["crops"] / (seconds[1] - seconds[0])
    print(f"shards, {workers} processes: {written:.0f} crops/s, {bytes_each / 1000:.0f} kB each")


if __name__ == "__main__":
    main()
