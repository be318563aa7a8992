"""The files and folders that a run takes something from or writes to, and the room there.

All but the standard library is imported by the checks themselves: it may be what is broken.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from mpsnet_cli.doctor.check import Finding
from mpsnet_cli.doctor.machine import size_text
from mpsnet_cli.errors import BodyError, OutputError, WeightsError

BLENDER_TIMEOUT = 30.0  # s
LITTLE_ROOM, NO_ROOM = 1 << 30, 64 << 20  # bytes of a disk; a minute of results takes more
SHOWN = 12  # digits of a sha256


def shipped(_: Path) -> Iterator[Finding]:
    """Whether every network that is packaged came with the installation, unchanged."""
    from mpsnet_cli.packaged import PACKAGED, checked_sha256, packaged_file

    for name, digest in PACKAGED.items():
        again = "install mpsnet-cli again"
        path = packaged_file(name)
        if path is None:
            yield Finding("shipped", f"{name} is missing", "failed", again)
            continue
        try:
            checked_sha256(path)
        except WeightsError as error:
            yield Finding("shipped", error.message, "failed")
        else:
            yield Finding("shipped", f"{name}, sha256 {digest[:SHOWN]}… as it must be")


def weights(_: Path) -> Iterator[Finding]:
    """The weights that need not be named; the first are those that a run takes."""
    from mpsnet_cli.weights import KNOWN, PARTLY_TRAINED, available, find_weights, read_info

    found = available()
    try:
        default = find_weights()
    except WeightsError as error:
        yield Finding("weights", error.message, "failed")
        default = None
    for place, path in found:
        used = path == default
        name = "weights" if used else "also"
        try:
            info = read_info(path)
        except WeightsError as error:
            if path.is_file():  # else it is what `find_weights` has told
                yield Finding(name, error.message, "failed" if used else "note")
            continue
        text = f"{path} ({place}): {info.name}, sha256 {info.sha256[:SHOWN]}…"
        if not info.trained:
            advice = "results show how the tool works, not how people moved"
            yield Finding(name, f"{text}, untrained", "note" if used else "ok", advice)
        elif PARTLY_TRAINED in info.name:
            yield Finding(name, text, "note" if used else "ok", "expect less of them")
        else:
            yield Finding(name, f"{text}, trained")
    for known in KNOWN:
        if known.file not in {path.name for _, path in found}:
            yield Finding("not here", f"{known.name}: {known.get}")


def bodies(_: Path) -> Iterator[Finding]:
    """The body that a run takes, and the others."""
    from mpsnet_cli.body import load_body
    from mpsnet_cli.body.lookup import FREE_BODY, GENDERS

    default = load_body()
    yield Finding("body", f"{default.name}: {default.source}")
    missing: dict[str, BodyError] = {}
    for name in (FREE_BODY, *(f"smpl-{gender}" for gender in GENDERS)):
        if name == default.name:
            continue
        try:
            yield Finding("also", f"{name}: {load_body(name).source}")
        except BodyError as error:
            missing[name] = error
    if missing:
        first = next(iter(missing.values()))
        yield Finding("not here", ", ".join(missing), advice=first.message)


def detector(_: Path) -> Iterator[Finding]:
    """The detector that a run takes, or would fetch."""
    from mpsnet_cli.packaged import packaged_file
    from mpsnet_cli.tracking.detector import DEFAULT_DETECTOR, RELEASES, STARTER_DETECTOR

    path = default_detector()
    if path is not None:
        yield Finding("detector", str(path))
        return
    starter = packaged_file(STARTER_DETECTOR)
    otherwise = f"else {starter} is taken, which misses more" if starter else "else it fails"
    yield Finding(
        "detector",
        f"the next run fetches {DEFAULT_DETECTOR}, if it can; {otherwise}",
        "ok" if starter else "note",
        f"without a network: put the file, from {RELEASES}, into {_detector_cache()}, or pass "
        "--detector or --boxes",
    )


def default_detector() -> Path | None:
    """Return the official detector that a run takes; None where it would have to be fetched."""
    from mpsnet_cli.tracking.detector import DEFAULT_DETECTOR

    places = (Path(DEFAULT_DETECTOR), _detector_cache() / DEFAULT_DETECTOR)
    return next((path for path in places if path.is_file()), None)


def _detector_cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("mpsnet-cli") / "detectors"


def folders(_: Path) -> Iterator[Finding]:
    """Where files are kept and results go by default, and how much room is there."""
    from mpsnet_cli.weights import user_folder

    places = {
        "data": user_folder().parent,
        "cache": _detector_cache().parent,
        "current": Path.cwd(),
    }
    for name, place in places.items():
        there = next(path for path in (place, *place.parents) if path.exists())
        free = shutil.disk_usage(there).free
        text = f"{place}{'' if there == place else ', not there yet'}, {size_text(free)} free"
        if not os.access(there, os.W_OK):
            advice = f"change the permissions of {there}"
            if name == "current":
                advice = "pass --out with a folder that can be written"
            yield Finding(name, f"{text}, cannot be written", "note", advice)
        elif free < LITTLE_ROOM:
            yield Finding(name, text, "note", "make room: results of long clips take more")
        else:
            yield Finding(name, text)


def temporary(folder: Path) -> Iterator[Finding]:
    """Where temporary files go."""
    free = shutil.disk_usage(folder).free
    text = f"{folder.parent}, {size_text(free)} free"
    if free < NO_ROOM:
        advice = "make room there, or set TMPDIR to another folder"
        yield Finding("temporary", text, "failed", advice)
    else:
        yield Finding("temporary", text)


def blender(folder: Path) -> Iterator[Finding]:
    """The Blender that writes .fbx and .blend."""
    from mpsnet_cli.export.blender import find_blender

    try:
        command = find_blender()
    except OutputError as error:
        yield Finding("Blender", "not here", "note", error.message)
        return
    is_python = command[1:] == ["-I"]
    ask = ["-I", "-c", "import bpy; print('Blender', bpy.app.version_string)"]
    answer = subprocess.run(
        [command[0], *(ask if is_python else ["--version"])],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        timeout=BLENDER_TIMEOUT, check=False,
    )  # fmt: skip
    version = re.search(r"^Blender (\S+)", answer.stdout, re.MULTILINE)
    if answer.returncode or version is None:
        said = (answer.stderr.strip().split("\n"))[-1] or f"exit code {answer.returncode}"
        yield Finding("Blender", f"{command[0]} does not start: {said}", "note")
    else:
        yield Finding("Blender", f"{version[1]}, {command[0]}")
