"""The Blender add-on, and the same scene builder without a window: runs in Blender's own Python.

Nothing here imports the rest of mpsnet_cli: these files and a body are all that the add-on is. They
need numpy, and those that build scenes need `bpy`.
"""

from __future__ import annotations

bl_info = {  # read by Blender before 4.2; later ones read blender_manifest.toml
    "name": "MPS-Net results",
    "author": "mpsnet-cli",
    "version": (1, 0, 0),
    "blender": (3, 4, 0),
    "location": "File > Import > MPS-Net result",
    "description": "Import people that mpsnet-cli found in a clip, with its camera",
    "category": "Import-Export",
}


def register() -> None:
    """Add the entry to File > Import; Blender calls this when the add-on is switched on."""
    from . import menu

    menu.register()


def unregister() -> None:
    """Take the entry away again."""
    from . import menu

    menu.unregister()
