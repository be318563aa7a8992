"""One step of training: what it changes, and how."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mpsnet_cli.body import BodyModel
from mpsnet_cli.body.joint_sets import COMMON14_ROWS, SPIN49_OF_54, SPIN_VERTICES
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.training.config import TrainConfig
from mpsnet_cli.training.data import Batch
from mpsnet_cli.training.discriminator import MotionDiscriminator, body_pose
from mpsnet_cli.training.losses import Losses, discriminator_loss, network_losses
from mpsnet_cli.training.speed import training_dtype

STATE = (
    "encoder", "regressor", "discriminator", "optimiser", "discriminator_optimiser", "plateau",
    "discriminator_plateau", "scaler",
)  # fmt: skip


class Joints:
    """The predicted body's joints of one joint set, differentiable."""

    def __init__(self, body: BodyModel, joint_set: str, extra_regressor: Tensor | None) -> None:
        """Take SPIN's regressor of nine extra joints (9, V), which spin49 alone needs."""
        self.body = body
        self.joint_set = joint_set
        self.extra_regressor = extra_regressor

    def __call__(self, prediction: Prediction) -> Tensor:
        """Return joints (B, J, 3), m, in the camera frame without translation."""
        rotmats, betas, _ = prediction
        vertices, joints = self.body.posed(rotmats, betas, vertices=self.joint_set == "spin49")
        if vertices is not None and self.extra_regressor is not None:
            extra = self.extra_regressor @ vertices
            joints = torch.cat([joints, vertices[:, SPIN_VERTICES], extra], dim=1)
            return joints[:, SPIN49_OF_54]
        return joints[:, COMMON14_ROWS["smpl24"]] if self.joint_set == "common14" else joints


class Learner:
    """The network, the discriminator and their optimisers: all that a step changes.

    What trains is the temporal encoder and the regressor; the backbone stays as it is, on the CPU
    (paper §4). The discriminator judges what the regressor makes of Z frame by frame, beside real
    motions of consecutive frames. (The official release reshapes Z where it should transpose it, so
    that there each "frame" is 128 channels of all frames.)
    """

    def __init__(
        self, network: MPSNet, joints: Joints, config: TrainConfig, *, device: torch.device
    ) -> None:
        """Take `network` over. Draws the discriminator from the config's seed."""
        self.network = network.requires_grad_(False)
        self.encoder = network.encoder.to(device).train().requires_grad_(True)
        self.regressor = network.regressor.to(device).train().requires_grad_(True)
        torch.manual_seed(config.seed)
        self.discriminator = MotionDiscriminator().to(device)
        self.joints = joints
        self.weights = config.losses
        self.seed = config.seed
        self.device = device
        self.dtype = training_dtype(config.precision, device)
        schedule = config.schedule
        parameters = [*self.encoder.parameters(), *self.regressor.parameters()]
        self.optimiser = Adam(parameters, lr=schedule.learning_rate, fused=True)
        self.discriminator_optimiser = Adam(
            self.discriminator.parameters(),
            lr=schedule.discriminator_learning_rate,
            weight_decay=schedule.discriminator_weight_decay,
            fused=True,
        )
        self.plateau, self.discriminator_plateau = (
            ReduceLROnPlateau(optimiser, factor=schedule.factor, patience=schedule.patience)
            for optimiser in (self.optimiser, self.discriminator_optimiser)
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)

    def learn(self, step: int, batch: Batch, real: Tensor | None) -> dict[str, float]:
        """Take one step; return its losses by name, `total` being what the network minimises.

        `real` (B, 16, 69) are motions for the discriminator; without them it is left out. Dropout
        is drawn from the seed and the number of the step, so there is no random state to keep.
        """
        mixed = np.random.SeedSequence((self.seed, step)).generate_state(1, np.uint64)
        torch.manual_seed(int(mixed[0]))
        batch = batch.to(self.device)
        prediction, motions = self._predict(batch.features, with_motions=real is not None)
        fake_scores = prediction.betas.new_ones(1)  # no loss
        if motions is not None:
            self.discriminator.requires_grad_(False)
            fake_scores = self._score(motions)
        losses = network_losses(
            prediction,
            self.joints(prediction),
            fake_scores,
            batch,
            joint_set=self.joints.joint_set,
            weights=self.weights,
        )
        total = torch.stack(losses).sum()
        self._descend(total, self.optimiser)
        judged = torch.zeros_like(total)
        if motions is not None and real is not None:
            self.discriminator.requires_grad_(True)
            real_scores = self._score(real.to(self.device))
            judged = discriminator_loss(
                real_scores, self._score(motions.detach()), weight=self.weights.adversarial
            )
            self._descend(judged, self.discriminator_optimiser)
        self.scaler.update()
        names = ("total", *Losses._fields, "discriminator")
        values = torch.stack([total, *losses, judged]).tolist()  # one wait for the device
        return dict(zip(names, values, strict=True))

    @torch.inference_mode()
    def predict(self, features: Tensor, windows: NDArray[np.int64]) -> Prediction:
        """Predict windows (M, 16), rows of `features` (N, 2048), as trained so far; on the CPU."""
        self.network.eval()
        rows = torch.from_numpy(windows).to(self.device)
        found = self.network.predict_windows(features.to(self.device), rows)
        self.encoder.train()
        self.regressor.train()
        return Prediction(*(part.cpu() for part in found))

    def _predict(self, features: Tensor, *, with_motions: bool) -> tuple[Prediction, Tensor | None]:
        """Predict the target frames (B) and, for the discriminator, all frames (B, 16, 69).

        The encoder stays in float32 whatever the precision: its affinities are sums of 2048
        products, of which bf16 would keep three digits before the softmax.
        """
        count, frames, _ = features.shape
        z = self.encoder.moca(features)
        refined, _ = self.encoder.hafi(z)
        rows = torch.cat([refined, z.flatten(0, 1)]) if with_motions else refined
        with self._autocast():
            predicted = Prediction(*(part.float() for part in self.regressor(rows)))
        target = Prediction(*(part[:count] for part in predicted))
        if not with_motions:
            return target, None
        return target, body_pose(predicted.rotmats[count:]).unflatten(0, (count, frames))

    def _score(self, motions: Tensor) -> Tensor:
        with self._autocast():
            return self.discriminator(motions).float()

    def _autocast(self) -> torch.autocast:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)

    def _descend(self, loss: Tensor, optimiser: Adam) -> None:
        optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(optimiser)

    @property
    def learning_rate(self) -> float:
        """The network's learning rate at this time."""
        return float(self.optimiser.param_groups[0]["lr"])

    def epoch_ended(self, pa_mpjpe: float) -> None:
        """Lower both rates if PA-MPJPE has not become better for long enough."""
        self.plateau.step(pa_mpjpe)
        self.discriminator_plateau.step(pa_mpjpe)

    def state(self) -> dict[str, Any]:
        """Return all that is needed to go on, by the names in STATE."""
        return {name: getattr(self, name).state_dict() for name in STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises an error of torch's if it does not fit."""
        for name in STATE:
            getattr(self, name).load_state_dict(state[name])
