"""Daylight in linear RGB: a sun that casts shadows, a sky, and the film that records them."""

from __future__ import annotations

import math
from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.synth.noise import Floats

Colour = tuple[float, float, float]  # sRGB 0..255, as a designer would say it

SUN = np.array([2.5, 2.35, 2.1], np.float32)  # what a surface that faces the sun receives
SKY = np.array([0.50, 0.56, 0.66], np.float32)  # from above
GROUND = np.array([0.26, 0.24, 0.22], np.float32)  # from below
EXPOSURE = 1.0

TEXELS = 2048  # of the sun's depth map, each way
REACH = 6.0  # m, half of what the map covers
MIDDLE = (0.0, 0.6, 5.5)  # m, of what it covers, camera frame
DISTANCE = 40.0  # m, from which it is seen: nearly parallel rays
BIAS = 0.02  # m, by which a surface must lie behind another to be in its shadow
TAPS = 12
SOFTNESS = 0.012  # m, radius of a shadow's edge

GAMMA = 2.2
SHARPNESS = 0.55  # px, deviation of the lens' blur
VIGNETTE = 0.12
GRAIN = 1.0  # grey levels


def linear(colour: Colour) -> Floats:
    """Turn an sRGB colour into linear RGB 0..1, (3,)."""
    return (np.asarray(colour, np.float32) / 255) ** np.float32(GAMMA)


def ambient(upward: Floats) -> Floats:
    """What comes from sky and ground onto surfaces whose normals' upward part is -1..1: (…, 3)."""
    share = (0.5 + 0.5 * upward)[..., None]
    return SKY * share + GROUND * (1 - share)


class Shadows:
    """A depth map of some meshes as the sun sees them."""

    def __init__(
        self, meshes: Iterable[tuple[Floats, NDArray[np.int32]]], *, towards_sun: Floats
    ) -> None:
        """Draw the map of meshes (vertices (V, 3), faces (F, 3)); all in the camera frame."""
        self._camera = _look_along(-towards_sun)
        self._depth = np.full((TEXELS, TEXELS), 2 * DISTANCE, np.float32)
        both_sides = cv2.TriangleRasterizeSettings().setCullingMode(cv2.RASTERIZE_CULLING_NONE)
        angle = 2 * math.atan(REACH / DISTANCE)
        for vertices, faces in meshes:
            cv2.triangleRasterizeDepth(
                vertices, faces, self._depth, self._camera, angle, DISTANCE / 2, 2 * DISTANCE,
                both_sides,
            )  # fmt: skip

    def sunlit(self, points: Floats) -> Floats:
        """Find what part of the sun reaches points (K, 3), camera frame: (K,) 0..1."""
        turn, shift = np.split(self._camera[:3].astype(np.float32), [3], axis=1)
        seen = points @ turn.T + shift[:, 0]
        distance = -seen[:, 2]
        per_metre = TEXELS / 2 / REACH
        x = TEXELS / 2 - 0.5 + seen[:, 0] / distance * DISTANCE * per_metre
        y = TEXELS / 2 - 0.5 - seen[:, 1] / distance * DISTANCE * per_metre
        lit = np.zeros(len(points), np.float32)
        for tap in range(TAPS):  # on a sunflower's spiral
            radius = SOFTNESS * per_metre * math.sqrt((tap + 0.5) / TAPS)
            columns = _texels(x + radius * math.cos(2.4 * tap))
            rows = _texels(y + radius * math.sin(2.4 * tap))
            lit += self._depth[rows, columns] > distance - BIAS
        return lit / TAPS


def _texels(places: Floats) -> NDArray[np.int32]:
    return np.clip(np.rint(places), 0, TEXELS - 1).astype(np.int32)


def _look_along(direction: Floats) -> NDArray[np.float64]:
    """Make the rasteriser's camera, (4, 4), that looks at MIDDLE from DISTANCE."""
    right = np.cross(direction, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    camera = np.eye(4)
    camera[:3, :3] = right, np.cross(right, direction), -direction
    camera[:3, 3] = -camera[:3, :3] @ (MIDDLE - DISTANCE * direction)
    return camera


def develop(light: Floats, *, seed: int) -> NDArray[np.uint8]:
    """Turn linear light (H, W, 3) into an RGB picture: lens, tone curve, grain."""
    light = cv2.GaussianBlur(light, (0, 0), SHARPNESS)
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) for n in light.shape[:2])
    vignette = 1 - VIGNETTE * (rows[:, None] ** 2 + columns**2)
    exposed = 1 - np.exp(-EXPOSURE * light * vignette[..., None])
    noise = np.random.default_rng(seed).standard_normal(light.shape[:2], np.float32)
    grain = GRAIN * cv2.GaussianBlur(noise, (0, 0), 0.6)
    grey = 255 * exposed ** np.float32(1 / GAMMA) + grain[..., None]
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)
