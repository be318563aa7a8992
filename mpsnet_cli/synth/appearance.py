"""What people wear and how they look: drawn by chance, evaluated per point in batches.

Where a garment ends and how its cloth is patterned are functions of the place on the T-posed
average body (see mannequin.py), so that edges are sharp whatever the mesh. Held-out people wear
patterns that the others never do, besides theirs.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum, auto
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.synth.mannequin import BALLS, HAIR_ROWS, SKIRT_BOTTOM, SKIRT_ROWS, SKIRT_TOP, Part
from mpsnet_cli.synth.plates import Plates, draw_colours, hsv
from mpsnet_cli.synth.records import Value

Array = NDArray[np.float64]


class Thing(IntEnum):
    """What a point of a person is made of; of what lies on each other, the higher is outside."""

    SKIN = 0
    SOCKS = auto()
    BOTTOM = auto()
    SHOES = auto()
    TOP = auto()
    COAT = auto()
    LEFT_GLOVE = auto()
    RIGHT_GLOVE = auto()
    HAIR = auto()
    BEARD = auto()
    HAT = auto()
    SKIRT = auto()
    ON_HEAD = auto()
    ON_BACK = auto()
    IN_LEFT_HAND = auto()
    IN_RIGHT_HAND = auto()


class Pattern(IntEnum):
    """How two colours are spread over a thing."""

    PLAIN = 0
    STRIPES = auto()
    CHECKS = auto()
    DOTS = auto()
    BLOTCHES = auto()
    FADING = auto()
    HALVES = auto()  # stripes as wide as a garment
    PLATE = auto()  # a picture all over
    PRINT = auto()  # a picture on the chest
    CHEVRONS = auto()  # held out
    RINGS = auto()  # held out


TRAIN_PATTERNS = (0.76, 0.08, 0.04, 0.01, 0.01, 0.03, 0.01, 0.01, 0.05, 0, 0)
HELD_OUT_PATTERNS = (0.70, 0.06, 0.03, 0.01, 0.01, 0.02, 0.01, 0.01, 0.05, 0.06, 0.04)
PLAIN = [
    Thing.SKIN, Thing.SOCKS, Thing.SHOES, Thing.LEFT_GLOVE, Thing.RIGHT_GLOVE, Thing.HAIR,
    Thing.BEARD, Thing.HAT, Thing.ON_HEAD,
]  # fmt: skip

# From light to dark, sRGB; skin is drawn between neighbours.
SKIN_TONES = np.array(
    [(250, 218, 200), (236, 190, 162), (214, 162, 130), (190, 136, 100), (152, 102, 72),
     (112, 72, 50), (78, 50, 38), (52, 34, 28)]
) / 255  # fmt: skip
HAIR_COLOURS = np.array(
    [(18, 15, 14), (35, 26, 20), (60, 42, 28), (96, 66, 40), (150, 112, 66), (205, 170, 110),
     (120, 52, 24), (120, 118, 115), (210, 208, 205)]
) / 255  # fmt: skip

NEVER = 9.0  # m, where an edge is that is not met

RELIEF_SIDE = 128  # texels of a tile of noise, which repeats
RELIEF_PERIOD = 0.35  # m
RELIEF_SEED = 5
SWELLS = 8  # smooth fields of which the unevenness of loose clothes is made


class Cloth(NamedTuple):
    """What every thing is made of; colours are sRGB 0..1."""

    first: Value  # (…, 3)
    pattern: Value  # (…, 1)
    gloss: Value  # (…, 1) strength of the highlight
    folds: Value  # (…, 1) depth of the relief in the normals
    mottle: Value  # (…, 1) unevenness of the colour


class Figure(NamedTuple):
    """What is on patterned things."""

    second: Value  # (…, 3)
    turn: Value  # (…, 4) a matrix, row by row: m to repeats of the pattern
    shift: Value  # (…, 2) repeats
    plate: Value  # (…, 1)


class Cut(NamedTuple):
    """Where things begin and end on the T-posed body, m."""

    sock: Value  # heights
    shoe: Value
    waist: Value
    cuff: Value
    hem: Value
    sleeve: Value  # |x|
    collar: Value  # radius around the neck
    coat_hem: Value
    coat_sleeve: Value
    coat_collar: Value
    opening: Value  # half the width at the chest
    opening_slope: Value  # its growth upwards
    opening_middle: Value
    left_glove: Value  # |x|
    right_glove: Value
    hat: Value  # height over the forehead
    hat_tilt: Value
    hairline: Value  # shift upwards
    hair_length: Value  # height of its lower edge
    beard: Value  # height of its upper edge


class Look(NamedTuple):
    """One person's appearance; stacked, that of n people."""

    cut: Value  # (cuts,) a Cut as one array
    cloth: Cloth  # of each Thing
    figure: Figure
    loft: Value  # (things,) m, away from the skin
    looseness: Value  # (2,) more of it at the far ends of a top and of trousers, m
    swell: Value  # (SWELLS,) how much of each of the smooth fields makes it uneven
    crumple: Value  # (3,) where in the noise the cloth's relief is
    skirt_rows: Value
    skirt_flare: Value
    hair_rows: Value
    hair_width: Value
    ball_centres: Value  # (4, 3)
    ball_radii: Value  # (4, 3)
    ball_squareness: Value  # (4,)


def draw_look(rng: np.random.Generator, plates: Plates, *, held_out: bool) -> Look:
    """Dress somebody."""
    bald, hat, coat = rng.random(3) < (0.06, 0.10, 0.15)
    cloth, figure = _draw_materials(rng, plates, held_out=held_out)

    def copy(thing: Thing, other: Thing) -> None:
        for values in (*cloth, *figure):
            values[thing] = values[other]

    _colour_body(rng, cloth)
    alike = rng.random()
    if alike < 0.1:  # a suit, overalls, a costume
        copy(Thing.BOTTOM, Thing.TOP)
        copy(Thing.COAT, Thing.TOP)
    elif alike < 0.16:  # one colour down to the shoes
        for thing in (Thing.BOTTOM, Thing.SOCKS, Thing.SHOES):
            copy(thing, Thing.TOP)

    legs = rng.random()
    cuff = -0.16 if legs < 0.06 else rng.uniform(*((-0.6, -0.22) if legs < 0.28 else (-0.87, -0.7)))
    skirt_rows, skirt_flare = 0, 0.0
    skirt = rng.random()
    if coat and skirt < 0.3:  # the coat's lower part
        copy(Thing.SKIRT, Thing.COAT)
        skirt_rows, skirt_flare = _rows(rng.uniform(-0.75, -0.2)), rng.uniform(0.0, 0.2)
    elif skirt > 0.86:
        if skirt > 0.93:  # a dress
            copy(Thing.SKIRT, Thing.TOP)
        skirt_rows, skirt_flare = _rows(rng.uniform(-0.84, -0.2)), rng.uniform(-0.02, 0.45)
        cuff = cuff if rng.random() < 0.3 else -0.16
    gloves = np.where(rng.random(2) < 0.02, rng.uniform(0.62, 0.68, 2), NEVER)
    if rng.random() < 0.5:
        gloves[1] = gloves[0]
        copy(Thing.RIGHT_GLOVE, Thing.LEFT_GLOVE)
    balls, on_head = _draw_balls(rng, hat=hat, bald=bald)
    copy(Thing.ON_HEAD, on_head)
    tight = rng.random(2) < 0.25
    return Look(
        cut=np.array(_draw_cut(rng, cuff=cuff, coat=coat, hat=hat, bald=bald, gloves=gloves)),
        cloth=cloth,
        figure=figure,
        loft=_draw_loft(rng, tight),
        looseness=np.where(tight, 0, rng.uniform(0, (0.035, 0.04))),
        swell=rng.normal(0, 0.4 / SWELLS**0.5, SWELLS),
        crumple=rng.uniform(0, 5, 3),
        skirt_rows=skirt_rows,
        skirt_flare=skirt_flare,
        hair_rows=0 if bald or rng.random() < 0.62 else int(rng.integers(4, HAIR_ROWS + 1)),
        hair_width=rng.uniform(0.5, 1),
        ball_centres=balls[0],
        ball_radii=balls[1],
        ball_squareness=np.array([0, 0.9, *rng.random(2)]),
    )


def _draw_materials(
    rng: np.random.Generator, plates: Plates, *, held_out: bool
) -> tuple[Cloth, Figure]:
    count = len(Thing)
    weights = HELD_OUT_PATTERNS if held_out else TRAIN_PATTERNS
    pattern = np.searchsorted(np.cumsum(weights)[:-1], rng.random(count), side="right")
    pattern[PLAIN] = Pattern.PLAIN
    angle = np.where(rng.random(count) < 0.6, 0, rng.uniform(0, np.pi, count))
    angle = np.where(rng.random(count) < 0.2, np.pi / 2, angle)
    low, high = np.tile([[4.0], [60.0]], count)
    low[pattern == Pattern.PLATE], high[pattern == Pattern.PLATE] = 1, 6
    low[pattern == Pattern.HALVES], high[pattern == Pattern.HALVES] = 1, 3
    low[pattern == Pattern.FADING], high[pattern == Pattern.FADING] = 1, 3
    repeats = low * (high / low) ** rng.random(count)
    c, s = repeats * np.cos(angle), repeats * np.sin(angle)
    colours = draw_cloths(rng, 2 * count)
    pictured = (pattern == Pattern.PLATE) | (pattern == Pattern.PRINT)
    cloth = Cloth(
        first=colours[:count],
        pattern=pattern[:, None].astype(np.float64),
        gloss=0.5 * rng.random((count, 1)) ** 4,
        folds=0.3 * rng.random((count, 1)) ** 1.5,
        mottle=0.015 + 0.08 * rng.random((count, 1)) ** 3,
    )
    figure = Figure(
        second=colours[count:],
        turn=np.stack([c, -s, s, c], axis=1),
        shift=rng.random((count, 2)),
        plate=np.array([[float(plates.draw(rng)) if p else -1] for p in pictured]),
    )
    return cloth, figure


def draw_cloths(rng: np.random.Generator, count: int) -> Array:
    """Draw the colours of garments (count, 3): black, white, grey and blue are worn most."""
    kind, hue, saturation, value = rng.random((4, count))
    black, white, blue = kind < 0.22, kind > 0.9, (kind > 0.78) & (kind < 0.9)
    hue = np.where(blue, 0.56 + 0.1 * hue, hue)
    saturation = np.where(black, 0.3 * saturation, np.where(white, 0.08 * saturation, saturation))
    value = np.where(black, 0.02 + 0.2 * value, np.where(white, 0.75 + 0.25 * value, value))
    special = (black | white | blue)[:, None]
    return np.where(special, hsv(hue, saturation, value), draw_colours(rng, count))


def _colour_body(rng: np.random.Generator, cloth: Cloth) -> None:
    """Give skin and hair their colours."""
    tone = _between(SKIN_TONES, rng.random()) * rng.uniform(0.88, 1.12) * rng.normal(1, 0.03, 3)
    hair = _between(HAIR_COLOURS, rng.beta(0.8, 1.6)) * rng.uniform(0.7, 1.2)
    if rng.random() < 0.05:
        hair = draw_colours(rng, 1)[0]
    for things, colour, gloss, folds, mottle in (
        (Thing.SKIN, tone, rng.uniform(0, 0.15), 0.02, 0.03),
        ([Thing.HAIR, Thing.BEARD], hair, rng.uniform(0, 0.3), 0.25, 0.2),
    ):
        cloth.first[things] = np.clip(colour, 0, 1)
        cloth.gloss[things], cloth.folds[things] = gloss, folds
        cloth.mottle[things] = mottle


def _between(colours: Array, place: float) -> Array:
    """Interpolate in a row of colours at 0..1."""
    low, share = divmod(place * (len(colours) - 1), 1)
    return colours[int(low)] + share * (
        colours[min(int(low) + 1, len(colours) - 1)] - colours[int(low)]
    )


def _draw_cut(
    rng: np.random.Generator, *, cuff: float, coat: bool, hat: bool, bald: bool, gloves: Array
) -> Cut:
    sleeves, boots = rng.random(2)
    sleeve = (0.58, 0.68) if sleeves < 0.48 else (0.24, 0.45) if sleeves < 0.88 else (0.14, 0.2)
    opening = 0.0 if rng.random() < 0.4 else rng.uniform(0.0, 0.09)
    shoe = (-NEVER, -NEVER) if boots < 0.08 else (-0.87, -0.82) if boots < 0.9 else (-0.8, -0.5)
    return Cut(
        sock=rng.uniform(-0.85, -0.45) if rng.random() < 0.6 else -NEVER,
        shoe=rng.uniform(*shoe),
        waist=rng.uniform(-0.02, 0.12),
        cuff=cuff,
        hem=rng.uniform(-0.2, 0.0) if rng.random() < 0.92 else rng.uniform(0.1, 0.25),
        sleeve=rng.uniform(*sleeve),
        collar=rng.uniform(0.05, 0.085) if rng.random() < 0.7 else rng.uniform(0.085, 0.16),
        coat_hem=rng.uniform(-0.2, 0.05) if coat else NEVER,
        coat_sleeve=rng.uniform(0.56, 0.68) if rng.random() < 0.88 else 0.2,
        coat_collar=rng.uniform(0.05, 0.1),
        opening=opening,
        opening_slope=rng.uniform(-0.1, 0.35) * (opening > 0),
        opening_middle=rng.normal(0, 0.01),
        left_glove=gloves[0],
        right_glove=gloves[1],
        hat=rng.uniform(0.70, 0.735) if hat else NEVER,
        hat_tilt=rng.uniform(-0.1, 0.5),
        hairline=NEVER if bald else rng.normal(0, 0.008),
        hair_length=rng.uniform(0.54, 0.66),
        beard=rng.uniform(0.58, 0.605) if rng.random() < 0.14 else -NEVER,
    )


def _draw_loft(rng: np.random.Generator, tight: NDArray[np.bool_]) -> Array:
    loft = np.zeros(len(Thing))
    loft[[Thing.TOP, Thing.BOTTOM]] = rng.uniform(0.001, np.where(tight, 0.004, 0.022))
    loft[Thing.COAT] = loft[Thing.TOP] + rng.uniform(0.004, 0.03)
    loft[[Thing.SOCKS, Thing.LEFT_GLOVE, Thing.RIGHT_GLOVE]] = 0.003
    loft[[Thing.SHOES, Thing.HAIR, Thing.HAT, Thing.BEARD]] = rng.uniform(
        (0.004, 0.003, 0.008, 0.0), (0.016, 0.03, 0.03, 0.012)
    )
    return loft


def _draw_balls(rng: np.random.Generator, *, hat: bool, bald: bool) -> tuple[Array, Thing]:
    """Choose what is on the head, on the back and in the hands: centres and radii (2, 4, 3).

    The second result is what the thing on the head is made of.
    """
    centres, radii = balls = np.zeros((2, len(BALLS), 3))
    there = rng.random(4) < (0.7 if hat else 0.2, 0.12, 0.07, 0.07)
    if there[0] and hat:
        wide = rng.random() < 0.35
        size = rng.uniform(0.11, 0.2) if wide else rng.uniform(0.06, 0.085)
        centres[0] = (0, rng.uniform(0.1, 0.125), 0.02 if wide else rng.uniform(0.09, 0.13))
        radii[0] = (size, rng.uniform(0.006, 0.012), size)
    elif there[0] and not bald and rng.random() < 0.5:  # a bun
        centres[0] = (rng.normal(0, 0.01), rng.uniform(-0.02, 0.16), rng.uniform(-0.13, -0.07))
        radii[0] = rng.uniform(0.025, 0.06, 3)
    elif there[0] and not bald:  # a pony tail
        centres[0] = (rng.normal(0, 0.01), rng.uniform(-0.04, 0.02), -0.13)
        radii[0] = (0.03, rng.uniform(0.07, 0.13), 0.035)
    if there[1]:  # a rucksack
        centres[1] = (rng.normal(0, 0.02), rng.uniform(-0.15, 0.02), rng.uniform(-0.2, -0.12))
        radii[1] = rng.uniform((0.1, 0.13, 0.06), (0.18, 0.26, 0.13))
    for hand, side in ((2, 1), (3, -1)):
        if there[hand]:
            radii[hand] = 0.015 * 13 ** rng.random(3)
            centres[hand] = (0.04 * side, rng.normal(0, 0.05), rng.normal(0, 0.05))
    return balls, Thing.HAT if hat else Thing.HAIR


def _rows(hem: float) -> int:
    """Count the rows of a skirt down to the height `hem`."""
    return 1 + round((SKIRT_TOP - hem) / (SKIRT_TOP - SKIRT_BOTTOM) * (SKIRT_ROWS - 1))


class Surface(NamedTuple):
    """P points of people, ready to be lit."""

    colour: Tensor  # (3, P) linear RGB
    bumps: Tensor  # (3, P) to be added to unit normals
    gloss: Tensor  # (P,)


class Painter:
    """Evaluates looks on a device: what there is at a place, its colour and its relief."""

    _THING_OF_PART = (Thing.SKIN, Thing.SKIRT, Thing.HAIR, Thing.ON_HEAD, Thing.ON_BACK,
                      Thing.IN_LEFT_HAND, Thing.IN_RIGHT_HAND)  # fmt: skip

    def __init__(self, plates: Plates, *, device: torch.device) -> None:
        self._plates = plates
        self._thing_of_part = torch.tensor(self._THING_OF_PART, device=device)
        self._relief = torch.as_tensor(_relief_tile(), device=device)[None]
        self._sampled: Tensor | None = None

    def loft(self, look: Look, places: Tensor) -> Tensor:
        """Find how far the vertices of the body, at `places` (3, B), move outwards: (n, B), m."""
        thing = _worn(Cut(*look.cut.T[..., None]), places)
        x, y, _ = places
        down = torch.maximum((0.35 - y) / 0.5, (x.abs() - 0.2) / 0.45).clamp(0, 1)
        low = ((-0.1 - y) / 0.7).clamp(0, 1)
        lift = look.loft.gather(1, thing)
        for number, (garment, share) in enumerate(((Thing.TOP, down), (Thing.BOTTOM, low))):
            loose = look.looseness[:, number, None] * share
            lift = lift + loose * ((thing == garment) | (thing == garment + 1))  # or the coat
        uneven = torch.ones_like(lift)
        for share, field in zip(look.swell.T, self._swells(places), strict=True):
            uneven.addcmul_(share[:, None], field)
        return lift * uneven.clamp_(min=0.3)

    def _swells(self, places: Tensor) -> Tensor:
        """Sample fields of unit deviation (SWELLS, B) at the vertices of the body."""
        if self._sampled is None:
            shifts = torch.arange(1.0, SWELLS + 1, device=places.device) * 0.617
            self._sampled = torch.stack([self._noise(places + shift)[0] for shift in shifts])
        return self._sampled

    def paint(self, look: Look, owner: Tensor, places: Tensor, parts: Tensor) -> Surface:
        """Evaluate points at `places` (3, P) on `parts` (P,) of the persons `owner` (P,)."""
        thing = _worn(Cut(*look.cut.T.index_select(1, owner)), places)
        thing *= parts == Part.BODY
        thing += self._thing_of_part.index_select(0, parts)
        row = thing + len(Thing) * owner
        cloth = Cloth(*_rows_of(look.cloth, row))
        noise = self._noise(places + look.crumple.T.index_select(1, owner))
        colour = cloth.first * (1 + cloth.mottle * noise[2])
        (some,) = (cloth.pattern[0] > 0).nonzero(as_tuple=True)
        if len(some):
            figure = Figure(*_rows_of(look.figure, row.index_select(0, some)))
            own = (
                values.index_select(-1, some)
                for values in (colour, cloth.pattern[0], thing, places, noise[1])
            )
            colour.index_copy_(1, some, self._patterned(figure, *own))
        (face,) = ((thing == Thing.SKIN) & (places[2] > 0.045) & (places[1] > 0.53)).nonzero(
            as_tuple=True
        )
        own = (values.index_select(1, face) for values in (colour, places))
        colour.index_copy_(1, face, _face(*own))
        return Surface(colour.square(), cloth.folds * noise, cloth.gloss[0])

    def _patterned(
        self,
        figure: Figure,
        colour: Tensor,
        pattern: Tensor,
        thing: Tensor,
        places: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Spread second colours and pictures over points of one colour (3, P)."""
        x, y, z = places
        sleeve = (x.abs() > 0.2) & (y > 0.3)
        u = torch.where(sleeve, y + z, x + 0.4 * z)
        v = torch.where(sleeve, x.abs(), y)
        a, b, c, d = figure.turn
        uv = torch.stack([a * u + b * v, c * u + d * v]) + figure.shift
        colour = torch.lerp(colour, figure.second, _pattern(pattern, uv, noise))
        chest = (x.abs() < 0.12) & (y > 0.12) & (y < 0.38) & (z > 0)
        chest &= (thing == Thing.TOP) | (thing == Thing.COAT)
        printed = (pattern == Pattern.PRINT) & chest
        (rows,) = (printed | (pattern == Pattern.PLATE)).nonzero(as_tuple=True)
        if len(rows):
            on_chest = torch.stack([x / 0.24 + 0.5, (0.38 - y) / 0.26])
            u, v = torch.where(printed, on_chest, uv).index_select(1, rows)
            numbers = figure.plate[0].index_select(0, rows).long()
            colour.index_copy_(1, rows, self._plates.look_up(numbers, u, v))
        return colour

    def _noise(self, points: Tensor) -> Tensor:
        """Sample three fields of smooth noise (3, P), about ±1."""
        x, y, z = points
        plane = torch.stack([x + 0.37 * z, y + 0.61 * z]) / RELIEF_PERIOD
        plane -= plane.floor()
        plane.mul_(2 * RELIEF_SIDE / (RELIEF_SIDE + 1)).sub_(1)
        return F.grid_sample(self._relief, plane.T[None, None], align_corners=False)[0, :, 0]


def _rows_of(values: Cloth | Figure, rows: Tensor) -> Iterator[Tensor]:
    """Take rows (P,) of n people's things: each value as (k, P)."""
    table = torch.cat([value.reshape(-1, value.shape[2]) for value in values], dim=1)
    widths = [value.shape[2] for value in values]
    return iter(table.index_select(0, rows).T.contiguous().split(widths))


def _worn(cut: Cut, places: Tensor) -> Tensor:
    """Say of which Thing the body's surface is at places (3, P), with cuts that broadcast."""
    x, y, z = places
    across = x.abs()
    from_neck = x * x + (y - 0.55).square() + (z + 0.01).square()
    trunk = y < 0.53
    top = (y > cut.hem) & (across < cut.sleeve) & (from_neck > cut.collar.square())
    coat = (y > cut.coat_hem) & (across < cut.coat_sleeve) & (from_neck > cut.coat_collar.square())
    gap = cut.opening + cut.opening_slope * (y - 0.3).clamp(min=0)
    closed = (z < 0) | ((x - cut.opening_middle).abs() >= gap)
    hairline = torch.maximum(y - (0.728 + 1.2 * x * x), (0.045 - z) + 0.35 * (y - 0.68))
    fringe = y - 0.25 * z.clamp(min=0) > cut.hair_length
    beside = across < 0.08 + 0.6 * (y - 0.57).clamp(min=0)
    mouth = (x / 0.027).square() + ((y - 0.591) / 0.01).square()
    beard = (y < cut.beard + 0.3 * across) & (y > 0.52) & (z > 0.01) & (mouth > 1)
    covered = {
        Thing.SOCKS: y < cut.sock,
        Thing.BOTTOM: (y < cut.waist) & (y > cut.cuff),
        Thing.SHOES: y < cut.shoe,
        Thing.TOP: top & trunk,
        Thing.COAT: coat & trunk & closed,
        Thing.LEFT_GLOVE: x > cut.left_glove,
        Thing.RIGHT_GLOVE: -x > cut.right_glove,
        Thing.HAIR: (hairline > cut.hairline) & fringe & beside,
        Thing.BEARD: beard,
        Thing.HAT: y > cut.hat + cut.hat_tilt * (z - 0.1),
    }
    layers = (there.view(torch.uint8) * int(thing) for thing, there in covered.items())
    return reduce(torch.maximum, layers).long()  # things are numbered from the inside out


def _pattern(pattern: Tensor, uv: Tensor, noise: Tensor) -> Tensor:
    """Find the share (P,) of the second colour."""
    fu, fv = uv - uv.floor()
    radius = (fu - 0.5) ** 2 + (fv - 0.5) ** 2
    shares = {
        Pattern.STRIPES: lambda: fv < 0.5,
        Pattern.HALVES: lambda: fv < 0.5,
        Pattern.CHECKS: lambda: 0.5 * (fu < 0.5) + 0.5 * (fv < 0.5),
        Pattern.DOTS: lambda: radius < 0.07,
        Pattern.BLOTCHES: lambda: noise > 0.2,
        Pattern.FADING: lambda: 2 * (fv - 0.5).abs(),
        Pattern.CHEVRONS: lambda: (fv + (fu - 0.5).abs()) % 1 < 0.5,
        Pattern.RINGS: lambda: (3 * radius.sqrt()) % 1 < 0.5,
    }
    share = torch.zeros_like(fu)
    there = pattern.long().bincount(minlength=len(Pattern)).tolist()
    for kind, find in shares.items():
        if there[kind]:
            share = torch.where(pattern == kind, find().to(share), share)
    return share


def _face(colour: Tensor, places: Tensor) -> Tensor:
    """Add eyes, brows and mouth to the skin (3, P) of a face."""
    x, y, _ = places
    across = x.abs()
    eye = ((across - 0.031) / 0.0165) ** 2 + ((y - 0.667) / 0.007) ** 2
    pupil = (across - 0.031) ** 2 + (y - 0.667) ** 2 < 0.0075**2
    brow = ((y - 0.689 + 6 * (across - 0.03) ** 2).abs() < 0.005) & ((across - 0.032).abs() < 0.02)
    mouth = (x / 0.027) ** 2 + ((y - 0.591 - 3.0 * x * x) / 0.0085) ** 2 < 1
    shade = torch.where(brow | pupil, 0.3, torch.where(eye < 1.9, 0.6, 1.0))
    lips = colour.new_tensor([0.85, 0.6, 0.62])[:, None]
    colour = colour * torch.where(mouth, lips, shade)
    return torch.where((eye < 1) & ~pupil, 0.7, colour)


def _relief_tile() -> NDArray[np.float32]:
    """Make three fields of smooth noise of unit deviation that repeat: (3, side + 1, side + 1)."""
    rng = np.random.default_rng(RELIEF_SEED)
    frequency = np.fft.fftfreq(RELIEF_SIDE) * RELIEF_SIDE
    radius = np.hypot(frequency[:, None], frequency)
    strength = np.where(radius > 0.5, 1 / np.maximum(radius, 3) ** 2.2, 0)
    phases = np.fft.fft2(rng.standard_normal((3, RELIEF_SIDE, RELIEF_SIDE)))
    fields = np.fft.ifft2(phases * strength).real
    fields /= fields.std(axis=(1, 2), keepdims=True)
    return np.pad(fields, ((0, 0), (0, 1), (0, 1)), mode="wrap").astype(np.float32)
