"""A clip as a Blender scene: a rig and a mesh for each person, and the camera.

Bones lie as SMPL's frame does, x to the body's left, y up, z forward, so that the keyed rotations
are SMPL's own and the pelvis's location is its translation. Objects are neither turned nor scaled.
Frame 0 is the clip's first. Meshes are without SMPL's pose correctives, which no rig has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import bpy
import numpy as np
from mathutils import Matrix, Vector

from .clip import BONE_NAMES, PARENTS, Body, Camera, Clip, Floats, Person

Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # from y up to Blender's world
SENSOR_WIDTH = 36.0  # mm
CLIPPING = (0.05, 1000.0)  # m
ROUGHNESS = 0.7
TAIL = 0.4  # of the way to a bone's child: how long a bone is drawn
SHORTEST = 0.04  # m, of a bone
SAME_RATE = 1e-4  # of it: a clip behind a scene of another rate would run away from the people
WHOLE = 1e-3  # frames: nearer than this to a whole frame, a key is set on it
SLOTS_SINCE = (4, 4)  # Blender: an action has slots, and in each the curves of one object
LINEAR, CONSTANT = 1, 0  # of Keyframe.interpolation, as foreach_set takes it


def build(scene: Any, clip: Clip, *, match: bool, hide: bool = True) -> Any:
    """Put a clip into a scene as a collection of its name, and return that.

    `match` gives the scene the clip's rate, frame range, resolution and camera; else the people
    move at the scene's own rate, in real time. `hide` hides people while they are not seen.
    """
    if match:
        _match(scene, clip)
    fps = clip.fps if match else scene.render.fps / scene.render.fps_base
    collection = bpy.data.collections.new(clip.name)
    scene.collection.children.link(collection)
    _describe(collection, clip.facts)
    camera = _add_camera(collection, clip, fps)
    if match:
        scene.camera = camera
    for person in clip.people:
        own = bpy.data.collections.new(person.name)
        collection.children.link(own)
        rig = _add_rig(own, clip, person)
        mesh = _add_mesh(own, rig, clip.body, person)
        _key_pose(rig, person, fps)
        for thing in (rig, mesh) if hide else ():
            _key_visibility(thing, person, fps)
    scene.frame_set(scene.frame_start)
    return collection


def _match(scene: Any, clip: Clip) -> None:
    scene.render.fps = max(1, round(clip.fps))
    scene.render.fps_base = scene.render.fps / clip.fps  # 29.97 Hz: 30 / 1.001
    frames = [_frames(person.times, clip.fps) for person in clip.people]
    scene.frame_start = math.floor(min((row[0] for row in frames), default=0))
    scene.frame_end = math.ceil(max((row[-1] for row in frames), default=0))
    scene.render.resolution_x, scene.render.resolution_y = clip.camera.image_size.tolist()
    scene.render.resolution_percentage = 100
    scene.unit_settings.system = "METRIC"


def _frames(times: Floats, fps: float) -> Floats:
    frames = times * fps
    whole = np.rint(frames)
    return np.where(np.abs(frames - whole) < WHOLE, whole, frames)


def _describe(thing: Any, facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        thing[key] = value


def _add_camera(collection: Any, clip: Clip, fps: float) -> Any:
    camera: Camera = clip.camera
    width, height = camera.image_size.tolist()
    data = bpy.data.cameras.new(f"{clip.name}_camera")
    data.sensor_fit = "HORIZONTAL"
    data.sensor_width = SENSOR_WIDTH
    data.lens = camera.focal_length * SENSOR_WIDTH / width
    data.shift_x = (width / 2 - camera.principal_point[0]) / width
    data.shift_y = (camera.principal_point[1] - height / 2) / width
    data.clip_start, data.clip_end = CLIPPING
    if clip.video is not None and math.isclose(fps, clip.fps, rel_tol=SAME_RATE):
        _add_background(data, clip.video, round(clip.video_start * fps))
    thing = bpy.data.objects.new(data.name, data)
    thing.matrix_world = _placed(Z_UP @ camera.rotation, Z_UP @ camera.position)
    collection.objects.link(thing)
    return thing


def _add_background(camera: Any, video: str, first: int) -> None:
    """Show the source clip behind the people, from frame `first` on; Blender gives each a frame."""
    movie = bpy.data.movieclips.load(video)
    movie.frame_start = first
    camera.show_background_images = True
    background = camera.background_images.new()
    background.source = "MOVIE_CLIP"
    background.clip = movie
    background.alpha = 1.0


def _add_rig(collection: Any, clip: Clip, person: Person) -> Any:
    """Add this person's own skeleton at rest."""
    data = bpy.data.armatures.new(person.name)
    data.display_type = "STICK"
    rig = bpy.data.objects.new(person.name, data)
    rig.show_in_front = True
    _describe(rig, {**clip.facts, **person.facts})
    collection.objects.link(rig)
    heads = person.joints @ Z_UP.T
    bpy.context.view_layer.objects.active = rig
    bpy.ops.object.mode_set(mode="EDIT")
    try:
        for joint, (name, parent) in enumerate(zip(BONE_NAMES, PARENTS, strict=True)):
            bone = data.edit_bones.new(name)
            bone.head = heads[joint]
            bone.tail = heads[joint] + [0, 0, _bone_length(person.joints, joint)]
            bone.align_roll(Vector((0, -1, 0)))
            if parent >= 0:
                bone.parent = data.edit_bones[BONE_NAMES[parent]]
    finally:
        bpy.ops.object.mode_set(mode="OBJECT")
    return rig


def _bone_length(joints: Floats, joint: int) -> float:
    children = [child for child, parent in enumerate(PARENTS) if parent == joint]
    reach = max((np.linalg.norm(joints[child] - joints[joint]) for child in children), default=0.0)
    return max(TAIL * float(reach), SHORTEST)


def _add_mesh(collection: Any, rig: Any, body: Body, person: Person) -> Any:
    data = bpy.data.meshes.new(f"{person.name}_body")
    data.from_pydata((person.vertices @ Z_UP.T).tolist(), [], body.faces.tolist())
    data.polygons.foreach_set("use_smooth", np.ones(len(body.faces), bool))
    if body.uv is not None and body.uv_faces is not None:
        corners = body.uv[body.uv_faces].astype(np.float32)
        data.uv_layers.new(name="UVMap").data.foreach_set("uv", corners.ravel())
    data.materials.append(_material(person))
    mesh = bpy.data.objects.new(data.name, data)
    collection.objects.link(mesh)
    mesh.parent = rig
    for name, column in zip(BONE_NAMES, body.weights.T, strict=True):
        group = mesh.vertex_groups.new(name=name)
        for vertex in np.flatnonzero(column).tolist():
            group.add([vertex], float(column[vertex]), "REPLACE")
    mesh.modifiers.new("Armature", "ARMATURE").object = rig
    return mesh


def _material(person: Person) -> Any:
    material = bpy.data.materials.new(person.name)
    colour = (*person.colour.tolist(), 1.0)
    material.diffuse_color = colour
    material.use_nodes = True
    surface = next(n for n in material.node_tree.nodes if n.type == "BSDF_PRINCIPLED")
    surface.inputs["Base Color"].default_value = colour
    surface.inputs["Roughness"].default_value = ROUGHNESS
    return material


def _key_pose(rig: Any, person: Person, fps: float) -> None:
    frames = _frames(person.times, fps)
    new_curve = _new_curves(rig, person.name)
    for joint, name in enumerate(BONE_NAMES):
        rig.pose.bones[name].rotation_mode = "QUATERNION"
        path = f'pose.bones["{name}"].rotation_quaternion'
        for axis in range(4):
            _key(new_curve(path, axis, name), frames, person.quaternions[:, joint, axis], LINEAR)
    for axis in range(3):
        curve = new_curve(f'pose.bones["{BONE_NAMES[0]}"].location', axis, BONE_NAMES[0])
        _key(curve, frames, person.transl[:, axis], LINEAR)


def _key_visibility(thing: Any, person: Person, fps: float) -> None:
    """Hide a person before the first time, after the last, and in holes."""
    seen = _frames(person.seen, fps)
    shown, hidden = np.floor(seen[:, 0]), np.floor(seen[:, 1]) + 1
    frames = np.stack([shown, hidden], axis=1).ravel()
    values = np.tile([0.0, 1.0], len(seen))
    # A curve keeps its first value before its first key.
    frames, values = np.append(shown[0] - 1, frames), np.append(1.0, values)
    new_curve = _new_curves(thing, thing.name)
    for path in ("hide_viewport", "hide_render"):
        _key(new_curve(path, 0, "Visibility"), frames, values, CONSTANT)


def _new_curves(thing: Any, name: str) -> Callable[[str, int, str], Any]:
    """Return what makes animation curves of an object, by data path, index and group."""
    animation = thing.animation_data or thing.animation_data_create()
    action = animation.action
    if bpy.app.version < SLOTS_SINCE:
        if action is None:
            action = animation.action = bpy.data.actions.new(name)
        return lambda path, index, group: action.fcurves.new(path, index=index, action_group=group)
    if action is None:
        action = animation.action = bpy.data.actions.new(name)
        animation.action_slot = action.slots.new(id_type="OBJECT", name=thing.name)
        action.layers.new("Layer").strips.new(type="KEYFRAME")
    curves = action.layers[0].strips[0].channelbag(animation.action_slot, ensure=True)

    def new(path: str, index: int, group: str) -> Any:
        curve = curves.fcurves.new(path, index=index)
        curve.group = curves.groups.get(group) or curves.groups.new(group)
        return curve

    return new


def _key(curve: Any, frames: Floats, values: Floats, interpolation: int) -> None:
    points = curve.keyframe_points
    points.add(len(frames))
    points.foreach_set("co", np.stack([frames, values], axis=1).astype(np.float32).ravel())
    points.foreach_set("interpolation", np.full(len(frames), interpolation, np.int32))
    curve.update()


def _placed(rotation: Floats, position: Floats) -> Any:
    return Matrix.LocRotScale(
        Vector(position.tolist()), Matrix(rotation.tolist()), Vector((1, 1, 1))
    )
