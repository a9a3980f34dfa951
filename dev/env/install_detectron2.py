"""Install Detectron2 0.6 as an ordinary package, from package registries alone.

Detectron2 is not published under its own name. This script keeps any Detectron2 >= 0.6 that is
already there, also a compiled one. Otherwise it fetches a published source archive of 0.6, checks
its sha256, applies the edits listed in `detectron2_edits.py`, writes a pure-Python wheel
`detectron2 0.6+py` and installs it with pip or uv.

    python tools/install_detectron2.py               install unless one is there
    python tools/install_detectron2.py --check       say what is there; exit code 1 without one
    python tools/install_detectron2.py --show-patch  print all changes to Detectron2 as a diff

Needs Python >= 3.10 and nothing beyond its standard library.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

from detectron2_fetch import FetchError, fetch_sdist, install_command, run
from detectron2_wheel import WheelError, build_wheel, show_patch

OLDEST = (0, 6)
WHEEL_DIR = Path(__file__).resolve().parents[2] / "build" / "wheels"
SMOKE_TEST = "import detectron2.engine, detectron2.evaluation, detectron2.model_zoo"


class InstallError(Exception):
    """This environment cannot get a Detectron2; the message is one line for the user."""


class Found(NamedTuple):
    """The Detectron2 that `import detectron2` would give.

    Attributes:
        version: Its `__version__`, such as "0.6"; the main branch calls itself 0.6, too.
        compiled: Whether it has the compiled extension.
        folder: Where it is.
    """

    version: str
    compiled: bool
    folder: Path

    def __str__(self) -> str:
        kind = "compiled" if self.compiled else "pure Python"
        return f"detectron2 {self.version} ({kind}) in {self.folder}"

    def is_recent(self) -> bool:
        """Whether this version is one that rs_d2 works with."""
        numbers = tuple(int(n) for n in re.findall(r"\d+", self.version)[:2])
        return numbers >= OLDEST


def find_detectron2() -> Found | None:
    """Look for Detectron2 without importing it; a mere folder of that name does not count."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        return None
    init = Path(spec.origin)
    version = re.search(r"^__version__ = [\"'](.+)[\"']", init.read_text(), re.MULTILINE)
    compiled = any(path.suffix in (".so", ".pyd") for path in init.parent.glob("_C*"))
    return Found(version[1] if version else "0", compiled, init.parent)


def install(wheel: Path, force: bool) -> None:
    """Install the wheel and what it requires into the environment of this Python.

    Args:
        wheel: Wheel to install.
        force: Also replace a Detectron2 of the same version.
    """
    command = install_command()
    run([*command, str(wheel)], "installing the wheel failed")
    if force:
        run([*command, "--force-reinstall", "--no-deps", str(wheel)], "installing the wheel failed")


def smoke_test(folder: Path) -> None:
    """Import the parts that break first, in a fresh interpreter.

    Args:
        folder: Working directory, one without a folder `detectron2` of its own.
    """
    run(
        [sys.executable, "-c", SMOKE_TEST],
        "the installed Detectron2 cannot be imported",
        cwd=folder,
    )


def get_sdist(args: argparse.Namespace) -> Path:
    """The source archive: the one given with `--sdist`, or the one from the package index."""
    if args.sdist:
        return args.sdist
    say(f"looking for the source archive in {args.wheel_dir}, then in the package index (seconds)")
    return fetch_sdist(args.wheel_dir)


def say(text: str) -> None:
    """Tell the user on standard error; standard output is for `--show-patch`."""
    print(text, file=sys.stderr, flush=True)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--check", action="store_true", help="only say what is installed; exit code 1 if nothing is"
    )
    add("--force", action="store_true", help="install even if a Detectron2 is there")
    add("--sdist", type=Path, metavar="FILE", help="use this source archive instead of the index's")
    add("--wheel-dir", type=Path, metavar="DIR", default=WHEEL_DIR, help="default: build/wheels")
    add("--build-only", action="store_true", help="write the wheel, install nothing")
    add("--show-patch", action="store_true", help="print every change to Detectron2 as a diff")
    return parser.parse_args(argv)


def execute(args: argparse.Namespace) -> int:
    """Do what the command line asks for and return the exit code."""
    if args.show_patch:
        print(show_patch(get_sdist(args)), end="")
        return 0
    found = find_detectron2()
    if args.check:
        say(str(found) if found else "no detectron2")
        return 0 if found and found.is_recent() else 1
    if found and not args.force and not args.build_only:
        if not found.is_recent():
            raise InstallError(f"{found} is too old; uninstall it, or pass --force to replace it")
        say(f"keeping {found}")
        return 0
    if not args.build_only and importlib.util.find_spec("torch") is None:
        raise InstallError("no PyTorch in this environment; pip install -r requirements.txt first")
    started = time.monotonic()
    wheel = build_wheel(get_sdist(args), args.wheel_dir)
    if args.build_only:
        say(f"wrote {wheel}")
        return 0
    say(f"installing {wheel.name} and trying it (10 to 60 s)")
    install(wheel, args.force)
    smoke_test(args.wheel_dir)
    importlib.invalidate_caches()
    say(f"installed {find_detectron2()} in {time.monotonic() - started:.0f} s")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the script; mistakes and failures become one line and exit code 1."""
    args = parse_args(argv)
    try:
        return execute(args)
    except (InstallError, FetchError, WheelError) as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
