"""COCO evaluation with oLRP, in Detectron2's interface."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.data.datasets.coco import convert_to_coco_json

from rs_d2.coco.reading import AnnotationFile
from rs_d2.evaluation.evaluate import Evaluation
from rs_d2.evaluation.evaluator import ArrayEvaluator
from rs_d2.utils.errors import UserError


class RSCOCOEvaluator(ArrayEvaluator):
    """AP and oLRP by COCO's rules, and `AP-{name}` of every class.

    Without a mapping in the metadata, a class index is taken for the category id. A data set
    without a json is converted first.
    """

    style = "coco"

    def _read(self) -> AnnotationFile:
        if not self._metadata.get("json_file"):
            if self._output_dir is None:
                raise UserError(f"{self._name}: has no json_file, so output_dir must be given")
            path = self._output_dir / f"{self._name}_coco_format.json"
            convert_to_coco_json(self._name, str(path))
            self._metadata.json_file = str(path)
        return super()._read()

    def _default_category_ids(self, categories: Sequence[dict]) -> dict[int, str]:
        names = {category["id"]: category["name"] for category in categories}
        return {i: names.get(i, str(i)) for i in range(max(names, default=-1) + 1)}

    def _numbers(self, evaluation: Evaluation) -> dict[str, float]:
        numbers = super()._numbers(evaluation)
        names = evaluation.ground_truth.names
        if len(names) > 1 and self._metadata.get("thing_classes") is not None:
            per_class = zip(names, evaluation.class_ap().tolist(), strict=True)
            numbers |= {f"AP-{name}": value for name, value in per_class}
        return numbers
