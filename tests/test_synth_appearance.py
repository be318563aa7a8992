from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from mpsnet_cli.body import load_body
from mpsnet_cli.body.arrays import read_free_body
from mpsnet_cli.body.lookup import FREE_BODY_FILE
from mpsnet_cli.synth.appearance import (
    NEVER,
    Cloth,
    Cut,
    Figure,
    Look,
    Painter,
    Pattern,
    Thing,
    draw_look,
)
from mpsnet_cli.synth.mannequin import (
    CELL,
    SKIRT_BOTTOM,
    SKIRT_ROWS,
    SKIRT_TOP,
    Fit,
    Mannequin,
    Outline,
    Part,
    skeleton_transforms,
)
from mpsnet_cli.synth.plates import PAINTED, SIDE, Plates, hsv
from mpsnet_cli.synth.records import stack

if TYPE_CHECKING:
    from mpsnet_cli.body import BodyModel
    from mpsnet_cli.body.arrays import BodyArrays

CPU = torch.device("cpu")
PEOPLE = 3


@pytest.fixture(scope="module")
def arrays() -> BodyArrays:
    return read_free_body(FREE_BODY_FILE.read_bytes())


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_body("free-1")


@pytest.fixture(scope="module")
def mannequin(arrays: BodyArrays) -> Mannequin:
    return Mannequin(arrays, device=CPU)


@pytest.fixture(scope="module")
def plates() -> Plates:
    return Plates("train", None, device=CPU)


@pytest.fixture(scope="module")
def look(plates: Plates) -> Look:
    """A red top over white trousers, skin, black hair, all plain; stacked."""
    drawn = draw_look(np.random.default_rng(0), plates, held_out=False)
    count = len(Thing)
    first = np.full((count, 3), 0.5)
    first[Thing.TOP], first[Thing.BOTTOM], first[Thing.HAIR] = (0.8, 0, 0), (1, 1, 1), (0, 0, 0)
    nothing = np.zeros((count, 1))
    cut = Cut(
        sock=-NEVER, shoe=-0.86, waist=0.0, cuff=-0.8, hem=-0.05, sleeve=0.4, collar=0.08,
        coat_hem=NEVER, coat_sleeve=0.6, coat_collar=0.08, opening=0, opening_slope=0,
        opening_middle=0, left_glove=0.64, right_glove=NEVER, hat=NEVER, hat_tilt=0, hairline=0,
        hair_length=0.6, beard=-NEVER,
    )  # fmt: skip
    return stack(
        [drawn._replace(cut=np.array(cut), cloth=Cloth(first, nothing, nothing, nothing, nothing),
                        swell=np.zeros(8), loft=np.full(count, 0.01), looseness=np.zeros(2))],
        CPU,
    )  # fmt: skip


def poses(body: BodyModel) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    pose = rng.normal(0, 0.4, (PEOPLE, 72))
    betas = rng.normal(0, 1, (PEOPLE, 10)).astype(np.float32)
    rotations = Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix().reshape(PEOPLE, 24, 3, 3)
    return pose, betas, rotations, body.rest_joints(betas).astype(np.float64)


def fit(**values: torch.Tensor) -> Fit:
    bare = Fit(
        loft=torch.zeros(PEOPLE, 1),
        skirt_rows=torch.zeros(PEOPLE),
        skirt_flare=torch.zeros(PEOPLE),
        hair_rows=torch.zeros(PEOPLE),
        hair_width=torch.ones(PEOPLE),
        ball_centres=torch.zeros(PEOPLE, 4, 3),
        ball_radii=torch.zeros(PEOPLE, 4, 3),
        ball_squareness=torch.zeros(PEOPLE, 4),
    )
    return bare._replace(**values)


def posed(mannequin: Mannequin, body: BodyModel, worn: Fit) -> torch.Tensor:
    _, betas, rotations, rest = poses(body)
    _, transforms = skeleton_transforms(rotations, rest)
    parts = (torch.tensor(values, dtype=torch.float32) for values in (rotations, transforms))
    return mannequin.pose(*parts, torch.tensor(betas), worn)[0]


def test_the_bare_mannequin_is_the_body(
    mannequin: Mannequin, arrays: BodyArrays, body: BodyModel
) -> None:
    pose, betas, rotations, rest = poses(body)
    vertices, joints = body(pose, betas)
    found, _ = skeleton_transforms(rotations, rest)
    np.testing.assert_allclose(found, joints, atol=1e-5)
    mine = posed(mannequin, body, fit())[:, mannequin.body]
    same = (mannequin.places[mannequin.body, None] == torch.tensor(arrays.v_template)).all(dim=2)
    assert same.any(dim=1).all()  # its vertices are some of the body's
    row, vertex = same.nonzero(as_tuple=True)
    np.testing.assert_allclose(mine[:, row], vertices[:, vertex], atol=2e-5)


def test_thinning_leaves_a_closed_skin(mannequin: Mannequin, arrays: BodyArrays) -> None:
    faces = mannequin.faces[(mannequin.kinds[mannequin.faces] == Part.BODY).all(dim=1)].numpy()
    assert len(faces) < 0.6 * len(arrays.f)
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, used = np.unique(edges, axis=0, return_counts=True)
    assert (used == 2).mean() > 0.985
    places = mannequin.places[mannequin.body].numpy()
    distance = np.abs(arrays.v_template[:, None, :] - places[None, ::1]).max(axis=2).min(axis=1)
    assert distance.max() < CELL


def test_what_is_not_worn_is_a_point_inside(mannequin: Mannequin, body: BodyModel) -> None:
    vertices = posed(mannequin, body, fit())
    skin = vertices[:, mannequin.body]
    for kind in Part:
        if kind is Part.BODY:
            continue
        part = vertices[:, mannequin.kinds == kind]
        assert (part.amax(1) - part.amin(1)).max() < 1e-5
        nearest = torch.cdist(part[:, :1], skin).amin(dim=2)
        assert nearest.max() < 0.15


def test_a_skirt_hangs_from_the_hips_to_its_hem(mannequin: Mannequin, body: BodyModel) -> None:
    rows = 9
    still = torch.eye(3).expand(1, 24, 3, 3)
    rest = body.rest_joints(np.zeros((1, 10))).astype(np.float64)
    _, transforms = skeleton_transforms(still.double().numpy(), rest)
    one = Fit(*(values[:1] for values in fit(skirt_rows=torch.full((PEOPLE,), rows))))
    vertices, _ = mannequin.pose(
        still, torch.tensor(transforms, dtype=torch.float32), torch.zeros(1, 10), one
    )
    skirt = vertices[0, mannequin.kinds == Part.SKIRT]
    hem = SKIRT_TOP + (SKIRT_BOTTOM - SKIRT_TOP) * (rows - 1) / (SKIRT_ROWS - 1)
    assert float(skirt[:, 1].min()) == pytest.approx(hem, abs=1e-4)
    assert float(skirt[:, 1].max()) == pytest.approx(SKIRT_TOP, abs=1e-4)
    inside = vertices[0, mannequin.body]
    legs = inside[(inside[:, 1] < SKIRT_TOP) & (inside[:, 1] > hem) & (inside[:, 0].abs() < 0.3)]
    assert legs[:, 0].abs().max() < skirt[:, 0].abs().max()  # around the legs


def test_loft_moves_the_skin_outwards(mannequin: Mannequin, body: BodyModel) -> None:
    count = len(mannequin.places[mannequin.body])
    bare = posed(mannequin, body, fit())
    worn = posed(mannequin, body, fit(loft=torch.full((PEOPLE, count), 0.02)))
    moved = (worn - bare)[:, mannequin.body].norm(dim=2)
    assert (moved < 0.0205).all()
    assert (moved > 0.012).float().mean() > 0.995  # skinning by two bones shortens it
    assert moved.median() == pytest.approx(0.02, rel=0.02)


def test_an_outline_bounds_the_body(arrays: BodyArrays, body: BodyModel) -> None:
    pose, betas, rotations, rest = poses(body)
    vertices, _ = body(pose, betas)
    _, transforms = skeleton_transforms(rotations, rest)
    outline = Outline(arrays)
    for k in range(PEOPLE):
        points = outline.points(transforms[k : k + 1], betas[k])[0]
        assert len(points) < 500
        for edge in (np.min, np.max):
            np.testing.assert_allclose(edge(points, axis=0), edge(vertices[k], axis=0), atol=0.02)


def test_clothes_are_where_their_cuts_say(look: Look, plates: Plates) -> None:
    places = {
        (0.0, 0.2, 0.12): (0.8, 0, 0),  # the chest
        (0.3, 0.45, 0.0): (0.8, 0, 0),  # the upper arm
        (0.5, 0.45, 0.0): (0.5, 0.5, 0.5),  # the forearm: skin
        (0.7, 0.45, 0.0): (0.5, 0.5, 0.5),  # the left hand: a glove
        (0.1, -0.4, 0.05): (1, 1, 1),  # the knee
        (0.1, -0.83, 0.0): (0.5, 0.5, 0.5),  # the ankle
        (0.0, 0.75, 0.0): (0, 0, 0),  # the crown
        (0.06, 0.62, 0.09): (0.5, 0.5, 0.5),  # the cheek
    }
    points = torch.tensor(list(places), dtype=torch.float32).T
    parts = torch.zeros(len(places), dtype=torch.int64)
    surface = Painter(plates, device=CPU).paint(look, torch.zeros_like(parts), points, parts)
    expected = np.square(np.array(list(places.values()))).T
    np.testing.assert_allclose(surface.colour, expected, atol=1e-6)


def test_clothes_lift_the_surface_and_skin_does_not(
    look: Look, plates: Plates, mannequin: Mannequin
) -> None:
    places = mannequin.places[mannequin.body].T
    loft = np.zeros(len(Thing), np.float32)
    loft[Thing.TOP] = 0.02
    lift = Painter(plates, device=CPU).loft(look._replace(loft=torch.tensor(loft)[None]), places)[0]
    x, y, _ = places
    trunk = (y > 0.0) & (y < 0.4) & (x.abs() < 0.15)
    np.testing.assert_allclose(lift[trunk], 0.02, rtol=1e-5)
    assert not lift[(y < -0.1) | (x.abs() > 0.45)].any()


def test_stripes_alternate_along_the_trunk(look: Look, plates: Plates) -> None:
    count = len(Thing)
    pattern, second = torch.zeros(1, count, 1), torch.zeros(1, count, 3)
    pattern[0, Thing.TOP] = Pattern.STRIPES
    turn = torch.tensor([10.0, 0, 0, 10]).expand(1, count, 4)  # ten repeats a metre
    striped = look._replace(
        cloth=look.cloth._replace(pattern=pattern),
        figure=Figure(second, turn, torch.zeros(1, count, 2), -torch.ones(1, count, 1)),
    )
    y = torch.linspace(0.005, 0.395, 40)
    points = torch.stack([torch.full_like(y, 0.01), y, torch.full_like(y, 0.12)])
    parts = torch.zeros(40, dtype=torch.int64)
    colour = (
        Painter(plates, device=CPU).paint(striped, torch.zeros_like(parts), points, parts).colour
    )
    dark = np.floor(y.numpy() / 0.05) % 2 == 0
    np.testing.assert_allclose(colour[0], np.where(dark, 0, 0.64), atol=1e-6)


def test_held_out_people_wear_what_others_never_do(plates: Plates) -> None:
    reserved = (Pattern.CHEVRONS, Pattern.RINGS)

    def share(held_out: bool) -> float:
        looks = [draw_look(np.random.default_rng(k), plates, held_out=held_out) for k in range(40)]
        return np.mean([np.isin(look.cloth.pattern[Thing.TOP], reserved).any() for look in looks])

    assert share(False) == 0
    assert share(True) > 0.05


def test_looks_are_within_the_ranges_that_they_are_painted_by(plates: Plates) -> None:
    for seed in range(60):
        look = draw_look(np.random.default_rng(seed), plates, held_out=seed % 2 == 0)
        for colours in (look.cloth.first, look.figure.second):
            assert ((colours >= 0) & (colours <= 1)).all()
        assert (look.loft >= 0).all()
        assert look.loft.max() < 0.06
        assert 0 <= look.skirt_rows <= SKIRT_ROWS
        pictured = np.isin(look.cloth.pattern, (Pattern.PLATE, Pattern.PRINT))
        assert ((look.figure.plate >= 0) == pictured).all()


def test_plates_are_pure_functions_of_their_number_and_split(plates: Plates) -> None:
    again, other = Plates("train", None, device=CPU), Plates("held-out", None, device=CPU)
    for some in (plates, again, other):
        some.load(np.array([[4.0], [-1.0], [9.0]]))
    numbers = torch.tensor([4, 9])
    assert torch.equal(plates.sheets(numbers), again.sheets(numbers))
    assert not torch.equal(plates.sheets(numbers), other.sheets(numbers))


def test_plates_are_looked_up_and_mirrored(plates: Plates) -> None:
    plates.load(np.array([4, 9]))
    sheet = plates.sheets(torch.tensor([4, 9])).numpy() / 255
    rng = np.random.default_rng(0)
    u, v = rng.uniform(0, 1, (2, 200)).astype(np.float32)
    which = rng.integers(0, 2, 200)
    expected = sheet[which, :, (v * SIDE).astype(int), (u * SIDE).astype(int)].T
    numbers = torch.tensor(np.array([4, 9])[which])
    for mirrored_u, mirrored_v in ((u, v), (-u, v), (2 - u, v), (2 + u, -v)):
        found = plates.look_up(numbers, torch.tensor(mirrored_u), torch.tensor(mirrored_v))
        assert (np.abs(found.numpy() - expected).max(axis=0) < 1e-6).mean() > 0.98  # but for ties


def test_plates_are_drawn_all_over(plates: Plates) -> None:
    rng = np.random.default_rng(0)
    drawn = [plates.draw(rng) for _ in range(4000)]
    assert len(set(drawn)) > 0.95 * PAINTED
    assert min(drawn) >= 0
    assert max(drawn) < PAINTED


def test_hues_are_those_of_the_wheel() -> None:
    expected = [(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1)]
    np.testing.assert_allclose(hsv(np.arange(6) / 6, 1, 1), expected, atol=1e-12)
    np.testing.assert_allclose(hsv(0.3, 0, 0.7), [0.7] * 3)
