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
    """[N] finite numbers."""
    if not set(map(type, column)) <= _NUMBERS:
        return None
    try:
        numbers = np.array(column, dtype=float)
    except OverflowError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def box_column(column: Sequence[Any]) -> np.ndarray | None:
    """[N, 4] finite numbers."""
    if not (set(map(type, column)) <= {list, tuple} and set(map(len, column)) <= {4}):
        return None
    numbers = number_column([*chain.from_iterable(column)])
    return None if numbers is None else numbers.reshape(-1, 4)


def place_column(column: Sequence[Any], known: Mapping[Any, int]) -> np.ndarray | None:
    """[N] places of ids; an id has exactly the type of the known ones, so True is not 1."""
    wanted = set(map(type, known))
    if not (set(map(type, column)) <= wanted and known.keys() >= set(column)):
        return None
    return np.fromiter(map(known.__getitem__, column), np.int64, len(column))


def is_number(value: Any) -> bool:
    """Whether a value can stand in a column of numbers."""
    return number_column([value]) is not None


def is_box(value: Any) -> bool:
    """Whether a value can stand in a column of boxes."""
    return box_column([value]) is not None


def is_id(value: Any, known: Mapping[Any, int]) -> bool:
    """Whether a value can stand in a column of ids."""
    return place_column([value], known) is not None
