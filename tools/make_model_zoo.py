"""Write MODEL_ZOO.md from the rows in ``rs_d2/model_zoo/rows.py``.

Usage: ``python tools/make_model_zoo.py``, or with ``--check`` to fail if the page is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO))

from rs_d2.model_zoo.page import model_zoo_page  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    """Write the page, or with ``--check`` compare it; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args(argv)
    path, page = REPO / "MODEL_ZOO.md", model_zoo_page()
    if not args.check:
        path.write_text(page, encoding="utf-8")
        return 0
    current = path.is_file() and path.read_text(encoding="utf-8") == page
    if not current:
        print("MODEL_ZOO.md is out of date: run python tools/make_model_zoo.py", file=sys.stderr)
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main())
