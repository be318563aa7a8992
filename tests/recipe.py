"""Weights, inputs and a body that anyone can draw again, for outputs recorded elsewhere with them.

Every array is a function of its name, shape or seed alone, and the draws come in a fixed order:
changing one changes everything that tests/data/goldens was recorded from.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from conftest import DATA
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpsnet_cli.model.mpsnet import MPSNet

VERTICES, JOINTS = 6890, 24
PARENTS = [-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21]
BOXES = np.array(  # cx, cy, w, h, px
    [
        [640.0, 360.0, 300.0, 300.0],
        [60.5, 100.25, 400.3, 400.3],
        [1250.0, 700.0, 250.0, 250.0],
        [333.3, 222.2, 97.7, 97.7],
        [700.0, 360.0, 900.0, 900.0],
    ]
)


@cache
def body() -> dict[str, NDArray]:
    """Draw an SMPL-shaped body (nonsense, but complete) and the regressor's mean parameters."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float) -> NDArray:
        return rng.standard_normal(shape) * scale

    def sparse_rows(rows: int) -> NDArray:
        matrix = np.zeros((rows, VERTICES))
        for row in matrix:
            picked = rng.choice(VERTICES, 20, replace=False)
            weight = rng.random(20)
            row[picked] = weight / weight.sum()
        return matrix

    drawn = {
        "v_template": normal(VERTICES, 3, scale=0.3),
        "shapedirs": normal(VERTICES, 3, 10, scale=0.01),
        "posedirs": normal(VERTICES, 3, 207, scale=0.002),
        "J_regressor": sparse_rows(JOINTS),
    }
    joints, weight = rng.integers(0, JOINTS, (VERTICES, 4)), rng.random((VERTICES, 4))
    skinning = np.zeros((VERTICES, JOINTS))
    np.add.at(skinning, (np.arange(VERTICES)[:, None], joints), weight)
    drawn["weights"] = skinning / skinning.sum(axis=1, keepdims=True)
    faces = rng.integers(0, VERTICES, (13776, 3))
    drawn["J_regressor_extra"] = sparse_rows(9)
    drawn["J_regressor_h36m"] = sparse_rows(17)
    drawn["mean_pose"] = np.tile([1.0, 0, 0, 1, 0, 0], JOINTS) + normal(144, scale=0.1)
    drawn["mean_shape"] = normal(10, scale=0.1)
    drawn["mean_cam"] = np.array([0.9, 0, 0]) + normal(3, scale=0.05)
    return {
        **{name: array.astype(np.float32) for name, array in drawn.items()},
        "f": faces.astype(np.uint32),
        "kintree_table": np.stack([PARENTS, np.arange(JOINTS)]).astype(np.int64),
    }


def weights(name: str, shape: tuple[int, ...]) -> NDArray:
    """Draw one state-dict entry, from its full name in the official network and its shape."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    drawn = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    *_, module, leaf = ["", *name.split(".")]
    if leaf == "running_var":
        drawn = 1.0 + 0.1 * np.abs(drawn)
    elif leaf == "running_mean":
        drawn = 0.1 * drawn
    elif leaf.startswith("bias"):
        drawn = 0.02 * drawn
    elif len(shape) == 1:  # the scale of a batch norm
        drawn = 1.0 + 0.1 * drawn
    else:
        drawn = drawn / np.sqrt(np.prod(shape[1:]))  # by the square root of the fan-in
        drawn *= {"decpose": 0.1, "decshape": 0.1, "deccam": 0.1, "conv_mask_forR": 4.0}.get(
            module, 1.0
        )
    return drawn.astype(np.float32)


def state_dict(network: str) -> dict[str, NDArray]:
    """Draw the official state dict of "MPSnet" or "hmr" (SPIN); entries of its body are zero."""
    listed = json.loads((DATA / "goldens" / "state_dict_keys.json").read_text())[network]
    state = {}
    for name, (shape, dtype, _) in listed.items():
        *path, leaf = name.split(".")
        if "smpl" in path:
            state[name] = np.broadcast_to(np.zeros((), dtype), shape)
        elif leaf.startswith("init_"):
            state[name] = body()[leaf.replace("init", "mean")].reshape(shape)
        else:
            state[name] = weights(name, tuple(shape))
    return state


def feats(n: int, seed: int) -> NDArray[np.float32]:
    """Draw static features (n, 16, 2048): not negative, slowly varying over time."""
    rng = np.random.default_rng(seed)
    base = np.abs(rng.standard_normal((n, 1, 2048))) * 0.5
    return np.maximum(base + 0.05 * rng.standard_normal((n, 16, 2048)), 0).astype(np.float32)


def image() -> NDArray[np.uint8]:
    """Draw a picture (720, 1280, 3): 16-pixel blocks plus a ramp."""
    rng = np.random.default_rng(4)
    blocks = np.kron(rng.integers(0, 200, (45, 80, 3)), np.ones((16, 16, 1), np.int64))
    y, x = np.mgrid[0:720, 0:1280]
    return (blocks + ((x + 3 * y) % 56)[..., None]).astype(np.uint8)


@cache
def network() -> MPSNet:
    """Build our network from the official state dicts. It is shared: do not change it."""
    import torch

    from mpsnet_cli.weights.official import convert

    states = (
        {name: torch.from_numpy(array.copy()) for name, array in state_dict(official).items()}
        for official in ("MPSnet", "hmr")
    )
    return convert(*states)
