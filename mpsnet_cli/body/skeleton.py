"""The names and the tree that every SMPL body shares, with nothing heavy behind them."""

from __future__ import annotations

JOINT_NAMES = (
    "pelvis", "left_hip", "right_hip", "spine1", "left_knee", "right_knee", "spine2",
    "left_ankle", "right_ankle", "spine3", "left_foot", "right_foot", "neck", "left_collar",
    "right_collar", "head", "left_shoulder", "right_shoulder", "left_elbow", "right_elbow",
    "left_wrist", "right_wrist", "left_hand", "right_hand",
)  # fmt: skip

PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)

# As rigs of SMPL call them: Pelvis, L_Hip, …; tools that mirror know the prefixes.
BONE_NAMES = tuple(name.replace("left", "L").replace("right", "R").title() for name in JOINT_NAMES)

# Of each joint, the one that it is in a mirror.
MIRRORED = tuple(
    JOINT_NAMES.index(name.replace("left", "R").replace("right", "left").replace("R", "right"))
    for name in JOINT_NAMES
)

# COCO's 17 in COCO's order, then the six of the feet.
KEYPOINT_NAMES = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder",
    "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip",
    "left_knee", "right_knee", "left_ankle", "right_ankle",
    "left_big_toe", "left_small_toe", "left_heel",
    "right_big_toe", "right_small_toe", "right_heel",
)  # fmt: skip
