"""USD: all people and the camera in one binary file, vertex-exact and as skeletons.

    /World               y up, metres; a time code is a frame of the clip
        camera           the clip's; /Render/settings has its resolution
        person_01        hidden while the person is out of sight; variants of "mesh":
            _body        exact, the default: a mesh with the points of every time
            _rig         skinned: a SkelRoot of _body, _skeleton and _animation

A viewer shows one variant of each person. The exact one has the pose correctives and the shape of
each time; the skinned one has the person's one shape and moves by linear skinning. Names below a
person start with the person's, since many readers keep no more than the last name of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pxr import Gf, Sdf, Tf, Usd, UsdGeom, UsdRender, UsdShade, UsdSkel, Vt
from scipy.spatial.transform import Rotation

from mpsnet_cli._version import __version__
from mpsnet_cli.body import JOINT_NAMES, PARENTS, BodyModel
from mpsnet_cli.colours import linear_colour
from mpsnet_cli.export.meshes import world_vertices
from mpsnet_cli.export.stage import Camera, Floats, Performer, Stage

WORLD = Sdf.Path("/World")
GENERATOR = f"mpsnet-cli {__version__}"
CHUNK = 256  # bodies held before they go to the file, about 25 MB
APERTURE_WIDTH = 0.36  # tenths of a metre, which is USD's unit for it: a sensor of 36 mm
CLIPPING_RANGE = (0.1, 1000.0)  # m


def write_usd(path: Path, stage: Stage, *, advance: Callable[[int], None]) -> None:
    """Write a stage as `path`, .usdc or .usd.

    A time code is time · fps, whole where the stage is uniform. Memory stays that of a few hundred
    bodies, however long the clip. Raises OSError if the file cannot be written.
    """
    with _usd_errors_as_oserror():
        scene = Usd.Stage.CreateNew(str(path))
    codes = [_time_codes(person.times, stage) for person in stage.people]
    _describe(scene, stage, codes)
    _add_camera(scene, stage.camera)
    _save(scene)
    for person, times in zip(stage.people, codes, strict=True):
        _add_person(scene, stage, person, times, advance)
        _save(scene)


def _time_codes(times: Floats, stage: Stage) -> Floats:
    codes = times * stage.fps
    return np.rint(codes) if stage.uniform else codes


def _describe(scene: Usd.Stage, stage: Stage, codes: list[Floats]) -> None:
    UsdGeom.SetStageUpAxis(scene, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(scene, 1.0)
    scene.SetTimeCodesPerSecond(stage.fps)
    scene.SetFramesPerSecond(stage.fps)
    scene.SetStartTimeCode(np.floor(min((times[0] for times in codes), default=0.0)))
    scene.SetEndTimeCode(np.ceil(max((times[-1] for times in codes), default=0.0)))
    scene.SetDefaultPrim(UsdGeom.Xform.Define(scene, WORLD).GetPrim())
    layer = scene.GetRootLayer()
    trust = "" if stage.trained else ", UNTRAINED: the motion means nothing"
    layer.documentation = f"{stage.name} by {GENERATOR}, weights {stage.weights}{trust}"
    layer.customLayerData = {
        "generator": GENERATOR,
        "weights": stage.weights,
        "trained": stage.trained,
        "body": stage.body.name,
    }


def _add_camera(scene: Usd.Stage, camera: Camera) -> None:
    """Add the camera, its aperture as far off the axis as the principal point asks."""
    width, height = camera.image_size
    centre_x, centre_y = camera.principal_point
    scale = APERTURE_WIDTH / width  # tenths of a metre per px
    prim = UsdGeom.Camera.Define(scene, WORLD.AppendChild("camera"))
    prim.CreateFocalLengthAttr(camera.focal_length * scale)
    prim.CreateHorizontalApertureAttr(width * scale)
    prim.CreateVerticalApertureAttr(height * scale)
    prim.CreateHorizontalApertureOffsetAttr((width / 2 - centre_x) * scale)
    prim.CreateVerticalApertureOffsetAttr((centre_y - height / 2) * scale)
    prim.CreateClippingRangeAttr(Gf.Vec2f(CLIPPING_RANGE))
    matrix = np.eye(4)
    matrix[:3, :3], matrix[3, :3] = camera.rotation.T, camera.position  # USD's vectors are rows
    prim.AddTransformOp().Set(Gf.Matrix4d(matrix))

    settings = UsdRender.Settings.Define(scene, "/Render/settings")
    settings.CreateResolutionAttr(Gf.Vec2i(width, height))
    settings.CreateCameraRel().SetTargets([prim.GetPath()])
    scene.SetMetadata("renderSettingsPrimPath", str(settings.GetPath()))


def _add_person(
    scene: Usd.Stage,
    stage: Stage,
    person: Performer,
    codes: Floats,
    advance: Callable[[int], None],
) -> None:
    path = WORLD.AppendChild(Tf.MakeValidIdentifier(person.name))
    prim = UsdGeom.Xform.Define(scene, path).GetPrim()
    prim.SetCustomData({"track_id": person.id, "gender": person.gender})
    _key_visibility(scene, prim, _time_codes(person.seen(stage.fps), stage))
    _bind_material(scene, prim, person)
    variants = prim.GetVariantSets().AddVariantSet("mesh")
    variants.AddVariant("skinned")
    variants.SetVariantSelection("skinned")
    with variants.GetVariantEditContext():
        _add_rig(scene, path, stage.body, person, codes)
    variants.AddVariant("exact")
    variants.SetVariantSelection("exact")
    with variants.GetVariantEditContext():
        _add_exact_body(scene, path, stage, person, codes, advance)


def _key_visibility(scene: Usd.Stage, prim: Usd.Prim, seen: Floats) -> None:
    """Hide a person who is not `seen` (R, 2), from one time code to another and a frame longer."""
    appears, vanishes = seen[:, 0], seen[:, 1] + 1
    visibility = UsdGeom.Imageable(prim).CreateVisibilityAttr()
    visibility.Set(UsdGeom.Tokens.invisible, scene.GetStartTimeCode())
    for code in appears:
        visibility.Set(UsdGeom.Tokens.inherited, code)
    for code in vanishes[vanishes <= scene.GetEndTimeCode()]:
        visibility.Set(UsdGeom.Tokens.invisible, code)


def _bind_material(scene: Usd.Stage, prim: Usd.Prim, person: Performer) -> None:
    path = _child(prim.GetPath(), person, "material")
    material = UsdShade.Material.Define(scene, path)
    shader = UsdShade.Shader.Define(scene, path.AppendChild("surface"))
    shader.CreateIdAttr("UsdPreviewSurface")
    shader.CreateInput("diffuseColor", Sdf.ValueTypeNames.Color3f).Set(_colour(person))
    shader.CreateInput("roughness", Sdf.ValueTypeNames.Float).Set(0.6)
    surface = shader.CreateOutput("surface", Sdf.ValueTypeNames.Token)
    material.CreateSurfaceOutput().ConnectToSource(surface)
    UsdShade.MaterialBindingAPI.Apply(prim).Bind(material)


def _colour(person: Performer) -> Gf.Vec3f:
    return Gf.Vec3f(*linear_colour(person.id).tolist())


def _add_exact_body(
    scene: Usd.Stage,
    path: Sdf.Path,
    stage: Stage,
    person: Performer,
    codes: Floats,
    advance: Callable[[int], None],
) -> None:
    """Add the mesh with the points of every time, handing them to the file bit by bit."""
    mesh = _add_mesh(scene, path, stage.body, person)
    vertices = world_vertices(stage.body, person)
    for count, (code, points) in enumerate(zip(codes, vertices, strict=True), 1):
        _set_points(mesh, points, code)
        if count % CHUNK == 0:
            _save(scene)
        advance(1)


def _add_rig(
    scene: Usd.Stage, path: Sdf.Path, body: BodyModel, person: Performer, codes: Floats
) -> None:
    """Add the T-pose of the person's shape and the skeleton that moves it."""
    rig = UsdSkel.Root.Define(scene, _child(path, person, "rig")).GetPath()
    skeleton = _add_skeleton(scene, rig, person, codes)
    mesh = _add_mesh(scene, rig, body, person)
    vertices, _ = body(np.zeros((1, 3 * len(JOINT_NAMES))), person.betas[None])
    _set_points(mesh, vertices[0], Usd.TimeCode.Default())
    joints, weights = _influences(body.skinning_weights)
    most = joints.shape[1]
    binding = UsdSkel.BindingAPI.Apply(mesh.GetPrim())
    binding.CreateSkeletonRel().SetTargets([skeleton.GetPath()])
    binding.CreateGeomBindTransformAttr(Gf.Matrix4d(1))
    binding.CreateJointIndicesPrimvar(False, most).Set(Vt.IntArray.FromNumpy(joints.ravel()))
    binding.CreateJointWeightsPrimvar(False, most).Set(Vt.FloatArray.FromNumpy(weights.ravel()))


def _add_skeleton(
    scene: Usd.Stage, rig: Sdf.Path, person: Performer, codes: Floats
) -> UsdSkel.Skeleton:
    """Add a skeleton with the person's own bone lengths, moving."""
    names, rest = Vt.TokenArray(_joint_paths()), person.rest_joints
    offsets = np.concatenate([rest[:1], rest[1:] - rest[list(PARENTS[1:])]])
    skeleton = UsdSkel.Skeleton.Define(scene, _child(rig, person, "skeleton"))
    skeleton.CreateJointsAttr(names)
    skeleton.CreateBindTransformsAttr(_translation_matrices(rest))
    skeleton.CreateRestTransformsAttr(_translation_matrices(offsets))

    animation = UsdSkel.Animation.Define(scene, _child(rig, person, "animation"))
    source = UsdSkel.BindingAPI.Apply(skeleton.GetPrim()).CreateAnimationSourceRel()
    source.SetTargets([animation.GetPath()])
    animation.CreateJointsAttr(names)
    animation.CreateScalesAttr(Vt.Vec3hArray(len(names), Gf.Vec3h(1, 1, 1)))
    translations = np.repeat(offsets[None].astype(np.float32), len(codes), axis=0)
    translations[:, 0] = rest[0] + person.transl
    for code, rotation, translation in zip(
        codes, _quaternions(person.rotations), translations, strict=True
    ):
        animation.GetRotationsAttr().Set(Vt.QuatfArray.FromNumpy(rotation), code)
        animation.GetTranslationsAttr().Set(Vt.Vec3fArray.FromNumpy(translation), code)
    return skeleton


def _joint_paths() -> list[str]:
    """Name each joint by its path from the pelvis, as UsdSkel has them."""
    paths: list[str] = []
    for name, parent in zip(JOINT_NAMES, PARENTS, strict=True):
        paths.append(name if parent < 0 else f"{paths[parent]}/{name}")
    return paths


def _translation_matrices(offsets: Floats) -> Vt.Matrix4dArray:
    return Vt.Matrix4dArray([Gf.Matrix4d().SetTranslate(offset) for offset in offsets.tolist()])


def _quaternions(rotations: Floats) -> NDArray[np.float32]:
    """Turn matrices (N, J, 3, 3) into quaternions (N, J, 4), x y z w, without jumps of sign."""
    flat = Rotation.from_matrix(rotations.reshape(-1, 3, 3)).as_quat()
    quaternions = flat.reshape(*rotations.shape[:2], 4)
    flips = np.sum(quaternions[1:] * quaternions[:-1], axis=-1) < 0
    quaternions[1:][np.cumsum(flips, axis=0) % 2 == 1] *= -1
    return quaternions.astype(np.float32)


def _influences(weights: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """List the joints (V, K) that move each vertex and their weights (V, K), the largest first."""
    most = np.count_nonzero(weights, axis=1).max()
    joints = np.argsort(-weights, axis=1, kind="stable")[:, :most]
    return joints.astype(np.int32), np.take_along_axis(weights, joints, axis=1)


def _add_mesh(
    scene: Usd.Stage, parent: Sdf.Path, body: BodyModel, person: Performer
) -> UsdGeom.Mesh:
    """Add the body's faces, texture coordinates and the person's colour, without points."""
    mesh = UsdGeom.Mesh.Define(scene, _child(parent, person, "body"))
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray(len(body.faces), 3))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(body.faces.ravel()))
    mesh.CreateDisplayColorAttr(Vt.Vec3fArray([_colour(person)]))
    if body.uv is not None and body.uv_faces is not None:
        uv = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar(
            "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
        )
        uv.Set(Vt.Vec2fArray.FromNumpy(body.uv))
        uv.SetIndices(Vt.IntArray.FromNumpy(body.uv_faces.ravel()))
    return mesh


def _set_points(mesh: UsdGeom.Mesh, points: NDArray[np.float32], code: Usd.TimeCode) -> None:
    extent = np.stack([points.min(axis=0), points.max(axis=0)])
    mesh.GetPointsAttr().Set(Vt.Vec3fArray.FromNumpy(points), code)
    mesh.GetExtentAttr().Set(Vt.Vec3fArray.FromNumpy(extent), code)


def _child(parent: Sdf.Path, person: Performer, part: str) -> Sdf.Path:
    return parent.AppendChild(f"{Tf.MakeValidIdentifier(person.name)}_{part}")


def _save(scene: Usd.Stage) -> None:
    """Append to the file what is new; USD then holds it no longer."""
    with _usd_errors_as_oserror():
        scene.GetRootLayer().Save()


@contextmanager
def _usd_errors_as_oserror() -> Iterator[None]:
    try:
        yield
    except Tf.ErrorException as error:
        raise OSError(error.args[0].commentary) from error
