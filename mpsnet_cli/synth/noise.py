"""Smooth random textures: the same numbers at the same place, whoever asks."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

PERIOD = 256  # lattice cells before a texture repeats


class Noise:
    """Fractal value noise of mean 0 and about unit deviation, over the plane or over space."""

    def __init__(self, seed: int) -> None:
        lattice = np.random.default_rng(seed).standard_normal((PERIOD, PERIOD))
        self._lattice = np.pad(lattice, (0, 1), mode="wrap").astype(np.float32)

    def plane(self, u: Floats, v: Floats, *, cell: float, octaves: int = 1) -> Floats:
        """Sample at (u, v), any shape; `cell` is the size of the largest features, same unit."""
        total = np.zeros(np.shape(u), np.float32)
        for octave in range(octaves):
            scale = 2**octave / cell
            x = np.mod(u * scale + 17.3 * octave, PERIOD)
            y = np.mod(v * scale + 71.9 * octave, PERIOD)
            total += self._sample(x, y) / 2**octave
        return total

    def space(self, points: Floats, *, cell: float, octaves: int = 1) -> Floats:
        """Sample at points (K, 3): three planes' noise added, which no axis gives away."""
        x, y, z = points.T
        planes = ((x + 0.37 * z, y), (y + 0.37 * x, z), (z + 0.37 * y, x))
        return sum(
            (self.plane(u, v, cell=cell, octaves=octaves) for u, v in planes),
            np.zeros(len(points), np.float32),
        ) / np.float32(np.sqrt(3))

    def _sample(self, x: Floats, y: Floats) -> Floats:
        # remap takes at most 32767 rows and quantises to 1/32 cell: fine for texture.
        flat_x, flat_y = (np.ascontiguousarray(a, np.float32).reshape(-1, 1) for a in (x, y))
        out = np.empty(flat_x.shape, np.float32)
        for start in range(0, len(out), 2**14):
            part = slice(start, start + 2**14)
            out[part] = cv2.remap(self._lattice, flat_x[part], flat_y[part], cv2.INTER_LINEAR)
        return out.reshape(np.shape(x))
