"""Virtual environments that know whether they are finished, and can be put on top of each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Python 3.7 lacks it and must get as far as the message about its version
    from importlib.metadata import EntryPoint

_STAMP = "rs_d2-stamp.txt"  # inside the environment; empty while it is being built
_NOT_COPIED = ("python", "activate", "Activate")


class LayerError(Exception):
    """An environment cannot be created; the message is one line for the user."""


def is_complete(folder: Path, state: str) -> bool:
    """Whether the environment was finished in this very state and its Python still exists."""
    stamp = folder / _STAMP
    return (
        (folder / "bin" / "python").exists()  # a link; its target may be gone
        and stamp.is_file()
        and stamp.read_text() == state
    )


def mark_complete(folder: Path, state: str) -> None:
    """Write the stamp that `is_complete` looks for; the last step of building."""
    partial = folder / f"{_STAMP}.{os.getpid()}"
    partial.write_text(state)
    os.replace(partial, folder / _STAMP)


def mark_incomplete(folder: Path) -> None:
    """Take the stamp's content away, so that the environment is built again."""
    if (folder / _STAMP).exists():
        (folder / _STAMP).write_text("")


def is_foreign(folder: Path) -> bool:
    """Whether something is there that `create` did not make, and so must not be removed."""
    return folder.is_symlink() or (folder.exists() and not (folder / _STAMP).exists())


def create(folder: Path, with_pip: bool) -> None:
    """Create an empty environment, unfinished until `mark_complete`; replaces what was there.

    Args:
        folder: Where; removed first.
        with_pip: Whether it gets a pip of its own.

    Raises:
        LayerError: This Python cannot create environments.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _STAMP).touch()
    try:
        venv.create(folder, symlinks=True, with_pip=with_pip, prompt="rs_d2")
    except (subprocess.CalledProcessError, ImportError, OSError) as error:
        raise LayerError(
            f"{sys.executable} cannot create {folder} ({error}); "
            "on Debian and Ubuntu install python3-venv"
        ) from None


def site_packages(folder: Path) -> Path:
    """Where an environment of this Python has its packages."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return folder / "lib" / version / "site-packages"


def put_on_top(upper: Path, lower: Path) -> None:
    """Let the upper environment see the packages and the commands of the lower one.

    Packages of the upper one come first. The commands run with the upper one's Python, so that they
    see both.
    """
    from importlib.metadata import distributions

    packages = site_packages(lower)
    line = f"import site; site.addsitedir({str(packages)!r})\n"
    (site_packages(upper) / "_dependencies.pth").write_text(line)
    for distribution in distributions(path=[str(packages)]):
        for entry in distribution.entry_points.select(group="console_scripts"):
            _write_command(upper / "bin" / entry.name, upper / "bin" / "python", entry)
    for program in (lower / "bin").iterdir():  # those that are no Python function, such as ruff
        link = upper / "bin" / program.name
        if not program.name.startswith(_NOT_COPIED) and not link.exists():
            link.symlink_to(program)


def _write_command(path: Path, python: Path, entry: EntryPoint) -> None:
    function = entry.attr.split(".")[0]
    # A shell finds the Python, because a first line may neither be long nor contain spaces.
    path.write_text(
        "#!/bin/sh\n"
        f'\'\'\'exec\' "{python}" "$0" "$@"\n'
        "' '''\n"
        "import sys\n\n"
        f"from {entry.module} import {function}\n\n"
        'if __name__ == "__main__":\n'
        f"    sys.exit({entry.attr}())\n"
    )
    path.chmod(0o755)
