"""The user's own COCO or LVIS json in place of the data sets of a config."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from rs_d2.config import lookup, num_classes_key
from rs_d2.data import CustomDataset, register_custom
from rs_d2.utils.errors import UserError

OWN_TRAIN, OWN_VAL = "own_train", "own_val"


def use_own_data(cfg: CfgNode, args: argparse.Namespace, given: Collection[str]) -> list[str]:
    """Register the json files of the command line and point the config at them, in place.

    Classes are counted in the training json (``--eval-only`` without one: in the validation json).
    Numbers that a config expects of its own data set (``TEST.EXPECTED_RESULTS``) are dropped.

    Args:
        cfg: config that is not frozen.
        args: arguments from ``parse_args``.
        given: keys given on the command line.

    Returns:
        Lines for the log; empty without own data.

    Raises:
        UserError: A json is missing or cannot be used.
    """
    datasets = register_own_data(args)
    if not datasets:
        return []
    train, val = datasets.get(OWN_TRAIN), datasets.get(OWN_VAL)
    leading = train or val
    if train is not None:
        cfg.DATASETS.TRAIN = (OWN_TRAIN,)
    cfg.DATASETS.TEST = (OWN_VAL,) if val is not None else ()
    num_classes = len(leading.thing_classes)
    key = num_classes_key(cfg)
    stated = lookup(cfg, key)
    if key in given and stated != num_classes:
        raise UserError(
            f"{key}: {stated}, but {leading.name} has {num_classes} classes;"
            " leave the key out, it is set from the json"
        )
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = num_classes
    if "TEST.EXPECTED_RESULTS" not in given:
        cfg.TEST.EXPECTED_RESULTS = []
    notes = [_describe(dataset) for dataset in datasets.values()]
    if val is None:
        notes.append("--val-json is not given: training without evaluation")
    if cfg.MODEL.MASK_ON and not leading.has_masks:
        cfg.MODEL.MASK_ON = False
        notes.append(f"{leading.name} has objects without masks: MODEL.MASK_ON is off")
    elif cfg.MODEL.MASK_ON and val is not None and not val.has_masks:
        notes.append(f"{OWN_VAL} has objects without masks: only boxes are evaluated")
    return notes


def count_epochs(cfg: CfgNode) -> list[str]:
    """Say how often a schedule goes through the user's images: it was written for other data.

    Returns:
        A line for the log; empty where the training data is not the user's own.
    """
    if OWN_TRAIN not in cfg.DATASETS.TRAIN:
        return []
    num_images = MetadataCatalog.get(OWN_TRAIN).num_images
    iterations, batch = cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH
    epochs = iterations * batch / num_images
    return [
        f"SOLVER.MAX_ITER: {iterations} iterations of {batch} images are {epochs:.1f} epochs of"
        f" {OWN_TRAIN}"
    ]


def register_own_data(args: argparse.Namespace) -> dict[str, CustomDataset]:
    """Register the json files of the command line with Detectron2 in this process.

    Returns:
        The data sets by name, training first; empty without own data.

    Raises:
        UserError: A json is missing or cannot be used.
    """
    datasets: dict[str, CustomDataset] = {}
    for name, json_file, images in (
        (OWN_TRAIN, args.train_json, args.train_images),
        (OWN_VAL, args.val_json, args.val_images),
    ):
        if json_file:
            folder = images or str(Path(json_file).parent)
            reference = datasets.get(OWN_TRAIN)
            datasets[name] = register_custom(name, json_file, folder, reference=reference)
    return datasets


def _describe(dataset: CustomDataset) -> str:
    line = (
        f"{dataset.name}: {dataset.num_images} images, {dataset.num_instances} objects,"
        f" {len(dataset.thing_classes)} classes ({dataset.format.upper()} form)"
    )
    return f"{line}; left out: {dataset.left_out}" if dataset.left_out else line
