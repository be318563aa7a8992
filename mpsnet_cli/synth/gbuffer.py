"""Which point of which face each pixel of a crop shows: one question, two rasterisers.

`cv2` is OpenCV's, for CPUs, one mesh after another. `torch` does a whole batch at once on any
device: the pixels in the bounding boxes of all front faces are listed flat, those that lie inside
their face compete with (depth, face) packed into one integer, and the least wins whatever the
order, so the result is the same every time. Both only choose faces; where on its face a pixel lies
is computed afterwards, by the same code for both.

Pixels: the one in column i and row j shows what projects to (i, j), as in `crops.crop_image`; the
picture of S × S pixels ends at -0.5 and S - 0.5.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Rasteriser = Literal["cv2", "torch"]
Ints = NDArray[np.int32]

NEAR = 0.05  # m, a face with a corner nearer than this is left out
FACES_AT_ONCE = 1 << 23  # about 100 bytes each
CANDIDATES_AT_ONCE = 1 << 23  # pixels that compete, about 150 bytes each

_FACE_BITS = 32
_NOTHING = torch.iinfo(torch.int64).max
_COLOURS = 1 << 24  # whole numbers that float32 tells apart


class GBuffer(NamedTuple):
    """What S × S pixels of n crops show."""

    face: Tensor  # (n, S, S) int64, -1 where there is nothing
    bary: Tensor  # (n, S, S, 3) weights of the corners of the face, in space; 0 where nothing
    depth: Tensor  # (n, S, S) m along z; inf where nothing, so that the least depth is in front


def rasterise(
    vertices: Tensor,
    faces: Tensor,
    *,
    focal: Tensor,
    principal: Tensor,
    size: int,
    method: Rasteriser,
) -> GBuffer:
    """Find the nearest front face at every pixel, on the vertices' device.

    `vertices` (n, V, 3), m, camera frame; `faces` (F, 3) of all of them, counter-clockwise seen
    from outside; `focal` (n,) and `principal` (n, 2), px, so that a point projects to
    focal · (x, y) / z + principal. Back faces are not seen, nor faces nearer than NEAR.
    """
    if method not in get_args(Rasteriser):
        raise ValueError(f"There is no rasteriser {method!r}, only {get_args(Rasteriser)}.")
    vertices = vertices.float()
    faces = faces.to(vertices.device, torch.int64)
    focal, principal = focal.to(vertices), principal.to(vertices)
    choose = _choose_cv2 if method == "cv2" else _choose_torch
    face = choose(vertices, faces, focal, principal, size)

    # Flat indices: half the time of triple ones on a CPU.
    pixel = (face.view(-1) >= 0).nonzero()[:, 0]
    mesh = pixel // (size * size)
    column, row = pixel % size, pixel // size % size
    corner = faces.index_select(0, face.view(-1).index_select(0, pixel))
    corner += (mesh * vertices.shape[1])[:, None]
    seen = torch.cat([_project(vertices, focal, principal), vertices[..., 2:]], dim=2)
    corners = seen.view(-1, 3).index_select(0, corner.view(-1)).view(-1, 9)
    corners = corners.T.contiguous().view(3, 3, -1)
    depths = corners[:, 2]
    # At an outline OpenCV may take a pixel that lies outside by rounding: clamped to the face.
    weights = _areas(corners, column, row).clamp_(min=1e-12).div_(depths)  # but for their sum
    weights /= weights.sum(0)
    bary = vertices.new_zeros(*face.shape, 3)
    bary.view(-1, 3).index_copy_(0, pixel, weights.T)
    depth = vertices.new_full(face.shape, math.inf)
    depth.view(-1).index_copy_(0, pixel, (weights * depths).sum(0))
    return GBuffer(face, bary, depth)


def _project(vertices: Tensor, focal: Tensor, principal: Tensor) -> Tensor:
    """Project vertices (n, V, 3) to pixels (n, V, 2)."""
    return focal[:, None, None] * vertices[..., :2] / vertices[..., 2:] + principal[:, None]


def _areas(corners: Tensor, column: Tensor, row: Tensor) -> Tensor:
    """Measure the three triangles (3, T) that points (T,) make with the edges of faces (3, 2, T).

    Twice the areas, opposite to each corner, px²; all are positive inside a front face. Two faces
    that share an edge get exactly opposite values for it, so that no point falls between them:
    keep the two products apart, for a fused multiply-add would round one of them only.
    """
    xa, xb, xc = corners[:, 0] - column
    ya, yb, yc = corners[:, 1] - row
    return torch.stack([yb * xc - xb * yc, yc * xa - xc * ya, ya * xb - xa * yb])


def _choose_cv2(
    vertices: Tensor, faces: Tensor, focal: Tensor, principal: Tensor, size: int
) -> Tensor:
    """Draw each face in a colour that is its number: (n, S, S) int64.

    OpenCV's camera looks along -z, y up, and samples half a pixel further on.
    """
    if len(faces) >= _COLOURS:
        raise ValueError(f"{len(faces)} faces are too many for OpenCV: use the other rasteriser.")
    shared = faces.cpu().numpy().astype(np.int32)
    own, copied, colours = _numbered(shared.tobytes(), vertices.shape[1])
    settings = (
        cv2.TriangleRasterizeSettings()
        .setShadingType(cv2.RASTERIZE_SHADING_FLAT)
        .setCullingMode(cv2.RASTERIZE_CULLING_CW)
        .setGlCompatibleMode(cv2.RASTERIZE_COMPAT_INVDEPTH)
    )
    drawn = np.zeros((len(vertices), size, size, 3), np.float32)
    for mesh, picture, f, centre in zip(
        vertices.cpu().numpy(), drawn, focal.tolist(), principal.cpu().numpy(), strict=True
    ):
        z = mesh[:, 2]
        near, far = max(NEAR, 0.9 * float(z.min())), 1.1 * float(z.max())
        if far <= near:
            continue
        shear = (centre + 0.5 - size / 2) / f
        cv2.triangleRasterize(
            np.concatenate([mesh, mesh[copied]]),
            own[(z >= NEAR)[shared].all(axis=1)] if near == NEAR else own,
            colours,
            picture,
            np.ones((size, size), np.float32),  # depth, 1 = far away
            np.array([[1, 0, shear[0], 0], [0, -1, -shear[1], 0], [0, 0, -1, 0], [0, 0, 0, 1]]),
            2 * math.atan(size / 2 / f),
            near,
            far,
            settings,
        )
    numbers = torch.from_numpy(drawn[..., 0]).to(vertices.device)
    return (numbers * _COLOURS).long() - 1


@lru_cache(maxsize=8)
def _numbered(faces: bytes, count: int) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Give each face (F, 3) a first corner of its own, whose colour OpenCV's flat shading takes.

    Faces are turned until their first corner is no other's; where that fails, it is a copy.
    Returns the faces, the vertices to copy behind the `count` others, and the colours of all.
    """
    turned = np.frombuffer(faces, np.int32).reshape(-1, 3).copy()
    owner = np.full(count, -1)
    shared = np.arange(len(turned))
    for _ in range(3):
        free = shared[owner[turned[shared, 0]] < 0]
        vertices, at = np.unique(turned[free, 0], return_index=True)
        owner[vertices] = free[at]
        shared = np.setdiff1d(shared, free[at])
        turned[shared] = np.roll(turned[shared], 1, axis=1)
    copied = turned[shared, 0].copy()
    turned[shared, 0] = count + np.arange(len(shared))
    colours = (np.concatenate([owner, shared]) + 1) / _COLOURS  # OpenCV wants 0..1
    return turned, copied, np.repeat(colours.astype(np.float32)[:, None], 3, axis=1)


def _choose_torch(
    vertices: Tensor, faces: Tensor, focal: Tensor, principal: Tensor, size: int
) -> Tensor:
    """Let the candidate pixels of all faces compete: (n, S, S) int64."""
    meshes_at_once = max(1, FACES_AT_ONCE // len(faces))
    pixels = _project(vertices, focal, principal)
    best = torch.full((len(vertices), size * size), _NOTHING, device=vertices.device)
    for first in range(0, len(vertices), meshes_at_once):
        rows = slice(first, first + meshes_at_once)
        _compete(best[rows].view(-1), pixels[rows], vertices[rows, :, 2], faces, size)
    face = torch.where(best == _NOTHING, -1, best & ((1 << _FACE_BITS) - 1))
    return face.view(-1, size, size)


def _compete(best: Tensor, pixels: Tensor, depths: Tensor, faces: Tensor, size: int) -> None:
    """Lower `best` (n · S · S,) to the least (depth, face) of each pixel.

    `pixels` (n, V, 2) and `depths` (n, V) of the vertices of n meshes.
    """
    corners = pixels[:, faces]  # (n, F, 3, 2)
    low = corners.amin(2).ceil().clamp(min=0)
    span = corners.amax(2).floor().clamp(max=size - 1) - low + 1
    a, b, c = corners.unbind(2)
    front = (b - a)[..., 1] * (c - a)[..., 0] > (b - a)[..., 0] * (c - a)[..., 1]
    visible = front & (span > 0).all(2) & (depths >= NEAR)[:, faces].all(2)
    mesh, face = visible.nonzero(as_tuple=True)
    corners, low, span = (t[mesh, face] for t in (corners, low.long(), span.long()))
    nearness = 1 / depths[mesh[:, None], faces[face]]  # linear in the picture, as depth is not
    count = span.prod(1)
    begin = count.cumsum(0) - count
    rounds = torch.bincount(begin // CANDIDATES_AT_ONCE).tolist()
    for part in torch.arange(len(face), device=face.device).split(rounds):
        winner = part.repeat_interleave(count[part])
        rank = torch.arange(len(winner), device=face.device) - (begin[winner] - begin[part[:1]])
        column = low[winner, 0] + rank % span[winner, 0]
        row = low[winner, 1] + rank // span[winner, 0]
        areas = _areas(corners[winner].permute(1, 2, 0), column, row)
        inside = (areas >= 0).all(0) & (areas.sum(0) > 0)
        winner, column, row, areas = (t[..., inside] for t in (winner, column, row, areas))
        depth = areas.sum(0) / (areas * nearness[winner].T).sum(0)
        # Positive floats sort as their bits do.
        bid = depth.view(torch.int32).long() << _FACE_BITS | face[winner]
        pixel = (mesh[winner] * size + row) * size + column
        best.scatter_reduce_(0, pixel, bid, "amin")
