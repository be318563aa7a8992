from __future__ import annotations

import numpy as np
import pytest
import recipe
import torch
from conftest import DATA
from scipy.spatial.transform import Rotation

from mpsnet_cli.model.summary import count_parameters
from mpsnet_cli.training.discriminator import MotionDiscriminator, body_pose
from mpsnet_cli.training.losses import LossWeights, adversarial_loss

GOLDEN = np.load(DATA / "goldens" / "h_loss.npz")
OFFICIAL = {"gru": "gru", "attention": "attention.attention", "score": "fc"}  # ours -> theirs


@pytest.fixture(scope="module")
def discriminator() -> MotionDiscriminator:
    """The discriminator with the weights that the goldens were recorded with."""
    network = MotionDiscriminator().eval()
    state = {}
    for name, tensor in network.state_dict().items():
        module, _, rest = name.partition(".")
        drawn = recipe.weights(f"{OFFICIAL[module]}.{rest}", tuple(tensor.shape))
        state[name] = torch.from_numpy(drawn)
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize(("motions", "scores"), [("real_theta", "real"), ("p_dm", "fake")])
def test_scores_match_the_release(
    discriminator: MotionDiscriminator, motions: str, scores: str
) -> None:
    with torch.no_grad():
        ours = discriminator(torch.from_numpy(GOLDEN[motions][..., 6:75]))
    np.testing.assert_allclose(ours, GOLDEN[f"disc_{scores}"][:, 0], rtol=0, atol=1e-6)


def test_the_gradient_for_the_network_matches_the_release(
    discriminator: MotionDiscriminator,
) -> None:
    theirs = GOLDEN["grad_p_dm"]
    assert np.abs(theirs).max() > 0
    motions = torch.from_numpy(GOLDEN["p_dm"]).requires_grad_(True)
    loss = LossWeights().adversarial * adversarial_loss(discriminator(motions[..., 6:75]))
    assert loss.item() == pytest.approx(GOLDEN["e_m_disc_loss"].item(), rel=1e-5)
    (ours,) = torch.autograd.grad(loss, motions)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def test_the_discriminator_is_a_gru_pooled_by_attention(discriminator: MotionDiscriminator) -> None:
    """By the equations of the GRU (Cho et al., 2014), in float64."""
    double = {name: p.double().numpy() for name, p in discriminator.state_dict().items()}

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    x = GOLDEN["real_theta"][0, :, 6:75].astype(np.float64)
    for layer in range(2):
        state, states = np.zeros(1024), []
        for frame in x:
            given = double[f"gru.weight_ih_l{layer}"] @ frame + double[f"gru.bias_ih_l{layer}"]
            kept = double[f"gru.weight_hh_l{layer}"] @ state + double[f"gru.bias_hh_l{layer}"]
            reset, update = sigmoid((given + kept)[:2048]).reshape(2, 1024)
            new = np.tanh(given[2048:] + reset * kept[2048:])
            state = (1 - update) * new + update * state
            states.append(state)
        x = np.array(states)
    logits = x
    for layer in (0, 3, 6):
        weight, bias = (double[f"attention.{layer}.{part}"] for part in ("weight", "bias"))
        logits = np.tanh(logits @ weight.T + bias)
    attention = np.exp(logits) / np.exp(logits).sum()
    wanted = double["score.weight"] @ (attention * x).sum(axis=0) + double["score.bias"]
    assert abs(wanted - GOLDEN["disc_real"][0]) < 1e-6


def test_the_discriminator_has_the_parameters_of_the_release() -> None:
    torch.manual_seed(0)
    network = MotionDiscriminator()
    assert count_parameters(network) == 11_762_690
    for name, parameter in network.attention.named_parameters():
        if name.endswith("weight"):
            assert 0.09 < parameter.abs().max() <= 0.1
        else:
            assert (parameter == 0.01).all()


def test_dropout_is_in_training_only(discriminator: MotionDiscriminator) -> None:
    motions = torch.from_numpy(GOLDEN["real_theta"][..., 6:75])
    torch.manual_seed(0)
    with torch.no_grad():
        still = discriminator(motions)
        assert torch.equal(discriminator(motions), still)
        try:
            assert (discriminator.train()(motions) - still).abs().max() > 1e-4
        finally:
            discriminator.eval()


def test_the_body_pose_is_scipys_axis_angle_without_the_root() -> None:
    rotations = Rotation.random(5 * 24, random_state=0)
    rotmats = torch.tensor(rotations.as_matrix()).reshape(5, 24, 3, 3)
    wanted = rotations.as_rotvec().reshape(5, 24, 3)[:, 1:].reshape(5, 69)
    np.testing.assert_allclose(body_pose(rotmats), wanted, atol=1e-12)
    single = body_pose(rotmats.float().reshape(1, 5, 24, 3, 3))
    np.testing.assert_allclose(single[0], wanted, atol=2e-5)


@pytest.mark.parametrize("angle", [0.0, 1e-30, 1e-8, 1e-4, 1.5, np.pi - 1e-4, np.pi])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, -1), (0.6, 0, 0.8), (-2, 1, 3)])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_small_turns_and_half_turns(
    angle: float, axis: tuple[float, float, float], dtype: torch.dtype, atol: float
) -> None:
    vector = angle * np.array(axis) / np.linalg.norm(axis)
    rotmat = Rotation.from_rotvec(vector).as_matrix()
    rotmats = torch.tensor(rotmat, dtype=dtype).expand(1, 24, 3, 3).clone().requires_grad_(True)
    found = body_pose(rotmats)
    back = Rotation.from_rotvec(found.detach().reshape(23, 3)).as_matrix()
    np.testing.assert_allclose(back, np.tile(rotmat, (23, 1, 1)), atol=atol)
    assert found.detach().reshape(23, 3).norm(dim=1).max() < np.pi + atol
    found.sum().backward()
    assert rotmats.grad is not None
    assert rotmats.grad.isfinite().all()
    assert rotmats.grad.abs().max() < 10


@pytest.mark.parametrize("scale", [1e-6, 0.1, 1.0, 2.5])
def test_the_gradient_of_the_body_pose_undoes_that_of_the_rotation(scale: float) -> None:
    """Around the circle axis-angle → matrix → axis-angle, the Jacobian is the identity."""
    torch.manual_seed(0)
    vectors = torch.randn(24, 3, dtype=torch.float64)
    vectors *= scale / vectors.norm(dim=1, keepdim=True)

    def around(vectors: torch.Tensor) -> torch.Tensor:
        x, y, z = vectors.unbind(dim=1)
        zero = torch.zeros_like(x)
        skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).reshape(-1, 3, 3)
        return body_pose(torch.linalg.matrix_exp(skew)[None])[0]

    np.testing.assert_allclose(around(vectors), vectors[1:].flatten(), atol=1e-12)
    jacobian = torch.autograd.functional.jacobian(around, vectors).reshape(69, 72)
    np.testing.assert_allclose(jacobian[:, 3:], np.eye(69), atol=1e-6)
    np.testing.assert_allclose(jacobian[:, :3], 0, atol=0)
