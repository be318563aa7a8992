"""Text on pictures: pills with a word or a number in them, drawn once and pasted often."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from mpsnet_cli.render.scene import Colour, Image

WEIGHT = 700  # of the font; 400 is regular
INK: Colour = (255, 255, 255)


@dataclass(frozen=True)
class Pill:
    """A finished label."""

    colours: NDArray[np.float32]  # (h, w, 3) RGB, 0..255
    coverage: NDArray[np.float32]  # (h, w, 1) 0..1

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.coverage.shape[1]

    @property
    def height(self) -> int:
        """Pixels from top to bottom."""
        return self.coverage.shape[0]

    def paste(self, image: Image, left: float, top: float, *, opacity: float = 1.0) -> None:
        """Blend the label into `image`, in place, moved as far as keeps it inside."""
        x = round(max(0, min(left, image.shape[1] - self.width)))
        y = round(max(0, min(top, image.shape[0] - self.height)))
        under = image[y : y + self.height, x : x + self.width]
        height, width = under.shape[:2]  # less than the label's in a tiny image
        coverage = self.coverage[:height, :width] * opacity
        under[:] = under + coverage * (self.colours[:height, :width] - under) + 0.5


@lru_cache(maxsize=256)
def make_pill(text: str, text_height: int, colour: Colour) -> Pill:
    """Write `text`, `text_height` px high, in white on a pill of `colour`."""
    font = cv2.FontFace()  # not shared: labels are made in several threads
    advance = cv2.getTextSize((0, 0), text, (0, 0), font, text_height, WEIGHT)[2]
    height = round(1.5 * text_height) | 1
    width = max(height, advance + text_height)
    colours = np.full((height, width, 3), colour, np.uint8)
    baseline = round(height / 2 + 0.35 * text_height)  # capitals are 0.7 of the font's height
    cv2.putText(colours, text, ((width - advance) // 2, baseline), INK, font, text_height, WEIGHT)
    return Pill(colours.astype(np.float32), _capsule(width, height)[..., None])


def _capsule(width: int, height: int) -> NDArray[np.float32]:
    """Coverage (height, width), 0..1, of a rectangle with round ends."""
    y = np.arange(height) + 0.5 - height / 2
    x = np.abs(np.arange(width) + 0.5 - width / 2) - (width - height) / 2
    inside = height / 2 - np.hypot(np.maximum(x, 0), y[:, None])
    return np.clip(inside + 0.5, 0, 1).astype(np.float32)
