"""The Blender add-on as far as it goes without Blender: its archive, and how it reads results."""

from __future__ import annotations

import importlib
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from motions import make_motion
from scipy.spatial.transform import Rotation
from stages import free_body, make_motions, make_result, make_stage

from mpsnet_cli.blender.clip import BONE_NAMES, PARENTS, Clip, steady, stretches
from mpsnet_cli.body import BONE_NAMES as BODY_BONE_NAMES
from mpsnet_cli.body import PARENTS as BODY_PARENTS
from mpsnet_cli.body.arrays import read_free_body
from mpsnet_cli.body.lookup import FREE_BODY_FILE
from mpsnet_cli.export.blender import clip_of, write_addon
from mpsnet_cli.export.result import read_result
from mpsnet_cli.export.staging import resampled, set_stage


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module `result` of the add-on, as it is in the archive."""
    folder = tmp_path_factory.mktemp("addons")
    write_addon(folder / "addon.zip")
    with zipfile.ZipFile(folder / "addon.zip") as archive:
        archive.extractall(folder)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module("mpsnet.result")
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.split(".")[0] == "mpsnet"]:
            del sys.modules[name]


def test_addon_brings_all_it_needs(reader: ModuleType) -> None:
    folder = Path(reader.__file__ or "").parent
    names = {path.name for path in folder.iterdir()} - {"__pycache__"}
    assert names == {
        "__init__.py", "menu.py", "clip.py", "result.py", "scene.py", "blender_manifest.toml",
        "body.npz", "colours.npy", "LICENSE.md", "APACHE-2.0.txt",
    }  # fmt: skip
    for path in folder.glob("*.py"):
        assert "import mpsnet_cli" not in path.read_text()
        assert "from mpsnet_cli" not in path.read_text()


def test_addon_is_of_one_version(reader: ModuleType) -> None:
    folder = Path(reader.__file__ or "").parent
    info = importlib.import_module("mpsnet").bl_info
    version = ".".join(map(str, info["version"]))
    manifest = (folder / "blender_manifest.toml").read_text()
    assert f'\nversion = "{version}"\n' in manifest
    assert f'\nname = "{info["name"]}"\n' in manifest


def test_bones_are_the_bodys() -> None:
    assert BONE_NAMES == BODY_BONE_NAMES
    assert PARENTS == BODY_PARENTS


def test_addon_reads_what_export_stages(reader: ModuleType, tmp_path: Path) -> None:
    clip = tmp_path / "walk.mp4"
    clip.write_bytes(b"12345")
    folder = make_result(tmp_path / "walk", make_motions())
    ours = clip_of(set_stage(read_result(folder), free_body()))
    theirs = reader.read_result([folder])
    assert (theirs.name, theirs.fps, theirs.facts) == (ours.name, ours.fps, ours.facts)
    assert (theirs.video, theirs.video_start) == (str(clip), 0) == (ours.video, ours.video_start)
    for key in ("position", "rotation", "focal_length", "principal_point", "image_size"):
        assert np.array_equal(getattr(theirs.camera, key), getattr(ours.camera, key))
    for key in ("faces", "weights", "uv", "uv_faces"):
        assert np.array_equal(getattr(theirs.body, key), getattr(ours.body, key))
    assert len(theirs.people) == 2
    for their, our in zip(theirs.people, ours.people, strict=True):
        assert (their.name, their.facts) == (our.name, our.facts)
        for key in ("times", "seen", "transl", "vertices", "joints", "colour"):
            np.testing.assert_allclose(getattr(their, key), getattr(our, key), atol=1e-6)
        same = np.abs((their.quaternions * our.quaternions).sum(axis=-1))  # q and -q are one
        np.testing.assert_allclose(same, 1, atol=1e-6)


def test_time_0_is_the_clips_first_frame(reader: ModuleType, tmp_path: Path) -> None:
    motion = make_motion(20, fps=30, frame_ids=np.arange(5, 25), times=7 + np.arange(5, 25) / 30)
    motion.save(tmp_path / "person_01.npz")
    (person,) = reader.read_result([tmp_path / "person_01.npz"]).people
    np.testing.assert_allclose(person.times, np.arange(5, 25) / 30, atol=1e-9)
    folder = make_result(tmp_path / "walk", [motion], video={"first_time": 6.5})
    (person,) = reader.read_result([folder / "clip.json"]).people
    np.testing.assert_allclose(person.times, 0.5 + np.arange(5, 25) / 30, atol=1e-9)


def test_milliseconds_are_set_on_the_grid(reader: ModuleType, tmp_path: Path) -> None:
    make_motion(20, fps=30, times=np.round(np.arange(20) / 30, 3)).save(tmp_path / "a.npz")
    (person,) = reader.read_result([tmp_path / "a.npz"]).people
    np.testing.assert_array_equal(person.times, np.arange(20) / 30)


def test_single_people_can_be_chosen(reader: ModuleType, tmp_path: Path) -> None:
    folder = make_result(tmp_path / "walk", make_motions(3))
    clip = reader.read_result([folder / "person_03.npz", folder / "person_01.npz"])
    assert [person.name for person in clip.people] == ["person_03", "person_01"]


def test_smpl_comes_from_the_users_file(reader: ModuleType, tmp_path: Path) -> None:
    arrays = read_free_body(FREE_BODY_FILE.read_bytes())
    names = ("v_template", "J_regressor", "weights", "f")
    smpl: dict[str, Any] = {name: getattr(arrays, name) for name in names}
    many = np.concatenate([2 * arrays.shapedirs, np.ones((len(arrays.v_template), 3, 290))], axis=2)
    pickled = np.array([None], object)
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **smpl, shapedirs=many, bs_type=pickled)
    motion = make_motion(betas=np.full(10, 0.5, np.float32), body="smpl-neutral")
    motion.save(tmp_path / "person_01.npz")
    clip = reader.read_result([tmp_path / "person_01.npz"], smpl=tmp_path / "SMPL_NEUTRAL.npz")
    vertices, _ = free_body()(np.zeros((1, 72)), np.full((1, 10), 1.0))
    np.testing.assert_allclose(clip.people[0].vertices, vertices[0], atol=1e-5)
    with pytest.raises(reader.ResultError, match=r"body smpl-neutral: give your SMPL \.npz"):
        reader.read_result([tmp_path / "person_01.npz"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pose": None}, "it lacks pose"),
        ({"format": "mpsnet-motion/2"}, "not mpsnet-motion/1 but mpsnet-motion/2"),
        ({"pose": np.zeros((40, 66), np.float32)}, r"pose is float32 \(40, 66\)"),
        ({"transl": np.full((40, 3), np.nan, np.float32)}, "transl is float32"),
        ({"transl": np.zeros((39, 3), np.float32)}, "do not fit together"),
        ({"times": np.zeros(40)}, "do not fit together"),
        ({"fps": 0.0}, "do not fit together"),
        ({"pose": np.array([{}], object)}, "not a readable motion file"),
    ],
)
def test_damaged_files_are_refused(
    reader: ModuleType, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    good: dict[str, Any] = {"format": "mpsnet-motion/1", **vars(make_motion()), **changes}
    path = tmp_path / "person_01.npz"
    np.savez(path, **{key: value for key, value in good.items() if value is not None})
    with pytest.raises(reader.ResultError, match=message):
        reader.read_result([path])


def test_people_of_two_clips_are_refused(reader: ModuleType, tmp_path: Path) -> None:
    make_motion().save(tmp_path / "person_01.npz")
    make_motion(fps=24, track_id=2).save(tmp_path / "person_02.npz")
    with pytest.raises(reader.ResultError, match="its fps differs"):
        reader.read_result([tmp_path])


def test_folders_without_people_are_refused(reader: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(reader.ResultError, match="holds no person_NN"):
        reader.read_result([tmp_path])


def test_what_is_no_archive_is_refused(reader: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "person_01.npz"
    path.write_bytes(b"nonsense")
    with pytest.raises(reader.ResultError, match="not a readable motion file"):
        reader.read_result([path])


def test_clip_files_keep_everything(tmp_path: Path) -> None:
    clip = clip_of(make_stage())
    clip = replace(clip, body=replace(clip.body, uv=None, uv_faces=None))
    clip.save(tmp_path / "clip.npz")
    again = Clip.load(tmp_path / "clip.npz")
    for name in ("name", "fps", "facts", "video", "video_start"):
        assert getattr(again, name) == getattr(clip, name)
    pairs = [(again.camera, clip.camera), (again.body, clip.body)]
    pairs += list(zip(again.people, clip.people, strict=True))
    for one, other in pairs:
        for name, value in vars(other).items():
            assert np.array_equal(getattr(one, name), value), name


def test_quaternions_turn_as_axis_angles(reader: ModuleType) -> None:
    vectors = np.random.default_rng(0).normal(0, 2, (50, 3))
    vectors[0] = 0
    expected = Rotation.from_rotvec(vectors).as_matrix()
    found = np.roll(reader.quaternions_of(vectors), -1, axis=-1)
    np.testing.assert_allclose(Rotation.from_quat(found).as_matrix(), expected, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1)


def test_quaternions_do_not_jump() -> None:
    turn = np.linspace(0, 6 * np.pi, 100)
    wxyz = np.roll(Rotation.from_rotvec(turn[:, None] * [0, 0, 1]).as_quat(canonical=True), 1, -1)
    assert np.abs(np.diff(wxyz, axis=0)).max() > 1
    smooth = steady(wxyz)
    assert np.abs(np.diff(smooth, axis=0)).max() < 0.1
    np.testing.assert_array_equal(np.abs(smooth), np.abs(wxyz))


def test_holes_cut_where_frames_are_left_out() -> None:
    frames = np.array([3, 4, 5, 9, 10])
    np.testing.assert_allclose(stretches(frames / 25, frames, 25), [[0.12, 0.2], [0.36, 0.4]])
    every_third = np.arange(0, 30, 3)
    np.testing.assert_allclose(stretches(every_third / 30, every_third, 10), [[0, 0.9]])


def test_clip_behind_the_people_keeps_step(tmp_path: Path) -> None:
    clip = tmp_path / "walk.mp4"
    clip.touch()
    stage = replace(make_stage(fps=25), video=str(clip))
    assert (clip_of(stage).video, clip_of(stage).video_start) == (str(clip), 0)
    cut = [replace(person, frame_ids=person.frame_ids + 50) for person in stage.people]
    assert clip_of(replace(stage, people=cut)).video_start == -2.0
    assert clip_of(resampled(stage, 10)).video is None
    assert clip_of(replace(stage, video=str(tmp_path / "gone.mp4"))).video is None
