"""What every program does alike: its arguments, KEY VALUE pairs, and mistakes told in one line."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from rs_d2.utils.errors import UserError


class ProgramParser(argparse.ArgumentParser):
    """A parser whose complaints are ``UserError``s, for programs that end by ``run_program``."""

    def __init__(self, description: str | None, **kwargs: Any) -> None:
        """Make a parser.

        Args:
            description: the program's docstring, shown as it is written.
            kwargs: further arguments of ``argparse.ArgumentParser``.
        """
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(description=description, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raise what ``argparse`` would print after the usage."""
        raise UserError(message)

    def add_pairs(self) -> None:
        """Take KEY VALUE pairs as the last arguments; ``check_pairs`` is left to the program."""
        self.add_argument(
            "opts", nargs="*", metavar="KEY VALUE", help="config keys; they come last"
        )


def run_program(program: Callable[[], int | None]) -> int:
    """Run a program: its exit code (0 for None), or 2 after a ``UserError``, told on stderr.

    Where nobody reads its output any more, as after ``| head``, it ends with 141 and without a
    word.
    """
    try:
        code = program() or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except UserError as error:
        return stop(f"error: {error}", 2)
    except BrokenPipeError:
        if sys.stdout is None or not _is_unread(sys.stdout):  # of another pipe
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        return 128 + signal.SIGPIPE


def _is_unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe that nobody reads."""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0))


def stop(line: str, exit_code: int) -> int:
    """Tell in one line, whatever it quotes, why a program ends; returns the exit code.

    What would steer a terminal, such as the escape of a colour in a file's name, is shown escaped.
    """
    text = " ".join(line.split())
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    print(shown, file=sys.stderr, flush=True)
    return exit_code


def positive_int(text: str) -> int:
    """A type for ``add_argument``: a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid int value: '{text}'") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def check_pairs(opts: Sequence[str]) -> None:
    """Check that config keys and values come in pairs, with no option behind them.

    Raises:
        UserError: A key has no value, or an option follows.
    """
    late = next((word for word in opts if str(word).startswith("--")), None)
    if late is not None:
        raise UserError(f"{late} must stand before the KEY VALUE pairs")
    if len(opts) % 2:
        words = " ".join(map(str, opts))
        raise UserError(f"KEY VALUE pairs: '{opts[-1]}' has no partner in {words}")


def as_pairs(overrides: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
    """Keys and values in turn, of a mapping or of such a sequence.

    Raises:
        UserError: A key has no value.
    """
    if isinstance(overrides, Mapping):
        return [word for pair in overrides.items() for word in pair]
    check_pairs(overrides)
    return list(overrides)
