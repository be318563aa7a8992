"""The motion discriminator of VIBE (Kocabas et al., CVPR 2020, §3.3), which the paper uses (§4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softmax

POSE_DIM = 69  # 23 joints in axis-angle: neither the camera nor the root is judged
HIDDEN_DIM = 1024
DROPOUT = 0.2  # in training only
ATTENTION_RANGE = 0.1  # of the initial weights of the pooling, which thus starts nearly uniform
ATTENTION_BIAS = 0.01


class MotionDiscriminator(nn.Module):
    """Two GRU layers over a motion, pooled over time by self-attention, to one score."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(POSE_DIM, HIDDEN_DIM, num_layers=2, batch_first=True)
        self.attention = nn.Sequential(
            nn.Linear(HIDDEN_DIM, HIDDEN_DIM),
            nn.Tanh(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN_DIM, HIDDEN_DIM),
            nn.Tanh(),
            nn.Dropout(DROPOUT),
            nn.Linear(HIDDEN_DIM, 1),
            nn.Tanh(),
            nn.Dropout(DROPOUT),
        )
        self.score = nn.Linear(HIDDEN_DIM, 1)
        for name, parameter in self.attention.named_parameters():
            if name.endswith("weight"):
                nn.init.uniform_(parameter, -ATTENTION_RANGE, ATTENTION_RANGE)
            else:
                nn.init.constant_(parameter, ATTENTION_BIAS)

    def forward(self, motions: Tensor) -> Tensor:
        """Score motions (B, T, 69), axis-angle in rad without the root: (B,), near 1 for real."""
        hidden, _ = self.gru(motions)  # (B, T, 1024)
        attention = softmax(self.attention(hidden), dim=1)  # (B, T, 1)
        return self.score((attention * hidden).sum(dim=1)).squeeze(-1)


def body_pose(rotmats: Tensor) -> Tensor:
    """Turn rotations (…, 24, 3, 3) into what the discriminator judges: axis-angle (…, 69), rad.

    Angles are in [0, π]. Gradients are finite everywhere, at no rotation and at half turns too.
    """
    q = _quaternions(rotmats[..., 1:, :, :])
    w, xyz = q[..., :1], q[..., 1:]
    square = xyz.square().sum(dim=-1, keepdim=True)
    none = square < torch.finfo(q.dtype).eps ** 2
    sine = torch.where(none, 1, square).sqrt()  # of half the angle
    per_sine = torch.where(none, 2, 2 * torch.atan2(sine, w) / sine)
    return (per_sine * xyz).flatten(-2)


def _quaternions(rotmats: Tensor) -> Tensor:
    """Turn rotations (…, 3, 3) into unit quaternions (…, 4), w first and not negative."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (
        row.unbind(dim=-1) for row in rotmats.unbind(dim=-2)
    )
    # Row k is 4 q_k (w, x, y, z): each holds the quaternion, the one of the largest q_k best.
    rows = torch.stack(
        [
            torch.stack([1 + xx + yy + zz, zy - yz, xz - zx, yx - xy], dim=-1),
            torch.stack([zy - yz, 1 + xx - yy - zz, yx + xy, xz + zx], dim=-1),
            torch.stack([xz - zx, yx + xy, 1 - xx + yy - zz, zy + yz], dim=-1),
            torch.stack([yx - xy, xz + zx, zy + yz, 1 - xx - yy + zz], dim=-1),
        ],
        dim=-2,
    )
    largest = rows.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)[..., None, None]
    q = normalize(rows.take_along_dim(largest, dim=-2).squeeze(-2), dim=-1)
    return torch.where(q[..., :1] < 0, -q, q)
