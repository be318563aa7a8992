"""Which point of which shell each sample of a picture shows."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.synth.noise import Floats
from mpsnet_cli.synth.wardrobe import Figure

SAMPLES = 3  # per pixel and axis
SPILL = 12  # px, by which clothes and hair may stand out of the body's own rectangle
NEAR, FAR = 0.3, 60.0  # m


class Samples:
    """A figure, rasterised: per sample the point shown, its normal and its place on the T-pose.

    `low` and `high` (2,) bound the rectangle of pixels, `owner` says which of the figure's shells
    a sample shows: 1 for the first, 0 for nothing. The other arrays belong to samples with owner.
    """

    def __init__(
        self,
        figure: Figure,
        vertices: Floats,
        pixels: Floats,
        *,
        focal_length: float,
        size: tuple[int, int],
    ) -> None:
        """Rasterise a body with `vertices` (V, 3), camera frame, that project to `pixels` (V, 2).

        The principal point is the middle of the image of `size`.
        """
        self.low = np.clip(np.floor(pixels.min(axis=0) - SPILL), 0, size).astype(int)
        self.high = np.clip(np.ceil(pixels.max(axis=0) + SPILL), 0, size).astype(int)
        columns, rows = (int(n) for n in (self.high - self.low) * SAMPLES)
        self.owner = np.zeros((rows, columns), np.uint8)
        self.normals = np.zeros((rows, columns, 3), np.float32)
        self.places = np.zeros((rows, columns, 3), np.float32)
        # OpenCV gives about FAR where there is nothing.
        self._depth = np.full((rows, columns), 0.99 * FAR, np.float32)
        if not self.owner.size:
            return
        # The rasteriser's camera looks along -z, y up, through the middle of its picture.
        middle = np.array(size) / 2
        shear = (middle - (self.low + self.high) / 2) / focal_length
        self._camera = np.array(
            [[1, 0, shear[0], 0], [0, -1, -shear[1], 0], [0, 0, -1, 0], [0, 0, 0, 1]]
        )
        self._angle = 2 * math.atan((self.high[1] - self.low[1]) / 2 / focal_length)
        self._rays = tuple(
            (self.low[axis] + (np.arange(count) + 0.5) / SAMPLES - middle[axis]) / focal_length
            for axis, count in enumerate((columns, rows))
        )
        for number in range(len(figure.shells)):
            self._add(figure, number, vertices)

    def points(self, where: NDArray[np.bool_]) -> Floats:
        """Find the points (K, 3), camera frame, that the chosen samples show."""
        rows, columns = np.nonzero(where)
        depth = self._depth[where]
        x, y = self._rays[0][columns] * depth, self._rays[1][rows] * depth
        return np.stack([x, y, depth], axis=1).astype(np.float32)

    def pixels(self, samples: Floats) -> Floats:
        """Average samples (rows, columns, …) over the pixels of the rectangle."""
        columns, rows = (int(n) for n in self.high - self.low)
        return cv2.resize(samples, (columns, rows), interpolation=cv2.INTER_AREA)

    def _add(self, figure: Figure, number: int, vertices: Floats) -> None:
        """Show a shell wherever it covers and nothing nearer is shown yet."""
        shell = figure.shells[number]
        vertices, normals = figure.drape(shell, vertices)
        # A shell's outside is cut at its edge before it can hide the inside behind it.
        for culling in (cv2.RASTERIZE_CULLING_CW, cv2.RASTERIZE_CULLING_CCW):
            places, depth = self._rasterise(vertices, shell.faces, figure.places, culling)
            shown = depth < self._depth
            shown[shown] = shell.layer.covers(places[shown]) > 0
            if shown.any():
                turned, _ = self._rasterise(vertices, shell.faces, normals, culling)
                self._depth[shown] = depth[shown]
                self.owner[shown] = number + 1
                self.places[shown] = places[shown]
                self.normals[shown] = turned[shown]

    def _rasterise(
        self, vertices: Floats, faces: NDArray[np.int32], values: Floats, culling: int
    ) -> tuple[Floats, Floats]:
        """Spread values (V, 3) within ±1 over the samples: (rows, columns, 3), and the depth."""
        spread = np.zeros_like(self.places)
        depth = np.full_like(self._depth, FAR)
        settings = (
            cv2.TriangleRasterizeSettings()
            .setShadingType(cv2.RASTERIZE_SHADING_SHADED)
            .setCullingMode(culling)
            .setGlCompatibleMode(cv2.RASTERIZE_COMPAT_DISABLED)
        )
        colours = (0.5 + 0.5 * values).astype(np.float32)  # OpenCV wants 0..1
        cv2.triangleRasterize(
            vertices, faces, colours, spread, depth, self._camera, self._angle, NEAR, FAR, settings
        )
        return 2 * spread - 1, depth
