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
LEAST_FALL = 1e-3  # of a ray of unit depth that meets the ground
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
    colours = draw_colours(rng, 2 + PROPS)
    kind = rng.random()
    if kind < 0.14:  # a studio
        behind = _draw_wall(rng, plates, colours[0], amount=rng.uniform(0, 0.06))
        if rng.random() < 0.15:  # for chroma key, or a bold colour
            colour = hsv(rng.random(), rng.uniform(0.7, 1), rng.uniform(0.3, 1))
            behind = behind._replace(colour=colour)
        ground = behind if rng.random() < 0.7 else _draw_wall(rng, plates, colours[1], amount=0.1)
    else:
        behind = _draw_wall(rng, plates, colours[0], amount=1 - 0.7 * rng.random() ** 3)
        ground = _draw_wall(rng, plates, colours[1], amount=1 - 0.8 * rng.random() ** 1.5)
    zoom = np.exp(rng.uniform(np.log(0.35), np.log(1.6)))
    tilt = rng.normal(0, 0.05) if rng.random() < 0.8 else rng.uniform(0, 2 * np.pi)
    mirrored = np.diag([rng.choice((-1, 1)), 1])
    per_metre = np.exp(rng.uniform(np.log(0.1), np.log(1.2)))
    props = [_NO_PROP] * PROPS
    for k in range(rng.integers(PROPS - 2)):
        props[k] = _draw_prop(rng, plates, colours[2 + k], front=False)
    for k in range(PROPS - 2, PROPS - 2 + int(np.searchsorted((0.9, 0.98), rng.random()))):
        props[k] = _draw_prop(rng, plates, colours[2 + k], front=True)
    if np.isfinite(edge):
        half, centre = (rng.uniform(0.4, 1.5), 1.0), (rng.uniform(-0.2, 0.2), 1 + edge)
        props[-1] = _draw_prop(rng, plates, colours[-1], front=True)._replace(
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


def _draw_wall(rng: np.random.Generator, plates: Plates, colour: Array, *, amount: float) -> Wall:
    tint = np.exp(rng.normal(0, 0.15, 3)) if rng.random() < 0.4 else np.ones(3)
    return Wall(plates.draw(rng), colour, amount, tint)


def _draw_prop(rng: np.random.Generator, plates: Plates, colour: Array, *, front: bool) -> Props:
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
        wall=_draw_wall(rng, plates, colour, amount=1 - rng.random() ** 2),
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
    """What the pixels of n crops of S × S are directed at; matrices take (column, row, 1)."""

    size: int
    plane: Tensor  # (n, 2, 3) to sides of the crop from its middle
    ground: Tensor  # (n, 3, 3) to right, ahead, m, of where rays meet the ground, and their fall:
    # the first two are still to be divided by it, and it is negative above the horizon
    shaded: Tensor  # (n, 2, 3) likewise to where that is in `shadow`, as grid_sample has it
    shadow: Tensor  # (n, 1, C, C) what share of the light people keep from the ground


def paint_backdrop(backdrop: Backdrop, view: View, plates: Plates) -> tuple[Tensor, Tensor]:
    """Paint n scenes without people: linear light (3, n, S, S), and what lies before people.

    The second result (n, S, S) is True where a thing in front hides whatever is behind it.
    """
    size = view.size
    onto = _onto(backdrop.behind_turn, backdrop.behind_shift) @ _square(view.plane)
    picture = _paint_wall(backdrop.behind, plates, _planes(onto, size))
    ahead, fall = _planes(view.ground[:, 1:], size).unbind(dim=1)
    below = fall > LEAST_FALL
    scale = fall.clamp_(min=LEAST_FALL).reciprocal_()
    distance = ahead.mul_(scale)
    near = below & (distance < backdrop.reach[:, None, None])
    if bool(near.any()):
        onto = _onto(backdrop.ground_turn, backdrop.ground_shift) @ view.ground
        places = _planes(torch.cat([onto, view.shaded], dim=1), size).mul_(scale[:, None])
        ground = _paint_wall(backdrop.ground, plates, places[:, :2])
        shaded = places[:, 2:].permute(0, 2, 3, 1)
        ground *= 1 - F.grid_sample(view.shadow, shaded, align_corners=False)[:, 0]
        share = near * distance.div_(-FAR).add_(1).clamp_(0, 1)
        picture = torch.lerp(picture, ground, share)
    picture = picture.reshape(3, -1)
    front = torch.zeros_like(near).view(-1)
    for k in range(PROPS):
        wall = Wall(*(values[:, k] for values in backdrop.props.wall))
        prop = Props(wall, *(values[:, k] for values in backdrop.props[1:]))
        if bool(prop.half.any()):
            _paint_prop(picture, front, prop, view, plates)
    bright = backdrop.light[:, None] * backdrop.slope
    bright = bright[:, None] @ view.plane
    bright[..., 2] += backdrop.light[:, None]
    light = _planes(bright, size)[:, 0].clamp_(min=0.02)
    picture = picture.view(3, *near.shape)
    return picture.square_().mul_(light), front.view(near.shape)


def _paint_wall(wall: Wall, plates: Plates, places: Tensor) -> Tensor:
    """Paint walls seen at places (n, 2, S, S), as grid_sample has them: (3, n, S, S)."""
    sheet, grid = plates.sheets(wall.plate.long()), places.permute(0, 2, 3, 1)
    seen = F.grid_sample(sheet, grid, padding_mode="reflection", align_corners=False)
    seen *= (wall.amount[:, None] * wall.tint / 255)[..., None, None]
    seen += (wall.colour * (1 - wall.amount[:, None]))[..., None, None]
    return seen.transpose(0, 1)


def _paint_prop(picture: Tensor, front: Tensor, prop: Props, view: View, plates: Plates) -> None:
    """Paint one thing in each of n scenes over a flat `picture` (3, P); mark it in `front`."""
    size = view.size
    turn = prop.turn / prop.half.clamp(min=1e-6)[..., None]
    onto = torch.cat([turn, -turn @ prop.centre[..., None]], dim=2) @ _square(view.plane)
    places = _planes(onto, size)  # within ±1
    x, y = places.square().unbind(dim=1)
    # From x² < 1 and y² < 1 for a rectangle to x² + y² < 1 for an ellipse
    reach = torch.maximum(x, y).addcmul_(prop.roundness[:, None, None], torch.minimum(x, y))
    pixels = (reach < 1).view(-1).nonzero()[:, 0]
    scene = pixels // (size * size)

    def of(values: Tensor) -> Tensor:  # (n, …) to (…, P)
        return values.movedim(0, -1).index_select(-1, scene)

    own, half = Wall(*map(of, prop.wall)), of(prop.half)
    u, v = (places[:, k].flatten().index_select(0, pixels) * half[k] for k in (0, 1))
    seen = plates.look_up(own.plate.long(), u, v)
    seen = own.colour * (1 - own.amount) + own.amount * own.tint * seen
    picture.index_copy_(1, pixels, seen)
    front.index_copy_(0, pixels, of(prop.front) > 0)


def _planes(matrices: Tensor, size: int) -> Tensor:
    """Evaluate rows (n, k, 3) at (column, row, 1) of all pixels: (n, k, S, S)."""
    grid = torch.arange(size, dtype=torch.float32, device=matrices.device)
    across, down, middle = matrices[..., None].unbind(dim=2)
    return (down * grid + middle)[..., None] + (across * grid)[:, :, None]


def _square(plane: Tensor) -> Tensor:
    """Add a last row (0, 0, 1) to (n, 2, 3)."""
    return F.pad(plane, (0, 0, 0, 1)) + plane.new_tensor([[0.0] * 3, [0.0] * 3, [0.0, 0.0, 1.0]])


def _onto(turn: Tensor, shift: Tensor) -> Tensor:
    """Carry places by (n, 2, 2) and (n, 2) to sides of a plate, and into [-1, 1]²: (n, 2, 3)."""
    return torch.cat([2 * turn, (2 * shift - 1)[..., None]], dim=2)
