"""Batches under load and under fire, through the command itself.

The network is a small one, untrained: what counts here are bytes, processes and memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from clip_zoo import Inmate, make_zoo
from clips import make_clip
from conftest import ROOT

from mpsnet_cli.batch.clips import LOCK
from mpsnet_cli.video import probe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # on a busy machine
    pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to look at processes"),
]

PATIENCE = 120.0  # s, for anything that takes seconds
KILLS = 20
WORKERS = 2


@pytest.fixture(scope="session")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of a network that sees little, and so is quick."""
    from mpsnet_cli.model.config import MPSNetConfig
    from mpsnet_cli.model.untrained import untrained_network
    from mpsnet_cli.weights import save_network

    network = untrained_network(0, MPSNetConfig(crop_size=32))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    return save_network(
        network, path, name="untrained (small)", trained=False, licence="CC0-1.0", sources={},
        note="", half=True, overwrite=False,
    ).path  # fmt: skip


@dataclass
class Command:
    """`mpsnet batch`, running in a session of its own, so that all its processes can be found."""

    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path
    read: int = 0  # bytes of stdout
    events: list[dict[str, Any]] = field(default_factory=list)

    def listen(self) -> None:
        """Take in the events that have come."""
        with self.stdout.open("rb") as file:
            file.seek(self.read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.read += len(line)
                self.events.append(json.loads(line))

    def count(self, event: str) -> int:
        """Return how many events of this kind there were."""
        self.listen()
        return sum(each["event"] == event for each in self.events)

    def planned(self) -> list[str]:
        """Return the states of the clips of its plan, if it came to one."""
        self.listen()
        plans = [each["clips"] for each in self.events if each["event"] == "plan"]
        return [clip["state"] for clip in plans[0]] if plans else []

    def await_event(self, event: str, count: int = 1) -> bool:
        """Wait for so many events of this kind; False if the command ended without them."""
        wait_until(lambda: self.count(event) >= count or self.process.poll() is not None)
        return self.count(event) >= count

    def wait(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(PATIENCE * 5)
        self.listen()
        return code

    def said(self) -> str:
        """Return what it wrote to stderr."""
        return self.stderr.read_text(errors="replace")

    def members(self) -> dict[int, str]:
        """Return the living processes of its session, and what they are called."""
        return {pid: line for pid, session, line in processes() if session == self.process.pid}

    def await_silence(self) -> None:
        """Wait until none of its processes is left; Python's own helpers end just after it."""
        wait_until(lambda: not self.members())

    def workers(self) -> list[int]:
        """Return its worker processes."""
        return [pid for pid, line in self.members().items() if "spawn_main" in line]


Start = Callable[..., Command]


@contextmanager
def starting(weights: Path, folder: Path) -> Iterator[Start]:
    """Give what starts `mpsnet batch`; what still runs in the end is killed."""
    begun: list[Command] = []

    def begin(clips: Path, out: Path, *options: str | Path) -> Command:
        command = [sys.executable, "-m", "mpsnet_cli", "batch", clips, "-r", "--out", out,
                   "--weights", weights, "--body", "free-1", "--device", "cpu",
                   "--workers", WORKERS, "--no-meshes", "--json",
                   *(options or ("--boxes", "full"))]  # fmt: skip
        stdout, stderr = (folder / f"{len(begun)}.{name}" for name in ("json", "txt"))
        with stdout.open("wb") as out_file, stderr.open("wb") as err_file:
            process = subprocess.Popen(
                list(map(str, command)), stdout=out_file, stderr=err_file, start_new_session=True
            )
        begun.append(Command(process, stdout, stderr))
        return begun[-1]

    try:
        yield begin
    finally:
        for each in begun:
            with suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGKILL)
            each.process.wait()


@pytest.fixture
def start(small_weights: Path, tmp_path: Path) -> Iterator[Start]:
    with starting(small_weights, tmp_path) as begin:
        yield begin


def processes() -> Iterator[tuple[int, int, str]]:
    """Yield the living processes: number, session, command line."""
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX":
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                yield int(folder.name), int(session), line.decode(errors="replace")


def resident(pid: int) -> float:
    """Return how much memory a process has, MB; nan once it is gone."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) / 1e3
    return float("nan")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def bodies(out: Path) -> dict[str, str]:
    """Return digests of the people's files of all finished results; check that these are whole."""
    files = {}
    for manifest in out.rglob("clip.json"):
        if any(part.startswith(".") for part in manifest.relative_to(out).parts):
            continue
        facts = json.loads(manifest.read_text())
        assert facts["complete"]
        assert probe(manifest.with_name("overlay.mp4")).frame_count == facts["frames"]
        for person in facts["people"]:
            path = manifest.with_name(person["file"])
            files[str(path.relative_to(out))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def leftovers(out: Path) -> list[str]:
    """Return what a finished batch should not leave."""
    files = (path.relative_to(out) for path in out.rglob("*"))
    return [str(file) for file in files if file.name.startswith(".") and file != Path(LOCK)]


# --- load ----------------------------------------------------------------------------------------


def test_two_hundred_clips(tmp_path: Path, start: Start) -> None:
    """Each gets what it can have, each bad one its sentence, and workers do not grow."""
    clips, out = tmp_path / "clips", tmp_path / "out"
    zoo = make_zoo(clips, 200, seed=0)
    command = start(clips, out)
    samples: list[tuple[int, int, float]] = []  # clips finished, worker, its MB
    while command.process.poll() is None:
        finished = command.count("clip_finished")
        samples += [(finished, pid, resident(pid)) for pid in command.workers()]
        time.sleep(0.25)
    assert command.wait() == 5
    command.await_silence()
    assert "of 200 clips failed: see" in command.said()

    report = report_of(out)
    assert (len(report["clips"]), report["unfinished"]) == (200, 0)
    found = {each["clip"]: each for each in report["clips"]}
    unlike = [
        (inmate, each["status"], each["sentence"], each["attempts"])
        for inmate in zoo
        if not is_as_expected(inmate, each := found[str(inmate.path)])
    ]
    assert not unlike
    assert len({each["name"].casefold() for each in report["clips"]}) == 200
    for each in report["clips"]:
        if each["status"] != "failed":
            manifest = json.loads((out / each["folder"] / "clip.json").read_text())
            assert manifest["people"]
            assert (out / each["folder"] / "overlay.mp4").is_file()
    assert not Path("owned").exists()  # a name is only a name
    assert not leftovers(out)

    def most(pid: int, first: int, last: int) -> float:
        return max((mb for n, p, mb in samples if p == pid and first <= n <= last), default=0)

    at_end = {pid for n, pid, _ in samples if n >= 180}
    assert len(at_end) == WORKERS
    for pid in at_end:
        assert most(pid, 180, 200) <= 1.05 * most(pid, 40, 80), samples


def is_as_expected(inmate: Inmate, found: dict[str, Any]) -> bool:
    """Whether a clip of the zoo became what it was to become, and was told of well."""
    if (found["status"], found["traceback"], found["attempts"]) != (inmate.status, None, 1):
        return False
    if inmate.status == "done":
        return found["sentence"] is None
    sentence = found["sentence"]
    way_out = sentence.replace(str(inmate.path), "").partition(": ")[2]
    return str(inmate.path) in sentence and inmate.words in sentence and bool(way_out)


def test_clips_without_people(tmp_path: Path, start: Start, shared: Path) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out"
    clips.mkdir()
    make_clip(clips / "bars.mp4", size=(160, 120))
    make_clip(clips / "one.mkv", size=(160, 120), frames=1)
    shutil.copy(ROOT / "examples" / "walk.mp4", clips)
    detector = (
        "--detector",
        shared / "weights" / "yolov8n.pt",
        "--end",
        "0.5",
        "--min-frames",
        "5",
    )
    assert start(clips, out, *detector).wait() == 0
    found = {each["name"]: each for each in report_of(out)["clips"]}
    assert {name: each["status"] for name, each in found.items()} == {
        "bars": "nobody", "one": "nobody", "walk": "done",
    }  # fmt: skip
    assert found["bars"]["sentence"] == f"Nobody was found in {clips / 'bars.mp4'}."


# --- faults --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Undisturbed:
    """A batch that nothing happened to."""

    clips: Path
    bodies: dict[str, str]
    size: int  # bytes of its results
    seconds: float  # from the first progress of a clip to the end


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, small_weights: Path) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    clips, out = folder / "clips", folder / "out"
    make_zoo(clips, 17, seed=1, spoilt=0)
    for number in range(3):  # long enough to be interrupted between blocks of features
        make_clip(clips / f"long-{number}.mp4", size=(160, 120), frames=150, fps=Fraction(60))
    with starting(small_weights, folder) as begin:
        command = begin(clips, out)
        assert command.await_event("progress")
        began = time.monotonic()
        assert command.wait() == 0, command.said()
        seconds = time.monotonic() - began
    found = bodies(out)
    assert len(found) == 20
    assert not leftovers(out)
    size = sum(path.stat().st_blocks * 512 for path in out.rglob("*"))
    return Undisturbed(clips, found, size, seconds)


def test_kills_at_random_moments(tmp_path: Path, start: Start, undisturbed: Undisturbed) -> None:
    """Kill -9 of everything, of the command alone and of workers: in the end, the same bytes."""
    rng = random.Random(0)
    out, kills, continued, rounds = tmp_path / "out", 0, 0, 0
    sessions: list[Command] = []
    while True:
        command = start(undisturbed.clips, out)
        sessions.append(command)
        if kills < KILLS and rng.random() < 0.2:  # while it gets ready
            time.sleep(rng.uniform(0, 3))
        elif not command.await_event("progress"):
            assert command.wait() == 0, command.said()
        while kills < KILLS and command.process.poll() is None:
            time.sleep(rng.uniform(0, undisturbed.seconds / 6))
            kills += strike(command, rng)
        code = command.wait()
        assert code in (0, 1, 5, -signal.SIGKILL), command.said()
        assert "Traceback" not in command.said()
        continued += command.planned().count("partial")
        if code == 0:
            assert bodies(out) == undisturbed.bodies
            assert not leftovers(out)
            if kills >= KILLS:
                break
            rounds += 1
            shutil.rmtree(out)  # it was quicker than we: once more
    for each in sessions:
        each.await_silence()
    assert continued, "no kill has met a clip at work"
    print(
        f"{kills} kills, {len(sessions)} starts, {continued} clips continued, {rounds} batches "
        "finished in between"
    )


def strike(command: Command, rng: random.Random) -> int:
    """Kill some of a command; return 1, or 0 if it has ended."""
    pid = command.process.pid
    whom = rng.choice(["all", "command", "worker", "worker"])
    if command.process.poll() is not None:
        return 0
    if whom == "all":
        os.killpg(pid, signal.SIGKILL)
        command.process.wait()
        command.await_silence()
    elif whom == "command" or not (workers := command.workers()):
        os.kill(pid, signal.SIGKILL)  # the next one starts at once: workers must be gone by then
        command.process.wait()
    else:
        with suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
    return 1


def test_interrupts_at_random_moments(
    tmp_path: Path, start: Start, undisturbed: Undisturbed
) -> None:
    rng, out = random.Random(1), tmp_path / "out"
    for number, kind in enumerate((signal.SIGINT, signal.SIGTERM)):
        command = start(undisturbed.clips, out)
        assert command.await_event("progress")
        time.sleep(rng.uniform(0, undisturbed.seconds / 4))
        # A terminal sends Ctrl-C to all of the group; `kill` sends SIGTERM to the one process.
        (os.kill if number else os.killpg)(command.process.pid, kind)
        assert command.wait() == 130, command.said()
        command.await_silence()
        [sentence] = command.said().splitlines()[-1:]
        assert "the same command goes on from there" in sentence
        report = report_of(out)
        done = [each for each in report["clips"] if each["status"] in ("done", "kept")]
        assert f"Stopped with {len(done)} of 20 clips done" in sentence
        assert len(report["clips"]) + report["unfinished"] == 20
        assert {name: undisturbed.bodies[name] for name in bodies(out)} == bodies(out)
    assert start(undisturbed.clips, out).wait() == 0
    assert bodies(out) == undisturbed.bodies
    assert not leftovers(out)


def test_two_batches_at_once(tmp_path: Path, start: Start, undisturbed: Undisturbed) -> None:
    out = tmp_path / "out"
    first = start(undisturbed.clips, out)
    assert first.await_event("clip_started")
    second = start(undisturbed.clips, out)
    assert second.wait() == 1
    assert second.said().splitlines() == [
        f"Error: Another batch is at work in {out}: wait for it, or pass another --out."
    ]
    assert first.process.poll() is None
    assert first.wait() == 0, first.said()
    assert bodies(out) == undisturbed.bodies
    assert not leftovers(out)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a small disk, or changes its size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: int) -> Path:
        options = f"size={size}" if not folder.is_mount() else f"remount,size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = getattr(error, "stderr", None) or error
            pytest.skip(f"no small disk can be mounted here: {reason}")
        return folder

    yield resize
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("part", [0.3, 0.8])
def test_a_full_disk(
    part: float, start: Start, undisturbed: Undisturbed, disk: Callable[[int], Path]
) -> None:
    out = disk(int(part * undisturbed.size)) / "out"
    command = start(undisturbed.clips, out)
    assert command.wait() == 1, command.said()
    command.await_silence()
    sentence = command.said().splitlines()[-1]
    assert "No space left on device" in sentence
    assert "Make room" in sentence  # there may be none for the report either
    assert "Traceback" not in command.said()
    found = bodies(out)
    assert found == {name: undisturbed.bodies[name] for name in found}
    assert 0 < len(found) < 20
    report_of(out)  # can be read
    disk(4 * undisturbed.size)
    assert start(undisturbed.clips, out).wait() == 0
    assert bodies(out) == undisturbed.bodies
    assert not leftovers(out)
