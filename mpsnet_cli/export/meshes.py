"""What mesh sequences share: vertices, the names of their files, and the note in each of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli._version import __version__
from mpsnet_cli.body import BodyModel
from mpsnet_cli.export.stage import Performer, Stage
from mpsnet_cli.geometry import matrix_to_axis_angle
from mpsnet_cli.posing import CHUNK


def world_vertices(body: BodyModel, person: Performer) -> Iterator[NDArray[np.float32]]:
    """Yield the vertices (V, 3) of each of the person's times: world, metres, float32."""
    for first in range(0, len(person), CHUNK):
        rows = slice(first, first + CHUNK)
        pose = matrix_to_axis_angle(person.rotations[rows]).reshape(-1, 72)
        vertices, _ = body(pose, person.betas_per_time[rows])
        yield from vertices + person.transl[rows, None].astype(np.float32)


def file_numbers(stage: Stage, person: Performer) -> list[int]:
    """Number the person's times by their frames of the source, or, resampled, by steps of 1 / fps.

    Frames would not do there: at a higher rate two times are nearest to one frame.
    """
    steps = np.concatenate([np.diff(who.frame_ids) for who in stage.people])
    if stage.uniform and (steps != 1).any():
        return np.rint(person.times * stage.fps).astype(int).tolist()
    return person.frame_ids.tolist()


def note(stage: Stage) -> bytes:
    """Say in a line of ASCII where the meshes are from, whatever the weights are called."""
    trust = "trained" if stage.trained else "UNTRAINED, the motion means nothing"
    line = f"mpsnet-cli {__version__}: metres, y up; weights {stage.weights} ({trust})"
    return " ".join(line.split()).encode("ascii", "replace")
