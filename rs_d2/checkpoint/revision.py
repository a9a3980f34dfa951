"""Which state of the code is running."""

from __future__ import annotations

import subprocess
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[2]


def code_revision() -> str:
    """What ``git describe`` says of this checkout; empty for an installed package."""
    if not (_CHECKOUT / ".git").exists():  # else git would describe a repository around it
        return ""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return ""
    return done.stdout.strip()
