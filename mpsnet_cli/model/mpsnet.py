"""MPS-Net: temporal-attentive 3D human pose and shape estimation from monocular video.

Wei, Lin, Liu and Liao, "Capturing Humans in Motion", CVPR 2022, https://arxiv.org/abs/2203.08534.
Sections, equations and figures named here are the paper's; modules stand in its order:
static features X (§4) → MoCA → Z (§3.1) → HAFI → z_t (§3.2) → regressor → 85 SMPL parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from mpsnet_cli.model.backbone import Backbone
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.regressor import Prediction, Regressor
from mpsnet_cli.windows import TARGET

__all__ = ["HAFI", "MPSNet", "MPSNetConfig", "MoCA", "Prediction", "TemporalEncoder"]

REDUCTION = 2  # m, below Eq. (1)
RESIZED_DIM = 256  # of a frame inside HAFI's attention, §3.2


class MoCA(nn.Module):
    """Motion continuity attention (§3.1, Figure 4).

    Projections are linear layers: on a (T, 2048) sequence that is what the paper's 1x1
    convolutions are. None has a bias.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        reduced_dim = feature_dim // REDUCTION
        self.g = nn.Linear(feature_dim, reduced_dim, bias=False)
        self.phi = nn.Linear(feature_dim, reduced_dim, bias=False)
        self.theta = nn.Linear(feature_dim, reduced_dim, bias=False)
        self.rho = nn.Conv2d(2, 1, kernel_size=1, bias=False)
        self.w_z = nn.Linear(reduced_dim, feature_dim, bias=False)

    def forward(self, x: Tensor, *, release_batching: bool = False) -> Tensor:
        """Return Z (B, T, 2048) for the static features X (B, T, 2048).

        `release_batching` pairs the maps as the official release does, which stacks them along the
        batch: window n gets maps 2n and 2n + 1 of [all NSSMs, all attention maps], so that a result
        depends on its batch. For comparing with the release only.
        """
        nssm = softmax(x @ x.mT, dim=-1)  # f(X, X), normalised (B, T, T)
        attention = softmax(self.theta(x) @ self.phi(x).mT, dim=-1)  # Eq. (3)-(5), normalised
        if release_batching:
            maps = torch.cat([nssm, attention]).unflatten(0, (-1, 2))  # (B, 2, T, T)
        else:
            maps = torch.stack([nssm, attention], dim=1)  # [·, ·] of Eq. (1): (B, 2, T, T)
        moca_map = softmax(self.rho(maps).squeeze(1), dim=-1)  # (B, T, T)
        y = moca_map @ self.g(x)  # Eq. (1), (2): (B, T, 1024)
        return self.w_z(y) + x  # Eq. (6)


class HAFI(nn.Module):
    """Hierarchical attentive feature integration (§3.2, Figure 5).

    The three branches and the layer above them share one attention.
    """

    def __init__(self, feature_dim: int, groups: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.groups = [[TARGET + offset for offset in group] for group in groups]
        self.resize = nn.Linear(feature_dim, RESIZED_DIM)
        self.attention = nn.Sequential(
            nn.Linear(3 * RESIZED_DIM, RESIZED_DIM),
            nn.Tanh(),
            nn.Linear(RESIZED_DIM, RESIZED_DIM),
            nn.Tanh(),
            nn.Linear(RESIZED_DIM, 3),
            nn.Tanh(),
        )

    def integrate(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse three features (B, 3, 2048) into one (B, 2048); also return attention (B, 3)."""
        concatenated = self.resize(z).flatten(1)  # (B, 768)
        a = softmax(self.attention(concatenated), dim=-1)
        return (a.unsqueeze(-1) * z).sum(dim=1), a

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target frame's refined feature z_t (B, 2048) for the sequence Z (B, T, 2048).

        Also returns the upper layer's attention (B, 3) over past, current and future.
        """
        branches = [self.integrate(z[:, group])[0] for group in self.groups]
        return self.integrate(torch.stack(branches, dim=1))


class TemporalEncoder(nn.Module):
    """MoCA, then HAFI: what the static features of a window say of its target frame."""

    def __init__(self, config: MPSNetConfig) -> None:
        super().__init__()
        self.moca = MoCA(config.feature_dim)
        self.hafi = HAFI(config.feature_dim, config.groups)

    def forward(self, x: Tensor, *, release_batching: bool = False) -> tuple[Tensor, Tensor]:
        """Encode windows X (B, T, 2048) to refined features (B, 2048) and attention (B, 3)."""
        return self.hafi(self.moca(x, release_batching=release_batching))


class MPSNet(nn.Module):
    """The whole network (Figure 3).

    `backbone` runs once per crop, on normalised images. The call itself starts from its features,
    since up to 16 windows share each of them.
    """

    def __init__(self, config: MPSNetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone()
        self.encoder = TemporalEncoder(config)
        self.regressor = Regressor(config.feature_dim, config.iterations)

    def forward(self, x: Tensor) -> Prediction:
        """Predict the target frames of windows of static features (B, T, 2048)."""
        refined, _ = self.encoder(x)
        return self.regressor(refined)
