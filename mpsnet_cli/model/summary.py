"""A table of the network: what each module puts out, and what it costs (paper, Table 2)."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.mpsnet import MPSNet


class Row(NamedTuple):
    """One module: its dotted name, class, and what it is for one crop or one window by itself.

    output: shape
    parameters: trainable numbers of it and all inside it
    multiply_adds: of convolutions and matrix products; FLOPs are twice as many
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int


class Cost(NamedTuple):
    """What Table 2 says of a network."""

    parameters: float
    multiply_adds: float  # for one crop and one window; the paper calls them FLOPs
    file_bytes: float


PAPER_COST = Cost(39.63e6, 4.45e9, 331e6)
PAPER_NOTE = (
    "The paper counts more than inference needs: its parameters are this network's and those of "
    "SPIN's own regressor (3.47 M), its FLOPs are multiply-adds, of which the release spends "
    "another 0.17 G on the regressor for all 16 frames of a window, and the release's file also "
    "holds the discriminator and both optimisers."
)


def summarize(config: MPSNetConfig, *, depth: int) -> list[Row]:
    """Describe every module down to `depth` dots, in the order of definition; no data is needed."""
    outputs: dict[str, tuple[int, ...]] = {}
    flops: Counter[str] = Counter()
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = MPSNet(config).eval()

        def observe(name: str, module: nn.Module) -> None:
            def before(*_: Any) -> None:
                flops[name] -= counter.get_total_flops()

            def after(_module: nn.Module, _inputs: Any, output: Any) -> None:
                flops[name] += counter.get_total_flops()
                first = output if isinstance(output, Tensor) else output[0]
                outputs[name] = tuple(first.shape)

            module.register_forward_pre_hook(before)
            module.register_forward_hook(after)

        for name, module in network.named_modules():
            observe(name, module)
        network.backbone(torch.empty(1, 3, config.crop_size, config.crop_size))
        network(torch.empty(1, config.window, config.feature_dim))
    return [
        Row(
            name,
            type(module).__name__,
            outputs.get(name, ()),
            count_parameters(module),
            flops[name] // 2,
        )
        for name, module in network.named_modules()
        if name and name.count(".") < depth
    ]


def count_parameters(module: nn.Module) -> int:
    """Count the trainable numbers of a module and all inside it; buffers are none."""
    return sum(parameter.numel() for parameter in module.parameters())
