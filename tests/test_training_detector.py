from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT

from mpsnet_cli.cli.detector import detector as command
from mpsnet_cli.errors import InputError, OutputError, WeightsError
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.crowd import SceneBatch
from mpsnet_cli.synth.shards import Recipe, write_shards
from mpsnet_cli.tracking.detector import Detector, quiet_ultralytics
from mpsnet_cli.training.config import PictureNetwork, load_config
from mpsnet_cli.training.detector import (
    BEST,
    LAST,
    Check,
    DetectorConfig,
    DetectorLearner,
    SceneData,
    SceneSchedule,
    judge,
    load_weights,
    new_network,
    save_detector,
    train_detector,
)
from mpsnet_cli.training.scenes import Scenes, batches, load_scenes, still_batches, vary

SIDE = 96


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


class Blocks:
    """Stands in for Crowds: dark pictures with bright blocks, one to three."""

    device = torch.device("cpu")

    def scenes(self, indices: range) -> SceneBatch:
        images, boxes = [], []
        for index in indices:
            rng = np.random.default_rng(index)
            image = np.full((SIDE, SIDE, 3), 20, np.uint8)
            own = []
            for column in rng.choice(3, 1 + index % 3, replace=False):
                w, h = rng.integers(10, 24), rng.integers(20, 60)
                x, y = 32 * column + rng.integers(32 - w), rng.integers(SIDE - h)
                image[y : y + h, x : x + w] = 230
                own.append((x, y, x + w, y + h))
            images.append(image)
            boxes.append(np.array(own, np.float32))
        counts = np.array([len(own) for own in boxes])
        return SceneBatch(np.stack(images), np.concatenate(boxes), counts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes of blocks."""
    out = tmp_path_factory.mktemp("scenes")
    recipe = Recipe(kind="scenes", seed=0, size=SIDE, split="train", frames=1)
    make: Callable[[], Any] = Blocks
    write_shards(make, out, recipe, start=0, count=24, workers=1, report=Reporter())
    return out


@pytest.fixture(scope="module")
def scenes(folder: Path) -> Scenes:
    return load_scenes([folder])


def toy_config(folder: Path, **schedule: Any) -> DetectorConfig:
    usual = {"pictures": 32, "sizes": (64,), "batch_size": 8, "warmup": 8}
    return DetectorConfig(
        SceneData((folder,), (folder,)), schedule=SceneSchedule(**{**usual, **schedule}),
        long_sides=(96, 128), device="cpu", precision="fp32", checkpoint_every=8, validate_every=16,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Check]]:
    """A run of four steps, with a check after two."""
    out = tmp_path_factory.mktemp("run")
    return out, list(train_detector(toy_config(folder), out, report=Reporter()))


@pytest.mark.parametrize("mosaic", [0, 1])
def test_boxes_go_where_people_go(scenes: Scenes, mosaic: float) -> None:
    """What is bright is in the boxes, and the boxes are full of it, but for what is let go."""
    apart = []
    for row in range(24):
        rng = np.random.default_rng((row, mosaic))
        image, boxes = vary(scenes, row, rng, size=SIDE, mosaic=mosaic)
        assert image.shape == (SIDE, SIDE, 3)
        blurred = cv2.GaussianBlur(image, (0, 0), 1.5).mean(axis=2)
        dark, bright = np.percentile(blurred, 3), blurred.max()
        if not len(boxes) or bright < 2 * dark + 10:
            continue
        inside = np.zeros((SIDE, SIDE), bool)
        for x1, y1, x2, y2 in boxes.round().astype(int):
            inside[y1:y2, x1:x2] = True
        x1, y1, x2, y2 = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1).argmax()]
        core = blurred[int(y1) + 2 : int(y2) - 2, int(x1) + 2 : int(x2) - 2]
        if core.size:
            apart.append(np.median(core) - np.median(blurred[~inside]))
    assert len(apart) > 12
    assert np.mean(np.array(apart) > 40) > 0.9  # padding may be bright, too


def test_a_box_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """To a pixel, against the bright pixels of one block, wherever it goes and however large."""
    monkeypatch.setattr("mpsnet_cli.training.scenes._recoloured", lambda image, _: image)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[30:70, 24:44] = 255
    jpeg = cv2.imencode(".png", image)[1]
    one = Scenes([jpeg], [np.array([[24, 30, 44, 70]], np.float32)])
    for seed in range(40):
        seen, (box,) = vary(one, 0, np.random.default_rng(seed), size=192, mosaic=0)
        rows, columns = np.nonzero(seen.mean(axis=2) > 180)  # padding is less bright
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert np.abs(found - box).max() < 1.5


def test_batches_are_functions_of_seed_and_step(scenes: Scenes) -> None:
    options: dict[str, Any] = {"batch_size": 8, "sizes": (64,), "mosaic": 0.3, "seed": 4}
    all_of_them = list(batches(scenes, range(6), **options))
    assert len(all_of_them) == 6
    for first, again in zip(all_of_them[4:], batches(scenes, range(4, 6), **options), strict=True):
        for one, other in zip(first, again, strict=True):
            assert torch.equal(one, other)
    (other,) = batches(scenes, range(1), **{**options, "seed": 5})
    assert not torch.equal(other.images, all_of_them[0].images)
    images = all_of_them[0].images
    assert images.shape == (8, 3, 64, 64)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert all_of_them[0].boxes.min() >= 0
    assert all_of_them[0].boxes.max() <= 64
    with pytest.raises(InputError, match="24 scenes, and a batch takes 25"):
        next(batches(scenes, range(1), **{**options, "batch_size": 25}))


def test_batches_are_of_all_sizes(scenes: Scenes) -> None:
    options: dict[str, Any] = {"batch_size": 8, "sizes": (64, 96, 128), "mosaic": 0.3, "seed": 4}
    sides = [batch.images.shape[-1] for batch in batches(scenes, range(20), **options)]
    assert set(sides) == {64, 96, 128}
    assert [b.images.shape[-1] for b in batches(scenes, range(15, 20), **options)] == sides[15:]
    assert SceneSchedule(sizes=(128, 64, 96)).size == 96


def test_still_batches_are_the_scenes(scenes: Scenes) -> None:
    found = list(still_batches(scenes, batch_size=10, size=SIDE // 2))
    assert [len(batch.images) for batch in found] == [10, 10, 4]
    boxes = torch.cat([batch.boxes for batch in found]).numpy()
    np.testing.assert_array_equal(2 * boxes, np.concatenate(scenes.boxes))
    x1, y1, x2, y2 = found[0].boxes[0].int().tolist()
    assert found[0].images[0, :, y1 + 1 : y2 - 1, x1 + 1 : x2 - 1].float().mean() > 200


def test_a_new_network_expects_few_people() -> None:
    network = new_network(size=320, seed=0).eval()
    with torch.no_grad():
        _, raw = network(torch.rand(1, 3, 320, 320))
    expected = 3 * 5  # PER_PICTURE on each of three levels
    assert float(raw["scores"].sigmoid().sum()) == pytest.approx(expected, rel=0.3)
    assert network.names == {0: "person"}
    same, other = (new_network(size=320, seed=seed).state_dict() for seed in (0, 1))
    name = "model.0.conv.weight"
    assert torch.equal(network.state_dict()[name], same[name])
    assert not torch.equal(same[name], other[name])


def test_a_few_pictures_are_learnt(scenes: Scenes, folder: Path) -> None:
    config = toy_config(folder, pictures=800, learning_rate=4e-3)
    learner = DetectorLearner(new_network(size=64, seed=0), config, torch.device("cpu"))
    (batch,) = batches(scenes, range(1), batch_size=8, sizes=[64], mosaic=0, seed=0)
    losses = [sum(learner.learn(step, batch).values()) for step in range(25)]
    assert np.mean(losses[-4:]) < 0.75 * np.mean(losses[:4])


def test_the_rate_rises_and_falls(folder: Path) -> None:
    config = toy_config(folder, pictures=1000, warmup=100, learning_rate=0.01)
    learner = DetectorLearner(new_network(size=64, seed=0), config, torch.device("cpu"))
    assert learner.rate(0) == pytest.approx(0.01 * 0.08)
    assert learner.rate(500) == pytest.approx(0.01 * (0.01 + 0.99 / 2))
    assert learner.rate(1000) == pytest.approx(0.0001)


def test_perfect_detections_are_judged_so(scenes: Scenes) -> None:
    class Oracle:
        def __init__(self) -> None:
            self.truth = still_batches(scenes, batch_size=1, size=64)

        def detect(self, images: torch.Tensor) -> list[torch.Tensor]:
            known = [next(self.truth).boxes for _ in images]
            sure = [torch.cat([boxes, torch.full((len(boxes), 1), 0.5)], 1) for boxes in known]
            extra = torch.tensor([[0, 0, 1, 1, 0.3]])  # a false alarm in each picture
            return [torch.cat([rows, extra]) for rows in sure]

    oracle: Any = Oracle()
    assert judge(oracle, scenes, size=64) == {"ap50": 1, "recall": 1, "false": pytest.approx(1)}


def test_a_run_and_its_files(run: tuple[Path, list[Check]]) -> None:
    out, checks = run
    assert [(check.step, check.pictures) for check in checks] == [(2, 16), (4, 32)]
    assert checks[0].best
    assert all(math.isfinite(check.total) for check in checks)
    lines = (out / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2", "3", "4"]
    assert len((out / "validation.csv").read_text().splitlines()) == 3


def test_the_file_serves_the_tool(run: tuple[Path, list[Check]]) -> None:
    """It loads where only network layers may."""
    out, _ = run
    assert (out / LAST).stat().st_size < 6e6
    found = Detector(out / LAST, device="cpu", precision="fp32")
    assert (found.long_sides, found.nms_iou, found.double_iou) == ((96, 128), 0.6, 0.4)
    found.detect([np.zeros((70, 90, 3), np.uint8)])
    from ultralytics import YOLO

    assert YOLO(out / BEST).names == {0: "person"}


def test_the_file_says_what_it_is(run: tuple[Path, list[Check]]) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    out, _ = run
    whole, _ = torch_safe_load(out / LAST, safe_only=True)
    assert whole["license"] == whole["mpsnet"]["licence"] == "AGPL-3.0"
    assert "partly trained" not in whole["mpsnet"]["name"] + whole["mpsnet"]["note"]
    assert whole["ema"] is None
    assert {p.dtype for p in whole["model"].parameters()} == {torch.float16}


def test_a_partly_trained_file_says_so(folder: Path, tmp_path: Path) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    checks = train_detector(toy_config(folder), tmp_path, report=Reporter())
    next(checks)
    checks.close()
    partly, _ = torch_safe_load(tmp_path / LAST, safe_only=True)
    assert "partly trained" in partly["mpsnet"]["name"]
    assert "16 pictures of 32" in partly["mpsnet"]["note"]


def test_a_stopped_run_goes_on_exactly(
    run: tuple[Path, list[Check]], folder: Path, tmp_path: Path
) -> None:
    checks = train_detector(toy_config(folder), tmp_path, report=Reporter())
    next(checks)
    checks.close()
    (last,) = train_detector(toy_config(folder), tmp_path, resume=True, report=Reporter())
    whole, expected = run
    timeless = dataclasses.replace(last, pictures_per_second=0)
    assert timeless == dataclasses.replace(expected[-1], pictures_per_second=0)
    assert (tmp_path / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    states = [torch.load(out / "resume.pt", weights_only=True) for out in (tmp_path, whole)]
    for part in ("network", "averaged"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name


def test_a_run_goes_on_from_the_weights_of_another(
    run: tuple[Path, list[Check]], folder: Path, tmp_path: Path
) -> None:
    from ultralytics.nn.tasks import torch_safe_load

    network = new_network(size=64, seed=1)
    load_weights(network, run[0] / LAST)
    earlier, _ = torch_safe_load(run[0] / LAST, safe_only=True)
    for name, value in earlier["model"].state_dict().items():
        assert torch.equal(network.state_dict()[name], value.to(network.state_dict()[name])), name
    start = tmp_path / "start.pt"
    shutil.copy(run[0] / LAST, start)
    config = toy_config(folder)
    still = dataclasses.replace(config.schedule, learning_rate=0.0)
    config = dataclasses.replace(config, network=PictureNetwork(start), schedule=still)
    list(train_detector(config, tmp_path / "out", report=Reporter()))
    later, _ = torch_safe_load(tmp_path / "out" / LAST, safe_only=True)
    assert "trained from start.pt (" in later["mpsnet"]["note"]
    for (name, value), now in zip(
        earlier["model"].named_parameters(), later["model"].parameters(), strict=True
    ):
        assert torch.equal(value, now), name
    start.write_bytes((run[0] / BEST).read_bytes() + b" ")
    with pytest.raises(InputError, match=r"is of another run: its start\.pt is"):
        list(train_detector(config, tmp_path / "out", resume=True, report=Reporter()))


def test_only_weights_of_such_a_run_can_be_gone_on_from(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    with quiet_ultralytics():
        other = DetectionModel("yolov8n.yaml", nc=1, verbose=False)
    other.names, other.args = {0: "person"}, {}
    file = tmp_path / "other.pt"
    save_detector(
        other, file, name="other", note="", long_sides=(64, 64), nms_iou=0.5, double_iou=1.0
    )
    with pytest.raises(WeightsError, match=r"other\.pt is not one of `mpsnet detector`"):
        load_weights(new_network(size=64, seed=0), file)
    file.write_bytes(b"no pickle")
    with pytest.raises(WeightsError, match=r"other\.pt cannot be opened"):
        load_weights(new_network(size=64, seed=0), file)


def test_what_cannot_be_trained(
    run: tuple[Path, list[Check]], folder: Path, tmp_path: Path
) -> None:
    def begin(config: DetectorConfig, out: Path = tmp_path, *, resume: bool = False) -> None:
        next(train_detector(config, out, resume=resume, report=Reporter()))

    config = toy_config(folder)
    with pytest.raises(OutputError, match="holds a training run"):
        begin(config, run[0])
    with pytest.raises(InputError, match="is of another run: its seed is 0, and this one's is 1"):
        begin(dataclasses.replace(config, seed=1), run[0], resume=True)
    with pytest.raises(InputError, match=r"sizes is \[64, 100\], and must be multiples of 32"):
        begin(toy_config(folder, sizes=(64, 100)))
    with pytest.raises(InputError, match="must be two numbers, rising"):
        begin(dataclasses.replace(config, long_sides=(512, 384)))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no scenes"):
        begin(dataclasses.replace(config, data=SceneData((empty,), (folder,))))


def test_an_ended_run_says_so(run: tuple[Path, list[Check]], folder: Path) -> None:
    report = Reporter()
    assert not list(train_detector(toy_config(folder), run[0], resume=True, report=report))
    assert report.warnings == [f"The run in {run[0]} has ended: its folder holds what it learnt."]


def test_the_command(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "toy.yaml"
    config.write_text(
        f"data: {{scenes: [{folder}], validation: [{folder}]}}\n"
        "schedule: {pictures: 16, sizes: 64, batch_size: 8, mosaic: 0}\n"
        "device: cpu\nprecision: auto\n"
    )
    result = CliRunner().invoke(command, [str(config), "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "16 pictures, " in result.output
    assert "AP50 0.0" in result.output
    assert (tmp_path / "out" / BEST).is_file()


def test_the_example_shows_the_defaults(folder: Path, tmp_path: Path) -> None:
    text = (ROOT / "examples" / "starter" / "detector.yaml").read_text()
    text = text.replace("../../out/scenes-held-out", str(folder)).replace(
        "../../out/scenes", str(folder)
    )
    path = tmp_path / "detector.yaml"
    path.write_text(text)
    assert load_config(path, DetectorConfig) == DetectorConfig(SceneData((folder,), (folder,)))
    path.write_text(text.replace("[256, 320, 384, 448, 512]", "[384, 512, 640]"))  # as on a GPU
    assert load_config(path, DetectorConfig).schedule.size == 512
