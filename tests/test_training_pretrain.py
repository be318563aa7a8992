"""Training on single pictures, with a backbone small enough for the tests."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from mpsnet_cli.body import PARENTS, load_body
from mpsnet_cli.cli import main
from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.evaluation import metrics
from mpsnet_cli.geometry import axis_angle_to_matrix
from mpsnet_cli.model.backbone import Backbone
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.model.regressor import Prediction, Regressor
from mpsnet_cli.model.untrained import untrained_network
from mpsnet_cli.progress import Reporter
from mpsnet_cli.training import pretrain as loop
from mpsnet_cli.training.config import (
    PictureData,
    PictureNetwork,
    PictureSchedule,
    PretrainConfig,
    load_config,
)
from mpsnet_cli.training.crops import Crops, augment, load_crops
from mpsnet_cli.training.pretrain import (
    EVEN,
    batch_rows,
    errors,
    open_shortcuts,
    pretrain,
    resized,
    start_at_mean,
)
from mpsnet_cli.training.speed import product_rate, training_dtype, training_flops
from mpsnet_cli.training.student import (
    MAPS_FIRST,
    Maps,
    PictureLearner,
    joint_maps,
    joints_on,
    map_losses,
    pose_losses,
    procrustes_aligned,
)
from mpsnet_cli.weights import (
    PARTLY_TRAINED,
    load_model,
    load_network,
    read_info,
    save_network,
)
from tests.test_training_crops import make_folder

WIDTH = 32


class TinyBackbone(nn.Module):
    """Three convolutions and a batch norm, with the backbone's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 512, 8, stride=8), nn.BatchNorm2d(512))
        self.second = nn.Conv2d(512, 1024, 2, stride=2)
        self.third = nn.Conv2d(1024, WIDTH, 2, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        return self.upper(self.lower(images)[1])

    def lower(self, images: Tensor) -> tuple[Tensor, Tensor]:
        second = self.first(images).relu()
        return second, self.second(second).relu()

    def upper(self, third: Tensor) -> Tensor:
        return self.third(third).float().mean(dim=(2, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("data") / "crops", count=24)


@pytest.fixture(scope="module")
def crops(folder: Path) -> Crops:
    return load_crops([folder], Reporter())


@pytest.fixture
def config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainConfig:
    monkeypatch.setattr("mpsnet_cli.model.mpsnet.Backbone", TinyBackbone)
    monkeypatch.setattr("mpsnet_cli.model.regressor.HIDDEN_DIM", 64)
    monkeypatch.setattr(loop, "MPSNetConfig", partial(MPSNetConfig, feature_dim=WIDTH))
    return PretrainConfig(
        PictureData((folder,), (folder,)),
        schedule=PictureSchedule(
            crops=96, sizes=(32, 64), batch_size=8, learning_rate=3e-3, warmup=16
        ),
        name="ours", licence="CC0-1.0", device="cpu", precision="fp32",
        checkpoint_every=16, validate_every=40,
    )  # fmt: skip


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def truth_as_prediction(crops: Crops) -> Prediction:
    return Prediction(crops.rotmats, crops.betas, torch.tensor([[0.9, 0.0, 0.0]] * 24))


def chained_rotations(crops: Crops) -> Tensor:
    """Rotate each joint by all rotations from the root to it, joint by joint."""
    chained = torch.empty_like(crops.rotmats)
    for joint, parent in enumerate(PARENTS):
        above = torch.eye(3) if parent < 0 else chained[:, parent]
        chained[:, joint] = above @ crops.rotmats[:, joint]
    return chained


def test_a_run_from_crops_to_a_weight_file(config: PretrainConfig, tmp_path: Path) -> None:
    out = tmp_path / "run"
    checks = list(pretrain(config, out, report=Reporter()))
    assert [check.crops for check in checks] == [40, 80, 96]
    assert [check.size for check in checks] == [32, 64, 64]
    rows = table(out / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["size"]) for row in rows] == [32] * 6 + [64] * 6
    assert float(table(out / "validation.csv")[-1]["pa_mpjpe"]) == pytest.approx(
        checks[-1].pa_mpjpe
    )
    assert not checks[0].best  # the regressor had not learnt yet
    assert checks[1].best
    best = min(checks[1:], key=lambda check: check.pa_mpjpe)
    info = read_info(out / "best.safetensors")
    assert (info.name, info.licence, info.trained) == (
        "ours (partly trained)", "CC0-1.0", True,
    )  # fmt: skip
    assert f"{best.crops} crops of 96" in info.note
    assert "temporal modules untrained" in info.note
    assert info.config.crop_size == 64
    assert json.loads(json.dumps(info.sources)) == {}


@pytest.mark.slow
def test_training_fits_the_crops(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpsnet_cli.training.student.MAPS_FIRST", 0.1)
    long = replace(config, validate_every=1600,
                   schedule=replace(config.schedule, crops=1600, sizes=(64,)))  # fmt: skip
    list(pretrain(long, tmp_path, report=Reporter()))
    rows = table(tmp_path / "metrics.csv")
    for name, most in (("joints3d", 0.93), ("maps", 0.96), ("depths", 0.93), ("turns", 0.96)):
        values = [value for row in rows if (value := float(row[name])) > 0]
        assert sum(values[-30:]) < most * sum(values[:30]), name


def test_a_stopped_run_goes_on_as_if_nothing_had_been(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(pretrain(config, tmp_path / "whole", report=Reporter()))
    learn = PictureLearner.learn

    def stop(self: PictureLearner, step: int, crops: Crops) -> object:
        if step == 7:
            raise KeyboardInterrupt
        return learn(self, step, crops)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(PictureLearner, "learn", stop)
        with pytest.raises(KeyboardInterrupt):
            list(pretrain(config, out, report=Reporter()))
    with pytest.raises(OutputError, match="--resume continues it"):
        next(pretrain(config, out, report=Reporter()))
    rest = list(pretrain(config, out, resume=True, report=Reporter()))
    assert [check.crops for check in rest] == [80, 96]
    assert table(out / "metrics.csv") == table(tmp_path / "whole" / "metrics.csv")
    assert rest[-1].pa_mpjpe == pytest.approx(whole[-1].pa_mpjpe, abs=1e-6)


def test_a_checkpoint_of_another_run_is_refused(config: PretrainConfig, tmp_path: Path) -> None:
    runs = pretrain(config, tmp_path, report=Reporter())
    next(runs)
    runs.close()
    other = replace(config, seed=1)
    with pytest.raises(InputError, match="of another run: its seed is 0, and this one's is 1"):
        next(pretrain(other, tmp_path, resume=True, report=Reporter()))


def test_a_run_starts_from_a_weight_file(config: PretrainConfig, tmp_path: Path) -> None:
    list(pretrain(config, tmp_path / "first", report=Reporter()))
    start = tmp_path / "first" / "last.safetensors"
    further = replace(config, network=PictureNetwork(start),
                      schedule=replace(config.schedule, sizes=(96,)))  # fmt: skip
    check = next(pretrain(further, tmp_path / "second", report=Reporter()))
    info = read_info(tmp_path / "second" / "last.safetensors")
    assert info.config.crop_size == 96
    assert info.sources == {"last.safetensors": read_info(start).sha256}
    assert check.size == 96
    assert "temporal modules untrained" in info.note
    assert PARTLY_TRAINED in info.name


def test_trained_temporal_modules_stay(config: PretrainConfig, tmp_path: Path) -> None:
    network = untrained_network(config.seed + 1, MPSNetConfig(feature_dim=WIDTH))
    start = tmp_path / "whole.safetensors"
    save_network(
        network, start, name="whole", trained=True, licence="CC0-1.0", sources={}, note="",
        overwrite=False,
    )  # fmt: skip
    further = replace(config, network=PictureNetwork(start))
    next(pretrain(further, tmp_path / "run", report=Reporter()))
    info = read_info(tmp_path / "run" / "last.safetensors")
    assert "temporal modules as in whole.safetensors, trained on its features" in info.note
    assert PARTLY_TRAINED in info.name
    kept = load_network(info).encoder
    assert torch.equal(kept.moca.w_z.weight, network.encoder.moca.w_z.weight)


def test_a_run_goes_on_from_where_the_rate_began_to_fall(
    config: PretrainConfig, tmp_path: Path
) -> None:
    schedule = replace(config.schedule, falling=0.25)
    list(pretrain(replace(config, schedule=schedule), tmp_path / "first", report=Reporter()))
    start, state = (tmp_path / "first" / name for name in ("last.safetensors", EVEN))
    even = torch.load(state, weights_only=True)
    assert even["step"] == 9
    further = replace(config, network=PictureNetwork(start, state))
    run = loop._Run(further, tmp_path, Reporter())
    for name, value in run.learner.student.state_dict().items():
        assert torch.equal(value, even["student"][name]), name
    found = run.learner.optimiser.state_dict()["state"]
    for number, entry in even["optimiser"]["state"].items():
        assert torch.equal(found[number]["exp_avg_sq"], entry["exp_avg_sq"])
    assert run.learner.trust(0) == 1  # nothing waits for new heads
    assert run.identity[EVEN] == hashlib.sha256(state.read_bytes()).hexdigest()


def test_a_state_that_does_not_do_is_refused(config: PretrainConfig, tmp_path: Path) -> None:
    def refused(match: str, network: PictureNetwork) -> None:
        with pytest.raises(InputError, match=match):
            next(pretrain(replace(config, network=network), tmp_path / "run", report=Reporter()))

    next(pretrain(config, tmp_path / "first", report=Reporter()))
    weights, state = (tmp_path / "first" / name for name in ("last.safetensors", "resume.pt"))
    refused(r"but no network\.weights: name the file", PictureNetwork(None, state))
    refused("is not a checkpoint in the format", PictureNetwork(weights, weights))
    torn = torch.load(state, weights_only=True)
    del torn["student"]["turns.weight"]
    torch.save(torn, tmp_path / "torn.pt")
    refused(r"torn\.pt does not fit this run", PictureNetwork(weights, tmp_path / "torn.pt"))


def test_the_last_crops_are_plain(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: list[bool] = []

    def noted(crops: Crops, dice: torch.Generator, **how: Any) -> Crops:
        plain.append(how["plain"])
        return augment(crops, dice, **how)

    monkeypatch.setattr(loop, "augment", noted)
    schedule = replace(config.schedule, plain=0.25)
    list(pretrain(replace(config, schedule=schedule), tmp_path, report=Reporter()))
    assert plain == [False] * 9 + [True] * 3


def test_too_few_crops_and_a_loss_that_breaks_down(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = replace(config, schedule=replace(config.schedule, batch_size=32))
    with pytest.raises(InputError, match="There are 24 crops, and a batch takes 32"):
        next(pretrain(large, tmp_path / "a", report=Reporter()))
    monkeypatch.setattr("mpsnet_cli.training.student.DEPTHS", float("nan"))
    with pytest.raises(InputError, match="Training broke down: the loss of step 1"):
        next(pretrain(config, tmp_path / "b", report=Reporter()))


def test_the_command(
    config: PretrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("data: {crops: [c], validation: [c]}")
    monkeypatch.setattr("mpsnet_cli.training.config.load_config", lambda *_: config)
    ran = CliRunner().invoke(main, ["pretrain", str(path), "-o", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    assert "96 crops, " in ran.output
    assert "PA-MPJPE" in ran.output
    assert (tmp_path / "out" / "best.safetensors").is_file()


def test_the_example_names_every_field_with_its_default(tmp_path: Path) -> None:
    text = Path("examples/starter/pictures.yaml").read_text(encoding="utf-8")
    (tmp_path / "examples" / "starter").mkdir(parents=True)
    for name in ("crops", "crops-held-out"):
        (tmp_path / "out" / name).mkdir(parents=True)
    path = tmp_path / "examples" / "starter" / "pictures.yaml"
    path.write_text(text, encoding="utf-8")
    read = load_config(path, PretrainConfig)
    assert read == PretrainConfig(read.data)
    assert [p.resolve() for p in read.data.crops] == [tmp_path / "out" / "crops"]
    path.write_text(text.replace("compile: false", "compile: 1"), encoding="utf-8")
    with pytest.raises(InputError, match="compile is 1, and must be true or false"):
        load_config(path, PretrainConfig)


def test_the_cost_of_a_crop() -> None:
    device = torch.device("cpu")
    # The paper's Table 2 rests on ResNet-50's 4.1 GFLOP, counted as multiply-adds, at 224 px.
    assert training_flops(Backbone(), 224, device=device) == pytest.approx(3 * 2 * 4.1e9, rel=0.02)
    assert 1e9 < product_rate(device, torch.float32) < 1e15


def test_what_is_learnt_in(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert training_dtype("auto", cpu) == training_dtype("fp32", cpu) == torch.float32
    assert training_dtype("auto", cuda) == torch.bfloat16
    assert training_dtype("fp16", cuda) == torch.float16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert training_dtype("auto", cpu) == torch.bfloat16


def test_each_crop_is_seen_once_a_turn() -> None:
    rows = [batch_rows(10, 3, 5, step) for step in range(6)]
    for turn in (rows[:3], rows[3:]):
        assert len(set(torch.cat(turn).tolist())) == 9
    assert torch.cat(rows[:3]).tolist() != torch.cat(rows[3:]).tolist()
    assert torch.equal(batch_rows(10, 3, 5, 1), rows[1])


def test_the_rate_rises_and_falls(config: PretrainConfig) -> None:
    network = untrained_network(0, MPSNetConfig(feature_dim=WIDTH))
    learner = PictureLearner(network, load_body("free-1"), config, device=torch.device("cpu"))
    rates = [learner.rate(seen) for seen in range(0, 97, 8)]
    assert rates[0] == pytest.approx(3e-3 / 2, rel=0.05)
    assert max(rates) == rates[1]
    assert rates[6] == pytest.approx(3e-3 * 0.505)
    assert rates[-1] == pytest.approx(3e-5)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    learner.schedule = replace(config.schedule, falling=0.5)
    rates = [learner.rate(seen) for seen in range(0, 97, 8)]
    assert rates[1:7] == pytest.approx([3e-3] * 6)
    assert rates[9] == pytest.approx(3e-3 * 0.505)
    assert rates[-1] == pytest.approx(3e-5)


def test_a_joint_is_a_peak_on_its_map() -> None:
    joints = torch.tensor([[[0.3, -0.6], [1.2, 0.0], [-0.05, 0.9]]])
    maps = joint_maps(joints, 12)
    assert maps.sum(dim=2).tolist()[0] == pytest.approx([1, 0, 1], abs=1e-6)
    centres = (2 * torch.arange(12) + 1) / 12 - 1
    grid = maps[0, 0].view(12, 12)
    assert float(grid.sum(dim=0) @ centres) == pytest.approx(0.3, abs=0.01)
    assert float(grid.sum(dim=1) @ centres) == pytest.approx(-0.6, abs=0.01)


def test_the_truth_has_no_loss(crops: Crops) -> None:
    body = load_body("free-1")
    side = 16
    expected = joint_maps(crops.joints2d, side)
    hips = crops.joints3d[:, [1, 2]].mean(dim=1, keepdim=True)
    depths = (crops.joints3d - hips)[..., 2:].expand_as(expected)
    logits, depths = (
        part.unflatten(2, (side, side))[:, None].expand(-1, 2, -1, -1, -1)
        for part in (expected.clamp(min=1e-30).log(), depths)
    )
    axes = chained_rotations(crops)[..., :2].flatten(2).mT
    maps = Maps(logits, depths, axes[..., None, None].expand(-1, -1, -1, 8, 8))
    losses = pose_losses(truth_as_prediction(crops), body, crops)
    assert losses.joints3d < 0.01
    assert losses.aligned < 0.01
    assert losses.pose < 0.01
    assert losses.betas == 0
    surprise, depths_off, turns_off = map_losses(maps, crops)
    assert depths_off < 1e-6
    assert turns_off < 1e-3
    uniform = maps._replace(logits=torch.zeros_like(maps.logits))
    assert surprise < map_losses(uniform, crops)[0]
    moved = crops._replace(joints3d=crops.joints3d + torch.tensor([1.0, 2.0, 3.0]))
    same = pose_losses(truth_as_prediction(crops), body, moved)
    assert float(same.joints3d) == pytest.approx(float(losses.joints3d), abs=1e-4)
    off = (joints_on(maps) - crops.joints2d).norm(dim=2)[crops.visible]
    assert float(off.mean()) < 0.3 * 2 / side


def test_predictions_are_aligned_as_they_are_measured() -> None:
    predicted, true = torch.randn(2, 6, 14, 3, generator=torch.Generator().manual_seed(0))
    true[0] = predicted[0] * torch.tensor([-1.0, 1, 1])  # a mirror image, which none can reach
    aligned = procrustes_aligned(predicted, true)
    assert np.allclose(aligned, metrics.procrustes_aligned(predicted, true), atol=1e-5)
    turn = torch.from_numpy(axis_angle_to_matrix(np.array([0.1, 0.5, -0.3]))).float()
    turned = 2 * predicted @ turn + 1
    assert torch.allclose(procrustes_aligned(turned, predicted), predicted, atol=1e-5)


def test_the_maps_learn_alone_at_first(config: PretrainConfig, crops: Crops) -> None:
    network = untrained_network(0, MPSNetConfig(feature_dim=WIDTH))
    learner = PictureLearner(network, load_body("free-1"), config, device=torch.device("cpu"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    some = augment(crops.take(slice(8)), torch.Generator().manual_seed(0), size=32)
    losses = learner.learn(0, some)
    assert losses.maps > 0
    assert losses.depths > 0
    assert losses.turns > 0
    assert losses[:4] == (0, 0, 0, 0)
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    assert any(name.startswith("backbone.second") for name in changed)
    assert not any(name.startswith(("backbone.third", "regressor")) for name in changed)
    schedule = config.schedule
    start = math.ceil(MAPS_FIRST * schedule.crops / schedule.batch_size)
    losses = learner.learn(start, some)
    assert all(loss > 0 for loss in losses)
    trusts = [learner.trust(seen) for seen in range(start * schedule.batch_size, 97, 8)]
    assert trusts == sorted(trusts)
    assert trusts[-1] == pytest.approx(1)


def test_a_network_that_goes_on_waits_for_its_new_heads(
    config: PretrainConfig, crops: Crops
) -> None:
    network = untrained_network(0, MPSNetConfig(feature_dim=WIDTH))
    further = replace(config, network=PictureNetwork(Path("earlier.safetensors")))
    learner = PictureLearner(network, load_body("free-1"), further, device=torch.device("cpu"))
    some = augment(crops.take(slice(8)), torch.Generator().manual_seed(0), size=32)
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}

    def changed() -> set[str]:
        now = learner.student.state_dict()
        return {n.split(".")[0] for n, value in now.items() if not torch.equal(value, before[n])}

    losses = learner.learn(0, some)
    assert losses[:4] == (0, 0, 0, 0)
    assert changed() == {"maps", "turns"}
    after_warmup = config.schedule.warmup // config.schedule.batch_size
    losses = learner.learn(after_warmup, some)
    assert all(loss > 0 for loss in losses)
    assert changed() == {"maps", "turns", "backbone", "regressor"}
    assert learner.trust(config.schedule.warmup) == 1


def test_frozen_layers_stay_as_they_are(config: PretrainConfig, crops: Crops) -> None:
    network = MPSNet(MPSNetConfig())
    backbone = network.backbone = Backbone()
    further = replace(config, network=PictureNetwork(Path("earlier.safetensors")),
                      schedule=replace(config.schedule, frozen=2, warmup=8))  # fmt: skip
    cost = training_flops(backbone, 64, device=torch.device("cpu"))
    learner = PictureLearner(network, load_body("free-1"), further, device=torch.device("cpu"))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    some = augment(crops.take(slice(8)), torch.Generator().manual_seed(0), size=64)
    learner.learn(1, some)  # once the warmup is over
    now = backbone.state_dict()
    changed = {n.split(".")[0] for n, value in now.items() if not torch.equal(value, before[n])}
    assert changed == {"layer3", "layer4"}
    # Of ResNet-50's work the stem and two layers are half; two thirds of it are on the way back.
    frozen_cost = training_flops(backbone, 64, device=torch.device("cpu"))
    assert frozen_cost / cost == pytest.approx(2 / 3, abs=0.05)
    assert backbone.training


def test_a_network_from_nothing_learns_all_its_layers(
    config: PretrainConfig, tmp_path: Path
) -> None:
    frozen = replace(config, schedule=replace(config.schedule, frozen=1))
    with pytest.raises(InputError, match=r"frozen is 1, but the network starts from nothing"):
        next(pretrain(frozen, tmp_path, report=Reporter()))


def test_a_warmup_as_long_as_the_run_is_refused(config: PretrainConfig, tmp_path: Path) -> None:
    short = replace(config.schedule, warmup=96)
    further = replace(config, schedule=short, network=PictureNetwork(Path("mpsnet-starter")))
    with pytest.raises(InputError, match=r"warmup is 96 of 96 crops"):
        next(pretrain(further, tmp_path, report=Reporter()))


@pytest.mark.parametrize("sizes", [(), (32, 100), (33,)])
def test_sizes_that_the_maps_do_not_divide_are_refused(
    config: PretrainConfig, tmp_path: Path, sizes: tuple[int, ...]
) -> None:
    odd = replace(config, schedule=replace(config.schedule, sizes=sizes))
    with pytest.raises(InputError, match="must be multiples of 16"):
        next(pretrain(odd, tmp_path, report=Reporter()))


def test_no_crops_at_all_are_refused(config: PretrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No folders of crops are named"):
        next(pretrain(replace(config, data=PictureData((), ())), tmp_path, report=Reporter()))


def test_errors_of_the_truth_and_of_a_turned_body(crops: Crops) -> None:
    truth = truth_as_prediction(crops)
    found = errors(truth, crops.joints2d, crops)
    assert found["pa_mpjpe"] < 0.01
    assert found["mpjpe"] < 0.01
    assert found["maps2d"] == 0
    turned = crops.rotmats.clone()
    turned[:, 0] = torch.diag(torch.tensor([-1.0, 1, -1])) @ turned[:, 0]
    found = errors(truth._replace(rotmats=turned), crops.joints2d, crops)
    assert found["pa_mpjpe"] < 0.01
    assert found["mpjpe"] > 100


def test_the_regressor_starts_at_the_mean_pose(crops: Crops) -> None:
    regressor = Regressor(8, 3)
    one = crops.take(torch.full((5,), 3))
    start_at_mean(regressor, one)
    columns = regressor.init_pose.view(24, 3, 2)[1:]
    assert torch.allclose(columns, one.rotmats[0, 1:, :, :2], atol=1e-5)


def test_residual_branches_begin_closed() -> None:
    backbone = Backbone()
    open_shortcuts(backbone, seed=0)
    backbone.eval()
    x = torch.rand(2, 256, 4, 4)
    assert torch.equal(backbone.layer1[1](x), x)
    first = backbone.conv1.weight.detach().clone()
    open_shortcuts(backbone, seed=0)
    assert torch.equal(backbone.conv1.weight, first)


def test_pictures_are_resampled_without_aliasing() -> None:
    stripes = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 200
    small = resized(stripes, 16)
    assert small.dtype == torch.uint8
    assert (small[..., 2:-2].float() - 100).abs().max() <= 2
    assert resized(stripes, 64) is stripes


def test_partly_trained_weights_are_called_that(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for name, words in (("a (partly trained)", ["The weights w.safetensors are partly trained"]),
                        ("a", [])):  # fmt: skip
        save_network(
            untrained_network(0, MPSNetConfig(feature_dim=WIDTH)), path, name=name, trained=True,
            licence="CC0-1.0", sources={}, note="", overwrite=True,
        )  # fmt: skip
        report = Warnings()
        load_model(path, device="cpu", report=report)
        assert [text.partition(":")[0] for text in report.texts] == words


class Warnings(Reporter):
    """Keep what is said."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, message: str) -> None:
        self.texts.append(message)
