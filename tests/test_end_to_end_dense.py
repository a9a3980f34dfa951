"""ATSS, PAA and SOLOv2 go through ``train_net.py`` as R-CNNs do: train, resume, evaluate."""

import json
import shutil

import pytest
from conftest import REPO, shared

pytest.importorskip("detectron2")

from helpers.tiny import own_data, run

from rs_d2 import engine

pytestmark = pytest.mark.slow

SMALL = (
    *("MODEL.FPN.OUT_CHANNELS", "32", "MODEL.RETINANET.NUM_CONVS", "1"),
    *("INPUT.MIN_SIZE_TRAIN", "(112,)", "INPUT.MIN_SIZE_TEST", "112"),
    *("DATALOADER.NUM_WORKERS", "0", "SOLVER.WARMUP_ITERS", "0", "TEST.DRAW_IMAGES", "2"),
    *("TEST.REPORT", "False", "SOLVER.CHECKPOINT_PERIOD", "100"),
)
SMALL_SOLO = (
    *("MODEL.SOLO.GRIDS", "[12,8,6,4]", "MODEL.SOLO.CONV_DIM", "32", "SOLVER.IMS_PER_BATCH", "2"),
    *("INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96"),
)


def train(architecture, folder, *arguments, iterations=24):
    """Run a training or evaluation; returns the exit code and the total loss of each iteration."""
    losses = []
    step = engine.RSTrainer.run_step

    def recording_step(trainer):
        step(trainer)
        losses.append(trainer.storage.latest()["total_loss"][0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.RSTrainer, "run_step", recording_step)
        config = REPO / "configs" / "quick" / f"rs_{architecture}_own_data.yaml"
        own = SMALL_SOLO if architecture == "solov2" else ()
        options = [*SMALL, *own, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(iterations)]
        code = run("--config-file", str(config), *arguments, *options)
    return code, losses


DATA = {"atss": "bccd", "paa": "bccd", "solov2": "nuclei"}


@pytest.fixture(scope="module", params=DATA)
def trained(request, tmp_path_factory):
    """Two dozen iterations on blood cells, or on cell nuclei with masks."""
    data = shared(f"data/{DATA[request.param]}")
    folder = tmp_path_factory.mktemp(request.param)
    arguments = own_data(data / "train.json", data / "val.json")
    code, losses = train(request.param, folder, *arguments)
    assert code == 0
    yield request.param, folder, arguments, losses
    shutil.rmtree(folder)


def results(folder):
    return json.loads((folder / "metrics.json").read_text())["bbox"]


def test_the_loss_falls_and_something_is_found(trained):
    architecture, folder, _, losses = trained
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    # A mask takes longer to learn than a box.
    assert results(folder)["AP50"] > (0 if architecture == "solov2" else 1)
    assert len(list((folder / "predictions").glob("*.png"))) == 3


def test_resume_goes_on_from_the_trained_weights(trained, tmp_path):
    architecture, folder, arguments, losses = trained
    for name in ("last_checkpoint", "model_final.pth"):
        shutil.copy(folder / name, tmp_path)
    code, more = train(architecture, tmp_path, *arguments[:4], "--resume", iterations=26)
    assert (code, len(more)) == (0, 2)
    assert more[0] < 0.8 * losses[0]


def test_evaluation_of_given_weights_repeats_the_results(trained, tmp_path):
    architecture, folder, arguments, _ = trained
    weights = ["MODEL.WEIGHTS", str(folder / "model_final.pth")]
    code, losses = train(architecture, tmp_path, *arguments[4:], "--eval-only", *weights)
    assert (code, losses) == (0, [])
    assert results(tmp_path) == pytest.approx(results(folder), abs=0.1, nan_ok=True)
