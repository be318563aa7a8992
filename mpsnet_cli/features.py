"""The feature cache: what the backbone sees of people, once, so that training needs no pictures.

A sequence takes 8 kB for each frame of a person. Pictures are never kept, and the features of one
clip, or of one synthetic shard, only until they are yielded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpsnet_cli.crops import crop_image, square_boxes
from mpsnet_cli.datasets.sequences import Sequence
from mpsnet_cli.errors import InputError
from mpsnet_cli.geometry import before_rays, ray_rotations
from mpsnet_cli.model.inference import Model
from mpsnet_cli.motion import Motion, Track
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.repertoire import FPS
from mpsnet_cli.synth.shards import MANIFEST as SHARD_MANIFEST
from mpsnet_cli.synth.shards import Shard, iter_shards
from mpsnet_cli.tracking import locate_people
from mpsnet_cli.video import VideoInfo, probe, read_frames

RESULT_MANIFEST = "clip.json"  # in a result of `mpsnet run`
CLIPS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
CROPS_AT_ONCE = 64


def extract_features(
    source: Path,
    model: Model,
    *,
    boxes: str | None = None,
    detector: str | None = None,
    report: Reporter,
) -> Iterator[Sequence]:
    """Yield the sequences of a clip, a result folder, a folder of shards, or a folder of clips.

    A clip's people are detected, or given by `boxes` (a file, or "full"), and carry no labels. A
    result of `mpsnet run` is labelled with its own motions, which are a network's word, not the
    truth. Shards of `mpsnet synth --kind sequences` carry exact labels. All are turned to what the
    crops show, by the ray to their middle. Clips of a folder that cannot be read are left out, and
    `report.lose` is told. Raises InputError for a source that is none of these.
    """
    if not source.is_dir():
        yield from clip_features(source, model, boxes=boxes, detector=detector, report=report)
    elif boxes:
        raise InputError(f"{source} is a folder: --boxes goes with one clip.")
    elif (source / RESULT_MANIFEST).is_file():
        yield from result_features(source, model, report=report)
    elif (source / SHARD_MANIFEST).is_file():
        yield from shard_features(source, model, report=report)
    else:
        clips = sorted(path for path in source.iterdir() if path.suffix.lower() in CLIPS)
        if not clips:
            raise InputError(
                f"{source} holds neither clips ({', '.join(sorted(CLIPS))}), nor what `mpsnet run` "
                "or `mpsnet synth` wrote."
            )
        for clip in clips:
            try:
                yield from clip_features(clip, model, detector=detector, report=report)
            except InputError as error:
                report.lose(f"{error.message} The other clips go on without it.")


def clip_features(
    clip: Path,
    model: Model,
    *,
    boxes: str | None = None,
    detector: str | None = None,
    report: Reporter,
) -> Iterator[Sequence]:
    """Yield an unlabelled sequence for each person in a clip."""
    video = probe(clip)
    tracks = locate_people(
        video,
        boxes=boxes,
        detector=detector,
        device=model.device,
        precision=model.precision,
        report=report,
    )
    if not tracks:
        report.warn(f"Nobody was found in {clip}.")
    yield from _track_features(video, tracks, model, report)


def result_features(folder: Path, model: Model, *, report: Reporter) -> Iterator[Sequence]:
    """Yield a sequence for each person of a result, labelled with the motion found.

    The clip must still lie where it was, or beside the folder. Raises InputError where it does not,
    or is another one by now.
    """
    manifest = _read_manifest(folder / RESULT_MANIFEST)
    video = probe(_source_clip(folder, manifest["input"]))
    motions = [Motion.load(folder / person["file"]) for person in manifest["people"]]
    report.warn(f"The labels from {folder} are what a network found, not the truth.")
    tracks = [Track(m.track_id, m.frame_ids, m.boxes, m.scores, m.interpolated) for m in motions]
    for sequence, motion in zip(
        _track_features(video, tracks, model, report), motions, strict=True
    ):
        rows = np.flatnonzero(np.isin(motion.frame_ids, sequence.frame_ids))
        yield _labelled(sequence, motion, rows)


def shard_features(folder: Path, model: Model, *, report: Reporter) -> Iterator[Sequence]:
    """Yield the samples of synthetic shards, with all that is known of them."""
    with report.stage("features") as advance:
        for shard in iter_shards(folder):
            size = model.config.crop_size
            if shard.kind != "sequences":
                raise InputError(
                    f"{folder} holds single pictures: make sequences with --kind sequences."
                )
            if shard.batch.images.shape[1] != size:
                raise InputError(
                    f"The pictures in {folder} have {shard.batch.images.shape[1]} px, and the "
                    f"network takes {size}: make them with mpsnet synth --size {size}."
                )
            yield from _shard_sequences(shard, model)
            advance(len(shard.batch.images))


def _track_features(
    video: VideoInfo, tracks: Items[Track], model: Model, report: Reporter
) -> Iterator[Sequence]:
    """Run the backbone over the people of a clip; frames that do not decode are left out."""
    config = model.config
    crop_boxes = [square_boxes(track.boxes, scale=config.crop_scale) for track in tracks]
    rows: list[list[int]] = [[] for _ in tracks]
    features: list[list[torch.Tensor]] = [[] for _ in tracks]
    crops: list[NDArray[np.uint8]] = []
    owners: list[int] = []

    def flush() -> None:
        if crops:
            for owner, feature in zip(owners, model.features(np.stack(crops)), strict=True):
                features[owner].append(feature)
            advance(len(crops))
            crops.clear()
            owners.clear()

    with report.stage("features", total=sum(map(len, tracks))) as advance:
        for frame in read_frames(video, report=report):
            for person, track in enumerate(tracks):
                row = int(np.searchsorted(track.frames, frame.index))
                if row < len(track) and track.frames[row] == frame.index:
                    crops.append(
                        crop_image(
                            frame.image,
                            crop_boxes[person][row],
                            size=config.crop_size,
                            antialias=config.antialias,
                        )
                    )
                    owners.append(person)
                    rows[person].append(row)
            if len(crops) >= CROPS_AT_ONCE:
                flush()
        flush()
    for track, read, parts in zip(tracks, rows, features, strict=True):
        if read:
            seen = track.select(np.array(read))
            yield Sequence(
                name=f"{video.path.stem}/person_{track.id:02d}",
                body=config.body,
                fps=float(video.fps),
                frame_ids=seen.frames,
                features=torch.stack(parts).numpy(),
                bboxes=square_boxes(seen.boxes, scale=config.camera_scale),
            )


def _labelled(sequence: Sequence, motion: Motion, rows: NDArray[np.int64]) -> Sequence:
    """Put the `rows` of a motion beside a sequence's features, as its crops show it."""
    assert sequence.bboxes is not None
    boxes = sequence.bboxes[:, None]
    xy = 2 * (motion.joints2d[rows] - boxes[..., :2]) / boxes[..., 2:]
    known = np.ones((*xy.shape[:2], 1))
    rays = ray_rotations(
        sequence.bboxes, focal_length=motion.focal_length, principal_point=motion.principal_point
    )
    pose, joints3d = before_rays(motion.pose[rows], motion.joints3d[rows], rays)
    return replace(
        sequence,
        body=motion.body.partition("-")[0] if motion.body.startswith("smpl") else motion.body,
        joint_set="smpl24",
        joints3d=joints3d,
        joints2d=np.concatenate([xy, known], axis=-1).astype(np.float32),
        pose=pose,
        betas=np.ascontiguousarray(motion.posed_betas[rows]),
    )


def _shard_sequences(shard: Shard, model: Model) -> Iterator[Sequence]:
    batch, frames = shard.batch, shard.frames
    features = model.features(batch.images).numpy()
    known = np.ones((*batch.joints2d.shape[:2], 1))  # hidden ones too
    joints2d = np.concatenate([batch.joints2d, known], axis=-1)
    pose, joints3d = batch.before_crops()
    for sample, index in enumerate(shard.indices):
        rows = slice(sample * frames, (sample + 1) * frames)
        yield Sequence(
            name=f"synth/{index:08d}",
            body="free-1",
            fps=FPS,
            frame_ids=np.arange(frames),
            features=features[rows],
            joint_set="smpl24",
            joints3d=joints3d[rows],
            joints2d=joints2d[rows].astype(np.float32),
            pose=pose[rows],
            betas=batch.betas[rows],
            bboxes=batch.bboxes[rows],
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    """Read a result's manifest as far as it is needed here."""
    try:
        manifest = json.loads(path.read_text())
        needed = (
            manifest["input"]["path"],
            manifest["input"]["sha256"],
            *(person["file"] for person in manifest["people"]),
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{path} is not a readable manifest of a result: {error}.") from error
    files = needed[2:]
    if not all(isinstance(text, str) for text in needed) or any(
        Path(file).name != file for file in files
    ):
        raise InputError(f"{path} is no manifest that this tool wrote.")
    return manifest


def _source_clip(folder: Path, identity: dict[str, str]) -> Path:
    """Find the clip that a result was made of."""
    named = Path(identity["path"])
    for path in (named, folder.parent / named.name):
        if path.is_file() and file_sha256(path) == identity["sha256"]:
            return path
    raise InputError(
        f"{folder} was made of {named}, which is not there or has changed: put it back, or beside "
        "the folder."
    )
