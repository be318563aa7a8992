"""Weigh `--smooth`: what it calms against what it blurs.

    python -m benchmarks.smoothing [--data HELD-OUT [--weights FILE]]

First on the example's ground truth: the true joint rotations plus noise that is white over time, at
the level that gives the acceleration error that the paper reports for MPS-Net on 3DPW
(7.4 mm/frame², Table 1), and at twice and four times that level. Then, with a folder of held-out
sequences of `mpsnet synth`, on what the weights say of them.
"""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.starter import CACHE, held_out_sequences, over_time, table
from mpsnet_cli.body import BodyModel, load_body
from mpsnet_cli.cli.reporting import make_reporter
from mpsnet_cli.evaluation.evaluate import evaluate_sequences
from mpsnet_cli.evaluation.result import METRICS
from mpsnet_cli.motion import Motion
from mpsnet_cli.smoothing import smooth_motion
from mpsnet_cli.weights import load_model

PAPER_ACCELERATION = 7.4  # mm/frame²
STRENGTHS = (0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0)
COLUMNS = ("pa_mpjpe", "mpjpe", "acceleration")


def example_truth() -> list[Motion]:
    """Read the people of examples/walk.npz."""
    with np.load("examples/walk.npz", allow_pickle=False) as file:
        arrays = dict(file)
    names = {field.name for field in fields(Motion)}
    people = sorted({key.split("/")[0] for key in arrays if "/" in key})
    return [
        Motion(**{
            name: value.item() if (value := arrays[f"{person}/{name}"]).ndim == 0 else value
            for name in names
        })
        for person in people
    ]  # fmt: skip


def errors(body: BodyModel, truth: Motion, motion: Motion) -> tuple[float, float]:
    """Return root-aligned joint error, mm, and acceleration error, mm/frame²."""
    found, true = (1000 * body.joints(m.pose, m.posed_betas) for m in (motion, truth))
    difference = (found - found[:, :1]) - (true - true[:, :1])
    acceleration = np.diff(difference, n=2, axis=0)
    return float(np.linalg.norm(difference, axis=-1).mean()), float(
        np.linalg.norm(acceleration, axis=-1).mean()
    )


def noisy(motion: Motion, sigma: float) -> Motion:
    """Add white noise of `sigma` rad to every joint rotation."""
    noise: NDArray[np.float64] = np.random.default_rng(0).normal(0, sigma, motion.pose.shape)
    return replace(motion, pose=(motion.pose + noise).astype(np.float32))


def on_truth() -> str:
    """Make the table of noise on the example's truth."""
    body = load_body("free-1")
    people = example_truth()

    def mean_errors(sigma: float, strength: float) -> NDArray[np.float64]:
        smoothed = [smooth_motion(noisy(motion, sigma), strength) for motion in people]
        return np.mean([errors(body, *pair) for pair in zip(people, smoothed, strict=True)], axis=0)

    unit = PAPER_ACCELERATION / mean_errors(0.01, 0)[1] * 0.01  # rad; both are proportional
    rows = []
    for level in (0, 1, 2, 4):
        cells = [mean_errors(level * unit, strength) for strength in STRENGTHS]
        texts = [f"{position:.1f}, {acceleration:.1f}" for position, acceleration in cells]
        rows.append([f"{level * PAPER_ACCELERATION:.1f} mm/frame²", *texts])
    return table(["noise", *map(str, STRENGTHS)], rows)


def on_sequences(folder: Path, weights: Path | None, cache: Path) -> str:
    """Make the table of what weights say of held-out sequences."""
    report = make_reporter(None)
    body = load_body("free-1")
    model = load_model(weights, report=report)
    sequences = held_out_sequences(folder, model, cache, report)
    results = [
        evaluate_sequences(sequences, over_time(model)(sequences[0]), body, smooth=strength)
        for strength in STRENGTHS
    ]
    rows = [
        [METRICS[column][0], *(result.pooled.mean(column) for result in results)]
        for column in COLUMNS
    ]
    return table([f"{len(sequences)} sequences", *map(str, STRENGTHS)], rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="held-out sequences of mpsnet synth")
    parser.add_argument("--weights", type=Path, help="default: what `mpsnet run` would use")
    parser.add_argument("--cache", type=Path, default=CACHE, help="where features are kept")
    options = parser.parse_args()
    print(on_truth())
    if options.data:
        print(on_sequences(options.data, options.weights, options.cache))


if __name__ == "__main__":
    main()
