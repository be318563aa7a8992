from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mpsnet_cli.body.skeleton import JOINT_NAMES
from mpsnet_cli.errors import InputError
from mpsnet_cli.progress import Reporter
from mpsnet_cli.synth.anatomy import (
    GREATEST,
    LEAST,
    REST,
    floor_path,
    joints,
    limit,
    measure,
    mirror,
    overlap,
    pose,
)
from mpsnet_cli.synth.repertoire import (
    FPS,
    HELD_OUT,
    PACKAGED,
    Movement,
    Repertoire,
    gather,
    load_repertoire,
    mend,
    read_movements,
    resample,
    save_repertoire,
)


@pytest.fixture(scope="module")
def train() -> Repertoire:
    return load_repertoire("train")


def any_angles(count: int, seed: int = 0) -> np.ndarray:
    places = np.random.default_rng(seed).random((count, 24, 3))
    angles = LEAST + places * (GREATEST - LEAST)
    angles[:, 0] = (places[:, 0] - 0.5) * (1.5, 0, 1.5)
    angles[:, 0, 1] = np.linspace(0, 10, count)  # turns on beyond a full circle
    return limit(angles)


def joint(name: str) -> int:
    return JOINT_NAMES.index(name)


def angle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


def test_angles_tell_a_posture() -> None:
    angles = any_angles(500)
    rotations = pose(angles)
    np.testing.assert_allclose(rotations @ rotations.swapaxes(2, 3) - np.eye(3), 0, atol=1e-12)
    np.testing.assert_allclose(measure(rotations), angles, atol=1e-9)


def test_angles_mean_what_they_say() -> None:
    angles = np.zeros((1, 24, 3))
    angles[0, joint("left_hip"), 0] = np.radians(-90)
    angles[0, joint("left_knee"), 0] = np.radians(90)
    angles[0, joint("left_shoulder")] = np.radians((-62, 0, -85))
    angles[0, joint("right_shoulder")] = np.radians((-67, 85, 0))
    angles[0, joint("left_elbow"), 1] = np.radians(-90)
    places, _ = joints(pose(limit(angles)))

    def bone(start: str, end: str) -> np.ndarray:
        return places[0, joint(end)] - places[0, joint(start)]

    for start, end, direction in (
        ("left_hip", "left_knee", (0, 0, 1)),
        ("left_knee", "left_ankle", (0, -1, 0)),
        ("left_shoulder", "left_elbow", (0, -1, 0)),
        ("left_elbow", "left_wrist", (0, 0, 1)),  # the palm faces the thigh, so it bends forwards
        ("right_shoulder", "right_elbow", (0, 0, 1)),
    ):
        assert angle(bone(start, end), np.array(direction, float)) < 16, start


def test_the_mirror_image_is_one() -> None:
    angles = any_angles(50)
    np.testing.assert_array_equal(mirror(mirror(angles)), angles)
    np.testing.assert_allclose(limit(mirror(angles)), mirror(angles), atol=1e-12)
    places, _ = joints(pose(angles))
    other, _ = joints(pose(mirror(angles)))
    swapped = [joint(name.replace("left", "?").replace("right", "left").replace("?", "right"))
               for name in JOINT_NAMES]  # fmt: skip
    np.testing.assert_allclose(other, places[:, swapped] * (-1, 1, 1), atol=1e-9)


def test_ranges_are_convex_and_kept() -> None:
    first, second = any_angles(300, seed=1), any_angles(300, seed=2)
    np.testing.assert_allclose(limit(first), first, atol=1e-12)
    between = 0.3 * first + 0.7 * second
    np.testing.assert_allclose(limit(between), between, atol=1e-9)
    beyond = limit(first * 3)
    np.testing.assert_allclose(limit(beyond), beyond, atol=1e-12)
    inner = np.delete(np.arange(24), 0)
    assert (beyond[:, inner] >= LEAST[inner] - 1e-12).all()
    assert (beyond[:, inner] <= GREATEST[inner] + 1e-12).all()


def test_joints_agree_with_the_free_body() -> None:
    from mpsnet_cli.body import load_body
    from mpsnet_cli.geometry import matrix_to_axis_angle

    rotations = pose(any_angles(20))
    body = load_body("free-1")
    theirs = body.joints(matrix_to_axis_angle(rotations).reshape(-1, 72), np.zeros((20, 10)))
    ours, _ = joints(rotations)
    np.testing.assert_allclose(ours, theirs - theirs[:, :1], atol=3e-3)


def test_overlap_sees_a_hand_in_the_belly_and_no_more() -> None:
    angles = np.zeros((4, 24, 3))
    arm = [joint("left_shoulder"), joint("left_elbow")]
    angles[1, arm] = np.radians([(0, -20, -70), (0, -110, 0)])  # the hand goes through the belly
    angles[2, arm] = np.radians([(-62, 0, -80), (0, -10, 0)])  # the arm hangs
    angles[3, joint("left_hip"), 2] = np.radians(-27)  # the legs cross in one plane
    depth = overlap(pose(angles))
    assert depth[0] == depth[2] == 0
    assert depth[1] > 0.04
    assert 0.03 < depth[3] < 0.2


def test_what_is_lowest_stays_on_the_floor() -> None:
    angles = np.zeros((31, 24, 3))
    legs = [joint("left_hip"), joint("right_hip")]
    knees = [joint("left_knee"), joint("right_knee")]
    bend = np.linspace(0, np.radians(60), 31)[:, None]
    angles[:, legs, 0], angles[:, knees, 0] = -bend, 2 * bend  # a squat, without the ankles
    path = floor_path(pose(angles))
    np.testing.assert_array_equal(path[0], 0)
    places, _ = joints(pose(angles))
    assert path[-1, 1] < -0.25
    toes = (places + path[:, None])[:, joint("left_foot")]
    assert np.ptp(toes[:, 1]) < 0.09  # onto the tips of the toes, no further
    np.testing.assert_allclose(path[:, 0], 0, atol=1e-9)


def test_a_walk_goes_as_far_by_its_feet_as_it_was_recorded(train: Repertoire) -> None:
    walk = next(take for take in train.takes if take.name == "02_01")
    recorded = np.linalg.norm(walk.path[-1])
    assert recorded > 3
    assert np.linalg.norm(floor_path(walk.rotations)[-1]) == pytest.approx(recorded, rel=0.1)


def test_mistakes_are_bridged() -> None:
    truth = np.zeros((200, 24, 3))
    knee, ankle, root = joint("left_knee"), joint("left_ankle"), 0
    truth[:, knee, 0] = np.linspace(0.2, 1.5, 200)
    truth[:, ankle, 0] = 0.1
    truth[:, root, 1] = np.linspace(0, 8, 200)
    wrong = truth.copy()
    wrong[50:70, ankle, 1] = np.pi  # a foot that was found upside down
    wrong[120, knee, 0] += 0.9  # a jump for one frame
    wrong[150, root, 0] += 0.9
    np.testing.assert_allclose(mend(wrong, 120), truth, atol=1e-9)
    wrong[:, ankle, 1] = np.pi
    np.testing.assert_array_equal(mend(wrong, 120)[:, ankle], 0)


def test_resampling_keeps_slow_motion_and_drops_trembling() -> None:
    times = np.arange(481) / 120
    slow, tremble = np.sin(2 * np.pi * times), np.sin(2 * np.pi * 29 * times)
    tracks = np.stack([slow, tremble], axis=1)
    brought = resample(tracks, 120)
    assert brought.shape == (121, 2)
    np.testing.assert_allclose(brought[3:-3, 0], np.sin(2 * np.pi * np.arange(121) / FPS)[3:-3],
                               atol=0.01)  # fmt: skip
    assert np.abs(brought[3:-3, 1]).max() < 0.02
    np.testing.assert_allclose(resample(slow[::8], 15)[::2], slow[::8], atol=1e-12)


def test_splits_share_no_take() -> None:
    train, held_out = load_repertoire("train"), load_repertoire("held-out")
    assert set(held_out.names) == set(HELD_OUT)
    assert not set(train.names) & set(held_out.names)
    assert len(train.names) + len(held_out.names) == 28
    assert 0.1 < len(held_out.tracks) / (len(train.tracks) + len(held_out.tracks)) < 0.25
    with pytest.raises(ValueError, match="no split 'test'"):
        load_repertoire("test")  # type: ignore[arg-type]


def test_the_asset_is_small_plain_arrays() -> None:
    assert PACKAGED.stat().st_size < 1.5e6
    with np.load(PACKAGED, allow_pickle=False) as file:
        assert str(file["format"]) == "mpsnet-repertoire/1"
        assert {file[key].dtype.kind for key in file.files} <= set("iU")
    assert "NSF EIA-0196217" in (PACKAGED.parent / "LICENSE.md").read_text()


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_takes_are_of_people(split: str) -> None:
    for take in load_repertoire(split).takes:
        assert take.fps == FPS
        assert len(take.rotations) == len(take.path) > 40
        np.testing.assert_allclose(np.linalg.det(take.rotations), 1, atol=1e-9)
        np.testing.assert_array_equal(take.path[0], 0)
        angles = measure(take.rotations)
        np.testing.assert_allclose(limit(angles), angles, atol=1e-5)
        places, axes = joints(take.rotations)
        speed = np.linalg.norm(np.diff(places, axis=0), axis=2).max() * FPS
        assert speed < 7, take.name  # m/s, about the pelvis
        for side in ("left", "right"):
            knee, ankle, toes = (joint(f"{side}_{part}") for part in ("knee", "ankle", "foot"))
            shank = places[:, ankle] - places[:, knee]
            instep = places[:, toes] - places[:, ankle]
            at_rest = angle(REST[ankle] - REST[knee], REST[toes] - REST[ankle])
            assert np.abs(angle(shank, instep) - at_rest).max() < 75, take.name
            sole = axes[:, ankle] @ [0, -1, 0]
            assert angle(shank, sole).max() < 75, take.name  # never up


def test_a_repertoire_is_written_as_it_is(
    train: Repertoire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.npz"
    few = gather(train.takes[-3:-1])
    save_repertoire(path, few)
    assert zipfile.is_zipfile(path)
    monkeypatch.setattr("mpsnet_cli.synth.repertoire.PACKAGED", path)
    again = load_repertoire("train")
    assert again.names == few.names
    np.testing.assert_array_equal(again.starts, few.starts)
    np.testing.assert_allclose(again.tracks, few.tracks, atol=6e-4)


def test_gathering_what_is_fine_changes_nothing(train: Repertoire) -> None:
    take = train.takes[0]
    again = gather([take]).tracks
    np.testing.assert_allclose(again, train.tracks[: len(again)], atol=1e-5)


def test_nothing_to_gather_is_an_error() -> None:
    still = Movement(pose(np.zeros((1, 24, 3))), np.zeros((1, 3)), 30.0, "still")
    with pytest.raises(InputError, match="no movement of two frames"):
        gather([still])


def test_amass_stands_up(tmp_path: Path) -> None:
    poses = np.zeros((90, 156))
    turn = Rotation.from_euler("x", 90, degrees=True)  # AMASS's z is up
    headings = Rotation.from_euler("z", np.linspace(0, 3, 90)[:, None])
    poses[:, :3] = (headings * turn).as_rotvec()
    poses[:, 3 * joint("left_knee")] = 0.8
    np.savez(tmp_path / "a.npz", poses=poses, mocap_framerate=60.0)
    (movement,) = read_movements(tmp_path / "a.npz", Reporter())
    np.testing.assert_allclose(movement.rotations[:, 0] @ [0, 1, 0], [[0, 1, 0]] * 90, atol=1e-6)
    found = gather([movement])
    assert len(found.tracks) == 45
    np.testing.assert_allclose(found.tracks[3:-3, joint("left_knee"), 0], 0.8, atol=1e-4)
    assert found.tracks[-1, 0, 1] == pytest.approx(3, abs=0.1)  # it turns the same way
    np.testing.assert_allclose(movement.path[:, 1], 0, atol=1e-6)
    assert 0.1 < np.abs(movement.path).max() < 0.4  # about the standing foot


def test_a_folder_of_takes_gives_what_is_packaged(
    shared: Path, tmp_path: Path, train: Repertoire
) -> None:
    import tarfile

    wanted = {"subjects/02/02.asf", "subjects/02/02_01.amc"}
    with tarfile.open(shared / "mocap" / "cmu-subjects-01-02-03.tar.xz") as tar:
        for member in tar:
            if member.name in wanted:
                content = tar.extractfile(member)
                assert content is not None
                (tmp_path / Path(member.name).name).write_bytes(content.read())
                wanted.remove(member.name)
                if not wanted:
                    break
    found = gather(read_movements(tmp_path, Reporter()))
    assert found.names == ("02_01",)
    first = train.starts[train.names.index("02_01")]
    packaged = train.tracks[first : first + len(found.tracks)]
    np.testing.assert_allclose(found.tracks, packaged, atol=6e-4)


def test_a_folder_without_takes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks \*\.amc"):
        read_movements(tmp_path, Reporter())
    (tmp_path / "09_01.amc").write_text("")
    with pytest.raises(InputError, match=r"lacks 09\.asf"):
        read_movements(tmp_path, Reporter())
