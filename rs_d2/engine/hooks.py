"""What happens beside the training steps: the best checkpoint, statistics, pictures."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor, nn

from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.checkpoint.metadata import read_metadata
from rs_d2.coco.pixels import open_image
from rs_d2.config import architecture_of
from rs_d2.criterion.balancing import Balancer
from rs_d2.criterion.imbalance import IMBALANCE_FILE, ImbalanceMeter
from rs_d2.engine.iteration_log import LOG_PERIOD
from rs_d2.utils.atomic_write import write_json
from rs_d2.utils.errors import UserError
from rs_d2.utils.stopping import TrainingStopped

_logger = logging.getLogger(__name__)

BEST = "model_best"

_IMBALANCE_PERIOD = 500  # iterations that are averaged
_DRAWN = 4  # training images


def build_statistics_hooks(cfg: CfgNode) -> list[HookBase]:
    """What looks at the training itself: ratios, balance and pictures, before any evaluation."""
    hooks: list[HookBase] = [ImbalanceStatistics(cfg), BalanceCoefficients()]
    if cfg.VIS_PERIOD > 0 and comm.is_main_process():
        hooks.append(TrainingImages(cfg))
    return hooks


class LoggedImbalance:
    """How many negatives stand against a positive in each stage, from what the heads log.

    Attributes:
        names: the first columns of the published table: the data set, and the samplers of stages
            that have one.
        meter: what counts.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._stages = architecture_of(cfg).stages
        self.meter = ImbalanceMeter({stage.name: stage.num_tasks(cfg) for stage in self._stages})
        self.names = {"data set": ", ".join(cfg.DATASETS.TRAIN)}
        for stage in self._stages:
            if stage.sampler is not None:
                self.names[f"{stage.title} sampler"] = stage.sampler(cfg)

    def update(self, storage: Any) -> None:
        """Count what was logged in this iteration."""
        latest = storage.latest()
        for stage in self._stages:
            scalars = stage.positives, stage.negatives
            if all(scalar in latest for scalar in scalars):
                self.meter.update(stage.name, *(latest[scalar][0] for scalar in scalars))

    def take(self) -> dict[str, float]:
        """The ratios of what was counted since the last call, as ``ImbalanceMeter`` names them."""
        ratios = self.meter.ratios()
        self.meter.reset()
        return ratios


class ImbalanceStatistics(HookBase):
    """Log how many negatives stand against a positive, averaged over ``period`` iterations.

    Scalars `imbalance/{stage}_{instances,tasks}`; the last ones also go to `imbalance.json` in the
    output folder, where the report finds them.
    """

    def __init__(self, cfg: CfgNode, period: int = _IMBALANCE_PERIOD) -> None:
        self._meter = LoggedImbalance(cfg)
        self._period, self._path = period, Path(cfg.OUTPUT_DIR) / IMBALANCE_FILE

    def after_step(self) -> None:
        """Count; at the end of an interval, log and start anew."""
        trainer = self.trainer
        self._meter.update(trainer.storage)
        done = trainer.iter + 1
        if done % self._period and done != trainer.max_iter:
            return
        ratios = self._meter.take()
        trainer.storage.put_scalars(
            smoothing_hint=False,
            **{f"imbalance/{name}": value for name, value in ratios.items() if value == value},
        )
        if comm.is_main_process():
            finite = {name: value if value == value else None for name, value in ratios.items()}
            write_json(self._path, {**self._meter.names, **finite})

    def state_dict(self) -> dict[str, Any]:
        """What was counted of the interval."""
        return self._meter.meter.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        self._meter.meter.load_state_dict(state)


class BalanceCoefficients(HookBase):
    """Log by how much the balancers scale their losses, as `balance/{name of the module}`."""

    def before_train(self) -> None:
        """Listen to the balancers."""
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._handles = [
            module.register_forward_hook(partial(self._keep, name.removeprefix("module.")))
            for name, module in self.trainer.model.named_modules()
            if isinstance(module, Balancer)
        ]

    def after_step(self) -> None:
        """Log every 20th iteration: to read a value off a GPU makes it wait."""
        if (self.trainer.iter + 1) % LOG_PERIOD == 0:
            for name, (loss, balanced) in self._seen.items():
                if loss != 0:
                    self.trainer.storage.put_scalar(f"balance/{name}", float(balanced / loss))
        self._seen.clear()

    def after_train(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()

    def _keep(self, name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self._seen[name] = args[0].detach(), output.detach()


class Checkpoints(HookBase):
    """Write a checkpoint every ``period`` iterations, after the last, and when a signal asks.

    To stand in all processes, after everything that an iteration changes and before an evaluation,
    which may fail.

    Args:
        period: in iterations.
        checkpointer: saves the model and the trainer.
    """

    def __init__(self, period: int, checkpointer: Any) -> None:
        self._period, self._checkpointer = period, checkpointer
        self._saved = -1  # iteration

    def after_step(self) -> None:
        """Save, if it is time.

        Raises:
            TrainingStopped: A signal came in this iteration, in any process.
        """
        trainer = self.trainer
        done = trainer.iter + 1
        is_last, signal = done >= trainer.max_iter, trainer.asked_to_stop
        if done % self._period == 0 or is_last or signal:
            trainer.collect_buffers()
            if done % self._period == 0 or not is_last:
                self.save()
            if is_last:
                self._checkpointer.save("model_final", iteration=trainer.iter)
        if signal and not is_last:
            comm.synchronize()  # the others wait until the file is whole
            raise TrainingStopped(signal)

    def save(self) -> None:
        """Write the checkpoint of this iteration, unless it has been written."""
        iteration = self.trainer.iter
        if self._saved != iteration:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
            self._saved = iteration


class KeepBest(HookBase):
    """Keep the checkpoint of the best evaluation so far as `model_best.pth`.

    To stand after the evaluation's hook, in the first process. What is best so far is kept in
    `model_best.json`, so that a resumed run goes on from it; `last_checkpoint` does not change.

    Args:
        metric: keys in the results, such as "segm/AP" or, with several test sets,
            "name/segm/AP". Of errors (oLRP) the smallest is best.
        results: gives the results of the last evaluation.
        checkpointer: saves the model.
        folder: where it saves.
    """

    def __init__(
        self,
        metric: str,
        results: Callable[[], Mapping[str, Any]],
        checkpointer: Any,
        folder: Path,
    ) -> None:
        self._metric, self._results = metric, results
        self._checkpointer, self._path = checkpointer, folder / f"{BEST}.json"
        self._sign = -1 if metric.rsplit("/", 1)[-1].startswith("oLRP") else 1
        self._last: Any = None
        self._best = -math.inf

    def before_train(self) -> None:
        """Go on from an earlier run's best, if this one resumes it."""
        weights = self._path.with_suffix(".pth")
        if not self.trainer.start_iter or not (self._path.exists() or weights.exists()):
            return
        try:
            self._best = self._sign * self._stored(weights)
        except (UserError, OSError, ValueError, LookupError, TypeError) as error:
            _logger.warning(
                "%s is not used (%s): the next evaluation counts as the best so far",
                *(weights, error),
            )

    def after_step(self) -> None:
        """Look at new results."""
        self._check()

    def after_train(self) -> None:
        """Look at the final evaluation."""
        self._check()

    def _stored(self, weights: Path) -> float:
        """The score of an earlier run's best checkpoint; the file itself knows best."""
        about = read_metadata(read_checkpoint(weights, mmap=True), str(weights))
        note = json.loads(self._path.read_bytes())
        if note["metric"] != self._metric:
            raise ValueError(f"it is the best by {note['metric']}, not by {self._metric}")
        value = (about.metrics if about else {}).get(self._metric, note["value"])
        if not math.isfinite(value):
            raise ValueError(f"its {self._metric} is {value}")
        return value

    def _check(self) -> None:
        results = self._results()
        if not results or results is self._last:
            return
        self._last = results
        value = self._value(results)
        if not self._sign * value > self._best:  # NaN is never best
            return
        self._best = self._sign * value
        tag = (
            self._checkpointer.get_checkpoint_file() if self._checkpointer.has_checkpoint() else ""
        )
        iteration = self.trainer.iter
        self._checkpointer.save(BEST, results=results, iteration=iteration)
        if tag:
            self._checkpointer.tag_last_checkpoint(Path(tag).name)
        note = {"metric": self._metric, "value": value, "iteration": iteration}
        write_json(self._path, note)
        _logger.info("%s is %.3f, the best so far: saved as %s.pth", self._metric, value, BEST)

    def _value(self, results: Mapping[str, Any]) -> float:
        found: Any = results
        for part in self._metric.split("/"):
            if not isinstance(found, Mapping) or part not in found:
                names = ", ".join(found) if isinstance(found, Mapping) else "nothing"
                raise UserError(f"TEST.BEST_METRIC: {self._metric}: '{part}' is not among {names}")
            found = found[part]
        if isinstance(found, Mapping):
            raise UserError(
                f"TEST.BEST_METRIC: {self._metric} is not one number: {', '.join(found)}"
            )
        return float(found)


class TrainingImages(HookBase):
    """Draw training images, labels beside predictions, every ``VIS_PERIOD`` iterations.

    The same few images each time, into `training_images/{iteration}` and the event storage.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self._cfg = cfg

    def before_train(self) -> None:
        """Choose the images."""
        from rs_d2.drawing.side_by_side import spread_images  # needs OpenCV

        name = self._cfg.DATASETS.TRAIN[0]
        self._entries = spread_images(DatasetCatalog.get(name), _DRAWN)
        self._classes = MetadataCatalog.get(name).thing_classes

    def after_step(self) -> None:
        """Draw, if it is time."""
        iteration = self.trainer.iter + 1
        if iteration % self._cfg.VIS_PERIOD:
            return
        from rs_d2.drawing.side_by_side import draw_images

        folder = Path(self._cfg.OUTPUT_DIR) / "training_images" / f"{iteration:07d}"
        files = draw_images(self._cfg, self.trainer.model, self._entries, self._classes, folder)
        if files:
            picture = np.asarray(open_image(files[-1]).convert("RGB")).transpose(2, 0, 1)
            self.trainer.storage.put_image("training images", picture)
