from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from mpsnet_cli.errors import InputError
from mpsnet_cli.motion import Track
from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking import refine
from mpsnet_cli.tracking.association import Tracklet
from mpsnet_cli.tracking.refine import (
    choose_people,
    drop_doubles,
    drop_doubtful,
    fill_gaps,
    join_fragments,
    refine_tracks,
    smooth,
)

RED, BLUE = 0, 1  # the only bin in use of two people's colour histograms


def person(frames, x=100.0, *, y=200.0, speed=0.0, height=100.0, score=0.8, colour=RED) -> Tracklet:
    """Somebody 0.4 times as wide as high, centred at (x, y) in frame 0; speed in px a frame."""
    frames = np.asarray(frames, np.int64)
    centre = x + speed * frames
    half = np.array([0.2, 0.5]) * height
    boxes = np.stack(
        [centre - half[0], 0 * centre + y - half[1], centre + half[0], 0 * centre + y + half[1]], 1
    )
    return Tracklet(
        frames,
        boxes.astype(np.float32),
        np.full(len(frames), score, np.float32),
        len(frames) * np.eye(8)[colour],
    )


def track(tracklet: Tracklet) -> Track:
    return fill_gaps(
        1, tracklet.frames, tracklet.boxes, tracklet.scores, np.arange(tracklet.frames[-1] + 1)
    )


def spans(tracklets) -> list[tuple[int, int]]:
    return sorted((int(t.frames[0]), int(t.frames[-1])) for t in tracklets)


def test_a_walker_hidden_for_two_seconds_is_one_person():
    before, after = person(range(50), speed=3), person(range(100, 150), speed=3)
    (joined,) = join_fragments([after, before])
    assert_array_equal(joined.frames, [*range(50), *range(100, 150)])
    assert_allclose(joined.boxes[50:], after.boxes)
    assert joined.colours.sum() == 100


def test_a_walker_who_stopped_out_of_sight_is_one_person():
    assert len(join_fragments([person(range(50), speed=4), person(range(90, 150), x=296)])) == 1


@pytest.mark.parametrize(
    "other",
    [
        person(range(100, 150), x=900),  # far away
        person(range(100, 150), height=180),  # another size
        person(range(100, 150), colour=BLUE),  # other clothes
        person(range(1000, 1050)),  # much later
        person(range(40, 90), x=130),  # at the same time
    ],
)
def test_somebody_else_is_not_joined(other):
    assert len(join_fragments([person(range(50)), other])) == 2


def test_two_who_cross_out_of_sight_keep_their_ways():
    right, left = (
        {"speed": 4, "colour": RED},
        {"x": 700, "speed": -4, "colour": RED},
    )
    fragments = [
        person(range(60), **right),
        person(range(60), **left),
        person(range(100, 160), **right),
        person(range(100, 160), **left),
    ]
    joined = join_fragments(fragments)
    assert len(joined) == 2
    for one in joined:
        step = np.diff(one.boxes[:, 0]) / np.diff(one.frames)
        assert_allclose(step, step[0], atol=1e-3)


def test_only_one_of_two_candidates_continues_a_person():
    near, nearer = person(range(90, 150), x=120), person(range(80, 150), x=102)
    assert spans(join_fragments([person(range(50)), near, nearer])) == [(0, 149), (90, 149)]


def test_fragments_add_up_to_a_chain():
    parts = [person(range(start, start + 20), speed=1) for start in (0, 60, 120, 180)]
    assert spans(join_fragments(parts[::-1])) == [(0, 199)]


def test_a_tracker_that_goes_from_the_whole_to_a_part_follows_one_person():
    whole, after = person(range(50)), person(range(40, 100))
    after.boxes[:10, 3] -= 50
    (joined,) = join_fragments([after, whole])
    assert_array_equal(joined.frames, np.arange(100))
    assert_allclose(joined.boxes, person(range(100)).boxes)


def test_two_who_meet_while_seen_are_not_joined():
    assert len(join_fragments([person(range(50)), person(range(40, 90), x=120, y=190)])) == 2


def test_nobody_gives_nobody():
    report = Reporter()
    assert refine_tracks([], np.arange(100), report=report) == []
    assert report.warnings == []


def test_the_upper_half_of_a_person_is_no_other_person():
    whole = person(range(100), height=200)
    upper = person(range(20, 80), height=200)
    upper.boxes[:, 3] -= 110
    assert drop_doubles([upper, whole]) == [whole]


def test_the_half_goes_even_if_the_whole_is_lost_for_a_while():
    whole = person([*range(40), *range(60, 100)])
    upper = person(range(30, 70))
    upper.boxes[:, 3] -= 45
    assert drop_doubles([upper, whole]) == [whole]


def test_a_detector_known_for_doubles_says_from_what_overlap_on():
    """A box without the arms, and one that goes on where the tracker left the whole person."""
    whole = person(range(100), height=200)
    armless = person(range(20, 80), height=200)
    armless.boxes[:, [0, 2]] += [20, -20]
    after = person(range(90, 150), height=150)
    other = person(range(20, 80), height=150, colour=BLUE)  # who dances with the first
    everybody = [whole, armless, after, other]
    assert drop_doubles(everybody) == everybody
    assert drop_doubles(everybody, 0.4) == [whole, after, other]
    assert spans(join_fragments([whole, after])) == [(0, 99), (90, 149)]
    assert spans(join_fragments([whole, after], 0.4)) == [(0, 149)]
    assert spans(refine_tracks(everybody, np.arange(150), double_iou=0.4, report=Reporter())) == [
        (0, 149), (20, 79),
    ]  # fmt: skip


def test_a_child_in_front_and_somebody_behind_are_people():
    adult = person(range(100), height=200)
    child = person(range(100), y=250, height=100)
    behind = person(range(100), x=120, y=190, height=180)
    assert drop_doubles([adult, child, behind]) == [adult, child, behind]


def test_doubtful_ones_go_unless_nobody_is_certain():
    sure, unsure = person(range(50), score=0.8), person(range(90), x=500, score=0.35)
    assert drop_doubtful([unsure, sure]) == [sure]
    assert drop_doubtful([unsure]) == [unsure]


def test_gaps_are_filled_linearly_and_flagged():
    filled = track(person([0, 1, 5, 6], speed=10))
    assert_array_equal(filled.frames, np.arange(7))
    assert_array_equal(filled.interpolated, [False, False, True, True, True, False, False])
    assert_allclose(filled.boxes, person(range(7), speed=10).boxes, atol=1e-4)
    assert_allclose(filled.scores, [0.8, 0.8, 0, 0, 0, 0.8, 0.8])


@pytest.mark.parametrize(
    ("missing", "speed", "is_filled"),
    [
        (refine.FILL_GAP, 5, True),
        (refine.FILL_GAP + 1, 5, False),
        (refine.FILL_GAP + 1, 0, True),
        (refine.FILL_GAP_STILL, 0, True),
        (refine.FILL_GAP_STILL + 1, 0, False),
    ],
)
def test_only_short_gaps_are_filled_or_where_the_person_stayed(missing, speed, is_filled):
    gone = person([0, missing + 1], speed=speed)
    assert len(track(gone)) == (missing + 2 if is_filled else 2)


def test_frames_that_the_clip_lost_are_not_filled():
    seen = person([0, 1, 4, 6])
    filled = fill_gaps(1, seen.frames, seen.boxes, seen.scores, np.array([0, 1, 3, 4, 6, 7]))
    assert_array_equal(filled.frames, [0, 1, 3, 4, 6])
    assert_array_equal(filled.interpolated, [False, False, True, False, False])


def test_even_motion_is_not_smoothed_away():
    walker = track(person(range(60), speed=7))
    assert_allclose(smooth(walker).boxes, walker.boxes, atol=0.05)


def test_a_jump_keeps_its_height_and_its_time():
    jumper = person(range(75), height=300)
    phase = np.clip(1 - ((np.arange(75) - 37) / 7.5) ** 2, 0, None)  # 0.6 s in the air at 25 fps
    jumper.boxes[:, [1, 3]] -= 100 * phase[:, None].astype(np.float32)
    smoothed = smooth(track(jumper)).boxes
    assert np.argmin(smoothed[:, 3]) == 37
    assert np.abs(smoothed - jumper.boxes).max() < 0.025 * 300


def test_noise_is_halved_and_jitter_divided_by_five():
    noise = np.random.default_rng(0).normal(0, 1, (500, 2)).astype(np.float32)
    shaky = person(range(500))
    shaky.boxes[:] += np.tile(noise, 2)
    still = person(range(500)).boxes
    smoothed = smooth(track(shaky)).boxes
    assert (smoothed - still).std() < 0.55 * noise.std()
    assert np.diff(smoothed, n=2, axis=0).std() < np.diff(noise, n=2, axis=0).std() / 5


def test_outliers_are_replaced():
    person_once_cut = person(range(40))
    person_once_cut.boxes[20:22, 3] -= 50
    assert_allclose(smooth(track(person_once_cut)).boxes, person(range(40)).boxes, atol=1e-3)


def test_a_hole_is_not_smoothed_over():
    here, there = person(range(20)), person(range(200, 220), x=500)
    both = track(refine._concatenate(here, there))
    smoothed = smooth(both).boxes
    assert_allclose(smoothed, both.boxes, atol=1e-3)


@pytest.mark.parametrize("count", range(1, 8))
def test_short_tracks_can_be_smoothed(count):
    short = track(person(range(count), speed=3))
    assert_allclose(smooth(short).boxes, short.boxes, atol=1e-3)


def test_tracks_are_numbered_by_first_appearance_then_from_the_left():
    people = [
        person(range(10, 60), x=50),
        person(range(50), x=600),
        person(range(50), x=300),
    ]
    tracks = refine_tracks(people, np.arange(60), report=Reporter())
    assert [t.id for t in tracks] == [1, 2, 3]
    assert [round(float(t.boxes[0, 0])) for t in tracks] == [280, 580, 30]


def test_what_is_dropped_is_said():
    report = Reporter()
    upper = person(range(60))
    upper.boxes[:, 3] -= 50
    tracklets = [
        person(range(100)),
        upper,
        person(range(50), x=400, score=0.3),
        person(range(5), x=600),
        person(range(9), x=800),
    ]
    assert len(refine_tracks(tracklets, np.arange(100), min_frames=10, report=report)) == 1
    assert report.warnings == [
        "Dropped 4 tracks: 1 of parts of a person, 1 too uncertain, "
        "2 shorter than 10 frames (--min-frames)."
    ]


def test_a_person_in_all_frames_of_a_short_clip_stays():
    tracks = refine_tracks([person(range(3))], np.arange(3), report=Reporter())
    assert [len(t) for t in tracks] == [3]
    assert refine_tracks([person(range(3))], np.arange(4), report=Reporter()) == []


def test_people_are_chosen_by_id_and_prominence():
    clip = [person(range(50)), person(range(50), x=400, height=150), person(range(20, 50), x=700)]
    tracks = refine_tracks(clip, np.arange(50), report=Reporter())
    assert choose_people(tracks) == tracks
    assert [t.id for t in choose_people(tracks, people=[3, 1])] == [1, 3]
    assert [t.id for t in choose_people(tracks, max_people=1)] == [2]
    assert [t.id for t in choose_people(tracks, max_people=2)] == [1, 2]
    assert choose_people([], people=[4]) == []
    with pytest.raises(InputError, match=r"no person 4, 9 in the clip: its people are 1, 2, 3"):
        choose_people(tracks, people=[9, 1, 4])
