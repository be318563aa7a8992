from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_model import FakeModel
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from mpsnet_cli import pipeline
from mpsnet_cli.body import load_body
from mpsnet_cli.crops import square_boxes
from mpsnet_cli.errors import WeightsError
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.motion import Motion, Track
from mpsnet_cli.pipeline import reconstruct
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import Frame, VideoInfo
from mpsnet_cli.windows import window_indices

SIZE = (160, 120)  # px
LIMIT = pipeline.CROPS_AT_ONCE + 40  # features that may be alive at once


def frame(index: int) -> Frame:
    image = np.empty((SIZE[1], SIZE[0], 3), np.uint8)
    image[:] = (index % 256, index // 256, 0)
    return Frame(index, index / 25 + 0.5, image)


def track(frames: NDArray[np.int64], *, number: int = 1) -> Track:
    n = len(frames)
    boxes = np.tile(np.float32([60, 20, 100, 110]), (n, 1))
    return Track(number, frames, boxes, np.full(n, 0.9, np.float32), np.zeros(n, bool))


def run(
    monkeypatch: pytest.MonkeyPatch,
    tracks: list[Track],
    decoded: NDArray[np.int64] | range,
    **arguments: Any,
) -> tuple[list[Motion], FakeModel, Reporter]:
    def read_frames(*_: Any, **__: Any) -> Iterator[Frame]:
        return (frame(int(index)) for index in decoded)

    monkeypatch.setattr(pipeline, "read_frames", read_frames)
    video = VideoInfo(
        Path("clip"), *SIZE, Fraction(25), 2000, 0, has_audio=False, is_vfr=False, duration=80.0
    )
    model, report = FakeModel(), Reporter()
    arguments = {"smooth": 0.0, "body": load_body("free-1"), **arguments}
    motions = reconstruct(video, model, tracks=tracks, report=report, **arguments)  # type: ignore[arg-type]
    return motions, model, report


@pytest.mark.parametrize("edges", ["hold", "repeat"])
@pytest.mark.parametrize("count", [1, 2, 15, 16, 63, 64, 65, 300])
def test_streaming_equals_the_windows_of_the_whole_track(
    monkeypatch: pytest.MonkeyPatch, count: int, edges: str
) -> None:
    frames = np.arange(3, 3 + count)
    (motion,), model, report = run(monkeypatch, [track(frames)], range(1000), edges=edges)
    expected = frames[window_indices(frames, edges=edges)][:, 3:13]
    assert np.array_equal(motion.betas_per_frame, expected)
    assert np.array_equal(motion.frame_ids, frames)
    assert np.allclose(motion.times, frames / 25 + 0.5)
    assert model.most_features <= LIMIT
    assert report.seconds.keys() == {"reconstruct", "joints"}


def test_features_do_not_pile_up_with_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model, _ = run(monkeypatch, [track(np.arange(1500))], range(1500))
    assert model.most_features <= LIMIT


def test_holes_and_several_people(monkeypatch: pytest.MonkeyPatch) -> None:
    holed = np.array([*range(10, 60), *range(200, 230)])
    short = np.arange(55, 58)
    motions, _, _ = run(monkeypatch, [track(holed), track(short, number=2)], range(300), smooth=0.0)
    for motion, frames in zip(motions, (holed, short), strict=True):
        assert np.array_equal(motion.betas_per_frame, frames[window_indices(frames)][:, 3:13])
    assert [motion.name for motion in motions] == ["person_01", "person_02"]


def test_only_frames_in_the_range_count(monkeypatch: pytest.MonkeyPatch) -> None:
    motions, _, _ = run(
        monkeypatch, [track(np.arange(50)), track(np.arange(5), number=2)], range(20, 40)
    )
    (motion,) = motions
    assert np.array_equal(motion.frame_ids, np.arange(20, 40))
    assert motion.betas_per_frame[0, 0] == 20  # held, not read from before the range


def test_lost_frames_are_left_out_and_break_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = np.setdiff1d(np.arange(100), [0, 30, 31, 70])
    (motion,), _, _ = run(monkeypatch, [track(np.arange(2, 90))], decoded)
    assert np.array_equal(motion.frame_ids, np.setdiff1d(np.arange(2, 90), [30, 31, 70]))
    row = int(np.flatnonzero(motion.frame_ids == 32)[0])
    assert motion.betas_per_frame[row].tolist() == [27, 28, 29, 32, 32, 32, 33, 34, 35, 36]


def test_a_clip_cut_short_gives_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    (motion,), _, _ = run(monkeypatch, [track(np.arange(200))], range(120))
    assert np.array_equal(motion.frame_ids, np.arange(120))
    assert motion.betas_per_frame[-1].tolist() == [114, 115, 116, 117, 118] + [119] * 5


def test_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, [], range(10))[0] == []


def say_betas(monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    """Let the network say betas that a body may have, other ones in each frame."""
    predict = FakeModel.predict

    def predicted(model: FakeModel, *arguments: Any) -> Prediction:
        prediction = predict(model, *arguments)
        return prediction._replace(betas=most * torch.sin(prediction.betas))

    monkeypatch.setattr(FakeModel, "predict", predicted)


def test_one_shape_leaves_people_as_large_as_they_were_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    say_betas(monkeypatch, 2.0)
    (one,), (each,) = (
        run(monkeypatch, [track(np.arange(30))], range(30), shape=shape)[0]
        for shape in ("person", "frame")
    )
    seen = [motion.joints2d.std(axis=1).mean(axis=1) for motion in (one, each)]
    heights = [np.ptp(motion.joints3d[..., 1], axis=1) for motion in (one, each)]
    assert np.abs(heights[1] / heights[0] - 1).max() > 0.05
    assert seen[0] == pytest.approx(seen[1], rel=0.05)  # 0.15 if depth were not to follow
    depth = 2 * one.focal_length / (one.cam[:, 0] * one.bboxes[:, 2])
    assert np.allclose(one.transl[:, 2], depth)


def test_joints_project_into_the_box(monkeypatch: pytest.MonkeyPatch) -> None:
    say_betas(monkeypatch, 1.0)
    (motion,), _, _ = run(monkeypatch, [track(np.arange(30))], range(30), smooth=0.5)
    half = motion.bboxes[:, None, 2:] / 2
    assert (np.abs(motion.joints2d - motion.bboxes[:, None, :2]) < 1.2 * half).all()
    assert motion.joints2d[:, 15, 1].max() < motion.joints2d[:, 7, 1].min()  # head above ankle
    assert (motion.joints2d[:, 16, 0] > motion.joints2d[:, 17, 0]).all()  # left is on the right
    assert motion.focal_length == 200  # the diagonal of 160 x 120


def test_a_motion_tells_the_boxes_that_it_was_cropped_by(monkeypatch: pytest.MonkeyPatch) -> None:
    given = track(np.arange(20))
    (motion,), _, _ = run(monkeypatch, [given], range(20))
    assert np.allclose(square_boxes(motion.boxes), square_boxes(given.boxes), atol=1e-4)


def test_who_stands_aside_is_turned_as_the_crop_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two crops look the same: whoever faces the camera in one does so in the other."""
    middle, aside = track(np.arange(20)), track(np.arange(20), number=2)
    aside.boxes[:, [0, 2]] += 60
    motions, _, _ = run(monkeypatch, [middle, aside], range(20))
    (_, here), (left, there) = (
        (m.bboxes[0, 0] - 80, Rotation.from_rotvec(m.pose[0, :3])) for m in motions
    )
    turn = (there * here.inv()).as_rotvec()
    assert np.allclose(turn, [0, np.arctan(left / 200), 0], atol=0.02)
    assert np.allclose(motions[0].pose[:, 3:], motions[1].pose[:, 3:])


def test_shape_is_robust_and_betas_of_another_body_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (motion,), _, report = run(monkeypatch, [track(np.arange(100))], range(100))
    middle = motion.betas_per_frame[25:75].mean(axis=0)
    assert np.allclose(motion.betas, middle, atol=1)
    assert not report.warnings
    monkeypatch.setattr(FakeModel, "config", MPSNetConfig(feature_dim=1, body="smpl"))
    (motion,), _, report = run(monkeypatch, [track(np.arange(20))], range(20))
    assert not motion.betas_per_frame.any()
    assert not motion.betas.any()
    assert "held at zero" in report.warnings[0]


def test_poses_that_are_no_numbers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any, features: Tensor, windows: NDArray[np.int64]) -> Prediction:  # noqa: ARG001
        n = len(windows)
        return Prediction(
            torch.full((n, 24, 3, 3), torch.nan), torch.zeros(n, 10), torch.ones(n, 3)
        )

    monkeypatch.setattr(FakeModel, "predict", broken)
    with pytest.raises(WeightsError, match="not numbers"):
        run(monkeypatch, [track(np.arange(20))], range(20))
