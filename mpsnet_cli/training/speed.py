"""What to learn in, and how fast that is beside what the chip can do."""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mpsnet_cli.model.inference import DTYPES, Precision, resolve_precision

SIDES = {"cpu": 2048, "cuda": 8192, "mps": 4096}  # of the matrices
SECONDS = 0.5


def training_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Say what to learn in: for "auto", bf16 on CUDA and on CPUs that are faster in it, else fp32.

    Raises DeviceError for what the device does not compute in.
    """
    if precision == "auto" and device.type == "cuda":
        return torch.bfloat16
    return DTYPES[resolve_precision(precision, device)]


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure what a product of large matrices reaches, FLOP/s."""
    side = SIDES[device.type]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    (a @ b)[0, 0].item()  # the first one sets things up; .item() waits for the device
    best, until = 0.0, time.monotonic() + SECONDS
    while time.monotonic() < until:
        started = time.monotonic()
        (a @ b)[0, 0].item()
        best = max(best, 2 * side**3 / (time.monotonic() - started))
    return best


def training_flops(network: nn.Module, size: int, *, device: torch.device) -> float:
    """Count what a crop of `size` px costs in training, FLOP: its convolutions, there and back.

    What is frozen costs the way there. Leaves a gradient behind, and batch norms in training as
    they were.
    """
    learns = network.training
    try:
        network.eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 3, size, size, device=device)).sum().backward()
    finally:
        network.train(learns)
    return counter.get_total_flops()
