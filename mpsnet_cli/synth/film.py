"""From light to a picture as cameras, codecs and resizing leave it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.synth.records import Value

Array = NDArray[np.float64]

SENSORS = (1.0, 0.75, 0.5, 0.375, 0.25)  # pixels that the crop had in its video, per pixel
SENSOR_SHARES = (0.7, 0.17, 0.1, 0.02, 0.01)
COARSEST = 48  # px that a crop has at least
BLOCK = 8  # px, of JPEG
STEPS = -1, -0.5, 0.5, 1  # of motion blur, besides where it is
GRAIN_SIDE = 512  # px of a tile of noise
TYPICAL = 0.15  # mean of a scene's light
LUMA = (0.299, 0.587, 0.114)

# JPEG's example tables K.1 and K.2 (ITU-T T.81), for quality 50.
_LUMA_STEPS = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA_STEPS = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)  # fmt: skip

_TO_YCC = np.array([LUMA, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)])  # T.871
_FROM_YCC = np.linalg.inv(_TO_YCC)


class Film(NamedTuple):
    """How one camera records; stacked, how n of them do."""

    exposure: Value  # of a mean grey
    metering: Value  # 0..1, how far the camera makes up for what is bright or dark
    balance: Value  # (3,) gains of red, green and blue
    saturation: Value
    contrast: Value
    bend: Value  # of the tone curve: positive brightens the middle
    lift: Value  # what black becomes
    blur: Value  # 0..1/3, share of each neighbour
    shake: Value  # (2,) motion blur, in sides of the crop
    sensor: Value  # index into SENSORS
    grain: Value  # deviation of the noise, grey levels / 255
    shot: Value  # its growth with brightness
    grain_at: Value  # (2,) 0..1, where in the tile
    quality: Value  # JPEG; 0 for none

    def expose(self, rng: np.random.Generator) -> Film:
        """Take the next picture, with noise of its own."""
        return self._replace(grain_at=rng.random(2))


def draw_film(rng: np.random.Generator) -> Film:
    """Choose a camera."""
    grey = rng.random() < 0.02
    angle = rng.uniform(0, 2 * np.pi)
    shake = 0.05 * rng.random() ** 2 if rng.random() < 0.05 else 0.0
    return Film(
        exposure=0.2 * np.exp(rng.normal(0, 0.22)),
        metering=rng.uniform(0.4, 1),
        balance=np.exp(rng.normal(0, 0.05, 3)),
        saturation=0.0 if grey else max(0.0, rng.normal(1, 0.13)),
        contrast=rng.normal(1.05, 0.12),
        bend=rng.normal(0, 0.22),
        lift=rng.normal(0, 0.02),
        blur=rng.uniform(0, 0.2),
        shake=shake * np.array([np.cos(angle), np.sin(angle)]),
        sensor=int(np.searchsorted(np.cumsum(SENSOR_SHARES[:-1]), rng.random())),
        grain=0.0 if rng.random() < 0.3 else 0.04 * rng.random() ** 2,
        shot=rng.random(),
        grain_at=np.zeros(2),
        quality=rng.uniform(18, 95) if rng.random() < 0.55 else 0.0,
    )


def develop(light: Tensor, film: Film, *, sensors: NDArray[np.integer]) -> Tensor:
    """Turn linear light (n, 3, S, S) into pictures (n, 3, S, S), 0..1, not yet rounded.

    `sensors` (n,) is `film.sensor` again, on the CPU: what belongs together is done together.
    """
    size = light.shape[-1]
    gain = film.balance * _exposure(light, film)[:, None]
    gain, bend, contrast, lift, blur = (
        values.reshape(len(light), -1, 1, 1)
        for values in (gain, film.bend, film.contrast, film.lift, film.blur)
    )
    tone = (light * gain).sqrt_()
    tone *= (bend + 1).sub(bend * tone).clamp_(min=0)
    grey = light.new_tensor([LUMA] * 3)
    mix = grey + film.saturation[:, None, None] * (torch.eye(3, device=light.device) - grey)
    base = (0.5 - 0.5 * contrast + lift).view(-1, 1, 1)
    tone = torch.baddbmm(base, contrast.view(-1, 1, 1) * mix, tone.flatten(2)).view(light.shape)
    tone = _blur(_shake(tone.clamp_(0, 1), film.shake), blur)
    order = np.argsort(sensors, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(sensors[order])) + 1)
    recorded = []
    for part in parts:
        rows = torch.as_tensor(part, device=light.device)
        own = Film(*(values.index_select(0, rows) for values in film))
        side = BLOCK * round(size * SENSORS[sensors[part[0]]] / BLOCK)
        side = max(min(size, COARSEST), side)
        recorded.append(_record(tone.index_select(0, rows), own, side))
    back = torch.as_tensor(np.argsort(order), device=light.device)
    return torch.cat(recorded).index_select(0, back).clamp_(0, 1)


def _exposure(light: Tensor, film: Film) -> Tensor:
    """Meter light (n, 3, S, S): gains (n,) towards the film's exposure."""
    mean = light[..., ::4, ::4].mean(dim=(1, 2, 3)).clamp(1e-3, 1e3)
    return film.exposure * mean**-film.metering * TYPICAL ** (film.metering - 1)


def _record(tone: Tensor, film: Film, side: int) -> Tensor:
    """Record pictures (n, 3, S, S) with side × side pixels, and enlarge what was recorded."""
    size = tone.shape[-1]
    if 2 * side < size:  # else every pixel is looked at anyway
        tone = F.interpolate(tone, size=(side, side), mode="bilinear", antialias=True)
    elif side < size:
        tone = _resized(tone, side)
    if bool((film.grain > 0).any()):
        grain, shot = (values[:, None, None, None] for values in (film.grain, film.shot))
        noise = _grain(film.grain_at, side).to(tone)
        tone = tone + noise.mul_((2 * grain * shot) * tone + grain * (1 - shot))
    if bool((film.quality > 0).any()):
        compressed = _jpeg(tone.clamp(0, 1), film.quality.clamp(min=1))
        tone = torch.lerp(tone, compressed, (film.quality > 0).to(tone)[:, None, None, None])
    return _resized(tone, size) if side < size else tone


def _resized(tone: Tensor, size: int) -> Tensor:
    """Sample pictures (n, c, S, S) bilinearly at size × size pixels; quicker than interpolate."""
    grid = _grid(size, tone.device).expand(len(tone), -1, -1, -1)
    return F.grid_sample(tone, grid, padding_mode="border", align_corners=False)


def _shake(tone: Tensor, shake: Tensor) -> Tensor:
    """Average pictures along the way of the camera during the exposure."""
    (rows,) = shake.any(dim=1).nonzero(as_tuple=True)
    if not len(rows):
        return tone
    still, some = _grid(tone.shape[-1], tone.device), tone[rows]
    moved = some.clone()
    for step in STEPS:
        grid = still + step * shake[rows, None, None]
        moved += F.grid_sample(
            some, grid, mode="nearest", padding_mode="border", align_corners=False
        )
    return tone.index_copy(0, rows, moved / (1 + len(STEPS)))


@lru_cache(maxsize=16)
def _grid(size: int, device: torch.device) -> Tensor:
    """Place size × size pixels in [-1, 1]²: (1, size, size, 2) for grid_sample."""
    axis = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    return torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)[None]


def _blur(tone: Tensor, share: Tensor) -> Tensor:
    """Let every pixel but the outermost spread over its neighbours, along columns, then rows."""
    for axis in (2, 3):
        inner = tone.narrow(axis, 1, tone.shape[axis] - 2)
        beside = tone.narrow(axis, 0, inner.shape[axis]) + tone.narrow(axis, 2, inner.shape[axis])
        inner += beside.sub_(inner, alpha=2).mul_(share)
    return tone


@lru_cache(maxsize=1)
def _grain_tile() -> Tensor:
    noise = np.random.default_rng(11).standard_normal((3, GRAIN_SIDE, GRAIN_SIDE), np.float32)
    return torch.from_numpy(0.7 * noise + 0.7 * noise.mean(axis=0))


def _grain(at: Tensor, side: int) -> Tensor:
    """Cut noise (n, 3, side, side) out of the tile at `at` (n, 2), 0..1."""
    corners = (at.cpu() * (GRAIN_SIDE - side)).long().tolist()
    tile = _grain_tile()
    return torch.stack([tile[:, y : y + side, x : x + side] for y, x in corners])


def _jpeg(tone: Tensor, quality: Tensor) -> Tensor:
    """Put pictures (n, 3, S, S), 0..1, through JPEG's loss at qualities (n,) 1..100.

    Colour has half the resolution (4:2:0) where whole blocks of it fit.
    """
    ycc = (tone.new_tensor(255 * _TO_YCC) @ tone.flatten(2)).view(tone.shape)
    scale = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None, None]
    halved = tone.shape[-1] % (2 * BLOCK) == 0
    luma = _quantise(ycc[:, :1] - 128, _LUMA_STEPS, scale) + 128
    chroma = _quantise(F.avg_pool2d(ycc[:, 1:], 2) if halved else ycc[:, 1:], _CHROMA_STEPS, scale)
    if halved:
        chroma = _resized(chroma, tone.shape[-1])
    ycc = torch.cat([luma, chroma], dim=1)
    return (tone.new_tensor(_FROM_YCC / 255) @ ycc.flatten(2)).view(tone.shape)


@lru_cache(maxsize=16)
def _waves(device: torch.device) -> Tensor:
    """Make the orthonormal cosine waves of 8 × 8 pixels, a row each: (64, 64)."""
    frequency = torch.arange(BLOCK, device=device)
    waves = torch.cos(torch.pi / BLOCK * (frequency + 0.5) * frequency[:, None]) / 2
    waves[0] /= 2**0.5
    return torch.kron(waves, waves)


def _quantise(values: Tensor, steps: tuple[tuple[int, ...], ...], scale: Tensor) -> Tensor:
    """Round the cosine coefficients of 8 × 8 blocks of (n, c, S, S) to multiples of `steps`."""
    count, channels, side, _ = values.shape
    waves = _waves(values.device)
    split = (count, channels, side // BLOCK, BLOCK, side // BLOCK, BLOCK)
    blocks = values.reshape(split).transpose(3, 4).reshape(count, channels, -1, BLOCK * BLOCK)
    size = (values.new_tensor(steps).view(-1) * scale).clamp(min=1)
    blocks = ((blocks @ waves.T) / size).round() * size @ waves
    split = (count, channels, side // BLOCK, side // BLOCK, BLOCK, BLOCK)
    return blocks.view(split).transpose(3, 4).reshape(values.shape)
