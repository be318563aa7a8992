from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe
import safetensors.numpy
import safetensors.torch
import torch

from mpsnet_cli.errors import OutputError, WeightsError
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.progress import Reporter
from mpsnet_cli.weights import (
    available,
    check_state,
    file_sha256,
    find_weights,
    load_model,
    load_network,
    read_info,
    save_network,
    save_untrained,
    user_folder,
)

HEADER = {
    "format": "mpsnet-weights/1",
    "name": "a test",
    "trained": True,
    "licence": "MIT",
    "sources": {},
    "note": "",
    "config": json.loads(json.dumps(asdict(MPSNetConfig()))),
}


pytestmark = pytest.mark.usefixtures("empty_home")


def write(path: Path, header: Any, **tensors: Any) -> Path:
    text = header if isinstance(header, str) else json.dumps(header)
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({"x": np.zeros(1), **tensors}, path, {"mpsnet": text})
    return path


def test_untrained_weights_load(untrained: Path) -> None:
    report = Reporter()
    model = load_model(untrained, device="cpu", precision="fp32", batch_size=3, report=report)
    assert report.warnings == [
        "The weights untrained.safetensors are untrained: "
        "the result shows how the tool works, not how people moved."
    ]
    assert model.weights.trained is False
    assert model.weights.name == "untrained (random, seed 0)"
    assert model.weights.sha256 == file_sha256(untrained)
    assert model.config == MPSNetConfig(crop_scale=1.1, camera_scale=1.1, body="free-1")
    assert (model.device.type, model.precision, model.batch_size) == ("cpu", "fp32", 3)


def test_equal_seeds_give_equal_files(untrained: Path, tmp_path: Path) -> None:
    again = save_untrained(tmp_path / "again.safetensors", seed=0)
    assert again.sha256 == read_info(untrained).sha256
    again.path.unlink()


def test_saved_network_comes_back(tmp_path: Path) -> None:
    network = recipe.network()
    info = save_network(
        network,
        tmp_path / "new folder" / "ours.safetensors",
        name="ours",
        trained=True,
        licence="MIT",
        sources={"a": "0" * 64},
        note="by hand",
        overwrite=False,
    )
    assert (info.name, info.trained, info.licence) == ("ours", True, "MIT")
    assert (info.sources, info.note, info.config) == ({"a": "0" * 64}, "by hand", network.config)
    loaded = load_network(info)
    for (name, ours), theirs in zip(
        loaded.state_dict().items(), network.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert [path.name for path in info.path.parent.iterdir()] == ["ours.safetensors"]
    info.path.unlink()


def test_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "precious.safetensors"
    path.write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        save_untrained(path, seed=0)
    assert path.read_text() == "mine"


def test_unwritable_output_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr("safetensors.torch.save", lambda *_: b"")
    with pytest.raises(OutputError, match="No space left"):
        save_untrained(tmp_path / "new.safetensors", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_lookup_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=r"weights pull.*weights import.*weights init"):
        find_weights()
    untrained = write(user_folder() / "untrained.safetensors", HEADER)
    assert find_weights() == untrained
    custom = write(user_folder() / "zebra.safetensors", HEADER)
    assert find_weights() == custom
    official = write(user_folder() / "mps-net.safetensors", HEADER)
    assert find_weights() == official
    assert find_weights("untrained") == find_weights("untrained.safetensors") == untrained
    elsewhere = write(tmp_path / "elsewhere.safetensors", HEADER)
    assert find_weights(elsewhere) == elsewhere
    monkeypatch.setenv("MPSNET_WEIGHTS", str(elsewhere))
    assert find_weights() == elsewhere
    assert [place for place, _ in available()] == ["$MPSNET_WEIGHTS", *["user data folder"] * 3]
    assert find_weights(str(untrained)) == untrained


def test_packaged_weights_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpsnet_cli.weights.packaged_folder", lambda: tmp_path / "packaged")
    packaged = write(tmp_path / "packaged" / "ours.safetensors", HEADER)
    assert find_weights() == packaged
    user = write(user_folder() / "any.safetensors", HEADER)
    assert available() == [("user data folder", user), ("packaged", packaged)]


def test_missing_files_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"no weight file nowhere\.safetensors"):
        find_weights("nowhere.safetensors")
    monkeypatch.setenv("MPSNET_WEIGHTS", "/nowhere")
    with pytest.raises(WeightsError, match=r"/nowhere, which \$MPSNET_WEIGHTS names"):
        find_weights()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "mpsnet-weights/2"}, "its format is 'mpsnet-weights/2'"),
        ({"trained": 1}, "trained is 1, and must be a bool"),
        ({"name": None}, "name is None"),
        ({"licence": "\x1b[31mred"}, "not plain text"),
        ({"note": "long" * 1000}, "not plain text"),
        ({"sources": {"a": 1}}, "not plain text"),
        ({"extra": 1}, "key 'extra' is unknown"),
        ({"config": 3}, "config is not a table"),
        ({"config": {**HEADER["config"], "colour": "red"}}, "unknown key 'colour'"),
        ({"config": {**HEADER["config"], "crop_size": 10**9}}, "crop_size is 1000000000"),
        ({"config": {**HEADER["config"], "groups": "abc"}}, "groups is not a list"),
        ({"config": {}}, "config lacks the key 'body'"),
    ],
)
def test_unsound_header_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    path = write(tmp_path / "odd.safetensors", {**HEADER, **change})
    with pytest.raises(WeightsError, match=message):
        read_info(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 10_000, '{"format": NaN}'])
def test_header_that_is_no_header_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(WeightsError, match="unsound"):
        read_info(write(tmp_path / "odd.safetensors", text))


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"odd\.safetensors"):
        read_info(path)


def test_tensors_must_fit() -> None:
    state = dict(recipe.network().state_dict())
    with torch.device("meta"):
        network = MPSNet(MPSNetConfig())
    check_state(state, network, source="it")
    name = "encoder.moca.g.weight"
    transposed = {**state, name: state[name].T}
    with pytest.raises(
        WeightsError,
        match=r"moca\.g\.weight is float32 \(2048, 1024\), and must be float32 \(1024, 2048\)",
    ):
        check_state(transposed, network, source="it")
    with pytest.raises(WeightsError, match=r"must be float32 \(1024, 2048\)"):
        check_state({**state, name: state[name].double()}, network, source="it")
    with pytest.raises(WeightsError, match=r"moca\.g\.weight is corrupt"):
        check_state({**state, name: state[name] * np.nan}, network, source="it")
    with pytest.raises(WeightsError, match=r"it holds an unknown tensor extra"):
        check_state({**state, "extra": state[name]}, network, source="it")
    del state[name]
    with pytest.raises(WeightsError, match=r"it lacks the tensor encoder\.moca\.g\.weight"):
        check_state(state, network, source="it")


def test_file_without_the_tensors_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "empty.safetensors", HEADER)
    with pytest.raises(WeightsError, match="do not match"):
        load_model(path, device="cpu")


def test_config_decides_the_shapes(untrained: Path) -> None:
    info = read_info(untrained)
    wider = replace(info, config=replace(info.config, feature_dim=4096))
    with pytest.raises(WeightsError, match=r"and must be float32 \(.*4096"):
        load_network(wider)
