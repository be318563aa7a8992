"""Binary PLY: a mesh file for each frame, all of one topology."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mpsnet_cli.export.meshes import file_numbers, note, world_vertices
from mpsnet_cli.export.stage import Performer, Stage

FACE = np.dtype([("corners", "u1"), ("vertices", "<i4", 3)])

_HEADER = b"""\
ply
format binary_little_endian 1.0
comment %s
element vertex %d
property float x
property float y
property float z
element face %d
property list uchar int vertex_indices
end_header
"""


def write_ply(
    path: Path, stage: Stage, person: Performer, *, advance: Callable[[int], None]
) -> None:
    """Write a person's meshes as `path`/000000.ply, …, in the world, posed with every corrective.

    The files are numbered by source frame, or by step where the stage was resampled.
    """
    path.mkdir(parents=True)
    faces = np.empty(len(stage.body.faces), FACE)
    faces["corners"], faces["vertices"] = 3, stage.body.faces
    header = _HEADER % (note(stage), stage.body.vertex_count, len(faces))
    end = faces.tobytes()
    meshes = world_vertices(stage.body, person)
    for number, vertices in zip(file_numbers(stage, person), meshes, strict=True):
        content = header + vertices.astype("<f4").tobytes() + end
        (path / f"{number:06d}.ply").write_bytes(content)
        advance(1)
