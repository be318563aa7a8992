"""The static feature extractor: ResNet-50 (He et al., CVPR 2016) up to its pooled features.

Parameter names are torchvision's, which are also those of SPIN (Kolotouros et al., ICCV 2019),
whose weights MPS-Net builds on (paper §4).
"""

from __future__ import annotations

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
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.float().mean(dim=(2, 3))  # pooled in float32 whatever the precision before


def fold_batch_norm(backbone: Backbone) -> None:
    """Merge each batch norm of a backbone in eval mode into the convolution before it, in place."""
    for module in list(backbone.modules()):
        children = dict(module.named_children())
        for conv, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
            if isinstance(children.get(norm), nn.BatchNorm2d):
                module.set_submodule(conv, fuse_conv_bn_eval(children[conv], children[norm]))
                module.set_submodule(norm, nn.Identity())
