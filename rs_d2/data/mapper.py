"""From a dict of a data set to the model's input; an image that cannot be read is named."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager

from rs_d2.coco.checks import printable
from rs_d2.coco.image_files import reason_of
from rs_d2.coco.pixels import open_image
from rs_d2.utils.d2_compat import keep_a_pixel
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

    Attributes:
        skipped: int64 [], how often an image was skipped, shared by the processes of a loader.
    """

    @configurable
    def __init__(self, *, on_bad_image: str = "error", num_images: int = 1, **kwargs: Any) -> None:
        """Make a mapper.

        Args:
            on_bad_image: "skip" or "error".
            num_images: of the data set.
            kwargs: of Detectron2's mapper.
        """
        super().__init__(**kwargs)
        self._skips = on_bad_image == "skip"
        self._limit = min(num_images, _MOST_IN_A_ROW)
        self._in_a_row = 0
        self.skipped = torch.zeros((), dtype=torch.int64).share_memory_()

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True, num_images: int = 1) -> dict:
        """Tests are never skipped: an evaluation of fewer images is another evaluation."""
        arguments = super().from_config(cfg, is_train)
        arguments["augmentations"] = [*map(keep_a_pixel, arguments["augmentations"])]
        arguments["on_bad_image"] = cfg.DATALOADER.ON_BAD_IMAGE if is_train else "error"
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
        sem_seg = None
        if "sem_seg_file_name" in entry:
            sem_seg = utils.read_image(entry.pop("sem_seg_file_name"), "L").squeeze(2)
        view = T.AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(view)
        size = view.image.shape[:2]
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
        return entry
