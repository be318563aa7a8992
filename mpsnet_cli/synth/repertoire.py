"""Recorded movements to draw from: the packaged takes, or a user's own.

The packaged ones are 28 takes of the CMU motion capture database, retargeted by
tools/build_motions.py; credit and terms are in data/LICENSE.md. Some are held out, whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter1d
from scipy.spatial.transform import Rotation

from mpsnet_cli.datasets.amass import read_amass
from mpsnet_cli.errors import InputError
from mpsnet_cli.geometry import axis_angle_to_matrix
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.anatomy import REST, ROOT, floor_path, limit, measure, pose
from mpsnet_cli.synth.mocap import CAPTURE_RATE, Take, read_takes
from mpsnet_cli.synth.retarget import retarget

Array = NDArray[np.float64]
Split = Literal["train", "held-out"]

FPS = 30.0  # Hz, of every take of a repertoire
PACKAGED = Path(__file__).parent / "data" / "cmu-takes.npz"
FORMAT = "mpsnet-repertoire/1"
QUANTUM = 1e-3  # rad and m, of what is packaged

# Of climbing, swinging, walking, bending, fencing and rough ground one take each.
HELD_OUT = ("01_04", "01_09", "02_02", "02_06", "02_09", "03_02")

IMPOSSIBLE = np.radians(45)  # beyond its range: an angle that was not measured but mistaken
FASTEST = np.radians(1500)  # rad/s; what is faster jumped from one mistake to another
DOUBTFUL = 0.05  # s before and after a mistake
SMOOTHING = 1 / 60  # s, deviation of the filter before frames are left out

UPRIGHT = np.radians(20)  # tilt of the root; climbing and bending are beyond
LEANING = 0.35  # of the frames that lean more are drawn

LEG = float(np.linalg.norm(np.diff(REST[[1, 4, 7]], axis=0), axis=1).sum())  # m, hip to ankle


@dataclass(frozen=True)
class Movement:
    """What a body does over N frames, whosever it is.

    World axes: y up; a person in the T-pose stands along y and faces z.
    """

    rotations: Array  # (N, 24, 3, 3) relative to the parent joint, the root's to the world
    path: Array  # (N, 3) m, of the root from where it was in the first frame
    fps: float  # Hz
    name: str  # the take, or the takes and what was made of them


@dataclass(frozen=True)
class Repertoire:
    """Takes at `FPS`, one after another, as angles (see anatomy.py) within their ranges."""

    names: tuple[str, ...]
    starts: NDArray[np.int64]  # (takes + 1,) the frame at which each begins, and F
    tracks: NDArray[np.float32]  # (F, 25, 3): 24 angles, rad; path, m, from each take's first frame

    @property
    def takes(self) -> tuple[Movement, ...]:
        """The takes as movements."""
        spans = map(slice, self.starts, self.starts[1:])
        tracks = [self.tracks[span].astype(np.float64) for span in spans]
        return tuple(
            Movement(pose(track[:, :24]), track[:, 24], FPS, name)
            for name, track in zip(self.names, tracks, strict=True)
        )

    @cached_property
    def odds(self) -> Array:
        """Add up how much each frame is wanted (F,): upright people, and not long takes only."""
        lengths = np.diff(self.starts)
        leaning = np.hypot(self.tracks[:, ROOT, 0], self.tracks[:, ROOT, 2]) > UPRIGHT
        return np.cumsum(np.where(leaning, LEANING, 1) / np.sqrt(np.repeat(lengths, lengths)))


def load_repertoire(split: Split) -> Repertoire:
    """Load the packaged takes for training, or those held out from it."""
    if split not in get_args(Split):
        raise ValueError(f"There is no split {split!r}, only {get_args(Split)}.")
    with np.load(PACKAGED, allow_pickle=False) as file:
        names, counts = file["names"].tolist(), file["counts"]
        steps = file["steps"]
    chosen = np.array([(name in HELD_OUT) == (split == "held-out") for name in names])
    values = np.cumsum(steps, axis=1, dtype=np.int32)[:, np.repeat(chosen, counts)].T * QUANTUM
    tracks = np.zeros((len(values), 25, 3))
    tracks[:, _STORED] = values.reshape(len(values), -1, 3)
    tracks[:, :24] = limit(tracks[:, :24])
    kept = tuple(name for name, choice in zip(names, chosen, strict=True) if choice)
    return Repertoire(kept, _starts(counts[chosen]), tracks.astype(np.float32))


def save_repertoire(path: Path, repertoire: Repertoire) -> None:
    """Write a repertoire as it is packaged: steps from frame to frame, in whole `QUANTUM`."""
    values = repertoire.tracks[:, _STORED].reshape(len(repertoire.tracks), -1)
    steps = np.diff(np.rint(values / QUANTUM), axis=0, prepend=0).T
    np.savez_compressed(
        path,
        format=FORMAT,
        names=np.array(repertoire.names),
        counts=np.diff(repertoire.starts),
        steps=steps.astype(np.int16),
    )


def gather(movements: Sequence[Movement]) -> Repertoire:
    """Make a repertoire of anybody's movements: mended, at `FPS`, within people's ranges.

    Raises InputError where none lasts two frames; shorter ones are left out.
    """
    movements = [m for m in movements if (len(m.path) - 1) / m.fps * FPS >= 1]
    if not movements:
        raise InputError("There is no movement of two frames or more.")
    tracks = []
    for movement in movements:
        angles = mend(measure(movement.rotations), movement.fps)
        track = resample(np.concatenate([angles, movement.path[:, None]], axis=1), movement.fps)
        track[:, :24] = limit(track[:, :24])
        track[:, 24] -= track[0, 24]
        tracks.append(track.astype(np.float32))
    names = tuple(movement.name for movement in movements)
    return Repertoire(names, _starts([len(track) for track in tracks]), np.concatenate(tracks))


def _starts(counts: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def mend(angles: Array, fps: float) -> Array:
    """Replace mistakes in angles (N, 24, 3), joint by joint, by what lies between the sound frames.

    A mistake is far outside the joint's range, or got there faster than anybody moves. A joint that
    was never right is left straight.
    """
    wrong = np.abs(angles - limit(angles)).max(axis=2) > IMPOSSIBLE
    fast = np.abs(np.diff(angles, axis=0)).max(axis=2) * fps > FASTEST
    wrong[1:] |= fast
    wrong[:-1] |= fast
    reach = 1 + 2 * round(DOUBTFUL * fps)
    wrong = binary_dilation(wrong, np.ones((reach, 1), bool))
    mended = angles.copy()
    frames = np.arange(len(angles))
    for joint in np.flatnonzero(wrong.any(axis=0)):
        sound = ~wrong[:, joint]
        for axis in range(3):
            track = mended[:, joint, axis]
            track[:] = np.interp(frames, frames[sound], track[sound]) if sound.any() else 0
    return mended


def resample(tracks: Array, fps: float) -> Array:
    """Bring tracks (N, …) from `fps` to `FPS`, filtered where that leaves frames out."""
    if fps > FPS:
        tracks = gaussian_filter1d(tracks, SMOOTHING * fps, axis=0, mode="nearest")
    times = np.arange(int((len(tracks) - 1) / fps * FPS + 1e-6) + 1) * fps / FPS
    before = np.minimum(times.astype(int), max(len(tracks) - 2, 0))
    after = np.minimum(before + 1, len(tracks) - 1)
    share = (times - before).reshape(-1, *[1] * (tracks.ndim - 1))
    return tracks[before] + share * (tracks[after] - tracks[before])


def read_movements(path: Path, report: Reporter, *, rate: float = CAPTURE_RATE) -> list[Movement]:
    """Read a user's takes: AMASS's .npz, one or a folder of them, or ASF/AMC, a folder or a tar.

    `rate` is that of the AMC files, Hz, which do not tell it. Raises InputError where there are
    none, or they cannot be read.
    """
    if path.suffix == ".npz" or (path.is_dir() and next(path.rglob("*.npz"), None)):
        movements = []
        for poses in read_amass(path, report):
            rotations = axis_angle_to_matrix(poses.pose.reshape(-1, 24, 3).astype(float))
            rotations[:, ROOT] = _Z_UP_TO_Y_UP @ rotations[:, ROOT]
            movements.append(Movement(rotations, floor_path(rotations), poses.fps, poses.name))
        return movements
    takes = read_takes(path)
    return [transfer(take, name, rate) for name, take in takes.items()]


def transfer(take: Take, name: str, rate: float = CAPTURE_RATE) -> Movement:
    """Carry an ASF/AMC take over to SMPL, its path scaled as its legs are."""
    skeleton = take.skeleton
    leg = sum(np.linalg.norm(skeleton.offsets[skeleton[bone]]) for bone in ("lfemur", "ltibia"))
    path = (take.root - take.root[0]) * LEG / leg
    return Movement(retarget(take, REST), path, rate, name)


_STORED = [*range(22), 24]  # the hands never move
_Z_UP_TO_Y_UP = Rotation.from_euler("x", -90, degrees=True).as_matrix()
