"""One picture of the digits set: which digits lie where, what hides what, what is annotated."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState

from rs_d2.data.digits import paint as paint
from rs_d2.data.digits.paint import Color, Stamp

MIN_VISIBLE = 0.65  # share of a digit's pixels that nothing may hide
MIN_CONTRAST = 0.3  # distance of ink and ground in RGB, [0, 1] each
_TRIES_PER_HEIGHT = 12


class Digit(NamedTuple):
    """A digit to paint: its category, the scan it comes from, and whether it gets an annotation."""

    category_id: int
    color: str
    scan_index: int
    scan: np.ndarray
    annotated: bool


class Placed(NamedTuple):
    """A digit in a picture: its visible mask, boolean [S, S], and the pixels of the whole digit."""

    digit: Digit
    mask: np.ndarray
    num_pixels: int


def compose(
    rng: RandomState, size: int, digits: Sequence[Digit]
) -> tuple[np.ndarray, list[Placed]]:
    """Paint the digits, back to front, with clutter behind, between and over them.

    Every digit given is painted, and at least ``MIN_VISIBLE`` of its pixels stay visible.

    Returns:
        The picture, uint8 RGB [S, S, 3], and the digits with their visible masks.
    """
    scene = _Scene(rng, size)
    scene.add_clutter(rng.randint(2, 5))
    for digit in digits:
        scene.add_digit(digit)
        if rng.random_sample() < 0.25:
            scene.add_clutter(1)
    return paint.finish(scene.canvas, rng), scene.placed


class _Scene:
    """A canvas and what is still visible of the digits on it."""

    def __init__(self, rng: RandomState, size: int) -> None:
        self.rng = rng
        self.size = size
        self.canvas = paint.background(rng, size)
        self.placed: list[Placed] = []

    def add_digit(self, digit: Digit) -> None:
        """Find the digit a place, smaller after several failures, and paint it."""
        height = self.size * 0.16 * (2.7 ** self.rng.random_sample())
        while True:
            ink = paint.digit_stamp(self.rng, digit.scan, height)
            pixels = int((ink.alpha >= 0.5).sum())
            for _ in range(_TRIES_PER_HEIGHT):
                stamp = ink.centered(self._digit_center(height))
                mask = stamp.mask(self.size)
                if mask.sum() >= 0.85 * pixels and self._leaves_digits_visible(mask):
                    self._cover(mask)
                    paint.paint(self.canvas, stamp, self._ink(digit.color, mask), self.rng)
                    self.placed.append(Placed(digit, mask, pixels))
                    return
            height *= 0.9

    def add_clutter(self, count: int) -> None:
        """Paint strokes, letters and blobs; one that would hide too much of a digit is left out."""
        for _ in range(count):
            stamp = self._clutter_stamp()
            mask = stamp.mask(self.size)
            if self._leaves_digits_visible(mask):
                self._cover(mask)
                paint.paint(self.canvas, stamp, paint.clutter_color(self.rng), self.rng)

    def _clutter_stamp(self) -> Stamp:
        kind = self.rng.random_sample()
        if kind < 0.4:
            stamp = paint.stroke_stamp(self.rng, self.size * self.rng.uniform(0.4, 1.0))
        elif kind < 0.75:
            stamp = paint.letter_stamp(self.rng, self.size * self.rng.uniform(0.12, 0.3))
        else:
            stamp = paint.blob_stamp(self.rng, self.size * self.rng.uniform(0.02, 0.08))
        return stamp.centered(tuple(self.rng.uniform(0, self.size, 2)))

    def _digit_center(self, height: float) -> tuple[float, float]:
        """Anywhere, or close to a digit so that one hides part of the other."""
        if self.placed and self.rng.random_sample() < 0.2:
            ys, xs = np.nonzero(self.placed[self.rng.randint(len(self.placed))].mask)
            reach = 0.6 * height + 0.5 * (ys.max() - ys.min())
            angle = self.rng.uniform(0, 2 * np.pi)
            return ys.mean() + reach * np.sin(angle), xs.mean() + reach * np.cos(angle)
        margin = 0.4 * height
        return tuple(self.rng.uniform(margin, self.size - margin, 2))

    def _leaves_digits_visible(self, mask: np.ndarray) -> bool:
        return all(
            (placed.mask & ~mask).sum() >= MIN_VISIBLE * placed.num_pixels for placed in self.placed
        )

    def _cover(self, mask: np.ndarray) -> None:
        for placed in self.placed:
            placed.mask[mask] = False

    def _ink(self, color: str, mask: np.ndarray) -> Color:
        """A shade that stands out from the ground; the best of several where none does."""
        ground = self.canvas[mask].mean(axis=0)
        shades = [paint.digit_color(self.rng, color) for _ in range(8)]
        contrasts = [float(np.linalg.norm(ground - shade)) for shade in shades]
        enough = next((i for i, c in enumerate(contrasts) if c >= MIN_CONTRAST), None)
        return shades[int(np.argmax(contrasts)) if enough is None else enough]
