"""What a run starts from: the network, the sequences, the motions of the prior, the joints."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mpsnet_cli.body import BodyModel
from mpsnet_cli.body.joint_sets import SPIN_EXTRA_JOINTS, load_joint_regressor
from mpsnet_cli.datasets import Sequence, read_sequences
from mpsnet_cli.datasets.amass import read_amass
from mpsnet_cli.errors import DeviceError, InputError, WeightsError
from mpsnet_cli.model.config import MPSNetConfig, WeightsInfo
from mpsnet_cli.model.inference import resolve_device
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.model.untrained import untrained_network
from mpsnet_cli.progress import Reporter
from mpsnet_cli.training.config import Network, TrainConfig
from mpsnet_cli.training.learner import Joints
from mpsnet_cli.weights import load_network


def start_network(start: WeightsInfo | None, options: Network, *, seed: int) -> MPSNet:
    """Load the network that training starts from, or draw it where there is no file.

    A fresh encoder starts with W_z = 0, so that MoCA passes on what it is given (paper §3.1).
    Raises WeightsError where the file's network is not the one that the options ask for.
    """
    chosen = {name: getattr(options, name) for name in ("body", "attention", "integration")}
    if start is None:
        return untrained_network(seed, MPSNetConfig(**chosen))
    fixed = ["body"] if options.encoder == "fresh" else list(chosen)
    for name in fixed:
        if (found := getattr(start.config, name)) != chosen[name]:
            way_out = "" if name == "body" else ", or network.encoder: fresh to begin it anew"
            raise WeightsError(
                f"The network in {start.path} has {name} {found}, and the config asks for "
                f"{chosen[name]}: set network.{name}: {found}{way_out}."
            )
    network = load_network(start)
    if options.encoder == "fresh":
        network.config = replace(start.config, **chosen)
        network.encoder = untrained_network(seed, network.config).encoder
        nn.init.zeros_(network.encoder.moca.w_z.weight)
    return network


def choose_device(config: TrainConfig) -> torch.device:
    """Find the device. Raises DeviceError for one that is not here, or fp16 without a GPU."""
    device = resolve_device(config.device)
    if config.precision == "fp16" and device.type != "cuda":
        raise DeviceError(f"Training in fp16 needs CUDA, and {device} is not: use auto or fp32.")
    return device


def labelled_sequences(
    paths: Iterable[Path], labels: Iterable[str], network: MPSNetConfig, report: Reporter
) -> list[Sequence]:
    """Read sequences of which each has one of the `labels`, for this network.

    Raises InputError for one that has none of them, speaks of another body, or has other features.
    """
    found = []
    for path in paths:
        for sequence in read_sequences(path, report):
            where = f"The sequence {sequence.name} of {path}"
            if all(getattr(sequence, label) is None for label in labels):
                raise InputError(f"{where} has none of {', '.join(labels)}: it teaches nothing.")
            if sequence.body != network.body:
                raise InputError(
                    f"{where} is labelled with the body {sequence.body}, and the network speaks of "
                    f"{network.body}: choose the weights, or network.body, to fit."
                )
            if (width := sequence.features.shape[1]) != network.feature_dim:
                raise InputError(
                    f"{where} has {width} features a frame, and the network takes "
                    f"{network.feature_dim}."
                )
            found.append(sequence)
    return found


def prior_poses(paths: Iterable[Path], report: Reporter) -> list[NDArray[np.float32]]:
    """Read motions, poses (N, 72) each, from AMASS or from sequences with poses."""
    poses = []
    for path in paths:
        if _holds_sequences(path):
            poses += [s.pose for s in read_sequences(path, report) if s.pose is not None]
        else:
            poses += [take.pose for take in read_amass(path, report)]
    return poses


def _holds_sequences(path: Path) -> bool:
    """Whether an .npz is of ours; AMASS's have no key of this name."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return "format.npy" in archive.namelist()


def training_joints(body: BodyModel, joint_set: str, regressor: Path | None) -> Joints:
    """Say how the joints that the labels are of come from the predicted body.

    Raises InputError where that takes a `regressor` that is not given, or another body.
    """
    if joint_set != "spin49":
        return Joints(body, joint_set, None)
    if not body.name.startswith("smpl") or regressor is None:
        raise InputError(
            "The training labels are spin49 joints, nine of which only SPIN's regressor finds on "
            "SMPL: set network.body: smpl and data.j_regressor_extra: J_regressor_extra.npy."
        )
    matrix = load_joint_regressor(regressor, SPIN_EXTRA_JOINTS)
    if matrix.shape[1] != body.vertex_count:
        raise InputError(f"{regressor} is for {matrix.shape[1]} vertices, not {body.vertex_count}.")
    return Joints(body, joint_set, torch.from_numpy(matrix).to(body.device))
