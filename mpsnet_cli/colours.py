"""The colour that a person has in every picture and every export."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def linear_colour(person: int) -> NDArray[np.float64]:
    """Give each track id its own colour: hues of OKLCh the golden angle apart, in three tones.

    Linear RGB (3,), 0..1. Ottosson, "A perceptual color space for image processing", 2020: equal
    steps look equal.
    """
    hue = np.deg2rad(250 + 137.508 * (person - 1))
    lightness = (0.76, 0.80, 0.70)[person % 3]
    lab = np.array([lightness, 0.115 * np.cos(hue), 0.115 * np.sin(hue)])
    return np.clip(_LMS_TO_RGB @ (_OKLAB_TO_LMS @ lab) ** 3, 0, 1)


def person_colour(person: int) -> tuple[int, int, int]:
    """Encode `linear_colour` as sRGB, 0..255."""
    linear = linear_colour(person)
    srgb = np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    red, green, blue = (round(255 * value) for value in srgb)
    return red, green, blue


_OKLAB_TO_LMS = np.array(
    [
        [1, 0.3963377774, 0.2158037573],
        [1, -0.1055613458, -0.0638541728],
        [1, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)
