"""Time every export of a three-minute clip of five people: seconds, file size, peak memory.

    python -m benchmarks.exports [--seconds 180] [--people 5] [--format glb,bvh]

The people are those of examples/walk.npz, who go to and fro beside each other. Each format is
written by a process of its own, whose memory counts with that of Blender where it has to help.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpsnet_cli.body import load_body
from mpsnet_cli.evaluation.pixels import load_truth
from mpsnet_cli.export import EXPORTERS
from mpsnet_cli.export.result import PER_FRAME, Result
from mpsnet_cli.export.write import export_result
from mpsnet_cli.motion import Motion
from mpsnet_cli.progress import Reporter

WALK = Path(__file__).parent.parent / "examples" / "walk.npz"
APART = 0.8  # m between people
NOTHING = "start-up and body alone"


def long_result(people: int, seconds: float) -> Result:
    """Repeat the example's people, forwards and backwards, for so long."""
    truth = load_truth(WALK)
    motions = []
    for number in range(people):
        motion = truth[number % len(truth)]
        length = round(seconds * motion.fps)
        rows = np.abs((np.arange(length) + len(motion) - 1) % (2 * len(motion) - 2)
                      - (len(motion) - 1))  # fmt: skip
        per_frame: dict[str, Any] = {name: getattr(motion, name)[rows] for name in PER_FRAME}
        per_frame |= {
            "frame_ids": np.arange(length),
            "times": np.arange(length) / motion.fps,
            "transl": per_frame["transl"] + np.array([APART * (number // 2), 0, 0], np.float32),
        }
        motions.append(replace(motion, track_id=number + 1, **per_frame))
    shared: list[Motion] = motions
    return Result("walk", Path(), shared, 0.0, 0.0)


def measure(name: str, people: int, seconds: float) -> None:
    """Write one format and print its line."""
    result, body = long_result(people, seconds), load_body("free-1")
    began, size = time.perf_counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        if name != NOTHING:
            done = export_result(
                result, body, [name], out=Path(folder), fps=None, world="camera", root="keep",
                existing="refuse", report=Reporter(),
            )  # fmt: skip
            for failure in done.failures.values():
                raise failure
        taken = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    own, children = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    print(f"| {name} | {taken:.1f} | {size / 1e6:.1f} | {own + children:.0f} |", flush=True)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--people", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--format", default=",".join(EXPORTERS))
    options = parser.parse_args()
    print("| format | s | MB | peak MiB |\n|---|---|---|---|", flush=True)
    context = multiprocessing.get_context("spawn")
    for name in [NOTHING, *options.format.split(",")]:
        process = context.Process(target=measure, args=(name, options.people, options.seconds))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
