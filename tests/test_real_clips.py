"""The main job on real footage, from the command to the files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from conftest import ROOT

from mpsnet_cli.motion import Motion
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import probe, read_frames

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run(
    clip: Path, out: Path, *, weights: Path, detector: Path, options: tuple[str, ...] = ()
) -> tuple[Path, dict[str, Any], list[Motion]]:
    command = [sys.executable, "-m", "mpsnet_cli", "run", str(clip), "--out", str(out), "-q"]
    command += ["--weights", str(weights), "--detector", str(detector), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    manifest = json.loads((folder / "clip.json").read_text())
    motions = [Motion.load(folder / person["file"]) for person in manifest["people"]]
    for motion in motions:
        check(folder, motion)
    return folder, manifest, motions


def check(folder: Path, motion: Motion) -> None:
    """What holds for every person: finite numbers, joints near the box, one topology."""
    for name, value in vars(motion).items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            assert np.isfinite(value).all(), name
    distance = np.abs(motion.joints2d - motion.bboxes[:, None, :2])
    assert (distance < 0.6 * motion.bboxes[:, None, 2:]).all()
    paths = sorted((folder / "meshes" / motion.name).glob("*.obj"))
    assert [int(path.stem) for path in paths] == motion.frame_ids.tolist()
    first, last = (trimesh.load(path, process=False) for path in (paths[0], paths[-1]))
    assert np.array_equal(first.faces, last.faces)
    assert first.vertices.shape == last.vertices.shape


def test_the_dancer_whole(shared: Path, untrained: Path, tmp_path: Path) -> None:
    clip, detector = shared / "clips" / "dancer.avi", shared / "weights" / "yolov8n.pt"
    folder, manifest, (motion,) = run(clip, tmp_path, weights=untrained, detector=detector)
    assert manifest["frames"] == 1571
    assert len(motion) >= 0.99 * 1571
    source, overlay = probe(clip), probe(folder / "overlay.mp4")
    assert sum(1 for _ in read_frames(overlay, report=Reporter())) == 1571
    assert overlay.has_audio
    assert abs(overlay.duration - source.duration) <= 1 / source.fps


def test_pedestrians_for_twenty_seconds(shared: Path, untrained: Path, tmp_path: Path) -> None:
    folder, manifest, motions = run(
        shared / "clips" / "pedestrians.avi",
        tmp_path,
        weights=untrained,
        detector=shared / "weights" / "yolov8n.pt",
        options=("--end", "20"),
    )
    assert manifest["frames"] == 200
    assert len(motions) >= 6
    assert probe(folder / "overlay.mp4").frame_count == 200
    for motion in motions:  # nobody turns into somebody elsewhere
        step = np.linalg.norm(np.diff(motion.bboxes[:, :2], axis=0), axis=1)
        assert (step / np.diff(motion.frame_ids) < 0.3 * motion.bboxes[1:, 2]).all()


def test_both_people_of_the_example_keep_their_ids(
    shared: Path, untrained: Path, tmp_path: Path
) -> None:
    _, _, motions = run(
        ROOT / "examples" / "walk.mp4",
        tmp_path,
        weights=untrained,
        detector=shared / "weights" / "yolov8n.pt",
    )
    with np.load(ROOT / "examples" / "walk.npz", allow_pickle=False) as truth:
        for motion, person in zip(motions, ("person_01", "person_02"), strict=True):
            assert len(motion) == 180
            centre = truth[f"{person}/bboxes"][motion.frame_ids, :2]
            distance = np.linalg.norm(motion.bboxes[:, :2] - centre, axis=1)
            assert np.median(distance) < 10
            assert distance.max() < 0.4 * motion.bboxes[:, 2].mean()
