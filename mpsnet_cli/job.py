"""One clip in, one result folder out.

A result is worked on in `out/.clip.part` and renamed to `out/clip` when it is complete, so a folder
of that name is always a whole one, with its manifest. Beside it, the working folder keeps what the
stages found: tracks, features, motions. If a run stops, however that be, the next one with the same
input, arguments, weights, body and kind of device goes on from there to the very same motions.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from mpsnet_cli._version import __version__
from mpsnet_cli.body import BodyModel
from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.export.obj import mesh_count, write_obj_sequence
from mpsnet_cli.export.result import CLIP_FORMAT, MANIFEST
from mpsnet_cli.kept import STATE, Kept
from mpsnet_cli.model.config import WeightsInfo
from mpsnet_cli.model.inference import Model
from mpsnet_cli.motion import Motion, Shape, Track
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.pipeline import keep_features, reconstruct
from mpsnet_cli.progress import Reporter
from mpsnet_cli.render import Renderer, RendererName, make_renderer
from mpsnet_cli.render.overlay import View, write_overlay
from mpsnet_cli.smoothing import DEFAULT_STRENGTH
from mpsnet_cli.tracking import (
    MIN_FRAMES,
    Detector,
    Tracker,
    choose_people,
    find_detector,
    find_people,
    given_tracks,
)
from mpsnet_cli.video import VideoInfo, read_frames
from mpsnet_cli.windows import Edges

TRACKS, MOTIONS = "tracks", "motions"  # stage results
RESULT = "result"  # in a working folder: what is renamed in the end
OVERLAY = "overlay.mp4"
MESHES = "meshes"
LONGEST_NAME = 200  # bytes of a result's name; file systems take 255, and some is added to it
Existing = Literal["same", "any", "replace"]  # see run_clip
State = Literal["new", "partial", "done", "other"]  # see state_of

WHOLE: dict[str, Any] = {  # what whoever reads a manifest may count on
    "tool": {"version": str},
    "input": dict,
    "arguments": dict,
    "weights": {"name": str, "sha256": str, "trained": bool},
    "body": {"name": str},
    "detector": dict,
    "video": {"width": int, "height": int, "fps": float, "frame_count": int},
    "device": {"name": str, "precision": str},
    "complete": bool,
    "frames": int,
    "people": [{"id": int, "file": str}],
    "seconds": dict,
    "frames_per_second": float,
    "warnings": [str],
}
DRAWING = {"overlay", "view", "renderer", "meshes", "mesh_every"}  # arguments no motion depends on


@dataclass(frozen=True)
class Arguments:
    """What the user asked for, as far as it decides what the result holds."""

    start: float | None = None  # s
    end: float | None = None  # s
    boxes: str | None = None  # a file, or "full"
    detector: str | None = None  # a file, or a name; see `find_detector`
    tracker: Tracker = "bytetrack"
    min_frames: int = MIN_FRAMES
    max_people: int | None = None
    people: tuple[int, ...] = ()
    focal_length: float | None = None  # px
    smooth: float = DEFAULT_STRENGTH
    shape: Shape = "person"
    edges: Edges = "hold"
    overlay: bool = True
    view: View = "overlay"
    renderer: RendererName = "auto"
    meshes: bool = True
    mesh_every: int = 1


def run_clip(
    video: VideoInfo,
    folder: Path,
    arguments: Arguments,
    *,
    model: Model,
    body: BodyModel,
    existing: Existing = "same",
    patience: float = 0.0,
    prepared: bool = False,
    report: Reporter,
) -> tuple[Path, dict[str, Any]]:
    """Reconstruct one clip and write its result to `folder`; return that and the manifest.

    A finished result that is there already is kept and returned if it is of the same job, with
    `existing="any"` whatever it was made with, and with "replace" it is replaced. `patience` is how
    long, s, another run may take to let go of the folder. What `keep_tracks` and `keep_share` have
    `prepared` is taken up. Raises InputError for a clip or boxes file that cannot be used, and
    OutputError if the folder cannot be written, is in use by another run, holds what is no result,
    or holds that of a different job.
    """
    frames = len(video.frame_range(arguments.start, arguments.end))
    detector = None if arguments.boxes else find_detector(arguments.detector, report=report)
    wanted = identity(video, arguments, weights=model.weights, body=body, detector=detector)
    with _working_folder(folder, report, patience) as part:
        if finished := _finished(folder, wanted, existing):
            if _is_left(part, wanted):
                shutil.rmtree(part, ignore_errors=True)
            report.warn(f"{folder} is finished already and left alone; --overwrite does it anew.")
            return folder, finished
        renderer = make_renderer(arguments.renderer, body.faces, report=report)
        kept = Kept(part, _job_of(wanted, model), report, prepared=prepared)
        motions = _motions(kept, video, arguments, detector, model, body, report)
        result = part / RESULT
        shutil.rmtree(result, ignore_errors=True)  # what a stopped run was drawing
        result.mkdir(parents=True)
        for motion in motions:
            motion.save(result / f"{motion.name}.npz")
        files = _draw(result, video, motions, arguments, body, renderer, report)
        seconds = sum(report.seconds.values())
        manifest = {
            "format": CLIP_FORMAT,
            **wanted,
            "video": _video_facts(video),
            "device": {"name": str(model.device), "precision": model.precision},
            "complete": not report.losses,
            "frames": frames,
            "people": [_person_facts(motion, meshes=files["meshes"]) for motion in motions],
            **files,
            "seconds": {name: round(value, 3) for name, value in report.seconds.items()},
            "frames_per_second": round(frames / seconds, 2),
            "warnings": report.warnings,
        }
        (result / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _publish(result, folder)
        shutil.rmtree(part)
    return folder, manifest


def keep_tracks(
    video: VideoInfo,
    folder: Path,
    arguments: Arguments,
    *,
    model: Model,
    body: BodyModel,
    existing: Existing = "same",
    patience: float = 0.0,
    report: Reporter,
) -> dict[str, Any] | None:
    """Find the people of a clip, before several processes share its features.

    Everything is as in `run_clip`, which comes last and finds all of it kept. Returns the job that
    `keep_share` needs to know, None where there is nothing to share.
    """
    detector = None if arguments.boxes else find_detector(arguments.detector, report=report)
    wanted = identity(video, arguments, weights=model.weights, body=body, detector=detector)
    with _working_folder(folder, report, patience) as part:
        if _finished(folder, wanted, existing):
            return None
        job = _job_of(wanted, model)
        kept = Kept(part, job, report)
        tracks = kept.once(
            TRACKS, Track, lambda: _tracks(video, arguments, detector, model, report)
        )
        return None if kept.has(MOTIONS) or not tracks else job


def keep_share(
    video: VideoInfo,
    folder: Path,
    arguments: Arguments,
    job: dict[str, Any],
    *,
    model: Model,
    share: int,
    of: int,
    report: Reporter,
) -> None:
    """Compute one of the shares of a clip's features, after `keep_tracks` and before `run_clip`.

    Those are the features that `run_clip` would compute, of the very same groups of crops, so its
    result is the one that it would have without, to the last byte: where shares meet, nothing is
    blended and no seam can be seen. Shares may be computed at once, on several machines that see
    the folder; on a device of another kind, whose last bits may differ, nothing is computed.
    """
    if job["device"] != _device_facts(model):
        return
    kept = Kept(part_of(folder), job, report, prepared=True)
    if not kept.has(TRACKS):
        return  # the job has ended meanwhile
    try:
        keep_features(
            video,
            model,
            tracks=kept.once(TRACKS, Track, list),
            start=arguments.start,
            end=arguments.end,
            edges=arguments.edges,
            kept=kept,
            share=share,
            of=of,
            report=report,
        )
    except OSError as error:
        raise OutputError(
            f"Features cannot be kept in {kept.folder}: {error.strerror or error}."
        ) from error


def folder_name(path: Path) -> str:
    """Name a clip's folder after it: the stem, unless that is no name, as in "..mp4".

    A very long one is cut, as names of ours are made of it; a digest tells it from others.
    """
    name = path.name if path.stem.strip(".") == "" else path.stem
    encoded = os.fsencode(name)
    if len(encoded) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    return f"{encoded[:LONGEST_NAME].decode(errors='ignore')}-{digest}"


def identity(
    video: VideoInfo | None,
    arguments: Arguments,
    *,
    weights: WeightsInfo,
    body: BodyModel,
    detector: Path | None,
) -> dict[str, Any]:
    """Say what a result is of: the part of its manifest that two results of one job share.

    `detector` is the file, None where boxes take its place. Without `video`, nothing is said of the
    input. Raises InputError where the file of the boxes is missing.
    """
    return {
        "tool": {"name": "mpsnet-cli", "version": __version__},
        **({"input": _input_facts(video.path)} if video else {}),
        "arguments": {**dataclasses.asdict(arguments), "people": list(arguments.people)},
        "weights": {"name": weights.name, "sha256": weights.sha256, "trained": weights.trained},
        "body": {"name": body.name, "sha256": body.sha256},
        "detector": _detector_facts(arguments.boxes, detector),
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a finished result, {} where there is none, or none of this version."""
    manifest = _read_json(folder / MANIFEST)
    return manifest if manifest.get("format") == CLIP_FORMAT and _has(manifest, WHOLE) else {}


def part_of(folder: Path) -> Path:
    """Name the folder that a result is worked on in."""
    return folder.with_name(f".{folder.name}.part")


def state_of(folder: Path, identity: dict[str, Any]) -> State:
    """Tell how far the job of this identity is in a result folder, without touching anything.

    "done": finished; "partial": stage results of it are kept, to go on from or, if it is finished,
    to be cleared away; "other": something else is there, be it the result of another job; "new":
    nothing of it.
    """
    part = part_of(folder)
    if folder.exists():
        if _differences(read_manifest(folder), identity):
            return "other"
        return "partial" if _is_left(part, identity) else "done"
    return "partial" if _is_begun(part, identity) else "new"


def _input_facts(path: Path) -> dict[str, Any]:
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _detector_facts(boxes: str | None, detector: Path | None) -> dict[str, str]:
    """Identify the detector, or the boxes that take its place."""
    if detector:
        return {"name": detector.name, "sha256": file_sha256(detector)}
    assert boxes is not None  # one of the two says where people are
    if boxes == "full":
        return {"boxes": "full"}
    file = Path(boxes)
    if not file.is_file():
        raise InputError(f"There is no boxes file {file}: check the name.")
    return {"boxes": file.name, "sha256": file_sha256(file)}


@contextmanager
def _working_folder(folder: Path, report: Reporter, patience: float) -> Iterator[Path]:
    """Lock a result and give the folder to work in; a failure leaves only what can be resumed.

    `patience` is how long, s, to wait for the lock. Errors of the file system become OutputError.
    """
    part = part_of(folder)
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=patience):
            try:
                yield part
            except BaseException:
                if (part / STATE).exists():
                    report.warn(f"{part} keeps the work: the same command goes on from there.")
                elif part.is_dir():
                    shutil.rmtree(part)
                raise
            finally:
                with suppress(OSError):  # Windows keeps a file that is open
                    lock.unlink()
    except Timeout as error:
        raise OutputError(
            f"{folder} is being written by another run: wait for it, or pass another --out."
        ) from error
    except OSError as error:
        raise OutputError(
            f"The result cannot be written to {folder}: {error.strerror or error}. "
            "Make room there or pass another --out."
        ) from error


def _finished(folder: Path, identity: dict[str, Any], existing: Existing) -> dict[str, Any] | None:
    """Return the manifest of a result that is already there, if it is to be kept."""
    if not folder.exists():
        return None
    manifest = read_manifest(folder)
    if not manifest:
        raise OutputError(
            f"{folder} exists and is no sound result of this version: move it away or pass another "
            "--out."
        )
    if existing == "replace":
        return None
    if existing == "same" and (differing := _differences(manifest, identity)):
        raise OutputError(
            f"{folder} holds a finished result with another {', '.join(differing)}: "
            "pass --overwrite to replace it, or another --out."
        )
    return manifest


def _differences(found: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """Name the parts of an identity that differ; where the input lies does not matter."""

    def essence(part: Any) -> Any:
        return {k: v for k, v in part.items() if k != "path"} if isinstance(part, dict) else part

    return [key for key in identity if essence(found.get(key)) != essence(identity[key])]


def _of_motions(identity: dict[str, Any]) -> dict[str, Any]:
    """Return that part of an identity which motions depend on."""
    arguments = {k: v for k, v in identity["arguments"].items() if k not in DRAWING}
    source = {k: v for k, v in identity["input"].items() if k != "path"}
    return {**identity, "arguments": arguments, "input": source}


def _is_begun(part: Path, identity: dict[str, Any]) -> bool:
    """Whether a working folder keeps stage results of this job."""
    state = _read_json(part / STATE)
    return bool(state) and not _differences(state, _of_motions(identity))


def _device_facts(model: Model) -> dict[str, str]:
    """Say what the last bits of features depend on."""
    return {"type": model.device.type, "precision": model.precision}


def _job_of(identity: dict[str, Any], model: Model) -> dict[str, Any]:
    """Say what stage results are of."""
    return {**_of_motions(identity), "device": _device_facts(model)}


def _is_left(part: Path, identity: dict[str, Any]) -> bool:
    """Whether a working folder beside this job's result is its own: it was killed at the end."""
    return part.exists() and (not (part / STATE).exists() or _is_begun(part, identity))


def _motions(
    kept: Kept,
    video: VideoInfo,
    arguments: Arguments,
    detector: Path | None,
    model: Model,
    body: BodyModel,
    report: Reporter,
) -> list[Motion]:
    """Reconstruct the people, going on from what is kept of the same job."""

    def find() -> list[Track]:
        return _tracks(video, arguments, detector, model, report)

    def work() -> list[Motion]:
        return reconstruct(
            video,
            model,
            body=body,
            tracks=kept.once(TRACKS, Track, find),
            start=arguments.start,
            end=arguments.end,
            focal_length=arguments.focal_length,
            smooth=arguments.smooth,
            shape=arguments.shape,
            edges=arguments.edges,
            kept=kept,
            report=report,
        )

    motions = kept.once(MOTIONS, Motion, work)
    kept.drop_features()
    return motions


def _tracks(
    video: VideoInfo,
    arguments: Arguments,
    detector: Path | None,
    model: Model,
    report: Reporter,
) -> list[Track]:
    """Find out where the people are, the way the arguments ask for."""
    if arguments.boxes:
        given = given_tracks(arguments.boxes, video)
        return choose_people(given, max_people=arguments.max_people, people=arguments.people)
    return find_people(
        read_frames(video, start=arguments.start, end=arguments.end, report=report),
        Detector(detector, device=model.device, precision=model.precision, report=report),
        tracker=arguments.tracker,
        min_frames=arguments.min_frames,
        max_people=arguments.max_people,
        people=arguments.people,
        total=len(video.frame_range(arguments.start, arguments.end)),
        report=report,
    )


def _draw(
    part: Path,
    video: VideoInfo,
    motions: list[Motion],
    arguments: Arguments,
    body: BodyModel,
    renderer: Renderer,
    report: Reporter,
) -> dict[str, Any]:
    """Write the overlay and the meshes that were asked for; return the manifest's lines on them."""
    wanted = bool(motions)
    if arguments.overlay and wanted:
        write_overlay(
            part / OVERLAY,
            video,
            motions,
            body,
            renderer,
            view=arguments.view,
            start=arguments.start,
            end=arguments.end,
            report=report,
        )
    if arguments.meshes and wanted:
        every = arguments.mesh_every
        total = sum(mesh_count(motion, every=every) for motion in motions)
        with report.stage("meshes", total=total) as advance:
            for motion in motions:
                folder = part / MESHES / motion.name
                write_obj_sequence(folder, motion, body, every=every, advance=advance)
    return {
        "overlay": OVERLAY if arguments.overlay and wanted else None,
        "meshes": MESHES if arguments.meshes and wanted else None,
    }


def _video_facts(video: VideoInfo) -> dict[str, Any]:
    return {
        "width": video.width,
        "height": video.height,
        "fps": float(video.fps),
        "fps_exact": str(video.fps),
        "frame_count": video.frame_count,
        "first_time": float(video.times[0]),
        "duration": round(video.duration, 6),
        "rotation": video.rotation,
        "has_audio": video.has_audio,
        "is_vfr": video.is_vfr,
    }


def _person_facts(motion: Motion, *, meshes: str | None) -> dict[str, Any]:
    return {
        "id": motion.track_id,
        "file": f"{motion.name}.npz",
        "meshes": meshes and f"{meshes}/{motion.name}",
        "frames": len(motion),
        "first_frame": int(motion.frame_ids[0]),
        "last_frame": int(motion.frame_ids[-1]),
        "interpolated": int(motion.interpolated.sum()),
        "mean_score": round(float(motion.scores.mean()), 4),
    }


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or {} where there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _has(value: Any, shape: Any) -> bool:
    """Whether decoded JSON has all that `shape` names, each of its type."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(_has(value.get(k), s) for k, s in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(_has(item, shape[0]) for item in value)
    return isinstance(value, int | float if shape is float else shape)


def _publish(part: Path, folder: Path) -> None:
    """Put a complete folder in place under its final name, replacing an older one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
