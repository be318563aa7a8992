from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import av
import cv2
import numpy as np
import platformdirs
import pytest
import torch

from mpsnet_cli.errors import WeightsError
from mpsnet_cli.tracking import detector as module
from mpsnet_cli.tracking.detector import MIN_SCORE, NMS_IOU, Detector, find_detector


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
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    return tmp_path / "cache"


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
    batch, (left, top, inner_width, inner_height) = module._letterbox([image, image])
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


def test_a_network_that_does_not_know_people_is_refused(tmp_path, yolo):
    network = module._load_network(yolo)
    network.names = {0: "dog", 1: "cat"}
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
    assert find_detector("yolo11n.pt") == cache / "detectors" / "yolo11n.pt"
    assert find_detector("yolo11n.pt").read_bytes() == b"weights"
    assert asked == [cache / "detectors" / "yolo11n.pt"]


def test_without_a_network_the_error_comes_at_once_and_says_what_to_do(cache, monkeypatch):
    import requests

    def offline(*_, **__):
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(requests, "get", offline)
    began = time.monotonic()
    with pytest.raises(WeightsError, match=r"put the file, from https://.*yolo11n\.pt.*--boxes"):
        find_detector("yolo11n.pt")
    assert time.monotonic() - began < 3
    assert not [path for path in cache.rglob("*") if path.suffix in (".pt", ".part")]


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
