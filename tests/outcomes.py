"""Outcomes of a batch, with the folders that real ones have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clips import make_clip

from mpsnet_cli.batch.outcome import Outcome, Status

UNTRAINED = (
    "The weights untrained.safetensors are untrained: the result shows how the tool works, not "
    "how people moved."
)


def make_manifest(*, people: int = 1, frames: int = 10, **changed: Any) -> dict[str, Any]:
    """What `run_clip` writes of a clip that `make_clip` made."""
    manifest: dict[str, Any] = {
        "format": "mpsnet-clip/1",
        "tool": {"name": "mpsnet-cli", "version": "0.1.0"},
        "input": {"path": "clip.mp4", "bytes": 1000, "sha256": "0" * 64},
        "arguments": {"start": None, "end": None, "smooth": 0.2},
        "weights": {"name": "mps-net", "sha256": "ab" * 32, "trained": True},
        "body": {"name": "free-1", "sha256": "cd" * 32},
        "detector": {"name": "yolo11n.pt", "sha256": "ef" * 32},
        "video": {
            "width": 64,
            "height": 48,
            "fps": 25.0,
            "fps_exact": "25",
            "frame_count": 10,
            "first_time": 0.0,
            "duration": 0.4,
            "rotation": 0,
            "has_audio": False,
            "is_vfr": False,
        },
        "device": {"name": "cpu", "precision": "fp32"},
        "complete": True,
        "frames": frames,
        "people": [
            {
                "id": number,
                "file": f"person_{number:02d}.npz",
                "meshes": f"meshes/person_{number:02d}",
                "frames": frames,
                "first_frame": 0,
                "last_frame": frames - 1,
                "interpolated": 0,
                "mean_score": 0.9,
            }
            for number in range(1, people + 1)
        ],
        "overlay": "overlay.mp4" if people else None,
        "meshes": "meshes" if people else None,
        "seconds": {"detect": 1.5, "reconstruct": 6.0, "overlay": 2.5},
        "frames_per_second": 1.0,
        "warnings": [],
    }
    return {**manifest, **changed}


def make_outcome(
    out: Path, name: str, status: Status = "done", *, overlay: Path | None = None, **changed: Any
) -> Outcome:
    """A clip with its result folder, filled as far as a report looks; `overlay` saves making one.

    Keywords are fields of the outcome, or else of its manifest.
    """
    fields = {key: changed.pop(key) for key in set(changed) & set(Outcome.__dataclass_fields__)}
    fields = {"clip": Path("/footage") / f"{name}.mp4", "seconds": 10.0, **fields}
    if status in ("failed", "stopped"):
        return Outcome(name=name, status=status, **fields)
    manifest = make_manifest(**changed)
    folder = out / name
    folder.mkdir(parents=True)
    (folder / "clip.json").write_text(json.dumps(manifest))
    for person in manifest["people"]:
        (folder / person["file"]).write_bytes(b"npz")
    if manifest["meshes"]:
        (folder / manifest["meshes"]).mkdir()
    if manifest["overlay"] and overlay:
        (folder / manifest["overlay"]).write_bytes(overlay.read_bytes())
    elif manifest["overlay"]:
        make_clip(folder / manifest["overlay"])
    return Outcome(name=name, status=status, folder=folder, manifest=manifest, **fields)
