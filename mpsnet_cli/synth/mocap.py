"""Motion capture in Acclaim's ASF/AMC format, as the CMU database has it.

Bone b of a skeleton has, in the rest pose, a vector o_b from its start to its end and the axes C_b
in which its recorded rotation M_b is written (both in world axes: y up, z the way the person at
rest faces). With parent p,

    G_b = G_p · C_b M_b C_bᵀ        end_b = end_p + G_b o_b

so G_b is the rotation that takes bone b from its rest pose to its recorded one.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from mpsnet_cli.errors import InputError

Array = NDArray[np.float64]

CAPTURE_RATE = 120  # Hz, of every CMU take
METRES_PER_INCH = 0.0254  # a unit of length is so many inches: 1 / 0.45 in the CMU files
MAX_MEMBER_BYTES = 64 * 2**20

ROOT = "root"
CHANNELS = ("tx", "ty", "tz", "rx", "ry", "rz")


@dataclass(frozen=True)
class Skeleton:
    """An ASF skeleton: bones in an order in which parents come first, the root being bone 0."""

    bones: tuple[str, ...]  # B names
    parents: tuple[int, ...]  # B indices, -1 for the root
    offsets: Array  # (B, 3) start to end in the rest pose, m, world axes
    axes: Array  # (B, 3, 3) columns: the bone's rotation axes in the rest pose
    channels: tuple[tuple[str, ...], ...]  # per bone, the recorded values in their order
    metres: float  # one unit of length of the files
    radians: float  # one unit of angle of the files

    def __getitem__(self, bone: str) -> int:
        return self.bones.index(bone)


@dataclass(frozen=True)
class Take:
    """A recording, posed: what `Skeleton` does over N frames at `CAPTURE_RATE`."""

    skeleton: Skeleton
    rotations: Array  # (N, B, 3, 3) G_b: rest pose to recorded pose, world axes
    root: Array  # (N, 3) position of the root, m

    def positions(self) -> Array:
        """Place the ends of the bones: (N, B, 3), m; the root's end is the root itself."""
        ends = np.empty((*self.rotations.shape[:2], 3))
        for b, parent in enumerate(self.skeleton.parents):
            start = self.root if parent < 0 else ends[:, parent]
            ends[:, b] = start + self.rotations[:, b] @ self.skeleton.offsets[b]
        return ends


def read_asf(text: str) -> Skeleton:
    """Parse the text of an ASF file.

    Raises InputError where the text is no skeleton. Source: the Acclaim format as documented by
    J. Lander, "Working with Motion Capture File Formats", Game Developer, January 1998.
    """
    sections = _sections(text)
    try:
        units = dict(line[:2] for line in sections["units"])
        metres = METRES_PER_INCH / float(units["length"])
        radians = np.pi / 180 if units["angle"] == "deg" else 1.0
        fields = {line[0]: line[1:] for line in sections["root"]}
        bones, parents = [ROOT], [-1]
        offsets, axes = [np.zeros(3)], [_euler(fields["axis"][0], fields["orientation"], radians)]
        channels = [tuple(name.lower() for name in fields["order"])]
        table = _bones(sections["bonedata"], radians)
        for line in sections["hierarchy"]:
            if line[0] in ("begin", "end"):
                continue
            parent = bones.index(line[0])
            for name in line[1:]:
                direction, axis, dof = table.pop(name)
                bones.append(name)
                parents.append(parent)
                offsets.append(direction * metres)
                axes.append(axis)
                channels.append(dof)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise InputError(f"This is not a readable ASF skeleton: {error!r}.") from error
    if sorted(channels[0]) != sorted(CHANNELS):
        raise InputError(f"The ASF root has the order {channels[0]}, not all of {CHANNELS}.")
    for bone, dof in zip(bones[1:], channels[1:], strict=True):
        if len(set(dof)) < len(dof) or not set(dof) <= set(CHANNELS[3:]):
            raise InputError(f"The ASF bone {bone} moves by {dof}; bones can only rotate.")
    if not (np.isfinite(offsets).all() and np.isfinite(axes).all()):
        raise InputError("The ASF skeleton has numbers that are not finite.")
    return Skeleton(
        bones=tuple(bones),
        parents=tuple(parents),
        offsets=np.array(offsets),
        axes=np.array(axes),
        channels=tuple(channels),
        metres=metres,
        radians=radians,
    )


def _sections(text: str) -> dict[str, list[list[str]]]:
    """Split ASF text at its `:section` lines into lists of words, comments dropped."""
    sections: dict[str, list[list[str]]] = {}
    lines: list[list[str]] = []
    for raw in text.splitlines():
        words = raw.split("#")[0].split()
        if not words:
            continue
        if words[0].startswith(":"):
            lines = sections.setdefault(words[0][1:].lower(), [])
        else:
            lines.append(words)
    return sections


def _bones(
    lines: list[list[str]], radians: float
) -> dict[str, tuple[Array, Array, tuple[str, ...]]]:
    """Read `:bonedata`: name to rest vector (file units), axes (3, 3) and channels."""
    table = {}
    fields: dict[str, list[str]] = {}
    for line in lines:
        if line[0] == "begin":
            fields = {}
        elif line[0] == "end":
            direction = np.array(fields["direction"], float)
            with np.errstate(invalid="ignore"):  # told by read_asf
                vector = direction / np.linalg.norm(direction) * float(fields["length"][0])
            axis = _euler(fields["axis"][3], fields["axis"][:3], radians)
            dof = tuple(name.lower() for name in fields.get("dof", ()))
            table[fields["name"][0]] = vector, axis, dof
        else:
            fields[line[0]] = line[1:]
    return table


def _euler(order: str, angles: ArrayLike, radians: float) -> Array:
    """Turn Acclaim angles (…, len(order)), first axis applied first, into matrices (…, 3, 3)."""
    return Rotation.from_euler(order.lower(), np.asarray(angles, float) * radians).as_matrix()


def read_amc(text: str, skeleton: Skeleton) -> Take:
    """Parse the text of an AMC file and pose the skeleton in each of its frames.

    Raises InputError where a bone is unknown, missing, or has the wrong number of values.
    """
    values = _values(text, skeleton)
    rotations = np.empty((len(values), len(skeleton.bones), 3, 3))
    column = 0
    for b, (parent, axes, channels) in enumerate(
        zip(skeleton.parents, skeleton.axes, skeleton.channels, strict=True)
    ):
        own = values[:, column : column + len(channels)]
        column += len(channels)
        turns = [k for k, name in enumerate(channels) if name.startswith("r")]
        local = axes @ axes.T
        if turns:
            order = "".join(channels[k][1] for k in turns)
            local = axes @ _euler(order, own[:, turns], skeleton.radians) @ axes.T
        rotations[:, b] = local if parent < 0 else rotations[:, parent] @ local
    shifts = [skeleton.channels[0].index(name) for name in CHANNELS[:3]]
    return Take(skeleton, rotations, values[:, shifts] * skeleton.metres)


def _values(text: str, skeleton: Skeleton) -> Array:
    """Read the numbers of an AMC text: (N, sum of channels), bones in the skeleton's order."""
    sizes = {b: len(c) for b, c in zip(skeleton.bones, skeleton.channels, strict=True) if c}
    frames: list[dict[str, list[str]]] = []
    for raw in text.splitlines():
        words = raw.split()
        if not words or words[0][0] in "#:":
            continue
        if len(words) == 1 and words[0].isdigit():
            frames.append({})
        elif not frames or sizes.get(words[0]) != len(words) - 1:
            raise InputError(f"This AMC line does not fit the skeleton: {raw[:60]!r}.")
        else:
            frames[-1][words[0]] = words[1:]
    try:
        rows = [[word for bone in sizes for word in frame[bone]] for frame in frames]
        values = np.array(rows, float).reshape(len(rows), sum(sizes.values()))
    except (KeyError, ValueError) as error:
        raise InputError(f"An AMC frame has a missing bone or a bad number: {error}.") from error
    if not len(values) or not np.isfinite(values).all():
        raise InputError("The AMC text is without frames, or has numbers that are not finite.")
    return values


def read_takes(source: Path, names: Iterable[str] | None = None) -> dict[str, Take]:
    """Read takes such as "02_01", or all there are, from a tar or a folder of CMU subjects.

    The files lie anywhere in it, 02.asf being the skeleton of 02_01.amc. Nothing of a tar is
    extracted to disk. Raises InputError where a file is missing, large or no text.
    """
    wanted = {f"{name}.amc" for name in names or ()}
    wanted |= {_skeleton_of(file) for file in wanted}
    texts: dict[str, str] = {}
    try:
        for file, read in _folder(source) if source.is_dir() else _archive(source):
            if file in wanted if names else file.endswith((".amc", ".asf")):
                texts[file] = read().decode("ascii")
                if texts.keys() == wanted:
                    break
    except (OSError, EOFError, tarfile.TarError, UnicodeDecodeError) as error:
        raise InputError(
            f"{source} is not a readable archive or folder of motion capture: {error}."
        ) from error
    takes = sorted(file for file in texts if file.endswith(".amc"))
    wanted |= {_skeleton_of(file) for file in takes} or wanted or {"*.amc"}
    if missing := wanted - texts.keys():
        raise InputError(f"{source} lacks {', '.join(sorted(missing))}.")
    skeletons = {file: read_asf(text) for file, text in texts.items() if file.endswith(".asf")}
    return {
        file.removesuffix(".amc"): read_amc(texts[file], skeletons[_skeleton_of(file)])
        for file in takes
    }


def _skeleton_of(file: str) -> str:
    return f"{file.removesuffix('.amc').split('_')[0]}.asf"


def _archive(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Name the regular files of a tar that are not too large, each with how to read it."""
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and member.size <= MAX_MEMBER_BYTES:
                content = tar.extractfile(member)
                assert content is not None  # a regular file
                yield Path(member.name).name, content.read


def _folder(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The same of a folder and the folders in it."""
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.stat().st_size <= MAX_MEMBER_BYTES:
            yield file.name, file.read_bytes
