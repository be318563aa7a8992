"""Synthetic samples on disk, in files of a few megabytes that any training loop can go through.

Pictures are stored as JPEG: at 224 px 27 kB instead of 151 kB, 0.4 ms to write and 0.6 ms to read
where lossless PNG takes 2 to 4 ms for 85 kB. Frames of videos have been through worse.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
import zipfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeVar, cast

import cv2
import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from mpsnet_cli._version import __version__
from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.npz import read_npz
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.crowd import Crowds, SceneBatch
from mpsnet_cli.synth.plates import PHOTO_SUFFIXES
from mpsnet_cli.synth.samples import CropBatch, Samples

FORMAT = "mpsnet-synth/1"
MANIFEST = "manifest.json"
LOCK = ".lock"
SAMPLES_PER_SHARD = {"crops": 128, "sequences": 8, "scenes": 64}
CROPS_AT_ONCE = 8  # on a CPU, where more at once gain nothing; elsewhere a whole shard
QUALITY = 95  # of JPEG, without colour subsampling

LABELS: dict[str, tuple[type, tuple[int, ...]]] = {  # of a picture: type and shape
    "pose": (np.float32, (72,)),
    "betas": (np.float32, (10,)),
    "cam": (np.float32, (3,)),
    "joints2d": (np.float32, (24, 2)),
    "visible": (np.bool_, (24,)),
    "joints3d": (np.float32, (24, 3)),
    "transl": (np.float32, (3,)),
    "bboxes": (np.float32, (4,)),
    "focal_length": (np.float32, ()),
    "image_size": (np.float32, (2,)),
}

Kind = Literal["crops", "sequences", "scenes"]
Source = Samples | Crowds
MakeSamples = Callable[[], Source]  # to be called in each worker
Picture = NDArray[np.uint8]
Content = TypeVar("Content")

_samples: Source  # of a worker process
_stop: Event


@dataclass(frozen=True)
class Recipe:
    """All that decides what the sample of a given number looks like."""

    kind: Kind
    seed: int
    size: int  # px
    split: str
    frames: int  # of a sample: 1 but for sequences
    textures: str = ""  # digest of the user's photographs, if there are any
    backgrounds: str = ""
    version: str = __version__

    @property
    def digest(self) -> str:
        """The sha256 of it all."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def photos_digest(folder: Path | None) -> str:
    """Tell one folder of photographs from another: the sha256 of their names and sizes.

    Raises InputError if there are none in it, or one that is not a picture: better now than when
    its turn comes, hours later.
    """
    if folder is None:
        return ""
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    if not photos:
        suffixes = ", ".join(sorted(PHOTO_SUFFIXES))
        raise InputError(f"{folder} holds no photographs ({suffixes}).")
    digest = hashlib.sha256()
    for path in photos:
        if not cv2.haveImageReader(str(path)):
            raise InputError(f"{path} is not a picture that can be read: take it out.")
        name = path.relative_to(folder).as_posix()
        digest.update(repr((name, path.stat().st_size)).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Shard:
    """The samples of one file."""

    kind: Kind
    indices: NDArray[np.int64]  # (n,) the samples' numbers
    frames: int  # of a sample: 1 for crops
    batch: CropBatch  # of n · frames pictures, those of a sample one after the other


@dataclass(frozen=True)
class SceneShard:
    """The scenes of one file."""

    indices: NDArray[np.int64]  # (n,) the scenes' numbers
    jpegs: list[Picture]  # n files in memory: a training set of pictures would not fit there
    boxes: list[NDArray[np.float32]]  # n of (k, 4) x1, y1, x2, y2, px


def read_shard(path: Path) -> Shard:
    """Read a file of crops or sequences that `write_shards` wrote.

    Its keys: `format`, `kind`, `recipe` (digest), `indices` (n,), `frames`; of the N = n · frames
    pictures `jpeg` (all bytes) with `jpeg_ends` (N,), where each one's bytes end, and `masks` with
    eight pixels of a row in a byte; the LABELS as `CropBatch` has them. Raises InputError if the
    file is anything else.
    """
    return _read(path, _unpack)


def read_scenes(path: Path) -> SceneShard:
    """Read a file of scenes that `write_shards` wrote.

    Its keys are those of a shard of crops up to `jpeg_ends`, `boxes` and, how many of them are each
    scene's, `counts` (n,). Raises InputError if the file is anything else.
    """
    return _read(path, _unpack_scenes)


def _read(path: Path, unpack: Callable[[dict[str, Any]], Content]) -> Content:
    found, arrays = read_npz(path, what="shard of samples")
    try:
        if found != FORMAT:
            raise ValueError(f"it is not {FORMAT} (found: {found})")
        return unpack(arrays)
    except KeyError as error:
        raise InputError(f"{path} is not a shard of samples: it lacks {error}.") from error
    except Exception as error:  # a damaged or hostile file can raise anything
        raise InputError(f"{path} is not a readable shard of samples: {error}.") from error


def iter_shards(folder: Path) -> Iterator[Shard]:
    """Read the crops or sequences of a folder in the order of their samples.

    Raises InputError if there are none, or one cannot be read.
    """
    paths = sorted(p for kind in ("crops", "sequences") for p in folder.glob(f"{kind}-*.npz"))
    if not paths:
        raise InputError(f"{folder} holds no samples: make some with mpsnet synth {folder}.")
    return map(read_shard, paths)


def iter_scenes(folder: Path) -> Iterator[SceneShard]:
    """Read the scenes of a folder in their order. Raises InputError as `iter_shards`."""
    paths = sorted(folder.glob("scenes-*.npz"))
    if not paths:
        raise InputError(
            f"{folder} holds no scenes: make some with mpsnet synth {folder} --kind scenes."
        )
    return map(read_scenes, paths)


def write_shards(
    make: MakeSamples,
    folder: Path,
    recipe: Recipe,
    *,
    start: int,
    count: int,
    workers: int,
    report: Reporter,
) -> None:
    """Write the samples `start` … `start + count - 1` to `folder`, and its manifest.

    Shards begin at multiples of SAMPLES_PER_SHARD. One that is there already, by the same recipe
    and with all that is wanted of it, is kept. With more than one worker each is a process of its
    own. Raises OutputError if the folder cannot be written, is in use, or holds anything else.
    """
    length = SAMPLES_PER_SHARD[recipe.kind]
    end = start + count
    firsts = [start, *range((start // length + 1) * length, end, length)]
    shards = [range(*edges) for edges in zip(firsts, [*firsts[1:], end], strict=True)]
    tasks = [_Task(folder / f"{recipe.kind}-{s.start:08d}.npz", s, recipe) for s in shards]
    with _locked(folder):
        _claim(folder, recipe)
        missing = [task for task in tasks if not _is_there(task, report)]
        if kept := len(tasks) - len(missing):
            report.warn(f"{kept} of {len(tasks)} shards are in {folder} already and are kept.")
        with (
            report.stage(recipe.kind, total=sum(len(task.indices) for task in missing)) as advance,
            closing(_carry_out(missing, make, min(workers, len(missing)))) as done,
        ):
            for task in done:
                advance(len(task.indices))
        _write_manifest(folder, recipe)


class _Task(NamedTuple):
    """One shard to make."""

    path: Path
    indices: range
    recipe: Recipe


class _Stopped(Exception):
    """Whoever asked for the shard does not want it any more."""


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder; errors of the file system become OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):  # Windows keeps a file that is open
                    (folder / LOCK).unlink()
    except Timeout as error:
        raise OutputError(f"{folder} is being written by another run: wait for it.") from error
    except OSError as error:
        raise OutputError(
            f"The samples cannot be written to {folder}: {error.strerror or error}. Make room "
            "there or name another folder; the same command goes on from what is written."
        ) from error


def _claim(folder: Path, recipe: Recipe) -> None:
    """Make sure that a folder is empty or of the same recipe, and leave a manifest in it."""
    others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not others:
        _write_manifest(folder, recipe)
        return
    if MANIFEST not in others:
        raise OutputError(f"{folder} holds other files, {others[0]}: name an empty folder.")
    try:
        content = json.loads((folder / MANIFEST).read_text())
        found = dict(content["recipe"]) if content["format"] == FORMAT else {}
    except (ValueError, KeyError, TypeError):
        found = {}
    for key, value in asdict(recipe).items():
        if found.get(key) != value:
            raise OutputError(
                f"{folder} holds samples of another recipe, {key} {found.get(key)!r} and not "
                f"{value!r}: name another folder."
            )
    for part in folder.glob(f".{recipe.kind}-*.npz.part"):  # of a run that was killed
        part.unlink()


def _write_manifest(folder: Path, recipe: Recipe) -> None:
    """Write down what the folder holds."""
    paths = sorted(folder.glob(f"{recipe.kind}-*.npz"))
    manifest = {
        "format": FORMAT,
        "recipe": asdict(recipe),
        "recipe_sha256": recipe.digest,
        "shards": len(paths),
        "samples": sum(len(_stored(path)[1]) for path in paths),
    }
    with _replacing(folder / MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1).encode())


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a temporary name and rename it once it is safely on the disk."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_there(task: _Task, report: Reporter) -> bool:
    """Say whether a shard is complete on disk."""
    if not task.path.exists():
        return False
    try:
        digest, stored = _stored(task.path)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        report.warn(f"{task.path} is damaged and is made anew.")
        task.path.unlink()
        return False
    if digest != task.recipe.digest:
        raise OutputError(f"{task.path} is of another recipe than its folder: remove it.")
    return len(stored) >= len(task.indices)


def _stored(path: Path) -> tuple[str, NDArray[np.int64]]:
    """Read a shard's recipe digest and sample numbers, and no more."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        return str(stored["recipe"]), stored["indices"]


def _carry_out(tasks: list[_Task], make: MakeSamples, workers: int) -> Generator[_Task]:
    """Make shards, here or in processes, and yield each task when it is done."""
    if not tasks:
        return
    if workers == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # of such small work more make less
        try:
            samples = make()
            for task in tasks:
                _make_shard(task, samples)
                yield task
        finally:
            torch.set_num_threads(threads)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (make, stop)) as pool:
        try:
            # Ctrl-C is for this process alone; the children inherit that they ignore it.
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            futures = {pool.submit(_work, task): task for task in tasks}
            signal.signal(signal.SIGINT, handler)
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise OutputError(
                "A worker was killed, as a rule for want of memory: pass fewer --workers; "
                "the same command goes on from what is written."
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _begin(make: MakeSamples, stop: Event) -> None:
    """Prepare a worker process, which ends with its parent even if that is killed."""
    global _samples, _stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _samples, _stop = make(), stop


def _work(task: _Task) -> None:
    """Make a shard in a worker process."""
    _make_shard(task, _samples, stopped=_stop.is_set)


def _make_shard(
    task: _Task, samples: Source, *, stopped: Callable[[], bool] = lambda: False
) -> None:
    batches = []
    for draw in _draws(task, samples):
        if stopped():
            raise _Stopped
        batches.append(_pack(draw()))
    arrays = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    stored: dict[str, Any] = {
        "format": FORMAT,
        "kind": task.recipe.kind,
        "recipe": task.recipe.digest,
        "indices": np.array(task.indices, np.int64),
        "frames": task.recipe.frames,
        "jpeg_ends": np.cumsum(arrays.pop("jpeg_sizes")),
        **arrays,
    }
    with _replacing(task.path) as file:
        np.savez(file, **stored)


def _draws(task: _Task, samples: Source) -> Sequence[Callable[[], CropBatch | SceneBatch]]:
    """Divide a shard into calls that are soon done."""
    kind = task.recipe.kind
    if kind == "sequences":
        sequence = cast("Samples", samples).sequence
        return [partial(sequence, index, task.recipe.frames) for index in task.indices]
    make = cast("Samples", samples).crops if kind == "crops" else cast("Crowds", samples).scenes
    step = CROPS_AT_ONCE if samples.device.type == "cpu" else len(task.indices)
    firsts = range(0, len(task.indices), step)
    return [partial(make, task.indices[first : first + step]) for first in firsts]


def _pack(batch: CropBatch | SceneBatch) -> dict[str, NDArray[Any]]:
    """Turn a batch into the arrays that are stored of it."""
    jpegs = [_encode(image) for image in batch.images]
    pictures = {
        "jpeg": np.concatenate(jpegs),
        "jpeg_sizes": np.array([len(jpeg) for jpeg in jpegs]),
    }
    if isinstance(batch, SceneBatch):
        return {"boxes": batch.boxes, "counts": batch.counts, **pictures}
    return {
        **{name: getattr(batch, name) for name in LABELS},
        "masks": np.packbits(batch.masks, axis=-1),
        **pictures,
    }


def _unpack(arrays: dict[str, Any]) -> Shard:
    """Undo `_pack`; raises KeyError, ValueError or cv2.error for what is no shard."""
    kind: Any = str(arrays["kind"])
    indices, frames = arrays["indices"], int(arrays["frames"])
    count = indices.size * frames
    if kind not in ("crops", "sequences") or indices.shape != (indices.size,) or count < 1:
        raise ValueError(f"it holds {indices.shape} × {frames} pictures of {kind}")
    images = np.stack([decode(jpeg) for jpeg in _jpegs(arrays, count)])
    size = images.shape[1]
    labels = {}
    for name, (dtype, shape) in {**LABELS, "masks": (np.uint8, (size, -(-size // 8)))}.items():
        found = labels[name] = arrays[name]
        if (found.dtype, found.shape) != (dtype, (count, *shape)):
            raise ValueError(
                f"{name} is {found.dtype} {found.shape}, not {np.dtype(dtype)} {(count, *shape)}"
            )
        if not np.isfinite(found).all():
            raise ValueError(f"{name} is not finite")
    labels["masks"] = np.unpackbits(labels["masks"], axis=-1, count=size).astype(bool)
    return Shard(kind, indices, frames, CropBatch(images=images, **labels))


def _unpack_scenes(arrays: dict[str, Any]) -> SceneShard:
    """Undo `_pack` for scenes, but for the JPEG; raises KeyError or ValueError likewise."""
    indices, boxes, counts = arrays["indices"], arrays["boxes"], arrays["counts"]
    if str(arrays["kind"]) != "scenes" or indices.shape != (indices.size,) or not indices.size:
        raise ValueError(f"it holds {indices.shape} pictures of {arrays['kind']}")
    if counts.shape != indices.shape or counts.dtype.kind != "i" or (counts < 0).any():
        raise ValueError("counts does not count boxes")
    if (boxes.dtype, boxes.shape) != (np.float32, (counts.sum(), 4)):
        raise ValueError(f"boxes is {boxes.dtype} {boxes.shape}, and counts {counts.sum()}")
    if not (np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise ValueError("boxes are not boxes")
    return SceneShard(
        indices, _jpegs(arrays, indices.size), np.split(boxes, np.cumsum(counts)[:-1])
    )


def _jpegs(arrays: dict[str, Any], count: int) -> list[Picture]:
    """Divide the bytes of `count` pictures."""
    ends, jpeg = arrays["jpeg_ends"], arrays["jpeg"]
    if ends.shape != (count,) or ends[-1] != len(jpeg) or (np.diff(ends, prepend=0) <= 0).any():
        raise ValueError("jpeg_ends does not divide jpeg")
    return np.split(jpeg, ends[:-1])


def _encode(image: Picture) -> Picture:
    """Compress an RGB picture to the bytes of a JPEG file."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
    settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", image[..., ::-1], settings)[1]


def decode(jpeg: Picture) -> Picture:
    """Read an RGB picture from the bytes of a JPEG file. Raises ValueError if it is none."""
    picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
    if picture is None or picture.shape[0] != picture.shape[1]:
        raise ValueError("a picture cannot be decoded")
    return picture
