"""What a federated data set says about the classes that its images were searched for.

In the LVIS form an image lists ``neg_category_ids``, classes that it has no object of, and
``not_exhaustive_category_ids``, classes of which it may have more than are annotated. Of a class
that is neither annotated nor listed as absent nobody knows anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rs_d2.config.architectures import lookup
from rs_d2.criterion.negatives import NEGATIVES
from rs_d2.utils.errors import UserError

KEYS = ("MODEL.ROI_BOX_HEAD.CRITERION.NEGATIVES", "MODEL.DENSE_HEAD.CRITERION.NEGATIVES")
ABSENT, PARTIAL = "neg_category_ids", "not_exhaustive_category_ids"


def key_that_asks(cfg: Any) -> str | None:
    """The key of a config whose choice of negatives needs the lists; None if neither does."""
    return next((key for key in KEYS if NEGATIVES[lookup(cfg, key)].needs_verified), None)


def verified_classes(entry: Mapping[str, Any], class_of: Mapping[int, int]) -> Tensor:
    """The classes whose objects in an image are all annotated, ascending, int64 [M].

    ``(annotated + neg_category_ids) - not_exhaustive_category_ids``, the last with the classes of
    crowds, as in the evaluation.

    Args:
        entry: Detectron2's dict, with the lists and ``annotations``.
        class_of: class by category id, which the lists are made of; other ids are passed over, as
            lists of a full set remain in a subset with fewer classes.
    """
    notes = entry.get("annotations", [])
    absent, partial = (
        {class_of[i] for i in entry.get(name) or () if i in class_of} for name in (ABSENT, PARTIAL)
    )
    annotated = {note["category_id"] for note in notes}
    crowds = {note["category_id"] for note in notes if note.get("iscrowd")}
    return torch.tensor(sorted((annotated | absent) - partial - crowds), dtype=torch.int64)


def class_of_category(names: Iterable[str]) -> dict[int, int]:
    """The class of each category id, the same in all of the data sets.

    Args:
        names: names in Detectron2's catalog. One without ``thing_dataset_id_to_contiguous_id``
            counts its ids from 1, as LVIS does.

    Raises:
        UserError: Two of them number their categories differently.
    """
    from detectron2.data import MetadataCatalog

    first, found = "", {}
    for name in names:
        metadata = MetadataCatalog.get(name)
        own = metadata.get("thing_dataset_id_to_contiguous_id")
        if own is None:
            own = {i + 1: i for i in range(len(metadata.get("thing_classes", ())))}
        if first and own != found:
            raise UserError(
                f"DATASETS.TRAIN: {first} and {name} number their categories differently, so that"
                f" their {ABSENT} cannot be told apart"
            )
        first, found = name, own
    return found


def check_lists(cfg: Any, dataset_dicts: Sequence[Mapping[str, Any]]) -> None:
    """Make sure that the training images have the lists that a config asks for.

    Args:
        cfg: config.
        dataset_dicts: Detectron2's dicts of ``DATASETS.TRAIN``.

    Raises:
        UserError: An image has no ``neg_category_ids``, or no image lists any.
    """
    key = key_that_asks(cfg)
    if key is None:
        return
    asks = f"{key}: {lookup(cfg, key)} needs {ABSENT}"
    sets = f"DATASETS.TRAIN {', '.join(cfg.DATASETS.TRAIN)}"
    without = next((each for each in dataset_dicts if each.get(ABSENT) is None), None)
    if without is not None:
        raise UserError(f"{asks}, which {without['file_name']} of {sets} lacks")
    if not any(each[ABSENT] for each in dataset_dicts):
        raise UserError(f"{asks}, of which {sets} has none in any image")


def image_counts(dataset_dicts: Iterable[Mapping[str, Any]], num_classes: int) -> Tensor:
    """Number of images with each class, crowds aside, int64 [K].

    Args:
        dataset_dicts: Detectron2's dicts.
        num_classes: K.
    """
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for each in dataset_dicts:
        notes = each.get("annotations", [])
        present = {note["category_id"] for note in notes if not note.get("iscrowd")}
        counts[sorted(present)] += 1
    return counts
