from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from toy_training import WIDTH, make_small, toy_config

from benchmarks.ablation import synthetic_sequences
from mpsnet_cli.body import load_body
from mpsnet_cli.datasets import load_sequences, save_sequences
from mpsnet_cli.errors import DeviceError, InputError, OutputError, WeightsError
from mpsnet_cli.evaluation.evaluate import evaluate
from mpsnet_cli.evaluation.metrics import pa_mpjpe
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.untrained import untrained_network
from mpsnet_cli.progress import Reporter
from mpsnet_cli.training import loop
from mpsnet_cli.training.config import Data, Network, Schedule, TrainConfig, load_config
from mpsnet_cli.training.data import Prior, Windows
from mpsnet_cli.training.discriminator import body_pose
from mpsnet_cli.training.learner import Joints, Learner
from mpsnet_cli.training.loop import Epoch, train
from mpsnet_cli.weights import load_model, read_info
from mpsnet_cli.windows import TARGET, WINDOW, window_indices


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        return toy_config(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)


def run(config: TrainConfig, out: Path, *, resume: bool = False) -> tuple[list[Epoch], Reporter]:
    report = Reporter()
    return list(train(config, out, resume=resume, report=report)), report


def table(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def assert_same_curve(one: Path, other: Path) -> None:
    for name in ("metrics.csv", "validation.csv"):
        a, b = table(one / name), table(other / name)
        assert [row["step"] for row in a] == [row["step"] for row in b]
        for left, right in zip(a, b, strict=True):
            assert left == pytest.approx(right, rel=1e-6), name


def with_prior(config: TrainConfig, folder: Path) -> TrainConfig:
    """Motions long enough for the discriminator: each sequence's poses, four times over."""
    sequences = []
    for s in load_sequences(config.data.three_d[0]):
        assert s.pose is not None
        rows = np.tile(np.arange(len(s)), 4)
        sequences.append(
            replace(s, frame_ids=np.arange(len(rows)), features=s.features[rows],
                    pose=s.pose[rows], betas=None, joints2d=None, joints3d=None)
        )  # fmt: skip
    save_sequences(folder / "prior.npz", sequences)
    return replace(config, data=replace(config.data, prior=(folder / "prior.npz",)))


def test_from_sequences_to_a_weight_file_that_the_tool_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    make_small(monkeypatch, backbone=True)
    toy = toy_config(tmp_path)
    config = with_prior(replace(toy, name="ours", licence="CC0-1.0"), tmp_path)
    out = tmp_path / "run"
    epochs, report = run(config, out)
    assert not report.warnings
    assert [epoch.number for epoch in epochs] == [1, 2]
    assert [epoch.step for epoch in epochs] == [4, 8]
    rows = table(out / "metrics.csv")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["epoch"] for row in rows] == [1] * 4 + [2] * 4
    assert all(row["adversarial"] > 0 and row["discriminator"] > 0 for row in rows)
    weighted = ("joints2d", "joints3d", "pose", "betas", "adversarial")
    for row in rows:
        assert row["total"] == pytest.approx(sum(row[name] for name in weighted), rel=1e-5)
    assert epochs[1].total == pytest.approx(np.mean([row["total"] for row in rows[4:]]))
    assert table(out / "validation.csv")[1]["pa_mpjpe"] == pytest.approx(epochs[1].pa_mpjpe)

    best = min(epochs, key=lambda epoch: epoch.pa_mpjpe)
    info = read_info(out / "best.safetensors")
    how = "" if best.number == 2 else " (partly trained)"
    assert (info.name, info.licence, info.trained) == ("ours" + how, "CC0-1.0", True)
    assert info.note.endswith(f"PA-MPJPE {best.pa_mpjpe:.1f} mm on the validation sequences")
    assert "train.npz" in info.note
    assert info.sources.keys() == {"start.safetensors"}
    last = read_info(out / "last.safetensors")
    assert last.name == "ours"
    assert last.note.startswith("trained: 8 steps of 4 windows, epoch 2 of 2")

    assert toy.network.weights is not None
    before, after = load_file(toy.network.weights), load_file(out / "last.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        name for name in before
        if name.startswith(("encoder.", "regressor.")) and ".init_" not in name
    }  # fmt: skip

    model = load_model(out / "best.safetensors", device="cpu")
    body = load_body("free-1")
    result = evaluate(load_sequences(config.data.validation[0]), model, body)
    assert result.pooled.mean("pa_mpjpe") == pytest.approx(best.pa_mpjpe, rel=1e-4)


def test_the_loss_falls(toy: TrainConfig, tmp_path: Path) -> None:
    schedule = Schedule(epochs=1, steps_per_epoch=40, batch_size=8, learning_rate=1e-3)
    _, report = run(replace(toy, schedule=schedule), tmp_path)
    losses = [row["total"] for row in table(tmp_path / "metrics.csv")]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert any("Without data.prior" in warning for warning in report.warnings)


def test_runs_of_one_seed_are_equal_and_of_another_not(toy: TrainConfig, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(replace(toy, seed=seed), tmp_path / name)
    a, b, c = ((tmp_path / name / "metrics.csv").read_bytes() for name in "abc")
    assert a == b
    assert a != c


KILLED = """
import os, signal, sys, torch
from pathlib import Path
import pytest
sys.path[:0] = ["tests", "."]
torch.set_num_threads(int(sys.argv[3]))
from toy_training import make_small
make_small(pytest.MonkeyPatch())
from mpsnet_cli.progress import Reporter
from mpsnet_cli.training import loop
from mpsnet_cli.training.config import TrainConfig, load_config

class Metrics(loop.MetricsFile):
    def write(self, row):
        super().write(row)
        if row["step"] == 9:
            os.kill(os.getpid(), signal.SIGKILL)

loop.MetricsFile = Metrics
config = load_config(Path(sys.argv[1]), TrainConfig)
for _ in loop.train(config, Path(sys.argv[2]), report=Reporter()):
    pass
"""


def test_a_killed_run_goes_on_as_if_nothing_had_been(toy: TrainConfig, tmp_path: Path) -> None:
    assert toy.network.weights is not None
    prior = with_prior(toy, tmp_path).data.prior[0]
    file = tmp_path / "config.yaml"
    file.write_text(f"""
        data: {{three_d: {toy.data.three_d[0]}, validation: {toy.data.validation[0]},
                prior: {prior}, stride: 2}}
        network: {{weights: {toy.network.weights}}}
        schedule: {{epochs: 2, steps_per_epoch: 6, batch_size: 4, learning_rate: 1e-3}}
        device: cpu
        checkpoint_every: 2
    """)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", KILLED, file, killed, str(torch.get_num_threads())]
    process = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert len(table(killed / "metrics.csv")) == 9  # the last checkpoint is of step 8
    config = load_config(file, TrainConfig)
    epochs, report = run(config, killed, resume=True)
    assert not report.warnings
    assert [epoch.number for epoch in epochs] == [2]
    straight, _ = run(config, whole)
    assert epochs[0].total == pytest.approx(straight[1].total, rel=1e-6)
    assert_same_curve(killed, whole)
    done = table(whole / "metrics.csv")
    assert len(done) == 12
    assert len({row["total"] for row in done}) == 12  # so that equal curves mean something


def test_a_full_disk_leaves_a_checkpoint_to_go_on_from(
    toy: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "full"
    fsync, synced = os.fsync, []

    def full(descriptor: int) -> None:
        part = out / ".resume.pt.part"
        if part.exists() and os.path.samestat(os.fstat(descriptor), part.stat()):
            if synced:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            synced.append(descriptor)
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"Cannot write .*resume.pt: No space left") as error:
            run(toy, out)
    assert len(error.value.message.splitlines()) == 1
    assert len(table(out / "metrics.csv")) == 4
    run(toy, out, resume=True)
    run(toy, tmp_path / "whole")
    assert_same_curve(out, tmp_path / "whole")
    assert not list(out.glob(".*.part"))


def test_what_may_change_on_resuming_and_what_not(toy: TrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    longer = replace(toy, schedule=replace(toy.schedule, epochs=3))
    _, report = run(toy, out, resume=True)
    assert f"{out} has no checkpoint yet" in report.warnings[-1]
    epochs, report = run(toy, out, resume=True)
    assert not epochs
    assert "has ended" in report.warnings[-1]
    with pytest.raises(OutputError, match="--resume continues it"):
        run(toy, out)
    assert [epoch.number for epoch in run(longer, out, resume=True)[0]] == [3]
    run(longer, tmp_path / "whole")
    assert_same_curve(out, tmp_path / "whole")

    other = replace(toy.network, encoder="fresh", attention="nonlocal")
    for changed, words in (
        (replace(toy, network=other), "its attention is moca, and this one's is nonlocal"),
        (replace(toy, seed=3), "its seed is 0, and this one's is 3"),
        (
            replace(toy, schedule=replace(toy.schedule, batch_size=5)),
            "its schedule.batch_size is 4, and this one's is 5",
        ),
        (replace(toy, data=replace(toy.data, two_d=toy.data.three_d)), "its data.two_d is"),
    ):
        with pytest.raises(InputError, match="is of another run") as error:
            run(changed, out, resume=True)
        assert words in error.value.message
        assert len(error.value.message.splitlines()) == 1


def test_a_checkpoint_that_does_not_fit_is_one_sentence(toy: TrainConfig, tmp_path: Path) -> None:
    run(toy, tmp_path)
    path = tmp_path / "resume.pt"
    state = torch.load(path, weights_only=True)
    for key, value in (("encoder", {}), ("identity", "{"), ("identity", "[]"), ("step", "x")):
        torch.save({**state, key: value}, path)
        with pytest.raises(InputError, match="does not fit this run") as error:
            run(toy, tmp_path, resume=True)
        assert len(error.value.message.splitlines()) == 1


def test_two_runs_do_not_share_a_folder(toy: TrainConfig, tmp_path: Path) -> None:
    first = train(toy, tmp_path, report=Reporter())
    next(first)
    with pytest.raises(OutputError, match="Another run is writing"):
        run(toy, tmp_path)
    first.close()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("bf16")
def test_bf16_stays_near_fp32(toy: TrainConfig, tmp_path: Path) -> None:
    curves = []
    toy = replace(toy, schedule=replace(toy.schedule, learning_rate=1e-4))
    for precision in ("fp32", "bf16"):
        run(replace(toy, precision=precision), tmp_path / precision)  # type: ignore[arg-type]
        curves.append([row["total"] for row in table(tmp_path / precision / "metrics.csv")])
    assert curves[0] != curves[1]
    assert curves[1] == pytest.approx(curves[0], rel=0.05)


def test_precisions_that_are_not_here(
    toy: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeviceError, match="fp16 needs CUDA"):
        run(replace(toy, precision="fp16"), tmp_path / "fp16")
    monkeypatch.setattr("mpsnet_cli.model.inference.can_round_to_bf16", lambda: False)
    with pytest.raises(DeviceError, match="does not compute in bf16"):
        run(replace(toy, precision="bf16"), tmp_path / "bf16")


def test_tensorboard_holds_the_same(
    toy: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(toy, tmp_path / "with")
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    events.Reload()
    for part, file in (("train/total", "metrics.csv"), ("validation/pa_mpjpe", "validation.csv")):
        rows = table(tmp_path / "with" / file)
        found = [(event.step, event.value) for event in events.Scalars(part)]
        expected = [(row["step"], row[part.partition("/")[2]]) for row in rows]
        assert np.allclose(found, expected)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    _, report = run(toy, tmp_path / "without")
    assert any("No TensorBoard events" in warning for warning in report.warnings)
    assert_same_curve(tmp_path / "with", tmp_path / "without")


def test_a_loss_that_is_no_number_stops_the_run(
    toy: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Learner.learn

    def broken(self: Learner, step: int, *rest: Any) -> dict[str, float]:
        losses = learn(self, step, *rest)
        return {**losses, "pose": float("nan")} if step == 5 else losses

    monkeypatch.setattr(Learner, "learn", broken)
    with pytest.raises(InputError, match="Training broke down: the loss of step 6"):
        run(toy, tmp_path)
    assert len(table(tmp_path / "metrics.csv")) == 5


def make_learner(config: TrainConfig) -> Learner:
    network = untrained_network(0, MPSNetConfig(feature_dim=WIDTH))
    joints = Joints(load_body("free-1"), "smpl24", None)
    return Learner(network, joints, config, device=torch.device("cpu"))


def test_the_discriminator_sees_each_frame(toy: TrainConfig) -> None:
    learner = make_learner(toy)
    learner.network.eval()
    x = torch.randn(3, 16, WIDTH)
    prediction, motions = learner._predict(x, with_motions=True)
    assert motions is not None
    z = learner.encoder.moca(x)
    for window, frame in ((0, 0), (1, 7), (2, 15)):
        alone = body_pose(learner.regressor(z[window, frame][None]).rotmats)[0]
        torch.testing.assert_close(motions[window, frame], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(prediction.rotmats, learner.network(x).rotmats)
    assert learner._predict(x, with_motions=False)[1] is None


def test_the_discriminator_learns_and_teaches(toy: TrainConfig, tmp_path: Path) -> None:
    config = with_prior(toy, tmp_path)
    schedule = replace(config.schedule, discriminator_learning_rate=0.01)
    config = replace(config, schedule=schedule)
    sequences = load_sequences(config.data.three_d[0])
    batch = Windows(sequences, [], batch_size=4, share_2d=0.6, stride=2, seed=0).batch(0)
    poses = [s.pose for s in load_sequences(config.data.prior[0]) if s.pose is not None]
    real = Prior(poses, batch_size=4, seed=0).batch(0)
    with_, without = make_learner(config), make_learner(config)
    before = [p.clone() for p in with_.discriminator.parameters()]
    losses = [with_.learn(step, batch, real)["discriminator"] for step in range(8)]
    assert losses[-1] < 0.9 * losses[0]
    assert any(
        not torch.equal(a, b) for a, b in zip(before, with_.discriminator.parameters(), strict=True)
    )
    without.learn(0, batch, None)
    again = make_learner(config)
    again.learn(0, batch, real)
    assert not torch.equal(again.regressor.pose.weight, without.regressor.pose.weight)


def test_rates_fall_when_nothing_gets_better(toy: TrainConfig) -> None:
    schedule = Schedule(learning_rate=1e-3, discriminator_learning_rate=2e-3)
    learner = make_learner(replace(toy, schedule=schedule))
    rates = []
    for error in (60, 50, 51, 52, 50, 50, 53, 54, 49):
        learner.epoch_ended(error)
        rates.append(learner.learning_rate)
    assert rates[:7] == [1e-3] * 7  # five epochs without a better one are allowed
    assert rates[7:] == pytest.approx([1e-4] * 2)
    (group,) = learner.discriminator_optimiser.param_groups
    assert group["lr"] == pytest.approx(2e-4)
    assert group["weight_decay"] == 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention": "nonlocal"}, "has attention moca, and the config asks for nonlocal"),
        ({"integration": "none"}, "set network.integration: hafi, or network.encoder: fresh"),
        ({"body": "smpl"}, "has body free-1, and the config asks for smpl"),
        ({"body": "smpl", "encoder": "fresh"}, "has body free-1"),
    ],
)
def test_weights_of_another_network_are_refused(
    toy: TrainConfig, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    config = replace(toy, network=replace(toy.network, **change))
    with pytest.raises(WeightsError) as error:
        run(config, tmp_path)
    assert words in error.value.message


def test_a_fresh_encoder_passes_features_on(toy: TrainConfig) -> None:
    assert toy.network.weights is not None
    start = read_info(toy.network.weights)
    options = Network(toy.network.weights, "fresh", "nonlocal", "none")
    fresh = loop.start_network(start, options, seed=0)
    kept = loop.start_network(start, toy.network, seed=0)
    x = torch.randn(2, 16, WIDTH)
    assert torch.equal(fresh.encoder(x)[0], x[:, 8])
    assert torch.equal(fresh.regressor.fc1.weight, kept.regressor.fc1.weight)
    assert fresh.config == replace(start.config, attention="nonlocal", integration="none")


def test_sequences_that_teach_nothing_are_refused(toy: TrainConfig, tmp_path: Path) -> None:
    sequences = load_sequences(toy.data.three_d[0])
    file = tmp_path / "other.npz"
    for change, words in (
        ({"joints3d": None, "pose": None}, "has none of joints3d, pose"),
        ({"body": "smpl"}, "is labelled with the body smpl"),
    ):
        save_sequences(file, [replace(s, **change) for s in sequences])
        config = replace(toy, data=replace(toy.data, three_d=(file,)))
        with pytest.raises(InputError) as error:
            run(config, tmp_path / "run")
        assert words in error.value.message
        assert str(file) in error.value.message


def test_of_two_d_only_the_2d_joints_teach(toy: TrainConfig, tmp_path: Path) -> None:
    data = Data((), toy.data.validation, two_d=toy.data.three_d)
    run(replace(toy, data=data), tmp_path)
    for row in table(tmp_path / "metrics.csv"):
        assert row["joints2d"] > 0
        assert row["joints3d"] == row["pose"] == row["betas"] == 0


def test_validation_that_cannot_be_used_is_told_of_before_training(
    toy: TrainConfig, tmp_path: Path
) -> None:
    data = replace(toy.data, validation=())
    with pytest.raises(InputError, match="None of the 0 sequences can be evaluated"):
        run(replace(toy, data=data), tmp_path)
    assert not (tmp_path / "metrics.csv").exists()


def test_spin49_needs_spins_regressor() -> None:
    with pytest.raises(InputError, match=r"data\.j_regressor_extra"):
        loop.training_joints(load_body("free-1"), "spin49", None)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_eight_sequences_are_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full-size network comes to know eight people by heart, from random weights on.

    Only windows that it trained on count: those at the ends of a sequence, which hold one frame
    sixteen times, are like none of them.
    """
    monkeypatch.undo()
    body = load_body("free-1")
    people = synthetic_sequences(8, body, split="train", frames=32, width=2048)
    files = (tmp_path / "eight.npz",)
    save_sequences(files[0], people)
    weights = None
    for epochs, rate in ((3, 5e-4), (1, 1e-4), (1, 3e-5)):
        config = TrainConfig(
            Data(files, files, stride=1),
            Network(weights),
            schedule=Schedule(epochs, 200, 16, learning_rate=rate),
            device="cpu",
        )
        run(config, tmp_path / str(rate))
        weights = tmp_path / str(rate) / "last.safetensors"
    model = load_model(weights, device="cpu", precision="fp32")
    errors = []
    for s in people:
        assert s.joints3d is not None
        inside = window_indices(np.arange(len(s)))[TARGET : TARGET - WINDOW + 1]
        found = model.predict(torch.from_numpy(s.features), inside)
        _, joints = body.posed(found.rotmats, found.betas, vertices=False)
        errors.append(pa_mpjpe(joints.numpy(), s.joints3d[inside[:, TARGET]]))
    assert np.mean(errors) < 15  # mm
