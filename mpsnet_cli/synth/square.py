"""The place: a paved square in front of a brick house, painted by formula.

World: metres, x right, y up, the camera above the origin looking along -z.
"""

from __future__ import annotations

import numpy as np

from mpsnet_cli.synth.light import SUN, Colour, ambient, linear
from mpsnet_cli.synth.noise import Floats, Noise

HOUSE = 10.5  # m from the camera
KERB = 9.2
SLAB = 0.6  # m
BRICK = (0.25, 0.075)  # m, with its mortar
PLINTH = 0.55  # m, its height
WINDOWS = (-4.35, -1.55, 4.25)  # m, x of their middles
WINDOW = (0.62, 1.15, 2.85)  # m: half width, bottom, top
DOOR_AT = 1.5
DOOR = (0.55, 0.06, 2.35)
REVEAL = 0.12  # m, by which windows and door lie behind the wall

_noise = Noise(seed=2)


def paint_square(rays: Floats, height: float, towards_sun: Floats) -> tuple[Floats, Floats, Floats]:
    """Paint what rays (R, C, 3), world axes, see from `height` m above the origin.

    Returns, each (R, C, 3): the points in the world, the light that they give off in the shade,
    and what the sun, from the direction `towards_sun`, adds.
    """
    with np.errstate(divide="ignore"):
        to_floor = np.where(rays[..., 1] < 0, -height / rays[..., 1], np.inf)
    to_house = -HOUSE / rays[..., 2]
    floor = to_floor < to_house
    world = rays * np.minimum(to_floor, to_house)[..., None]
    world[..., 1] += height
    x, y, z = np.moveaxis(world, -1, 0)

    colour = np.empty_like(world)
    facing = np.empty_like(x)
    colour[floor] = _floor(x[floor], z[floor])
    facing[floor] = towards_sun[1]
    colour[~floor], lit = _house(x[~floor], y[~floor], towards_sun)
    facing[~floor] = towards_sun[2] * lit
    # Where house and floor meet, each hides half of the light from the other.
    corner = 1 - 0.45 * np.exp(-np.abs(z + HOUSE) - np.abs(y))
    shade = colour * ambient(floor.astype(np.float32)) * corner[..., None]
    return world, shade, colour * SUN * facing[..., None]


def _floor(x: Floats, z: Floats) -> Floats:
    """Colour the floor at (x, z), both (K,): slabs, and an asphalt pavement behind a kerb."""
    row = np.floor(z / SLAB)
    column, across = _courses(x + SLAB / 2 * np.mod(row, 2), SLAB)
    _, along = _courses(z, SLAB)
    tint = 1 + 0.07 * _noise.plane(column * 3.7, row * 5.3, cell=1.0)
    tint[np.maximum(across, along) > 0.487] = 0.55  # joints
    dirt = 1 + 0.07 * _noise.plane(x, z, cell=1.1, octaves=5)
    speckle = 1 + 0.05 * _noise.plane(x, z, cell=0.02, octaves=2)
    out = _shaded((158, 152, 143), tint * dirt * speckle)
    pavement = z < -KERB
    grit = 1 + 0.07 * _noise.plane(x, z, cell=0.03)
    out[pavement] = _shaded((150, 147, 146), dirt * grit)[pavement]
    kerbstone = pavement & (z > -KERB - 0.16)
    out[kerbstone] = _shaded((186, 182, 174), dirt)[kerbstone]
    out[~pavement & (z < -KERB + 0.12)] *= 0.72  # gutter
    return out


def _house(x: Floats, y: Floats, sun: Floats) -> tuple[Floats, Floats]:
    """Colour the house at (x, y), both (K,), and say how much of the sun arrives there, 0..1."""
    row, along = _courses(y, BRICK[1])
    column, across = _courses(x + BRICK[0] / 2 * np.mod(row, 2), BRICK[0])
    stain = 1 + 0.08 * _noise.plane(x, y, cell=1.7, octaves=5)
    tint = 1 + 0.16 * _noise.plane(column * 3.1, row * 7.7, cell=1.0)
    out = _shaded((158, 92, 72), tint * stain)
    mortar = (along > 0.43) | (across > 0.475)
    out[mortar] = _shaded((176, 164, 150), stain)[mortar]
    lit = np.ones_like(x)

    _, across = _courses(x, 0.9)
    plinth = y < PLINTH
    out[plinth] = _shaded((150, 146, 138), stain * np.where(across > 0.492, 0.7, 1.0))[plinth]
    out[(y > PLINTH) & (y < PLINTH + 0.06)] = linear((190, 186, 176))
    lit[(y > PLINTH - 0.04) & (y < PLINTH)] = 0.4

    for middle in WINDOWS:
        half, bottom, _ = WINDOW
        sill = (np.abs(x - middle) < half + 0.16) & (y < bottom - 0.06)
        _opening(out, lit, x - middle, y, WINDOW, sun, _glass(x, y, middle))
        out[sill & (y > bottom - 0.16)] = linear((200, 196, 186))
        lit[sill & (y > bottom - 0.24) & (y < bottom - 0.16)] = 0.35
    _opening(out, lit, x - DOOR_AT, y, DOOR, sun, _door(x - DOOR_AT, y))
    return out, lit


def _opening(
    out: Floats,
    lit: Floats,
    x: Floats,
    y: Floats,
    shape: tuple[float, float, float],
    sun: Floats,
    inside: Floats,
) -> None:
    """Paint a window or door with its frame into `out` and the shadow of its reveal into `lit`."""
    half, bottom, top = shape
    frame = (np.abs(x) < half + 0.09) & (y > bottom - 0.09) & (y < top + 0.09)
    out[frame] = linear((214, 210, 200))
    pane = (np.abs(x) < half) & (y > bottom) & (y < top)
    out[pane] = inside[pane]
    across, down = REVEAL * sun[:2] / sun[2]
    lit[pane & ((np.abs(x + across) > half) | (y + down > top))] = 0.3


def _glass(x: Floats, y: Floats, middle: float) -> Floats:
    """A window pane that mirrors clouds, more of them higher up, behind its bars."""
    _, bottom, top = WINDOW
    clouds = 0.5 + 0.5 * np.tanh(_noise.plane(x + 0.3 * y, y, cell=0.7, octaves=4))
    out = _shaded((70, 84, 98), 0.25 + 0.9 * clouds * (y - bottom) / (top - bottom))
    out[(np.abs(x - middle) < 0.025) | (np.abs(y - bottom - 1.1) < 0.025)] = linear((205, 202, 194))
    return out


def _door(x: Floats, y: Floats) -> Floats:
    """A painted door with panels and a knob."""
    panels = (np.abs(np.abs(x) - 0.27) < 0.2) & (np.abs(np.mod(y, 0.72) - 0.36) < 0.27)
    out = _shaded((52, 78, 74), np.where(panels, 0.82, 1.0))
    out[(x + 0.44) ** 2 + (y - 1.05) ** 2 < 0.035**2] = linear((200, 180, 120))
    return out


def _courses(along: Floats, pitch: float) -> tuple[Floats, Floats]:
    """Number the courses of a wall, and measure 0..0.5 how far from its middle a place is."""
    number = np.floor(along / pitch)
    return number, np.abs(along / pitch - number - 0.5)


def _shaded(colour: Colour, shades: Floats) -> Floats:
    return linear(colour) * np.maximum(shades, 0)[:, None].astype(np.float32)
