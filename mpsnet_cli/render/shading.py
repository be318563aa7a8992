"""The look of the people: a few soft lights, evaluated at the vertices (Gouraud).

Both renderers take their colours from here, so that their pictures agree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float32]

# Camera frame (x right, y down, z forward): a lamp's direction points to it, its colour is RGB.
LAMPS = (
    ((-0.45, -0.75, -0.80), (0.84, 0.82, 0.79)),  # key, over the camera's left shoulder
    ((0.90, -0.15, -0.40), (0.30, 0.33, 0.37)),  # fill
    ((0.00, -1.00, 0.00), (0.22, 0.23, 0.25)),  # sky
    ((0.00, 0.60, -0.40), (0.14, 0.13, 0.12)),  # light from the floor
)
GLOSS, GLOSS_EXPONENT = 0.12, 24.0  # the key's reflection
RIM = 0.30  # brightening towards the outline: lifts people off each other and the background

_DIRECTIONS = np.array([direction for direction, _ in LAMPS], np.float32).T
_DIRECTIONS /= np.linalg.norm(_DIRECTIONS, axis=0)
_COLOURS = np.array([colour for _, colour in LAMPS], np.float32)


class Shader:
    """Vertex colours of people of one topology."""

    def __init__(self, faces: NDArray[np.int32]) -> None:
        self._corners = np.ascontiguousarray(faces.T)
        entries = np.ones(faces.size, np.float32)
        face_of_corner = np.tile(np.arange(len(faces)), 3)
        self._sum_over_faces = sparse.csr_array((entries, (self._corners.ravel(), face_of_corner)))

    def normals(self, vertices: Floats) -> Floats:
        """Average the normals of the faces around each vertex, by area: (V, 3) unit vectors."""
        # Along contiguous rows this takes a third of the time of np.cross, and np.add.at ten
        # times that of the sparse product.
        a, b, c = (vertices.T.take(corner, axis=1) for corner in self._corners)
        b -= a
        c -= a
        cross = np.empty((len(b[0]), 3), np.float32)
        cross[:, 0] = b[1] * c[2] - b[2] * c[1]
        cross[:, 1] = b[2] * c[0] - b[0] * c[2]
        cross[:, 2] = b[0] * c[1] - b[1] * c[0]
        return _unit(self._sum_over_faces @ cross)

    def colours(self, vertices: Floats, colour: tuple[int, int, int]) -> Floats:
        """Light a person of one `colour`: RGB (V, 3), 0..1."""
        normals = self.normals(vertices)
        to_camera = _unit(-vertices)
        # Half-Lambert: light wraps around the form, as from large lamps.
        light = (0.5 + 0.5 * normals @ _DIRECTIONS) ** 2 @ _COLOURS
        halfway = _unit(to_camera + _DIRECTIONS[:, 0])
        gloss = GLOSS * np.maximum(_dot(normals, halfway), 0) ** GLOSS_EXPONENT
        rim = RIM * (1 - np.maximum(_dot(normals, to_camera), 0)) ** 3
        lit = light * (np.asarray(colour, np.float32) / 255) + (gloss + rim)[:, None]
        return np.minimum(lit, 1, out=lit)


def _dot(a: Floats, b: Floats) -> Floats:
    return np.einsum("vi,vi->v", a, b)


def _unit(vectors: Floats) -> Floats:
    lengths: Floats = np.sqrt(_dot(vectors, vectors))
    return vectors / np.maximum(lengths, np.float32(1e-10))[:, None]
