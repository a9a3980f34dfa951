"""The tables of the report, as text by column and row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rs_d2.coco.records import AREAS
from rs_d2.criterion.imbalance import format_cell
from rs_d2.evaluation.evaluate import METRICS, Evaluation
from rs_d2.report.class_counts import ClassCounts
from rs_d2.report.per_class import COLUMNS, per_class_rows

TASKS = {"bbox": "Boxes", "segm": "Masks"}

_PARTS = ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN")
_DECIMALS = {"threshold": 3, "train_count": 0}  # of the others 1


class Table(NamedTuple):
    """Columns and rows; ``text`` are the indices of columns of words after the first."""

    columns: tuple[str, ...]
    rows: list[list[str]]
    text: tuple[int, ...] = ()


def summary_table(evaluations: Mapping[str, Evaluation]) -> Table:
    """A row for each task, a column for each of ``METRICS`` that is defined for any of them."""
    summaries = {TASKS[task]: evaluation.summary for task, evaluation in evaluations.items()}
    names = [m for m in METRICS if any(not math.isnan(s[m]) for s in summaries.values())]
    rows = [[task, *(_cell(s[name]) for name in names)] for task, s in summaries.items()]
    return Table(("", *names), rows)


def group_table(evaluation: Evaluation) -> Table:
    """AP, oLRP and its parts by size and by frequency."""
    summary, lrp = evaluation.summary, evaluation.lrp
    groups = [(area, "" if area == "all" else area[0], lrp.mean(area)) for area in AREAS]
    groups += [
        (name, name[0], lrp.mean(classes=classes))
        for name, classes in evaluation.frequency_groups().items()
        if name != "all"
    ]
    rows = [
        [name, _cell(summary[f"AP{suffix}"]), *(_cell(means[part]) for part in _PARTS)]
        for name, suffix, means in groups
    ]
    return Table(("objects", "AP", *_PARTS), rows)


def class_table(evaluation: Evaluation, train_counts: ClassCounts | None) -> Table:
    """The rows of the classes that have objects."""
    rows = [
        [_cell(value, _DECIMALS.get(column, 1)) for column, value in row.items()]
        for row in per_class_rows(evaluation, train_counts)
        if row["instances"]
    ]
    return Table(COLUMNS, rows, (COLUMNS.index("name"), COLUMNS.index("frequency")))


def training_table(imbalance: Mapping[str, Any]) -> Table:
    """One row of ``rs_d2.criterion.imbalance.imbalance_table``."""
    return Table(tuple(imbalance), [[format_cell(value) for value in imbalance.values()]])


def _cell(value: Any, decimals: int = 1) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)
