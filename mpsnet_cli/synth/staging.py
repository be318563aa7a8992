"""Who does what, wearing what, where, before which camera: all dice thrown, in numpy.

The world has y up and its axes; the camera frame is OpenCV's (x right, y down, z forward). SMPL
turns a body about its pelvis joint p of the T-pose, so if the pelvis is at c in the camera frame
then transl = c - p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d
from scipy.spatial.transform import Rotation

from mpsnet_cli.body.arrays import BETAS, BodyArrays
from mpsnet_cli.crops import square_boxes
from mpsnet_cli.geometry import matrix_to_axis_angle, perspective_to_weak, project
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.synth.appearance import Look, draw_look
from mpsnet_cli.synth.backdrop import Backdrop, draw_backdrop
from mpsnet_cli.synth.film import Film, draw_film
from mpsnet_cli.synth.lighting import Light
from mpsnet_cli.synth.mannequin import Outline, skeleton_transforms
from mpsnet_cli.synth.motions import Repertoire, draw_movement
from mpsnet_cli.synth.plates import Plates
from mpsnet_cli.synth.records import Value
from mpsnet_cli.synth.repertoire import FPS

Array = NDArray[np.float64]

CROP_SCALE = MPSNetConfig().crop_scale  # side of a crop in longer sides of the person's box

IMAGES = ((640, 480), (720, 576), (1280, 720), (1920, 1080), (720, 1280), (512, 512))  # px
FOCAL_SPREAD = 0.3  # deviation of the logarithm of focal lengths about the image's diagonal
NEAREST = 0.6  # m, from the camera to whatever belongs to a person
CLOTHING = 0.01  # by which a box grows on all sides, in its longer sides
SOLE = 0.05  # m, from the lowest joint down to the ground
COMPANY_SHARE = 0.12  # of pictures, in which another person appears
LOW_SHARE = 0.07  # of pictures, in which something on the ground hides a body's lower part


class Camera(NamedTuple):
    """How the pixels of a crop see the world."""

    focal: Value  # px of the crop
    principal: Value  # (2,) px of the crop
    frame: Value  # (4,) first and last column and row of the virtual image, as px of the crop
    up: Value  # (3,) of the world, camera frame of the first picture
    height: Value  # m of the camera above the ground
    back: Value  # (3, 3) from this picture's camera axes to the first one's
    first: Value  # (3,) focal length, principal point: sides of the first crop from its middle


class Person(NamedTuple):
    """One person in one picture."""

    look: Look
    betas: Value  # (10,)
    rotations: Value  # (24, 3, 3) local, the root's in the camera frame
    transforms: Value  # (24, 3, 4) see skeleton_transforms
    transl: Value  # (3,) m


class Label(NamedTuple):
    """What is known of one picture before it is made, as in `CropBatch`."""

    pose: Value
    betas: Value
    cam: Value
    joints2d: Value
    joints3d: Value
    transl: Value
    bboxes: Value
    focal_length: Value
    image_size: Value


class Setting(NamedTuple):
    """All of one picture but people."""

    camera: Camera
    light: Light
    backdrop: Backdrop
    film: Film


class Scene(NamedTuple):
    """One picture, yet to be made."""

    label: Label
    person: Person
    company: Person | None
    setting: Setting


@dataclass(frozen=True)
class Act:
    """What one person does in N frames; camera axes, from where the pelvis is in the first."""

    look: Look
    betas: Array  # (10,)
    rotations: Array  # (N, 24, 3, 3) local
    transforms: Array  # (N, 24, 3, 4)
    pelvis: Array  # (3,) of the T-pose
    path: Array  # (N, 3) of the pelvis
    joints: Array  # (N, 24, 3)
    outline: Array  # (N, K, 3)
    ground: float  # world height of the ground

    def at(self, frame: int, turn: Array, start: Array) -> tuple[Person, Array]:
        """Show a frame to a camera turned by `turn`: the person, and the joints before transl."""
        rotations = self.rotations[frame].copy()
        rotations[0] = turn @ rotations[0]
        bones, shifts = np.split(self.transforms[frame], [3], axis=2)
        shifts = (shifts[..., 0] - self.pelvis) @ turn.T + self.pelvis
        transforms = np.concatenate([turn @ bones, shifts[..., None]], axis=2)
        transl = turn @ (start + self.path[frame]) - self.pelvis
        joints = (self.joints[frame] - self.path[frame]) @ turn.T + self.pelvis
        return Person(self.look, self.betas, rotations, transforms, transl), joints


class Staging:
    """Stages the samples of a seed and split; see Samples."""

    def __init__(
        self,
        body: BodyArrays,
        repertoire: Repertoire,
        cloth: Plates,
        world: Plates,
        *,
        seed: int,
        held_out: bool,
        size: int,
    ) -> None:
        self._repertoire = repertoire
        self._rest = (body.J_regressor @ body.v_template).astype(np.float64)
        self._rest_per_beta = np.einsum("jv,vck->jck", body.J_regressor, body.shapedirs)
        self._outline = Outline(body)
        self._cloth, self._world = cloth, world
        self._seed, self._held_out, self._size = seed, held_out, size

    def draw(self, index: int, *, frames: int) -> list[Scene]:
        """Stage consecutive pictures; a single one is not the first of several."""
        rng = np.random.default_rng((self._seed, int(self._held_out), int(frames > 1), index))
        image_size = np.array(IMAGES[rng.integers(len(IMAGES))], np.float64)
        focal = float(np.hypot(*image_size) * np.exp(rng.normal(0, FOCAL_SPREAD)))
        view, turns = _draw_view(rng), _sway(rng, frames)
        actor = self.act(rng, view, frames)
        start = _stand(rng, actor, focal, image_size)
        height = max(0.1, -(start @ view)[1] - actor.ground)
        company = self._accompany(rng, view, actor, start, frames)

        outline = (actor.outline + start) @ turns.swapaxes(1, 2)
        boxes = _boxes(
            project(outline, focal_length=focal, principal_point=image_size / 2), image_size
        )
        edge, seen = _hide_low(rng, boxes)
        squares = _jittered(rng, seen)
        first = squares[0]
        backdrop = draw_backdrop(rng, self._world, edge=(edge - first[1]) / first[2])
        light, film = draw_light(rng, view), draw_film(rng)
        scenes = []
        for frame, (turn, square) in enumerate(zip(turns, squares, strict=True)):
            person, joints = actor.at(frame, turn, start)
            zoom = self._size / square[2]
            corner = square[:2] - square[2:] / 2
            camera = Camera(
                focal=focal * zoom,
                principal=(image_size / 2 - corner) * zoom,
                frame=np.concatenate([-corner, image_size - 1 - corner]) * zoom,
                up=view[:, 1],
                height=height,
                back=turn.T,
                first=np.array([focal, *(image_size / 2 - first[:2])]) / first[2],
            )
            scenes.append(
                Scene(
                    label=_label(person, joints, square, focal, image_size),
                    person=person,
                    company=company and company[0].at(frame, turn, company[1])[0],
                    setting=Setting(
                        camera=camera,
                        light=light._replace(towards=turn @ light.towards),
                        backdrop=backdrop,
                        film=film.expose(rng),
                    ),
                )
            )
        return scenes

    def act(self, rng: np.random.Generator, view: Array, frames: int) -> Act:
        """Let somebody new do something; `view` takes world axes to camera axes."""
        movement = draw_movement(self._repertoire, rng, frames=frames, fps=FPS)
        betas = np.clip(rng.normal(0, 1, BETAS), -2.5, 2.5)
        rotations = movement.rotations.copy()
        rotations[:, 0] = view @ rotations[:, 0]
        path = movement.path @ view.T
        rest = self._rest + self._rest_per_beta @ betas
        joints, transforms = skeleton_transforms(rotations, np.broadcast_to(rest, (frames, 24, 3)))
        shift = path[:, None] - rest[0]
        joints = joints + shift
        return Act(
            look=draw_look(rng, self._cloth, held_out=self._held_out),
            betas=betas,
            rotations=rotations,
            transforms=transforms,
            pelvis=rest[0],
            path=path,
            joints=joints,
            outline=self._outline.points(transforms, betas) + shift,
            ground=float((joints @ view)[..., 1].min()) - SOLE,
        )

    def _accompany(
        self, rng: np.random.Generator, view: Array, actor: Act, start: Array, frames: int
    ) -> tuple[Act, Array] | None:
        """Perhaps let somebody else stand on the same ground, before or behind the actor."""
        if rng.random() >= COMPANY_SHARE:
            return None
        other = self.act(rng, view, frames)
        before = rng.random() < 0.35
        away = rng.uniform(-0.9, -0.35) if before else rng.uniform(0.3, 4)
        side = rng.choice((-1, 1)) * rng.uniform(0.25 if before else 0.0, 1.1)
        there = start + view @ np.array([side, actor.ground - other.ground, -away])
        return (other, there) if (other.outline + there)[..., 2].min() > NEAREST else None


def _draw_view(rng: np.random.Generator) -> Array:
    """Choose how the camera looks: world axes to camera axes."""
    kind = rng.random()
    if kind < 0.85:
        pitch = rng.normal(0.06, 0.1)
    elif kind < 0.97:
        pitch = rng.uniform(0.1, 0.6)
    else:
        pitch = rng.uniform(-0.4, 0)
    roll = rng.uniform(-np.pi, np.pi) if rng.random() < 0.005 else rng.normal(0, 0.04)
    turn = Rotation.from_euler("xz", (pitch, roll)).as_matrix()
    return turn @ np.diag([1.0, -1.0, -1.0])


def _sway(rng: np.random.Generator, frames: int) -> Array:
    """Hold a camera by hand: small turns (N, 3, 3) away from how it looks at first."""
    steady = rng.random() < 0.5
    if steady or frames == 1:
        return np.tile(np.eye(3), (frames, 1, 1))
    angles = _waves(rng, frames, FPS / 6)
    return Rotation.from_rotvec(rng.uniform(0, 0.015) * (angles - angles[0])).as_matrix()


def _stand(rng: np.random.Generator, actor: Act, focal: float, image_size: Array) -> Array:
    """Choose where in the camera frame the actor begins, so that enough will be in the image."""
    points = actor.outline.reshape(-1, 3)
    low, high = points.min(axis=0), points.max(axis=0)
    size, middle = (high - low)[:2], (high + low)[:2] / 2
    kind = rng.random()
    if kind < 0.88:  # whole, if it fits
        share = np.exp(rng.uniform(np.log(0.15), np.log(0.97)))
    elif kind < 0.97:  # cut by the lower edge
        share = rng.uniform(1.05, 2.4)
    else:
        share = np.exp(rng.uniform(np.log(0.3), np.log(1.3)))
    depth = max(focal * size[1] / (share * image_size[1]), NEAREST - low[2])
    half = focal * size / depth / 2
    place = rng.beta(2.5, 2.5, 2)  # people are filmed rather in the middle
    room = np.minimum(half, image_size / 2)
    if kind >= 0.97:
        room[0] *= 0.2  # cut by a side
    centre = room + place * (image_size - 2 * room)
    if 0.88 <= kind < 0.97:
        centre[1] = image_size[1] * rng.uniform(-0.04, 0.2) + half[1]
    return np.append(depth * (centre - image_size / 2) / focal - middle, depth)


def _boxes(pixels: NDArray[np.floating], image_size: Array) -> Array:
    """Find the boxes (N, 4), x1, y1, x2, y2, px, of outlines (N, K, 2) within the image."""
    low, high = pixels.min(axis=1), pixels.max(axis=1)
    grown = CLOTHING * (high - low).max(axis=1, keepdims=True)
    corners = [np.clip(low - grown, 0, image_size), np.clip(high + grown, 0, image_size)]
    return np.concatenate(corners, axis=1)


def _hide_low(rng: np.random.Generator, boxes: Array) -> tuple[float, Array]:
    """Perhaps put something before the legs: the row of its upper edge, and what is seen above."""
    if rng.random() >= LOW_SHARE:
        return np.inf, boxes
    top, height = boxes[:, 1], boxes[:, 3] - boxes[:, 1]
    edge = top[0] + rng.uniform(0.35, 0.85) * height[0]
    if rng.random() < 0.3:  # a detector that guesses the rest
        return edge, boxes
    seen = boxes.copy()
    seen[:, 3] = np.minimum(boxes[:, 3], np.maximum(edge, top + 0.3 * height))
    return edge, seen


def _jittered(rng: np.random.Generator, boxes: Array) -> Array:
    """Make the squares (N, 4), cx, cy, w, h, that a detector and a tracker would give."""
    count = len(boxes)
    if count > 1:
        boxes = gaussian_filter1d(boxes, 1.5, axis=0, mode="nearest")
    squares = square_boxes(boxes, scale=CROP_SCALE).astype(np.float64)
    errors = np.tile(rng.normal(0, 1, 3), (count, 1))
    if count > 1:
        errors = 0.7 * errors + 0.4 * _waves(rng, count, 4)
    spread = rng.choice((0.5, 1.0, 2.0), p=(0.4, 0.45, 0.15))
    squares[:, :2] += 0.025 * spread * errors[:, :2] * squares[:, 2:3]
    squares[:, 2:] *= np.exp(0.06 * spread * errors[:, 2:])
    return squares


def _waves(rng: np.random.Generator, count: int, width: float) -> Array:
    """Draw three smooth random signals of unit deviation (count, 3); `width` is in frames."""
    beyond = int(4 * width)
    noise = gaussian_filter1d(rng.normal(0, 1, (count + 2 * beyond, 3)), width, axis=0)
    return noise[beyond : beyond + count] * np.sqrt(2 * np.sqrt(np.pi) * width)


def draw_light(rng: np.random.Generator, view: Array) -> Light:
    """Choose sun or lamp, sky and ground."""
    rise, around = rng.uniform(0.1, 1.45), rng.uniform(0, 2 * np.pi)
    towards = (np.cos(rise) * np.sin(around), np.sin(rise), np.cos(rise) * np.cos(around))
    overcast = rng.random() < 0.4
    direct = rng.uniform(0, 0.4) if overcast else rng.uniform(0.4, 1.5)
    ambient = rng.uniform(0.6, 1.1) if overcast else rng.uniform(0.25, 0.7)
    tints = np.exp(rng.normal(0, 0.06, (3, 3)))
    return Light(
        towards=view @ np.array(towards),
        direct=direct * tints[0],
        above=ambient * tints[1],
        below=ambient * rng.uniform(0.2, 0.9) * tints[2],
        shadow=rng.uniform(0.5, 1),
    )


def _label(person: Person, joints: Array, square: Array, focal: float, image_size: Array) -> Label:
    middle = image_size / 2
    pixels = project(joints + person.transl, focal_length=focal, principal_point=middle)
    cam = perspective_to_weak(
        person.transl[None], square[None], focal_length=focal, principal_point=middle
    )
    return Label(
        pose=matrix_to_axis_angle(person.rotations).reshape(-1),
        betas=person.betas,
        cam=cam[0],
        joints2d=2 * (pixels - square[:2]) / square[2],
        joints3d=joints,
        transl=person.transl,
        bboxes=square,
        focal_length=focal,
        image_size=image_size,
    )
