"""Run lengths of masks: made, counted and measured without decoding them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

_AREAS_AT_ONCE = 255  # pycocotools with NumPy 2 counts masks in eight bits
_AT_ONCE = 256  # strings, so that all fits into the cache
_CODE = bytes(range(48, 112))


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed run lengths of polygons or of any run lengths."""
    if isinstance(segmentation, list):
        return mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a mask [H, W], compressed as text; equal to pycocotools' ``encode``.

    Only the rows and columns with foreground are looked at, which is most of the time saved.
    """
    height, width = mask.shape
    rows = np.flatnonzero(mask.any(1))
    if not len(rows):
        return {"size": [height, width], "counts": _compressed([height * width], mask.shape)}
    top, bottom = rows[0], rows[-1] + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    left, right = columns[0], columns[-1] + 1
    part = mask[top:bottom, left:right].T
    # Column by column, each between two zeros, so that no run goes on into the next column.
    padded = np.zeros((part.shape[0], part.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = part
    column, row = divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), part.shape[1] + 1)
    edges = (column + left) * height + row + top  # start, end, start, end, ...
    starts, ends = edges[0::2], edges[1::2]
    apart = starts[1:] != ends[:-1]  # a run to the bottom goes on at the top of the next column
    starts = np.concatenate([starts[:1], starts[1:][apart]])
    ends = np.concatenate([ends[:-1][apart], ends[-1:]])
    edges = np.stack([starts, ends], axis=1).reshape(-1)
    counts = np.diff(edges, prepend=0, append=height * width)
    counts = counts[:-1] if counts[-1] == 0 else counts
    return {"size": [height, width], "counts": _compressed(counts.tolist(), mask.shape)}


def mask_areas(rles: np.ndarray) -> np.ndarray:
    """[N] pixels of compressed run lengths."""
    starts = range(0, len(rles), _AREAS_AT_ONCE)
    parts = [mask_util.area(list(rles[i : i + _AREAS_AT_ONCE])) for i in starts]
    return np.concatenate([np.zeros(0), *parts])


def run_totals(counts: Sequence[str | bytes]) -> np.ndarray:
    """Sum of the runs of each compressed run-length string.

    A number is written in groups of five bits, lowest first, as characters from "0": bit 6 says
    that another group follows, bit 5 of the last group is the sign. From the fourth run on, the
    number is the difference to the run before the last, so a run adds up over those after it.

    Args:
        counts: [N] strings.

    Returns:
        [N] integers; -1 for a string that ends within a number, has another character or a run
        below 0.
    """
    totals = np.zeros(len(counts), dtype=np.int64)
    for start in range(0, len(counts), _AT_ONCE):
        part = [
            c.encode("latin-1", "replace") if isinstance(c, str) else c
            for c in counts[start : start + _AT_ONCE]
        ]
        totals[start : start + len(part)] = _totals(part)
    return totals


def _totals(strings: Sequence[bytes]) -> np.ndarray:
    good = np.array([_is_whole(string) for string in strings], dtype=bool)
    totals = np.where(good | [not string for string in strings], 0, -1)
    if good.any():
        whole = [string for string, fits in zip(strings, good.tolist(), strict=True) if fits]
        totals[good] = _totals_of_whole(whole)
    return totals


def _is_whole(string: bytes) -> bool:
    """Whether it is not empty, has only characters of the code, and ends with a number."""
    return string != b"" and not string.translate(None, _CODE) and (string[-1] - 48) & 32 == 0


def _totals_of_whole(strings: Sequence[bytes]) -> np.ndarray:
    codes = np.frombuffer(b"".join(strings), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((codes & 32) == 0)  # of each number, of all strings together
    first = np.concatenate([[0], last[:-1] + 1])
    shift = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    shift = 5 * np.minimum(shift, 11)  # more is noise
    values = np.add.reduceat((codes & 31) << shift, first)
    values -= (codes[last] & 16) << (shift[last] + 1)  # the sign stands for 32 of its group
    starts = np.cumsum([0] + [len(string) for string in strings])
    starts = np.searchsorted(last, starts)  # of the strings, in numbers
    length = np.diff(starts)
    # Each run adds up over every second value of its string, the first value aside: sums over every
    # second value of all strings, less what was before the string.
    sums = np.zeros(len(values) + 2, dtype=np.int64)
    sums[2::2], sums[3::2] = np.cumsum(values[0::2]), np.cumsum(values[1::2])
    first = np.repeat(starts[:-1], length)
    is_even = (np.arange(len(values)) - first) % 2 == 0
    runs = sums[2:] - np.where(is_even, sums[first + 2], sums[first + 1])
    runs[starts[:-1]] = values[starts[:-1]]
    totals = np.add.reduceat(runs, starts[:-1])
    return np.where(np.minimum.reduceat(runs, starts[:-1]) < 0, -1, totals)


def _compressed(counts: list[int], shape: tuple[int, ...]) -> str:
    rle = mask_util.frPyObjects({"size": list(shape), "counts": counts}, *shape)
    return rle["counts"].decode()
