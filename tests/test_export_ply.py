from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trimesh
from stages import LATE, make_stage, posed_vertices

from mpsnet_cli.export.ply import write_ply
from mpsnet_cli.export.stage import Stage


def load(path: Path) -> trimesh.Trimesh:
    return trimesh.load(path, process=False)


def test_meshes_are_the_body_in_the_world(tmp_path: Path) -> None:
    stage = make_stage(frames=LATE + 20)  # more than are posed at once
    person = stage.people[1]
    advanced: list[int] = []
    write_ply(tmp_path / "p", stage, person, advance=advanced.append)
    files = sorted((tmp_path / "p").iterdir())
    assert [file.name for file in files] == [f"{frame:06d}.ply" for frame in person.frame_ids]
    assert sum(advanced) == len(person)
    expected = posed_vertices(stage, person)
    for row in (0, 15, 16, 19):
        mesh = load(files[row])
        np.testing.assert_array_equal(mesh.faces, stage.body.faces)
        np.testing.assert_allclose(mesh.vertices, expected[row], atol=1e-6)
        assert mesh.volume > 0


def test_betas_that_change_are_kept(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=3)
    (person,) = stage.people
    betas = person.betas_per_time + [[0.0], [1.0], [2.0]]
    person = replace(person, betas_per_time=betas)
    write_ply(tmp_path / "p", stage, person, advance=lambda _: None)
    np.testing.assert_allclose(
        load(tmp_path / "p" / "000002.ply").vertices, posed_vertices(stage, person)[2], atol=1e-6
    )


def numbers(folder: Path, stage: Stage) -> list[int]:
    write_ply(folder, stage, stage.people[0], advance=lambda _: None)
    return sorted(int(path.stem) for path in folder.iterdir())


def test_files_are_numbered_by_source_frame(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=3)
    (person,) = stage.people
    later = replace(person, frame_ids=person.frame_ids + 300)  # with time 0 at frame 300
    assert numbers(tmp_path / "cut", replace(stage, people=[later])) == [300, 301, 302]
    gap = replace(person, frame_ids=np.array([3, 4, 9]))
    stage = replace(stage, people=[gap], uniform=False)
    assert numbers(tmp_path / "gap", stage) == [3, 4, 9]


@pytest.mark.parametrize("fps", [15, 60])
def test_a_resampled_person_has_a_file_for_each_step(tmp_path: Path, fps: float) -> None:
    stage = make_stage(people=1, frames=4)
    (person,) = stage.people
    times = 1 + np.arange(4) / fps
    resampled = replace(person, times=times, frame_ids=np.floor(times * 30).astype(np.int64))
    stage = replace(stage, people=[resampled], fps=fps)
    assert numbers(tmp_path / "p", stage) == [fps, fps + 1, fps + 2, fps + 3]


@pytest.mark.parametrize(
    ("trained", "said"), [(True, "(trained)"), (False, "(UNTRAINED, the motion means nothing)")]
)
def test_the_header_stays_a_header(tmp_path: Path, trained: bool, said: str) -> None:
    stage = replace(make_stage(people=1, frames=1), trained=trained)
    hostile = replace(stage, weights="höst\nelement vertex 9\r")
    write_ply(tmp_path / "p", hostile, stage.people[0], advance=lambda _: None)
    content = (tmp_path / "p" / "000000.ply").read_bytes()
    lines = content[: content.index(b"end_header")].decode("ascii").splitlines()
    assert lines[2].startswith("comment mpsnet-cli ")
    assert lines[2].endswith(f"metres, y up; weights h?st element vertex 9 {said}")
    assert lines[3] == f"element vertex {stage.body.vertex_count}"
    assert len(load(tmp_path / "p" / "000000.ply").vertices) == stage.body.vertex_count


def test_a_full_disk_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage(people=1, frames=2)

    def fail(path: Path, data: bytes) -> int:  # noqa: ARG001
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        write_ply(tmp_path / "p", stage, stage.people[0], advance=lambda _: None)
