"""What a body model learns from its people: weights, shapes, regressors and pose correctives.

Everything here is made symmetric: what holds for a vertex holds mirrored for the vertex `mirror`
of it on the other side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import nnls
from scipy.spatial.transform import Rotation

from mpsnet_cli.body.arrays import BETAS, JOINTS
from mpsnet_cli.body.skeleton import JOINT_NAMES, KEYPOINT_NAMES, PARENTS

SMOOTHING_STEPS = 7
SMALLEST_WEIGHT = 0.01

FITTED_PEOPLE = 160  # enough for a regressor; the rest would only cost time
CANDIDATES = 500  # vertices that a joint may be mixed from, at most
KEYPOINT_CANDIDATES = 120
# How far from a joint its vertices may be, m. Elsewhere REACH.
REACHES = {
    "pelvis": 0.24, "spine1": 0.24, "spine2": 0.24, "spine3": 0.26, "neck": 0.16, "collar": 0.16,
    "head": 0.16, "hip": 0.20, "shoulder": 0.15, "knee": 0.13, "elbow": 0.11,
}  # fmt: skip
REACH = 0.10

POSES = 240  # each joint is turned in so many ways for its correctives
CORRECTION = 0.6  # share of the way from linear to dual-quaternion skinning

Rows = NDArray[np.float64]


def mirrored_name(name: str) -> str:
    """Name the same thing on the other side."""
    if name.startswith("left_"):
        return "right_" + name.removeprefix("left_")
    return name.replace("right_", "left_")


MIRRORED_JOINT = np.array([JOINT_NAMES.index(mirrored_name(name)) for name in JOINT_NAMES])


def symmetric(points: NDArray, mirror: NDArray) -> NDArray:
    """Average points, or displacements of them, (V, 3, ...) with their mirror image."""
    flip = np.array([-1.0, 1, 1]).reshape(3, *[1] * (points.ndim - 2))
    return 0.5 * (points + points[mirror] * flip)


def skin_weights(weights: NDArray, faces: NDArray, mirror: NDArray) -> NDArray:
    """Smooth weights (V, 24) over the surface, without those that hardly count."""
    neighbours = _adjacency(faces)
    for _ in range(SMOOTHING_STEPS):
        weights = 0.5 * (weights + neighbours @ weights)
    weights = 0.5 * (weights + weights[mirror][:, MIRRORED_JOINT])
    weights[weights < SMALLEST_WEIGHT] = 0
    return weights / weights.sum(axis=1, keepdims=True)


def fewer_influences(
    weights: NDArray, template: NDArray, joints: NDArray, mirror: NDArray, *, most: int
) -> NDArray:
    """Leave each vertex no more than `most` joints, whose weights (V, 24) still sum to 1.

    Cutting off the smallest weights would crease the skin: a small share of a shoulder moves the
    chest more than a large one of the spine. Instead a joint hands its weight to its parent or to
    its child, as often as needed and each time where it matters least: by what the turns of the
    lower of the two move the vertex.
    """
    lower, upper = np.arange(1, JOINTS), np.array(PARENTS[1:])
    givers, takers = np.append(lower, upper), np.append(upper, lower)
    swings = _swings(template, joints, mirror)[:, np.append(lower, lower)]
    weights = weights.copy()
    for own, swing in zip(weights, swings, strict=True):
        while np.count_nonzero(own) > most:
            loss = np.where(own[takers] > 0, own[givers] * swing, 0)
            least = loss[loss > 0].min()
            # Two at once in the middle of the body, where left and right matter equally.
            for k in np.flatnonzero(np.isclose(loss, least, rtol=1e-6, atol=0)):
                own[takers[k]] += own[givers[k]]
                own[givers[k]] = 0
    return weights


def shape_space(people: NDArray, faces: NDArray, mirror: NDArray) -> NDArray:
    """Find the ten directions (V, 3, 10) in which people differ most, m per standard deviation.

    A positive beta is taller for the first of them, and of greater volume for the others.
    """
    count, mean = len(people), people.mean(axis=0)
    spread = (people - mean).reshape(count, -1)
    variances, mixes = np.linalg.eigh((spread @ spread.T).astype(np.float64))
    variances, mixes = variances[::-1], mixes[:, ::-1]
    percent = 100 * variances[:BETAS] / variances.sum()
    print(f"shape: {percent.round(2).tolist()} %, together {percent.sum():.2f} %")
    shapes = (spread.T @ mixes[:, :BETAS] / np.sqrt(count - 1)).reshape(*mean.shape, BETAS)
    shapes = symmetric(shapes, mirror)
    for k in range(BETAS):
        moved = mean + shapes[..., k]
        grows = _volume(moved, faces) > _volume(mean, faces)
        if k == 0:
            grows = np.ptp(moved[:, 1]) > np.ptp(mean[:, 1])
        if not grows:
            shapes[..., k] *= -1
    return shapes


def joint_regressor(people: NDArray, joints: NDArray, weights: NDArray, mirror: NDArray) -> Rows:
    """Fit the joints (N, 24, 3) as mixes (24, V) of vertices that they, or theirs, move."""
    mean, where = people.mean(axis=0), joints.mean(axis=0)
    rows = np.zeros((JOINTS, len(mean)))
    for j, name in enumerate(JOINT_NAMES):
        if name.startswith("right_"):
            rows[j] = rows[MIRRORED_JOINT[j]][mirror]
            continue
        reach = REACHES.get(name.removeprefix("left_"), REACH)
        near = np.flatnonzero(np.linalg.norm(mean - where[j], axis=1) < reach)
        kin = [k for k in range(JOINTS) if PARENTS[k] == j or PARENTS[j] == k]
        near = near[(weights[near, j] > 0.01) | (weights[near][:, kin].sum(axis=1) > 0.05)]
        if name.startswith("left_"):
            near = near[mean[near, 0] > -0.02]
        if len(near) > CANDIDATES:
            near = np.random.default_rng(0).choice(near, CANDIDATES, replace=False)
        rows[j, near] = _mix(people[:, near], joints[:, j])
        if not name.startswith("left_"):
            rows[j] = 0.5 * (rows[j] + rows[j][mirror])
    _print_errors("joints", rows, people, joints)
    return rows


def keypoint_regressor(people: NDArray, keypoints: NDArray, mirror: NDArray) -> Rows:
    """Fit the keypoints (N, 23, 3) as mixes (23, V) of the vertices around them."""
    mean, where = people.mean(axis=0), keypoints.mean(axis=0)
    rows = np.zeros((len(KEYPOINT_NAMES), len(mean)))
    for k, name in enumerate(KEYPOINT_NAMES):
        if name.startswith("right_"):
            rows[k] = rows[KEYPOINT_NAMES.index(mirrored_name(name))][mirror]
            continue
        near = np.argsort(np.linalg.norm(mean - where[k], axis=1))[:KEYPOINT_CANDIDATES]
        rows[k, near] = _mix(people[:, near], keypoints[:, k])
        if name == "nose":
            rows[k] = 0.5 * (rows[k] + rows[k][mirror])
    _print_errors("keypoints", rows, people, keypoints)
    return rows


def landmarks(
    template: NDArray,
    keypoint_rows: Rows,
    mirror: NDArray,
    bone_weights: NDArray,
    bones: Sequence[str],
) -> dict[str, int]:
    """Choose the vertices that smplx reports as extra joints, under its names."""
    places = dict(zip(KEYPOINT_NAMES, keypoint_rows @ template, strict=True))
    left = {
        "eye": "left_eye",
        "ear": "left_ear",
        "BigToe": "left_big_toe",
        "SmallToe": "left_small_toe",
        "Heel": "left_heel",
    }
    chosen = {
        part: int(np.argmin(np.linalg.norm(template - places[name], axis=1)))
        for part, name in left.items()
    }
    for number, finger in enumerate(("thumb", "index", "middle", "ring", "pinky"), start=1):
        tip = np.flatnonzero(bone_weights[:, bones.index(f"finger{number}-3.L")] > 0.5)
        outward = np.array([1, -0.2, 0.9 if finger == "thumb" else 0])
        chosen[finger] = int(tip[np.argmax(template[tip] @ outward)])
    middle = np.flatnonzero((mirror == np.arange(len(mirror))) & (template[:, 1] > 0.6))
    result = {"nose": int(middle[np.argmax(template[middle, 2])])}
    for part, vertex in chosen.items():
        upper = part[0].isupper()
        result[("L" if upper else "l") + part] = vertex
        result[("R" if upper else "r") + part] = int(mirror[vertex])
    return result


def pose_correctives(
    template: NDArray, weights: NDArray, joints: NDArray, mirror: NDArray
) -> NDArray:
    """Fit displacements (V, 3, 207) that take linear skinning towards dual-quaternion skinning.

    One joint at a time is turned at random within its range, and the displacement of the T-posed
    vertex that makes up the difference (Kavan et al., 2007) is regressed on the nine entries of
    its rotation matrix minus the identity. In a frame centred on the joint both sides turn about
    one point, so that a dual quaternion is an interpolated rotation.
    """
    rng = np.random.default_rng(0)
    result = np.zeros((len(template), 3, JOINTS - 1, 9))
    for j in range(1, JOINTS):
        below = [k for k in range(JOINTS) if j in _chain(k)]
        share = weights[:, below].sum(axis=1)
        bent = np.flatnonzero((share > 0.005) & (share < 0.995))
        if not len(bent):
            continue
        turns = _random_turns(JOINT_NAMES[j], rng)
        share = share[bent][None, :, None]
        quaternions = turns.as_quat(scalar_first=True)
        quaternions *= np.where(quaternions[:, :1] < 0, -1, 1)
        blended = (1 - share) * np.array([1.0, 0, 0, 0]) + share * quaternions[:, None]
        smooth = Rotation.from_quat(blended.reshape(-1, 4), scalar_first=True).as_matrix()
        smooth = smooth.reshape(POSES, len(bent), 3, 3)
        matrices = turns.as_matrix()
        share = share[..., None]
        linear = (1 - share) * np.eye(3) + share * matrices[:, None]
        missing = CORRECTION * np.einsum(
            "mvij,vj->mvi", smooth - linear, template[bent] - joints[j]
        )
        # Undo the skinning; it is close to singular near half a turn, hence the ridge.
        back = linear.swapaxes(-1, -2)
        offsets = np.linalg.solve(back @ linear + 0.05 * np.eye(3), back @ missing[..., None])
        entries = (matrices - np.eye(3)).reshape(POSES, 9)
        ridge = 0.02 * POSES * entries.var() * np.eye(9)
        fitted = np.linalg.solve(
            entries.T @ entries + ridge, entries.T @ offsets.reshape(POSES, -1)
        )
        result[bent, :, j - 1] = np.moveaxis(fitted.reshape(9, len(bent), 3), 0, -1)
    # Entry (a, b) of a mirrored rotation changes its sign as x does in a and in b.
    flip = np.array([-1, 1, 1])
    other = result[mirror][:, :, MIRRORED_JOINT[1:] - 1] * np.outer(flip, flip).ravel()
    other *= flip[:, None, None]
    return (0.5 * (result + other)).reshape(len(template), 3, -1)


def _swings(template: NDArray, joints: NDArray, mirror: NDArray) -> NDArray:
    """Measure how far each joint's turns move each vertex: (V, 24) m, root mean square."""
    rng = np.random.default_rng(0)
    swings = np.zeros((len(template), JOINTS))
    for j in range(1, JOINTS):
        turns = _random_turns(JOINT_NAMES[j], rng).as_matrix() - np.eye(3)
        moved = np.einsum("mij,vj->mvi", turns, template - joints[j])
        swings[:, j] = np.sqrt((moved**2).sum(axis=2).mean(axis=0))
    return 0.5 * (swings + swings[mirror][:, MIRRORED_JOINT])


def _random_turns(joint: str, rng: np.random.Generator) -> Rotation:
    """Draw axis-angle rotations within what a joint does, for the left side or mirrored."""
    sign = -1 if joint.startswith("right_") else 1

    def within(low: float, high: float) -> NDArray:
        return rng.uniform(low, high, POSES)

    def about(deviation: float) -> NDArray:
        return rng.normal(0, deviation, POSES)

    def half() -> NDArray:
        return rng.random(POSES)

    part = joint.rpartition("_")[2]
    if part == "elbow":
        x, y, z = within(-1.3, 1.3) * (half() < 0.5), -sign * within(0, 2.4), about(0.1)
    elif part == "knee":
        x, y, z = within(0, 2.3), about(0.15), about(0.1)
    elif part == "hip":
        x, y, z = within(-2, 0.6), sign * within(-0.6, 0.6), sign * within(-0.3, 0.9)
    elif part == "shoulder":
        x, y = within(-1, 1), -sign * within(-0.5, 1.5) * (half() < 0.6)
        z = sign * within(-1.4, 1.1)
    elif part == "wrist":
        x, y, z = within(-1.3, 1.3), about(0.3), within(-1, 1)
    elif part == "ankle":
        x, y, z = within(-0.8, 0.8), about(0.3), about(0.3)
    elif part in ("neck", "head"):
        x, y, z = within(-0.6, 0.6), within(-0.8, 0.8), within(-0.4, 0.4)
    else:
        x, y, z = rng.normal(0, 0.3, (POSES, 3)).T
    return Rotation.from_rotvec(np.stack([x, y, z], axis=1))


def _mix(vertices: NDArray, target: NDArray) -> NDArray:
    """Mix vertices (N, C, 3) to the target (N, 3): weights (C,), none negative, of sum 1."""
    some = np.linspace(0, len(vertices) - 1, FITTED_PEOPLE).astype(int)
    count = vertices.shape[1]
    equations = vertices[some].transpose(0, 2, 1).reshape(-1, count)
    sum_to_one = np.full((1, count), 100.0)
    ridge = 3e-3 * 0.05 * np.sqrt(len(some)) * np.eye(count)
    mix, _ = nnls(
        np.concatenate([equations, sum_to_one, ridge]),
        np.concatenate([target[some].ravel(), [100.0], np.zeros(count)]),
        maxiter=50 * count,
    )
    mix[mix < 1e-4] = 0
    return mix / mix.sum()


def _print_errors(what: str, rows: Rows, people: NDArray, targets: NDArray) -> None:
    found = np.einsum("kv,nvc->nkc", rows.astype(np.float32), people, optimize=True)
    errors = 1000 * np.linalg.norm(found - targets, axis=2)
    print(f"{what}: regressed to {errors.mean():.1f} mm, the worst to {errors.mean(0).max():.1f}")


def _adjacency(faces: NDArray) -> sparse.csr_matrix:
    count = faces.max() + 1
    ends = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = sparse.coo_matrix((np.ones(len(ends)), ends.T), shape=(count, count)).tocsr()
    linked = (edges + edges.T > 0).astype(float)
    return sparse.diags(1 / np.asarray(linked.sum(axis=1)).ravel()) @ linked


def _volume(points: NDArray, faces: NDArray) -> float:
    a, b, c = points[faces].swapaxes(0, 1)
    return float((a * np.cross(b, c)).sum() / 6)


def _chain(joint: int) -> list[int]:
    chain = [joint]
    while PARENTS[chain[-1]] >= 0:
        chain.append(PARENTS[chain[-1]])
    return chain
