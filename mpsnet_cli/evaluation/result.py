"""What an evaluation comes to: every frame's errors, kept apart until the very end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.evaluation.metrics import (
    acceleration_error,
    mean_distance,
    pa_mpjpe,
    root_aligned,
)

METRICS = {  # key: name and unit, in the order of the paper's tables
    "pa_mpjpe": ("PA-MPJPE", "mm"),
    "mpjpe": ("MPJPE", "mm"),
    "mpvpe": ("MPVPE", "mm"),
    "acceleration": ("ACC-ERR", "mm/frame²"),
    "acceleration_per_s2": ("ACC-ERR", "mm/s²"),
    "mpjpe_camera": ("camera", "mm"),
    "joints2d": ("image", "px"),
}

OWN_JOINTS = "14 of the body's own 24 joints (its head joint for the head top)"
REGRESSED_JOINTS = "14 regressed from the vertices, as the benchmarks do"


@dataclass(frozen=True)
class Errors:
    """The errors of one sequence, or of several: for each metric one number a frame that has it."""

    name: str
    frames: int
    values: Mapping[str, NDArray[np.float64]]  # by the keys of METRICS; unknown ones are left out

    def mean(self, metric: str) -> float | None:
        """Average a metric over the frames; None where no frame has it."""
        values = self.values.get(metric, ())
        return float(np.mean(values)) if len(values) else None

    def means(self) -> dict[str, float]:
        """Average every metric that is known."""
        known = {metric: self.mean(metric) for metric in METRICS}
        return {metric: value for metric, value in known.items() if value is not None}


def pooled(errors: Iterable[Errors]) -> Errors:
    """Put the frames of all sequences together, as the tables do: long ones weigh more."""
    errors = list(errors)
    values = {
        metric: np.concatenate([e.values[metric] for e in errors if metric in e.values])
        for metric in METRICS
        if any(metric in e.values for e in errors)
    }
    return Errors("all frames", sum(e.frames for e in errors), values)


def joint_errors(
    predicted: NDArray[np.floating],
    true: NDArray[np.floating],
    root: tuple[int, ...],
    *,
    fps: float,
    steady: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[np.float64]]:
    """Compare joints (N, J, 3), m, of a sequence about the mean of the joints `root`.

    `steady` (N−2,) picks the frames between whose neighbours an acceleration makes sense.
    """
    predicted, true = root_aligned(predicted, root), root_aligned(true, root)
    acceleration = acceleration_error(predicted, true)
    if steady is not None:
        acceleration = acceleration[steady]
    return {
        "pa_mpjpe": pa_mpjpe(predicted, true),
        "mpjpe": mean_distance(predicted, true),
        "acceleration": acceleration,
        "acceleration_per_s2": acceleration * fps**2,
    }


@dataclass(frozen=True)
class Coverage:
    """How many person-frames of a clip's truth were found, and how many found ones are nobody's."""

    true: int
    missed: int
    spurious: int


@dataclass(frozen=True)
class Result:
    """The errors by sequence, and what they were measured on."""

    sequences: tuple[Errors, ...]
    joints: str  # which joints were compared
    people: Coverage | None = None  # of an evaluation from pixels

    @property
    def pooled(self) -> Errors:
        """All frames together."""
        return pooled(self.sequences)

    def as_dict(self) -> dict[str, Any]:
        """Give the averages as plain numbers and text, for JSON."""

        def row(errors: Errors) -> dict[str, Any]:
            return {"name": errors.name, "frames": errors.frames, **errors.means()}

        return {
            "joints": self.joints,
            "people": asdict(self.people) if self.people else None,
            "sequences": [row(errors) for errors in self.sequences],
            "pooled": row(self.pooled),
        }
