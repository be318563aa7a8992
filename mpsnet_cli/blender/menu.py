"""File > Import > MPS-Net result."""

# mypy: disable-error-code="valid-type"
# Blender wants the properties of a class as annotations that are calls.

from __future__ import annotations

from pathlib import Path
from typing import Any

import bpy
from bpy.props import BoolProperty, CollectionProperty, StringProperty
from bpy_extras.io_utils import ImportHelper

from .result import ResultError, read_result
from .scene import build

LABEL = "MPS-Net result (clip.json, person_NN.npz)"


class ImportResult(bpy.types.Operator, ImportHelper):
    """Import people of a clip: choose its folder, its clip.json, or some of its person_NN.npz"""

    bl_idname = "import_scene.mpsnet"
    bl_label = "Import MPS-Net result"
    bl_options = {"REGISTER", "UNDO"}  # noqa: RUF012

    filter_glob: StringProperty(default="clip.json;*.npz", options={"HIDDEN"})
    files: CollectionProperty(type=bpy.types.OperatorFileListElement, options={"HIDDEN"})
    directory: StringProperty(subtype="DIR_PATH", options={"HIDDEN"})
    match: BoolProperty(
        name="Match the scene to the clip",
        description="Set frame rate, frame range, resolution, units and camera of the scene",
        default=True,
    )
    smpl: StringProperty(
        name="SMPL file",
        description="Your own SMPL .npz, for results with an SMPL body; others need none",
        subtype="FILE_PATH",
    )

    def execute(self, context: Any) -> set[str]:
        named = [Path(self.directory, file.name) for file in self.files if file.name]
        smpl = Path(bpy.path.abspath(self.smpl)) if self.smpl else None
        try:
            clip = read_result(named or [Path(self.filepath or self.directory)], smpl=smpl)
        except ResultError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        if context.mode != "OBJECT":
            bpy.ops.object.mode_set(mode="OBJECT")
        build(context.scene, clip, match=self.match)
        if clip.video is None:
            self.report({"WARNING"}, "The camera has no background: the source clip was not found")
        if not clip.facts["trained"]:
            self.report({"WARNING"}, "The weights were untrained: the motion means nothing")
        return {"FINISHED"}


def _entry(menu: Any, _context: Any) -> None:
    menu.layout.operator(ImportResult.bl_idname, text=LABEL)


def register() -> None:
    bpy.utils.register_class(ImportResult)
    bpy.types.TOPBAR_MT_file_import.append(_entry)


def unregister() -> None:
    bpy.types.TOPBAR_MT_file_import.remove(_entry)
    bpy.utils.unregister_class(ImportResult)
