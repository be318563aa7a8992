"""What a scene is built from, as plain numbers, and the file that carries it into Blender.

Frame: right-handed, metres, y up. Quaternions are w, x, y, z.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BONE_NAMES = (
    "Pelvis", "L_Hip", "R_Hip", "Spine1", "L_Knee", "R_Knee", "Spine2", "L_Ankle", "R_Ankle",
    "Spine3", "L_Foot", "R_Foot", "Neck", "L_Collar", "R_Collar", "Head", "L_Shoulder",
    "R_Shoulder", "L_Elbow", "R_Elbow", "L_Wrist", "R_Wrist", "L_Hand", "R_Hand",
)  # fmt: skip
PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

GAP = 1.5  # frames between two times that make a hole

Floats = NDArray[np.floating[Any]]

PERSON_ARRAYS = ("times", "seen", "quaternions", "transl", "vertices", "joints", "colour")
CAMERA_ARRAYS = ("position", "rotation", "principal_point", "image_size")
BODY_ARRAYS = ("faces", "weights", "uv", "uv_faces")


@dataclass(frozen=True)
class Person:
    """One person's rest body, and how it moves: at `times`, ascending."""

    name: str  # person_01, …
    facts: dict[str, Any]  # track_id, gender, betas, …: shown as custom properties
    times: Floats  # (N,) s, from the start of the clip
    seen: Floats  # (R, 2) s, first and last of the times without a hole between them
    quaternions: Floats  # (N, 24, 4) of each joint within its parent; the root's in the world
    transl: Floats  # (N, 3) m; the pelvis is at joints[0] + transl
    vertices: Floats  # (V, 3) m, of the T-pose with this person's shape
    joints: Floats  # (24, 3) m, of the T-pose with this person's shape
    colour: Floats  # (3,) linear RGB, 0..1


@dataclass(frozen=True)
class Camera:
    """Where the camera is, and how it projects."""

    position: Floats  # (3,) m
    rotation: Floats  # (3, 3), columns: its right, up and backwards in the world
    focal_length: float  # px
    principal_point: Floats  # (2,) px
    image_size: NDArray[np.integer[Any]]  # (2,) width, height, px


@dataclass(frozen=True)
class Body:
    """What all people's meshes have in common."""

    faces: NDArray[np.integer[Any]]  # (F, 3)
    weights: Floats  # (V, 24), rows sum to 1
    uv: Floats | None = None  # (T, 2)
    uv_faces: NDArray[np.integer[Any]] | None = None  # (F, 3) into uv


@dataclass(frozen=True)
class Clip:
    """Everybody in a clip, and its camera."""

    name: str
    fps: float  # Hz
    facts: dict[str, Any]  # weights, trained, …: shown as custom properties
    people: tuple[Person, ...]
    camera: Camera
    body: Body
    video: str | None  # the source clip, if it is there
    video_start: float  # s, when its first frame is: before 0, where the start was left out

    def save(self, path: Path) -> None:
        """Write the clip as .npz of plain arrays.

        Key `clip` is JSON of everything that is no array; arrays are keyed by owner and field:
        `camera.position`, `body.faces`, and `0.times` for the first person's.
        """
        about = {
            "name": self.name,
            "fps": self.fps,
            "facts": self.facts,
            "video": self.video,
            "video_start": self.video_start,
            "focal_length": self.camera.focal_length,
            "people": [{"name": person.name, "facts": person.facts} for person in self.people],
        }
        owners = {
            "camera": (self.camera, CAMERA_ARRAYS),
            "body": (self.body, BODY_ARRAYS),
            **{str(k): (person, PERSON_ARRAYS) for k, person in enumerate(self.people)},
        }
        arrays = {
            f"{owner}.{name}": vars(value)[name]
            for owner, (value, names) in owners.items()
            for name in names
            if vars(value)[name] is not None
        }
        with path.open("wb") as file:
            np.savez(file, clip=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: Path) -> Clip:
        """Read a clip that `save` wrote."""
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(str(archive["clip"]))

            def arrays(owner: str, names: tuple[str, ...]) -> dict[str, Any]:
                keys = {name: f"{owner}.{name}" for name in names}
                return {name: archive[key] for name, key in keys.items() if key in archive}

            people = tuple(
                Person(**person, **arrays(str(k), PERSON_ARRAYS))
                for k, person in enumerate(about.pop("people"))
            )
            focal_length = about.pop("focal_length")
            camera = Camera(focal_length=focal_length, **arrays("camera", CAMERA_ARRAYS))
            body = Body(**arrays("body", BODY_ARRAYS))
        return cls(people=people, camera=camera, body=body, **about)


def steady(quaternions: Floats) -> Floats:
    """Choose the sign of each quaternion (N, …, 4) so that none is far from the one before it.

    q and -q are the same rotation, but what lies between two keys is not.
    """
    dots = np.einsum("n...k,n...k->n...", quaternions[1:], quaternions[:-1])
    signs = np.cumprod(np.where(dots < 0, -1, 1), axis=0)
    return np.concatenate([quaternions[:1], quaternions[1:] * signs[..., None]])


def stretches(
    times: NDArray[np.float64], frame_ids: NDArray[np.integer[Any]], fps: float
) -> NDArray[np.float64]:
    """Cut times (N,) where frames of the source were left out between two: (R, 2)."""
    holes = (np.diff(frame_ids) > 1) & (np.diff(times) > GAP / fps)
    return np.stack([times[np.append(True, holes)], times[np.append(holes, True)]], axis=1)
