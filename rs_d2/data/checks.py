"""Is every data set of a config where it should be."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from rs_d2.coco.json_files import is_plain
from rs_d2.utils.errors import UserError, did_you_mean

_EMBEDDED = ("digits_train", "digits_val")  # made when first loaded

# Folders of COCO's images that an LVIS v1 file refers to.
_LVIS_IMAGES = {
    "lvis_v1_train": ("train2017",),
    "lvis_v1_val": ("train2017", "val2017"),
    "lvis_v1_test_dev": ("test2017",),
    "lvis_v1_test_challenge": ("test2017",),
}


def check_datasets(names: Iterable[str]) -> None:
    """Make sure that data sets are known and that their json and image folders exist.

    Args:
        names: names in Detectron2's catalog.

    Raises:
        UserError: A name is unknown (with the nearest known one), a file or folder is missing, or a
            json is in an encoding that Detectron2 does not read.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name in names:
        if name not in DatasetCatalog:
            known = DatasetCatalog.list()
            hint = did_you_mean(name, known) or f"; known: {', '.join(sorted(known))}"
            raise UserError(f"data set {name} is not known{hint}")
        if name in _EMBEDDED:
            continue
        metadata = MetadataCatalog.get(name)
        json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        if json_file and not Path(json_file).is_file():
            raise UserError(_missing(name, f"file {json_file}"))
        if json_file and not is_plain(Path(json_file)):
            raise UserError(
                f"data set {name}: {json_file} is not plain UTF-8 without a byte-order mark, which"
                " Detectron2 asks for; tools/check_dataset.py --fix writes it anew"
            )
        for part in _LVIS_IMAGES.get(name, ("",)):
            if image_root and not Path(image_root, part).is_dir():
                raise UserError(_missing(name, f"folder {Path(image_root, part)}"))


def check_num_classes(names: Iterable[str], num_classes: int, key: str) -> None:
    """Make sure that a model has one output per class of each data set.

    Args:
        names: names in Detectron2's catalog.
        num_classes: outputs of the model.
        key: of the config, where that number stands.

    Raises:
        UserError: A data set has another number of classes; sets that state none are passed over.
    """
    from detectron2.data import MetadataCatalog

    for name in names:
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes is not None and len(classes) != num_classes:
            raise UserError(f"{key}: {num_classes}, but data set {name} has {len(classes)} classes")


def _missing(name: str, what: str) -> str:
    root = os.getenv("DETECTRON2_DATASETS")
    now = f"is {root}" if root else "is not set, so ./datasets is used"
    return (
        f"data set {name}: {what} is missing (DETECTRON2_DATASETS {now}); "
        "datasets/README.md says what goes where"
    )
