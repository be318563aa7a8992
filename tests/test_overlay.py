from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from clips import make_clip, number
from motions import make_motion
from shapes import Ball, Floats

from mpsnet_cli.motion import Motion
from mpsnet_cli.posing import CHUNK
from mpsnet_cli.progress import Reporter
from mpsnet_cli.render.cpu import CpuRenderer
from mpsnet_cli.render.labels import make_pill
from mpsnet_cli.render.overlay import Figure, View, draw_frame, person_colour, write_overlay
from mpsnet_cli.render.scene import Camera, Image, Mesh
from mpsnet_cli.video import VideoInfo, probe, read_frames

FRAMES = 40
WIDTH, HEIGHT = 160, 120
CAMERA = Camera(200.0, (80.0, 60.0))
RENDERER = CpuRenderer(Ball().faces)
GREY = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


class RecordingBall(Ball):
    """Remembers how many bodies were posed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def __call__(self, pose: Floats, betas: Floats) -> tuple[Floats, Floats]:
        self.batches.append(len(pose))
        return super().__call__(pose, betas)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> VideoInfo:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return probe(make_clip(path, frames=FRAMES, size=(WIDTH, HEIGHT), fps=Fraction(25)))


def walk(frames: Sequence[int], **changes: object) -> Motion:
    """A ball, 20 px wide, that moves by 2 px a frame, low in the picture."""
    ids = np.array(frames)
    transl = np.stack([(2 * ids + 20 - 80) * 10 / 200, 0 * ids + 1.5, 0 * ids + 10], axis=1)
    return make_motion(
        len(ids),
        **{
            "frame_ids": ids,
            "times": ids / 25,
            "image_size": np.array([WIDTH, HEIGHT], float),
            "focal_length": CAMERA.focal_length,
            "principal_point": np.array(CAMERA.principal_point),
            "transl": transl.astype(np.float32),
            "trained": True,
            **changes,
        },
    )


def shows_person(image: Image, frame: int) -> bool:
    """Whether there is a colour in the black and white picture where the ball should be."""
    x, y = 2 * frame + 20, 60 + 1.5 * 20
    patch = image[int(y) - 2 : int(y) + 6, x - 4 : x + 4].astype(int)
    return bool((patch[..., 2] - patch[..., 0]).mean() > 25)


def write(path: Path, video: VideoInfo, motions: Sequence[Motion], **options: object) -> list:
    """Write an overlay and read its frames."""
    report = Reporter()
    body = options.pop("body", Ball())
    write_overlay(path, video, motions, body, RENDERER, report=report, **options)
    assert set(report.seconds) == {"overlay"}
    return list(read_frames(probe(path), report=report))


def test_every_frame_is_there_and_people_in_theirs(tmp_path: Path, video: VideoInfo) -> None:
    present = [*range(3, 20), *range(23, 30)]
    frames = write(tmp_path / "overlay.mp4", video, [walk(present)])
    assert [number(frame.image) for frame in frames] == list(range(FRAMES))
    shown = [frame.index for frame in frames if shows_person(frame.image, frame.index)]
    assert shown == present
    assert [path.name for path in tmp_path.iterdir()] == ["overlay.mp4"]


def test_a_range_of_the_clip(tmp_path: Path, video: VideoInfo) -> None:
    body = RecordingBall()
    present = [*range(2, 15), 17, *range(25, 40)]
    frames = write(tmp_path / "overlay.mp4", video, [walk(present)], body=body, start=0.4, end=1.12)
    assert [number(frame.image) for frame in frames] == list(range(10, 28))
    shown = [number(f.image) for f in frames if shows_person(f.image, number(f.image))]
    assert shown == [10, 11, 12, 13, 14, 17, 25, 26, 27]
    assert max(body.batches) <= CHUNK
    assert sum(body.batches) <= len(present) - 8  # those before the range are not posed


def test_two_people_that_come_and_go(tmp_path: Path, video: VideoInfo) -> None:
    other = walk(range(20, 40), track_id=2)
    frames = write(tmp_path / "overlay.mp4", video, [walk(range(10)), other])
    shown = [frame.index for frame in frames if shows_person(frame.image, frame.index)]
    assert shown[:10] == list(range(10))  # person 2 is red, and not found by the search for blue
    reds = [frame.image[88:94, 2 * frame.index + 18 :][:, :4].astype(int) for frame in frames]
    assert [k for k, red in enumerate(reds) if (red[..., 0] - red[..., 2]).mean() > 25] == list(
        range(20, 40)
    )


def test_nobody_leaves_the_frames_as_they_are(tmp_path: Path, video: VideoInfo) -> None:
    source = list(read_frames(video, report=Reporter()))
    drawn = write(tmp_path / "overlay.mp4", video, [])
    assert len(drawn) == len(source)
    for a, b in zip(source, drawn, strict=True):
        assert np.abs(a.image.astype(int) - b.image).mean() < 3


def test_untrained_weights_mark_every_frame(tmp_path: Path, video: VideoInfo) -> None:
    motions = [walk(range(5, 8)), walk(range(5, 9), track_id=2, trained=False)]
    for frame in write(tmp_path / "overlay.mp4", video, motions):
        corner = frame.image[-24:-4, 5:60].astype(int)
        red = (corner[..., 0] - corner[..., 2] > 60).mean()
        assert red > 0.3, f"frame {frame.index}"


@pytest.mark.parametrize("view", get_args(View))
def test_sizes_of_the_views(tmp_path: Path, video: VideoInfo, view: View) -> None:
    frames = write(tmp_path / "v.mp4", video, [walk(range(20))], view=view, end=0.2)
    scale = 2 if view == "all" else 1
    assert {frame.image.shape for frame in frames} == {(scale * HEIGHT, scale * WIDTH, 3)}


def test_a_failing_renderer_leaves_no_file(tmp_path: Path, video: VideoInfo) -> None:
    class Broken:
        threads = 2

        def draw(self, *_: object) -> Image:
            raise ZeroDivisionError("in a drawing thread")

    with pytest.raises(ZeroDivisionError):
        write_overlay(
            tmp_path / "o.mp4", video, [walk(range(5))], Ball(), Broken(), report=Reporter()
        )
    assert list(tmp_path.iterdir()) == []


def figure(x: float, y: float, *, person: int = 1, interpolated: bool = False) -> Figure:
    """A ball of 0.5 m, 10 m away, whose head and pelvis lie in its centre at the pixel x, y."""
    centre = np.float32([(x - 80) / 20, (y - 60) / 20, 10])
    vertices = 0.5 * Ball().sphere + centre
    return Figure(0, person, vertices, centre, centre, interpolated)


def label_pixels(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns that the label changes."""
    mesh = Mesh(figure.vertices, person_colour(figure.person))
    unlabelled = RENDERER.draw(GREY, [mesh], CAMERA)
    drawn = draw_frame(GREY, [figure], renderer=RENDERER, camera=CAMERA)
    return np.nonzero((drawn != unlabelled).any(axis=2))


def test_the_label_is_above_the_head() -> None:
    rows, columns = label_pixels(figure(80, 70))
    assert rows.max() < 70 - 0.2 * 20
    assert abs((columns.min() + columns.max()) / 2 - 80) < 1.5


@pytest.mark.parametrize("x", [80, 140])
def test_the_label_is_beside_a_head_at_the_top(x: int) -> None:
    rows, columns = label_pixels(figure(x, 12))
    assert rows.min() >= 0
    assert columns.min() > x + 2 if x == 80 else columns.max() < x - 2


def test_the_label_stays_in_the_picture_and_goes_with_the_person() -> None:
    rows, columns = label_pixels(figure(-5, 70))
    assert columns.min() == 0
    assert len(rows) > 50
    assert len(label_pixels(figure(-30, 70))[0]) == 0  # nothing of the person is in sight


def test_the_label_of_a_filled_in_box_is_faint() -> None:
    strong, faint = (
        draw_frame(GREY, [figure(80, 70, interpolated=i)], renderer=RENDERER, camera=CAMERA)
        for i in (False, True)
    )
    change = [np.abs(image[:56].astype(int) - 128).sum() for image in (strong, faint)]
    assert 0.4 < change[1] / change[0] < 0.6


def test_turned_people_look_to_the_right() -> None:
    pelvis = np.float32([0.3, 0.1, 4])
    nose = pelvis + np.float32([0.05, -0.6, -0.2])  # towards the camera
    turned = Figure(0, 1, np.stack([nose, pelvis]), pelvis, nose, False).turned()
    np.testing.assert_allclose(turned.vertices[0] - pelvis, [0.2, -0.6, 0.05], atol=1e-6)
    np.testing.assert_array_equal(turned.vertices[1], pelvis)
    np.testing.assert_array_equal(turned.head, turned.vertices[0])


def test_all_shows_the_four_pictures() -> None:
    people = [figure(60, 70), figure(110, 60, person=2)]
    views = {
        view: draw_frame(GREY, people, renderer=RENDERER, camera=CAMERA, view=view)
        for view in get_args(View)
    }
    quarters = [half for row in np.vsplit(views["all"], 2) for half in np.hsplit(row, 2)]
    expected = [GREY, views["overlay"], views["plain"], views["side"]]
    for quarter, picture in zip(quarters, expected, strict=True):
        different = (quarter != picture).any(axis=2)
        assert different[:26].any()  # the caption
        assert not different[26:].any()


def test_plain_views_hide_the_frame() -> None:
    noise = np.random.default_rng(0).integers(0, 256, GREY.shape).astype(np.uint8)
    for view in ("plain", "side"):
        pictures = [
            draw_frame(image, [figure(80, 70)], renderer=RENDERER, camera=CAMERA, view=view)
            for image in (GREY, noise)
        ]
        np.testing.assert_array_equal(*pictures)


def test_colours_are_distinct() -> None:
    colours = np.array([person_colour(person) for person in range(1, 17)])
    assert person_colour(1) == person_colour(1)
    assert colours.min() >= 0
    assert colours.max() <= 255
    for a, b in itertools.combinations(colours[:8], 2):
        assert np.linalg.norm(a - b) > 50
    for a, b in itertools.combinations(colours, 2):
        assert np.linalg.norm(a - b) > 20


def test_a_label_larger_than_the_picture_is_cut() -> None:
    tiny = np.zeros((7, 9, 3), np.uint8)
    make_pill("UNTRAINED WEIGHTS", 20, (200, 50, 40)).paste(tiny, 3, 3)
    assert tiny.any()
