from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import DATA
from torch import Tensor

from mpsnet_cli.geometry import project, weak_to_perspective
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.training.data import Batch
from mpsnet_cli.training.losses import (
    Losses,
    LossWeights,
    adversarial_loss,
    discriminator_loss,
    joints2d_loss,
    joints3d_loss,
    mean_square,
    network_losses,
    project_to_crop,
)

GOLDEN = np.load(DATA / "goldens" / "h_loss.npz")
RELATIVE = 1e-5
WEIGHTS = LossWeights()
TERMS: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "loss_kp_2d": lambda p: WEIGHTS.joints2d * joints2d_loss(p["p_kp_2d"], target("kp_2d")),
    "loss_kp_3d": lambda p: (
        WEIGHTS.joints3d
        * joints3d_loss(p["p_kp_3d"], target("kp_3d"), known("w_3d"), joint_set="spin49")
    ),
    "loss_pose": lambda p: (
        WEIGHTS.pose
        * mean_square(rotmats(p["p_theta"]) - rotmats(target("theta")), known("w_smpl"))
    ),
    "loss_shape": lambda p: (
        WEIGHTS.betas * mean_square(p["p_theta"][:, 75:] - target("theta")[:, 75:], known("w_smpl"))
    ),
    "e_m_disc_loss": lambda _: (
        WEIGHTS.adversarial * adversarial_loss(torch.from_numpy(GOLDEN["disc_fake"][:, 0]))
    ),
}


def predictions() -> dict[str, Tensor]:
    """What the release predicted for 3 windows with 2D and 5 with 3D labels, 3 times each."""
    return {name: rows(GOLDEN[name]) for name in ("p_kp_2d", "p_kp_3d", "p_theta")}


def rows(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).double().flatten(0, 1)


def target(name: str) -> Tensor:
    """The labels of all 24 rows, zero in the 9 that have none of the kind."""
    of_3d = rows(GOLDEN[f"d3_{name}"])
    if name == "kp_2d":
        return torch.cat([rows(GOLDEN["d2_kp_2d"]), of_3d])
    return torch.cat([of_3d.new_zeros(9, *of_3d.shape[1:]), of_3d])


def known(name: str) -> Tensor:
    return torch.cat([torch.zeros(9, dtype=torch.bool), rows(GOLDEN[name]) > 0])


def rotmats(theta: Tensor) -> Tensor:
    x, y, z = theta[:, 3:75].unflatten(1, (24, 3)).unbind(dim=-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1)
    return torch.linalg.matrix_exp(skew.unflatten(-1, (3, 3)))


@pytest.mark.parametrize("name", TERMS)
def test_each_loss_is_that_of_the_release(name: str) -> None:
    ours = TERMS[name](predictions()).item()
    assert ours == pytest.approx(GOLDEN[name].item(), rel=RELATIVE)


def test_the_sum_and_its_gradients_are_those_of_the_release() -> None:
    predicted = {name: p.requires_grad_(True) for name, p in predictions().items()}
    loss = torch.stack([term(predicted) for term in TERMS.values()]).sum()
    assert loss.item() == pytest.approx(GOLDEN["gen_loss"].item(), rel=RELATIVE)
    gradients = torch.autograd.grad(loss, list(predicted.values()))
    for name, ours in zip(predicted, gradients, strict=True):
        theirs = GOLDEN[f"grad_{name}"].reshape(ours.shape)
        columns = [slice(0, 75), slice(75, 85)] if name == "p_theta" else [slice(None)]
        for column in columns:  # betas weigh little: their gradients have a scale of their own
            atol = RELATIVE * np.abs(theirs[..., column]).max()
            assert atol > 0
            np.testing.assert_allclose(ours[..., column], theirs[..., column], rtol=0, atol=atol)


def test_the_discriminators_loss_is_that_of_the_release() -> None:
    real, fake = (torch.from_numpy(GOLDEN[f"disc_{kind}"][:, 0]) for kind in ("real", "fake"))
    ours = discriminator_loss(real, fake, weight=WEIGHTS.adversarial).item()
    assert ours == pytest.approx(GOLDEN["dis_loss"].item(), rel=RELATIVE)
    only_fake = discriminator_loss(torch.ones(6), fake, weight=WEIGHTS.adversarial).item()
    assert only_fake == pytest.approx(GOLDEN["d_m_disc_fake"].item(), rel=RELATIVE)


def test_the_projection_is_that_of_the_release() -> None:
    golden = np.load(DATA / "goldens" / "a_encoder_n1.npz")
    ours = project_to_crop(
        torch.from_numpy(golden["kp_3d"]), torch.from_numpy(golden["theta"][:, :3])
    )
    np.testing.assert_allclose(ours, golden["kp_2d"], rtol=0, atol=1e-6)


def test_the_projection_is_the_pipelines_with_a_long_lens() -> None:
    """HMR's lens, of a crop that was magnified from 150 to 224 px, on a box in the middle."""
    rng = np.random.default_rng(0)
    joints, cam = rng.normal(0, 0.5, (4, 24, 3)), rng.normal([0.9, 0, 0], 0.1, (4, 3))
    centre, side, focal_length = (320.0, 240.0), 150.0, 5000 * 150 / 224
    transl = weak_to_perspective(
        cam,
        np.array([[*centre, side, side]] * 4),
        focal_length=focal_length,
        principal_point=centre,
    )
    image = project(joints + transl[:, None], focal_length=focal_length, principal_point=centre)
    crop = project_to_crop(torch.tensor(joints), torch.tensor(cam))
    np.testing.assert_allclose(crop, (image - centre) / (side / 2), atol=1e-12)


def test_the_projection_of_the_plane_of_the_body_is_weak() -> None:
    joints = torch.tensor([[[0.3, -0.4, 0.0], [-1.0, 2.0, 0.0]]])
    found = project_to_crop(joints, torch.tensor([[0.5, 0.1, -0.2]]))
    np.testing.assert_allclose(found, [[[0.2, -0.3], [-0.45, 0.9]]], atol=1e-7)
    assert project_to_crop(joints, torch.zeros(1, 3)).isfinite().all()


def test_confidence_weighs_and_missing_joints_stay_in_the_mean() -> None:
    predicted = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [9.0, 9.0]]])
    labelled = torch.tensor(
        [[[0.0, 0.0, 0.5], [3.0, 3.0, 1.0]], [[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]]
    )
    assert joints2d_loss(predicted, labelled).item() == (0.5 * (1 + 4) + 1) / 8


@pytest.mark.parametrize(
    ("joint_set", "count", "hips", "first", "compared"),
    [
        ("smpl24", 24, (1, 2), 0, 24),
        ("common14", 14, (2, 3), 0, 14),
        ("spin49", 49, (27, 28), 25, 14),
    ],
)
def test_3d_joints_are_compared_from_between_the_hips(
    joint_set: str, count: int, hips: tuple[int, int], first: int, compared: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, labelled = torch.randn(2, 5, count, 3, generator=generator)
    labelled = labelled.index_fill(1, torch.tensor(hips), 0.0)  # their root is the origin
    known = torch.tensor([True, False, True, True, False])
    loss = joints3d_loss(predicted, labelled, known, joint_set=joint_set)
    root = (predicted[:, hips[:1]] + predicted[:, hips[1:]]) / 2
    squares = ((predicted - root - labelled) ** 2)[known][:, first : first + compared]
    assert loss.item() == pytest.approx(squares.mean().item(), rel=1e-6)
    moved = joints3d_loss(predicted + 7, labelled - 3, known, joint_set=joint_set)
    assert moved.item() == pytest.approx(loss.item(), rel=1e-4)


def test_nothing_known_is_no_loss_and_no_gradient() -> None:
    difference = torch.ones(3, 4, requires_grad=True)
    loss = mean_square(difference, torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert difference.grad is not None
    assert not difference.grad.any()
    assert mean_square(difference * 2, torch.tensor([True, False, True])).item() == 4


def test_scores_are_drawn_to_one_and_zero() -> None:
    scores = torch.tensor([1.0, 0.0, 3.0])
    assert adversarial_loss(scores).item() == pytest.approx(5 / 3)
    assert discriminator_loss(scores, torch.zeros(2), weight=1).item() == pytest.approx(5 / 3)
    assert discriminator_loss(torch.ones(1), scores, weight=0.3).item() == pytest.approx(1.0)


def drawn_batch(dtype: torch.dtype) -> tuple[Prediction, Tensor, Tensor, Batch]:
    """A prediction, its joints and scores, and a batch of four: all known, 3D, 2D, nothing."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    prediction = Prediction(normal(4, 24, 3, 3), normal(4, 10), normal(4, 3) * 0.1 + 0.9)
    joints2d = torch.cat(
        [normal(4, 24, 2), torch.tensor([1, 0, 1, 0])[:, None, None].expand(-1, 24, 1)], 2
    )
    batch = Batch(
        features=normal(4, 16, 8),
        joints2d=joints2d,
        joints3d=normal(4, 24, 3),
        rotmats=normal(4, 24, 3, 3),
        betas=normal(4, 10),
        has_joints3d=torch.tensor([True, True, False, False]),
        has_smpl=torch.tensor([True, False, False, False]),
    )
    return prediction, normal(4, 24, 3), normal(4), batch


def test_a_batch_is_weighed_by_what_is_known_of_it() -> None:
    prediction, joints, scores, batch = drawn_batch(torch.float64)
    losses = network_losses(
        prediction, joints, scores, batch, joint_set="smpl24", weights=LossWeights(2, 3, 5, 7, 11)
    )
    image = project_to_crop(joints, prediction.cam)
    root = (joints[:, 1:2] + joints[:, 2:3]) / 2 - (
        batch.joints3d[:, 1:2] + batch.joints3d[:, 2:3]
    ) / 2
    wanted = Losses(
        joints2d=2 * ((image - batch.joints2d[..., :2])[[0, 2]] ** 2).sum() / (4 * 24 * 2),
        joints3d=3 * ((joints - batch.joints3d - root)[:2] ** 2).mean(),
        pose=5 * ((prediction.rotmats - batch.rotmats)[0] ** 2).mean(),
        betas=7 * ((prediction.betas - batch.betas)[0] ** 2).mean(),
        adversarial=11 * ((scores - 1) ** 2).mean(),
    )
    for name, ours, theirs in zip(Losses._fields, losses, wanted, strict=True):
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-12), name


def test_a_perfect_prediction_has_no_loss() -> None:
    prediction, joints, _, batch = drawn_batch(torch.float64)
    image = project_to_crop(joints, prediction.cam)
    perfect = batch._replace(
        joints2d=torch.cat([image, batch.joints2d[..., 2:]], dim=2),
        joints3d=joints + 0.5,
        rotmats=prediction.rotmats,
        betas=prediction.betas,
    )
    losses = network_losses(
        prediction, joints, torch.ones(4), perfect, joint_set="smpl24", weights=LossWeights()
    )
    assert torch.stack(losses).double().abs().max() < 1e-24


def test_the_gradients_are_right() -> None:
    prediction, joints, scores, batch = drawn_batch(torch.float64)
    inputs = [part[:, :2] if part.ndim > 3 else part for part in (*prediction, joints, scores)]
    rest = prediction.rotmats[:, 2:]

    def summed(rotmats: Tensor, betas: Tensor, cam: Tensor, *others: Tensor) -> Tensor:
        whole = Prediction(torch.cat([rotmats, rest], dim=1), betas, cam)
        losses = network_losses(
            whole, *others, batch, joint_set="smpl24", weights=LossWeights(1, 1, 1, 1, 1)
        )
        return torch.stack(losses)

    assert torch.autograd.gradcheck(summed, [part.clone().requires_grad_(True) for part in inputs])


def test_the_weights_are_those_of_the_release() -> None:
    assert LossWeights() == (300, 300, 60, 0.06, 0.5)
    assert LossWeights._fields == Losses._fields
