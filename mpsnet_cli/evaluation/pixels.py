"""Evaluation from pixels: a clip through the whole pipeline, against the truth of its people.

So mistakes of crops, windows, boxes and camera count, and show up in millimetres. Predicted and
true people are matched frame by frame by the overlap of their boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from mpsnet_cli.body import BodyModel
from mpsnet_cli.body.joint_sets import HIPS, to_common14
from mpsnet_cli.errors import InputError
from mpsnet_cli.evaluation.metrics import mean_distance
from mpsnet_cli.evaluation.result import OWN_JOINTS, Coverage, Errors, Result, joint_errors
from mpsnet_cli.model.inference import Model
from mpsnet_cli.motion import FORMAT as MOTION_FORMAT
from mpsnet_cli.motion import Motion, Track
from mpsnet_cli.npz import read_npz
from mpsnet_cli.pipeline import reconstruct
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import VideoInfo

TRUTH_FORMAT = "mpsnet-motions/1"
CHUNK = 128  # bodies with vertices in memory at once
MIN_OVERLAP = 0.3  # intersection over union; squares of one person differ by their scales

Floats = NDArray[np.floating]


def load_truth(path: Path) -> list[Motion]:
    """Read ground truth: many motions in one .npz, as examples/walk.npz, or a person_NN.npz.

    Raises InputError for any other file.
    """
    found, arrays = read_npz(path, what="file of ground truth")
    if found == MOTION_FORMAT:
        motions = [Motion.from_arrays(arrays, source=path)]
    elif found == TRUTH_FORMAT:
        people: dict[str, dict[str, Any]] = {}
        for key, array in arrays.items():
            person, _, name = key.partition("/")
            people.setdefault(person, {})[name] = array
        motions = [Motion.from_arrays(people[person], source=path) for person in sorted(people)]
    else:
        raise InputError(f"{path} is not a {TRUTH_FORMAT} file (found: {found}).")
    if not motions:
        raise InputError(f"{path} holds nobody.")
    for motion in motions:
        for name in ("pose", "betas", "transl", "bboxes", "joints3d", "joints2d"):
            if not np.isfinite(getattr(motion, name)).all():
                raise InputError(f"{path}: {name} of {motion.name} is not all finite.")
    return motions


def evaluate_clip(
    video: VideoInfo,
    truth: Sequence[Motion],
    model: Model,
    body: BodyModel,
    *,
    tracks: Sequence[Track] | None = None,
    smooth: float = 0.0,
    report: Reporter | None = None,
) -> Result:
    """Reconstruct a clip and compare everyone in it with the truth; see `compare`.

    The camera is known: the truth's focal length is used. `tracks` gives the boxes; without it
    people are detected. Raises InputError where the truth is of a clip of another size.
    """
    report = report or Reporter()
    size = tuple(int(side) for side in truth[0].image_size)
    if size != (video.width, video.height):
        raise InputError(
            f"The truth is of a clip of {size[0]} x {size[1]} px, but {video.path} has "
            f"{video.width} x {video.height}."
        )
    motions = reconstruct(
        video,
        model,
        body=body,
        tracks=tracks,
        focal_length=truth[0].focal_length,
        smooth=smooth,
        report=report,
    )
    return compare(motions, truth, body, report=report)


def compare(
    motions: Sequence[Motion], truth: Sequence[Motion], body: BodyModel, *, report: Reporter
) -> Result:
    """Measure motions of `body` against the true ones of a clip, one sequence for each true person.

    Joints are common14 of the body's own; besides the errors of `joint_errors` they are compared
    where they stand in the camera frame, mm, and in the image, px. Vertices are compared in the
    body's own frame, if the truth is of the same body. Accelerations are those of three frames in a
    row of one match. Raises InputError where nobody was matched.
    """
    matches = match_people(motions, truth)
    matched = sum(len(frames) for frames in matches)
    if not matched:
        raise InputError(
            f"None of the {sum(map(len, motions))} person-frames found overlaps one of the "
            f"{sum(map(len, truth))} true ones."
        )
    if others := {person.body for person in truth} - {body.name}:
        report.warn(
            f"The truth is of the body {', '.join(sorted(others))}, not {body.name}: MPVPE is left "
            "out, and joints differ in where they lie in the body."
        )
    errors = tuple(
        _errors(person, motions, frames, body)
        for person, frames in zip(truth, matches, strict=True)
        if len(frames)
    )
    people = Coverage(
        true=sum(map(len, truth)),
        missed=sum(map(len, truth)) - matched,
        spurious=sum(map(len, motions)) - matched,
    )
    return Result(errors, OWN_JOINTS, people)


def match_people(motions: Sequence[Motion], truth: Sequence[Motion]) -> list[NDArray[np.int64]]:
    """Match people frame by frame, so that the boxes' overlap is largest in sum.

    Returns for each true person the rows (M, 3) of those frames that have a match: the frame's row
    in the truth, the number of the motion, and the frame's row in that motion.
    """
    matches: list[list[tuple[int, int, int]]] = [[] for _ in truth]
    for frame in np.unique(np.concatenate([person.frame_ids for person in truth])):
        true, found = _present(truth, frame), _present(motions, frame)
        overlap = _overlap(
            np.array([truth[k].bboxes[row] for k, row in true]).reshape(-1, 4),
            np.array([motions[k].bboxes[row] for k, row in found]).reshape(-1, 4),
        )
        for i, j in zip(*linear_sum_assignment(overlap, maximize=True), strict=True):
            if overlap[i, j] >= MIN_OVERLAP:
                matches[true[i][0]].append((true[i][1], *found[j]))
    return [np.array(rows, np.int64).reshape(-1, 3) for rows in matches]


def _present(people: Sequence[Motion], frame: int) -> list[tuple[int, int]]:
    """List who is in a frame: number of the person, row of the frame."""
    rows = [int(np.searchsorted(person.frame_ids, frame)) for person in people]
    return [
        (k, row)
        for k, (person, row) in enumerate(zip(people, rows, strict=True))
        if row < len(person) and person.frame_ids[row] == frame
    ]


def _overlap(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Intersection over union (A, B) of boxes (A, 4) and (B, 4), cx, cy, w, h."""
    a, b = a[:, None].astype(np.float64), b[None].astype(np.float64)
    low = np.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = np.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    common = np.clip(high - low, 0, None).prod(axis=-1)
    return common / (a[..., 2:].prod(axis=-1) + b[..., 2:].prod(axis=-1) - common)


def _errors(
    person: Motion, motions: Sequence[Motion], matches: NDArray[np.int64], body: BodyModel
) -> Errors:
    rows, numbers, theirs = matches.T

    def predicted(field: str) -> Floats:
        return np.stack(
            [getattr(motions[k], field)[row] for k, row in zip(numbers, theirs, strict=True)]
        )

    def placed(joints3d: Floats, transl: Floats) -> Floats:
        return to_common14(joints3d + transl[:, None], "smpl24")

    found = placed(predicted("joints3d"), predicted("transl"))
    true = placed(person.joints3d[rows], person.transl[rows])
    in_a_row = np.diff(person.frame_ids[rows]) == 1
    in_a_row &= np.diff(numbers) == 0
    values = joint_errors(found, true, HIPS, fps=person.fps, steady=in_a_row[:-1] & in_a_row[1:])
    values["mpjpe_camera"] = mean_distance(found, true)
    apart = to_common14(predicted("joints2d") - person.joints2d[rows], "smpl24")
    values["joints2d"] = np.linalg.norm(apart, axis=-1).mean(axis=1)
    if person.body == body.name:
        values["mpvpe"] = _vertex_errors(
            (predicted("pose"), predicted("posed_betas")),
            (person.pose[rows], person.posed_betas[rows]),
            body,
        )
    return Errors(person.name, len(rows), values)


def _vertex_errors(
    predicted: tuple[Floats, Floats], true: tuple[Floats, Floats], body: BodyModel
) -> NDArray[np.float64]:
    """Compare bodies of poses (N, 72) and betas (N, 10), a few at once."""
    starts = range(0, len(predicted[0]), CHUNK)
    return np.concatenate(
        [
            mean_distance(
                *(body(*(p[i : i + CHUNK] for p in side))[0] for side in (predicted, true))
            )
            for i in starts
        ]
    )
