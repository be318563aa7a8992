from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.precision import rounded, rounded_model
from mpsnet_cli.weights import load_model


def test_rounding_by_hand_rounds_weights_and_what_is_written(untrained: Path) -> None:
    exact = load_model(untrained, device="cpu", precision="fp32")
    low = rounded_model(untrained)
    backbone = low.network.backbone
    convolutions = [
        module
        for layer in (backbone.layer2, backbone.layer3, backbone.layer4)
        for module in layer.modules()
        if isinstance(module, nn.Conv2d)
    ]
    assert len(convolutions) == 3 * (4 + 6 + 3) + 3
    for conv in convolutions:
        assert conv.bias is not None
        assert torch.equal(conv.weight, rounded(conv.weight))
        assert torch.equal(conv.bias, rounded(conv.bias))

    second, third = [], []
    backbone.layer2.register_forward_hook(lambda *passed: second.append(passed[2]))
    backbone.layer3[0].conv2.register_forward_hook(lambda *passed: third.append(passed[2]))
    size = exact.config.crop_size
    crops = np.random.default_rng(0).integers(0, 255, (2, size, size, 3), dtype=np.uint8)
    features = low.features(crops)
    for written in (*second, *third):
        assert torch.equal(written, rounded(written))
    shift = (features - exact.features(crops)).norm() / features.norm()
    assert 0 < shift < 0.05
