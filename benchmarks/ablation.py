"""Train Table 3's four networks on synthetic features, beside the paper's numbers.

    python -m benchmarks.ablation

The features are no pictures': each frame's is a fixed random two-layer network of what is to be
found (rotations, betas, camera), with noise of its own, and with bursts in which most of it is
hidden, so that looking at other frames pays. What comes out says how the modules fare at that, and
nothing of real data. The movements are those of `mpsnet synth`; the networks are validated on takes
that they did not train on. Features are narrow and the schedule short, for a CPU; the adversarial
loss is left out.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.body import BodyModel, load_body
from mpsnet_cli.datasets import Sequence, save_sequences
from mpsnet_cli.evaluation.evaluate import evaluate_sequences
from mpsnet_cli.geometry import axis_angle_to_matrix, matrix_to_axis_angle, nearest_rotation
from mpsnet_cli.model.config import Attention, Integration, MPSNetConfig
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.model.untrained import untrained_network
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.motions import Movement, draw_movement, load_repertoire
from mpsnet_cli.synth.repertoire import Split
from mpsnet_cli.training.config import Data, Network, Schedule, TrainConfig
from mpsnet_cli.training.loop import train
from mpsnet_cli.training.losses import project_to_crop
from mpsnet_cli.weights import save_network

WIDTH = 256  # of a feature; the real backbone's is 2048
HIDDEN = 512  # of the network that makes features
NORM = 8.0  # of a feature without noise
NOISE = 0.5  # of each frame, in parts of a feature's spread
BURST_EVERY, BURST = 30, (3, 9)  # frames between occlusions on average, and their lengths
HIDDEN_SHARE = 0.15  # of a person's feature that remains where the person is hidden
CAM = np.array([0.9, 0.0, 0.0])  # s, tx, ty that cameras waver about
FPS = 30.0
SEEDS: dict[Split, int] = {"train": 1, "held-out": 2}
LEARNING_RATE = 3e-4  # 6 times the paper's: the run is 20 times shorter


@dataclass(frozen=True)
class Row:
    """One network of Table 3: PA-MPJPE, MPJPE, MPVPE in mm, ACC-ERR in mm/frame²."""

    name: str
    attention: Attention
    integration: Integration
    paper: tuple[float, float, float, float]


TABLE_3 = (
    Row("only non-local", "nonlocal", "none", (54.1, 87.6, 103.1, 24.1)),
    Row("only MoCA", "moca", "none", (53.0, 86.7, 102.2, 23.5)),
    Row("MoCA + TF-intgr.", "moca", "tcmr", (52.4, 86.0, 101.5, 10.5)),
    Row("MoCA + HAFI", "moca", "hafi", (52.1, 84.3, 99.7, 7.4)),
)


def synthetic_sequences(
    count: int, body: BodyModel, *, split: Split, frames: int, width: int = WIDTH
) -> list[Sequence]:
    """Draw people who move, and features of them; the way from one to the other is fixed.

    Number k of a split is the same whatever `count` is.
    """
    layers = np.random.default_rng(0)
    inner = layers.normal(0, 1, (24 * 6 + 10 + 3, HIDDEN)) / 4
    outer = layers.normal(0, 1, (HIDDEN, width))
    repertoire = load_repertoire(split)
    drawn = []
    for number in range(count):
        rng = np.random.default_rng((SEEDS[split], number))
        movement = draw_movement(repertoire, rng, frames=frames, fps=FPS)
        drawn.append(_sequence(f"{split}/{number:04d}", movement, rng, body, inner, outer))
    return drawn


def _sequence(
    name: str,
    movement: Movement,
    rng: np.random.Generator,
    body: BodyModel,
    inner: NDArray[np.float64],
    outer: NDArray[np.float64],
) -> Sequence:
    frames = len(movement.rotations)
    rotmats = movement.rotations.copy()
    rotmats[:, 0] = np.diag([1, -1, -1]) @ rotmats[:, 0]  # y down, the camera in front
    betas = np.tile(rng.standard_normal(10), (frames, 1))
    cam = CAM + 0.05 * _waves(rng, frames, 3)
    seen = [rotmats[..., :2].reshape(frames, -1), 0.3 * betas, 10 * (cam - CAM)]
    clean = np.tanh(np.concatenate(seen, axis=1) @ inner) @ outer
    clean *= NORM / np.sqrt(HIDDEN * outer.shape[1] / 2)  # tanh leaves about half the square
    spread = clean.std(axis=0).mean()
    features = clean + NOISE * spread * rng.standard_normal(clean.shape)
    hidden = _bursts(rng, frames)
    occluder = spread * rng.standard_normal(clean.shape)
    features[hidden] = HIDDEN_SHARE * clean[hidden] + occluder[hidden]
    pose = matrix_to_axis_angle(rotmats).reshape(frames, 72).astype(np.float32)
    joints3d = body.joints(pose, betas)
    joints2d = project_to_crop(torch.from_numpy(joints3d), torch.from_numpy(cam).float()).numpy()
    return Sequence(
        name=name,
        body="free-1",
        fps=FPS,
        frame_ids=np.arange(frames),
        features=features.astype(np.float32),
        joint_set="smpl24",
        joints3d=joints3d,
        joints2d=np.concatenate([joints2d, np.ones((frames, 24, 1), np.float32)], axis=-1),
        pose=pose,
        betas=betas.astype(np.float32),
    )


def _waves(rng: np.random.Generator, frames: int, count: int) -> NDArray[np.float64]:
    """Draw smooth curves (frames, count) of variance 1: four sinusoids of 0.1 to 1.2 Hz each."""
    rate, phase = rng.uniform(0.1, 1.2, (4, count)), rng.uniform(0, 2 * np.pi, (4, count))
    time = np.arange(frames)[:, None, None] / FPS
    return np.sin(2 * np.pi * rate * time + phase).sum(axis=1) / np.sqrt(2)


def _bursts(rng: np.random.Generator, frames: int) -> NDArray[np.bool_]:
    hidden = np.zeros(frames, bool)
    for start in np.flatnonzero(rng.random(frames) < 1 / BURST_EVERY):
        hidden[start : start + rng.integers(*BURST)] = True
    return hidden


def mean_person(people: list[Sequence]) -> Prediction:
    """Return the mean pose and betas of training sequences, one row each: what knows nothing."""
    poses = [s.pose for s in people if s.pose is not None]
    betas = [s.betas for s in people if s.betas is not None]
    rotmats = axis_angle_to_matrix(np.concatenate(poses).reshape(-1, 24, 3))
    mean = nearest_rotation(rotmats.mean(axis=0))
    values = mean, np.concatenate(betas).mean(axis=0), CAM
    return Prediction(*(torch.tensor(value, dtype=torch.float32)[None] for value in values))


def errors_of_mean(
    learned: list[Sequence], validation: list[Sequence], body: BodyModel
) -> NDArray[np.float64]:
    """Evaluate `mean_person` on sequences that it was not made of."""
    mean = mean_person(learned)

    def predict(_: Tensor, windows: NDArray[np.int64]) -> Prediction:
        return Prediction(*(value.expand(len(windows), *value.shape[1:]) for value in mean))

    means = evaluate_sequences(validation, predict, body).pooled.means()
    return np.array([means[key] for key in ("pa_mpjpe", "mpjpe", "mpvpe", "acceleration")])


def errors_of(row: Row, folder: Path, *, seed: int, schedule: Schedule) -> NDArray[np.float64]:
    """Train one network from scratch on the folder's sequences; return the best epoch's errors."""
    network = MPSNetConfig(feature_dim=WIDTH, attention=row.attention, integration=row.integration)
    start = folder / "start.safetensors"
    save_network(
        untrained_network(seed, network), start, name="start", trained=False, licence="CC0-1.0",
        sources={}, note="", overwrite=True,
    )  # fmt: skip
    config = TrainConfig(
        data=Data((folder / "train.npz",), (folder / "validation.npz",), stride=4),
        network=Network(start, attention=row.attention, integration=row.integration),
        schedule=schedule,
        seed=seed,
        device="cpu",
        checkpoint_every=schedule.steps_per_epoch,
    )
    with tempfile.TemporaryDirectory() as out:
        epochs = list(train(config, Path(out), report=Reporter()))
    best = min(epochs, key=lambda epoch: epoch.pa_mpjpe)
    return np.array([best.pa_mpjpe, best.mpjpe, best.mpvpe, best.acceleration])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=512, help="to train on")
    parser.add_argument("--frames", type=int, default=48, help="of each")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=250, help="of an epoch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    body = load_body("free-1")
    schedule = Schedule(
        epochs=options.epochs, steps_per_epoch=options.steps, learning_rate=LEARNING_RATE
    )
    learned = synthetic_sequences(options.sequences, body, split="train", frames=options.frames)
    validation = synthetic_sequences(16, body, split="held-out", frames=64)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_sequences(folder / "train.npz", learned)
        save_sequences(folder / "validation.npz", validation)
        print("| network | PA-MPJPE | MPJPE | MPVPE | ACC-ERR | the paper's, on 3DPW |")
        print("|---" * 6 + "|")
        print(f"| mean person | {_cells(errors_of_mean(learned, validation, body)[None])} | |")
        for row in TABLE_3:
            errors = [
                errors_of(row, folder, seed=seed, schedule=schedule)
                for seed in range(options.seeds)
            ]
            paper = ", ".join(map(str, row.paper))
            print(f"| {row.name} | {_cells(np.array(errors))} | {paper} |")


def _cells(errors: NDArray[np.float64]) -> str:
    """Format means over seeds (rows), with their standard deviations where there are several."""
    spread = errors.std(axis=0, ddof=1) if len(errors) > 1 else None
    return " | ".join(
        f"{mean:.1f}" + (f" ± {spread[k]:.1f}" if spread is not None else "")
        for k, mean in enumerate(errors.mean(axis=0))
    )


if __name__ == "__main__":
    main()
