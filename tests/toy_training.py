"""A training run small enough for the tests: features of 32 numbers, few people, few steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from benchmarks.ablation import synthetic_sequences
from mpsnet_cli.body import load_body
from mpsnet_cli.datasets import save_sequences
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.untrained import untrained_network
from mpsnet_cli.training.config import Data, Network, Schedule, TrainConfig
from mpsnet_cli.weights import save_network

WIDTH = 32


class TinyBackbone(nn.Linear):
    """Stands in for the backbone, which training only copies."""

    def __init__(self) -> None:
        super().__init__(3, 3)


def make_small(patch: pytest.MonkeyPatch, *, backbone: bool = False) -> None:
    """Leave little to compute and save.

    With `backbone` the network is one that the tool can load again: only its features are few.
    """
    patch.setattr("mpsnet_cli.training.discriminator.HIDDEN_DIM", 32)
    if not backbone:
        patch.setattr("mpsnet_cli.model.mpsnet.Backbone", TinyBackbone)
        patch.setattr("mpsnet_cli.model.regressor.HIDDEN_DIM", 128)


def toy_config(folder: Path) -> TrainConfig:
    """Write sequences and weights to a folder, and return a config that names them."""
    body = load_body("free-1")
    for name, split in (("train", "train"), ("validation", "held-out")):
        sequences = synthetic_sequences(3, body, split=split, frames=20, width=WIDTH)
        save_sequences(folder / f"{name}.npz", sequences)
    start = folder / "start.safetensors"
    save_network(
        untrained_network(0, MPSNetConfig(feature_dim=WIDTH)), start, name="start", trained=True,
        licence="CC0-1.0", sources={}, note="", overwrite=True,
    )  # fmt: skip
    return TrainConfig(
        data=Data((folder / "train.npz",), (folder / "validation.npz",), stride=2),
        network=Network(start),
        schedule=Schedule(epochs=2, steps_per_epoch=4, batch_size=4, learning_rate=1e-3),
        device="cpu",
        checkpoint_every=3,
    )
