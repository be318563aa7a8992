"""Pictures of any number of people, near and far, with a box around what is seen of each.

Made as the crops are, from the same movements, clothes, plates and cameras. A box spans a person's
pixels with clothes, hair and hat, without what is carried, as COCO's annotators draw them. It is
left out where less is seen than LEAST_SEEN of what the picture's edges leave of the person, or than
LEAST_WHOLE of the whole person, or where it would be smaller than LEAST_BOX.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from mpsnet_cli.geometry import project
from mpsnet_cli.synth.backdrop import PROPS, Backdrop, draw_backdrop, paint_backdrop
from mpsnet_cli.synth.film import SENSORS, Film, develop, draw_film
from mpsnet_cli.synth.gbuffer import NEAR, GBuffer, Rasteriser, rasterise
from mpsnet_cli.synth.lighting import Shadows
from mpsnet_cli.synth.mannequin import Part
from mpsnet_cli.synth.records import Value, stack
from mpsnet_cli.synth.repertoire import Split, load_repertoire
from mpsnet_cli.synth.samples import PIXELS_AT_ONCE
from mpsnet_cli.synth.staging import Act, Camera, Person, Setting, Staging, draw_light
from mpsnet_cli.synth.studio import Studio

Array = NDArray[np.float64]

LEAST_SEEN = 0.15  # of the person's area within the picture, about
LEAST_WHOLE = 0.04  # of the person's area, about
LEAST_BOX = 3, 8  # px, width and height

COUNTS = (0.1, 0.32, 0.22, 0.14, 0.09, 0.05, 0.04, 0.02, 0.02)  # shares of scenes, by people wanted
FOCAL = 1.2  # sides of the picture: a field of view of 45°
FOCAL_SPREAD = 0.35  # deviation of its logarithm
OFF_CENTRE = 0.08  # deviation of the principal point, sides of the picture
SHARES = 0.18, 1.7  # height of the nearest person, sides of the picture
TALL, MIDDLE = 1.7, 0.9  # m, of a person, and of its middle above the ground
BESIDE = 0.25  # share of people who stand beside another
APART = 0.4  # m, that people keep from each other
NEAREST = 0.5  # m, from the camera to whatever belongs to a person
SMALLEST = 0.08  # height of a person, sides of the picture
INSIDE = 0.2  # share of a person's box that the picture's edges leave
TRIES = 4  # at placing a person, before it stays away
PALEST = 0.35  # share of the colours' strength that is kept: streets are duller than crops
LEGIBLE = 12  # px of the sensor, that the smallest person's height has at least
GROUND_MARGIN = 1.4  # m, of shadows beyond people
WIDEST = 9.0  # m, half of what is shaded by people at most


class Shade(NamedTuple):
    """The part of the ground on which people's shadows fall."""

    middle: Value  # (3,) m, camera frame
    reach: Value  # m, half of how far it extends


class Gathering(NamedTuple):
    """One scene, yet to be pictured."""

    people: tuple[Person, ...]  # one at least: in an empty scene it is behind the camera
    setting: Setting
    shade: Shade


@dataclass(frozen=True)
class SceneBatch:
    """n pictures of S × S and the boxes in them."""

    images: NDArray[np.uint8]  # (n, S, S, 3) RGB
    boxes: NDArray[np.float32]  # (N, 4) x1, y1, x2, y2, px, of all pictures one after another
    counts: NDArray[np.int64]  # (n,) how many are each picture's


class Crowds:
    """Draws and renders the scenes of one seed and split; all arguments are as for `Samples`."""

    def __init__(
        self,
        seed: int,
        *,
        size: int = 416,
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
        self._seed, self._held_out = seed, split == "held-out"
        self._rasteriser = rasteriser
        self._staging = Staging(
            self._studio.body,
            load_repertoire(split),
            self._studio.cloth,
            self._studio.world,
            seed=seed,
            held_out=self._held_out,
            size=size,
        )

    def scenes(self, indices: Iterable[int]) -> SceneBatch:
        """Make scenes."""
        return self.render([self.draw(index) for index in indices])

    def draw(self, index: int) -> Gathering:
        """Throw the dice for a scene; needs no device, and can be pickled."""
        rng = np.random.default_rng((self._seed, int(self._held_out), 2, index))
        size = self.size
        wanted = int(np.searchsorted(np.cumsum(COUNTS[:-1]), rng.random(), side="right"))
        place = _draw_place(rng, size, crowded=wanted > 3)
        group = _Group(place)
        for _ in range(wanted):
            group.join(rng, self._staging.act(rng, place.view, 1))
        people = tuple(act.at(0, np.eye(3), start)[0] for act, start in group.members)
        if not people:
            act = self._staging.act(rng, place.view, 1)
            people = (act.at(0, np.eye(3), np.array([0.0, 0.0, -9.0]))[0],)
        feet = group.feet if group.members else np.zeros((1, 2))
        middle = (feet.min(axis=0) + feet.max(axis=0)) / 2
        reach = np.abs(feet - middle).max() + GROUND_MARGIN
        furthest = np.linalg.norm(feet, axis=1).max()
        camera = Camera(
            focal=place.focal,
            principal=place.principal,
            frame=np.array([0.0, 0.0, size - 1, size - 1]),
            up=place.view[:, 1],
            height=place.height,
            back=np.eye(3),
            first=np.array([place.focal, *(place.principal - size / 2)]) / size,
        )
        low = rng.random() < 0.07  # something before everybody's legs
        edge = rng.uniform(0, 0.35) if low else np.inf
        backdrop = draw_backdrop(rng, self._studio.world, edge=edge)
        setting = Setting(
            camera=camera,
            light=draw_light(rng, place.view),
            backdrop=_furnished(rng, backdrop, furthest),
            film=_draw_film(rng, group.smallest),
        )
        ahead = np.array([middle[0], MIDDLE - place.height, -middle[1]])
        return Gathering(people, setting, Shade(place.view @ ahead, min(reach, WIDEST)))

    @torch.inference_mode()
    def render(self, scenes: Sequence[Gathering]) -> SceneBatch:
        """Make the pictures of scenes, and find who is seen in them."""
        at_once = len(scenes)
        if self.device.type == "cpu":
            at_once = max(1, PIXELS_AT_ONCE // self.size**2)
        parts = [self._render(scenes[k : k + at_once]) for k in range(0, len(scenes), at_once)]
        return SceneBatch(*(np.concatenate(part) for part in zip(*parts, strict=True)))

    def _render(
        self, scenes: Sequence[Gathering]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]:
        studio, device = self._studio, self.device
        persons = [person for scene in scenes for person in scene.people]
        counts = torch.tensor([len(scene.people) for scene in scenes], device=device)
        owner = torch.arange(len(scenes), device=device).repeat_interleave(counts)
        first = counts.cumsum(0) - counts
        studio.cloth.load(np.stack([person.look.figure.plate for person in persons]))
        studio.world.load(np.stack([scene.setting.backdrop.plates() for scene in scenes]))
        people: Person = stack(persons, device)
        camera, light, backdrop, film = stack([scene.setting for scene in scenes], device)
        shade = stack([scene.shade for scene in scenes], device)

        vertices, normals = studio.pose(people)
        seen = self._rasterise(vertices, owner, first, camera)
        towards = light.towards[owner]
        own = torch.arange(len(owner), device=device)
        folds = Shadows(vertices, own, vertices.mean(dim=1), towards)
        cast = Shadows(vertices, owner, shade.middle, light.towards, reach=shade.reach)
        view = studio.view(camera, light, cast)
        picture, front = paint_backdrop(backdrop, view, studio.world)
        shown = (seen.face >= 0) & ~front

        # Narrow places are those of one body: how far each is away does not count.
        away = vertices[..., 2].mean(dim=1)
        body = (first[:, None, None] + seen.face // len(studio.mannequin.faces)).clamp(min=0)
        relief = seen.depth - away[body]
        studio.draw_people(
            picture,
            seen,
            shown,
            relief,
            first=first,
            owner=owner,
            look=people.look,
            normals=normals,
            hidden=folds.hidden,
            camera=camera,
            light=light,
        )
        sensors = np.array([scene.setting.film.sensor for scene in scenes])
        picture = develop(picture.transpose(0, 1), film, sensors=sensors)
        levels = picture.mul_(255).round_().int().to(torch.uint8)

        boxes, there = self._boxes(seen, shown, first, vertices, camera, owner)
        images = torch.stack(levels.unbind(dim=1), dim=3)
        found = torch.bincount(owner[there], minlength=len(scenes))
        return images.cpu().numpy(), boxes[there].cpu().numpy(), found.cpu().numpy()

    def _rasterise(self, vertices: Tensor, owner: Tensor, first: Tensor, camera: Camera) -> GBuffer:
        """Draw each scene's people into one buffer, face numbers going on from one to the next."""
        faces = self._studio.mannequin.faces
        total, most = vertices.shape[1], int(torch.bincount(owner).max())
        slots = vertices.new_full((len(first), most, total, 3), -1)  # behind the camera
        slots[owner, torch.arange(len(owner), device=owner.device) - first[owner]] = vertices
        steps = total * torch.arange(most, device=faces.device)
        return rasterise(
            slots.view(len(first), -1, 3),
            (faces + steps[:, None, None]).view(-1, 3),
            focal=camera.focal,
            principal=camera.principal,
            size=self.size,
            method=self._rasteriser,
        )

    def _boxes(
        self,
        seen: GBuffer,
        shown: Tensor,
        first: Tensor,
        vertices: Tensor,
        camera: Camera,
        owner: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Find the boxes (m, 4) of all people, px, and of whom enough is seen (m,)."""
        mannequin, size = self._studio.mannequin, self.size
        number = shown.view(-1).nonzero()[:, 0]
        face = seen.face.view(-1).index_select(0, number)
        corner = mannequin.faces[face % len(mannequin.faces), 0]
        worn = mannequin.kinds[corner] <= Part.ON_HEAD
        number, face = number[worn], face[worn]
        person = first[number // (size * size)] + face // len(mannequin.faces)
        at = torch.stack([number % size, number // size % size], dim=1)
        edges = [at.new_full((len(owner), 2), value) for value in (size, -1)]
        for edge, how in zip(edges, ("amin", "amax"), strict=True):
            edge.scatter_reduce_(0, person[:, None].expand_as(at), at, how)
        boxes = torch.cat([edges[0], edges[1] + 1], dim=1).float()
        visible = torch.bincount(person, minlength=len(owner))
        within, whole = self._areas(vertices, camera, owner)
        sides = boxes[:, 2:] - boxes[:, :2]
        there = (sides >= sides.new_tensor(LEAST_BOX)).all(dim=1)
        return boxes, there & (visible >= LEAST_SEEN * within) & (visible >= LEAST_WHOLE * whole)

    def _areas(self, vertices: Tensor, camera: Camera, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Measure the bodies' areas (m,), px²: what lies within the picture, and all of them.

        They are those of the faces turned to the camera: a little more than the outline has.
        """
        mannequin = self._studio.mannequin
        skin = mannequin.faces[mannequin.kinds[mannequin.faces[:, 0]] == Part.BODY]
        depth = vertices[..., 2:]
        pixels = camera.focal[owner, None, None] * vertices[..., :2] / depth.clamp(min=NEAR)
        pixels += camera.principal[owner, None]
        before = (depth[..., 0] > NEAR)[:, skin].all(dim=2)

        def area(points: Tensor) -> Tensor:
            a, b, c = points[:, skin].unbind(dim=2)
            (ux, uy), (vx, vy) = (b - a).unbind(dim=2), (c - a).unbind(dim=2)
            return ((uy * vx - ux * vy).clamp(min=0) * before).sum(dim=1) / 2

        return area(pixels.clamp(-0.5, self.size - 0.5)), area(pixels)


class _Place(NamedTuple):
    """A camera in a world without people; its own column on the ground is the world's origin."""

    size: int
    focal: float  # px
    principal: Array  # (2,) px
    view: Array  # (3, 3) world axes to camera axes
    height: float  # m, above the ground
    distance: float  # m, along the ground, to the nearest person


def _draw_place(rng: np.random.Generator, size: int, *, crowded: bool) -> _Place:
    """Choose a camera, and let it look at where the first person will be."""
    focal = FOCAL * size * np.exp(rng.normal(0, FOCAL_SPREAD))
    least, most = SHARES
    share = np.exp(rng.uniform(np.log(least), np.log(0.6 * most if crowded else most)))
    slant = max(focal * TALL / (share * size), 0.7)
    kind = rng.random()
    if kind < 0.55:  # held by hand
        height = rng.uniform(0.9, 1.9)
    elif kind < 0.88:  # from above: stairs, windows, poles
        height = MIDDLE + slant * np.sin(rng.uniform(0.12, 0.85))
    else:
        height = rng.uniform(0.15, 0.9)
    height = min(height, MIDDLE + 0.8 * slant)
    distance = float(np.sqrt(max(slant**2 - (height - MIDDLE) ** 2, 0.25)))
    if share < 0.8:
        row = rng.uniform(-0.5, 0.5) * (1 - share)
    else:  # the head is seen rather than the feet
        row = rng.uniform(-0.05, 0.3) + share / 2 - 0.5
    principal = size * (0.5 + OFF_CENTRE * rng.standard_normal(2))
    below = np.arctan2(height - MIDDLE, distance)
    pitch = below - np.arctan((row * size + size / 2 - principal[1]) / focal)
    roll = rng.uniform(-np.pi, np.pi) if rng.random() < 0.02 else rng.normal(0, 0.04)
    turn = Rotation.from_euler("xz", (pitch, roll)).as_matrix()
    return _Place(size, focal, principal, turn @ np.diag([1.0, -1.0, -1.0]), height, distance)


class _Group:
    """Who has come, and where they stand."""

    def __init__(self, place: _Place) -> None:
        self.members: list[tuple[Act, Array]] = []  # with where the pelvis is, camera frame
        self.smallest = np.inf  # px, height of the smallest person
        self._place = place
        self._feet: list[Array] = []  # (2,) m: to the right, ahead

    @property
    def feet(self) -> Array:
        """Where people stand on the ground (n, 2), m to the right and ahead."""
        return np.array(self._feet)

    def join(self, rng: np.random.Generator, act: Act) -> None:
        """Find somebody a place in the picture; after a few tries they stay away."""
        place = self._place
        for _ in range(TRIES):
            spot = self._draw_spot(rng)
            if self._feet and np.linalg.norm(self.feet - spot, axis=1).min() < APART:
                continue
            start = place.view @ np.array([spot[0], -place.height - act.ground, -spot[1]])
            outline = act.outline[0] + start
            if outline[:, 2].min() < NEAREST:
                continue
            pixels = project(outline, focal_length=place.focal, principal_point=place.principal)
            low, high = pixels.min(axis=0), pixels.max(axis=0)
            left = np.clip(high, 0, place.size) - np.clip(low, 0, place.size)
            tall = high[1] - low[1]
            if left.prod() >= INSIDE * (high - low).prod() and tall >= SMALLEST * place.size:
                self.members.append((act, start))
                self._feet.append(spot)
                self.smallest = min(self.smallest, tall)
                return

    def _draw_spot(self, rng: np.random.Generator) -> Array:
        place = self._place
        if self._feet and rng.random() < BESIDE:
            angle = rng.uniform(0, 2 * np.pi)
            beside = self._feet[rng.integers(len(self._feet))]
            return beside + rng.uniform(APART, 1.5) * np.array([np.cos(angle), np.sin(angle)])
        away = place.distance * (np.exp(rng.uniform(-0.2, 1.3)) if self._feet else 1.0)
        column = rng.uniform(-0.05, 1.05) if self._feet else rng.beta(1.7, 1.7)
        slant = np.hypot(away, place.height - MIDDLE)
        side = (column * place.size - place.principal[0]) / place.focal * slant
        return np.array([side, away])


def _furnished(rng: np.random.Generator, backdrop: Backdrop, furthest: float) -> Backdrop:
    """Make a backdrop of a crop that of a scene.

    What is behind is as fine as people are, most people stand on a ground, and some things have a
    person's proportions.
    """
    half, turn, centre = (
        values.copy()
        for values in (backdrop.props.half, backdrop.props.turn, backdrop.props.centre)
    )
    for k in range(PROPS - 2):
        if rng.random() < 0.3 and half[k].any():
            tall = np.exp(rng.uniform(np.log(0.03), np.log(0.4)))
            half[k] = tall * rng.uniform(0.15, 0.45), tall
            centre[k] = rng.uniform(-0.5, 0.5, 2)
            tilt = rng.normal(0, 0.05)
            turn[k] = (np.cos(tilt), -np.sin(tilt)), (np.sin(tilt), np.cos(tilt))
    reach = backdrop.reach
    if rng.random() < 0.75:
        reach = max(reach, furthest * np.exp(rng.uniform(0.1, 1.5)))
    return backdrop._replace(
        behind_turn=backdrop.behind_turn * np.exp(rng.uniform(0, 1.2)),
        reach=reach,
        props=backdrop.props._replace(half=half, turn=turn, centre=centre),
    )


def _draw_film(rng: np.random.Generator, smallest: float) -> Film:
    """Choose a camera with pixels enough for the smallest person, px."""
    film = draw_film(rng)
    sensor = film.sensor
    while sensor > 0 and SENSORS[sensor] * smallest < LEGIBLE:
        sensor -= 1
    saturation = film.saturation * rng.uniform(PALEST, 1)
    return film._replace(sensor=sensor, saturation=saturation).expose(rng)
