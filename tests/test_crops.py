from __future__ import annotations

import cv2
import numpy as np
import pytest
from conftest import DATA
from recipe import image

from mpsnet_cli.crops import crop_image, square_boxes

GOLDEN = np.load(DATA / "goldens" / "d_crops.npz")
OFFICIAL_SCALE = 1.1
GREY_LEVELS = 1 if int(cv2.__version__.split(".")[0]) >= 5 else 4


@pytest.mark.parametrize("number", range(5))
def test_crop_matches_the_golden(number: int) -> None:
    box = GOLDEN["boxes"][number] * [1, 1, OFFICIAL_SCALE, OFFICIAL_SCALE]
    crop = crop_image(image(), box, size=224)
    difference = np.abs(crop.astype(int) - GOLDEN[f"raw{number}"])
    assert difference.max() <= GREY_LEVELS


def test_crop_outside_the_image_is_black() -> None:
    crop = crop_image(np.full((50, 60, 3), 200, np.uint8), np.array([0, 25, 40, 40]), size=32)
    assert (crop[:, :15] == 0).all()
    assert (crop[8:24, 20:] == 200).all()


def test_square_boxes_hold_the_longer_side() -> None:
    boxes = np.array([[10, 20, 30, 80], [0, 0, 100, 50]], np.float32)
    expected = [[20, 50, 60 * 1.1, 60 * 1.1], [50, 25, 110, 110]]
    assert np.allclose(square_boxes(boxes, scale=1.1), expected)
