from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from clips import make_clip
from conftest import ROOT


def test_pelvis(untrained: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=3, size=(64, 96))
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("".join(f"{frame},7,10,10,40,80,0.9\n" for frame in (1, 2, 3)))
    command = [sys.executable, ROOT / "examples" / "pelvis.py", clip, boxes, untrained]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.split()[:3] == ["7", "0.00", "s"]
    assert float(line.split()[-1]) > 1  # in front of the camera
