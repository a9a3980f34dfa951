"""Detectron2's default trainer with this package's data, optimizers and evaluators."""

from __future__ import annotations

import os
import re
import weakref
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import AMPTrainer, DefaultTrainer, HookBase, SimpleTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)
from torch import nn

from rs_d2.criterion.balancing import set_epochs
from rs_d2.data import build_train_sampler
from rs_d2.engine.checkpointer import TrainingCheckpointer, last_checkpoint_line
from rs_d2.engine.hooks import KeepBest, build_statistics_hooks
from rs_d2.engine.progress import LoaderWithBar, TrainingProgress
from rs_d2.engine.solver import build_optimizer
from rs_d2.evaluation import build_evaluator
from rs_d2.modeling.test_time_augmentation import GeneralizedRCNNWithTTA
from rs_d2.report.run import report_of_run
from rs_d2.utils.d2_compat import create_ddp_model
from rs_d2.utils.errors import UserError

ITERATION_LOG = "train_log.jsonl"  # Detectron2 would call it metrics.json, the name of our results
_NOT_FINITE = re.compile(r"'(\w+)': (?:np\.\w+\()?(-?inf|nan)\b")


class TrainingDiverged(FloatingPointError):
    """A loss is no longer a finite number; one line says which, and which checkpoint is left."""


class RSTrainer(DefaultTrainer):
    """Train on the data, with the optimizer and schedule of a config, and evaluate as it says.

    It runs on CPU and GPU, alone or as one of several processes. Unlike Detectron2 0.6, it also
    saves and resumes the state of the optimizer.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's constructor: that hands a GPU id to the DDP wrapper of a CPU model.
        super(DefaultTrainer, self).__init__()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        set_epochs(model, -(-loader.num_images // cfg.SOLVER.IMS_PER_BATCH))
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        loop = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = loop(
            model=create_ddp_model(model, broadcast_buffers=False),
            data_loader=loader,
            optimizer=optimizer,
        )
        self.checkpointer = TrainingCheckpointer(cfg, model, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._last_eval_results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    def train(self) -> dict[str, Any]:
        """Run the iterations that are left.

        Returns:
            Results of the final evaluation: task -> metric -> value in percent; empty without a
            test set, and in all processes but the first.

        Raises:
            TrainingDiverged: A loss is not finite.
        """
        # Not DefaultTrainer's method: that may end the program before the results are written.
        super(DefaultTrainer, self).train(self.start_iter, self.max_iter)
        if self._last_eval_results:  # of the final weights, which were saved before them
            self.checkpointer.add_results("model_final", self._last_eval_results)
        return self._last_eval_results

    def run_step(self) -> None:
        """Do one iteration."""
        try:
            super().run_step()
        except FloatingPointError as error:
            raise TrainingDiverged(self._describe(error)) from error

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, in the form of Detectron2's main branch."""
        state = super().state_dict()
        state.setdefault("_trainer", self._trainer.state_dict())  # 0.6 leaves the optimizer out
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore ``state_dict()``; one of Detectron2 0.6's own trainer has no optimizer."""
        super(DefaultTrainer, self).load_state_dict(state_dict)
        if "_trainer" in state_dict:
            self._trainer.load_state_dict(state_dict["_trainer"])

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks and ours, after the timer that must come first."""
        timer, *rest = super().build_hooks()
        ours = [TrainingProgress()] if comm.is_main_process() else []
        ours += build_statistics_hooks(self.cfg)
        if self.cfg.TEST.BEST_METRIC and comm.is_main_process():
            best = KeepBest(
                self.cfg.TEST.BEST_METRIC,
                lambda: self._last_eval_results,
                self.checkpointer,
                Path(self.cfg.OUTPUT_DIR),
            )
            rest.insert(-1, best)  # after the evaluation, before the writers
        return [timer, *ours, *rest]

    def build_writers(self) -> list[EventWriter]:
        """Log to the console, ``train_log.jsonl`` and tensorboard events in the output folder."""
        folder = self.cfg.OUTPUT_DIR
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(os.path.join(folder, ITERATION_LOG)),
            TensorboardXWriter(folder),
        ]

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Build what ``SOLVER.OPTIMIZER`` names."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Detectron2's scheduler.

        Raises:
            UserError: ``SOLVER.LR_SCHEDULER_NAME`` is unknown to it.
        """
        try:
            return super().build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise UserError(f"SOLVER.LR_SCHEDULER_NAME: {error}") from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Any:
        """Detectron2's loader, with repeat factors rounded as ``DATALOADER.REPEAT_ROUNDING`` says.

        Raises:
            UserError: No image is left to train on, or the sampler is unknown.
        """
        try:
            dataset_dicts = get_detection_dataset_dicts(
                cfg.DATASETS.TRAIN,
                filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
                min_keypoints=(
                    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
                    if cfg.MODEL.KEYPOINT_ON
                    else 0
                ),
                proposal_files=(
                    cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
                ),
            )
        except AssertionError as error:
            raise UserError(f"DATASETS.TRAIN: {error}") from error
        sampler = build_train_sampler(cfg, dataset_dicts)
        try:
            loader = build_detection_train_loader(cfg, dataset=dataset_dicts, sampler=sampler)
            loader.num_images = len(dataset_dicts)
            return loader
        except ValueError as error:
            if "sampler" not in str(error):
                raise
            raise UserError(f"DATALOADER.SAMPLER_TRAIN: {error}") from error

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> LoaderWithBar:
        """Detectron2's loader with a bar."""
        return LoaderWithBar(build_detection_test_loader(cfg, dataset_name), dataset_name)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, folder: str = "inference"
    ) -> DatasetEvaluator:
        """Build the evaluator for the ``evaluator_type`` of a data set.

        Args:
            cfg: config.
            dataset_name: registered name.
            folder: where it writes the detections and the report, relative to the output folder.
        """
        folder = os.path.join(cfg.OUTPUT_DIR, folder)
        return build_evaluator(cfg, dataset_name, folder, report_of_run(cfg, dataset_name))

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Evaluate on every test set, with ``TEST.AUG.ENABLED`` a second time under augmentation.

        Returns:
            task -> metric -> value in percent, one level deeper by name for several test sets;
            empty in all processes but the first. Augmented tasks end in ``_TTA``.
        """
        results = super().test(cfg, model, evaluators)
        if not cfg.TEST.AUG.ENABLED or evaluators is not None:
            return results
        evaluators = [
            cls.build_evaluator(cfg, name, folder="inference_TTA") for name in cfg.DATASETS.TEST
        ]
        augmented = super().test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {**results, **{f"{name}_TTA": value for name, value in augmented.items()}}

    def _describe(self, error: FloatingPointError) -> str:
        losses = _NOT_FINITE.findall(str(error))
        what = ", ".join(f"{name} is {value}" for name, value in losses)
        return (
            f"training diverged at iteration {self.iter}: {what or str(error).splitlines()[0]};"
            f" a lower SOLVER.BASE_LR may help; {last_checkpoint_line(self.cfg.OUTPUT_DIR)}"
        )
