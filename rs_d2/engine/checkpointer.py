"""Checkpoint files: Detectron2's checkpointer, with one clear line when a file is not usable."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from torch import nn

from rs_d2.checkpoint.files import read_checkpoint, write_checkpoint
from rs_d2.checkpoint.metadata import ENTRY, CheckpointMetadata
from rs_d2.checkpoint.revision import code_revision
from rs_d2.checkpoint.torchvision import torchvision_resnet
from rs_d2.engine.results import flat_metrics
from rs_d2.errors import UserError


class RSCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; a file that cannot be used is a ``UserError`` that names it.

    Heads of another class count are skipped with Detectron2's warning, so that weights of one data
    set can start the training on another.
    """

    # what the last load could not set: name -> its shape in the file, None if it is not there
    unset: dict[str, tuple[int, ...] | None] = {}  # noqa: RUF012

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint from a path or address; an empty one leaves the model as it is.

        Raises:
            UserError: The file is absent, not a checkpoint, or shares no tensor with the model.
        """
        try:
            return super().load(path, *args, **kwargs)
        except OSError as error:
            advice = "; fetch it elsewhere and give its path" if "://" in path else ""
            raise UserError(f"MODEL.WEIGHTS: {path} cannot be read ({error}){advice}") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        try:
            loaded = super()._load_file(filename)
            names = set(loaded["model"])
            resnet = torchvision_resnet(loaded["model"])
        except OSError:
            raise
        except Exception as error:  # whatever a file that is no checkpoint makes its reader raise
            raise _not_a_checkpoint(filename, type(error).__name__) from error
        if not all(isinstance(name, str) for name in names):
            raise _not_a_checkpoint(filename, "no named tensors")
        self._filename = filename
        if resnet is not None:
            return {"model": resnet, "matching_heuristics": True}
        return loaded

    def _load_model(self, checkpoint: Any) -> Any:
        try:
            incompatible = super()._load_model(checkpoint)
        except (AttributeError, ValueError) as error:  # entries that are no tensors
            raise _not_a_checkpoint(self._filename, type(error).__name__) from error
        parameters = [name for name, _ in self.model.named_parameters()]
        self.unset = {name: None for name in parameters if name in incompatible.missing_keys}
        self.unset.update((name, tuple(old)) for name, old, _ in incompatible.incorrect_shapes)
        if set(parameters).issubset(self.unset):
            raise UserError(
                f"MODEL.WEIGHTS: no tensor of {self._filename} fits this model; is it a checkpoint"
                " of another config?"
            )
        return incompatible


class TrainingCheckpointer(RSCheckpointer):
    """Writes into every checkpoint what its model is, so that the file can be used alone.

    The entry is a ``CheckpointMetadata``: the config, the class names of the first training set and
    the revision of the code; metrics only where they are those of these very weights.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, **checkpointables: Any) -> None:
        super().__init__(model, cfg.OUTPUT_DIR, **checkpointables)
        self._cfg = cfg

    def save(self, name: str, results: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Write a checkpoint.

        Args:
            name: of the file, without its ending.
            results: of an evaluation of the model as it is now.
            kwargs: further entries, such as ``iteration``.
        """
        if self.save_dir and self.save_to_disk:
            about = self._about._replace(metrics=flat_metrics(results or {}))
            super().save(name, **kwargs, **{ENTRY: about.to_entry()})

    def add_results(self, name: str, results: Mapping[str, Any]) -> None:
        """Put the results of an evaluation into a checkpoint that was written before it."""
        path = Path(self.save_dir) / f"{name}.pth"
        if not self.save_to_disk or not path.is_file():
            return
        try:
            content = read_checkpoint(path)
            entry = content.setdefault(ENTRY, self._about.to_entry())  # an older version's has none
            entry["metrics"] = flat_metrics(results)
            write_checkpoint(content, path)
        except UserError as error:  # a hook's state may be more than tensors and plain types
            logging.getLogger(__name__).warning("no metrics in %s: %s", path, error)

    @cached_property
    def _about(self) -> CheckpointMetadata:
        return CheckpointMetadata(
            config=self._cfg.dump(),
            class_names=training_classes(self._cfg),
            revision=code_revision(),
        )


def training_classes(cfg: CfgNode) -> tuple[str, ...]:
    """Class names of the first training set, if it is registered here; else empty."""
    if not cfg.DATASETS.TRAIN:
        return ()
    return tuple(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", ()))


def check_weights(cfg: CfgNode, *, resume: bool, eval_only: bool) -> None:
    """Check that the weights a run starts from exist, as far as that shows without a download.

    Raises:
        UserError: There is no such file, or nothing to evaluate.
    """
    last = _last_checkpoint(cfg.OUTPUT_DIR) if resume else None
    if last is not None:
        if not PathManager.isfile(str(last)):
            raise UserError(f"--resume: {last}, named by {last.parent}/last_checkpoint, is missing")
        return
    weights = cfg.MODEL.WEIGHTS
    if not weights and eval_only:
        raise UserError(
            "--eval-only: nothing to evaluate; name a checkpoint (MODEL.WEIGHTS FILE), or add"
            " --resume to take the last one in OUTPUT_DIR"
        )
    if weights and "://" not in weights and not PathManager.isfile(weights.split("?")[0]):
        raise UserError(f"MODEL.WEIGHTS: {weights} does not exist")


def load_for_evaluation(cfg: CfgNode, model: nn.Module, *, resume: bool) -> None:
    """Load the weights to evaluate into ``model``, in place.

    Raises:
        UserError: The file does not fit: evaluating a head left at random would mislead.
    """
    checkpointer = RSCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    for name, shape in checkpointer.unset.items():
        stored = "not in the file" if shape is None else f"{shape} in the file"
        wanted = tuple(model.state_dict()[name].shape)
        raise UserError(
            f"MODEL.WEIGHTS: {name} is {stored} but {wanted} in this model; was it trained with"
            " other classes or another config?"
        )


def last_checkpoint_line(output_dir: str) -> str:
    """Say which checkpoint a stopped run left behind."""
    last = _last_checkpoint(output_dir)
    if last is None:
        return "no checkpoint has been written yet"
    return f"the last checkpoint is {last} (--resume continues from it)"


def _last_checkpoint(output_dir: str) -> Path | None:
    tag = Path(output_dir) / "last_checkpoint"
    return Path(output_dir) / tag.read_text().strip() if tag.is_file() else None


def _not_a_checkpoint(filename: str, reason: str) -> UserError:
    return UserError(f"MODEL.WEIGHTS: {filename} is not a checkpoint ({reason})")
