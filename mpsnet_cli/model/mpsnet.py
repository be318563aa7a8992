"""MPS-Net: temporal-attentive 3D human pose and shape estimation from monocular video.

Wei, Lin, Liu and Liao, "Capturing Humans in Motion", CVPR 2022, https://arxiv.org/abs/2203.08534.
Sections, equations and figures named here are the paper's; modules stand in its order:
static features X (§4) → MoCA → Z (§3.1) → HAFI → z_t (§3.2) → regressor → 85 SMPL parameters.
Table 3's alternatives to MoCA and HAFI take their places, and their names in the weight files.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from mpsnet_cli.model.backbone import Backbone
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.regressor import Prediction, Regressor
from mpsnet_cli.windows import TARGET

__all__ = [
    "HAFI",
    "MPSNet",
    "MPSNetConfig",
    "Maps",
    "MoCA",
    "Prediction",
    "TemporalEncoder",
    "TemporalIntegration",
]

REDUCTION = 2  # m, below Eq. (1)
RESIZED_DIM = 256  # of a frame inside the integration's attention, §3.2
WINDOWS_AT_ONCE = 64  # in inference, 24 MiB of their frames' projections


class Projections(NamedTuple):
    """All that attention needs of frames (…, T): what is computed of each by itself."""

    x: Tensor  # (…, T, 2048) static features
    theta: Tensor  # (…, T, 1024)
    phi: Tensor  # (…, T, 1024)
    context: Tensor  # (…, T, 2048) W_z of g: what a frame tells the others


class Maps(NamedTuple):
    """Which frames (columns) each frame of a window (rows) attends to: (B, T, T), rows sum to 1."""

    nssm: Tensor  # normalised self-similarity of the static features
    attention: Tensor  # of the non-local operation
    moca: Tensor  # what the two become; the attention map itself in a plain non-local block


class MoCA(nn.Module):
    """Motion continuity attention (§3.1, Figure 4).

    `prior=False` leaves out the NSSM and ρ. What remains is the non-local block that MoCA extends
    (Wang et al., CVPR 2018, with dot products normalised by softmax), Table 3's baseline.
    Projections are linear layers: on a (T, 2048) sequence that is what the paper's 1x1
    convolutions are. None has a bias.
    """

    def __init__(self, feature_dim: int, *, prior: bool = True) -> None:
        super().__init__()
        reduced_dim = feature_dim // REDUCTION
        self.g = nn.Linear(feature_dim, reduced_dim, bias=False)
        self.phi = nn.Linear(feature_dim, reduced_dim, bias=False)
        self.theta = nn.Linear(feature_dim, reduced_dim, bias=False)
        self.rho = nn.Conv2d(2, 1, kernel_size=1, bias=False) if prior else None
        self.w_z = nn.Linear(reduced_dim, feature_dim, bias=False)

    def project(self, x: Tensor) -> Projections:
        """Do what needs no other frame: Eq. (2)-(4) of static features (…, 2048).

        Y W_z of Eq. (6), which is (map · g(X)) W_z, is computed as map · (g(X) W_z), so that
        windows that share a frame can share all of this.
        """
        return Projections(x, self.theta(x), self.phi(x), self.w_z(self.g(x)))

    def maps(self, frames: Projections, *, release_batching: bool = False) -> Maps:
        """Relate the frames of windows (B, T) to each other; see `forward` for the argument."""
        nssm = softmax(frames.x @ frames.x.mT, dim=-1)  # f(X, X), normalised
        attention = softmax(frames.theta @ frames.phi.mT, dim=-1)  # Eq. (5), normalised
        if self.rho is None:
            return Maps(nssm, attention, attention)
        if release_batching:
            pairs = torch.cat([nssm, attention]).unflatten(0, (-1, 2))  # (B, 2, T, T)
        else:
            pairs = torch.stack([nssm, attention], dim=1)  # [·, ·] of Eq. (1): (B, 2, T, T)
        return Maps(nssm, attention, softmax(self.rho(pairs).squeeze(1), dim=-1))

    def attend(self, frames: Projections, *, release_batching: bool = False) -> Tensor:
        """Return Z (B, T, 2048) for the projected frames of windows; see `forward`."""
        moca = self.maps(frames, release_batching=release_batching).moca
        return moca @ frames.context + frames.x  # Eq. (1), (6)

    def forward(self, x: Tensor, *, release_batching: bool = False) -> Tensor:
        """Return Z (B, T, 2048) for the static features X (B, T, 2048).

        `release_batching` pairs the maps as the official release does, which stacks them along the
        batch: window n gets maps 2n and 2n + 1 of [all NSSMs, all attention maps], so that a result
        depends on its batch. For comparing with the release only.
        """
        return self.attend(self.project(x), release_batching=release_batching)


class TemporalIntegration(nn.Module):
    """Integration of past, current and future in one step, Table 3's "TF-intgr.".

    The scheme of TCMR (Choi et al., CVPR 2021): each of three features is resized by a shared
    layer, an attention over all three weighs them, their sum is z_t. TCMR takes the three from
    recurrent encoders of the past frames, all frames and the future frames. The paper does not say
    what it gave to the scheme in their place; our reading, in which nothing is recurrent, is: the
    mean of Z before the target, z_t itself, and the mean of Z after it. So it has HAFI's parameters
    one by one, and differs from it in the hierarchy alone.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
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

    def branches(self, z: Tensor) -> list[Tensor]:
        """Return past, current and future, each (B, 2048), of the sequence Z (B, T, 2048)."""
        return [z[:, :TARGET].mean(dim=1), z[:, TARGET], z[:, TARGET + 1 :].mean(dim=1)]

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target frame's refined feature z_t (B, 2048) for the sequence Z (B, T, 2048).

        Also returns the attention (B, 3) over past, current and future.
        """
        return self.integrate(torch.stack(self.branches(z), dim=1))


class HAFI(TemporalIntegration):
    """Hierarchical attentive feature integration (§3.2, Figure 5).

    Each branch integrates three neighbouring frames first. The branches and the layer above them
    share one attention.
    """

    def __init__(self, feature_dim: int, groups: tuple[tuple[int, ...], ...]) -> None:
        super().__init__(feature_dim)
        self.groups = [[TARGET + offset for offset in group] for group in groups]

    def branches(self, z: Tensor) -> list[Tensor]:
        """Return past, current and future, each (B, 2048), of the sequence Z (B, T, 2048)."""
        return [self.integrate(z[:, group])[0] for group in self.groups]


class NoIntegration(nn.Module):
    """The target frame's own feature, as in Table 3's "only" rows."""

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_t (B, 2048) as it is, and all attention (B, 1) on it."""
        return z[:, TARGET], z.new_ones(len(z), 1)


class TemporalEncoder(nn.Module):
    """MoCA, then HAFI: what the static features of a window say of its target frame.

    `moca(x)` alone gives the sequence Z (B, T, 2048), and `hafi(z)` goes on from there. `config`
    may choose other attention and integration.
    """

    def __init__(self, config: MPSNetConfig) -> None:
        super().__init__()
        self.moca = MoCA(config.feature_dim, prior=config.attention == "moca")
        self.hafi = _integration(config)

    def forward(self, x: Tensor, *, release_batching: bool = False) -> tuple[Tensor, Tensor]:
        """Encode windows X (B, T, 2048) to refined features (B, 2048) and attention (B, 3)."""
        return self.hafi(self.moca(x, release_batching=release_batching))


def _integration(config: MPSNetConfig) -> nn.Module:
    if config.integration == "none":
        return NoIntegration()
    if config.integration == "tcmr":
        return TemporalIntegration(config.feature_dim)
    return HAFI(config.feature_dim, config.groups)


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

    def predict_windows(self, features: Tensor, windows: Tensor) -> Prediction:
        """Predict as the call does for `features[windows]`, at a fraction of the work.

        `features` (N, 2048) are static features and `windows` (B, T) int64 rows of them: each row
        is projected once, however many of the windows it is in.
        """
        moca, hafi = self.encoder.moca, self.encoder.hafi
        projected = moca.project(features)
        refined = []
        for rows in windows.split(WINDOWS_AT_ONCE):
            frames = Projections(*(values[rows] for values in projected))
            refined.append(hafi(moca.attend(frames))[0])
        return self.regressor(torch.cat(refined))
