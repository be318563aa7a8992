from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from mpsnet_cli.body import load_body
from mpsnet_cli.synth.actor import perform, walk
from mpsnet_cli.synth.light import Shadows, develop, linear
from mpsnet_cli.synth.noise import Noise
from mpsnet_cli.synth.raster import SAMPLES, Samples
from mpsnet_cli.synth.scene import Stage, View
from mpsnet_cli.synth.wardrobe import (
    Figure,
    dress,
    hair,
    normals,
    plain,
    shoes,
    skin,
    top,
    trousers,
)

if TYPE_CHECKING:
    from mpsnet_cli.body import BodyModel

VIEW = View(size=(320, 240), focal_length=300.0, height=1.2, pitch=0.1)
SKIN = skin((200, 150, 120), lips=(170, 90, 90), iris=(60, 60, 60), brows=(40, 30, 20))
RED, GREEN = (200, 20, 20), (20, 120, 20)


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_body("free-1")


@pytest.fixture(scope="module")
def rest(body: BodyModel) -> np.ndarray:
    return body(np.zeros((1, 72)), np.zeros((1, 10)))[0][0]


@pytest.fixture(scope="module")
def bare(body: BodyModel, rest: np.ndarray) -> Figure:
    return dress(rest, body.faces, [SKIN, shoes(RED)])


@pytest.fixture(scope="module")
def standing(rest: np.ndarray) -> np.ndarray:
    """A T-pose that stands 4 m away on the floor, camera frame."""
    return VIEW.from_world(rest - [0, rest[:, 1].min(), 4]).astype(np.float32)


def test_the_view_goes_there_and_back() -> None:
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(VIEW.to_world(VIEW.from_world(points)), points, atol=1e-12)
    assert VIEW.from_world([0, 1.2, -4])[1] < 0  # the camera looks down: eye level is above
    np.testing.assert_allclose(VIEW.from_world([0, 1.2, 0]), 0)


def test_walking_moves_the_body_against_its_standing_foot() -> None:
    # A foot that is down slips back 1 dm a frame beneath the root, the other one is in the air.
    down = np.stack([np.zeros(9), np.full(9, -0.9), -0.1 * np.arange(9)], axis=1)
    up = np.stack([np.zeros(9), np.full(9, -0.7), 0.1 * np.arange(9)], axis=1)
    path = walk(np.stack([down, up], axis=1), np.array([0, 1]))
    np.testing.assert_allclose(path[:, 2], 0.1 * np.arange(9), atol=1e-9)
    np.testing.assert_allclose(path[:, 1], 0.9)


def test_a_performance_turns_about_the_pelvis_and_stands_on_the_floor(body: BodyModel) -> None:
    movement = np.tile(np.eye(3), (2, 24, 1, 1))
    betas = np.array([2.0, -1, 0, 0, 0, 0, 0, 0, 0, 0])
    person = perform(movement, body, betas, view=VIEW, start=(0.5, -4), yaw=np.pi / 2)
    world = VIEW.to_world(person.vertices[0])
    assert world[:, 1].min() == pytest.approx(0, abs=1e-5)
    pelvis = VIEW.to_world(person.joints[0, 0] + person.transl[0])
    rest_pelvis = body.rest_joints(betas)[0]
    assert pelvis[0] - rest_pelvis[0] == pytest.approx(0.5, abs=1e-5)
    assert pelvis[2] - rest_pelvis[2] == pytest.approx(-4, abs=1e-5)
    toes = world[world[:, 1] < 0.02].mean(axis=0) - pelvis
    assert toes[0] > 0.02  # it faces +x
    vertices, joints = body(person.pose, np.stack([betas, betas]))
    np.testing.assert_allclose(vertices + person.transl[:, None], person.vertices, atol=1e-5)
    motion = person.motion(VIEW, body, track_id=1, fps=30)
    np.testing.assert_allclose(motion.joints3d, joints, atol=1e-5)
    np.testing.assert_allclose(motion.joints2d, VIEW.project(joints + person.transl[:, None]), 1e-4)


def test_samples_show_the_body_where_it_projects(
    bare: Figure, rest: np.ndarray, standing: np.ndarray
) -> None:
    pixels = VIEW.project(standing)
    samples = Samples(bare, standing, pixels, focal_length=300.0, size=VIEW.size)
    rows, columns = np.nonzero(samples.owner)
    low = samples.low + np.array([columns.min(), rows.min()]) / SAMPLES
    high = samples.low + (np.array([columns.max(), rows.max()]) + 1) / SAMPLES
    np.testing.assert_allclose(low, pixels.min(axis=0), atol=0.7)  # hands, head
    np.testing.assert_allclose(high, pixels.max(axis=0), atol=2.5)  # shoes stand out
    # The skin of a T-pose is its own place: a shift and a turn away from the point shown.
    skin_shown = samples.owner == 1
    seen = VIEW.to_world(samples.points(skin_shown)) + [0, rest[:, 1].min(), 4]
    assert np.quantile(np.abs(seen - samples.places[skin_shown]), 0.99) < 0.004


def test_clothes_cover_and_colour_what_they_should(
    body: BodyModel, rest: np.ndarray, standing: np.ndarray
) -> None:
    layers = [
        SKIN,
        trousers(plain(GREEN), waist=0.0, cuff=-0.85, loft=0.012),
        top(plain(RED), sleeve=0.4, hem=-0.09, loft=0.012, neck=0.09),
        hair((30, 20, 10), length=0.6, loft=0.015),
    ]
    figure = dress(rest, body.faces, layers)
    samples = Samples(figure, standing, VIEW.project(standing), focal_length=300.0, size=VIEW.size)
    names = {1: "skin", 2: "trousers", 3: "top", 4: "hair"}
    at = {"skin": (0.6, 0.45), "top": (0.0, 0.2), "trousers": (0.1, -0.4), "hair": (0.0, 0.77)}
    for wanted, (x, y) in at.items():
        distance = np.hypot(*(samples.places[..., :2] - (x, y)).transpose(2, 0, 1))
        distance[samples.owner == 0] = np.inf
        owner = samples.owner[np.unravel_index(distance.argmin(), distance.shape)]
        assert names[int(owner)] == wanted
    knee = np.array([[0.1, -0.4, 0.05]], np.float32)
    colour = layers[1].colour(knee)[0]
    np.testing.assert_allclose(colour, linear(GREEN), rtol=0.5)


def test_cloth_lies_outside_the_skin(body: BodyModel, rest: np.ndarray) -> None:
    figure = dress(rest, body.faces, [SKIN, shoes(RED)])
    shoe = figure.shells[1]
    draped, _ = figure.drape(shoe, rest)
    worn = np.unique(shoe.faces)
    inside = worn[shoe.layer.covers(rest[worn]) > 0.01]
    outward = ((draped - rest) * normals(rest, body.faces)).sum(axis=1)[inside]
    assert np.mean(outward > 0) > 0.97


def test_a_roof_casts_its_shadow_and_no_other() -> None:
    roof = np.array([(-1, -1, 4), (1, -1, 4), (1, -1, 6), (-1, -1, 6)], np.float32)
    faces = np.array([(0, 1, 2), (0, 2, 3)], np.int32)
    shadows = Shadows([(roof, faces)], towards_sun=np.array([0, -1, 0]))
    under = np.array([(0, 0, 5), (0.9, 0, 4.1), (-0.9, 0, 5.9)], np.float32)
    beside = np.array([(1.1, 0, 5), (0, 0, 3.9), (0, -1.5, 5), (0, -1, 5)], np.float32)
    np.testing.assert_array_equal(shadows.sunlit(under), 0)
    np.testing.assert_array_equal(shadows.sunlit(beside), 1)


def test_people_appear_with_their_shadows_and_again_the_same(
    bare: Figure, standing: np.ndarray
) -> None:
    stage = Stage(VIEW, sun=(-0.5, 0.8, 0.6))
    empty = stage.draw([], seed=0)
    picture = stage.draw([(bare, standing)], seed=0)
    assert picture.shape == (240, 320, 3)
    assert picture.dtype == np.uint8
    changed = np.abs(picture.astype(int) - empty).max(axis=2) > 12
    x, y = VIEW.project(standing.mean(axis=0)).astype(int)
    assert changed[y, x]
    assert not changed[:50].any()  # the wall above stays as it was
    foot = standing[standing[:, 1].argmax()]
    shaded = VIEW.project(foot + VIEW.rotation @ [0.35, 0, -0.4])  # away from the sun
    columns, rows = shaded.astype(int)
    assert picture[rows, columns].sum() < 0.8 * empty[rows, columns].sum()
    np.testing.assert_array_equal(picture, stage.draw([(bare, standing)], seed=0))


def test_grain_and_only_grain_depends_on_the_seed() -> None:
    light = np.full((40, 60, 3), 0.5, np.float32)
    first, second = develop(light, seed=1), develop(light, seed=2)
    assert 0 < np.abs(first.astype(int) - second).max() < 10
    np.testing.assert_array_equal(first, develop(light, seed=1))


def test_noise_is_a_function_of_place_alone() -> None:
    places = np.random.default_rng(0).uniform(-1, 1, (20000, 3)).astype(np.float32)
    values = Noise(seed=5).space(places, cell=0.05)
    np.testing.assert_array_equal(values[100:200], Noise(seed=5).space(places[100:200], cell=0.05))
    assert abs(values.mean()) < 0.1
    assert 0.4 < values.std() < 1.2
    near = Noise(seed=5).space(places + np.float32(1e-4), cell=0.05)
    assert np.abs(near - values).max() < 0.1
