"""What the COCO and the LVIS evaluator share: a model's outputs to columns, columns to numbers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from rs_d2.coco.fill_missing import add_categories
from rs_d2.coco.ground_truth import ground_truth_of
from rs_d2.coco.reading import AnnotationFile, read_to_evaluate
from rs_d2.coco.records import (
    Detections,
    GroundTruth,
    concatenate,
    indices_of,
    no_detections,
    object_array,
)
from rs_d2.coco.rle import encode_mask
from rs_d2.coco.writing import as_results
from rs_d2.evaluation.evaluate import (
    FREQUENCY_METRICS,
    METRICS,
    Evaluation,
    evaluate_detections,
    evaluate_fixed_ap,
)
from rs_d2.evaluation.gathering import gather_detections
from rs_d2.report.class_counts import counts_of_metadata
from rs_d2.utils.errors import UserError

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
        report: write `report.html` and `per_class_{task}.csv`.
        train_sets: names of the training sets, whose class counts the report shows.
        imbalance_file: json with a row of the imbalance table, shown by the report if it exists.
        fixed_ap: add the numbers without a cap per image, named `{metric}_fixed`.
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
        report: bool = False,
        train_sets: Sequence[str] = (),
        imbalance_file: Path | None = None,
        fixed_ap: bool = False,
    ) -> None:
        self._name, self._tasks, self._distributed = dataset_name, tasks, distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._engine, self._max_dets = engine, max_dets_per_image
        self._report, self._train_sets, self._fixed_ap = report, train_sets, fixed_ap
        self._imbalance_file = imbalance_file
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
                self._parts.append(self._columns(entry["image_id"], instances))

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
        evaluations = {task: self._evaluate(detections, task) for task in tasks}
        results = {task: self._numbers(e, detections) for task, e in evaluations.items()}
        for task, numbers in results.items():
            shown = {name: numbers[name] for name in METRICS if name in numbers}
            _logger.info("%s %s, percent:\n%s", self._name, task, create_small_table(shown))
        if self._report and self._output_dir is not None:
            from rs_d2.report.page import write_report  # needs matplotlib

            counts = counts_of_metadata(
                [MetadataCatalog.get(name) for name in self._train_sets], self._ground_truth
            )
            root = self._metadata.get("image_root")
            file, row = self._imbalance_file, None
            if file is not None and file.is_file():
                row = json.loads(file.read_text())
            write_report(self._output_dir, evaluations, self._name, root, counts, row)
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

    def _columns(self, image_id: Any, instances: Instances) -> Detections:
        index = int(indices_of([image_id], self._ground_truth.image_ids)[0])
        if index < 0:
            raise UserError(f"{self._name}: image {image_id} is not in the ground truth")
        classes = instances.pred_classes.numpy()
        if classes.min() < 0 or classes.max() >= len(self._categories):
            raise UserError(
                f"{self._name}: the model predicts class {classes.max()}, but the data set has "
                f"{len(self._categories)} classes"
            )
        boxes = instances.pred_boxes.tensor.numpy().copy()
        boxes[:, 2:] -= boxes[:, :2]  # in the model's precision, as Detectron2 does it
        scores = instances.scores.numpy().astype(float)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise UserError(
                f"{self._name}: image {image_id}: the model gives a score or box that is not finite"
            )
        rles = None
        if instances.has("pred_masks") and (self._tasks is None or "segm" in self._tasks):
            rles = object_array([encode_mask(mask) for mask in instances.pred_masks.numpy()])
        images = np.full(len(scores), index)
        return Detections(images, self._categories[classes], scores, boxes.astype(float), rles)

    def _evaluate(self, detections: Detections, task: str) -> Evaluation:
        return evaluate_detections(
            self._ground_truth, detections, task, self._engine, self._max_dets
        )

    def _numbers(self, evaluation: Evaluation, detections: Detections) -> dict[str, float]:
        numbers = dict(evaluation.summary)
        if self._fixed_ap:
            fixed = evaluate_fixed_ap(
                self._ground_truth, detections, evaluation.iou_type, self._engine
            )
            numbers |= {f"{name}_fixed": value for name, value in fixed.summary.items()}
        if not any(self._ground_truth.frequencies):
            for name in FREQUENCY_METRICS:
                numbers.pop(name)
                numbers.pop(f"{name}_fixed", None)
        return numbers

    def _save(self, detections: Detections) -> None:
        self._output_dir.mkdir(parents=True, exist_ok=True)
        path = self._output_dir / f"{self.style}_instances_results.json"
        with path.open("w") as file:
            json.dump(as_results(detections, self._ground_truth), file)
        _logger.info("results saved to %s", path)
