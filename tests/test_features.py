from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from clips import make_clip
from fake_model import FakeModel
from motions import make_motion
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli import features
from mpsnet_cli.crops import crop_image, square_boxes
from mpsnet_cli.datasets import Sequence, load_sequences, save_sequences
from mpsnet_cli.errors import InputError
from mpsnet_cli.features import extract_features
from mpsnet_cli.geometry import axis_angle_to_matrix, ray_rotations
from mpsnet_cli.motion import Motion
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.samples import CropBatch
from mpsnet_cli.synth.shards import Shard
from mpsnet_cli.tracking import full_frame_track
from mpsnet_cli.video import Frame, VideoInfo, probe, read_frames
from mpsnet_cli.weights import load_model

SIZE = (160, 120)  # px
CLIPS = ("b.MOV", "clip.mp4")


class CountingModel(FakeModel):
    """Also notes how many crops it was given at once."""

    config = replace(FakeModel.config, crop_scale=1.2, camera_scale=1.5)
    weights = SimpleNamespace(**{**vars(FakeModel.weights), "sha256": "ab"})

    def __init__(self) -> None:
        super().__init__()
        self.most_crops = 0

    def features(self, crops: NDArray[np.uint8]) -> Tensor:
        self.most_crops = max(self.most_crops, len(crops))
        return super().features(crops)


def extract(source: Path, model: Any = None, **keywords: Any) -> tuple[list[Sequence], Reporter]:
    report = Reporter()
    return list(
        extract_features(source, model or CountingModel(), report=report, **keywords)
    ), report


@pytest.fixture
def numbered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A clip of 300 frames that show their number, of which 7 and 8 do not decode."""
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"a clip")
    video = VideoInfo(
        clip, *SIZE, Fraction(25), 300, 0, has_audio=False, is_vfr=False, duration=12.0
    )

    def frames(*_: Any, **__: Any) -> Iterator[Frame]:
        for index in range(300):
            image = np.empty((SIZE[1], SIZE[0], 3), np.uint8)
            image[:] = (index % 256, index // 256, 0)
            if index not in (7, 8):
                yield Frame(index, index / 25, image)

    monkeypatch.setattr(features, "probe", lambda _: video)
    monkeypatch.setattr(features, "read_frames", frames)
    return clip


def boxes(path: Path, rows: dict[int, range]) -> str:
    """Write a MOT file of people and the frames, from 0, that they are in."""
    lines = [f"{k + 1},{person},60,20,40,90,0.9" for person, ks in rows.items() for k in ks]
    path.write_text("\n".join(lines))
    return str(path)


def test_features_of_a_clip_are_those_of_its_people(numbered: Path, tmp_path: Path) -> None:
    model = CountingModel()
    given = boxes(tmp_path / "boxes.csv", {1: range(2, 290), 2: range(100, 103)})
    (one, two), _ = extract(numbered, model, boxes=given)
    seen = np.setdiff1d(np.arange(2, 290), [7, 8])
    assert np.array_equal(one.frame_ids, seen)
    assert np.array_equal(one.features[:, 0], seen)
    assert np.array_equal(two.features[:, 0], [100, 101, 102])
    assert (one.name, two.name) == ("clip/person_01", "clip/person_02")
    assert (one.fps, one.body, one.joint_set) == (25.0, "free-1", "none")
    assert one.pose is None
    assert one.joints3d is None
    assert one.bboxes is not None
    assert np.allclose(one.bboxes, [80, 65, 135, 135])  # 1.5 × 90 around the box
    assert model.most_crops <= features.CROPS_AT_ONCE + 1


def test_the_whole_frame_may_be_one_person(numbered: Path) -> None:
    (one,), _ = extract(numbered, boxes="full")
    assert len(one) == 298


def result_of(clip: Path, folder: Path, *, camera_scale: float = 1.5, **changes: Any) -> Motion:
    """Write a result folder of one person."""
    rng = np.random.default_rng(0)
    motion = make_motion(
        20, bboxes=np.tile(np.float32([80, 60, 90, 90]), (20, 1)), camera_scale=camera_scale,
        joints2d=rng.uniform(0, 120, (20, 24, 2)).astype(np.float32),
        joints3d=rng.normal(0, 1, (20, 24, 3)).astype(np.float32),
    )  # fmt: skip
    folder.mkdir()
    motion.save(folder / "person_01.npz")
    manifest = {
        "input": {"path": str(clip), "sha256": file_sha256(clip)},
        "people": [{"file": "person_01.npz"}],
        **changes,
    }
    (folder / "clip.json").write_text(json.dumps(manifest))
    return motion


def test_a_result_labels_its_own_clip(numbered: Path, tmp_path: Path) -> None:
    motion = result_of(numbered, tmp_path / "result")
    (one,), report = extract(tmp_path / "result")
    rows = np.setdiff1d(np.arange(20), [7, 8])
    assert np.array_equal(one.frame_ids, motion.frame_ids[rows])
    assert np.array_equal(one.features[:, 0], rows)
    assert one.joint_set == "smpl24"
    assert one.bboxes is not None
    assert one.pose is not None
    assert one.joints3d is not None
    rays = ray_rotations(
        one.bboxes, focal_length=motion.focal_length, principal_point=motion.principal_point
    )
    root = rays @ axis_angle_to_matrix(one.pose[:, :3])
    assert np.allclose(root, axis_angle_to_matrix(motion.pose[rows, :3]), atol=1e-5)
    assert np.array_equal(one.pose[:, 3:], motion.pose[rows, 3:])
    assert np.allclose(one.joints3d @ rays.swapaxes(1, 2), motion.joints3d[rows], atol=1e-5)
    assert one.joints2d is not None
    assert np.allclose(one.bboxes, motion.bboxes[rows], atol=1e-3)
    centre, half = one.bboxes[:, None, :2], one.bboxes[:, None, 2:] / 2
    assert np.allclose(one.joints2d[..., :2] * half + centre, motion.joints2d[rows], atol=1e-3)
    assert (one.joints2d[..., 2] == 1).all()
    assert "what a network found, not the truth" in report.warnings[-1]
    assert len(report.warnings) == 1


def test_a_result_of_weights_with_another_camera_scale(numbered: Path, tmp_path: Path) -> None:
    motion = result_of(numbered, tmp_path / "result", camera_scale=1.2)
    (one,), _ = extract(tmp_path / "result")
    assert one.bboxes is not None
    assert np.allclose(one.bboxes[:, :2], motion.bboxes[0, :2])
    assert np.allclose(one.bboxes[:, 2:], motion.bboxes[0, 2:] * 1.5 / 1.2)


def test_the_clip_of_a_result_may_have_moved_beside_it(numbered: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result_of(numbered, tmp_path / "out" / "result")
    numbered.rename(tmp_path / "out" / "clip.mp4")
    assert len(extract(tmp_path / "out" / "result")[0]) == 1
    (tmp_path / "out" / "clip.mp4").write_bytes(b"another clip")
    with pytest.raises(InputError, match="is not there or has changed"):
        extract(tmp_path / "out" / "result")


@pytest.mark.parametrize(
    "changes",
    [
        {"input": {"path": "x"}},
        {"people": [{"file": "../person_01.npz"}]},
        {"people": 3},
    ],
)
def test_a_manifest_that_is_none_is_refused(
    numbered: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    result_of(numbered, tmp_path / "result", **changes)
    with pytest.raises(InputError, match="manifest"):
        extract(tmp_path / "result")
    (tmp_path / "result" / "clip.json").write_text("[")
    with pytest.raises(InputError, match="not a readable manifest"):
        extract(tmp_path / "result")


def shard(frames: int, *, size: int = 224, kind: str = "sequences") -> Shard:
    rng = np.random.default_rng(0)
    count = 2 * frames
    images = np.empty((count, size, size, 3), np.uint8)
    images[:] = (np.arange(count)[:, None] * [1, 0, 0])[:, None, None]
    shapes = {"pose": (72,), "betas": (10,), "cam": (3,), "joints2d": (24, 2),
              "joints3d": (24, 3), "transl": (3,), "bboxes": (4,)}  # fmt: skip
    labels = {
        name: rng.normal(0, 1, (count, *shape)).astype(np.float32) for name, shape in shapes.items()
    }
    batch = CropBatch(
        images=images,
        masks=np.ones((count, size, size), np.bool_),
        visible=np.ones((count, 24), np.bool_),
        focal_length=np.full(count, 300, np.float32),
        image_size=np.full((count, 2), 200, np.float32),
        **labels,
    )
    return Shard(kind, np.array([5, 6]), frames, batch)


def test_shards_keep_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifest.json").touch()
    made = shard(3)
    monkeypatch.setattr(features, "iter_shards", lambda _: iter([made]))
    (one, two), _ = extract(tmp_path)
    assert (one.name, two.name) == ("synth/00000005", "synth/00000006")
    assert one.features[:, 0].tolist() == [0, 1, 2]
    assert two.features[:, 0].tolist() == [3, 4, 5]
    assert two.frame_ids.tolist() == [0, 1, 2]
    for name in ("betas", "bboxes"):
        assert np.array_equal(getattr(two, name), getattr(made.batch, name)[3:])
    for name, before_crops in zip(("pose", "joints3d"), made.batch.before_crops(), strict=True):
        assert np.array_equal(getattr(two, name), before_crops[3:])
    assert two.joints2d is not None
    assert np.array_equal(two.joints2d[..., :2], made.batch.joints2d[3:])
    assert (two.joints2d[..., 2] == 1).all()
    for wrong, words in (
        (shard(3, size=64), "have 64 px, and the network takes 224"),
        (shard(1, kind="crops"), "single pictures"),
    ):
        monkeypatch.setattr(features, "iter_shards", lambda _, wrong=wrong: iter([wrong]))
        with pytest.raises(InputError, match=words):
            extract(tmp_path)


def test_a_folder_of_clips(numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.txt").touch()
    (tmp_path / CLIPS[0]).touch()
    video = features.probe(numbered)
    monkeypatch.setattr(features, "probe", lambda path: replace(video, path=path))
    monkeypatch.setattr(features, "locate_people", lambda *_, **__: [full_frame_track(video)])
    found, _ = extract(tmp_path)
    assert [s.name for s in found] == ["b/person_01", "clip/person_01"]
    monkeypatch.setattr(features, "locate_people", lambda *_, **__: [])
    found, report = extract(tmp_path)
    assert not found
    assert report.warnings == [
        f"Nobody was found in {tmp_path / n}." for n in ("b.MOV", "clip.mp4")
    ]
    with pytest.raises(InputError, match="--boxes goes with one clip"):
        extract(tmp_path, boxes="full")


def test_a_bad_clip_of_a_folder_is_told_of_and_left_out(
    numbered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.mkv").touch()
    video, real = features.probe(numbered), probe
    monkeypatch.setattr(features, "probe", lambda p: real(p) if p.suffix == ".mkv" else video)
    monkeypatch.setattr(features, "locate_people", lambda *_, **__: [full_frame_track(video)])
    found, report = extract(tmp_path)
    assert [s.name for s in found] == ["clip/person_01"]
    assert len(report.losses) == 1
    assert "a.mkv is empty" in report.losses[0]
    with pytest.raises(InputError, match="is empty"):
        extract(tmp_path / "a.mkv")


def test_a_folder_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither clips"):
        extract(tmp_path)


def test_a_real_clip_through_the_real_backbone(
    untrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    clip = make_clip(tmp_path / "clip.mp4", frames=3, size=(64, 96))
    given = boxes(tmp_path / "boxes.csv", {4: range(3)})
    model = load_model(untrained, device="cpu", precision="fp32")
    found, _ = extract(clip, model, boxes=given)
    save_sequences(tmp_path / "features.npz", found)
    (one,) = load_sequences(tmp_path / "features.npz")
    square = square_boxes(np.float32([[60, 20, 100, 110]]), scale=model.config.crop_scale)[0]
    crops = [
        crop_image(frame.image, square, size=224)
        for frame in read_frames(probe(clip), report=Reporter())
    ]
    assert one.name == "clip/person_04"
    assert one.features.shape == (3, 2048)
    assert np.allclose(one.features, model.features(np.stack(crops)).numpy(), atol=1e-5)
    assert np.ptp(one.features, axis=0).max() > 0
