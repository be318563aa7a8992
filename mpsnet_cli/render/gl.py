"""Drawing with pyrender through EGL, for GPUs that answer to OpenGL without a display.

The usual way, a new pyrender mesh and scene for every frame, spends its time on buffers. Here each
person has a buffer that is refilled in place, and only the people's pixels are drawn and read.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.errors import DeviceError
from mpsnet_cli.render.scene import NEAR, Box, Camera, Image, Mesh, occlusion_groups
from mpsnet_cli.render.shading import Shader

SOFTWARE = ("llvmpipe", "softpipe", "swrast")  # Mesa's rasterisers, as GL_RENDERER names them
GPU_NODES = ("nvidia[0-9]*", "dri/renderD*", "dxg")  # in /dev
PROBE_TIMEOUT = 60  # s
VIEWPORT_STEP = 128  # px; a viewport of a new size costs new framebuffers
CAMERA_POSE = np.diag([1.0, -1.0, -1.0, 1.0])  # GL's axes: y up, z backward


class GlRenderer:
    """Renderer on pyrender's OpenGL rasteriser, 4x multisampled."""

    threads = 1  # an OpenGL context serves one thread at a time

    def __init__(self, faces: NDArray[np.int32]) -> None:
        self._pyrender = _import_pyrender()
        self._faces = faces
        self._shader = Shader(faces)
        self._scene = self._pyrender.Scene(bg_color=(0, 0, 0, 0))
        self._camera = self._pyrender.IntrinsicsCamera(1, 1, 0, 0)
        self._scene.add(self._camera, pose=CAMERA_POSE)
        self._people: list = []  # of pyrender.Mesh: as many as were ever drawn at once
        self._target = self._pyrender.OffscreenRenderer(VIEWPORT_STEP, VIEWPORT_STEP)
        self._release()

    def draw(self, image: Image, meshes: Sequence[Mesh], camera: Camera) -> Image:
        """Return a copy of `image` with `meshes` drawn over it."""
        drawn = image.copy()
        height, width = image.shape[:2]
        for box, group in occlusion_groups(meshes, camera, (width, height)):
            self._draw_group(drawn[box.slices], box, group, camera)
        return drawn

    def _draw_group(self, image: Image, box: Box, group: list[Mesh], camera: Camera) -> None:
        width, height = box.size
        target = self._target
        target.viewport_width = max(target.viewport_width, _round_up(width))
        target.viewport_height = max(target.viewport_height, _round_up(height))
        depths = [mesh.vertices[:, 2] for mesh in group]
        self._camera.fx = self._camera.fy = camera.focal_length
        self._camera.cx = camera.principal_point[0] - box.left
        self._camera.cy = camera.principal_point[1] - box.top
        self._camera.znear = max(NEAR, 0.9 * min(float(depth.min()) for depth in depths))
        self._camera.zfar = 1.1 * max(float(depth.max()) for depth in depths)
        target._platform.make_current()
        try:
            self._fill_buffers(group)
            flags = self._pyrender.RenderFlags
            rgba, _ = target.render(self._scene, flags.FLAT | flags.RGBA)
        finally:
            self._release()
        # Multisampled edges come back mixed with the black background: premultiplied.
        pixels = rgba[:height, :width].astype(np.float32)
        image[:] = image * (1 - pixels[..., 3:] / 255) + pixels[..., :3] + 0.5

    def _fill_buffers(self, group: list[Mesh]) -> None:
        """Give each person of the group a mesh in the scene, and hide the others."""
        from OpenGL import GL

        for number, mesh in enumerate(group):
            rgba = np.ones((len(mesh.vertices), 4), np.float32)
            rgba[:, :3] = self._shader.colours(mesh.vertices, mesh.colour)
            if number < len(self._people):
                data = np.hstack([mesh.vertices, rgba])
                GL.glBindBuffer(GL.GL_ARRAY_BUFFER, self._people[number].primitives[0]._buffers[0])
                GL.glBufferSubData(GL.GL_ARRAY_BUFFER, 0, data.nbytes, data)
            else:
                primitive = self._pyrender.Primitive(
                    mesh.vertices, color_0=rgba, indices=self._faces, mode=GL.GL_TRIANGLES
                )
                self._people.append(self._pyrender.Mesh([primitive]))
                self._scene.add(self._people[-1])
        for number, person in enumerate(self._people):
            person.is_visible = number < len(group)

    def _release(self) -> None:
        """Let go of the context, so that another thread may take it."""
        from OpenGL import EGL

        platform = self._target._platform
        EGL.eglMakeCurrent(
            platform._egl_display, EGL.EGL_NO_SURFACE, EGL.EGL_NO_SURFACE, EGL.EGL_NO_CONTEXT
        )


def find_device() -> str:
    """Ask OpenGL, through EGL, for the name of the device that it draws on.

    It is asked in another process, since a broken driver may crash. Raises DeviceError if nothing
    answers.
    """
    command = [sys.executable, "-c", f"import {__name__} as gl; print(gl._device_name())"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT)
        if answer.returncode == 0:
            return answer.stdout.strip()
        reason = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        reason = f"no answer within {PROBE_TIMEOUT} s"
    raise DeviceError(
        f"pyrender needs OpenGL through EGL, which does not work here ({reason}): "
        "use --renderer cpu."
    )


def is_gpu(device: str) -> bool:
    """Tell a GPU from Mesa's software, by the name that `find_device` gives."""
    return not any(name in device.lower() for name in SOFTWARE)


def gpu_answers() -> bool:
    """Tell whether a GPU draws for OpenGL here; where no GPU is plugged in, without asking."""
    if not any(any(Path("/dev").glob(node)) for node in GPU_NODES):
        return False
    try:
        return is_gpu(find_device())
    except DeviceError:
        return False


def _device_name() -> str:
    target = _import_pyrender().OffscreenRenderer(1, 1)
    from OpenGL import GL

    name = GL.glGetString(GL.GL_RENDERER).decode()
    target.delete()
    return name


def _import_pyrender() -> ModuleType:
    """Import pyrender for EGL, without its viewer, which needs a display and pyglet."""
    os.environ.setdefault("PYOPENGL_PLATFORM", "egl")
    viewer = ModuleType("pyrender.viewer")
    viewer.Viewer = None  # type: ignore[attr-defined]
    sys.modules.setdefault("pyrender.viewer", viewer)
    import pyrender

    return pyrender


def _round_up(pixels: int) -> int:
    return -(-pixels // VIEWPORT_STEP) * VIEWPORT_STEP
