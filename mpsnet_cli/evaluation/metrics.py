"""The four errors of the paper's tables (§5), between predicted and true points. Numpy only.

Points go in as (N, J, 3), metres, one row for each frame of a sequence, in its order; errors come
out in millimetres, one for each frame. Averages are the caller's: over the frames of a sequence, or
over those of all sequences together, which is what the tables print. All is computed in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

MILLIMETRES = 1000.0  # in a metre


def root_aligned(points: ArrayLike, root: tuple[int, ...]) -> Floats:
    """Move the mean of the points `root` to the origin in every frame."""
    array = np.asarray(points, np.float64)
    return array - array[:, list(root)].mean(axis=1, keepdims=True)


def mean_distance(predicted: ArrayLike, true: ArrayLike) -> Floats:
    """Average the points' distances of each frame: e_n = 1/J Σ_j ‖p_nj − t_nj‖. (N,) mm.

    On root-aligned joints it is MPJPE (Ionescu et al., TPAMI 2014), on vertices MPVPE.
    """
    p, t = _pair(predicted, true)
    return MILLIMETRES * np.linalg.norm(p - t, axis=-1).mean(axis=1)


def procrustes_aligned(predicted: ArrayLike, true: ArrayLike) -> Floats:
    """Lay each frame's prediction onto the truth by the best similarity. (N, J, 3) m.

    Minimises Σ_j ‖s R p_j + d − t_j‖² over scale s, proper rotation R and translation d (Umeyama,
    TPAMI 1991, Eq. (40)-(43)): with the centred p, t and U D Vᵀ = Σ_j t_j p_jᵀ,
    R = U S Vᵀ and s = tr(D S) / Σ_j ‖p_j‖², where S = diag(1, 1, det(U) det(V)) keeps R from being
    a reflection. Points that all coincide have no scale or rotation; they go to the truth's centre.
    """
    p, t = _pair(predicted, true)
    centre = t.mean(axis=1, keepdims=True)
    p, t = p - p.mean(axis=1, keepdims=True), t - centre
    u, d, vt = np.linalg.svd(t.swapaxes(1, 2) @ p)
    sign = np.sign(np.linalg.det(u @ vt))
    u[:, :, 2] *= sign[:, None]
    d[:, 2] *= sign
    spread = (p**2).sum(axis=(1, 2))
    scale = d.sum(axis=1) / np.where(spread == 0, 1, spread)
    return scale[:, None, None] * (p @ (u @ vt).swapaxes(1, 2)) + centre


def pa_mpjpe(predicted: ArrayLike, true: ArrayLike) -> Floats:
    """Measure MPJPE after `procrustes_aligned`: the pose alone, without size or orientation."""
    return mean_distance(procrustes_aligned(predicted, true), true)


def acceleration(points: ArrayLike) -> Floats:
    """Take second differences over time, x_(n−1) − 2 x_n + x_(n+1). (N−2, J, 3) m/frame²."""
    x = np.asarray(points, np.float64)
    return x[:-2] - 2 * x[1:-1] + x[2:]


def acceleration_error(predicted: ArrayLike, true: ArrayLike) -> Floats:
    """Average ‖p″ − t″‖ over the points (Kanazawa et al., CVPR 2019). (N−2,) mm/frame².

    The first and last frame have none. Times fps² it is in mm/s²: the unit that the paper prints,
    beside numbers that its release computes per frame.
    """
    p, t = _pair(predicted, true)
    return mean_distance(acceleration(p), acceleration(t))


def _pair(predicted: ArrayLike, true: ArrayLike) -> tuple[Floats, Floats]:
    p, t = np.asarray(predicted, np.float64), np.asarray(true, np.float64)
    if p.shape != t.shape or p.ndim != 3 or p.shape[1] == 0 or p.shape[2] != 3:
        raise ValueError(f"points {p.shape} and {t.shape} should both be (N, J, 3), J > 0")
    if not (np.isfinite(p).all() and np.isfinite(t).all()):
        raise ValueError("points are not all finite")
    return p, t
