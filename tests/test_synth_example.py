"""The example clip, its ground truth and its boxes say the same."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from conftest import ROOT

from mpsnet_cli.body import load_body
from mpsnet_cli.geometry import project, weak_to_perspective
from mpsnet_cli.motion import Motion

EXAMPLES = ROOT / "examples"
PEOPLE = ("person_01", "person_02")
FRAMES = 180


@pytest.fixture(scope="module")
def motions() -> list[Motion]:
    with np.load(EXAMPLES / "walk.npz", allow_pickle=False) as file:
        assert str(file["format"]) == "mpsnet-motions/1"
        arrays = {key: file[key] for key in file.files if key != "format"}
    assert {key.split("/")[0] for key in arrays} == set(PEOPLE)
    return [
        Motion(
            **{
                key.split("/")[1]: value.item() if value.ndim == 0 else value
                for key, value in arrays.items()
                if key.startswith(person)
            }
        )
        for person in PEOPLE
    ]


@pytest.fixture(scope="module")
def boxes() -> np.ndarray:
    """(people, frames, 4) x1, y1, x2, y2."""
    rows = np.loadtxt(EXAMPLES / "walk_boxes.csv", delimiter=",")
    assert rows.shape == (FRAMES * len(PEOPLE), 10)
    people = [rows[rows[:, 1] == number] for number in (1, 2)]
    for person in people:
        np.testing.assert_array_equal(person[:, 0], np.arange(FRAMES) + 1)
    corners = np.stack([person[:, 2:6] for person in people])
    corners[..., 2:] += corners[..., :2]
    return corners


@pytest.fixture(scope="module")
def pictures() -> dict[int, np.ndarray]:
    with av.open(str(EXAMPLES / "walk.mp4")) as container:
        decoded = enumerate(container.decode(video=0))
        return {
            index: frame.to_ndarray(format="rgb24") for index, frame in decoded if index % 20 == 0
        }


def test_the_clip_is_what_the_readme_says() -> None:
    path = EXAMPLES / "walk.mp4"
    assert path.stat().st_size < 2.5e6
    with av.open(str(path)) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (1280, 720, 30)
        assert (video.codec_context.name, sound.codec_context.name) == ("h264", "aac")
        assert video.frames == FRAMES
        assert float(sound.duration * sound.time_base) == pytest.approx(6, abs=0.05)
        heard = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
    assert 0.05 < np.abs(heard).max() <= 1


def test_ground_truth_is_one_consistent_body(motions: list[Motion]) -> None:
    body = load_body("free-1")
    for motion in motions:
        assert (len(motion), motion.body, motion.fps) == (FRAMES, "free-1", 30)
        np.testing.assert_array_equal(motion.frame_ids, np.arange(FRAMES))
        camera = {"focal_length": motion.focal_length, "principal_point": motion.principal_point}
        joints = body.joints(motion.pose, motion.posed_betas)
        np.testing.assert_allclose(joints, motion.joints3d, atol=1e-3)
        placed = motion.joints3d + motion.transl[:, None]
        np.testing.assert_allclose(project(placed, **camera), motion.joints2d, atol=0.01)
        transl = weak_to_perspective(motion.cam, motion.bboxes, **camera)
        np.testing.assert_allclose(transl, motion.transl, atol=1e-4)


def test_people_are_two_and_differ(motions: list[Motion]) -> None:
    first, second = motions
    assert np.linalg.norm(first.betas - second.betas) > 1
    apart = np.linalg.norm(first.transl[:, [0, 2]] - second.transl[:, [0, 2]], axis=1)
    assert apart.min() > 0.8  # nobody walks through anybody
    assert np.linalg.norm(first.transl[-1] - first.transl[0]) > 4  # the man walks


def test_boxes_hold_the_joints_and_little_more(motions: list[Motion], boxes: np.ndarray) -> None:
    for motion, box in zip(motions, boxes, strict=True):
        low, high = motion.joints2d.min(axis=1), motion.joints2d.max(axis=1)
        assert (box[:, :2] <= low).all()
        assert (box[:, 2:] >= high).all()
        assert (box[:, 2:] - box[:, :2] < 1.6 * (high - low) + 30).all()
        centres = (box[:, :2] + box[:, 2:]) / 2
        np.testing.assert_allclose(motion.bboxes[:, :2], centres, atol=0.1)


def test_the_pictures_show_the_people_there(
    motions: list[Motion], pictures: dict[int, np.ndarray]
) -> None:
    _, woman = motions
    yellow = 0
    for index, picture in pictures.items():
        x, y = woman.joints2d[index, [6, 9]].mean(axis=0).astype(int)  # between spine2 and spine3
        red, green, blue = picture[y - 3 : y + 4, x - 3 : x + 4].mean(axis=(0, 1))
        yellow += red > 1.1 * green > 1.3 * blue
    assert yellow >= len(pictures) - 2  # an arm may hide her trunk


def test_feet_stand_where_they_stand(motions: list[Motion]) -> None:
    # A planted foot: its ball (joints 10, 11) hardly moves while it is the lower one.
    for motion in motions:
        balls = (motion.joints3d + motion.transl[:, None])[:, 10:12]
        speed = np.linalg.norm(np.diff(balls, axis=0), axis=-1).min(axis=1) * motion.fps
        assert np.quantile(speed, 0.9) < 0.25  # m/s


@pytest.mark.slow
def test_a_detector_sees_both(
    shared: Path, boxes: np.ndarray, pictures: dict[int, np.ndarray]
) -> None:
    from ultralytics import YOLO

    detector = YOLO(shared / "weights" / "yolov8n.pt")
    found = 0
    for index, picture in pictures.items():
        seen = detector(picture[..., ::-1], classes=[0], conf=0.5, verbose=False)[
            0
        ].boxes.xyxy.numpy()
        for box in boxes[:, index]:
            low = np.maximum(seen[:, :2], box[:2])
            high = np.minimum(seen[:, 2:], box[2:])
            shared_area = np.prod(np.clip(high - low, 0, None), axis=1)
            areas = np.prod(seen[:, 2:] - seen[:, :2], axis=1) + np.prod(box[2:] - box[:2])
            found += bool((shared_area / (areas - shared_area) > 0.5).any())
    assert found >= 2 * len(pictures) - 1  # she is hidden for a moment
