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
    image: NDArray[np.uint8], bbox: NDArray[np.floating], *, size: int, antialias: bool = False
) -> NDArray[np.uint8]:
    """Resample the square `bbox` (cx, cy, w, h, px) of an image to (size, size, 3), bilinearly.

    What lies outside the image is black. As in SPIN's convention, the pixel with index (0, 0) maps
    by the affine matrix itself, without a half-pixel shift. Without `antialias`, as SPIN does it, a
    large square is sampled with gaps; with it, pixels are averaged first, in blocks.
    """
    cx, cy, w, h = (float(value) for value in bbox)
    left, top, block = 0.0, 0.0, max(1, int(w / size)) if antialias else 1
    if block > 1:
        rows, columns = (
            slice(max(0, int(middle - side / 2) - block), max(0, int(middle + side / 2) + block))
            for middle, side in ((cy, h), (cx, w))
        )
        part = image[rows, columns]
        shape = [max(1, side // block) for side in part.shape[:2]]
        part = np.ascontiguousarray(part[: shape[0] * block, : shape[1] * block])
        if part.size == 0:
            return np.zeros((size, size, 3), np.uint8)
        image = cv2.resize(part, shape[::-1], interpolation=cv2.INTER_AREA)
        left, top = (start + (block - 1) / 2 for start in (columns.start, rows.start))
    to_crop = np.array([[block * size / w, 0, size / 2 - (cx - left) * size / w],
                        [0, block * size / h, size / 2 - (cy - top) * size / h]])  # fmt: skip
    return cv2.warpAffine(image, to_crop, (size, size), flags=cv2.INTER_LINEAR)
