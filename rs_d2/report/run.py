"""The report of a training or evaluation run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from rs_d2.criterion.imbalance import IMBALANCE_FILE
from rs_d2.evaluation.evaluate import Evaluation
from rs_d2.report.class_counts import counts_of_metadata


def report_of_run(
    cfg: CfgNode, dataset_name: str
) -> Callable[[Path, Mapping[str, Evaluation]], Path] | None:
    """What writes the report of a test set into a folder, None if ``TEST.REPORT`` is off.

    The page shows how often the training sets of the config have each class, and the imbalance
    that a training left in the output folder.

    Args:
        cfg: config.
        dataset_name: name of the test set in Detectron2's catalogs.

    Returns:
        Called with a folder and the evaluation of each task, it returns the path of the page.
    """
    if not cfg.TEST.REPORT:
        return None

    def write(folder: Path, evaluations: Mapping[str, Evaluation]) -> Path:
        from rs_d2.report.page import write_report  # needs matplotlib

        truth = next(iter(evaluations.values())).ground_truth
        train_sets = [MetadataCatalog.get(name) for name in cfg.DATASETS.TRAIN]
        file, imbalance = Path(cfg.OUTPUT_DIR) / IMBALANCE_FILE, None
        if file.is_file():
            imbalance = json.loads(file.read_text())
        return write_report(
            folder,
            evaluations,
            dataset_name,
            MetadataCatalog.get(dataset_name).get("image_root"),
            counts_of_metadata(train_sets, truth),
            imbalance,
        )

    return write
