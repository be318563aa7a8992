"""A run that is killed goes on where it was, and leaves the same bytes as one that was not."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from clips import make_clip
from fake_model import FakeModel
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli import job, kept, pipeline
from mpsnet_cli.body import load_body
from mpsnet_cli.errors import OutputError
from mpsnet_cli.job import Arguments, Existing, identity, run_clip, state_of
from mpsnet_cli.kept import Kept
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.motion import Track
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import Frame, VideoInfo, probe

FRAMES = 150
GROUPS = 4  # of crops in the clip
ARGUMENTS = Arguments(overlay=False, meshes=False, renderer="cpu")
BODY = load_body("free-1")
FRESH = "is damaged, or was left by another job"
DAMAGED = "is damaged: that part is computed anew"

WRITE = "mpsnet_cli.kept._write"
DROP = "mpsnet_cli.kept.Kept.drop_features"
BACKBONE = "test_kept.Sensitive.features"
# What is written in a run: state, tracks, one block for each group, motions.
TRACKS, BLOCK, MOTIONS = 2, 4, 2 + GROUPS + 1


class Sensitive(FakeModel):
    """Its features depend on which crops run together; it notes that it ran."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def features(self, crops: NDArray[np.uint8]) -> Tensor:
        note(self.log, "backbone")
        numbers = super().features(crops)
        return numbers + numbers.mean() / 7 + len(crops) / 3


class Disturbed(Exception):
    """Ends a run where nothing foresaw it."""


def note(log: Path, what: str) -> None:
    with log.open("a") as file:
        file.write(f"{what}\n")


def make_track(number: int, frames: NDArray[np.int64]) -> Track:
    boxes = np.tile(np.float32([8, 4, 40, 60]), (len(frames), 1)) + np.float32(number)
    boxes += np.sin(frames / 9, dtype=np.float32)[:, None]
    n = len(frames)
    return Track(number, frames, boxes, np.full(n, 0.9, np.float32), frames % 10 == 0)


def attempt(
    clip: Path,
    folder: Path,
    log: Path,
    *,
    arguments: Arguments = ARGUMENTS,
    existing: Existing = "same",
    patch: Callable[[Any, str, Any], None] = setattr,
    report: Reporter | None = None,
) -> tuple[dict[str, Any], Reporter]:
    """Run a clip; detector and backbone are stood in for, and note their runs in `log`."""
    report = report or Reporter()
    (detector := clip.with_name("detector.pt")).write_bytes(b"weights")

    def find(*_: Any, report: Reporter, **__: Any) -> list[Track]:
        note(log, "detector")
        with report.stage("detect"):
            report.warn("Dropped 3 tracks.")
            report.lose("1 of 150 frames is damaged.")
        holed = np.array([*range(70, 110), *range(116, FRAMES)])
        return [make_track(1, np.arange(FRAMES)), make_track(2, holed)]

    patch(job, "find_detector", lambda *_, **__: detector)
    patch(job, "Detector", lambda *_, **__: None)
    patch(job, "find_people", find)
    _, manifest = run_clip(
        probe(clip),
        folder,
        arguments,
        model=Sensitive(log),  # type: ignore[arg-type]
        body=BODY,
        existing=existing,
        report=report,
    )
    return manifest, report


def arrange(
    target: str, nth: int, act: Callable[..., None], patch: Callable[..., None] = setattr
) -> None:
    """Let `act` take the place of the nth call of a function, or go before it."""
    owner, _, name = target.rpartition(".")
    calls, true = 0, resolve_name(target)

    def stand_in(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth:
            act(true, *arguments, **keywords)
        return true(*arguments, **keywords)

    patch(resolve_name(owner), name, stand_in)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def call_and_die(true: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    true(*arguments, **keywords)
    die()


def write_half_and_die(_: Any, path: Path, content: bytes) -> None:
    path.with_name(f"{path.name}.part").write_bytes(content[: len(content) // 2])
    die()


def drop_half_and_die(_: Any, folder: Kept) -> None:
    for path in sorted((folder.folder / kept.FEATURES).iterdir())[:2]:
        path.unlink()
    die()


def disturb(*_: Any, **__: Any) -> None:
    raise Disturbed


def doomed(paths: tuple[Path, Path, Path], existing: Existing, moment: tuple[Any, ...]) -> None:
    arrange(*moment)
    attempt(*paths, existing=existing)


def kill(
    target: str, nth: int, act: Callable[..., None], *, existing: Existing = "same",
    paths: tuple[Path, Path, Path],
) -> None:  # fmt: skip
    """Run in a process of its own, which ends by SIGKILL at a moment; see `arrange`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mpsnet_cli.job"])
    process = context.Process(target=doomed, args=(paths, existing, (target, nth, act)))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npz")}


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=FRAMES, size=(48, 64))


@pytest.fixture(scope="session")
def undisturbed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        attempt(clip, folder / "clip", folder / "log", patch=patch.setattr)
    assert (folder / "log").read_text().split() == ["detector", *GROUPS * ["backbone"]]
    found = contents(folder / "clip")
    assert found.keys() == {"person_01.npz", "person_02.npz"}
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out" / "clip"


@pytest.fixture
def part(folder: Path) -> Path:
    return folder.with_name(".clip.part")


@pytest.mark.parametrize(
    ("moment", "detector", "backbone"),
    [
        pytest.param((WRITE, TRACKS, write_half_and_die), 2, GROUPS, id="tracks half"),
        pytest.param((WRITE, TRACKS, call_and_die), 1, GROUPS, id="tracks"),
        pytest.param((BACKBONE, 2, call_and_die), 1, GROUPS + 1, id="computed"),
        pytest.param((WRITE, BLOCK, write_half_and_die), 1, GROUPS + 1, id="block half"),
        pytest.param((WRITE, BLOCK, call_and_die), 1, GROUPS, id="block"),
        pytest.param(("fake_model.FakeModel.predict", 3, die), 1, GROUPS, id="between blocks"),
        pytest.param((WRITE, MOTIONS, write_half_and_die), 1, GROUPS, id="motions half"),
        pytest.param((WRITE, MOTIONS, call_and_die), 1, GROUPS, id="motions"),
        pytest.param((DROP, 1, drop_half_and_die), 1, GROUPS, id="dropping"),
        pytest.param(("mpsnet_cli.job._draw", 1, die), 1, GROUPS, id="drawing"),
        pytest.param(("mpsnet_cli.job._publish", 1, die), 1, GROUPS, id="complete"),
        pytest.param(("mpsnet_cli.job._publish", 1, call_and_die), 1, GROUPS, id="published"),
    ],
)
def test_a_killed_run_goes_on(
    clip: Path,
    undisturbed: dict[str, bytes],
    folder: Path,
    log: Path,
    moment: tuple[Any, ...],
    detector: int,
    backbone: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kill(*moment, paths=(clip, folder, log))
    manifest, report = attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert contents(folder) == undisturbed
    notes = log.read_text().split()
    assert notes.count("detector") == detector
    assert notes.count("backbone") == backbone
    assert files(folder.parent) == {"clip/clip.json", *(f"clip/{name}" for name in undisturbed)}
    assert {"Dropped 3 tracks.", "1 of 150 frames is damaged."} <= set(manifest["warnings"])
    assert not manifest["complete"]
    assert manifest["seconds"].keys() == {"detect", "reconstruct", "joints"}
    assert not any("damaged:" in line or FRESH in line for line in report.warnings)


def test_a_run_that_is_killed_after_every_step(
    clip: Path, undisturbed: dict[str, bytes], folder: Path, log: Path, part: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for step in range(2 + GROUPS):  # the first one writes the state, too
        nth = 2 if step == 0 else 1
        kill(WRITE, nth, call_and_die, paths=(clip, folder, log))
        assert part.is_dir()
    attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert contents(folder) == undisturbed
    assert log.read_text().split() == ["detector", *GROUPS * ["backbone"]]


def test_replacing_a_result_survives_a_kill_between_old_and_new(
    clip: Path, undisturbed: dict[str, bytes], folder: Path, log: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    attempt(clip, folder, log, patch=monkeypatch.setattr)
    kill("pathlib.Path.rename", 2, die, existing="replace", paths=(clip, folder, log))
    assert not folder.exists()
    log.unlink()
    attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert contents(folder) == undisturbed
    assert not log.exists()
    attempt(clip, folder, log, existing="replace", patch=monkeypatch.setattr)
    assert files(folder.parent) == {"clip/clip.json", *(f"clip/{name}" for name in undisturbed)}


@pytest.fixture
def interrupted(
    clip: Path, folder: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Stop a run by an exception, in the place of the nth call of a function."""

    def stop(target: str, nth: int, arguments: Arguments = ARGUMENTS) -> None:
        with monkeypatch.context() as patch:
            arrange(target, nth, disturb, patch.setattr)
            with pytest.raises(Disturbed):
                attempt(clip, folder, log, arguments=arguments, patch=patch.setattr)
        log.unlink()

    return stop


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(_: bytes) -> bytes:
    return b""


def garbage(content: bytes) -> bytes:
    return np.random.default_rng(0).bytes(len(content))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("name", "harm", "sentence", "again"),
    [
        ("tracks", truncated, DAMAGED, ["detector"]),
        ("tracks", flipped, DAMAGED, ["detector"]),
        ("features/00000000", emptied, DAMAGED, ["backbone"]),
        ("features/00000064", flipped, DAMAGED, ["backbone"]),
        ("features/00000064", garbage, DAMAGED, ["backbone"]),
        ("motions", truncated, DAMAGED, []),
        ("state.json", truncated, FRESH, ["detector", *GROUPS * ["backbone"]]),
        ("state.json", garbage, FRESH, ["detector", *GROUPS * ["backbone"]]),
    ],
)
def test_what_is_damaged_is_computed_anew(
    clip: Path, undisturbed: dict[str, bytes], folder: Path, log: Path, part: Path,
    interrupted: Callable[..., None], harm: Callable[[bytes], bytes], name: str, sentence: str,
    again: list[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    interrupted(DROP, 1)
    if name != "motions":
        (part / "motions").unlink()
    (part / name).write_bytes(harm((part / name).read_bytes()))
    log.touch()
    _, report = attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert contents(folder) == undisturbed
    assert log.read_text().split() == again
    assert sum(sentence in warning for warning in report.warnings) == 1


def test_a_result_in_the_place_of_another_is_not_taken(
    clip: Path, undisturbed: dict[str, bytes], folder: Path, log: Path, part: Path,
    interrupted: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    interrupted(DROP, 1, replace(ARGUMENTS, smooth=0.9))
    shutil.copytree(part, theirs := part.with_name("theirs"))
    shutil.rmtree(part)
    interrupted(DROP, 1)
    blocks = sorted((part / "features").iterdir())
    blocks[1].rename(blocks[0])
    for name in ("tracks", "motions", f"features/{blocks[2].name}"):
        shutil.copy(theirs / name, part / name)
    _, report = attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert contents(folder) == undisturbed
    assert log.read_text().split() == ["detector", *3 * ["backbone"]]
    assert sum(DAMAGED in warning for warning in report.warnings) == 1


def test_features_are_of_the_boxes_they_were_computed_for(
    clip: Path, folder: Path, log: Path, part: Path, interrupted: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    interrupted(DROP, 1)
    for name in ("tracks", "motions"):
        (part / name).unlink()
    monkeypatch.setattr(np, "sin", lambda values, dtype: np.cos(values, dtype=dtype))
    attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert log.read_text().split() == ["detector", *GROUPS * ["backbone"]]


@pytest.mark.parametrize("changes", [{"precision": "bf16"}, {"device": torch.device("meta")}])
def test_another_precision_or_device_begins_anew(
    clip: Path, folder: Path, log: Path, interrupted: Callable[..., None],
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    interrupted(BACKBONE, 3)
    for name, value in changes.items():
        monkeypatch.setattr(FakeModel, name, value)
    _, report = attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert log.read_text().split() == ["detector", *GROUPS * ["backbone"]]
    assert any(FRESH in warning for warning in report.warnings)


def test_a_clip_that_was_moved_goes_on(
    clip: Path, undisturbed: dict[str, bytes], folder: Path, log: Path, tmp_path: Path,
    interrupted: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    interrupted(BACKBONE, 3)
    moved = Path(shutil.copy(clip, tmp_path / "elsewhere.mp4"))
    attempt(moved, folder, log, patch=monkeypatch.setattr)
    assert contents(folder) == undisturbed
    assert log.read_text().split() == (GROUPS - 2) * ["backbone"]


def test_seconds_are_those_of_all_the_work(
    clip: Path, folder: Path, log: Path, interrupted: Callable[..., None], part: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What a continuation spares counts with what it took when it was computed."""
    interrupted(BACKBONE, 3)
    state = json.loads((part / "state.json").read_text())
    shutil.rmtree(part)
    keep = Kept(part, state, report := Reporter())
    report.seconds["detect"] = 1000.0
    tracks = [make_track(1, np.arange(FRAMES))]
    keep.once("tracks", Track, lambda: tracks)
    monkeypatch.setattr(kept.time, "perf_counter", iter([0.0, 200.0]).__next__)
    boxes = pipeline.square_boxes(tracks[0].boxes, scale=FakeModel.config.crop_scale)
    places = [(frame, *boxes[frame].tolist()) for frame in range(64)]
    keep.features(places, lambda: np.zeros((64, 1), np.float32))
    monkeypatch.undo()
    manifest, _ = attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert log.read_text().split() == 2 * ["backbone"]  # one person of 150 frames: 64, 64, 22
    assert manifest["seconds"]["detect"] == 1000
    assert 200 < manifest["seconds"]["reconstruct"] < 220
    assert manifest["frames_per_second"] == 0.12  # 150 frames in 1200 s and some


def test_a_disk_that_fills_up_leaves_what_can_go_on(
    clip: Path, undisturbed: dict[str, bytes], folder: Path, log: Path, part: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    true, count = Path.write_bytes, 0

    def write(path: Path, content: bytes) -> int:
        nonlocal count
        count += path.parent.name == "features"
        if count < 3:
            return true(path, content)
        true(path, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write)
        report = Reporter()
        with pytest.raises(OutputError, match="No space left"):
            attempt(clip, folder, log, patch=patch.setattr, report=report)
    assert "the same command goes on from there" in report.warnings[-1]
    assert files(part) == {
        *("state.json", "tracks"), *(f"features/{frame:08d}" for frame in (0, 64))
    }  # fmt: skip
    log.unlink()
    attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert contents(folder) == undisturbed
    assert log.read_text().split() == (GROUPS - 2) * ["backbone"]


def test_the_state_of_a_job(
    clip: Path, folder: Path, log: Path, interrupted: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def state(arguments: Arguments = ARGUMENTS) -> str:
        weights, detector = FakeModel.weights, clip.with_name("detector.pt")
        found = identity(probe(clip), arguments, weights=weights, body=BODY, detector=detector)  # type: ignore[arg-type]
        return state_of(folder, found)

    clip.with_name("detector.pt").write_bytes(b"weights")
    assert state() == "new"
    interrupted(BACKBONE, 2)
    assert state() == state(replace(ARGUMENTS, mesh_every=7)) == "partial"
    assert state(replace(ARGUMENTS, smooth=0.9)) == "new"
    attempt(clip, folder, log, patch=monkeypatch.setattr)
    assert state() == "done"
    assert state(replace(ARGUMENTS, mesh_every=7)) == "other"
    shutil.rmtree(folder)
    folder.mkdir()
    assert state() == "other"


def test_going_on_takes_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 MB of features are kept, and no more than a group of them is ever alive."""
    count = 3000
    monkeypatch.setattr(FakeModel, "config", MPSNetConfig(crop_size=32))
    monkeypatch.setattr(
        FakeModel, "features", lambda _, crops: torch.zeros(len(crops), 2048) + len(crops)
    )
    image = np.zeros((64, 48, 3), np.uint8)
    rate = Fraction(25)
    video = VideoInfo(
        Path("clip"), 48, 64, rate, count, 0, has_audio=False, is_vfr=False, duration=120.0
    )
    monkeypatch.setattr(
        pipeline, "read_frames", lambda *_, **__: (Frame(k, k / 25, image) for k in range(count))
    )
    people = [make_track(1, np.arange(count))]

    def peak() -> float:
        keep = Kept(tmp_path / "kept", {}, report := Reporter())
        tracemalloc.start()
        pipeline.reconstruct(
            video,
            FakeModel(),  # type: ignore[arg-type]
            body=BODY,
            tracks=people,
            kept=keep,
            report=report,
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    first = peak()
    monkeypatch.setattr(FakeModel, "features", None)  # calling it would fail
    assert len(list((tmp_path / "kept" / "features").iterdir())) == -(-count // 64)
    assert peak() < first + 2e6
