"""The code blocks of a page, and a way to run its commands."""

import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import REPO


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks of ``docs/PAGE`` in these languages, in order."""
    text = (REPO / "docs" / page).read_text()
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, code) for language, code in found if language in languages]


def commands(code: str) -> list[list[str]]:
    """The command lines of a shell block, each as its words; no variables, no pipes."""
    return [shlex.split(line) for line in code.replace("\\\n", " ").splitlines()]


def run_command(words: Sequence[str], folder: Path) -> str:
    """Run ``python PROGRAM ...`` of the checkout in a folder; patterns become file names.

    It runs in this process, which has imported what takes seconds. Returns what it printed.
    """
    python, program, *arguments = words
    assert python == "python"
    filled = [sorted(map(str, folder.glob(word))) if "*" in word else [word] for word in arguments]
    argv = [program, *(word for found in filled for word in found)]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        patch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPO / program), run_name="__main__")
    assert not end.value.code, f"{shlex.join(words)}: exit code {end.value.code}\n{out.getvalue()}"
    return out.getvalue()
