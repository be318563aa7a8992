from __future__ import annotations

import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from stages import make_stage, posed_vertices, see

from mpsnet_cli.body import JOINT_NAMES
from mpsnet_cli.export.stage import Floats, Performer, Stage
from mpsnet_cli.export.vibe import write_pkl
from mpsnet_cli.posing import CHUNK


@dataclass(frozen=True)
class Boxed(Performer):
    bboxes: Floats


def boxed(stage: Stage) -> Stage:
    """Give the people boxes around their joints."""
    people = []
    for person in stage.people:
        low, high = person.joints2d.min(axis=1), person.joints2d.max(axis=1)
        side = 1.2 * (high - low).max(axis=1, keepdims=True)
        boxes = np.concatenate([(low + high) / 2, side, side], axis=1)
        people.append(Boxed(**{**vars(person), "bboxes": boxes}))
    return replace(stage, people=people)


def write_and_read(path: Path, stage: Stage) -> dict[int, dict[str, Any]]:
    advanced: list[int] = []
    write_pkl(path, stage, advance=advanced.append)
    assert sum(advanced) == sum(map(len, stage.people))
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    return joblib.load(path)


def test_layout(tmp_path: Path) -> None:
    stage = replace(boxed(make_stage(people=2, frames=7, trained=False)), weights="chance")
    found = write_and_read(tmp_path / "clip.pkl", stage)
    assert list(found) == [1, 2]
    for person in stage.people:
        entry, count = found[person.id], len(person)
        shapes = {
            "pred_cam": (3,), "orig_cam": (4,), "verts": (stage.body.vertex_count, 3),
            "pose": (72,), "betas": (10,), "joints3d": (24, 3), "joints2d": (24, 2),
            "bboxes": (4,), "transl": (3,),
        }  # fmt: skip
        for name, shape in shapes.items():
            assert entry[name].shape == (count, *shape)
            assert type(entry[name]) is np.ndarray
            assert entry[name].dtype == np.float32
        np.testing.assert_array_equal(entry["frame_ids"], person.frame_ids)
        np.testing.assert_array_equal(entry["times"], person.times)
        assert entry["joint_names"] == list(JOINT_NAMES)
        assert (entry["body"], entry["gender"]) == ("free-1", "neutral")
        assert (entry["weights"], entry["trained"]) == ("chance", False)


@pytest.mark.parametrize("pitch", [0, 25])
def test_vertices_project_where_the_world_is_seen(tmp_path: Path, pitch: float) -> None:
    stage = boxed(make_stage(people=2, frames=CHUNK + 4, pitch=pitch))
    found = write_and_read(tmp_path / "clip.pkl", stage)
    for person in stage.people:
        entry = found[person.id]
        world = posed_vertices(stage, person)
        x, y, z = np.moveaxis(entry["verts"] + entry["transl"][:, None], -1, 0)
        image = entry["focal_length"] * np.stack([x, y], -1) / z[..., None]
        image += entry["principal_point"]
        np.testing.assert_allclose(image, see(world, stage.camera), atol=0.01)
        distance = np.linalg.norm(world - stage.camera.position, axis=-1)
        np.testing.assert_allclose(np.sqrt(x**2 + y**2 + z**2), distance, atol=1e-5)

        vertices, joints = stage.body(entry["pose"], entry["betas"])
        np.testing.assert_allclose(entry["verts"], vertices, atol=1e-5)
        np.testing.assert_allclose(entry["joints3d"], joints, atol=1e-5)


def test_both_weak_cameras_meet_perspective_at_the_persons_depth(tmp_path: Path) -> None:
    """By VIBE's own formula from box to image, for a principal point at the middle, as it has."""
    stage = boxed(make_stage(people=1, frames=6))
    middle = replace(stage.camera, principal_point=np.array([320.0, 240.0]))
    for camera in (stage.camera, middle):
        entry = write_and_read(tmp_path / "clip.pkl", replace(stage, camera=camera))[1]
        sx, sy, tx, ty = entry["orig_cam"].astype(float).T
        point = np.array([0.3, -0.2])  # and no deeper than the origin of `verts`
        ndc = np.stack([sx * (point[0] + tx), sy * (point[1] + ty)], axis=1)
        weak = (ndc + 1) / 2 * [640, 480]
        transl = entry["transl"].astype(float)
        seen = 600 * (point + transl[:, :2]) / transl[:, 2:] + camera.principal_point
        np.testing.assert_allclose(weak, seen, atol=1e-3)

        s, cam_x, cam_y = entry["pred_cam"].astype(float).T
        cx, cy, side, _ = entry["bboxes"].astype(float).T
        box = np.stack([s * (point[0] + cam_x), s * (point[1] + cam_y)], axis=1)
        in_box = np.stack([cx, cy], 1) + side[:, None] / 2 * box
        np.testing.assert_allclose(in_box, seen, atol=1e-3)

    np.testing.assert_allclose(sx, s * side / 640, rtol=1e-5)
    np.testing.assert_allclose(sy, s * side / 480, rtol=1e-5)
    np.testing.assert_allclose(tx, (cx - 320) / 320 / sx + cam_x, atol=1e-5)
    np.testing.assert_allclose(ty, (cy - 240) / 240 / sy + cam_y, atol=1e-5)


def test_one_frame(tmp_path: Path) -> None:
    found = write_and_read(tmp_path / "clip.pkl", boxed(make_stage(people=1, frames=1)))
    assert found[1]["verts"].shape[0] == 1


def test_memory_does_not_grow_with_the_clip(tmp_path: Path) -> None:
    stage = boxed(make_stage(people=2, frames=300))
    tracemalloc.start()
    write_pkl(tmp_path / "clip.pkl", stage, advance=lambda _: None)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (tmp_path / "clip.pkl").stat().st_size > 45e6
    assert peak < 25e6
