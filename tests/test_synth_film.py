from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mpsnet_cli.synth.appearance import Surface
from mpsnet_cli.synth.backdrop import Backdrop, View, draw_backdrop, paint_backdrop
from mpsnet_cli.synth.film import TYPICAL, Film, _jpeg, develop, draw_film
from mpsnet_cli.synth.lighting import CELLS, REACH, Light, Shadows, cavities, shine
from mpsnet_cli.synth.plates import Plates
from mpsnet_cli.synth.records import stack

CPU = torch.device("cpu")
SIZE = 64

PLAIN = Film(
    exposure=TYPICAL, metering=0.0, balance=np.ones(3), saturation=1.0, contrast=1.0, bend=0.0,
    lift=0.0, blur=0.0, shake=np.zeros(2), sensor=0, grain=0.0, shot=0.0, grain_at=np.zeros(2),
    quality=0.0,
)  # fmt: skip


def photograph(light: torch.Tensor, *films: Film) -> torch.Tensor:
    sensors = np.array([film.sensor for film in films])
    return develop(light.expand(len(films), -1, -1, -1), stack(films, CPU), sensors=sensors)


def scenery() -> torch.Tensor:
    """Something smooth with colours: tones (3, S, S)."""
    rng = np.random.default_rng(0)
    small = rng.uniform(0.1, 0.9, (8, 8, 3)).astype(np.float32)
    large = cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    return torch.from_numpy(large).permute(2, 0, 1)


def test_a_plain_film_shows_the_root_of_the_light() -> None:
    tone = scenery()
    np.testing.assert_allclose(photograph(tone.square(), PLAIN)[0], tone, atol=1e-6)


def test_films_do_what_they_say() -> None:
    light = scenery().square()
    grey, tinted, low, full = photograph(
        light,
        PLAIN._replace(saturation=0.0),
        PLAIN._replace(balance=np.array([1, 1, 0.25])),
        PLAIN._replace(contrast=0.5),
        PLAIN._replace(metering=1.0, exposure=4.0),
    )
    luma = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * scenery()).sum(0)
    np.testing.assert_allclose(grey, luma.expand(3, -1, -1), atol=1e-5)
    np.testing.assert_allclose(tinted[2], scenery()[2] / 2, atol=1e-5)
    np.testing.assert_allclose(low, 0.5 + 0.5 * (scenery() - 0.5), atol=1e-5)
    assert full.mean() > 0.95  # overexposed, whatever the light
    halved = photograph(light / 2, PLAIN._replace(metering=1.0, exposure=0.1))
    same = photograph(light, PLAIN._replace(metering=1.0, exposure=0.1))
    np.testing.assert_allclose(halved, same, atol=1e-5)


def test_blur_is_a_small_kernel() -> None:
    light = torch.zeros(3, SIZE, SIZE)
    light[:, 20, 30] = 1
    blurred = photograph(light, PLAIN._replace(blur=0.25))[0, 0]
    kernel = np.outer([0.25, 0.5, 0.25], [0.25, 0.5, 0.25])
    np.testing.assert_allclose(blurred[19:22, 29:32], kernel, atol=1e-6)
    assert float(blurred.sum()) == pytest.approx(1, abs=1e-5)


def test_shake_spreads_along_its_direction_only() -> None:
    light = torch.zeros(3, SIZE, SIZE)
    light[:, 32] = 1  # a horizontal line
    along = photograph(light, PLAIN._replace(shake=np.array([0.1, 0.0])))[0, 0]
    across = photograph(light, PLAIN._replace(shake=np.array([0.0, 0.1])))[0, 0]
    np.testing.assert_allclose(along, light[0], atol=1e-5)
    assert across[32].max() < 0.5
    assert (across[27:38, 30] > 0).sum() >= 5


def test_a_coarse_sensor_loses_detail_and_keeps_the_mean() -> None:
    checks = (torch.arange(SIZE)[:, None] + torch.arange(SIZE)) % 2
    light = checks.float().expand(3, -1, -1)
    for sensor in (1, 2):
        picture = photograph(light, PLAIN._replace(sensor=sensor))[0]
        assert float(picture.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(picture.std()) < 0.1


def test_grain_is_there_once_and_again_the_same() -> None:
    grey = torch.full((3, SIZE, SIZE), 0.25)
    film = PLAIN._replace(grain=0.05, grain_at=np.array([0.3, 0.6]))
    noise = photograph(grey, film)[0] - 0.5
    assert float(noise.std()) == pytest.approx(0.05 * (0.49 + 3 * 0.49 / 3) ** 0.5, rel=0.2)
    assert torch.equal(noise + 0.5, photograph(grey, film)[0])
    other = photograph(grey, film._replace(grain_at=np.array([0.31, 0.6])))[0] - 0.5
    assert abs(float((noise * other).mean())) < 0.2 * float(noise.var())


@pytest.mark.parametrize("quality", [20, 60, 90])
def test_jpeg_is_nearly_opencvs(quality: int) -> None:
    rng = np.random.default_rng(1)
    noise = torch.from_numpy(rng.normal(0, 0.04, (3, SIZE, SIZE)).astype(np.float32))
    tone = (scenery() + noise).clamp(0, 1)
    mine = _jpeg(tone[None], torch.tensor([float(quality)]))[0].clamp(0, 1)
    picture = (255 * tone).round().byte().permute(1, 2, 0).numpy()
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    theirs = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].astype(float)
    difference = np.abs(255 * mine.permute(1, 2, 0).numpy() - theirs)
    loss = np.abs(picture.astype(float) - theirs)
    assert difference.mean() < 0.35 * loss.mean()


def test_drawn_films_differ_and_stay_in_range() -> None:
    rng = np.random.default_rng(0)
    films = [draw_film(rng) for _ in range(40)]
    pictures = photograph(scenery().square(), *films)
    assert (pictures >= 0).all()
    assert (pictures <= 1).all()
    assert len(torch.unique(pictures[:, 0, 10, 10])) > 35


def test_a_roof_casts_its_shadow_and_no_other() -> None:
    steps = np.linspace(-0.5, 0.5, 60)
    roof = np.stack(np.meshgrid(steps, [-1.0], 5 + steps), axis=-1).reshape(1, -1, 3)
    under = [(0, 0, 5), (0.4, 0, 4.6), (-0.4, 0.5, 5.4)]
    beside = [(0.7, 0, 5), (0, 0, 4.3), (0, -1.5, 5), (0.2, -1.0, 5.3)]
    points = np.concatenate([roof, [under], [beside]], axis=1)
    shadows = Shadows(
        torch.tensor(points, dtype=torch.float32),
        torch.tensor([0]),
        torch.tensor([[0.0, 0, 5]]),
        torch.tensor([[0.0, -1, 0]]),
    )
    np.testing.assert_array_equal(shadows.hidden[0, -7:-4], 1)
    np.testing.assert_array_equal(shadows.hidden[0, -4:], 0)
    up, height = torch.tensor([[0.0, -1, 0]]), torch.tensor([[[0.5]]])
    rays = torch.tensor([(0.0, 0.5, 5.0), (0.9, 0.5, 5.0)])  # they fall by 0.5
    grid = (rays @ shadows.below(up, height).mT / 0.5)[:, None]
    dark, lit = F.grid_sample(shadows.covered, grid, align_corners=False).flatten()
    assert dark > 0.9
    assert lit < 0.1
    assert 2 * REACH / CELLS < 0.04  # m: finer than a limb


def test_lambert_blinn_and_the_sky() -> None:
    surface = Surface(torch.full((3, 3), 0.5), torch.zeros(3, 3), torch.zeros(3))
    points = torch.tensor([(0.0, 0, 4)] * 3).T
    tilted = (0.0, -np.sqrt(0.75), -0.5)  # 60 degrees off the camera, towards the light above
    normals = torch.tensor([(0, 0, -1), tilted, (0, 0, 1)], dtype=torch.float32).T
    light = Light(
        towards=torch.tensor([[0.0], [-1], [0]]), direct=torch.ones(3, 1),
        above=torch.full((3, 1), 0.4), below=torch.zeros(3, 1), shadow=torch.ones(1),
    )  # fmt: skip
    up = torch.tensor([[0.0], [-1], [0]])
    lit = shine(surface, points, normals, torch.ones(3), torch.zeros(3), light, up)[0]
    assert float(lit[0]) == pytest.approx(0.5 * 0.2)
    assert float(lit[1]) == pytest.approx(0.5 * (np.sqrt(0.75) + 0.4 * (0.5 + np.sqrt(0.75) / 2)))
    assert float(lit[2]) == pytest.approx(float(lit[0]))  # a back turned to the camera is a front
    dark = shine(surface, points, normals, torch.zeros(3), torch.ones(3), light, up)
    np.testing.assert_allclose(dark, 0, atol=1e-7)


def test_cavities_average_what_is_there() -> None:
    depth = torch.full((1, 32, 32), torch.inf)
    depth[:, 8:24, 8:24] = 3.0
    around = cavities(depth)
    assert around.shape == (1, 8, 8)
    np.testing.assert_allclose(around[0, 2:6, 2:6], 3.0, rtol=1e-6)


def test_scenes_are_painted_with_their_things_in_place() -> None:
    plates = Plates("train", None, device=CPU)
    drawn = draw_backdrop(np.random.default_rng(0), plates, edge=np.inf)
    props = drawn.props
    props.wall.amount[:], props.half[:], props.front[:] = 0, 0, False
    props.centre[:], props.wall.plate[:] = 9, 3
    props.centre[5], props.half[5], props.front[5] = (0.25, -0.25), (0.1, 0.2), True
    props.turn[5], props.roundness[5], props.wall.colour[5] = np.eye(2), 0, (0.5, 0, 0)
    behind = drawn.behind._replace(amount=0.0, colour=np.array([0.0, 0.6, 0]))
    scene = stack(
        [drawn._replace(behind=behind, slope=np.zeros(2), reach=0.0, light=2.0, props=props)], CPU
    )
    plates.load(drawn.plates())
    step = (torch.arange(SIZE) + 0.5) / SIZE - 0.5
    y, x = torch.meshgrid(step, step, indexing="ij")
    middle = 0.5 / SIZE - 0.5
    view = View(
        size=SIZE,
        plane=torch.tensor([[(1 / SIZE, 0, middle), (0, 1 / SIZE, middle)]]),
        ground=torch.zeros(1, 3, 3),
        shaded=torch.zeros(1, 2, 3),
        shadow=torch.zeros(1, 1, 1, 1),
    )
    picture, front = paint_backdrop(scene, view, plates)
    inside = ((x - 0.25).abs() < 0.1) & ((y + 0.25).abs() < 0.2)
    assert torch.equal(front[0], inside)
    np.testing.assert_allclose(picture[0, 0], torch.where(inside, 0.5, 0.0), atol=1e-6)
    np.testing.assert_allclose(picture[1, 0], torch.where(inside, 0.0, 0.72), atol=1e-6)


def test_an_edge_hides_what_is_below_it() -> None:
    plates = Plates("train", None, device=CPU)
    for seed in range(5):
        drawn = draw_backdrop(np.random.default_rng(seed), plates, edge=0.1)
        assert isinstance(drawn, Backdrop)
        assert drawn.props.front[-1]
        assert drawn.props.centre[-1, 1] - drawn.props.half[-1, 1] == pytest.approx(0.1)
