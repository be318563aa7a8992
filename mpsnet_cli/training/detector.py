"""A run that teaches a small network where people are: scenes in, a YOLO checkpoint out.

Networks, loss and suppression are ultralytics'; its trainer wants folders of pictures, and has no
bfloat16 on a CPU. A run starts from random weights or goes on from those of an earlier one. Its
folder holds

    last.pt, best.pt      the averaged network at the last check and at the best, by AP50; half
                          precision, in ultralytics' format, so AGPL-3.0 as its networks are
    metrics.csv           a row for each step
    validation.csv        a row for each check
    resume.pt             all that the next step depends on, written last
"""

from __future__ import annotations

import copy
import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mpsnet_cli.errors import InputError, WeightsError
from mpsnet_cli.evaluation.detection import average_precision, recall
from mpsnet_cli.model.inference import resolve_device
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking.detector import STRIDE, quiet_ultralytics, read_checkpoint
from mpsnet_cli.training.checkpoint import (
    RESUME,
    MetricsFile,
    replace_file,
    run_folder,
    save_checkpoint,
    take_up,
)
from mpsnet_cli.training.config import PictureNetwork, flatten
from mpsnet_cli.training.scenes import Batch, Scenes, batches, load_scenes, still_batches
from mpsnet_cli.training.schedule import share_of_rate
from mpsnet_cli.training.speed import training_dtype
from mpsnet_cli.weights import PARTLY_TRAINED

ARCHITECTURE = "yolo11n.yaml"
LICENCE = "AGPL-3.0"
LAST, BEST = "last.pt", "best.pt"
METRICS, VALIDATION = "metrics.csv", "validation.csv"

GAINS = {"box": 7.5, "cls": 0.5, "dfl": 1.5}  # of the losses: ultralytics' own
PER_PICTURE = 5  # cells that begin as somebody's middle, as ultralytics has it at 640 px
BETAS = 0.9, 0.999
LARGEST_GRADIENT = 10.0  # norm
KEPT = 0.999  # of the averaged network in a step, in the end
AVERAGING = 400  # steps over which it comes to that
LEAST_SCORE = 0.001  # of a box, for average precision
SURE = 0.25  # score of a box that counts as found
STATE = ("network", "averaged", "optimiser")
# Fields that may differ between the parts of a run: none of them bends the curve.
FREE = {"name", "long_sides", "double_iou", "device", "checkpoint_every"}


@dataclass(frozen=True)
class SceneData:
    """Folders of scenes, from `mpsnet synth --kind scenes`: to learn from, and to be judged by."""

    scenes: tuple[Path, ...]
    validation: tuple[Path, ...]


@dataclass(frozen=True)
class SceneSchedule:
    """How many pictures are seen in all, at what sizes, px, and how fast.

    Each batch is of one of the `sizes`, at random: people of all heights are to be found at any.
    The rate rises over `warmup` pictures and then falls as a cosine to a hundredth. `mosaic` is the
    share of pictures that are four in one.
    """

    pictures: int = 60_000
    sizes: tuple[int, ...] = (256, 320, 384, 448, 512)
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup: int = 2_000
    weight_decay: float = 5e-4
    mosaic: float = 0.15

    @property
    def size(self) -> int:
        """The size, px, that checks are made at: the middle one."""
        return sorted(self.sizes)[len(self.sizes) // 2]


@dataclass(frozen=True)
class DetectorConfig:
    """One training run of a person detector.

    `long_sides`, px, least and most, are what the written network is to see the longer side of a
    picture at, and of two of its boxes whose IoU is beyond `nms_iou` the less certain one goes.
    Tracks whose boxes are beyond `double_iou` most of the time are one person's, see
    `tracking.refine`. `checkpoint_every` and `validate_every` count pictures.
    """

    data: SceneData
    network: PictureNetwork = PictureNetwork()  # noqa: RUF009 (frozen)
    schedule: SceneSchedule = SceneSchedule()
    name: str = "trained with mpsnet detector"
    long_sides: tuple[int, ...] = (416, 544)
    nms_iou: float = 0.6
    double_iou: float = 0.4
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    checkpoint_every: int = 4_000
    validate_every: int = 10_000


@dataclass(frozen=True)
class Check:
    """How a run stands: the mean loss since the last check, and how well people are found."""

    step: int  # steps done in all
    pictures: int  # pictures seen in all
    total: float  # mean loss of a picture
    pictures_per_second: float
    ap50: float  # average precision at IoU 0.5, 0..1
    recall: float  # of the true boxes, in those of a score of SURE or more
    false: float  # of these, a picture, that are nobody
    best: bool  # AP50 is the highest so far


def train_detector(
    config: DetectorConfig, out: Path, *, resume: bool = False, report: Reporter
) -> Iterator[Check]:
    """Train as `config` says, into the folder `out`; yield each check when it is done.

    Nothing happens until the checks are asked for. With `resume` a run that stopped goes on exactly
    where its last checkpoint is, or starts if there is none. Raises InputError for scenes that
    cannot be used or a checkpoint of another run, WeightsError for a network that cannot be started
    from, DeviceError, and OutputError where the folder cannot be written or holds a run already.
    """
    with run_folder(out, resume=resume):
        run = _Run(config, out, report)
        if resume:
            run.resume()
        yield from run.checks()


def new_network(*, size: int, seed: int) -> Any:
    """Draw a DetectionModel of one class, which expects about as many people as pictures have."""
    with quiet_ultralytics(), torch.random.fork_rng(devices=[]):
        from ultralytics.nn.tasks import DetectionModel

        torch.manual_seed(seed)
        network = DetectionModel(ARCHITECTURE, nc=1, verbose=False)
    network.names = {0: "person"}
    network.args = {"task": "detect", "imgsz": size}
    head = network.model[-1]
    for branch, stride in zip(head.cv3, head.stride.tolist(), strict=True):
        nn.init.constant_(branch[-1].bias, math.log(PER_PICTURE / (size / stride) ** 2))
    return network


def load_weights(network: Any, path: Path) -> None:
    """Let a new network go on from the weights of a file that an earlier run has written.

    Raises WeightsError for a file that cannot be opened, or is of another architecture.
    """
    found, _ = read_checkpoint(path)
    try:
        network.load_state_dict(found.float().state_dict())
    except RuntimeError as error:
        raise WeightsError(
            f"The detector {path} is not one of `mpsnet detector`: start from such a file, or from "
            "none."
        ) from error


class DetectorLearner:
    """A network that learns, the running average of what it was, and its optimiser."""

    def __init__(self, network: Any, config: DetectorConfig, device: torch.device) -> None:
        self.schedule, self.device, self.nms_iou = config.schedule, device, config.nms_iou
        self.dtype = training_dtype(config.precision, device)
        self.network = network.to(device, memory_format=torch.channels_last).train()
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        pairs = zip(
            self.averaged.state_dict().values(), self.network.state_dict().values(), strict=True
        )
        self._floating = [pair for pair in pairs if pair[0].is_floating_point()]
        parameters = list(self.network.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups,
            lr=config.schedule.learning_rate,
            betas=BETAS,
            weight_decay=config.schedule.weight_decay,
            fused=True,
        )
        with quiet_ultralytics():
            from ultralytics.utils.loss import v8DetectionLoss

            # It reads the gains from the network, where a checkpoint's arguments are.
            arguments, self.network.args = self.network.args, SimpleNamespace(**GAINS)
            self._loss = v8DetectionLoss(self.network)
            self.network.args = arguments

    def rate(self, seen: int) -> float:
        """Return the learning rate after so many pictures."""
        schedule = self.schedule
        share = share_of_rate(
            seen,
            total=schedule.pictures,
            warmup=schedule.warmup,
            batch_size=schedule.batch_size,
        )
        return schedule.learning_rate * share

    def learn(self, step: int, batch: Batch) -> dict[str, float]:
        """Take one step: the losses of box, class and distribution, per picture."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(step * self.schedule.batch_size)
        images = self._pixels(batch.images)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            seen = self.network(images)
        seen = {
            name: [each.float() for each in value] if name == "feats" else value.float()
            for name, value in seen.items()
        }
        size = images.shape[-1]
        corners, middles = batch.boxes.view(-1, 2, 2), batch.boxes.view(-1, 2, 2).mean(dim=1)
        truth = {
            "batch_idx": batch.owner.float().to(self.device),
            "cls": torch.zeros(len(batch.owner), device=self.device),
            "bboxes": (torch.cat([middles, corners[:, 1] - corners[:, 0]], dim=1) / size).to(
                self.device
            ),
        }
        losses, _ = self._loss(seen, truth)
        losses = losses / len(images)
        self.optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT, foreach=True)
        self.optimiser.step()
        self._average(step)
        return dict(zip(("box", "class", "distribution"), losses.tolist(), strict=True))

    @torch.no_grad()
    def _average(self, step: int) -> None:
        kept = KEPT * (1 - math.exp(-(step + 1) / AVERAGING))
        averaged, now = map(list, zip(*self._floating, strict=True))
        torch._foreach_lerp_(averaged, now, 1 - kept)

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Tensor]:
        """Find people in pictures (N, 3, S, S) with the averaged network: N of (k, 5), with scores.

        In float32, and down to LEAST_SCORE.
        """
        with quiet_ultralytics():
            from ultralytics.utils.nms import non_max_suppression

        seen = self.averaged(self._pixels(images))[0]
        found = non_max_suppression(seen, LEAST_SCORE, self.nms_iou, nc=1, max_time_img=60)
        return [rows[:, :5].cpu() for rows in found]

    def _pixels(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        return (images.float() / 255).contiguous(memory_format=torch.channels_last)

    def state(self) -> dict[str, Any]:
        """Return all that the next step depends on."""
        return {name: getattr(self, name).state_dict() for name in STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        for name in STATE:
            getattr(self, name).load_state_dict(state[name])


def judge(learner: DetectorLearner, scenes: Scenes, *, size: int) -> dict[str, float]:
    """Measure the averaged network on scenes, as `Check` has it."""
    boxes: list[Any] = []
    scores: list[Any] = []
    truth: list[Any] = []
    for batch in still_batches(scenes, batch_size=16, size=size):
        for k, rows in enumerate(learner.detect(batch.images)):
            boxes.append(rows[:, :4].numpy())
            scores.append(rows[:, 4].numpy())
            truth.append(batch.boxes[batch.owner == k].numpy())
    sure = [b[s >= SURE] for b, s in zip(boxes, scores, strict=True)]
    found, total = recall(sure, truth), sum(map(len, truth))
    return {
        "ap50": average_precision(boxes, scores, truth),
        "recall": found,
        "false": (sum(map(len, sure)) - found * total) / len(truth),
    }


class _Run:
    """A run at a certain step."""

    def __init__(self, config: DetectorConfig, out: Path, report: Reporter) -> None:
        self.config, self.schedule = config, config.schedule
        self.out, self.report = out, report
        if not self.schedule.sizes or any(size % STRIDE for size in self.schedule.sizes):
            raise InputError(
                f"schedule.sizes is {list(self.schedule.sizes)}, and must be multiples of {STRIDE}."
            )
        if len(config.long_sides) != 2 or config.long_sides[0] > config.long_sides[1]:
            raise InputError(
                f"long_sides is {list(config.long_sides)}, and must be two numbers, rising."
            )
        self.scenes = load_scenes(config.data.scenes)
        self.validation = load_scenes(config.data.validation)
        if not sum(map(len, self.validation.boxes)):
            raise InputError("There is nobody in data.validation: nothing can be measured on it.")
        network = new_network(size=self.schedule.size, seed=config.seed)
        self.start, start = "random weights", {}
        if (weights := config.network.weights) is not None:
            load_weights(network, weights)
            start = {weights.name: file_sha256(weights)}
            self.start = f"{weights.name} ({start[weights.name][:12]}…)"
        self.learner = DetectorLearner(network, config, resolve_device(config.device))
        self.step = 0  # steps done
        self.best = -math.inf  # AP50, highest so far
        self.identity = {
            **{name: value for name, value in flatten(config).items() if name not in FREE},
            **start,
            "number of scenes": len(self.scenes.jpegs),
        }

    @property
    def seen(self) -> int:
        """How many pictures have been seen."""
        return self.step * self.schedule.batch_size

    def checks(self) -> Iterator[Check]:
        """Train until the schedule ends."""
        every, batch_size = self.config.validate_every, self.schedule.batch_size
        if self.seen >= self.schedule.pictures:
            self.report.warn(f"The run in {self.out} has ended: its folder holds what it learnt.")
        columns = ("step", "learning_rate", "box", "class", "distribution")
        metrics = MetricsFile(self.out / METRICS, columns, done=self.step)
        checks = MetricsFile(self.out / VALIDATION, tuple(Check.__annotations__), done=self.step)
        steps = range(self.step, -(-self.schedule.pictures // batch_size))
        data = batches(
            self.scenes, steps, batch_size=batch_size, sizes=self.schedule.sizes,
            mosaic=self.schedule.mosaic, seed=self.config.seed,
        )  # fmt: skip
        try:
            while self.seen < self.schedule.pictures:
                until = min((self.seen // every + 1) * every, self.schedule.pictures)
                count = -(-(until - self.seen) // batch_size)
                started, total = time.monotonic(), 0.0
                stage = f"pictures up to {until} of {self.schedule.pictures}"
                with self.report.stage(stage, total=count * batch_size) as advance:
                    for _ in range(count):
                        row = self._learn(next(data))
                        metrics.write(row)
                        total += row["box"] + row["class"] + row["distribution"]
                        if self.seen % self.config.checkpoint_every < batch_size:
                            metrics.flush()
                            self._checkpoint()
                        advance(batch_size)
                check = self._check(
                    total / count, count * batch_size / (time.monotonic() - started)
                )
                checks.write(asdict(check))
                checks.flush()
                self._save(LAST, check)
                if check.best:
                    self._save(BEST, check)
                metrics.flush()
                self._checkpoint()
                yield check
        finally:
            data.close()
            metrics.close()
            checks.close()

    def _learn(self, batch: Batch) -> dict[str, float]:
        """Take one step; return its row of the metrics."""
        rate = self.learner.rate(self.seen)
        losses = self.learner.learn(self.step, batch)
        self.step += 1
        if not math.isfinite(sum(losses.values())):
            raise InputError(
                f"Training broke down: the loss of step {self.step} is not a number. Lower "
                "schedule.learning_rate and start anew."
            )
        return {"step": self.step, "learning_rate": rate, **losses}

    def _check(self, total: float, pictures_per_second: float) -> Check:
        with self.report.stage("validation"):
            found = judge(self.learner, self.validation, size=self.schedule.size)
        best = found["ap50"] > self.best
        self.best = max(self.best, found["ap50"])
        return Check(self.step, self.seen, total, pictures_per_second, best=best, **found)

    def _save(self, file: str, check: Check) -> None:
        whole = self.seen >= self.schedule.pictures
        names = ", ".join(path.name for path in self.config.data.scenes)
        network = copy.deepcopy(self.learner.averaged).to(
            "cpu", memory_format=torch.contiguous_format
        )
        save_detector(
            network,
            self.out / file,
            name=self.config.name if whole else f"{self.config.name} ({PARTLY_TRAINED})",
            note=(
                f"{'trained' if whole else PARTLY_TRAINED} from {self.start} on synthetic scenes "
                f"alone: {check.pictures} pictures of {self.schedule.pictures} in the schedule, "
                f"from {names}, at {min(self.schedule.sizes)} to {max(self.schedule.sizes)} px; "
                f"AP50 {check.ap50:.3f} on the validation scenes"
            ),
            long_sides=self.config.long_sides,
            nms_iou=self.config.nms_iou,
            double_iou=self.config.double_iou,
        )

    def _checkpoint(self) -> None:
        save_checkpoint(
            self.out / RESUME,
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


def save_detector(
    network: Any,
    path: Path,
    *,
    name: str,
    note: str,
    long_sides: tuple[int, ...],
    nms_iou: float,
    double_iou: float,
) -> None:
    """Write a checkpoint in ultralytics' format, in half precision; `network` is used up.

    What is said of it is under "mpsnet". Raises OutputError where that fails.
    """
    head = network.model[-1]
    head.shape, head.anchors, head.strides = None, torch.empty(0), torch.empty(0)
    checkpoint = {
        "model": network.half().eval(),
        "ema": None,
        "train_args": dict(network.args),
        "license": LICENCE,
        "mpsnet": {
            "name": name,
            "note": note,
            "licence": LICENCE,
            "long_sides": list(long_sides),
            "nms_iou": nms_iou,
            "double_iou": double_iou,
        },
    }
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    replace_file(path, buffer.getvalue())
