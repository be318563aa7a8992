"""Weigh bf16: how far it moves the joints of the people in a clip.

    python -m benchmarks.precision CLIP [--boxes FILE] [--weights FILE] [--detector FILE]

People are found once, in float32, and reconstructed unsmoothed in both precisions. On a CPU that
does not compute in bf16 its rounding is done by hand, of the weights, and of what each convolution
writes with its shortcut and ReLU; sums are float32 there, as in oneDNN.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.starter import table
from mpsnet_cli import reconstruct
from mpsnet_cli.cli.reporting import make_reporter
from mpsnet_cli.model.backbone import (
    Backbone,
    can_round_to_bf16,
    fold_batch_norm,
    settle_biases,
)
from mpsnet_cli.model.inference import Model
from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking import locate_people
from mpsnet_cli.video import probe
from mpsnet_cli.weights import find_weights, load_model, load_network, read_info

FAR = 50  # mm


def rounded_model(weights: Path) -> Model:
    """Load a model that computes in float32 what bf16 would, but for the order of the sums."""
    info = read_info(weights)
    network = load_network(info).eval()
    fold_batch_norm(network.backbone)
    settle_biases(network.backbone, torch.bfloat16)
    model = Model(network, info, device="cpu", precision="fp32", report=Reporter())
    round_by_hand(model.network.backbone)
    return model


@torch.no_grad()
def round_by_hand(backbone: Backbone) -> None:
    """Let a fused backbone round from layer2 on, as `round_from_layer2` would make it, in place."""
    backbone.layer1.register_forward_hook(round_output)
    for layer in (backbone.layer2, backbone.layer3, backbone.layer4):
        for module in layer.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(rounded(module.weight))
                assert module.bias is not None  # a batch norm's
                module.bias.copy_(rounded(module.bias))
        for block in layer:
            for part in (block.conv1, block.conv2, block.downsample, block):
                if part is not None:
                    part.register_forward_hook(round_output)


def round_output(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Round what a module returns, as a hook of its forward pass."""
    return rounded(output)


def rounded(values: Tensor) -> Tensor:
    """Round to what bf16 holds."""
    return values.to(torch.bfloat16).to(values.dtype)


def main() -> None:
    """Print the table."""
    assert __doc__ is not None
    lines = __doc__.splitlines()
    parser = argparse.ArgumentParser("python -m benchmarks.precision", description=lines[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--boxes")
    parser.add_argument("--weights")
    parser.add_argument("--detector")
    asked = parser.parse_args()
    report = make_reporter(None)
    video = probe(asked.clip)
    exact = load_model(asked.weights, device="cpu", precision="fp32", report=report)
    by_hand = not can_round_to_bf16()
    low = (
        rounded_model(find_weights(asked.weights))
        if by_hand
        else load_model(asked.weights, device="cpu", precision="bf16", report=report)
    )
    tracks = locate_people(
        video,
        boxes=asked.boxes,
        detector=asked.detector,
        device=exact.device,
        precision="fp32",
        report=report,
    )
    both = (
        reconstruct(video, model, tracks=tracks, smooth=0, report=report) for model in (exact, low)
    )
    shift = 1000 * np.concatenate([
        np.linalg.norm(ours.joints3d - theirs.joints3d, axis=-1)
        for ours, theirs in zip(*both, strict=True)
    ])  # fmt: skip
    furthest = shift.max(axis=1)
    row = (
        f"{video.path.name}, {exact.weights.name}", f"{len(shift)}", f"{shift.mean():.2f} mm",
        f"{np.median(shift):.2f} mm", f"{shift.mean(axis=0).max():.2f} mm",
        f"{(furthest > FAR).sum()}; {furthest.max():.0f} mm at most",
    )  # fmt: skip
    print(f"bf16 {'rounded by hand' if by_hand else 'as this CPU computes it'}, against fp32:\n")
    columns = ("clip, weights", "frames", "mean", "median", "worst joint's mean",
               f"frames over {FAR} mm")  # fmt: skip
    print(table(columns, [row]))


if __name__ == "__main__":
    main()
