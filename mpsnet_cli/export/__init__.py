"""Motions in the formats of other tools: one small module each, and the table of them."""

from __future__ import annotations

from typing import NamedTuple


class Format(NamedTuple):
    """What a format is and how it is written."""

    suffix: str  # of its files; of its folders, for a format that is a folder of meshes
    each_person: bool  # one file or folder for each person, not one for all
    uniform: bool  # whether times must be whole multiples of 1 / fps, without holes
    bridges: bool  # whether a hole in a person's frames is filled, by us or by who reads the file
    where: str  # "module:function" of `write(path, stage, [person,] *, advance)`
    what: str  # in a few words
    needs: tuple[str, ...] = ()  # import names of packages of the extra [export]
    rates: tuple[int, ...] = ()  # Hz, ascending: the only frame rates that readers take


def _module(name: str) -> str:
    return f"{__name__}.{name}"


EXPORTERS: dict[str, Format] = {
    "glb": Format(".glb", False, False, False, _module("glb:write_glb"),
                  "glTF: all people, skinned and animated, and the camera"),
    "usd": Format(".usdc", False, False, False, _module("usd:write_usd"),
                  "USD: all people, exact vertices and a skeleton, and the camera", ("pxr",)),
    "bvh": Format(".bvh", True, True, True, _module("bvh:write_bvh"),
                  "BVH: a person's skeleton and motion, centimetres"),
    "fbx": Format(".fbx", False, True, True, _module("blender:write_fbx"),
                  "FBX: all people, skinned and animated; made by Blender"),
    "blend": Format(".blend", False, False, False, _module("blender:write_blend"),
                    "a Blender scene, the clip behind it; made by Blender"),
    "amass": Format("_amass.npz", True, True, True, _module("amass:write_amass"),
                    "AMASS npz, for the SMPL-X add-on, aitviewer and others; z up",
                    rates=(30, 60, 120)),
    "smpl": Format(".smpl", True, True, True, _module("smpl:write_smpl"),
                   "Meshcapade's .smpl", ("smplcodec",)),
    "pkl": Format(".pkl", False, False, False, _module("vibe:write_pkl"),
                  "joblib pickle as VIBE, TCMR and the MPS-Net demo write it", ("joblib",)),
    "csv": Format(".csv", True, False, False, _module("tables:write_csv"),
                  "joints in space and in the image, a row a frame"),
    "obj": Format("_obj", True, False, False, _module("obj:write_obj"),
                  "a folder of meshes, one a frame"),
    "ply": Format("_ply", True, False, False, _module("ply:write_ply"),
                  "a folder of binary meshes, one a frame"),
}  # fmt: skip
