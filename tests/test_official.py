from __future__ import annotations

import io
import os
import pickle
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe
import torch

from mpsnet_cli.errors import OutputError, WeightsError
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.weights import load_network, official, user_folder
from mpsnet_cli.weights.official import (
    MPSNET_FILE,
    SPIN_FILE,
    import_official,
    pull_official,
    unpack,
)


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@cache
def official_state(network: str) -> dict[str, torch.Tensor]:
    return {
        name: torch.from_numpy(np.zeros(1, array.dtype)).expand(array.shape)
        if "smpl" in name
        else torch.from_numpy(array)
        for name, array in recipe.state_dict(network).items()
    }


def checkpoint(**changes: torch.Tensor) -> dict[str, Any]:
    """What the release's trainer saves."""
    return {
        "epoch": 22,
        "gen_state_dict": {**official_state("MPSnet"), **changes},
        "performance": np.float64(52.1),
        "gen_optimizer": {"state": {}, "param_groups": [{"lr": 5e-5, "params": [0, 1]}]},
        "disc_motion_state_dict": {"fc.weight": torch.zeros(1, 1024)},
        "disc_motion_optimizer": {"state": {}, "param_groups": []},
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("official")
    paths = folder / MPSNET_FILE, folder / SPIN_FILE
    torch.save(checkpoint(), paths[0])
    # SPIN is older than torch's zip format.
    torch.save({"model": official_state("hmr")}, paths[1], _use_new_zipfile_serialization=False)
    yield paths
    for path in paths:
        path.unlink()


def test_official_files_become_one(files: tuple[Path, Path], tmp_path: Path) -> None:
    info = import_official(*files, tmp_path / "mps-net.safetensors")
    assert info.trained
    assert "non-commercial" in info.licence
    assert info.sources == {path.name: file_sha256(path) for path in files}
    assert info.config == MPSNetConfig(crop_scale=1.1, camera_scale=1.2, body="smpl")
    loaded, expected = load_network(info).state_dict(), recipe.network().state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    info.path.unlink()


def test_swapped_files_are_noticed(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no 'gen_state_dict': is it the right one"):
        import_official(*files[::-1], tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_scores_of_numpy_1_and_2_are_read(tmp_path: Path, module: str) -> None:
    buffer = io.BytesIO()
    torch.save({"performance": np.float64(52.1), "model": {}}, buffer)
    path = tmp_path / "checkpoint"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                content = re.sub(rb"numpy\._?core\.multiarray", module.encode(), content)
                assert module.encode() in content
            new.writestr(name, content)
    assert official._read_state(path, "model") == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonlocalblock.extra": torch.zeros(3)}, "does not have: nonlocalblock.extra"),
        ({"discriminator.fc.weight": torch.zeros(3)}, "does not have: discriminator.fc.weight"),
        (
            {"regressor.fc1.weight": torch.zeros(3, 2)},
            r"tensor regressor.fc1.weight is \(3, 2\), and does not fit \(1024, 2205\)",
        ),
        ({"regressor.fc1.bias": torch.full((1024,), torch.inf)}, "not all of it is finite"),
    ],
)
def test_states_that_do_not_fit_are_refused(changes: dict[str, torch.Tensor], message: str) -> None:
    state = {**official_state("MPSnet"), **changes}
    with pytest.raises(WeightsError, match=message):
        official.convert(state, official_state("hmr"))


def test_missing_tensor_is_named() -> None:
    state = dict(official_state("hmr"))
    del state["layer2.0.conv1.weight"]
    with pytest.raises(WeightsError, match=r"lacks the tensor backbone\.layer2\.0\.conv1\.weight"):
        official.convert(official_state("MPSnet"), state)


def test_state_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"conv1.weight": 3}}, tmp_path / "file")
    with pytest.raises(WeightsError, match=r"entry 'conv1\.weight' of 'model' is not a tensor"):
        official._read_state(tmp_path / "file", "model")


class Bomb:
    """What a hostile pickle does when it is loaded carelessly."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_hostile_checkpoint_runs_nothing(tmp_path: Path, kind: str) -> None:
    target, path = tmp_path / "executed", tmp_path / "hostile"
    content = {"gen_state_dict": {"a": Bomb(target)}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    reason = "it is corrupt" if kind == "pickle" else f"it asks for {os.mkdir.__module__}.mkdir"
    with pytest.raises(WeightsError, match=f"was refused as a checkpoint: {reason}"):
        import_official(path, path, tmp_path / "out.safetensors")
    assert not target.exists()
    if kind == "pickle":  # the bomb is live
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert target.exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\3\4garbage", b"\x80\x02}."])
def test_corrupt_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"it is corrupt|holds no 'gen_state_dict'"):
        import_official(path, path, tmp_path / "out.safetensors")


def test_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no file .*nowhere"):
        import_official(tmp_path / "nowhere", tmp_path / "nowhere", tmp_path / "out")


def make_archive(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name, content in members.items():
                zipped.writestr(name, content)
    else:
        with tarfile.open(path, "w:gz") as tarred:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tarred.addfile(info, io.BytesIO(content))
    return path


MEMBERS = {f"data/base/{MPSNET_FILE}": b"one", f"data/{SPIN_FILE}": b"two", "data/big": b"more"}


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_unpack_takes_only_what_is_wanted(tmp_path: Path, kind: str) -> None:
    archive = make_archive(tmp_path / f"archive.{kind}", MEMBERS)
    folder = tmp_path / "folder"
    folder.mkdir()
    one, two = unpack(archive, [MPSNET_FILE, SPIN_FILE], folder)
    assert (one.read_bytes(), two.read_bytes()) == (b"one", b"two")
    assert sorted(path.name for path in folder.iterdir()) == [MPSNET_FILE, SPIN_FILE]


@pytest.mark.parametrize("kind", ["zip", "tgz"])
@pytest.mark.parametrize("name", [f"../{SPIN_FILE}", f"/tmp/{SPIN_FILE}", f"a/..\\{SPIN_FILE}"])
def test_unpack_refuses_paths_that_escape(tmp_path: Path, kind: str, name: str) -> None:
    archive = make_archive(tmp_path / f"archive.{kind}", {MPSNET_FILE: b"one", name: b"two"})
    with pytest.raises(WeightsError, match="unsafe"):
        unpack(archive, [MPSNET_FILE, SPIN_FILE], tmp_path)


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_unpack_is_bounded(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = make_archive(tmp_path / f"archive.{kind}", MEMBERS)
    monkeypatch.setattr(official, "ARCHIVE_LIMIT", 8)
    with pytest.raises(WeightsError, match="'data/big' was refused"):
        unpack(archive, [MPSNET_FILE, SPIN_FILE], tmp_path)


def test_unpack_ignores_links(tmp_path: Path) -> None:
    archive = tmp_path / "archive.tar"
    with tarfile.open(archive, "w") as tarred:
        link = tarfile.TarInfo(SPIN_FILE)
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tarred.addfile(link)
    with pytest.raises(WeightsError, match=f"does not hold {SPIN_FILE}"):
        unpack(archive, [SPIN_FILE], tmp_path)


def test_unpack_refuses_what_is_damaged(tmp_path: Path) -> None:
    whole = make_archive(tmp_path / "archive.tgz", {SPIN_FILE: os.urandom(100_000)})
    whole.write_bytes(whole.read_bytes()[:50_000])
    with pytest.raises(WeightsError, match="corrupt"):
        unpack(whole, [SPIN_FILE], tmp_path)
    (tmp_path / "page.html").write_text("<html>Sign in</html>")
    with pytest.raises(WeightsError, match="neither a zip nor a tar"):
        unpack(tmp_path / "page.html", [SPIN_FILE], tmp_path)


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine: its address, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = partial(SilentHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", folder
        httpd.shutdown()
        thread.join()


def test_pull_downloads_unpacks_and_converts(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = server
    make_archive(folder / "official.zip", MEMBERS)
    calls = []

    def converted(mpsnet_file: Path, spin_file: Path, output: Path, *, overwrite: bool) -> str:
        calls.append((mpsnet_file.read_bytes(), spin_file.read_bytes(), output, overwrite))
        return "info"

    monkeypatch.setattr(official, "import_official", converted)
    info = pull_official(url=f"{address}/official.zip", overwrite=True, quiet=True)
    assert info == "info"
    assert calls == [(b"one", b"two", user_folder() / "mps-net.safetensors", True)]
    assert list(user_folder().iterdir()) == []  # the archive is gone


def test_pull_says_what_to_do_without_a_network(server: tuple[str, Path]) -> None:
    for url in (f"{server[0]}/nothing.zip", "http://127.0.0.1:9/refused.zip", "no-url"):
        with pytest.raises(WeightsError) as caught:
            pull_official(url=url, quiet=True)
        message = caught.value.message
        assert message.startswith(f"Cannot download {url} (")
        assert "https://drive.google.com/file/d/11LXqYqjLKBn2wOcNbDT7DX0Hbj80ynbp" in message
        assert f"`mpsnet weights import {MPSNET_FILE} {SPIN_FILE} -o '{user_folder()}" in message
        assert "\n" not in message


def test_pull_needs_gdown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gdown", None)
    with pytest.raises(WeightsError, match=r"pip install gdown"):
        pull_official(quiet=True)


def test_pull_keeps_what_is_there() -> None:
    user_folder().mkdir(parents=True)
    (user_folder() / "mps-net.safetensors").touch()
    with pytest.raises(OutputError, match="--overwrite"):
        pull_official(url="http://127.0.0.1:9/", quiet=True)
