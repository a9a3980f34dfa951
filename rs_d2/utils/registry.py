"""Open registries: a yaml file names an entry, and anybody adds one with a line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rs_d2.utils.errors import UserError, did_you_mean

T = TypeVar("T")


class Registry(dict[str, T]):
    """Entries by name; the names are the values that a config key may have.

    Args:
        kind: what the entries are, for messages.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds an entry under a name.

        Raises:
            ValueError: The name is taken; an entry that vanished silently would be hard to find.
        """

        def add(entry: T) -> T:
            if name in self:
                raise ValueError(f"the {self.kind} '{name}' is registered already")
            self[name] = entry
            return entry

        return add

    def __missing__(self, name: str) -> T:
        raise UserError(f"'{name}' is no {self.kind}{did_you_mean(name, self)}")
