from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import recipe
import torch
from conftest import DATA
from numpy.typing import NDArray
from torch import Tensor, nn

from mpsnet_cli.geometry import matrix_to_axis_angle
from mpsnet_cli.model.backbone import Backbone, fold_batch_norm
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.mpsnet import HAFI, MPSNet, TemporalEncoder
from mpsnet_cli.model.regressor import Regressor, rotation_6d_to_matrix
from mpsnet_cli.model.summary import count_parameters, summarize
from mpsnet_cli.model.untrained import standing_pose, untrained_network
from mpsnet_cli.windows import window_indices

GOLDENS = DATA / "goldens"
TOLERANCE = 1e-5
# Of a softmax over sums of 2048 products in float32: exact arithmetic is 2.1e-5 from the goldens.
MAP_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def network() -> MPSNet:
    return recipe.network()


@pytest.fixture(autouse=True)
def _no_gradients(request: pytest.FixtureRequest):
    with torch.set_grad_enabled("gradient" in request.node.name):
        yield


def golden(name: str) -> dict[str, NDArray]:
    with np.load(GOLDENS / f"{name}.npz") as stored:
        return dict(stored)


def assert_same(ours: Tensor | NDArray, theirs: NDArray, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=tolerance)


def record(module: nn.Module, calls: list[tuple[Tensor, Tensor]]):
    """Note the input and output of every call of a module, until the handle is removed."""
    return module.register_forward_hook(lambda _, inputs, out: calls.append((inputs[0], out)))


def test_encoder_and_regressor_match_the_release(network: MPSNet) -> None:
    theirs = golden("a_encoder_n1")
    refined, scores = network.encoder(torch.from_numpy(recipe.feats(1, seed=1)))
    assert_same(refined, theirs["enc"])
    assert_same(scores, theirs["scores"])
    rotmats, betas, cam = network(torch.from_numpy(recipe.feats(1, seed=1)))
    assert_same(rotmats, theirs["rotmat"])
    theta = np.concatenate([cam, matrix_to_axis_angle(rotmats.numpy()).reshape(1, 72), betas], 1)
    assert_same(theta, theirs["theta"])


def test_inside_of_the_encoder_matches_the_release(network: MPSNet) -> None:
    theirs = golden("a_encoder_n1")
    maps: list[tuple[Tensor, Tensor]] = []
    sequences: list[tuple[Tensor, Tensor]] = []
    attention: list[tuple[Tensor, Tensor]] = []
    handles = [
        record(network.encoder.moca.rho, maps),
        record(network.encoder.moca, sequences),
        record(network.encoder.hafi.attention, attention),
    ]
    network.encoder(torch.from_numpy(recipe.feats(1, seed=1)))
    for handle in handles:
        handle.remove()
    assert_same(maps[0][0], theirs["R"], MAP_TOLERANCE)
    assert_same(maps[0][1], theirs["Rout"], MAP_TOLERANCE)
    assert_same(sequences[0][1].mT[:, ::64], theirs["out_seq_slice"])
    for name, (_, logits) in zip(["bef", "cur", "aft", "final"], attention, strict=True):
        assert_same(logits.softmax(-1), theirs[f"att_{name}"])


def test_regressor_increments_match_the_release(network: MPSNet) -> None:
    theirs = golden("c_regressor")
    heads = {
        "inc_pose": network.regressor.pose,
        "inc_shape": network.regressor.betas,
        "inc_cam": network.regressor.cam,
    }
    calls: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in heads}
    handles = [record(module, calls[name]) for name, module in heads.items()]
    rotmats, betas, cam = network.regressor(torch.from_numpy(theirs["x"]))
    for handle in handles:
        handle.remove()
    for name in heads:
        assert_same(torch.stack([out for _, out in calls[name]]), theirs[name])
    assert_same(rotmats, theirs["rotmat"])
    assert_same(torch.cat([cam, betas], 1), np.delete(theirs["theta"], np.s_[3:75], axis=1))


def test_backbone_matches_the_release(network: MPSNet) -> None:
    theirs = golden("b_resnet")
    images = np.random.default_rng(3).standard_normal((2, 3, 224, 224)).astype(np.float32)
    layers: dict[str, list[tuple[Tensor, Tensor]]] = {f"l{n}": [] for n in (1, 2, 3, 4)}
    handles = [
        record(getattr(network.backbone, name.replace("l", "layer")), calls)
        for name, calls in layers.items()
    ]
    assert_same(network.backbone(torch.from_numpy(images)), theirs["features"])
    for handle in handles:
        handle.remove()
    for name, calls in layers.items():
        assert_same(calls[0][1][:, ::16, ::4, ::4], theirs[name])


def test_rotations_match_the_release() -> None:
    theirs = golden("c_rotations")
    matrices = rotation_6d_to_matrix(torch.from_numpy(theirs["x6"]))
    assert_same(matrices, theirs["rotmat"])
    proper = np.linalg.det(theirs["rotmat"]) > 0.5  # degenerate input gives no rotation at all
    assert proper.sum() > 190
    assert_same(matrix_to_axis_angle(matrices.numpy()[proper]), theirs["aa"][proper])


def test_6d_of_a_rotation_is_its_first_two_columns() -> None:
    matrices = torch.linalg.qr(torch.from_numpy(np.random.default_rng(0).normal(size=(50, 3, 3))))
    rotations = matrices.Q * matrices.Q.det()[:, None, None]
    stretched = rotations[..., :2] * torch.tensor([3.0, 0.2])
    assert_same(rotation_6d_to_matrix(stretched.flatten(1)), rotations.numpy(), 1e-12)


def test_rotation_gradient_is_that_of_finite_differences() -> None:
    rotations = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(rotation_6d_to_matrix, rotations.requires_grad_())


def softmax(logits: NDArray) -> NDArray:
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def encode(
    features: NDArray, *, mix: bool = False, attention: str = "moca", integration: str = "hafi"
) -> tuple[NDArray, NDArray]:
    """The encoder once more, in numpy and float64, from the official weights by name."""
    state = {name: array.astype(np.float64) for name, array in recipe.state_dict("MPSnet").items()}

    def linear(x: NDArray, name: str) -> NDArray:
        weight = state[f"nonlocalblock.{name}.weight"]
        bias = state.get(f"nonlocalblock.{name}.bias", 0)
        return x @ weight.reshape(weight.shape[:2]).T + bias

    def fuse(z: NDArray) -> tuple[NDArray, NDArray]:
        hidden = linear(z, "attention.fc").reshape(len(z), 768)
        for layer in (0, 2, 4):
            hidden = np.tanh(linear(hidden, f"attention.attention.{layer}"))
        scores = softmax(hidden)
        return np.einsum("nk,nkc->nc", scores, z), scores

    x = features.astype(np.float64)
    nssm = softmax(x @ x.swapaxes(1, 2))
    weighing = softmax(linear(x, "conv_theta") @ linear(x, "conv_phi").swapaxes(1, 2))
    first, second = nssm, weighing
    if mix:
        stacked = np.concatenate([nssm, weighing])
        first, second = stacked[0::2], stacked[1::2]
    if attention == "moca":
        rho = state["nonlocalblock.conv_mask_forR.weight"].ravel()
        weighing = softmax(rho[0] * first + rho[1] * second)
    z = x + linear(weighing @ linear(x, "conv_g"), "conv_mask")
    if integration == "none":
        return z[:, 8], np.ones((len(z), 1))
    if integration == "tcmr":
        return fuse(np.stack([z[:, :8].mean(1), z[:, 8], z[:, 9:].mean(1)], axis=1))
    return fuse(np.stack([fuse(z[:, start : start + 3])[0] for start in (4, 7, 10)], axis=1))


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("mix", [False, True])
def test_encoder_matches_a_second_implementation(network: MPSNet, count: int, mix: bool) -> None:
    features = recipe.feats(count, seed=2)
    refined, scores = network.encoder(torch.from_numpy(features), release_batching=mix)
    theirs = encode(features, mix=mix)
    assert_same(refined, theirs[0])
    assert_same(scores, theirs[1])


def ablated(network: MPSNet, attention: str, integration: str) -> MPSNet:
    """The same weights in the network of one row of Table 3."""
    config = replace(network.config, attention=attention, integration=integration)
    with torch.device("meta"):
        other = MPSNet(config)
    state = network.state_dict()
    other.load_state_dict({name: state[name] for name in other.state_dict()}, assign=True)
    return other.eval()


TABLE_3 = [("nonlocal", "none"), ("moca", "none"), ("moca", "tcmr"), ("moca", "hafi")]


@pytest.mark.parametrize(("attention", "integration"), TABLE_3)
def test_ablations_match_a_second_implementation(
    network: MPSNet, attention: str, integration: str
) -> None:
    features = recipe.feats(3, seed=2)
    encoder = ablated(network, attention, integration).encoder
    refined, weights = encoder(torch.from_numpy(features))
    theirs = encode(features, attention=attention, integration=integration)
    assert_same(refined, theirs[0])
    assert_same(weights, theirs[1])


def test_ablations_differ_in_the_modules_of_the_paper(network: MPSNet) -> None:
    counts = [count_parameters(ablated(network, *row).encoder) for row in TABLE_3]
    assert counts == [8_388_608, 8_388_610, 9_176_581, 9_176_581]


@pytest.mark.parametrize(("attention", "integration"), [*TABLE_3, ("nonlocal", "hafi")])
def test_windows_of_a_track_are_predicted_as_each_by_itself(
    network: MPSNet, attention: str, integration: str
) -> None:
    other = ablated(network, attention, integration)
    features = torch.from_numpy(np.concatenate(recipe.feats(2, seed=7)))
    windows = torch.from_numpy(window_indices(np.arange(32)))
    for together, alone in zip(
        other.predict_windows(features, windows), other(features[windows]), strict=True
    ):
        assert_same(together, alone.numpy(), 1e-6)


def test_maps_are_those_that_the_release_weighs_by(network: MPSNet) -> None:
    theirs = golden("a_encoder_n1")
    moca = network.encoder.moca
    frames = moca.project(torch.from_numpy(recipe.feats(1, seed=1)))
    nssm, attention, final = moca.maps(frames)
    assert_same(nssm, theirs["R"][:, 0], MAP_TOLERANCE)
    assert_same(attention, theirs["R"][:, 1], MAP_TOLERANCE)
    assert_same(final, softmax(theirs["Rout"][:, 0]))
    plain = ablated(network, "nonlocal", "none").encoder.moca.maps(frames)
    assert torch.equal(plain.moca, attention)


def test_no_window_depends_on_the_batch_it_is_in(network: MPSNet) -> None:
    windows = torch.from_numpy(recipe.feats(8, seed=2))
    together = network(windows)
    for index in range(8):
        for joint, alone in zip(together, network(windows[index : index + 1]), strict=True):
            assert_same(joint[index : index + 1], alone.numpy(), 1e-6)
    mixed, _ = network.encoder(windows, release_batching=True)
    proper, _ = network.encoder(windows)
    assert ((mixed - proper).abs().amax(dim=1) > 1e-3).all()  # what it would be otherwise


def test_target_is_refined_by_the_nine_frames_around_it() -> None:
    hafi = HAFI(8, MPSNetConfig().groups)
    z = torch.randn(1, 16, 8, requires_grad=True, generator=torch.Generator().manual_seed(0))
    with torch.enable_grad():
        hafi(z)[0].sum().backward()
    assert z.grad is not None
    assert z.grad[0].abs().amax(dim=1).nonzero().ravel().tolist() == list(range(4, 13))


@pytest.mark.parametrize(("attention", "integration"), TABLE_3)
def test_encoder_gradient_is_that_of_finite_differences(attention: str, integration: str) -> None:
    torch.manual_seed(0)
    config = MPSNetConfig(feature_dim=4, attention=attention, integration=integration)
    encoder = TemporalEncoder(config).double()
    windows = torch.randn(2, 16, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(encoder, windows)


def test_dropout_acts_only_in_training() -> None:
    torch.manual_seed(0)
    regressor = Regressor(feature_dim=16, iterations=3)
    features = torch.randn(2, 16)
    assert not torch.equal(regressor(features).cam, regressor(features).cam)
    regressor.eval()
    assert torch.equal(regressor(features).cam, regressor(features).cam)


def test_folding_batch_norm_changes_nothing(network: MPSNet) -> None:
    folded = Backbone().eval()
    folded.load_state_dict(network.backbone.state_dict())
    fold_batch_norm(folded)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    assert_same(folded(images), network.backbone(images).numpy())


def test_parameter_counts(network: MPSNet) -> None:
    assert count_parameters(network.backbone) == 23_508_032
    assert count_parameters(network.encoder) == 9_176_581
    assert count_parameters(network.regressor) == 3_469_469


def test_summary_tells_shapes_and_counts() -> None:
    rows = {row.name: row for row in summarize(MPSNetConfig(), depth=2)}
    assert rows["backbone.layer3"][1:4] == ("Sequential", (1, 1024, 14, 14), 7_098_368)
    assert rows["encoder.moca"][1:4] == ("MoCA", (1, 16, 2048), 8_388_610)
    assert rows["regressor.pose"][1:4] == ("Linear", (1, 144), 147_600)
    assert "encoder.moca.g" not in rows
    parts = summarize(MPSNetConfig(), depth=1)
    assert [row.name for row in parts] == ["backbone", "encoder", "regressor"]
    assert sum(row.parameters for row in parts) == 36_154_082


def test_summary_counts_multiply_adds() -> None:
    rows = {row.name: row.multiply_adds for row in summarize(MPSNetConfig(), depth=3)}
    convolution = 64 * 3 * 7 * 7 * 112 * 112
    assert rows["backbone.conv1"] == convolution
    assert rows["encoder.moca.g"] == 16 * 2048 * 1024
    maps = 16 * 16 * (2048 + 1024 + 2 + 2048)
    assert rows["encoder.moca"] == 4 * 16 * 2048 * 1024 + maps
    integrate = 3 * 2048 * 256 + 768 * 256 + 256 * 256 + 256 * 3
    assert rows["encoder.hafi"] == 4 * integrate
    heads = 2205 * 1024 + 1024 * 1024 + 1024 * 157
    assert rows["regressor"] == 3 * heads
    assert rows["backbone"] == 4_087_136_256  # ResNet-50 at 224 px without its classifier
    assert rows["encoder"] == rows["encoder.moca"] + rows["encoder.hafi"]


def test_untrained_network_shows_a_standing_person() -> None:
    network = untrained_network(seed=3).eval()
    noise = torch.randn(6, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    features = network.backbone(torch.cat([noise, noise.cumsum(3) / 15]))
    assert 0.3 < features.pow(2).mean().sqrt() < 3
    assert features.std(dim=0).mean() > 0.02  # other pictures give other features
    windows = features[:, None].expand(-1, 16, -1)
    rotmats, betas, cam = network(windows)
    standing = rotation_6d_to_matrix(standing_pose().view(24, 6))
    cosine = ((rotmats.mT @ standing).diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    assert cosine.acos().rad2deg().max() < 30
    assert rotmats.std(dim=0).amax() > 1e-4
    assert betas.abs().max() < 1
    assert_same(cam.mean(0), np.array([0.9, 0, 0], np.float32), 0.4)
    # Upright, facing the camera: the body's up is the image's up, its front is towards the viewer.
    assert_same(standing[0] @ torch.tensor([0.0, 1, 0]), np.array([0, -1, 0], np.float32))
    assert_same(standing[0] @ torch.tensor([0.0, 0, 1]), np.array([0, 0, -1], np.float32))
    left_arm = standing[16] @ torch.tensor([1.0, 0, 0])  # SMPL's left arm lies along x in a T-pose
    right_arm = standing[17] @ torch.tensor([-1.0, 0, 0])
    assert left_arm[1] < -0.9
    assert right_arm[1] < -0.9


def test_untrained_networks_differ_by_seed_only() -> None:
    one, same, other = (untrained_network(seed).encoder.moca.g.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("window", 8),
        ("feature_dim", -1),
        ("feature_dim", 2048.0),
        ("iterations", True),
        ("crop_scale", float("nan")),
        ("camera_scale", "1.1"),
        ("body", "smplx"),
        ("groups", [[-9, 0, 1], [0, 1, 2], [3, 4, 5]]),
        ("groups", [[0, 1], [2, 3], [4, 5]]),
        ("groups", 9),
        ("attention", "gru"),
        ("integration", None),
    ],
)
def test_config_refuses(field: str, value: object) -> None:
    values = {
        "window": 16, "feature_dim": 2048, "groups": [[-4, -3, -2], [-1, 0, 1], [2, 3, 4]],
        "iterations": 3, "crop_size": 224, "crop_scale": 1.1, "camera_scale": 1.1,
        "body": "free-1",
    }  # fmt: skip
    assert MPSNetConfig.from_json(values) == MPSNetConfig()  # as from before there were choices
    with pytest.raises(ValueError, match=field):
        MPSNetConfig.from_json({**values, field: value})
