"""A table of the network: what each module puts out, and how many parameters it has."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.mpsnet import MPSNet


class Row(NamedTuple):
    """One module: its dotted name, class, output shape for one crop or window, parameters."""

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int


def summarize(config: MPSNetConfig, *, depth: int) -> list[Row]:
    """Describe every module down to `depth` dots, in the order of definition; no data is needed."""
    with torch.device("meta"):
        network = MPSNet(config).eval()
        outputs: dict[str, tuple[int, ...]] = {}
        for name, module in network.named_modules():
            module.register_forward_hook(partial(_note_shape, outputs, name))
        network.backbone(torch.empty(1, 3, config.crop_size, config.crop_size))
        network(torch.empty(1, config.window, config.feature_dim))
    return [
        Row(name, type(module).__name__, outputs.get(name, ()), count_parameters(module))
        for name, module in network.named_modules()
        if name and name.count(".") < depth
    ]


def count_parameters(module: nn.Module) -> int:
    """Count the trainable numbers of a module and all inside it; buffers are none."""
    return sum(parameter.numel() for parameter in module.parameters())


def _note_shape(
    outputs: dict[str, tuple[int, ...]], name: str, _module: nn.Module, _inputs: Any, output: Any
) -> None:
    first = output if isinstance(output, Tensor) else output[0]
    outputs[name] = tuple(first.shape)
