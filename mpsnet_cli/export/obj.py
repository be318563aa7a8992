"""Wavefront OBJ: a mesh file for each frame, all of one topology."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.body import BodyModel
from mpsnet_cli.errors import OutputError
from mpsnet_cli.export.meshes import file_numbers, note, world_vertices
from mpsnet_cli.export.stage import Performer, Stage
from mpsnet_cli.motion import Motion
from mpsnet_cli.posing import camera_vertices

DECIMALS = 5  # of a metre: 10 µm
Y_UP = np.array([1, -1, -1], np.float32)  # the camera frame, turned the way OBJ readers expect
HEADER = b"# mpsnet-cli: metres, y up, camera at the origin looking along -z\n"


def write_obj_sequence(
    folder: Path,
    motion: Motion,
    body: BodyModel,
    *,
    every: int = 1,
    advance: Callable[[int], None],
) -> None:
    """Write a person's meshes as `folder`/000000.obj, …, named by source frame index.

    With `every` N these are the frames 0, N, 2N, … of the clip, so that several people's meshes are
    of the same moments. Coordinates are the camera frame's, metres, turned to y up: (x, -y, -z).
    The folder appears when it is complete, in place of one of that name. Raises OutputError if it
    cannot be written.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        rows = _rows(motion, every)
        meshes = (vertices * Y_UP for vertices in camera_vertices(motion, body, rows))
        _write_files(part, motion.frame_ids[rows], meshes, body, HEADER, advance)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
    except OSError as error:
        raise OutputError(
            f"The meshes cannot be written to {folder}: {error.strerror or error}. "
            "Make room there, or pass --no-meshes or a larger --mesh-every."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def mesh_count(motion: Motion, *, every: int = 1) -> int:
    """Count the meshes that `write_obj_sequence` writes."""
    return len(_rows(motion, every))


def _rows(motion: Motion, every: int) -> NDArray[np.int64]:
    return np.flatnonzero(motion.frame_ids % every == 0)


def write_obj(
    path: Path, stage: Stage, person: Performer, *, advance: Callable[[int], None]
) -> None:
    """Write a person's meshes as `path`/000000.obj, …, in the world, posed with every corrective.

    The files are numbered by source frame, or by step where the stage was resampled.
    """
    path.mkdir(parents=True)
    meshes = world_vertices(stage.body, person)
    header = b"# %s\n" % note(stage)
    _write_files(path, file_numbers(stage, person), meshes, stage.body, header, advance)


def _write_files(
    folder: Path,
    numbers: Iterable[int],
    meshes: Iterable[NDArray[np.float32]],
    body: BodyModel,
    header: bytes,
    advance: Callable[[int], None],
) -> None:
    faces = b"s 1\n" + b"".join(b"f %d %d %d\n" % tuple(face) for face in (body.faces + 1).tolist())
    for number, vertices in zip(numbers, meshes, strict=True):
        (folder / f"{number:06d}.obj").write_bytes(header + vertex_lines(vertices) + faces)
        advance(1)


def vertex_lines(vertices: NDArray[np.float32]) -> bytes:
    """Write "v x y z" lines for vertices (V, 3), in columns.

    The digits are computed for all numbers at once, a fifth of the time of "%.5f" for each.
    """
    numbers = np.rint(vertices.astype(np.float64) * 10**DECIMALS).astype(np.int64)
    digits = max(len(str(np.abs(numbers).max())), DECIMALS + 1)
    text = np.full((len(numbers), 3, digits + 3), ord(" "), np.uint8)  # space, sign, digits, point
    text[..., 1][numbers < 0] = ord("-")
    point = text.shape[2] - DECIMALS - 1
    text[..., point] = ord(".")
    rest = np.abs(numbers)
    for column in [*range(text.shape[2] - 1, point, -1), *range(point - 1, 1, -1)]:
        tens = rest // 10
        text[..., column] = rest - 10 * tens + ord("0")
        rest = tens
    lines = np.empty((len(numbers), text[0].size + 2), np.uint8)
    lines[:, 0], lines[:, -1] = ord("v"), ord("\n")
    lines[:, 1:-1] = text.reshape(len(text), -1)
    return lines.tobytes()
