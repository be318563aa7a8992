"""One clip in, one result folder out.

A result is worked on in `out/.clip.part` and renamed to `out/clip` when it is complete, so a folder
of that name is always a whole one, with its manifest. If a run stops after the motions are known,
the next run with the same input, arguments, weights and body takes them up from there.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mpsnet_cli._version import __version__
from mpsnet_cli.body import BodyModel
from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.export.obj import mesh_count, write_obj_sequence
from mpsnet_cli.export.result import CLIP_FORMAT, MANIFEST
from mpsnet_cli.model.inference import Model
from mpsnet_cli.motion import Motion, Shape, Track
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.pipeline import reconstruct
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

STATE = "state.json"  # in an unfinished folder: what it is the beginning of
OVERLAY = "overlay.mp4"
MESHES = "meshes"
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
    out: Path,
    arguments: Arguments,
    *,
    model: Model,
    body: BodyModel,
    overwrite: bool = False,
    report: Reporter,
) -> tuple[Path, dict[str, Any]]:
    """Reconstruct one clip and write its result folder; return the folder and its manifest.

    A finished result of the same job is returned as it is. Raises InputError for a clip or boxes
    file that cannot be used, and OutputError if the folder cannot be written, is in use by another
    run, or holds the result of a different job and `overwrite` is False.
    """
    path = video.path
    frames = len(video.frame_range(arguments.start, arguments.end))
    detector = None if arguments.boxes else find_detector(arguments.detector, report=report)
    identity = {
        "tool": {"name": "mpsnet-cli", "version": __version__},
        "input": {"path": str(path), "bytes": path.stat().st_size, "sha256": file_sha256(path)},
        "arguments": {**dataclasses.asdict(arguments), "people": list(arguments.people)},
        "weights": {
            "name": model.weights.name,
            "sha256": model.weights.sha256,
            "trained": model.weights.trained,
        },
        "body": {"name": body.name, "sha256": body.sha256},
        "detector": _detector_facts(arguments.boxes, detector),
    }
    folder = out / _folder_name(path)
    with _working_folder(folder, report) as part:
        if finished := _finished(folder, identity, overwrite=overwrite):
            report.warn(f"{folder} is finished already and left alone; --overwrite does it anew.")
            return folder, finished
        renderer = make_renderer(arguments.renderer, body.faces, report=report)
        motions = _motions(part, video, identity, arguments, detector, model, body, report)
        files = _draw(part, video, motions, arguments, body, renderer, report)
        seconds = sum(report.seconds.values())
        manifest = {
            "format": CLIP_FORMAT,
            **identity,
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
        (part / STATE).unlink()
        (part / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _publish(part, folder)
    return folder, manifest


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


def _folder_name(path: Path) -> str:
    """Name a clip's folder after it: the stem, unless that is no name, as in "..mp4"."""
    return path.name if path.stem.strip(".") == "" else path.stem


@contextmanager
def _working_folder(folder: Path, report: Reporter) -> Iterator[Path]:
    """Lock a result and give the folder to work in; a failure leaves only what can be resumed.

    Errors of the file system become OutputError.
    """
    part = folder.with_name(f".{folder.name}.part")
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            try:
                yield part
            finally:
                if (part / STATE).exists():
                    report.warn(f"{part} keeps the motions: the same command goes on from there.")
                elif part.is_dir():
                    shutil.rmtree(part)
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


def _finished(folder: Path, identity: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """Return the manifest of a result that is already there, if it is of the same job."""
    if not folder.exists():
        return None
    manifest = _read_json(folder / MANIFEST)
    if manifest.get("format") != CLIP_FORMAT:
        raise OutputError(
            f"{folder} exists and is no result of this version: move it away or pass another --out."
        )
    if overwrite:
        return None
    if differing := _differences(manifest, identity):
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


def _motions(
    part: Path,
    video: VideoInfo,
    identity: dict[str, Any],
    arguments: Arguments,
    detector: Path | None,
    model: Model,
    body: BodyModel,
    report: Reporter,
) -> list[Motion]:
    """Reconstruct the people, or take them up from an interrupted run of the same job."""
    arguments_of_motions = {k: v for k, v in identity["arguments"].items() if k not in DRAWING}
    identity = {**identity, "arguments": arguments_of_motions}
    state = _read_json(part / STATE)
    if state and not _differences(state, identity):
        report.warn("An interrupted run is continued: its motions are taken up.")
        for sentence in state["losses"]:
            report.lose(sentence)
        _keep_only(part, {STATE, *state["motions"]})
        return [Motion.load(part / name) for name in state["motions"]]
    shutil.rmtree(part, ignore_errors=True)
    motions = reconstruct(
        video,
        model,
        body=body,
        tracks=_tracks(video, arguments, detector, model, report),
        start=arguments.start,
        end=arguments.end,
        focal_length=arguments.focal_length,
        smooth=arguments.smooth,
        shape=arguments.shape,
        edges=arguments.edges,
        report=report,
    )
    part.mkdir()
    for motion in motions:
        motion.save(part / f"{motion.name}.npz")
    names = [f"{motion.name}.npz" for motion in motions]
    (part / STATE).write_text(json.dumps({**identity, "motions": names, "losses": report.losses}))
    return motions


def _keep_only(folder: Path, names: set[str]) -> None:
    """Remove what a stopped run was drawing."""
    for path in folder.iterdir():
        if path.name in names:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


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


def _publish(part: Path, folder: Path) -> None:
    """Put a complete folder in place under its final name, replacing an older one."""
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
