"""Lists from a json as arrays, or None where any entry is not what it should be.

Checks run over whole columns at once; who calls looks for the culprit only when it is known that
there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np

_NUMBERS = {int, float}  # True is neither


def number_column(column: Sequence[Any]) -> np.ndarray | None:
    """[N] numbers; NaN and infinity, which Python's json reads, are numbers too."""
    if not set(map(type, column)) <= _NUMBERS:
        return None
    try:
        return np.array(column, dtype=float)
    except OverflowError:  # an integer above 1e308
        return None


def box_column(column: Sequence[Any]) -> np.ndarray | None:
    """[N, 4] numbers."""
    if not (set(map(type, column)) <= {list, tuple} and set(map(len, column)) <= {4}):
        return None
    numbers = number_column([*chain.from_iterable(column)])
    return None if numbers is None else numbers.reshape(-1, 4)


def index_column(column: Sequence[Any], known: Mapping[Any, int]) -> np.ndarray | None:
    """[N] indices of ids; an id has exactly the type of the known ones, so True is not 1."""
    wanted = set(map(type, known))
    if not (set(map(type, column)) <= wanted and known.keys() >= set(column)):
        return None
    return np.fromiter(map(known.__getitem__, column), np.int64, len(column))


def is_box(value: Any) -> bool:
    """Whether a value can stand in a column of boxes."""
    return box_column([value]) is not None


def is_id(value: Any, known: Mapping[Any, int]) -> bool:
    """Whether a value can stand in a column of ids."""
    return index_column([value], known) is not None


def is_finite(value: Any) -> bool:
    """Whether it is a number, neither NaN nor infinite."""
    numbers = number_column([value])
    return numbers is not None and bool(np.isfinite(numbers[0]))


def is_finite_box(value: Any) -> bool:
    """Whether it is four numbers, none NaN or infinite."""
    return is_box(value) and all(map(is_finite, value))
