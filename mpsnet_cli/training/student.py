"""One step of learning from single pictures: backbone and regressor, before time comes into it.

More heads draw maps of what layer2 and layer3 see: where each joint lies, as networks for 2D poses
do (Newell et al., ECCV 2016), at what depth, and how it is turned. The layers up to there learn
from them alone at first: what the regressor asks of layers that see nothing yet is noise, which
drowns the maps. The heads are thrown away in the end; a network that goes on from weights of an
earlier run waits until new ones have learnt to read it.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mpsnet_cli.body import PARENTS, BodyModel
from mpsnet_cli.body.joint_sets import COMMON14_ROWS, HIPS
from mpsnet_cli.model.backbone import IMAGE_MEAN, IMAGE_STD
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.model.regressor import JOINTS, Prediction
from mpsnet_cli.training.config import PretrainConfig
from mpsnet_cli.training.crops import Crops
from mpsnet_cli.training.losses import project_to_crop
from mpsnet_cli.training.schedule import share_of_rate
from mpsnet_cli.training.speed import training_dtype

SPREAD = 0.7  # cells of a joint map, deviation of the peak that a joint is on it
UNSEEN = 0.3  # weight in the image of a joint that is hidden or outside
REGRESSOR_RATE = 0.25  # of the learning rate: three rounds of wide linear layers amplify steps
MAPS_FIRST = 0.55  # of the schedule, in which the maps learn alone
AVERAGED_OVER = 1000  # steps
AVERAGED_EVERY = 8
STEEPEST = 5.0  # norm of a gradient, beyond which it is scaled down
PREDICTED_AT_ONCE = 128
SEEN = ((512, 2), (1024, 4))  # of the map heads: channels seen, cells drawn for one cell, a side
COARSEST = 16  # px, of a cell of layer3, where the coarser of them see
TURNS_SEEN = (1024, 2)  # the same of the head for rotations
STEM, LAYERS = ("conv1", "bn1"), ("layer1", "layer2", "layer3")  # of the backbone, from below
STATE = ("student", "averaged", "optimiser")


class PoseLosses(NamedTuple):
    """The weighted losses of what the regressor says, each a scalar.

    Distances count as such and not squared, as it is their mean that is measured in the end.
    """

    joints2d: Tensor  # in the crop's [-1, 1]²
    joints3d: Tensor  # m, from the midpoint of the hips
    aligned: Tensor  # m, once laid on the truth by the best similarity
    pose: Tensor  # Frobenius norm, of each joint's rotation
    betas: Tensor  # squared, alone: most of betas is a matter of a distance that is not known


class PictureLosses(NamedTuple):
    """All weighted losses of one batch, each a scalar; their sum is what training minimises.

    Those of PoseLosses are zero while the maps learn alone.
    """

    joints2d: Tensor
    joints3d: Tensor
    aligned: Tensor
    pose: Tensor
    betas: Tensor
    maps: Tensor  # cross entropy
    depths: Tensor  # m, of joints from the midpoint of the hips, where they are on their maps
    turns: Tensor  # Frobenius norm, of joints' axes x and y in the camera frame, likewise


JOINTS2D, JOINTS3D, ALIGNED, POSE, BETAS = 5.0, 20.0, 20.0, 2.0, 0.02  # weights of losses
MAPS, DEPTHS, TURNS = 1.0, 5.0, 1.0


class Maps(NamedTuple):
    """What the map heads draw of N crops of S × S.

    logits: (N, 2, 24, S/4, S/4) of where joints are, by both heads
    depths: (N, 2, 24, S/4, S/4) of joints there, m from the midpoint of the hips
    turns: (N, 6, 24, S/8, S/8) axes x and y of joints there, camera frame
    """

    logits: Tensor
    depths: Tensor
    turns: Tensor


class Student(nn.Module):
    """The parts of MPS-Net that single pictures teach, which stay its own, and map heads."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: MPSNet) -> None:
        super().__init__()
        self.backbone = network.backbone
        self.regressor = network.regressor
        self.regressor.dropout.p = 0.0  # what it is for, augmentation does
        self.maps = nn.ModuleList(
            nn.Conv2d(channels, finer**2 * 2 * JOINTS, kernel_size=1) for channels, finer in SEEN
        )
        channels, finer = TURNS_SEEN
        self.turns = nn.Conv2d(channels, finer**2 * 6 * JOINTS, kernel_size=1)
        for name, value in (("mean", IMAGE_MEAN), ("std", IMAGE_STD)):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1), persistent=False)

    def look(
        self, images: Tensor, trust: Tensor | None, *, waits: bool = False
    ) -> tuple[Maps, Tensor | None]:
        """See RGB crops (N, 3, S, S) in 0..1: their maps, and features (N, 2048).

        What the regressor says of layer3 counts `trust` as much as it would, 0..1; with None there
        are no features. What the maps say counts for nothing below them while the backbone `waits`.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and not waits):
            seen = self.backbone.lower((images - self.mean) / self.std)
        drawn = [
            F.pixel_shuffle(head(maps), finer).unflatten(1, (2, JOINTS))
            for head, maps, (_, finer) in zip(self.maps, seen, SEEN, strict=True)
        ]
        logits, depths = torch.stack(drawn, dim=1).unbind(dim=2)
        third = seen[1]
        turns = F.pixel_shuffle(self.turns(third), TURNS_SEEN[1]).unflatten(1, (6, JOINTS))
        maps = Maps(logits, depths, turns)
        if trust is None:
            return maps, None
        return maps, self.backbone.upper(trust * third + (1 - trust) * third.detach())


class PictureLearner:
    """A student, the running average of its weights, which is what comes out, and its optimiser."""

    def __init__(
        self, network: MPSNet, body: BodyModel, config: PretrainConfig, *, device: torch.device
    ) -> None:
        """Take `network` over. Draws the map heads from the config's seed."""
        torch.manual_seed(config.seed)
        self.network = network
        self.body = body
        self.schedule = config.schedule
        self.goes_on = config.network.weights is not None
        self.heads_are_new = config.network.state is None
        self.device = device
        self.dtype = training_dtype(config.precision, device)
        self.student = Student(network).to(device).to(memory_format=torch.channels_last).train()
        frozen = len(STEM) + self.schedule.frozen if self.schedule.frozen else 0
        self.frozen = [getattr(network.backbone, name) for name in (*STEM, *LAYERS)[:frozen]]
        for part in self.frozen:
            part.requires_grad_(False)
        self.averaged = AveragedModel(
            self.student,
            multi_avg_fn=get_ema_multi_avg_fn((1 - 1 / AVERAGED_OVER) ** AVERAGED_EVERY),
            use_buffers=True,
        ).eval()
        groups = [
            {
                "params": [p for p in part.parameters() if (p.ndim > 1) == decays],
                "weight_decay": self.schedule.weight_decay if decays else 0.0,
                "share": share,
            }
            for part, share in ((self.student.backbone, 1.0), (self.student.maps, 1.0),
                                (self.student.turns, 1.0),
                                (self.student.regressor, REGRESSOR_RATE))
            for decays in (True, False)
        ]  # fmt: skip
        self.optimiser = AdamW(
            groups, lr=self.schedule.learning_rate, betas=(0.9, 0.98), fused=True
        )
        self._look = self.student.look
        if config.compile:
            self._look = torch.compile(self.student.look, dynamic=False)

    @property
    def learnt(self) -> Student:
        """The student with its averaged weights."""
        return cast("Student", self.averaged.module)

    def rate(self, seen: int) -> float:
        """Return the learning rate after so many crops."""
        schedule = self.schedule
        share = share_of_rate(
            seen,
            total=schedule.crops,
            warmup=schedule.warmup,
            batch_size=schedule.batch_size,
            falling=schedule.falling,
        )
        return schedule.learning_rate * share

    def trust(self, seen: int) -> Tensor | None:
        """Return how much the regressor has to say below layer4 after so many crops.

        None while the maps learn alone; from there on it grows from 0 to 1. In a network that goes
        on from weights it is 1 as soon as the new heads have caught up.
        """
        if self.goes_on:
            return None if self._waits(seen) else torch.tensor(1.0, device=self.device)
        since = seen / self.schedule.crops - MAPS_FIRST
        return None if since < 0 else torch.tensor(since / (1 - MAPS_FIRST), device=self.device)

    def _waits(self, seen: int) -> bool:
        """Whether only the new heads of a network that goes on learn, while the rate rises."""
        return self.goes_on and self.heads_are_new and seen < self.schedule.warmup

    def learn(self, step: int, crops: Crops) -> PictureLosses:
        """Take a step on augmented crops of the learner's device."""
        seen = step * self.schedule.batch_size
        for group in self.optimiser.param_groups:
            group["lr"] = group["share"] * self.rate(seen)
        waits = self._waits(seen)
        self.student.backbone.train(not waits)  # its batch norms wait, too
        for part in self.frozen:
            part.eval()
        images = crops.images.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            maps, features = self._look(images, self.trust(seen), waits=waits)
        if features is None:
            posed = PoseLosses(*torch.zeros(len(PoseLosses._fields), device=self.device))
        else:
            posed = pose_losses(self.student.regressor(features), self.body, crops)
        losses = PictureLosses(*posed, *map_losses(maps, crops))
        self.optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), STEEPEST, foreach=True)
        self.optimiser.step()
        if step % AVERAGED_EVERY == 0:
            if step < AVERAGED_OVER:  # the average begins with what is no longer random
                self.averaged.n_averaged.zero_()
            self.averaged.update_parameters(self.student)
        return PictureLosses(*(loss.detach() for loss in losses))

    @torch.inference_mode()
    def predict(self, images: Tensor) -> tuple[Prediction, Tensor]:
        """Predict crops (N, 3, S, S) uint8 with the averaged weights; on the CPU.

        Beside what the regressor says, where the maps see the joints: (N, 24, 2) in [-1, 1]².
        """
        parts = []
        for some in images.split(PREDICTED_AT_ONCE):
            seen = (some.to(self.device) / 255).contiguous(memory_format=torch.channels_last)
            with self._autocast():
                maps, features = self.learnt.look(seen, torch.tensor(1.0, device=self.device))
            found = (*self.learnt.regressor(features), joints_on(maps))
            parts.append([part.cpu() for part in found])
        *prediction, joints2d = map(torch.cat, zip(*parts, strict=True))
        return Prediction(*prediction), joints2d

    def averaged_network(self) -> MPSNet:
        """Return a copy of the network with the averaged weights, on the CPU."""
        network = copy.deepcopy(self.network).cpu()
        network.backbone.load_state_dict(self.learnt.backbone.state_dict())
        network.regressor.load_state_dict(self.learnt.regressor.state_dict())
        return network

    def state(self) -> dict[str, Any]:
        """Return all that is needed to go on, by the names in STATE."""
        return {name: getattr(self, name).state_dict() for name in STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. Raises an error of torch's if it does not fit."""
        for name in STATE:
            getattr(self, name).load_state_dict(state[name])

    def take_over(self, state: dict[str, Any]) -> None:
        """Go on from what a state of another run has learnt, at this one's rates.

        The average begins anew with the first step.
        """
        self.student.load_state_dict(state["student"])
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({**state["optimiser"], "param_groups": groups})

    def _autocast(self) -> torch.autocast:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=enabled)


def pose_losses(prediction: Prediction, body: BodyModel, truth: Crops) -> PoseLosses:
    """Weigh a prediction of crops."""
    rotmats, betas, cam = prediction
    _, joints = body.posed(rotmats, betas, vertices=False)
    off = _length(project_to_crop(joints, cam) - truth.joints2d)
    compared, true = (j[:, COMMON14_ROWS["smpl24"]] for j in (joints, truth.joints3d))
    return PoseLosses(
        JOINTS2D * (_in_image(truth) * off).mean(),
        JOINTS3D * _length(_from_hips(joints) - _from_hips(truth.joints3d)).mean(),
        ALIGNED * _length(procrustes_aligned(compared, true) - true).mean(),
        POSE * _length((rotmats - truth.rotmats).flatten(2)).mean(),
        BETAS * (betas - truth.betas).square().mean(),
    )


def procrustes_aligned(predicted: Tensor, true: Tensor) -> Tensor:
    """Lay each prediction (N, J, 3) on its truth, as `evaluation.metrics` does to measure PA-MPJPE.

    The similarity counts as given: where it is the best, small changes of it change nothing.
    """
    with torch.no_grad():
        centre, to = (points.mean(dim=1, keepdim=True) for points in (predicted, true))
        p = predicted - centre
        u, d, vt = torch.linalg.svd((true - to).mT @ p)
        proper = torch.ones_like(d)
        proper[:, 2] = torch.sign(torch.linalg.det(u @ vt))
        turn = (u * proper[:, None]) @ vt
        scale = (d * proper).sum(dim=1) / p.square().sum(dim=(1, 2)).clamp(min=1e-12)
    return scale[:, None, None] * ((predicted - centre) @ turn.mT) + to


def map_losses(maps: Maps, truth: Crops) -> tuple[Tensor, Tensor, Tensor]:
    """Weigh the maps of crops: maps, depths and turns of PictureLosses."""
    logits, depths, turns = (part.float().flatten(3) for part in maps)  # (N, head or 6, J, cells)
    on_map = joint_maps(truth.joints2d, maps.logits.shape[-1])
    surprise = -(on_map[:, None] * F.log_softmax(logits, dim=3)).sum(dim=3).mean(dim=1)
    off = (depths - _from_hips(truth.joints3d)[:, None, :, 2:]).abs()
    deeper = (on_map[:, None] * off).sum(dim=3).mean(dim=1)
    axes = in_camera(truth.rotmats)[..., :2].flatten(2).mT  # (N, 6, J)
    coarse = joint_maps(truth.joints2d, maps.turns.shape[-1])
    turned = (coarse * _length((turns - axes[..., None]).movedim(1, 3))).sum(dim=2)
    seen = _in_image(truth)
    return (
        MAPS * (seen * surprise).mean(),
        DEPTHS * (seen * deeper).mean(),
        TURNS * (seen * turned).mean(),
    )


def in_camera(rotmats: Tensor) -> Tensor:
    """Turn local rotations (N, 24, 3, 3) into those of each joint in the camera frame."""
    found = list(rotmats.unbind(dim=1))
    for joint in range(1, JOINTS):
        found[joint] = found[PARENTS[joint]] @ found[joint]
    return torch.stack(found, dim=1)


def joint_maps(joints2d: Tensor, side: int) -> Tensor:
    """Lay joints (N, J, 2) of the crop's [-1, 1]² as peaks on maps (N, J, side²).

    A map's sum is 1, or 0 if its joint is outside.
    """
    centres = _centres(side, joints2d.device)
    x, y = (
        torch.softmax(-0.5 * ((part[..., None] - centres) / (SPREAD * 2 / side)) ** 2, dim=2)
        for part in joints2d.unbind(dim=2)
    )
    inside = (joints2d.abs() < 1).all(dim=2, keepdim=True)
    return inside * (y[..., :, None] * x[..., None, :]).flatten(2)


def joints_on(maps: Maps) -> Tensor:
    """Return where maps expect joints, (N, 24, 2) in the crop's [-1, 1]²."""
    side = maps.logits.shape[-1]
    likely = maps.logits.float().flatten(3).softmax(dim=3).mean(dim=1).unflatten(2, (side, side))
    centres = _centres(side, likely.device)
    return torch.stack([likely.sum(dim=2) @ centres, likely.sum(dim=3) @ centres], dim=2)


def _centres(side: int, device: torch.device) -> Tensor:
    return (2 * torch.arange(side, device=device) + 1) / side - 1


def _in_image(truth: Crops) -> Tensor:
    """Weigh joints (N, 24) by whether the image shows them."""
    return UNSEEN + (1 - UNSEEN) * truth.visible


def _from_hips(joints: Tensor) -> Tensor:
    hips = [COMMON14_ROWS["smpl24"][hip] for hip in HIPS]
    return joints - joints[:, hips].mean(dim=1, keepdim=True)


def _length(difference: Tensor) -> Tensor:
    return (difference.square().sum(dim=-1) + 1e-8).sqrt()  # 1e-8: a gradient at zero, too
