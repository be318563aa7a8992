"""Labelled pictures of people that never were: sample k of a seed is the same whoever asks.

Two steps. `draw` throws all dice, in numpy (staging.py). `render` poses, rasterises, lights and
develops in batches of torch operations, on any device. Devices agree but for rounding; on one CPU
thread not even that depends on what a picture is made together with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.geometry import before_rays, ray_rotations
from mpsnet_cli.synth.backdrop import paint_backdrop
from mpsnet_cli.synth.film import develop
from mpsnet_cli.synth.gbuffer import Rasteriser, rasterise
from mpsnet_cli.synth.lighting import Shadows
from mpsnet_cli.synth.records import stack
from mpsnet_cli.synth.repertoire import Split, load_repertoire
from mpsnet_cli.synth.staging import Label, Person, Scene, Staging
from mpsnet_cli.synth.studio import Studio

Floats = NDArray[np.float32]

PIXELS_AT_ONCE = 4 * 224 * 224  # on a CPU, as its caches like it


@dataclass(frozen=True)
class CropBatch:
    """n pictures of S × S with their labels."""

    images: NDArray[np.uint8]  # (n, S, S, 3) RGB
    masks: NDArray[np.bool_]  # (n, S, S) where the person is seen
    pose: Floats  # (n, 72) axis-angle, rad, the root's in the camera frame
    betas: Floats  # (n, 10)
    cam: Floats  # (n, 3) s, tx, ty of the weak-perspective camera in the crop's [-1, 1]²
    joints2d: Floats  # (n, 24, 2) in the crop's [-1, 1]²
    visible: NDArray[np.bool_]  # (n, 24) in the picture and behind nothing but the person
    joints3d: Floats  # (n, 24, 3) m, camera axes, before transl
    transl: Floats  # (n, 3) m
    bboxes: Floats  # (n, 4) cx, cy, w, h of the square that the crop is, px of the virtual image
    focal_length: Floats  # (n,) px of the virtual image
    image_size: Floats  # (n, 2) width, height, px; the principal point is its middle

    def before_crops(self) -> tuple[Floats, Floats]:
        """Return pose and joints3d before cameras that look at the middle of each crop."""
        middle = self.image_size / 2
        rays = ray_rotations(self.bboxes, focal_length=self.focal_length, principal_point=middle)
        return before_rays(self.pose, self.joints3d, rays)


class Pictures(NamedTuple):
    """What `Samples.render` makes of n scenes, on its device."""

    images: Tensor  # (n, S, S, 3) uint8 RGB
    masks: Tensor  # (n, S, S) bool
    visible: Tensor  # (n, 24) bool


class Samples:
    """Draws and renders the samples of one seed and split.

    `split` "train" and "held-out" share neither random streams nor motion takes nor painted plates,
    and some kinds of cloth pattern and plate are held out altogether. `textures` and `backgrounds`
    are folders of the user's pictures for cloth and for what is around people, split by name.
    `size` is a multiple of 8 up to 512, px. Raises ValueError for another, or for another split,
    and InputError for a folder without pictures or, when it is its turn, with one that cannot be
    read.
    """

    def __init__(
        self,
        seed: int,
        *,
        size: int = 224,
        split: Split = "train",
        device: str | torch.device = "cpu",
        rasteriser: Rasteriser = "cv2",
        textures: Path | None = None,
        backgrounds: Path | None = None,
    ) -> None:
        self._studio = Studio(
            size=size, split=split, device=device, textures=textures, backgrounds=backgrounds
        )
        self.size, self.device = size, self._studio.device
        self._rasteriser = rasteriser
        self._staging = Staging(
            self._studio.body,
            load_repertoire(split),
            self._studio.cloth,
            self._studio.world,
            seed=seed,
            held_out=split == "held-out",
            size=size,
        )

    def crops(self, indices: Iterable[int]) -> CropBatch:
        """Make single pictures."""
        return self._batch([scene for index in indices for scene in self.draw(index, frames=1)])

    def sequence(self, index: int, frames: int) -> CropBatch:
        """Make consecutive frames, at 30 fps, of one person in one place before one camera."""
        return self._batch(self.draw(index, frames=frames))

    def draw(self, index: int, *, frames: int) -> list[Scene]:
        """Throw the dice for a sample of so many pictures; needs no device, and can be pickled."""
        return self._staging.draw(index, frames=frames)

    @torch.inference_mode()
    def render(self, scenes: Sequence[Scene]) -> Pictures:
        """Make the pictures of scenes."""
        at_once = len(scenes)
        if self.device.type == "cpu":
            at_once = max(1, PIXELS_AT_ONCE // self.size**2)
        chunks = [scenes[k : k + at_once] for k in range(0, len(scenes), at_once)]
        parts = [self._render(chunk) for chunk in chunks]
        return Pictures(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _render(self, scenes: Sequence[Scene]) -> Pictures:
        count, size, studio = len(scenes), self.size, self._studio
        hosts = [k for k, scene in enumerate(scenes) if scene.company]
        persons = [s.person for s in scenes] + [s.company for s in scenes if s.company]
        studio.cloth.load(np.stack([person.look.figure.plate for person in persons]))
        studio.world.load(np.stack([scene.setting.backdrop.plates() for scene in scenes]))
        owner = torch.tensor([*range(count), *hosts], device=self.device)
        people: Person = stack(persons, self.device)
        camera, light, backdrop, film = stack([scene.setting for scene in scenes], self.device)
        joints = torch.as_tensor(
            np.stack([scene.label.joints2d for scene in scenes]), device=self.device
        )

        vertices, normals = studio.pose(people)
        seen = rasterise(
            vertices,
            studio.mannequin.faces,
            focal=camera.focal[owner],
            principal=camera.principal[owner],
            size=size,
            method=self._rasteriser,
        )
        shadows = Shadows(vertices, owner, vertices[:count].mean(dim=1), light.towards)
        view = studio.view(camera, light, shadows)
        picture, front = paint_backdrop(backdrop, view, studio.world)
        shown = (seen.face >= 0) & ~front[owner]
        if hosts:
            host, guest = owner[count:], torch.arange(count, len(owner), device=self.device)
            nearer = seen.depth[host] <= seen.depth[guest]
            shown[guest] &= ~nearer
            shown[host] &= nearer | (seen.depth[guest] == torch.inf)
            front[host] |= shown[guest]
        studio.draw_people(
            picture,
            seen,
            shown,
            seen.depth,
            first=torch.arange(len(owner), device=self.device),
            owner=owner,
            look=people.look,
            normals=normals,
            hidden=shadows.hidden,
            camera=camera,
            light=light,
        )

        sensors = np.array([scene.setting.film.sensor for scene in scenes])
        picture = develop(picture.transpose(0, 1), film, sensors=sensors)
        grid = torch.arange(size, device=self.device)
        inside = (grid >= camera.frame[:, :2, None]) & (grid <= camera.frame[:, 2:, None])
        inside = inside[:, 1, :, None] & inside[:, 0, None, :]
        picture.mul_(255 * inside[:, None]).round_()
        levels = picture.int().to(torch.uint8)  # by int, as that is quicker

        pixel = ((joints + 1) * (size / 2)).round().long()
        within = ((pixel >= 0) & (pixel < size)).all(dim=2)
        x, y = pixel.clamp(0, size - 1).unbind(dim=2)
        rows = torch.arange(count, device=self.device)[:, None]
        visible = within & (inside & ~front)[rows, y, x]
        images = torch.stack(levels.unbind(dim=1), dim=3)
        return Pictures(images, shown[:count] & inside, visible)

    def _batch(self, scenes: list[Scene]) -> CropBatch:
        labels = Label(*map(np.stack, zip(*(scene.label for scene in scenes), strict=True)))
        stated = {name: v.astype(np.float32) for name, v in labels._asdict().items()}
        made = {name: v.cpu().numpy() for name, v in self.render(scenes)._asdict().items()}
        return CropBatch(**stated, **made)
