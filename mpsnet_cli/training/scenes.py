"""Scenes to learn detection from: as `mpsnet synth --kind scenes` leaves them, and varied.

What happens to a picture is a function of the seed and of its step and place in the batch alone.
Boxes are x1, y1, x2, y2, px, measured between the edges of pixels: the picture is from 0 to its
size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.errors import InputError
from mpsnet_cli.synth.shards import decode, iter_scenes
from mpsnet_cli.training.pretrain import batch_rows

Picture = NDArray[np.uint8]
Boxes = NDArray[np.float32]

AHEAD = 3  # batches made while one is learnt from
READERS = min(16, os.cpu_count() or 1)  # threads; OpenCV leaves Python's lock alone
PADDING = 114  # grey level beside a picture, as the detector has it

ZOOMS = 0.7, 1.9  # of what just fills the picture
ZOOMS_OF_FOUR = 1.0, 1.6  # likewise, of four in one
STRETCH = 0.08  # deviation of the logarithm of width to height
BEYOND = 0.06  # sides of the picture, by which its edges are moved over the frame's at most
GAMMA, BRIGHTNESS, TINT = 0.35, 0.3, 0.12  # largest logarithms
GREY, BLURRED, NOISY = 0.08, 0.12, 0.15  # shares of pictures
LEAST_LEFT = 0.1  # of a box, that the frame has to leave of it
LEAST_SIDE = 3  # px


class Scenes(NamedTuple):
    """n pictures and their boxes."""

    jpegs: list[Picture]  # bytes of n JPEG files: 50 kB each at 416 px
    boxes: list[Boxes]  # n of (k, 4)


class Batch(NamedTuple):
    """N pictures of S × S, and who is in them."""

    images: Tensor  # (N, 3, S, S) uint8 RGB, channels last
    boxes: Tensor  # (M, 4)
    owner: Tensor  # (M,) the picture of each box


def load_scenes(folders: Iterable[Path]) -> Scenes:
    """Read the scenes of folders into memory. Raises InputError where there are none."""
    shards = [shard for folder in folders for shard in iter_scenes(folder)]
    return Scenes(
        [jpeg for shard in shards for jpeg in shard.jpegs],
        [boxes for shard in shards for boxes in shard.boxes],
    )


def still_batches(scenes: Scenes, *, batch_size: int, size: int) -> Iterator[Batch]:
    """Yield scenes as they are, in their order, resampled to `size`; the last batch is smaller."""
    for first in range(0, len(scenes.jpegs), batch_size):
        rows = range(first, min(first + batch_size, len(scenes.jpegs)))
        parts = []
        for row in rows:
            image = decode(scenes.jpegs[row])
            scale = size / image.shape[0]
            image = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
            parts.append((image, scale * scenes.boxes[row]))
        yield _stacked(parts)


def batches(
    scenes: Scenes,
    steps: range,
    *,
    batch_size: int,
    sizes: Sequence[int],
    mosaic: float,
    seed: int,
) -> Generator[Batch]:
    """Yield the varied batches of some steps; threads make them ahead.

    Each scene is seen once before any is seen again. A batch is of one of `sizes`, px, whichever
    the dice say. `mosaic` is the share of pictures that are four in one. Raises InputError if there
    are fewer scenes than a batch takes.
    """
    if len(scenes.jpegs) < batch_size:
        raise InputError(
            f"There are {len(scenes.jpegs)} scenes, and a batch takes {batch_size}: make more, or "
            "lower schedule.batch_size."
        )
    ahead: deque[list[Future[tuple[Picture, Boxes]]]] = deque()
    pool = ThreadPoolExecutor(READERS)
    try:
        for step in steps:
            rows = batch_rows(len(scenes.jpegs), batch_size, seed, step).tolist()
            dice = [np.random.default_rng((seed, 1, step, place)) for place in range(batch_size)]
            size = int(np.random.default_rng((seed, 2, step)).choice(sizes))
            ahead.append([
                pool.submit(vary, scenes, row, rng, size=size, mosaic=mosaic)
                for row, rng in zip(rows, dice, strict=True)
            ])  # fmt: skip
            if len(ahead) > AHEAD:
                yield _stacked([future.result() for future in ahead.popleft()])
        while ahead:
            yield _stacked([future.result() for future in ahead.popleft()])
    finally:
        pool.shutdown(cancel_futures=True)


def vary(
    scenes: Scenes, row: int, rng: np.random.Generator, *, size: int, mosaic: float
) -> tuple[Picture, Boxes]:
    """Make a picture (size, size, 3) out of a scene, or out of it and three others."""
    if rng.random() >= mosaic:
        image, boxes = _window(scenes, row, rng, size, size, ZOOMS)
    else:
        image = np.empty((size, size, 3), np.uint8)
        x, y = rng.integers(size * 3 // 10, size * 7 // 10, 2).tolist()
        rows = [row, *rng.integers(len(scenes.jpegs), size=3).tolist()]
        parts = []
        corners = ((0, 0, x, y), (x, 0, size, y), (0, y, x, size), (x, y, size, size))
        for each, (x1, y1, x2, y2) in zip(rows, corners, strict=True):
            window = _window(scenes, each, rng, x2 - x1, y2 - y1, ZOOMS_OF_FOUR)
            image[y1:y2, x1:x2] = window[0]
            parts.append(window[1] + np.array([x1, y1, x1, y1], np.float32))
        boxes = np.concatenate(parts)
    return _recoloured(image, rng), boxes


def _window(
    scenes: Scenes,
    row: int,
    rng: np.random.Generator,
    width: int,
    height: int,
    zooms: tuple[float, float],
) -> tuple[Picture, Boxes]:
    """Look at a scene through a frame: (height, width, 3), and the boxes within it."""
    image, boxes = decode(scenes.jpegs[row]), scenes.boxes[row]
    side = image.shape[0]
    zoom = max(width, height) / side * np.exp(rng.uniform(*np.log(zooms)))
    stretch = np.exp(STRETCH * rng.standard_normal())
    scale = zoom * np.array([stretch, 1 / stretch])
    room = np.array([width, height]) - scale * side
    shift = rng.random(2) * room + BEYOND * (2 * rng.random(2) - 1) * scale * side
    if rng.random() < 0.5:
        scale[0], shift[0] = -scale[0], shift[0] + scale[0] * side
    shrunk = 1 if zoom > 0.5 else 2  # as bilinear sampling would skip pixels
    if shrunk > 1:
        image = cv2.resize(image, None, fx=1 / shrunk, fy=1 / shrunk, interpolation=cv2.INTER_AREA)
    step = scale * shrunk
    offset = shift + (step - 1) / 2  # from edges to middles of pixels
    matrix = np.array([[step[0], 0, offset[0]], [0, step[1], offset[1]]])
    seen = cv2.warpAffine(image, matrix, (width, height), borderValue=(PADDING,) * 3)

    corners = boxes.reshape(-1, 2, 2) * scale + shift
    low, high = corners.min(axis=1), corners.max(axis=1)
    frame = np.array([width, height])
    inner = np.concatenate([np.clip(low, 0, frame), np.clip(high, 0, frame)], axis=1)
    sides = inner[:, 2:] - inner[:, :2]
    kept = sides.prod(axis=1) >= LEAST_LEFT * (high - low).prod(axis=1)
    kept &= (sides >= LEAST_SIDE).all(axis=1)
    return seen, inner[kept].astype(np.float32)


def _recoloured(image: Picture, rng: np.random.Generator) -> Picture:
    """Vary light and colour; sometimes blur a picture, or make it noisy or grey."""
    gamma = np.exp(GAMMA * rng.uniform(-1, 1))
    gain = np.exp(BRIGHTNESS * rng.uniform(-1, 1) + TINT * rng.uniform(-1, 1, 3))
    levels = np.linspace(0, 1, 256)[:, None] ** gamma * gain
    image = cv2.LUT(image, np.clip(255 * levels, 0, 255).round().astype(np.uint8)[:, None])
    kind = rng.random(3) < (GREY, BLURRED, NOISY)
    if kind[0]:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if kind[1]:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
    if kind[2]:
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(2, 14))
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def _stacked(parts: list[tuple[Picture, Boxes]]) -> Batch:
    images = torch.from_numpy(np.stack([image for image, _ in parts])).permute(0, 3, 1, 2)
    boxes = [torch.from_numpy(boxes) for _, boxes in parts]
    counts = torch.tensor([len(each) for each in boxes])
    return Batch(images, torch.cat(boxes), torch.arange(len(parts)).repeat_interleave(counts))
