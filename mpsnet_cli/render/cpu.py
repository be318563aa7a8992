"""Drawing without a graphics system: OpenCV's triangle rasteriser over the people's pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.render.scene import NEAR, Box, Camera, Image, Mesh, occlusion_groups
from mpsnet_cli.render.shading import Shader

SAMPLES = 2  # per pixel and axis


class CpuRenderer:
    """Renderer on cv2.triangleRasterize (OpenCV >= 5)."""

    threads = min(os.cpu_count() or 1, 8)  # OpenCV's rasteriser uses one and releases the GIL

    def __init__(self, faces: NDArray[np.int32]) -> None:
        self._faces = faces
        self._shader = Shader(faces)
        # Depth as in GL, 0..1, is compared as it is stored: no conversion of the whole buffer.
        self._settings = (
            cv2.TriangleRasterizeSettings()
            .setShadingType(cv2.RASTERIZE_SHADING_SHADED)
            .setCullingMode(cv2.RASTERIZE_CULLING_CW)
            .setGlCompatibleMode(cv2.RASTERIZE_COMPAT_INVDEPTH)
        )

    def draw(self, image: Image, meshes: Sequence[Mesh], camera: Camera) -> Image:
        """Return a copy of `image` with `meshes` drawn over it."""
        drawn = image.copy()
        height, width = image.shape[:2]
        for box, group in occlusion_groups(meshes, camera, (width, height)):
            self._draw_group(drawn[box.slices], box, group, camera)
        return drawn

    def _draw_group(self, image: Image, box: Box, group: list[Mesh], camera: Camera) -> None:
        vertices = np.concatenate([mesh.vertices for mesh in group])
        colours = np.concatenate([self._shader.colours(m.vertices, m.colour) for m in group])
        firsts = np.cumsum([0] + [len(mesh.vertices) for mesh in group[:-1]])
        faces = np.concatenate([self._faces + np.int32(first) for first in firsts])
        depth = vertices[:, 2]
        near, far = max(NEAR, 0.9 * float(depth.min())), 1.1 * float(depth.max())
        if near == NEAR:  # OpenCV turns faces that cross the near plane inside out
            faces = faces[(depth > NEAR)[faces].all(axis=1)]

        # The image itself is the background, so that shrinking the samples blends the edges.
        width, height = box.size
        samples = cv2.resize(image, None, fx=SAMPLES, fy=SAMPLES, interpolation=cv2.INTER_NEAREST)
        samples = np.multiply(samples, 1 / 255, dtype=np.float32)
        cv2.triangleRasterize(
            vertices,
            faces,
            colours,
            samples,
            np.ones(samples.shape[:2], np.float32),  # depth, 1 = far away
            _world_to_camera(box, camera),
            2 * math.atan(height / 2 / camera.focal_length),
            near,
            far,
            self._settings,
        )
        pixels = cv2.resize(samples, (width, height), interpolation=cv2.INTER_AREA)
        cv2.convertScaleAbs(pixels, dst=image, alpha=255)


def _world_to_camera(box: Box, camera: Camera) -> NDArray[np.float64]:
    """Turn the camera frame into GL's, sheared so that the box's centre lies on the axis."""
    shear_x = (camera.principal_point[0] - (box.left + box.right) / 2) / camera.focal_length
    shear_y = (camera.principal_point[1] - (box.top + box.bottom) / 2) / camera.focal_length
    return np.array([[1, 0, shear_x, 0], [0, -1, -shear_y, 0], [0, 0, -1, 0], [0, 0, 0, 1.0]])
