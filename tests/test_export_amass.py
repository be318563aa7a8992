from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from smplcodec import SMPLCodec, SMPLVersion
from stages import make_stage, posed_vertices

from mpsnet_cli.datasets.amass import read_amass
from mpsnet_cli.export.amass import write_amass
from mpsnet_cli.export.stage import Floats, Performer, Stage
from mpsnet_cli.progress import Reporter


def write(path: Path, stage: Stage, person: Performer) -> Path:
    advanced: list[int] = []
    write_amass(path, stage, person, advance=advanced.append)
    assert sum(advanced) == len(person)
    return path


def read_as_the_add_on_does(path: Path, target_rate: int = 30) -> dict[str, Any]:
    """Read with the demands of the SMPL-X add-on for Blender."""
    with np.load(path) as data:  # its default: nothing pickled
        assert {"trans", "gender", "betas", "poses"} <= set(data.files)
        rate = int(data["mocap_frame_rate" if "mocap_frame_rate" in data else "mocap_framerate"])
        assert rate >= target_rate
        assert data["betas"].ndim == 1
        assert data["poses"].shape[1] == 156
        assert str(data["gender"]) in ("neutral", "male", "female")
        return {name: data[name] for name in data.files}


def vertices_as_the_add_on_turns_them(stage: Stage, data: dict[str, Any]) -> Floats:
    """Pose the body, then turn its root by -90° about x, as for "AMASS" data, whose z is up."""
    pose = data["poses"][:, :72].copy()
    pose[:, 66:] = 0  # fingers
    betas = np.tile(data["betas"][:10], (len(pose), 1))
    vertices, _ = stage.body(pose, betas)
    turn = Rotation.from_euler("x", -90, degrees=True).as_matrix()
    return (vertices + data["trans"][:, None]) @ turn.T


def without_hands(person: Performer) -> Performer:
    rotations = person.rotations.copy()
    rotations[:, 22:] = np.eye(3)
    return replace(person, rotations=rotations)


@pytest.mark.parametrize("person", [0, 1])
def test_the_add_on_gets_the_same_vertices(tmp_path: Path, person: int) -> None:
    stage = make_stage(people=2, frames=8, fps=60, pitch=15)
    someone = stage.people[person]
    data = read_as_the_add_on_does(write(tmp_path / "p.npz", stage, someone))
    found = vertices_as_the_add_on_turns_them(stage, data)
    np.testing.assert_allclose(found, posed_vertices(stage, without_hands(someone)), atol=1e-5)


def test_what_each_reader_asks_for(tmp_path: Path) -> None:
    stage = replace(make_stage(people=1, frames=7, fps=120, trained=False), weights="chance")
    data = read_as_the_add_on_does(write(tmp_path / ".p.npz.part", stage, stage.people[0]))
    assert data["mocap_framerate"] == data["mocap_frame_rate"] == 120
    assert data["mocap_framerate"].dtype.kind == "i"
    assert data["mocap_time_length"] == pytest.approx(7 / 120)
    np.testing.assert_array_equal(data["root_orient"], data["poses"][:, :3])
    np.testing.assert_array_equal(data["pose_body"], data["poses"][:, 3:66])
    np.testing.assert_array_equal(data["pose_hand"], data["poses"][:, 66:])
    assert data["dmpls"].shape == (7, 8)
    assert data["betas"].shape == (data["num_betas"],) == (16,)
    assert data["gender"].item() == "neutral"
    assert data["gender"].shape == ()
    assert (data["body"], data["weights"], data["trained"]) == ("free-1", "chance", False)


def test_other_readers_of_amass(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=7)
    path = write(tmp_path / "p.npz", stage, stage.people[0])
    codec = SMPLCodec.from_amass_npz(path)
    assert (codec.smpl_version, codec.frame_count) == (SMPLVersion.SMPLH, 7)
    assert codec.frame_rate == 30
    (ours,) = read_amass(path, Reporter())
    np.testing.assert_array_equal(codec.full_pose[:, :22].reshape(7, -1), ours.pose[:, :66])
    local = Rotation.from_rotvec(ours.pose[:, 3:66].reshape(-1, 3)).as_matrix()
    np.testing.assert_allclose(
        local.reshape(7, 21, 3, 3), stage.people[0].rotations[:, 1:22], atol=1e-6
    )


def test_one_frame(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=1)
    data = read_as_the_add_on_does(write(tmp_path / "p.npz", stage, stage.people[0]))
    assert data["poses"].shape == (1, 156)
