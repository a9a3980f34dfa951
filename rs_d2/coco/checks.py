"""Checks of json entries, whose failures name the entry, the field and what was found there."""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from typing import Any


class EntryError(Exception):
    """A problem with an entry; the caller puts the file's name in front."""


def expect(entry: dict, name: str, where: str, expected: str, fits: Callable[[Any], Any]) -> None:
    """Raise an :class:`EntryError` unless ``fits`` accepts the entry's field ``name``."""
    if not fits(entry.get(name)):
        raise EntryError(f"{where}: {name}: expected {expected}, found {show(entry, name)}")


def show(entry: dict, name: str) -> str:
    """A field's value in a few characters of one line, or that there is none."""
    return shorten(entry[name]) if name in entry else "nothing"


def shorten(value: Any) -> str:
    """A value in a few characters of one line."""
    return reprlib.repr(value).replace("\n", " ")


def is_integer(value: Any) -> bool:
    """Whether it is an int and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)
