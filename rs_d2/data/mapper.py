"""From a dict of a data set to the model's input; an image that cannot be read is named."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from rs_d2.coco.checks import printable
from rs_d2.coco.image_files import reason_of
from rs_d2.coco.pixels import open_image
from rs_d2.criterion.negatives import VERIFIED_FIELD, VerifiedClasses
from rs_d2.data.augmentation import ssd_augmentations
from rs_d2.data.federated import ABSENT, class_of_category, key_that_asks, verified_classes
from rs_d2.utils.d2_compat import our_resizing
from rs_d2.utils.errors import UserError

_logger = logging.getLogger(__name__)
_MOST_IN_A_ROW = 100


class BadImage(UserError):
    """An image that cannot be read; its text is one line also after a worker process raised it.

    There, ``DataLoader`` makes the same error anew of a whole trace, whose last line has the text.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text.strip().splitlines()[-1].split(f"{type(self).__name__}: ", 1)[-1])


class ImageMapper(DatasetMapper):
    """Detectron2's mapper, with our reading of images: see ``rs_d2.coco.pixels.open_image``.

    An image that cannot be read, or is of another size than stated, raises ``BadImage``, or gives
    None with ``on_bad_image`` "skip": Detectron2's loader then takes another image at random. It is
    told in the log, with the number of times this happened in all processes of the loader. After
    100 in a row, or as many as there are images, it raises all the same.

    Where ``CRITERION.NEGATIVES`` asks for it, the instances of an image that lists
    ``neg_category_ids`` get the field ``gt_verified``, a ``VerifiedClasses``.

    Attributes:
        skipped: int64 [], how often an image was skipped, shared by the processes of a loader.
    """

    @configurable
    def __init__(
        self,
        *,
        on_bad_image: str = "error",
        num_images: int = 1,
        class_of: Mapping[int, int] | None = None,
        needs_center: bool = False,
        min_object_size: float = 0.0,
        **kwargs: Any,
    ) -> None:
        """Make a mapper.

        Args:
            on_bad_image: "skip" or "error".
            num_images: of the data set.
            class_of: class by category id, to say which classes are verified; None: not wanted.
            needs_center: leave out objects whose centre is no longer in the image.
            min_object_size: leave out objects of fewer pixels in width or height, in the image as
                stored, of training.
            kwargs: of Detectron2's mapper.
        """
        super().__init__(**kwargs)
        self._needs_center = needs_center
        self._min_object_size = min_object_size
        self._skips = on_bad_image == "skip"
        self._class_of = class_of
        self._limit = min(num_images, _MOST_IN_A_ROW)
        self._in_a_row = 0
        self.skipped = torch.zeros((), dtype=torch.int64).share_memory_()

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True, num_images: int = 1) -> dict:
        """Tests are never skipped: an evaluation of fewer images is another evaluation."""
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = [
            our_resizing(each, cfg.INPUT.SQUARE) for each in arguments["augmentations"]
        ]
        if is_train and cfg.INPUT.AUGMENTATION == "ssd":
            flips = arguments["augmentations"][1:]  # the first is the resizing
            arguments["augmentations"] = [*ssd_augmentations(cfg), *flips]
            arguments["needs_center"] = True
        arguments["min_object_size"] = cfg.INPUT.MIN_OBJECT_SIZE
        arguments["on_bad_image"] = cfg.DATALOADER.ON_BAD_IMAGE if is_train else "error"
        if is_train and key_that_asks(cfg):
            arguments["class_of"] = class_of_category(cfg.DATASETS.TRAIN)
        return {**arguments, "num_images": num_images}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """The input of a dict, which is not changed.

        Raises:
            BadImage: See the class.
        """
        entry = copy.deepcopy(dataset_dict)
        try:
            image = self._read(entry)
        except Exception as error:  # whatever a broken file makes its decoder raise
            problem = BadImage(f"{printable(entry['file_name'])} cannot be read{reason_of(error)}")
            self._in_a_row += 1
            if not self._skips or self._in_a_row >= self._limit:
                raise problem from None
            self.skipped += 1
            _logger.warning("%s; skipped (%d so far)", problem, int(self.skipped))
            return None
        self._in_a_row = 0
        return self._transform(entry, image)

    def _read(self, entry: dict[str, Any]) -> np.ndarray:
        with PathManager.open(entry["file_name"], "rb") as file:
            image = utils.convert_PIL_to_numpy(open_image(file), self.image_format)
        height, width = image.shape[:2]
        stated = entry.setdefault("width", width), entry.setdefault("height", height)
        if stated != (width, height):
            raise ValueError(f"{width} x {height} pixels, stated are {stated[0]} x {stated[1]}")
        return image

    def _transform(self, entry: dict[str, Any], image: np.ndarray) -> dict[str, Any]:
        """What Detectron2's mapper does after reading."""
        verified = None
        if self.is_train and "annotations" in entry:
            if self._class_of is not None and entry.get(ABSENT) is not None:
                verified = verified_classes(entry, self._class_of)
            if self._min_object_size > 0:
                boxes = _boxes_of(entry["annotations"])
                sides = (boxes[:, 2:] - boxes[:, :2]).min(1)
                large = (sides >= self._min_object_size).nonzero()[0]
                entry["annotations"] = [entry["annotations"][row] for row in large]
        sem_seg = None
        if "sem_seg_file_name" in entry:
            sem_seg = utils.read_image(entry.pop("sem_seg_file_name"), "L").squeeze(2)
        view = T.AugInput(image, sem_seg=sem_seg)
        if self._needs_center:
            notes = [each for each in entry.get("annotations", ()) if not each.get("iscrowd")]
            view.boxes = _boxes_of(notes)
        transforms = self.augmentations(view)
        size = view.image.shape[:2]
        if self._needs_center:
            centers = (view.boxes[:, :2] + view.boxes[:, 2:]) / 2
            inside = ((centers > 0) & (centers < size[::-1])).all(1)
            entry["annotations"] = [notes[row] for row in inside.nonzero()[0]]
        entry["image"] = torch.as_tensor(np.ascontiguousarray(view.image.transpose(2, 0, 1)))
        if view.sem_seg is not None:
            entry["sem_seg"] = torch.as_tensor(view.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(entry, size, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            entry.pop("annotations", None)
        elif "annotations" in entry:
            has_runs = any(
                isinstance(note.get("segmentation"), dict) and not note.get("iscrowd")
                for note in entry["annotations"]
            )
            usual = self.instance_mask_format
            # Detectron2 makes no polygons of run lengths, but bitmaps of polygons.
            self.instance_mask_format = "bitmask" if has_runs else usual
            self._transform_annotations(entry, transforms, size)
            self.instance_mask_format = usual
            if verified is not None:
                instances = entry["instances"]
                instances.set(VERIFIED_FIELD, VerifiedClasses.of(verified, len(instances)))
        return entry


def _boxes_of(notes: list[dict[str, Any]]) -> np.ndarray:
    """[n, 4], XYXY, pixels."""
    boxes = [BoxMode.convert(each["bbox"], each["bbox_mode"], BoxMode.XYXY_ABS) for each in notes]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
