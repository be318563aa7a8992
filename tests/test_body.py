from __future__ import annotations

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe
import torch
import trimesh
from conftest import DATA
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from mpsnet_cli.body import JOINT_NAMES, KEYPOINT_NAMES, PARENTS, load_body
from mpsnet_cli.body.arrays import BodyArrays, read_free_body, read_smpl
from mpsnet_cli.body.lookup import FREE_BODY_FILE
from mpsnet_cli.body.model import BodyModel
from mpsnet_cli.errors import BodyError

FREE_BODY_SHA256 = "be8f5a327f31db59f9262846931f26a6b64af95acb2883da78c13057dba9e769"
SMPL_KEYS = ["v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f"]

# Which joints the 49 of the official release are: of 24 joints, 21 vertices, 9 regressed ones.
PICKED = [
    332, 6260, 2800, 4071, 583, 3216, 3226, 3387, 6617, 6624, 6787,
    2746, 2319, 2445, 2556, 2673, 6191, 5782, 5905, 6016, 6133,
]  # fmt: skip
JOINTS_49 = [
    24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34,
    8, 5, 45, 46, 4, 7, 21, 19, 17, 16, 18, 20, 47, 48, 49, 50, 51, 52, 53, 24, 26, 25, 28, 27,
]  # fmt: skip


def drawn_smpl() -> dict[str, NDArray]:
    return {key: recipe.body()[key] for key in SMPL_KEYS}


@pytest.fixture(scope="session")
def smpl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smpl")
    np.savez(folder / "SMPL_NEUTRAL.npz", **drawn_smpl())
    return folder


@pytest.fixture(scope="session")
def free() -> BodyModel:
    return load_body("free-1")


@pytest.fixture(scope="session")
def arrays() -> BodyArrays:
    return read_free_body(FREE_BODY_FILE.read_bytes())


@pytest.fixture(autouse=True)
def no_smpl_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPSNET_SMPL", raising=False)
    monkeypatch.setattr("platformdirs.user_data_path", lambda name: tmp_path / "data" / name)


def skinned(arrays: BodyArrays, pose: NDArray, betas: NDArray) -> tuple[NDArray, NDArray]:
    """Pose one body after the SMPL paper's equations 2 to 10, in float64."""
    double = {key: np.asarray(getattr(arrays, key), np.float64) for key in SMPL_KEYS}
    rotations = Rotation.from_rotvec(pose.reshape(24, 3)).as_matrix()
    shaped = double["v_template"] + double["shapedirs"] @ betas
    rest = double["J_regressor"] @ shaped
    posed = shaped + double["posedirs"] @ (rotations[1:] - np.eye(3)).ravel()
    globals_: list[NDArray] = []
    for joint, parent in enumerate(PARENTS):
        local = np.eye(4)
        local[:3, :3], local[:3, 3] = rotations[joint], rest[joint]
        if parent >= 0:
            local[:3, 3] -= rest[parent]
            local = globals_[parent] @ local
        globals_.append(local)
    chain = np.array(globals_)
    moved = np.einsum("jab,vb->vja", chain[:, :3, :3], posed) + chain[:, :3, 3]
    moved -= np.einsum("jab,jb->ja", chain[:, :3, :3], rest)
    return np.einsum("vj,vja->va", double["weights"], moved), chain[:, :3, 3]


def test_smpl_gives_what_the_official_release_gives(smpl_folder: Path) -> None:
    golden = np.load(DATA / "goldens" / "c_smpl.npz")
    body = load_body("smpl", path=smpl_folder)
    vertices, joints = body(golden["pose"], golden["betas"])
    vertices += golden["transl"][:, None]
    joints += golden["transl"][:, None]
    np.testing.assert_allclose(vertices[0], golden["verts_full0"], atol=1e-5)
    np.testing.assert_allclose(vertices[:, golden["vert_idx"]], golden["verts_sub"], atol=1e-5)
    extra = recipe.body()["J_regressor_extra"] @ vertices
    found = np.concatenate([joints, vertices[:, PICKED], extra], axis=1)[:, JOINTS_49]
    np.testing.assert_allclose(found, golden["joints49"], atol=1e-5)


def test_smpl_of_the_original_kind_is_the_same(smpl_folder: Path, tmp_path: Path) -> None:
    drawn: dict[str, Any] = {key: array.astype(np.float64) for key, array in drawn_smpl().items()}
    drawn["f"] = drawn["f"].astype(np.uint32)
    drawn["kintree_table"] = np.array([PARENTS, range(24)]).astype(np.uint32)  # the root: 2^32 - 1
    drawn["J_regressor"] = sparse.csc_matrix(drawn["J_regressor"])
    drawn["shapedirs"] = np.concatenate([drawn["shapedirs"]] * 2, axis=2)
    drawn |= {"bs_type": "lrotmin", "J": None}
    file = tmp_path / "basicModel_f_lbs_10_207_0_v1.0.0.pkl"
    file.write_bytes(pickle.dumps(drawn, protocol=2))
    body = load_body("smpl", path=file, gender="female")
    same = load_body("smpl", path=smpl_folder)
    assert (body.name, body.gender, body.source) == ("smpl-female", "female", file)
    assert body.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    golden = np.load(DATA / "goldens" / "c_smpl.npz")
    for one, other in zip(
        body(golden["pose"], golden["betas"]), same(golden["pose"], golden["betas"]), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
    np.testing.assert_array_equal(body.faces, same.faces)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "v_template",
            lambda a: a[:100],
            r"v_template has the shape \(100, 3\), where SMPL has \(",
        ),
        ("shapedirs", lambda a: a[..., :9], "shapedirs has 9 of 10 shapes"),
        ("posedirs", lambda a: a[..., :135], r"posedirs has the shape \(6890, 3, 135\)"),
        ("weights", lambda a: a[:, :16], r"SMPL has \(6890, 24\)"),
        ("weights", lambda a: a.astype(np.int32), "weights holds int32"),
        ("J_regressor", lambda a: a.T, r"J_regressor has the shape \(6890, 24\)"),
        ("J_regressor", lambda a: a * np.nan, "J_regressor holds values that are not finite"),
        ("kintree_table", lambda a: a[::-1], "kintree_table is not SMPL's tree"),
        ("kintree_table", lambda a: a.astype(float), "kintree_table holds float64"),
        ("f", lambda a: a + 1, "f names vertices beyond the 6890"),
        ("f", lambda a: a.astype(np.int64) - 1, "f names vertices beyond the 6890"),
        ("f", lambda a: a[:0], "f names vertices beyond the 6890"),
    ],
)
def test_what_is_not_smpl_is_refused(
    key: str, change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_arrays(*_: Any, **__: Any) -> dict[str, NDArray]:
        drawn = drawn_smpl()
        return {**drawn, key: change(drawn[key])}

    monkeypatch.setattr("mpsnet_cli.body.arrays.read_arrays", read_arrays)
    with pytest.raises(BodyError, match=rf"^SMPL.npz: .*{message}"):
        read_smpl(b"", name="SMPL.npz")


def test_the_free_body_is_the_recorded_file(free: BodyModel) -> None:
    assert free.sha256 == FREE_BODY_SHA256
    assert (free.name, free.gender, free.source) == ("free-1", "neutral", FREE_BODY_FILE)
    assert free.source.stat().st_size < 1_300_000
    licence = (FREE_BODY_FILE.parent / "LICENSE.md").read_text()
    assert FREE_BODY_SHA256 in licence


def test_the_free_body_is_closed_and_symmetric(free: BodyModel, arrays: BodyArrays) -> None:
    mesh = trimesh.Trimesh(arrays.v_template, free.faces, process=False)
    assert mesh.is_watertight
    assert mesh.is_winding_consistent
    assert 0.05 < mesh.volume < 0.09  # m^3; positive: the faces look outwards
    flip = np.array([-1, 1, 1])
    distance, mirror = cKDTree(arrays.v_template).query(arrays.v_template * flip)
    assert distance.max() < 1e-6
    np.testing.assert_array_equal(mirror[mirror], np.arange(free.vertex_count))
    np.testing.assert_allclose(arrays.shapedirs[mirror] * flip[:, None], arrays.shapedirs)
    other = [JOINT_NAMES.index(swapped(name)) for name in JOINT_NAMES]
    np.testing.assert_allclose(arrays.weights[mirror][:, other], arrays.weights, atol=1e-6)


def swapped(name: str) -> str:
    if name.startswith("left_"):
        return name.replace("left_", "right_")
    return name.replace("right_", "left_")


def test_the_free_body_mirrors_mirrored_poses(free: BodyModel, arrays: BodyArrays) -> None:
    pose = np.random.default_rng(0).normal(0, 0.4, (1, 24, 3))
    other = [JOINT_NAMES.index(swapped(name)) for name in JOINT_NAMES]
    mirrored = pose[:, other] * [1, -1, -1]
    betas = np.random.default_rng(1).normal(0, 1, (1, 10))
    flip = np.array([-1, 1, 1])
    mirror = cKDTree(arrays.v_template).query(arrays.v_template * flip)[1]
    (one, other_one) = (free(p.reshape(1, 72), betas)[0][0] for p in (pose, mirrored))
    np.testing.assert_allclose(one[mirror] * flip, other_one, atol=1e-3)


def test_the_free_body_is_a_person(free: BodyModel, arrays: BodyArrays) -> None:
    vertices, joints = (part[0] for part in free(np.zeros((1, 72)), np.zeros((1, 10))))
    assert 1.65 < np.ptp(vertices[:, 1]) < 1.75
    np.testing.assert_allclose(arrays.weights.sum(axis=1), 1, atol=1e-6)
    assert (arrays.weights > 0).sum(axis=1).max() <= 4
    place = dict(zip(JOINT_NAMES, joints, strict=True))
    np.testing.assert_allclose(place["pelvis"], 0, atol=2e-3)
    for name in JOINT_NAMES:
        if name.startswith("left_"):
            assert place[name][0] > 0.05
            np.testing.assert_allclose(place[swapped(name)], place[name] * [-1, 1, 1], atol=1e-4)
        elif not name.startswith("right_"):
            assert abs(place[name][0]) < 1e-4
    upwards = ["left_foot", "left_ankle", "left_knee", "left_hip", "pelvis", "spine1", "spine2"]
    heights = [place[name][1] for name in [*upwards, "spine3", "neck", "head"]]
    assert heights == sorted(heights)
    outwards = [
        place[f"left_{part}"][0] for part in ("collar", "shoulder", "elbow", "wrist", "hand")
    ]
    assert outwards == sorted(outwards)
    assert place["left_foot"][2] > place["left_ankle"][2] + 0.1  # the toes point to +z
    np.testing.assert_allclose(windings(vertices[free.faces], joints), 1, atol=1e-3)  # all inside


def windings(triangles: NDArray, points: NDArray) -> NDArray:
    """How often a surface goes around each point (Van Oosterom and Strackee, 1983)."""
    a, b, c = (triangles[:, k] - points[:, None].astype(np.float64) for k in range(3))
    length_a, length_b, length_c = (np.linalg.norm(side, axis=-1) for side in (a, b, c))
    below = length_a * length_b * length_c + (a * b).sum(-1) * length_c
    below += (b * c).sum(-1) * length_a + (c * a).sum(-1) * length_b
    return np.arctan2((a * np.cross(b, c)).sum(-1), below).sum(axis=1) / (2 * np.pi)


def test_the_keypoints_are_where_their_names_say(free: BodyModel, arrays: BodyArrays) -> None:
    pose = np.random.default_rng(3).normal(0, 0.3, (2, 72))
    vertices, joints = free(pose, np.zeros((2, 10)))
    keypoints = free.keypoints(vertices)
    assert keypoints.shape == (2, len(KEYPOINT_NAMES), 3)
    for k, name in enumerate(KEYPOINT_NAMES):
        if name in JOINT_NAMES:
            distance = np.linalg.norm(keypoints[:, k] - joints[:, JOINT_NAMES.index(name)], axis=1)
            assert distance.max() < 0.05, name
    rest = free.keypoints(free(np.zeros((1, 72)), np.zeros((1, 10)))[0])[0]
    place = dict(zip(KEYPOINT_NAMES, rest, strict=True))
    assert place["nose"][2] == rest[:, 2][:5].max() > 0.1
    assert place["left_ear"][0] > place["left_eye"][0] > 0.02
    assert place["left_heel"][2] < place["left_ankle"][2] < place["left_big_toe"][2]
    assert place["left_small_toe"][0] > place["left_big_toe"][0]
    assert arrays.landmarks is not None
    for landmark, name in (("LHeel", "left_heel"), ("rear", "right_ear"), ("nose", "nose")):
        vertex = arrays.v_template[arrays.landmarks[landmark]]
        assert np.linalg.norm(vertex - place[name]) < 0.03, name


def test_the_texture_of_the_free_body_fits(free: BodyModel) -> None:
    assert free.uv is not None
    assert free.uv_faces is not None
    assert free.uv_faces.shape == free.faces.shape
    assert free.uv_faces.max() == len(free.uv) - 1
    assert free.uv.min() >= 0
    assert free.uv.max() <= 1
    corners = {*zip(free.faces.ravel().tolist(), free.uv_faces.ravel().tolist(), strict=True)}
    assert len(corners) == len(free.uv)  # each texture coordinate belongs to one vertex


def test_a_body_is_what_the_paper_says(free: BodyModel, arrays: BodyArrays) -> None:
    rng = np.random.default_rng(7)
    pose, betas = rng.normal(0, 0.6, (2, 72)), rng.normal(0, 1, (2, 10))
    pose[1, 3:6] = 0  # smplx divides by the angle
    vertices, joints = free(pose, betas)
    assert vertices.dtype == joints.dtype == np.float32
    for row in range(2):
        wanted_vertices, wanted_joints = skinned(arrays, pose[row], betas[row])
        np.testing.assert_allclose(vertices[row], wanted_vertices, atol=1e-5)
        np.testing.assert_allclose(joints[row], wanted_joints, atol=1e-5)
    np.testing.assert_allclose(free.joints(pose, betas), joints, atol=2e-6)


def test_the_rest_joints_are_those_of_the_t_pose(free: BodyModel) -> None:
    betas = np.random.default_rng(2).normal(0, 1, (3, 10))
    rest = free.rest_joints(betas)
    np.testing.assert_allclose(rest, free(np.zeros((3, 72)), betas)[1], atol=2e-6)
    np.testing.assert_allclose(free.rest_joints(betas[1]), rest[1], atol=1e-6)


def test_batches_do_not_show(free: BodyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    pose, betas = rng.normal(0, 0.3, (7, 72)), rng.normal(0, 1, (7, 10))
    whole, joints = free(pose, betas), free.joints(pose, betas)
    monkeypatch.setattr("mpsnet_cli.body.model.BATCH", 3)
    monkeypatch.setattr("mpsnet_cli.body.model.SKELETON_BATCH", 2)
    for parts, all_at_once in zip(free(pose, betas), whole, strict=True):
        np.testing.assert_allclose(parts, all_at_once, atol=1e-6)
    np.testing.assert_allclose(free.joints(pose, betas), joints, atol=1e-6)
    assert free(pose[:0], betas[:0])[0].shape == (0, free.vertex_count, 3)


def test_posed_is_the_same_body(free: BodyModel) -> None:
    rng = np.random.default_rng(5)
    pose, betas = rng.normal(0, 0.6, (3, 72)), rng.normal(0, 1, (3, 10))
    rotmats = torch.tensor(Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix())
    rotmats = rotmats.reshape(3, 24, 3, 3).mT.contiguous().mT  # columns first in memory, as of QR
    parameters = rotmats, torch.tensor(betas)
    vertices, joints = free.posed(*parameters, vertices=True)
    assert vertices is not None
    assert vertices.dtype == joints.dtype == torch.float64
    for ours, theirs in zip((vertices, joints), free(pose, betas), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    none, joints_alone = free.posed(*parameters, vertices=False)
    assert none is None
    np.testing.assert_allclose(joints_alone, joints, atol=1e-6)


def test_posed_without_vertices_computes_none(
    free: BodyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpsnet_cli.body.model.lbs", None)
    rotmats = torch.eye(3).expand(2, 24, 3, 3)
    _, joints = free.posed(rotmats, torch.zeros(2, 10), vertices=False)
    np.testing.assert_allclose(joints, free.rest_joints(np.zeros((2, 10))), atol=1e-6)


def test_posed_has_the_right_gradient(free: BodyModel) -> None:
    torch.manual_seed(0)
    rotmats = torch.randn(1, 24, 3, 3, dtype=torch.float64)
    betas = torch.randn(1, 10, dtype=torch.float64, requires_grad=True)
    elbow = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)

    def pose_arm(elbow: torch.Tensor, betas: torch.Tensor) -> tuple[torch.Tensor, ...]:
        bent = torch.cat([rotmats[:, :18], elbow[None, None], rotmats[:, 19:]], dim=1)
        vertices, joints = free.posed(bent, betas, vertices=True)
        assert vertices is not None
        joints_alone = free.posed(bent, betas, vertices=False)[1]
        return vertices[:, ::700], joints[:, 18:], joints_alone[:, 18:]

    assert torch.autograd.gradcheck(pose_arm, (elbow, betas))


@pytest.mark.parametrize(
    ("pose", "betas"), [((72,), (10,)), ((2, 69), (2, 10)), ((2, 72), (10,)), ((2, 72), (3, 10))]
)
def test_parameters_of_another_shape_are_refused(
    free: BodyModel, pose: tuple[int, ...], betas: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match=r"should be \(N, 72\), \(N, 10\)"):
        free(np.zeros(pose), np.zeros(betas))


def test_smpl_is_taken_where_it_is_found(
    smpl_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_body().name == "free-1"
    assert load_body(path=smpl_folder).name == "smpl-neutral"
    monkeypatch.setenv("MPSNET_SMPL", str(smpl_folder))
    assert load_body().name == "smpl-neutral"
    assert load_body("free-1").name == "free-1"
    monkeypatch.delenv("MPSNET_SMPL")
    usual = tmp_path / "data" / "mpsnet-cli" / "smpl"
    usual.mkdir(parents=True)
    assert load_body().name == "free-1"
    (usual / "smpl").mkdir()  # as smplx lays its models out
    (usual / "smpl" / "SMPL_NEUTRAL.npz").symlink_to(smpl_folder / "SMPL_NEUTRAL.npz")
    body = load_body()
    assert (body.name, body.source) == ("smpl-neutral", usual / "smpl" / "SMPL_NEUTRAL.npz")
    with pytest.raises(ValueError, match="smpl-neutral has no keypoint regressor"):
        body.keypoints(np.zeros((1, 6890, 3)))


@pytest.mark.parametrize(
    ("files", "gender", "chosen"),
    [
        (["SMPL_NEUTRAL.pkl", "SMPL_NEUTRAL.npz"], "neutral", "SMPL_NEUTRAL.npz"),
        (["basicModel_neutral_lbs_10_207_0_v1.0.0.pkl"], "neutral", None),
        (["basicmodel_m_lbs_10_207_0_v1.1.0.pkl", "SMPL_MALE.pkl"], "male", "SMPL_MALE.pkl"),
        (["basicModel_f_lbs_10_207_0_v1.0.0.pkl", "SMPL_MALE.pkl"], "female", None),
        (["SMPLX_NEUTRAL.npz", "smpl/models/SMPL_NEUTRAL.pkl"], "neutral", "SMPL_NEUTRAL.pkl"),
    ],
)  # fmt: skip
def test_files_are_known_by_their_names(
    files: list[str], gender: str, chosen: str | None, tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"empty")
    with pytest.raises(BodyError, match="is damaged") as caught:  # it got as far as reading it
        load_body("smpl", path=tmp_path, gender=gender)
    assert caught.value.message.startswith(chosen or files[0])


def test_what_is_not_there_is_said(smpl_folder: Path, tmp_path: Path) -> None:
    male = tmp_path / "SMPL_MALE.npz"
    male.write_bytes((smpl_folder / "SMPL_NEUTRAL.npz").read_bytes())
    assert load_body(path=male, gender="male").name == "smpl-male"
    assert load_body("smpl-male", path=tmp_path).name == "smpl-male"
    for arguments, message in (
        ({"name": "smpl"}, "SMPL neutral is not here: get it from https://smpl.is.tue.mpg.de"),
        ({"gender": "male"}, "free-1 is neutral only, and no SMPL male was found"),
        ({"name": "free-1", "gender": "male"}, "free-1 is neutral only"),
        ({"name": "free-1", "path": smpl_folder}, "free-1 needs no SMPL file"),
        ({"name": "smplx"}, "No body is called smplx neutral"),
        ({"name": "smpl-child"}, "No body is called smpl child"),
        ({"path": tmp_path / "nowhere"}, "nowhere does not exist: it should have SMPL_NEUTRAL"),
        ({"path": smpl_folder, "gender": "female"}, "holds no SMPL female file"),
        ({"path": male}, "is male, but neutral was asked for: say --gender male"),
    ):
        with pytest.raises(BodyError, match=message):
            load_body(**arguments)


def test_a_file_larger_than_any_smpl_is_not_read(
    smpl_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpsnet_cli.body.readers.MAX_BYTES", 1 << 20)
    with pytest.raises(BodyError, match="has 18 MiB, more than any SMPL file"):
        load_body("smpl", path=smpl_folder)


def test_loading_a_body_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    load_body("free-1")
    assert capfd.readouterr() == ("", "")


def test_the_names_need_no_torch() -> None:
    code = (
        "import mpsnet_cli.body, sys; assert not {'torch', 'smplx', 'scipy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
