"""The bodies: licensed SMPL from the user's own files, or the free body that is packaged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpsnet_cli.body.lookup import load_body
from mpsnet_cli.body.skeleton import BONE_NAMES, JOINT_NAMES, KEYPOINT_NAMES, PARENTS

if TYPE_CHECKING:
    from mpsnet_cli.body.model import BodyModel

__all__ = ["BONE_NAMES", "JOINT_NAMES", "KEYPOINT_NAMES", "PARENTS", "BodyModel", "load_body"]


def __getattr__(name: str) -> Any:
    if name != "BodyModel":  # it alone needs torch
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mpsnet_cli.body.model import BodyModel

    return BodyModel
