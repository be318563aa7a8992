from __future__ import annotations

import pickle
from dataclasses import fields
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
import torch

from mpsnet_cli.body import load_body
from mpsnet_cli.errors import InputError
from mpsnet_cli.geometry import project, weak_to_perspective
from mpsnet_cli.synth.plates import PAINTED
from mpsnet_cli.synth.samples import CropBatch, Samples

if TYPE_CHECKING:
    from mpsnet_cli.body import BodyModel

SIZE, COUNT = 96, 24


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def body() -> BodyModel:
    return load_body("free-1")


@pytest.fixture(scope="module")
def samples() -> Samples:
    return Samples(5, size=SIZE)


@pytest.fixture(scope="module")
def batch(samples: Samples) -> CropBatch:
    return samples.crops(range(COUNT))


def assert_same(first: CropBatch, second: CropBatch) -> None:
    for field in fields(CropBatch):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))


def rows(batch: CropBatch, chosen: slice | list[int]) -> CropBatch:
    return CropBatch(**{field.name: getattr(batch, field.name)[chosen] for field in fields(batch)})


def test_a_batch_has_the_shapes_it_states(batch: CropBatch) -> None:
    assert batch.images.shape == (COUNT, SIZE, SIZE, 3)
    assert batch.images.dtype == np.uint8
    assert batch.masks.shape == (COUNT, SIZE, SIZE)
    assert batch.masks.dtype == batch.visible.dtype == bool
    shapes = {
        "pose": (72,), "betas": (10,), "cam": (3,), "joints2d": (24, 2), "bboxes": (4,),
        "joints3d": (24, 3), "transl": (3,), "focal_length": (), "image_size": (2,),
    }  # fmt: skip
    for name, shape in shapes.items():
        assert getattr(batch, name).shape == (COUNT, *shape)
        assert getattr(batch, name).dtype == np.float32
    np.testing.assert_array_equal(batch.bboxes[:, 2], batch.bboxes[:, 3])


def test_labels_agree_with_the_body_and_with_both_cameras(
    batch: CropBatch, body: BodyModel
) -> None:
    _, joints = body(batch.pose, batch.betas)
    np.testing.assert_allclose(batch.joints3d, joints, atol=2e-5)
    for k in range(COUNT):
        camera = {
            "focal_length": float(batch.focal_length[k]),
            "principal_point": batch.image_size[k] / 2,
        }
        row = slice(k, k + 1)
        transl = weak_to_perspective(batch.cam[row], batch.bboxes[row], **camera)
        np.testing.assert_allclose(transl, batch.transl[row], rtol=1e-4, atol=1e-4)
        pixels = project(joints[k] + batch.transl[k], **camera)
        in_crop = 2 * (pixels - batch.bboxes[k, :2]) / batch.bboxes[k, 2]
        np.testing.assert_allclose(batch.joints2d[k], in_crop, atol=2e-3)


def test_the_mask_lies_on_the_projected_body(batch: CropBatch, body: BodyModel) -> None:
    vertices, _ = body(batch.pose, batch.betas)
    checked = 0
    for k in np.flatnonzero(batch.visible.all(axis=1)):  # whole, and before everything else
        pixels = project(
            vertices[k] + batch.transl[k],
            focal_length=float(batch.focal_length[k]),
            principal_point=batch.image_size[k] / 2,
        )
        at = (pixels - batch.bboxes[k, :2]) * SIZE / batch.bboxes[k, 2] + SIZE / 2
        column, row = np.rint(at).astype(int).T
        inside = (column >= 1) & (column < SIZE - 1) & (row >= 1) & (row < SIZE - 1)
        mask = cv2.dilate(batch.masks[k].astype(np.uint8), np.ones((3, 3), np.uint8))
        assert mask[row[inside], column[inside]].mean() > 0.97
        around = np.zeros_like(mask)
        around[row[inside], column[inside]] = 1
        around = cv2.dilate(around, np.ones((9, 9), np.uint8))
        assert around[batch.masks[k]].mean() > 0.8  # the rest: skirts, hats, bags
        checked += 1
    assert checked >= 5


def test_a_picture_does_not_depend_on_its_company_in_a_batch(
    samples: Samples, batch: CropBatch
) -> None:
    assert_same(samples.crops([7]), rows(batch, [7]))
    assert_same(samples.crops([11, 3]), rows(batch, [11, 3]))
    assert_same(Samples(5, size=SIZE).crops([3]), rows(batch, [3]))


def test_seeds_splits_and_indices_give_different_people(batch: CropBatch) -> None:
    others = [
        Samples(6, size=SIZE).crops([0, 1]),
        Samples(5, size=SIZE, split="held-out").crops([0, 1]),
    ]
    betas = np.concatenate([batch.betas, *(other.betas for other in others)])
    assert len(np.unique(betas[:, 0])) == len(betas)
    with pytest.raises(ValueError, match="no split 'test'"):
        Samples(0, split="test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="100 px"):
        Samples(0, size=100)


def test_a_scene_can_be_drawn_elsewhere(samples: Samples, batch: CropBatch) -> None:
    scenes = pickle.loads(pickle.dumps(samples.draw(4, frames=1)))
    pictures = samples.render(scenes)
    np.testing.assert_array_equal(pictures.images.numpy(), batch.images[4:5])
    np.testing.assert_array_equal(scenes[0].label.pose.astype(np.float32), batch.pose[4])


def test_rendering_many_at_once_changes_nothing_but_rounding(samples: Samples) -> None:
    drawn = (scene for index in count() for scene in samples.draw(index, frames=1))
    scenes = [*islice(drawn, 7), next(scene for scene in drawn if scene.company)]
    together = samples._render(scenes)
    for k, scene in enumerate(scenes):
        alone = samples.render([scene])
        difference = (alone.images[0].int() - together.images[k].int()).abs().float()
        assert difference.mean() < 0.05
        assert (alone.masks[0] != together.masks[k]).float().mean() < 1e-4
        assert torch.equal(alone.visible[0], together.visible[k])


def test_both_rasterisers_show_the_same(batch: CropBatch) -> None:
    other = Samples(5, size=SIZE, rasteriser="torch").crops(range(6))
    for k in range(6):
        assert (other.masks[k] != batch.masks[k]).mean() < 0.01
        difference = np.abs(other.images[k].astype(int) - batch.images[k])
        assert np.median(difference) <= 1
        assert difference.mean() < 3


def test_outside_the_image_it_is_black(batch: CropBatch) -> None:
    step = batch.bboxes[:, 2] / SIZE
    corner = batch.bboxes[:, :2] - batch.bboxes[:, 2:] / 2
    cut = 0
    for k in range(COUNT):
        x, y = (corner[k, axis] + np.arange(SIZE) * step[k] for axis in (0, 1))
        outside = ~(
            ((y >= 0) & (y <= batch.image_size[k, 1] - 1))[:, None]
            & ((x >= 0) & (x <= batch.image_size[k, 0] - 1))
        )
        outside = cv2.erode(outside.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert not batch.images[k][outside].any()
        assert not batch.masks[k][outside].any()
        cut += outside.any()
    assert cut


def test_what_is_visible_is_in_the_crop_and_mostly_on_the_person(batch: CropBatch) -> None:
    assert (np.abs(batch.joints2d[batch.visible]) <= 1.02).all()
    assert 0.5 < batch.visible.mean() < 0.99
    owner, joint = np.nonzero(batch.visible)
    column, row = (
        ((batch.joints2d[owner, joint] + 1) * SIZE / 2).round().astype(int).T.clip(0, SIZE - 1)
    )
    near = [cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) for mask in batch.masks]
    assert np.stack(near)[owner, row, column].mean() > 0.9


def test_boxes_are_a_detectors(batch: CropBatch) -> None:
    """People fill their squares: the longer side of what is seen is near 1 / CROP_SCALE of them."""
    sides = []
    for mask in batch.masks:
        filled = np.nonzero(mask)
        if len(filled[0]):
            sides.append(max(np.ptp(filled[0]), np.ptp(filled[1])) / SIZE)
    assert 0.75 < np.median(sides) < 1.0


def test_a_sequence_is_one_person_who_moves_smoothly(samples: Samples) -> None:
    clip = samples.sequence(2, 12)
    assert len(clip.images) == 12
    assert (clip.betas == clip.betas[0]).all()
    assert (clip.image_size == clip.image_size[0]).all()
    places = clip.joints3d + clip.transl[:, None]
    steps = np.linalg.norm(np.diff(places, axis=0), axis=2)
    assert 0 < steps.max() < 0.5  # m in a 30th of a second
    sides = clip.bboxes[:, 2]
    assert (np.abs(np.diff(sides)) < 0.1 * sides[:-1]).all()
    colours = np.stack(
        [image[mask].mean(axis=0) for image, mask in zip(clip.images, clip.masks, strict=True)]
    )
    assert np.abs(np.diff(colours, axis=0)).max() < 25
    assert_same(clip, samples.sequence(2, 12))


def test_pictures_of_the_users_are_used_and_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no pictures"):
        Samples(0, size=32, backgrounds=tmp_path)
    for number in range(40):  # of a green that nothing else has
        picture = np.full((40, 60, 3), (20, 255 - number, 20), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    train = Samples(0, size=32, backgrounds=tmp_path)
    plain = Samples(0, size=32)
    assert train._studio.world.photos
    assert not plain._studio.world.photos
    held_out = Samples(0, size=32, split="held-out", backgrounds=tmp_path)
    assert held_out._studio.world.photos
    assert set(train._studio.world.photos).isdisjoint(held_out._studio.world.photos)
    seen = np.concatenate([train.crops(range(12)).images, plain.crops(range(12)).images])
    green = (seen[..., 1] > 1.6 * seen[..., 0].clip(20)) & (
        seen[..., 1] > 1.6 * seen[..., 2].clip(20)
    )
    assert green[:12].mean() > green[12:].mean() + 0.05
    (tmp_path / "x.png").write_bytes(b"no picture")
    broken = Samples(0, size=32, backgrounds=tmp_path)
    with pytest.raises(InputError, match=r"x\.png is not a picture"):
        broken._studio.world.load(np.arange(len(broken._studio.world.photos)) + PAINTED)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_makes_nearly_the_same_pictures(batch: CropBatch) -> None:
    other = Samples(5, size=SIZE, device="cuda", rasteriser="torch").crops(range(COUNT))
    np.testing.assert_array_equal(other.pose, batch.pose)
    assert (other.masks != batch.masks).mean() < 0.01
    difference = np.abs(other.images.astype(int) - batch.images)
    assert np.median(difference) <= 1
    assert difference.mean() < 3
