"""Write requirements.txt, which `make env` installs, from requirements.in.

Every version of requirements.in, and of what its packages need besides, gets the SHA-256 of each
file that the package index has of it, for all platforms and Python 3.10 to 3.12, so that pip and uv
install nothing else.

    python dev/env/pin_hashes.py            write it; needs `uv` on the PATH, or UV=PATH
    python dev/env/pin_hashes.py --check    only say whether the two files have the same versions
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAD = """\
# Written by dev/env/pin_hashes.py, not by hand: the versions of requirements.in and of what they
# need besides, with the SHA-256 of every file of theirs.
"""
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


class PinError(Exception):
    """The file cannot be written, or is out of date; the message is one line."""


def versions(text: str) -> set[tuple[str, str]]:
    """Name and version of each pin, the names as the package index has them."""
    return {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in _PIN.findall(text)}


def write_pins(root: Path) -> None:
    """Ask the index for the files and write requirements.txt, whole or not at all.

    Raises:
        PinError: uv is missing, or found no solution.
    """
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise PinError("uv is needed: pip install uv, or UV=PATH")
    partial = root / "requirements.txt.part"
    command = [uv, "pip", "compile", "--universal", "--python-version", "3.10", "--generate-hashes"]
    command += ["--no-annotate", "--no-header", "--quiet", "--output-file", str(partial)]
    try:
        done = subprocess.run([*command, str(root / "requirements.in")], check=False)
        if done.returncode:
            raise PinError("uv could not pin requirements.in; its reason is above")
        text = HEAD + partial.read_text()
        check_pins(text, (root / "requirements.in").read_text())
        partial.write_text(text)
        os.replace(partial, root / "requirements.txt")
    finally:
        partial.unlink(missing_ok=True)


def check_pins(hashed: str, wanted: str) -> None:
    """Check that every pin of requirements.in is there, and that each has a hash.

    Args:
        hashed: text of requirements.txt.
        wanted: text of requirements.in.

    Raises:
        PinError: One is missing or has none.
    """
    missing = sorted(versions(wanted) - versions(hashed))
    if missing:
        raise PinError(
            f"requirements.txt lacks {missing[0][0]}=={missing[0][1]} of requirements.in"
        )
    entries = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", hashed, flags=re.MULTILINE))
    bare = [line for line in entries.splitlines() if line and "--hash=sha256:" not in line]
    if bare:
        raise PinError(f"requirements.txt: no hash: {bare[0]}")


def main(argv: list[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    try:
        if args.check:
            texts = [(ROOT / f"requirements.{ending}").read_text() for ending in ("txt", "in")]
            check_pins(*texts)
        else:
            write_pins(ROOT)
    except (PinError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
