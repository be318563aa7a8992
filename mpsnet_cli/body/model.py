"""Posed and shaped bodies: SMPL's function over smplx, numpy in and out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import smplx
import torch
from numpy.typing import ArrayLike, NDArray
from smplx.lbs import batch_rigid_transform, batch_rodrigues, lbs
from torch import Tensor

from mpsnet_cli.body.arrays import BETAS, JOINTS, BodyArrays
from mpsnet_cli.body.skeleton import JOINT_NAMES, PARENTS

BATCH = 32  # bodies at once, about 2 MB of working memory each
SKELETON_BATCH = 1024  # the same without vertices, about 10 kB each

_TREE = torch.tensor(PARENTS)  # stays on the CPU: smplx reads it there, joint by joint

Array = NDArray[np.float32]


class BodyModel:
    """A body that takes SMPL's parameters: 72 pose values (axis-angle, rad) and 10 betas.

    Loper et al., "SMPL: A Skinned Multi-Person Linear Model", 2015. Everything comes out in metres
    in the body's own frame (x to its left, y up, z forward) turned by `pose[:, :3]` about the
    pelvis, without translation.
    """

    joint_names = JOINT_NAMES
    parents = PARENTS

    def __init__(
        self,
        name: str,
        arrays: BodyArrays,
        *,
        source: Path,
        sha256: str,
        device: str | torch.device = "cpu",
    ) -> None:
        self.name = name  # "smpl-neutral", "smpl-male", "smpl-female" or "free-1"
        self.gender = name.removeprefix("smpl-") if name.startswith("smpl-") else "neutral"
        self.source = source
        self.sha256 = sha256
        self.device = torch.device(device)
        self.faces = arrays.f
        self.vertex_count = len(arrays.v_template)
        self.uv = arrays.uv
        self.uv_faces = arrays.uv_faces
        self.keypoint_regressor = arrays.keypoint_regressor
        smpl = _Smpl(
            model_path="",
            data_struct=arrays,
            vertex_ids=arrays.landmarks,
            create_betas=False,
            create_global_orient=False,
            create_body_pose=False,
            create_transl=False,
        ).to(self.device)
        names = ("v_template", "shapedirs", "posedirs", "J_regressor", "lbs_weights")
        self._skin = {name: getattr(smpl, name) for name in names}
        self._rest = self._tensor(arrays.J_regressor @ arrays.v_template)
        self._rest_per_beta = self._tensor(
            np.einsum("jv,vck->kjc", arrays.J_regressor, arrays.shapedirs)
        )

    def __call__(self, pose: ArrayLike, betas: ArrayLike) -> tuple[Array, Array]:
        """Pose bodies: `pose` (N, 72) and `betas` (N, 10) to vertices (N, V, 3), joints (N, 24, 3).

        The memory taken is the result's and a constant.
        """
        pose, betas = _parameters(pose, betas)
        vertices = np.empty((len(pose), self.vertex_count, 3), np.float32)
        joints = np.empty((len(pose), JOINTS, 3), np.float32)
        with torch.inference_mode():
            for rows in _batches(len(pose), BATCH):
                rotmats, shape = self._rotmats(pose[rows]), self._tensor(betas[rows])
                moved, found = self._skinned(rotmats, shape)
                vertices[rows], joints[rows] = moved.cpu().numpy(), found.cpu().numpy()
        return vertices, joints

    def joints(self, pose: ArrayLike, betas: ArrayLike) -> Array:
        """Find the joints (N, 24, 3) alone, far cheaper than with the vertices."""
        pose, betas = _parameters(pose, betas)
        joints = np.empty((len(pose), JOINTS, 3), np.float32)
        with torch.inference_mode():
            for rows in _batches(len(pose), SKELETON_BATCH):
                rotmats, shape = self._rotmats(pose[rows]), self._tensor(betas[rows])
                joints[rows] = self._moved_joints(rotmats, shape).cpu().numpy()
        return joints

    def posed(
        self, rotmats: Tensor, betas: Tensor, *, vertices: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Pose bodies differentiably, for training: vertices (B, V, 3) and joints (B, 24, 3).

        `rotmats` (B, 24, 3, 3) and `betas` (B, 10) share a float type, at least float32, and a
        device, best the body's own, and so does the result. Without `vertices`, which cost far
        more than joints, they are None. Call it outside autocast, which would round positions to
        millimetres.
        """
        if vertices:
            return self._skinned(rotmats, betas)
        return None, self._moved_joints(rotmats, betas)

    @property
    def skinning_weights(self) -> Array:
        """How much of each vertex's movement is which joint's: (V, 24), rows sum to 1."""
        return self._skin["lbs_weights"].cpu().numpy()

    def rest_joints(self, betas: ArrayLike) -> Array:
        """Find the joints (..., 24, 3) of the T-pose for betas (..., 10)."""
        return self._rest_joints(self._tensor(betas)).cpu().numpy()

    def keypoints(self, vertices: ArrayLike) -> Array:
        """Find the keypoints (N, 23, 3), as KEYPOINT_NAMES, of vertices (N, V, 3) of this body.

        Raises ValueError for SMPL, whose files bring no such regressor.
        """
        if self.keypoint_regressor is None:
            raise ValueError(f"The body {self.name} has no keypoint regressor.")
        return self.keypoint_regressor @ np.asarray(vertices, np.float32)

    def _skinned(self, rotmats: Tensor, betas: Tensor) -> tuple[Tensor, Tensor]:
        skin = {name: part.to(betas) for name, part in self._skin.items()}
        return lbs(betas, rotmats.contiguous(), **skin, parents=_TREE, pose2rot=False)

    def _moved_joints(self, rotmats: Tensor, betas: Tensor) -> Tensor:
        return batch_rigid_transform(rotmats, self._rest_joints(betas), _TREE)[0]

    def _rest_joints(self, betas: Tensor) -> Tensor:
        return self._rest.to(betas) + torch.tensordot(betas, self._rest_per_beta.to(betas), dims=1)

    def _rotmats(self, pose: Array) -> Tensor:
        return batch_rodrigues(self._tensor(pose).reshape(-1, 3)).reshape(-1, JOINTS, 3, 3)

    def _tensor(self, values: ArrayLike) -> Tensor:
        return torch.tensor(np.asarray(values, np.float32), device=self.device)


class _Smpl(smplx.SMPL):
    SHAPE_SPACE_DIM = BETAS  # ours are cut to ten; smplx prints a warning for fewer than this


def _parameters(pose: ArrayLike, betas: ArrayLike) -> tuple[Array, Array]:
    pose, betas = np.asarray(pose, np.float32), np.asarray(betas, np.float32)
    if pose.shape != (len(pose), 3 * JOINTS) or betas.shape != (len(pose), BETAS):
        raise ValueError(f"pose {pose.shape} and betas {betas.shape} should be (N, 72), (N, 10).")
    return pose, betas


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
