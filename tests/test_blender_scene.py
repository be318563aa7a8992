"""What Blender makes of our files: it opens or imports them, and its numbers must be ours."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import ROOT
from stages import LATE, make_result, make_stage, posed_vertices, see

from mpsnet_cli.body import BONE_NAMES, PARENTS, load_body
from mpsnet_cli.errors import OutputError
from mpsnet_cli.export.blender import find_blender, write_addon, write_blend, write_fbx
from mpsnet_cli.export.bvh import write_bvh
from mpsnet_cli.export.glb import write_glb
from mpsnet_cli.export.obj import write_obj
from mpsnet_cli.export.result import read_result
from mpsnet_cli.export.stage import Floats, Performer, Stage
from mpsnet_cli.export.staging import set_stage
from mpsnet_cli.export.usd import write_usd
from mpsnet_cli.motion import Motion
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import probe, read_frames

pytestmark = [pytest.mark.blender, pytest.mark.timeout(900)]

WALK = ROOT / "examples" / "walk.mp4"
Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
FPS = 30000 / 1001
RATE = (30, 1.001)
FRAMES = [0, 3, 7, 20, 39]
PEOPLE = 3
HOLE = slice(10, 15)  # rows of the third person that the uneven stage leaves out
SCENES = ("blend", "uneven", "walk", "addon")
ALL = (*SCENES, "fbx", "glb", "usd")
# How much too fast Blender's importers believe that a scene of 30 / 1.001 Hz runs.
RUSH = {"fbx": RATE[1], "glb": RATE[1] ** 2}
LINEAR, EXACT, HEADS = 2e-5, 1e-5, 2e-5  # m, fractions of what is promised
PIXEL = 0.01  # px
STEP = 100  # as in inside_blender


class Seen:
    """What Blender found in a file, and the stage that the file is of."""

    def __init__(self, stage: Stage, frames: list[float], out: Path) -> None:
        with np.load(out) as found:
            self.about = json.loads(str(found["about"]))
            self.vertices, self.joints = found["vertices"], found["joints"]
            self.hidden, self.pixels = found["hidden"], found["pixels"]
        self.picture = out.with_suffix(".png")
        self.stage, self.frames = stage, frames

    def moments(self) -> Iterator[tuple[int, int, Performer, int]]:
        """Go through what was looked at: numbers of the frame and person, the person, the row."""
        for person_number, person in enumerate(self.stage.people):
            for number, frame in enumerate(self.frames):
                for row in np.flatnonzero(np.abs(person.times * self.stage.fps - frame) < 1e-3):
                    yield number, person_number, person, int(row)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """All files, written and then read in one Blender."""
    try:
        blender = find_blender()
    except OutputError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("blender")
    stage = make_stage(PEOPLE, 40, FPS)
    identity = {"path": str(WALK), "bytes": WALK.stat().st_size}
    make_result(folder / "walk", walk_motions(), input=identity)
    walk = set_stage(read_result(folder / "walk"), load_body("free-1"))
    uneven = make_uneven(stage)
    write: dict[str, tuple[Stage, Callable[..., None], str]] = {
        "blend": (stage, write_blend, "blend.blend"),
        "uneven": (uneven, write_blend, "uneven.blend"),
        "walk": (walk, write_blend, "walk.blend"),
        "fbx": (stage, write_fbx, "scene.fbx"),
        "glb": (stage, write_glb, "scene.glb"),
        "usd": (stage, write_usd, "scene.usdc"),
    }
    first = stage.people[0]
    for own, function, name in write.values():
        function(folder / name, own, advance=lambda _: None)
    write_bvh(folder / "first.bvh", stage, first, advance=lambda _: None)
    write_obj(folder / "first_obj", stage, first, advance=lambda _: None)
    write_addon(folder / "addon.zip")

    alone = replace(stage, people=stage.people[:1])
    frames: dict[str, list[float]] = {name: list(FRAMES) for name in write}
    frames["uneven"] = (uneven.people[2].times * FPS)[[0, 5, 9, 10, -1]].tolist()
    files = {name: (own, folder / file) for name, (own, _, file) in write.items()}
    files["bvh"] = alone, folder / "first.bvh"
    files["obj"] = alone, folder / "first_obj" / "000007.obj"
    frames["obj"] = [7]
    files["addon"] = walk, folder / "walk"
    files["joints"] = walk, ROOT / "examples" / "blender" / "joints.py"
    jobs = []
    for name, (own, file) in files.items():
        job = {
            "file": str(file),
            "frames": frames.setdefault(name, list(FRAMES)),
            "out": str(folder / f"{name}.npz"),
            "rate": RATE,
            "resolution": own.camera.image_size,
            "bones": BONE_NAMES,
            "result": str(folder / "walk"),
            "addon": str(folder / "addon.zip"),
        }
        if name == "walk":
            job["picture"] = str(folder / "walk.png")
        if name in RUSH:
            job["frames"] = [frame * RUSH[name] for frame in FRAMES]
        if name == "bvh":  # there, Blender counts from 1
            job["frames"] = [frame + 1 for frame in FRAMES]
        jobs.append(job)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    settings = {
        name: str(folder / "settings")
        for name in ("BLENDER_USER_RESOURCES", "BLENDER_USER_SCRIPTS", "BLENDER_USER_CONFIG")
    }
    done = subprocess.run(
        [*blender, str(ROOT / "tests/inside_blender.py"), "--", str(folder / "jobs.json")],
        env={**os.environ, **settings}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {
        name: Seen(own, frames[name], folder / f"{name}.npz") for name, (own, _) in files.items()
    }


def walk_motions() -> list[Motion]:
    """The ground truth of the example clip."""
    with np.load(WALK.with_suffix(".npz"), allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files if "/" in key}
    motions = []
    for name in sorted({key.split("/")[0] for key in arrays}):
        own = {key.split("/")[1]: arrays[key] for key in arrays if key.startswith(name)}
        motions.append(Motion.from_arrays(own, source=WALK))
    return motions


def make_uneven(stage: Stage) -> Stage:
    """Give a stage times between frames, a person with a hole, and one of a single frame."""
    jitter = np.random.default_rng(3).uniform(0, 0.4, 40) / FPS
    people = [replace(who, times=who.times + jitter[who.frame_ids]) for who in stage.people]
    return replace(
        stage,
        people=[
            people[0],
            select(people[1], slice(20, 21)),
            select(people[2], np.delete(np.arange(40), HOLE)),
        ],
        uniform=False,
    )


def select(person: Performer, rows: Any) -> Performer:
    names = ("times", "frame_ids", "rotations", "transl", "betas_per_time", "joints2d")
    changes: dict[str, Any] = {name: getattr(person, name)[rows] for name in names}
    return replace(person, **changes)


def skinned(stage: Stage, person: Performer, row: int) -> tuple[Floats, Floats]:
    """Vertices (V, 3) and joints (24, 3) by linear blend skinning alone, in Blender's world."""
    weights = stage.body.skinning_weights.astype(np.float64)
    rest = stage.body(np.zeros((1, 72)), person.betas[None])[0][0].astype(np.float64)
    turns, places = np.empty((24, 3, 3)), np.empty((24, 3))
    for joint, parent in enumerate(PARENTS):
        turn, bone = person.rotations[row, joint], person.rest_joints[joint]
        if parent < 0:
            turns[joint], places[joint] = turn, bone + person.transl[row]
        else:
            turns[joint] = turns[parent] @ turn
            places[joint] = places[parent] + turns[parent] @ (bone - person.rest_joints[parent])
    by_joint = np.einsum("jab,jvb->jva", turns, rest - person.rest_joints[:, None])
    vertices = np.einsum("vj,jva->va", weights, by_joint + places[:, None])
    return vertices @ Z_UP.T, places @ Z_UP.T


@pytest.mark.parametrize("name", [*SCENES, "fbx", "glb"])
def test_meshes_are_skinned_as_ours(seen: dict[str, Seen], name: str) -> None:
    one = seen[name]
    for frame, number, person, row in one.moments():
        vertices, _ = skinned(one.stage, person, row)
        np.testing.assert_allclose(one.vertices[frame, number], vertices, atol=LINEAR)


@pytest.mark.parametrize("name", ["usd", "obj"])
def test_meshes_have_every_vertex_where_the_body_model_has_it(
    seen: dict[str, Seen], name: str
) -> None:
    one = seen[name]
    for frame, number, person, row in one.moments():
        vertices = posed_vertices(one.stage, person)[row] @ Z_UP.T
        np.testing.assert_allclose(one.vertices[frame, number], vertices, atol=EXACT)


@pytest.mark.parametrize("name", [*SCENES, "fbx", "glb", "bvh"])
def test_bones_begin_at_the_joints(seen: dict[str, Seen], name: str) -> None:
    one = seen[name]
    for frame, number, person, row in one.moments():
        _, joints = skinned(one.stage, person, row)
        np.testing.assert_allclose(one.joints[frame, number], joints, atol=HEADS)


@pytest.mark.parametrize("name", [*SCENES, "fbx", "glb"])
def test_camera_sees_joints_where_they_are_in_the_clip(seen: dict[str, Seen], name: str) -> None:
    one = seen[name]
    camera = one.stage.camera
    assert one.about["resolution"] == list(camera.image_size)
    off = camera.principal_point - np.array(camera.image_size) / 2
    for frame, number, person, row in one.moments():
        # glTF's cameras look along the middle of the picture.
        expected = person.joints2d[row] - (off if name == "glb" else 0)
        np.testing.assert_allclose(one.pixels[frame, number], expected, atol=PIXEL)


def test_camera_of_usd_sees_vertices_where_ours_does(seen: dict[str, Seen]) -> None:
    one = seen["usd"]
    for frame, number, person, row in one.moments():
        expected = see(posed_vertices(one.stage, person)[row, ::STEP], one.stage.camera)
        np.testing.assert_allclose(one.pixels[frame, number], expected, atol=PIXEL)


@pytest.mark.parametrize("name", ALL)
def test_everybody_is_there_in_metres(seen: dict[str, Seen], name: str) -> None:
    one = seen[name]
    people = [person.name for person in one.stage.people]
    assert [mesh.removesuffix("_body") for mesh in one.about["meshes"]] == people
    assert one.about["metres"] == pytest.approx(1)
    np.testing.assert_allclose(one.about["scales"], 1, atol=1e-6)
    assert len(one.about["materials"]) == len(people)


@pytest.mark.parametrize("name", [*ALL, "bvh", "joints"])
def test_rate_is_the_clips(seen: dict[str, Seen], name: str) -> None:
    assert seen[name].about["fps"] == pytest.approx(seen[name].stage.fps, rel=1e-6)


@pytest.mark.parametrize("name", [*SCENES, "usd"])
def test_frame_range_is_the_clips(seen: dict[str, Seen], name: str) -> None:
    codes = np.concatenate([person.times for person in seen[name].stage.people])
    codes = codes * seen[name].stage.fps
    expected = [np.floor(codes.min() + 1e-3), np.ceil(codes.max() - 1e-3)]
    assert seen[name].about["range"] == expected


@pytest.mark.parametrize("name", [*SCENES])
def test_collections_are_the_clip_and_its_people(seen: dict[str, Seen], name: str) -> None:
    stage = seen[name].stage
    people = [person.name for person in stage.people]
    assert seen[name].about["collections"] == {stage.name: people, **{who: [] for who in people}}


@pytest.mark.parametrize("name", [*SCENES, "fbx"])
def test_rigs_say_whose_weights(seen: dict[str, Seen], name: str) -> None:
    for facts in seen[name].about["facts"]:
        assert facts["weights"] == seen[name].stage.weights
        assert facts["trained"] in ("True", "1")


def test_people_are_hidden_while_they_are_not_seen(seen: dict[str, Seen]) -> None:
    hidden = seen["blend"].hidden  # frames, people, viewport and render
    assert hidden[:, [0, 2]].sum() == 0
    assert hidden[:, 1].all(axis=1).tolist() == [frame < LATE for frame in FRAMES]


def test_people_are_hidden_in_holes(seen: dict[str, Seen]) -> None:
    one = seen["uneven"]
    assert not one.hidden[:, 2].any()
    single = one.stage.people[1].times[0] * FPS
    visible = [np.floor(single) <= frame < np.floor(single) + 1 for frame in one.frames]
    assert (~one.hidden[:, 1]).all(axis=1).tolist() == visible


@pytest.mark.parametrize("name", ["walk", "addon"])
def test_clip_is_behind_the_people(seen: dict[str, Seen], name: str) -> None:
    ((file, first),) = seen[name].about["backgrounds"]
    assert Path(file) == WALK
    assert first == 0


def test_plain_code_puts_joints_where_they_are(seen: dict[str, Seen]) -> None:
    one = seen["joints"]
    found = one.pixels[:, 0].reshape(len(FRAMES), 2, 24, 2)
    for frame, number, person, row in one.moments():
        np.testing.assert_allclose(found[frame, number], person.joints2d[row], atol=PIXEL)


def test_rendered_picture_shows_people_over_the_clip(seen: dict[str, Seen]) -> None:
    one = seen["walk"]
    frame = one.frames[-1]
    picture = cv2.cvtColor(cv2.imread(str(one.picture)), cv2.COLOR_BGR2RGB).astype(np.float64)
    height, width = picture.shape[:2]
    with closing(read_frames(probe(WALK), report=Reporter())) as frames:
        source = next(image.image for image in frames if image.index == frame)
    clip = cv2.resize(source, (width, height), interpolation=cv2.INTER_AREA)
    changed = np.abs(picture - clip).max(axis=2) > 40
    people = np.zeros((height, width), np.uint8)
    for person in one.stage.people:
        row = int(np.flatnonzero(person.frame_ids == frame)[0])
        pixels = see(posed_vertices(one.stage, person)[row], one.stage.camera) * width / 1280
        people[tuple(np.clip(pixels, 0, [width - 1, height - 1]).astype(int).T[::-1])] = 1
    people = cv2.morphologyEx(people, cv2.MORPH_CLOSE, np.ones((5, 5)))
    assert changed[people > 0].mean() > 0.7
    assert changed[cv2.dilate(people, np.ones((5, 5))) == 0].mean() < 0.05
