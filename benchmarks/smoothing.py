"""Weigh `--smooth` on the example's ground truth: what it calms against what it blurs.

    python -m benchmarks.smoothing

Trained weights do not ship yet, so a network's error is imitated: the true joint rotations plus
noise that is white over time, at the level that gives the acceleration error that the paper
reports for MPS-Net on 3DPW (7.4 mm/frame², Table 1), and at twice and four times that level.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.body import BodyModel, load_body
from mpsnet_cli.motion import Motion
from mpsnet_cli.smoothing import smooth_motion

PAPER_ACCELERATION = 7.4  # mm/frame²
STRENGTHS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


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


def main() -> None:
    """Print the table."""
    body = load_body("free-1")
    people = example_truth()

    def mean_errors(sigma: float, strength: float) -> NDArray[np.float64]:
        smoothed = [smooth_motion(noisy(motion, sigma), strength) for motion in people]
        return np.mean([errors(body, *pair) for pair in zip(people, smoothed, strict=True)], axis=0)

    unit = PAPER_ACCELERATION / mean_errors(0.01, 0)[1] * 0.01  # rad; both are proportional
    print("| noise | " + " | ".join(f"{strength:g}" for strength in STRENGTHS) + " |")
    print("|---" * (len(STRENGTHS) + 1) + "|")
    for level in (0, 1, 2, 4):
        cells = [mean_errors(level * unit, strength) for strength in STRENGTHS]
        row = " | ".join(f"{position:.1f}, {acceleration:.1f}" for position, acceleration in cells)
        print(f"| {level * PAPER_ACCELERATION:.1f} mm/frame² | {row} |")


if __name__ == "__main__":
    main()
