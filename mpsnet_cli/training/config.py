"""What a training run is told: one YAML file, read into frozen dataclasses.

Each command has its own: TrainConfig is `mpsnet train`'s.

`examples/train.yaml` shows every field with its default, which is the paper's (§4) or, where the
paper is silent, the official release's.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from mpsnet_cli.errors import InputError
from mpsnet_cli.model.config import Attention, Integration
from mpsnet_cli.training.losses import LossWeights

Config = TypeVar("Config")

BOUNDS: dict[str, tuple[float, float]] = {
    "share_2d": (0, 1),
    "stride": (1, 1000),
    "epochs": (1, 100_000),
    "steps_per_epoch": (1, 1_000_000),
    "batch_size": (1, 65_536),
    "learning_rate": (0, 1),
    "discriminator_learning_rate": (0, 1),
    "discriminator_weight_decay": (0, 1),
    "patience": (0, 100_000),
    "factor": (0, 0.99),
    "seed": (0, 2**32 - 1),
    "checkpoint_every": (1, 1_000_000),
    "validate_every": (1, 1_000_000_000),
    "crops": (1, 1_000_000_000),
    "warmup": (0, 1_000_000_000),
    "weight_decay": (0, 1),
    "sizes": (32, 1024),
    "frozen": (0, 3),
    "falling": (0.01, 1),
    "plain": (0, 1),
    "pictures": (1, 1_000_000_000),
    "mosaic": (0, 1),
    "long_sides": (32, 2048),
    "nms_iou": (0.1, 0.9),
    "double_iou": (0.1, 1.0),
    **dict.fromkeys(LossWeights._fields, (0, 1e6)),
}

# By a part of the file's name: what the data set is called, where it is, what its licence allows.
DATA_SETS = {
    "3dpw": (
        "3DPW comes from https://virtualhumans.mpi-inf.mpg.de/3DPW (non-commercial research, "
        "its licence is accepted there)"
    ),
    "mpii3d": (
        "MPI-INF-3DHP comes from https://vcai.mpi-inf.mpg.de/3dhp-dataset (research only, its "
        "licence is accepted there)"
    ),
    "h36m": (
        "Human3.6M comes from http://vision.imar.ro/human3.6m (academic research only, after "
        "registration)"
    ),
    "insta": (
        "InstaVariety comes from https://github.com/akanazawa/human_dynamics (research only; the "
        "videos are their owners')"
    ),
    "penn": (
        "Penn Action comes from http://dreamdragon.github.io/PennAction (research only; the videos "
        "are their owners')"
    ),
    "posetrack": (
        "PoseTrack comes from https://posetrack.net (non-commercial research, after registration)"
    ),
    "amass": (
        "AMASS comes from https://amass.is.tue.mpg.de (non-commercial research, after registration)"
    ),
}
ALIASES = {"3dhp": "mpii3d", "human3.6": "h36m"}
PREPROCESSED = "; TCMR's and VIBE's instructions turn it into such a file"


@dataclass(frozen=True)
class Data:
    """The files that a run learns from and is judged by.

    Sequences (`three_d`, `two_d`, `validation`) are what `mpsnet features` writes, or databases of
    the TCMR and VIBE lineage. `prior` takes AMASS, as files or folders, and sequences with poses;
    without any there is no adversarial loss. `j_regressor_extra` is SPIN's file, which labels in
    SPIN's 49 joints need, and `j_regressor_h36m` the one with which the benchmarks find 14 joints
    on SMPL. `stride` is how many frames lie between the windows of one sequence.
    """

    three_d: tuple[Path, ...]
    validation: tuple[Path, ...]
    two_d: tuple[Path, ...] = ()
    prior: tuple[Path, ...] = ()
    j_regressor_extra: Path | None = None
    j_regressor_h36m: Path | None = None
    share_2d: float = 0.6  # of each batch, where there is two_d
    stride: int = 16


@dataclass(frozen=True)
class Network:
    """Where the network comes from.

    `weights` is a weight file to start from; None draws everything from the seed. `encoder` says
    whether the temporal modules are the file's too, or fresh ones, as after training on pictures.
    """

    weights: Path | None = None
    encoder: Literal["keep", "fresh"] = "keep"
    attention: Attention = "moca"
    integration: Integration = "hafi"
    body: Literal["free-1", "smpl"] = "free-1"


@dataclass(frozen=True)
class Schedule:
    """How long, how many at a time, and how fast."""

    epochs: int = 30
    steps_per_epoch: int = 500
    batch_size: int = 32  # windows
    learning_rate: float = 5e-5
    discriminator_learning_rate: float = 1e-4
    discriminator_weight_decay: float = 1e-4
    patience: int = 5  # epochs without a better PA-MPJPE before the rates are lowered
    factor: float = 0.1  # by which they are


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    `name` and `licence` are what the written weight files say of themselves. `checkpoint_every`
    counts steps; the end of an epoch is a checkpoint too.
    """

    data: Data
    network: Network = Network()
    losses: LossWeights = LossWeights()  # noqa: RUF009 (a tuple, which nothing can change)
    schedule: Schedule = Schedule()
    name: str = "trained with mpsnet train"
    licence: str = "that of its training data"
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    checkpoint_every: int = 500


@dataclass(frozen=True)
class PictureData:
    """Folders of crops, from `mpsnet synth`: to learn from, and to be judged by."""

    crops: tuple[Path, ...]
    validation: tuple[Path, ...]


@dataclass(frozen=True)
class PictureNetwork:
    """Where the network comes from: a weight file, or None for one that the seed draws.

    `state` is the resume.pt or even.pt of the run that wrote the file, of which the map heads and
    the optimiser are kept, too.
    """

    weights: Path | None = None
    state: Path | None = None


@dataclass(frozen=True)
class PictureSchedule:
    """How many crops are seen in all, at what size, and how fast.

    Each of `sizes`, px, is that of an equal share of the crops, one after the other: small ones
    teach the same at first, and cost less. The last is the network's. The rate rises over `warmup`
    crops, and over the last share `falling` of all it falls as a cosine to a hundredth. The last
    share `plain` of the crops is mirrored at most, and not varied otherwise. The stem and the first
    `frozen` layers of a network that goes on stay as they are: with two of them a crop costs two
    thirds.
    """

    crops: int = 1_000_000
    sizes: tuple[int, ...] = (64, 64, 64, 64, 96)
    frozen: int = 0
    batch_size: int = 32
    learning_rate: float = 7e-4
    warmup: int = 10_000
    falling: float = 1.0
    plain: float = 0.0
    weight_decay: float = 0.02


@dataclass(frozen=True)
class PretrainConfig:
    """One training run on single pictures.

    `checkpoint_every` and `validate_every` count crops. `compile` takes a minute for each of the
    sizes, and a C++ compiler; it gains nothing on a CPU.
    """

    data: PictureData
    network: PictureNetwork = PictureNetwork()
    schedule: PictureSchedule = PictureSchedule()
    name: str = "trained with mpsnet pretrain"
    licence: str = "that of its training data"
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = False
    checkpoint_every: int = 16_000
    validate_every: int = 25_000


def load_config(path: Path, kind: type[Config]) -> Config:
    """Read a config of one kind. Relative paths in it start from its own folder.

    Raises InputError, naming the field, for what is unknown, missing, of the wrong type or out of
    range, and for a data file that is not there, saying where its data set is obtained.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} is not a readable YAML file: {reason}.") from error
    try:
        config: Config = _Reader(path.parent, kind).section(kind, content, ())
    except ValueError as error:
        raise InputError(f"{path}: {error}.") from error
    for file in _files(config):
        if not file.exists():
            raise InputError(f"{path} names {file}, which is not there: {_origin(file)}.")
    return config


def flatten(section: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a config by dotted name, as JSON has them; files by their names."""
    flat: dict[str, Any] = {}
    for name, hint in get_type_hints(type(section)).items():
        value = getattr(section, name)
        if _is_section(hint):
            flat |= flatten(value, (*path, name))
        else:
            flat[".".join((*path, name))] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Path) else value


def _files(section: Any) -> Iterator[Path]:
    """Yield every file and folder that a config names."""
    for name, hint in get_type_hints(type(section)).items():
        value = getattr(section, name)
        if _is_section(hint):
            yield from _files(value)
        else:
            yield from (p for p in (value if isinstance(value, tuple) else [value])
                        if isinstance(p, Path))  # fmt: skip


def _origin(file: Path) -> str:
    """Say where a missing file would come from, going by its name."""
    text = file.name.lower()
    for key in (*DATA_SETS, *ALIASES):
        if key in text:
            return DATA_SETS[ALIASES.get(key, key)] + PREPROCESSED * (file.suffix == ".pt")
    match file.suffix:
        case ".safetensors":
            return "`mpsnet weights` makes and converts weight files"
        case ".pt":
            return "`mpsnet detector` writes detectors; databases come from their owners"
        case "":
            return "`mpsnet synth` fills folders of crops, sequences and scenes"
    return "`mpsnet features` makes sequences of clips and of what `mpsnet synth` writes"


class _Reader:
    """Turn decoded YAML, which may hold anything, into a config; ValueError names the field."""

    def __init__(self, folder: Path, whole: type) -> None:
        self.folder = folder
        self.whole = whole

    def section(self, kind: Any, values: Any, path: tuple[str, ...]) -> Any:
        """Read one table of fields into a dataclass or NamedTuple."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{'.'.join(path) or 'the file'} is not a table of fields")
        hints = get_type_hints(kind)
        for name in values:
            if name not in hints:
                dotted = ".".join((*path, str(name)))
                nearest = _nearest(dotted, self.whole)
                raise ValueError(f"there is no field {dotted}; the nearest is {nearest}")
        if missing := [name for name in _required(kind) if name not in values]:
            raise ValueError(f"the field {'.'.join((*path, missing[0]))} is missing")
        return kind(**{
            name: self.value(hints[name], value, (*path, name)) for name, value in values.items()
        })  # fmt: skip

    def value(self, kind: Any, value: Any, path: tuple[str, ...]) -> Any:
        """Read one field."""
        if _is_section(kind):
            return self.section(kind, value, path)
        arguments = get_args(kind)
        if get_origin(kind) is Literal:
            if value not in arguments:
                raise _wrong(path, value, f"one of {', '.join(arguments)}")
        elif get_origin(kind) is tuple:
            items = value if isinstance(value, list) else [value]
            return tuple(self.value(arguments[0], item, path) for item in items)
        elif get_origin(kind) in (Union, types.UnionType):
            return None if value is None else self.value(arguments[0], value, path)
        elif kind is Path:
            if not isinstance(value, str) or not value:
                raise _wrong(path, value, "the name of a file")
            return self.folder / Path(value).expanduser()
        elif kind is bool:
            if type(value) is not bool:
                raise _wrong(path, value, "true or false")
        elif kind is str:
            if not isinstance(value, str) or not value.isprintable():
                raise _wrong(path, value, "plain text")
        else:
            return _number(kind, value, path)
        return value


def _number(kind: type[int] | type[float], value: Any, path: tuple[str, ...]) -> int | float:
    low, high = BOUNDS[path[-1]]
    number = value
    if kind is float and isinstance(value, str):  # YAML 1.1 takes 5e-5 for a text
        number = _parsed(value)
    kinds = (int, float) if kind is float else (int,)
    if type(number) not in kinds or not low <= number <= high:
        what = "a number" if kind is float else "a whole number"
        raise _wrong(path, value, f"{what} from {low:.10g} to {high:.10g}")
    return kind(number)


def _parsed(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _wrong(path: tuple[str, ...], value: Any, wanted: str) -> ValueError:
    return ValueError(f"{'.'.join(path)} is {repr(value)[:80]}, and must be {wanted}")


def _is_section(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or hasattr(kind, "_field_defaults")


def _required(kind: Any) -> list[str]:
    if not dataclasses.is_dataclass(kind):
        return []
    return [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]


def _names(kind: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted names of all fields."""
    for name, hint in get_type_hints(kind).items():
        yield ".".join((*path, name))
        if _is_section(hint):
            yield from _names(hint, (*path, name))


def _nearest(dotted: str, whole: type) -> str:
    """Find the valid field that looks most like a wrong one, wherever it stands."""

    def likeness(name: str) -> tuple[float, float]:
        last, wanted = (text.rpartition(".")[2] for text in (name, dotted))
        return (
            difflib.SequenceMatcher(None, wanted, last).ratio(),
            difflib.SequenceMatcher(None, dotted, name).ratio(),
        )

    return max(_names(whole), key=likeness)
