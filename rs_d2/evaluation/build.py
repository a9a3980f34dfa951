"""From a data set's metadata to its evaluator."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator

from rs_d2.errors import UserError
from rs_d2.evaluation.lvis import RSLVISEvaluator

# By `evaluator_type`; each is called with (name of the data set, tasks=, output_dir=).
EVALUATORS: dict[str, type[DatasetEvaluator]] = {"coco": COCOEvaluator, "lvis": RSLVISEvaluator}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator of a data set: boxes, and masks where model and ground truth have them.

    Args:
        cfg: config with `MODEL.MASK_ON`.
        dataset_name: name in Detectron2's catalogs; `evaluator_type` of its metadata decides.
        output_folder: where the results are written.

    Raises:
        UserError: The data set has no or an unknown `evaluator_type`.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type")
    if kind not in EVALUATORS:
        raise UserError(
            f"data set {dataset_name}: evaluator_type {kind} is not one of {', '.join(EVALUATORS)}"
        )
    json_file = metadata.get("json_file")
    if json_file and not Path(json_file).is_file():
        DatasetCatalog.get(dataset_name)  # the embedded set is made by its first load
    masks = cfg.MODEL.MASK_ON and metadata.get("has_masks", True)
    tasks = ("bbox", "segm") if masks else ("bbox",)
    return EVALUATORS[kind](dataset_name, tasks=tasks, output_dir=output_folder)
