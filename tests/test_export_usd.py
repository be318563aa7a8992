from __future__ import annotations

import copy
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from stages import LATE, free_body, make_stage, posed_vertices, see

from mpsnet_cli.body import JOINT_NAMES, PARENTS
from mpsnet_cli.export.stage import Floats, Performer, Stage

pytest.importorskip("pxr", reason="needs usd-core")
from pxr import Gf, Sdf, Usd, UsdGeom, UsdRender, UsdShade, UsdSkel, UsdValidation

from mpsnet_cli.export import usd

EXACT = 1e-5  # m, a hundredth of a millimetre
LINEAR = 1e-4  # m


def write(path: Path, stage: Stage) -> Usd.Stage:
    advanced: list[int] = []
    usd.write_usd(path, stage, advance=advanced.append)
    assert sum(advanced) == sum(len(person) for person in stage.people)
    return Usd.Stage.Open(str(path))


def written(tmp_path: Path, stage: Stage) -> Usd.Stage:
    return write(tmp_path / "scene.usdc", stage)


def body_of(scene: Usd.Stage, person: Performer, variant: str = "exact") -> UsdGeom.Mesh:
    prim = scene.GetPrimAtPath(f"/World/{person.name}")
    scene.SetEditTarget(scene.GetSessionLayer())
    prim.GetVariantSet("mesh").SetVariantSelection(variant)
    below = (
        prim.GetPath() if variant == "exact" else prim.GetPath().AppendChild(f"{person.name}_rig")
    )
    mesh = UsdGeom.Mesh.Get(scene, below.AppendChild(f"{person.name}_body"))
    assert mesh
    return mesh


def edited(stage: Stage, **changes: Any) -> Stage:
    """The stage with its first person changed."""
    return replace(stage, people=[replace(stage.people[0], **changes), *stage.people[1:]])


def picked(person: Performer, rows: list[int]) -> dict[str, Any]:
    names = ("times", "frame_ids", "rotations", "transl", "betas_per_time", "joints2d")
    return {name: getattr(person, name)[rows] for name in names}


def linear_skinning(person: Performer) -> tuple[Floats, Floats]:
    """Vertices (N, V, 3) and joints (N, 24, 3) by the textbook, in numpy, without correctives."""
    body, rest = free_body(), person.rest_joints
    shape = body(np.zeros((1, 72)), person.betas[None])[0][0].astype(np.float64)
    rotations, joints = person.rotations.copy(), np.empty((len(person), 24, 3))
    joints[:, 0] = rest[0] + person.transl
    for joint, parent in list(enumerate(PARENTS))[1:]:
        joints[:, joint] = joints[:, parent] + rotations[:, parent] @ (rest[joint] - rest[parent])
        rotations[:, joint] = rotations[:, parent] @ person.rotations[:, joint]
    vertices = np.zeros((len(person), len(shape), 3))
    for joint, weights in enumerate(body.skinning_weights.T.astype(np.float64)):
        turned = (shape - rest[joint]) @ rotations[:, joint].swapaxes(1, 2)
        vertices += weights[:, None] * (turned + joints[:, joint, None])
    return vertices, joints


def shown(scene: Usd.Stage, person: Performer) -> list[int]:
    prim = UsdGeom.Imageable(scene.GetPrimAtPath(f"/World/{person.name}"))
    codes = range(int(scene.GetStartTimeCode()), int(scene.GetEndTimeCode()) + 1)
    return [code for code in codes if prim.ComputeVisibility(code) != UsdGeom.Tokens.invisible]


def complaints(scene: Usd.Stage) -> list[str]:
    validators = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    errors = UsdValidation.ValidationContext(validators).Validate(scene)
    return [f"{error.GetName()}: {error.GetMessage()}" for error in errors]


@pytest.mark.parametrize("suffix", [".usdc", ".usd"])
def test_the_file_is_binary_and_valid_in_both_variants(tmp_path: Path, suffix: str) -> None:
    stage = make_stage(people=3, frames=8)
    scene = write(tmp_path / f"scene{suffix}", stage)
    assert Path(scene.GetRootLayer().realPath).read_bytes().startswith(b"PXR-USDC")
    assert complaints(scene) == []
    for person in stage.people:
        body_of(scene, person, "skinned")
    assert complaints(scene) == []
    UsdSkel.BindingAPI.Apply(scene.OverridePrim("/World/camera"))
    assert complaints(scene) != []  # so that the checks above can fail


def test_the_stage_has_the_clips_rate_and_metres_and_y_up(tmp_path: Path) -> None:
    stage = make_stage(frames=12, fps=30000 / 1001)
    scene = written(tmp_path, stage)
    assert scene.GetTimeCodesPerSecond() == scene.GetFramesPerSecond() == 30000 / 1001
    assert (scene.GetStartTimeCode(), scene.GetEndTimeCode()) == (0, 11)
    assert UsdGeom.GetStageUpAxis(scene) == UsdGeom.Tokens.y
    assert UsdGeom.GetStageMetersPerUnit(scene) == 1
    assert [prim.GetName() for prim in scene.GetDefaultPrim().GetChildren()] == [
        "camera", *(person.name for person in stage.people),
    ]  # fmt: skip
    for person in stage.people:
        codes = body_of(scene, person).GetPointsAttr().GetTimeSamples()
        assert codes == person.frame_ids.tolist()  # whole, whatever times · fps rounds to


def test_times_of_a_variable_rate_stay_exact(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=5)
    times = np.array([0.0, 0.03125, 0.109375, 0.125, 0.21875])
    scene = written(tmp_path, replace(edited(stage, times=times), uniform=False))
    codes = body_of(scene, stage.people[0]).GetPointsAttr().GetTimeSamples()
    assert codes == (times * 30).tolist()
    assert scene.GetEndTimeCode() == 7
    assert shown(scene, stage.people[0]) == list(range(8))  # frames in a row are no hole


def test_exact_points_are_the_bodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usd, "CHUNK", 7)
    stage = make_stage(frames=20)
    waves = np.sin(np.arange(20)[:, None] + np.arange(10))
    stage = edited(stage, betas_per_time=stage.people[0].betas_per_time + waves)
    scene = written(tmp_path, stage)
    for person in stage.people:
        mesh, wanted = body_of(scene, person), posed_vertices(stage, person)
        for row in (0, 6, 7, 8, len(person) - 1):
            code = float(person.frame_ids[row])
            points = np.array(mesh.GetPointsAttr().Get(code))
            np.testing.assert_allclose(points, wanted[row], atol=EXACT)
            extent = [points.min(axis=0), points.max(axis=0)]
            np.testing.assert_array_equal(mesh.GetExtentAttr().Get(code), extent)
        np.testing.assert_array_equal(
            np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3), stage.body.faces
        )


def test_the_skinned_body_follows_by_linear_skinning(tmp_path: Path) -> None:
    stage = make_stage(frames=12)
    scene = written(tmp_path, stage)
    cache, times = UsdSkel.Cache(), UsdGeom.XformCache()
    for person in stage.people:
        mesh = body_of(scene, person, "skinned")
        root = UsdSkel.Root(mesh.GetPrim().GetParent())
        cache.Populate(root, Usd.PrimDefaultPredicate)
        skeleton = UsdSkel.BindingAPI(mesh.GetPrim()).GetInheritedSkeleton()
        query, skinning = cache.GetSkelQuery(skeleton), cache.GetSkinningQuery(mesh.GetPrim())
        vertices, joints = linear_skinning(person)
        for row in (0, 5, len(person) - 1):
            code = float(person.frame_ids[row])
            points = mesh.GetPointsAttr().Get()
            skinning.ComputeSkinnedPoints(query.ComputeSkinningTransforms(code), points, code)
            np.testing.assert_allclose(np.array(points), vertices[row], atol=LINEAR)
            times.SetTime(code)
            found = [np.array(m)[3, :3] for m in query.ComputeJointWorldTransforms(times)]
            np.testing.assert_allclose(found, joints[row], atol=LINEAR)
        rest = [np.array(m)[3, :3] for m in query.ComputeJointSkelTransforms(0, atRest=True)]
        np.testing.assert_allclose(rest, person.rest_joints, atol=1e-6)
        assert [joint.rpartition("/")[2] for joint in query.GetJointOrder()] == list(JOINT_NAMES)
        assert query.GetTopology().GetParentIndices() == list(PARENTS)


def test_quaternions_go_on_without_a_jump_past_half_a_turn(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=40)
    turns = Rotation.from_rotvec(np.linspace(0, 4 * np.pi, 40)[:, None] * [0, 1, 0]).as_matrix()
    rotations = stage.people[0].rotations.copy()
    rotations[:, [0, 5]] = turns[:, None]
    scene = written(tmp_path, edited(stage, rotations=rotations))
    body_of(scene, stage.people[0], "skinned")
    path = "/World/person_01/person_01_rig/person_01_animation"
    attribute = UsdSkel.Animation.Get(scene, path).GetRotationsAttr()
    keys = [[[*q.imaginary, q.real] for q in attribute.Get(code)] for code in range(40)]
    found = np.array(keys)
    assert (np.sum(found[1:] * found[:-1], axis=-1) > 0.9).all()
    turned = Rotation.from_quat(found.reshape(-1, 4)).as_matrix().reshape(rotations.shape)
    np.testing.assert_allclose(turned, rotations, atol=1e-6)


@pytest.mark.parametrize("pitch", [0, 17])
def test_the_camera_sees_what_the_clips_camera_saw(tmp_path: Path, pitch: float) -> None:
    stage = make_stage(frames=6, pitch=pitch)
    scene = written(tmp_path, stage)
    settings = UsdRender.Settings.GetStageRenderSettings(scene)
    [path] = settings.GetCameraRel().GetTargets()
    width, height = settings.GetResolutionAttr().Get()
    assert (width, height) == stage.camera.image_size
    frustum = UsdGeom.Camera.Get(scene, path).GetCamera(0).frustum
    matrix = np.array(frustum.ComputeViewMatrix() * frustum.ComputeProjectionMatrix())
    for person in stage.people:
        vertices = posed_vertices(stage, person)
        clip = np.concatenate([vertices, np.ones((*vertices.shape[:2], 1))], axis=2) @ matrix
        x, y, z = np.moveaxis(clip[..., :3] / clip[..., 3:], -1, 0)
        pixels = np.stack([(1 + x) / 2 * width, (1 - y) / 2 * height], axis=-1)
        np.testing.assert_allclose(pixels, see(vertices, stage.camera), atol=0.1)
        assert (np.abs(z) < 1).all()  # within the clipping range


def test_the_sensor_has_36_millimetres(tmp_path: Path) -> None:
    scene = written(tmp_path, make_stage(frames=2))
    camera = UsdGeom.Camera.Get(scene, "/World/camera")
    tenth = 0.1  # m: apertures are in tenths of a unit, and ours is the metre
    assert camera.GetHorizontalApertureAttr().Get() * tenth == pytest.approx(0.036)
    assert camera.GetFocalLengthAttr().Get() * tenth == pytest.approx(0.036 * 600 / 640)


def test_people_are_hidden_while_they_are_away(tmp_path: Path) -> None:
    stage = make_stage(people=3, frames=20)
    first, late, gone = stage.people
    holes = [0, 1, 2, 8, 9, 15]
    people = [
        replace(first, **picked(first, holes)),
        late,
        replace(gone, **picked(gone, [*range(4)])),
    ]
    scene = written(tmp_path, replace(stage, people=people))
    assert shown(scene, first) == holes
    assert shown(scene, late) == list(range(LATE, 20))
    assert shown(scene, gone) == [0, 1, 2, 3]


def test_a_coarser_rate_is_no_hole(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=20)
    half = replace(edited(stage, **picked(stage.people[0], [*range(0, 20, 2)])), fps=15)
    assert shown(written(tmp_path, half), stage.people[0]) == list(range(10))


def test_a_part_of_a_clip_keeps_its_place_in_time(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=20)
    scene = written(tmp_path, edited(stage, **picked(stage.people[0], [12, 13, 14])))
    assert (scene.GetStartTimeCode(), scene.GetEndTimeCode()) == (12, 14)


def test_a_person_of_one_frame_and_nobody_at_all(tmp_path: Path) -> None:
    stage = make_stage(people=2, frames=10)
    once = edited(stage, **picked(stage.people[0], [4]))
    scene = written(tmp_path, once)
    assert complaints(scene) == []
    assert shown(scene, once.people[0]) == [4]
    assert body_of(scene, once.people[0]).GetPointsAttr().GetTimeSamples() == [4]

    empty = write(tmp_path / "nobody.usdc", replace(stage, people=[]))
    assert complaints(empty) == []
    assert [prim.GetName() for prim in empty.GetDefaultPrim().GetChildren()] == ["camera"]


def test_every_person_looks_different(tmp_path: Path) -> None:
    stage = make_stage(people=6, frames=1)
    scene = written(tmp_path, stage)
    colours = []
    for person in stage.people:
        mesh = body_of(scene, person)
        [colour] = mesh.GetDisplayColorAttr().Get()
        material, _ = UsdShade.MaterialBindingAPI(mesh.GetPrim()).ComputeBoundMaterial()
        surface, _, _ = material.ComputeSurfaceSource()
        assert surface.GetInput("diffuseColor").Get() == colour
        colours.append(np.array(colour))
    for one, other in itertools.combinations(colours, 2):
        assert np.abs(one - other).max() > 0.05


def test_texture_coordinates_are_the_bodys_if_it_has_any(tmp_path: Path) -> None:
    stage = make_stage(people=1, frames=1)
    scene = written(tmp_path, stage)
    uv = UsdGeom.PrimvarsAPI(body_of(scene, stage.people[0])).GetPrimvar("st")
    assert uv.GetInterpolation() == UsdGeom.Tokens.faceVarying
    wanted = stage.body.uv[stage.body.uv_faces.ravel()]
    np.testing.assert_array_equal(uv.ComputeFlattened(), wanted)

    bare = copy.copy(stage.body)  # as SMPL's files are
    bare.uv = bare.uv_faces = None
    scene = write(tmp_path / "bare.usdc", replace(stage, body=bare))
    mesh = body_of(scene, stage.people[0])
    assert not UsdGeom.PrimvarsAPI(mesh).HasPrimvar("st")


@pytest.mark.parametrize("trained", [True, False])
def test_the_file_says_what_made_it(tmp_path: Path, trained: bool) -> None:
    scene = written(tmp_path, make_stage(frames=1, trained=trained))
    layer = scene.GetRootLayer()
    data = layer.customLayerData
    assert data["generator"].startswith("mpsnet-cli ")
    assert (data["weights"], data["trained"], data["body"]) == ("test weights", trained, "free-1")
    assert "test weights" in layer.documentation
    assert ("UNTRAINED" in layer.documentation) == (not trained)


def test_strange_names_become_valid(tmp_path: Path) -> None:
    stage = edited(make_stage(frames=1), name="1 päth/of")
    folder = tmp_path / "a [1] %04d é"
    folder.mkdir()
    scene = write(folder / "x.usdc", stage)
    names = [prim.GetName() for prim in scene.GetDefaultPrim().GetChildren()]
    assert len(set(names)) == 3
    assert complaints(scene) == []


def test_bodies_go_to_the_file_before_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usd, "CHUNK", 8)
    path = tmp_path / "scene.usdc"
    sizes: list[int] = []
    stage = make_stage(people=2, frames=40)
    usd.write_usd(path, stage, advance=lambda _: sizes.append(path.stat().st_size))
    data = stage.body.vertex_count * 12
    for done, size in enumerate(sizes, 1):
        assert size > (done - 8) * data
    assert path.stat().st_size < len(sizes) * data * 1.3  # and nothing is there twice


def test_a_full_disk_is_an_oserror(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(OSError, match=r"(?i)error occurred writing file: file too large"):
            usd.write_usd(tmp_path / "a.usdc", make_stage(frames=20), advance=lambda _: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert written(tmp_path, make_stage(frames=3))  # USD works on after that


def test_a_path_can_be_written_again(tmp_path: Path) -> None:
    usd.write_usd(tmp_path / "scene.usdc", make_stage(frames=9), advance=lambda _: None)
    assert Sdf.Layer.Find(str(tmp_path / "scene.usdc")) is None  # it is open no longer
    assert written(tmp_path, make_stage(frames=3)).GetEndTimeCode() == 2


def test_the_camera_is_not_mirrored(tmp_path: Path) -> None:
    scene = written(tmp_path, make_stage(frames=1, pitch=30))
    matrix = UsdGeom.Xformable(scene.GetPrimAtPath("/World/camera")).GetLocalTransformation()
    assert matrix.GetDeterminant() == pytest.approx(1)
    looks = matrix.TransformDir(Gf.Vec3d(0, 0, -1))
    np.testing.assert_allclose(looks, [0, -0.5, -np.sqrt(0.75)], atol=1e-6)
