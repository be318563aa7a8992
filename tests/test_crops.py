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


def test_antialias_averages_what_a_large_crop_would_skip() -> None:
    """Fine stripes become their mean, and nothing moves: a smooth picture stays as it was."""
    rows, columns = np.mgrid[:600, :800].astype(np.float32)
    smooth = np.stack([rows / 3, columns / 4, (rows + columns) / 7], axis=2)
    stripes = np.where(columns[..., None] % 2 == 0, 30, -30)
    box = np.array([401.3, 290.8, 508.0, 508.0])
    plain = crop_image(smooth.round().astype(np.uint8), box, size=96).astype(int)
    striped = (smooth + 32 + stripes).round().astype(np.uint8)
    averaged = crop_image(striped, box, size=96, antialias=True).astype(int) - 32
    inner = np.s_[2:-2, 2:-2]
    assert np.abs(averaged - plain)[inner].max() <= 8  # an odd block of five keeps a fifth
    assert np.abs((averaged - plain)[inner].mean(axis=(0, 1))).max() < 0.7
    gaps = crop_image(striped, box, size=96).astype(int) - 32
    assert np.abs(gaps - plain)[inner].max() > 25


def test_antialias_changes_no_small_crop_and_keeps_black_outside() -> None:
    box = np.array([50.5, 40.25, 60.0, 60.0])
    assert np.array_equal(
        crop_image(image(), box, size=64), crop_image(image(), box, size=64, antialias=True)
    )
    white = np.full((300, 300, 3), 200, np.uint8)
    crop = crop_image(white, np.array([0, 150, 240, 240]), size=48, antialias=True)
    assert (crop[:, :23] == 0).all()
    assert (crop[:, 25:] == 200).all()
    away = crop_image(white, np.array([900, -500, 240, 240]), size=48, antialias=True)
    assert not away.any()
