from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from motions import make_motion
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli import pipeline
from mpsnet_cli.body import BodyModel, load_body
from mpsnet_cli.errors import InputError
from mpsnet_cli.evaluation.pixels import compare, evaluate_clip, load_truth, match_people
from mpsnet_cli.evaluation.result import Result
from mpsnet_cli.geometry import (
    axis_angle_to_matrix,
    perspective_to_weak,
    project,
    ray_rotations,
    weak_to_perspective,
)
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.inference import Model
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.motion import Motion, Track
from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking import read_boxes
from mpsnet_cli.video import Frame, VideoInfo, probe

SIZE = np.array([250, 180])  # px, few enough for a byte to tell a pixel's place
FRAMES = 40
SCALE = 1.1
EXAMPLES = ROOT / "examples"
WALK = EXAMPLES / "walk.npz"


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_body("free-1")


@pytest.fixture(scope="module")
def truth(body: BodyModel) -> list[Motion]:
    """Two people side by side, who move."""
    people = []
    for number, x in ((1, 65.0), (2, 185.0)):
        made = make_motion(FRAMES, track_id=number)
        phase = np.arange(FRAMES)[:, None] / 7
        side = 80 + 5 * np.sin(phase)
        bboxes = np.concatenate(
            [x + 5 * np.cos(phase), 90 + 20 * np.sin(phase), side, side], axis=1
        )
        camera: dict[str, Any] = {"focal_length": 300.0, "principal_point": SIZE / 2}
        cam = np.tile([0.8, 0.05, -0.1], (FRAMES, 1))
        transl = weak_to_perspective(cam, bboxes, **camera)
        betas = np.random.default_rng(number).normal(0, 1, 10).astype(np.float32)
        made = replace(
            made,
            image_size=SIZE.astype(np.float64),
            **camera,
            betas=betas,
            bboxes=bboxes.astype(np.float32),
            transl=transl.astype(np.float32),
            cam=cam.astype(np.float32),
        )
        joints = body.joints(made.pose, made.posed_betas)
        joints2d = project(joints + transl[:, None], **camera).astype(np.float32)
        people.append(replace(made, joints3d=joints, joints2d=joints2d))
    return people


def tracks_of(truth: list[Motion], *, scale: float = SCALE) -> list[Track]:
    """Find the tight boxes whose squares, `scale` times as wide, are the truth's."""
    return [
        Track(
            person.track_id,
            person.frame_ids,
            np.concatenate(
                [
                    person.bboxes[:, :2] - person.bboxes[:, 2:] / 2 / scale,
                    person.bboxes[:, :2] + person.bboxes[:, 2:] / 2 / scale,
                ],
                axis=1,
            ),
            person.scores,
            person.interpolated,
        )
        for person in truth
    ]


def frames(*_: Any, **__: Any) -> Iterator[Frame]:
    """A clip in which every pixel says where it is, and when."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    for index in range(FRAMES):
        image = np.stack([x, y, np.full_like(x, index)], axis=-1)
        yield Frame(index, index / 25, image.astype(np.uint8))


class Seer(Model):
    """A perfect network: sees in a crop what of the image it shows, and knows who is there."""

    def __init__(self, truth: list[Motion], *, target: int = 8, **config: Any) -> None:
        self.config = MPSNetConfig(feature_dim=4, **config)
        self.weights = SimpleNamespace(name="seer", trained=True, path=Path("seer"))  # type: ignore[assignment]
        self.device = torch.device("cpu")
        self.truth = truth
        self.target = target

    def features(self, crops: NDArray[np.uint8]) -> Tensor:
        """Return frame, cx, cy and side of each crop."""
        size = crops.shape[1]
        middle = np.arange(size) - size / 2
        seen = []
        for crop in crops.astype(np.float64):
            across, x = np.polyfit(middle, crop[:, :, 0].mean(axis=0), 1)
            _, y = np.polyfit(middle, crop[:, :, 1].mean(axis=1), 1)
            seen.append([crop[0, 0, 2], x, y, across * size])
        return torch.tensor(seen, dtype=torch.float32)

    def predict(self, features: Tensor, windows: NDArray[np.int64]) -> Prediction:
        rotmats, betas, cams = [], [], []
        for frame, x, y, side in (
            features[torch.from_numpy(windows[:, self.target])].double().numpy()
        ):
            row = round(frame)
            person = min(
                self.truth,
                key=lambda p: np.hypot(*(p.bboxes[row, :2] - [x, y])),
            )
            box = np.array([[x, y, side, side]])
            camera = {
                "focal_length": person.focal_length,
                "principal_point": person.principal_point,
            }
            cams.append(perspective_to_weak(person.transl[row : row + 1], box, **camera)[0])
            rotations = axis_angle_to_matrix(person.pose[row].reshape(24, 3))
            ray = ray_rotations(person.bboxes[row : row + 1], **camera)[0]
            rotations[0] = ray.T @ rotations[0]  # as the crop shows the person
            rotmats.append(rotations)
            betas.append(person.betas)
        return Prediction(
            *(torch.tensor(np.array(v), dtype=torch.float32) for v in (rotmats, betas, cams))
        )


@pytest.fixture
def video(monkeypatch: pytest.MonkeyPatch) -> VideoInfo:
    monkeypatch.setattr(pipeline, "read_frames", frames)
    return VideoInfo(
        Path("clip"), *SIZE.tolist(), Fraction(25), FRAMES, 0, has_audio=False, is_vfr=False,
        duration=FRAMES / 25,
    )  # fmt: skip


def measured(
    video: VideoInfo, truth: list[Motion], body: BodyModel, **config: Any
) -> dict[str, float]:
    model = Seer(truth, **config)
    result = evaluate_clip(video, truth, model, body, tracks=tracks_of(truth))
    assert result.people is not None
    assert (result.people.true, result.people.missed) == (2 * FRAMES, 0)
    return result.pooled.means()


def test_a_perfect_network_has_no_error(
    video: VideoInfo, truth: list[Motion], body: BodyModel
) -> None:
    """The millimetres left are those of bytes as coordinates: a thousandth of the distance."""
    means = measured(video, truth, body)
    assert max(means[key] for key in ("mpjpe", "pa_mpjpe", "mpvpe")) < 0.01
    assert means["acceleration_per_s2"] == pytest.approx(625 * means["acceleration"])
    assert means["mpjpe_camera"] < 5
    assert means["joints2d"] < 0.1


def test_mistakes_show(
    monkeypatch: pytest.MonkeyPatch, video: VideoInfo, truth: list[Motion], body: BodyModel
) -> None:
    """A camera of another square, a window off by one, a crop off by two pixels."""
    assert measured(video, truth, body, camera_scale=1.2)["mpjpe_camera"] > 100
    assert measured(video, truth, body, target=7)["mpjpe"] > 1
    straight = pipeline.crop_image

    def askew(image: NDArray[np.uint8], bbox: NDArray, **how: Any) -> NDArray[np.uint8]:
        return straight(image, bbox + np.float32([2, 0, 0, 0]), **how)

    monkeypatch.setattr(pipeline, "crop_image", askew)
    shifted = measured(video, truth, body)
    assert shifted["joints2d"] > 1.5
    assert shifted["mpjpe"] < 0.01


def test_the_example_s_truth_through_the_pipeline_has_no_error(body: BodyModel) -> None:
    """Real decoding, real boxes from the csv; the network alone is replaced by the truth."""
    truth = load_truth(WALK)
    video = probe(EXAMPLES / "walk.mp4")
    tracks = read_boxes(EXAMPLES / "walk_boxes.csv", video)
    tight = (tracks[0].boxes[:, 2:] - tracks[0].boxes[:, :2]).max(axis=1)
    scale = float(np.median(truth[0].bboxes[:, 2] / tight))
    seen = 0

    class Counter(Seer):
        def features(self, crops: NDArray[np.uint8]) -> Tensor:
            """Tell the crops by their order: frame by frame, the man first."""
            nonlocal seen
            frame, person = np.divmod(np.arange(seen, seen + len(crops)), 2)
            seen += len(crops)
            boxes = [truth[k].bboxes[n, :3] for n, k in zip(frame, person, strict=True)]
            return torch.tensor(np.column_stack([frame, boxes]), dtype=torch.float32)

    model = Counter(truth, camera_scale=round(scale, 4), crop_scale=round(scale, 4))
    result = evaluate_clip(video, truth, model, body, tracks=tracks)
    assert result.people is not None
    assert vars(result.people) == {"true": 360, "missed": 0, "spurious": 0}
    means = result.pooled.means()
    assert means["pa_mpjpe"] < 0.01
    # The csv rounds its boxes.
    assert max(means[key] for key in ("mpjpe", "mpvpe", "mpjpe_camera")) < 1
    assert means["joints2d"] < 0.1
    assert [errors.name for errors in result.sequences] == ["person_01", "person_02"]


def compared(motions: list[Motion], truth: list[Motion], body: BodyModel) -> Result:
    return compare(motions, truth, body, report=Reporter())


def test_people_are_matched_whatever_their_order(truth: list[Motion], body: BodyModel) -> None:
    result = compared(truth[::-1], truth, body)
    assert result.pooled.means()["mpjpe_camera"] == 0
    assert vars(result.people) == {"true": 80, "missed": 0, "spurious": 0}


def part(motion: Motion, rows: NDArray[np.int64]) -> Motion:
    n = len(motion)
    return replace(
        motion,
        **{
            key: value[rows]
            for key, value in vars(motion).items()
            if isinstance(value, np.ndarray) and value.ndim and len(value) == n
        },
    )


def test_missed_and_spurious_frames_are_counted(truth: list[Motion], body: BodyModel) -> None:
    seen = np.array([k for k in range(FRAMES) if k not in (10, 11, 30)])
    away = replace(truth[1], bboxes=truth[1].bboxes + np.float32([0, 500, 0, 0]))
    result = compared([part(truth[0], seen), away], truth, body)
    assert vars(result.people) == {"true": 80, "missed": 43, "spurious": 40}
    (errors,) = result.sequences
    assert (errors.name, errors.frames) == ("person_01", 37)
    # 10 frames in a row, then 18, then 9: each has an acceleration for all but two of them.
    assert len(errors.values["acceleration"]) == 8 + 16 + 7
    with pytest.raises(InputError, match="None of the 40 person-frames found overlaps one of the"):
        compared([away], truth, body)
    with pytest.raises(InputError, match="None of the 0 person-frames"):
        compared([], truth, body)


def test_an_identity_that_changes_has_no_acceleration_there(
    truth: list[Motion], body: BodyModel
) -> None:
    first, second = np.arange(20), np.arange(20, FRAMES)
    fragments = [part(truth[0], first), replace(part(truth[0], second), track_id=9)]
    (errors,) = compared(fragments, truth[:1], body).sequences
    assert errors.frames == FRAMES
    assert len(errors.values["acceleration"]) == 18 + 18


def test_matching_takes_the_largest_overlap_in_sum(truth: list[Motion]) -> None:
    """The greedy choice, the nearest box for the first person, would leave the second alone."""
    a, b = (part(person, np.array([0])) for person in truth)

    def at(motion: Motion, x: float) -> Motion:
        return replace(motion, bboxes=np.float32([[x, 90, 100, 100]]))

    matches = match_people([at(a, 20), at(b, 75)], [at(a, 30), at(b, 0)])
    assert [rows.tolist() for rows in matches] == [[[0, 1, 0]], [[0, 0, 0]]]


def test_known_errors_are_measured(truth: list[Motion], body: BodyModel) -> None:
    aside = replace(
        truth[0],
        transl=truth[0].transl + np.float32([0.03, 0, 0.04]),
        joints2d=truth[0].joints2d + np.float32([3, 4]),
    )
    means = compared([aside], truth[:1], body).pooled.means()
    assert means["mpjpe_camera"] == pytest.approx(50, abs=1e-3)
    assert means["joints2d"] == pytest.approx(5, abs=1e-3)
    assert means["mpjpe"] < 1e-3


def test_another_body_in_the_truth_is_said(truth: list[Motion], body: BodyModel) -> None:
    report = Reporter()
    other = [replace(truth[0], body="smpl-neutral")]
    result = compare(truth[:1], other, body, report=report)
    assert "mpvpe" not in result.pooled.means()
    assert any("is of the body smpl-neutral, not free-1" in text for text in report.warnings)


def test_a_truth_of_another_clip_is_refused(
    video: VideoInfo, truth: list[Motion], body: BodyModel
) -> None:
    wide = [replace(person, image_size=np.array([1280.0, 720.0])) for person in truth]
    with pytest.raises(InputError, match="clip of 1280 x 720 px, but clip has 250 x 180"):
        evaluate_clip(video, wide, Seer(truth), body)


def test_a_person_s_file_is_a_truth_as_well(truth: list[Motion], tmp_path: Path) -> None:
    truth[0].save(tmp_path / "person_01.npz")
    (found,) = load_truth(tmp_path / "person_01.npz")
    np.testing.assert_array_equal(found.pose, truth[0].pose)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "mpsnet-sequences/1"}, "not a mpsnet-motions/1 file"),
        ({"person_01/pose": None}, "pose"),
        ({"person_01/pose": np.zeros((3, 72))}, "pose has shape"),
        ({"person_01/transl": np.full((180, 3), np.nan)}, "transl of person_01 is not all finite"),
        ({"person_01/betas": np.array([{}], object)}, "allow_pickle"),
    ],
)
def test_a_bad_truth_is_refused(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with np.load(WALK) as file:
        arrays = {**file, **changes}
    path = tmp_path / "t.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(InputError, match=match):
        load_truth(path)


def test_no_truth_at_all_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    with pytest.raises(InputError, match="No such file"):
        load_truth(path)
    path.write_text("text")
    with pytest.raises(InputError, match=r"not an \.npz"):
        load_truth(path)
    np.savez(path, format="mpsnet-motions/1")
    with pytest.raises(InputError, match="holds nobody"):
        load_truth(path)
