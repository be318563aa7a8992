"""A result in all the formats that were asked for, each of them whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from mpsnet_cli.body import BodyModel
from mpsnet_cli.errors import InputError, MpsnetError, OutputError
from mpsnet_cli.export import EXPORTERS, Format
from mpsnet_cli.export.blender import background
from mpsnet_cli.export.floor import Tilt, grounded, upright
from mpsnet_cli.export.result import Result, frames_text, holes
from mpsnet_cli.export.stage import Floats, Performer, Stage
from mpsnet_cli.export.staging import is_on_grid, locked, resampled, set_stage, shifted
from mpsnet_cli.progress import Reporter

World = Literal["camera", "upright"]
Root = Literal["keep", "lock", "ground"]
Existing = Literal["refuse", "keep", "replace"]

EXPORTS = "exports"  # the folder for them, in a result's


@dataclass(frozen=True)
class Exports:
    """What came of it."""

    stage: Stage  # as it was before it was resampled for any format
    tilt: Tilt | None  # how the camera stood, where the world was turned upright
    files: dict[str, list[Path]]  # by format: the files, or the folders of meshes
    failures: dict[str, MpsnetError]  # by format: why it was not written


def export_result(
    result: Result,
    body: BodyModel,
    formats: Sequence[str],
    *,
    out: Path | None = None,
    fps: float | None = None,
    world: World = "camera",
    root: Root = "keep",
    existing: Existing = "refuse",
    report: Reporter,
) -> Exports:
    """Write a result in `formats`, names from EXPORTERS, to the folder `out`.

    Without `out` they go to exports/ beside the result. Formats are written one after another; one
    that fails leaves no file, and the others are written all the same. At `fps`, Hz, everything is
    resampled; else times stay exact where the format knows times. `world`, "camera" or "upright",
    and `root`, "keep", "lock" or "ground", are as `mpsnet export` explains them. A file that is
    there already is a failure of its format, or, with `existing` "keep", the format is passed over.

    Raises InputError for "ground" without an upright world, where no floor is known, and for a body
    that is not the result's.
    """
    if root == "ground" and world != "upright":
        raise InputError("--root ground needs a floor: pass --world upright too.")
    _check_body(result, body, report)
    stage, tilt = set_stage(result, body), None
    if world == "upright":
        stage, tilt = upright(stage, report)
    offsets: list[Floats] | None = None
    if root != "keep":
        offsets = locked(stage) if root == "lock" else grounded(stage, report)

    @cache
    def at_rate(rate: float | None) -> Stage:
        even = stage if rate is None else resampled(stage, rate)
        return even if offsets is None else shifted(even, offsets, stage)

    rates = {name: _rate(EXPORTERS[name], stage, fps) for name in formats}
    _tell_rates(rates, stage, fps, report)
    _tell_holes(result, rates, report)
    _tell_starts(stage, formats, report)
    exports = Exports(stage, tilt, {}, {})
    for name in formats:
        paths = _paths(EXPORTERS[name], result, out or result.folder / EXPORTS)
        there = [path for path in paths if path.exists()]
        try:
            if there and existing == "keep":
                report.warn(f"{there[0]} is there already and left alone; --overwrite replaces it.")
                continue
            if there and existing == "refuse":
                raise OutputError(f"{there[0]} exists: pass --overwrite, or another folder.")
            check_packages([name])
            staged = at_rate(rates[name])
            if name == "blend" and background(staged)[0] is None:
                report.warn("The clip is not behind the camera of the blend: " + (
                    "it is not resampled." if rates[name] else "it is not where it was."
                ))  # fmt: skip
            _write(name, staged, paths, report)
            exports.files[name] = paths
        except MpsnetError as error:
            exports.failures[name] = error
    return exports


def check_packages(formats: Sequence[str]) -> None:
    """Raise InputError if a package that one of the formats needs is not installed."""
    for name in formats:
        for package in EXPORTERS[name].needs:
            if find_spec(package) is None:
                raise InputError(
                    f"The package {package}, which writes {name}, is not installed: "
                    "pip install 'mpsnet-cli[export]'."
                )


def _check_body(result: Result, body: BodyModel, report: Reporter) -> None:
    wanted = result.motions[0].body
    if body.name != wanted:
        raise InputError(f"{result.name} is a motion of the body {wanted}, not of {body.name}.")
    if result.body_sha256 not in (None, body.sha256):
        report.warn(
            f"{body.source} is not the file that {result.name} was made with: shapes may differ."
        )


def _rate(kind: Format, stage: Stage, fps: float | None) -> float | None:
    """Choose the frame rate that a format is resampled to; None for the times as they are."""
    rate = fps or stage.fps
    if kind.rates:
        rate = next((possible for possible in kind.rates if possible >= rate), kind.rates[-1])
    if not (kind.uniform or fps) or (stage.uniform and rate == stage.fps):
        return None
    return float(rate)


def _tell_rates(
    rates: dict[str, float | None], stage: Stage, fps: float | None, report: Reporter
) -> None:
    """Say what is resampled, in one line for each rate."""
    even = all(is_on_grid(person.times, stage.fps) for person in stage.people)
    source = f"{stage.fps:g}" if even else f"an uneven rate, {stage.fps:g} on average,"
    for rate in dict.fromkeys(rates.values()):
        names = ", ".join(name for name in rates if rates[name] == rate)
        if rate is None:
            continue
        if rate != stage.fps or not even:
            report.warn(f"Resampled from {source} to {rate:g} frames/s, by slerp: {names}.")
        elif dropped := sum(_dropped(person, rate) for person in stage.people):
            report.warn(
                f"Frames that the clip leaves out, {dropped} in all, are filled in: {names}."
            )
    for name, rate in rates.items():
        if fps and rate not in (None, fps):
            taken = ", ".join(map(str, EXPORTERS[name].rates))
            report.warn(f"{name} is read at {taken} frames/s only: not at {fps:g}.")


def _dropped(person: Performer, fps: float) -> int:
    """Count the times between a person's that no frame of the clip has."""
    steps = np.rint(np.diff(person.times) * fps)
    return int((steps - np.diff(person.frame_ids)).sum())


def _tell_holes(result: Result, rates: dict[str, float | None], report: Reporter) -> None:
    if bridged := [name for name, rate in rates.items() if rate or EXPORTERS[name].bridges]:
        for motion in result.motions:
            if missing := holes(motion.frame_ids):
                report.warn(
                    f"Person {motion.track_id} is out of sight in frame {frames_text(missing)}: "
                    f"the motion is bridged there in {', '.join(bridged)}."
                )


def _tell_starts(stage: Stage, formats: Sequence[str], report: Reporter) -> None:
    """Say who comes late, for files of one person's motion that know no clock."""
    files = [name for name in formats if EXPORTERS[name].each_person and EXPORTERS[name].uniform]
    for person in stage.people if files else ():
        if (late := float(person.times[0])) > 0.5 / stage.fps:
            report.warn(
                f"{', '.join(files)} of {person.name} begins {late:.2f} s into the clip, where the "
                "person does."
            )


def _paths(kind: Format, result: Result, out: Path) -> list[Path]:
    """Name what a format is written to, in the order of the people."""
    if not kind.each_person:
        return [out / f"{result.name}{kind.suffix}"]
    stems = [
        # the name of one person's own file says already who it is
        result.name if result.name.endswith(who.name) else f"{result.name}_{who.name}"
        for who in result.motions
    ]
    return [out / f"{stem}{kind.suffix}" for stem in stems]


def _write(name: str, stage: Stage, paths: Sequence[Path], report: Reporter) -> None:
    kind = EXPORTERS[name]
    module, function = kind.where.split(":")
    write: Callable[..., None] = getattr(import_module(module), function)
    frames = sum(map(len, stage.people))
    with _all_or_nothing(paths) as parts, report.stage(name, total=frames) as advance:
        if kind.each_person:
            for part, person in zip(parts, stage.people, strict=True):
                write(part, stage, person, advance=advance)
        else:
            write(parts[0], stage, advance=advance)


@contextmanager
def _all_or_nothing(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Give temporary names for files or folders; rename all of them at the end, or remove them.

    Raises OutputError where the file system fails.
    """
    folder = paths[0].parent
    parts = [path.with_name(f".part.{path.name}") for path in paths]  # suffixes choose formats
    is_new = not folder.exists()
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for part in parts:
                _remove(part)
            yield parts
            for part, path in zip(parts, paths, strict=True):
                _remove(path)
                part.rename(path)
        finally:
            for part in parts:
                _remove(part)
            if is_new:
                with suppress(OSError):  # unless there is something in it
                    folder.rmdir()
    except OSError as error:
        raise OutputError(
            f"{paths[0]} cannot be written: {error.strerror or error}. "
            "Make room there, or pass another folder."
        ) from error


def _remove(path: Path) -> None:
    """Remove a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
