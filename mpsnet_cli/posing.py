"""From a motion's parameters to bodies in the scene: what drawing and mesh export start from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.body import BodyModel
from mpsnet_cli.motion import Motion

CHUNK = 16  # bodies posed at once: enough to be fast, little enough to keep many people in memory


def camera_vertices(
    motion: Motion, body: BodyModel, rows: Sequence[int] | NDArray[np.int64]
) -> Iterator[NDArray[np.float32]]:
    """Yield the vertices (V, 3) of each of the motion's `rows`: camera frame, metres, float32."""
    for first in range(0, len(rows), CHUNK):
        chunk = rows[first : first + CHUNK]
        vertices, _ = body(motion.pose[chunk], motion.posed_betas[chunk])
        yield from vertices + motion.transl[chunk][:, None]
