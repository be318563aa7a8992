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

    def __init__(self, points: Tensor, owner: Tensor, centre: Tensor, towards: Tensor) -> None:
        """Map `points` (m, V, 3) of scenes `owner` (m,) around `centre` (n, 3), camera frame."""
        count = len(centre)
        aside = towards.new_tensor([[0.6, 0.0, 0.8]]).expand_as(towards)
        right = F.normalize(torch.linalg.cross(aside, towards), dim=1)
        self.axes = torch.stack([right, torch.linalg.cross(towards, right), towards], dim=1)
        self.centre = (self.axes @ centre[..., None])[..., 0]
        seen = points @ self.axes[owner].mT - self.centre[owner][:, None]
        x, y = ((seen[..., k] * (CELLS / 2 / REACH) + CELLS / 2).long() for k in (0, 1))
        inside = (x >= 0) & (x < CELLS) & (y >= 0) & (y < CELLS)
        number = (owner[:, None] * CELLS + y) * CELLS + x
        number = torch.where(inside, number, count * CELLS * CELLS)  # one more, for what is outside
        nearest = seen.new_full((count * CELLS * CELLS + 1,), -torch.inf)
        nearest.scatter_reduce_(0, number.flatten(), seen[..., 2].flatten(), "amax")
        nearest = nearest[:-1].view(count, 1, CELLS, CELLS)
        self._nearest = F.max_pool2d(nearest, 3, stride=1, padding=1)
        covered = (self._nearest > -torch.inf).to(seen)
        for window in (5, 3):
            covered = F.avg_pool2d(covered, window, stride=1, padding=window // 2)
        self._covered = covered

    def on_people(self, points: Tensor, owner: Tensor | None) -> Tensor:
        """Find what share of the light is kept from points (3, P) of scenes `owner` (P,).

        An `owner` of None says that all are in the only scene.
        """
        axes = self.axes if owner is None else self.axes[owner]
        centre = self.centre if owner is None else self.centre[owner]
        x, y, near = ((axes[:, k].T * points).sum(0) - centre[:, k] for k in range(3))
        x, y = (t * (CELLS / 2 / REACH) + (CELLS / 2 - 0.5) for t in (x, y))
        first = 0 if owner is None else owner * (CELLS * CELLS)
        nearest, hidden = self._nearest.view(-1), torch.zeros_like(near)
        for dx in (0, 1):
            column = (x + dx).floor().clamp(0, CELLS - 1)
            for dy in (0, 1):
                row = (y + dy).floor().clamp(0, CELLS - 1)
                cell = (row * CELLS + column).long() + first
                hidden += nearest.index_select(0, cell) > near + BIAS
        return hidden / 4

    def on_ground(self, x: Tensor, y: Tensor) -> Tensor:
        """Find the same, blurred, for the ground at (n, H, W) m along the first two axes."""
        grid = torch.stack([x, y], dim=3)
        grid -= self.centre[:, None, None, :2]
        return F.grid_sample(self._covered, grid / REACH, align_corners=False)[:, 0]


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
