"""Dressing a body: skin, hair and clothes as layers over one mesh.

A layer is a shell: some of the body's triangles, moved outwards. Where it begins and ends and what
colour it has are functions of the place on the T-posed average body, evaluated per pixel, so that
hems, stripes and eyes are sharp whatever the mesh. Places are (K, 3), m, on the T-posed body: y up,
z forward, x to the person's left, the pelvis joint near the origin. Colours are linear RGB, 0..1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import ConvexHull

from mpsnet_cli.synth.light import Colour, linear
from mpsnet_cli.synth.noise import Floats, Noise

MARGIN = 0.03  # m, by which a shell's mesh goes on behind its edge, and skin beneath it
_noise = Noise(seed=1)


@dataclass(frozen=True)
class Layer:
    """One thing worn, or the skin itself."""

    covers: Callable[[Floats], Floats]  # places to about metres inside the edge, negative outside
    colour: Callable[[Floats], Floats]  # places to linear RGB (K, 3)
    loft: Callable[[Floats], Floats]  # places to distance from the skin, m
    smoothing: int = 0  # times that the mesh is averaged over its neighbours
    rounded: bool = False  # filled out to the convex hull of each side, as a shoe is
    folds: float = 0.0  # depth of the relief in its normals
    gloss: float = 0.0  # strength of the highlight


def skin(tone: Colour, *, lips: Colour, iris: Colour, brows: Colour) -> Layer:
    """Bare skin with a face: eyes, brows, lips and a little redness."""

    def colour(places: Floats) -> Floats:
        x, y, z = places.T
        across = np.abs(x)
        out = linear(tone) * (1 + 0.05 * _noise.space(places, cell=0.02, octaves=3))[:, None]
        face = (z > 0.045) & (y > 0.53)
        cheek = np.exp(-(((across - 0.042) / 0.022) ** 2) - ((y - 0.618) / 0.02) ** 2)
        out *= 1 + (face * cheek)[:, None] * np.array([0.06, -0.1, -0.08], np.float32)
        mouth = (x / 0.027) ** 2 + ((y - 0.591 - 3.0 * x**2) / 0.0085) ** 2
        _paint(out, face & (mouth < 1), lips)
        parting = (across < 0.023) & (np.abs(y - 0.5915 - 3 * x**2) < 0.0012)
        _paint(out, face & parting, (70, 30, 30))
        eye = ((across - 0.031) / 0.0165) ** 2 + ((y - 0.667) / 0.0058) ** 2
        out[face & (eye < 1.9)] *= 0.55
        _paint(out, face & (eye < 1), (172, 166, 162))
        pupil = (across - 0.031) ** 2 + (y - 0.667) ** 2
        _paint(out, face & (eye < 1) & (pupil < 0.0075**2), iris)
        brow = np.abs(y - 0.689 + 6 * (across - 0.03) ** 2) < 0.0042
        _paint(out, face & brow & (np.abs(across - 0.032) < 0.02), brows)
        return out

    return Layer(
        covers=lambda places: np.full(len(places), np.inf, np.float32),
        colour=colour,
        loft=lambda places: np.zeros(len(places), np.float32),
        gloss=0.05,
    )


def _paint(colours: Floats, where: NDArray[np.bool_], colour: Colour) -> None:
    colours[where] = linear(colour)


def top(
    pattern: Callable[[Floats], Floats], *, sleeve: float, hem: float, loft: float, neck: float
) -> Layer:
    """A shirt or jumper: `sleeve` and `hem` are where it ends, |x| and y; `neck` a radius, m."""

    def covers(places: Floats) -> Floats:
        x, y, z = places.T
        collar = np.sqrt(x**2 + (y - 0.55) ** 2 + (z + 0.01) ** 2) - neck
        edges = (sleeve - np.abs(x), y - hem, collar, 3 * (0.53 - y))
        return np.min(edges, axis=0)

    def thickness(places: Floats) -> Floats:
        x, y, _ = places.T
        loose = np.clip((0.35 - y) / 0.4, 0, 1) + np.clip((np.abs(x) - 0.2) / 0.3, 0, 1)
        ripple = _noise.space(places, cell=0.09, octaves=2)
        return loft * (0.8 + loose + 0.12 * ripple * loose)

    return Layer(covers, pattern, thickness, smoothing=10, folds=0.18)


def trousers(
    pattern: Callable[[Floats], Floats], *, waist: float, cuff: float, loft: float
) -> Layer:
    """Trousers from height `waist` down to height `cuff`, wider below the knee."""

    def covers(places: Floats) -> Floats:
        _, y, _ = places.T
        return np.minimum(waist - y, y - cuff)

    def thickness(places: Floats) -> Floats:
        _, y, _ = places.T
        ripple = _noise.space(places, cell=0.08, octaves=2)
        return loft * (0.6 + 1.2 * np.clip((-0.25 - y) / 0.5, 0, 1)) * (1 + 0.15 * ripple)

    return Layer(covers, pattern, thickness, smoothing=10, folds=0.18)


def shoes(colour: Colour) -> Layer:
    """Low, plain shoes."""
    return Layer(
        covers=lambda places: -0.862 - places[:, 1],
        colour=plain(colour),
        loft=lambda places: np.full(len(places), 0.01, np.float32),
        smoothing=12,
        rounded=True,
        gloss=0.05,
    )


def hair(colour: Colour, *, length: float, loft: float) -> Layer:
    """Hair that falls to height `length` behind the face: 0.6 is a crop, 0.5 reaches the nape."""

    def covers(places: Floats) -> Floats:
        x, y, z = places.T
        wave = 0.004 * _noise.plane(x, y + z, cell=0.012)
        hairline = y - (0.728 + 1.2 * x**2)  # above the forehead
        temple = (0.045 - z) + 0.35 * (y - 0.68)  # behind the cheek
        fringe = y - length - 0.25 * np.maximum(z, 0)
        beside = 0.08 + 0.6 * np.maximum(y - 0.57, 0) - np.abs(x)  # not on the shoulders
        return np.min((np.maximum(hairline, temple), fringe, beside), axis=0) + wave

    def strands(places: Floats) -> Floats:
        x, y, z = places.T
        around = np.arctan2(x, z + 0.01) * 0.09
        fine = _noise.plane(around, y, cell=0.004) + _noise.plane(around * 6, y, cell=0.03)
        return linear(colour) * np.clip(1 + 0.28 * fine, 0.3, 2)[:, None]

    def thickness(places: Floats) -> Floats:
        _, y, z = places.T
        low = np.clip((0.70 - y) / 0.15, 0, 1) * (length < 0.58)
        back = np.clip(-z / 0.08, 0, 1)
        lumps = 0.1 * _noise.space(places, cell=0.03)
        return loft * (0.8 + 0.5 * back + 1.2 * low + lumps)

    return Layer(covers, strands, thickness, smoothing=5, folds=0.25, gloss=0.08)


def plain(colour: Colour) -> Callable[[Floats], Floats]:
    """One colour, with the unevenness of cloth."""

    def pattern(places: Floats) -> Floats:
        grain = 1 + 0.06 * _noise.space(places, cell=0.05, octaves=5)
        return linear(colour) * grain[:, None]

    return pattern


def stripes(first: Colour, second: Colour, *, width: float) -> Callable[[Floats], Floats]:
    """Stripes around the trunk and around the sleeves, `width` m each."""

    def pattern(places: Floats) -> Floats:
        x, y, _ = places.T
        along = np.where(np.abs(x) > 0.2, np.abs(x) - 0.2, y)
        second_one = np.mod(along / width, 2) < 1
        return np.where(second_one[:, None], plain(second)(places), plain(first)(places))

    return pattern


def denim(colour: Colour) -> Callable[[Floats], Floats]:
    """Jeans: washed out over the thighs."""

    def pattern(places: Floats) -> Floats:
        _, y, z = places.T
        worn = np.exp(-(((y + 0.3) / 0.18) ** 2)) * np.clip(z / 0.06, 0, 1)
        weave = _noise.space(places, cell=0.012, octaves=3)
        return linear(colour) * (1 + 0.5 * worn + 0.1 * weave)[:, None]

    return pattern


@dataclass(frozen=True)
class Shell:
    """A layer cut to a mesh."""

    layer: Layer
    faces: NDArray[np.int32]  # (F', 3) into the whole mesh
    lift: Floats  # (V, 1) m, along the normals


@dataclass(frozen=True)
class Figure:
    """A dressed body: what to draw besides the vertices of the moment."""

    places: Floats  # (V, 3) the vertices of the T-posed average body
    faces: NDArray[np.int32]  # (F, 3)
    shells: tuple[Shell, ...]  # the skin first
    neighbours: sparse.csr_matrix  # (V, V) averages every vertex with those around it

    def drape(self, shell: Shell, vertices: Floats) -> tuple[Floats, Floats]:
        """Put a shell on the posed body: its vertices and their normals, both (V, 3)."""
        for _ in range(shell.layer.smoothing):
            vertices = self.neighbours @ vertices
        vertices = vertices + shell.lift * normals(vertices, self.faces)
        return vertices, normals(vertices, self.faces)


def dress(places: Floats, faces: NDArray[np.int32], layers: Sequence[Layer]) -> Figure:
    """Cut `layers`, the skin first, to a body: T-posed `places` (V, 3), `faces` (F, 3).

    Skin well under something else is left out, so that it cannot show through in any pose.
    """
    skin_layer, *worn = layers
    inside = np.stack([layer.covers(places) for layer in worn])  # (layers, V)
    hidden = np.any(inside > MARGIN, axis=0)
    cuts = [~hidden[faces].all(axis=1)] + [(depth[faces] > -MARGIN).any(axis=1) for depth in inside]
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]).T
    count = len(places)
    links = sparse.csr_matrix((np.ones(edges.shape[1], np.float32), edges), (count, count))
    links = sparse.identity(count) + sparse.diags(1 / links.sum(axis=1).A1) @ links
    neighbours = (0.5 * links).astype(np.float32).tocsr()
    shells = []
    for layer, cut in zip([skin_layer, *worn], cuts, strict=True):
        lift = layer.loft(places)
        if layer.rounded:
            lift = lift + _room_in_hull(layer, places, faces, neighbours)
        shells.append(Shell(layer, faces[cut], lift[:, None].astype(np.float32)))
    return Figure(places, faces, tuple(shells), neighbours)


def _room_in_hull(
    layer: Layer, places: Floats, faces: NDArray[np.int32], neighbours: sparse.csr_matrix
) -> Floats:
    """Measure how far the smoothed vertices are from their hull, left and right, along normals."""
    smooth = places
    for _ in range(layer.smoothing):
        smooth = neighbours @ smooth
    outward = normals(smooth, faces)
    room = np.zeros(len(places), np.float32)
    for side in (places[:, 0] > 0, places[:, 0] <= 0):
        chosen = np.flatnonzero(side & (layer.covers(places) > -MARGIN))
        planes = ConvexHull(places[chosen]).equations
        depth = -(smooth[chosen] @ planes[:, :3].T + planes[:, 3])
        towards = outward[chosen] @ planes[:, :3].T
        exits = np.where(towards > 1e-3, depth / np.maximum(towards, 1e-3), np.inf)
        room[chosen] = np.clip(exits.min(axis=1), 0, MARGIN)
    return room


def normals(vertices: Floats, faces: NDArray[np.int32]) -> Floats:
    """Average the normals of the faces (F, 3) around each vertex, by area: (V, 3), unit length."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    across = np.cross(b - a, c - a)
    summed = np.stack(
        [np.bincount(faces.ravel(), np.repeat(across[:, k], 3), len(vertices)) for k in range(3)],
        axis=1,
    )
    length = np.linalg.norm(summed, axis=1, keepdims=True)
    return (summed / np.maximum(length, 1e-12)).astype(np.float32)
