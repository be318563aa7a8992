"""Make mpsnet_cli/synth/data/cmu-takes.npz, the movements that synthetic people are drawn from.

    python tools/build_motions.py --mocap ../shared/mocap/cmu-subjects-01-02-03.tar.xz

It reads the CMU takes, carries them over to SMPL's joints, mends what was captured wrong, and
writes them at 30 frames a second. It takes about a minute, and gives the same file every time.

The data used in this project was obtained from mocap.cs.cmu.edu. The database was created with
funding from NSF EIA-0196217.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mpsnet_cli.synth.mocap import CAPTURE_RATE, read_takes
from mpsnet_cli.synth.repertoire import PACKAGED, Movement, gather, save_repertoire, transfer

# The actor of 03_02 still stands in the T-pose that calibrates the capture.
STARTS = {"03_02": 0.5}  # s


def main() -> None:
    """Read the arguments and make the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--mocap", type=Path, required=True, help="the CMU takes")
    parser.add_argument("-o", "--out", type=Path, default=PACKAGED)
    arguments = parser.parse_args()

    movements = []
    for name, take in read_takes(arguments.mocap).items():
        movement = transfer(take, name)
        first = round(STARTS.get(name, 0) * CAPTURE_RATE)
        movements.append(
            Movement(movement.rotations[first:], movement.path[first:], movement.fps, name)
        )
    repertoire = gather(movements)
    save_repertoire(arguments.out, repertoire)
    frames, size = len(repertoire.tracks), arguments.out.stat().st_size
    print(f"{arguments.out}: {len(movements)} takes, {frames} frames, {size} bytes")


if __name__ == "__main__":
    main()
