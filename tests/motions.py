"""Motions for tests: a person walking across the image, turning, with a hole in the frames."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mpsnet_cli.geometry import perspective_to_weak, weak_to_perspective
from mpsnet_cli.motion import Motion


def make_motion(frames: int = 40, *, fps: float = 25.0, **changes: Any) -> Motion:
    """Make a smooth, valid motion; `changes` replace fields."""
    rng = np.random.default_rng(7)
    phase = np.arange(frames)[:, None] / fps
    pose = 0.3 * np.sin(2 * phase + rng.uniform(0, 6, 72))
    pose[:, :3] = [np.pi, 0, 0]
    size, focal = np.array([1280.0, 720.0]), 1468.6
    side = np.full((frames, 1), 400.0)
    bboxes = np.concatenate([400 + 60 * phase, 0 * phase + 360, side, side], axis=1)
    cam = np.tile([0.9, 0.02, 0.05], (frames, 1))
    camera: dict[str, Any] = {"focal_length": focal, "principal_point": size / 2}
    transl = weak_to_perspective(cam, bboxes, **camera)
    f32 = np.float32
    motion = Motion(
        track_id=1,
        body="free-1",
        gender="neutral",
        weights="untrained (test)",
        trained=False,
        shape="person",
        fps=fps,
        image_size=size,
        **camera,
        frame_ids=np.arange(frames),
        times=np.arange(frames) / fps,
        pose=pose.astype(f32),
        betas=np.zeros(10, f32),
        betas_per_frame=rng.normal(0, 0.1, (frames, 10)).astype(f32),
        transl=transl.astype(f32),
        cam=perspective_to_weak(transl, bboxes, **camera).astype(f32),
        bboxes=bboxes.astype(f32),
        camera_scale=1.1,
        joints3d=np.zeros((frames, 24, 3), f32),
        joints2d=np.zeros((frames, 24, 2), f32),
        scores=np.full(frames, 0.8, f32),
        interpolated=np.zeros(frames, bool),
    )
    return replace(motion, **changes)
