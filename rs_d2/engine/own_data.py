"""The user's own COCO or LVIS json in place of the data sets of a config."""

from __future__ import annotations

from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from rs_d2.config import architecture_of, lookup
from rs_d2.data import CustomDataset, register_custom
from rs_d2.utils.errors import UserError

OWN_TRAIN, OWN_VAL = "own_train", "own_val"


class OwnData(NamedTuple):
    """Json files of the user, and the folders of their images; None: the json's folder.

    ``absolute_paths``: names of images may be absolute, that is anywhere on this machine.
    """

    train_json: str | PathLike | None = None
    train_images: str | PathLike | None = None
    val_json: str | PathLike | None = None
    val_images: str | PathLike | None = None
    absolute_paths: bool = False

    @classmethod
    def of(cls, args: Any) -> OwnData:
        """Of a command line, whose arguments have the names of the fields or are left out."""
        return cls(**{name: getattr(args, name, None) for name in cls._fields})

    def check(self, *, eval_only: bool) -> None:
        """Check that what is given goes together.

        Raises:
            UserError: Images without a json, or a validation without a training json.
        """
        if self.train_images and not self.train_json:
            raise UserError("--train-images needs --train-json")
        if self.val_images and not self.val_json:
            raise UserError("--val-images needs --val-json")
        if self.val_json and not self.train_json and not eval_only:
            raise UserError("--val-json needs --train-json, or --eval-only")

    def register(self) -> dict[str, CustomDataset]:
        """Register the files with Detectron2 in this process.

        Returns:
            The data sets by name, training first; empty without own data.

        Raises:
            UserError: A json is missing or cannot be used.
        """
        datasets: dict[str, CustomDataset] = {}
        for name, json_file, images in (
            (OWN_TRAIN, self.train_json, self.train_images),
            (OWN_VAL, self.val_json, self.val_images),
        ):
            if json_file:
                folder = str(images or Path(json_file).parent)
                reference = datasets.get(OWN_TRAIN)
                datasets[name] = register_custom(
                    name,
                    str(json_file),
                    folder,
                    reference=reference,
                    absolute_paths=bool(self.absolute_paths),
                )
        return datasets


def use_own_data(cfg: CfgNode, data: OwnData, given: Collection[str]) -> list[str]:
    """Register json files and point the config at them, in place.

    Classes are counted in the training json, or in the validation json where that is the only one.
    Numbers that a config expects of its own data set (``TEST.EXPECTED_RESULTS``) are dropped.

    Args:
        cfg: config that is not frozen.
        data: the files.
        given: keys that the user gave beside the config.

    Returns:
        Lines for the log; empty without own data.

    Raises:
        UserError: A json is missing or cannot be used.
    """
    datasets = data.register()
    if not datasets:
        return []
    train, val = datasets.get(OWN_TRAIN), datasets.get(OWN_VAL)
    leading = train or val
    if train is not None:
        cfg.DATASETS.TRAIN = (OWN_TRAIN,)
    cfg.DATASETS.TEST = (OWN_VAL,) if val is not None else ()
    if "TEST.EXPECTED_RESULTS" not in given:
        cfg.TEST.EXPECTED_RESULTS = []
    notes = [_describe(dataset) for dataset in datasets.values()]
    if val is None:
        notes.append("--val-json is not given: training without evaluation")
    notes += _set_num_classes(cfg, leading, given)
    if cfg.MODEL.MASK_ON and not leading.has_masks:
        if not architecture_of(cfg).has_boxes:
            raise UserError(
                f"{leading.name} has objects without masks, but {cfg.MODEL.META_ARCHITECTURE}"
                " learns nothing else"
            )
        cfg.MODEL.MASK_ON = False
        notes.append(f"{leading.name} has objects without masks: MODEL.MASK_ON is off")
    elif cfg.MODEL.MASK_ON and val is not None and not val.has_masks:
        notes.append(f"{OWN_VAL} has objects without masks: only boxes are evaluated")
    return notes


def _set_num_classes(cfg: CfgNode, leading: CustomDataset, given: Collection[str]) -> list[str]:
    architecture, num_classes = architecture_of(cfg), len(leading.thing_classes)
    key = architecture.num_classes_key
    stated = lookup(cfg, key)
    if key in given and stated != num_classes:
        raise UserError(
            f"{key}: {stated}, but {leading.name} has {num_classes} classes;"
            " leave the key out, it is set from the json"
        )
    cfg.merge_from_list([key, num_classes])
    if architecture.checks_classes:
        return []
    return [
        f"{key} is set to {num_classes}; if {cfg.MODEL.META_ARCHITECTURE} reads another key, say so"
        " with rs_d2.config.register_architecture"
    ]


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


def _describe(dataset: CustomDataset) -> str:
    line = (
        f"{dataset.name}: {dataset.num_images} images, {dataset.num_instances} objects,"
        f" {len(dataset.thing_classes)} classes ({dataset.format.upper()} form)"
    )
    return f"{line}; left out: {dataset.left_out}" if dataset.left_out else line
