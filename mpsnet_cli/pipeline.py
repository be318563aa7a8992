"""From a clip to Motions: the only place where the stages meet.

The clip is decoded once for the tracks and once for the crops. A track is only known when the clip
has ended (its box is smoothed over time, its fragments joined, false ones dropped), and keeping the
frames meanwhile would cost memory in proportion to the clip, while decoding is a few hundredths of
the work. With given boxes the first pass falls away. Features live only as long as a coming window
needs them, so memory does not grow with the length of the clip beyond the parameters themselves.

The backbone is nearly all of the work, and so its features are what a continuation finds kept. All
else is done again: the same crops are cut and go together in the same groups, on which the last
bits of features may depend, so that an interruption leaves no trace in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.body import BodyModel, load_body
from mpsnet_cli.crops import crop_image, square_boxes
from mpsnet_cli.errors import WeightsError
from mpsnet_cli.geometry import (
    default_focal_length,
    matrix_to_axis_angle,
    project,
    ray_rotations,
    weak_to_perspective,
)
from mpsnet_cli.kept import Kept
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.inference import Model
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.motion import JOINTS, Motion, Shape, Track
from mpsnet_cli.progress import Reporter
from mpsnet_cli.smoothing import DEFAULT_STRENGTH, smooth_motion
from mpsnet_cli.tracking import Detector, find_people
from mpsnet_cli.video import Frame, VideoInfo, probe, read_frames
from mpsnet_cli.windows import Edges, window_indices

CROPS_AT_ONCE = 64  # crops gathered over people and frames before the backbone runs
OUTLIERS = 0.25  # share of frames at either end that the mean shape ignores


def reconstruct(
    video: VideoInfo | str | Path,
    model: Model,
    *,
    body: BodyModel | None = None,
    tracks: Sequence[Track] | None = None,
    start: float | None = None,
    end: float | None = None,
    focal_length: float | None = None,
    smooth: float = DEFAULT_STRENGTH,
    shape: Shape = "person",
    edges: Edges = "hold",
    kept: Kept | None = None,
    report: Reporter | None = None,
) -> list[Motion]:
    """Reconstruct the body motion of everyone in a clip.

    `tracks` says where the people are; without it they are detected and tracked with the default
    detector. `start` and `end` are seconds of the clip. `focal_length`, px, is the image diagonal
    if not given. `smooth` is 0..1, see `smooth_motion`. `kept`, of a job with this clip and model,
    is where features are kept and taken from. Returns one Motion for each track, in the order of
    the tracks; people of whom no frame lies in the range are left out.
    """
    report = report or Reporter()
    video = video if isinstance(video, VideoInfo) else probe(Path(video))
    body = body or load_body(device=model.device)
    if tracks is None:
        tracks = find_people(
            read_frames(video, start=start, end=end, report=report),
            Detector(device=model.device, precision=model.precision, report=report),
            total=len(video.frame_range(start, end)),
            report=report,
        )
    with report.stage("reconstruct", total=sum(len(track) for track in tracks)) as advance:
        people = _predict(
            read_frames(video, start=start, end=end, report=report),
            tracks,
            model,
            edges,
            kept,
            advance,
        )
    if kept:
        report.seconds["reconstruct"] += kept.spared
    if people and not _speaks(model, body):
        report.warn(
            f"The weights were trained for the body {model.config.body}; on {body.name} their "
            "betas mean nothing and are held at zero."
        )
    motions = []
    with report.stage("joints", total=len(people)) as advance:
        for person in people:
            raw = _motion(person, video, model, body, focal_length, shape)
            motions.append(_with_joints(smooth_motion(raw, smooth), body))
            advance(1)
    return motions


def keep_features(
    video: VideoInfo,
    model: Model,
    *,
    tracks: Sequence[Track],
    start: float | None = None,
    end: float | None = None,
    edges: Edges = "hold",
    kept: Kept,
    share: int,
    of: int,
    report: Reporter,
) -> None:
    """Run the backbone over one share of a clip, where `reconstruct` will find the features.

    Every `of`-th of the groups of crops that `reconstruct` makes is in a share, from group number
    `share` on. All frames are decoded, as those before a group decide where it begins.
    """
    with report.stage("reconstruct", total=sum(len(track) for track in tracks)) as advance:
        read = read_frames(video, start=start, end=end, report=report)
        people, frames = _people(read, tracks, model, edges)
        for group in _groups(frames, people, model.config, share=share, of=of):
            group.features(model, kept)
            advance(len(group.crops))


def _speaks(model: Model, body: BodyModel) -> bool:
    """Whether the betas that the model was trained for are those of this body."""
    return body.name.startswith(model.config.body)


class _Person:
    """One track on its way through the network.

    A frame of the track that does not decode is stood in for by the next one that does, so that
    windows keep their length, and is left out of the result.
    """

    def __init__(self, track: Track, model: Model, edges: Edges) -> None:
        self.track = track
        self.crop_boxes = square_boxes(track.boxes, scale=model.config.crop_scale)
        self.windows = window_indices(track.frames, edges=edges)
        self.last_needed = np.maximum.accumulate(self.windows.max(axis=1))
        self.times: list[float] = []  # of the rows so far; nan for a frame that was lost
        self.predictions: list[Prediction] = []
        self.predicted = 0  # rows
        self.features = torch.empty(0, model.config.feature_dim)
        self.first = 0  # the row that features[0] belongs to

    def boxes(self, frame: Frame) -> Iterator[NDArray[np.float32]]:
        """Say where to cut the person out of a frame: for each row of the track up to it."""
        for row in range(len(self.times), int(np.searchsorted(self.track.frames, frame.index + 1))):
            self.times.append(frame.time if self.track.frames[row] == frame.index else np.nan)
            yield self.crop_boxes[row]

    def add(self, features: Tensor, model: Model, *, last: bool = False) -> None:
        """Take the features (n, 2048) of the next rows; predict every row that is now complete.

        After the last features, windows that still miss frames (a clip cut short) hold the last.
        """
        self.features = torch.cat([self.features, features])
        known = self.first + len(self.features)
        ready = known if last else int(np.searchsorted(self.last_needed, known))
        if ready == self.predicted:
            return
        windows = np.minimum(self.windows[self.predicted : ready], known - 1)
        self.predictions.append(model.predict(self.features, windows - self.first))
        self.predicted = ready
        first_needed = int(self.windows[ready:].min(initial=known))
        self.features = self.features[first_needed - self.first :]
        self.first = first_needed

    def finish(self, model: Model) -> tuple[Track, NDArray[np.float64], Prediction]:
        """Predict what is left; return track, times and predictions of the frames read."""
        self.add(self.features[:0], model, last=True)
        read = np.flatnonzero(np.isfinite(self.times))
        values = (torch.cat(parts)[read] for parts in zip(*self.predictions, strict=True))
        return self.track.select(read), np.array(self.times)[read], Prediction(*values)


@dataclass
class _Group:
    """Crops that go through the backbone together."""

    owners: list[_Person] = field(default_factory=list)
    places: list[tuple[float, ...]] = field(default_factory=list)  # frame and box
    crops: list[NDArray[np.uint8]] = field(default_factory=list)

    def features(self, model: Model, kept: Kept | None) -> Tensor:
        """Run the backbone, unless its features (n, 2048) are kept already."""

        def compute() -> NDArray[np.float32]:
            return model.features(np.stack(self.crops)).numpy()

        return torch.from_numpy(kept.features(self.places, compute) if kept else compute())


def _people(
    frames: Iterator[Frame], tracks: Sequence[Track], model: Model, edges: Edges
) -> tuple[list[_Person], Iterator[Frame]]:
    """Return who is to be seen from the first frame on, and the frames again."""
    if (first := next(frames, None)) is None:
        return [], frames
    seen = [(track, track.frames >= first.index) for track in tracks]
    people = [_Person(t.select(rows), model, edges) for t, rows in seen if rows.any()]
    return people, chain([first], frames)


def _groups(
    frames: Iterable[Frame],
    people: Sequence[_Person],
    config: MPSNetConfig,
    *,
    share: int = 0,
    of: int = 1,
) -> Iterator[_Group]:
    """Gather the crops of all people over the frames; yield every `of`-th group, cut out."""
    final = max((int(person.track.frames[-1]) for person in people), default=-1)
    group, number = _Group(), 0
    for frame in frames:
        if frame.index > final:
            break
        for person in people:
            for box in person.boxes(frame):
                group.owners.append(person)
                group.places.append((frame.index, *box.tolist()))
                if number % of == share:
                    size, antialias = config.crop_size, config.antialias
                    group.crops.append(crop_image(frame.image, box, size=size, antialias=antialias))
        if len(group.owners) >= CROPS_AT_ONCE:
            if group.crops:
                yield group
            group, number = _Group(), number + 1
    if group.crops:
        yield group


def _predict(
    frames: Iterator[Frame],
    tracks: Sequence[Track],
    model: Model,
    edges: Edges,
    kept: Kept | None,
    advance: Callable[[int], None],
) -> list[tuple[Track, NDArray[np.float64], Prediction]]:
    """Run crops, backbone, temporal encoder and regressor over the frames.

    Return for each person who was read at all the track, the times (N,), s, and the predictions.
    """
    people, frames = _people(frames, tracks, model, edges)
    for group in _groups(frames, people, model.config):
        features = group.features(model, kept)
        for person in people:
            rows = [row for row, owner in enumerate(group.owners) if owner is person]
            if rows:
                person.add(features[rows], model)
        advance(len(group.crops))
    return [person.finish(model) for person in people if np.isfinite(person.times).any()]


def _motion(
    predicted: tuple[Track, NDArray[np.float64], Prediction],
    video: VideoInfo,
    model: Model,
    body: BodyModel,
    focal_length: float | None,
    shape: Shape,
) -> Motion:
    """Put one person's predictions into the image's camera frame; the joints are still missing."""
    track, times, prediction = predicted
    rotmats, betas, cam = (values.numpy() for values in prediction)
    if not np.isfinite(rotmats).all():
        raise WeightsError(
            f"The weights {model.weights.path} give poses that are not numbers: they are damaged, "
            "or too large for this precision (try --precision fp32)."
        )
    betas = betas if _speaks(model, body) else np.zeros_like(betas)
    cut = int(OUTLIERS * len(betas))
    mean = np.sort(betas, axis=0)[cut : len(betas) - cut].mean(axis=0)
    if shape == "person":  # of another size, a body is as large in the picture at another depth
        cam = np.column_stack([cam[:, 0] * _extent(body, betas) / _extent(body, mean), cam[:, 1:]])
    size = np.array([video.width, video.height], np.float64)
    focal_length = focal_length or default_focal_length(size)
    bboxes = square_boxes(track.boxes, scale=model.config.camera_scale)
    transl = weak_to_perspective(cam, bboxes, focal_length=focal_length, principal_point=size / 2)
    rays = ray_rotations(bboxes, focal_length=focal_length, principal_point=size / 2)
    rotmats = np.concatenate([rays[:, None] @ rotmats[:, :1], rotmats[:, 1:]], axis=1)
    return Motion(
        track_id=track.id,
        body=body.name,
        gender=body.gender,
        weights=model.weights.name,
        trained=model.weights.trained,
        shape=shape,
        fps=float(video.fps),
        image_size=size,
        focal_length=focal_length,
        principal_point=size / 2,
        frame_ids=track.frames,
        times=times,
        pose=matrix_to_axis_angle(rotmats).reshape(len(track), -1).astype(np.float32),
        betas=mean,
        betas_per_frame=betas,
        transl=transl.astype(np.float32),
        cam=cam,
        bboxes=bboxes,
        camera_scale=model.config.camera_scale,
        joints3d=np.full((len(track), JOINTS, 3), np.nan, np.float32),
        joints2d=np.full((len(track), JOINTS, 2), np.nan, np.float32),
        scores=track.scores,
        interpolated=track.interpolated,
    )


def _extent(body: BodyModel, betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how large bodies of betas (..., 10) are (...), m: the spread of their joints."""
    joints = body.rest_joints(betas)
    return np.linalg.norm(joints - joints.mean(axis=-2, keepdims=True), axis=(-2, -1))


def _with_joints(motion: Motion, body: BodyModel) -> Motion:
    """Compute the joints that the motion's own parameters give."""
    joints3d = body.joints(motion.pose, motion.posed_betas)
    joints2d = project(
        joints3d + motion.transl[:, None],
        focal_length=motion.focal_length,
        principal_point=motion.principal_point,
    )
    return replace(motion, joints3d=joints3d, joints2d=joints2d.astype(np.float32))
