"""A run on single pictures: from crops of `mpsnet synth` to a backbone and a regressor.

The folder of a run is like that of `mpsnet train`; `resume.pt` is written last. Batches and what
augmentation does to them are functions of the seed and the step.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mpsnet_cli.body import load_body
from mpsnet_cli.body.joint_sets import COMMON14_ROWS, HIPS
from mpsnet_cli.errors import InputError
from mpsnet_cli.evaluation.metrics import mean_distance, pa_mpjpe, root_aligned
from mpsnet_cli.model.backbone import Backbone
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.inference import resolve_device
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.model.regressor import Prediction, Regressor
from mpsnet_cli.model.untrained import untrained_network
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.progress import Reporter
from mpsnet_cli.training.checkpoint import (
    RESUME,
    MetricsFile,
    load_checkpoint,
    run_folder,
    save_checkpoint,
    take_up,
)
from mpsnet_cli.training.config import PretrainConfig, flatten
from mpsnet_cli.training.crops import Crops, augment, load_crops
from mpsnet_cli.training.losses import project_to_crop
from mpsnet_cli.training.speed import product_rate, training_flops
from mpsnet_cli.training.student import COARSEST, STATE, PictureLearner, PictureLosses
from mpsnet_cli.weights import (
    LONGEST_TEXT,
    PARTLY_TRAINED,
    find_weights,
    load_network,
    read_info,
    save_network,
)

LAST, BEST = "last.safetensors", "best.safetensors"
EVEN = "even.pt"  # the checkpoint from before the rate falls, to go on from
METRICS, VALIDATION = "metrics.csv", "validation.csv"
STEP_COLUMNS = ("step", "size", "learning_rate", *PictureLosses._fields)
MEAN_OF = 10_000  # crops, whose mean pose the regressor begins with
# Fields that may differ between the parts of a run: none of them bends the curve.
FREE = {"name", "licence", "device", "compile", "checkpoint_every"}


@dataclass(frozen=True)
class Check:
    """How a run stands after so many crops: losses since the last check, errors on held-out ones.

    The errors are those of the averaged weights.
    """

    step: int
    crops: int  # seen in all
    size: int  # px of the crops
    total: float  # mean sum of the losses
    crops_per_second: float  # with all but checks
    share_of_limit: float  # of what a product of large matrices reaches on this device
    pa_mpjpe: float  # mm
    mpjpe: float  # mm
    joints2d: float  # mean distance of visible joints, in sides of the crop
    maps2d: float  # the same of what the maps see
    best: bool  # PA-MPJPE is the lowest since the regressor began to learn


def pretrain(
    config: PretrainConfig, out: Path, *, resume: bool = False, report: Reporter
) -> Iterator[Check]:
    """Train backbone and regressor as `config` says, into the folder `out`; yield each check.

    Nothing happens until the checks are asked for. With `resume` a run that stopped goes on exactly
    where its last checkpoint is, or starts if there is none. Raises InputError for crops that
    cannot be used or a checkpoint of another run, WeightsError for a network that cannot be started
    from, DeviceError, and OutputError where the folder cannot be written or holds a run already.
    """
    # Far from a joint its map is next to nothing, and numbers so small are slow on Intel's CPUs.
    # Threads take this over from the one that starts them, so it comes first.
    torch.set_flush_denormal(True)
    with run_folder(out, resume=resume):
        run = _Run(config, out, report)
        if resume:
            run.resume()
        yield from run.checks()


class _Run:
    """A run at a certain step."""

    def __init__(self, config: PretrainConfig, out: Path, report: Reporter) -> None:
        self.config = config
        self.schedule = config.schedule
        self.out = out
        self.report = report
        sizes = self.schedule.sizes
        if not sizes or any(size % COARSEST for size in sizes):
            raise InputError(
                f"schedule.sizes is {list(sizes)}, and must be multiples of {COARSEST}: the maps "
                "are to lie on one another."
            )
        if self.schedule.frozen and config.network.weights is None:
            raise InputError(
                f"schedule.frozen is {self.schedule.frozen}, but the network starts from nothing "
                "and has to learn all its layers: name one in network.weights, or set it to 0."
            )
        self.device = resolve_device(config.device)
        self.crops = load_crops(config.data.crops, report).to(self.device)
        self.validation = load_crops(config.data.validation, report)
        self.sources: dict[str, str] = {}
        self.temporal = "untrained"
        network = self._start()
        body = load_body("free-1", device=self.device)
        self.learner = PictureLearner(network, body, config, device=self.device)
        if config.network.state is not None:
            self._take_over(config.network.state)
        self.limit = product_rate(self.device, self.learner.dtype)
        self.step = 0  # steps done
        self.best = math.inf  # mm, lowest PA-MPJPE
        self.identity = {
            **{name: value for name, value in flatten(config).items() if name not in FREE},
            **self.sources,
            "number of crops": len(self.crops.images),
        }

    def _start(self) -> MPSNet:
        size = self.schedule.sizes[-1]
        if self.config.network.weights is None:
            network = untrained_network(
                self.config.seed, MPSNetConfig(crop_size=size, antialias=True)
            )
            open_shortcuts(network.backbone, seed=self.config.seed)
            start_at_mean(network.regressor, self.crops.take(slice(MEAN_OF)))
            return network
        if self.schedule.warmup >= self.schedule.crops:
            raise InputError(
                f"schedule.warmup is {self.schedule.warmup} of {self.schedule.crops} crops: only "
                "new heads, which are not kept, would learn. Lower it, or add crops."
            )
        info = read_info(find_weights(self.config.network.weights))
        if info.config.body != "free-1":
            raise InputError(
                f"The network in {info.path} speaks of the body {info.config.body}, and synthetic "
                "crops are labelled with free-1: start from another, or from none."
            )
        self.sources[info.path.name] = info.sha256
        if info.trained and PARTLY_TRAINED not in info.name:
            self.temporal = f"as in {info.path.name}, trained on its features"
        network = load_network(info)
        network.config = replace(network.config, crop_size=size, antialias=True)
        return network

    def _take_over(self, path: Path) -> None:
        """Keep heads and optimiser of another run. Raises InputError if they do not fit."""
        if self.config.network.weights is None:
            raise InputError(
                f"network.state is {path}, but no network.weights: name the file of weights that "
                "was written with it."
            )
        try:
            self.learner.take_over(load_checkpoint(path, STATE))
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path} does not fit this run: {reason}") from error
        self.sources[path.name] = file_sha256(path)

    @property
    def seen(self) -> int:
        """How many crops have been seen."""
        return self.step * self.schedule.batch_size

    @property
    def size(self) -> int:
        """What size, px, the crops are seen in now."""
        sizes = self.schedule.sizes
        return sizes[min(len(sizes) - 1, self.seen * len(sizes) // self.schedule.crops)]

    def checks(self) -> Iterator[Check]:
        """Train until the schedule ends."""
        every, batch_size = self.config.validate_every, self.schedule.batch_size
        falls = self.schedule.crops * (1 - self.schedule.falling) or -math.inf
        if self.seen >= self.schedule.crops:
            self.report.warn(f"The run in {self.out} has ended: its folder holds what it learnt.")
        metrics = MetricsFile(self.out / METRICS, STEP_COLUMNS, done=self.step)
        checks = MetricsFile(self.out / VALIDATION, tuple(Check.__annotations__), done=self.step)
        try:
            while self.seen < self.schedule.crops:
                until = min((self.seen // every + 1) * every, self.schedule.crops)
                steps = -(-(until - self.seen) // batch_size)
                started, total = time.monotonic(), 0.0
                stage = f"{self.size} px, crops up to {until} of {self.schedule.crops}"
                with self.report.stage(stage, total=steps * batch_size) as advance:
                    for _ in range(steps):
                        row = self._learn()
                        metrics.write(row)
                        total += sum(row[name] for name in PictureLosses._fields)
                        if self.seen % self.config.checkpoint_every < batch_size:
                            metrics.flush()
                            self._checkpoint(RESUME)
                        if 0 <= self.seen - falls < batch_size:
                            self._checkpoint(EVEN)
                        advance(batch_size)
                rate = steps * batch_size / (time.monotonic() - started)
                check = self._check(int(row["size"]), total / steps, rate)
                checks.write(asdict(check))
                checks.flush()
                self._save(LAST, check)
                if check.best:
                    self._save(BEST, check)
                self._checkpoint(RESUME)
                yield check
        finally:
            metrics.close()
            checks.close()

    def _learn(self) -> dict[str, float]:
        """Take one step; return its row of the metrics."""
        size, rate = self.size, self.learner.rate(self.seen)
        seed = np.random.SeedSequence((self.config.seed, 1, self.step)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed[0]))
        rows = batch_rows(
            len(self.crops.images), self.schedule.batch_size, self.config.seed, self.step
        )
        plain = self.seen >= self.schedule.crops * (1 - self.schedule.plain)
        crops = self.crops.take(rows.to(self.device))
        crops = augment(crops, generator, size=size, plain=plain)
        losses = torch.stack(self.learner.learn(self.step, crops)).tolist()
        self.step += 1
        if not math.isfinite(sum(losses)):
            raise InputError(
                f"Training broke down: the loss of step {self.step} is not a number. Lower "
                "schedule.learning_rate and start anew."
            )
        named = dict(zip(PictureLosses._fields, losses, strict=True))
        return {"step": self.step, "size": size, "learning_rate": rate, **named}

    def _check(self, size: int, total: float, crops_per_second: float) -> Check:
        images = resized(self.validation.images, size)
        found = errors(*self.learner.predict(images), self.validation)
        best = found["pa_mpjpe"] < self.best and self.learner.trust(self.seen) is not None
        if best:
            self.best = found["pa_mpjpe"]
        flops = training_flops(self.learner.student.backbone, size, device=self.device)
        share = crops_per_second * flops / self.limit
        return Check(self.step, self.seen, size, total, crops_per_second, share, best=best, **found)

    def _save(self, file: str, check: Check) -> None:
        """Write a weight file. The temporal modules do not know its features: partly trained."""
        names = ", ".join(path.name for path in self.config.data.crops)
        save_network(
            self.learner.averaged_network(),
            self.out / file,
            name=f"{self.config.name} ({PARTLY_TRAINED})",
            trained=True,
            licence=self.config.licence,
            sources=self.sources,
            note=(
                f"backbone and regressor, on single pictures; temporal modules {self.temporal}: "
                f"{check.crops} crops of {self.schedule.crops} in the schedule, from {names}; "
                f"PA-MPJPE {check.pa_mpjpe:.1f} mm on the validation crops"
            )[:LONGEST_TEXT],
            overwrite=True,
        )

    def _checkpoint(self, file: str) -> None:
        save_checkpoint(
            self.out / file,
            {
                "identity": json.dumps(self.identity),
                "step": self.step,
                "best": self.best,
                **self.learner.state(),
            },
        )

    def resume(self) -> None:
        """Go to where the last checkpoint is. Raises InputError if it is of another run."""
        take_up(
            self.out,
            identity=self.identity,
            keys=("step", "best", *STATE),
            restore=self._restore,
            report=self.report,
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state)
        self.step, self.best = int(state["step"]), float(state["best"])


def batch_rows(count: int, batch_size: int, seed: int, step: int) -> Tensor:
    """Choose the crops of a step: each is seen once before any is seen again.

    What is left over at the end of a round, less than a batch, waits for the next one's shuffle.
    Raises InputError if there are fewer crops than a batch takes.
    """
    if count < batch_size:
        raise InputError(
            f"There are {count} crops, and a batch takes {batch_size}: make more, or lower "
            "schedule.batch_size."
        )
    turn, place = divmod(step, count // batch_size)
    return _shuffled(count, seed, turn)[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=1)
def _shuffled(count: int, seed: int, turn: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng((seed, 0, turn)).permutation(count))


def open_shortcuts(backbone: Backbone, *, seed: int) -> None:
    """Draw a backbone that can be trained: residual branches begin as zero (Goyal et al., 2017).

    The gains of `untrained_network` are for features that say something without training.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(
                module.weight, mode="fan_out", nonlinearity="relu", generator=generator
            )
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, 0.0 if name.endswith("bn3") else 1.0)


def start_at_mean(regressor: Regressor, crops: Crops) -> None:
    """Let the regressor begin with the mean body pose of crops, upright before the camera.

    The mean of rotations is the one nearest to the mean of their matrices.
    """
    u, _, vt = torch.linalg.svd(crops.rotmats[:, 1:].double().mean(dim=0).cpu())
    regressor.init_pose.view(-1, 6)[1:] = (u @ vt)[:, :, :2].flatten(1).float()


def resized(images: Tensor, size: int) -> Tensor:
    """Resample crops (N, 3, S, S) uint8 to `size`, without aliasing."""
    if images.shape[-1] == size:
        return images
    return torch.cat([
        F.interpolate(some.float(), (size, size), mode="bilinear", antialias=True)
        .round_().clamp_(0, 255).byte()
        for some in images.split(512)
    ])  # fmt: skip


def errors(prediction: Prediction, mapped: Tensor, truth: Crops) -> dict[str, float]:
    """Measure predictions of crops and joints on their maps, on the CPU, as `Check` has it."""
    rotmats, betas, cam = prediction
    _, joints = load_body("free-1").posed(rotmats, betas, vertices=False)
    rows = list(COMMON14_ROWS["smpl24"])
    p, t = (root_aligned(j[:, rows].numpy(), HIPS) for j in (joints, truth.joints3d))
    off, maps_off = (
        float((found - truth.joints2d).norm(dim=2)[truth.visible].mean()) / 2
        for found in (project_to_crop(joints, cam), mapped)
    )
    return {
        "pa_mpjpe": float(pa_mpjpe(p, t).mean()),
        "mpjpe": float(mean_distance(p, t).mean()),
        "joints2d": off,
        "maps2d": maps_off,
    }
