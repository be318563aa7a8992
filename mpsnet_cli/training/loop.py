"""A training run: from a config to weight files, with whatever may interrupt it on the way.

The folder of a run holds

    last.safetensors, best.safetensors   the network after the last epoch and the best one, by
                                         PA-MPJPE on the validation sequences
    metrics.csv, validation.csv          a row for each step, a row for each epoch
    tensorboard/                         the same as TensorBoard events
    resume.pt                            all that the next step depends on

`resume.pt` is written last, so that a run that is killed goes on from it as if nothing had been:
batches and dropout are functions of the seed and the step, and what came after it is done again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpsnet_cli.body import load_body
from mpsnet_cli.body.joint_sets import load_joint_regressor
from mpsnet_cli.errors import InputError
from mpsnet_cli.evaluation.evaluate import evaluate_sequences, usable_sequences
from mpsnet_cli.progress import Reporter
from mpsnet_cli.training.checkpoint import (
    RESUME,
    MetricsFile,
    run_folder,
    save_checkpoint,
    take_up,
)
from mpsnet_cli.training.config import TrainConfig, flatten
from mpsnet_cli.training.data import Prior, Windows
from mpsnet_cli.training.learner import STATE, Learner
from mpsnet_cli.training.losses import Losses
from mpsnet_cli.training.start import (
    choose_device,
    labelled_sequences,
    prior_poses,
    start_network,
    training_joints,
)
from mpsnet_cli.weights import LONGEST_TEXT, PARTLY_TRAINED, find_weights, read_info, save_network

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LAST, BEST = "last.safetensors", "best.safetensors"
METRICS, VALIDATION, EVENTS = "metrics.csv", "validation.csv", "tensorboard"
STEP_COLUMNS = ("step", "epoch", "learning_rate", "total", *Losses._fields, "discriminator")
EPOCH_COLUMNS = ("step", "epoch", "learning_rate", "total", "pa_mpjpe", "mpjpe", "mpvpe",
                 "acceleration")  # fmt: skip
# Fields that may differ between the parts of a run: none of them bends the curve.
FREE = {"name", "licence", "device", "checkpoint_every", "schedule.epochs"}


@dataclass(frozen=True)
class Epoch:
    """How a finished epoch went: its mean loss, and errors on the validation sequences."""

    number: int  # from 1
    step: int  # steps done in all
    learning_rate: float
    total: float  # mean weighted loss of the network over the epoch
    pa_mpjpe: float  # mm
    mpjpe: float  # mm
    mpvpe: float | None  # mm; None where the true pose and betas are not known
    acceleration: float  # mm/frame²
    best: bool  # PA-MPJPE is the lowest so far


def train(
    config: TrainConfig, out: Path, *, resume: bool = False, report: Reporter
) -> Iterator[Epoch]:
    """Train as `config` says, into the folder `out`; yield each epoch when it is done.

    Nothing happens until the epochs are asked for. With `resume` a run that stopped goes on exactly
    where its last checkpoint is, or starts if there is none. Raises InputError for data that cannot
    be used or a checkpoint of another run, WeightsError for a network that cannot be started from,
    DeviceError, and OutputError where the folder cannot be written or holds a run already.
    """
    with run_folder(out, resume=resume):
        run = _Run(config, out, report)
        try:
            if resume:
                run.resume()
            yield from run.epochs()
        finally:
            run.close()


class _Run:
    """A run at a certain step."""

    def __init__(self, config: TrainConfig, out: Path, report: Reporter) -> None:
        self.config = config
        self.out = out
        self.report = report
        data, schedule = config.data, config.schedule
        device = choose_device(config)
        weights = config.network.weights
        self.start = read_info(find_weights(weights)) if weights else None
        self.sources = {self.start.path.name: self.start.sha256} if self.start else {}
        network = start_network(self.start, config.network, seed=config.seed)
        self.identity = {**asdict(network.config), **self.sources, **_curve(config)}
        self.windows = Windows(
            labelled_sequences(data.three_d, ("joints3d", "pose"), network.config, report),
            [
                replace(sequence, joints3d=None, pose=None, betas=None)
                for sequence in labelled_sequences(
                    data.two_d, ("joints2d",), network.config, report
                )
            ],
            batch_size=schedule.batch_size,
            share_2d=data.share_2d,
            stride=data.stride,
            seed=config.seed,
        )
        self.validation = labelled_sequences(data.validation, ("joints3d",), network.config, report)
        self.prior = self._prior()
        self.body = load_body(network.config.body, device=device)
        usable_sequences(self.validation, self.body, Reporter())  # or it would fail in an hour
        h36m = data.j_regressor_h36m
        self.regressor = load_joint_regressor(h36m) if h36m else None
        joints = training_joints(self.body, self.windows.joint_set, data.j_regressor_extra)
        self.learner = Learner(network, joints, config, device=device)
        self.step = 0  # steps done
        self.best = math.inf  # mm, lowest PA-MPJPE
        self.total = 0.0  # sum of the losses of the epoch so far
        self._files: list[MetricsFile | SummaryWriter] = []

    def _prior(self) -> Prior | None:
        if not self.config.data.prior or not self.config.losses.adversarial:
            self.report.warn(
                "Without data.prior there is no adversarial loss: nothing tells the network which "
                "motions are human."
            )
            return None
        return Prior(
            prior_poses(self.config.data.prior, self.report),
            batch_size=self.config.schedule.batch_size,
            seed=self.config.seed,
        )

    def epochs(self) -> Iterator[Epoch]:
        """Train until the schedule ends."""
        schedule = self.config.schedule
        steps = MetricsFile(self.out / METRICS, STEP_COLUMNS, done=self.step)
        epochs = MetricsFile(self.out / VALIDATION, EPOCH_COLUMNS, done=self.step)
        events = self._events()
        self._files += [steps, epochs, *filter(None, [events])]
        if self.step >= schedule.epochs * schedule.steps_per_epoch:
            self.report.warn(f"The run in {self.out} has ended: more schedule.epochs prolong it.")
        while self.step < schedule.epochs * schedule.steps_per_epoch:
            number = self.step // schedule.steps_per_epoch + 1
            end = number * schedule.steps_per_epoch
            stage = f"epoch {number}/{schedule.epochs}"
            with self.report.stage(stage, total=end - self.step) as advance:
                while self.step < end:
                    row = self._learn(number)
                    steps.write(row)
                    _note(events, "train", row)
                    if self.step < end and self.step % self.config.checkpoint_every == 0:
                        self._checkpoint()
                    advance(1)
            epoch = self._end_of_epoch(number)
            row = {**asdict(epoch), "epoch": number}
            epochs.write(row)
            _note(events, "validation", {name: row[name] for name in EPOCH_COLUMNS})
            self._save(LAST, epoch)
            if epoch.best:
                self._save(BEST, epoch)
            self._checkpoint()
            yield epoch

    def _learn(self, epoch: int) -> dict[str, float]:
        """Take one step; return its row of the metrics."""
        rate = self.learner.learning_rate
        real = self.prior.batch(self.step) if self.prior else None
        losses = self.learner.learn(self.step, self.windows.batch(self.step), real)
        self.step += 1
        if not math.isfinite(sum(losses.values())):
            raise InputError(
                f"Training broke down: the loss of step {self.step} is not a number. Lower "
                "schedule.learning_rate, or set precision: fp32, and start anew."
            )
        self.total += losses["total"]
        return {"step": self.step, "epoch": epoch, "learning_rate": rate, **losses}

    def _end_of_epoch(self, number: int) -> Epoch:
        """Validate, and lower the learning rates where that is due."""
        errors = evaluate_sequences(
            self.validation,
            self.learner.predict,
            self.body,
            joint_regressor=self.regressor,
            report=self.report,
        ).pooled.means()
        pa_mpjpe = errors["pa_mpjpe"]
        epoch = Epoch(
            number=number,
            step=self.step,
            learning_rate=self.learner.learning_rate,
            total=self.total / self.config.schedule.steps_per_epoch,
            pa_mpjpe=pa_mpjpe,
            mpjpe=errors["mpjpe"],
            mpvpe=errors.get("mpvpe"),
            acceleration=errors["acceleration"],
            best=pa_mpjpe < self.best,
        )
        self.learner.epoch_ended(pa_mpjpe)
        self.best = min(self.best, pa_mpjpe)
        self.total = 0.0
        return epoch

    def _save(self, file: str, epoch: Epoch) -> None:
        """Write a weight file. It counts as trained if the backbone that it started from does."""
        schedule, data = self.config.schedule, self.config.data
        trained = self.start is not None and self.start.trained
        whole = epoch.number >= schedule.epochs
        how = "trained" if whole else PARTLY_TRAINED
        names = ", ".join(path.name for path in (*data.three_d, *data.two_d))
        save_network(
            self.learner.network,
            self.out / file,
            name=self.config.name if whole else f"{self.config.name} ({PARTLY_TRAINED})",
            trained=trained,
            licence=self.config.licence,
            sources=self.sources,
            note=(
                f"{how}{'' if trained else ' on an untrained backbone'}: {epoch.step} steps of "
                f"{schedule.batch_size} windows, epoch {epoch.number} of {schedule.epochs}, on "
                f"{names}; PA-MPJPE {epoch.pa_mpjpe:.1f} mm on the validation sequences"
            )[:LONGEST_TEXT],
            overwrite=True,
        )

    def _checkpoint(self) -> None:
        for file in self._files:
            file.flush()
        save_checkpoint(
            self.out / RESUME,
            {
                "identity": json.dumps(self.identity),
                "step": self.step,
                "best": self.best,
                "total": self.total,
                **self.learner.state(),
            },
        )

    def resume(self) -> None:
        """Go to where the last checkpoint is. Raises InputError if it is of another run."""
        take_up(
            self.out,
            identity=self.identity,
            keys=("step", "best", "total", *STATE),
            restore=self._restore,
            report=self.report,
        )

    def _restore(self, state: dict[str, Any]) -> None:
        self.learner.restore(state)
        self.step = int(state["step"])
        self.best, self.total = float(state["best"]), float(state["total"])

    def _events(self) -> SummaryWriter | None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.report.warn(
                "No TensorBoard events are written: pip install 'mpsnet-cli[train]' adds what is "
                "missing. The CSV files hold the same."
            )
            return None
        return SummaryWriter(self.out / EVENTS, purge_step=self.step + 1)

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()


def _curve(config: TrainConfig) -> dict[str, Any]:
    """Everything in a config that the course of a run depends on, by dotted name."""
    return {name: value for name, value in flatten(config).items() if name not in FREE}


def _note(events: SummaryWriter | None, part: str, row: Mapping[str, Any]) -> None:
    if events:
        for name, value in row.items():
            if name not in ("step", "epoch") and value is not None:
                events.add_scalar(f"{part}/{name}", value, row["step"])
