from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from motions import make_motion
from scipy.spatial.transform import Rotation

from benchmarks import starter
from mpsnet_cli.body import load_body
from mpsnet_cli.body.skeleton import KEYPOINT_NAMES
from mpsnet_cli.datasets import Sequence
from mpsnet_cli.errors import InputError
from mpsnet_cli.evaluation.baselines import constant_velocity_error, mean_person
from mpsnet_cli.evaluation.evaluate import evaluate_sequences
from mpsnet_cli.evaluation.metrics import acceleration_error
from mpsnet_cli.geometry import project
from mpsnet_cli.posing import camera_vertices
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.samples import CropBatch
from mpsnet_cli.windows import window_indices

FRAMES = 20


def test_the_mean_of_turns_about_one_axis_is_the_mean_turn() -> None:
    pose = np.zeros((2, 72))
    pose[:, 0] = 3.0, -3.0  # rad: the short way is over π, not over 0
    pose[:, 7] = 0.2, 1.0
    mean, betas = mean_person(pose, [np.zeros(10), np.arange(10)])
    assert np.abs(mean[:3]) == pytest.approx([np.pi, 0, 0], abs=1e-9)
    assert mean[7] == pytest.approx(0.6)
    assert np.delete(mean, (0, 7)) == pytest.approx(0, abs=1e-9)
    assert np.array_equal(betas, np.arange(10) / 2)


def test_constant_velocity_misses_the_acceleration() -> None:
    rng = np.random.default_rng(0)
    time = np.arange(FRAMES)[:, None, None]
    falling = 0.5 * np.array([0.003, 0, 0.004]) * time**2 + rng.normal(size=(1, 14, 3))
    assert constant_velocity_error(falling) == pytest.approx(np.full(FRAMES - 2, 5.0))

    true = rng.normal(size=(FRAMES, 14, 3))
    even = rng.normal(size=(1, 14, 3)) + time * rng.normal(size=(1, 14, 3))
    assert constant_velocity_error(true) == pytest.approx(acceleration_error(even, true))
    apart = np.linalg.norm(2 * true[1:-1] - true[:-2] - true[2:], axis=-1).mean(axis=1)
    assert constant_velocity_error(true) == pytest.approx(1000 * apart)


def make_sequence() -> Sequence:
    """Somebody in a pose of his own who turns about the vertical."""
    turn = Rotation.from_rotvec(
        0.05 * np.arange(FRAMES)[:, None] * [0, 1, 0]
    ) * Rotation.from_euler("x", np.pi)
    pose = np.tile(np.random.default_rng(0).normal(0, 0.2, 72), (FRAMES, 1))
    pose[:, :3] = turn.as_rotvec()
    betas = np.tile(np.linspace(-1, 1, 10), (FRAMES, 1))
    return Sequence(
        name="one",
        body="free-1",
        fps=30.0,
        frame_ids=np.arange(FRAMES),
        features=np.arange(FRAMES, dtype=np.float32)[:, None],
        joint_set="smpl24",
        joints3d=load_body("free-1").joints(pose, betas),
        pose=pose.astype(np.float32),
        betas=betas.astype(np.float32),
    )


def test_the_mean_person_is_right_where_all_are_alike() -> None:
    one, body = make_sequence(), load_body("free-1")
    assert one.pose is not None
    assert one.betas is not None

    def errors(**options: bool) -> dict[str, float]:
        predict = starter.always(one.pose[0], one.betas[0], **options)(one)
        return evaluate_sequences([one], predict, body).pooled.means()

    turned, fixed = errors(true_orientation=True), errors()
    assert all(turned[column] < 0.02 for column in starter.COLUMNS)
    assert fixed["pa_mpjpe"] == pytest.approx(0, abs=0.02)
    assert fixed["mpjpe"] > 20
    joints = starter.to_common14(one.joints3d, "smpl24")
    rest = constant_velocity_error(starter.root_aligned(joints, starter.HIPS))
    assert fixed["acceleration"] == pytest.approx(rest.mean(), abs=1e-3)


def test_without_time_each_frame_is_its_own() -> None:
    seen: list[torch.Tensor] = []

    def regressor(features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        seen.append(features)
        return features, features, features

    model: Any = SimpleNamespace(
        network=SimpleNamespace(regressor=regressor), device=torch.device("cpu")
    )
    one = make_sequence()
    predict = starter.frame_by_frame(model)(one)
    predict(torch.tensor(one.features), window_indices(one.frame_ids, edges="repeat"))
    assert torch.equal(seen[0], torch.tensor(one.features))


def make_batch(count: int, **labels: np.ndarray) -> CropBatch:
    """Labels of people who stand before the camera, in the middle of the picture."""
    fields: dict[str, Any] = {
        "images": np.zeros((count, 8, 8, 3), np.uint8),
        "masks": np.zeros((count, 8, 8), bool),
        "pose": np.tile(np.eye(72)[0] * np.pi, (count, 1)),
        "betas": np.zeros((count, 10)),
        "cam": np.zeros((count, 3)),
        "joints2d": np.zeros((count, 24, 2)),
        "visible": np.ones((count, 24), bool),
        "joints3d": np.zeros((count, 24, 3)),
        "transl": np.tile([0.0, 0, 4], (count, 1)),
        "bboxes": np.tile([320.0, 240, 200, 200], (count, 1)),
        "focal_length": np.full(count, 800.0),
        "image_size": np.tile([640.0, 480], (count, 1)),
    }
    return CropBatch(**fields | labels)


def test_people_are_sorted_by_the_side_that_is_seen() -> None:
    degrees = np.array([0, 40, -40, 50, 90, -130, 140, 180])
    upright = Rotation.from_euler("x", np.pi)  # faces a camera that looks along z
    names = ["frontal"] * 3 + ["side"] * 3 + ["back"] * 2

    def side(pose: Rotation, transl: np.ndarray) -> list[str]:
        full = np.zeros((len(degrees), 72))
        full[:, :3] = pose.as_rotvec()
        found = starter.orientation(make_batch(len(degrees), pose=full, transl=transl))
        assert (sum(found.values()) == 1).all()
        return [next(name for name in found if found[name][k]) for k in range(len(degrees))]

    turned = Rotation.from_rotvec(degrees[:, None] * [0, 1, 0], degrees=True)
    ahead = np.tile([0.0, 0, 4], (len(degrees), 1))
    assert side(upright * turned, ahead) == names
    # From above, and at the picture's edge: the whole scene turned about the camera.
    about = Rotation.from_euler("yx", [35, 40], degrees=True)
    assert side(about * upright * turned, about.apply(ahead)) == names
    assert side(upright * turned, about.apply(ahead)) != names


def test_people_are_sorted_by_what_hides_them() -> None:
    joints2d, visible = np.zeros((5, 24, 2)), np.ones((5, 24), bool)
    bboxes = make_batch(5).bboxes
    visible[1, 3] = False  # behind something
    joints2d[2, 7, 1], visible[2, 7] = 1.2, False  # outside the crop
    joints2d[3, 7, 0], visible[3, 7], bboxes[3, 0] = 0.5, False, 600.0  # outside the image: 650 px
    joints2d[4, 7, 0], bboxes[4, 0] = 0.3, 600.0  # 630 px
    found = starter.visibility(make_batch(5, joints2d=joints2d, visible=visible, bboxes=bboxes))
    assert {name: np.flatnonzero(of).tolist() for name, of in found.items()} == {
        "whole": [0, 4],
        "cut": [2, 3],
        "occluded": [1],
    }


def test_the_torso_is_from_shoulders_to_hips() -> None:
    joints = np.zeros((4, 12, 2))
    joints[:, :2] = [[10, 0], [30, 0]]
    joints[:, 6:8, 0] = 20 + 40
    joints[:, 6:8, 1] = 30
    joints[1, 6:8, 1] = 300  # the median does not mind
    joints[2, 0] = np.nan  # nor one that is not known
    assert starter.torso_length(joints) == pytest.approx(50)
    left = [name.replace("right", "left") for name in starter.MARKED_NAMES]
    for name, other in zip(starter.MARKED_NAMES, starter.mirrored(), strict=True):
        assert name != starter.MARKED_NAMES[other]
        assert name.replace("right", "left") == left[other]


def write_marked(path: Path, joints: np.ndarray, frames: np.ndarray) -> Path:
    np.savez(
        path, format=starter.MARKED_FORMAT, frame_ids=frames, names=starter.MARKED_NAMES[::-1],
        joints2d=joints[:, ::-1], source="themselves",
    )  # fmt: skip
    return path


def test_a_clip_is_held_against_independent_joints(tmp_path: Path) -> None:
    motion, body = make_motion(12), load_body("free-1")
    motion = replace(motion, frame_ids=np.arange(5, 17))
    motion.save(tmp_path / "person_01.npz")
    manifest = {"weights": {"sha256": "0123456789abcdef"}}
    (tmp_path / starter.RESULT_MANIFEST).write_text(json.dumps(manifest))
    rows = np.arange(0, 12, 3)
    vertices = np.stack(list(camera_vertices(motion, body, rows)))
    picked = [KEYPOINT_NAMES.index(name) for name in starter.MARKED_NAMES]
    joints = project(
        body.keypoints(vertices)[:, picked],
        focal_length=motion.focal_length,
        principal_point=motion.principal_point,
    )
    frames = np.append(motion.frame_ids[rows], 99)
    joints = np.append(joints, np.full((1, 12, 2), np.nan), axis=0)
    unit = starter.torso_length(joints)

    def measured(joints: np.ndarray) -> list[str]:
        path = write_marked(tmp_path / "marked.npz", joints, frames)
        options = argparse.Namespace(result=tmp_path, joints=path)
        return starter.dancer(options, Reporter()).splitlines()

    exact = measured(joints)
    assert next(line for line in exact if "all" in line).startswith(
        "| **all** | 48 | 0.00 | 0.00 | 0.00 |"
    )
    assert any("4 of the 5 frames" in line for line in exact)
    assert any("In 0 frames" in line for line in exact)
    aside = measured(joints + np.array([0.3, 0.4]) * unit)
    assert next(line for line in aside if "all" in line).split(" | ")[1:5] == ["48", *["0.50"] * 3]
    assert any("In 4 frames" in line for line in measured(joints[:, starter.mirrored()]))


def test_a_section_takes_its_own_place() -> None:
    document = starter.with_section(starter.HEAD, "walk", "first\n\n- a\n")
    document = starter.with_section(document, "sequences", "second\n")
    document = starter.with_section(document, "walk", "third")
    titles = [line.removeprefix("## ") for line in document.splitlines() if line[:3] == "## "]
    assert titles == [starter.TITLES["sequences"], starter.TITLES["walk"]]
    assert document.startswith(starter.HEAD)
    assert "first" not in document
    assert document.endswith("third\n")
    assert starter.with_section(document, "walk", "third") == document


def test_data_of_the_wrong_split_is_refused(tmp_path: Path) -> None:
    content = {"recipe": {"split": "train", "size": 64}, "recipe_sha256": "abc", "samples": 3}
    (tmp_path / starter.MANIFEST).write_text(json.dumps(content))
    assert starter.read_recipe(tmp_path, split="train") == ("abc", 3)
    with pytest.raises(InputError, match="split 'train', and should have 'held-out'"):
        starter.read_recipe(tmp_path, split="held-out")
    with pytest.raises(InputError, match="no folder of mpsnet synth"):
        starter.read_recipe(tmp_path / "nowhere")
