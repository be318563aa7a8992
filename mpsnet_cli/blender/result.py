"""Results of mpsnet-cli, and bodies, from their own files: numpy alone, no Blender needed."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .clip import Body, Camera, Clip, Floats, Person, steady, stretches

MOTION_FORMAT = "mpsnet-motion/1"
MANIFEST = "clip.json"
FREE_BODY = "free-1"
# In the add-on only, where `write_addon` puts them.
BODY_FILE = Path(__file__).parent / "body.npz"
COLOURS_FILE = Path(__file__).parent / "colours.npy"  # (C, 3), of track id 1, 2, …
JOINTS = 24
BETAS = 10
JITTER = 2e-3  # s: time stamps of whole milliseconds, as in Matroska, still are on an even grid
Y_UP = np.array([1.0, -1.0, -1.0])  # from the camera frame: x right, y down, z forward

Arrays = dict[str, Any]
Specification = Mapping[str, tuple[str, tuple[int | None, ...]]]  # kinds of dtype, shape

MOTION: Specification = {
    **dict.fromkeys(("format", "body", "gender", "weights"), ("U", ())),
    "track_id": ("iu", ()),
    "trained": ("b", ()),
    "fps": ("fiu", ()),
    "image_size": ("fiu", (2,)),
    "focal_length": ("fiu", ()),
    "principal_point": ("f", (2,)),
    "frame_ids": ("iu", (None,)),
    "times": ("f", (None,)),
    "pose": ("f", (None, 3 * JOINTS)),
    "betas": ("f", (BETAS,)),
    "transl": ("f", (None, 3)),
}
BODY: Specification = {  # SMPL's own names
    "v_template": ("f", (None, 3)),
    "shapedirs": ("f", (None, 3, None)),
    "J_regressor": ("f", (JOINTS, None)),
    "weights": ("f", (None, JOINTS)),
    "f": ("iu", (None, 3)),
}
# What numpy raises for files that are no .npz of plain arrays.
UNREADABLE = (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile,
              zlib.error)  # fmt: skip
TEXTURE: Specification = {"uv": ("f", (None, 2)), "uv_faces": ("iu", (None, 3))}


class ResultError(Exception):
    """A file that cannot be used, in one sentence."""


def read_result(paths: Sequence[Path], *, smpl: Path | None = None) -> Clip:
    """Read a result folder, its clip.json, or some of its person_NN.npz.

    Time 0 is the clip's first frame. `smpl` is the SMPL .npz for people who were found with an SMPL
    body. Raises ResultError for files that are damaged, of another format, or of several clips.
    """
    folder = paths[0] if paths[0].is_dir() else paths[0].parent
    files = [path for path in paths if path.suffix == ".npz"] or sorted(folder.glob("person_*.npz"))
    if not files:
        raise ResultError(f"{folder} holds no person_NN.npz: choose a result of mpsnet run.")
    motions = [_read_motion(file) for file in files]
    one = motions[0]
    for file, motion in zip(files, motions, strict=True):
        for key in ("body", "fps", "image_size", "focal_length", "principal_point"):
            if not np.array_equal(motion[key], one[key]):
                raise ResultError(f"{file} is not of the clip of {files[0]}: its {key} differs.")
    body = _read_body(one["body"].item(), smpl)
    manifest = _read_manifest(folder)
    times = _clip_times(motions, manifest)
    return Clip(
        name=folder.resolve().name if manifest else files[0].stem,
        fps=float(one["fps"]),
        facts={key: one[key].item() for key in ("weights", "trained", "body")},
        people=tuple(
            _person(file.stem, {**motion, "times": seconds}, body)
            for file, motion, seconds in zip(files, motions, times, strict=True)
        ),
        camera=Camera(
            position=np.zeros(3),
            rotation=np.eye(3),
            focal_length=float(one["focal_length"]),
            principal_point=one["principal_point"],
            image_size=one["image_size"].astype(np.int64),
        ),
        body=Body(body["f"], body["weights"], body.get("uv"), body.get("uv_faces")),
        video=_find_video(folder, manifest),
        video_start=0.0,
    )


def _clip_times(motions: Sequence[Arrays], manifest: Mapping[str, Any]) -> list[Floats]:
    """Count seconds from the clip's first frame, and set them on an even grid if they are near."""
    first = min(motions, key=lambda motion: motion["times"][0])
    fps = float(first["fps"])
    try:
        origin = float(manifest["video"]["first_time"])
    except (LookupError, TypeError, ValueError):
        origin = first["times"][0] - first["frame_ids"][0] / fps
    times = [motion["times"] - origin for motion in motions]
    grid = [np.rint(row * fps) / fps for row in times]
    near = all(
        np.abs(row - even).max() <= min(JITTER, 0.25 / fps) and (np.diff(even) > 0).all()
        for row, even in zip(times, grid, strict=True)
    )
    return grid if near else times


def _person(name: str, motion: Arrays, body: Arrays) -> Person:
    colours = np.load(COLOURS_FILE)
    vertices = body["v_template"] + body["shapedirs"][..., :BETAS] @ motion["betas"]
    joints = body["J_regressor"] @ vertices
    quaternions = quaternions_of(motion["pose"].reshape(-1, JOINTS, 3).astype(np.float64))
    # From the camera frame to y up is half a turn about x: the product of the quaternion i and …
    w, x, y, z = np.moveaxis(quaternions[:, 0], -1, 0)
    quaternions[:, 0] = np.stack([-x, w, -z, y], axis=-1)
    return Person(
        name=name,
        facts={
            "track_id": motion["track_id"].item(),
            "gender": motion["gender"].item(),
            "betas": motion["betas"].tolist(),
        },
        times=motion["times"],
        seen=stretches(motion["times"], motion["frame_ids"], float(motion["fps"])),
        quaternions=steady(quaternions),
        # The body turns about its pelvis of the T-pose, which `transl` starts from.
        transl=(motion["transl"] + joints[0]) * Y_UP - joints[0],
        vertices=vertices,
        joints=joints,
        colour=colours[(motion["track_id"] - 1) % len(colours)],
    )


def quaternions_of(axis_angle: Floats) -> Floats:
    """Turn axis-angle vectors (…, 3), rad, into quaternions (…, 4): w, x, y, z."""
    angle = np.linalg.norm(axis_angle, axis=-1, keepdims=True)
    # np.sinc(t) is sin(πt) / πt, which needs no care where there is no rotation.
    xyz = axis_angle * np.sinc(angle / (2 * np.pi)) / 2
    return np.concatenate([np.cos(angle / 2), xyz], axis=-1)


def _read_motion(file: Path) -> Arrays:
    motion = _read_arrays(file, MOTION, what="motion file")
    if motion["format"] != MOTION_FORMAT:
        raise ResultError(f"{file} is not {MOTION_FORMAT} but {motion['format']}.")
    lengths = {len(motion[key]) for key in ("frame_ids", "times", "pose", "transl")}
    if (
        len(lengths) > 1
        or lengths == {0}
        or (np.diff(motion["times"]) <= 0).any()
        or min(motion["fps"], motion["focal_length"], *motion["image_size"]) <= 0
    ):
        raise ResultError(f"{file} is damaged: its arrays do not fit together.")
    return motion


def _read_body(name: str, smpl: Path | None) -> Arrays:
    if name != FREE_BODY and smpl is None:
        raise ResultError(
            f"These people have the body {name}: give your SMPL .npz as 'SMPL file'. "
            "With a .pkl, use `mpsnet export --format blend` instead."
        )
    file = BODY_FILE if name == FREE_BODY or smpl is None else smpl
    body = _read_arrays(file, BODY, what="SMPL .npz")
    count = len(body["v_template"])
    faces = body["f"]
    if (
        not len(body["shapedirs"]) == len(body["weights"]) == body["J_regressor"].shape[1] == count
        or body["shapedirs"].shape[2] < BETAS
        or faces.size == 0
        or not 0 <= faces.min() <= faces.max() < count
    ):
        raise ResultError(f"{file} is no SMPL body: its arrays do not fit together.")
    return body | (_read_arrays(file, TEXTURE, what="body") if name == FREE_BODY else {})


def _read_arrays(file: Path, specification: Specification, *, what: str) -> Arrays:
    """Read the arrays of an .npz that a specification names, and check them; pickles stay shut."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in specification if key in archive.files}
    except UNREADABLE as error:
        raise ResultError(f"{file} is not a readable {what}: {error}.") from error
    for key, (kinds, shape) in specification.items():
        if key not in arrays:
            raise ResultError(f"{file} is no {what}: it lacks {key}.")
        array = arrays[key]
        if (
            array.dtype.kind not in kinds
            or array.ndim != len(shape)
            or any(
                wanted not in (None, size) for wanted, size in zip(shape, array.shape, strict=True)
            )
            or (array.dtype.kind == "f" and not np.isfinite(array).all())
        ):
            raise ResultError(f"{file} is no {what}: {key} is {array.dtype} {array.shape}.")
    return arrays


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Read the clip.json beside the people; {} if there is none, as they say enough themselves."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) else {}


def _find_video(folder: Path, manifest: Mapping[str, Any]) -> str | None:
    """Find the source clip where it was, or beside the result folder."""
    try:
        named = Path(manifest["input"]["path"])
        places = [named, folder.resolve().parent / named.name]
        return next((str(place.resolve()) for place in places if place.is_file()), None)
    except (LookupError, TypeError, OSError, ValueError):
        return None
