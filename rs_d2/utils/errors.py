"""The one exception that means "the user can fix this", how programs end on it, and a hint."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """A mistake in a config, file, annotation or argument.

    Its text is one line that names the culprit; programs show it without a traceback, exit code 2.
    """


def exit_code(program: Callable[[], None]) -> int:
    """Run a program: 0, or 2 after a :class:`UserError`, whose line goes to stderr."""
    try:
        program()
    except UserError as error:
        print(" ".join(f"error: {error}".split()), file=sys.stderr, flush=True)
        return 2
    return 0


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one; empty if none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
