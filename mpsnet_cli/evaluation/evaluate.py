"""Evaluation from static features, by the protocol of the paper (§5) as its release follows it.

Every frame of a sequence is predicted from its window; the first 8 and last 7 frames stand still in
theirs. Frames that were dropped leave no gap: windows and accelerations bridge it. Joints are the
fourteen of common14 about the middle of the hips; vertices are compared where they are, with
neither root nor size aligned. Sequences shorter than a window are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.body import BodyModel
from mpsnet_cli.body.joint_sets import HIPS, common14_from_vertices, to_common14
from mpsnet_cli.datasets import Sequence
from mpsnet_cli.errors import InputError, WeightsError
from mpsnet_cli.evaluation.filters import release_filter, tool_filter
from mpsnet_cli.evaluation.metrics import mean_distance
from mpsnet_cli.evaluation.result import (
    OWN_JOINTS,
    REGRESSED_JOINTS,
    Errors,
    Result,
    joint_errors,
)
from mpsnet_cli.geometry import matrix_to_axis_angle
from mpsnet_cli.model.inference import Model
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.progress import Reporter
from mpsnet_cli.windows import WINDOW, window_indices

RELEASE_GROUP = 8  # windows that the release evaluates at once
CHUNK = 128  # bodies with vertices in memory at once

Smooth = float | Literal["release"]  # strength 0..1 of the tool's own, or the release's recursion
Predict = Callable[[Tensor, NDArray[np.int64]], Prediction]
Floats = NDArray[np.floating]


def evaluate(
    sequences: Iterable[Sequence],
    model: Model,
    body: BodyModel,
    *,
    joint_regressor: NDArray[np.float32] | None = None,
    release_batching: bool = False,
    smooth: Smooth = 0.0,
    report: Reporter | None = None,
) -> Result:
    """Evaluate a model on sequences; see `evaluate_sequences`.

    `release_batching` runs windows in groups of eight that mix, as the release does (see `MoCA`).
    """
    report = report or Reporter()
    sequences = list(sequences)
    for sequence in sequences:
        if (width := sequence.features.shape[1]) != model.config.feature_dim:
            raise InputError(
                f"The sequence {sequence.name} has {width} features a frame, and the weights take "
                f"{model.config.feature_dim}: give the weights that its features were made with."
            )
    speaks = body.name.startswith(model.config.body)
    if not speaks:
        report.warn(
            f"The weights were trained for the body {model.config.body}; on {body.name} their "
            "betas mean nothing and are held at zero."
        )

    def predict(features: Tensor, windows: NDArray[np.int64]) -> Prediction:
        if release_batching:
            found = predict_as_release(model.network, features.to(model.device), windows)
        else:
            found = model.predict(features, windows)
        return found if speaks else found._replace(betas=torch.zeros_like(found.betas))

    return evaluate_sequences(
        sequences, predict, body, joint_regressor=joint_regressor, smooth=smooth, report=report
    )


@torch.inference_mode()
def predict_as_release(network: MPSNet, features: Tensor, windows: NDArray[np.int64]) -> Prediction:
    """Predict windows (M, 16) of features (N, 2048) in the release's groups of eight."""
    parts = [
        network.regressor(network.encoder(features[rows], release_batching=True)[0])
        for rows in torch.from_numpy(windows).split(RELEASE_GROUP)
    ]
    return Prediction(*(torch.cat(values).cpu() for values in zip(*parts, strict=True)))


def evaluate_sequences(
    sequences: Iterable[Sequence],
    predict: Predict,
    body: BodyModel,
    *,
    joint_regressor: NDArray[np.float32] | None = None,
    smooth: Smooth = 0.0,
    report: Reporter | None = None,
) -> Result:
    """Compare what `predict` says of the features (N, 2048) and windows (N, 16) with the truth.

    `body` must be a neutral one: both sides' vertices are its. `joint_regressor` (17, V) is used on
    sequences whose own joints are benchmark joints, not the body's. `smooth` is 0..1 of the tool's
    own smoothing; "release" smooths joints alone, and leaves the vertices as they were.

    Raises InputError where no sequence is long enough, none has a truth to compare with, or the
    regressor is for another body.
    """
    report = report or Reporter()
    if joint_regressor is not None and joint_regressor.shape[1] != body.vertex_count:
        raise InputError(
            f"The joint regressor is for {joint_regressor.shape[1]} vertices, and the body "
            f"{body.name} has {body.vertex_count}: it takes SMPL (--body smpl)."
        )
    usable = usable_sequences(list(sequences), body, report)
    errors, joints = [], []
    with report.stage("evaluate", total=sum(map(len, usable))) as advance:
        for sequence in usable:
            regressor = joint_regressor if sequence.joint_set in ("common14", "spin49") else None
            if regressor is None and sequence.joint_set in ("common14", "spin49"):
                report.warn(
                    "The truth's joints are benchmark joints, regressed from SMPL's vertices, but "
                    "no regressor was given (--joint-regressor J_regressor_h36m.npy): the body's "
                    "own joints stand in, and errors are larger than the paper's would be."
                )
            joints.append(OWN_JOINTS if regressor is None else REGRESSED_JOINTS)
            errors.append(_errors(sequence, predict, body, regressor, smooth))
            advance(len(sequence))
    return Result(tuple(errors), "; ".join(dict.fromkeys(joints)))


def usable_sequences(
    sequences: list[Sequence], body: BodyModel, report: Reporter
) -> list[Sequence]:
    """Return the sequences that can be evaluated, and warn of the others.

    Raises InputError if there are none.
    """
    long = [sequence for sequence in sequences if len(sequence) >= WINDOW]
    if len(long) < len(sequences):
        names = [sequence.name for sequence in sequences if len(sequence) < WINDOW]
        report.warn(
            f"Skipped {len(names)} of {len(sequences)} sequences, which have fewer than {WINDOW} "
            f"frames: {', '.join(names[:5])}{', …' * (len(names) > 5)}."
        )
    known = [s for s in long if s.joints3d is not None or _true_body(s, body)]
    if len(known) < len(long):
        report.warn(
            f"Skipped {len(long) - len(known)} of {len(sequences)} sequences, which hold no 3D "
            f"joints and no pose of the body {body.name}."
        )
    if not known:
        raise InputError(
            f"None of the {len(sequences)} sequences can be evaluated: it takes {WINDOW} frames, "
            f"and 3D joints or the pose of the body {body.name}."
        )
    if missing := [s for s in known if _true_body(s, body) is None]:
        report.warn(
            f"MPVPE needs the true pose and betas of the body {body.name}: {len(missing)} of "
            f"{len(known)} sequences do not have them."
        )
    return known


def _true_body(sequence: Sequence, body: BodyModel) -> tuple[Floats, Floats] | None:
    """Return the true pose and betas, if they are known and this body's."""
    if sequence.pose is None or sequence.betas is None or not body.name.startswith(sequence.body):
        return None
    return sequence.pose, sequence.betas


def _errors(
    sequence: Sequence,
    predict: Predict,
    body: BodyModel,
    regressor: NDArray[np.float32] | None,
    smooth: Smooth,
) -> Errors:
    windows = window_indices(np.arange(len(sequence)), edges="repeat")
    prediction = predict(torch.tensor(sequence.features), windows)
    rotmats, betas = (values.numpy() for values in (prediction.rotmats, prediction.betas))
    if not (np.isfinite(rotmats).all() and np.isfinite(betas).all()):
        raise WeightsError(f"The weights give poses that are not numbers on {sequence.name}.")
    if smooth != "release" and smooth > 0:
        rotmats, betas = tool_filter(
            rotmats, betas, sequence.frame_ids, strength=smooth, fps=sequence.fps
        )
    pose = joint_pose = _axis_angle(rotmats)
    if smooth == "release":
        joint_pose = _axis_angle(release_filter(rotmats))
    true = _true_body(sequence, body)
    joints, distances = [], []
    for first in range(0, len(sequence), CHUNK):
        rows = slice(first, first + CHUNK)
        vertices, own_joints = body(joint_pose[rows], betas[rows])
        if regressor is None:
            joints.append(to_common14(own_joints, "smpl24"))
        else:
            joints.append(common14_from_vertices(vertices, regressor))
        if true is not None:
            if joint_pose is not pose:
                vertices, _ = body(pose[rows], betas[rows])
            distances.append(mean_distance(vertices, body(*(label[rows] for label in true))[0]))
    values = joint_errors(
        np.concatenate(joints), _true_joints(sequence, body), HIPS, fps=sequence.fps
    )
    if distances:
        values["mpvpe"] = np.concatenate(distances)
    return Errors(sequence.name, len(sequence), values)


def _axis_angle(rotmats: Floats) -> Floats:
    return matrix_to_axis_angle(rotmats).reshape(len(rotmats), -1)


def _true_joints(sequence: Sequence, body: BodyModel) -> Floats:
    if sequence.joints3d is not None:
        return to_common14(sequence.joints3d, sequence.joint_set)
    true = _true_body(sequence, body)
    assert true is not None  # or the sequence would not be usable
    return to_common14(body.joints(*true), "smpl24")
