"""A network that tells which frames it saw."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.regressor import Prediction


class FakeModel:
    """Its feature is the frame's number (red + 256 green), its betas are its window's features."""

    config = MPSNetConfig(feature_dim=1)
    device = torch.device("cpu")
    dtype = torch.float32
    precision = "fp32"
    weights = SimpleNamespace(name="fake", trained=True, path=Path("fake"), sha256="0")

    def __init__(self) -> None:
        self.most_features = 0

    def features(self, crops: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(crops[:, 112, 112].astype(np.float32) @ [1, 256, 0])[
            :, None
        ].float()

    def predict(self, features: Tensor, windows: NDArray[np.int64]) -> Prediction:
        self.most_features = max(self.most_features, len(features))
        count = len(windows)
        numbers = features[torch.from_numpy(windows), 0]
        cam = torch.tensor([[0.9, 0.0, 0.0]]).repeat(count, 1)
        upright = torch.diag(torch.tensor([1.0, -1, -1])).repeat(count, 24, 1, 1)
        return Prediction(upright, numbers[:, 3:13], cam)
