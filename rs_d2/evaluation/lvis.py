"""LVIS evaluation under federated rules with oLRP, in Detectron2's interface."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rs_d2.coco.reading import AnnotationFile
from rs_d2.evaluation.evaluator import ArrayEvaluator

_logger = logging.getLogger(__name__)


class RSLVISEvaluator(ArrayEvaluator):
    """AP and oLRP by the rules of LVIS, for any data set in LVIS form.

    Without a mapping in the metadata, the category id is the class index plus 1. A json whose
    images have no `neg_category_ids` counts as annotated throughout.
    """

    style = "lvis"

    def _read(self) -> AnnotationFile:
        file = super()._read()
        if not any(image.get("neg_category_ids") is not None for image in file.images):
            _logger.info("%s: no neg_category_ids, taken as annotated throughout", self._name)
        return file

    def _default_category_ids(self, categories: Sequence[dict]) -> dict[int, str]:
        names = {category["id"]: category["name"] for category in categories}
        return {i: names.get(i, str(i)) for i in range(1, len(names) + 1)}
