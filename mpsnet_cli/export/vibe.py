"""The pickle of VIBE, TCMR and MPS-Net's demo, for the scripts that were written around it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import joblib
import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.body import JOINT_NAMES, BodyModel
from mpsnet_cli.export.meshes import world_vertices
from mpsnet_cli.export.stage import Camera, Floats, Performer, Stage
from mpsnet_cli.export.staging import turned
from mpsnet_cli.geometry import matrix_to_axis_angle, perspective_to_weak

OPENCV = np.diag([1.0, -1.0, -1.0])  # of a camera's right, up, backwards: x, y down, z forward


def write_pkl(path: Path, stage: Stage, *, advance: Callable[[int], None]) -> None:
    """Write {track id: {name: array}} with joblib; N are a person's frames.

    Camera axes are OpenCV's: x right, y down, z forward; metres.

        pred_cam    (N, 3)      s, tx, ty: weak-perspective camera of the square box `bboxes`
        orig_cam    (N, 4)      sx, sy, tx, ty: the same of the whole image, which is [-1, 1]² and
                                shows a vertex at sx (x + tx), sy (y + ty)
        verts       (N, V, 3)   in camera axes without translation: the pelvis is where the T-pose
                                has it, V is 6890 for SMPL
        pose        (N, 72)     axis-angle, rad, SMPL's joint order, the root's in camera axes
        betas       (N, 10)
        joints3d    (N, 24, 3)  as `verts`; SMPL's own, see `joint_names`; VIBE has SPIN's 49,
                                which need a regressor that comes with licensed data
        joints2d    (N, 24, 2)  px of the source image
        bboxes      (N, 4)      cx, cy, w, h, px
        frame_ids   (N,)        of the source

    and, beyond VIBE's: times (N,), s; transl (N, 3), which added to `verts` makes them project in
    perspective with `focal_length` and `principal_point`, px; joint_names, body, gender, weights,
    trained.

    The vertices of a long clip are gigabytes. They wait in a file without a name beside `path`, so
    that the memory taken stays that of a few bodies.
    """
    with tempfile.TemporaryFile(dir=path.parent) as scratch:
        people = {
            person.id: _entry(stage, person, _posed(stage.body, person, scratch, advance))
            for person in _in_camera_axes(stage)
        }
        joblib.dump(people, path)


def _in_camera_axes(stage: Stage) -> Sequence[Performer]:
    turn = OPENCV @ stage.camera.rotation.T
    return turned(stage, turn, -turn @ stage.camera.position).people


def _posed(
    body: BodyModel, person: Performer, scratch: IO[bytes], advance: Callable[[int], None]
) -> NDArray[np.float32]:
    """Pose a person without translation; the vertices (N, V, 3) stay in the file `scratch`."""
    start = scratch.seek(0, os.SEEK_END)
    for vertices in world_vertices(body, replace(person, transl=np.zeros((len(person), 3)))):
        scratch.write(vertices.tobytes())
        advance(1)
    scratch.flush()
    return np.asarray(
        np.memmap(scratch, np.float32, "r", start, (len(person), body.vertex_count, 3))
    )


def _entry(stage: Stage, person: Performer, verts: NDArray[np.float32]) -> dict[str, Any]:
    camera = stage.camera
    pose = matrix_to_axis_angle(person.rotations).reshape(len(person), -1)
    arrays = {
        "pred_cam": _weak(person.transl, person.bboxes, camera),
        "orig_cam": _whole_image(person.transl, camera),
        "verts": verts,
        "pose": pose,
        "betas": person.betas_per_time,
        "joints3d": stage.body.joints(pose, person.betas_per_time),
        "joints2d": person.joints2d,
        "bboxes": person.bboxes,
        "transl": person.transl,
    }
    return {
        **{name: np.asarray(array, np.float32) for name, array in arrays.items()},
        "frame_ids": person.frame_ids,
        "times": person.times,
        "focal_length": camera.focal_length,
        "principal_point": camera.principal_point,
        "joint_names": list(JOINT_NAMES),
        "body": stage.body.name,
        "gender": person.gender,
        "weights": stage.weights,
        "trained": stage.trained,
    }


def _weak(transl: Floats, bboxes: Floats, camera: Camera) -> Floats:
    return perspective_to_weak(
        transl,
        bboxes,
        focal_length=camera.focal_length,
        principal_point=camera.principal_point,
    )


def _whole_image(transl: Floats, camera: Camera) -> Floats:
    width, height = camera.image_size
    box = np.array([[width / 2, height / 2, width, height]])
    scale, x, y = _weak(transl, box, camera).T
    return np.stack([scale, scale * width / height, x, y], axis=1)
