"""Print where each person's pelvis goes, in metres, from the Python API.

python examples/pelvis.py CLIP BOXES WEIGHTS
"""

from __future__ import annotations

import sys
from pathlib import Path

from mpsnet_cli import load_model, reconstruct
from mpsnet_cli.tracking import read_boxes
from mpsnet_cli.video import probe


def main(clip: str, boxes: str, weights: str) -> None:
    """Print one line for each second and person: id, time, x to the right, y down, z away."""
    video = probe(Path(clip))
    tracks = read_boxes(Path(boxes), video)  # leave tracks out to detect the people instead
    for motion in reconstruct(video, load_model(weights), tracks=tracks):
        pelvis = motion.joints3d[:, 0] + motion.transl
        for row in range(0, len(motion), round(motion.fps)):
            x, y, z = pelvis[row]
            print(f"{motion.track_id}  {motion.times[row]:6.2f} s  {x:6.2f} {y:6.2f} {z:6.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
