"""How programs read their arguments and end."""

import argparse
import os
import subprocess
import sys

import pytest

from rs_d2.utils.cli import ProgramParser, as_pairs, check_pairs, positive_int, run_program, stop
from rs_d2.utils.errors import UserError
from rs_d2.utils.terminal import is_live


def refuse():
    raise UserError("two\nlines")


@pytest.mark.parametrize(
    ("program", "code"), [(lambda: None, 0), (lambda: 0, 0), (lambda: 1, 1), (refuse, 2)]
)
def test_the_exit_code_is_the_programs_or_2(program, code, capsys):
    assert run_program(program) == code
    assert capsys.readouterr().err == ("error: two lines\n" if code == 2 else "")


def test_what_is_no_mistake_of_the_user_keeps_its_trace():
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: 1 // 0)


@pytest.mark.parametrize("lines", [1, 100_000])  # told at the end, or while it prints
def test_a_program_whose_output_nobody_reads_ends_without_a_trace(lines):
    program = f"print('a line\\n' * {lines})"
    code = f"from rs_d2.utils.cli import run_program; exit(run_program(lambda: {program}))"
    unread, writer = os.pipe()
    os.close(unread)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_keeps_its_trace():
    code = "from rs_d2.utils.cli import run_program; run_program(fail)"
    code = f"def fail(): raise BrokenPipeError\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith("BrokenPipeError\n")


def test_an_end_is_told_in_one_line(capsys):
    assert stop("interrupted\n  here", 130) == 130
    assert capsys.readouterr().err == "interrupted here\n"


@pytest.fixture
def parser():
    parser = ProgramParser("First line.\n\nExamples:\n    one\n")
    parser.add_argument("--count", type=positive_int)
    parser.add_pairs()
    return parser


def test_the_docstring_is_shown_as_it_is_written(parser):
    assert "First line.\n\nExamples:\n    one\n" in parser.format_help()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--count", "0"], "argument --count: 0 is not at least 1"),
        (["--count", "two"], "argument --count: invalid int value: 'two'"),
        (["--cuont", "2"], "unrecognized arguments: --cuont"),
    ],
)
def test_a_wrong_argument_is_a_user_error(parser, argv, message):
    with pytest.raises(UserError, match=f"^{message}"):
        parser.parse_args(argv)


def test_pairs_come_last(parser):
    args = parser.parse_args(["--count", "2", "A.B", "1"])
    assert args == argparse.Namespace(count=2, opts=["A.B", "1"])


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["A.B", "1", "C"], "KEY VALUE pairs: 'C' has no partner in A.B 1 C"),
        (["A.B", "1", "--resume"], "--resume must stand before the KEY VALUE pairs"),
    ],
)
def test_pairs_that_are_none_are_named(opts, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        check_pairs(opts)


def test_a_mapping_and_a_sequence_give_the_same_pairs():
    assert as_pairs({"A.B": 1, "C": (2, 3)}) == as_pairs(["A.B", 1, "C", (2, 3)])
    assert as_pairs(()) == []
    with pytest.raises(UserError, match="has no partner"):
        as_pairs(["A.B"])


def test_what_would_steer_a_terminal_is_shown_escaped(capsys):
    assert stop("error: \x1b]0;mine\x07 a\x9b31m\u202e\ud800 ünï 図", 2) == 2
    expected = "error: \\x1b]0;mine\\x07 a\\x9b31m\\u202e\\ud800 ünï 図\n"
    assert capsys.readouterr().err == expected


def test_a_program_without_a_terminal_at_all_shows_no_bars(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)  # started with 2>&-
    assert not is_live()
