from __future__ import annotations

import pickle
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mpsnet_cli.errors import InputError
from mpsnet_cli.motion import Motion
from mpsnet_cli.tracking import full_frame_track, read_boxes
from mpsnet_cli.video import VideoInfo

VIDEO = VideoInfo(
    path=Path("clip.mp4"),
    width=640,
    height=480,
    fps=Fraction(25),
    frame_count=100,
    rotation=0,
    has_audio=False,
    is_vfr=False,
    duration=4.0,
)

GOOD = {
    "frame_ids": np.array([5, 4, 4]),
    "track_ids": np.array([2, 2, 7]),
    "boxes": np.array([[10, 20, 50, 120], [11, 20, 51, 120], [300, 0, 400, 480]], float),
    "scores": np.array([0.5, 0.6, 0.7]),
}


@pytest.fixture
def csv(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "boxes.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def npz(tmp_path):
    def write(**arrays) -> Path:
        path = tmp_path / "boxes.npz"
        np.savez_compressed(path, **arrays)
        return path

    return write


def test_mot_csv_counts_frames_from_one(csv):
    text = "frame,id,left,top,width,height\n3, 1,10,20,40,100,0.5,-1,-1,-1\n1,1,10,20,40,100,-1\n"
    (track,) = read_boxes(csv(text + "\n"), VIDEO)
    assert track.id == 1
    assert_array_equal(track.frames, [0, 1, 2])
    assert_array_equal(track.interpolated, [False, True, False])
    assert_allclose(track.boxes, [[10, 20, 50, 120]] * 3)
    assert_allclose(track.scores, [1, 0, 0.5])


def test_scores_are_optional_in_mot_csv(csv):
    (track,) = read_boxes(csv("1,4,10,20,40,100"), VIDEO)
    assert (track.id, track.scores) == (4, 1)


def test_npz_keeps_the_ids(npz):
    two, seven = read_boxes(npz(**GOOD), VIDEO)
    assert (two.id, seven.id) == (2, 7)
    assert_array_equal(two.frames, [4, 5])
    assert_allclose(two.boxes, GOOD["boxes"][[1, 0]])
    assert_allclose(two.scores, [0.6, 0.5])
    assert two.boxes.dtype == two.scores.dtype == np.float32


def test_a_result_of_ours_gives_the_boxes_that_it_was_cropped_by(tmp_path):
    count = 4
    motion = Motion(
        track_id=3,
        body="free-1",
        gender="neutral",
        weights="none",
        trained=False,
        shape="person",
        fps=25.0,
        image_size=np.array([640.0, 480.0]),
        focal_length=800.0,
        principal_point=np.array([320.0, 240.0]),
        frame_ids=np.arange(10, 10 + count),
        times=np.arange(count) / 25,
        pose=np.zeros((count, 72), np.float32),
        betas=np.zeros(10, np.float32),
        betas_per_frame=np.zeros((count, 10), np.float32),
        transl=np.zeros((count, 3), np.float32),
        cam=np.zeros((count, 3), np.float32),
        bboxes=np.array([[100, 200, 60, 60]] * count, np.float32),
        camera_scale=1.2,
        joints3d=np.zeros((count, 24, 3), np.float32),
        joints2d=np.zeros((count, 24, 2), np.float32),
        scores=np.array([0.9, 0.8, 0, 0.7], np.float32),
        interpolated=np.array([False, False, True, False]),
    )
    motion.save(tmp_path / "person_03.npz")
    (track,) = read_boxes(tmp_path / "person_03.npz", VIDEO)
    assert track.id == 3
    assert_array_equal(track.frames, motion.frame_ids)
    assert_allclose(track.boxes, [[75, 175, 125, 225]] * count)
    assert_allclose(track.scores, motion.scores)
    assert_array_equal(track.interpolated, motion.interpolated)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "holds no boxes"),
        ("1,1,10,20,40", "line 2: expected numbers frame, id, .*found '1,1,10,20,40'"),
        ("one,1,10,20,40,100", "line 2: expected numbers"),
        ("1,1,nan,20,40,100", "person 1 in frame 1 holds a number that is not finite"),
        ("1,1,10,20,inf,100", "not finite"),
        ("1,1,10,20,0,100", "no positive width"),
        ("1,1,10,20,40,-100", "no positive width"),
        ("0,1,10,20,40,100", r"frame 0 is outside clip\.mp4, which has the frames 1 to 100"),
        ("101,1,10,20,40,100", "frame 101 is outside"),
        ("1.5,1,10,20,40,100", "not a whole number"),
        ("1,-1,10,20,40,100", "an id that is not 1, 2, 3"),
        ("1,1,700,20,40,100", "does not fit the image of 640 x 480 px"),
        ("1,1,0,0,40,1e9", "does not fit the image"),
        ("1,1,10,20,40,100,80", "a score that is not from 0 to 1"),
        ("2,1,10,20,40,100\n1,1,9,9,9,9\n2,1,10,20,40,101", "person 1 in frame 2 is there twice"),
    ],
)
def test_what_cannot_be_boxes_of_people_is_refused(csv, line, message):
    with pytest.raises(InputError, match=message):
        read_boxes(csv("frame,id\n" + line), VIDEO)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": np.zeros((3, 3))}, "do not fit together"),
        ({"frame_ids": np.zeros((3, 1))}, "do not fit together"),
        ({"track_ids": np.array([1, 2])}, "do not fit together"),
        ({"boxes": np.array(1.0), "scores": np.array(1.0)}, "do not fit together"),
        ({"boxes": np.array(["a", "b", "c"])}, "not a readable"),
        ({"boxes": np.array([{}, {}, {}], object)}, "not a readable"),
        ({"frame_ids": np.array([5, 5, 100])}, "frame 100 is outside .* the frames 0 to 99"),
        ({"format": np.array("mpsnet-motion/9")}, "mpsnet-motion/9"),
    ],
)
def test_a_wrong_npz_is_refused(npz, change, message):
    with pytest.raises(InputError, match=message):
        read_boxes(npz(**{**GOOD, **change}), VIDEO)


def test_a_missing_array_is_named(npz):
    with pytest.raises(InputError, match="track_ids"):
        read_boxes(npz(frame_ids=GOOD["frame_ids"], boxes=GOOD["boxes"]), VIDEO)


def test_damaged_and_foreign_files_are_refused(tmp_path, npz):
    noise = np.random.default_rng(0).uniform(0, 99, (3000, 4))
    whole = npz(**{**GOOD, "boxes": noise}).read_bytes()
    middle = len(whole) // 2
    contents = {
        "damaged.npz": whole[:middle] + bytes(200) + whole[middle + 200 :],
        "cut.npz": whole[:-500],
        "pickle.npz": pickle.dumps(GOOD),
        "missing.csv": None,
    }
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is not (a )?readable"):
            read_boxes(tmp_path / name, VIDEO)


def test_the_full_frame_is_one_person_in_every_frame():
    track = full_frame_track(VIDEO)
    assert len(track) == 100
    assert_array_equal(track.frames, np.arange(100))
    assert (track.boxes == [0, 0, 640, 480]).all()
    assert track.id == 1
    assert not track.interpolated.any()
