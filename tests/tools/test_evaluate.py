"""tools/evaluate.py on files, good and bad."""

import gzip
import json
import math
import subprocess
import sys

import pytest
from conftest import REPO, shared
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.made_detections import SIDE, made
from PIL import Image

from rs_d2.coco import reading
from rs_d2.data import register_custom
from rs_d2.evaluation import (
    RSCOCOEvaluator,
    RSLVISEvaluator,
    detections_from,
    evaluate_detections,
)

sys.path.insert(0, str(REPO / "tools"))
import evaluate

NAMES = [
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"),
    *("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN"),
]
NAME = "validated"
COCO = ("coco", "evaluator_coco", "instances_val2014_100.json", "fake{}100_results.json")
LVIS = ("lvis", "evaluator_lvis", "lvis_val_50.json", "lvis_results_50.json")


@pytest.fixture
def files(tmp_path):
    content, results = made("lvis", num_images=6)
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "dets.json").write_text(json.dumps(results))
    return tmp_path


def arguments(folder, *more, results="dets.json", style="lvis", iou_type="bbox"):
    paths = ["--gt", folder / "gt.json", "--results", folder / results]
    kind = ["--format", style, "--iou-type", iou_type, "--output", folder / "out.json", *more]
    return [str(argument) for argument in paths + kind]


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize(("style", "folder", "gt", "results"), [COCO, LVIS])
def test_the_official_examples_give_the_official_numbers(
    tmp_path, style, folder, gt, results, iou_type
):
    folder, output = shared("data") / folder, tmp_path / "new" / "out.json"
    argv = ["--gt", folder / gt, "--results", folder / results.format(iou_type)]
    argv += ["--format", style, "--iou-type", iou_type, "--output", output]
    assert evaluate.main([str(argument) for argument in argv]) == 0
    found = json.loads(output.read_text())
    assert list(found) == NAMES
    expected = json.loads((folder / "expected.json").read_text())[iou_type]
    for name in NAMES[:9]:
        if name in expected:
            assert abs(found[name] / 100 - expected[name]) < 1e-9, name
        else:
            assert found[name] is None
    assert 0 < found["oLRP"] < 100


@pytest.mark.parametrize(("name", "gt"), [("coco_bbox_dense", "coco_gt"), ("lvis_segm", "lvis_gt")])
def test_the_golden_sets_give_the_golden_errors_from_compressed_files(tmp_path, name, gt):
    folder = shared("golden/olrp")
    expected = json.loads((folder / "expected.json").read_text())[name]
    argv = ["--gt", folder / f"{gt}.json.gz", "--results", folder / f"{name}_dt.json.gz"]
    argv += ["--format", expected["protocol"], "--iou-type", expected["iou_type"]]
    assert evaluate.main([str(a) for a in [*argv, "--output", tmp_path / "out.json"]]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    for name, part in zip(NAMES[9:], ("olrp", "olrp_loc", "olrp_fp", "olrp_fn"), strict=True):
        assert abs(found[name] / 100 - expected["means_by_area"]["all"][part]) < 1e-9, name


def test_tables_and_pages_are_written_where_asked_for(files):
    classes, report = files / "classes.csv", files / "report"
    more = ["--per-class", classes, "--report", report, "--images", files]
    assert evaluate.main(arguments(files, *more, "--train-gt", files / "gt.json")) == 0
    assert classes.read_text().count("\n") == 13
    assert "dets.json on gt.json" in (report / "report.html").read_text()


def test_the_caps_can_be_changed(files):
    found = []
    for more in ([], ["--max-dets", "2"], ["--fixed-ap"], ["--engine", "reference"]):
        assert evaluate.main(arguments(files, *more)) == 0
        found.append(json.loads((files / "out.json").read_text()))
    assert found[1]["AP"] < found[0]["AP"]
    assert found[2] == found[0]  # 40 detections an image are within all caps
    assert found[3] == pytest.approx(found[0], abs=1e-9)


def test_a_file_without_federation_lists_is_told(files, capsys):
    content = json.loads((files / "gt.json").read_text())
    for image in content["images"]:
        del image["neg_category_ids"]
    (files / "gt.json").write_text(json.dumps(content))
    assert evaluate.main(arguments(files)) == 0
    assert "gt.json: no neg_category_ids, taken as annotated throughout" in capsys.readouterr().err


def test_no_detections_are_a_row_of_zeros(files):
    (files / "dets.json").write_text("[]")
    assert evaluate.main(arguments(files)) == 0
    found = json.loads((files / "out.json").read_text())
    assert (found["AP"], found["oLRP"], found["oLRP_FN"]) == (0, 100, 100)
    assert found["oLRP_Loc"] is found["oLRP_FP"] is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dets.json", "{}", "dets.json: expected a list of results, found an object"),
        ("dets.json", "[", "dets.json: not json"),
        ("dets.json.gz", "[]", "dets.json.gz: not a whole gzip file"),
        ("dets.json", '[{"image_id": 99}]', "dets.json: entry 0: image_id: expected the id of an"),
        ("dets.json", '[{"image_id": 1, "category_id": 1, "score": NaN}]', "score: expected a fin"),
        ("gt.json", '{"images": []}', "gt.json: categories: expected a list, found nothing"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_code_2(files, capsys, name, content, message):
    (files / name).write_text(content)
    results = name if name.startswith("dets") else "dets.json"
    assert evaluate.main(arguments(files, results=results)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (files / "out.json").exists()


def test_arguments_that_exclude_each_other_are_refused(files, capsys):
    assert evaluate.main(arguments(files, "--fixed-ap", "--max-dets", "5")) == 2
    error = "error: --fixed-ap and --max-dets exclude each other\n"
    assert capsys.readouterr().err == error
    assert evaluate.main(arguments(files, "--max-dets", "0")) == 2
    error = "error: argument --max-dets: 0 is not at least 1\n"
    assert capsys.readouterr().err == error


def test_it_runs_as_a_program_from_anywhere(files):
    (files / "dets.json.gz").write_bytes(gzip.compress((files / "dets.json").read_bytes()))
    command = [sys.executable, str(REPO / "tools" / "evaluate.py")]
    argv = arguments(files, results="dets.json.gz", style="coco", iou_type="segm")
    done = subprocess.run(command + argv, cwd=files, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "oLRP_Loc" in done.stdout


def as_training_evaluates(folder, style):
    """The ground truth that a training with this file as validation set has."""
    register_custom(NAME, str(folder / "gt.json"), str(folder))
    try:
        kind = {"coco": RSCOCOEvaluator, "lvis": RSLVISEvaluator}[style]
        return kind(NAME, ("bbox",), distributed=False).ground_truth
    finally:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def flag(name):
    def change(content):
        for annotation in content["annotations"][::4]:
            annotation |= {"iscrowd": 0, "ignore": 0, name: 1}

    return change


def no_use(content):
    for annotation, fields in zip(
        content["annotations"],
        (
            {"bbox": [5, 5, 0, 9]},
            {"bbox": [-50, 5, 9, 9]},
            {"bbox": [5, 5, float("nan"), 9]},
            {"segmentation": []},
            {"segmentation": [[1, 2, 3, 4]]},
            {"segmentation": {"size": [7, 7], "counts": [49]}},
        ),
        strict=False,
    ):
        annotation |= fields


def few_masks(content):
    for annotation in content["annotations"][::2]:
        annotation["segmentation"] = None
    for annotation in content["annotations"]:
        del annotation["area"]


def odd_areas(content):
    for annotation, area in zip(content["annotations"], [0, -1, None, True, "9"] * 5, strict=False):
        annotation["area"] = area


def nulls(content):
    for image in content["images"][::2]:
        image |= {"neg_category_ids": None, "not_exhaustive_category_ids": None}
    for annotation in content["annotations"][::2]:
        annotation |= {"iscrowd": None, "ignore": None, "area": None}


@pytest.mark.parametrize("style", ["coco", "lvis"])
@pytest.mark.parametrize(
    "change", [flag("iscrowd"), flag("ignore"), no_use, few_masks, odd_areas, nulls]
)
def test_one_file_has_one_score(files, monkeypatch, capsys, change, style):
    monkeypatch.setenv("XDG_CACHE_HOME", str(files / "cache"))
    content, results = made(style, num_images=6)
    content["annotations"] = [
        {k: v for k, v in a.items() if k not in ("iscrowd", "ignore")}
        for a in content["annotations"]
    ]
    change(content)
    for image in content["images"]:
        Image.new("1", (SIDE, SIDE)).save(files / image["file_name"])
    (files / "gt.json").write_text(json.dumps(content))
    (files / "dets.json").write_text(json.dumps(results))
    truth = as_training_evaluates(files, style)
    summary = evaluate_detections(truth, detections_from(results, truth, "bbox")).summary
    reading._in_memory.clear()  # another process
    assert evaluate.main(arguments(files, style=style)) == 0
    found = json.loads((files / "out.json").read_text())
    assert found == {n: None if math.isnan(summary[n]) else summary[n] for n in NAMES}


def test_what_is_left_out_is_told(files, caplog):
    content = json.loads((files / "gt.json").read_text())
    content["annotations"][0]["bbox"] = [5, 5, 0, 9]
    (files / "gt.json").write_text(json.dumps(content))
    assert evaluate.main(arguments(files)) == 0
    expected = "gt.json: left out boxes without area (1, first: annotation 1)"
    assert expected in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_other_programs_are_read(files, encoding):
    for name in ("gt.json", "dets.json"):
        (files / name).write_text((files / name).read_text(), encoding=encoding)
    assert evaluate.main(arguments(files, "--train-gt", files / "gt.json")) == 0
