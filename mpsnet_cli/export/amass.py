"""AMASS's archive of a motion, for the SMPL-X add-on for Blender, aitviewer, body_visualizer.

Mahmood et al., "AMASS: Archive of Motion Capture as Surface Shapes", ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mpsnet_cli.export.stage import Performer, Stage
from mpsnet_cli.geometry import matrix_to_axis_angle

BODY = 22  # joints that SMPL and SMPL-H share; SMPL's last two are hands without fingers
FINGERS = 30  # joints, of both hands
BETAS = 16  # as AMASS has them
DMPLS = 8  # coefficients of moving flesh
Z_UP = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]])  # (x, y, z) to (x, -z, y)


def write_amass(
    path: Path, stage: Stage, person: Performer, *, advance: Callable[[int], None]
) -> None:
    """Write a person as SMPL-H: `poses` (N, 156), `trans` (N, 3), `betas` (16,) and their kin.

    The world is turned to z up. The fingers are straight, SMPL's hands are left out, and so are
    flesh (`dmpls`) and betas beyond our ten: all zero. The rate is a whole number under both of its
    names, the pose is there whole and in parts, as readers differ in what they ask for.

    `body`, `weights` and `trained` are ours. If `body` is "free-1" the betas mean nothing to SMPL,
    which then moves the same way in another shape.
    """
    assert stage.uniform
    assert stage.fps == round(stage.fps)
    count = len(person)
    rotations = person.rotations[:, :BODY].copy()
    rotations[:, 0] = Z_UP @ rotations[:, 0]
    pelvis = person.rest_joints[0]  # which SMPL turns about
    trans = (pelvis + person.transl) @ Z_UP.T - pelvis
    body = matrix_to_axis_angle(rotations).reshape(count, -1)
    hands = np.zeros((count, 3 * FINGERS))
    arrays: dict[str, Any] = {
        "poses": np.concatenate([body, hands], axis=1),
        "root_orient": body[:, :3],
        "pose_body": body[:, 3:],
        "pose_hand": hands,
        "trans": trans,
        "betas": np.pad(person.betas, (0, BETAS - len(person.betas))),
        "dmpls": np.zeros((count, DMPLS)),
    }
    facts: dict[str, Any] = {
        "gender": person.gender,
        "mocap_framerate": round(stage.fps),
        "mocap_frame_rate": round(stage.fps),
        "mocap_time_length": count / stage.fps,
        "surface_model_type": "smplh",
        "num_betas": BETAS,
        "body": stage.body.name,
        "weights": stage.weights,
        "trained": stage.trained,
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    with path.open("wb") as file:  # given a path, numpy would add .npz to it
        np.savez_compressed(file, **arrays, **facts)
    advance(count)
