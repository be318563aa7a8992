"""Pictures of what the temporal encoder does: the paper's Figures 2 and 8 for one's own images."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from mpsnet_cli.body import BodyModel
from mpsnet_cli.crops import crop_image, square_boxes
from mpsnet_cli.errors import InputError, OutputError, WeightsError
from mpsnet_cli.geometry import default_focal_length, matrix_to_axis_angle, weak_to_perspective
from mpsnet_cli.model.inference import Model
from mpsnet_cli.motion import BETAS, JOINTS, Track
from mpsnet_cli.progress import Reporter
from mpsnet_cli.render import Renderer
from mpsnet_cli.render.labels import make_pill
from mpsnet_cli.render.overlay import ALARM, BACKDROP, SLATE, person_colour
from mpsnet_cli.render.scene import Camera, Colour, Image, Mesh
from mpsnet_cli.tracking import choose_people, locate_people
from mpsnet_cli.video import VideoInfo, probe, read_frames
from mpsnet_cli.weights import refuse_existing
from mpsnet_cli.windows import TARGET, WINDOW, window_indices

HOLD = 16  # frames that each of two stills is shown for, as long as a window
AROUND = range(HOLD - TARGET, HOLD + TARGET + 1)  # frames whose windows see both, and one each side

MARGIN = 24  # px, as all that follow
TITLE, TEXT = 24, 17  # heights of text
CELL = 48  # side of one value of a map and of the crop beside it
GAP = 6  # between a map and its crops
NUMBER = 44  # space for a frame's number
BAR = 18  # height of a colour bar
BODY = 160  # side of the square that a body is drawn in
CURVE = 260  # height of the curve
BLUE, RED = 22, 240  # within cv2.COLORMAP_TURBO, whose ends are nearly black
FAINT: Colour = (222, 225, 230)

CAMERA = Camera(default_focal_length((BODY, BODY)), (BODY / 2, BODY / 2))  # of a body's square


@dataclass(frozen=True)
class AttendedWindow:
    """Which of its 16 frames each frame of one window attends to."""

    person: int  # track id
    frames: NDArray[np.int64]  # (16,) source frame indices; the ends of a track repeat
    crops: NDArray[np.uint8]  # (16, S, S, 3) RGB
    maps: dict[str, NDArray[np.float32]]  # (16, 16) by name; rows attend to columns, and sum to 1


@dataclass(frozen=True)
class Transition:
    """How a body goes from the pose of one still to that of another, around the change.

    Joints are relative to the pelvis, and bodies have the mean shape: only the pose is compared.
    """

    crops: NDArray[np.uint8]  # (2, S, S, 3) RGB
    frames: NDArray[np.int64]  # (N,) indices of frames; the second still begins at HOLD
    vertices: NDArray[np.float32]  # (N, V, 3) m, camera frame of a square picture of BODY px
    steps: NDArray[np.float64]  # (N - 1,) mm that the joints move between frames, on average
    distance: float  # mm, on average, between the joints of the two poses


def choose_track(
    video: VideoInfo,
    model: Model,
    *,
    boxes: str | None,
    detector: str | None = None,
    person: int | None,
    report: Reporter,
) -> Track:
    """Find one person in a clip: `person`, or the most prominent one.

    See `locate_people` for `boxes` and `detector`. Raises InputError where there is no such person.
    """
    tracks = locate_people(
        video,
        boxes=boxes,
        detector=detector,
        device=model.device,
        precision=model.precision,
        report=report,
    )
    if not tracks:
        raise InputError(f"Nobody was found in {video.path}: give a person's boxes.")
    return choose_people(tracks, max_people=1, people=() if person is None else (person,))[0]


def open_clip(path: Path) -> VideoInfo:
    """Probe a clip. Raises InputError, also for a single picture."""
    try:
        return probe(path)
    except InputError as error:
        if path.is_file() and cv2.haveImageReader(str(path)):
            raise InputError(f"{path} is one picture: give a clip, or two pictures.") from error
        raise


def attend(
    video: VideoInfo, track: Track, model: Model, *, frame: int | None = None, report: Reporter
) -> AttendedWindow:
    """Look at the window of one frame of a track, or of its middle one.

    Raises InputError if the person is not in that frame, or a frame of the window is damaged.
    """
    frame = int(track.frames[len(track) // 2]) if frame is None else frame
    row = int(np.searchsorted(track.frames, frame))
    if row == len(track) or track.frames[row] != frame:
        raise InputError(
            f"Person {track.id} is not in frame {frame} of {video.path}: "
            f"choose one from {track.frames[0]} to {track.frames[-1]}."
        )
    rows, places = np.unique(window_indices(track.frames)[row], return_inverse=True)
    track = track.select(rows)
    crops = _read_crops(video, track, model, report)
    features = model.features(crops)[places]
    return AttendedWindow(track.id, track.frames[places], crops[places], _maps(features, model))


def read_still(path: Path) -> Image:
    """Read a picture, upright as its EXIF says. Raises InputError for a file that is none."""
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if len(data) else None
    if image is None:
        raise InputError(f"{path} is not a picture: give one clip, or two JPEG or PNG files.")
    return np.asarray(image, np.uint8)


def crop_stills(
    stills: Sequence[Image], model: Model, *, boxes: str | None, person: int | None
) -> NDArray[np.uint8]:
    """Cut one person out of two pictures: crops (2, S, S, 3).

    `boxes` is a file in which the pictures are the frames 1 and 2 of a clip (see `read_boxes`);
    with None or "full" the person fills them. Raises InputError for a person who is not in both.
    """
    sizes = np.array([still.shape[1::-1] for still in stills])
    corners = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
    if boxes not in (None, "full"):
        width, height = sizes.max(axis=0)
        pair = VideoInfo(
            Path("the pictures"), int(width), int(height), fps=Fraction(1), frame_count=2,
            rotation=0, has_audio=False, is_vfr=False, duration=2.0,
        )  # fmt: skip
        track = choose_track(pair, model, boxes=boxes, person=person, report=Reporter())
        if len(track) < len(stills):
            raise InputError(f"{boxes} has no box of person {track.id} in one of the pictures.")
        corners = track.boxes
    squares = square_boxes(corners, scale=model.config.crop_scale)
    size, antialias = model.config.crop_size, model.config.antialias
    return np.stack([
        crop_image(still, square, size=size, antialias=antialias)
        for still, square in zip(stills, squares, strict=True)
    ])  # fmt: skip


def cross(crops: NDArray[np.uint8], model: Model, body: BodyModel) -> Transition:
    """Show the network one crop of two (2, S, S, 3) again and again, then the other (Figure 8)."""
    shown = np.repeat([0, 1], HOLD)
    windows = window_indices(np.arange(2 * HOLD))
    frames = np.array(AROUND)
    prediction = model.predict(model.features(crops), shown[windows[frames]])
    rotmats, _, cam = (_checked(values, model) for values in prediction)
    pose = matrix_to_axis_angle(rotmats).reshape(len(frames), 3 * JOINTS)
    vertices, joints = body(pose, np.zeros((len(frames), BETAS)))
    joints = joints - joints[:, :1]
    square = np.tile([BODY / 2, BODY / 2, BODY, BODY], (len(frames), 1))
    transl = weak_to_perspective(
        cam, square, focal_length=CAMERA.focal_length, principal_point=CAMERA.principal_point
    )
    return Transition(
        crops,
        frames,
        (vertices + transl[:, None]).astype(np.float32),
        steps=_distance(joints[1:], joints[:-1]),
        distance=float(_distance(joints[-1:], joints[:1])[0]),
    )


def draw_attention(window: AttendedWindow, *, title: str, trained: bool) -> Image:
    """Draw the maps of a window, its crops along both axes of each (Figure 2)."""
    side, crops = WINDOW * CELL, CELL + GAP
    left, top = MARGIN + NUMBER + crops, MARGIN + 3 * TITLE + NUMBER + crops
    pitch = side + MARGIN + crops
    width = left + pitch * len(window.maps) - crops
    sheet = _sheet(top + side + MARGIN + BAR + 3 * TEXT + MARGIN, width, title, trained=trained)
    thumbs = [_shrunk(crop, CELL) for crop in window.crops]
    for step, frame in enumerate(window.frames):
        _write(sheet, str(frame), left - crops - GAP, top + (step + 0.5) * CELL, anchor=1.0,
               colour=_ink(step))  # fmt: skip
    for count, (name, values) in enumerate(window.maps.items()):
        x = left + count * pitch
        _write(sheet, name, x, top - crops - NUMBER, height=TITLE)
        for step, (frame, thumb) in enumerate(zip(window.frames, thumbs, strict=True)):
            at = step * CELL
            _put(sheet, thumb, x - crops, top + at)
            _put(sheet, thumb, x + at, top - crops)
            _write(sheet, str(frame), x + at + CELL / 2, top - crops - TEXT, anchor=0.5,
                   colour=_ink(step))  # fmt: skip
        for corner in ((x - crops, top + TARGET * CELL), (x + TARGET * CELL, top - crops)):
            cv2.rectangle(sheet, (*corner, CELL, CELL), ALARM, 2)
        low, high = float(values.min()), float(values.max())
        cells = _blue_to_red((values - low) / max(high - low, np.finfo(np.float32).tiny))
        _put(sheet, np.kron(cells, np.ones((CELL, CELL, 1), np.uint8)), x, top)
        bar = top + side + MARGIN
        _put(sheet, _blue_to_red(np.tile(np.linspace(0, 1, side), (BAR, 1))), x, bar)
        _write(sheet, f"{low:.3g}", x, bar + BAR + TEXT)
        _write(sheet, f"{high:.3g}", x + side, bar + BAR + TEXT, anchor=1.0)
    _write(sheet, "rows attend to columns; red frame: the target", left, sheet.shape[0] - MARGIN)
    return sheet


def draw_transition(
    transition: Transition, renderer: Renderer, *, title: str, trained: bool
) -> Image:
    """Draw the bodies around the change and how fast their joints move (Figure 8)."""
    left, top = MARGIN + NUMBER, 2 * MARGIN + TITLE
    bodies = top + BODY + GAP
    curve = bodies + BODY + 2 * TEXT + MARGIN
    width = left + BODY * len(transition.frames) + MARGIN
    sheet = _sheet(curve + CURVE + 2 * MARGIN + TEXT, width, title, trained=trained)
    stills = [_shrunk(crop, BODY) for crop in transition.crops]
    backdrop = np.full((BODY, BODY, 3), BACKDROP[0], np.uint8)
    for place, frame in enumerate(transition.frames):
        x = left + place * BODY
        _put(sheet, stills[int(frame >= HOLD)], x, top)
        mesh = Mesh(transition.vertices[place], person_colour(1))
        _put(sheet, renderer.draw(backdrop, [mesh], CAMERA), x, bodies)
        _write(sheet, str(frame), x + BODY / 2, bodies + BODY + TEXT, anchor=0.5)
    change = left + BODY * int(np.searchsorted(transition.frames, HOLD))
    cv2.line(sheet, (change, top), (change, curve + CURVE), SLATE, 1)
    _draw_steps(sheet, transition, left, curve)
    return sheet


def describe(transition: Transition) -> str:
    """Say in one line how sudden the change is."""
    fastest = int(transition.steps.argmax())
    return (
        f"the poses are {transition.distance:.1f} mm apart; the joints move "
        f"{transition.steps[fastest]:.1f} mm in the fastest step, from frame "
        f"{transition.frames[fastest]} to {transition.frames[fastest + 1]}"
    )


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError for a path that cannot take a picture, before any work is done for it."""
    refuse_existing(path, overwrite=overwrite)
    if not path.parent.is_dir() or not cv2.haveImageWriter(str(path)):
        raise OutputError(f"{path} cannot be written: name a .png or .jpg in an existing folder.")


def write_picture(path: Path, picture: Image) -> None:
    """Write a PNG or JPEG file. Raises OutputError where that fails."""
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.") from error


def _read_crops(
    video: VideoInfo, track: Track, model: Model, report: Reporter
) -> NDArray[np.uint8]:
    """Read the crops (N, S, S, 3) of all frames of a short track."""
    squares = square_boxes(track.boxes, scale=model.config.crop_scale)
    wanted = dict(zip(track.frames.tolist(), squares, strict=True))
    first, last = min(track.frames[0], len(video.times) - 1), track.frames[-1]
    start = float(video.times[first] - video.times[0])
    crops = []
    with closing(read_frames(video, start=start, report=report)) as frames:
        for frame in frames:
            if frame.index in wanted:
                square = wanted.pop(frame.index)
                config = model.config
                crops.append(
                    crop_image(
                        frame.image, square, size=config.crop_size, antialias=config.antialias
                    )
                )
            if frame.index >= last:
                break
    if wanted:
        raise InputError(f"Frame {min(wanted)} of {video.path} is damaged: choose another --frame.")
    return np.stack(crops)


@torch.inference_mode()
def _maps(features: torch.Tensor, model: Model) -> dict[str, NDArray[np.float32]]:
    moca = model.network.encoder.moca
    nssm, attention, final = moca.maps(moca.project(features[None].to(model.device)))
    named = {"NSSM": nssm, "attention map": attention}
    if moca.rho is not None:
        named["MoCA map"] = final
    return {name: _checked(values[0], model) for name, values in named.items()}


def _checked(values: torch.Tensor, model: Model) -> NDArray[np.float32]:
    if not values.isfinite().all():
        raise WeightsError(
            f"The weights {model.weights.path} give values that are not numbers: they are damaged, "
            "or too large for this precision (try --precision fp32)."
        )
    return values.cpu().numpy()


def _distance(joints: NDArray[np.floating], others: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return mean distances (N,), mm, between joints (N, 24, 3), m."""
    return 1000 * np.linalg.norm(joints.astype(np.float64) - others, axis=-1).mean(axis=-1)


def _draw_steps(sheet: Image, transition: Transition, left: int, top: int) -> None:
    """Draw the curve of the joints' steps, each between its two frames' bodies."""
    highest = max(transition.distance, float(transition.steps.max()), 1e-3)
    spacing = _round_spacing(highest / 4)
    right, bottom = left + BODY * len(transition.frames), top + CURVE

    def height_of(value: float) -> float:
        return bottom - CURVE * value / (1.1 * highest)

    for value in np.arange(0, 1.1 * highest, spacing):
        y = round(height_of(value))
        cv2.line(sheet, (left, y), (right, y), FAINT, 1)
        _write(sheet, f"{value:g}", left - GAP, y, anchor=1.0)
    between = left + BODY * np.arange(1, len(transition.frames))
    alone = np.where(transition.frames[1:] == HOLD, transition.distance, 0)
    for values, colour, thickness in ((alone, ALARM, 1), (transition.steps, SLATE, 3)):
        points = np.column_stack([between, [height_of(value) for value in values]])
        line = np.rint(points * 16).astype(np.int32)
        cv2.polylines(sheet, [line], False, colour, thickness, cv2.LINE_AA, shift=4)
    legend = bottom + MARGIN + TEXT
    _write(sheet, "mean motion of the joints between two frames, mm", left, legend)
    _write(sheet, "if every frame had the pose of its own picture", right, legend, anchor=1.0,
           colour=ALARM)  # fmt: skip


def _round_spacing(spacing: float) -> float:
    """Round up to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(spacing))
    return float(power * next(digit for digit in (1, 2, 5, 10) if digit * power >= spacing))


def _blue_to_red(values: NDArray[np.floating]) -> Image:
    """Colour values (h, w), 0..1."""
    grey = np.rint(BLUE + (RED - BLUE) * values).astype(np.uint8)
    return cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)


def _ink(step: int) -> Colour:
    return ALARM if step == TARGET else SLATE


def _shrunk(crop: Image, side: int) -> Image:
    return np.asarray(cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def _sheet(height: int, width: int, title: str, *, trained: bool) -> Image:
    """Begin a picture: white, titled, and marked where the weights are untrained."""
    sheet = np.full((height, width, 3), 255, np.uint8)
    _write(sheet, title, MARGIN, MARGIN + TITLE / 2, height=TITLE)
    if not trained:
        pill = make_pill("UNTRAINED WEIGHTS", TITLE, ALARM)
        pill.paste(sheet, width - pill.width - MARGIN, MARGIN / 2)
    return sheet


def _put(sheet: Image, picture: Image, x: int, y: int) -> None:
    sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture


def _write(
    sheet: Image,
    text: str,
    x: float,
    middle: float,
    *,
    height: int = TEXT,
    anchor: float = 0.0,
    colour: Colour = SLATE,
) -> None:
    """Write text around the line y = `middle`; `anchor` 0, 0.5, 1: from, around, up to `x`."""
    font = cv2.FontFace()
    advance = cv2.getTextSize((0, 0), text, (0, 0), font, height, 400)[2]
    origin = round(x - anchor * advance), round(middle + 0.35 * height)
    cv2.putText(sheet, text, origin, colour, font, height, 400)
