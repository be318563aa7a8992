from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import recipe
import torch
from conftest import DATA
from databases import eval_db, write
from motions import make_motion
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.body import BodyModel, load_body
from mpsnet_cli.datasets import Sequence, read_database
from mpsnet_cli.errors import InputError, WeightsError
from mpsnet_cli.evaluation.evaluate import evaluate, evaluate_sequences, predict_as_release
from mpsnet_cli.evaluation.filters import release_filter, tool_filter
from mpsnet_cli.evaluation.paper import paper_row
from mpsnet_cli.evaluation.result import METRICS, Errors, pooled
from mpsnet_cli.geometry import axis_angle_to_matrix
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.progress import Reporter
from mpsnet_cli.smoothing import smooth_motion

Predict = Callable[[Tensor, NDArray[np.int64]], Prediction]


@pytest.fixture(scope="module")
def smpl(tmp_path_factory: pytest.TempPathFactory) -> BodyModel:
    keys = ["v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f"]
    folder = tmp_path_factory.mktemp("smpl")
    np.savez(folder / "SMPL_NEUTRAL.npz", **{key: recipe.body()[key] for key in keys})
    return load_body("smpl", path=folder)


@pytest.fixture(scope="module")
def free() -> BodyModel:
    return load_body("free-1")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> list[Sequence]:
    path = tmp_path_factory.mktemp("db") / "3dpw_test_db.pt"
    return read_database(write(path, eval_db()), Reporter())


def stand_in(predict: Any, *, body: str = "smpl") -> Any:
    """Make a Model of a network or of a function that predicts."""
    return SimpleNamespace(
        config=MPSNetConfig(body=body),
        device=torch.device("cpu"),
        network=predict,
        predict=predict,
    )


def truth(name: str = "walk", frames: int = 20, **changes: Any) -> Sequence:
    """Make a sequence of the free body whose first feature is the frame's number."""
    rng = np.random.default_rng(frames)
    features = np.zeros((frames, 2048), np.float32)
    features[:, 0] = np.arange(frames)
    values: dict[str, Any] = {
        "pose": rng.normal(0, 0.2, (frames, 72)).astype(np.float32),
        "betas": rng.normal(0, 1, (frames, 10)).astype(np.float32),
        **changes,
    }
    return Sequence(name, "free-1", 30.0, np.arange(frames), features, **values)


def repeat_truth(sequence: Sequence, *, turn: float = 0.0, betas: float = 0.0) -> Predict:
    """Predict the truth itself, from the feature of each window's frame 8."""

    def predict(features: Tensor, windows: NDArray[np.int64]) -> Prediction:
        frames = features[torch.from_numpy(windows[:, 8]), 0].long().numpy()
        rotmats = axis_angle_to_matrix(sequence.pose[frames].reshape(-1, 24, 3))
        rotmats[:, 0] = axis_angle_to_matrix(np.array([0, turn, 0])) @ rotmats[:, 0]
        return Prediction(
            torch.from_numpy(rotmats).float(),
            torch.from_numpy(sequence.betas[frames]) + betas,
            torch.zeros(len(frames), 3),
        )

    return predict


@pytest.mark.parametrize(
    ("smooth", "expected"),
    [
        (0.0, {"pa_mpjpe": 431.636, "mpjpe": 559.510, "acceleration": 1345.267}),
        ("release", {"pa_mpjpe": 431.569, "mpjpe": 559.515, "acceleration": 1345.278}),
    ],
)
def test_the_official_evaluation_says_the_same(
    official: list[Sequence], smpl: BodyModel, smooth: Any, expected: dict[str, float]
) -> None:
    """Its whole run on this database: invalid frames, a short sequence, batches that mix."""
    report = Reporter()
    result = evaluate(
        official,
        stand_in(recipe.network()),
        smpl,
        joint_regressor=recipe.body()["J_regressor_h36m"],
        release_batching=True,
        smooth=smooth,
        report=report,
    )
    assert result.pooled.frames == 90
    expected = {**expected, "mpvpe": 329.138}
    found = result.pooled.means()
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=6e-4)
    assert found["acceleration_per_s2"] == pytest.approx(900 * found["acceleration"])
    assert [errors.name for errors in result.sequences] == ["a_0", "b_0"]
    assert len(result.pooled.values["acceleration"]) == 90 - 2 * 2
    assert "regressed" in result.joints
    assert report.warnings == ["Skipped 1 of 3 sequences, which have fewer than 16 frames: c_0."]


def test_release_batching_is_what_mixes(official: list[Sequence]) -> None:
    network, features = recipe.network(), torch.tensor(official[0].features)
    windows = np.arange(16) + np.arange(9)[:, None]
    mixed = predict_as_release(network, features, windows)
    alone = [predict_as_release(network, features, row[None]) for row in windows]
    apart = [(mixed.rotmats[k] - one.rotmats[0]).abs().max().item() for k, one in enumerate(alone)]
    assert min(apart[:8]) > 1e-4
    assert apart[8] == pytest.approx(0, abs=1e-6)  # a group of one
    with torch.inference_mode():
        plain = network(features[torch.from_numpy(windows)])
    torch.testing.assert_close(plain.rotmats, torch.cat([one.rotmats for one in alone]))


def test_windows_are_the_release_s_and_bridge_gaps(free: BodyModel) -> None:
    sequence = truth(frames=25)
    ids = np.sort(np.random.default_rng(0).choice(200, 25, replace=False))
    sequence = Sequence(**{**vars(sequence), "frame_ids": ids})
    seen: list[NDArray] = []

    def predict(features: Tensor, windows: NDArray[np.int64]) -> Prediction:
        seen.append(windows)
        return repeat_truth(sequence)(features, windows)

    evaluate_sequences([sequence], predict, free)
    np.testing.assert_array_equal(seen[0], np.load(DATA / "goldens" / "g_windows.npz")["win25"])


def test_the_release_smooths_the_same() -> None:
    golden = np.load(DATA / "goldens" / "g_smoothing.npz")
    found = release_filter(golden["rot_in"])
    np.testing.assert_allclose(found, golden["rot_slerp03"], rtol=0, atol=1e-6)


def test_our_smoothing_is_that_of_run() -> None:
    motion = make_motion(30, frame_ids=np.array([*range(20), *range(40, 50)]))
    rotmats = axis_angle_to_matrix(motion.pose.reshape(-1, 24, 3))
    calm, betas = tool_filter(
        rotmats, motion.betas_per_frame, motion.frame_ids, strength=0.3, fps=motion.fps
    )
    expected = smooth_motion(motion, 0.3)
    theirs = axis_angle_to_matrix(expected.pose.reshape(-1, 24, 3))
    np.testing.assert_allclose(calm, theirs, atol=1e-5)
    np.testing.assert_allclose(betas, expected.betas_per_frame, atol=1e-6)


def test_smoothing_is_applied(free: BodyModel) -> None:
    sequence = truth()
    predict = repeat_truth(sequence)
    raw, own, release = (
        evaluate_sequences([sequence], predict, free, smooth=smooth).pooled.means()
        for smooth in (0.0, 0.5, "release")
    )
    assert raw["mpjpe"] < 1e-2
    assert own["mpjpe"] > 1
    assert own["mpvpe"] > 1
    assert release["mpjpe"] > 1
    assert release["mpvpe"] == raw["mpvpe"]  # its filter leaves the vertices alone


def test_the_truth_has_no_error(free: BodyModel) -> None:
    result = evaluate_sequences([truth()], repeat_truth(truth()), free)
    means = result.pooled.means()
    assert means.keys() == {m for m in METRICS if m not in ("mpjpe_camera", "joints2d")}
    assert max(means[metric] for metric in ("pa_mpjpe", "mpjpe", "mpvpe", "acceleration")) < 0.01
    assert "own 24 joints" in result.joints


def test_turning_the_body_is_an_error_of_orientation_alone(free: BodyModel) -> None:
    means = evaluate_sequences([truth()], repeat_truth(truth(), turn=0.5), free).pooled.means()
    assert means["pa_mpjpe"] < 0.01
    assert means["mpjpe"] > 20
    assert means["mpvpe"] > 20  # about the pelvis, and nothing is aligned


def test_own_joints_stand_for_those_of_the_truth(free: BodyModel) -> None:
    sequence = truth()
    joints = free.joints(sequence.pose, sequence.betas) + np.float32([3, 4, 5])
    told = truth(joint_set="smpl24", joints3d=joints, pose=None, betas=None)
    report = Reporter()
    means = evaluate_sequences([told], repeat_truth(sequence), free, report=report).pooled.means()
    assert means["mpjpe"] < 0.01
    assert "mpvpe" not in means
    assert report.warnings == [
        "MPVPE needs the true pose and betas of the body free-1: 1 of 1 sequences do not have them."
    ]


def test_pooled_means_weigh_frames_not_sequences(free: BodyModel) -> None:
    short, long = truth("short", 16), truth("long", 64)
    result = evaluate_sequences(
        [short, long],
        lambda f, w: repeat_truth(short if len(w) == 16 else long, turn=len(w) / 64)(f, w),
        free,
    )
    first, second = (errors.mean("mpjpe") for errors in result.sequences)
    assert first is not None
    assert second is not None
    assert result.pooled.mean("mpjpe") == pytest.approx((16 * first + 64 * second) / 80)
    assert abs(first - second) > 10
    as_dict = result.as_dict()
    assert [row["name"] for row in as_dict["sequences"]] == ["short", "long"]
    assert as_dict["pooled"]["frames"] == 80
    assert as_dict["pooled"]["mpjpe"] == result.pooled.mean("mpjpe")


def test_frame_rates_of_sequences_may_differ() -> None:
    each = [
        Errors("a", 3, {"acceleration_per_s2": np.array([2.0])}),
        Errors("b", 4, {"acceleration_per_s2": np.array([8.0, 5.0]), "mpvpe": np.array([1.0])}),
    ]
    assert pooled(each).means() == {"acceleration_per_s2": 5.0, "mpvpe": 1.0}
    assert pooled(each).frames == 7
    assert Errors("c", 0, {"mpjpe": np.zeros(0)}).mean("mpjpe") is None


def test_smpl_s_truth_on_the_free_body(official: list[Sequence], free: BodyModel) -> None:
    """It works, is not the benchmark, and everything that stands in for something is said."""
    report = Reporter()
    given: list[Tensor] = []

    class Body:
        """The free body, noting the betas that it is posed with."""

        name, vertex_count, joints = free.name, free.vertex_count, free.joints

        def __call__(self, pose: Any, betas: Any) -> Any:
            given.append(betas)
            return free(pose, betas)

    network = recipe.network()
    result = evaluate(
        official,
        stand_in(partial(predict_as_release, network)),
        Body(),  # type: ignore[arg-type]
        report=report,
    )
    assert "mpvpe" not in result.pooled.means()
    assert not any(np.any(betas) for betas in given)
    told = "\n".join(report.warnings)
    for text in (
        "trained for the body smpl; on free-1 their betas mean nothing and are held at zero",
        "no regressor was given (--joint-regressor",
        "MPVPE needs the true pose and betas of the body free-1: 2 of 2",
    ):
        assert text in told


def test_sequences_that_say_nothing_are_skipped(free: BodyModel) -> None:
    blind = truth("blind", pose=None, betas=None)
    report = Reporter()
    result = evaluate_sequences([blind, truth()], repeat_truth(truth()), free, report=report)
    assert [errors.name for errors in result.sequences] == ["walk"]
    assert any("1 of 2 sequences, which hold no 3D joints" in text for text in report.warnings)
    for useless in ([blind], [truth(frames=15)], []):
        with pytest.raises(InputError, match="sequences can be evaluated: it takes 16 frames"):
            evaluate_sequences(useless, repeat_truth(truth()), free)


def test_a_regressor_of_another_body_is_refused(free: BodyModel) -> None:
    regressor = recipe.body()["J_regressor_h36m"]
    with pytest.raises(InputError, match=r"for 6890 vertices, and the body free-1 has \d+"):
        evaluate_sequences([truth()], repeat_truth(truth()), free, joint_regressor=regressor)


def test_features_of_another_backbone_are_refused(free: BodyModel) -> None:
    narrow = replace(truth(), features=np.zeros((20, 7), np.float32))
    with pytest.raises(InputError, match=r"has 7 features a frame, and the weights take 2048"):
        evaluate([narrow], stand_in(repeat_truth(truth())), free)


def test_weights_that_give_no_numbers_are_refused(free: BodyModel) -> None:
    with pytest.raises(WeightsError, match="not numbers on walk"):
        evaluate_sequences([truth()], repeat_truth(truth(), betas=float("nan")), free)


@pytest.mark.parametrize(
    ("name", "data", "mpjpe"),
    [
        ("3dpw_test_db.pt", "3DPW", 84.3),
        ("h36m_test_front_25fps_tight_db.pt", "Human3.6M", 69.4),
    ],
)
def test_the_paper_s_row_is_found_by_name(name: str, data: str, mpjpe: float) -> None:
    row = paper_row(Path("anywhere") / name)
    assert row is not None
    assert (row.data, row.mpjpe) == (data, mpjpe)


def test_other_data_has_no_row() -> None:
    assert paper_row(Path("3dpw") / "mine.pt") is None
    assert paper_row(Path("mpii3d_val_scale12_db.pt")) is None  # of other joints than ours
