"""LVIS evaluation under federated rules, by the `lvis` package."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.evaluation import LVISEvaluator
from detectron2.utils.logger import create_small_table

from rs_d2._compat import patch_numpy_for_lvis
from rs_d2.errors import UserError

if TYPE_CHECKING:
    from lvis import LVIS

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")

_logger = logging.getLogger(__name__)


def evaluate_lvis(
    lvis_gt: LVIS, results: Sequence[dict[str, Any]], iou_type: str, max_dets: int = 300
) -> dict[str, float]:
    """Average precision of results in LVIS's format.

    Per image the ``max_dets`` best detections of all categories count. A detection of a category
    that an image states neither to be present nor absent is ignored, and so is an unmatched one of
    a category that is not exhaustively annotated there. Masks have their own area, also where the
    results carry boxes.

    Args:
        lvis_gt: ground truth.
        results: dicts with `image_id`, the ground truth's `category_id`, `score`, `bbox` (XYWH,
            pixels) and, for "segm", `segmentation` (run lengths). They are not changed. Without
            any, every category that has an object gets 0.
        iou_type: "bbox" or "segm".
        max_dets: cap per image.

    Returns:
        AP AP50 AP75 APs APm APl APr APc APf in percent; NaN for a size or frequency group without
        ground truth.

    Raises:
        UserError: A result has no mask where "segm" is asked for.
    """
    patch_numpy_for_lvis()
    from lvis import LVISEval

    if iou_type == "segm" and not all("segmentation" in result for result in results):
        raise UserError("mask evaluation: a result has no segmentation")
    evaluation = LVISEval(lvis_gt, _detections(lvis_gt, results, iou_type, max_dets), iou_type)
    evaluation.run()
    found = evaluation.get_results()
    return {name: _percent(found[name]) for name in METRICS}


class RSLVISEvaluator(LVISEvaluator):
    """Detectron2's LVIS evaluator for any data set in LVIS form.

    Category ids are mapped back through `thing_dataset_id_to_contiguous_id` of the metadata (else
    they are the contiguous index plus 1). A model that finds nothing scores 0, and groups without
    ground truth are NaN.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: tuple[str, ...] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int = 300,
    ) -> None:
        patch_numpy_for_lvis()
        super().__init__(
            dataset_name, tasks, distributed, output_dir, max_dets_per_image=max_dets_per_image
        )

    def _eval_predictions(self, predictions: list[dict[str, Any]]) -> None:
        """Score what was gathered from all processes; fills ``self._results``."""
        results = list(itertools.chain.from_iterable(p["instances"] for p in predictions))
        category_ids = self._category_ids()
        for result in results:
            result["category_id"] = category_ids[result["category_id"]]
        if self._output_dir:
            path = Path(self._output_dir) / "lvis_instances_results.json"
            path.write_text(json.dumps(results))
            _logger.info("results saved to %s", path)
        if not self._do_evaluation:
            _logger.info("the ground truth has no annotations: nothing to compare with")
            return
        if not results:
            _logger.warning("the model found nothing in any image")
        for task in self._tasks or self._tasks_from_predictions(results):
            scores = evaluate_lvis(self._lvis_api, results, task, self._max_dets_per_image)
            _logger.info("LVIS %s, percent:\n%s", task, create_small_table(scores))
            self._results[task] = scores

    def _category_ids(self) -> dict[int, int]:
        """Category id by contiguous index."""
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if id_map is None:
            return {index: index + 1 for index in range(len(self._lvis_api.get_cat_ids()))}
        return {index: category_id for category_id, index in id_map.items()}


def _detections(
    lvis_gt: LVIS, results: Sequence[dict[str, Any]], iou_type: str, max_dets: int
) -> Any:
    """The package's index of the results."""
    from lvis import LVISResults

    if not results:  # which its constructor does not accept
        empty = LVISResults.__new__(LVISResults)
        empty.dataset = {**lvis_gt.dataset, "annotations": []}
        empty.logger = _logger
        empty._create_index()
        return empty
    # It warns of results that are not in a file, which are nothing to worry about.
    logging.getLogger("lvis.results").setLevel(logging.ERROR)
    unused = ("bbox",) if iou_type == "segm" else ("segmentation",)
    copies = [{k: v for k, v in result.items() if k not in unused} for result in results]
    return LVISResults(lvis_gt, copies, max_dets=max_dets)


def _percent(value: float) -> float:
    """The package's -1 means that there is no ground truth."""
    return float("nan") if value < 0 else 100 * float(value)
