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
from conftest import ROOT

from mpsnet_cli.errors import OutputError, WeightsError
from mpsnet_cli.model.config import MPSNetConfig, WeightsInfo
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.packaged import PACKAGED, file_sha256
from mpsnet_cli.progress import Reporter
from mpsnet_cli.weights import (
    KNOWN,
    STARTER,
    available,
    check_state,
    find_weights,
    load_model,
    load_network,
    pack_weights,
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


def test_the_starter_comes_after_all_but_the_untrained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpsnet_cli.weights.packaged_folder", lambda: tmp_path / "packaged")
    untrained = write(user_folder() / "untrained.safetensors", HEADER)
    assert find_weights() == untrained
    starter = write(tmp_path / "packaged" / STARTER.file, HEADER)
    assert find_weights() == find_weights("mpsnet-starter") == starter
    own = write(user_folder() / "own.safetensors", HEADER)
    official = write(user_folder() / "mps-net.safetensors", HEADER)
    assert available() == [
        ("user data folder", official),
        ("user data folder", own),
        ("packaged", starter),
        ("user data folder", untrained),
    ]


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


class Tiny(torch.nn.Module):
    """Stands in for MPSNet: a number of every kind that it has."""

    def __init__(self, config: MPSNetConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = torch.nn.Linear(3, 200)
        self.norm = torch.nn.BatchNorm1d(200)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Tiny:
    monkeypatch.setattr("mpsnet_cli.model.mpsnet.MPSNet", Tiny)
    network = Tiny(MPSNetConfig())
    network.norm.running_var.fill_(1e-9)
    network.norm.running_mean[0] = 65503  # float16 has only 65504 there
    return network


def save(network: torch.nn.Module, path: Path, **texts: Any) -> WeightsInfo:
    texts = {"name": "a", "licence": "MIT", "note": "", **texts}
    return save_network(network, path, trained=True, sources={"x": "1"}, overwrite=False, **texts)


def test_packed_weights_are_the_rounded_ones_in_half_the_bytes(tiny: Tiny, tmp_path: Path) -> None:
    whole = save(tiny, tmp_path / "whole.safetensors", note="by hand")
    info = pack_weights(whole.path, tmp_path / "half.safetensors", name="b", licence="CC0-1.0")
    assert (info.name, info.licence, info.note, info.trained) == ("b", "CC0-1.0", "by hand", True)
    assert info.sources == {"x": "1", "whole.safetensors": whole.sha256}
    assert info.config == whole.config
    stored = safetensors.torch.load_file(info.path)
    loaded = load_network(info).state_dict()
    assert stored.keys() == loaded.keys() == tiny.state_dict().keys()
    for name, tensor in tiny.state_dict().items():
        exact = not tensor.is_floating_point()
        assert stored[name].dtype == (torch.int64 if exact else torch.float16)
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor if exact else tensor.half().float()), name
    numbers = [sum(t.numel() * t.element_size() for t in s.values()) for s in (loaded, stored)]
    saved = whole.path.stat().st_size - info.path.stat().st_size
    assert abs(saved - (numbers[0] - numbers[1])) < 200  # the headers differ by their texts
    again = pack_weights(info.path, tmp_path / "again.safetensors")
    assert (again.name, again.licence) == ("b", "CC0-1.0")
    assert again.sources == {**info.sources, "half.safetensors": info.sha256}


def test_weights_that_float16_cannot_hold_are_not_packed(tiny: Tiny, tmp_path: Path) -> None:
    tiny.norm.running_var[7] = 65520  # rounds to infinity
    whole = save(tiny, tmp_path / "whole.safetensors")
    with pytest.raises(WeightsError, match=r"norm\.running_var reaches 65520, .* float32"):
        pack_weights(whole.path, tmp_path / "half.safetensors")
    assert list(tmp_path.iterdir()) == [whole.path]


def test_a_mixture_of_number_formats_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    tiny.norm.half()
    info = save(tiny, tmp_path / "mixed.safetensors")
    with pytest.raises(WeightsError, match=r"tensor norm\.\w+ is float16 .* must be float32"):
        load_network(info)


def test_a_text_that_no_header_may_hold_is_not_written(tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"red\.safetensors is not written: .* plain text"):
        save(tiny, tmp_path / "red.safetensors", name="\x1b[31mred")
    assert list(tmp_path.iterdir()) == []


def test_a_packaged_file_must_be_as_it_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "packaged"
    monkeypatch.setattr("mpsnet_cli.packaged.packaged_folder", lambda: folder)
    shipped = write(folder / STARTER.file, HEADER)
    monkeypatch.setitem(PACKAGED, STARTER.file, file_sha256(shipped))
    assert read_info(shipped).sha256 == PACKAGED[STARTER.file]
    write(shipped, {**HEADER, "note": "changed"})
    with pytest.raises(WeightsError, match=r"not the file that shipped .* again\."):
        read_info(shipped)
    assert read_info(write(folder / "mine.safetensors", HEADER)).name == "a test"
    elsewhere = tmp_path / STARTER.file
    shipped.replace(elsewhere)
    assert read_info(elsewhere).note == "changed"


def test_what_lies_in_weights_is_what_ships() -> None:
    """Drafts included: what is not in the table must lie elsewhere."""
    files = [*(ROOT / "weights").glob("*.safetensors"), *(ROOT / "weights").glob("*.pt")]
    assert {path.name: file_sha256(path) for path in files} == PACKAGED
    for known in KNOWN:
        if known.file in PACKAGED:
            info = read_info(ROOT / "weights" / known.file)
            assert (info.name, info.licence, info.trained) == (known.name, known.licence, True)
            assert info.path.stat().st_size <= 80e6
            assert load_network(info).config == info.config
