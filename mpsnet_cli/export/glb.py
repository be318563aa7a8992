"""Binary glTF 2.0: every person as a skinned, animated mesh, and the clip's camera, in one file.

Khronos, "glTF 2.0 Specification", 2021. The JSON is written as it stands in the file, which is
shorter than through a library's classes.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli._version import __version__
from mpsnet_cli.body import BONE_NAMES, PARENTS, BodyModel
from mpsnet_cli.colours import linear_colour
from mpsnet_cli.export.stage import Camera, Floats, Performer, Stage

INFLUENCES = 4  # bones that move a vertex, at most: what every reader supports
NEAR = 0.05  # m, nothing closer to the camera is seen
ROUGHNESS = 0.7

_COMPONENTS = {"|u1": 5121, "<u4": 5125, "<f4": 5126}
_TYPES = {1: "SCALAR", 3: "VEC3", 4: "VEC4", 16: "MAT4"}
_ATTRIBUTE, _INDEX = 34962, 34963  # what a buffer view is for


def write_glb(path: Path, stage: Stage, *, advance: Callable[[int], None]) -> None:
    """Write the people as meshes skinned to SMPL's skeleton, all moved by one animation.

    A person is a node, person_01, above 24 bones, and a mesh, person_01_body: the T-pose with this
    person's betas, whose vertex i is the body's vertex i. (UVs are left out: in glTF they would
    double the vertices along their seams.) The bones turn about this person's own joints. What a
    skin in glTF lacks is SMPL's pose correctives and betas that change: half a millimetre on
    average, and up to 15 where limbs bend. The four largest weights of a vertex are written, which
    are all that the free body and SMPL have.

    Keys are at the stage's times, of any spacing, in float32 seconds. A reader that does not
    animate shows a T-pose where the person is first. Who is not there (yet, any more, or in a gap
    of the track) has the scale 0, in steps: the specification's way to hide somebody (§3.5.3).

    glTF's camera looks along the middle of its image. Where that is not the principal point, a
    reader has to shift it, by the `principal_point`, `focal_length` and `image_size`, px, in the
    extras of the camera.
    """
    glb = _Glb()
    _add_camera(glb, stage.camera)
    topology = _add_topology(glb, stage.body)
    end = max(person.times[-1] for person in stage.people)
    for person in stage.people:
        root, bones = _add_skeleton(glb, person)
        _add_mesh(glb, stage.body, person, bones, topology)
        _add_motion(glb, person, bones)
        _add_visibility(glb, person, root, end=end, fps=stage.fps)
        advance(len(person))
    glb.write(path, stage)


class _Glb:
    """The file as it grows: the lists of its JSON, and the arrays that they refer to."""

    def __init__(self) -> None:
        self.lists: dict[str, list[dict[str, Any]]] = {}
        self.roots: list[int] = []
        self.channels: list[dict[str, Any]] = []
        self.samplers: list[dict[str, Any]] = []
        self._arrays: list[NDArray[Any]] = []
        self._size = 0

    def add(self, kind: str, **thing: Any) -> int:
        """Add to the list of a `kind`, such as nodes, and return the index there."""
        things = self.lists.setdefault(kind, [])
        things.append(thing)
        return len(things) - 1

    def add_root(self, **node: Any) -> int:
        """Add a node without parent."""
        self.roots.append(self.add("nodes", **node))
        return self.roots[-1]

    def add_array(
        self, array: NDArray[Any], *, bounds: bool = False, target: int | None = None
    ) -> int:
        """Add an accessor of an array (N,), (N, 3), (N, 4) or (N, 16), 4 bytes each or more."""
        array = np.ascontiguousarray(array)
        view = {"buffer": 0, "byteOffset": self._size, "byteLength": array.nbytes}
        if target is not None:
            view["target"] = target
        self._arrays.append(array)
        self._size += array.nbytes
        rows = array.reshape(len(array), -1)
        return self.add(
            "accessors",
            bufferView=self.add("bufferViews", **view),
            componentType=_COMPONENTS[array.dtype.str],
            count=len(rows),
            type=_TYPES[rows.shape[1]],
            **({"min": rows.min(0).tolist(), "max": rows.max(0).tolist()} if bounds else {}),
        )

    def animate(
        self, node: int, path: str, keys: int, values: Floats, *, interpolation: str = "LINEAR"
    ) -> None:
        """Move a node's `path` (rotation, …) through `values` at the times of accessor `keys`."""
        self.channels.append(
            {"sampler": len(self.samplers), "target": {"node": node, "path": path}}
        )
        output = self.add_array(values.astype("<f4"))
        self.samplers.append({"input": keys, "output": output, "interpolation": interpolation})

    def write(self, path: Path, stage: Stage) -> None:
        """Write the header, the JSON and the arrays (§4.4)."""
        document = {
            "asset": {
                "version": "2.0",
                "generator": f"mpsnet-cli {__version__}",
                "extras": {
                    "clip": stage.name,
                    "fps": stage.fps,
                    "weights": stage.weights,
                    "trained": stage.trained,
                    "body": stage.body.name,
                },
            },
            "scene": 0,
            "scenes": [
                {
                    "name": stage.name if stage.trained else f"{stage.name} (untrained weights)",
                    "nodes": self.roots,
                }
            ],
            **self.lists,
            "animations": [
                {"name": stage.name, "channels": self.channels, "samplers": self.samplers}
            ],
            "buffers": [{"byteLength": self._size}],
        }
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        with path.open("wb") as file:
            file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + self._size))
            file.write(struct.pack("<I4s", len(text), b"JSON") + text)
            file.write(struct.pack("<I4s", self._size, b"BIN\0"))
            for array in self._arrays:
                file.write(array.data)


def _add_camera(glb: _Glb, camera: Camera) -> None:
    width, height = camera.image_size
    lens = {
        "yfov": 2 * math.atan(height / 2 / camera.focal_length),
        "aspectRatio": width / height,
        "znear": NEAR,
    }
    extras = {
        "focal_length": camera.focal_length,
        "principal_point": camera.principal_point.tolist(),
        "image_size": [width, height],
    }
    glb.add_root(
        name="camera",
        camera=glb.add("cameras", type="perspective", perspective=lens, extras=extras),
        translation=camera.position.tolist(),
        rotation=Rotation.from_matrix(camera.rotation).as_quat().tolist(),
    )


def _add_topology(glb: _Glb, body: BodyModel) -> dict[str, int]:
    """Add what the people's meshes share: triangles, and the bones that move each vertex."""
    weights = body.skinning_weights
    bones = np.argsort(-weights, axis=1, kind="stable")[:, :INFLUENCES]
    largest = np.take_along_axis(weights, bones, axis=1).astype(np.float64)
    largest /= largest.sum(axis=1, keepdims=True)
    bones[largest == 0] = 0  # as the specification wants it
    return {
        "indices": glb.add_array(body.faces.astype("<u4").ravel(), target=_INDEX),
        "JOINTS_0": glb.add_array(bones.astype(np.uint8), target=_ATTRIBUTE),
        "WEIGHTS_0": glb.add_array(largest.astype("<f4"), target=_ATTRIBUTE),
    }


def _add_skeleton(glb: _Glb, person: Performer) -> tuple[int, list[int]]:
    """Add the person's node and the bones below it; return their indices."""
    extras = {
        "track_id": person.id,
        "gender": person.gender,
        "betas": person.betas.tolist(),
        "frame_ids": person.frame_ids.tolist(),
    }
    pelvis = len(glb.lists["nodes"]) + 1
    root = glb.add_root(name=person.name, children=[pelvis], extras=extras)
    offsets = person.rest_joints.copy()
    offsets[1:] -= person.rest_joints[list(PARENTS[1:])]
    offsets[0] += person.transl[0]
    for joint, name in enumerate(BONE_NAMES):
        children = [pelvis + child for child, parent in enumerate(PARENTS) if parent == joint]
        below = {"children": children} if children else {}
        glb.add("nodes", name=name, translation=offsets[joint].tolist(), **below)
    return root, [pelvis + joint for joint in range(len(BONE_NAMES))]


def _add_mesh(
    glb: _Glb, body: BodyModel, person: Performer, bones: list[int], topology: dict[str, int]
) -> None:
    (vertices,), _ = body(np.zeros((1, 3 * len(BONE_NAMES))), person.betas[None])
    mesh = trimesh.Trimesh(vertices, body.faces, process=False)
    attributes = {
        "POSITION": glb.add_array(vertices.astype("<f4"), bounds=True, target=_ATTRIBUTE),
        "NORMAL": glb.add_array(mesh.vertex_normals.astype("<f4"), target=_ATTRIBUTE),
        **{name: topology[name] for name in ("JOINTS_0", "WEIGHTS_0")},
    }
    colour = [*linear_colour(person.id).tolist(), 1.0]
    look = {"baseColorFactor": colour, "metallicFactor": 0.0, "roughnessFactor": ROUGHNESS}
    primitive = {
        "attributes": attributes,
        "indices": topology["indices"],
        "material": glb.add("materials", name=person.name, pbrMetallicRoughness=look),
    }
    to_bones = np.tile(np.eye(4, dtype="<f4"), (len(BONE_NAMES), 1, 1))
    to_bones[:, 3, :3] = -person.rest_joints  # a translation, column after column
    skin = glb.add(
        "skins",
        name=person.name,
        joints=bones,
        skeleton=bones[0],
        inverseBindMatrices=glb.add_array(to_bones.reshape(len(BONE_NAMES), 16)),
    )
    # Of a skinned mesh's node the transform is ignored, so it stands beside the bones.
    name = f"{person.name}_body"
    glb.add_root(name=name, mesh=glb.add("meshes", name=name, primitives=[primitive]), skin=skin)


def _add_motion(glb: _Glb, person: Performer, bones: list[int]) -> None:
    keys = glb.add_array(person.times.astype("<f4"), bounds=True)
    glb.animate(bones[0], "translation", keys, person.rest_joints[0] + person.transl)
    turns = Rotation.from_matrix(person.rotations.reshape(-1, 3, 3)).as_quat()
    turns = turns.reshape(len(person), len(bones), 4)
    # q and -q are one rotation, but readers interpolate between what they are given.
    flips = np.cumsum((turns[1:] * turns[:-1]).sum(axis=2) < 0, axis=0)
    turns[1:][flips % 2 == 1] *= -1
    for joint, bone in enumerate(bones):
        glb.animate(bone, "rotation", keys, turns[:, joint])


def _add_visibility(glb: _Glb, person: Performer, root: int, *, end: float, fps: float) -> None:
    """Hide the person where the animation, which ends at `end`, has no frame of them."""
    frame = 1 / fps
    keys = (person.seen(fps) + [0, frame]).ravel()
    scales = np.tile([1.0, 0.0], len(keys) // 2)
    if person.times[-1] > end - frame / 2:
        keys, scales = keys[:-1], scales[:-1]
    if person.times[0] > frame / 2:
        keys, scales = np.r_[0, keys], np.r_[0, scales]
    if len(keys) > 1:
        when = glb.add_array(keys.astype("<f4"), bounds=True)
        glb.animate(root, "scale", when, np.tile(scales[:, None], 3), interpolation="STEP")
