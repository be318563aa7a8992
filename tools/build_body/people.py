"""The adults that the body is learned from: Anny's phenotype space, in SMPL's frame."""

from __future__ import annotations

from collections.abc import Sequence

import anny
import numpy as np
import torch
from anny.face_segmentation import get_face_segmentation_mask
from anny.keypoints import KeypointsRegressor
from numpy.typing import NDArray

Phenotypes = dict[str, NDArray[np.float64]]  # label -> (N,)


class Source:
    """Anny with its own 104 bones and 13,718 vertices, turned from z up to y up."""

    def __init__(self) -> None:
        self.model = anny.Anny(
            rig="anny",
            topology="anny",
            skinning_method="lbs",
            phenotypes="all",
            phenotype_blendshapes="original",
            extrapolate_phenotypes=True,
        ).to(torch.float32)
        self.bones: list[str] = list(self.model.bone_labels)
        self.parents: list[int] = list(self.model.bone_parents)
        self.faces: NDArray = self.model.faces.numpy()
        self.uv: NDArray = self.model.texture_coordinates.numpy()
        self.uv_faces: NDArray = self.model.face_texture_coordinate_indices.numpy()
        count = len(self.model.template_vertices)
        self.skin_weights: NDArray = np.zeros((count, len(self.bones)), np.float32)  # (V, B)
        rows = np.arange(count)[:, None]
        indices = self.model.vertex_bone_indices.numpy()
        np.add.at(self.skin_weights, (rows, indices), self.model.vertex_bone_weights.numpy())

    def rest(self, phenotypes: Phenotypes) -> tuple[NDArray, NDArray]:
        """Make people in Anny's own pose: vertices (N, V, 3) and bone heads (N, B, 3), m."""
        mix = self.model.get_phenotype_blendshape_coefficients(
            **{
                label: torch.tensor(values, dtype=torch.float32)
                for label, values in phenotypes.items()
            }
        )
        vertices = self.model.template_vertices + torch.einsum(
            "nk,kvd->nvd", mix, self.model.blendshapes
        )
        heads = self.model.template_bone_heads + torch.einsum(
            "nk,kvd->nvd", mix, self.model.bone_heads_blendshapes
        )
        return _y_up(vertices.numpy()), _y_up(heads.numpy())

    def region(self, *labels: str) -> NDArray[np.bool_]:
        """Select the faces (F,) of the parts that anny's segmentation names so."""
        return get_face_segmentation_mask(self.model, labels).numpy()

    def keypoints(self, names: Sequence[str]) -> NDArray:
        """Return anny's keypoints as mixes (K, V) of its vertices."""
        return KeypointsRegressor.coco(self.model, list(names)).regression_weights.numpy()


def sample_adults(count: int, seed: int) -> Phenotypes:
    """Draw independent phenotypes, half men, half women.

    Anny's labels run from 0 to 1, gender from man to woman; weight is taken past 1, along the same
    line. This gives men of 1.76 +- 0.08 m and women of 1.65 +- 0.08 m, median BMI 24 and 21.
    """
    rng = np.random.default_rng(seed)
    man = np.arange(count) % 2 == 0

    def normal(mean: float | NDArray, deviation: float, low: float = 0, high: float = 1) -> NDArray:
        return np.clip(rng.normal(mean, deviation, count), low, high)

    return {
        "gender": np.where(man, rng.uniform(0, 0.25, count), rng.uniform(0.75, 1, count)),
        "age": rng.uniform(0.70, 0.95, count),
        "muscle": normal(np.where(man, 0.55, 0.45), 0.20),
        "weight": normal(0.70, 0.40, -0.1, 1.6),
        "height": normal(0.37, 0.065),
        "proportions": normal(0.5, 0.2),
        "cupsize": normal(0.45, 0.18),
        "firmness": normal(0.55, 0.18),
        "african": rng.uniform(0.05, 1, count),
        "asian": rng.uniform(0.05, 1, count),
        "caucasian": rng.uniform(0.05, 1, count),
    }


def _y_up(points: NDArray) -> NDArray:
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], axis=-1)
