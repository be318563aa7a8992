"""Drawing people over images: one protocol, a renderer that always works and one for GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.progress import Reporter
from mpsnet_cli.render.scene import Camera, Image, Mesh

RendererName = Literal["auto", "cpu", "pyrender"]


class Renderer(Protocol):
    """Draws people of one mesh topology."""

    @property
    def threads(self) -> int:
        """How many threads may usefully call `draw` at the same time."""

    def draw(self, image: Image, meshes: Sequence[Mesh], camera: Camera) -> Image:
        """Return a copy of `image` with `meshes` drawn over it.

        Nearer surfaces hide farther ones and edges are anti-aliased. People may reach out of the
        image and behind the camera.
        """


def make_renderer(name: RendererName, faces: NDArray[np.int32], *, report: Reporter) -> Renderer:
    """Make the renderer called `name` for meshes with these `faces` (F, 3).

    "auto" is pyrender where a GPU answers to OpenGL, and cpu elsewhere. Raises DeviceError if
    "pyrender" is asked for and no OpenGL answers.
    """
    from mpsnet_cli.render import gl
    from mpsnet_cli.render.cpu import CpuRenderer

    if name == "cpu" or (name == "auto" and not gl.gpu_answers()):
        return CpuRenderer(faces)
    if name == "pyrender" and not gl.is_gpu(device := gl.find_device()):
        report.warn(f"OpenGL draws in software here ({device}): --renderer cpu is faster.")
    return gl.GlRenderer(faces)
