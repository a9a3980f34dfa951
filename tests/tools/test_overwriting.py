"""No program writes over a file that it reads, by whatever path or link."""

import json
import sys

import pytest
import torch
from conftest import REPO
from helpers.made_detections import made
from helpers.tiny import own_data, reset_logging, run, write_config
from PIL import Image

from rs_d2 import engine
from rs_d2.engine.setup import start_process

sys.path.insert(0, str(REPO / "tools"))
import ablate
import convert_mmdet
import evaluate
import export_model
import predict
import sweep_thresholds


@pytest.fixture
def folder(tmp_path, monkeypatch):
    content, results = made("coco", num_images=2)
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "dets.json").write_text(json.dumps(results))
    write_config(tmp_path)
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "x.pth")
    (tmp_path / "hard").hardlink_to(tmp_path / "dets.json")
    (tmp_path / "soft").symlink_to(tmp_path / "gt.json")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").hardlink_to(tmp_path / "gt.json")
    (tmp_path / "out").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "out" / "a.png")
    for name in ("sweep.csv", "predictions.json", "metrics.json", "ablation.json"):
        (tmp_path / "out" / name).hardlink_to(tmp_path / "gt.json")
    for name in ("x.export.pth", "x.ts"):
        (tmp_path / name).hardlink_to(tmp_path / "x.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


EVALUATE = "--gt gt.json --results dets.json --format coco --iou-type bbox --output"
EXPORT = "--format torch --weights x.pth"
SWEEP = "--config-file tiny.yaml --weights x.pth --val-json gt.json --val-images images"
PREDICT = "--weights x.pth out/a.png"
ABLATE = "--table S8 --train-json gt.json --val-json dets.json"


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        (evaluate, f"{EVALUATE} gt.json"),
        (evaluate, f"{EVALUATE} report/../dets.json"),
        (evaluate, f"{EVALUATE} hard"),
        (evaluate, f"{EVALUATE} soft"),
        (evaluate, f"{EVALUATE} new.json --per-class gt.json"),
        (evaluate, f"{EVALUATE} new.json --report report"),
        (evaluate, f"{EVALUATE} new.json --train-gt tiny.yaml --per-class tiny.yaml"),
        (convert_mmdet, "--config-file tiny.yaml x.pth x.pth"),
        (convert_mmdet, "--config-file tiny.yaml x.pth tiny.yaml"),
        (convert_mmdet, "--config-file tiny.yaml x.pth out/a.png --check out/a.png"),
        (export_model, f"{EXPORT}"),
        (export_model, f"{EXPORT} --output x.pth"),
        (export_model, f"{EXPORT} --output x.export.pth --config-file tiny.yaml"),
        (sweep_thresholds, f"{SWEEP} --output out"),
        (sweep_thresholds, f"{SWEEP} --output new --per-class gt.json"),
        (sweep_thresholds, f"{SWEEP} --output new --per-class x.pth"),
        (predict, f"{PREDICT} --output out --gt-json gt.json"),
        (ablate, f"{ABLATE} --output out"),
    ],
)
def test_no_tool_writes_over_its_input(program, arguments, folder, capsys):
    names = ("gt.json", "dets.json", "x.pth", "tiny.yaml", "out/a.png")
    before = [(folder / name).read_bytes() for name in names]
    assert program.main(arguments.split()) == 2
    assert "would overwrite the input" in capsys.readouterr().err
    assert [(folder / name).read_bytes() for name in names] == before


def test_two_options_do_not_name_one_file(folder, capsys):
    assert evaluate.main(f"{EVALUATE} new.json --per-class ./new.json".split()) == 2
    assert "--per-class: new.json is the file of --output, too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("model_final.pth", []),
        ("model_best.pth", []),
        ("model_0000019.pth", []),
        ("model_final.pth", ["--resume"]),
        ("metrics.json", ["--eval-only"]),
    ],
)
def test_a_run_does_not_write_over_its_weights_or_data(name, more, folder, capfd):
    (folder / "out" / "metrics.json").unlink()
    (folder / "out" / name).hardlink_to(folder / ("gt.json" if "json" in name else "x.pth"))
    argv = ["--config-file", "tiny.yaml", *own_data(folder / "gt.json", folder / "gt.json"), *more]
    (folder / "images").mkdir()
    for image in json.loads((folder / "gt.json").read_text())["images"]:
        size = image["width"], image["height"]
        Image.new("RGB", size).save(folder / "images" / image["file_name"])
    assert run(*argv, "MODEL.WEIGHTS", "x.pth", "OUTPUT_DIR", "out", "MODEL.DEVICE", "cpu") == 2
    assert f"OUTPUT_DIR: out/{name} would overwrite the input" in capfd.readouterr().err


def test_a_run_from_its_own_config_leaves_it_as_it_is(folder):
    text = (folder / "tiny.yaml").read_text() + "# by hand\n"
    (folder / "out" / "config.yaml").write_text(text)
    (folder / "twin.yaml").hardlink_to(folder / "out" / "config.yaml")
    keys = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", "out", "SOLVER.MAX_ITER", "7"]
    for name in ("out/config.yaml", "twin.yaml"):
        args = engine.parse_args(["--config-file", name, "--eval-only", *keys])
        cfg, notes = engine.prepare("tiny.yaml", keys)
        try:
            start_process(cfg, args, notes)
        finally:
            reset_logging()
        assert (folder / "twin.yaml").read_text() == text
    args = engine.parse_args(["--config-file", "tiny.yaml", *keys])
    try:
        start_process(cfg, args, [])
    finally:
        reset_logging()
    assert "MAX_ITER: 7" in (folder / "out" / "config.yaml").read_text()  # of another run
