"""A full disk leaves the file of before; a folder that may not be written is one line.

Whatever the tests run as: root may write everywhere, so they go on as another user in a fork.
"""

import multiprocessing
import os
import re
import resource
import shutil
import tempfile
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from helpers.made_detections import made
from helpers.tiny import write_config
from helpers.toy_training import ToyTrainer, toy_config, toy_data, toy_trainer
from PIL import Image

from rs_d2 import add_rs_config, engine
from rs_d2.analysis.threshold_sweep import write_sweep
from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.drawing import side_by_side
from rs_d2.engine.hooks import ImbalanceStatistics
from rs_d2.engine.results import write_metrics
from rs_d2.evaluation import (
    RSCOCOEvaluator,
    detections_from,
    evaluate_detections,
    ground_truth_from,
)
from rs_d2.report.page import write_report
from rs_d2.utils.errors import UserError

NOBODY = 65534


def imbalance(folder):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.OUTPUT_DIR = str(folder)
    hook = ImbalanceStatistics(cfg, period=1)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage, iter=0, max_iter=1)
        hook.after_step()


def evaluated():
    content, results = made("coco", num_images=2)
    truth = ground_truth_from(content, "coco")
    return truth, detections_from(results, truth, "bbox")


def results(folder):
    truth, found = evaluated()
    evaluator = RSCOCOEvaluator.__new__(RSCOCOEvaluator)
    evaluator._output_dir, evaluator._ground_truth = folder, truth
    evaluator._save(found)


def report(folder):
    truth, found = evaluated()
    write_report(folder, {"bbox": evaluate_detections(truth, found, "bbox")}, "a title")


def sweep(folder):
    write_sweep(folder, [{"threshold": 0.1, "mask AP": 30.0}] * 2)


WRITERS = {
    "metrics.json": lambda folder: write_metrics(folder / "metrics.json", {"bbox": {"AP": 1.0}}),
    "imbalance.json": imbalance,
    "coco_instances_results.json": results,
    "report.html": report,
    "sweep.png": sweep,
    "a.png": lambda folder: side_by_side._save(Image.linear_gradient("L"), folder / "a.png"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_file_of_before(tmp_path, name):
    WRITERS[name](tmp_path)
    before = (tmp_path / name).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) - 1, hard))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
            WRITERS[name](tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / name).read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def as_a_user(folder, function, *args):
    """Call a function as a user who is not root, in a folder of his; what it raises, as text."""
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)

    def call():
        os.chdir(folder)
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        try:
            function(*args)
            writer.send("")
        except UserError as error:
            writer.send(str(error))
        except BaseException:
            writer.send(traceback.format_exc())

    process = fork.Process(target=call)
    process.start()
    text = reader.recv() if reader.poll(60) else "nothing for a minute"
    process.kill()
    process.join()
    return text


@pytest.fixture
def public():
    """A folder that other users reach: above pytest's own they do not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        yield Path(folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disks")
    toy_data(folder)
    write_config(folder)
    toy_trainer(toy_config(folder, folder / "whole", "SOLVER.MAX_ITER", "12")).train()
    return folder


def in_a_folder(folder, out):
    with engine.output_folder(SimpleNamespace(OUTPUT_DIR=out)):
        pass


def test_a_read_only_folder_is_told_at_the_start(public):
    (public / "out").mkdir(mode=0o555)
    line = "OUTPUT_DIR: out cannot be written (Permission denied)"
    assert as_a_user(public, in_a_folder, public, "out") == line
    (public / "out").chmod(0o777)
    assert as_a_user(public, in_a_folder, public, "out") == ""


def test_a_lock_of_another_user_that_cannot_be_read_is_told(public):
    if os.getuid():
        pytest.skip("needs files of two users")
    (public / "run.lock").touch(mode=0o600)
    line = "OUTPUT_DIR: . cannot be written (Permission denied)"
    assert as_a_user(public, in_a_folder, public, ".") == line


def test_a_folder_that_becomes_read_only_leaves_the_last_checkpoint(data, public, monkeypatch):
    shutil.copytree(data, public / "data")
    for path in (public, *public.rglob("*")):
        path.chmod(0o777)
    monkeypatch.chdir(public)
    cfg = toy_config(Path("data"), "out", "SOLVER.MAX_ITER", "14")
    step = ToyTrainer.run_step

    def run_step(self):
        if self.iter == 9:
            os.chmod("out", 0o555)
        step(self)

    def train():
        ToyTrainer.run_step = run_step
        with engine.output_folder(cfg):
            toy_trainer(cfg).train()

    if os.getuid() == 0:
        os.chown("out", NOBODY, NOBODY)
    line = as_a_user(public, train)
    os.chmod("out", 0o755)
    assert re.fullmatch(
        r"out/\S+ cannot be written \(Permission denied\); the last checkpoint is"
        r" out/model_0000005\.pth \(--resume continues from it\)",
        line,
    ), line
    assert read_checkpoint("out/model_0000005.pth")["iteration"] == 5


@pytest.mark.parametrize("becomes", ["nothing", "a file"])
def test_a_folder_that_is_gone_during_the_training_is_told(data, tmp_path, becomes, monkeypatch):
    out, step = tmp_path / "out", ToyTrainer.run_step
    trainer = toy_trainer(toy_config(data, out, "SOLVER.MAX_ITER", "14"))

    def run_step(self):
        if self.iter == 9:
            shutil.rmtree(out)
            if becomes == "a file":
                out.touch()
        step(self)

    monkeypatch.setattr(ToyTrainer, "run_step", run_step)
    with (
        pytest.raises(UserError, match=r"^\S*/out/\S* cannot be written \(No"),
        engine.output_folder(trainer.cfg),
    ):
        trainer.train()


def test_events_on_a_full_disk_are_one_line(data, tmp_path, monkeypatch, capfd):
    cfg = toy_config(data, tmp_path / "out", "SOLVER.MAX_ITER", "40", "SOLVER.WARMUP_ITERS", "0")
    trainer, step = toy_trainer(cfg), ToyTrainer.run_step
    monkeypatch.setattr(trainer._log, "write", lambda: None)  # else they would be first
    monkeypatch.setattr(trainer.checkpointer, "save", lambda *_, **__: None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def run_step(self):
        if self.iter == 9:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
        step(self)

    monkeypatch.setattr(ToyTrainer, "run_step", run_step)
    try:
        with (
            pytest.raises(UserError, match=r"out cannot be written \(File too large\)"),
            engine.output_folder(cfg),
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "Exception in thread" not in capfd.readouterr().err


@pytest.mark.parametrize("folder", ["file", "file/x", "/dev/null/x", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_one_line(data, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"^OUTPUT_DIR: {folder} cannot be made"):
        toy_config(data, folder)
