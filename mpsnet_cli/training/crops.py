"""Labelled pictures for training: crops as `mpsnet synth` leaves them, and what is done to them.

What happens to a crop is a function of the seed and of the number of its step alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mpsnet_cli.body.skeleton import MIRRORED
from mpsnet_cli.errors import InputError
from mpsnet_cli.geometry import axis_angle_to_matrix
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.shards import read_shard

READERS = 4  # threads; decoding JPEG leaves Python's lock alone

FLIPPED = 0.5  # shares of crops
TURNED = 0.3
GREY = 0.04
NOISY = 0.1
COVERED = 0.1
LARGEST_COVER = 0.35  # of the crop's side
STRONGEST_NOISE = 0.12  # deviation, of the range of brightness
DARKEST = 1e-4  # where a power still has a slope
LARGEST_TURN = 0.35  # rad
LARGEST_ZOOM = 0.1  # of the logarithm
LARGEST_SHIFT = 0.06  # in half crops


class Crops(NamedTuple):
    """N crops and the truth about the person in each, seen by a camera that looks at its middle.

    images: (N, 3, S, S) uint8 RGB, or float32 in 0..1 once augmented
    rotmats: (N, 24, 3, 3) the root's in that camera's frame
    betas: (N, 10)
    joints2d: (N, 24, 2) in the crop's [-1, 1]²
    joints3d: (N, 24, 3) m, that camera's axes, from any origin
    visible: (N, 24) bool, in the picture and behind nothing but the person
    """

    images: Tensor
    rotmats: Tensor
    betas: Tensor
    joints2d: Tensor
    joints3d: Tensor
    visible: Tensor

    def to(self, device: torch.device) -> Crops:
        """Copy the crops to a device."""
        return Crops(*(part.to(device, non_blocking=True) for part in self))

    def take(self, rows: Tensor | slice) -> Crops:
        """Choose some of the crops."""
        return Crops(*(part[rows] for part in self))


def load_crops(folders: Iterable[Path], report: Reporter) -> Crops:
    """Read the crops of folders into memory: 50 kB each at 128 px.

    Raises InputError for a folder without crops, one of another picture size than the first, or one
    that cannot be read.
    """
    paths: list[Path] = []
    for folder in folders:
        found = sorted(folder.glob("crops-*.npz"))
        if not found:
            raise InputError(f"{folder} holds no crops: make some with mpsnet synth {folder}.")
        paths += found
    if not paths:
        raise InputError("No folders of crops are named: make some with mpsnet synth.")
    parts: list[Crops] = []
    with (
        ThreadPoolExecutor(READERS) as pool,
        report.stage("reading crops", total=len(paths)) as advance,
    ):
        for path, part in zip(paths, pool.map(_read, paths), strict=True):
            parts.append(part)
            size, first = part.images.shape[-1], parts[0].images.shape[-1]
            if size != first:
                pool.shutdown(cancel_futures=True)
                raise InputError(
                    f"The crops in {path.parent} are of {size} px, and others of {first} px: train "
                    "on one size at a time."
                )
            advance(1)
    return Crops(*map(torch.cat, zip(*parts, strict=True)))


def _read(path: Path) -> Crops:
    batch = read_shard(path).batch
    pose, joints3d = batch.before_crops()
    rotmats = axis_angle_to_matrix(pose.reshape(-1, 24, 3)).astype(np.float32)
    return Crops(
        torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous(),
        *map(torch.from_numpy, (rotmats, batch.betas, batch.joints2d, joints3d, batch.visible)),
    )


def augment(crops: Crops, generator: torch.Generator, *, size: int, plain: bool = False) -> Crops:
    """Vary crops in place and colour, and resample them to `size`; the labels follow.

    `plain` ones are mirrored at most. The dice are the CPU's, so that devices differ by rounding
    alone (and in the noise).
    """
    images, device = crops.images, crops.images.device
    count = len(images)

    def dice(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).to(device)

    flip = dice() < FLIPPED
    varied = 0.0 if plain else 1.0
    angle = varied * LARGEST_TURN * (2 * dice() - 1) * (dice() < TURNED)
    zoom = torch.exp(varied * LARGEST_ZOOM * (2 * dice() - 1))
    shift = varied * LARGEST_SHIFT * (2 * dice(2) - 1)

    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], 1).view(-1, 3, 3)
    mirror = torch.stack([torch.where(flip, -1.0, 1.0), one, one], 1)
    # A point p of the crop goes to zoom · turn · mirror · p + shift.
    flat = turn[:, :2, :2]
    back = (flat * mirror[:, None, :2]).mT / zoom[:, None, None]
    theta = torch.cat([back, -back @ shift[:, :, None]], dim=2)
    if images.shape[-1] >= 2 * size:  # bilinear sampling would skip pixels
        images = F.interpolate(images.float(), size=(size, size), mode="area")
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    images = F.grid_sample(images.float() / 255, grid, align_corners=False)

    partners = torch.tensor(MIRRORED, device=device)
    swapped = torch.where(flip[:, None], partners, partners[partners])
    rows = torch.arange(count, device=device)[:, None]
    joints2d = crops.joints2d[rows, swapped] * mirror[:, None, :2]
    joints2d = zoom[:, None, None] * joints2d @ flat.mT + shift[:, None]
    joints3d = (crops.joints3d[rows, swapped] * mirror[:, None]) @ turn.mT
    rotmats = crops.rotmats[rows, swapped] * mirror[:, None, :, None] * mirror[:, None, None, :]
    rotmats[:, 0] = turn @ rotmats[:, 0]
    return Crops(
        images if plain else _recoloured(images, dice, generator),
        rotmats,
        crops.betas,
        joints2d,
        joints3d,
        crops.visible[rows, swapped] & (joints2d.abs() < 1).all(dim=2),
    )


def _recoloured(images: Tensor, dice: Callable[..., Tensor], generator: torch.Generator) -> Tensor:
    """Change the light of images (N, 3, S, S), add noise, and cover a part; in place at will."""
    size, device = images.shape[-1], images.device
    gamma = torch.exp(0.3 * (dice(1, 1, 1) - 0.5))
    gain = torch.exp(0.2 * (dice(3, 1, 1) - 0.5) + 0.4 * (dice(1, 1, 1) - 0.5))
    images = images.clamp_(DARKEST, 1).pow_(gamma).mul_(gain)
    grey = dice() < GREY
    images[grey] = images[grey].mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    noisy, deviation = dice() < NOISY, STRONGEST_NOISE * dice(1, 1, 1).square()
    noise = torch.randn(int(noisy.sum()), 3, size, size, generator=generator).to(device)
    images[noisy] += deviation[noisy] * noise
    sides = LARGEST_COVER * dice(2) * (dice(1) < COVERED)
    low = (dice(2) * (1 - sides))[..., None]
    at = (torch.arange(size, device=device) + 0.5) / size
    columns, rows = ((at >= low) & (at < low + sides[..., None])).unbind(dim=1)
    covered = rows[:, None, :, None] & columns[:, None, None, :]
    return torch.where(covered, dice(3, 1, 1), images).clamp_(0, 1)
