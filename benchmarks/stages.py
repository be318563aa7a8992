"""Time every stage of `mpsnet run` alone, and all of them together, on one clip.

    python -m benchmarks.stages CLIP --weights FILE --detector FILE

Each round runs every stage once, so that a slow moment of the machine falls on all of them; the
table gives the median over the rounds and the extremes. The backbone runs beside the same network
the way the official demo runs it (fp32, contiguous, batch normalisation apart, batches of 32).
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mpsnet_cli import Motion, load_model, reconstruct
from mpsnet_cli.body import load_body
from mpsnet_cli.crops import crop_image, square_boxes
from mpsnet_cli.export.obj import write_obj_sequence
from mpsnet_cli.model.backbone import IMAGE_MEAN, IMAGE_STD
from mpsnet_cli.posing import camera_vertices
from mpsnet_cli.progress import Reporter
from mpsnet_cli.render import make_renderer
from mpsnet_cli.render.overlay import person_colour
from mpsnet_cli.render.scene import Camera, Mesh
from mpsnet_cli.tracking import Detector, find_people
from mpsnet_cli.video import VideoWriter, probe, read_frames
from mpsnet_cli.weights import find_weights, load_network, read_info
from mpsnet_cli.windows import window_indices

OFFICIAL_BATCH = 32


def official_backbone(weights: Path) -> Callable[[np.ndarray], torch.Tensor]:
    """Return the backbone as the official demo runs it."""
    backbone = load_network(read_info(weights)).backbone.eval()
    mean, std = (np.array(v, np.float32) for v in (IMAGE_MEAN, IMAGE_STD))

    @torch.no_grad()
    def run(crops: np.ndarray) -> torch.Tensor:
        parts = []
        for first in range(0, len(crops), OFFICIAL_BATCH):
            pixels = (crops[first : first + OFFICIAL_BATCH] / np.float32(255) - mean) / std
            batch = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
            parts.append(backbone(batch))
        return torch.cat(parts)

    return run


def stages(clip: Path, weights: Path, detector: str, count: int) -> dict[str, Callable[[], object]]:
    """Prepare one callable for each stage; each treats the first `count` frames once."""
    report = Reporter()
    video = probe(clip)
    model = load_model(weights, report=report)
    body = load_body("free-1")
    find = Detector(detector, device=model.device)
    frames = list(itertools.islice(read_frames(video, report=report), count))
    tracks = find_people(frames, find, max_people=1, report=report)
    end = float(video.times[count] - video.times[0]) if count < len(video.times) else None
    motion: Motion = reconstruct(video, model, body=body, tracks=tracks, end=end, report=report)[0]
    images = {frame.index: frame.image for frame in frames}
    boxes = square_boxes(tracks[0].boxes, scale=model.config.crop_scale)
    size = model.config.crop_size
    crops = np.stack(
        [crop_image(images[f], b, size=size) for f, b in zip(tracks[0].frames, boxes, strict=True)]
    )
    features = model.features(crops)
    windows = window_indices(tracks[0].frames)
    renderer = make_renderer("auto", body.faces, report=report)
    x, y = motion.principal_point
    camera = Camera(motion.focal_length, (float(x), float(y)))
    rows = np.arange(len(motion))
    vertices = list(camera_vertices(motion, body, rows))
    scratch = Path(tempfile.mkdtemp())

    def encode() -> None:
        with VideoWriter(scratch / "overlay.mp4", fps=video.fps, report=report) as writer:
            for frame in frames:
                writer.write(frame.image, frame.time)

    def write_meshes() -> None:
        with report.stage("meshes") as advance:
            write_obj_sequence(scratch / "meshes", motion, body, advance=advance)

    def draw() -> None:
        for row, mesh in zip(rows, vertices, strict=True):
            image = images[int(motion.frame_ids[row])]
            renderer.draw(image, [Mesh(mesh, person_colour(1))], camera)

    official = official_backbone(weights)
    return {
        "decode": lambda: [
            f.index for f in itertools.islice(read_frames(video, report=report), count)
        ],
        "detect+track": lambda: find_people(frames, find, report=report),
        "crop": lambda: [
            crop_image(images[f], b, size=size)
            for f, b in zip(tracks[0].frames, boxes, strict=True)
        ],
        "backbone": lambda: model.features(crops),
        "(official backbone)": lambda: official(crops[:OFFICIAL_BATCH]),
        "temporal+regressor": lambda: model.predict(features, windows),
        "body": lambda: list(camera_vertices(motion, body, rows)),
        "render": draw,
        "encode": encode,
        "obj": write_meshes,
    }


def end_to_end(clip: Path, weights: Path, detector: str) -> tuple[int, float, float]:
    """Run the command itself; return frames, seconds with start-up, and peak memory in MiB."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "mpsnet_cli", "run", str(clip), "--out", out, "-q"]
        command += ["--weights", str(weights), "--detector", detector, "--max-people", "1"]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(command)} failed")
        return probe(clip).frame_count, time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--detector", default="yolo11n.pt")
    parser.add_argument("--frames", type=int, default=128, help="frames a stage treats in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    weights = find_weights(options.weights)
    work = stages(options.clip, weights, options.detector, options.frames)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(options.rounds + 1):  # the first round warms up
        for name, run in work.items():
            began = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - began)
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}; {options.clip.name}, one person\n"
    )
    print(
        "| stage | frames/s | slowest to fastest round | ms/frame | share |\n|---|---|---|---|---|"
    )
    ours = {name: statistics.median(s) for name, s in seconds.items() if name[0] != "("}
    for name, taken in seconds.items():
        count = OFFICIAL_BATCH if name[0] == "(" else options.frames
        middle = statistics.median(taken)
        share = f"{100 * middle / sum(ours.values()):.0f} %" if name in ours else ""
        print(
            f"| {name} | {count / middle:.1f} | {count / max(taken):.1f} to "
            f"{count / min(taken):.1f} | {1000 * middle / count:.2f} | {share} |"
        )
    ratios = [
        (options.frames / ours_) / (OFFICIAL_BATCH / theirs)
        for ours_, theirs in zip(seconds["backbone"], seconds["(official backbone)"], strict=True)
    ]
    print(
        f"\nbackbone beside the official recipe: {statistics.median(ratios):.1f}× "
        f"({min(ratios):.1f} to {max(ratios):.1f} over {len(ratios)} rounds)"
    )
    frames, taken_all, peak = end_to_end(options.clip, weights, options.detector)
    print(
        f"end to end, start-up included: {frames} frames in {taken_all:.1f} s, "
        f"{frames / taken_all:.1f} frames/s, peak memory {peak:.0f} MiB"
    )


if __name__ == "__main__":
    main()
