"""The SMPL parameter regressor: iterative error feedback (HMR, Kanazawa et al., CVPR 2018; SPIN).

Its 85 parameters are camera 3, pose 72 and betas 10 (paper §3.2); inside, each of the 24 rotations
is 6D (Zhou et al., CVPR 2019), as in SPIN.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

JOINTS = 24
POSE_DIM = 6 * JOINTS
BETAS_DIM = 10
CAM_DIM = 3
HIDDEN_DIM = 1024
DROPOUT = 0.5  # in training only


class Prediction(NamedTuple):
    """What the network says of B target frames.

    rotmats: (B, 24, 3, 3) rotations in SMPL's joint order, the root's in the camera frame
    betas: (B, 10) shape coefficients
    cam: (B, 3) weak-perspective scale and translation s, tx, ty in the crop's [-1, 1]²
    """

    rotmats: Tensor
    betas: Tensor
    cam: Tensor


class Regressor(nn.Module):
    """Start at the mean parameters and correct all of them `iterations` times."""

    init_pose: Tensor
    init_betas: Tensor
    init_cam: Tensor

    def __init__(self, feature_dim: int, iterations: int) -> None:
        super().__init__()
        self.iterations = iterations
        self.fc1 = nn.Linear(feature_dim + POSE_DIM + BETAS_DIM + CAM_DIM, HIDDEN_DIM)
        self.fc2 = nn.Linear(HIDDEN_DIM, HIDDEN_DIM)
        self.dropout = nn.Dropout(DROPOUT)
        self.pose = nn.Linear(HIDDEN_DIM, POSE_DIM)
        self.betas = nn.Linear(HIDDEN_DIM, BETAS_DIM)
        self.cam = nn.Linear(HIDDEN_DIM, CAM_DIM)
        self.register_buffer("init_pose", torch.zeros(POSE_DIM))
        self.register_buffer("init_betas", torch.zeros(BETAS_DIM))
        self.register_buffer("init_cam", torch.zeros(CAM_DIM))

    def forward(self, features: Tensor) -> Prediction:
        """Predict from refined features (B, 2048)."""
        count = len(features)
        pose = self.init_pose.expand(count, -1)
        betas = self.init_betas.expand(count, -1)
        cam = self.init_cam.expand(count, -1)
        for _ in range(self.iterations):
            hidden = self.dropout(self.fc1(torch.cat([features, pose, betas, cam], dim=1)))
            hidden = self.dropout(self.fc2(hidden))  # linear on linear: HMR has no activation here
            pose = pose + self.pose(hidden)
            betas = betas + self.betas(hidden)
            cam = cam + self.cam(hidden)
        rotmats = rotation_6d_to_matrix(pose.reshape(count, JOINTS, 6))
        return Prediction(rotmats, betas, cam)


def rotation_6d_to_matrix(rotations: Tensor) -> Tensor:
    """Turn 6D rotations (…, 6) into matrices (…, 3, 3) by Gram-Schmidt (Zhou et al., Eq. (15)).

    The six numbers are a (3, 2) matrix, row by row: the first two columns before they are made
    orthonormal. All zeros give the zero matrix.
    """
    a1, a2 = rotations.unflatten(-1, (3, 2)).unbind(dim=-1)
    b1 = normalize(a1, dim=-1, eps=1e-6)
    b2 = normalize(a2 - (b1 * a2).sum(dim=-1, keepdim=True) * b1, dim=-1, eps=1e-6)
    b3 = torch.linalg.cross(b1, b2)
    return torch.stack([b1, b2, b3], dim=-1)
