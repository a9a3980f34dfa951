"""How many negatives stand against a positive in what a config's detector would be trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage

from rs_d2.checkpoint.loading import RSCheckpointer
from rs_d2.criterion.imbalance import format_cell
from rs_d2.engine.hooks import LoggedImbalance
from rs_d2.engine.trainer import RSTrainer


def measure_imbalance(cfg: CfgNode, iterations: int) -> dict[str, Any]:
    """A row of the published Table S7, from batches of the training set; nothing is trained.

    Args:
        cfg: config from ``rs_d2.engine.prepare``; ``MODEL.WEIGHTS`` are loaded, if it names any.
        iterations: batches to count in.

    Returns:
        Data set and samplers, then the ratios as ``ImbalanceMeter.ratios`` names them.
    """
    model = RSTrainer.build_model(cfg)
    RSCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    imbalance = LoggedImbalance(cfg)
    loader = iter(RSTrainer.build_train_loader(cfg))
    for _ in range(iterations):
        with EventStorage() as storage, torch.no_grad():
            model(next(loader))
            imbalance.update(storage)
    return {**imbalance.names, **imbalance.take()}


def imbalance_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table in the layout of the published Table S7, ratios as 1:n.

    Args:
        rows: values by column, the same columns in each; at least one.
    """
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns)]
    lines += [[format_cell(row[column]) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
