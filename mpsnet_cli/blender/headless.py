"""What `mpsnet export --format blend,fbx` runs inside Blender: … -- CLIP.npz TARGET.blend|fbx."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import bpy

OLDEST = (3, 4)
GROUPS_SINCE = (5, 0)  # Blender: a scene is composited by a node group


def main() -> None:
    if bpy.app.version < OLDEST:
        raise SystemExit(f"Blender {bpy.app.version_string} is too old: 3.4 is the oldest")
    # Last, so that Blender's own numpy goes first.
    sys.path.append(str(Path(__file__).resolve().parents[2]))
    from mpsnet_cli.blender.clip import Clip
    from mpsnet_cli.blender.scene import build

    source, target = sys.argv[sys.argv.index("--") + 1 :]
    clip = Clip.load(Path(source))
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    if target.endswith(".fbx"):
        build(scene, clip, match=True, hide=False)
        _save_fbx(target)
    else:
        collection = build(scene, clip, match=True)
        _light(scene, collection)
        if scene.camera.data.background_images:
            _composite(scene)
        _look_through_camera()
        bpy.ops.wm.save_as_mainfile(filepath=target, compress=True, relative_remap=False)


def _save_fbx(target: str) -> None:
    bpy.ops.export_scene.fbx(
        filepath=target,
        check_existing=False,
        object_types={"ARMATURE", "MESH", "CAMERA"},
        apply_scale_options="FBX_SCALE_ALL",  # objects of scale 1 in files of metres
        use_custom_props=True,
        add_leaf_bones=False,
        bake_anim_use_nla_strips=False,
        bake_anim_use_all_actions=False,  # one take of all people
        bake_anim_simplify_factor=0.0,
    )


def _light(scene: Any, collection: Any) -> None:
    """Add a sun over the camera's shoulder, and a grey sky that only lights."""
    sun = bpy.data.objects.new("sun", bpy.data.lights.new("sun", "SUN"))
    sun.data.energy = 3.0
    sun.rotation_euler = (0.8, 0.3, 0.0)
    collection.objects.link(sun)
    scene.world = bpy.data.worlds.new("sky")
    scene.world.color = (0.5, 0.5, 0.5)
    scene.render.film_transparent = True
    scene.view_settings.view_transform = "Standard"  # colours of the clip as they are


def _composite(scene: Any) -> None:
    """Put what is rendered over the source clip."""
    grouped = bpy.app.version >= GROUPS_SINCE
    if grouped:
        tree = bpy.data.node_groups.new("overlay", "CompositorNodeTree")
        tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
        scene.compositing_node_group = tree
    else:
        scene.use_nodes = True
        tree = scene.node_tree
        tree.nodes.clear()
    result = tree.nodes.new("NodeGroupOutput" if grouped else "CompositorNodeComposite")
    movie = tree.nodes.new("CompositorNodeMovieClip")
    movie.clip = scene.camera.data.background_images[0].clip
    scale = tree.nodes.new("CompositorNodeScale")  # for who renders at less than 100 %
    if grouped:
        scale.inputs["Type"].default_value = "Render Size"
    else:
        scale.space = "RENDER_SIZE"
    people = tree.nodes.new("CompositorNodeRLayers")
    over = tree.nodes.new("CompositorNodeAlphaOver")
    below, above = (socket for socket in over.inputs if socket.type == "RGBA")
    tree.links.new(movie.outputs["Image"], scale.inputs["Image"])
    tree.links.new(scale.outputs["Image"], below)
    tree.links.new(people.outputs["Image"], above)
    tree.links.new(over.outputs["Image"], result.inputs["Image"])


def _look_through_camera() -> None:
    for screen in bpy.data.screens:
        for area in screen.areas:
            if area.type == "VIEW_3D":
                area.spaces.active.region_3d.view_perspective = "CAMERA"


if __name__ == "__main__":
    main()
