"""What `mpsnet run` wrote, read back: a result folder, or one person's .npz."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.body.lookup import GENDERS
from mpsnet_cli.errors import InputError, NoPeopleFound
from mpsnet_cli.motion import Motion
from mpsnet_cli.progress import Reporter

CLIP_FORMAT = "mpsnet-clip/1"
MANIFEST = "clip.json"
MAX_FPS = 1000.0  # Hz
MAX_SECONDS = 24 * 3600.0  # that a person may be followed
ON_LIMIT = 1e-6  # s: a frame on a limit of time is not before it

PER_FRAME = ("frame_ids", "times", "pose", "betas_per_frame", "transl", "cam", "bboxes",
             "joints3d", "joints2d", "scores", "interpolated")  # fmt: skip
KINDS = {"frame_ids": "iu", "interpolated": "b"}  # of numpy's types; the other arrays are numbers
SHARED = ("body", "gender", "weights", "trained", "fps", "image_size", "focal_length",
          "principal_point")  # what all people of a clip have in common  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The people of a clip, and what is known of the clip.

    Seconds of the clip count from its first frame, whatever its time stamp is.
    """

    name: str  # of the clip, or of the file that was given
    folder: Path  # where the result lies
    motions: Sequence[Motion]  # ascending by track id, never empty
    origin: float  # time stamp of the clip's first frame, s
    start: float  # second of the clip at which what is here begins
    video: str | None = None  # the clip, where it still is where it was
    body_sha256: str | None = None  # of the body's file, as far as it is known


def read_result(source: Path) -> Result:
    """Read a finished result folder, or a person's .npz with what its folder says of the clip.

    Raises InputError if it is neither or any of it cannot be right (a manifest of another version,
    files of another folder, numbers that are not finite), NoPeopleFound if nobody is in it.
    """
    if source.is_dir():
        return _read_folder(source, _manifest(source))
    if not source.exists():
        raise InputError(f"{source} does not exist: give a result folder or a person's .npz.")
    manifest = _manifest_beside(source)
    if manifest is None:
        motion = _read_motion(source)
        return Result(source.stem, source.parent, [motion], _origin([motion]), 0.0)
    only = [person for person in manifest["people"] if person["file"] == source.name]
    result = _read_folder(source.parent, {**manifest, "people": only})
    return replace(result, name=f"{result.name}_{result.motions[0].name}")


def select(
    result: Result,
    *,
    people: Collection[int] = (),
    start: float | None = None,
    end: float | None = None,
    report: Reporter,
) -> Result:
    """Keep the people of the given ids, or all, from second `start` up to, not with, `end`.

    Raises InputError for an id that nobody has, and for a range with nobody in it.
    """
    ids = [motion.track_id for motion in result.motions]
    if unknown := sorted(set(people) - set(ids)):
        raise InputError(
            f"There is no person {_listed(unknown)} in {result.name}: its people are "
            f"{_listed(ids)}."
        )
    if end is not None and end <= (start or 0):
        raise InputError(f"Nothing lies from {start or 0:g} s to {end:g} s: give a later end.")
    first, last = start or 0.0, np.inf if end is None else end
    motions = []
    for motion in result.motions:
        if people and motion.track_id not in people:
            continue
        seconds = motion.times - result.origin + ON_LIMIT
        rows = (seconds >= first) & (seconds < last)
        if rows.any():
            motions.append(motion if rows.all() else _rows(motion, rows))
        else:
            report.warn(f"Person {motion.track_id} is not there at that time and is left out.")
    if not motions:
        raise InputError(
            f"None of the people is there from {first:g} s on"
            + (f" up to {end:g} s" if end is not None else "")
            + ": give another --start or --end."
        )
    return replace(result, motions=motions, start=max(result.start, first))


def holes(frame_ids: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Find the ranges of frames, first and last, that are missing among ascending ones."""
    before = np.flatnonzero(np.diff(frame_ids) > 1)
    return [(int(frame_ids[row]) + 1, int(frame_ids[row + 1]) - 1) for row in before]


def frames_text(ranges: Sequence[tuple[int, int]], *, limit: int = 5) -> str:
    """Write ranges of frames for people: "3, 7–9", and no more than `limit` of them."""
    shown = [f"{first}" if first == last else f"{first}–{last}" for first, last in ranges[:limit]]
    rest = len(ranges) - limit
    return ", ".join(shown) + (f" and {rest} more places" if rest > 0 else "")


def _read_folder(folder: Path, manifest: dict[str, Any]) -> Result:
    if not manifest["people"]:
        raise NoPeopleFound(f"Nobody was found in {folder}: there is nothing to export.")
    folder_itself = folder.resolve()
    motions: list[Motion] = []
    for person in manifest["people"]:
        path = folder / person["file"]
        if path.resolve().parent != folder_itself:
            raise InputError(f"{folder / MANIFEST} names {person['file']}, outside of its folder.")
        motions.append(_read_motion(path))
    motions.sort(key=lambda motion: motion.track_id)
    _check_together(motions, folder)
    first_time = manifest["video"].get("first_time")
    return Result(
        name=folder_itself.name,
        folder=folder,
        motions=motions,
        origin=_origin(motions) if first_time is None else first_time,
        start=manifest["arguments"].get("start") or 0.0,
        video=_source_clip(folder, manifest["input"]),
        body_sha256=manifest["body"]["sha256"],
    )


def _manifest(folder: Path) -> dict[str, Any]:
    """Read a folder's manifest, as far as it is needed here, or say why it cannot be."""
    path = folder / MANIFEST
    if not path.exists():
        raise InputError(
            f"{folder} is no finished result, it has no {MANIFEST}: give a folder that "
            "`mpsnet run` wrote, or a person's .npz."
        )
    try:
        manifest = json.loads(path.read_text("utf-8"))
        found = manifest["format"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no manifest of a result: {error!r}.") from error
    if found != CLIP_FORMAT:
        raise InputError(
            f"{path} is of the format {found}, and this version of mpsnet reads {CLIP_FORMAT}: "
            "run the clip again, or export it with the version that wrote it."
        )
    if problem := _problem(manifest):
        raise InputError(f"{path} is no manifest that this tool wrote: {problem}.")
    return manifest


def _manifest_beside(file: Path) -> dict[str, Any] | None:
    """Read the manifest of the result that a motion file is part of, if it is of one."""
    try:
        manifest = _manifest(file.parent)
    except InputError:
        return None  # the file says enough of itself
    named = {person["file"] for person in manifest["people"]}
    return manifest if file.name in named else None


def _problem(manifest: dict[str, Any]) -> str | None:
    """Say what of a manifest, of those parts that are read, is not what it must be."""
    try:
        needed: list[tuple[str, Any, type | tuple[type, ...]]] = [
            ("input.path", manifest["input"]["path"], str),
            ("input.bytes", manifest["input"]["bytes"], int),
            ("body.sha256", manifest["body"]["sha256"], str),
            ("video.first_time", manifest["video"].get("first_time"), (float, int, type(None))),
            ("arguments.start", manifest["arguments"].get("start"), (float, int, type(None))),
            *(("people.file", person["file"], str) for person in manifest["people"]),
        ]
    except (LookupError, TypeError, AttributeError) as error:
        return f"{error!r}"
    for name, value, kind in needed:
        if not isinstance(value, kind) or (isinstance(value, float) and not np.isfinite(value)):
            return f"{name} is {value!r}"
    files = [person["file"] for person in manifest["people"]]
    for file in files:
        if Path(file).name != file or not file.endswith(".npz") or "\\" in file or "\0" in file:
            return f"people.file is {file!r}, not the name of an .npz in the folder"
    return None


def _read_motion(path: Path) -> Motion:
    motion = Motion.load(path)
    if problem := _motion_problem(motion):
        raise InputError(
            f"{path} cannot be exported: {problem}. Run the clip again, or give the .npz of others."
        )
    return motion


def _motion_problem(motion: Motion) -> str | None:
    """Say what of a motion, whose shapes are right, cannot be."""
    for name, value in vars(motion).items():
        if isinstance(value, np.ndarray) and value.dtype.kind not in KINDS.get(name, "fiu"):
            return f"{name} is of {value.dtype}"
    if len(motion) == 0:
        return "it has no frames"
    for name in PER_FRAME:
        bad = ~np.isfinite(getattr(motion, name).reshape(len(motion), -1)).all(axis=1)
        if bad.any():
            return f"{name} is not a number in frame {frames_text(_runs(motion.frame_ids[bad]))}"
    for name, possible in {
        "track_id": type(motion.track_id) is int and motion.track_id >= 0,
        "trained": type(motion.trained) is bool,
        "gender": motion.gender in GENDERS,
        "body": isinstance(motion.body, str),
        "weights": isinstance(motion.weights, str),
        "fps": _is_number(motion.fps) and 0 < motion.fps <= MAX_FPS,
        "focal_length": _is_number(motion.focal_length) and 0 < motion.focal_length < np.inf,
        "image_size": ((motion.image_size >= 1) & (motion.image_size < np.inf)).all(),
        "principal_point": np.isfinite(motion.principal_point).all(),
        "betas": np.isfinite(motion.betas).all(),
    }.items():
        if not possible:
            return f"{name} is {np.asarray(getattr(motion, name)).tolist()!r}"
    if (np.diff(motion.frame_ids) <= 0).any() or (np.diff(motion.times) <= 0).any():
        return "its frames are not in ascending order"
    if (seconds := motion.times[-1] - motion.times[0]) > MAX_SECONDS:
        return f"it lasts {seconds:g} s"
    return None


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _check_together(motions: Sequence[Motion], folder: Path) -> None:
    """Make sure that the people are of one clip and one body."""
    first = motions[0]
    for before, motion in pairwise(motions):
        if motion.track_id == before.track_id:
            raise InputError(f"Two people of {folder} have the id {motion.track_id}.")
        for name in SHARED:
            if not np.array_equal(getattr(motion, name), getattr(first, name)):
                raise InputError(
                    f"The people {first.track_id} and {motion.track_id} of {folder} differ in "
                    f"{name}: they are not of one run."
                )


def _origin(motions: Sequence[Motion]) -> float:
    """Reckon the time stamp of the clip's first frame back from the first one with people."""
    first = min(motions, key=lambda motion: motion.times[0])
    return float(first.times[0]) - int(first.frame_ids[0]) / first.fps


def _source_clip(folder: Path, identity: dict[str, Any]) -> str | None:
    """Find the clip that a result was made of: where it was, or beside the folder."""
    named = Path(identity["path"])
    for path in (named, folder.parent / named.name):
        try:
            if path.is_file() and path.stat().st_size == identity["bytes"]:
                return str(path.resolve())
        except (OSError, ValueError):  # a path of another system
            continue
    return None


def _rows(motion: Motion, rows: NDArray[np.bool_]) -> Motion:
    changes: dict[str, Any] = {name: getattr(motion, name)[rows] for name in PER_FRAME}
    return replace(motion, **changes)


def _runs(frame_ids: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Gather ascending frames into ranges, first and last."""
    groups = groupby(enumerate(frame_ids.tolist()), key=lambda pair: pair[1] - pair[0])
    ranges = [[frame for _, frame in group] for _, group in groups]
    return [(run[0], run[-1]) for run in ranges]


def _listed(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids))
