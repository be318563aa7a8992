"""A stage to export: the free body's people in smooth motion before a camera."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from motions import make_motion
from scipy.spatial.transform import Rotation

from mpsnet_cli.body import BodyModel, load_body
from mpsnet_cli.export.stage import Camera, Floats, Performer, Stage
from mpsnet_cli.motion import Motion, Shape

LATE = 5  # frames: the second person enters so much later than the others
AMPLITUDE = 0.35  # rad, of every joint's swing


@cache
def free_body() -> BodyModel:
    return load_body("free-1")


def make_stage(
    people: int = 2,
    frames: int = 20,
    fps: float = 30,
    seed: int = 0,
    *,
    pitch: float = 0,
    trained: bool = True,
) -> Stage:
    """Put `people` of different shapes a metre apart, 4 m before the camera, walking across.

    All of them leave at the last of `frames`, the second enters LATE frames after the others. The
    camera, at the origin, or 1.6 m above it and looking down by `pitch`, degrees, sees everybody.
    """
    rng = np.random.default_rng(seed)
    camera = Camera(
        position=np.array([0, 1.6 if pitch else 0, 0]),
        rotation=Rotation.from_euler("x", -pitch, degrees=True).as_matrix(),
        focal_length=600.0,
        principal_point=np.array([330.0, 236.0]),
        image_size=(640, 480),
    )
    cast = [make_performer(number, people, frames, fps, camera, rng) for number in range(people)]
    return Stage("walk", cast, camera, fps, True, trained, "test weights", free_body(), None)


def make_performer(
    number: int, people: int, frames: int, fps: float, camera: Camera, rng: np.random.Generator
) -> Performer:
    frame_ids = np.arange(LATE if number == 1 and frames > LATE else 0, frames)
    times = frame_ids / fps
    phases = rng.uniform(0, 2 * np.pi, (24, 3))
    swing = AMPLITUDE * np.sin(2 * np.pi * 0.8 * times[:, None, None] + phases)
    rotations = Rotation.from_rotvec(swing.reshape(-1, 3)).as_matrix().reshape(-1, 24, 3, 3)
    betas = rng.normal(0, 1, 10).astype(np.float32).astype(np.float64)
    start = np.array([number - (people - 1) / 2, 0, -4 - 0.5 * number])
    transl = start + times[:, None] * [0.4, 0.05, -0.3]
    betas_per_time = np.tile(betas, (len(times), 1))
    pose = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_rotvec().reshape(-1, 72)
    joints = free_body().joints(pose, betas_per_time) + transl[:, None]
    joints2d = see(joints, camera)
    least, most = joints2d.min(axis=1), joints2d.max(axis=1)
    side = (most - least).max(axis=1, keepdims=True)
    return Performer(
        id=number + 1,
        name=f"person_{number + 1:02d}",
        gender="neutral",
        times=times,
        frame_ids=frame_ids,
        rotations=rotations,
        transl=transl,
        betas=betas,
        betas_per_time=betas_per_time,
        rest_joints=free_body().rest_joints(betas).astype(np.float64),
        joints2d=joints2d,
        bboxes=np.hstack([(least + most) / 2, side, side]),
    )


def see(points: Floats, camera: Camera) -> Floats:
    """Where the points (…, 3) of the world are in the camera's image: (…, 2), px."""
    right, up, backwards = np.moveaxis((points - camera.position) @ camera.rotation, -1, 0)
    offset = np.stack([right / -backwards, up / backwards], -1)
    return camera.focal_length * offset + camera.principal_point


def posed_vertices(stage: Stage, person: Performer) -> Floats:
    """The vertices (N, V, 3) of a person in the world, by the body's own model."""
    pose = Rotation.from_matrix(person.rotations.reshape(-1, 3, 3)).as_rotvec().reshape(-1, 72)
    vertices, _ = stage.body(pose, person.betas_per_time)
    return vertices + person.transl[:, None]


def make_motions(
    people: int = 2, frames: int = 20, fps: float = 25.0, shape: Shape = "person"
) -> list[Motion]:
    """Make motions of the free body as `mpsnet run` writes them, the second person's from LATE."""
    motions = []
    for number in range(people):
        late = LATE if number == 1 else 0
        made = make_motion(
            frames - late,
            fps=fps,
            track_id=number + 1,
            shape=shape,
            betas=np.linspace(-1, 1 + number, 10).astype(np.float32),
            frame_ids=np.arange(late, frames),
            times=np.arange(late, frames) / fps,
        )
        moved = replace(made, transl=made.transl + np.float32([number, 0, number]))
        motions.append(with_joints(moved))
    return motions


def with_joints(motion: Motion) -> Motion:
    """Give a motion the joints that its parameters say."""
    joints = free_body().joints(motion.pose, motion.posed_betas)
    x, y, z = np.moveaxis(joints + motion.transl[:, None].astype(np.float64), -1, 0)
    offset = motion.focal_length * np.stack([x / z, y / z], -1)
    joints2d = (offset + motion.principal_point).astype(np.float32)
    return replace(motion, joints3d=joints, joints2d=joints2d)


def make_result(folder: Path, motions: Sequence[Motion], **changes: Any) -> Path:
    """Write a result folder as `mpsnet run` does; `changes` replace parts of the manifest."""
    folder.mkdir(parents=True)
    for motion in motions:
        motion.save(folder / f"{motion.name}.npz")
    body = free_body()
    manifest = {
        "format": "mpsnet-clip/1",
        "input": {"path": "walk.mp4", "bytes": 5, "sha256": "0"},
        "arguments": {"start": None},
        "body": {"name": body.name, "sha256": body.sha256},
        "video": {"first_time": 0.0},
        "people": [{"id": who.track_id, "file": f"{who.name}.npz"} for who in motions],
        **changes,
    }
    (folder / "clip.json").write_text(json.dumps(manifest))
    return folder
