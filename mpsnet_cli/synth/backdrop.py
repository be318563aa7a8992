"""What is around people: a ground, what stands behind it, things behind and before them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.synth.plates import Plates, draw_colours, hsv
from mpsnet_cli.synth.records import Value

Array = NDArray[np.float64]

PROPS = 6  # that one scene can have; those before people come last
FAR = 25.0  # m, where the ground has taken on the colour of what is behind it


class Wall(NamedTuple):
    """Something flat: a plate, weakened towards one colour."""

    plate: Value
    colour: Value  # (3,) sRGB 0..1
    amount: Value  # of the plate
    tint: Value  # (3,) gains on it


class Props(NamedTuple):
    """Flat things that face the camera; lengths in sides of the crop, from its middle."""

    wall: Wall
    centre: Value  # (2,)
    half: Value  # (2,) half the size; 0 for nothing
    turn: Value  # (2, 2)
    roundness: Value  # 0 for a rectangle, 1 for an ellipse
    front: Value


class Backdrop(NamedTuple):
    """One scene without people; stacked, n of them."""

    behind: Wall
    behind_turn: Value  # (2, 2) sides of the crop to sides of the plate
    behind_shift: Value  # (2,)
    slope: Value  # (2,) change of brightness per side of the crop
    ground: Wall
    ground_turn: Value  # (2, 2) m to sides of the plate
    ground_shift: Value  # (2,)
    reach: Value  # m, how far away the ground ends; 0 for no ground
    light: Value  # brightness of it all
    props: Props  # (PROPS, …)

    def plates(self) -> Array:
        """List the plates that are needed."""
        return np.array([self.behind.plate, self.ground.plate, *self.props.wall.plate])


def draw_backdrop(rng: np.random.Generator, plates: Plates, *, edge: float) -> Backdrop:
    """Set a scene; below the height `edge`, sides of the crop, something hides everything."""
    kind = rng.random()
    if kind < 0.14:  # a studio
        behind = _draw_wall(rng, plates, amount=rng.uniform(0, 0.06))
        if rng.random() < 0.4:  # for chroma key, or a bold colour
            colour = hsv(rng.random(), rng.uniform(0.7, 1), rng.uniform(0.3, 1))
            behind = behind._replace(colour=colour)
        ground = behind if rng.random() < 0.7 else _draw_wall(rng, plates, amount=0.1)
    else:
        behind = _draw_wall(rng, plates, amount=1 - 0.7 * rng.random() ** 3)
        ground = _draw_wall(rng, plates, amount=1 - 0.8 * rng.random() ** 1.5)
    zoom = np.exp(rng.uniform(np.log(0.35), np.log(1.6)))
    tilt = rng.normal(0, 0.05) if rng.random() < 0.8 else rng.uniform(0, 2 * np.pi)
    mirrored = np.diag([rng.choice((-1, 1)), 1])
    per_metre = np.exp(rng.uniform(np.log(0.1), np.log(1.2)))
    props = [_draw_prop(rng, plates, front=False) for _ in range(rng.integers(PROPS - 2))]
    props += [_NO_PROP] * (PROPS - 2 - len(props))
    count = np.searchsorted((0.7, 0.93), rng.random())
    props += [_draw_prop(rng, plates, front=True) if k < count else _NO_PROP for k in range(2)]
    if np.isfinite(edge):
        half, centre = (rng.uniform(0.4, 1.5), 1.0), (rng.uniform(-0.2, 0.2), 1 + edge)
        props[-1] = _draw_prop(rng, plates, front=True)._replace(
            half=np.array(half),
            centre=np.array(centre),
            turn=_turn(rng.normal(0, 0.04)),
            roundness=0.0,
        )
    return Backdrop(
        behind=behind,
        behind_turn=(zoom * _turn(tilt) @ mirrored),
        behind_shift=rng.uniform(0, 2, 2),
        slope=rng.normal(0, 0.25, 2),
        ground=ground,
        ground_turn=(per_metre * _turn(rng.uniform(0, 2 * np.pi))),
        ground_shift=rng.uniform(0, 2, 2),
        reach=0.0 if rng.random() < 0.25 else np.exp(rng.uniform(0, np.log(40))),
        light=np.exp(rng.normal(0, 0.3)),
        props=_stacked(props),
    )


def _stacked(props: list[Props]) -> Props:
    walls = Wall(*(np.array(column) for column in zip(*(p.wall for p in props), strict=True)))
    rest = [np.array(column) for column in zip(*(p[1:] for p in props), strict=True)]
    return Props(walls, *rest)


def _draw_wall(rng: np.random.Generator, plates: Plates, *, amount: float) -> Wall:
    tint = np.exp(rng.normal(0, 0.15, 3)) if rng.random() < 0.6 else np.ones(3)
    return Wall(plates.draw(rng), draw_colours(rng, 1)[0], amount, tint)


def _draw_prop(rng: np.random.Generator, plates: Plates, *, front: bool) -> Props:
    shape = rng.random()
    angle = rng.normal(0, 0.06)
    if shape < 0.3:  # a pole, a trunk, the edge of a door
        half = np.array([rng.uniform(0.008, 0.07), 1.5])
        centre = np.array([rng.uniform(-0.5, 0.5), 0.0])
        if rng.random() < 0.3:
            half, centre = half[::-1], centre[::-1]
    elif shape < 0.6:  # something on the ground
        half = rng.uniform(0.05, 0.35, 2)
        centre = np.array([rng.uniform(-0.5, 0.5), rng.uniform(0.2, 0.6)])
    else:
        half = np.exp(rng.uniform(np.log(0.03), np.log(0.22 if front else 0.4), 2))
        centre = rng.uniform(-0.55, 0.55, 2)
        angle = rng.uniform(0, np.pi)
    return Props(
        wall=_draw_wall(rng, plates, amount=1 - rng.random() ** 2),
        centre=centre,
        half=half,
        turn=_turn(angle),
        roundness=rng.choice((0.0, 0.0, 1.0, rng.random())),
        front=front,
    )


def _turn(angle: float) -> Array:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([(c, -s), (s, c)])


_NO_PROP = Props(  # of no size, and out of sight
    Wall(-1, np.zeros(3), 0.0, np.ones(3)), np.full(2, 9.0), np.zeros(2), np.eye(2), 0.0, False
)


class View(NamedTuple):
    """What the pixels (n, S, S) of n crops are directed at."""

    x: Tensor  # sides of the crop from its middle
    y: Tensor
    ground_x: Tensor  # m, where their rays meet the ground
    ground_y: Tensor
    distance: Tensor  # m along the ground; inf above the horizon


def paint_backdrop(
    backdrop: Backdrop, view: View, plates: Plates, shadow: Tensor
) -> tuple[Tensor, Tensor]:
    """Paint n scenes without people: linear light (3, n, S, S), and what lies before people.

    `shadow` (n, S, S) is what share of the light the people keep from the ground. The second result
    (n, S, S) is True where a thing in front hides whatever is behind it.
    """
    count, size = view.x.shape[:2]
    picture = _paint_wall(
        backdrop.behind,
        plates,
        *_turned(view.x, view.y, backdrop.behind_turn, backdrop.behind_shift),
    )
    near = view.distance < backdrop.reach[:, None, None]
    if bool(near.any()):
        uv = _turned(view.ground_x, view.ground_y, backdrop.ground_turn, backdrop.ground_shift)
        ground = _paint_wall(backdrop.ground, plates, *uv) * (1 - shadow)
        picture = torch.lerp(picture, ground, near * (1 - (view.distance / FAR).clamp(0, 1)))
    picture = picture.reshape(3, -1)
    front = torch.zeros_like(near).view(-1)
    for k in range(PROPS):
        wall = Wall(*(values[:, k] for values in backdrop.props.wall))
        prop = Props(wall, *(values[:, k] for values in backdrop.props[1:]))
        if not bool(prop.half.any()):
            continue
        pixels = _covered(prop, view)
        scene = pixels // (size * size)
        x, y = (t.flatten().index_select(0, pixels) for t in (view.x, view.y))
        own = Wall(*((v if count == 1 else v[scene]).movedim(0, -1) for v in prop.wall))
        numbers = own.plate.expand(len(pixels)).long()
        seen = plates.look_up(numbers, x - prop.centre[scene, 0], y - prop.centre[scene, 1])
        seen = own.colour * (1 - own.amount) + own.amount * own.tint * seen
        picture.index_copy_(1, pixels, seen)
        front.index_copy_(0, pixels, prop.front[scene] > 0)
    slope = backdrop.light[:, None] * backdrop.slope
    light = slope[:, 0, None, None] * view.x + slope[:, 1, None, None] * view.y
    light = (light + backdrop.light[:, None, None]).clamp_(min=0.02)
    picture = picture.view(3, count, size, size)
    return picture.square_().mul_(light), front.view(near.shape)


def _paint_wall(wall: Wall, plates: Plates, u: Tensor, v: Tensor) -> Tensor:
    """Paint walls seen at (u, v) (n, S, S), in sides of the plate: (3, n, S, S)."""
    grid = torch.stack([u, v], dim=3).mul_(2).sub_(1)
    sheet = plates.sheets(wall.plate.long())
    seen = F.grid_sample(sheet, grid, padding_mode="reflection", align_corners=False)
    seen *= (wall.amount[:, None] * wall.tint / 255)[..., None, None]
    seen += (wall.colour * (1 - wall.amount[:, None]))[..., None, None]
    return seen.transpose(0, 1)


def _turned(x: Tensor, y: Tensor, turn: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Carry coordinates (n, S, S) by matrices (n, 2, 2) and shifts (n, 2)."""
    first, second = (
        (turn[:, i, 0, None, None] * x)
        .addcmul_(turn[:, i, 1, None, None], y)
        .add_(shift[:, i, None, None])
        for i in (0, 1)
    )
    return first, second


def _covered(prop: Props, view: View) -> Tensor:
    """List the pixels that a thing covers in n scenes, as numbers in (n, S, S)."""
    turn = prop.turn / prop.half.clamp(min=1e-6)[..., None]
    shift = -(turn @ prop.centre[..., None])[..., 0]
    x, y = (t.square_() for t in _turned(view.x, view.y, turn, shift))
    # From x² < 1 and y² < 1 for a rectangle to x² + y² < 1 for an ellipse
    reach = torch.maximum(x, y) + prop.roundness[:, None, None] * torch.minimum(x, y)
    return (reach < 1).view(-1).nonzero()[:, 0]
