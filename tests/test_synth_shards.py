from __future__ import annotations

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT
from filelock import FileLock

from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth import shards
from mpsnet_cli.synth.samples import CropBatch
from mpsnet_cli.synth.shards import Recipe, iter_shards, photos_digest, read_shard, write_shards
from mpsnet_cli.synth.sheet import write_sheet

SIZE = 36  # no multiple of eight, as masks are packed
CROPS = Recipe(kind="crops", seed=7, size=SIZE, split="train", frames=1)
SEQUENCES = replace(CROPS, kind="sequences", frames=3)


def batch_of(keys: Sequence[tuple[int, int]]) -> CropBatch:
    """One picture with labels for each (sample, frame), all different."""
    ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE))[..., None] * np.array([1.0, 2.0, 3.0])
    rows: list[dict[str, Any]] = []
    for key in keys:
        rng = np.random.default_rng((7, *key))
        row: dict[str, Any] = {
            name: rng.random(shape) < 0.5 if dtype is np.bool_ else rng.normal(size=shape)
            for name, (dtype, shape) in shards.LABELS.items()
        }
        row["images"] = (ramp + 20 * rng.random(3)).astype(np.uint8)
        row["masks"] = rng.random((SIZE, SIZE)) < 0.5
        rows.append(row)
    assert rows[0].keys() == {field.name for field in fields(CropBatch)}
    stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for name, (dtype, _) in shards.LABELS.items():
        stacked[name] = stacked[name].astype(dtype)
    return CropBatch(**stacked)


class Fake:
    """Stands in for Samples, also in worker processes."""

    device = torch.device("cpu")

    def __init__(self, *, fail_at: int | None = None, kill_at: int | None = None, pause: float = 0):
        self.drawn: list[int] = []
        self._fail_at, self._kill_at, self._pause = fail_at, kill_at, pause

    def crops(self, indices: Sequence[int]) -> CropBatch:
        return batch_of([self._draw(index, 0) for index in indices])

    def sequence(self, index: int, frames: int) -> CropBatch:
        return batch_of([self._draw(index, frame) for frame in range(frames)])

    def _draw(self, index: int, frame: int) -> tuple[int, int]:
        time.sleep(self._pause)
        self.drawn.append(index)
        if index == self._fail_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if index == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return index, frame


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SAMPLES_PER_SHARD", {"crops": 4, "sequences": 2})
    monkeypatch.setattr(shards, "CROPS_AT_ONCE", 3)


def write(
    folder: Path,
    recipe: Recipe = CROPS,
    *,
    start: int = 0,
    count: int,
    workers: int = 1,
    **fake: Any,
) -> tuple[list[int], list[str]]:
    """Return the samples that were drawn in this process, and the warnings."""
    report, samples = Reporter(), Fake(**fake)
    make: Any = (lambda: samples) if workers == 1 else partial(Fake, **fake)
    write_shards(make, folder, recipe, start=start, count=count, workers=workers, report=report)
    return samples.drawn, report.warnings


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_crops_come_back_as_they_were_but_for_jpeg(tmp_path: Path) -> None:
    write(tmp_path / "out", start=2, count=8)
    found = list(iter_shards(tmp_path / "out"))
    assert [shard.indices.tolist() for shard in found] == [[2, 3], [4, 5, 6, 7], [8, 9]]
    for shard in found:
        expected = batch_of([(index, 0) for index in shard.indices.tolist()])
        assert (shard.kind, shard.frames) == ("crops", 1)
        for field in fields(CropBatch):
            stored, true = getattr(shard.batch, field.name), getattr(expected, field.name)
            assert stored.dtype == true.dtype
            if field.name == "images":
                assert stored.shape == true.shape
                assert np.abs(stored.astype(int) - true).mean() < 1.5
            else:
                np.testing.assert_array_equal(stored, true)


def test_sequences_come_back_with_their_frames_in_order(tmp_path: Path) -> None:
    write(tmp_path, SEQUENCES, count=3)
    first, second = iter_shards(tmp_path)
    assert (first.kind, first.frames, first.indices.tolist()) == ("sequences", 3, [0, 1])
    expected = batch_of([(sample, frame) for sample in (0, 1) for frame in range(3)])
    np.testing.assert_array_equal(first.batch.pose, expected.pose)
    np.testing.assert_array_equal(second.batch.masks, batch_of([(2, f) for f in range(3)]).masks)


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path, count=9)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (manifest["shards"], manifest["samples"]) == (3, 9)
    assert Recipe(**manifest["recipe"]) == CROPS
    assert manifest["recipe_sha256"] == CROPS.digest


def test_a_run_goes_on_where_another_stopped(tmp_path: Path) -> None:
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    write(whole, count=11)
    with pytest.raises(OutputError, match=r"No space left.*goes on from what is written"):
        write(halted, count=11, fail_at=9)
    assert sorted(path.name for path in halted.glob("*.npz")) == [
        "crops-00000000.npz",
        "crops-00000004.npz",
    ]
    assert not list(halted.glob(".*.part"))
    drawn, warnings = write(halted, count=11)
    assert drawn == [8, 9, 10]
    assert warnings == [f"2 of 3 shards are in {halted} already and are kept."]
    assert contents(halted) == contents(whole)


def test_more_samples_are_added_and_fewer_change_nothing(tmp_path: Path) -> None:
    write(tmp_path, count=6)
    assert write(tmp_path, count=9)[0] == [4, 5, 6, 7, 8]
    before = contents(tmp_path)
    assert write(tmp_path, count=5)[0] == []
    assert contents(tmp_path) == before


def test_processes_write_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "one", SEQUENCES, count=6)
    write(tmp_path / "two", SEQUENCES, count=6, workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_killed_worker_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"worker was killed.*fewer --workers"):
        write(tmp_path, count=9, workers=2, kill_at=5)


def start_long_run(folder: Path) -> subprocess.Popen[str]:
    """Write shards with two workers in a process group of its own, and wait for the first."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from functools import partial
from pathlib import Path
from test_synth_shards import CROPS, Fake
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth import shards
if __name__ == "__main__":
    shards.write_shards(partial(Fake, pause=0.005), Path({str(folder)!r}), CROPS, start=0,
                        count=10**5, workers=2, report=Reporter())
"""
    script = folder.parent / "script.py"
    script.write_text(code)
    process = subprocess.Popen(
        [sys.executable, script],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 60
    while not list(folder.glob("*.npz")) and time.monotonic() < until:
        time.sleep(0.05)
    return process


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups to signal")
def test_ctrl_c_stops_all_workers_quietly(tmp_path: Path) -> None:
    process = start_long_run(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, complaints = process.communicate(timeout=30)
    assert process.returncode in (1, -signal.SIGINT)
    assert complaints.count("Traceback") == 1  # of the KeyboardInterrupt, which click would catch
    assert not list(tmp_path.glob(".*.part"))
    for path in tmp_path.glob("*.npz"):
        read_shard(path)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no process groups to signal")
def test_workers_end_with_a_run_that_is_killed(tmp_path: Path) -> None:
    process = start_long_run(tmp_path)
    process.kill()
    process.communicate(timeout=30)  # ends when nobody holds the pipe any more


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    write(tmp_path, count=2)
    (tmp_path / ".crops-00000004.npz.part").touch()
    (tmp_path / ".thesis.part").touch()
    write(tmp_path, count=2)
    assert [path.name for path in tmp_path.glob(".*")] == [".thesis.part"]


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match=r"holds other files, thesis\.tex: name an empty folder"):
        write(tmp_path, count=2)
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (replace(CROPS, seed=8), "seed 7 and not 8"),
        (replace(CROPS, split="held-out"), "split 'train' and not 'held-out'"),
        (SEQUENCES, "kind 'crops' and not 'sequences'"),
        (replace(CROPS, version="9"), "version '.*' and not '9'"),
        (replace(CROPS, textures="abc"), "textures '' and not 'abc'"),
    ],
)
def test_a_folder_of_another_recipe_is_refused(tmp_path: Path, other: Recipe, says: str) -> None:
    write(tmp_path, count=2)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=says):
        write(tmp_path, other, count=2)
    assert contents(tmp_path) == before


def test_a_shard_of_another_recipe_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a", count=2)
    write(tmp_path / "b", replace(CROPS, seed=8), count=2)
    name = "crops-00000000.npz"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(OutputError, match="is of another recipe than its folder: remove it"):
        write(tmp_path / "a", count=2)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "mpsnet-synth/1", "recipe": 3}'])
def test_a_manifest_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(OutputError, match="another recipe"):
        write(tmp_path, count=2)


def test_a_damaged_shard_is_made_anew_and_said_so(tmp_path: Path) -> None:
    write(tmp_path, count=8)
    before = contents(tmp_path)
    path = tmp_path / "crops-00000004.npz"
    path.write_bytes(before[path.name][:500])
    drawn, warnings = write(tmp_path, count=8)
    assert drawn == [4, 5, 6, 7]
    assert f"{path} is damaged and is made anew." in warnings
    assert contents(tmp_path) == before


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(OutputError, match="being written by another run"),
    ):
        write(tmp_path, count=2)


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be written to .*Not a directory"):
        write(tmp_path / "file" / "out", count=2)


def spoilt(**changes: Any) -> bytes:
    """A shard with some arrays replaced, or left out where None."""
    stored = shards._pack(batch_of([(0, 0), (1, 0)]))
    arrays = {
        **stored, "jpeg_ends": np.cumsum(stored.pop("jpeg_sizes")), "format": shards.FORMAT,
        "kind": "crops", "recipe": "", "indices": np.arange(2), "frames": 1, **changes,
    }  # fmt: skip
    file = io.BytesIO()
    np.savez(file, **{key: value for key, value in arrays.items() if value is not None})
    return file.getvalue()


class Exploit:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an .npz archive"),
        (pickle.dumps({}), "not an .npz archive"),
        (spoilt()[:-100], "not"),
        (spoilt(format=None), "found: no format key"),
        (spoilt(format="mpsnet-synth/9"), "found: mpsnet-synth/9"),
        (spoilt(kind="films"), "films"),
        (spoilt(pose=None), "lacks 'pose'"),
        (spoilt(jpeg_ends=None), "lacks 'jpeg_ends'"),
        (spoilt(pose=np.array([Exploit(), 0])), "allow_pickle"),
        (spoilt(frames=2), "jpeg_ends does not divide"),
        (spoilt(indices=np.arange(0)), r"it holds \(0,\) × 1 pictures of crops"),
        (
            spoilt(betas=np.zeros((2, 9), np.float32)),
            r"betas is float32 \(2, 9\), not ",
        ),
        (spoilt(joints2d=np.zeros((3, 24, 2), np.float32)), "joints2d is float32"),
        (spoilt(cam=np.zeros((2, 3), int)), "cam is int64"),
        (spoilt(pose=np.full((2, 72), np.nan, np.float32)), "pose is not finite"),
        (spoilt(masks=np.zeros((2, SIZE, 1), np.uint8)), "masks is uint8"),
        (spoilt(jpeg=np.zeros(900, np.uint8), jpeg_ends=np.array([1, 900])), "cannot be decoded"),
        (spoilt(jpeg_ends=np.array([-5, 10**9])), "jpeg_ends does not divide"),
    ],
)
def test_what_is_no_shard_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "crops-00000000.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read_shard(path)
    assert str(path) in str(caught.value)


def test_the_unspoilt_shard_is_read(tmp_path: Path) -> None:
    path = tmp_path / "crops-00000000.npz"
    path.write_bytes(spoilt())
    assert zipfile.is_zipfile(path)
    assert len(read_shard(path).batch.images) == 2


def test_a_folder_without_shards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no samples"):
        iter_shards(tmp_path)


def test_photographs_are_told_apart_and_checked(tmp_path: Path) -> None:
    assert photos_digest(None) == ""
    with pytest.raises(InputError, match="holds no photographs"):
        photos_digest(tmp_path)
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "one.png"), np.zeros((4, 4, 3), np.uint8))
    one = photos_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("no picture, and no matter")
    assert photos_digest(tmp_path) == one
    cv2.imwrite(str(tmp_path / "two.jpg"), np.zeros((4, 4, 3), np.uint8))
    assert photos_digest(tmp_path) != one
    (tmp_path / "three.jpg").write_text("no picture")
    with pytest.raises(InputError, match=r"three\.jpg is not a picture"):
        photos_digest(tmp_path)


def test_a_sheet_shows_the_joints_where_they_are(tmp_path: Path) -> None:
    write(tmp_path / "out", count=9)
    write_sheet(tmp_path / "out", tmp_path / "sheet.png")
    sheet = cv2.imread(str(tmp_path / "sheet.png"))[..., ::-1]
    assert sheet.shape == (2 * 256, 8 * 256, 3)
    assert (sheet[256:, 256:] == 0).all()  # nine cells of sixteen
    plain = cv2.resize(
        read_shard(tmp_path / "out" / "crops-00000000.npz").batch.images[1], (256, 256)
    )
    joints = batch_of([(1, 0)]).joints2d[0]
    touched = (sheet[:256, 256:512] != plain).any(axis=-1)
    centres = (((joints + 1) * SIZE / 2 + 0.5) * 256 / SIZE - 0.5).round().astype(int)
    inside = centres[((centres > 5) & (centres < 250)).all(axis=1)]
    assert len(inside) > 5
    for x, y in inside:
        assert touched[y - 4 : y + 5, x - 4 : x + 5].sum() > 12


def test_a_sheet_of_sequences_has_a_row_for_each(tmp_path: Path) -> None:
    write(tmp_path / "out", SEQUENCES, count=3)
    write_sheet(tmp_path / "out", tmp_path / "sheet.png")
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (3 * 256, 8 * 256, 3)


@pytest.mark.parametrize("name", ["sheet.nonsense", "nowhere/sheet.png"])
def test_a_sheet_that_cannot_be_written_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "out", count=1)
    with pytest.raises(OutputError, match="sheet cannot be written"):
        write_sheet(tmp_path / "out", tmp_path / name)
