"""The checkpoints that a training writes and goes on from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from rs_d2.checkpoint.files import read_checkpoint, write_checkpoint
from rs_d2.checkpoint.last import TAG, not_finite, resumable_checkpoint, tagged_checkpoint
from rs_d2.checkpoint.loading import RSCheckpointer, training_classes
from rs_d2.checkpoint.metadata import ENTRY, CheckpointMetadata, read_metadata
from rs_d2.checkpoint.revision import code_revision
from rs_d2.config import lookup
from rs_d2.config.load import config_from_text
from rs_d2.engine.nonfinite import TrainingDiverged
from rs_d2.engine.results import flat_metrics
from rs_d2.utils.atomic_write import atomic_write
from rs_d2.utils.errors import UserError


class TrainingCheckpointer(RSCheckpointer):
    """Writes into every checkpoint what its model is, so that the file can be used alone.

    The entry is a ``CheckpointMetadata``: the config, the class names of the first training set and
    the revision of the code; metrics only where they are those of these very weights.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, **checkpointables: Any) -> None:
        super().__init__(model, cfg.OUTPUT_DIR, **checkpointables)
        self._cfg = cfg

    def save(self, name: str, results: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Write a checkpoint, whole or not at all.

        Args:
            name: of the file, without its ending.
            results: of an evaluation of just this model.
            kwargs: further entries, such as ``iteration``.

        Raises:
            TrainingDiverged: A weight, or what the optimizer remembers, is not finite.
            UserError: The file cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        about = self._about._replace(metrics=flat_metrics(results or {}))
        content = {"model": self.model.state_dict(), ENTRY: about.to_entry(), **kwargs}
        content.update((key, each.state_dict()) for key, each in self.checkpointables.items())
        path = Path(self.save_dir) / f"{name}.pth"
        broken = next(not_finite(content["model"]), None)
        broken = broken or next(not_finite({**content, "model": ()}), None)
        left = last_checkpoint_line(self.save_dir)
        if broken is not None:
            raise TrainingDiverged(
                f"training diverged: {broken} is not finite, {path} is not written; a lower"
                f" SOLVER.BASE_LR may help; {left}"
            )
        self.logger.info(f"Saving checkpoint to {path}")
        try:
            write_checkpoint(content, path)
            self.tag_last_checkpoint(path.name)
        except UserError as error:
            raise UserError(f"{error}; {left}") from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Point ``last_checkpoint`` to a file, whole or not at all."""
        with atomic_write(Path(self.save_dir) / TAG, "w") as file:
            file.write(last_filename_basename)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the last good checkpoint of the folder, or else load only weights.

        Raises:
            UserError: A file cannot be used, or the checkpoint is that of another model.
        """
        # Not mapped: the optimizer would keep what is a part of the file.
        found = resumable_checkpoint(self.save_dir, mmap=False) if resume else None
        if found is None:
            return self.load(path, checkpointables=[])
        for problem in found.problems:
            self.logger.warning(f"--resume: {problem}; going on from {found.path.name}")
        content = found.content
        state = content.get("trainer")
        iteration = state.get("iteration") if isinstance(state, dict) else None
        if type(iteration) is not int or iteration < 0:
            raise UserError(f"--resume: {found.path} holds no state of a training")
        if iteration + 1 >= self._cfg.SOLVER.MAX_ITER:
            self.logger.warning(
                f"--resume: nothing is left to train: {found.path.name} is of iteration"
                f" {iteration}, SOLVER.MAX_ITER is {self._cfg.SOLVER.MAX_ITER}"
            )
        self._check_same_model(content, found.path)
        rest = self.load(str(found.path), content=content)
        for name in self.unset:
            raise UserError(
                f"--resume: {found.path} does not fit this config: {name} is missing or has another"
                " shape; start anew with another OUTPUT_DIR"
            )
        return rest

    def _check_same_model(self, content: dict[str, Any], path: Path) -> None:
        stored = read_metadata(content, str(path))
        if stored is None:  # of an older version
            return
        before = config_from_text(stored.config, str(path))
        for key in ("MODEL.META_ARCHITECTURE", "SOLVER.OPTIMIZER"):
            if lookup(before, key) != lookup(self._cfg, key):
                raise UserError(
                    f"--resume: {path} was trained with {key} {lookup(before, key)}, not"
                    f" {lookup(self._cfg, key)}; start anew with another OUTPUT_DIR"
                )

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


def check_weights(cfg: CfgNode, *, resume: bool, eval_only: bool) -> None:
    """Check that the weights a run starts from exist, as far as that shows without a download.

    Raises:
        UserError: There is no such file, or nothing to evaluate.
    """
    if resume and resumable_checkpoint(cfg.OUTPUT_DIR) is not None:
        return
    weights = cfg.MODEL.WEIGHTS
    if not weights and eval_only:
        raise UserError(
            "--eval-only: nothing to evaluate; name a checkpoint (MODEL.WEIGHTS FILE), or add"
            " --resume to take the last one in OUTPUT_DIR"
        )
    if weights and "://" not in weights and not PathManager.isfile(weights.split("?")[0]):
        raise UserError(f"MODEL.WEIGHTS: {weights} does not exist")


def last_checkpoint_line(output_dir: str) -> str:
    """Say which checkpoint a stopped run left behind."""
    last = tagged_checkpoint(output_dir)
    if last is None:
        return "no checkpoint has been written yet"
    return f"the last checkpoint is {last} (--resume continues from it)"


def set_last_aside(output_dir: str) -> None:
    """Keep torchrun, should it restart a run that has not saved yet, from resuming an older one.

    The first process renames `last_checkpoint` to `last_checkpoint.before`; the checkpoints stay.
    """
    tag = Path(output_dir) / TAG
    if comm.is_main_process() and tag.is_file():
        aside = tag.rename(f"{tag}.before")
        logging.getLogger(__name__).warning(
            "%s holds checkpoints of an earlier run, which this one does not resume: what was the"
            " last one now stands in %s",
            output_dir,
            aside.name,
        )
