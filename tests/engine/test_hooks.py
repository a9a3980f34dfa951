"""The best checkpoint, statistics and pictures of a training."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import shared
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from helpers.tiny import own_data, write_config
from torch import nn

from rs_d2 import add_rs_config, engine
from rs_d2.checkpoint.files import read_checkpoint, write_checkpoint
from rs_d2.checkpoint.metadata import ENTRY, CheckpointMetadata
from rs_d2.criterion.balancing import ValueBalancer
from rs_d2.engine.hooks import BalanceCoefficients, ImbalanceStatistics, KeepBest
from rs_d2.utils.errors import UserError


def setup(tmp_path, *options):
    arguments = ["--config-file", write_config(tmp_path)]
    arguments += own_data(shared("data/nuts/train.json"), shared("data/nuts/val.json"))
    fixed = [
        "OUTPUT_DIR",
        str(tmp_path / "out"),
        "MODEL.DEVICE",
        "cpu",
        "SOLVER.IMS_PER_BATCH",
        "1",
    ]
    cfg, _ = engine.setup(engine.parse_args([*arguments, *fixed, *options]))
    return cfg


def test_a_training_leaves_statistics_pictures_and_its_best_checkpoint(tmp_path, monkeypatch):
    images = []
    monkeypatch.setattr(EventStorage, "put_image", lambda _, *image: images.append(image))
    options = ["SOLVER.MAX_ITER", "2", "VIS_PERIOD", "2", "TEST.EVAL_PERIOD", "1"]
    cfg = setup(tmp_path, *options, "TEST.BEST_METRIC", "bbox/oLRP")
    trainer = engine.RSTrainer(cfg)
    trainer.resume_or_load()
    trainer.train()
    out = tmp_path / "out"
    row = json.loads((out / "imbalance.json").read_text())
    assert (row["data set"], row["RPN sampler"], row["R-CNN sampler"]) == (
        "own_train",
        "none",
        "none",
    )
    assert row["rpn_tasks"] == row["rpn_instances"] > 1
    assert row["rcnn_tasks"] > row["rcnn_instances"] > 0
    assert trainer.storage.latest()["imbalance/rcnn_tasks"][0] == row["rcnn_tasks"]
    assert (out / "training_images" / "0000002" / "overview.png").is_file()
    (picture,) = [image for name, image in images if name == "training images"]
    assert picture.shape[0] == 3
    assert (out / "model_best.pth").is_file()
    assert json.loads((out / "model_best.json").read_text())["metric"] == "bbox/oLRP"
    assert (out / "last_checkpoint").read_text() == "model_final.pth"
    page = (out / "inference" / "report.html").read_text()
    assert "rcnn_tasks" in page


def statistics(tmp_path, period, max_iter, counts):
    """What the hook logs over iterations with the given positives, of 100 anchors."""
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.OUTPUT_DIR, cfg.DATASETS.TRAIN = str(tmp_path), ("a", "b")
    hook, logged = ImbalanceStatistics(cfg, period), []
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage, iter=0, max_iter=max_iter)
        for iteration, positives in enumerate(counts):
            hook.trainer.iter = iteration
            storage.put_scalar("rpn/num_pos_anchors", positives)
            storage.put_scalar("rpn/num_neg_anchors", 100 - positives)
            hook.after_step()
            found = storage.latest().get("imbalance/rpn_instances")
            logged.append(None if found is None else (found[0], found[1]))
            storage.step()
    return logged


def test_statistics_are_averaged_over_intervals_and_the_rest(tmp_path):
    logged = statistics(tmp_path, 2, 5, [10, 30, 20, 20, 50])
    assert logged == [None, (4, 1), (4, 1), (4, 3), (1, 4)]
    row = json.loads((tmp_path / "imbalance.json").read_text())
    assert row["data set"] == "a, b"
    assert row["rpn_instances"] == 1
    assert row["rcnn_tasks"] is None  # no box head


def test_balance_coefficients_are_the_balancers_factors():
    model = nn.ModuleDict({"head": nn.ModuleDict({"balancer": ValueBalancer()})})
    hook = BalanceCoefficients()
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(model=model, storage=storage, iter=19)
        hook.before_train()
        model["head"]["balancer"](torch.tensor(0.5), torch.tensor(1.5))
        hook.after_step()
        assert storage.latest()["balance/head.balancer"][0] == 3
        hook.after_train()
        model["head"]["balancer"](torch.tensor(0.5), torch.tensor(1.0))
        hook.after_step()
        assert storage.latest()["balance/head.balancer"][0] == 3


def keep_best(folder, metric, values, start_iter=0):
    """Feed evaluations one by one; returns the hook and the iterations that were saved."""
    model, results, saved = nn.Linear(1, 1), [{}], []
    checkpointer = DetectionCheckpointer(model, str(folder))
    checkpointer.save("model_0000001", iteration=1)
    hook = KeepBest(metric, lambda: results[0], checkpointer, folder)
    hook.trainer = SimpleNamespace(iter=start_iter, start_iter=start_iter)
    hook.before_train()
    for value in values:
        hook.trainer.iter += 1
        results[0] = {"bbox": {"AP": value, "oLRP": value}}
        for _ in range(2):  # iterations without an evaluation change nothing
            hook.after_step()
        path = folder / "model_best.json"
        saved.append(json.loads(path.read_text())["value"] if path.exists() else None)
    return saved


def test_the_best_checkpoint_is_kept_and_the_last_stays_the_last(tmp_path):
    assert keep_best(tmp_path, "bbox/AP", [math.nan, 10, 30, 20]) == [None, 10, 30, 30]
    state = torch.load(tmp_path / "model_best.pth", weights_only=False)
    assert state["iteration"] == 3
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_of_errors_the_smallest_is_best(tmp_path):
    assert keep_best(tmp_path, "bbox/oLRP", [90, 95, 80]) == [90, 90, 80]


def test_a_resumed_run_goes_on_from_its_best_and_a_new_one_does_not(tmp_path):
    keep_best(tmp_path, "bbox/AP", [50])
    assert keep_best(tmp_path, "bbox/AP", [40, 60], start_iter=7) == [50, 60]
    assert keep_best(tmp_path, "bbox/AP", [40]) == [40]


def damaged(folder, what):
    """Damage what is known of the best checkpoint."""
    weights, note = folder / "model_best.pth", folder / "model_best.json"
    if what == "empty weights":  # as a kill during a write in place left them
        weights.write_bytes(b"")
    elif what == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif what == "no weights":
        weights.unlink()
    elif what == "no note":
        note.unlink()
    else:
        note.write_bytes(what)


@pytest.mark.parametrize(
    "what",
    [
        *("empty weights", "truncated weights", "no weights", "no note", b"", b"\xff\x00"),
        *(b"[]", b"{}", b'{"metric": "bbox/AP", "value": NaN}'),
        *(b'{"metric": "bbox/AP", "value": "high"}', b'{"metric": "bbox/AP", "value": 1e999}'),
    ],
    ids=str,
)
def test_a_damaged_best_checkpoint_is_noticed_and_replaced(tmp_path, caplog, what):
    keep_best(tmp_path, "bbox/AP", [50])
    damaged(tmp_path, what)
    assert keep_best(tmp_path, "bbox/AP", [40], start_iter=7) == [40]
    assert "model_best.pth is not used (" in caplog.text
    assert read_checkpoint(tmp_path / "model_best.pth")["iteration"] == 8


def test_the_weights_know_their_score_better_than_the_note(tmp_path):
    keep_best(tmp_path, "bbox/AP", [50])
    content = read_checkpoint(tmp_path / "model_best.pth")
    # killed before it wrote the note
    entry = CheckpointMetadata("", metrics={"bbox/AP": 60.0}).to_entry()
    write_checkpoint({**content, ENTRY: entry}, tmp_path / "model_best.pth")
    assert keep_best(tmp_path, "bbox/AP", [55, 65], start_iter=7) == [50, 65]


def test_the_note_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    keep_best(tmp_path, "bbox/AP", [50])
    before = (tmp_path / "model_best.json").read_text()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_best(tmp_path, "bbox/AP", [60], start_iter=7)
    assert (tmp_path / "model_best.json").read_text() == before


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("segm/AP", "'segm' is not among bbox"),
        ("bbox/mAP", "'mAP' is not among AP, oLRP"),
        ("bbox", "is not one number: AP, oLRP"),
    ],
)
def test_an_unknown_metric_is_named(tmp_path, metric, message):
    with pytest.raises(UserError, match=f"^TEST.BEST_METRIC: {metric}.*{message}"):
        keep_best(tmp_path, metric, [1])
