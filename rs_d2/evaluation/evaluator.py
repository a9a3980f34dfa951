"""The seam to Detectron2 that the COCO and the LVIS evaluator share.

It keeps what a model found, gathers it from all processes, saves it and hands it to
``rs_d2.evaluation.evaluate``, which knows neither files nor processes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from rs_d2.coco.fill_missing import add_categories
from rs_d2.coco.ground_truth import ground_truth_of
from rs_d2.coco.reading import AnnotationFile, read_to_evaluate
from rs_d2.coco.records import Detections, GroundTruth, concatenate, indices_of, no_detections
from rs_d2.coco.writing import as_results
from rs_d2.evaluation.evaluate import (
    METRICS,
    Evaluation,
    evaluate_detections,
    evaluate_fixed_ap,
    stated_metrics,
)
from rs_d2.evaluation.gathering import gather_detections
from rs_d2.evaluation.instances import detections_of_instances
from rs_d2.utils.atomic_write import atomic_write

Report = Callable[[Path, Mapping[str, Evaluation]], object]

_logger = logging.getLogger(__name__)


class ArrayEvaluator(DatasetEvaluator):
    """An evaluator that keeps detections as arrays; subclasses say whose rules hold.

    Category ids are mapped back through `thing_dataset_id_to_contiguous_id` of the metadata.
    A model that finds nothing scores 0, and groups without ground truth are NaN. Every process but
    the first returns an empty dict.

    Args:
        dataset_name: name in the catalogs; `json_file` of its metadata is the ground truth.
        tasks: "bbox", "segm" or both; None: whatever the model predicts.
        distributed: collect the detections of all processes.
        output_dir: gets `{style}_instances_results.json`, and the report; None: nothing is written.
        engine: "auto", "hotcoco" or "reference".
        max_dets_per_image: cap of an image and class (COCO) or of an image (LVIS); None: the
            official one.
        fixed_ap: add the numbers without a cap per image, named `{metric}_fixed`.
        report: called in the first process with ``output_dir`` and the evaluation of each task,
            such as ``rs_d2.report.run.report_of_run`` gives.
    """

    style = ""

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] | None = None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        engine: str = "auto",
        max_dets_per_image: int | None = None,
        fixed_ap: bool = False,
        report: Report | None = None,
    ) -> None:
        self._name, self._tasks, self._distributed = dataset_name, tasks, distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._engine, self._max_dets, self._fixed_ap = engine, max_dets_per_image, fixed_ap
        self._report = report
        self._metadata = MetadataCatalog.get(dataset_name)
        file = self._read()
        self._do_evaluation = bool(file.annotations)  # test sets have none
        category_ids = self._category_ids(file.categories)
        wanted = [{"id": identity, "name": name} for identity, name in category_ids.items()]
        categories = add_categories(file.categories, wanted)
        self._ground_truth = ground_truth_of(replace(file, categories=categories), self.style)
        self._categories = indices_of([*category_ids], self._ground_truth.category_ids)
        self.reset()

    @property
    def ground_truth(self) -> GroundTruth:
        """What detections are compared with."""
        return self._ground_truth

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks asked for, sorted; empty for whatever the model predicts."""
        return tuple(sorted(self._tasks or ()))

    def detections(self) -> Detections:
        """What this process has seen since :meth:`reset`."""
        return concatenate(self._parts)

    def reset(self) -> None:
        """Forget what was processed."""
        self._parts: list[Detections] = []
        self._num_images = 0

    def process(self, inputs: Sequence[dict], outputs: Sequence[dict]) -> None:
        """Keep the instances that a model found.

        Args:
            inputs: dicts with `image_id`.
            outputs: dicts with `instances`: `pred_boxes`, `scores`, `pred_classes` and, where masks
                are evaluated, `pred_masks` of the image's size.

        Raises:
            UserError: An image or class that the data set does not have, or a number that is not
                finite.
        """
        for entry, output in zip(inputs, outputs, strict=True):
            self._num_images += 1
            instances = output["instances"].to("cpu")
            if len(instances):
                found = detections_of_instances(
                    instances,
                    entry["image_id"],
                    self._ground_truth,
                    self._categories,
                    with_masks=self._tasks is None or "segm" in self._tasks,
                    source=self._name,
                )
                self._parts.append(found)

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Numbers in percent, task by task; see ``Evaluation.summary``."""
        detections, num_images = self.detections(), self._num_images
        if self._distributed:
            comm.synchronize()
            num_images = sum(comm.all_gather(num_images))
            detections = gather_detections(detections, self._ground_truth.image_sizes)
            if detections is None:
                return {}
        if not num_images:
            _logger.warning("%s: no image was processed, nothing is evaluated", self._name)
            return {}
        if self._output_dir is not None:
            self._save(detections)
        if not self._do_evaluation:
            _logger.info("the ground truth has no annotations: nothing to compare with")
            return {}
        if not len(detections):
            _logger.warning("the model found nothing in any image")
            detections = no_detections(with_masks=True)
        masks = detections.rles is not None and self._ground_truth.has_masks
        tasks = self._tasks or (("bbox", "segm") if masks else ("bbox",))
        evaluations = {
            task: evaluate_detections(
                self._ground_truth, detections, task, self._engine, self._max_dets
            )
            for task in tasks
        }
        results = {task: self._numbers(evaluation) for task, evaluation in evaluations.items()}
        for task, numbers in results.items():
            shown = {name: numbers[name] for name in METRICS if name in numbers}
            _logger.info("%s %s, percent:\n%s", self._name, task, create_small_table(shown))
        if self._report is not None and self._output_dir is not None:
            self._report(self._output_dir, evaluations)
        return results

    def _read(self) -> AnnotationFile:
        """The ground-truth json."""
        file = read_to_evaluate(PathManager.get_local_path(self._metadata.json_file))
        if file.left_out:
            _logger.warning("%s: left out %s", file.path, file.left_out)
        return file

    def _default_category_ids(self, categories: Sequence[dict]) -> dict[int, str]:
        """Ids of the contiguous classes where the metadata has no mapping."""
        raise NotImplementedError

    def _category_ids(self, categories: Sequence[dict]) -> dict[int, str]:
        """Name by category id, in the order of the contiguous classes."""
        id_map = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if id_map is None:
            return self._default_category_ids(categories)
        names = self._metadata.get("thing_classes")
        return {
            identity: str(identity) if names is None else names[index]
            for identity, index in sorted(id_map.items(), key=lambda pair: pair[1])
        }

    def _numbers(self, evaluation: Evaluation) -> dict[str, float]:
        numbers = stated_metrics(evaluation)
        if self._fixed_ap:
            fixed = evaluate_fixed_ap(
                evaluation.ground_truth, evaluation.detections, evaluation.iou_type, self._engine
            )
            numbers |= {f"{name}_fixed": value for name, value in stated_metrics(fixed).items()}
        return numbers

    def _save(self, detections: Detections) -> None:
        self._output_dir.mkdir(parents=True, exist_ok=True)
        path = self._output_dir / f"{self.style}_instances_results.json"
        with atomic_write(path, "w") as file:
            json.dump(as_results(detections, self._ground_truth), file)
        _logger.info("results saved to %s", path)
