"""From motions in the camera frame to people on a stage: pure functions, stage in, stage out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from mpsnet_cli.body import PARENTS, BodyModel
from mpsnet_cli.export.result import Result
from mpsnet_cli.export.stage import Camera, Floats, Performer, Stage
from mpsnet_cli.geometry import axis_angle_to_matrix
from mpsnet_cli.motion import JOINTS, Motion

Y_UP = np.diag([1.0, -1.0, -1.0])  # turns the camera frame, y down and z forward, to the world's
JITTER = 2e-3  # s: time stamps of whole milliseconds, as in Matroska, still are on an even grid
ON_GRID = 1e-6  # of a step: what is left of rounding in a time that is on the grid


def set_stage(result: Result, body: BodyModel) -> Stage:
    """Put the people of a result before their camera, at their own times.

    The world is the camera's: it stands at the origin and looks along -z. Time 0 is the clip's
    first frame, or that of the part of it that was asked for, so that all people, and who exports
    them one by one, stay in step with the clip. Times on an even grid but for the rounding of the
    file format are set on it.
    """
    first = result.motions[0]
    fps = first.fps
    begin = min(
        result.origin + np.ceil(result.start * fps - ON_GRID) / fps,
        *(motion.times[0] for motion in result.motions),  # an uneven clip's may come before that
    )
    people = [_performer(motion, body, begin) for motion in result.motions]
    width, height = (round(side) for side in first.image_size.tolist())
    camera = Camera(
        position=np.zeros(3),
        rotation=np.eye(3),
        focal_length=float(first.focal_length),
        principal_point=first.principal_point.astype(np.float64),
        image_size=(width, height),
    )
    if all(_is_near_grid(person.times, fps) for person in people):
        people = [replace(who, times=np.rint(who.times * fps) / fps) for who in people]
    return Stage(
        name=result.name,
        people=people,
        camera=camera,
        fps=fps,
        uniform=all(is_even(person.times, fps) for person in people),
        trained=first.trained,
        weights=first.weights,
        body=body,
        video=result.video,
    )


def turned(stage: Stage, rotation: Floats, shift: Floats) -> Stage:
    """Move the world, people and camera, to rotation (3, 3) @ point + shift (3,).

    A body turns about its pelvis, which is not its origin: translations take up the difference.
    """
    people = [
        replace(
            person,
            rotations=_turned_root(person.rotations, rotation),
            transl=_turned_transl(person.transl, _rest_pelvis(person, stage.body), rotation)
            + shift,
        )
        for person in stage.people
    ]
    camera = replace(
        stage.camera,
        position=rotation @ stage.camera.position + shift,
        rotation=rotation @ stage.camera.rotation,
    )
    return replace(stage, people=people, camera=camera)


def resampled(stage: Stage, fps: float) -> Stage:
    """Give every person the times k / fps, with whole k, that lie between their first and last.

    Rotations are interpolated on SO(3) (slerp), translations and betas linearly, across holes too.
    Where the times already are such times, the values stay what they are. A person who is there
    for less than a step gets the one time nearest to it. `joints2d` are those of the new poses as
    `stage.camera` sees them, so the people must still be where it saw them.
    """
    people = [_resampled(person, stage, fps) for person in stage.people]
    return replace(stage, people=people, fps=fps, uniform=True)


def is_on_grid(times: Floats, fps: float) -> bool:
    """Whether all times are multiples of 1 / fps."""
    return bool((np.abs(times * fps - np.rint(times * fps)) < ON_GRID).all())


def is_even(times: Floats, fps: float) -> bool:
    """Whether the times are multiples of 1 / fps, and none is left out between them."""
    return is_on_grid(times, fps) and bool((np.rint(np.diff(times) * fps) == 1).all())


def shifted(stage: Stage, offsets: list[Floats], base: Stage) -> Stage:
    """Add to every translation the person's offset (N, 3), m, given at the times of `base`."""
    people = [
        replace(who, transl=who.transl + interpolated(before.times, offset, who.times))
        for who, before, offset in zip(stage.people, base.people, offsets, strict=True)
    ]
    return replace(stage, people=people)


def locked(stage: Stage) -> list[Floats]:
    """Find the offsets (N, 3), m, that keep each pelvis above or below where it starts."""
    horizontal = np.array([1.0, 0, 1])
    return [(who.transl[0] - who.transl) * horizontal for who in stage.people]


def interpolated(times: Floats, values: Floats, at: Floats) -> Floats:
    """Interpolate values (N, C) at ascending times (N,) linearly; beyond the ends they are held."""
    return np.stack([np.interp(at, times, column) for column in values.T], axis=-1)


def kinematics(person: Performer, body: BodyModel) -> tuple[Floats, Floats]:
    """Find the joints' rotations (N, 24, 3, 3) and positions (N, 24, 3), m, in the world."""
    rest = body.rest_joints(person.betas_per_time).astype(np.float64)
    rotations, positions = person.rotations.copy(), rest + person.transl[:, None]
    for joint, parent in list(enumerate(PARENTS))[1:]:
        rotations[:, joint] = rotations[:, parent] @ person.rotations[:, joint]
        bone = rest[:, joint] - rest[:, parent]
        positions[:, joint] = positions[:, parent] + _apply(rotations[:, parent], bone)
    return rotations, positions


def project(camera: Camera, points: Floats) -> Floats:
    """Project points (…, 3) of the world to the image: (…, 2), px."""
    seen = (points - camera.position) @ camera.rotation * [1, -1, -1]
    return camera.focal_length * seen[..., :2] / seen[..., 2:] + camera.principal_point


def _performer(motion: Motion, body: BodyModel, begin: float) -> Performer:
    rotations = axis_angle_to_matrix(motion.pose.reshape(-1, JOINTS, 3).astype(np.float64))
    pelvis = body.rest_joints(motion.posed_betas)[:, 0].astype(np.float64)
    return Performer(
        id=motion.track_id,
        name=motion.name,
        gender=motion.gender,
        times=motion.times - begin,
        frame_ids=motion.frame_ids.astype(np.int64),
        rotations=_turned_root(rotations, Y_UP),
        transl=_turned_transl(motion.transl.astype(np.float64), pelvis, Y_UP),
        betas=motion.betas.astype(np.float64),
        betas_per_time=motion.posed_betas.astype(np.float64),
        rest_joints=body.rest_joints(motion.betas).astype(np.float64),
        joints2d=motion.joints2d.astype(np.float64),
        bboxes=motion.bboxes.astype(np.float64),
    )


def _is_near_grid(times: Floats, fps: float) -> bool:
    steps = np.rint(times * fps)
    near = np.abs(times - steps / fps) <= min(JITTER, 0.25 / fps)
    return bool(near.all() and (np.diff(steps) >= 1).all())


def _rest_pelvis(person: Performer, body: BodyModel) -> Floats:
    return body.rest_joints(person.betas_per_time)[:, 0].astype(np.float64)


def _turned_root(rotations: Floats, rotation: Floats) -> Floats:
    turned = rotations.copy()
    turned[:, 0] = rotation @ rotations[:, 0]
    return turned


def _turned_transl(transl: Floats, pelvis: Floats, rotation: Floats) -> Floats:
    return (transl + pelvis) @ rotation.T - pelvis


def _resampled(person: Performer, stage: Stage, fps: float) -> Performer:
    times = _grid(person.times, fps)
    at = np.clip(times, person.times[0], person.times[-1])
    frame_ids = np.rint(np.interp(at, person.times, person.frame_ids)).astype(np.int64)
    moved = replace(
        person,
        times=times,
        frame_ids=frame_ids,
        rotations=_slerp(person.times, person.rotations, at),
        transl=interpolated(person.times, person.transl, at),
        betas_per_time=interpolated(person.times, person.betas_per_time, at),
        bboxes=interpolated(person.times, person.bboxes, at),
    )
    _, joints = kinematics(moved, stage.body)
    return replace(moved, joints2d=project(stage.camera, joints))


def _grid(times: Floats, fps: float) -> Floats:
    first = int(np.ceil(times[0] * fps - ON_GRID))
    last = int(np.floor(times[-1] * fps + ON_GRID))
    if last < first:  # less than a step, between two times of the grid
        first = last = round(float(times[0]) * fps)
    return np.arange(first, last + 1) / fps


def _slerp(times: Floats, rotations: Floats, at: Floats) -> Floats:
    """Interpolate rotations (N, J, 3, 3) at ascending times (N,), none of `at` beyond them."""
    if len(times) == 1:
        return np.repeat(rotations, len(at), axis=0)
    joints = [Rotation.from_matrix(joint) for joint in rotations.swapaxes(0, 1)]
    return np.stack([Slerp(times, joint)(at).as_matrix() for joint in joints], axis=1)


def _apply(rotations: Floats, vectors: Floats) -> Floats:
    return np.einsum("nij,nj->ni", rotations, vectors)
