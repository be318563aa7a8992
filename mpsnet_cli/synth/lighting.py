"""Light on people and ground: a sun with shadows, a sky, and the darkness of narrow places.

Vectors of points come as (3, P), one row per axis.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mpsnet_cli.synth.appearance import Surface
from mpsnet_cli.synth.records import Value

CELLS, REACH = 80, 1.3  # of the light's map of a scene, each way; m, half of what it covers
BIAS = 0.06  # m, by which a point must lie behind another to be in its shadow
HIGHLIGHT = 4  # squarings of a cosine: Blinn's exponent is 16
CAVITY = 4  # px: the darkness of narrow places is found in cells of this size
CAVITY_DEPTH = 0.3  # m behind its surroundings, at which a point would get no light from the sky


class Light(NamedTuple):
    """What lights a scene; stacked, n scenes. Colours are gains on linear RGB."""

    towards: Value  # (3,) unit, camera frame
    direct: Value  # (3,)
    above: Value  # (3,) from the sky
    below: Value  # (3,) from the ground
    shadow: Value  # () 0..1, how dark shadows are


class Shadows:
    """For n scenes, how near to the light what lies under each cell of a map is."""

    def __init__(
        self,
        points: Tensor,
        owner: Tensor,
        centre: Tensor,
        towards: Tensor,
        *,
        reach: Tensor | None = None,
    ) -> None:
        """Map `points` (m, V, 3) of scenes `owner` (m,) around `centre` (n, 3), camera frame.

        `reach` (n,), m, is half of what each scene's map covers; REACH if it is not given.
        """
        count = len(centre)
        aside = towards.new_tensor([[0.6, 0.0, 0.8]]).expand_as(towards)
        right = F.normalize(torch.linalg.cross(aside, towards), dim=1)
        self._axes = torch.stack([right, torch.linalg.cross(towards, right), towards], dim=1)
        self._centre = (self._axes @ centre[..., None])[..., 0]
        self._reach = REACH if reach is None else reach[:, None, None]
        seen = self._axes[owner] @ points.mT - self._centre[owner, :, None]
        *at, near = seen.unbind(dim=1)
        per_metre = CELLS / 2 / REACH if reach is None else (CELLS / 2 / reach)[owner, None]
        x, y = (t * per_metre + CELLS / 2 for t in at)
        inside = (x >= 0) & (x < CELLS) & (y >= 0) & (y < CELLS)
        first = (owner * (CELLS * CELLS))[:, None]
        number = first + y.long() * CELLS + x.long()
        number = torch.where(inside, number, count * CELLS * CELLS)  # one more, for what is outside
        nearest = near.new_full((count * CELLS * CELLS + 1,), -torch.inf)
        nearest.scatter_reduce_(0, number.flatten(), near.flatten(), "amax")
        nearest = nearest[:-1].view(count, 1, CELLS, CELLS)
        nearest = F.max_pool2d(nearest, 3, stride=1, padding=1)

        # What share of the light is kept from the points: (m, V)
        steps = torch.tensor([[[-0.5]], [[0.5]]], device=points.device)
        column, row = ((t + steps).floor_().clamp_(0, CELLS - 1).long() for t in (x, y))
        cells = (first + CELLS * row[:, None] + column).view(4, *near.shape)
        around = nearest.view(-1).index_select(0, cells.view(-1)).view(cells.shape)
        self.hidden = (around > near + BIAS).float().mean(dim=0)

        # The same for what is below, blurred: (n, 1, CELLS / 2, CELLS / 2)
        halved = F.avg_pool2d((nearest > -torch.inf).to(near), 2)
        self.covered = F.avg_pool2d(halved, 3, stride=1, padding=1)

    def below(self, up: Tensor, height: Tensor) -> Tensor:
        """Find matrices (n, 2, 3) from a ray's direction to where in `covered` it meets the ground.

        The ground is `height` (n, 1, 1) m below the camera, `up` (n, 3) is upwards. Places are in
        [-1, 1]², still to be divided by the ray's fall.
        """
        return (height * self._axes[:, :2] + self._centre[:, :2, None] * up[:, None]) / self._reach


def cavities(depth: Tensor) -> Tensor:
    """Average the depth around each cell of CAVITY² pixels of (m, S, S); inf is nothing."""
    known = depth[:, CAVITY // 2 :: CAVITY, CAVITY // 2 :: CAVITY]
    there = known < torch.inf
    parts = torch.stack([torch.where(there, known, 0), there.to(depth)], dim=1)
    around = F.avg_pool2d(parts, 5, stride=1, padding=2)
    return around[:, 0] / around[:, 1].clamp(min=1e-6)


def shine(
    surface: Surface,
    points: Tensor,
    normals: Tensor,
    openness: Tensor,
    hidden: Tensor,
    light: Light,
    up: Tensor,
) -> Tensor:
    """Light P points (3, P), camera frame, by Lambert's and Blinn's laws: linear RGB (3, P).

    `openness` (P,) is what share of the sky they see, `hidden` (P,) what share of the sun they do
    not. `light` and `up` have the points' scenes, or the only one, along their last axis.
    """
    normals = normals * torch.where((normals * points).sum(0) > 0, -1.0, 1.0)
    normals = _unit(_unit(normals) + surface.bumps)
    sun = 1 - light.shadow * hidden
    facing = (normals * light.towards).sum(0).clamp(min=0) * sun
    upward = (0.5 + 0.5 * (normals * up).sum(0)).clamp(0, 1)
    ambient = (light.below + (light.above - light.below) * upward) * openness
    mirror = (normals * _unit(light.towards - _unit(points))).sum(0).clamp(min=0)
    for _ in range(HIGHLIGHT):
        mirror = mirror.square()
    gloss = surface.gloss * mirror * sun
    return surface.colour * ambient + light.direct * (surface.colour * facing + gloss)


def _unit(vectors: Tensor) -> Tensor:
    return vectors * vectors.square().sum(0).clamp(min=1e-12).rsqrt()
