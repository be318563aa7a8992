from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from shapes import Ball

from mpsnet_cli.errors import DeviceError
from mpsnet_cli.progress import Reporter
from mpsnet_cli.render import Renderer, gl, make_renderer
from mpsnet_cli.render.cpu import CpuRenderer
from mpsnet_cli.render.scene import Box, Camera, Colour, Mesh, occlusion_groups, visible_box
from mpsnet_cli.render.shading import Shader

BALL = Ball()
BLUE: Colour = (90, 140, 240)
RED: Colour = (240, 120, 90)
WIDTH, HEIGHT = 48, 36
CAMERA = Camera(40.0, (24.0, 18.0))
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
RAYS = 4  # of the reference, per pixel and axis


def ball(x: float, y: float, z: float, colour: Colour = BLUE) -> Mesh:
    return Mesh(0.5 * BALL.sphere + np.float32([x, y, z]), colour)


SCENES = {
    "one person": ([ball(0, 0, 3)], CAMERA),
    "principal point off the centre": ([ball(0, 0, 3)], Camera(40.0, (10.25, 25.5))),
    "principal point outside the image": ([ball(1.5, 0, 3)], Camera(40.0, (-5.0, 15.0))),
    "half out of the frame": ([ball(-1.8, 1.2, 3)], CAMERA),
    "one hides another": ([ball(0, 0, 3), ball(0.4, 0.1, 3.6, RED)], CAMERA),
    "one hides another, listed last": ([ball(0.4, 0.1, 3.6, RED), ball(0, 0, 3)], CAMERA),
    "two that intersect": ([ball(0, 0, 3), ball(0.3, 0, 3.1, RED)], CAMERA),
    "far apart": ([ball(-1.2, 0, 4), ball(1.2, 0.3, 5, RED)], CAMERA),
    "far away": ([ball(0, 0, 40), ball(0.3, 0.1, 40.3, RED)], Camera(1000.0, (24.0, 18.0))),
    "one reaches behind the camera": ([ball(0.6, 0, 0.2), ball(0, 0, 3, RED)], CAMERA),
    "one is behind the camera": ([ball(0, 0, -3), ball(0, 0, 3, RED)], CAMERA),
    "one is beside the frame": ([ball(9, 0, 3), ball(0, 0, 3, RED)], CAMERA),
    "close": ([ball(0, 0, 0.7)], CAMERA),
}


@lru_cache
def cast_rays(scene: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Draw a scene the slow way: the picture, and the pixels in which more than one thing is."""
    meshes, camera = SCENES[scene]
    rows, columns = np.indices((RAYS * HEIGHT, RAYS * WIDTH)).reshape(2, -1)
    colour = IMAGE[rows // RAYS, columns // RAYS].astype(np.float64)
    pixels = (np.stack([columns, rows], axis=1) + 0.5) / RAYS
    rays = np.ones((len(pixels), 3))
    rays[:, :2] = (pixels - camera.principal_point) / camera.focal_length
    depth = np.full(len(rays), np.inf)
    owner = np.zeros(len(rays), int)
    shader = Shader(BALL.faces)
    for number, mesh in enumerate(meshes, start=1):
        colours = 255 * shader.colours(mesh.vertices, mesh.colour).astype(np.float64)
        for face in BALL.faces:
            corners = mesh.vertices[face].astype(np.float64)
            if np.linalg.det(corners) >= 0:  # seen from behind
                continue
            weights = rays @ np.linalg.inv(corners)  # ray = weights @ corners = point / depth
            nearness = weights.sum(axis=1)
            hit = (weights >= 0).all(axis=1) & (nearness > 1 / depth)
            depth[hit] = 1 / nearness[hit]
            colour[hit] = weights[hit] @ colours[face] * depth[hit, None]
            owner[hit] = number

    def parts(values: NDArray[np.generic]) -> NDArray[np.generic]:
        """Group (pixels of the fine image, …) into (HEIGHT, WIDTH, RAYS², …)."""
        fine = values.reshape(HEIGHT, RAYS, WIDTH, RAYS, -1).swapaxes(1, 2)
        return fine.reshape(HEIGHT, WIDTH, RAYS * RAYS, -1)

    owners = parts(owner)[..., 0]
    return parts(colour).mean(axis=2), owners.min(axis=2) != owners.max(axis=2)


@pytest.fixture(params=["cpu", "pyrender"], scope="module")
def renderer(request: pytest.FixtureRequest) -> Renderer:
    try:
        return make_renderer(request.param, BALL.faces, report=Reporter())
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("scene", SCENES)
def test_draws_what_rays_see(renderer: Renderer, scene: str) -> None:
    expected, mixed = cast_rays(scene)
    before = IMAGE.copy()
    drawn = renderer.draw(IMAGE, *SCENES[scene])
    assert (drawn != IMAGE).any()
    np.testing.assert_array_equal(IMAGE, before)
    error = np.abs(drawn - expected)
    # Multisampling takes one colour a pixel from each face, which shows where faces are tiny.
    assert error[~mixed].max() < (3 if isinstance(renderer, CpuRenderer) else 20)
    assert error[~mixed].mean() < 0.4
    assert error[mixed].sum() <= 12 * error[mixed].size  # four samples against sixteen at an edge


def test_pixels_without_people_stay_as_they_are(renderer: Renderer) -> None:
    meshes, camera = SCENES["one hides another"]
    expected, mixed = cast_rays("one hides another")
    background = (expected == IMAGE).all(axis=2) & ~mixed
    assert background.sum() > 1000
    drawn = renderer.draw(IMAGE, meshes, camera)
    np.testing.assert_array_equal(drawn[background], IMAGE[background])


def test_edges_are_anti_aliased(renderer: Renderer) -> None:
    black = np.zeros_like(IMAGE)
    _, mixed = cast_rays("one person")
    drawn = renderer.draw(black, *SCENES["one person"]).astype(int).sum(axis=2)
    inside = drawn[HEIGHT // 2, WIDTH // 2]
    partly = (drawn[mixed] > 0.1 * inside) & (drawn[mixed] < 0.7 * inside)
    assert partly.mean() > 0.4


def test_a_later_smaller_picture_is_not_touched_by_an_earlier_one(renderer: Renderer) -> None:
    camera = Camera(400.0, (150.0, 100.0))
    renderer.draw(np.zeros((200, 300, 3), np.uint8), [ball(0, 0, 3), ball(0.5, 0, 3)], camera)
    drawn = renderer.draw(IMAGE, *SCENES["one person"])
    expected, mixed = cast_rays("one person")
    assert np.abs(drawn - expected)[~mixed].mean() < 0.4


def test_nobody_to_draw(renderer: Renderer) -> None:
    np.testing.assert_array_equal(renderer.draw(IMAGE, [], CAMERA), IMAGE)


def test_both_renderers_agree_at_full_size(renderer: Renderer) -> None:
    image = np.full((480, 640, 3), 90, np.uint8)
    meshes, camera = [ball(0, 0, 2), ball(0.4, 0.1, 2.5, RED)], Camera(600.0, (300.5, 250.0))
    other = CpuRenderer(BALL.faces).draw(image, meshes, camera).astype(int)
    drawn = renderer.draw(image, meshes, camera).astype(int)
    mask, other_mask = ((picture != image).any(axis=2) for picture in (drawn, other))
    assert (mask & other_mask).sum() / (mask | other_mask).sum() > 0.98
    assert np.abs(drawn - other)[mask & other_mask].mean() < 1


def test_normals_are_the_area_weighted_mean_of_the_faces_around() -> None:
    vertices = BALL.sphere * np.float32([1, 2, 0.5]) + np.float32([0.1, 0, 3])
    corners = vertices[BALL.faces].astype(np.float64)
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    expected = np.zeros(vertices.shape)
    for face, normal in zip(BALL.faces, cross, strict=True):
        expected[face] += normal
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(Shader(BALL.faces).normals(vertices), expected, atol=1e-5)


def test_shading_is_brighter_towards_the_key_light_and_in_range() -> None:
    colours = Shader(BALL.faces).colours(ball(0, 0, 3).vertices, BLUE)
    assert colours.shape == BALL.sphere.shape
    assert colours.dtype == np.float32
    assert colours.min() >= 0
    assert colours.max() <= 1
    key = BALL.sphere @ np.float32([-0.45, -0.75, -0.8])
    assert colours[key.argmax()].sum() > 1.5 * colours[key.argmin()].sum()


def test_a_face_without_area_is_finite() -> None:
    faces = np.array([[0, 2, 1]], np.int32)
    vertices = np.float32([[0, 0, 2], [1, 0, 2], [1, 0, 2]])
    assert np.isfinite(Shader(faces).colours(vertices, BLUE)).all()


def test_visible_box_holds_the_projection() -> None:
    assert visible_box(ball(0, 0, 3).vertices, CAMERA, (WIDTH, HEIGHT)) == Box(17, 11, 31, 25)
    assert visible_box(ball(-1.8, 0, 3).vertices, CAMERA, (WIDTH, HEIGHT)).left == 0
    assert visible_box(ball(9, 0, 3).vertices, CAMERA, (WIDTH, HEIGHT)) is None
    assert visible_box(ball(0, 0, -3).vertices, CAMERA, (WIDTH, HEIGHT)) is None
    whole = Box(0, 0, WIDTH, HEIGHT)
    assert visible_box(ball(0, 0, 0.2).vertices, CAMERA, (WIDTH, HEIGHT)) == whole


def test_people_are_grouped_over_a_chain_of_touching_boxes() -> None:
    left, right, middle = ball(-0.6, 0, 3), ball(0.6, 0, 3), ball(0, 0, 3)
    apart = occlusion_groups([left, right], CAMERA, (WIDTH, HEIGHT))
    assert [members for _, members in apart] == [[left], [right]]
    ((box, members),) = occlusion_groups([left, right, middle], CAMERA, (WIDTH, HEIGHT))
    assert {id(mesh) for mesh in members} == {id(left), id(right), id(middle)}
    assert box == apart[0][0].joined(apart[1][0])


def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let the probe's process be a shell script."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


def test_auto_draws_on_the_cpu_where_opengl_is_software_broken_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Reporter()
    for nodes, script in [
        (("null",), "echo 'llvmpipe (LLVM 15.0.6, 256 bits)'"),
        (("null",), "kill -SEGV $$"),
        (("no-such-device",), "exit 99"),
    ]:
        monkeypatch.setattr(gl, "GPU_NODES", nodes)
        fake_python(tmp_path, monkeypatch, script)
        assert isinstance(make_renderer("auto", BALL.faces, report=report), CpuRenderer)
    assert report.warnings == []


def test_auto_takes_a_gpu_that_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gl, "GPU_NODES", ("null",))
    monkeypatch.setattr(gl, "GlRenderer", lambda faces: ("gl", faces))
    fake_python(tmp_path, monkeypatch, "echo 'NVIDIA H200/PCIe/SSE2'")
    assert make_renderer("auto", BALL.faces, report=Reporter()) == ("gl", BALL.faces)


def test_pyrender_on_request_without_opengl_is_one_clear_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_python(tmp_path, monkeypatch, "echo 'Traceback …' >&2; echo 'no libEGL' >&2; exit 1")
    with pytest.raises(DeviceError, match=r"\(no libEGL\): use --renderer cpu"):
        make_renderer("pyrender", BALL.faces, report=Reporter())


def test_pyrender_on_request_in_software_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gl, "GlRenderer", lambda faces: ("gl", faces))
    fake_python(tmp_path, monkeypatch, "echo softpipe")
    report = Reporter()
    assert make_renderer("pyrender", BALL.faces, report=report) == ("gl", BALL.faces)
    (warning,) = report.warnings
    assert "softpipe" in warning
