"""From a data set's metadata to its evaluator."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator

from rs_d2.config import architecture_of
from rs_d2.evaluation.coco import RSCOCOEvaluator
from rs_d2.evaluation.evaluator import ArrayEvaluator, Report
from rs_d2.evaluation.lvis import RSLVISEvaluator
from rs_d2.utils.d2_compat import patch_numpy_for_lvis
from rs_d2.utils.errors import UserError

EVALUATORS: dict[str, type[ArrayEvaluator]] = {  # by `evaluator_type`
    "coco": RSCOCOEvaluator,
    "lvis": RSLVISEvaluator,
}
_STOCK: dict[str, type[DatasetEvaluator]] = {"coco": COCOEvaluator, "lvis": LVISEvaluator}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_folder: str, report: Report | None = None
) -> DatasetEvaluator:
    """The evaluator of a data set: boxes, and masks where model and ground truth have them.

    Models that only propose regions get Detectron2's evaluator, which measures their recall. With
    several test sets, each has its own folder below ``output_folder``.

    Args:
        cfg: config with `MODEL.MASK_ON` and the keys of `TEST`.
        dataset_name: name in Detectron2's catalogs; `evaluator_type` of its metadata decides.
        output_folder: where the results are written.
        report: what writes about the evaluation, see ``ArrayEvaluator``; ``RSTrainer`` gives
            ``rs_d2.report.run.report_of_run``.

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
    if len(cfg.DATASETS.TEST) > 1:
        output_folder = str(Path(output_folder) / dataset_name)
    architecture = architecture_of(cfg)
    if not architecture.tasks(cfg):
        patch_numpy_for_lvis()
        return _STOCK[kind](dataset_name, output_dir=output_folder)
    has_masks = metadata.get("has_masks", True)
    tasks = tuple(task for task in architecture.tasks(cfg) if task == "bbox" or has_masks)
    return EVALUATORS[kind](
        dataset_name,
        tasks,
        output_dir=output_folder,
        engine=cfg.TEST.EVALUATOR_ENGINE,
        fixed_ap=cfg.TEST.FIXED_AP,
        report=report,
    )
