"""The overlay video: every frame of the clip, with the people that were found drawn over it."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.body import BodyModel
from mpsnet_cli.colours import person_colour
from mpsnet_cli.geometry import project
from mpsnet_cli.motion import Motion
from mpsnet_cli.posing import camera_vertices
from mpsnet_cli.progress import Reporter
from mpsnet_cli.render import Renderer
from mpsnet_cli.render.labels import make_pill
from mpsnet_cli.render.scene import NEAR, Camera, Colour, Image, Mesh, visible_box
from mpsnet_cli.video import Frame, VideoInfo, VideoWriter, read_frames

View = Literal["overlay", "side", "plain", "all"]

PELVIS, HEAD = 0, 15  # SMPL joints; the head's is at the base of the skull
CROWN, TEMPLE = 0.23, 0.17  # m from the head joint to a little above, and beside, the head
TEXT = 0.16  # m, height of an id's text next to the person, but
TEXT_MIN = 11  # px at least, and
TEXT_LINES = 26  # so many lines to the picture at least
BACKDROP = ((247, 248, 250), (212, 216, 222))  # RGB at the top and the bottom
SLATE: Colour = (52, 56, 64)
ALARM: Colour = (205, 52, 36)


@dataclass(frozen=True)
class Figure:
    """One person in one frame."""

    frame: int  # source frame index
    person: int  # track id
    vertices: NDArray[np.float32]  # (V, 3) m, camera frame
    pelvis: NDArray[np.float32]  # (3,) m
    head: NDArray[np.float32]  # (3,) m
    interpolated: bool  # True where the person's box was filled in

    def turned(self) -> Figure:
        """Turn the person by 90° about the camera's vertical through the pelvis.

        Who faces the camera then looks to the right of the picture.
        """

        def turn(points: NDArray[np.float32]) -> NDArray[np.float32]:
            offset = points - self.pelvis
            return np.stack([-offset[..., 2], offset[..., 1], offset[..., 0]], -1) + self.pelvis

        return replace(self, vertices=turn(self.vertices), head=turn(self.head))


def write_overlay(
    path: Path,
    video: VideoInfo,
    motions: Sequence[Motion],
    body: BodyModel,
    renderer: Renderer,
    *,
    view: View = "overlay",
    start: float | None = None,
    end: float | None = None,
    report: Reporter,
) -> None:
    """Draw `motions` over their clip: every frame of the range, at its time, with its sound.

    "overlay" draws the people over the frames; "plain" draws them from the same camera on a plain
    backdrop; "side" turns each of them by 90° there, to show the depth that the camera does not
    see; "all" puts the frame and these three into one picture of twice the width and height.
    Raises OutputError if the video cannot be written, InputError if the clip cannot be read.
    """
    draw = partial(
        draw_frame,
        renderer=renderer,
        camera=_camera(motions),
        view=view,
        untrained=not all(motion.trained for motion in motions),
    )
    with (
        report.stage("overlay", total=len(video.frame_range(start, end))) as advance,
        closing(read_frames(video, start=start, end=end, report=report)) as frames,
        VideoWriter(
            path, fps=None if video.is_vfr else video.fps, audio_from=video, report=report
        ) as writer,
        ThreadPoolExecutor(renderer.threads) as pool,
    ):
        # Others decode, draw and encode while this thread poses and passes on.
        drawn: deque[tuple[float, Future[Image]]] = deque()

        def write_oldest() -> None:
            time, picture = drawn.popleft()
            writer.write(picture.result(), time)
            advance(1)

        for frame, figures in _with_figures(frames, motions, body):
            drawn.append((frame.time, pool.submit(draw, frame.image, figures)))
            if len(drawn) > 2 * renderer.threads:
                write_oldest()
        while drawn:
            write_oldest()


def draw_frame(
    image: Image,
    figures: Sequence[Figure],
    *,
    renderer: Renderer,
    camera: Camera,
    view: View = "overlay",
    untrained: bool = False,
) -> Image:
    """Draw one picture of the video: see `write_overlay`."""
    people = sorted(figures, key=lambda figure: -figure.head[2])  # nearer labels over farther ones
    panel = partial(_draw_panel, camera=camera, renderer=renderer)
    panels: dict[str, Callable[[], Image]] = {
        "input": image.copy,
        "overlay": lambda: panel(image, people),
        "plain": lambda: panel(_backdrop(*image.shape[:2]), people),
        "side": lambda: panel(_backdrop(*image.shape[:2]), [who.turned() for who in people]),
    }
    if view == "all":
        quarters = [_captioned(make(), name) for name, make in panels.items()]
        picture = np.vstack([np.hstack(quarters[:2]), np.hstack(quarters[2:])])
    else:
        picture = panels[view]()
    if untrained:
        pill = make_pill("UNTRAINED WEIGHTS", _line(image), ALARM)
        pill.paste(picture, 0.4 * pill.height, picture.shape[0] - 1.4 * pill.height)
    return picture


def _camera(motions: Sequence[Motion]) -> Camera:
    """Take the camera that the motions of a clip share; without people any will do."""
    if not motions:
        return Camera(1, (0, 0))
    x, y = motions[0].principal_point
    return Camera(motions[0].focal_length, (float(x), float(y)))


def _with_figures(
    frames: Iterable[Frame], motions: Sequence[Motion], body: BodyModel
) -> Iterator[tuple[Frame, list[Figure]]]:
    """Pair every frame with the people in it; bodies are posed a few frames ahead, not all."""
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        return
    cast = heapq.merge(
        *(_figures(motion, body, first.index) for motion in motions),
        key=lambda figure: figure.frame,
    )
    coming = next(cast, None)
    for frame in chain([first], frames):
        figures = []
        while coming is not None and coming.frame <= frame.index:
            if coming.frame == frame.index:
                figures.append(coming)
            coming = next(cast, None)
        yield frame, figures


def _figures(motion: Motion, body: BodyModel, first_frame: int) -> Iterator[Figure]:
    rows = np.flatnonzero(motion.frame_ids >= first_frame)
    joints = motion.joints3d + motion.transl[:, None]
    for row, vertices in zip(rows, camera_vertices(motion, body, rows), strict=True):
        yield Figure(
            frame=int(motion.frame_ids[row]),
            person=motion.track_id,
            vertices=vertices,
            pelvis=joints[row, PELVIS],
            head=joints[row, HEAD],
            interpolated=bool(motion.interpolated[row]),
        )


def _draw_panel(
    background: Image, figures: Sequence[Figure], *, camera: Camera, renderer: Renderer
) -> Image:
    """Draw people and their ids over a background."""
    meshes = [Mesh(figure.vertices, person_colour(figure.person)) for figure in figures]
    image = renderer.draw(background, meshes, camera)
    for figure in figures:
        _label(image, figure, camera)
    return image


def _label(image: Image, figure: Figure, camera: Camera) -> None:
    """Write the person's id above the head, or beside it where the picture ends there.

    The label of a person whose box was filled in is faint.
    """
    height, width = image.shape[:2]
    if figure.head[2] <= NEAR or visible_box(figure.vertices, camera, (width, height)) is None:
        return
    x, y = project(
        figure.head, focal_length=camera.focal_length, principal_point=camera.principal_point
    )
    metre = camera.focal_length / float(figure.head[2])  # px
    text_height = max(TEXT_MIN, min(round(TEXT * metre), _line(image)))
    red, green, blue = (round(0.55 * channel) for channel in person_colour(figure.person))
    pill = make_pill(str(figure.person), text_height, (red, green, blue))
    left, top = x - pill.width / 2, y - CROWN * metre - pill.height
    if top < 0:
        top = max(y - TEMPLE * metre, 0)
        right = x + TEMPLE * metre
        left = right if right + pill.width <= width else x - TEMPLE * metre - pill.width
    pill.paste(image, left, top, opacity=0.5 if figure.interpolated else 1.0)


def _captioned(image: Image, caption: str) -> Image:
    pill = make_pill(caption, _line(image), SLATE)
    margin = 0.4 * pill.height
    pill.paste(image, margin, margin, opacity=0.8)
    return image


def _line(image: Image) -> int:
    """Height of a line of text, px, that reads well at the picture's size."""
    return max(TEXT_MIN, round(image.shape[0] / TEXT_LINES))


@lru_cache(maxsize=1)
def _backdrop(height: int, width: int) -> Image:
    top, bottom = np.array(BACKDROP, np.float64)
    down = np.linspace(0, 1, height)[:, None]
    rows = np.rint(top + (bottom - top) * down).astype(np.uint8)
    return np.repeat(rows[:, None], width, axis=1)
