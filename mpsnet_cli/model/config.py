"""What a weight file says of the network in it. No torch here, so that listing files is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mpsnet_cli.windows import TARGET, WINDOW

Attention = Literal["moca", "nonlocal"]
Integration = Literal["hafi", "tcmr", "none"]

CHOICES: dict[str, tuple[str, ...]] = {
    "body": ("smpl", "free-1"),
    "attention": get_args(Attention),
    "integration": get_args(Integration),
}
NEWER = {"attention", "integration", "antialias"}  # keys that files from before them lack
BOUNDS: dict[str, tuple[float, float]] = {
    "window": (WINDOW, WINDOW),
    "feature_dim": (1, 8192),
    "iterations": (1, 16),
    "crop_size": (32, 1024),
    "crop_scale": (0.5, 4.0),
    "camera_scale": (0.5, 4.0),
}


@dataclass(frozen=True)
class MPSNetConfig:
    """The shape of one trained network, and the conventions that it was trained with.

    window: frames that the temporal encoder sees (T in the paper, §4)
    feature_dim: length of the static feature of a frame
    groups: frames of the three HAFI branches, past to future, counted from the target (Figure 5)
    iterations: rounds of the regressor
    crop_size: side of the square crop, px
    crop_scale: side of the crop, in longer sides of the person's box
    antialias: whether large crops are averaged first, not sampled with gaps as by the release
    camera_scale: side of the square that the camera refers to, in longer sides of the box
    body: the body model whose pose and betas the network speaks, "smpl" or "free-1"
    attention, integration: the temporal modules; others than the paper's own are its ablation

    Raises ValueError, naming the field, for a value of the wrong type or out of range.
    """

    window: int = WINDOW
    feature_dim: int = 2048
    groups: tuple[tuple[int, ...], ...] = ((-4, -3, -2), (-1, 0, 1), (2, 3, 4))
    iterations: int = 3
    crop_size: int = 224
    crop_scale: float = 1.1
    camera_scale: float = 1.1
    antialias: bool = False
    body: str = "free-1"
    attention: Attention = "moca"
    integration: Integration = "hafi"

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            kinds = (int, float) if name.endswith("scale") else (int,)
            if type(value) not in kinds or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}, and must be from {low} to {high}")
        if type(self.antialias) is not bool:
            raise ValueError(f"antialias is {self.antialias!r}, and must be true or false")
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"{name} is {value!r}, and must be one of {', '.join(choices)}")
        reach = range(-TARGET, WINDOW - TARGET)
        if [len(group) for group in self.groups] != [3, 3, 3] or not all(
            type(offset) is int and offset in reach for group in self.groups for offset in group
        ):
            raise ValueError(f"groups is {self.groups!r}, and must be three times three frames")

    @classmethod
    def from_json(cls, values: Any) -> MPSNetConfig:
        """Build a config from decoded JSON that may hold anything.

        All fields must be there, except those that older files lack: they are the paper's.
        """
        if not isinstance(values, Mapping):
            raise ValueError("config is not a table")
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"config has an unknown key {unknown[0]!r}")
        if missing := sorted(known - NEWER - values.keys()):
            raise ValueError(f"config lacks the key {missing[0]!r}")
        groups = values["groups"]
        if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
            raise ValueError("groups is not a list of lists")
        return cls(**{**values, "groups": tuple(map(tuple, groups))})


@dataclass(frozen=True)
class WeightsInfo:
    """Identity of a weight file, as its header states it.

    sources: sha256 by name of the files that it was converted from
    sha256: of the weight file itself
    """

    path: Path
    name: str
    trained: bool
    licence: str
    config: MPSNetConfig
    sources: Mapping[str, str]
    note: str
    sha256: str
