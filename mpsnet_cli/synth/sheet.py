"""A contact sheet: samples side by side with their true skeletons or boxes drawn on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.body.skeleton import JOINT_NAMES, PARENTS
from mpsnet_cli.errors import OutputError
from mpsnet_cli.synth.shards import Shard, decode, iter_scenes, iter_shards

COLUMNS, ROWS = 8, 6
CELL = 256  # px, to which the pictures are enlarged
LEFT, RIGHT, MIDDLE = (80, 200, 255), (255, 140, 60), (120, 255, 120)  # RGB, by side of the body
FRACTION_BITS = 4  # of a pixel, that OpenCV draws by

Image = NDArray[np.uint8]


def write_sheet(folder: Path, path: Path) -> None:
    """Draw the first samples of a folder: 48 crops or scenes, or 8 frames each of 6 sequences.

    Raises InputError if the folder holds no samples, OutputError if `path` cannot be written.
    """
    scenes = any(folder.glob("scenes-*.npz"))
    cells = [*islice(_scenes(folder) if scenes else _people(folder), COLUMNS * ROWS)]
    cells += [np.zeros((CELL, CELL, 3), np.uint8)] * (-len(cells) % COLUMNS)
    rows = [np.concatenate(cells[i : i + COLUMNS], axis=1) for i in range(0, len(cells), COLUMNS)]
    sheet = np.concatenate(rows)
    if not cv2.haveImageWriter(str(path)) or not cv2.imwrite(str(path), sheet[..., ::-1]):
        raise OutputError(f"The sheet cannot be written to {path}: name a .png file elsewhere.")


def _people(folder: Path) -> Iterator[Image]:
    for shard in iter_shards(folder):
        batch = shard.batch
        for row in _shown(shard):
            yield draw_skeleton(batch.images[row], batch.joints2d[row], batch.visible[row])


def _scenes(folder: Path) -> Iterator[Image]:
    for shard in iter_scenes(folder):
        for jpeg, boxes in zip(shard.jpegs, shard.boxes, strict=True):
            yield draw_boxes(decode(jpeg), boxes)


def _shown(shard: Shard) -> NDArray[np.int64]:
    """Choose pictures of a shard: all crops, COLUMNS frames of each sequence."""
    columns = COLUMNS if shard.kind == "sequences" else 1
    frames = np.linspace(0, shard.frames - 1, columns).round().astype(np.int64)
    return (np.arange(len(shard.indices))[:, None] * shard.frames + frames).ravel()


def draw_skeleton(image: Image, joints: NDArray[np.floating], seen: NDArray[np.bool_]) -> Image:
    """Enlarge a crop (S, S, 3) RGB to CELL and draw joints (24, 2) of [-1, 1]² on it.

    A joint that is seen (24,) is a disc, one that is hidden a ring.
    """
    size = image.shape[0]
    drawn = cv2.resize(image, (CELL, CELL), interpolation=cv2.INTER_LINEAR)
    # The middle, (0, 0), is the pixel with index S / 2; enlarging is about the pixels' corners.
    pixels = ((joints + 1) * size / 2 + 0.5) * CELL / size - 0.5
    points = np.rint(np.clip(pixels, -CELL, 2 * CELL) * (1 << FRACTION_BITS)).astype(int)
    for joint, parent in enumerate(PARENTS):
        if parent >= 0:
            line = (points[joint], points[parent], _colour(joint), 1, cv2.LINE_AA, FRACTION_BITS)
            cv2.line(drawn, *line)
    for joint, point in enumerate(points):
        radius, width = 3 << FRACTION_BITS, cv2.FILLED if seen[joint] else 1
        cv2.circle(drawn, point, radius, _colour(joint), width, cv2.LINE_AA, FRACTION_BITS)
    return drawn


def draw_boxes(image: Image, boxes: NDArray[np.floating]) -> Image:
    """Resize a scene (S, S, 3) RGB to CELL and draw boxes (N, 4), px of the scene, on it."""
    drawn = cv2.resize(image, (CELL, CELL), interpolation=cv2.INTER_AREA)
    corners = np.rint(boxes * (CELL / image.shape[0])).astype(int) - (0, 0, 1, 1)
    for x1, y1, x2, y2 in corners.tolist():
        cv2.rectangle(drawn, (x1, y1), (x2, y2), RIGHT)
    return drawn


def _colour(joint: int) -> tuple[int, int, int]:
    name = JOINT_NAMES[joint]
    return LEFT if name.startswith("left") else RIGHT if name.startswith("right") else MIDDLE
