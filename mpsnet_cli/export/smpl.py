"""Meshcapade's .smpl: SMPL's parameters as arrays of one small archive."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from smplcodec import SMPLCodec, SMPLGender, SMPLVersion

from mpsnet_cli.export.stage import Performer, Stage
from mpsnet_cli.geometry import matrix_to_axis_angle


def write_smpl(
    path: Path, stage: Stage, person: Performer, *, advance: Callable[[int], None]
) -> None:
    """Write a person as plain SMPL, in the world with y up, float32.

    The format has a fixed list of entries and refuses others: whose weights the motion is from,
    whether they were trained, and that the body may not have been SMPL's, cannot be said in it.
    """
    assert stage.uniform
    SMPLCodec(
        smpl_version=SMPLVersion.SMPL,
        gender=SMPLGender.from_string(person.gender),
        shape_parameters=person.betas,
        frame_count=len(person),
        frame_rate=float(stage.fps),
        body_translation=person.transl,
        body_pose=matrix_to_axis_angle(person.rotations),
    ).write(path)
    advance(len(person))
