"""Check the result folder of README's first command: check_result.py FOLDER CLIP"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import numpy as np
import trimesh

from mpsnet_cli import Motion
from mpsnet_cli.video import probe

folder, clip = Path(sys.argv[1]), Path(sys.argv[2])
source = probe(clip)
manifest = json.loads((folder / "clip.json").read_text())
assert manifest["complete"], manifest
assert manifest["weights"]["trained"] is True
assert manifest["weights"]["name"] == "starter (synthetic)"
assert [person["id"] for person in manifest["people"]] == [1, 2]

for person in manifest["people"]:
    motion = Motion.load(folder / person["file"])
    assert len(motion) > 0.95 * source.frame_count, (len(motion), source.frame_count)
    assert motion.trained
    for name, value in vars(motion).items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            assert np.isfinite(value).all(), name
    inside = np.abs(motion.joints2d - motion.bboxes[:, None, :2]) < motion.bboxes[:, None, 2:]
    assert inside.mean() > 0.99, f"joints2d lie outside their boxes: {inside.mean()}"
    meshes = sorted((folder / "meshes" / motion.name).glob("*.obj"))
    assert len(meshes) == len(motion)
    first, last = (trimesh.load(path, process=False) for path in (meshes[0], meshes[-1]))
    assert np.array_equal(first.faces, last.faces)

overlay = probe(folder / "overlay.mp4")
assert (overlay.width, overlay.height) == (source.width, source.height)
assert overlay.frame_count == source.frame_count
assert overlay.fps == source.fps
assert overlay.has_audio
with av.open(str(folder / "overlay.mp4")) as container:
    assert abs(container.duration / av.time_base - source.duration) < 2 / source.fps
print(f"{folder} is complete: {len(manifest['people'])} people, {overlay.frame_count} frames")
