"""From a person's box to the picture that the backbone sees."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def square_boxes(boxes: NDArray[np.floating], *, scale: float = 1.0) -> NDArray[np.float32]:
    """Turn boxes (N, 4) x1, y1, x2, y2 into squares (N, 4) cx, cy, w, h around them, px.

    The side is the longer side of the box times `scale`.
    """
    corner, size = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    side = scale * size.max(axis=1, keepdims=True)
    return np.concatenate([corner + size / 2, side, side], axis=1).astype(np.float32)


def crop_image(
    image: NDArray[np.uint8], bbox: NDArray[np.floating], *, size: int
) -> NDArray[np.uint8]:
    """Resample the square `bbox` (cx, cy, w, h, px) of an image to (size, size, 3), bilinearly.

    What lies outside the image is black. As in SPIN's convention, the pixel with index (0, 0) maps
    by the affine matrix itself, without a half-pixel shift.
    """
    cx, cy, w, h = (float(value) for value in bbox)
    to_crop = np.array([[size / w, 0, size / 2 - cx * size / w],
                        [0, size / h, size / 2 - cy * size / h]])  # fmt: skip
    return cv2.warpAffine(image, to_crop, (size, size), flags=cv2.INTER_LINEAR)
