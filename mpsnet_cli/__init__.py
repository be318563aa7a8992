"""Video to SMPL body motion with MPS-Net.

    from mpsnet_cli import load_model, reconstruct

    motions = reconstruct("clip.mp4", load_model("mps-net.safetensors"))
    print(motions[0].pose.shape, motions[0].transl[0])

Importing this package loads none of the heavy libraries; the names below are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mpsnet_cli._version import __version__

if TYPE_CHECKING:
    from mpsnet_cli.motion import Motion, Track
    from mpsnet_cli.pipeline import reconstruct
    from mpsnet_cli.video import VideoInfo
    from mpsnet_cli.weights import load_model

__all__ = ["Motion", "Track", "VideoInfo", "__version__", "load_model", "reconstruct"]

_HOMES = {
    "load_model": "weights",
    "reconstruct": "pipeline",
    "Motion": "motion",
    "Track": "motion",
    "VideoInfo": "video",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
