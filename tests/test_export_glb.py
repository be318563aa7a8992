from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pygltflib
import pytest
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation, Slerp
from stages import LATE, make_stage, posed_vertices, see

from mpsnet_cli.body import PARENTS
from mpsnet_cli.colours import person_colour
from mpsnet_cli.export.glb import write_glb
from mpsnet_cli.export.stage import Performer, Stage

MM = 1e-3
DTYPES = {5121: np.uint8, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4, "MAT4": 16}

Array = NDArray[Any]


class Viewer:
    """What a reader of glTF does with the file, by the specification alone."""

    def __init__(self, path: Path) -> None:
        self.file = pygltflib.GLTF2().load_binary(path)
        self.nodes = self.file.nodes
        self.parents = {
            child: node for node, it in enumerate(self.nodes) for child in it.children or []
        }
        self.blob = self.file.binary_blob()
        self.curves = {}
        for animation in self.file.animations:
            for channel in animation.channels:
                sampler = animation.samplers[channel.sampler]
                curve = self.array(sampler.input), self.array(sampler.output), sampler.interpolation
                self.curves[channel.target.node, channel.target.path] = curve

    def array(self, index: int) -> Array:
        accessor = self.file.accessors[index]
        view = self.file.bufferViews[accessor.bufferView]
        width, dtype = WIDTHS[accessor.type], DTYPES[accessor.componentType]
        values = np.frombuffer(self.blob, dtype, accessor.count * width, view.byteOffset)
        return values.reshape(-1, width) if width > 1 else values

    def node(self, name: str) -> int:
        (found,) = (i for i, node in enumerate(self.nodes) if node.name == name)
        return found

    def value(self, node: int, path: str, time: float | None, rest: list[float]) -> Array:
        """A node's translation, rotation or scale at a time; None: without the animation."""
        if time is None or (node, path) not in self.curves:
            stated = getattr(self.nodes[node], path)
            return np.array(rest if stated is None else stated)
        times, values, interpolation = self.curves[node, path]
        time = np.clip(np.float32(time), times[0], times[-1])
        if interpolation == "STEP" or len(times) == 1:
            return values[np.searchsorted(times, time, side="right") - 1]
        if path == "rotation":
            return Slerp(times, Rotation.from_quat(values))(time).as_quat()
        return np.array([np.interp(time, times, column) for column in values.T])

    def transform(self, node: int, time: float | None, above: Array | None = None) -> Array:
        """From a node's coordinates to the world's: (4, 4), if need be with its parent's."""
        matrix = np.eye(4)
        turn = Rotation.from_quat(self.value(node, "rotation", time, [0, 0, 0, 1])).as_matrix()
        matrix[:3, :3] = turn * self.value(node, "scale", time, [1, 1, 1])
        matrix[:3, 3] = self.value(node, "translation", time, [0, 0, 0])
        if above is None and node in self.parents:
            above = self.transform(self.parents[node], time)
        return matrix if above is None else above @ matrix

    def bones(self, person: str, time: float | None) -> Array:
        skin = self.file.skins[self.nodes[self.node(f"{person}_body")].skin]
        placed: dict[int, Array] = {}
        for joint in skin.joints:  # parents first
            above = placed.get(self.parents[joint])
            placed[joint] = self.transform(joint, time, above)
        return np.stack(list(placed.values()))

    def attributes(self, person: str) -> dict[str, Array]:
        mesh = self.file.meshes[self.nodes[self.node(f"{person}_body")].mesh]
        (primitive,) = mesh.primitives
        names = vars(primitive.attributes)
        found = {name: self.array(place) for name, place in names.items() if place is not None}
        return {"indices": self.array(primitive.indices), **found}

    def vertices(self, person: str, time: float | None) -> Array:
        skin = self.file.skins[self.nodes[self.node(f"{person}_body")].skin]
        unbind = self.array(skin.inverseBindMatrices).reshape(-1, 4, 4).swapaxes(1, 2)
        mesh = self.attributes(person)
        matrices = (self.bones(person, time) @ unbind)[mesh["JOINTS_0"]]
        blend = (mesh["WEIGHTS_0"][..., None, None] * matrices).sum(axis=1)
        return np.einsum("vij,vj->vi", blend[:, :3, :3], mesh["POSITION"]) + blend[:, :3, 3]


def linear_skinning(stage: Stage, person: Performer, row: int) -> Array:
    """SMPL without pose correctives, written again (Loper et al. 2015, equations 2 to 4)."""
    (rest,), _ = stage.body(np.zeros((1, 72)), person.betas[None])
    turns, places = [person.rotations[row, 0]], [person.rest_joints[0] + person.transl[row]]
    for joint in range(1, 24):
        parent = PARENTS[joint]
        offset = person.rest_joints[joint] - person.rest_joints[parent]
        places.append(turns[parent] @ offset + places[parent])
        turns.append(turns[parent] @ person.rotations[row, joint])
    seen_from = rest[:, None] - person.rest_joints
    moved = np.einsum("jab,vjb->vja", np.stack(turns), seen_from) + np.stack(places)
    return np.einsum("vj,vja->va", stage.body.skinning_weights.astype(np.float64), moved)


def distance(a: Array, b: Array) -> Array:
    return np.linalg.norm(a - b, axis=-1)


@pytest.fixture
def export(tmp_path: Path) -> Callable[[Stage], Path]:
    def export(stage: Stage) -> Path:
        advanced: list[int] = []
        write_glb(tmp_path / "clip.glb", stage, advance=advanced.append)
        assert advanced == [len(person) for person in stage.people]
        return tmp_path / "clip.glb"

    return export


@pytest.fixture
def validate() -> Callable[[Path], dict[str, Any]]:
    """Khronos' own validator, if it is here."""
    folder, node = os.environ.get("GLTF_VALIDATOR"), shutil.which("node")
    if not (folder and node):
        pytest.skip("needs node, `npm install --prefix DIR gltf-validator`, GLTF_VALIDATOR=DIR")

    def validate(path: Path) -> dict[str, Any]:
        script = Path(__file__).parent / "gltf_validate.mjs"
        run = subprocess.run([node, script, folder, path], capture_output=True, check=True)
        return json.loads(run.stdout)

    return validate


def at(person: Performer, rows: Array) -> Performer:
    """The person at some of their times only."""
    names = ("times", "frame_ids", "rotations", "transl", "betas_per_time", "joints2d")
    return replace(person, **{name: getattr(person, name)[rows] for name in names})


def with_gap(stage: Stage, rows: slice) -> Stage:
    """The first person out of sight for some rows."""
    first, *others = stage.people
    return replace(stage, people=[at(first, np.delete(np.arange(len(first)), rows)), *others])


def uneven(stage: Stage) -> Stage:
    """The times of a clip of variable frame rate, which starts late."""
    rng = np.random.default_rng(5)
    offsets = 0.021 + np.cumsum(rng.uniform(0.005, 0.06, 1000))
    people = [replace(person, times=offsets[person.frame_ids]) for person in stage.people]
    return replace(stage, people=people, uniform=False)


@pytest.mark.parametrize(
    "stage",
    [
        make_stage(),
        make_stage(people=9, frames=8, fps=24000 / 1001, trained=False, pitch=20),
        make_stage(people=1, frames=1),
        with_gap(make_stage(), slice(4, 9)),
        uneven(make_stage()),
    ],
    ids=["two", "nine", "one frame", "gap", "uneven"],
)
def test_khronos_finds_nothing_to_say(
    stage: Stage, export: Callable[[Stage], Path], validate: Callable[[Path], dict[str, Any]]
) -> None:
    report = validate(export(stage))
    assert report["issues"]["messages"] == []
    assert report["info"]["animationCount"] == 1
    assert report["info"]["drawCallCount"] == len(stage.people)


@pytest.mark.parametrize("change", [lambda stage: stage, uneven], ids=["even", "uneven"])
def test_skin_follows_the_body(
    change: Callable[[Stage], Stage], export: Callable[[Stage], Path]
) -> None:
    stage = change(make_stage(people=3))
    viewer = Viewer(export(stage))
    for person in stage.people:
        exact = posed_vertices(stage, person)
        for row in (0, 7):
            seen = viewer.vertices(person.name, person.times[row])
            assert distance(seen, linear_skinning(stage, person, row)).max() < 0.01 * MM
            correctives = distance(seen, exact[row])
            assert correctives.max() < 12 * MM
            assert correctives.mean() < 1 * MM


def test_bones_are_the_joints(export: Callable[[Stage], Path]) -> None:
    stage = make_stage()
    viewer = Viewer(export(stage))
    for person in stage.people:
        pose = Rotation.from_matrix(person.rotations.reshape(-1, 3, 3)).as_rotvec()
        joints = stage.body.joints(pose.reshape(-1, 72), person.betas_per_time)
        joints = joints + person.transl[:, None]
        for row in (0, 1, 8, len(person) - 1):
            heads = viewer.bones(person.name, person.times[row])[:, :3, 3]
            assert distance(heads, joints[row]).max() < 0.01 * MM


def test_between_keys_the_short_way_is_taken(export: Callable[[Stage], Path]) -> None:
    """A pirouette passes the angle at which a quaternion changes sign."""
    stage = make_stage(people=1, frames=30)
    (person,) = stage.people
    angles = np.linspace(0, 4 * np.pi, 30)
    rotations = person.rotations.copy()
    rotations[:, 0] = Rotation.from_rotvec(angles[:, None] * [0, 1, 0]).as_matrix()
    rotations[:, 16] = Rotation.from_rotvec(-angles[:, None] * [0.6, 0, 0.8]).as_matrix()
    stage = replace(stage, people=[replace(person, rotations=rotations)])
    viewer = Viewer(export(stage))
    joints = viewer.file.skins[0].joints
    assert [viewer.nodes[joint].name for joint in joints[:3]] == ["Pelvis", "L_Hip", "R_Hip"]
    assert viewer.nodes[joints[16]].name == "L_Shoulder"
    for joint, bone in enumerate(joints):
        times, values, interpolation = viewer.curves[bone, "rotation"]
        assert interpolation == "LINEAR"
        np.testing.assert_array_equal(times, person.times.astype(np.float32))
        assert ((values[1:] * values[:-1]).sum(axis=1) > 0).all()
        matrices = Rotation.from_quat(values).as_matrix()
        np.testing.assert_allclose(matrices, rotations[:, joint], atol=1e-6)


def test_mesh_is_the_body_with_its_betas(export: Callable[[Stage], Path]) -> None:
    stage = make_stage()
    viewer = Viewer(export(stage))
    for person in stage.people:
        mesh = viewer.attributes(person.name)
        (rest,), _ = stage.body(np.zeros((1, 72)), person.betas[None])
        np.testing.assert_array_equal(mesh["POSITION"], rest)
        np.testing.assert_array_equal(mesh["indices"].reshape(-1, 3), stage.body.faces)
        np.testing.assert_allclose(np.linalg.norm(mesh["NORMAL"], axis=1), 1, atol=1e-6)
        volume = (mesh["NORMAL"] * (rest - rest.mean(axis=0))).sum()
        assert volume > 0  # the normals look outwards
        np.testing.assert_allclose(mesh["WEIGHTS_0"].sum(axis=1), 1, atol=1e-6)
        # Without the animation: the same T-pose, where the person is first.
        np.testing.assert_allclose(
            viewer.vertices(person.name, None), rest + person.transl[0], atol=1e-6
        )


def shown(viewer: Viewer, person: Performer, time: float) -> bool:
    sizes = np.linalg.det(viewer.bones(person.name, time)[:, :3, :3])
    assert (sizes == 0).all() or np.allclose(sizes, 1)
    return bool(sizes.any())


def test_who_is_absent_is_hidden(export: Callable[[Stage], Path]) -> None:
    stage = with_gap(make_stage(), slice(8, 11))
    first, second = stage.people
    leaving = replace(stage, people=[first, at(second, np.arange(9))])
    viewer = Viewer(export(leaving))
    frames = np.arange(20)
    # Shortly after each frame's time, as long as the frame lasts.
    seen = [[shown(viewer, p, (f + 0.1) / stage.fps) for f in frames] for p in stage.people]
    np.testing.assert_array_equal(seen[0], (frames < 8) | (frames >= 11))
    np.testing.assert_array_equal(seen[1], (frames >= LATE) & (frames < LATE + 9))


def test_who_is_always_there_has_no_scale(export: Callable[[Stage], Path]) -> None:
    stage = make_stage()
    lower = replace(stage.people[0], frame_ids=2 * stage.people[0].frame_ids)  # half the rate
    viewer = Viewer(export(replace(stage, people=[lower, stage.people[1]])))
    assert (viewer.node("person_01"), "scale") not in viewer.curves
    assert (viewer.node("person_02"), "scale") in viewer.curves


@pytest.mark.parametrize("pitch", [0, 25])
def test_camera_sees_what_the_clip_shows(pitch: float, export: Callable[[Stage], Path]) -> None:
    stage = make_stage(pitch=pitch)
    viewer = Viewer(export(stage))
    node = viewer.node("camera")
    camera = viewer.file.cameras[viewer.nodes[node].camera]
    person = stage.people[0]
    points = viewer.vertices(person.name, person.times[3])
    local = (points - viewer.transform(node, None)[:3, 3]) @ viewer.transform(node, None)[:3, :3]
    lens = camera.perspective
    tangent = np.tan(lens.yfov / 2) * np.array([lens.aspectRatio, 1])
    size = np.array(camera.extras["image_size"])
    pixels = size / 2 * (1 + [1, -1] * local[:, :2] / -local[:, 2:] / tangent)
    pixels += camera.extras["principal_point"] - size / 2
    assert distance(pixels, see(points, stage.camera)).max() < 0.1
    focal_length = size[1] / 2 / np.tan(lens.yfov / 2)
    assert focal_length == pytest.approx(camera.extras["focal_length"]) == stage.camera.focal_length
    assert lens.zfar is None


def test_what_it_is_from_is_said(export: Callable[[Stage], Path]) -> None:
    stage = make_stage(people=8, frames=3, trained=False)
    file = Viewer(export(stage)).file
    assert file.asset.generator.startswith("mpsnet-cli ")
    assert file.asset.extras == {
        "clip": "walk",
        "fps": 30,
        "weights": "test weights",
        "trained": False,
        "body": "free-1",
    }
    assert file.scenes[0].name == "walk (untrained weights)"
    people = {node.name: node.extras for node in file.nodes if node.name == "person_02"}
    assert people["person_02"]["frame_ids"] == stage.people[1].frame_ids.tolist()
    assert people["person_02"]["betas"] == stage.people[1].betas.tolist()
    colours = [tuple(it.pbrMetallicRoughness.baseColorFactor) for it in file.materials]
    assert len(set(colours)) == len(stage.people)
    for person, colour in zip(stage.people, colours, strict=True):
        linear = np.array(colour[:3])
        srgb = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
        np.testing.assert_allclose(255 * srgb, person_colour(person.id), atol=0.5)
