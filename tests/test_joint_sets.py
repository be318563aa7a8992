from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import recipe
from conftest import DATA

from mpsnet_cli.body import JOINT_NAMES, load_body
from mpsnet_cli.body.joint_sets import (
    COMMON14_NAMES,
    COMMON14_ROWS,
    HIPS,
    SIZES,
    SPIN49_OF_54,
    SPIN_EXTRA_JOINTS,
    SPIN_VERTICES,
    common14_from_vertices,
    load_joint_regressor,
    to_common14,
)
from mpsnet_cli.errors import InputError


def test_common14_of_smpl_has_the_same_names() -> None:
    names = [JOINT_NAMES[row] for row in COMMON14_ROWS["smpl24"]]
    assert tuple(names[:13]) == COMMON14_NAMES[:13]
    assert (names[13], COMMON14_NAMES[13]) == ("head", "head_top")
    assert [COMMON14_NAMES[row] for row in HIPS] == ["right_hip", "left_hip"]


def test_limbs_of_all_sets_are_the_same_places() -> None:
    """SPIN's 49 hold these twelve under their second names as SMPL's own joints."""
    of_spin = [SPIN49_OF_54[row] for row in COMMON14_ROWS["spin49"]]
    assert of_spin[:2] == [8, 5]
    assert of_spin[4:12] == list(COMMON14_ROWS["smpl24"][4:12])
    assert of_spin[2:4] == [45, 46]  # hips of LSP, which are regressed


def test_49_joints_are_those_of_the_release(tmp_path: Path) -> None:
    golden = np.load(DATA / "goldens" / "a_encoder_n1.npz")
    keys = ["v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f"]
    np.savez(tmp_path / "SMPL_NEUTRAL.npz", **{key: recipe.body()[key] for key in keys})
    body = load_body("smpl", path=tmp_path)
    vertices, joints = body(golden["theta"][:, 3:75], golden["theta"][:, 75:])
    extra = recipe.body()["J_regressor_extra"] @ vertices
    assert extra.shape[1] == SPIN_EXTRA_JOINTS
    ours = np.concatenate([joints, vertices[:, SPIN_VERTICES], extra], axis=1)[:, SPIN49_OF_54]
    assert ours.shape[1] == SIZES["spin49"]
    np.testing.assert_allclose(ours, golden["kp_3d"], atol=1e-5)


def test_14_regressed_joints_are_those_of_the_release() -> None:
    golden = np.load(DATA / "goldens" / "a_encoder_n1.npz")
    regressor = recipe.body()["J_regressor_h36m"]
    ours = common14_from_vertices(golden["verts_full0"][None], regressor)
    np.testing.assert_allclose(ours, golden["kp_3d_h36m14"], atol=1e-5)


def test_common14_is_taken_from_every_set() -> None:
    joints = load_body("free-1").joints(np.zeros((2, 72)), np.zeros((2, 10)))
    common = to_common14(joints, "smpl24")
    assert common.shape == (2, 14, 3)
    assert common[0, 13, 1] == common[0, :, 1].max()  # the head is on top
    assert (common[0, :3, 0] < 0).all()  # the right side
    wide = np.arange(49.0)[None, :, None] + np.zeros((1, 49, 3))
    assert to_common14(wide, "spin49")[0, :, 0].tolist() == list(range(25, 39))
    assert np.array_equal(to_common14(common, "common14"), common)


def test_a_regressor_is_read(tmp_path: Path) -> None:
    matrix = recipe.body()["J_regressor_h36m"].astype(np.float64)
    np.save(tmp_path / "r.npy", matrix)
    np.testing.assert_array_equal(
        load_joint_regressor(tmp_path / "r.npy"), matrix.astype(np.float32)
    )


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_a_bad_regressor_is_refused(tmp_path: Path) -> None:
    path, trace = tmp_path / "r.npy", tmp_path / "trace"
    np.save(path, np.array([Payload(trace)], object), allow_pickle=True)
    with pytest.raises(InputError, match="not a readable joint regressor"):
        load_joint_regressor(path)
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(InputError, match="not a readable joint regressor"):
        load_joint_regressor(path)
    assert not trace.exists()
    for matrix, match in (
        (np.zeros((9, 6890)), r"float64 \(9, 6890\).* 17 rows"),
        (np.zeros((17, 6890), int), "int64"),
        (np.full((17, 5), np.nan), "not finite"),
    ):
        np.save(path, matrix)
        with pytest.raises(InputError, match=match):
            load_joint_regressor(path)
    with pytest.raises(InputError, match="No such file"):
        load_joint_regressor(tmp_path / "none.npy")
