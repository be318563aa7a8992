"""Databases as other projects write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray


def eval_db() -> dict[str, NDArray[Any]]:
    """Draw the database that the official evaluation was recorded on: 45, 60 and 10 frames.

    Every draw and their order count; a tenth of the frames is invalid.
    """
    rng = np.random.default_rng(14)
    lengths = {"b_0": 45, "a_0": 60, "c_0": 10}
    n = sum(lengths.values())

    def static(frames: int) -> NDArray:
        base = np.abs(rng.standard_normal((1, 2048))) * 0.5
        return np.maximum(base + 0.05 * rng.standard_normal((frames, 2048)), 0)

    features = np.concatenate([static(frames) for frames in lengths.values()])
    pose = 0.3 * rng.standard_normal((n, 72))
    betas = [np.repeat(rng.standard_normal((1, 10)), frames, 0) for frames in lengths.values()]
    joints = 0.3 * rng.standard_normal((n, 14, 3))
    centre, side = rng.uniform(200, 600, (n, 2)), rng.uniform(150, 400, (n, 1))
    return {
        "vid_name": np.repeat(list(lengths), list(lengths.values())),
        "features": features.astype(np.float32),
        "pose": pose.astype(np.float32),
        "shape": np.concatenate(betas).astype(np.float32),
        "joints3D": joints.astype(np.float32),
        "bbox": np.concatenate([centre, side, side], axis=1),
        "valid": (rng.random(n) > 0.1).astype(np.int64),
        "img_name": np.array([f"x/image_{i:05d}.jpg" for i in range(n)]),
        "frame_id": np.arange(n),
        "joints2D": np.zeros((n, 14, 3), np.float32),
    }


def small_db(frames: int = 20, **changes: Any) -> dict[str, Any]:
    """Make a database of one person; `changes` replace entries, None removes one."""
    rng = np.random.default_rng(0)
    made = {
        "vid_name": np.repeat("walk", frames),
        "features": rng.random((frames, 2048), np.float32),
        "joints3D": rng.normal(0, 0.3, (frames, 14, 3)).astype(np.float32),
        **changes,
    }
    return {key: value for key, value in made.items() if value is not None}


def write(path: Path, content: Any, **options: Any) -> Path:
    """Write a database as the lineage does."""
    joblib.dump(content, path, **options)
    return path
