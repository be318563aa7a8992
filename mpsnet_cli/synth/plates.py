"""Flat pictures that stand in for the world: cloth, walls, floors, clutter, a user's photographs.

A plate is SIDE × SIDE RGB, a function of its number and the split alone. Plates are painted when
they are first asked for and kept.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mpsnet_cli.errors import InputError
from mpsnet_cli.synth.repertoire import Split

Picture = NDArray[np.uint8]
Floats = NDArray[np.floating]

SIDE = 256  # px
SEED = 7
PAINTED = 600  # plates without a user's photographs
PHOTO_SHARE = 0.5  # of the draws, where there are photographs
PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
HELD_OUT_EVERY = 8  # of a user's photographs, by the checksum of the name


class Plates:
    """The plates of one split, side by side in one tensor."""

    def __init__(self, split: Split, photos: Path | None, *, device: torch.device) -> None:
        self._held_out = split == "held-out"
        self.photos = [] if photos is None else _photos(photos, split)
        count = PAINTED + len(self.photos)
        self._painted = np.zeros(count, bool)
        self._pixels = torch.zeros(count, SIDE, SIDE, 4, dtype=torch.uint8, device=device)

    def draw(self, rng: np.random.Generator) -> int:
        """Choose a plate."""
        if self.photos and rng.random() < PHOTO_SHARE:
            return PAINTED + int(rng.integers(len(self.photos)))
        return int(rng.integers(PAINTED))

    def load(self, numbers: NDArray[np.floating]) -> None:
        """Make sure that plates are there before they are looked up; -1 is none."""
        wanted = np.unique(numbers).astype(int)
        for number in wanted[(wanted >= 0) & ~self._painted[wanted]].tolist():
            plate = torch.from_numpy(self._make(number))
            self._pixels[number, ..., :3] = plate.to(self._pixels.device)
            self._painted[number] = True

    def sheets(self, numbers: Tensor) -> Tensor:
        """Take loaded plates (n,) whole: (n, 3, SIDE, SIDE), 0..255."""
        return self._pixels.index_select(0, numbers).float().permute(0, 3, 1, 2)[:, :3]

    def look_up(self, numbers: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Take the nearest texels of loaded plates (P,) at (u, v), in sides of a plate: (3, P).

        They are 0..1. A plate goes on beyond its edges as its mirror image.
        """
        x, y = (_mirrored(t).mul_(SIDE).clamp_(max=SIDE - 1).long() for t in (u, v))
        texel = numbers.mul(SIDE).add_(y).mul_(SIDE).add_(x)
        found = self._pixels.view(-1, 4).view(torch.int32)[:, 0].index_select(0, texel)
        return found.view(torch.uint8).view(-1, 4).float().T[:3] / 255

    def _make(self, number: int) -> Picture:
        if number >= PAINTED:
            return _read(self.photos[number - PAINTED])
        rng = np.random.default_rng((SEED, int(self._held_out), number))
        painters = PAINTERS + HELD_OUT_PAINTERS if self._held_out else PAINTERS
        picture = painters[int(rng.integers(len(painters)))](rng)
        if rng.random() < 0.3:
            picture = picture * (1 + 0.5 * (_fractal(rng, 0.7) - 0.5))[..., None]
        return np.clip(picture * 255, 0, 255).astype(np.uint8)


def _mirrored(t: Tensor) -> Tensor:
    return 1 - (t - 2 * (t / 2).floor() - 1).abs()


def _photos(folder: Path, split: Split) -> list[Path]:
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PHOTO_SUFFIXES)
    held_out = [zlib.crc32(p.name.encode()) % HELD_OUT_EVERY == 0 for p in found]
    chosen = [p for p, out in zip(found, held_out, strict=True) if out == (split == "held-out")]
    if not found:
        suffixes = ", ".join(sorted(PHOTO_SUFFIXES))
        raise InputError(f"{folder} has no pictures ({suffixes}): name a folder that has some.")
    return chosen


def _read(path: Path) -> Picture:
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise InputError(f"{path} is not a picture that can be read: take it out of the folder.")
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    return cv2.resize(square, (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., ::-1].copy()


def draw_colours(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Draw colours (count, 3), sRGB 0..1, as things have them: mostly dull, often dark."""
    kind, hue, bold = rng.random((3, count))
    value = np.where(kind < 0.75, rng.beta(1.4, 1.4, count), 0.2 + 0.8 * bold)
    dull = np.where(kind < 0.25, 0.08 * bold, rng.beta(1.6, 3, count))
    return hsv(hue, np.where(kind < 0.75, dull, 0.4 + 0.6 * rng.random(count)), value)


def hsv(hue: ArrayLike, saturation: ArrayLike, value: ArrayLike) -> NDArray[np.float64]:
    """Turn hues, saturations and values (…,), 0..1, into RGB (…, 3)."""
    hue, saturation, value = (np.asarray(x, float)[..., None] for x in (hue, saturation, value))
    wheel = np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1
    return value * (1 - saturation * (1 - np.clip(wheel, 0, 1)))


def _palette(rng: np.random.Generator, count: int) -> Floats:
    """Draw colours (count, 3) that go together more often than not."""
    base = draw_colours(rng, 3)
    picked = base[rng.integers(3, size=count)]
    spread = rng.uniform(0.03, 0.3)
    tinted = picked + spread * rng.standard_normal((count, 1)) * rng.uniform(0.5, 1, (count, 3))
    return np.clip(tinted, 0, 1).astype(np.float32)


def _fractal(
    rng: np.random.Generator, roughness: float, stretch: tuple[int, int] = (1, 1)
) -> Floats:
    """Paint clouds (SIDE, SIDE), 0..1: octaves of noise, each `roughness` as strong as the last."""
    total = np.zeros((SIDE, SIDE), np.float32)
    strength = 1.0
    for octave in range(1, 8):
        shape = tuple(min(SIDE, max(2, 2**octave // s)) for s in stretch)
        noise = rng.random(shape, np.float32)
        total += strength * cv2.resize(noise, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        strength *= roughness
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def _clouds(rng: np.random.Generator) -> Floats:
    stretch = [(1, 1), (1, 1), (1, 8), (8, 1)][rng.integers(4)]
    field = _fractal(rng, rng.uniform(0.4, 0.85), stretch)
    first, second, third = _palette(rng, 3)
    mixed = first + field[..., None] * (second - first)
    if rng.random() < 0.4:
        edge = rng.uniform(0.4, 0.6)
        veins = np.clip(1 - np.abs(field - edge) / rng.uniform(0.01, 0.1), 0, 1)
        mixed += veins[..., None] * (third - mixed)
    return mixed


def _leaves(rng: np.random.Generator) -> Floats:
    """Shapes over shapes, many small and few large, as the outlines of the world are spread."""
    count = int(rng.integers(40, 260))
    colours = _palette(rng, count)
    sizes = SIDE * np.clip(0.015 * rng.pareto(1.1, count) + 0.02, 0, 0.6)
    kinds = rng.choice(4, count, p=rng.dirichlet([0.6] * 4))
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = colours[0]
    upright = rng.random() < 0.5
    for colour, size, kind in zip(colours, sizes, kinds, strict=True):
        centre = rng.uniform(-0.1, 1.1, 2) * SIDE
        angle = rng.normal(0, 4) if upright else rng.uniform(0, 180)
        aspect = rng.uniform(0.25, 1)
        paint = [float(c) for c in colour]
        if kind == 0:
            axes = (int(size) + 1, int(size * aspect) + 1)
            cv2.ellipse(picture, centre.astype(int), axes, angle, 0, 360, paint, -1, cv2.LINE_AA)
            continue
        if kind == 1:  # boxes and poles
            half = size * np.array([aspect, 1 if rng.random() < 0.7 else 6])
            corners = half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        else:
            turns = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
            radii = size * rng.uniform(0.5, 1.3, len(turns))
            corners = np.stack([radii * np.cos(turns), radii * np.sin(turns)], axis=1)
        turn = np.radians(angle)
        matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        points = np.rint(corners @ matrix.T + centre).astype(np.int32)
        cv2.fillPoly(picture, [points], paint, cv2.LINE_AA)
        if rng.random() < 0.25:
            shade = [float(c) for c in colour * rng.uniform(0.3, 1.6)]
            cv2.polylines(picture, [points], True, shade, int(rng.integers(1, 4)), cv2.LINE_AA)
    return picture


def _blocks(rng: np.random.Generator) -> Floats:
    """Rectangles in rectangles: shelves, fronts of houses, furniture, screens."""
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    colours = _palette(rng, 64)
    stack = [(0, 0, SIDE, SIDE, 0)]
    while stack:
        x, y, w, h, depth = stack.pop()
        colour = colours[rng.integers(len(colours))]
        slope = rng.normal(0, 0.12, 2)
        ramp = 1 + np.add.outer(np.linspace(-1, 1, h) * slope[0], np.linspace(-1, 1, w) * slope[1])
        picture[y : y + h, x : x + w] = colour * ramp[..., None]
        if depth < 7 and min(w, h) > 14 and rng.random() < 0.93 - 0.06 * depth:
            cut = rng.uniform(0.2, 0.8)
            if w > h * rng.uniform(0.6, 1.6):
                at = int(w * cut)
                stack += [(x, y, at, h, depth + 1), (x + at, y, w - at, h, depth + 1)]
            else:
                at = int(h * cut)
                stack += [(x, y, w, at, depth + 1), (x, y + at, w, h - at, depth + 1)]
        elif rng.random() < 0.5 and min(w, h) > 6:
            border = max(1, int(min(w, h) * rng.uniform(0.05, 0.25)))
            picture[y + border : y + h - border, x + border : x + w - border] *= rng.uniform(
                0.5, 1.5
            )
    return picture


def _lattice(rng: np.random.Generator) -> Floats:
    """Bricks, tiles, planks, windows: one thing repeated, never quite the same."""
    base, joint, other = _palette(rng, 3)
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = joint
    w, h = (int(s) for s in np.exp(rng.uniform(np.log(8), np.log(90), 2)))
    gap = int(rng.integers(1, 2 + min(w, h) // 5))
    stagger = rng.choice([0.0, 0.5])
    uneven, odd = rng.uniform(0, 0.25), rng.random() * 0.3
    for row, y in enumerate(range(-h, SIDE, h + gap)):
        for x in range(-w + int(stagger * (row % 2) * w), SIDE, w + gap):
            colour = (other if rng.random() < odd else base) * (1 + uneven * rng.standard_normal())
            picture[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = colour
    return picture


def _foliage(rng: np.random.Generator) -> Floats:
    """Grass, leaves, gravel: thousands of strokes, lit from above."""
    tint = hsv(rng.normal(0.25, 0.06) % 1, rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.7))
    if rng.random() < 0.4:
        tint = draw_colours(rng, 1)[0]
    picture = np.empty((SIDE, SIDE, 3), np.float32)
    picture[:] = tint * 0.4
    count, reach = int(rng.integers(400, 1200)), rng.uniform(1.5, 14)
    places = rng.uniform(0, SIDE, (count, 2))
    angles = rng.normal(rng.uniform(0, np.pi), rng.uniform(0.1, 2), count)
    ends = places + reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lights = rng.uniform(0.3, 1.7, count)
    width = max(1, int(reach * rng.uniform(0.1, 0.5)))
    for start, end, light in zip(places.astype(int), ends.astype(int), lights, strict=True):
        paint = [float(c) for c in tint * light]
        cv2.line(picture, start, end, paint, width)
    return picture * (0.6 + 0.8 * _fractal(rng, 0.6))[..., None]


def _blur(rng: np.random.Generator) -> Floats:
    """Anything, out of focus."""
    painter = (_leaves, _blocks, _clouds, _lattice)[rng.integers(4)]
    return cv2.GaussianBlur(painter(rng), (0, 0), float(np.exp(rng.uniform(0.5, 3))))


def _signs(rng: np.random.Generator) -> Floats:
    """Letters and lines on something."""
    ground = _blocks(rng) if rng.random() < 0.5 else _clouds(rng)
    picture = np.clip(255 * ground, 0, 255).astype(np.uint8)  # as OpenCV wants to write on it
    for _ in range(rng.integers(1, 9)):
        text = "".join(chr(c) for c in rng.integers(48, 91, rng.integers(1, 9)))
        at = (int(rng.uniform(-20, 200)), int(rng.uniform(10, SIDE)))
        paint = [float(255 * c) for c in draw_colours(rng, 1)[0]]
        size, thickness = rng.uniform(0.4, 3.5), int(rng.integers(1, 8))
        cv2.putText(picture, text, at, int(rng.integers(8)), size, paint, thickness, cv2.LINE_AA)
    return picture.astype(np.float32) / 255


def _cells(rng: np.random.Generator) -> Floats:
    """Irregular cells around random points, as of stones or cracked earth."""
    count = int(rng.integers(20, 150))
    seeds = np.ones((SIDE, SIDE), np.uint8)
    seeds[tuple(rng.integers(0, SIDE, (2, count)))] = 0
    kind = cv2.DIST_LABEL_CCOMP
    distance, owner = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=kind)
    return _palette(rng, count + 1)[owner] * (1.2 - 0.8 * distance / distance.max())[..., None]


def _ripples(rng: np.random.Generator) -> Floats:
    """Waves around two points that cross each other."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    field = np.zeros((SIDE, SIDE), np.float32)
    for _ in range(2):
        cx, cy = rng.uniform(-SIDE, 2 * SIDE, 2)
        field += np.sin(np.hypot(x - cx, y - cy) * rng.uniform(0.05, 0.5))
    first, second = _palette(rng, 2)
    return first + (0.5 + 0.25 * field)[..., None] * (second - first)


Painter = Callable[[np.random.Generator], Floats]
PAINTERS: tuple[Painter, ...] = (
    _clouds, _leaves, _leaves, _leaves, _blocks, _blocks, _lattice, _foliage, _blur, _blur, _signs,
)  # fmt: skip
HELD_OUT_PAINTERS: tuple[Painter, ...] = (_cells, _cells, _ripples)
