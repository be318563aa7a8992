from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.datasets.sequences import Sequence
from mpsnet_cli.errors import InputError
from mpsnet_cli.training.data import Batch, Prior, Windows


def make_sequence(
    number: int, frames: int, *, joint_set: str = "smpl24", first: int = 0
) -> Sequence:
    """A fully labelled sequence in which each array says where each of its rows comes from."""
    rng = np.random.default_rng(number)
    joints = {"smpl24": 24, "common14": 14, "spin49": 49}[joint_set]

    def tagged(*shape: int) -> NDArray[np.float32]:
        array = rng.normal(0, 0.3, (frames, *shape)).astype(np.float32)
        array.reshape(frames, -1)[:, 0] = number
        array.reshape(frames, -1)[:, 1] = np.arange(frames)
        return array

    return Sequence(
        name=f"sequence {number}",
        body="free-1",
        fps=30.0,
        frame_ids=np.arange(first, first + frames),
        features=tagged(2048),
        joint_set=joint_set,  # type: ignore[arg-type]
        joints3d=tagged(joints, 3),
        joints2d=tagged(joints, 3),
        pose=rng.normal(0, 0.3, (frames, 72)).astype(np.float32),
        betas=tagged(10),
    )


def only_2d(sequence: Sequence) -> Sequence:
    return replace(sequence, joints3d=None, pose=None, betas=None)


def places(batch: Batch) -> list[tuple[int, int]]:
    """Which sequence each window comes from, and the row of its first frame."""
    first = batch.features[:, 0, :2].int().tolist()
    return [(number, row) for number, row in first]


def assert_equal(one: Batch, other: Batch) -> None:
    for name, a, b in zip(Batch._fields, one, other, strict=True):
        assert torch.equal(a, b), name


def test_a_batch_holds_whole_windows_and_the_labels_of_their_target_frames() -> None:
    sequences = {n: make_sequence(n, 40 + n) for n in range(4)}
    windows = Windows([*sequences.values()], [], batch_size=8, share_2d=0.6, stride=5, seed=1)
    batch = windows.batch(0)
    assert [tuple(part.shape) for part in batch] == [
        (8, 16, 2048), (8, 24, 3), (8, 24, 3), (8, 24, 3, 3), (8, 10), (8,), (8,),
    ]  # fmt: skip
    assert [part.dtype for part in batch] == [torch.float32] * 5 + [torch.bool] * 2
    for row, (number, start) in enumerate(places(batch)):
        s, target = sequences[number], start + 8
        assert start % 5 == 0
        np.testing.assert_array_equal(batch.features[row], s.features[start : start + 16])
        assert s.joints3d is not None
        assert s.joints2d is not None
        assert s.pose is not None
        assert s.betas is not None
        np.testing.assert_array_equal(batch.joints3d[row], s.joints3d[target])
        np.testing.assert_array_equal(batch.joints2d[row], s.joints2d[target])
        np.testing.assert_array_equal(batch.betas[row], s.betas[target])
        rotations = Rotation.from_rotvec(s.pose[target].reshape(24, 3)).as_matrix()
        np.testing.assert_allclose(batch.rotmats[row], rotations, atol=1e-6)
    assert batch.has_joints3d.all()
    assert batch.has_smpl.all()


def test_what_is_not_known_is_zero_and_said() -> None:
    whole = make_sequence(0, 16)
    kinds = [whole, only_2d(whole), replace(whole, betas=None), replace(whole, joints2d=None)]
    kinds += [replace(whole, joint_set="none", joints2d=None, joints3d=None)]
    for sequence in kinds:
        batch = Windows([sequence], [], batch_size=1, share_2d=0.6, stride=16, seed=0).batch(0)
        assert batch.has_joints3d.item() == (sequence.joints3d is not None)
        assert batch.has_smpl.item() == (sequence.pose is not None and sequence.betas is not None)
        assert batch.joints3d.any().item() == batch.has_joints3d.item()
        assert batch.betas.any().item() == batch.has_smpl.item()
        assert batch.joints2d[..., 2].any().item() == (sequence.joints2d is not None)


def test_every_window_comes_once_before_any_comes_again() -> None:
    sequences = [make_sequence(n, 16 * n + n) for n in range(1, 5)]  # 1 + 2 + 3 + 4 windows
    windows = Windows(sequences, [], batch_size=4, share_2d=0.6, stride=16, seed=0)
    drawn = [place for step in range(15) for place in places(windows.batch(step))]
    epochs = [drawn[start : start + 10] for start in range(0, 60, 10)]
    for epoch in epochs:
        assert sorted(epoch) == [(n, 16 * k) for n in range(1, 5) for k in range(n)]
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_a_batch_larger_than_the_data_repeats_it_evenly() -> None:
    windows = Windows([make_sequence(0, 48)], [], batch_size=32, share_2d=0.6, stride=16, seed=0)
    assert sorted(Counter(places(windows.batch(0))).values()) == [10, 11, 11]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    three_d, two_d = ([make_sequence(n, 100) for n in numbers] for numbers in (range(9), (9, 10)))

    def windows(seed: int) -> Windows:
        return Windows(three_d, two_d, batch_size=8, share_2d=0.5, stride=4, seed=seed)

    straight = windows(3)
    batches = [straight.batch(step) for step in range(40)]
    resumed = windows(3)
    for step in (39, 0, 17, 17, 5):
        assert_equal(resumed.batch(step), batches[step])
    assert places(windows(4).batch(0)) != places(batches[0])
    assert places(batches[1]) != places(batches[0])


@pytest.mark.parametrize(
    ("batch_size", "share_2d", "of_2d"), [(32, 0.6, 19), (10, 0.6, 6), (8, 0, 0), (8, 1, 8)]
)
def test_the_kinds_are_mixed(batch_size: int, share_2d: float, of_2d: int) -> None:
    three_d, two_d = [make_sequence(1, 200)], [only_2d(make_sequence(2, 100))]
    windows = Windows(three_d, two_d, batch_size=batch_size, share_2d=share_2d, stride=1, seed=0)
    for step in range(3):
        batch = windows.batch(step)
        numbers = Counter(number for number, _ in places(batch))
        assert (numbers[2], numbers[1]) == (of_2d, batch_size - of_2d)
        assert batch.has_joints3d.sum() == batch.has_smpl.sum() == batch_size - of_2d
        assert (batch.joints2d[..., 2] != 0).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("kind", ["three_d", "two_d"])
def test_one_kind_alone_fills_the_batch(kind: str) -> None:
    given = {"three_d": [], "two_d": [], kind: [make_sequence(5, 64)]}
    windows = Windows(**given, batch_size=4, share_2d=0.6, stride=16, seed=0)
    assert sorted(places(windows.batch(0))) == [(5, 0), (5, 16), (5, 32), (5, 48)]


def test_no_window_bridges_a_hole() -> None:
    sequence = make_sequence(0, 70)
    frame_ids = sequence.frame_ids + 3 * (np.arange(70) >= 20) + (np.arange(70) >= 35)
    sequence = replace(sequence, frame_ids=frame_ids)  # runs of 20, 15 and 35
    windows = Windows([sequence], [], batch_size=25, share_2d=0.6, stride=1, seed=0)
    wanted = [*range(5), *range(35, 55)]
    assert sorted(places(windows.batch(0))) == [(0, start) for start in wanted]
    strided = Windows([sequence], [], batch_size=3, share_2d=0.6, stride=16, seed=0)
    assert sorted(places(strided.batch(0))) == [(0, 0), (0, 35), (0, 51)]


def test_joint_sets_do_not_mix() -> None:
    ours, theirs = make_sequence(1, 16), make_sequence(2, 16, joint_set="spin49")
    none = replace(make_sequence(3, 16), joint_set="none", joints2d=None, joints3d=None)
    options = {"batch_size": 2, "share_2d": 0.5, "stride": 16, "seed": 0}
    with pytest.raises(
        InputError,
        match="sequence 1 and sequence 2 have the joint sets smpl24 and spin49: train on one",
    ):
        Windows([ours], [theirs], **options)
    windows = Windows([theirs], [none], **options)
    assert windows.joint_set == "spin49"
    assert windows.batch(0).joints3d.shape == (2, 49, 3)
    assert Windows([none], [], **options).joint_set == "smpl24"


def test_too_little_is_refused() -> None:
    options = {"batch_size": 2, "share_2d": 0.5, "stride": 16, "seed": 0}
    enough, short = make_sequence(0, 16), make_sequence(1, 15)
    for three_d, two_d, kind in (([short], [], "1 3D"), ([enough], [short, short], "2 2D")):
        with pytest.raises(InputError, match=f"None of the {kind} training sequences has 16"):
            Windows(three_d, two_d, **options)
    with pytest.raises(InputError, match="There is no training sequence"):
        Windows([], [], **options)


def test_features_are_not_copied_until_they_are_drawn() -> None:
    sequence = make_sequence(0, 64)
    windows = Windows([sequence], [], batch_size=4, share_2d=0.6, stride=1, seed=0)
    before = windows.batch(0)
    sequence.features[:] = 1000
    assert (windows.batch(0).features == 1000).all()
    assert not (before.features == 1000).any()


def test_a_batch_moves_whole() -> None:
    batch = Windows([make_sequence(0, 16)], [], batch_size=1, share_2d=0, stride=16, seed=0).batch(
        0
    )
    assert {part.device.type for part in batch.to("meta")} == {"meta"}


def test_drawing_is_quick() -> None:
    """A batch of the usual size takes a small part of a training step, even on one slow core."""
    sequences = [make_sequence(n, 100) for n in range(10)]
    two_d = [only_2d(s) for s in sequences]
    windows = Windows(sequences, two_d, batch_size=32, share_2d=0.6, stride=1, seed=0)
    taken = []
    for step in range(20):
        start = time.perf_counter()
        windows.batch(step)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.02


def make_take(number: int, frames: int) -> NDArray[np.float32]:
    take = np.zeros((frames, 72), np.float32)
    take[:, :3] = np.nan  # the root is not to be looked at
    take[:, 3] = number
    take[:, 4] = np.arange(frames)
    take[:, 71] = 0.5
    return take


def test_the_prior_cuts_recordings_into_chunks() -> None:
    takes = [make_take(n, frames) for n, frames in enumerate((59, 60, 64, 200))]
    prior = Prior(takes, batch_size=19, seed=0)  # 0 + 3 + 4 + 12 chunks
    motions = prior.batch(0)
    assert motions.shape == (19, 16, 69)
    assert motions.dtype == torch.float32
    assert (motions[..., -1] == 0.5).all()
    np.testing.assert_array_equal(
        motions[..., 1] - motions[:, :1, 1], np.tile(np.arange(16), (19, 1))
    )
    found = sorted(map(tuple, motions[:, 0, :2].int().tolist()))
    wanted = [(1, range(0, 48, 16)), (2, range(0, 64, 16)), (3, range(0, 192, 16))]
    assert found == [(number, start) for number, starts in wanted for start in starts]


def test_the_prior_is_a_function_of_seed_and_step() -> None:
    takes = [make_take(n, 100) for n in range(5)]
    one, other = (Prior(takes, batch_size=7, seed=2) for _ in range(2))
    batches = [one.batch(step) for step in range(9)]
    for step in (8, 3, 0):
        assert torch.equal(other.batch(step), batches[step])
    assert not torch.equal(batches[0], batches[1])
    assert not torch.equal(Prior(takes, batch_size=7, seed=3).batch(0), batches[0])


def test_a_prior_of_short_takes_is_refused() -> None:
    with pytest.raises(InputError, match="None of the 2 motion capture sequences has 60 frames"):
        Prior([make_take(0, 59), make_take(1, 16)], batch_size=4, seed=0)
    assert Prior([make_take(0, 16)], batch_size=1, seed=0, min_frames=0).batch(0).shape[0] == 1
    with pytest.raises(InputError, match="has 16 frames"):
        Prior([make_take(0, 15)], batch_size=1, seed=0, min_frames=0)
