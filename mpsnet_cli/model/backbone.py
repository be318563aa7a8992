"""The static feature extractor: ResNet-50 (He et al., CVPR 2016) up to its pooled features.

Parameter names are torchvision's, which are also those of SPIN (Kolotouros et al., ICCV 2019),
whose weights MPS-Net builds on (paper §4).
"""

from __future__ import annotations

from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck, ResNet

IMAGE_MEAN = (0.485, 0.456, 0.406)  # of ImageNet; RGB in [0, 1]
IMAGE_STD = (0.229, 0.224, 0.225)


class Backbone(ResNet):
    """ResNet-50 without its classifier."""

    def __init__(self) -> None:
        super().__init__(Bottleneck, [3, 4, 6, 3])
        del self.fc, self.avgpool

    def forward(self, images: Tensor) -> Tensor:
        """Return float32 features (N, 2048) of normalised RGB images (N, 3, H, W)."""
        return self.upper(self.lower(images)[1])

    def lower(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what layer2 says, (N, 512, H / 8, W / 8), and layer3, half as wide."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        second = self.layer2(self.layer1(x))
        return second, self.layer3(second)

    def upper(self, third: Tensor) -> Tensor:
        """Return the features (N, 2048) of what layer3 says."""
        return self.layer4(third).float().mean(dim=(2, 3))  # whatever the precision before


def fold_batch_norm(backbone: Backbone) -> None:
    """Merge each batch norm of a backbone in eval mode into the convolution before it, in place."""
    for module in list(backbone.modules()):
        children = dict(module.named_children())
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
            if isinstance(children.get(norm), nn.BatchNorm2d):
                module.set_submodule(conv, fuse_conv_bn_eval(children[conv], children[norm]))
                module.set_submodule(norm, nn.Identity())


@torch.no_grad()
def settle_biases(backbone: Backbone, dtype: torch.dtype) -> None:
    """Rescale the channels within the bottlenecks until `dtype` holds their biases exactly.

    In place, on a folded backbone; in float32 it computes what it did. ReLU lets a positive factor
    through, and the next convolution takes it out again. What a projection's bias is rounded by,
    the convolution that it is added to makes up for. Where the errors of rounded weights vary with
    the picture, that of a bias is the same at every pixel, so that nothing averages it out.
    """
    for block in (module for module in backbone.modules() if isinstance(module, Bottleneck)):
        for conv, following in ((block.conv1, block.conv2), (block.conv2, block.conv3)):
            exact = conv.bias.to(dtype).float()
            factor = torch.where(exact == 0, 1, exact / conv.bias)
            conv.weight *= factor[:, None, None, None]
            conv.bias *= factor
            following.weight /= factor[:, None, None]
        if block.downsample is not None:
            projection = block.downsample[0]
            exact = projection.bias.to(dtype).float()
            block.conv3.bias += projection.bias - exact
            projection.bias.copy_(exact)


def fuse_for_cpu(backbone: Backbone) -> None:
    """Let each convolution of a folded backbone add its shortcut and its ReLU as it writes.

    In place, where torch has the operators; elsewhere nothing changes. Results are the same but for
    rounding.
    """
    if not can_fuse():
        return
    backbone.conv1, backbone.relu = FusedConv(backbone.conv1, "relu"), nn.Identity()
    for layer in (backbone.layer1, backbone.layer2, backbone.layer3, backbone.layer4):
        for number, block in enumerate(layer):
            layer[number] = _FusedBottleneck(cast("Bottleneck", block))


def round_from_layer2(backbone: Backbone, dtype: torch.dtype) -> None:
    """Let a backbone compute in `dtype` from layer2 on, in place; images come in float32.

    What the stem and layer1 round matters most, and they are a fifth of the work.
    """
    for layer in (backbone.layer2, backbone.layer3, backbone.layer4):
        layer.to(dtype)
    backbone.layer1.append(_Rounding(dtype))


class _Rounding(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def can_round_to_bf16() -> bool:
    """Whether oneDNN convolves in bfloat16 on this CPU.

    Where it does not, its fused operators refuse, and torch's own code takes ten times as long as
    in float32.
    """
    return torch.backends.mkldnn.is_available() and bool(
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def can_fuse() -> bool:
    """Whether torch has oneDNN's fused operators.

    torch.compile would use them too, but only with a compiler at hand.
    """
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_convolution_pointwise_"
    )


class FusedConv(nn.Module):
    """A convolution on the CPU that applies what follows it, relu or swish (SiLU), as it writes."""

    def __init__(self, conv: nn.Conv2d, activation: Literal["relu", "swish"]) -> None:
        super().__init__()
        self.conv = conv
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            x, *_arguments(self.conv), self.activation, [], ""
        )


class _FusedBottleneck(nn.Module):
    """A torchvision Bottleneck, its batch norms folded; it overwrites its input."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1, self.conv2 = (FusedConv(c, "relu") for c in (block.conv1, block.conv2))
        self.conv3, self.downsample = block.conv3, block.downsample

    def forward(self, x: Tensor) -> Tensor:
        branch = self.conv2(self.conv1(x))
        shortcut = x if self.downsample is None else self.downsample(x)
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            shortcut, branch, *_arguments(self.conv3), "add", 1.0, "relu", [], ""
        )


def _arguments(conv: nn.Conv2d) -> tuple[object, ...]:
    return conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups
