"""Painting for the digits set: textured backgrounds, ink from 8 x 8 scans, clutter.

Everything is float64 numpy with frozen random streams (``RandomState``), so that a seed gives the
same pictures whatever the versions of the imaging libraries. Canvases are [S, S, 3] in [0, 1]; a
*stamp* is a patch of ink with its place, and its mask is ``alpha >= 0.5``.
"""

import colorsys
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np
from numpy.random import RandomState

Color = tuple[float, float, float]

INK_LEVEL = 0.5  # sharpened scan value from which a pixel belongs to the digit
HUES = {"orange": (0.035, 0.115), "teal": (0.43, 0.51), "purple": (0.74, 0.83)}

# Letters that no rotation turns into a digit; strokes between points of the unit square.
_LETTERS = (
    (((0.0, 1.0), (0.5, 0.0), (1.0, 1.0)), ((0.2, 0.6), (0.8, 0.6))),  # A
    (((0.8, 0.0), (0.0, 0.0), (0.0, 1.0), (0.8, 1.0)), ((0.0, 0.5), (0.6, 0.5))),  # E
    (((0.0, 0.0), (0.0, 1.0)), ((1.0, 0.0), (1.0, 1.0)), ((0.0, 0.5), (1.0, 0.5))),  # H
    (((0.0, 0.0), (0.0, 1.0)), ((0.9, 0.0), (0.0, 0.5), (0.9, 1.0))),  # K
    (((0.0, 1.0), (0.1, 0.0), (0.5, 0.7), (0.9, 0.0), (1.0, 1.0)),),  # M
    (((0.0, 0.0), (0.25, 1.0), (0.5, 0.3), (0.75, 1.0), (1.0, 0.0)),),  # W
    (((0.0, 0.0), (1.0, 1.0)), ((1.0, 0.0), (0.0, 1.0))),  # X
)


class Stamp(NamedTuple):
    """A patch of ink: alpha [h, w] in [0, 1], whose top left pixel lies at (top, left)."""

    alpha: np.ndarray
    top: int = 0
    left: int = 0

    def centered(self, center: tuple[float, float]) -> "Stamp":
        """The same ink with its middle at (y, x)."""
        height, width = self.alpha.shape
        return Stamp(self.alpha, int(center[0]) - height // 2, int(center[1]) - width // 2)

    def mask(self, size: int) -> np.ndarray:
        """The pixels of a [size, size] canvas that belong to the stamp."""
        canvas = np.zeros((size, size), dtype=bool)
        window, alpha = self.clipped(size)
        canvas[window] = alpha >= 0.5
        return canvas

    def clipped(self, size: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """The window of a [size, size] canvas that the stamp covers, and alpha there."""
        height, width = self.alpha.shape
        top, left = min(max(self.top, 0), size), min(max(self.left, 0), size)
        bottom, right = max(min(self.top + height, size), 0), max(min(self.left + width, size), 0)
        rows, columns = slice(top, max(top, bottom)), slice(left, max(left, right))
        inner = self.alpha[
            rows.start - self.top : rows.stop - self.top,
            columns.start - self.left : columns.stop - self.left,
        ]
        return (rows, columns), inner


def background(rng: RandomState, size: int) -> np.ndarray:
    """A textured background: one texture, or two that meet along a wavy line."""
    canvas = _texture(rng, size)
    if rng.random_sample() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        line = _ramp(size, angle) + 0.25 * (_noise(rng, size, 4) - 0.5) + rng.uniform(-0.2, 0.2)
        share = np.clip(0.5 + (line - 0.5) * size / 3, 0, 1)[..., None]
        canvas = canvas * (1 - share) + _texture(rng, size) * share
    return canvas


def digit_stamp(rng: RandomState, scan: np.ndarray, height: float) -> Stamp:
    """A scan [8, 8] in [0, 1] turned, sheared and smoothly enlarged to about ``height`` pixels."""
    angle, shear = rng.uniform(-0.3, 0.3), rng.uniform(-0.2, 0.2)
    aspect = rng.uniform(0.85, 1.2)
    scale = height / 8
    forward = _turn(angle) @ np.array([[aspect, shear], [0, 1]]) * scale
    inverse = np.linalg.inv(forward)
    reach = int(np.ceil(height * 0.8))
    ys, xs = np.mgrid[-reach:reach, -reach:reach] + 0.5
    us = inverse[0, 0] * xs + inverse[0, 1] * ys + 3.5
    vs = inverse[1, 0] * xs + inverse[1, 1] * ys + 3.5
    ink = _sample(_enlarged(_sharpened(scan)), 8 * (vs + 2), 8 * (us + 2))
    return _trimmed(np.clip(0.5 + (ink - INK_LEVEL) * scale * 2, 0, 1))


def letter_stamp(rng: RandomState, height: float) -> Stamp:
    """A scribbled letter, about ``height`` pixels high."""
    turn = _turn(rng.uniform(-0.4, 0.4))
    lines = []
    for stroke in _LETTERS[rng.randint(len(_LETTERS))]:
        points = (np.array(stroke) - 0.5) * [0.8, 1.0] + rng.uniform(-0.06, 0.06, (len(stroke), 2))
        lines.append(points @ turn.T * height)
    return _stroke_stamp(lines, height * rng.uniform(0.05, 0.09))


def stroke_stamp(rng: RandomState, length: float) -> Stamp:
    """A long bent stroke, or a zigzag."""
    if rng.random_sample() < 0.6:
        ends = rng.uniform(-0.5, 0.5, (3, 2)) * length
        ends[2] = -ends[0]
        t = np.linspace(0, 1, 8)[:, None]
        points = (1 - t) ** 2 * ends[0] + 2 * t * (1 - t) * ends[1] * 2 + t**2 * ends[2]
    else:
        steps = rng.randint(4, 8)
        points = np.stack([np.linspace(-0.5, 0.5, steps), rng.uniform(-0.2, 0.2, steps)], 1)
        points = points @ _turn(rng.uniform(0, np.pi)).T * length
    return _stroke_stamp([points], max(1.0, length * rng.uniform(0.008, 0.02)))


def blob_stamp(rng: RandomState, radius: float) -> Stamp:
    """A soft-cornered blob."""
    reach = int(np.ceil(radius * 1.8))
    ys, xs = np.mgrid[-reach:reach, -reach:reach] + 0.5
    theta, phase = np.arctan2(ys, xs), rng.uniform(0, 2 * np.pi, 2)
    edge = radius * (1 + 0.3 * np.sin(2 * theta + phase[0]) + 0.15 * np.sin(3 * theta + phase[1]))
    return Stamp(np.clip(0.5 + edge - np.hypot(ys, xs), 0, 1))


def digit_color(rng: RandomState, color: str) -> Color:
    """A shade of a named colour."""
    low, high = HUES[color]
    return colorsys.hsv_to_rgb(
        rng.uniform(low, high), rng.uniform(0.6, 1.0), 0.4 + 0.6 * np.sqrt(rng.random_sample())
    )


def clutter_color(rng: RandomState) -> Color:
    """Any shade; half of them in the colours of the digits."""
    if rng.random_sample() < 0.5:
        return digit_color(rng, sorted(HUES)[rng.randint(len(HUES))])
    return _color(rng, saturation=(0.0, 0.8), value=(0.15, 1.0))


def paint(canvas: np.ndarray, stamp: Stamp, color: Color, rng: RandomState) -> None:
    """Paint a stamp over the canvas, in place: a faint shadow, then uneven ink."""
    size = len(canvas)
    depth, down, right = rng.uniform(0, 0.4), rng.randint(1, 4), rng.randint(-3, 4)
    shadow = Stamp(_blur(stamp.alpha), stamp.top + down - 2, stamp.left + right - 2)
    window, dark = shadow.clipped(size)
    canvas[window] *= 1 - depth * dark[..., None]
    window, alpha = stamp.clipped(size)
    light = 1 + rng.uniform(0.2, 1.0) * (_ramp(size, rng.uniform(0, 2 * np.pi), window) - 0.5)
    ink = np.clip(np.array(color) * light[..., None], 0, 1)
    canvas[window] += alpha[..., None] * (ink - canvas[window])


def finish(canvas: np.ndarray, rng: RandomState) -> np.ndarray:
    """Uneven light over the whole picture, then uint8 [S, S, 3] with 64 levels a channel.

    The eye does not miss the other levels, and the PNG files are a third smaller without them.
    """
    size = len(canvas)
    light = 1 + rng.uniform(0, 0.35) * (_ramp(size, rng.uniform(0, 2 * np.pi)) - 0.5)
    levels = np.floor(np.clip(canvas * light[..., None], 0, 1) * 63 + 0.5).astype(np.uint8)
    return levels << 2 | levels >> 4


def _texture(rng: RandomState, size: int) -> np.ndarray:
    """Two muted colours mixed by noise at several scales, a gradient and sometimes stripes."""
    blend = rng.uniform(0.3, 1.0) * _ramp(size, rng.uniform(0, 2 * np.pi))
    for cells, most in ((3, 1.0), (7, 1.0), (17, 1.0), (48, 0.4)):
        blend = blend + rng.uniform(0.0, most) * _noise(rng, size, cells)
    if rng.random_sample() < 0.4:
        wave = _ramp(size, rng.uniform(0, 2 * np.pi)) * rng.uniform(8, 60)
        blend = blend + rng.uniform(0.2, 0.8) * np.clip(0.5 + 1.5 * np.sin(wave), 0, 1)
    blend = (blend - blend.min()) / (blend.max() - blend.min())
    first = np.array(_color(rng, saturation=(0.0, 0.5), value=(0.1, 1.0)))
    second = np.array(_color(rng, saturation=(0.0, 0.5), value=(0.1, 1.0)))
    return first + blend[..., None] * (first * 0.3 + second * 0.7 - first)


def _color(rng: RandomState, saturation: tuple[float, float], value: tuple[float, float]) -> Color:
    """A colour of any hue within the given ranges."""
    return colorsys.hsv_to_rgb(rng.random_sample(), rng.uniform(*saturation), rng.uniform(*value))


def _ramp(
    size: int, angle: float, window: tuple[slice, slice] = (slice(None), slice(None))
) -> np.ndarray:
    """A window of a linear ramp [S, S] that goes from 0 to 1 along an angle."""
    axis = (np.arange(size) + 0.5) / size - 0.5
    cos, sin = np.cos(angle), np.sin(angle)
    ramp = cos * axis[None, window[1]] + sin * axis[window[0], None]
    return 0.5 + ramp / (abs(cos) + abs(sin))


def _noise(rng: RandomState, size: int, cells: int) -> np.ndarray:
    """Smooth value noise [S, S] in [0, 1] on a grid of ``cells`` cells a side."""
    grid = rng.random_sample((cells + 2, cells + 2))
    place = (np.arange(size) + 0.5) / size * cells
    low = place.astype(int)
    share = place - low
    share = share * share * (3 - 2 * share)
    rows = grid[low] * (1 - share)[:, None] + grid[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def _enlarged(scan: np.ndarray) -> np.ndarray:
    """A scan [8, 8] at eight times its size by Catmull-Rom interpolation: [97, 97].

    Sample (8 r, 8 c) is scan pixel (r - 2, c - 2); outside the scan is zero.
    """
    place = np.arange(97) / 8
    low = np.minimum(place.astype(int), 11)
    t = place - low
    weights = np.stack(
        (
            0.5 * t * (t * (2 - t) - 1),
            0.5 * (t * t * (3 * t - 5) + 2),
            0.5 * t * (t * (4 - 3 * t) + 1),
            0.5 * t * t * (t - 1),
        )
    )
    padded = np.pad(scan, ((3, 4), (3, 4)))
    rows = sum(weights[k][:, None] * padded[low + k] for k in range(4))
    return sum(weights[k] * rows[:, low + k] for k in range(4))


def _sample(grid: np.ndarray, vs: np.ndarray, us: np.ndarray) -> np.ndarray:
    """Bilinear samples of a square grid at (row vs, column us); places outside go to its border."""
    vs, us = np.clip(vs, 0, len(grid) - 1.001), np.clip(us, 0, len(grid) - 1.001)
    rows, columns = vs.astype(int), us.astype(int)
    vs, us = vs - rows, us - columns
    index = rows * len(grid) + columns
    flat = grid.ravel()
    above = flat[index] * (1 - us) + flat[index + 1] * us
    below = flat[index + len(grid)] * (1 - us) + flat[index + len(grid) + 1] * us
    return above * (1 - vs) + below * vs


def _stroke_stamp(lines: list[np.ndarray], radius: float) -> Stamp:
    """Ink within ``radius`` of poly-lines, whose points [P, 2] are (x, y) around the middle."""
    reach = int(np.ceil(max(np.abs(line).max() for line in lines) + radius + 1))
    axis = np.arange(-reach, reach) + 0.5
    alpha = np.zeros((2 * reach, 2 * reach))
    for start, end in chain.from_iterable(map(pairwise, lines)):
        low = np.floor(np.minimum(start, end) - radius).astype(int) + reach - 1
        high = np.ceil(np.maximum(start, end) + radius).astype(int) + reach + 1
        window = slice(max(low[1], 0), high[1]), slice(max(low[0], 0), high[0])
        xs, ys = axis[window[1]][None] - start[0], axis[window[0]][:, None] - start[1]
        dx, dy = end - start
        t = np.clip((xs * dx + ys * dy) / (dx * dx + dy * dy + 1e-12), 0, 1)
        distance = np.hypot(xs - t * dx, ys - t * dy)
        alpha[window] = np.maximum(alpha[window], np.clip(0.5 + radius - distance, 0, 1))
    return Stamp(alpha)


def _blur(alpha: np.ndarray) -> np.ndarray:
    """A box blur five pixels wide; the result is two pixels larger on each side."""
    height, width = alpha.shape
    padded = np.pad(alpha, 4)
    rows = sum(padded[i : i + height + 4] for i in range(5))
    return sum(rows[:, i : i + width + 4] for i in range(5)) / 25


def _sharpened(scan: np.ndarray) -> np.ndarray:
    """A scan with its holes deepened and its thin lines strengthened."""
    padded = np.pad(scan, 1)
    mean = sum(padded[i : i + 8, j : j + 8] for i in range(3) for j in range(3)) / 9
    return 2 * scan - mean


def _turn(angle: float) -> np.ndarray:
    """The rotation matrix of an angle."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _trimmed(alpha: np.ndarray) -> Stamp:
    """A stamp without the empty border of its patch."""
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    return Stamp(alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
