"""The embedded digits set in Detectron2's catalogs; made by its first load."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from rs_d2.coco.image_files import locate_images
from rs_d2.coco.reading import read_annotations
from rs_d2.data.custom import dataset_dicts
from rs_d2.data.digits.digits import digits_categories, find_digits, make_digits
from rs_d2.utils.errors import UserError

_logger = logging.getLogger(__name__)


def register_builtin() -> None:
    """Register `digits_train` and `digits_val` below `DETECTRON2_DATASETS`; reads no file.

    The variable is read here, as Detectron2 reads it at import; without it the sets lie in
    `datasets/digits` of the current folder. A second call does nothing.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    root = Path(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))) / "digits"
    for split in ("train", "val"):
        name = f"digits_{split}"
        if name in DatasetCatalog:
            continue
        DatasetCatalog.register(name, lambda split=split: load_digits_split(root, split))
        categories = digits_categories()
        MetadataCatalog.get(name).set(
            json_file=str(root / f"{split}.json"),
            image_root=str(root),
            evaluator_type="lvis",
            thing_classes=[category["name"] for category in categories],
            thing_dataset_id_to_contiguous_id=_id_map(categories),
            has_masks=True,
            frequencies=[category["frequency"] for category in categories],
        )


def load_digits_split(root: Path, split: str) -> list[dict[str, Any]]:
    """Detectron2's dicts of one part of the digits set, which is made first if it is not there.

    One process makes it while the others wait.

    Args:
        root: folder of the set.
        split: "train" or "val".

    Raises:
        UserError: The set is not there and cannot be written.
    """
    from iopath.common.file_io import file_lock

    if find_digits(root) is None:
        try:
            with file_lock(str(root)):
                if find_digits(root) is None:
                    _logger.info("making the digits set in %s", root)
                    make_digits(root)
        except OSError as error:
            raise UserError(
                f"the digits set cannot be made in {root} ({error.strerror or error}); "
                "set DETECTRON2_DATASETS to a folder that can be written"
            ) from None
    file = read_annotations(root / f"{split}.json")
    paths = locate_images(file.images, root, file.path)
    return dataset_dicts(file, paths, _id_map(digits_categories()))


def _id_map(categories: list[dict[str, Any]]) -> dict[int, int]:
    return {category["id"]: index for index, category in enumerate(categories)}
