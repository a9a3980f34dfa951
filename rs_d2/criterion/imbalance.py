"""How many negatives stand against one positive in what a detector is trained on.

Counted are *instances* (anchors of the RPN, regions of the box head) and *tasks*: with class-wise
sigmoids each instance is one binary task for every class, of which a positive instance is positive
in one. A softmax over the classes is one task per instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IMBALANCE_FILE = "imbalance.json"  # in the output folder, the latest row of a training
KINDS = ("instances", "tasks")


class ImbalanceMeter:
    """Sums positives and negatives over iterations.

    Args:
        tasks: by stage ("rpn" and "rcnn", or "dense"), the binary tasks of an instance: the number
            of classes with class-wise sigmoids, 1 with a softmax or with one foreground class.
    """

    def __init__(self, tasks: Mapping[str, int]) -> None:
        self._tasks = dict(tasks)
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self._positives = dict.fromkeys(self._tasks, 0.0)
        self._negatives = dict.fromkeys(self._tasks, 0.0)

    def update(self, stage: str, positives: float, negatives: float) -> None:
        """Count instances of a stage; means over images will do."""
        self._positives[stage] += positives
        self._negatives[stage] += negatives

    def state_dict(self) -> dict[str, dict[str, float]]:
        """What was counted."""
        return {"positives": dict(self._positives), "negatives": dict(self._negatives)}

    def load_state_dict(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on from what ``state_dict`` gave of the same stages."""
        for stage in self._positives.keys() & state["positives"].keys():
            self._positives[stage] = state["positives"][stage]
            self._negatives[stage] = state["negatives"][stage]

    def ratios(self) -> dict[str, float]:
        """Negatives for one positive: of all counted together; NaN without any.

        Their names are "rpn_instances", "rcnn_instances", "rpn_tasks", "rcnn_tasks" and so on.
        """
        ratios = {}
        for stage, tasks in self._tasks.items():
            positives, negatives = self._positives[stage], self._negatives[stage]
            total = tasks * (positives + negatives)
            ratios[f"{stage}_instances"] = negatives / positives if positives else float("nan")
            ratios[f"{stage}_tasks"] = total / positives - 1 if positives else float("nan")
        names = [f"{stage}_{kind}" for kind in KINDS for stage in self._tasks]
        return {name: ratios[name] for name in names}


def format_cell(value: Any) -> str:
    """A value of a row for people: a ratio as 1:n, "-" for none, a name itself."""
    if not isinstance(value, float):
        return "-" if value is None else str(value)
    return "-" if value != value else f"1:{value:.1f}" if value < 10 else f"1:{value:.0f}"
