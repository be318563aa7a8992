from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np
import platformdirs
import pytest
import torch

from mpsnet_cli.errors import WeightsError
from mpsnet_cli.model.backbone import can_fuse
from mpsnet_cli.packaged import PACKAGED, file_sha256, packaged_folder
from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking import detector as module
from mpsnet_cli.tracking.detector import (
    LONG_SIDES,
    MIN_SCORE,
    NMS_IOU,
    STARTER_DETECTOR,
    Detector,
    find_detector,
)


@pytest.fixture(scope="module")
def yolo(shared) -> Path:
    return shared / "weights" / "yolov8n.pt"


@pytest.fixture(scope="module")
def detector(yolo) -> Detector:
    return Detector(yolo, device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def images(shared) -> list[np.ndarray]:
    with av.open(str(shared / "clips" / "pedestrians.avi")) as clip:
        frames = [next(clip.decode(video=0)) for _ in range(2)]
    return [frame.to_ndarray(format="rgb24") for frame in frames]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setattr("mpsnet_cli.packaged.packaged_folder", lambda: None)
    monkeypatch.chdir(tmp_path)
    module._download_default.cache_clear()
    yield tmp_path / "cache"
    module._download_default.cache_clear()


@pytest.fixture
def offline(monkeypatch) -> list[str]:
    """No network; the list tells what was asked for."""
    import requests

    asked = []

    def refuse(_, method, url, **__):
        asked.append(f"{method} {url}".lower())
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests.Session, "request", refuse)
    return asked


@pytest.fixture(scope="module")
def random_network():
    """A one-class network as the packaged starter's, which takes every place for a person."""
    with module.quiet_ultralytics():
        from ultralytics.nn.tasks import DetectionModel

        torch.manual_seed(0)
        network = DetectionModel("yolo11n.yaml", nc=1, verbose=False)
    network.names = {0: "person"}
    for scores in network.model[-1].cv3:
        torch.nn.init.zeros_(scores[-1].bias)
    return network.half()


@pytest.fixture
def starter(cache, monkeypatch, random_network) -> Path:
    """A packaged detector for want of the real one."""
    (folder := cache.parent / "packaged").mkdir()
    remarks = {"long_sides": [64, 96], "licence": "AGPL-3.0", "note": "random"}
    torch.save({"model": random_network, "mpsnet": remarks}, folder / STARTER_DETECTOR)
    monkeypatch.setattr("mpsnet_cli.packaged.packaged_folder", lambda: folder)
    monkeypatch.setitem(PACKAGED, STARTER_DETECTOR, file_sha256(folder / STARTER_DETECTOR))
    return folder / STARTER_DETECTOR


def test_finds_the_boxes_of_ultralytics_own_predict(detector, images, yolo):
    from ultralytics import YOLO

    options = {"conf": MIN_SCORE, "iou": NMS_IOU, "classes": [0], "imgsz": 640, "verbose": False}
    reference = YOLO(yolo)
    for image, found in zip(images, detector.detect(images), strict=True):
        expected = reference.predict(np.ascontiguousarray(image[..., ::-1]), **options)[0].boxes
        assert len(found) == len(expected) >= 3
        np.testing.assert_allclose(found.boxes, expected.xyxy.numpy(), atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.conf.numpy(), atol=1e-4)


def test_an_image_does_not_depend_on_the_batch(detector, images):
    together, alone = detector.detect(images)[1], detector.detect(images[1:])[0]
    np.testing.assert_allclose(together.boxes, alone.boxes, atol=1e-2)


@pytest.mark.skipif(not can_fuse(), reason="this torch has no oneDNN")
def test_fused_activations_change_nothing_but_rounding(starter, monkeypatch):
    """Whose random network has every kind of layer that the real one has."""
    image = np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8)
    fused = Detector(starter, device="cpu", precision="fp32")
    monkeypatch.setattr(module, "can_fuse", lambda: False)
    plain = Detector(starter, device="cpu", precision="fp32")
    left = [sum(type(m) is torch.nn.SiLU for m in d._network.modules()) for d in (fused, plain)]
    assert left[0] == 0 < left[1]
    pixels = torch.from_numpy(image[:64, :32]).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        found, expected = (d._network(pixels)[0] for d in (fused, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_convolutions_of_another_padding_are_left_as_they_are(starter, tmp_path, monkeypatch):
    checkpoint = torch.load(starter, weights_only=False)
    first, second = (checkpoint["model"].model[layer].conv for layer in (0, 1))
    first.padding_mode, second.padding, second.stride = "circular", "same", (1, 1)
    torch.save(checkpoint, tmp_path / "odd.pt")
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    fused = Detector(tmp_path / "odd.pt", device="cpu", precision="fp32")
    monkeypatch.setattr(module, "can_fuse", lambda: False)
    plain = Detector(tmp_path / "odd.pt", device="cpu", precision="fp32")
    with torch.inference_mode():
        found, expected = (d._network(pixels)[0] for d in (fused, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.usefixtures("bf16")
def test_half_precision_moves_boxes_by_less_than_a_pixel(detector, images, yolo):
    half = Detector(yolo, device="cpu", precision="bf16").detect(images[:1])[0]
    full = detector.detect(images[:1])[0]
    sure = full.scores > 2 * MIN_SCORE
    assert sure.sum() >= 3
    for box in full.boxes[sure]:
        assert np.abs(half.boxes - box).max(axis=1).min() < 1


@pytest.mark.parametrize(
    ("height", "width", "longest"),
    [(480, 640, 640), (77, 1003, 640), (900, 31, 640), (496, 518, 518), (1, 1, 512)],
)
def test_letterbox_keeps_the_shape_in_multiples_of_32(height, width, longest):
    image = np.full((height, width, 3), 255, np.uint8)
    batch, (left, top, inner_width, inner_height) = module._letterbox([image, image], LONG_SIDES)
    assert batch.shape[0] == 2
    assert batch.shape[1] % 32 == batch.shape[2] % 32 == 0
    assert max(inner_width, inner_height) == longest
    assert abs(inner_width * height - inner_height * width) <= max(height, width)
    assert (batch[1] == 255).all(axis=2).sum() == inner_width * inner_height
    assert (batch[1, top : top + inner_height, left : left + inner_width] == 255).all()


def test_an_empty_image_has_nobody(detector):
    (found,) = detector.detect([np.full((100, 200, 3), 127, np.uint8)])
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == (0,)


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_runs_code_is_refused_by_name(tmp_path):
    trap, file = tmp_path / "trap", tmp_path / "o'hara.pt"
    torch.save({"model": Hostile(trap)}, file)
    with pytest.raises(WeightsError, match=r"o'hara\.pt cannot be opened: it would run \w+\.mkdir"):
        Detector(file)
    assert not trap.exists()


def test_a_path_with_an_apostrophe_is_opened(tmp_path, yolo):
    file = tmp_path / "o'hara yolov5n.pt"
    file.symlink_to(yolo)
    assert Detector(file, device="cpu", precision="fp32").path == file


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "truncated", {"model": {}}, [1, 2]])
def test_what_is_no_checkpoint_is_refused(tmp_path, yolo, content):
    file = tmp_path / "detector.pt"
    if content == "truncated":
        file.write_bytes(yolo.read_bytes()[:100_000])
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(WeightsError, match=r"detector\.pt"):
        Detector(file)


@pytest.mark.parametrize("names", [{0: "dog", 1: "cat"}, ["person"], None])
def test_a_network_that_does_not_know_people_is_refused(tmp_path, yolo, names):
    network, *_ = module._load_network(yolo)
    network.names = names
    torch.save({"model": network}, tmp_path / "dogs.pt")
    with pytest.raises(WeightsError, match=r"dogs\.pt does not detect people"):
        Detector(tmp_path / "dogs.pt")


@pytest.mark.usefixtures("cache")
def test_an_unknown_name_is_an_error():
    with pytest.raises(WeightsError, match=r"no detector yolo99x\.pt"):
        find_detector("yolo99x.pt")


def test_an_official_name_is_downloaded_once_into_our_cache(cache, monkeypatch):
    from ultralytics.utils import downloads

    asked = []

    def download(path, **_):
        asked.append(path)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")

    monkeypatch.setattr(downloads, "attempt_download_asset", download)
    monkeypatch.setattr(module, "_host_answers", lambda: True)
    assert find_detector("yolo11n.pt") == cache / "detectors" / "yolo11n.pt"
    assert find_detector("yolo11n.pt").read_bytes() == b"weights"
    assert asked == [cache / "detectors" / "yolo11n.pt"]


@pytest.mark.parametrize("name", ["yolo11n.pt", None])
def test_without_network_and_starter_the_error_comes_at_once_and_says_what_to_do(
    cache, offline, name
):
    with pytest.raises(WeightsError, match=r"put the file, from https://.*yolo11n\.pt.*--boxes"):
        find_detector(name)
    assert len(offline) == 1
    assert not [path for path in cache.rglob("*") if path.suffix in (".pt", ".part")]


def test_a_host_that_is_silent_is_not_waited_for(monkeypatch):
    import requests

    ended = threading.Event()

    def hang(*_, **__):
        ended.wait(60)
        raise requests.ConnectionError("no name server")

    monkeypatch.setattr(requests.Session, "request", hang)
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    began = time.monotonic()
    assert not module._host_answers()
    ended.set()
    assert time.monotonic() - began < 10


def test_without_a_network_the_starter_stands_in_and_it_is_said(starter, offline):
    report = Reporter()
    assert find_detector(report=report) == starter
    assert report.warnings == [
        "yolo11n.pt could not be fetched: people are found by the packaged starter detector "
        "(synthetic), which misses more."
    ]
    assert Detector(device="cpu", precision="fp32", report=(later := Reporter())).path == starter
    assert later.warnings == report.warnings  # every clip is told
    assert len(offline) == 1  # but the network is not asked again


@pytest.mark.usefixtures("starter")
def test_what_is_cached_goes_before_the_starter(cache, offline):
    (cache / "detectors").mkdir(parents=True)
    (cache / "detectors" / "yolo11n.pt").write_bytes(b"weights")
    report = Reporter()
    assert find_detector(report=report) == cache / "detectors" / "yolo11n.pt"
    assert (report.warnings, offline) == ([], [])


@pytest.mark.usefixtures("offline")
def test_nothing_stands_in_for_a_detector_asked_for_by_name(starter):
    assert find_detector() == starter
    with pytest.raises(WeightsError, match=r"yolo11n\.pt could not be downloaded"):
        find_detector("yolo11n.pt")


@pytest.mark.parametrize("name", ["person-starter", "person-starter.pt"])
def test_the_starter_has_a_name(starter, offline, name):
    report = Reporter()
    assert find_detector(name, report=report) == starter
    assert (report.warnings, offline) == ([], [])


def test_a_starter_that_has_changed_is_refused(starter, tmp_path):
    with starter.open("ab") as file:
        file.write(b"!")
    with pytest.raises(WeightsError, match=r"not the file that shipped .* again\."):
        Detector(starter)
    (copy := tmp_path / starter.name).write_bytes(starter.read_bytes())
    assert Detector(copy, device="cpu").path == copy  # what is the user's own may be anything


def test_a_one_class_network_of_float16_runs_at_its_own_size(starter):
    detector = Detector(starter, device="cpu", precision="fp32")
    inputs = []
    detector._network.register_forward_pre_hook(lambda _, images: inputs.append(images[0]))
    for side, longest in ((300, 96), (80, 96), (40, 64)):  # 80 px, padded to a multiple of 32
        image = np.random.default_rng(0).integers(0, 255, (side, side // 2, 3), np.uint8)
        found, same = detector.detect([image, image])
        assert max(inputs[-1].shape) == longest
        assert inputs[-1].dtype == torch.float32
        assert len(found) > 0
        np.testing.assert_array_equal(found.boxes, same.boxes)
        assert (found.boxes <= [side // 2, side] * 2).all()


@pytest.mark.parametrize(
    "remarks",
    [
        "text",
        ["long_sides"],
        {"long_sides": 640},
        {"long_sides": [640]},
        {"long_sides": [640, 512]},
        {"long_sides": [512, 10**9]},
        {"long_sides": [0, 640]},
        {"long_sides": [512.0, 640.0]},
        {"long_sides": "ab"},
    ],
)
def test_a_size_that_makes_no_sense_is_refused(remarks):
    with pytest.raises(WeightsError, match=r"odd\.pt is damaged: its long_sides"):
        module._long_sides(remarks, Path("odd.pt"))


@pytest.mark.parametrize("share", [0.0, 1.01, -0.5, 1, "0.5", None, float("nan")])
def test_an_overlap_that_makes_no_sense_is_refused(share):
    with pytest.raises(WeightsError, match=r"odd\.pt is damaged: its nms_iou"):
        module._share({"nms_iou": share}, "nms_iou", 0.7, Path("odd.pt"))


def test_a_checkpoint_need_not_state_its_size_and_overlap():
    for remarks in ({}, {"note": "mine"}):
        assert module._long_sides(remarks, Path("m.pt")) == LONG_SIDES
        assert module._share(remarks, "nms_iou", 0.7, Path("m.pt")) == 0.7


def test_boxes_that_overlap_more_than_a_checkpoint_says_are_one(starter):
    image = np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8)
    detector = Detector(starter, device="cpu", precision="fp32")
    assert (detector.nms_iou, detector.double_iou) == (NMS_IOU, 1)
    many = detector.detect([image])[0]
    detector.nms_iou = 0.2
    few = detector.detect([image])[0]
    assert 0 < len(few) < len(many)


def test_the_packaged_starter_is_a_detector_of_people():
    detector = Detector(packaged_folder() / STARTER_DETECTOR, device="cpu", precision="fp32")
    assert detector.path.stat().st_size <= 6e6
    assert dict(detector._network.names) == {0: "person"}


def test_ultralytics_leaves_the_process_and_the_home_alone(tmp_path, yolo):
    code = """if True:
        import os, sys, cv2, numpy, torch
        cv2.setNumThreads(3)
        before = dict(os.environ), cv2.getNumThreads(), numpy.get_printoptions()
        from mpsnet_cli.tracking import Detector
        Detector(sys.argv[1], device="cpu")
        assert before == (dict(os.environ), cv2.getNumThreads(), numpy.get_printoptions())
    """
    (home := tmp_path / "home").mkdir()
    (work := tmp_path / "work").mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("YOLO", "XDG", "OMP"))
    }
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, yolo],
        env={**environment, "HOME": str(home), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        cwd=work,
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not list(home.iterdir())
    assert not list(work.iterdir())


def test_threads_of_opencv_survive():
    threads = cv2.getNumThreads()
    with module.quiet_ultralytics():
        cv2.setNumThreads(1)
    assert cv2.getNumThreads() == threads
