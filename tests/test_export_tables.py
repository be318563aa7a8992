from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stages import make_stage, see

from mpsnet_cli.body import JOINT_NAMES
from mpsnet_cli.export.stage import Floats, Stage
from mpsnet_cli.export.tables import write_csv
from mpsnet_cli.geometry import matrix_to_axis_angle


def read(path: Path, stage: Stage, person: int) -> dict[str, list[str]]:
    """Read as a spreadsheet does: names in the first line, and nothing but lines after it."""
    advanced: list[int] = []
    write_csv(path, stage, stage.people[person], advance=advanced.append)
    assert sum(advanced) == len(stage.people[person])
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file, strict=True))
    return {name: [line[name] for line in lines] for name in lines[0]}


def numbers(table: dict[str, list[str]], names: list[str]) -> Floats:
    return np.array([table[name] for name in names], float).T


@pytest.mark.parametrize("person", [0, 1])
def test_joints_in_the_world_and_in_the_image(tmp_path: Path, person: int) -> None:
    stage = make_stage(people=2, frames=9, pitch=20)
    someone = stage.people[person]
    table = read(tmp_path / "p.csv", stage, person)
    assert [int(frame) for frame in table["frame"]] == someone.frame_ids.tolist()
    assert [float(time) for time in table["time_s"]] == someone.times.tolist()  # to the last bit

    pose = matrix_to_axis_angle(someone.rotations).reshape(-1, 72)
    joints = stage.body.joints(pose, someone.betas_per_time) + someone.transl[:, None]
    for joint, name in enumerate(JOINT_NAMES):
        world = numbers(table, [f"{name}_{axis}_m" for axis in "xyz"])
        np.testing.assert_allclose(world, joints[:, joint], atol=1e-5)
        image = numbers(table, [f"{name}_{axis}_px" for axis in "uv"])
        np.testing.assert_allclose(image, see(world, stage.camera), atol=0.01)
    transl = numbers(table, [f"transl_{axis}_m" for axis in "xyz"])
    np.testing.assert_allclose(transl, someone.transl, atol=1e-5)


def test_every_line_says_whose_weights_and_untrained(tmp_path: Path) -> None:
    awkward = 'mine, "the best"'
    stage = replace(make_stage(people=1, frames=1, trained=False), weights=awkward)
    table = read(tmp_path / "p.csv", stage, 0)
    assert (table["weights"], table["trained"]) == ([awkward], ["False"])


def test_times_of_a_variable_frame_rate(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=4)
    times = np.array([0.1, 0.13333333333333333, 0.7, 1.9000000000000001])
    uneven = replace(stage.people[0], times=times, frame_ids=np.array([3, 4, 20, 50]))
    table = read(tmp_path / "p.csv", replace(stage, people=[uneven], uniform=False), 0)
    assert [float(time) for time in table["time_s"]] == times.tolist()
    assert table["frame"] == ["3", "4", "20", "50"]
