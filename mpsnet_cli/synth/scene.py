"""A camera in a place, and pictures of dressed bodies in it, shadows included.

Everything is lit in linear light and drawn as a deferred renderer does: the rasteriser says which
point of which layer each sample shows, then numpy gives those points colour and light.
World: metres, x right, y up, the camera above the origin looking along -z; a person at yaw 0 faces
it. Camera frame: OpenCV, x right, y down, z forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.geometry import project
from mpsnet_cli.synth.light import SUN, Shadows, ambient, develop
from mpsnet_cli.synth.noise import Floats, Noise
from mpsnet_cli.synth.raster import Samples
from mpsnet_cli.synth.square import paint_square
from mpsnet_cli.synth.wardrobe import Figure, Layer

BACKGROUND_SAMPLES = 3  # per pixel and axis
STRIP = 40  # rows of background painted at once, for the memory's sake
FLOOR = 0.02  # m above which a point belongs to no floor
RELIEF = 0.07  # m, size of the folds of cloth
HIGHLIGHT = 24  # Blinn's exponent
FEET = 0.12  # m above the floor, where a body darkens it

_noise = Noise(seed=3)


@dataclass(frozen=True)
class View:
    """A camera that stands still in the world."""

    size: tuple[int, int]  # width, height, px
    focal_length: float  # px
    height: float  # m above the floor
    pitch: float  # rad, positive looks down

    @property
    def principal_point(self) -> tuple[float, float]:
        """The middle of the image, px."""
        return self.size[0] / 2, self.size[1] / 2

    @property
    def rotation(self) -> NDArray[np.float64]:
        """World axes to camera axes, (3, 3)."""
        return Rotation.from_euler("x", self.pitch).as_matrix() @ np.diag([1.0, -1.0, -1.0])

    def from_world(self, points: ArrayLike) -> NDArray[np.float64]:
        """Carry world points (…, 3) to the camera frame."""
        return (np.asarray(points) - (0, self.height, 0)) @ self.rotation.T

    def to_world(self, points: Floats) -> NDArray[np.float64]:
        """Carry points (…, 3) of the camera frame to the world."""
        return points @ self.rotation + (0, self.height, 0)

    def project(self, points: Floats) -> Floats:
        """Project points (…, 3) of the camera frame to pixels (…, 2)."""
        return project(points, focal_length=self.focal_length, principal_point=self.principal_point)


class Stage:
    """A square, empty and lit, waiting for people."""

    def __init__(self, view: View, *, sun: tuple[float, float, float]) -> None:
        """Paint the background; `sun` is the world direction towards the sun."""
        self._view = view
        towards_sun = np.array(sun) / np.linalg.norm(sun)
        self._sun = (view.rotation @ towards_sun).astype(np.float32)
        self._up = view.rotation[:, 1].astype(np.float32)
        self._world, self._shade, self._direct = _background(view, towards_sun)

    def draw(self, people: Sequence[tuple[Figure, Floats]], *, seed: int) -> NDArray[np.uint8]:
        """Draw figures with their vertices (V, 3), camera frame: an RGB image.

        Nobody may stand partly before and partly behind another. `seed` is for the film's grain.
        """
        meshes = [(vertices, figure.faces) for figure, vertices in people]
        shadows = Shadows(meshes, towards_sun=self._sun)
        light = self._empty([vertices for _, vertices in people], shadows)
        for figure, vertices in sorted(people, key=lambda person: -person[1][:, 2].mean()):
            self._add(light, figure, vertices, shadows)
        return develop(light, seed=seed)

    def _empty(self, bodies: Sequence[Floats], shadows: Shadows) -> Floats:
        """Light the place (H, W, 3) without the people, but with what they keep from it."""
        floor = self._world[..., 1] < FLOOR
        points = self._world[floor]
        sky = np.ones(floor.shape, np.float32)
        sky[floor] = np.prod([1 - self._hidden_sky(points, body) for body in bodies], axis=0)
        sun = np.ones(floor.shape, np.float32)
        sun[floor] = shadows.sunlit(self._view.from_world(points).astype(np.float32))
        sun = cv2.GaussianBlur(sun, (0, 0), 1.0)
        return self._shade * sky[..., None] + self._direct * sun[..., None]

    def _hidden_sky(self, points: Floats, vertices: Floats) -> Floats:
        """How much of the sky a body hides from points (K, 3) of the floor: a spot per foot."""
        world = self._view.to_world(vertices)
        low = world[world[:, 1] < FEET]
        left = low[:, 0] < low[:, 0].mean()
        hidden = np.zeros(len(points), np.float32)
        for foot in (low[left], low[~left]):
            raised = 1 + 60 * foot[:, 1].min()
            x, _, z = foot.mean(axis=0)
            distance = (points[:, 0] - x) ** 2 + (points[:, 2] - z) ** 2
            hidden += 0.45 / raised * np.exp(-distance / 0.02) + 0.18 * np.exp(-distance / 0.18)
        return np.clip(hidden, 0, 0.8)

    def _add(self, light: Floats, figure: Figure, vertices: Floats, shadows: Shadows) -> None:
        """Draw one figure over the light (H, W, 3) of what is behind it."""
        samples = Samples(
            figure,
            vertices,
            self._view.project(vertices),
            focal_length=self._view.focal_length,
            size=self._view.size,
        )
        if not samples.owner.size:
            return
        colours = np.zeros((*samples.owner.shape, 3), np.float32)
        for number, shell in enumerate(figure.shells, start=1):
            here = samples.owner == number
            points, normals, places = (
                samples.points(here), samples.normals[here], samples.places[here]
            )  # fmt: skip
            colours[here] = self._lit(shell.layer, points, normals, places, shadows)
        share = samples.pixels((samples.owner > 0).astype(np.float32))[..., None]
        (left, top), (right, bottom) = samples.low, samples.high
        part = light[top:bottom, left:right]
        part[:] = samples.pixels(colours) + part * (1 - share)

    def _lit(
        self, layer: Layer, points: Floats, normals: Floats, places: Floats, shadows: Shadows
    ) -> Floats:
        """Light points (K, 3) of a layer by Lambert's and Blinn's laws."""
        to_eye = -points / np.linalg.norm(points, axis=1, keepdims=True)
        normals = normals * np.sign((normals * to_eye).sum(axis=1, keepdims=True))
        if layer.folds:
            relief = [_noise.space(places + at, cell=RELIEF, octaves=3) for at in (0, 5, 9)]
            normals = normals + layer.folds * np.stack(relief, axis=1)
        normals = normals / np.linalg.norm(normals, axis=1, keepdims=True)
        half = to_eye + self._sun
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        sunlit = shadows.sunlit(points)
        facing = sunlit * np.clip(normals @ self._sun, 0, 1)
        shine = sunlit * layer.gloss * np.clip((normals * half).sum(axis=1), 0, 1) ** HIGHLIGHT
        diffuse = SUN * facing[:, None] + ambient(normals @ self._up)
        return layer.colour(places) * diffuse + SUN * shine[:, None]


def _background(view: View, towards_sun: NDArray[np.float64]) -> list[Floats]:
    """Photograph the empty square: world points, shade and sunlight, each (H, W, 3)."""
    width, height = view.size
    n = BACKGROUND_SAMPLES
    strips = []
    for top in range(0, height, STRIP):
        rows = min(STRIP, height - top)
        y, x = np.mgrid[: rows * n, : width * n].astype(np.float32)
        rays = np.stack(
            [
                ((x + 0.5) / n - view.principal_point[0]) / view.focal_length,
                (top + (y + 0.5) / n - view.principal_point[1]) / view.focal_length,
                np.ones_like(x),
            ],
            axis=-1,
        ) @ view.rotation.astype(np.float32)
        strips.append(
            [
                cv2.resize(picture, (width, rows), interpolation=cv2.INTER_AREA)
                for picture in paint_square(rays, view.height, towards_sun.astype(np.float32))
            ]
        )
    return [np.concatenate(parts) for parts in zip(*strips, strict=True)]
