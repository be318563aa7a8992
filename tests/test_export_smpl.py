from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from smplcodec import SMPLCodec, SMPLGender, SMPLVersion
from stages import make_stage, posed_vertices

from mpsnet_cli.export.smpl import write_smpl
from mpsnet_cli.export.stage import Performer, Stage


def write_and_read(path: Path, stage: Stage, person: Performer) -> SMPLCodec:
    advanced: list[int] = []
    write_smpl(path, stage, person, advance=advanced.append)
    assert sum(advanced) == len(person)
    return SMPLCodec.from_file(path)


@pytest.mark.parametrize("frames", [1, 8])
def test_smplcodec_reads_the_same_body(tmp_path: Path, frames: int) -> None:
    stage = make_stage(people=2, frames=frames, fps=30000 / 1001)
    for person in stage.people:
        codec = write_and_read(tmp_path / ".p.smpl.part", stage, person)
        assert (codec.smpl_version, codec.gender) == (SMPLVersion.SMPL, SMPLGender.NEUTRAL)
        assert codec.frame_count == len(person)
        assert codec.frame_rate == pytest.approx(stage.fps, rel=1e-7)
        betas = np.tile(codec.shape_parameters, (len(person), 1))
        vertices, _ = stage.body(codec.full_pose.reshape(-1, 72), betas)
        vertices = vertices + codec.body_translation[:, None]
        np.testing.assert_allclose(vertices, posed_vertices(stage, person), atol=1e-5)


def test_gender(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=2)
    person = replace(stage.people[0], gender="female")
    assert write_and_read(tmp_path / "p.smpl", stage, person).gender == SMPLGender.FEMALE


def test_the_archive_is_flat_numbers_of_32_bits(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=2)
    write_and_read(tmp_path / "p.smpl", stage, stage.people[0])
    with np.load(tmp_path / "p.smpl") as archive:
        assert {str(archive[name].dtype) for name in archive.files} == {"int32", "float32"}
        assert archive["bodyPose"].shape == (2, 24, 3)
