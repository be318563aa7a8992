"""What the paper reports for MPS-Net on its three data sets (Table 1)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class PaperRow(NamedTuple):
    """MPS-Net on one data set.

    `acceleration` is printed in mm/s², and computed by the release in mm/frame².
    """

    data: str
    pa_mpjpe: float  # mm
    mpjpe: float  # mm
    mpvpe: float | None  # mm
    acceleration: float


TABLE_1 = {  # by what names of the data set's files contain
    r"3dpw": PaperRow("3DPW", 52.1, 84.3, 99.7, 7.4),
    r"mpii3d|mpi[-_]?inf|3dhp": PaperRow("MPI-INF-3DHP", 62.8, 96.7, None, 9.6),
    r"h36m|human3[._]?6m": PaperRow("Human3.6M", 47.4, 69.4, None, 3.6),
}


def paper_row(path: Path) -> PaperRow | None:
    """Find the row of the data set that a file's name tells of."""
    name = path.name.lower()
    return next((row for names, row in TABLE_1.items() if re.search(names, name)), None)
