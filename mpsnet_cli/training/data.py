"""Batches for training: windows of labelled sequences, and real motions for the discriminator.

A batch is a function of the seed and the number of its step alone, so that a training run that was
cut off goes on as if it had not been.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.body.joint_sets import SIZES
from mpsnet_cli.datasets.sequences import Sequence
from mpsnet_cli.errors import InputError
from mpsnet_cli.geometry import axis_angle_to_matrix
from mpsnet_cli.windows import TARGET, WINDOW

STREAM_3D, STREAM_2D, STREAM_PRIOR = range(3)  # of random numbers, independent of each other
PRIOR_MIN_FRAMES = 60  # shorter recordings say little of how people move


class Batch(NamedTuple):
    """Windows of features, and what is known of their target frames.

    What is not known is zero; of rotmats, the identity.

    features: (B, 16, 2048)
    joints2d: (B, J, 3) x, y in the crop's [-1, 1]² and confidence, 0 where not known
    joints3d: (B, J, 3) m, in the camera frame, from any root
    rotmats: (B, 24, 3, 3) pose, in the camera frame
    betas: (B, 10)
    has_joints3d, has_smpl: (B,) bool; the latter says that rotmats and betas are known
    """

    features: Tensor
    joints2d: Tensor
    joints3d: Tensor
    rotmats: Tensor
    betas: Tensor
    has_joints3d: Tensor
    has_smpl: Tensor

    def to(self, device: str | torch.device) -> Batch:
        """Copy the batch to a device."""
        return Batch(*(part.to(device, non_blocking=True) for part in self))


class Windows:
    """Batches of 16-frame windows, mixed of sequences with 3D labels and sequences with 2D alone.

    joint_set: the one joint set of all sequences that have joints ("smpl24" if none has any)
    """

    def __init__(
        self,
        three_d: list[Sequence],
        two_d: list[Sequence],
        *,
        batch_size: int,
        share_2d: float,
        stride: int,
        seed: int,
    ) -> None:
        """Lay windows every `stride` frames of each unbroken run of frames.

        Of each batch, `share_2d` is from `two_d`, rounded down: 19 of 32 for 0.6. All of it is from
        the one kind if there are no sequences of the other. Raises InputError if there are none at
        all, if they differ in their joint set, or if all those of a kind are too short.
        """
        self.joint_set = _common_joint_set([*three_d, *two_d])
        if not three_d and not two_d:
            raise InputError("There is no training sequence: name at least one data set.")
        of_2d = int(batch_size * share_2d) if three_d and two_d else batch_size * bool(two_d)
        self._three_d, self._two_d = three_d, two_d
        self._draw_3d = _Shuffle(
            _all_window_starts(three_d, stride, kind="3D"),
            size=batch_size - of_2d,
            seed=(seed, STREAM_3D),
        )
        self._draw_2d = _Shuffle(
            _all_window_starts(two_d, stride, kind="2D"), size=of_2d, seed=(seed, STREAM_2D)
        )

    def batch(self, step: int) -> Batch:
        """Draw batch number `step`, from 0: each window once, in random order, before any again."""
        windows = [(self._two_d[which], start) for which, start in self._draw_2d(step)]
        windows += [(self._three_d[which], start) for which, start in self._draw_3d(step)]
        count, joint_count = len(windows), SIZES[self.joint_set]
        features = np.stack([s.features[start : start + WINDOW] for s, start in windows])
        joints2d = np.zeros((count, joint_count, 3), np.float32)
        joints3d = np.zeros((count, joint_count, 3), np.float32)
        pose = np.zeros((count, 24, 3), np.float32)
        betas = np.zeros((count, 10), np.float32)
        has_joints3d = np.zeros(count, bool)
        has_smpl = np.zeros(count, bool)
        for row, (s, start) in enumerate(windows):
            target = start + TARGET
            if s.joints2d is not None:
                joints2d[row] = s.joints2d[target]
            if s.joints3d is not None:
                joints3d[row], has_joints3d[row] = s.joints3d[target], True
            if s.pose is not None and s.betas is not None:
                pose[row] = s.pose[target].reshape(24, 3)
                betas[row], has_smpl[row] = s.betas[target], True
        rotmats = axis_angle_to_matrix(pose).astype(np.float32)
        arrays = (features, joints2d, joints3d, rotmats, betas, has_joints3d, has_smpl)
        return Batch(*map(torch.from_numpy, arrays))


class Prior:
    """Batches of real motions: the chunks of 16 frames, not overlapping, of motion capture."""

    def __init__(
        self,
        poses: list[NDArray[np.float32]],
        *,
        batch_size: int,
        seed: int,
        min_frames: int = PRIOR_MIN_FRAMES,
    ) -> None:
        """Cut poses (N, 72) each, axis-angle in rad; those below `min_frames` are left out.

        Raises InputError if none remains.
        """
        enough = max(min_frames, WINDOW)
        self._poses = [take for take in poses if len(take) >= enough]
        if not self._poses:
            raise InputError(
                f"None of the {len(poses)} motion capture sequences has {enough} frames: give "
                "longer ones."
            )
        starts = [np.arange(0, len(take) - WINDOW + 1, WINDOW) for take in self._poses]
        self._draw = _Shuffle(starts, size=batch_size, seed=(seed, STREAM_PRIOR))

    def batch(self, step: int) -> Tensor:
        """Draw batch number `step`, from 0: (B, 16, 69) axis-angle, rad, without the root."""
        chunks = [
            self._poses[which][start : start + WINDOW, 3:] for which, start in self._draw(step)
        ]
        return torch.from_numpy(np.stack(chunks).astype(np.float32, copy=False))


class _Shuffle:
    """Rows of sequences in an endless random order: each once before any comes again.

    `starts` holds the rows of each sequence that take part; each step takes the next `size`.
    """

    def __init__(
        self, starts: list[NDArray[np.int64]], *, size: int, seed: tuple[int, int]
    ) -> None:
        self._which = np.repeat(np.arange(len(starts)), [len(rows) for rows in starts])
        self._start = np.concatenate([np.zeros(0, np.int64), *starts])
        self._size, self._seed = size, seed

    def __call__(self, step: int) -> list[tuple[int, int]]:
        """Return number of sequence and row of what step number `step` takes."""
        if self._size == 0:
            return []
        epochs, places = np.divmod(step * self._size + np.arange(self._size), len(self._start))
        drawn = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            order = _permutation(len(self._start), (*self._seed, epoch))
            drawn[epochs == epoch] = order[places[epochs == epoch]]
        return list(zip(self._which[drawn].tolist(), self._start[drawn].tolist(), strict=True))


@lru_cache(maxsize=8)  # an epoch's is needed at each of its steps
def _permutation(count: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(count)


def _all_window_starts(
    sequences: list[Sequence], stride: int, *, kind: str
) -> list[NDArray[np.int64]]:
    starts = [_window_starts(sequence.frame_ids, stride) for sequence in sequences]
    if starts and not any(map(len, starts)):
        raise InputError(
            f"None of the {len(starts)} {kind} training sequences has {WINDOW} consecutive frames: "
            "give longer ones."
        )
    return starts


def _window_starts(frame_ids: NDArray[np.int64], stride: int) -> NDArray[np.int64]:
    """Find the rows where windows begin, every `stride` frames of each run without a hole."""
    holes = (np.flatnonzero(np.diff(frame_ids) != 1) + 1).tolist()
    runs = zip([0, *holes], [*holes, len(frame_ids)], strict=True)
    return np.concatenate([np.arange(first, end - WINDOW + 1, stride) for first, end in runs])


def _common_joint_set(sequences: list[Sequence]) -> str:
    named = {s.joint_set: s.name for s in sequences if s.joint_set != "none"}
    if len(named) > 1:
        (one, name), (other, other_name), *_ = named.items()
        raise InputError(
            f"The training sequences {name} and {other_name} have the joint sets {one} and "
            f"{other}: train on one of them."
        )
    return next(iter(named), "smpl24")
