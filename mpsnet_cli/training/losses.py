"""The losses of §3.3, as pure functions of tensors.

They are those of VIBE (Kocabas et al., CVPR 2020), which the paper follows: L2 on 2D joints, 3D
joints, pose and betas of the target frame, and a least-squares adversarial loss (Mao et al., ICCV
2017) on the motion. Call them outside autocast: their sums are wanted in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mpsnet_cli.body.joint_sets import COMMON14_ROWS, HIPS
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.training.data import Batch

FOCAL_LENGTH = 5000 / (224 / 2)  # of HMR, 5000 px for a crop of 224 px, in half crops

# By joint set, what the 3D loss compares: all of it, but of spin49 only what is common14 too.
COMPARED = {"smpl24": slice(0, 24), "common14": slice(0, 14), "spin49": slice(25, 39)}


class LossWeights(NamedTuple):
    """What each loss is multiplied by; the values are the official release's."""

    joints2d: float = 300.0
    joints3d: float = 300.0
    pose: float = 60.0
    betas: float = 0.06
    adversarial: float = 0.5


class Losses(NamedTuple):
    """The weighted losses of one batch, each a scalar; `sum` of them is what training minimises."""

    joints2d: Tensor
    joints3d: Tensor
    pose: Tensor
    betas: Tensor
    adversarial: Tensor


def network_losses(
    prediction: Prediction,
    joints: Tensor,
    fake_scores: Tensor,
    batch: Batch,
    *,
    joint_set: str,
    weights: LossWeights,
) -> Losses:
    """Weigh what a batch says of the network.

    `joints` (B, J, 3), m, are the predicted body's, of `joint_set` and in the camera frame without
    translation; `fake_scores` (N,) is what the discriminator says of the predicted motions.
    """
    unweighted = (
        joints2d_loss(project_to_crop(joints, prediction.cam), batch.joints2d),
        joints3d_loss(joints, batch.joints3d, batch.has_joints3d, joint_set=joint_set),
        mean_square(prediction.rotmats - batch.rotmats, batch.has_smpl),
        mean_square(prediction.betas - batch.betas, batch.has_smpl),
        adversarial_loss(fake_scores),
    )
    return Losses(*(loss * weight for loss, weight in zip(unweighted, weights, strict=True)))


def project_to_crop(joints: Tensor, cam: Tensor) -> Tensor:
    """Project joints (B, J, 3), m, by weak-perspective cameras (B, 3) into the crop's [-1, 1]².

    As in HMR (Kanazawa et al., CVPR 2018) and all that followed, the body stands at the depth f / s
    in front of a camera of long focal length f, so that the image is s (x + tx) / (1 + s z / f):
    nearly, not wholly, s (x + tx).
    """
    s, xy = cam[:, None, :1], cam[:, None, 1:]
    return s * (joints[..., :2] + xy) / (1 + s * joints[..., 2:] / FOCAL_LENGTH)


def joints2d_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Return the mean square distance of joints (B, J, 2) to `target` (B, J, 3): x, y, confidence.

    Squares are multiplied by the confidence; joints of confidence zero count in the mean.
    """
    return (target[..., 2:] * (predicted - target[..., :2]) ** 2).mean()


def joints3d_loss(predicted: Tensor, target: Tensor, known: Tensor, *, joint_set: str) -> Tensor:
    """Return the mean square distance of joints (B, J, 3), m, both from the midpoint of the hips.

    Only rows that are `known` (B,) count, and of spin49 only common14.
    """
    difference = predicted - target
    right, left = (COMMON14_ROWS[joint_set][hip] for hip in HIPS)
    root = (difference[:, right] + difference[:, left]) / 2
    return mean_square(difference[:, COMPARED[joint_set]] - root[:, None], known)


def mean_square(difference: Tensor, known: Tensor) -> Tensor:
    """Return the mean of the squares of `difference` (B, …) over the `known` (B,) rows.

    It is 0 where no row is known. Nothing waits for the device here.
    """
    squares = difference.flatten(1).square().mean(dim=1)
    return torch.where(known, squares, 0).sum() / known.sum().clamp(min=1)


def adversarial_loss(fake_scores: Tensor) -> Tensor:
    """Return how far the scores (N,) of predicted motions are from 1, a real motion's."""
    return (fake_scores - 1).square().mean()


def discriminator_loss(real_scores: Tensor, fake_scores: Tensor, *, weight: float) -> Tensor:
    """Return how far scores of real motions are from 1 and of predicted ones from 0, weighted."""
    return weight * ((real_scores - 1).square().mean() + fake_scores.square().mean())
