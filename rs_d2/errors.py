"""The one exception that means "the user can fix this", and how programs end on it."""

from __future__ import annotations

import sys
from collections.abc import Callable


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
