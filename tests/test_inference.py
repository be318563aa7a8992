from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import recipe
import torch
from numpy.typing import NDArray

from mpsnet_cli.errors import DeviceError
from mpsnet_cli.model.backbone import (
    IMAGE_MEAN,
    IMAGE_STD,
    can_fuse,
    fold_batch_norm,
    fuse_for_cpu,
    settle_biases,
)
from mpsnet_cli.model.config import WeightsInfo
from mpsnet_cli.model.inference import Model, resolve_device, resolve_precision
from mpsnet_cli.progress import Reporter
from mpsnet_cli.windows import window_indices


def crops(count: int) -> NDArray[np.uint8]:
    image = recipe.image()
    return np.stack([image[16 * n : 16 * n + 224, 31 * n : 31 * n + 224] for n in range(count)])


def make_model(report: Reporter | None = None, **keywords) -> Model:
    network = copy.deepcopy(recipe.network())
    info = WeightsInfo(Path("recipe"), "recipe", False, "", network.config, {}, "", "")
    return Model(network, info, device="cpu", report=report or Reporter(), **keywords)


def plain_features(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """As the release does it: normalise, channels first, float32."""
    images = (pictures / 255.0 - IMAGE_MEAN) / IMAGE_STD
    with torch.inference_mode():
        return recipe.network().backbone(torch.from_numpy(images).permute(0, 3, 1, 2).float())


def test_features_are_those_of_the_plain_backbone() -> None:
    model = make_model(precision="fp32", batch_size=2)
    features = model.features(crops(3))
    assert features.dtype == torch.float32
    assert model.dtype == torch.float32
    torch.testing.assert_close(features, plain_features(crops(3)), rtol=0, atol=5e-5)


def test_features_take_any_number_of_crops() -> None:
    model = make_model(precision="fp32")
    assert model.features(crops(2)[:0]).shape == (0, 2048)
    torch.testing.assert_close(model.features(crops(3))[2:], model.features(crops(3)[2:]))


def test_features_refuse_what_is_no_crop() -> None:
    model = make_model(precision="fp32")
    with pytest.raises(ValueError, match="float32"):
        model.features(crops(1).astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="100, 224, 3"):
        model.features(crops(1)[:, :100])


def test_predict_runs_windows_through_the_network() -> None:
    model = make_model(precision="fp32")
    features = torch.from_numpy(recipe.feats(2, seed=1)).flatten(0, 1)
    windows = window_indices(np.arange(32))
    prediction = model.predict(features, windows)
    with torch.inference_mode():
        theirs = recipe.network()(features[torch.from_numpy(windows[10:11])])
    for ours, expected in zip(prediction, theirs, strict=True):
        assert len(ours) == 32
        torch.testing.assert_close(ours[10:11], expected, rtol=0, atol=1e-6)
    assert model.predict(features, windows[:0]).rotmats.shape == (0, 24, 3, 3)


def test_predict_in_parts_is_predict_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(precision="fp32")
    features = torch.from_numpy(recipe.feats(1, seed=1))[0]
    windows = window_indices(np.arange(16))
    at_once = model.predict(features, windows)
    monkeypatch.setattr("mpsnet_cli.model.inference.WINDOWS_PER_BATCH", 5)
    for part, whole in zip(model.predict(features, windows), at_once, strict=True):
        torch.testing.assert_close(part, whole, rtol=0, atol=1e-6)


class SmallMemory(torch.nn.Module):
    """A backbone on a device that holds so many crops and no more."""

    def __init__(self, backbone: torch.nn.Module, limit: int) -> None:
        super().__init__()
        self.backbone, self.limit = backbone, limit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.backbone(images)


def test_batches_shrink_when_memory_runs_out() -> None:
    report = Reporter()
    model = make_model(report, precision="fp32", batch_size=8)
    whole = model.features(crops(5))
    model.network.backbone = SmallMemory(model.network.backbone, limit=1)  # type: ignore[assignment]
    torch.testing.assert_close(model.features(crops(5)), whole, rtol=0, atol=5e-5)
    assert model.batch_size == 1
    assert len(report.warnings) == 1
    assert "--batch-size" in report.warnings[0]


def test_a_device_too_small_for_one_crop_is_an_error() -> None:
    model = make_model(precision="fp32", batch_size=2)
    model.network.backbone = SmallMemory(model.network.backbone, limit=0)  # type: ignore[assignment]
    with pytest.raises(DeviceError, match="cpu cannot hold even one crop"):
        model.features(crops(2))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(DeviceError, match="cuda is not available: torch sees no CUDA GPUs"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(DeviceError, match="cuda:1 is not available: torch sees 1 CUDA GPU here"):
        resolve_device("cuda:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="mps"):
        resolve_device("mps")
    with pytest.raises(DeviceError, match="There is no device 'gpu'"):
        resolve_device("gpu")


@pytest.mark.parametrize(
    ("device", "flags", "precision"),
    [
        ("cuda", {}, "fp16"),
        ("mps", {"avx512_bf16": True}, "fp32"),
        ("cpu", {"avx512_bf16": True}, "bf16"),
        ("cpu", {"avx512_bf16": True, "cpu_name": "AMD EPYC"}, "bf16"),
        ("cpu", {"avx512_bf16": True, "cpu_name": "Intel Xeon"}, "fp32"),
        ("cpu", {"avx512_bf16": True, "cpu_name": "12th Gen Intel(R) Core(TM)"}, "fp32"),
        ("cpu", {"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, "bf16"),
        ("cpu", {"amx_bf16": True}, "bf16"),
        ("cpu", {"avx512_f": True}, "fp32"),
    ],
)
def test_automatic_precision(
    monkeypatch: pytest.MonkeyPatch, device: str, flags: dict[str, object], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert resolve_precision("auto", torch.device(device)) == precision


def test_precision_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    monkeypatch.setattr("mpsnet_cli.model.inference.can_round_to_bf16", lambda: True)
    assert resolve_precision("bf16", torch.device("cpu")) == "bf16"
    assert resolve_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(DeviceError, match="fp16"):
        resolve_precision("fp16", torch.device("cpu"))
    monkeypatch.setattr("mpsnet_cli.model.inference.can_round_to_bf16", lambda: False)
    assert resolve_precision("bf16", torch.device("cuda")) == "bf16"
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
    with pytest.raises(DeviceError, match="does not compute in bf16: use auto or fp32"):
        resolve_precision("bf16", torch.device("cpu"))
    with pytest.raises(DeviceError, match="fp8"):
        resolve_precision("fp8", torch.device("cpu"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("bf16")
def test_low_precision_moves_joints_by_a_hundredth_of_their_own_motion_at_most() -> None:
    from mpsnet_cli.body import load_body
    from mpsnet_cli.geometry import matrix_to_axis_angle

    body = load_body("free-1")
    windows = window_indices(np.arange(4))
    joints = []
    for precision in ("fp32", "bf16"):
        model = make_model(precision=precision)
        rotmats, betas, _ = model.predict(model.features(crops(4)), windows)
        pose = matrix_to_axis_angle(rotmats.numpy()).reshape(-1, 72).astype(np.float32)
        joints.append(body(pose, betas.numpy())[1])
    shift = np.linalg.norm(joints[0] - joints[1], axis=-1)
    unlike = np.linalg.norm(joints[0] - body.rest_joints(np.zeros(10)), axis=-1)
    assert 0 < shift.mean() < 0.01 * unlike.mean()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_cuda_agrees_with_the_cpu() -> None:
    model = make_model(precision="fp32")
    network = copy.deepcopy(recipe.network())
    fast = Model(network, model.weights, device="cuda", report=Reporter())
    assert fast.dtype == torch.float16
    features = fast.features(crops(4))
    torch.testing.assert_close(features, model.features(crops(4)), rtol=0.02, atol=0.02)
    windows = window_indices(np.arange(4))
    for ours, expected in zip(
        fast.predict(features, windows), model.predict(features, windows), strict=True
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(not can_fuse(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fusing_for_the_cpu_changes_nothing_but_rounding(
    dtype: torch.dtype, request: pytest.FixtureRequest
) -> None:
    if dtype == torch.bfloat16:
        request.getfixturevalue("bf16")
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(recipe.network().backbone).eval()
    fold_batch_norm(plain)
    fused = copy.deepcopy(plain)
    fuse_for_cpu(fused)
    assert any(type(module).__name__ == "_FusedBottleneck" for module in fused.modules())
    with torch.inference_mode():
        theirs = plain(images)
        for backbone in (plain, fused):
            backbone.to(dtype, memory_format=torch.channels_last)
        low, ours = plain(images.to(dtype)), fused(images.to(dtype))
    if dtype == torch.float32:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)
    else:  # it rounds less often than the plain one
        assert (ours - theirs).norm() < 1.1 * (low - theirs).norm()


def test_fusing_stays_away_where_torch_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    backbone = copy.deepcopy(recipe.network().backbone)
    fuse_for_cpu(backbone)
    assert not any(type(module).__name__ == "_FusedBottleneck" for module in backbone.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_settled_biases_round_to_themselves(dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    folded = copy.deepcopy(recipe.network().backbone).eval()
    fold_batch_norm(folded)
    settled = copy.deepcopy(folded)
    settle_biases(settled, dtype)
    with torch.inference_mode():
        exact = folded(images)
        torch.testing.assert_close(settled(images), exact, rtol=0, atol=5e-5)
        shifts = []
        for backbone in (folded, settled):
            for block in (*backbone.layer1, *backbone.layer2, *backbone.layer3, *backbone.layer4):
                projection = [] if block.downsample is None else [block.downsample[0]]
                for conv in (block.conv1, block.conv2, *projection):
                    rounded = conv.bias.to(dtype).float()
                    if backbone is settled:
                        torch.testing.assert_close(rounded, conv.bias, rtol=1e-6, atol=0)
                    conv.bias.copy_(rounded)
                block.conv3.bias.copy_(block.conv3.bias.to(dtype))
            shifts.append((backbone(images) - exact).norm())
    assert shifts[1] < 0.9 * shifts[0]


def test_settling_is_nothing_in_float32() -> None:
    backbone = copy.deepcopy(recipe.network().backbone).eval()
    fold_batch_norm(backbone)
    backbone.layer2[0].conv1.bias.data[:3] = torch.tensor([0.0, 1e-42, -1e-42])
    before = copy.deepcopy(backbone.state_dict())
    settle_biases(backbone, torch.float32)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    settle_biases(backbone, torch.float16)  # which knows no number so small but nought
    assert all(value.isfinite().all() for value in backbone.state_dict().values())
