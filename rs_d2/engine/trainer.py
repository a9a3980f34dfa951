"""Detectron2's default trainer with this package's data, optimizers and evaluators."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, TensorboardXWriter
from torch import nn

from rs_d2.criterion.balancing import set_epochs
from rs_d2.criterion.negatives import set_image_counts
from rs_d2.data.federated import check_lists
from rs_d2.data.mapper import ImageMapper
from rs_d2.data.samplers import train_sampler_maker
from rs_d2.data.train_loader import TrainLoader
from rs_d2.engine.checkpointer import TrainingCheckpointer, last_checkpoint_line
from rs_d2.engine.hooks import Checkpoints, KeepBest, build_statistics_hooks
from rs_d2.engine.iteration_log import ITERATION_LOG, IterationLog, RecentScalars
from rs_d2.engine.loop import AMPLoop, Batches, Loop, largest
from rs_d2.engine.nonfinite import (
    NotFinite,
    TrainingDiverged,
    any_broken_gradient,
    any_broken_loss,
    broken_gradient,
    broken_losses,
    diagnose,
    files_of,
    running_buffers,
    write_diagnosis,
)
from rs_d2.engine.progress import LoaderWithBar, TrainingProgress
from rs_d2.engine.solver import build_optimizer, check_optimizer_state
from rs_d2.evaluation import build_evaluator
from rs_d2.modeling.test_time_augmentation import GeneralizedRCNNWithTTA
from rs_d2.report.run import report_of_run
from rs_d2.utils.d2_compat import bound_histories, create_ddp_model
from rs_d2.utils.errors import UserError
from rs_d2.utils.random_state import seed_all
from rs_d2.utils.stopping import TrainingStopped, stop_signal, stop_signals

_logger = logging.getLogger(__name__)


class RSTrainer(DefaultTrainer):
    """Train on the data, with the optimizer and schedule of a config, and evaluate as it says.

    It runs on CPU and GPU, alone or as one of several processes. A resumed run does what the run
    before would have done: the random numbers of an iteration follow from the run's seed and its
    number, the images too, and the rest stands in the checkpoint.

    Attributes:
        seed: of the run, the same in all processes.
        asked_to_stop: number of the signal that any process got in this iteration or before; 0.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's constructor: that hands a GPU id to the DDP wrapper of a CPU model.
        super(DefaultTrainer, self).__init__()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        if hasattr(loader, "image_counts"):  # else NEGATIVES sampled says what it misses
            set_image_counts(model, loader.image_counts)
        self._num_images = getattr(loader, "num_images", None)  # unknown in a loader of the user's
        set_epochs(model, self._num_images and -(-self._num_images // cfg.SOLVER.IMS_PER_BATCH))
        self._loader = Batches(loader)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        loop = AMPLoop if cfg.SOLVER.AMP.ENABLED else Loop
        self._trainer = loop(
            model=create_ddp_model(model, broadcast_buffers=False),
            data_loader=self._loader,
            optimizer=optimizer,
        )
        self._trainer.look = self._look
        self.checkpointer = TrainingCheckpointer(cfg, model, trainer=weakref.proxy(self))
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.seed = self._loader.seed
        self.asked_to_stop = 0
        self._skipped = self._skipped_in_a_row = 0
        self._buffers: list[dict[str, torch.Tensor]] | None = None  # of every process
        self._own_buffers = dict(running_buffers(model))
        self._last_eval_results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    def train(self) -> dict[str, Any]:
        """Run the iterations that are left.

        Returns:
            Results of the final evaluation: task -> metric -> value in percent; empty without a
            test set, and in all processes but the first.

        Raises:
            TrainingDiverged: A loss, gradient or weight is not finite.
            TrainingStopped: SIGTERM or SIGUSR1 has come; there is a checkpoint of this iteration.
            UserError: A checkpoint cannot be written, or the resumed one's optimizer does not fit.
        """
        check_optimizer_state(self.optimizer)
        self._loader.start(self.seed, self.start_iter)
        with stop_signals():
            try:
                # Not DefaultTrainer's: that may end the program before the results are written.
                super(DefaultTrainer, self).train(self.start_iter, self.max_iter)
            except TrainingStopped:
                if self.iter < self.max_iter and comm.is_main_process():
                    self._checkpoints.save()  # unless it is there: while evaluating in between
                raise
        if self._last_eval_results:  # of the final weights, which were saved before them
            self.checkpointer.add_results("model_final", self._last_eval_results)
        return self._last_eval_results

    def before_train(self) -> None:
        """Start with a bound on what is remembered of the scalars."""
        bound_histories(self.storage)
        super().before_train()

    def after_train(self) -> None:
        """End at the iteration after the last, also where a resumed run had none left to do."""
        self.iter = max(self.start_iter, min(self.iter, self.max_iter))
        super().after_train()

    def run_step(self) -> None:
        """Do one iteration, or none where a number is not finite and ``ON_NONFINITE`` is skip."""
        seed_all(self.seed, comm.get_rank(), self.iter)
        skips = self.cfg.SOLVER.ON_NONFINITE == "skip"
        before = {name: value.clone() for name, value in self._own_buffers.items()} if skips else {}
        try:
            super().run_step()
        except NotFinite as found:
            if not skips or self._skipped_in_a_row >= self.cfg.SOLVER.NONFINITE_LIMIT:
                raise TrainingDiverged(self._tell(found)) from None
            self._skip(found, before)
        except FloatingPointError as error:  # Detectron2's own, of an overflow in the logged sum
            what = str(error).splitlines()[0]
            raise TrainingDiverged(self._divergence_line(what)) from error
        else:
            self._skipped_in_a_row = 0

    def collect_buffers(self) -> None:
        """Give the first process what the others' balancers and norms remember; call in all."""
        if comm.get_world_size() > 1:
            own = {name: value.cpu() for name, value in self._own_buffers.items()}
            self._buffers = comm.gather(own) or None

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, in the form of Detectron2's main branch."""
        state = super().state_dict()
        state.setdefault("_trainer", self._trainer.state_dict())  # 0.6 leaves the optimizer out
        state["run"] = {
            "seed": self.seed,
            "world_size": comm.get_world_size(),
            "batch": self.cfg.SOLVER.IMS_PER_BATCH,
            "images": self._num_images,
            "skipped": self._skipped,
            "buffers": self._buffers,
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore ``state_dict()``; one of Detectron2 0.6's own trainer has no optimizer.

        Raises:
            UserError: The state is not that of a trainer of this config.
        """
        try:
            super(DefaultTrainer, self).load_state_dict(state_dict)
            if "_trainer" in state_dict:
                self._trainer.load_state_dict(state_dict["_trainer"])
            if "run" in state_dict:
                self._load_run(state_dict["run"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(
                f"--resume: the checkpoint's training state does not fit this config ({reason})"
            ) from error

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks and ours, after the timer that must come first."""
        self._log = IterationLog(os.path.join(self.cfg.OUTPUT_DIR, ITERATION_LOG))
        self._checkpoints = Checkpoints(self.cfg.SOLVER.CHECKPOINT_PERIOD, self.checkpointer)
        timer, *rest = (
            hook for hook in super().build_hooks() if not isinstance(hook, PeriodicCheckpointer)
        )
        is_main = comm.is_main_process()
        evaluation = next(i for i, hook in enumerate(rest) if isinstance(hook, EvalHook))
        rest.insert(evaluation, self._checkpoints)
        ours = [TrainingProgress()] if is_main else []
        ours += build_statistics_hooks(self.cfg)
        ours.append(RecentScalars(self._log if is_main else None))
        if self.cfg.TEST.BEST_METRIC and is_main:
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
        return [CommonMetricPrinter(self.max_iter), self._log, TensorboardXWriter(folder)]

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
        """Detectron2's batches, from a loader that can start at any of them.

        Repeat factors are rounded as ``DATALOADER.REPEAT_ROUNDING`` says.

        Raises:
            UserError: No image is left to train on, the sampler is unknown, or the data lacks what
                a choice of negatives asks for.
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
        check_lists(cfg, dataset_dicts)
        make_sampler = train_sampler_maker(cfg, dataset_dicts)
        make_sampler(0)  # what it cannot use is told here
        return TrainLoader(
            dataset_dicts,
            ImageMapper(cfg, is_train=True, num_images=len(dataset_dicts)),
            make_sampler,
            cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(),
            seed=comm.shared_random_seed(),
            process=(comm.get_rank(), comm.get_world_size()),
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            group_by_shape=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> LoaderWithBar:
        """Detectron2's loader with a bar."""
        mapper = ImageMapper(cfg, is_train=False)
        return LoaderWithBar(
            build_detection_test_loader(cfg, dataset_name, mapper=mapper), dataset_name
        )

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

    def _load_run(self, run: Mapping[str, Any]) -> None:
        self.seed, self._skipped = int(run["seed"]), int(run["skipped"])
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"the seed is {self.seed}")
        images = run.get("images"), self._num_images
        if None not in images and images[0] != images[1]:
            _logger.warning(
                "--resume: %d training images before, %d now: the order is another one", *images
            )
        here = comm.get_world_size(), self.cfg.SOLVER.IMS_PER_BATCH
        if (run["world_size"], run["batch"]) != here:
            _logger.warning(
                "--resume: %d process(es) with %d images together before, %d with %d now: the order"
                " of the images is another one",
                *(run["world_size"], run["batch"], *here),
            )
        elif run["buffers"]:
            stored = run["buffers"][comm.get_rank()]
            for name in self._own_buffers.keys() & stored.keys():
                self._own_buffers[name].copy_(stored[name])

    def _look(self, losses: Mapping[str, torch.Tensor] | torch.Tensor) -> None:
        """Before the optimizer's step: is all finite, in every process, and may we go on?"""
        losses = losses if isinstance(losses, Mapping) else {"total_loss": losses}
        model = self.checkpointer.model
        flags = [any_broken_loss(losses)]
        if not self.cfg.SOLVER.AMP.ENABLED:  # a scaler takes care of its own
            flags.append(any_broken_gradient(model))
        numbers = [torch.tensor(stop_signal(), device=flags[0].device), *flags]
        self.asked_to_stop, *broken = largest(torch.stack([each.int() for each in numbers]))
        if broken[0]:  # which spoils the gradients of all processes
            raise NotFinite(broken_losses(losses))
        if any(broken):
            raise NotFinite({}, broken_gradient(model))

    def _skip(self, found: NotFinite, before: Mapping[str, torch.Tensor]) -> None:
        """Leave everything as it was before the iteration."""
        for name, value in before.items():
            self._own_buffers[name].copy_(value)
        self.optimizer.zero_grad()
        self._skipped += 1
        self._skipped_in_a_row += 1
        self.storage.put_scalar("nonfinite/skipped", self._skipped, smoothing_hint=False)
        if str(found):
            files = ", ".join(files_of(self._loader.latest))
            _logger.warning(
                "iteration %d is skipped: %s; images: %s (%d skipped so far)",
                *(self.iter, found, files, self._skipped),
            )

    def _tell(self, found: NotFinite) -> str:
        """Look for the reason, in all processes at once, and leave a file for whoever mends it."""
        seed_all(self.seed, comm.get_rank(), self.iter)
        model, batch, rank = self.checkpointer.model, self._loader.latest, comm.get_rank()
        diagnosis, what = diagnose(model, batch), ""
        if str(found):
            name = f"nonfinite_{self.iter:07d}" + (f"_process_{rank}" if rank else "")
            path = Path(self.cfg.OUTPUT_DIR) / f"{name}.pth"
            where = f"in process {rank}: " if comm.get_world_size() > 1 else ""
            what = "; ".join(part for part in (f"{where}{found}", str(diagnosis)) if part)
            try:
                write_diagnosis(path, model, batch, found, diagnosis, self.iter)
                what += f"; batch and weights are described in {path}"
            except UserError as error:
                what += f"; {error}"
        everyone = [each for each in comm.all_gather(what) if each]
        times = f" after {self._skipped_in_a_row} in a row" if self._skipped_in_a_row else ""
        return self._divergence_line("; ".join(everyone), times)

    def _divergence_line(self, what: str, times: str = "") -> str:
        return (
            f"training diverged at iteration {self.iter}{times}: {what};"
            f" a lower SOLVER.BASE_LR may help; {last_checkpoint_line(self.cfg.OUTPUT_DIR)}"
        )
