"""CSV files that a spreadsheet shows and does not run."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rs_d2.utils.atomic_write import atomic_write
from rs_d2.utils.folders import make_folder

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a CSV file in UTF-8, whole or not at all; its folder is made if needed.

    A text that begins as a formula does (= + - @, a tab or a line break) gets an apostrophe in
    front, so that a spreadsheet does not calculate it; numbers do not. None is an empty cell.

    Raises:
        UserError: The file cannot be written.
    """
    make_folder(path.parent, str(path))
    with atomic_write(path, "w") as file:
        writer = csv.writer(file)
        writer.writerow(map(_cell, columns))
        writer.writerows([_cell(row[column]) for column in columns] for row in rows)


def _cell(value: Any) -> Any:
    # spreadsheets skip spaces and a byte-order mark in front of a formula
    if isinstance(value, str) and value.lstrip(" \ufeff").startswith(_FORMULA):
        return f"'{value}"
    return value
