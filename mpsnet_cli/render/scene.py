"""What a renderer is given: people as coloured meshes, a camera, and where they fall in the image.

Image coordinates are continuous: pixel (0, 0) covers [0, 1)², as in the boxes and the crops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEAR = 0.05  # m, nothing closer to the camera is drawn

Colour = tuple[int, int, int]  # RGB
Image = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at the origin of the camera frame: OpenCV, x right, y down, z forward."""

    focal_length: float  # px
    principal_point: tuple[float, float]  # px, anywhere, also outside the image


@dataclass(frozen=True)
class Mesh:
    """One person to draw, with the topology that the renderer was made for."""

    vertices: NDArray[np.float32]  # (V, 3) m, camera frame
    colour: Colour


class Box(NamedTuple):
    """A rectangle of whole pixels, right and bottom excluded."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.right - self.left, self.bottom - self.top

    @property
    def slices(self) -> tuple[slice, slice]:
        """Its rows and columns, to index an image with."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def joined(self, other: Box) -> Box:
        """The smallest box around both."""
        return Box(
            min(self.left, other.left),
            min(self.top, other.top),
            max(self.right, other.right),
            max(self.bottom, other.bottom),
        )

    def meets(self, other: Box) -> bool:
        """Whether the two share a pixel."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def visible_box(vertices: NDArray[np.float32], camera: Camera, size: tuple[int, int]) -> Box | None:
    """Find the pixels of an image of `size` (width, height) that a mesh can touch, None if none.

    A mesh that reaches behind the near plane may cover anything: its box is the whole image.
    """
    depth = vertices[:, 2]
    if depth.max() <= NEAR:
        return None
    if depth.min() <= NEAR:
        return Box(0, 0, *size)
    low, high = np.empty(2), np.empty(2)
    for axis in (0, 1):  # one contiguous row at a time: several times faster than axis=0 of (V, 2)
        pixels = vertices[:, axis] / depth
        bounds = np.array([pixels.min(), pixels.max()]) * camera.focal_length
        low[axis], high[axis] = np.clip(bounds + camera.principal_point[axis], 0, size[axis])
    box = Box(*map(math.floor, low), *map(math.ceil, high))
    return box if min(box.size) > 0 else None


def occlusion_groups(
    meshes: Sequence[Mesh], camera: Camera, size: tuple[int, int]
) -> list[tuple[Box, list[Mesh]]]:
    """Split the visible meshes into groups that cannot hide each other, each with its box.

    Drawing a group at a time costs the people's pixels, not the image's.
    """
    groups: list[tuple[Box, list[Mesh]]] = []
    for mesh in meshes:
        box = visible_box(mesh.vertices, camera, size)
        if box is None:
            continue
        members = [mesh]
        while touching := [group for group in groups if group[0].meets(box)]:
            for group in touching:
                groups.remove(group)
                box = box.joined(group[0])
                members = group[1] + members
        groups.append((box, members))
    return groups
