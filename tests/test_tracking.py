from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking import Detector, find_people
from mpsnet_cli.tracking.association import SETTINGS, associate, clothes_colours
from mpsnet_cli.tracking.detector import BATCH, Detections
from mpsnet_cli.video import Frame, probe, read_frames

SIZE = 240, 320  # height, width, px


class Scripted:
    """A detector that knows the boxes of every frame, and how many frames it was given at once."""

    def __init__(self, people: list[list[tuple[float, ...]]]) -> None:
        self.script = iter(people)
        self.batches: list[int] = []
        self.double_iou = 1.0

    def detect(self, images):
        self.batches.append(len(images))
        rows = [np.array(next(self.script), np.float32).reshape(-1, 5) for _ in images]
        return [Detections(row[:, :4], row[:, 4]) for row in rows]


def clip(count: int, first: int = 0):
    for index in range(first, first + count):
        yield Frame(index, index / 25, np.full((*SIZE, 3), index % 256, np.uint8))


def walker(frame: int, x: float, speed: float, score: float = 0.9) -> tuple[float, ...]:
    left = x + speed * frame
    return left, 50, left + 40, 150, score


@pytest.mark.parametrize("tracker", ["bytetrack", "botsort"])
def test_people_keep_their_tracklets(tracker):
    script = [[walker(i, 10, 2), walker(i, 250, -1)][:: 1 if i % 2 else -1] for i in range(50)]
    tracklets, frames = associate(clip(50, first=7), Scripted(script), tracker=tracker)
    assert frames.tolist() == list(range(7, 57))
    assert len(tracklets) == 2
    for tracklet in tracklets:
        assert tracklet.frames.tolist() == list(range(7, 57))
        assert len(set(np.diff(tracklet.boxes[:, 0]))) == 1
        assert tracklet.colours.sum() == pytest.approx(50)


def test_a_tracklet_begins_with_its_first_detection_not_its_second():
    script = [[walker(i, 10, 1)] if i >= 5 else [] for i in range(20)]
    (tracklet,), _ = associate(clip(20), Scripted(script))
    assert tracklet.frames[0] == 5


def test_a_single_detection_is_nobody_but_in_the_first_frame():
    script = [[walker(0, 200, 0)] if i == 5 else [] for i in range(20)]
    assert associate(clip(20), Scripted(script))[0] == []
    assert len(associate(clip(1), Scripted([[walker(0, 200, 0)]]))[0]) == 1


def test_weak_detections_continue_a_tracklet_but_begin_none():
    weak = (SETTINGS["track_low_thresh"] + SETTINGS["track_high_thresh"]) / 2
    script = [
        [walker(i, 10, 1, score=0.9 if i < 10 else weak), walker(0, 200, 0, score=weak)]
        for i in range(20)
    ]
    (tracklet,), _ = associate(clip(20), Scripted(script))
    assert len(tracklet) == 20


def test_boxes_are_the_detected_ones():
    script = [[walker(i % 2, 10, 9)] for i in range(20)]
    (tracklet,), _ = associate(clip(20), Scripted(script))
    np.testing.assert_array_equal(tracklet.boxes, np.array(script)[:, 0, :4])


def test_frames_are_read_a_batch_at_a_time():
    detector, progress, read = Scripted([[]] * 20), [], []

    def frames():
        for frame in clip(20):
            read.append(frame.index)
            assert len(read) <= sum(detector.batches) + BATCH
            yield frame

    associate(frames(), detector, advance=progress.append)
    assert detector.batches == progress == [8, 8, 4]


def test_colours_are_those_of_the_torso():
    image = np.zeros((100, 100, 3), np.uint8)
    image[20:50, 40:60] = (255, 0, 0)
    histogram = clothes_colours(image, np.array([30, 10, 70, 90], np.float32))
    assert histogram.shape == (512,)
    assert histogram.sum() == pytest.approx(1)
    assert histogram[7 * 64] > 0.7
    beyond = clothes_colours(image, np.array([-50, -50, 500, 500], np.float32))
    assert beyond.sum() == pytest.approx(1)


def test_find_people_reports_progress_and_what_it_dropped():
    report = Reporter()
    script = [[walker(i, 10, 1), *([walker(0, 250, 0)] if i < 6 else [])] for i in range(40)]
    (track,) = find_people(clip(40), Scripted(script), report=report)
    assert (track.id, len(track)) == (1, 40)
    assert "detect" in report.seconds
    assert report.warnings == ["Dropped 1 track: 1 shorter than 25 frames (--min-frames)."]


def test_find_people_chooses():
    script = [[walker(i, 10, 1), walker(0, 250, 0)] for i in range(30)]
    kept = find_people(clip(30), Scripted(script), people=[2], report=Reporter())
    assert [track.id for track in kept] == [2]


def test_an_empty_clip_has_nobody():
    assert find_people(clip(0), Scripted([]), report=Reporter()) == []


def test_walkers_of_a_real_clip_are_found(shared):
    tracks = _people(shared, "pedestrians.avi", end=1.6)
    assert len(tracks) == 3
    assert [len(track) for track in tracks] == [16, 16, 16]


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["bytetrack", "botsort"])
def test_pedestrians_keep_their_ids(shared, tracker):
    tracks = _people(shared, "pedestrians.avi", end=20, tracker=tracker)
    assert 9 <= len(tracks) <= 11  # nine people, of whom one is hidden behind others for long
    assert sum(len(track) > 80 for track in tracks) >= 7
    for track in tracks:
        centre, height = track.boxes[:, :2] + track.boxes[:, 2:], np.ptp(track.boxes[:, 1::2], 1)
        steps = np.linalg.norm(np.diff(centre / 2, axis=0), axis=1) / np.diff(track.frames)
        assert (steps < 0.3 * height[1:]).all()  # nobody turns into somebody elsewhere


def _people(shared: Path, name: str, *, end: float | None = None, tracker="bytetrack"):
    report = Reporter()
    frames = read_frames(probe(shared / "clips" / name), end=end, report=report)
    detector = Detector(shared / "weights" / "yolov8n.pt", device="cpu")
    return find_people(frames, detector, tracker=tracker, report=report)
