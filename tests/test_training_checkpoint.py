from __future__ import annotations

import errno
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.training.checkpoint import (
    FORMAT,
    MetricsFile,
    load_checkpoint,
    replace_file,
    save_checkpoint,
)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let the system refuse to write more than `size` bytes to a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "resume.pt"
    state = {"step": 3, "best": float("inf"), "net": {"w": torch.arange(4.0)}, "text": "{}"}
    save_checkpoint(path, state)
    found = load_checkpoint(path, ("step", "best", "net"))
    assert found.keys() == {"step", "best", "net"}
    assert found["step"] == 3
    assert found["best"] == float("inf")
    assert torch.equal(found["net"]["w"], torch.arange(4.0))
    assert list(tmp_path.iterdir()) == [path]


def test_no_room_leaves_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "resume.pt"
    save_checkpoint(path, {"step": 1})
    before = path.read_bytes()
    with room_for(10_000), pytest.raises(OutputError, match=r"Cannot write .*resume.pt: File too"):
        save_checkpoint(path, {"step": 2, "net": torch.zeros(100_000)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path, ("step",)) == {"step": 1}


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"

    def fsync(descriptor: int) -> None:
        assert os.fstat(descriptor).st_size == 3
        assert not path.exists()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match=r"No space left on device. The last checkpoint is kept"):
        replace_file(path, b"abc")
    assert not list(tmp_path.iterdir())


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("evil",)


def test_foreign_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "resume.pt"
    for content, words in (
        (b"", "not a readable checkpoint"),
        (b"PK\x03\x04 torn", "not a readable checkpoint"),
        (pickle.dumps({"format": FORMAT, "x": Evil()}), "not a readable checkpoint"),
    ):
        path.write_bytes(content)
        with pytest.raises(InputError, match=words) as error:
            load_checkpoint(path, ("step",))
        assert len(error.value.message.splitlines()) == 1
    for state, words in (
        ([1], "not a checkpoint in the format"),
        ({"step": 1}, "not a checkpoint in the format"),
        ({"format": FORMAT}, "lacks step"),
        ({"format": FORMAT, "step": Evil()}, "not a readable checkpoint"),
    ):
        torch.save(state, path)
        with pytest.raises(InputError, match=words):
            load_checkpoint(path, ("step",))
    with pytest.raises(InputError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "none.pt", ("step",))
    assert not (tmp_path / "evil").exists()


def rows(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_rows_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, ("step", "loss", "more"), done=0)
    for step in (1, 2, 3, 12):
        file.write({"step": step, "loss": step / 3, "more": None, "unused": 0})
    file.close()
    whole = ["step,loss,more", "1,0.333333333,", "2,0.666666667,", "3,1,", "12,4,"]
    assert rows(path) == whole
    with path.open("a") as torn:
        torn.write("1")  # of a 13 that a kill cut short
    file = MetricsFile(path, ("step", "loss", "more"), done=2)
    assert rows(path) == whole[:3]
    file.write({"step": 3, "loss": 1.0, "more": 5})
    assert rows(path) == [*whole[:3], "3,1,5"]
    file.flush()
    file.close()
    MetricsFile(path, ("step", "loss", "more"), done=0).close()
    assert rows(path) == whole[:1]


def test_metrics_say_when_there_is_no_room(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, ("step",), done=0)
    file.write({"step": 1})
    with room_for(10), pytest.raises(OutputError, match=r"Cannot write .*metrics.csv"):
        file.write({"step": 123_456_789})
    file.close()
    assert rows(path)[:2] == ["step", "1"]
