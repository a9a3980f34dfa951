"""One training of one variant with one seed, in a folder of its own."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from rs_d2 import engine
from rs_d2.checkpoint.revision import code_revision
from rs_d2.coco.json_files import read_json
from rs_d2.config.load import config_from_text
from rs_d2.criterion.imbalance import IMBALANCE_FILE
from rs_d2.engine.iteration_log import ITERATION_LOG, parse_line
from rs_d2.engine.results import flat_metrics
from rs_d2.utils.atomic_write import write_json
from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import make_folder
from rs_d2.utils.launch import reason_of
from rs_d2.utils.outputs import check_outputs
from rs_d2.utils.watch import end_with_parent

RESULT, CONSOLE = "result.json", "console.txt"


class Run(NamedTuple):
    """A training to do.

    Attributes:
        variant: its name.
        seed: of weights and data order.
        config: the whole config as text, without its output folder.
        key: of the config and the data; another one is another run.
        folder: for this run alone, since the key is a part of its name.
        iterations: of the training.
        data: the user's own, if it is.
    """

    variant: str
    seed: int
    config: str
    key: str
    folder: Path
    iterations: int
    data: engine.OwnData

    @property
    def title(self) -> str:
        """Of the run, for people."""
        return f"{self.variant}, seed {self.seed}"

    def result(self) -> dict[str, Any] | None:
        """What the run has left, if it has ended well; what no run writes does not count."""
        try:
            content = read_json(self.folder / RESULT)
        except UserError:
            return None
        return content if _is_result(content, self) else None


def _is_result(content: Any, run: Run) -> bool:
    if not isinstance(content, dict) or not isinstance(content.get("curve"), list):
        return False
    tables = (content.get("metrics"), content.get("ratios"), *content["curve"])
    return (
        (content.get("key"), content.get("seed")) == (run.key, run.seed)
        and isinstance(content.get("revision"), str)
        and isinstance(content.get("device"), str)
        and all(isinstance(table, dict) for table in tables)
        and all("iterations" in point for point in content["curve"])
        and all(map(_is_number, [content.get("seconds"), *chain(*map(dict.values, tables))]))
    )


def _is_number(value: Any) -> bool:
    """One whose square is finite, too, for the spread over the seeds."""
    return isinstance(value, (int, float)) and abs(value) < 1e100


def make_run(
    variant: str, cfg: CfgNode, folder: Path, data_digest: str, data: engine.OwnData
) -> Run:
    """The run of a variant's config, whose ``SEED`` and schedule are set."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    text = cfg.dump()
    key = hashlib.sha256(f"{data_digest}\n{text}".encode()).hexdigest()[:12]
    folder = folder / "runs" / f"{variant}-seed{cfg.SEED}-{key}"
    return Run(variant, cfg.SEED, text, key, folder, cfg.SOLVER.MAX_ITER, data)


def work(run: Run, report: Connection, slot: int, num_threads: int) -> None:
    """Do a run in this process, which was started for it and ends with the one that did.

    Whatever it prints goes to ``console.txt`` in its folder. Through the connection come the number
    of iterations done and, if it fails, one line that says why.

    Args:
        run: what to do; a run that was interrupted goes on from its last checkpoint.
        report: to the process that waits.
        slot: number of this process among those side by side; it chooses the GPU.
        num_threads: of torch.
    """
    end_with_parent()
    try:
        make_folder(run.folder, "--output")
        _print_to(run.folder / CONSOLE)
    except UserError as error:
        report.send(("failed", str(error)))
        sys.exit(1)
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    else:
        torch.set_num_threads(num_threads)
    try:
        train(run, lambda *what: report.send(what))
    except Exception as error:
        line = reason_of(error)
        if line is None:
            traceback.print_exc()
            line = f"{type(error).__name__}: {error} (its trace is in {run.folder / CONSOLE})"
        report.send(("failed", " ".join(line.split())))
        sys.exit(1)


def _print_to(path: Path) -> None:
    if path.is_symlink() or (path.exists() and not path.is_file()):  # a pipe would be waited for
        raise UserError(f"{path} is a link, folder, pipe or device")
    try:
        with path.open("a") as console:
            for stream in (sys.stdout, sys.stderr):
                os.dup2(console.fileno(), stream.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error


def train(run: Run, tell: Callable[[str, int], None]) -> dict[str, Any]:
    """Train, evaluate and leave ``result.json``; checkpoints are removed then.

    Args:
        run: what to do.
        tell: hears "resumed" or "iteration", and the number of iterations done.

    Returns:
        The content of the file.
    """
    began = time.time()
    cfg = config_from_text(run.config, run.title, ["OUTPUT_DIR", str(run.folder)])
    make_folder(run.folder, "--output")
    if (run.folder / RESULT).exists() and not (run.folder / RESULT).is_file():
        raise UserError(f"{run.folder / RESULT} is a folder, pipe or device")
    cfg.freeze()
    outputs = [("--output", run.folder / name) for name in (RESULT, *engine.RUN_FILES)]
    check_outputs([run.data.train_json, run.data.val_json, cfg.MODEL.WEIGHTS], outputs)
    with engine.output_folder(cfg):
        about = argparse.Namespace(config_file="", eval_only=False, **run.data._asdict())
        engine.start_process(cfg, about, [])
        trainer = engine.RSTrainer(cfg)
        trainer.register_hooks([_Tell(tell)])
        trainer.resume_or_load(resume=True)
        resumed = trainer.start_iter
        metrics = flat_metrics(trainer.train())
        content = {
            "variant": run.variant,
            "seed": run.seed,
            "key": run.key,
            "iterations": run.iterations,
            "images": cfg.SOLVER.IMS_PER_BATCH,
            "data": [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST],
            "metrics": metrics,
            "curve": _curve(run.folder / ITERATION_LOG, metrics, run.iterations),
            "ratios": _ratios(run.folder / IMBALANCE_FILE),
            "order": trainer.seed,  # of the images
            "revision": code_revision(),
            "device": cfg.MODEL.DEVICE,
            "seconds": round(time.time() - began, 1),
            "resumed at": resumed,
        }
        write_json(run.folder / RESULT, content)
        names = ("model_final.pth", "model_best.pth", "last_checkpoint")
        numbered = run.folder.glob(f"model_{'[0-9]' * 7}.pth")  # what a user has put there stays
        for checkpoint in [*numbered, *(run.folder / name for name in names)]:
            checkpoint.unlink(missing_ok=True)
    return content


class _Tell(HookBase):
    """Tells how far the training is."""

    def __init__(self, tell: Callable[[str, int], None]) -> None:
        self._tell = tell

    def before_train(self) -> None:
        """After a resume it is not at the start."""
        self._tell("resumed", self.trainer.start_iter)

    def after_step(self) -> None:
        """One more."""
        self._tell("iteration", self.trainer.iter + 1)


def _curve(path: Path, metrics: dict[str, float], iterations: int) -> list[dict[str, float]]:
    """The evaluations, by the number of iterations before them; the last is the final one."""
    points: dict[int, dict[str, float]] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        entry = parse_line(line) or {}
        found = {name: entry[name] for name in metrics if name in entry}
        if found and entry["iteration"] + 1 < iterations:
            points[entry["iteration"] + 1] = found
    points[iterations] = metrics
    return [{"iterations": done, **points[done]} for done in sorted(points)]


def _ratios(path: Path) -> dict[str, float]:
    """Negatives for a positive, of the last iterations."""
    content = json.loads(path.read_bytes()) if path.is_file() else {}
    return {name: value for name, value in content.items() if isinstance(value, (int, float))}
