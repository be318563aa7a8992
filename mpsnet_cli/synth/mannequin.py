"""The free body for quick pictures, with what skin cannot be: a skirt, long hair, things carried.

One mesh with one list of faces for everybody. What a person does not wear is drawn together to a
point inside the body. Clothes that follow the skin are the skin, moved outwards in the T-pose,
where that is cheapest; the normals are those of the T-posed average body, turned with the bones.
Places are on that body, m: y up, z forward, x to the person's left, the pelvis joint at the origin.
"""

from __future__ import annotations

import warnings
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from mpsnet_cli.body.arrays import BodyArrays
from mpsnet_cli.body.skeleton import PARENTS
from mpsnet_cli.synth.anatomy import joints as place_joints

Array = NDArray[np.float64]

SKIRT_TOP, SKIRT_BOTTOM, SKIRT_ROWS, SKIRT_COLUMNS = 0.06, -0.84, 18, 28
HAIR_TOP, HAIR_BOTTOM, HAIR_ROWS, HAIR_COLUMNS = 0.70, 0.16, 13, 17
BALL_ROWS, BALL_COLUMNS = 7, 10
CELL, FINGER_CELL = 0.025, 0.013  # m, in which one vertex is kept; that of hands
WRIST = 0.66  # m from the middle

PELVIS, CHEST, HEAD, HANDS = 0, 9, 15, (22, 23)
HIPS, KNEES = (1, 2), (4, 5)


class Part(IntEnum):
    """What a vertex belongs to."""

    BODY = 0
    SKIRT = 1
    HAIR = 2
    ON_HEAD = 3
    ON_BACK = 4
    IN_LEFT_HAND = 5
    IN_RIGHT_HAND = 6


BALLS = {  # the joint that carries each thing
    Part.ON_HEAD: HEAD,
    Part.ON_BACK: CHEST,
    Part.IN_LEFT_HAND: HANDS[0],
    Part.IN_RIGHT_HAND: HANDS[1],
}


class Fit(NamedTuple):
    """How n people's clothes and things sit on them."""

    loft: Tensor  # (n, B) m, by which the body's own vertices move along their normals
    skirt_rows: Tensor  # (n,) rows that the skirt has; 0 for no skirt
    skirt_flare: Tensor  # (n,) m outwards per m downwards
    hair_rows: Tensor  # (n,)
    hair_width: Tensor  # (n,) 0..1, of the sheet's columns
    ball_centres: Tensor  # (n, 4, 3) m from the carrying joint at rest
    ball_radii: Tensor  # (n, 4, 3) m; 0 for nothing
    ball_squareness: Tensor  # (n, 4) 0 for a ball, 1 for nearly a box


class Mannequin:
    """Poses dressed bodies in batches on any device."""

    def __init__(self, body: BodyArrays, *, device: torch.device) -> None:
        kept, skin = _thinned(body)
        parts = [skin, _skirt(body), _hair(body), *map(_ball, BALLS)]
        firsts = np.cumsum([0, *(len(part.places) for part in parts)])
        self._rows = {
            part.kind: slice(first, after)
            for part, first, after in zip(parts, firsts, firsts[1:], strict=False)
        }

        def tensor(values: NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        places = np.concatenate([part.places for part in parts])
        self.places = tensor(places.astype(np.float32))  # (V, 3)
        faces = [part.faces + first for part, first in zip(parts, firsts, strict=False)]
        self.faces = tensor(np.concatenate(faces))  # (F, 3)
        self.kinds = tensor(np.repeat([p.kind for p in parts], np.diff(firsts)))  # (V,) Part
        self.body = self._rows[Part.BODY]
        self._normals = tensor(np.concatenate([p.normals for p in parts]).astype(np.float32).T)
        self._weights = tensor(np.concatenate([p.weights for p in parts]).astype(np.float32).T)
        _, nearest = cKDTree(body.v_template).query(places)
        shapes = body.shapedirs[nearest]
        joint_shapes = np.einsum("jv,vck->jck", body.J_regressor, body.shapedirs)
        for kind, joint in BALLS.items():  # balls keep their size, and go with their joint
            shapes[self._rows[kind]] = joint_shapes[joint]
        self._shapes = tensor(shapes.transpose(2, 1, 0))  # (10, 3, V)
        self._joints = tensor((body.J_regressor @ body.v_template)[list(BALLS.values())])
        correctives = tensor(body.posedirs[kept].swapaxes(0, 1).reshape(3 * len(kept), -1))
        with warnings.catch_warnings():  # that this is new in torch, and not checked
            warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
            self._correctives = correctives.to_sparse_csr()

    def pose(
        self, rotations: Tensor, transforms: Tensor, betas: Tensor, fit: Fit
    ) -> tuple[Tensor, Tensor]:
        """Pose n people: vertices (n, V, 3), m, and unit normals (n, V, 3).

        `rotations` (n, 24, 3, 3) are local, as the pose correctives want them; `transforms`
        (n, 24, 3, 4) carry points of the T-pose along with each joint, see `skeleton_transforms`.
        """
        count, total = len(betas), len(self.places)
        rest = self.places.T.repeat(count, 1, 1)  # (n, 3, V), as it is quickest
        for beta, shape in zip(betas.T, self._shapes, strict=True):  # in this order for any n
            rest.addcmul_(beta[:, None, None], shape)
        bends = (rotations[:, 1:] - torch.eye(3, device=betas.device)).reshape(count, -1)
        body = rest[..., self.body]
        body += torch.stack([self._correctives @ bend for bend in bends]).view(body.shape)
        body += fit.loft[:, None] * self._normals[:, self.body]
        skirt = self._rows[Part.SKIRT]
        drop = (SKIRT_TOP - self.places[skirt, 1]).clamp(min=0)
        flare = fit.skirt_flare[:, None] * drop
        rest[..., skirt] += flare[:, None] * self._normals[:, skirt]
        rest[..., self._rows[Part.ON_HEAD].start :] += self._balls(fit).flatten(1, 2).mT

        carry = transforms.reshape(count, 24, 12).mT @ self._weights
        turn, shift = carry.view(count, 3, 4, total).split((3, 1), dim=2)
        vertices = ((turn * rest[:, None]).sum(dim=2) + shift[:, :, 0]).mT.contiguous()
        normals = (turn * self._normals).sum(dim=2).mT
        width = torch.ones_like(fit.hair_width)
        self._gather_up(vertices, Part.SKIRT, SKIRT_COLUMNS, fit.skirt_rows, width)
        self._gather_up(vertices, Part.HAIR, HAIR_COLUMNS, fit.hair_rows, fit.hair_width)
        return vertices, normals

    def _balls(self, fit: Fit) -> Tensor:
        """Shape the balls, and move them to their joints at rest: (n, 4, vertices, 3), m."""
        form = self._normals[:, self._rows[Part.ON_HEAD].start :].T.reshape(len(BALLS), -1, 3)
        box = form / form.abs().amax(2, keepdim=True)
        shaped = torch.lerp(form, 0.8 * box, fit.ball_squareness[..., None, None])
        centres = self._joints + fit.ball_centres
        return centres[:, :, None] + shaped * fit.ball_radii[:, :, None]

    def _gather_up(
        self, vertices: Tensor, kind: Part, columns: int, count: Tensor, width: Tensor
    ) -> None:
        """Draw the rows of a sheet beyond the first `count` (n,), and the columns aside, onto it.

        `width` (n,) is the share of the columns that stay; without any rows all becomes a point.
        """
        rows = self._rows[kind]
        numbers = torch.arange(rows.stop - rows.start, device=vertices.device)
        row = torch.minimum(numbers // columns, count.long()[:, None] - 1)
        aside = ((1 - width[:, None]) * (columns - 1) / 2).round().long()
        column = torch.maximum(numbers % columns, aside)
        column = torch.minimum(column, columns - 1 - aside)
        source = (row.clamp(min=0) * columns + column) * (count[:, None] > 1)
        part = vertices[:, rows]
        vertices[:, rows] = part.gather(1, source[..., None].expand_as(part))


def skeleton_transforms(rotations: Array, rest_joints: Array) -> tuple[Array, Array]:
    """Pose a skeleton: joints (n, 24, 3) and what carries the T-pose along, (n, 24, 3, 4).

    `rotations` (n, 24, 3, 3) are relative to the parent joint, `rest_joints` (n, 24, 3) m.
    """
    joints, turned = place_joints(rotations, rest_joints)
    shift = joints - (turned @ rest_joints[..., None])[..., 0]
    return joints, np.concatenate([turned, shift[..., None]], axis=3)


class _Mesh(NamedTuple):
    kind: Part
    places: Array  # (V, 3)
    normals: Array  # (V, 3)
    weights: Array  # (V, 24)
    faces: NDArray[np.int64]  # (F, 3)


def _thinned(body: BodyArrays) -> tuple[NDArray[np.int64], _Mesh]:
    """Thin out the body where it is finer than pixels: the vertices kept, and the mesh of them."""
    points = body.v_template
    cell = np.where(np.abs(points[:, :1]) > WRIST, FINGER_CELL, CELL)
    key = np.concatenate([np.floor(points / cell), points[:, :1] > 0], axis=1)
    _, group = np.unique(key, axis=0, return_inverse=True)
    group = group.ravel()
    sizes = np.bincount(group)
    centres = np.stack([np.bincount(group, points[:, k]) / sizes for k in range(3)], axis=1)
    order = np.lexsort([np.linalg.norm(points - centres[group], axis=1), group])
    kept = order[np.cumsum(sizes) - sizes]  # of each group the vertex nearest to its middle
    faces = group[body.f]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)].astype(np.int64)
    places = points[kept].astype(np.float64)
    a, b, c = (places[faces[:, k]] for k in range(3))
    normals = np.zeros_like(places)
    for corner in range(3):
        np.add.at(normals, faces[:, corner], np.cross(b - a, c - a))
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    return kept, _Mesh(Part.BODY, places, normals, body.weights[kept], faces)


def _skirt(body: BodyArrays) -> _Mesh:
    """A tube around hips and legs, that follows both of them."""
    points = body.v_template
    angles = 2 * np.pi * np.arange(SKIRT_COLUMNS) / SKIRT_COLUMNS
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=1)  # x, z
    heights = np.linspace(SKIRT_TOP, SKIRT_BOTTOM, SKIRT_ROWS)
    rings = []
    for height in heights:
        slab = points[(np.abs(points[:, 1] - height) < 0.05) & (points[:, 1] < 0.3)][:, [0, 2]]
        reach = (slab @ directions.T).max(axis=0)
        towards = directions @ directions.T
        exits = np.where(towards > 0.1, reach[:, None] / np.maximum(towards, 0.1), np.inf)
        rings.append((exits.min(axis=0) + 0.012)[:, None] * directions)
    ring = np.stack(rings)  # (rows, columns, 2)
    places = np.stack(
        [ring[..., 0], np.broadcast_to(heights[:, None], ring.shape[:2]), ring[..., 1]], axis=-1
    ).reshape(-1, 3)
    normals = np.tile(np.insert(directions, 1, 0, axis=1), (SKIRT_ROWS, 1))
    weights = np.zeros((len(places), 24))
    legs = 0.9 * _step(places[:, 1], 0.02, -0.25)
    knees = 0.6 * _step(places[:, 1], -0.38, -0.6)
    left = _step(places[:, 0], -0.16, 0.16)
    weights[:, PELVIS] = 1 - legs
    for share, hip, knee in zip((left, 1 - left), HIPS, KNEES, strict=True):
        weights[:, hip] = legs * share * (1 - knees)
        weights[:, knee] = legs * share * knees
    faces = _sheet(SKIRT_ROWS, SKIRT_COLUMNS, closed=True)
    return _Mesh(Part.SKIRT, places, normals, weights, faces)


def _hair(body: BodyArrays) -> _Mesh:
    """A sheet around the back of the head, over neck and back."""
    points = body.v_template
    heights = np.linspace(HAIR_TOP, HAIR_BOTTOM, HAIR_ROWS)
    places, normals = [], []
    for height in heights:
        narrow = _step(np.array(height), 0.6, 0.42)
        angles = np.linspace(-1, 1, HAIR_COLUMNS) * (2.1 - 0.85 * narrow)
        directions = np.stack([np.sin(angles), -np.cos(angles)], axis=1)  # x, z
        ring = 0.015 * np.array([0, 1]) + 0.105 * directions
        for x, z in ring:
            near = points[
                (np.abs(points[:, 1] - height) < 0.04) & (np.abs(points[:, 0] - x) < 0.03)
            ]
            back = near[:, 2].min() if height < 0.56 and len(near) else np.inf
            places.append((x, height, min(z, back - 0.02)))
        normals.append(np.insert(directions, 1, 0, axis=1))
    placed = np.array(places)
    weights = np.zeros((len(placed), 24))
    weights[:, CHEST] = _step(placed[:, 1], 0.56, 0.40)
    weights[:, HEAD] = 1 - weights[:, CHEST]
    faces = _sheet(HAIR_ROWS, HAIR_COLUMNS, closed=False)
    return _Mesh(Part.HAIR, placed, np.concatenate(normals), weights, faces)


def _ball(kind: Part) -> _Mesh:
    """A ball of no size yet, carried by a joint."""
    polar = np.pi * np.arange(BALL_ROWS) / (BALL_ROWS - 1)
    around = -2 * np.pi * np.arange(BALL_COLUMNS) / BALL_COLUMNS
    normals = np.stack(
        [
            np.outer(np.sin(polar), np.cos(around)),
            np.tile(np.cos(polar)[:, None], BALL_COLUMNS),
            np.outer(np.sin(polar), np.sin(around)),
        ],
        axis=-1,
    ).reshape(-1, 3)
    weights = np.zeros((len(normals), 24))
    weights[:, BALLS[kind]] = 1
    faces = _sheet(BALL_ROWS, BALL_COLUMNS, closed=True)[: 2 * (BALL_ROWS - 1) * BALL_COLUMNS]
    return _Mesh(kind, np.zeros_like(normals), normals, weights, faces)


def _sheet(rows: int, columns: int, *, closed: bool) -> NDArray[np.int64]:
    """Faces of a grid of vertices, row by row, first those seen from outside, then the others."""
    right = (np.arange(columns) + 1) % columns
    numbers = np.arange(rows * columns).reshape(rows, columns)
    above, below = numbers[:-1], numbers[1:]
    quads = np.stack([above, below, below[:, right], above[:, right]], axis=-1)
    quads = (quads if closed else quads[:, :-1]).reshape(-1, 4)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return np.concatenate([faces, faces[:, ::-1]])


def _step(values: Array, start: float, end: float) -> Array:
    """Go smoothly from 0 at `start` to 1 at `end`."""
    share = np.clip((values - start) / (end - start), 0, 1)
    return share * share * (3 - 2 * share)


class Outline:
    """Points of the body's skin by which its bounding box is known to about a centimetre."""

    def __init__(self, body: BodyArrays) -> None:
        """For each joint take the furthest vertices of what follows it, in all directions."""
        axes = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3)
        chosen: set[int] = set()
        for joint in range(len(PARENTS)):
            (own,) = np.nonzero(body.weights[:, joint] > 0.4)
            if len(own):
                chosen.update(own[(body.v_template[own] @ axes.T).argmax(axis=0)].tolist())
        rows = sorted(chosen)
        self._places = body.v_template[rows].astype(np.float64)
        self._shapes = body.shapedirs[rows].astype(np.float64)
        self._weights = body.weights[rows].astype(np.float64)

    def points(self, transforms: Array, betas: Array) -> Array:
        """Pose the points of one body in n poses: (n, K, 3), m; pose correctives left out."""
        rest = self._places + self._shapes @ betas
        homogeneous = np.concatenate([rest, np.ones((len(rest), 1))], axis=1)
        # Bones before weights: (n, 24, 3, 4) with (K, 4) to (n, 24, 3, K)
        carried = transforms @ homogeneous.T
        return np.einsum("njck,kj->nkc", carried, self._weights)
