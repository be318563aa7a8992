"""Each stage of a run, tried on a few frames that are made for it.

All but the standard library is imported by the trials themselves: it may be what is broken.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from mpsnet_cli.doctor.check import Finding
from mpsnet_cli.doctor.files import default_detector
from mpsnet_cli.doctor.machine import opengl_device
from mpsnet_cli.errors import DeviceError, MpsnetError, WeightsError
from mpsnet_cli.progress import Reporter

if TYPE_CHECKING:
    from mpsnet_cli.model.inference import Model
    from mpsnet_cli.render import Renderer
    from mpsnet_cli.render.scene import Image
    from mpsnet_cli.video import VideoInfo

FRAMES, FPS = 4, Fraction(25)  # frames; Hz
SIZE = (320, 240)  # px, width and height
SAMPLE_RATE = 48_000  # Hz
CLOSE = 12.0  # grey levels, by which a frame may differ on average once it was compressed
CLIP, MOTION = "clip.mkv", "person_01.npz"  # in the temporary folder: what one trial leaves another
DISTANCE = 4.0  # m, from the camera to the body that is drawn
HEIGHTS = (1.2, 2.2)  # m, of a body
DRAWN = (0.02, 0.5)  # share of the pixels that a body covers when it is drawn


def decode(folder: Path) -> Iterator[Finding]:
    """Read a clip with sound, compressed by PyAV, back."""
    from mpsnet_cli.video import probe

    video = probe(_clip(folder))
    _check_frames(video)
    if not video.has_audio:
        raise MpsnetError("the sound is lost")
    yield Finding("decode", f"ok: {FRAMES} frames of MPEG-4 with AAC")


def encode(folder: Path) -> Iterator[Finding]:
    """Write frames with a clip's sound, as an overlay, and read them back."""
    from mpsnet_cli.video import VideoWriter, probe

    report, path = Reporter(), folder / "encoded.mp4"
    with VideoWriter(path, fps=FPS, audio_from=probe(_clip(folder)), report=report) as writer:
        for number, picture in enumerate(_pictures()):
            writer.write(picture, number / float(FPS))
    written = probe(path)
    _check_frames(written)
    if not written.has_audio:
        raise MpsnetError("; ".join(report.warnings) or "the sound is lost")
    yield Finding("encode", f"ok: {FRAMES} frames of H.264 with AAC")


def detect(folder: Path) -> Iterator[Finding]:
    """Look for people in frames without any."""
    from mpsnet_cli.packaged import packaged_file
    from mpsnet_cli.tracking import Detector
    from mpsnet_cli.tracking.detector import STARTER_DETECTOR, quiet_ultralytics

    path = default_detector() or packaged_file(STARTER_DETECTOR)
    if path is None:
        yield Finding("detect", "skipped: no detector is here yet", "skipped")
        return
    with quiet_ultralytics():
        # Imported here first, as the first import writes its settings: not to the user's cache.
        os.environ["YOLO_CONFIG_DIR"] = str(folder)
        import ultralytics.utils  # noqa: F401
    found = Detector(path)
    found.detect(_pictures())
    yield Finding("detect", f"ok: {path.name} on {found.device}")


def network(folder: Path) -> Iterator[Finding]:
    """Take a clip through crops, backbone, temporal encoder, regressor and joints."""
    import numpy as np

    from mpsnet_cli.pipeline import reconstruct
    from mpsnet_cli.tracking import full_frame_track
    from mpsnet_cli.video import probe

    model = _model()
    video = probe(_clip(folder))
    [motion] = reconstruct(video, model, tracks=[full_frame_track(video)])
    for name in ("pose", "transl", "joints3d"):
        if not np.isfinite(getattr(motion, name)).all():
            raise MpsnetError(f"{name} is not a number")
    motion.save(folder / MOTION)
    yield Finding("network", f"ok: {model.weights.name} on {model.device} in {model.precision}")


def body(_: Path) -> Iterator[Finding]:
    """Pose the body that a run takes."""
    import numpy as np

    from mpsnet_cli.body import load_body

    posed = load_body()
    vertices, joints = posed(np.zeros((1, 72)), np.zeros((1, 10)))
    height = float(np.ptp(vertices[0, :, 1]))
    if not (np.isfinite(joints).all() and HEIGHTS[0] < height < HEIGHTS[1]):
        raise MpsnetError(f"{posed.name} is {height:.2f} m tall")
    yield Finding("body", f"ok: {posed.name}, {posed.vertex_count} vertices, {height:.2f} m")


def draw(_: Path) -> Iterator[Finding]:
    """Draw a body on the CPU."""
    from mpsnet_cli.body import load_body
    from mpsnet_cli.render.cpu import CpuRenderer

    _check_drawing(CpuRenderer(load_body().faces))
    yield Finding("draw", "ok: on the CPU")


def draw_with_opengl(_: Path) -> Iterator[Finding]:
    """Draw a body with pyrender; a run does where a GPU answers, and elsewhere if it is told to."""
    from mpsnet_cli.body import load_body
    from mpsnet_cli.render.gl import GlRenderer, is_gpu

    name = "draw, OpenGL"
    try:
        device = opengl_device()
    except DeviceError:
        yield Finding(name, "skipped: there is no OpenGL", "skipped")
        return
    try:
        _check_drawing(GlRenderer(load_body().faces))
    except Exception as error:
        if is_gpu(device):
            raise
        yield Finding(name, f"failed in software, which no run uses unasked: {error!r}", "note")
        return
    yield Finding(name, f"ok: {device}")


def export(folder: Path) -> Iterator[Finding]:
    """Export the motion that the network gave."""
    from mpsnet_cli.body import load_body
    from mpsnet_cli.export.result import read_result
    from mpsnet_cli.export.write import export_result

    path = folder / MOTION
    if not path.exists():
        yield Finding("export", "skipped: the network gave no motion", "skipped")
        return
    exports = export_result(read_result(path), load_body(), ["glb"], report=Reporter())
    for failure in exports.failures.values():
        raise failure
    [file] = exports.files["glb"]
    data = file.read_bytes()
    if data[:4] != b"glTF" or int.from_bytes(data[8:12], "little") != len(data):
        raise MpsnetError(f"{file.name} is no whole glTF file")
    yield Finding("export", "ok: glb")


def _pictures() -> list[Image]:
    """Draw frames: a gradient that moves, which compression hardly changes."""
    import numpy as np

    width, height = SIZE
    across, down = np.meshgrid(np.linspace(0, 200, width), np.linspace(0, 200, height))
    return [
        np.stack([across, down, np.full_like(down, 40 * number)], -1).astype(np.uint8)
        for number in range(FRAMES)
    ]


def _clip(folder: Path) -> Path:
    """Make the clip, with sound, without the ffmpeg program."""
    import av
    import numpy as np

    path = folder / CLIP
    if path.exists():
        return path
    part = path.with_stem("part")
    with av.open(str(part), "w") as container:
        video = container.add_stream("mpeg4", rate=FPS)
        video.width, video.height = SIZE
        video.pix_fmt = "yuv420p"
        video.bit_rate = 4_000_000
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        silence = np.zeros((1, int(SAMPLE_RATE * FRAMES / FPS)), np.float32)
        samples = av.AudioFrame.from_ndarray(silence, "fltp", "mono")
        samples.sample_rate = SAMPLE_RATE
        for picture in _pictures():
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(video.encode())
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
    return part.rename(path)


def _check_frames(video: VideoInfo) -> None:
    import numpy as np

    from mpsnet_cli.video import read_frames

    read = [frame.image for frame in read_frames(video, report=Reporter())]
    if len(read) != FRAMES:
        raise MpsnetError(f"{len(read)} of {FRAMES} frames came back")
    off = np.abs(np.subtract(read, _pictures(), dtype=np.float32)).mean()
    if off > CLOSE:
        raise MpsnetError(f"frames came back in other colours, {off:.0f} grey levels off")


def _model() -> Model:
    """Load the weights that a run takes, or make untrained ones where there are no sound ones."""
    from mpsnet_cli.model.config import MPSNetConfig, WeightsInfo
    from mpsnet_cli.model.inference import Model
    from mpsnet_cli.model.untrained import untrained_network
    from mpsnet_cli.weights import find_weights, load_model, read_info

    try:
        info = read_info(find_weights())
    except WeightsError:  # which the list of files has told
        nothing = WeightsInfo(
            Path("none"), "untrained weights", False, "", MPSNetConfig(), {}, "", ""
        )
        return Model(untrained_network(0), nothing, report=Reporter())
    return load_model(info.path)


def _check_drawing(renderer: Renderer) -> None:
    """Draw a body in front of the camera, and see that it covers a part of the picture."""
    import numpy as np

    from mpsnet_cli.body import load_body
    from mpsnet_cli.render.scene import Camera, Mesh

    vertices, _ = load_body()(np.array([[np.pi] + [0] * 71]), np.zeros((1, 10)))
    width, height = SIZE
    mesh = Mesh(vertices[0] + np.array([0, 0, DISTANCE], np.float32), (200, 60, 60))
    picture = _pictures()[0]
    drawn = renderer.draw(picture, [mesh], Camera(1.5 * height, (width / 2, height / 2)))
    share = float((drawn != picture).any(axis=-1).mean())
    if not DRAWN[0] < share < DRAWN[1]:
        raise MpsnetError(f"the body covers {share:.0%} of the picture")
