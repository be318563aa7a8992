"""Whether `mpsnet run` can work here: what there is, and each stage tried on a few frames.

All is looked at in a process of its own, as what is broken may take the whole process down, or
hang: its last check has then failed, and a new process takes up the rest.

Nothing is downloaded, and nothing is written but temporary files.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from mpsnet_cli.doctor import files, machine, trials
from mpsnet_cli.doctor.check import Check, Finding, perform

__all__ = ["CHECKS", "Check", "Finding", "examine", "perform"]

CHECKS = (
    Check("program", "program", machine.program),
    Check("packages", "packages", machine.packages),
    Check("devices", "cpu", machine.cpu),
    Check("devices", "cuda", machine.cuda),
    Check("devices", "mps", machine.mps, needed=False),
    Check("devices", "OpenGL", machine.opengl, needed=False),
    Check("video", "ffmpeg", machine.ffmpeg),
    Check("video", "encoders", machine.encoders),
    Check("files", "shipped", files.shipped),
    Check("files", "weights", files.weights),
    Check("files", "body", files.bodies),
    Check("files", "detector", files.detector),
    Check("folders", "folders", files.folders),
    Check("folders", "temporary", files.temporary, writes=True),
    Check("for exports and training", "extras", machine.extras, needed=False),
    Check("for exports and training", "Blender", files.blender, needed=False),
    Check("self-test", "decode", trials.decode, writes=True),
    Check("self-test", "detect", trials.detect, writes=True),
    Check("self-test", "network", trials.network, writes=True),
    Check("self-test", "body", trials.body),
    Check("self-test", "draw", trials.draw),
    Check("self-test", "draw, OpenGL", trials.draw_with_opengl),
    Check("self-test", "encode", trials.encode, writes=True),
    Check("self-test", "export", trials.export, needed=False, writes=True),
)
PATIENCE = 120.0  # s, for one finding: what a slow disk takes to load torch, and more
SAID = "said.txt"  # in the temporary folder: what libraries print meanwhile
NO_CACHES = {  # what drivers and libraries would otherwise keep on disk
    "MESA_SHADER_CACHE_DISABLE": "true",
    "__GL_SHADER_DISK_CACHE": "0",
    "CUDA_CACHE_DISABLE": "1",
}


def examine(checks: Sequence[Check] = CHECKS) -> Iterator[Finding]:
    """Yield what the checks find, as it is found; nothing that they do ends this one's process."""
    with _temporary_folder() as folder:
        left = list(checks)
        if folder is None:
            yield Finding(
                "temporary",
                "failed: temporary files can be written nowhere",
                "failed",
                "make room on the disk, or set TMPDIR to a folder that can be written",
                group="folders",
            )
        while left:
            yield from _watch(left, folder)


@contextmanager
def _temporary_folder() -> Iterator[Path | None]:
    """Give a folder that goes away again, or None where a full disk has no room for one."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="mpsnet-doctor-", ignore_cleanup_errors=True)
    except OSError:
        yield None
        return
    with folder as name:
        yield Path(name)


def _watch(left: list[Check], folder: Path | None) -> Iterator[Finding]:
    """Have a process work through `left` and take from it what is done, until it ends or hangs."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(theirs, left, folder), daemon=True)
    worker.start()
    theirs.close()
    try:
        while left:
            if not ours.poll(PATIENCE):
                yield left.pop(0).failure(f"no answer within {PATIENCE:.0f} s", PATIENCE)
                return
            try:
                finding: Finding | None = ours.recv()
            except EOFError:
                worker.join()
                yield left.pop(0).failure(_death(worker.exitcode or 0, folder))
                return
            if finding is None:
                left.pop(0)
            else:
                yield finding
    finally:
        worker.kill()
        worker.join()
        ours.close()


def _work(answers: Connection, checks: Sequence[Check], folder: Path | None) -> None:
    """Perform checks in a process for them; None is the answer that one has ended."""
    said = os.open(folder / SAID if folder else os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    faulthandler.enable()
    os.environ.update(NO_CACHES)
    if folder:
        os.environ["MPLCONFIGDIR"] = tempfile.tempdir = str(folder)
    for check in checks:
        for finding in perform(check, folder):
            answers.send(finding)
        answers.send(None)


def _death(code: int, folder: Path | None) -> str:
    """Say how a process ended, and where in Python's code, as far as it could tell."""
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    said = (folder / SAID).read_text(errors="replace") if folder else ""
    where = re.search(r'File ".*?([^/\\"]+)", line (\d+) in (\w+)', said)
    return f"the process died ({how})" + (f" in {where[3]}, {where[1]}:{where[2]}" if where else "")
