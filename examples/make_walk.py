"""Make examples/walk.mp4, its ground truth walk.npz and its boxes walk_boxes.csv.

    python examples/make_walk.py --mocap ../shared/mocap/cmu-subjects-01-02-03.tar.xz

A man walks through a square and greets a woman who gestures; he hides her for a moment. It takes
about five minutes on one core, and gives the same pictures every time.

The data used in this project was obtained from mocap.cs.cmu.edu. The database was created with
funding from NSF EIA-0196217.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from mpsnet_cli.body import BodyModel, load_body
from mpsnet_cli.synth.actor import Performance, perform
from mpsnet_cli.synth.mocap import CAPTURE_RATE, read_takes
from mpsnet_cli.synth.retarget import blend, lengthen, retarget
from mpsnet_cli.synth.scene import Stage, View
from mpsnet_cli.synth.wardrobe import (
    denim,
    dress,
    hair,
    plain,
    shoes,
    skin,
    stripes,
    top,
    trousers,
)

FPS = 30
FRAMES = 6 * FPS
VIEW = View(size=(1280, 720), focal_length=1150.0, height=1.5, pitch=0.06)
SUN = (-0.55, 0.85, 0.6)  # from the left, behind the camera
SOUND_RATE = 44100  # Hz
BITS = {"crf": "19", "preset": "slow"}

WALK, GREETING, GESTURES = "02_01", "02_05", "02_08"
RIGHT_ARM = (14, 17, 19, 21, 23)
GREETS = slice(38, 98)  # frames of the clip
GREETING_FROM = 26  # frame of the take at FPS

MAN_BETAS = (0.8, 1.2, -0.2, 0, 0, 0, 0, 0, 0, 0)
MAN = (
    skin((206, 158, 128), lips=(170, 100, 92), iris=(60, 70, 60), brows=(60, 42, 30)),
    trousers(denim((62, 80, 112)), waist=0.0, cuff=-0.855, loft=0.012),
    top(
        stripes((226, 222, 212), (38, 52, 92), width=0.035),
        sleeve=0.36, hem=-0.085, loft=0.012, neck=0.088,
    ),
    shoes((74, 70, 68)),
    hair((48, 34, 24), length=0.60, loft=0.014),
)  # fmt: skip
WOMAN_BETAS = (-0.7, -1.2, -0.8, 0, 0, 0, 0, 0, 0, 0)
WOMAN = (
    skin((142, 96, 68), lips=(150, 62, 66), iris=(40, 26, 18), brows=(25, 18, 14)),
    trousers(plain((44, 44, 50)), waist=0.0, cuff=-0.85, loft=0.012),
    top(plain((190, 146, 64)), sleeve=0.62, hem=-0.085, loft=0.014, neck=0.09),
    shoes((120, 46, 40)),
    hair((26, 20, 18), length=0.525, loft=0.02),
)


def main() -> None:
    """Read the arguments and make the three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--mocap", type=Path, required=True, help="the CMU takes, a tar")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()

    body = load_body("free-1")
    people = perform_all(arguments.mocap, body)
    motions = [
        person.motion(VIEW, body, track_id=number, fps=FPS)
        for number, person in enumerate(people, start=1)
    ]
    arrays = {
        f"{motion.name}/{key}": value for motion in motions for key, value in vars(motion).items()
    }
    np.savez_compressed(arguments.out / "walk.npz", format="mpsnet-motions/1", **arrays)
    write_boxes(arguments.out / "walk_boxes.csv", people)

    rest, _ = body(np.zeros((1, 72)), np.zeros((1, 10)))
    figures = [dress(rest[0], body.faces, layers) for layers in (MAN, WOMAN)]
    stage = Stage(VIEW, sun=SUN)
    pictures = (
        stage.draw(
            [
                (figure, person.vertices[frame])
                for figure, person in zip(figures, people, strict=True)
            ],
            seed=frame,
        )
        for frame in range(FRAMES)
    )
    write_clip(arguments.out / "walk.mp4", pictures, footsteps(people))


def perform_all(mocap: Path, body: BodyModel) -> list[Performance]:
    """Direct the scene: the man's and the woman's performance."""
    rest_joints = body.rest_joints(np.zeros(10))
    takes = read_takes(mocap, (WALK, GREETING, GESTURES))
    walk, greeting, gestures = (
        retarget(takes[name], rest_joints)[:: CAPTURE_RATE // FPS]
        for name in (WALK, GREETING, GESTURES)
    )
    walk = lengthen(walk, FRAMES, overlap=8)
    count = GREETS.stop - GREETS.start
    weights = np.zeros((count, 24))
    fade = np.clip(np.minimum(np.arange(count), np.arange(count)[::-1]) / 12, 0, 1)
    weights[:, RIGHT_ARM] = (fade**2 * (3 - 2 * fade))[:, None]
    greeting = greeting[GREETING_FROM : GREETING_FROM + count]
    walk[GREETS] = blend(walk[GREETS], greeting, weights)
    return [
        perform(walk, body, MAN_BETAS, view=VIEW, start=(-3.65, -8.1), yaw=np.radians(55)),
        perform(
            gestures[:FRAMES], body, WOMAN_BETAS, view=VIEW, start=(-0.3, -6.8), yaw=np.radians(12)
        ),
    ]


def write_boxes(path: Path, people: Sequence[Performance]) -> None:
    """Write the tight boxes as MOT-challenge rows: frames and ids count from 1."""
    boxes = [person.boxes(VIEW) for person in people]
    with path.open("w") as file:
        for frame in range(FRAMES):
            for number, person in enumerate(boxes, start=1):
                left, top_edge, right, bottom = person[frame]
                size = f"{right - left:.1f},{bottom - top_edge:.1f}"
                file.write(f"{frame + 1},{number},{left:.1f},{top_edge:.1f},{size},1,-1,-1,-1\n")


def footsteps(people: Sequence[Performance]) -> NDArray[np.float32]:
    """Synthesise the sound (2, samples), ±1: a step where a foot comes down, and a quiet square."""
    rng = np.random.default_rng(0)
    length = FRAMES * SOUND_RATE // FPS
    air = lfilter([0.02], [1, -0.98], rng.standard_normal((2, length)))
    sound = 0.012 * air / air.std()
    seconds = np.arange(int(0.16 * SOUND_RATE)) / SOUND_RATE
    for person in people:
        for frame, (x, _, z) in steps(person):
            noise = lfilter([0.12], [1, -0.88], rng.standard_normal(len(seconds)))
            thud = np.sin(2 * np.pi * 85 * seconds) * np.exp(-seconds / 0.025)
            step = 0.5 * thud + 0.9 * noise * np.exp(-seconds / rng.uniform(0.016, 0.028))
            right = np.clip(0.5 + x / 6, 0.1, 0.9)
            start = frame * SOUND_RATE // FPS
            end = min(start + len(step), length)
            loud = 1.6 / np.hypot(x, z)
            sound[:, start:end] += loud * np.outer((1 - right, right), step[: end - start])
    return np.clip(sound, -1, 1).astype(np.float32)


def steps(person: Performance) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Find where and when a foot comes down: low and, unlike when it swings through, slow."""
    for foot in person.soles.swapaxes(0, 1):
        speed = np.linalg.norm(np.diff(foot, axis=0), axis=1) * FPS
        down = (foot[1:, 1] < 0.015) & (speed < 0.8)
        last = -FRAMES
        for frame in (np.flatnonzero(down[1:] & ~down[:-1]) + 2).tolist():
            if frame - last > 0.7 * FPS:  # not again as it rolls off
                yield frame, foot[frame]
                last = frame


def write_clip(
    path: Path, pictures: Iterable[NDArray[np.uint8]], sound: NDArray[np.float32]
) -> None:
    """Encode RGB pictures and stereo sound (2, samples) as h264 and aac."""
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        video = container.add_stream("libx264", rate=FPS, options=BITS)
        video.width, video.height, video.pix_fmt = *VIEW.size, "yuv420p"
        video.thread_count = 1  # the same file on every machine
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        audio.bit_rate = 96_000
        samples = SOUND_RATE // FPS
        for index, picture in enumerate(pictures):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            part = np.ascontiguousarray(sound[:, index * samples : (index + 1) * samples])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = SOUND_RATE, index * samples
            container.mux(audio.encode(frame))
        container.mux(video.encode())
        container.mux(audio.encode())


if __name__ == "__main__":
    main()
