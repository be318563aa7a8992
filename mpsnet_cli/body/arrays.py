"""The numbers that make a body: SMPL's from its own files, checked, and the free body's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mpsnet_cli.body.readers import read_arrays
from mpsnet_cli.body.skeleton import JOINT_NAMES, KEYPOINT_NAMES, PARENTS
from mpsnet_cli.errors import BodyError

BETAS = 10
JOINTS = len(JOINT_NAMES)
POSE_BASIS = 9 * (JOINTS - 1)  # the entries of every rotation matrix but the root's
SMPL_VERTICES = 6890


@dataclass(frozen=True)
class BodyArrays:
    """A body of V vertices and F faces, under the names that `smplx.SMPL(data_struct=...)` reads.

    Metres, in SMPL's frame: x to the body's left, y up, z forward, T-pose. The optional fields are
    what the free body has beyond SMPL.
    """

    v_template: NDArray[np.float32]  # (V, 3)
    shapedirs: NDArray[np.float32]  # (V, 3, 10), per unit of beta
    posedirs: NDArray[np.float32]  # (V, 3, 207), per entry of rotation matrix minus identity
    J_regressor: NDArray[np.float32]  # (24, V)
    weights: NDArray[np.float32]  # (V, 24), rows sum to 1
    kintree_table: NDArray[np.int64]  # (2, 24): parent, joint
    f: NDArray[np.int32]  # (F, 3)
    uv: NDArray[np.float32] | None = None  # (T, 2), origin at the lower left
    uv_faces: NDArray[np.int32] | None = None  # (F, 3) into uv
    keypoint_regressor: NDArray[np.float32] | None = None  # (23, V), rows as KEYPOINT_NAMES
    landmarks: Mapping[str, int] | None = None  # smplx's extra joints: name -> vertex


def read_smpl(data: bytes, *, name: str) -> BodyArrays:
    """Read SMPL from the bytes of its .npz or .pkl, running nothing in it.

    Of the shape components the first ten are taken. Raises BodyError where `name`, the file, is
    not SMPL: the key and the shape that do not fit are named.
    """
    vertices = SMPL_VERTICES
    shapes: dict[str, tuple[int | None, ...]] = {
        "v_template": (vertices, 3),
        "shapedirs": (vertices, 3, None),
        "posedirs": (vertices, 3, POSE_BASIS),
        "J_regressor": (JOINTS, vertices),
        "weights": (vertices, JOINTS),
        "kintree_table": (2, JOINTS),
        "f": (None, 3),
    }
    found = read_arrays(data, shapes, name=name)
    for key, shape in shapes.items():
        _check(found[key], key, shape, integers=key in ("kintree_table", "f"), name=name)
    if found["shapedirs"].shape[2] < BETAS:
        raise BodyError(f"{name}: shapedirs has {found['shapedirs'].shape[2]} of {BETAS} shapes.")
    tree = found["kintree_table"].astype(np.int32)  # the root's parent is stored as 2^32 - 1
    if not np.array_equal(tree, _TREE):
        raise BodyError(f"{name}: kintree_table is not SMPL's tree of {JOINTS} joints.")
    faces = found["f"]
    if len(faces) == 0 or faces.min() < 0 or faces.max() >= vertices:
        raise BodyError(f"{name}: f names vertices beyond the {vertices} that there are.")
    return BodyArrays(
        v_template=found["v_template"].astype(np.float32),
        shapedirs=found["shapedirs"][:, :, :BETAS].astype(np.float32),
        posedirs=found["posedirs"].astype(np.float32),
        J_regressor=found["J_regressor"].astype(np.float32),
        weights=found["weights"].astype(np.float32),
        kintree_table=_TREE,
        f=faces.astype(np.int32),
    )


def read_free_body(data: bytes) -> BodyArrays:
    """Read the body that `tools/build_body` wrote: halves, bytes and sparse rows."""
    regressors = {"J_regressor": JOINTS, "keypoint_regressor": len(KEYPOINT_NAMES)}
    parts = ("data", "indices", "indptr")
    keys = [
        "v_template", "shapedirs", "weights", "weight_joints", "f", "uv", "uv_faces",
        "landmark_names", "landmarks",
        *(f"{key}_{part}" for key in ("posedirs", *regressors) for part in parts),
    ]  # fmt: skip
    stored = read_arrays(data, keys, name="the packaged free body")
    count = len(stored["v_template"])

    def dense(key: str, rows: int, columns: int) -> NDArray[np.float32]:
        values, indices, indptr = (stored[f"{key}_{part}"] for part in parts)
        matrix = sparse.csr_matrix((values.astype(np.float32), indices, indptr), (rows, columns))
        return matrix.toarray()

    weights = np.zeros((count, JOINTS), np.float32)
    joints = stored["weight_joints"].astype(np.int64)
    np.put_along_axis(weights, joints, stored["weights"].astype(np.float32), axis=1)
    return BodyArrays(
        v_template=stored["v_template"],
        shapedirs=stored["shapedirs"].astype(np.float32),
        posedirs=dense("posedirs", count * 3, POSE_BASIS).reshape(count, 3, POSE_BASIS),
        J_regressor=dense("J_regressor", JOINTS, count),
        weights=weights / weights.sum(axis=1, keepdims=True),
        kintree_table=_TREE,
        f=stored["f"].astype(np.int32),
        uv=stored["uv"].astype(np.float32),
        uv_faces=stored["uv_faces"].astype(np.int32),
        keypoint_regressor=dense("keypoint_regressor", len(KEYPOINT_NAMES), count),
        landmarks=dict(
            zip(stored["landmark_names"].tolist(), stored["landmarks"].tolist(), strict=True)
        ),
    )


_TREE = np.array([PARENTS, range(JOINTS)], dtype=np.int64)


def _check(
    array: NDArray[Any], key: str, shape: tuple[int | None, ...], *, integers: bool, name: str
) -> None:
    if array.ndim != len(shape) or any(
        size not in (None, actual) for size, actual in zip(shape, array.shape, strict=True)
    ):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise BodyError(f"{name}: {key} has the shape {array.shape}, where SMPL has ({wanted}).")
    if array.dtype.kind not in ("iu" if integers else "f"):
        raise BodyError(f"{name}: {key} holds {array.dtype}, where SMPL has numbers.")
    if not np.isfinite(array).all():
        raise BodyError(f"{name}: {key} holds values that are not finite.")
