"""Runs in Blender, for test_blender_scene.py: … -- JOBS.json; imports files and measures them.

A job names a `file`, the `frames` to look at, and `out`, the .npz for what is found there: places
in Blender's world, z up, m, and in the picture, px.
"""

import json
import runpy
import sys
from pathlib import Path

import bpy
import numpy as np
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Vector

STEP = 100  # every so many vertices are looked at through the camera


def load(job):
    file, suffix = job["file"], Path(job["file"]).suffix
    if suffix == ".blend":
        bpy.ops.wm.open_mainfile(filepath=file)
        return
    bpy.ops.wm.read_factory_settings(use_empty=True)
    render = bpy.context.scene.render
    render.fps, render.fps_base = job["rate"]
    render.resolution_x, render.resolution_y = job["resolution"]
    if suffix == ".glb":
        bpy.ops.import_scene.gltf(filepath=file)
    elif suffix == ".fbx":
        bpy.ops.import_scene.fbx(filepath=file, anim_offset=0.0)
    elif suffix == ".usdc":
        bpy.ops.wm.usd_import(filepath=file)
    elif suffix == ".bvh":
        settings = {"update_scene_fps": True, "update_scene_duration": True}
        bpy.ops.import_anim.bvh(filepath=file, global_scale=0.01, **settings)
    elif suffix == ".obj":
        bpy.ops.wm.obj_import(filepath=file)
    elif suffix == ".py":
        sys.argv = [file, job["result"]]
        runpy.run_path(file)
    else:
        install(job["addon"])
        bpy.ops.import_scene.mpsnet(filepath=file)


def install(addon):
    if bpy.app.version >= (4, 2):
        bpy.ops.extensions.package_install_files(filepath=addon, repo="user_default")
        bpy.ops.preferences.addon_enable(module="bl_ext.user_default.mpsnet")
    else:
        bpy.ops.preferences.addon_install(filepath=addon)
        bpy.ops.preferences.addon_enable(module="mpsnet")


def measure(job):
    scene = bpy.context.scene
    objects = sorted(scene.objects, key=lambda thing: thing.name)
    meshes = [thing for thing in objects if thing.type == "MESH" and len(thing.data.vertices) > 999]
    rigs = [thing for thing in objects if thing.type == "ARMATURE"]
    if scene.camera is None:  # as after an import
        scene.camera = next((thing for thing in objects if thing.type == "CAMERA"), None)
    found = {"vertices": [], "joints": [], "hidden": [], "pixels": []}
    for frame in job["frames"]:
        scene.frame_set(int(np.floor(frame)), subframe=frame % 1)
        graph = bpy.context.evaluated_depsgraph_get()
        vertices = [world_vertices(thing.evaluated_get(graph)) for thing in meshes]
        if rigs:
            joints = [bone_heads(rig.evaluated_get(graph), job["bones"]) for rig in rigs]
        else:
            empties = [thing for thing in objects if thing.type == "EMPTY"]
            joints = [[thing.evaluated_get(graph).matrix_world.translation for thing in empties]]
        found["vertices"].append(vertices)
        found["joints"].append([[list(place) for place in row] for row in joints])
        found["hidden"].append([(thing.hide_viewport, thing.hide_render) for thing in meshes])
        if scene.camera:
            places = joints if rigs or not meshes else [row[::STEP] for row in vertices]
            pixels = [[view(scene, place) for place in row] for row in places]
            found["pixels"].append(pixels)
    render, camera = scene.render, scene.camera
    backgrounds = camera.data.background_images if camera else []
    about = {
        "meshes": [thing.name for thing in meshes],
        "rigs": [thing.name for thing in rigs],
        "materials": sorted({m.name for thing in meshes for m in thing.data.materials}),
        "collections": {each.name: sorted(each.children.keys()) for each in bpy.data.collections},
        "facts": [{key: str(value) for key, value in rig.items()} for rig in rigs],
        "fps": render.fps / render.fps_base,
        "range": [scene.frame_start, scene.frame_end],
        "resolution": [render.resolution_x, render.resolution_y],
        "scales": [list(thing.matrix_world.to_scale()) for thing in meshes + rigs],
        "backgrounds": [[b.clip.filepath, b.clip.frame_start] for b in backgrounds if b.clip],
        "metres": scene.unit_settings.scale_length,
    }
    np.savez(job["out"], about=json.dumps(about), **{k: np.array(v) for k, v in found.items()})


def bone_heads(rig, bones):
    return [rig.matrix_world @ rig.pose.bones[name].head for name in bones]


def view(scene, place):
    """Where the scene's camera sees a place, px from the upper left."""
    x, y, _ = world_to_camera_view(scene, scene.camera, Vector(place))
    return x * scene.render.resolution_x, (1 - y) * scene.render.resolution_y


def world_vertices(thing):
    mesh = thing.to_mesh()
    vertices = np.empty((len(mesh.vertices), 3), np.float32)
    mesh.vertices.foreach_get("co", vertices.ravel())
    matrix = np.array(thing.matrix_world)
    thing.to_mesh_clear()
    return vertices @ matrix[:3, :3].T + matrix[:3, 3]


def render(job):
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.samples = 4
    scene.cycles.use_denoising = False
    scene.render.resolution_percentage = 25
    scene.frame_set(job["frames"][-1])
    scene.render.filepath = job["picture"]
    bpy.ops.render.render(write_still=True)


for job in json.loads(Path(sys.argv[sys.argv.index("--") + 1]).read_text()):
    print("==", job["file"])
    load(job)
    measure(job)
    if "picture" in job:
        render(job)
