"""Crops in memory, and what augmentation does to them and to their labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from mpsnet_cli.body import JOINT_NAMES, load_body
from mpsnet_cli.body.skeleton import MIRRORED
from mpsnet_cli.errors import InputError
from mpsnet_cli.geometry import axis_angle_to_matrix
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.samples import Samples
from mpsnet_cli.synth.shards import Recipe, read_shard, write_shards
from mpsnet_cli.training import crops as crops_module
from mpsnet_cli.training.crops import Crops, augment, load_crops

SIZE = 64


def make_folder(folder: Path, count: int = 6, size: int = SIZE) -> Path:
    """A folder as `mpsnet synth` leaves it."""
    recipe = Recipe(kind="crops", seed=0, size=size, split="train", frames=1)
    make = partial(Samples, 0, size=size)
    write_shards(make, folder, recipe, start=0, count=count, workers=1, report=Reporter())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("crops"))


@pytest.fixture(scope="module")
def crops(folder: Path) -> Crops:
    return load_crops([folder], Reporter())


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def repeated(crops: Crops, times: int) -> Crops:
    return crops.take(torch.arange(len(crops.images)).repeat(times))


def test_crops_are_what_the_shards_hold(folder: Path, crops: Crops) -> None:
    batch = read_shard(next(folder.glob("crops-*.npz"))).batch
    assert np.array_equal(crops.images.permute(0, 2, 3, 1).numpy(), batch.images)
    pose, joints3d = batch.before_crops()
    rotmats = axis_angle_to_matrix(pose.reshape(-1, 24, 3))
    assert np.allclose(crops.rotmats.numpy(), rotmats, atol=1e-6)
    assert np.array_equal(crops.joints3d.numpy(), joints3d)
    for name in ("betas", "joints2d", "visible"):
        assert np.array_equal(getattr(crops, name).numpy(), getattr(batch, name))
    both = load_crops([folder, folder], Reporter())
    assert torch.equal(both.images[6:], crops.images)


def test_folders_that_do_not_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no crops: make some with mpsnet synth"):
        load_crops([folder, tmp_path], Reporter())
    other = make_folder(tmp_path / "other", count=1, size=32)
    with pytest.raises(InputError, match=r"are of 32 px, and others of 64 px"):
        load_crops([folder, other], Reporter())
    (tmp_path / "crops-00000000.npz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="not a readable shard"):
        load_crops([tmp_path], Reporter())


def test_labels_stay_those_of_one_body(crops: Crops) -> None:
    """Mirrored, turned and swapped, the pose still gives the joints."""
    varied = augment(repeated(crops, 8), dice(), size=SIZE)
    _, joints = load_body("free-1").posed(varied.rotmats, varied.betas, vertices=False)
    from_pelvis = [j - j[:, :1] for j in (joints, varied.joints3d)]
    assert (from_pelvis[0] - from_pelvis[1]).abs().max() < 1e-5
    assert torch.allclose(torch.linalg.det(varied.rotmats), torch.ones(48, 24), atol=1e-4)


def test_left_is_right_in_a_mirror() -> None:
    assert [JOINT_NAMES[k] for k in MIRRORED][:4] == ["pelvis", "right_hip", "left_hip", "spine1"]
    assert [MIRRORED[k] for k in MIRRORED] == list(range(24))


@pytest.mark.parametrize("size", [64, 96, 32])
def test_the_picture_goes_where_the_joints_go(
    crops: Crops, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A bright spot on a joint is found at the joint afterwards, or at its partner, mirrored."""
    monkeypatch.setattr(crops_module, "_recoloured", lambda images, *_: images)
    joint, count = 4, 40
    at = torch.rand(count, 2, generator=dice(1)) - 0.5
    pixels = (2 * torch.arange(128) + 1) / 128 - 1
    squares = (pixels - at[:, :1]).square()[:, None, :] + (pixels - at[:, 1:]).square()[:, :, None]
    spots = (255 * torch.exp(-squares / 0.01)).byte()[:, None].expand(-1, 3, -1, -1)
    base = crops.take(torch.zeros(count, dtype=torch.int64))
    joints2d = base.joints2d.clone()
    joints2d[:, joint] = at
    varied = augment(base._replace(images=spots, joints2d=joints2d), dice(2), size=size)
    weights = varied.images[:, 0].square()
    pixels = (2 * torch.arange(size) + 1) / size - 1
    total = weights.sum(dim=(1, 2))
    found = torch.stack(
        [
            (weights.sum(dim=1) * pixels).sum(1) / total,
            (weights.sum(dim=2) * pixels).sum(1) / total,
        ],
        dim=1,
    )
    off = torch.stack([(varied.joints2d[:, k] - found).norm(dim=1) for k in (4, 5)])
    inside = found.abs().amax(dim=1) < 0.7
    assert inside.sum() > 20
    assert off.amin(dim=0)[inside].max() < 0.02
    mirrored = off.argmin(dim=0).float().mean()
    assert 0.25 < mirrored < 0.75


def test_plain_crops_are_mirrored_at_most(crops: Crops) -> None:
    varied = augment(repeated(crops, 4), dice(), size=SIZE, plain=True)
    pictures = repeated(crops, 4).images / 255
    asis, mirrored = (
        torch.isclose(varied.images, kind, atol=1e-4).flatten(1).all(dim=1)
        for kind in (pictures, pictures.flip(3))
    )
    assert (asis | mirrored).all()
    assert 6 <= int(asis.sum()) <= 18
    assert torch.allclose(varied.joints2d[asis], repeated(crops, 4).joints2d[asis], atol=1e-6)
    assert torch.equal(varied.rotmats[asis], repeated(crops, 4).rotmats[asis])


def test_augmentation_is_a_function_of_its_dice(crops: Crops) -> None:
    first, again, other = (augment(crops, dice(seed), size=32) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (6, 3, 32, 32)
    assert first.images.min() >= 0
    assert first.images.max() <= 1
    assert not (first.visible & (first.joints2d.abs() >= 1).any(dim=2)).any()
