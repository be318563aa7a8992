"""Dressed people on a lit ground, before one camera: what all synthetic pictures are made with."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsnet_cli.body.arrays import read_free_body
from mpsnet_cli.body.lookup import FREE_BODY_FILE
from mpsnet_cli.synth.appearance import Look, Painter
from mpsnet_cli.synth.backdrop import View
from mpsnet_cli.synth.film import BLOCK, GRAIN_SIDE
from mpsnet_cli.synth.gbuffer import GBuffer
from mpsnet_cli.synth.lighting import CAVITY, CAVITY_DEPTH, Light, Shadows, cavities, shine
from mpsnet_cli.synth.mannequin import Fit, Mannequin
from mpsnet_cli.synth.plates import Plates
from mpsnet_cli.synth.repertoire import Split
from mpsnet_cli.synth.staging import Camera, Person


class Studio:
    """Poses and draws people on one device, in pictures of `size` × `size` pixels.

    The arguments are those of `Samples`, and so are the errors raised.
    """

    def __init__(
        self,
        *,
        size: int,
        split: Split,
        device: str | torch.device,
        textures: Path | None,
        backgrounds: Path | None,
    ) -> None:
        if size not in range(BLOCK, GRAIN_SIDE + 1, BLOCK):
            raise ValueError(
                f"The size is {size} px, and must be a multiple of {BLOCK} up to {GRAIN_SIDE}."
            )
        self.size = size
        self.device = torch.device(device)
        self.body = read_free_body(FREE_BODY_FILE.read_bytes())
        self.cloth = Plates(split, textures, device=self.device)
        self.world = self.cloth
        if backgrounds != textures:
            self.world = Plates(split, backgrounds, device=self.device)
        self.mannequin = Mannequin(self.body, device=self.device)
        self._painter = Painter(self.cloth, device=self.device)

    def pose(self, people: Person) -> tuple[Tensor, Tensor]:
        """Dress and place people: vertices (m, V, 3), m, camera frame, and normals (m, V, 3)."""
        mannequin, look = self.mannequin, people.look
        loft = self._painter.loft(look, mannequin.places[mannequin.body].T)
        fit = Fit(loft, *(getattr(look, name) for name in Fit._fields[1:]))
        vertices, normals = mannequin.pose(people.rotations, people.transforms, people.betas, fit)
        vertices += people.transl[:, None]
        return vertices, normals

    def view(self, camera: Camera, light: Light, shadows: Shadows) -> View:
        """Follow the pixels' rays to what they see, and to the shadows on the ground.

        What is behind people lies in a plane, and moves as one when the camera turns.
        """
        zero, one = torch.zeros_like(camera.focal), torch.ones_like(camera.focal)
        x, y = (camera.principal / camera.focal[:, None]).T
        rays = torch.stack(
            [1 / camera.focal, zero, -x, zero, 1 / camera.focal, -y, zero, zero, one]
        )
        rays = rays.T.reshape(-1, 3, 3)  # (column, row, 1) to directions
        towards = camera.back @ rays
        middle = towards[:, 2] @ towards.new_tensor([self.size / 2, self.size / 2, 1])
        plane = camera.first[:, :1, None] * towards[:, :2]
        plane += camera.first[:, 1:, None] * towards[:, 2:]
        up = (camera.back.mT @ camera.up[..., None])[..., 0]  # in this picture's camera frame
        right = F.normalize(torch.linalg.cross(up, camera.back[:, 2]), dim=1)
        forward = torch.linalg.cross(right, up)
        height = camera.height[:, None, None]
        ground = torch.cat([height * torch.stack([right, forward], dim=1), -up[:, None]], dim=1)
        sun = light.direct.mean(dim=1) * (light.towards * up).sum(dim=1).clamp(min=0)
        share = light.shadow * sun / (sun + light.above.mean(dim=1))
        return View(
            size=self.size,
            plane=plane / middle[:, None, None],
            ground=ground @ rays,
            shaded=shadows.below(up, height) @ rays,
            shadow=share[:, None, None, None] * shadows.covered,
        )

    def draw_people(
        self,
        picture: Tensor,
        seen: GBuffer,
        shown: Tensor,
        relief: Tensor,
        *,
        first: Tensor,
        owner: Tensor,
        look: Look,
        normals: Tensor,
        hidden: Tensor,
        camera: Camera,
        light: Light,
    ) -> None:
        """Draw what is `shown` of people over the light (3, n, S, S) of what is behind them.

        A buffer of `seen` has one or more people, one after another from the person `first` (b,)
        on, whose faces are numbered on; `owner` (m,) is each one's scene. `relief` (b, S, S) is the
        depth by which narrow places are found, `hidden` (m, V) the share of the sun kept from the
        vertices.
        """
        mannequin, size = self.mannequin, self.size
        number = shown.view(-1).nonzero()[:, 0]
        buffer, pixel = number // (size * size), number % (size * size)
        row, column = pixel // size, pixel % size
        face = seen.face.view(-1).index_select(0, number)
        person = first.index_select(0, buffer) + face // len(mannequin.faces)
        scene = owner.index_select(0, person)
        depth = seen.depth.view(-1).index_select(0, number)
        corners = mannequin.faces.index_select(0, face % len(mannequin.faces))
        bary = seen.bary.view(-1, 3).index_select(0, number)
        table = [normals, mannequin.places.expand_as(normals), hidden[..., None]]
        values = F.embedding_bag(
            corners + person[:, None] * normals.shape[1],
            torch.cat(table, dim=2).view(-1, 7),
            mode="sum",
            per_sample_weights=bary,
        )
        normal, places, (unlit,) = values.T.contiguous().split((3, 3, 1))
        parts = mannequin.kinds.index_select(0, corners[:, 0])
        cells = size // CAVITY
        cell = (buffer * cells + row // CAVITY) * cells + column // CAVITY
        around = cavities(relief).view(-1).index_select(0, cell)
        behind = relief.view(-1).index_select(0, number) - around
        openness = 1 - (behind / CAVITY_DEPTH).clamp(0, 0.7)

        def of(values: Tensor) -> Tensor:  # (n, …) to (…, P)
            return values.movedim(0, -1).index_select(-1, scene)

        x, y = (
            (at - of(camera.principal[:, k])) / of(camera.focal) * depth
            for k, at in enumerate((column, row))
        )
        points = torch.stack([x, y, depth])
        surface = self._painter.paint(look, person, places, parts)
        own = Light(*(of(values) for values in light))
        up = of((camera.back.mT @ camera.up[..., None])[..., 0])
        lit = shine(surface, points, normal, openness, unlit, own, up)
        picture.view(3, -1).index_copy_(1, scene * (size * size) + pixel, lit)
