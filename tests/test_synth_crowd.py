from __future__ import annotations

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from mpsnet_cli.cli import main
from mpsnet_cli.errors import InputError
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.crowd import LEAST_BOX, SMALLEST, Crowds, Gathering, SceneBatch
from mpsnet_cli.synth.gbuffer import rasterise
from mpsnet_cli.synth.lighting import CELLS, REACH, Shadows
from mpsnet_cli.synth.mannequin import Part
from mpsnet_cli.synth.records import stack
from mpsnet_cli.synth.shards import Recipe, decode, iter_scenes, read_scenes, read_shard
from mpsnet_cli.synth.shards import write_shards as write

SIZE, COUNT = 128, 24
RECIPE = Recipe(kind="scenes", seed=5, size=64, split="train", frames=1)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def crowds() -> Crowds:
    return Crowds(5, size=SIZE)


@pytest.fixture(scope="module")
def batch(crowds: Crowds) -> SceneBatch:
    return crowds.scenes(range(COUNT))


def split(batch: SceneBatch) -> list[np.ndarray]:
    return np.split(batch.boxes, np.cumsum(batch.counts)[:-1])


def test_a_batch_has_the_shapes_it_states(batch: SceneBatch) -> None:
    assert batch.images.shape == (COUNT, SIZE, SIZE, 3)
    assert batch.images.dtype == np.uint8
    assert batch.boxes.shape == (batch.counts.sum(), 4)
    assert (batch.boxes.dtype, batch.counts.shape) == (np.float32, (COUNT,))
    assert (batch.boxes >= 0).all()
    assert (batch.boxes <= SIZE).all()
    assert (batch.boxes[:, 2:] - batch.boxes[:, :2] >= LEAST_BOX).all()


def test_scenes_are_of_all_kinds(crowds: Crowds, batch: SceneBatch) -> None:
    heights = (batch.boxes[:, 3] - batch.boxes[:, 1]) / SIZE
    assert (batch.counts == 0).any()
    assert batch.counts.max() >= 6
    assert heights.min() < 0.12
    assert heights.max() > 0.85
    assert ((batch.boxes == 0) | (batch.boxes == SIZE)).any(axis=1).any()  # cut by the edges
    numbers = [len(crowds.draw(index).people) for index in range(100, 180)]
    assert max(numbers) <= 8
    assert np.std(numbers) > 1


def test_a_scene_is_the_same_whoever_asks(batch: SceneBatch) -> None:
    other = Crowds(5, size=SIZE).scenes([17, 3])
    for row, index in enumerate((17, 3)):
        np.testing.assert_array_equal(other.images[row], batch.images[index])
        np.testing.assert_array_equal(split(other)[row], split(batch)[index])


@pytest.mark.parametrize("change", [{"seed": 6}, {"split": "held-out"}])
def test_seeds_and_splits_share_nothing(batch: SceneBatch, change: dict) -> None:
    other = Crowds(**{"seed": 5, "size": SIZE, **change}).scenes([0])
    assert (other.images[0] != batch.images[0]).mean() > 0.5


def test_a_drawn_scene_can_be_sent_to_another_process(crowds: Crowds) -> None:
    scene = crowds.draw(3)
    sent = pickle.loads(pickle.dumps(scene))
    np.testing.assert_array_equal(crowds.render([sent]).images, crowds.render([scene]).images)


def bodies(crowds: Crowds, scene: Gathering) -> torch.Tensor:
    """Vertices of a scene's people, (m, V, 3)."""
    studio = crowds._studio
    studio.cloth.load(np.stack([person.look.figure.plate for person in scene.people]))
    return studio.pose(stack(list(scene.people), studio.device))[0]


def test_people_stand_on_the_ground_and_are_as_tall_as_people(crowds: Crowds) -> None:
    for index in range(10):
        scene = crowds.draw(index)
        camera = scene.setting.camera
        vertices = bodies(crowds, scene).numpy()
        if vertices[..., 2].max() < 0:
            continue  # nobody is there
        heights = vertices @ camera.up + camera.height
        assert (np.abs(heights.min(axis=1)) < 0.2).all()
        assert (np.ptp(vertices, axis=1).max(axis=1) < 2.6).all()
        pixels = vertices[..., 1] / vertices[..., 2] * camera.focal
        assert (np.ptp(pixels, axis=1) > 0.8 * SMALLEST * SIZE).all()


def test_boxes_are_those_of_bodies_drawn_one_by_one(crowds: Crowds) -> None:
    """A second way to them: the nearest of pictures of one person each."""
    mannequin = crowds._studio.mannequin
    checked = 0
    for index in range(COUNT):
        scene = crowds.draw(index)
        setting = scene.setting
        props = setting.backdrop.props._replace(half=np.zeros_like(setting.backdrop.props.half))
        backdrop = setting.backdrop._replace(props=props)  # nothing in front
        found = crowds.render([scene._replace(setting=setting._replace(backdrop=backdrop))]).boxes
        vertices = bodies(crowds, scene)
        count = len(vertices)
        alone = rasterise(
            vertices, mannequin.faces, focal=torch.full((count,), setting.camera.focal),
            principal=torch.tensor(setting.camera.principal).expand(count, 2), size=SIZE,
            method="cv2",
        )  # fmt: skip
        nearest = alone.depth.argmin(dim=0)
        worn = mannequin.kinds[mannequin.faces[alone.face.clamp(min=0), 0]] <= Part.ON_HEAD
        for person in range(count):
            there = (alone.face[person] >= 0) & worn[person]
            seen = there & (nearest == person)
            share = seen.sum() / there.sum().clamp(min=1)
            rows, columns = np.nonzero(seen.numpy())
            if share < 0.4 or there.sum() < 60:  # of the others not all have a box
                continue
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.abs(found - box).max(axis=1).min() <= 2, (index, person)
            checked += 1
    assert checked > 20


def test_hidden_people_have_no_box(crowds: Crowds) -> None:
    """Somebody right behind their double, a little further away."""
    scene = next(s for s in map(crowds.draw, range(100)) if len(s.people) == 1 and
                 s.people[0].transl[2] > 0 and len(crowds.render([s]).boxes) == 1)  # fmt: skip
    (person,) = scene.people
    double = person._replace(transl=person.transl * 1.02)
    both = crowds.render([scene._replace(people=(person, double))])
    assert both.counts.tolist() == [1]


def test_rasterisers_see_the_same(batch: SceneBatch) -> None:
    chosen = range(4, 10)
    other = Crowds(5, size=SIZE, rasteriser="torch").scenes(chosen)
    for row, index in enumerate(chosen):
        difference = np.abs(other.images[row].astype(int) - batch.images[index])
        assert np.median(difference) <= 1
        assert len(split(other)[row]) == len(split(batch)[index])
        np.testing.assert_allclose(split(other)[row], split(batch)[index], atol=2)


def test_a_wrong_size() -> None:
    with pytest.raises(ValueError, match="100 px, and must be a multiple of 8 up to 512"):
        Crowds(0, size=100)


def test_a_wider_map_of_shadows_covers_as_much_ground() -> None:
    side = torch.linspace(-0.5, 0.5, 60)
    plate = torch.stack([*torch.meshgrid(side, side, indexing="ij"), torch.zeros(60, 60)], dim=2)
    points, owner = plate.view(1, -1, 3), torch.zeros(1, dtype=torch.long)
    centre, towards = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]])
    usual = Shadows(points, owner, centre, towards)
    same = Shadows(points, owner, centre, towards, reach=torch.tensor([REACH]))
    torch.testing.assert_close(same.covered, usual.covered)
    wide = Shadows(points, owner, centre, towards, reach=torch.tensor([2 * REACH]))
    cell = 2 * REACH / CELLS
    for shadows, width in ((usual, 2 * cell), (wide, 4 * cell)):
        area = float(shadows.covered.sum()) * width**2
        assert 1 < area < (1 + 2 * width) ** 2  # grown by a cell or two all around
    below = [s.below(torch.tensor([[0.0, -1.0, 0.0]]), torch.ones(1, 1, 1)) for s in (usual, wide)]
    torch.testing.assert_close(below[0], 2 * below[1])


def test_shards_of_scenes_come_back(tmp_path: Path) -> None:
    expected = Crowds(5, size=64).scenes(range(3, 8))
    report = Reporter()
    for _ in range(2):
        write(lambda: Crowds(5, size=64), tmp_path, RECIPE, start=3, count=5, workers=1,
              report=report)  # fmt: skip
    assert len(report.warnings) == 1  # the second time it is all there
    (shard,) = iter_scenes(tmp_path)
    assert shard.indices.tolist() == [3, 4, 5, 6, 7]
    for found, true in zip(shard.boxes, split(expected), strict=True):
        np.testing.assert_array_equal(found, true)
    for jpeg, image in zip(shard.jpegs, expected.images, strict=True):
        assert np.abs(decode(jpeg).astype(int) - image).mean() < 8
    with pytest.raises(InputError, match="pictures of scenes"):
        read_shard(tmp_path / "scenes-00000003.npz")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "crops"}, "pictures of crops"),
        ({"counts": np.array([1, 1])}, "counts does not count boxes"),
        ({"counts": np.array([2])}, r"boxes is float32 \(1, 4\), and counts 2"),
        ({"boxes": np.full((1, 4), np.nan, np.float32)}, "boxes are not boxes"),
        ({"jpeg_ends": np.array([5])}, "jpeg_ends does not divide jpeg"),
    ],
)
def test_damaged_shards_of_scenes(tmp_path: Path, change: dict, says: str) -> None:
    arrays = {
        "format": "mpsnet-synth/1", "kind": "scenes", "indices": np.arange(1),
        "counts": np.array([1]), "boxes": np.array([[0, 0, 4, 9]], np.float32),
        "jpeg": np.zeros(9, np.uint8), "jpeg_ends": np.array([9]),
    }  # fmt: skip
    path = tmp_path / "scenes-00000000.npz"
    np.savez(path, **arrays)
    assert read_scenes(path).indices.tolist() == [0]
    np.savez(path, **{**arrays, **change})
    with pytest.raises(InputError, match=says):
        read_scenes(path)


def test_the_command_makes_scenes_and_a_sheet(tmp_path: Path) -> None:
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    arguments = ["synth", out, "--kind", "scenes", "-n", 3, "--size", 64, "--device", "cpu",
                 "--workers", 1, "--sheet", sheet]  # fmt: skip
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "3 scenes in" in result.output
    assert cv2.imread(str(sheet)).shape == (256, 2048, 3)
    assert len(next(iter_scenes(out)).jpegs) == 3
    result = CliRunner().invoke(main, [*map(str, arguments), "--frames", "4"])
    assert result.exit_code == 2
