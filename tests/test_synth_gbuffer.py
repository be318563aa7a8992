from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy.spatial import Delaunay
from torch import Tensor

from mpsnet_cli.body import load_body
from mpsnet_cli.synth import gbuffer
from mpsnet_cli.synth.gbuffer import GBuffer, Rasteriser, rasterise

SIZE = 32
FOCAL = 40.0
PRINCIPAL = (17.0, 14.0)

both = pytest.mark.parametrize("method", get_args(Rasteriser))


def draw(
    vertices: ArrayLike,
    faces: ArrayLike,
    method: Rasteriser,
    *,
    principal: tuple[float, float] = PRINCIPAL,
) -> GBuffer:
    meshes = torch.tensor(np.asarray(vertices, np.float32))
    count = len(meshes)
    return rasterise(
        meshes,
        torch.tensor(np.asarray(faces)),
        focal=torch.full((count,), FOCAL),
        principal=torch.tensor([principal] * count),
        size=SIZE,
        method=method,
    )


def at(column: float, row: float, depth: float) -> list[float]:
    """The point at a depth that projects there."""
    x, y = ((p - c) * depth / FOCAL for p, c in zip((column, row), PRINCIPAL, strict=True))
    return [x, y, depth]


# Counter-clockwise as the camera sees it, half a pixel off the grid: no pixel is on an edge.
SLANTED = [at(3.5, 2.5, 2.0), at(3.5, 20.5, 3.0), at(27.5, 20.5, 4.0)]


@both
def test_one_triangle_has_the_pixels_weights_and_depths_of_its_plane(method: Rasteriser) -> None:
    found = draw([SLANTED], [[0, 1, 2]], method)
    a, b, c = np.array(SLANTED)
    normal = np.cross(b - a, c - a)
    for row in range(SIZE):
        for column in range(SIZE):
            # In the picture: right of the upright edge, above the level one, below the third.
            inside = column > 3.5 and row < 20.5 and (row - 2.5) * 24 > (column - 3.5) * 18
            assert (found.face[0, row, column] == 0) == inside
            ray = np.array([(column - 17) / FOCAL, (row - 14) / FOCAL, 1])
            depth = (normal @ a) / (normal @ ray) if inside else math.inf
            assert float(found.depth[0, row, column]) == pytest.approx(depth, abs=1e-5)
            point = found.bary[0, row, column].numpy() @ np.array(SLANTED)
            np.testing.assert_allclose(point, depth * ray if inside else 0, atol=1e-5)
    shown = found.face[0] >= 0
    np.testing.assert_allclose(found.bary[0].sum(-1), shown, atol=1e-6)


@both
def test_of_two_triangles_each_pixel_shows_the_nearer(method: Rasteriser) -> None:
    """They cross: one is level at 3 m, the other leans from 2 m above to 4 m below."""
    level = [at(2, 1.5, 3.0), at(2, 28.5, 3.0), at(29.5, 28.5, 3.0)]
    leaning = [at(2, 1.5, 2.0), at(2, 28.5, 4.0), at(29.5, 28.5, 4.0)]
    found = draw([level + leaning], [[0, 1, 2], [3, 4, 5]], method)
    alone = [draw([corners], [[0, 1, 2]], method).depth for corners in (level, leaning)]
    assert {0, 1} < set(found.face.unique().tolist())
    torch.testing.assert_close(found.depth, torch.minimum(*alone))
    shown = found.face[found.face >= 0]
    assert torch.equal(shown, (alone[1] < alone[0])[found.face >= 0].long())


@both
def test_faces_turned_away_behind_or_at_the_camera_are_not_seen(method: Rasteriser) -> None:
    away = [SLANTED[0], SLANTED[2], SLANTED[1]]
    behind = [[x, y, -z] for x, y, z in SLANTED]
    through = [*SLANTED[:2], [0.5, 0.5, -1.0]]
    touching = [*SLANTED[:2], [0.01, 0.01, gbuffer.NEAR / 2]]
    found = draw(
        [away, behind, behind[::-1], through, through[::-1], touching], [[0, 1, 2]], method
    )
    assert (found.face == -1).all()
    assert torch.isinf(found.depth).all()
    assert (found.bary == 0).all()


@both
def test_a_face_at_the_camera_does_not_spoil_those_before_it(method: Rasteriser) -> None:
    found = draw([[*SLANTED, [0.5, 0.5, -1.0]]], [[0, 1, 2], [0, 1, 3]], method)
    assert torch.equal(found.face, draw([SLANTED], [[0, 1, 2]], method).face)


@both
@pytest.mark.parametrize("shift", [(-12, 0), (15, 9), (0, -17), (100, 0)])
def test_what_lies_outside_the_picture_is_cut(method: Rasteriser, shift: tuple[int, int]) -> None:
    whole = draw([SLANTED], [[0, 1, 2]], method)
    moved = (PRINCIPAL[0] + shift[0], PRINCIPAL[1] + shift[1])
    found = draw([SLANTED], [[0, 1, 2]], method, principal=moved)
    expected = torch.full((SIZE, SIZE), -1)
    for row, column in (whole.face[0] >= 0).nonzero().tolist():
        x, y = column + shift[0], row + shift[1]
        if 0 <= x < SIZE and 0 <= y < SIZE:
            expected[y, x] = 0
    assert torch.equal(found.face[0], expected)


def bodies(count: int) -> tuple[Tensor, Tensor]:
    """People of various shapes and poses, 4 m away."""
    rng = np.random.default_rng(0)
    body = load_body("free-1")
    pose = rng.normal(0, 0.3, (count, 72))
    pose[:, :3] = [[np.pi, 0, 0]] + rng.normal(0, 0.2, (count, 3))
    vertices, _ = body(pose, rng.normal(0, 1, (count, 10)))
    vertices += np.array([0, 0, 4]) - vertices.mean(axis=1, keepdims=True)
    return torch.tensor(vertices, dtype=torch.float32), torch.tensor(body.faces)


def draw_bodies(vertices: Tensor, faces: Tensor, method: Rasteriser, size: int = 112) -> GBuffer:
    """From far, from near with half of the body outside, off the middle."""
    count = len(vertices)
    return rasterise(
        vertices,
        faces,
        focal=torch.linspace(1.5, 6, count) * size,
        principal=torch.tensor([[0.5, 0.5], [0.2, 0.6]]).repeat(count, 1)[:count] * size,
        size=size,
        method=method,
    )


def test_the_two_rasterisers_agree_on_bodies() -> None:
    vertices, faces = bodies(4)
    one, other = (draw_bodies(vertices, faces, method) for method in get_args(Rasteriser))
    first, second = one.face >= 0, other.face >= 0
    assert first.flatten(1).float().mean(1).min() > 0.02
    assert (first & second).sum() / (first | second).sum() >= 0.995
    assert (one.depth - other.depth)[first & second].abs().max() < 1e-3
    assert (one.face == other.face)[first & second].float().mean() >= 0.99


@both
def test_no_pixel_falls_between_faces_that_share_an_edge(method: Rasteriser) -> None:
    """A crumpled sheet of many small triangles.

    For torch some corners and edges lie right on pixels, where OpenCV does leave gaps.
    """
    rng = np.random.default_rng(1)
    column, row = np.meshgrid(np.linspace(-4, SIZE + 4, 41), np.linspace(-4, SIZE + 4, 41))
    places = np.stack([column.ravel(), row.ravel()], axis=1)
    moved = places[:: 2 if method == "torch" else 1]
    moved += rng.uniform(-0.3, 0.3, moved.shape)
    faces = Delaunay(places).simplices
    sheet = [at(*place, rng.uniform(2, 4)) for place in places]
    a, b, c = (places[faces[:, k]] for k in range(3))
    turned = np.linalg.det(np.stack([b - a, c - a], axis=1)) > 0
    faces[turned] = faces[turned][:, ::-1]
    found = draw([sheet], faces, method)
    assert (found.face >= 0).all()
    assert found.bary.amin() >= 0
    corners = torch.tensor(sheet)[torch.tensor(faces).long()[found.face], 2]
    assert (found.depth >= corners.amin(-1) - 1e-5).all()
    assert (found.depth <= corners.amax(-1) + 1e-5).all()


@both
def test_a_mesh_looks_the_same_alone_and_in_a_batch(method: Rasteriser) -> None:
    vertices, faces = bodies(3)
    found = draw_bodies(vertices, faces, method)
    again = draw_bodies(vertices.flip(0).flip(0), faces, method)
    for part, other in zip(found, again, strict=True):
        assert torch.equal(part, other)
    alone = rasterise(
        vertices[1:2],
        faces,
        focal=torch.linspace(1.5, 6, 3)[1:2] * 112,
        principal=torch.tensor([[0.2, 0.6]]) * 112,
        size=112,
        method=method,
    )
    for part, other in zip(found, alone, strict=True):
        assert torch.equal(part[1:2], other)


def test_memory_is_bounded_by_rounds_that_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    vertices, faces = bodies(3)
    whole = draw_bodies(vertices, faces, "torch")
    monkeypatch.setattr(gbuffer, "FACES_AT_ONCE", len(faces))
    monkeypatch.setattr(gbuffer, "CANDIDATES_AT_ONCE", 500)
    most = 0
    areas = gbuffer._areas

    def watched(corners: Tensor, column: Tensor, row: Tensor) -> Tensor:
        nonlocal most
        if len(column) < 5000:
            most = max(most, len(column))
        return areas(corners, column, row)

    monkeypatch.setattr(gbuffer, "_areas", watched)
    found = draw_bodies(vertices, faces, "torch")
    assert torch.equal(found.face, whole.face)
    assert 400 < most < 1500


def test_an_unknown_rasteriser_is_refused() -> None:
    with pytest.raises(ValueError, match="no rasteriser 'gl'"):
        draw([SLANTED], [[0, 1, 2]], "gl")  # type: ignore[arg-type]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_agrees_with_the_cpu() -> None:
    vertices, faces = bodies(4)
    here = draw_bodies(vertices, faces, "torch")
    there = draw_bodies(vertices.cuda(), faces.cuda(), "torch")
    assert there.face.is_cuda
    assert (here.face == there.face.cpu()).float().mean() >= 0.999
