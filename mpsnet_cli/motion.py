"""The two nouns: `Track`, a person's boxes over a clip, and `Motion`, a person's body over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.errors import InputError
from mpsnet_cli.npz import read_npz

FORMAT = "mpsnet-motion/1"
JOINTS = 24  # of the SMPL skeleton
BETAS = 10  # shape coefficients

Shape = Literal["person", "frame"]


def _check(owner: object, name: str, shape: tuple[int, ...]) -> None:
    found = getattr(owner, name).shape
    if found != shape:
        raise ValueError(f"{type(owner).__name__}.{name} has shape {found}, expected {shape}")


@dataclass(frozen=True)
class Track:
    """One person's boxes over a clip; frames may have holes where the person was out of sight."""

    id: int  # 1, 2, … in order of first appearance
    frames: NDArray[np.int64]  # (N,) source frame indices, strictly ascending
    boxes: NDArray[np.float32]  # (N, 4) x1, y1, x2, y2, px
    scores: NDArray[np.float32]  # (N,) detector confidence, 0..1
    interpolated: NDArray[np.bool_]  # (N,) True where the box was filled in

    def __post_init__(self) -> None:
        n = len(self.frames)
        for name, shape in (("boxes", (n, 4)), ("scores", (n,)), ("interpolated", (n,))):
            _check(self, name, shape)
        if n == 0 or (np.diff(self.frames) <= 0).any():
            raise ValueError("Track.frames must be ascending and not empty")

    def __len__(self) -> int:
        return len(self.frames)

    def select(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Track:
        """Return the track of the given rows only."""
        return Track(
            self.id,
            self.frames[rows],
            self.boxes[rows],
            self.scores[rows],
            self.interpolated[rows],
        )


@dataclass(frozen=True)
class Motion:
    """One person's SMPL parameters over a clip, in the camera frame of the source image.

    Camera frame: OpenCV, x right, y down, z forward, metres. A vertex of the posed body plus
    `transl` projects to the image as focal_length · (x/z, y/z) + principal_point.
    """

    track_id: int
    body: str  # "smpl-neutral", "smpl-male", "smpl-female" or "free-1"
    gender: str  # "neutral", "male" or "female"
    weights: str  # name of the weight file's content
    trained: bool  # False: the weights are random, the motion means nothing
    shape: Shape  # which betas the joints were computed with: `betas` or `betas_per_frame`
    fps: float  # Hz, average rate of the source
    image_size: NDArray[np.float64]  # (2,) width, height, px
    focal_length: float  # px
    principal_point: NDArray[np.float64]  # (2,) px
    frame_ids: NDArray[np.int64]  # (N,) source frame indices
    times: NDArray[np.float64]  # (N,) presentation times, s
    pose: NDArray[np.float32]  # (N, 72) axis-angle, rad, SMPL joint order, root first
    betas: NDArray[np.float32]  # (10,) the person's one shape
    betas_per_frame: NDArray[np.float32]  # (N, 10) what the network said of each frame
    transl: NDArray[np.float32]  # (N, 3) m
    cam: NDArray[np.float32]  # (N, 3) weak-perspective s, tx, ty within `bboxes`
    bboxes: NDArray[np.float32]  # (N, 4) square box cx, cy, w, h, px
    camera_scale: float  # side of `bboxes`, in longer sides of the person's box
    joints3d: NDArray[np.float32]  # (N, 24, 3) m, before transl
    joints2d: NDArray[np.float32]  # (N, 24, 2) px
    scores: NDArray[np.float32]  # (N,) detector confidence, 0..1
    interpolated: NDArray[np.bool_]  # (N,) True where the box was filled in

    def __post_init__(self) -> None:
        n = len(self.frame_ids)
        for name, shape in (
            ("image_size", (2,)),
            ("principal_point", (2,)),
            ("times", (n,)),
            ("pose", (n, 3 * JOINTS)),
            ("betas", (BETAS,)),
            ("betas_per_frame", (n, BETAS)),
            ("transl", (n, 3)),
            ("cam", (n, 3)),
            ("bboxes", (n, 4)),
            ("joints3d", (n, JOINTS, 3)),
            ("joints2d", (n, JOINTS, 2)),
            ("scores", (n,)),
            ("interpolated", (n,)),
        ):
            _check(self, name, shape)
        if not 0 < self.camera_scale < np.inf:
            raise ValueError(f"Motion.camera_scale is {self.camera_scale}, not a positive number")

    def __len__(self) -> int:
        return len(self.frame_ids)

    @property
    def name(self) -> str:
        """The stem of this person's files: person_01, person_02, …"""
        return f"person_{self.track_id:02d}"

    @property
    def boxes(self) -> NDArray[np.float32]:
        """The person's boxes (N, 4) x1, y1, x2, y2, px, as far as `bboxes` tell: squares."""
        centre, half = self.bboxes[:, :2], self.bboxes[:, 2:] / (2 * self.camera_scale)
        return np.concatenate([centre - half, centre + half], axis=1)

    @property
    def posed_betas(self) -> NDArray[np.float32]:
        """The betas (N, 10) that shape the body of each frame, according to `shape`."""
        if self.shape == "frame":
            return self.betas_per_frame
        return np.broadcast_to(self.betas, (len(self), BETAS))

    def save(self, path: Path) -> None:
        """Write the motion as .npz of plain arrays, under a temporary name first."""
        temporary = path.with_name(path.name + ".part")
        arrays: dict[str, Any] = {"format": FORMAT, **vars(self)}
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Motion:
        """Read a motion that `save` wrote.

        Raises InputError if the file is not one: unreadable, of another format, a key missing or
        of the wrong shape, or pickled objects inside.
        """
        found, arrays = read_npz(path, what="motion file")
        if found != FORMAT:
            raise InputError(f"{path} is not a {FORMAT} file (found: {found}).")
        return cls.from_arrays(arrays, source=path)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], *, source: Path) -> Motion:
        """Build a motion from the arrays of a file; other keys are left out.

        Raises InputError, naming `source`, if a key is missing or of the wrong shape.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if missing := names - arrays.keys():
            raise InputError(f"{source} lacks {', '.join(sorted(missing))}.")
        values = {
            name: array.item() if array.ndim == 0 else array
            for name, array in arrays.items()
            if name in names
        }
        if values["shape"] not in get_args(Shape):
            raise InputError(f"{source}: shape is {values['shape']!r}, not 'person' or 'frame'.")
        try:
            return cls(**values)
        except (ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{source} is not a valid motion file: {error}.") from error
