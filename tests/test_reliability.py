"""Every test that docs/reliability.md names is there."""

import re

from conftest import REPO


def test_every_row_names_tests_that_exist():
    text = (REPO / "docs" / "reliability.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "tests/" in line]
    assert len(rows) > 50
    absent = []
    for row in rows:
        file = None
        for path, name in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", row):
            file = path or file
            code = (REPO / file).read_text() if file and (REPO / file).is_file() else ""
            if (path or name) and (not code or (name and f"def {name}(" not in code)):
                absent.append(f"{file}::{name}")
    assert absent == []
