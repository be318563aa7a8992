from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import make_clip
from conftest import ROOT
from numpy.typing import NDArray

from mpsnet_cli import attention
from mpsnet_cli.attention import AttendedWindow, Transition
from mpsnet_cli.body import load_body
from mpsnet_cli.crops import crop_image, square_boxes
from mpsnet_cli.errors import InputError, OutputError, WeightsError
from mpsnet_cli.geometry import matrix_to_axis_angle
from mpsnet_cli.model.config import MPSNetConfig, WeightsInfo
from mpsnet_cli.model.inference import Model
from mpsnet_cli.model.untrained import untrained_network
from mpsnet_cli.motion import Track
from mpsnet_cli.progress import Reporter
from mpsnet_cli.render.cpu import CpuRenderer
from mpsnet_cli.tracking import full_frame_track, read_boxes
from mpsnet_cli.video import VideoInfo, probe, read_frames
from mpsnet_cli.windows import window_indices

CLIP, BOXES = ROOT / "examples" / "walk.mp4", ROOT / "examples" / "walk_boxes.csv"
CONFIG = MPSNetConfig(crop_size=64)  # quick


def model_of(config: MPSNetConfig) -> Model:
    network = untrained_network(0, config)
    network.regressor.pose.weight.data *= 60  # moves visibly
    info = WeightsInfo(Path("w"), "w", False, "", config, {}, "", "")
    return Model(network, info, device="cpu", precision="fp32", report=Reporter())


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(CONFIG)


@pytest.fixture(scope="module")
def video() -> VideoInfo:
    return probe(CLIP)


@pytest.fixture(scope="module")
def track(video: VideoInfo) -> Track:
    return read_boxes(BOXES, video)[1]


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two pictures of different sizes."""
    folder = tmp_path_factory.mktemp("stills")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (12, 9)), ("b.png", (8, 15))):
        blocks = rng.integers(0, 255, (*size, 3), np.uint8)
        cv2.imwrite(str(folder / name), np.kron(blocks, np.ones((8, 8, 1), np.uint8)))
    return folder / "a.png", folder / "b.png"


def softmax(logits: NDArray) -> NDArray:
    exponential = np.exp(logits - logits.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


def test_a_window_is_the_frames_around_the_target(
    video: VideoInfo, track: Track, model: Model
) -> None:
    window = attention.attend(video, track, model, frame=60, report=Reporter())
    assert window.person == 2
    assert window.frames.tolist() == list(range(52, 68))
    squares = square_boxes(track.boxes, scale=1.1)
    frames = list(read_frames(video, end=2.5, report=Reporter()))[52:68]
    for frame, crop in zip(frames, window.crops, strict=True):
        np.testing.assert_array_equal(
            crop, crop_image(frame.image, squares[frame.index], size=CONFIG.crop_size)
        )
    features = model.features(window.crops).numpy().astype(np.float64)
    nssm = softmax(features @ features.T)
    np.testing.assert_allclose(window.maps["NSSM"], nssm, atol=1e-3)
    rho = model.network.encoder.moca.rho.weight.numpy().ravel()
    moca = softmax(rho[0] * window.maps["NSSM"] + rho[1] * window.maps["attention map"])
    np.testing.assert_allclose(window.maps["MoCA map"], moca, atol=1e-6)


def test_a_window_at_the_edge_repeats_its_frames(
    video: VideoInfo, track: Track, model: Model
) -> None:
    window = attention.attend(video, track, model, frame=3, report=Reporter())
    assert window.frames.tolist() == [0] * 6 + list(range(1, 11))
    assert (window.crops[:6] == window.crops[0]).all()


def test_the_middle_frame_is_the_default(video: VideoInfo, track: Track, model: Model) -> None:
    short = track.select(np.arange(20, 41))
    window = attention.attend(video, short, model, report=Reporter())
    assert window.frames[8] == 30


@pytest.mark.parametrize("frame", [19, 41, 100_000])
def test_a_frame_without_the_person_is_refused(
    video: VideoInfo, track: Track, model: Model, frame: int
) -> None:
    short = track.select(np.arange(20, 41))
    with pytest.raises(InputError, match=rf"Person 2 is not in frame {frame} .* from 20 to 40"):
        attention.attend(video, short, model, frame=frame, report=Reporter())


def test_a_lost_frame_is_named(tmp_path: Path, model: Model) -> None:
    clip = probe(make_clip(tmp_path / "clip.mp4", frames=10))
    promised = replace(clip, frame_count=12)
    with pytest.raises(InputError, match=r"Frame 10 of .* is damaged"):
        attention.attend(promised, full_frame_track(promised), model, frame=11, report=Reporter())


def test_the_most_prominent_person_is_the_default(video: VideoInfo, model: Model) -> None:
    tracks = read_boxes(BOXES, video)
    heights = {track.id: np.diff(track.boxes[:, 1::2]).sum() for track in tracks}

    def chosen(boxes: str, person: int | None) -> Track:
        return attention.choose_track(video, model, boxes=boxes, person=person, report=Reporter())

    assert chosen(str(BOXES), None).id == max(heights, key=heights.__getitem__)
    assert chosen(str(BOXES), 1).id == 1
    assert chosen("full", None).boxes[0].tolist() == [0, 0, video.width, video.height]
    with pytest.raises(InputError, match="no person 9 in the clip: its people are 1, 2"):
        chosen(str(BOXES), 9)


def test_one_picture_is_no_clip(stills: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is one picture: give a clip, or two pictures"):
        attention.open_clip(stills[0])
    with pytest.raises(InputError, match="does not exist"):
        attention.open_clip(tmp_path / "nothing.mp4")
    assert attention.open_clip(make_clip(tmp_path / "clip.mp4")).frame_count == 10


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    for name in ("empty.png", "text.png", make_clip(tmp_path / "clip.mp4").name):
        with pytest.raises(InputError, match=f"{name} is not a picture"):
            attention.read_still(tmp_path / name)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        attention.read_still(tmp_path / "missing.png")


def test_the_person_fills_the_pictures(stills: tuple[Path, Path], model: Model) -> None:
    images = [attention.read_still(path) for path in stills]
    assert [image.shape for image in images] == [(96, 72, 3), (64, 120, 3)]
    crops = attention.crop_stills(images, model, boxes=None, person=None)
    squares = np.float32([(36, 48, 1.1 * 96, 1.1 * 96), (60, 32, 1.1 * 120, 1.1 * 120)])
    for image, crop, square in zip(images, crops, squares, strict=True):
        np.testing.assert_array_equal(crop, crop_image(image, square, size=CONFIG.crop_size))
    full = attention.crop_stills(images, model, boxes="full", person=None)
    np.testing.assert_array_equal(full, crops)


def test_boxes_say_where_the_person_is(
    stills: tuple[Path, Path], model: Model, tmp_path: Path
) -> None:
    images = [attention.read_still(path) for path in stills]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("1,1,0,0,20,40\n2,1,60,10,30,30\n1,2,0,0,5,5\n")
    crops = attention.crop_stills(images, model, boxes=str(boxes), person=1)
    second = crop_image(images[1], np.array([75, 25, 33, 33], np.float32), size=64)
    np.testing.assert_array_equal(crops[1], second)
    with pytest.raises(InputError, match="no box of person 2 in one of the pictures"):
        attention.crop_stills(images, model, boxes=str(boxes), person=2)
    with pytest.raises(InputError, match="no person 3"):
        attention.crop_stills(images, model, boxes=str(boxes), person=3)


def test_a_transition_is_what_the_network_says_of_the_repeated_stills(
    stills: tuple[Path, Path], model: Model
) -> None:
    body = load_body("free-1")
    images = [attention.read_still(path) for path in stills]
    crops = attention.crop_stills(images, model, boxes=None, person=None)
    transition = attention.cross(crops, model, body)
    sequence = model.features(np.repeat(crops, 16, axis=0))
    rotmats, _, _ = model.predict(sequence, window_indices(np.arange(32)))
    pose = matrix_to_axis_angle(rotmats.numpy()).reshape(32, 72)
    joints = body.joints(pose, np.zeros((32, 10)))
    joints = joints - joints[:, :1]
    steps = 1000 * np.linalg.norm(np.diff(joints, axis=0), axis=2).mean(axis=1)
    assert transition.frames.tolist() == list(range(8, 25))
    np.testing.assert_allclose(transition.steps, steps[8:24], atol=0.02)
    assert steps[:8].max() < 0.02  # nothing changes where a window sees one still only
    assert steps[24:].max() < 0.02
    distance = 1000 * np.linalg.norm(joints[-1] - joints[0], axis=1).mean()
    assert transition.distance == pytest.approx(distance, abs=0.02)
    assert transition.distance > 1
    # The body is drawn where the camera puts it: its root stands in front of it.
    assert transition.vertices.shape == (17, body.vertex_count, 3)
    assert (transition.vertices[..., 2] > 0).all()
    fastest = int(steps.argmax())
    assert f"{steps.max():.1f} mm in the fastest step, from frame {fastest} to {fastest + 1}" in (
        attention.describe(transition)
    )


def test_one_still_twice_is_no_transition(stills: tuple[Path, Path], model: Model) -> None:
    image = attention.read_still(stills[0])
    crops = attention.crop_stills([image, image], model, boxes=None, person=None)
    transition = attention.cross(crops, model, load_body("free-1"))
    assert transition.steps.max() < 0.02
    assert transition.distance < 0.02


def test_weights_that_overflow_are_refused(stills: tuple[Path, Path]) -> None:
    broken = model_of(CONFIG)
    broken.network.regressor.fc1.weight.data *= 1e38
    broken.network.encoder.moca.phi.weight.data *= 1e38
    image = attention.read_still(stills[0])
    crops = attention.crop_stills([image, image], broken, boxes=None, person=None)
    with pytest.raises(WeightsError, match="w give values that are not numbers"):
        attention.cross(crops, broken, load_body("free-1"))
    clip = probe(CLIP)
    with pytest.raises(WeightsError, match="w give values that are not numbers"):
        attention.attend(clip, full_frame_track(clip), broken, frame=0, report=Reporter())


def a_window(**maps: NDArray) -> AttendedWindow:
    crops = np.full((16, 8, 8, 3), 200, np.uint8)
    return AttendedWindow(
        1, np.arange(16), crops, {name: m.astype(np.float32) for name, m in maps.items()}
    )


def colours_of(picture: NDArray, count: int) -> NDArray:
    """The colours (count, 16, 16, 3) at the centres of the cells, found without the layout."""
    saturated = np.ptp(picture.astype(int), axis=2) > 60
    rows = np.flatnonzero(saturated.mean(axis=1) > 0.5)
    rows = rows[: int(np.argmax(np.diff(rows, append=10**6) > 1)) + 1]  # without the colour bars
    columns = np.flatnonzero(saturated[rows].mean(axis=0) > 0.9)
    centres = (np.arange(16) + 0.5) / 16
    maps = np.split(columns, np.flatnonzero(np.diff(columns) > 1) + 1)
    assert len(maps) == count
    y = np.rint(rows[0] + centres * len(rows)).astype(int)
    return np.stack(
        [picture[np.ix_(y, np.rint(m[0] + centres * len(m)).astype(int))] for m in maps]
    )


def test_maps_go_from_blue_to_red() -> None:
    ramp = np.linspace(0.01, 0.2, 256).reshape(16, 16)
    picture = attention.draw_attention(a_window(up=ramp, down=-ramp), title="t", trained=True)
    up, down = colours_of(picture, 2).astype(int)
    assert up[0, 0, 2] > 150 > up[0, 0, 0] + 50
    assert up[-1, -1, 0] > 150 > up[-1, -1, 2] + 50
    np.testing.assert_array_equal(down, up[::-1, ::-1])
    # Turbo's green rises to the middle and falls from there: no value is drawn twice.
    green = up[..., 1].ravel()
    assert (np.diff(green[:110]) >= 0).all()
    assert (np.diff(green[150:]) <= 0).all()


def test_a_map_of_one_value_is_drawn_plain() -> None:
    flat = np.full((16, 16), 1 / 16)
    picture = attention.draw_attention(a_window(flat=flat), title="t", trained=True)
    assert (colours_of(picture, 1) == colours_of(picture, 1)[0, 0, 0]).all()


def test_a_nonlocal_block_has_no_moca_map(video: VideoInfo, track: Track) -> None:
    plain = model_of(replace(CONFIG, attention="nonlocal"))
    window = attention.attend(video, track, plain, frame=0, report=Reporter())
    assert list(window.maps) == ["NSSM", "attention map"]


def test_pictures_of_untrained_weights_say_so() -> None:
    window = a_window(flat=np.eye(16))
    untrained, trained = (
        attention.draw_attention(window, title="t", trained=trained) for trained in (False, True)
    )
    differs = (untrained != trained).any(axis=2)
    assert (untrained[differs] == attention.ALARM).all(axis=1).mean() > 0.3
    assert differs[:60].any()
    assert not differs[60:].any()


def test_a_transition_is_drawn_frame_by_frame() -> None:
    triangle = np.array([[-0.3, -0.3, 3], [0.3, -0.3, 3], [0, 0.6, 3]], np.float32)
    faces = np.array([[0, 1, 2], [0, 2, 1]], np.int32)
    frames = np.arange(8, 25)
    steps = np.zeros(16)
    steps[3] = 50.0
    stills = np.stack([np.full((8, 8, 3), (200, 0, 0)), np.full((8, 8, 3), (0, 200, 0))])
    transition = Transition(
        stills.astype(np.uint8), frames, np.tile(triangle, (17, 1, 1)), steps, distance=25.0
    )
    picture = attention.draw_transition(transition, CpuRenderer(faces), title="t", trained=True)
    side = attention.BODY
    red = (picture == (200, 0, 0)).all(axis=2)
    green = (picture == (0, 200, 0)).all(axis=2)
    left = int(np.flatnonzero(red.any(axis=0))[0])
    assert red.sum() == pytest.approx(8 * side**2, rel=0.01)  # frames 8 to 15 show the first
    assert green.sum() == pytest.approx(9 * side**2, rel=0.01)
    bodies = int(np.flatnonzero(red.any(axis=1))[-1]) + 1 + attention.GAP
    row = picture[bodies : bodies + side, left : left + 17 * side].astype(int)
    blue = (row[..., 2] - row[..., 0]) > 30
    assert (blue.reshape(side, 17, side).sum(axis=(0, 2)) > 500).all()
    # The highest point of the curve lies between the frames 11 and 12, where the step is.
    curve = picture[bodies + side + 80 :, left : left + 17 * side]
    dark = (curve == attention.SLATE).all(axis=2)
    dark[:, 8 * side - 2 : 8 * side + 3] = False  # the line at the change
    peak = np.flatnonzero(dark[int(np.flatnonzero(dark.any(axis=1))[0])])
    assert peak.mean() == pytest.approx(4 * side, abs=3)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.3, 0.5), (1.0, 1.0), (1.1, 2.0), (23, 50), (60, 100), (0.0002, 0.0002)],
)
def test_grid_lines_are_round(value: float, expected: float) -> None:
    assert attention._round_spacing(value) == pytest.approx(expected)


def test_pictures_are_written(tmp_path: Path) -> None:
    picture = np.zeros((4, 5, 3), np.uint8)
    picture[..., 0] = 255
    path = tmp_path / "new.png"
    attention.check_output(path, overwrite=False)
    attention.write_picture(path, picture)
    np.testing.assert_array_equal(attention.read_still(path), picture)
    with pytest.raises(OutputError, match="exists already"):
        attention.check_output(path, overwrite=False)
    attention.check_output(path, overwrite=True)
    for bad in (tmp_path / "new.xyz", tmp_path / "new", tmp_path / "nowhere" / "new.png"):
        with pytest.raises(OutputError, match=r"name a \.png or \.jpg in an existing folder"):
            attention.check_output(bad, overwrite=False)
    folder = tmp_path / "folder.png"
    folder.mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        attention.write_picture(folder, picture)
