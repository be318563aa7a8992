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


# By what names of the data set's files contain. The row of MPI-INF-3DHP is left out: the release
# measures it on 17 joints about the pelvis, and we on 14 about the hips.
TABLE_1 = {
    r"3dpw": PaperRow("3DPW", 52.1, 84.3, 99.7, 7.4),
    r"h36m|human3[._]?6m": PaperRow("Human3.6M", 47.4, 69.4, None, 3.6),
}


def paper_row(path: Path) -> PaperRow | None:
    """Find the row of the data set that a file's name tells of."""
    name = path.name.lower()
    return next((row for names, row in TABLE_1.items() if re.search(names, name)), None)
