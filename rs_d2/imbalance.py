"""How many negatives stand against one positive in what a detector is trained on.

Counted are *instances* (anchors of the RPN, regions of the box head) and *tasks*: with class-wise
sigmoids each instance is one binary task for every class, of which a positive instance is positive
in one. A softmax over the classes is one task per instance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

IMBALANCE_FILE = "imbalance.json"  # in the output folder, the latest row of a training
STAGES = ("rpn", "rcnn")
RATIOS = tuple(f"{stage}_{kind}" for kind in ("instances", "tasks") for stage in STAGES)
COLUMNS = ("data set", "RPN sampler", "R-CNN sampler", *RATIOS)


class ImbalanceMeter:
    """Sums positives and negatives over iterations.

    Args:
        rcnn_tasks: binary tasks of a region: the number of classes with class-wise sigmoids, 1
            with a softmax. An anchor is one task.
    """

    def __init__(self, rcnn_tasks: int) -> None:
        self._tasks = {"rpn": 1, "rcnn": rcnn_tasks}
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self._positives = dict.fromkeys(STAGES, 0.0)
        self._negatives = dict.fromkeys(STAGES, 0.0)

    def update(self, stage: str, positives: float, negatives: float) -> None:
        """Count instances of a stage, "rpn" or "rcnn"; means over images will do."""
        self._positives[stage] += positives
        self._negatives[stage] += negatives

    def ratios(self) -> dict[str, float]:
        """Negatives for one positive, by ``RATIOS``: of all counted together; NaN without any."""
        ratios = {}
        for stage in STAGES:
            positives, negatives = self._positives[stage], self._negatives[stage]
            tasks = self._tasks[stage] * (positives + negatives)
            ratios[f"{stage}_instances"] = negatives / positives if positives else float("nan")
            ratios[f"{stage}_tasks"] = tasks / positives - 1 if positives else float("nan")
        return {name: ratios[name] for name in RATIOS}


def imbalance_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """A markdown table in the layout of the published Table S7, ratios as 1:n.

    Args:
        rows: values of ``COLUMNS``.
    """
    lines = [list(COLUMNS), ["---"] * len(COLUMNS)]
    lines += [[format_cell(row[column]) for column in COLUMNS] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_cell(value: Any) -> str:
    """A ratio as 1:n, "-" for none; names as they are."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return "-" if value != value else f"1:{value:.1f}" if value < 10 else f"1:{value:.0f}"
