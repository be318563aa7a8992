"""The weights that ship, on the example clip: what README's first command shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from numpy.typing import NDArray

from mpsnet_cli.body import load_body
from mpsnet_cli.crops import crop_image, square_boxes
from mpsnet_cli.evaluation.detection import recall
from mpsnet_cli.evaluation.pixels import evaluate_clip, load_truth
from mpsnet_cli.evaluation.result import Result
from mpsnet_cli.geometry import matrix_to_axis_angle
from mpsnet_cli.model.inference import Model, Precision
from mpsnet_cli.packaged import packaged_file
from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking import Detector, read_boxes
from mpsnet_cli.tracking.detector import STARTER_DETECTOR
from mpsnet_cli.video import probe, read_frames
from mpsnet_cli.weights import STARTER, load_model, read_info
from mpsnet_cli.windows import window_indices

CLIP = ROOT / "examples" / "walk.mp4"
BOXES = ROOT / "examples" / "walk_boxes.csv"
TRUTH = ROOT / "examples" / "walk.npz"
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def shipped(name: str) -> Path:
    path = packaged_file(name)
    assert path is not None
    return path


def starter(precision: Precision) -> Model:
    return load_model(shipped(STARTER.file), device="cpu", precision=precision)


@pytest.fixture(scope="module")
def result() -> Result:
    video = probe(CLIP)
    body = load_body("free-1")
    tracks = read_boxes(BOXES, video)
    return evaluate_clip(video, load_truth(TRUTH), starter("auto"), body, tracks=tracks)


@pytest.mark.parametrize(("error", "most"), [("pa_mpjpe", 65), ("mpjpe", 82), ("joints2d", 12)])
def test_errors_are_about_those_of_the_model_card(result: Result, error: str, most: float) -> None:
    """59.2 mm, 74.7 mm and 10.5 px there; CPUs round differently."""
    assert result.pooled.means()[error] < most


@pytest.fixture(scope="module")
def crops() -> NDArray[np.uint8]:
    """Crops of the woman in frames 20 to 51, as the weights want them."""
    config = read_info(shipped(STARTER.file)).config
    video = probe(CLIP)
    woman = read_boxes(BOXES, video)[1]
    squares = dict(
        zip(woman.frames, square_boxes(woman.boxes, scale=config.crop_scale), strict=True)
    )
    return np.stack([
        crop_image(
            frame.image, squares[frame.index], size=config.crop_size, antialias=config.antialias
        )
        for frame in read_frames(video, start=20 / 30, end=52 / 30, report=Reporter())
    ])  # fmt: skip


@pytest.mark.usefixtures("bf16")
def test_bf16_moves_no_joint_by_more_than_a_millimetre_on_average(crops: NDArray[np.uint8]) -> None:
    body = load_body("free-1")
    windows = window_indices(np.arange(len(crops)))
    joints = []
    for precision in PRECISIONS:
        model = starter(precision)
        rotmats, betas, _ = model.predict(model.features(crops), windows)
        pose = matrix_to_axis_angle(rotmats.numpy()).reshape(-1, 72)
        joints.append(body(pose.astype(np.float32), betas.numpy())[1])
    shift = 1000 * np.linalg.norm(joints[0] - joints[1], axis=-1).mean(axis=0)
    assert 0 < shift.max() < 1


def test_the_detector_finds_both_people() -> None:
    video = probe(CLIP)
    tracks = read_boxes(BOXES, video)
    frames = [f for f in read_frames(video, report=Reporter()) if f.index % 20 == 0]
    detector = Detector(shipped(STARTER_DETECTOR), device="cpu", precision="fp32")
    detections = detector.detect([frame.image for frame in frames])
    found = [each.boxes[each.scores >= 0.25] for each in detections]
    true = [np.stack([track.boxes[track.frames == f.index][0] for track in tracks]) for f in frames]
    assert recall(found, true) > 0.8
