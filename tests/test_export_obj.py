from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from motions import make_motion
from shapes import Ball
from stages import make_stage, posed_vertices

from mpsnet_cli.errors import OutputError
from mpsnet_cli.export.obj import mesh_count, vertex_lines, write_obj, write_obj_sequence
from mpsnet_cli.motion import Motion

BODY = Ball()


@pytest.fixture
def motion() -> Motion:
    """Frames 7..16 without 10, the body's size differing from frame to frame."""
    motion = make_motion(9)
    frames = np.array([7, 8, 9, 11, 12, 13, 14, 15, 16])
    return replace(motion, frame_ids=frames, betas=np.full(10, 0.5, np.float32))


def ignore(_: int) -> None:
    """Not look at the progress."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(path: Path) -> trimesh.Trimesh:
    return trimesh.load(path, process=False)


def test_meshes_are_the_camera_frame_turned_to_y_up(tmp_path: Path, motion: Motion) -> None:
    folder = tmp_path / "meshes" / motion.name
    advanced: list[int] = []
    write_obj_sequence(folder, motion, BODY, advance=advanced.append)
    assert names(folder) == [f"{frame:06d}.obj" for frame in motion.frame_ids]
    assert names(folder.parent) == [motion.name]
    for row, frame in enumerate(motion.frame_ids):
        mesh = load(folder / f"{frame:06d}.obj")
        np.testing.assert_array_equal(mesh.faces, BODY.faces)
        seen = 0.55 * BODY.sphere + motion.transl[row]
        np.testing.assert_allclose(mesh.vertices, seen * [1, -1, -1], atol=1e-5)
        assert mesh.volume > 0  # turned, not mirrored
    assert sum(advanced) == mesh_count(motion) == len(motion)


def test_shape_per_frame_follows_the_network(tmp_path: Path, motion: Motion) -> None:
    write_obj_sequence(tmp_path / "p", replace(motion, shape="frame"), BODY, advance=ignore)
    extents = [load(path).extents.max() for path in sorted((tmp_path / "p").iterdir())]
    np.testing.assert_allclose(extents, 1 + 0.2 * motion.betas_per_frame[:, 0], atol=1e-4)


def test_every_counts_the_frames_of_the_clip(tmp_path: Path, motion: Motion) -> None:
    write_obj_sequence(tmp_path / "p", motion, BODY, every=5, advance=ignore)
    assert names(tmp_path / "p") == ["000015.obj"]  # 10 is a hole


def test_a_longer_motion_than_is_posed_at_once(tmp_path: Path) -> None:
    motion = make_motion(70)
    write_obj_sequence(tmp_path / "p", motion, BODY, every=3, advance=ignore)
    assert names(tmp_path / "p") == [f"{frame:06d}.obj" for frame in range(0, 70, 3)]
    last = load(tmp_path / "p" / "000069.obj")
    np.testing.assert_allclose(last.centroid, motion.transl[69] * [1, -1, -1], atol=1e-3)


def test_an_older_sequence_is_replaced(tmp_path: Path, motion: Motion) -> None:
    write_obj_sequence(tmp_path / "p", motion, BODY, advance=ignore)
    write_obj_sequence(tmp_path / "p", motion, BODY, every=8, advance=ignore)
    assert names(tmp_path / "p") == ["000008.obj", "000016.obj"]


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, motion: Motion, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def write_some(path: Path, data: bytes) -> int:
        if path.name == "000012.obj":
            write(path, data[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_some)
    with pytest.raises(OutputError, match=r"No space left on device.*--mesh-every"):
        write_obj_sequence(tmp_path / "p", motion, BODY, advance=ignore)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, motion: Motion) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/p"):
        write_obj_sequence(tmp_path / "file" / "p", motion, BODY, advance=ignore)


def test_a_person_of_a_stage_is_written_in_its_world(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=18, trained=False)
    (person,) = stage.people
    advanced: list[int] = []
    write_obj(tmp_path / "p", stage, person, advance=advanced.append)
    assert names(tmp_path / "p") == [f"{frame:06d}.obj" for frame in person.frame_ids]
    assert sum(advanced) == len(person)
    expected = posed_vertices(stage, person)
    for row in (0, 17):
        mesh = load(tmp_path / "p" / f"{row:06d}.obj")
        np.testing.assert_array_equal(mesh.faces, stage.body.faces)
        np.testing.assert_allclose(mesh.vertices, expected[row], atol=1e-5)
    with (tmp_path / "p" / "000000.obj").open() as file:
        assert file.readline().endswith(
            "weights test weights (UNTRAINED, the motion means nothing)\n"
        )


@pytest.mark.parametrize("scale", [1e-4, 1, 30, 5e4])
def test_digits_are_those_of_printf(scale: float) -> None:
    vertices = (scale * np.random.default_rng(3).normal(size=(500, 3))).astype(np.float32)
    vertices[0] = [0, -1e-7, scale]
    lines = vertex_lines(vertices).decode().splitlines()
    assert len(lines) == len(vertices)
    for line, vertex in zip(lines, vertices.astype(np.float64), strict=True):
        letter, *numbers = line.split()
        assert letter == "v"
        assert [float(number) for number in numbers] == [float(f"{x:.5f}") for x in vertex]
