"""How many pixels compressed run lengths cover, without decoding them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_AT_ONCE = 256  # strings, so that all fits into the cache
_CODE = bytes(range(48, 112))


def run_totals(counts: Sequence[str | bytes]) -> np.ndarray:
    """Sum of the runs of each compressed run-length string.

    A number is written in groups of five bits, lowest first, as characters from "0": bit 6 says
    that another group follows, bit 5 of the last group is the sign. From the fourth run on, the
    number is the difference to the run before the last, so a run adds up over those after it.

    Args:
        counts: [N] strings.

    Returns:
        [N] integers; -1 for a string that ends within a number or has another character.
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
    place = np.arange(len(values)) - np.repeat(starts[:-1], length)
    repeats = (np.repeat(length, length) - 1 - place) // 2 + 1
    repeats[starts[:-1]] = 1
    return np.add.reduceat(values * repeats, starts[:-1])
