"""CSV: the joints as a table, for spreadsheets and biomechanics."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mpsnet_cli.body import JOINT_NAMES
from mpsnet_cli.export.stage import Performer, Stage
from mpsnet_cli.geometry import matrix_to_axis_angle

METRE_DECIMALS = 5  # 10 µm
PIXEL_DECIMALS = 3

HEADER = [
    "frame", "time_s",
    *(f"{joint}_{axis}_m" for joint in JOINT_NAMES for axis in "xyz"),
    *(f"{joint}_{axis}_px" for joint in JOINT_NAMES for axis in "uv"),
    *(f"transl_{axis}_m" for axis in "xyz"),
    "weights", "trained",
]  # fmt: skip


def write_csv(
    path: Path, stage: Stage, person: Performer, *, advance: Callable[[int], None]
) -> None:
    """Write a person's joints, a line for each frame under one line of names with their units.

    The columns are the source frame and its exact time; the 24 joints in the world, x, y up, z; the
    same in the source image, u to the right and v down from its upper left corner; SMPL's
    translation; and on every line the weights' name and whether they were trained, as a table has
    no other place for it.
    """
    count = len(person)
    pose = matrix_to_axis_angle(person.rotations).reshape(count, -1)
    joints = stage.body.joints(pose, person.betas_per_time) + person.transl[:, None]
    columns = [
        joints.reshape(count, -1).round(METRE_DECIMALS),
        person.joints2d.reshape(count, -1).round(PIXEL_DECIMALS),
        person.transl.round(METRE_DECIMALS),
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for frame, time, numbers in zip(
            person.frame_ids.tolist(),
            person.times.tolist(),
            np.concatenate(columns, axis=1).tolist(),
            strict=True,
        ):
            writer.writerow([frame, time, *numbers, stage.weights, stage.trained])
    advance(count)
