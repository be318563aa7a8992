"""A closed and lighter surface on Anny's vertices: eyes and mouth shut, then thinned in pairs."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from .people import Source

INSIDE = (
    "mouth_cavity", "tongue", "eye_cavity.L", "eye_cavity.R",
    "eye_front.L", "eye_front.R", "eye_back.L", "eye_back.R",
)  # fmt: skip
FACE_VALUE = 12.5  # a vertex of the face counts so many times

MOST_NEIGHBOURS = 9
SMALLEST_TURN = 0.35  # cosine between a face's normals before and after
SMALLEST_QUALITY = 0.12  # twice the area over the longest edge squared
LENGTH_COST = 2e-3  # against the plane quadrics, so that flat parts thin evenly


class Surface(NamedTuple):
    """Triangles over Anny's vertices, with texture coordinates."""

    faces: NDArray[np.int64]  # (F, 3)
    uv: NDArray[np.float32]  # (T, 2)
    uv_faces: NDArray[np.int64]  # (F, 3)


def closed_surface(source: Source, points: NDArray) -> Surface:
    """Cut the inside of eyes and mouth out and close the rims: lids in a fan, lips in a strip."""
    outside = ~source.region(*INSIDE)
    faces, uv_faces = source.faces[outside], source.uv_faces[outside]
    corner = {int(v): int(t) for v, t in zip(faces.ravel(), uv_faces.ravel(), strict=True)}
    extra_uv: list[NDArray] = []
    caps: list[tuple[int, int, int]] = []
    for rim in _rims(faces):
        x = points[rim, 0].mean()
        if abs(x) < 0.005:
            caps += _strip(rim, points)
            continue
        eye = np.unique(source.faces[source.region("eye_front.L" if x > 0 else "eye_front.R")])
        centre = int(eye[np.argmax(points[eye, 2])])
        extra_uv.append(source.uv[[corner[v] for v in rim]].mean(axis=0))
        corner[centre] = len(source.uv) + len(extra_uv) - 1
        caps += [(a, b, centre) for a, b in zip(rim, rim[1:] + rim[:1], strict=True)]
    cap_corners = [[corner[v] for v in cap] for cap in caps]
    return Surface(
        np.concatenate([faces, caps]),
        np.concatenate([source.uv, extra_uv]),
        np.concatenate([uv_faces, cap_corners]),
    )


def values(source: Source, points: NDArray) -> NDArray[np.float64]:
    """Say how much more than its shape the loss of each vertex (V,) counts; inf on the body."""
    face = (points[:, 1] > 0.5) & (points[:, 2] > 0.03)
    result = np.where(face, FACE_VALUE, 1.0)
    result[np.unique(source.faces[source.region("body")])] = np.inf
    return result


def thinned(surface: Surface, points: NDArray, values: NDArray, target: int) -> Surface:
    """Collapse edges, the left and the right one together, until `target` vertices are left.

    Half-edge collapse by quadric error (Garland and Heckbert, 1997): a vertex moves onto a
    neighbour, so that those that stay are where they were. Texture seams stay whole.
    """
    mesh = _Collapser(surface, points.astype(np.float64), values)
    mesh.collapse_until(target)
    return Surface(
        np.array(list(mesh.faces.values())), surface.uv, np.array(list(mesh.corners.values()))
    )


def mirror_of(points: NDArray) -> NDArray[np.int64]:
    """Find for each of the points (V, 3) the one on the other side."""
    return np.asarray(cKDTree(points).query(points * [-1, 1, 1])[1])


def is_closed(faces: NDArray) -> bool:
    """Tell whether every edge is there once in each direction."""
    edges = [(int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True)]
    present = set(edges)
    return len(present) == len(edges) and all((b, a) in present for a, b in edges)


def _rims(faces: NDArray) -> list[list[int]]:
    """Find the loops of edges that have one face; they run so that a cap faces outwards."""
    edges = dict.fromkeys(
        (int(a), int(b)) for f in faces for a, b in zip(f, np.roll(f, -1), strict=True)
    )
    following = {a: b for a, b in edges if (b, a) not in edges}
    rims: list[list[int]] = []
    seen: set[int] = set()
    for start in following:
        if start in seen:
            continue
        rim = [start]
        while following[rim[-1]] != start:
            rim.append(following[rim[-1]])
        seen.update(rim)
        rims.append(rim[::-1])
    return rims


def _strip(rim: list[int], points: NDArray) -> list[tuple[int, int, int]]:
    """Close the lips with a strip from the corner of least x to that of greatest."""
    x = points[:, 0]
    first, last = (int(pick(x[rim])) for pick in (np.argmin, np.argmax))
    count = len(rim)
    lower = [rim[(first + k) % count] for k in range((last - first) % count + 1)]
    upper = [rim[(first - k) % count] for k in range((first - last) % count + 1)]
    triangles = []
    i = j = 0
    while i < len(lower) - 1 or j < len(upper) - 1:
        upper_done = j == len(upper) - 1
        if upper_done or (i < len(lower) - 1 and x[lower[i + 1]] <= x[upper[j + 1]]):
            triangle = (lower[i], lower[i + 1], upper[j])
            i += 1
        else:
            triangle = (lower[i], upper[j + 1], upper[j])
            j += 1
        if len(set(triangle)) == 3:
            triangles.append(triangle)
    return triangles


class _Collapser:
    def __init__(self, surface: Surface, points: NDArray, values: NDArray) -> None:
        self.points, self.values = points, values
        self.faces = {i: [int(v) for v in f] for i, f in enumerate(surface.faces)}
        self.corners = {i: [int(t) for t in f] for i, f in enumerate(surface.uv_faces)}
        self.around: dict[int, set[int]] = {}  # vertex -> faces
        corners_of: dict[int, set[int]] = {}
        for i, face in self.faces.items():
            for v, t in zip(face, self.corners[i], strict=True):
                self.around.setdefault(v, set()).add(i)
                corners_of.setdefault(v, set()).add(t)
        self.fixed = {
            v for v, corners in corners_of.items() if len(corners) > 1 or np.isinf(values[v])
        }
        used = np.unique(surface.faces)
        self.mirror = dict(zip(used.tolist(), used[mirror_of(points[used])].tolist(), strict=True))
        self.quadrics = {v: np.zeros((4, 4)) for v in self.around}
        for face in self.faces.values():
            normal = self._normal(points[face])
            area = np.linalg.norm(normal)
            if area > 1e-14:
                normal /= area
                plane = np.append(normal, -normal @ points[face[0]])
                for v in face:
                    self.quadrics[v] += np.outer(plane, plane) * area
        self.version = dict.fromkeys(self.around, 0)
        self.queue: list[tuple[float, int, int, int]] = []  # cost, from, onto, version of from

    def collapse_until(self, target: int) -> None:
        for v in self.around:
            self._offer(v)
        while len(self.around) > target and self.queue:
            _, gone, onto, version = heapq.heappop(self.queue)
            if gone not in self.around or onto not in self.around:
                continue
            if version != self.version[gone] or self._cost(gone, onto) is None:
                continue
            pairs = self._with_mirror(gone, onto)
            touched: set[int] = set()
            for u, v in pairs:
                if u in self.around and v in self.around and self._cost(u, v) is not None:
                    touched |= self._collapse(u, v)
            for v in touched & self.around.keys():
                self.version[v] += 1
                self._offer(v)

    def _with_mirror(self, gone: int, onto: int) -> list[tuple[int, int]]:
        """Add the collapse on the other side; none at all where the two would touch."""
        other, other_onto = self.mirror[gone], self.mirror[onto]
        if other == gone:
            return [(gone, onto)]
        if other not in self.around or other_onto not in self.around or other == onto:
            return []
        ring, other_ring = self._neighbours(gone), self._neighbours(other)
        if other_onto not in other_ring or self._cost(other, other_onto) is None:
            return []
        if (ring | {gone, onto}) & (other_ring | {other, other_onto}):
            return []
        return [(gone, onto), (other, other_onto)]

    def _offer(self, gone: int) -> None:
        best: tuple[float, int] | None = None
        for onto in self._neighbours(gone):
            if self.mirror[gone] == gone and self.mirror[onto] != onto:
                continue  # what is in the middle stays there
            cost = self._cost(gone, onto)
            if cost is not None and (best is None or cost < best[0]):
                best = (cost, onto)
        if best is not None:
            heapq.heappush(self.queue, (best[0], gone, best[1], self.version[gone]))

    def _cost(self, gone: int, onto: int) -> float | None:
        """Rate a collapse; None where it would spoil the surface."""
        if gone in self.fixed:
            return None
        ring, other_ring = self._neighbours(gone), self._neighbours(onto)
        if len(ring & other_ring) != 2 or len(ring) + len(other_ring) - 4 > MOST_NEIGHBOURS:
            return None
        target = self.points[onto]
        staying = np.array([self.faces[i] for i in self.around[gone] - self.around[onto]])
        old = self.points[staying]
        if not self._acceptable(old, np.where((staying == gone)[..., None], target, old)):
            return None
        plane = np.append(target, 1)
        length = ((self.points[gone] - target) ** 2).sum()
        quadric = self.quadrics[gone] + self.quadrics[onto]
        return (plane @ quadric @ plane + LENGTH_COST * length * length) * self.values[gone]

    def _acceptable(self, old: NDArray, new: NDArray) -> bool:
        before, after = self._normal(old), self._normal(new)
        size = np.linalg.norm(after, axis=1)
        longest = ((new - np.roll(new, -1, axis=1)) ** 2).sum(axis=2).max(axis=1)
        turn = (before * after).sum(axis=1) / (np.linalg.norm(before, axis=1) * size + 1e-30)
        good = (size > 1e-12) & (size >= SMALLEST_QUALITY * longest) & (turn >= SMALLEST_TURN)
        return bool(good.all())

    def _collapse(self, gone: int, onto: int) -> set[int]:
        """Do it; return the vertices around, whose costs have changed."""
        ring = self._neighbours(gone)
        shared = self.around[gone] & self.around[onto]
        corner = [self.corners[i][self.faces[i].index(onto)] for i in shared][-1]
        for i in list(self.around[gone]):
            face = self.faces[i]
            if i in shared:
                for v in face:
                    self.around[v].discard(i)
                del self.faces[i], self.corners[i]
            else:
                k = face.index(gone)
                face[k], self.corners[i][k] = onto, corner
                self.around[onto].add(i)
        self.quadrics[onto] = self.quadrics[onto] + self.quadrics[gone]
        del self.around[gone]
        return ring

    def _neighbours(self, vertex: int) -> set[int]:
        return {v for i in self.around[vertex] for v in self.faces[i]} - {vertex}

    @staticmethod
    def _normal(corners: NDArray) -> NDArray:
        """Compute the normals (..., 3), twice the area long, of triangles (..., 3, 3)."""
        a, b, c = np.moveaxis(corners, -2, 0)
        return np.cross(b - a, c - a)
