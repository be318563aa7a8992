"""Random weights: what stands in for trained ones when the pipeline itself is to be shown."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.mpsnet import MPSNet

RESIDUAL_GAIN = 0.5  # scale of each residual branch: keeps features near one after 16 of them
HEAD_GAIN = 0.01  # of the regressor's outputs: a body that hardly leaves its initial pose
ARM_LOWERING = 1.2  # rad, from the T-pose
LEFT_SHOULDER, RIGHT_SHOULDER = 16, 17  # SMPL joints


def untrained_network(seed: int, config: MPSNetConfig | None = None) -> MPSNet:
    """Return a network whose output is a person who stands, faces the camera and trembles.

    Weights are He-normal, drawn from `seed` in the order of the state dict. The backbone's filters
    sum to zero, so that features answer to differences in a picture and not to means, which would
    drown them.
    """
    rng = np.random.default_rng(seed)
    with torch.device("meta"):
        network = MPSNet(config or MPSNetConfig())
    state = {name: _drawn(name, t.shape, rng) for name, t in network.state_dict().items()}
    state["regressor.init_pose"] = standing_pose()
    state["regressor.init_cam"] = torch.tensor([0.9, 0.0, 0.0])
    network.load_state_dict(state, assign=True)
    return network


def standing_pose() -> Tensor:
    """Return the 6D pose (144,) of an upright person facing the camera, arms lowered."""
    rotations = np.tile(np.eye(3, dtype=np.float32), (24, 1, 1))
    rotations[0] = np.diag([1, -1, -1])  # SMPL's y up, z to the viewer; the camera's y down, z away
    sin, cos = math.sin(ARM_LOWERING), math.cos(ARM_LOWERING)
    rotations[LEFT_SHOULDER] = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    rotations[RIGHT_SHOULDER] = rotations[LEFT_SHOULDER].T
    return torch.from_numpy(rotations[:, :, :2].reshape(-1))


def _drawn(name: str, shape: torch.Size, rng: np.random.Generator) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) == 1:  # biases, batch norms' scales and statistics, initial values
        if name.endswith("bn3.weight"):
            return torch.full(shape, RESIDUAL_GAIN)
        one = name.endswith(("bn1.weight", "bn2.weight", "downsample.1.weight", "running_var"))
        return torch.full(shape, float(one))
    fan_in = math.prod(shape[1:])
    weight = rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(fan_in))
    module, part, *_ = name.split(".")
    if module == "backbone":
        weight *= np.float32(math.sqrt(2))  # He et al., ICCV 2015: half the inputs are zero
    if module == "regressor" and part in {"pose", "betas", "cam"}:
        weight *= np.float32(HEAD_GAIN)
    if module == "backbone" or part == "fc1":
        weight -= weight.mean(axis=tuple(range(1, len(shape))), keepdims=True)
    return torch.from_numpy(weight)
