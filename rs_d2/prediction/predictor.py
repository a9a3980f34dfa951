"""A checkpoint as a function from images to instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.detection_utils import build_augmentation, convert_PIL_to_numpy
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image

from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.checkpoint.loading import load_for_evaluation, training_classes
from rs_d2.checkpoint.metadata import CheckpointMetadata, read_metadata
from rs_d2.coco.pixels import open_image
from rs_d2.config import lookup, num_classes_key, score_thresh_key
from rs_d2.config.check import check_config
from rs_d2.config.load import config_from_text, find_config, load_config, merge_pairs
from rs_d2.utils.cli import as_pairs
from rs_d2.utils.d2_compat import our_resizing
from rs_d2.utils.errors import UserError

ImageLike = str | PathLike | Image.Image | np.ndarray


class Predictor:
    """Detect objects in images with a trained model, one at a time or in batches.

    Example::

        predictor = Predictor("output/model_final.pth")
        instances = predictor("image.jpg")  # pred_boxes, scores, pred_classes and, with masks,
        Visualizer(image, predictor.metadata).draw_instance_predictions(instances)  # pred_masks

    Attributes:
        cfg: the frozen config.
        model: in evaluation mode.
        about: what is known of the model; ``class_names`` empty if they are not known.
        class_names: by the model's classes; "class 0" and so on if they are not known.
        metadata: of the classes, for Detectron2's ``Visualizer``.
        score_thresh: score that every detection exceeds, before suppression.
        prepare: makes the model's input of an image; may be used in other processes.
    """

    def __init__(
        self,
        checkpoint: str | PathLike,
        *,
        config: str | PathLike | CfgNode | None = None,
        score_thresh: float | None = None,
        device: str | None = None,
        class_names: Sequence[str] | None = None,
        overrides: Mapping[str, Any] | Sequence[Any] = (),
    ) -> None:
        """Build the model and load it.

        Args:
            checkpoint: file as training, ``tools/publish_model.py`` or Detectron2 wrote it.
            config: path of a config file or name of a packaged one, or a config; None: the one in
                the checkpoint.
            score_thresh: in [0, 1); None: the config's.
            device: such as "cuda:0"; None: a GPU if there is one.
            class_names: in the order of the model's outputs; None: those in the checkpoint, else
                of the config's training set, if it is registered.
            overrides: config keys and values, as a mapping or in turn, merged last.

        Raises:
            UserError: The file or config cannot be used, or does not fit the other.
        """
        path = str(checkpoint)
        content = _read(path)
        stored = None if content is None else read_metadata(content, path)
        cfg = _config(path, config, stored, as_pairs(overrides))
        cfg.MODEL.WEIGHTS = path
        cfg.MODEL.DEVICE = choose_device(device)
        if score_thresh is not None:
            if not 0 <= score_thresh < 1:
                raise UserError(f"score_thresh: {score_thresh} is not in [0, 1)")
            cfg.merge_from_list([score_thresh_key(cfg), float(score_thresh)])
        check_config(cfg)
        cfg.freeze()
        self.cfg = cfg
        self.about = _about(cfg, path, stored, class_names)
        self.model = build_model(cfg).eval()
        load_for_evaluation(cfg, self.model, content=content)
        self.prepare = InputMaker(cfg)
        num_classes = lookup(cfg, num_classes_key(cfg))
        made_up = tuple(f"class {index}" for index in range(num_classes))
        self.class_names = self.about.class_names or made_up
        self.score_thresh: float = lookup(cfg, score_thresh_key(cfg))
        self.metadata = _metadata(cfg, self.class_names)

    def __call__(self, image: ImageLike) -> Instances:
        """Detect the objects of one image.

        Args:
            image: path; PIL image; or uint8 array [H, W, 3] in BGR, as ``cv2.imread`` gives it and
                Detectron2's ``DefaultPredictor`` takes it. Paths and PIL images may be of any mode
                and are turned as their EXIF entry says; 16 bits become 8.

        Returns:
            On the CPU, sorted by score: ``pred_boxes`` (XYXY, pixels of the image), ``scores``,
            ``pred_classes`` and, of a model with masks, ``pred_masks`` [N, H, W].

        Raises:
            ValueError: The array has another shape or type.
            OSError: The file is not an image that can be read.
        """
        return self.batch([image])[0]

    def batch(self, images: Sequence[ImageLike]) -> list[Instances]:
        """Detect the objects of several images in one pass.

        Smaller images are padded to the size of the largest, so results may differ slightly from
        those of one image at a time.
        """
        return self.predict([self.prepare(image) for image in images])

    def predict(self, inputs: Sequence[Mapping[str, Any]]) -> list[Instances]:
        """Detect the objects of inputs that ``prepare`` made; none gives none."""
        if not inputs:
            return []
        with torch.inference_mode():
            outputs = self.model(list(inputs))
            return [output["instances"].to("cpu") for output in outputs]


class InputMaker:
    """Reads an image and resizes it as a config's test does; may be sent to another process."""

    def __init__(self, cfg: CfgNode) -> None:
        """Read the config.

        Raises:
            UserError: Its channels are not those of a colour image.
        """
        if cfg.INPUT.FORMAT not in ("BGR", "RGB"):
            raise UserError(f"INPUT.FORMAT: '{cfg.INPUT.FORMAT}' is neither BGR nor RGB")
        self._format = cfg.INPUT.FORMAT
        augmentations = build_augmentation(cfg, is_train=False)
        self._augmentations = AugmentationList(
            [our_resizing(each, cfg.INPUT.SQUARE) for each in augmentations]
        )

    def __call__(self, image: ImageLike) -> dict[str, Any]:
        """The model's input: ``image``, a tensor [3, h, w], and ``height``, ``width`` of before."""
        return self.of_pixels(self.read(image))

    def read(self, image: ImageLike) -> np.ndarray:
        """Pixels [H, W, 3] in the model's channel order; see :meth:`Predictor.__call__`."""
        if isinstance(image, np.ndarray):
            return self.from_bgr(image)
        return convert_PIL_to_numpy(open_image(image), self._format)

    def from_bgr(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels [H, W, 3] of an array in BGR in the model's channel order."""
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ValueError(
                f"expected a uint8 array [H, W, 3] in BGR, got {pixels.dtype} {pixels.shape}"
            )
        if self._format == "BGR":
            return pixels
        return convert_PIL_to_numpy(Image.fromarray(pixels[:, :, ::-1]), self._format)

    def to_rgb(self, pixels: np.ndarray) -> np.ndarray:
        """The inverse order, for pictures."""
        return pixels[:, :, ::-1] if self._format == "BGR" else pixels

    def of_pixels(self, pixels: np.ndarray) -> dict[str, Any]:
        """The model's input of pixels that :meth:`read` gave."""
        height, width = pixels.shape[:2]
        resized = AugInput(pixels)
        self._augmentations(resized)
        tensor = torch.from_numpy(np.ascontiguousarray(resized.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}


def _read(path: str) -> dict[str, Any] | None:
    """Content of a checkpoint; None of Detectron2's own pickles and of addresses.

    Those say nothing of themselves and are left to Detectron2's checkpointer.
    """
    if "://" in path or Path(path).suffix == ".pkl":
        return None
    return read_checkpoint(path, mmap=True)


def _config(
    path: str,
    config: str | PathLike | CfgNode | None,
    stored: CheckpointMetadata | None,
    overrides: Sequence[Any],
) -> CfgNode:
    if isinstance(config, CfgNode):
        cfg = config.clone()
        cfg.defrost()
        merge_pairs(cfg, overrides)
        return cfg
    if config is not None:
        return load_config(find_config(str(config)), overrides)[0]
    if stored is None:
        raise UserError(f"{path} holds no config: name the one that it was trained with")
    return config_from_text(stored.config, path, overrides)


def choose_device(device: str | None) -> str:
    """The device that is asked for; None: a GPU if there is one.

    Raises:
        UserError: There is no such device.
    """
    found = torch.cuda.is_available()
    if device is None:
        return "cuda" if found else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UserError(f"device: '{device}' is not a device") from error
    if kind == "cuda" and not found:
        raise UserError(f"device: '{device}' was asked for but no GPU is there")
    return device


def _about(
    cfg: CfgNode,
    path: str,
    stored: CheckpointMetadata | None,
    class_names: Sequence[str] | None,
) -> CheckpointMetadata:
    """What is known of the model, with the names that the caller gives in front."""
    stored = stored or CheckpointMetadata("", version="")
    num_classes = lookup(cfg, num_classes_key(cfg))
    if class_names is not None and len(class_names) != num_classes:
        raise UserError(f"{path} has {num_classes} classes, but {len(class_names)} names are given")
    known = (class_names or (), stored.class_names, training_classes(cfg))
    fitting = (tuple(names) for names in known if len(names) == num_classes)
    return stored._replace(config=cfg.dump(), class_names=next(fitting, ()))


def _metadata(cfg: CfgNode, class_names: Sequence[str]) -> Metadata:
    """Metadata of the classes, with the ids of the training set where those are known here."""
    metadata = Metadata(name="predictor", thing_classes=list(class_names))
    if cfg.DATASETS.TRAIN:
        trained_on = MetadataCatalog.get(cfg.DATASETS.TRAIN[0])
        id_map = trained_on.get("thing_dataset_id_to_contiguous_id")
        if id_map is not None and tuple(trained_on.get("thing_classes", ())) == tuple(class_names):
            metadata.thing_dataset_id_to_contiguous_id = dict(id_map)
    return metadata
