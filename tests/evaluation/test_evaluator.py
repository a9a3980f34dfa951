"""What both evaluators do with a model's outputs, in one process and in several."""

import json
import math

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from helpers.made_detections import SIDE, made
from pycocotools import mask as mask_util

from rs_d2.evaluation import RSCOCOEvaluator, RSLVISEvaluator
from rs_d2.utils.errors import UserError
from rs_d2.utils.launch import launch

NAME = "evaluated"
EVALUATORS = {"coco": RSCOCOEvaluator, "lvis": RSLVISEvaluator}


@pytest.fixture(autouse=True)
def clean():
    yield
    MetadataCatalog.pop(NAME, None)


def register(folder, style, **size):
    """Write a json, put it into the catalog; returns the results that go with it."""
    content, results = made(style, **size)
    (folder / "val.json").write_text(json.dumps(content | {"info": {}}))
    register_json(folder, content)
    return content, results


def register_json(folder, content):
    names = [category["name"] for category in content["categories"]]
    ids = {category["id"]: i for i, category in enumerate(content["categories"])}
    MetadataCatalog.get(NAME).set(
        json_file=str(folder / "val.json"),
        thing_classes=names,
        thing_dataset_id_to_contiguous_id=ids,
    )


def as_outputs(content, results, masks=True):
    for image in content["images"]:
        mine = [r for r in results if r["image_id"] == image["id"]]
        instances = Instances((SIDE, SIDE))
        boxes = torch.tensor([r["bbox"] for r in mine], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        instances.pred_boxes = Boxes(boxes)
        instances.scores = torch.tensor([r["score"] for r in mine])
        instances.pred_classes = torch.tensor([r["category_id"] - 1 for r in mine]).long()
        if masks:
            bitmaps = [torch.from_numpy(mask_util.decode(r["segmentation"])) for r in mine]
            instances.pred_masks = torch.stack(bitmaps).bool()
        yield {"image_id": image["id"]}, {"instances": instances}


def run(evaluator, outputs):
    evaluator.reset()
    for entry, output in outputs:
        evaluator.process([entry], [output])
    return evaluator.evaluate()


def test_coco_numbers_are_those_of_detectron2s_evaluator(tmp_path):
    content, results = register(tmp_path, "coco", num_images=8)
    outputs = [*as_outputs(content, results)]
    ours = run(RSCOCOEvaluator(NAME, output_dir=str(tmp_path / "ours")), outputs)
    stock = run(
        COCOEvaluator(NAME, use_fast_impl=False, output_dir=str(tmp_path / "stock")), outputs
    )
    assert ours.keys() == stock.keys() == {"bbox", "segm"}
    for task, numbers in stock.items():
        assert {k: ours[task][k] for k in numbers} == pytest.approx(numbers, abs=1e-9, nan_ok=True)
        assert not {"APr", "oLRPr"} & ours[task].keys()  # there are no frequencies
        assert 0 < ours[task]["oLRP"] < 100
    files = [tmp_path / folder / "coco_instances_results.json" for folder in ("ours", "stock")]
    assert json.loads(files[0].read_text()) == json.loads(files[1].read_text())


def test_a_second_evaluation_starts_anew(tmp_path):
    content, results = register(tmp_path, "lvis", num_images=5)
    evaluator = RSLVISEvaluator(NAME, ("bbox",))
    first = run(evaluator, as_outputs(content, results, masks=False))
    second = run(evaluator, as_outputs(content, results, masks=False))
    assert first["bbox"] == pytest.approx(second["bbox"], abs=0, nan_ok=True)
    assert list(first) == ["bbox"]


def _evaluate_half(folder):
    """One of two processes; of the LVIS form it sees every second image or none."""
    from pathlib import Path

    from detectron2.utils import comm

    for style in EVALUATORS:
        path = Path(folder) / style
        content, results = made(style, num_images=9)
        register_json(path, content)
        outputs = [*as_outputs(content, results)][comm.get_rank() :: 2]
        if comm.get_rank() == 1 and style == "lvis":
            outputs = []
        found = run(EVALUATORS[style](NAME, output_dir=str(path)), outputs)
        (path / f"rank{comm.get_rank()}.json").write_text(json.dumps(found))
        MetadataCatalog.pop(NAME)


def test_two_processes_give_the_numbers_of_one(tmp_path):
    alone, count = {}, {}
    for style in EVALUATORS:
        (tmp_path / style).mkdir()
        content, results = register(tmp_path / style, style, num_images=9)
        outputs = [*as_outputs(content, results)]
        outputs = outputs[::2] if style == "lvis" else outputs
        alone[style] = run(EVALUATORS[style](NAME), outputs)
        count[style] = sum(len(output["instances"]) for _, output in outputs)
        MetadataCatalog.pop(NAME)
    launch(_evaluate_half, 2, args=(str(tmp_path),))
    for style in EVALUATORS:
        first, second = (
            json.loads((tmp_path / style / f"rank{rank}.json").read_text()) for rank in (0, 1)
        )
        assert second == {}
        for task in ("bbox", "segm"):
            assert first[task] == pytest.approx(alone[style][task], abs=1e-9, nan_ok=True)
        saved = tmp_path / style / f"{style}_instances_results.json"
        assert len(json.loads(saved.read_text())) == count[style]


def test_without_any_image_nothing_is_evaluated(tmp_path, caplog):
    register(tmp_path, "coco")
    assert run(RSCOCOEvaluator(NAME), []) == {}
    assert "no image was processed" in caplog.text


def test_a_model_that_finds_nothing_is_evaluated_by_what_the_set_has(tmp_path):
    content, _ = register(tmp_path, "coco", num_images=2)
    scores = run(RSCOCOEvaluator(NAME), as_outputs(content, [], masks=False))
    assert {task: numbers["AP"] for task, numbers in scores.items()} == {"bbox": 0, "segm": 0}
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    scores = run(RSCOCOEvaluator(NAME), as_outputs(content, [], masks=False))
    assert {task: numbers["AP"] for task, numbers in scores.items()} == {"bbox": 0}


def test_a_set_without_annotations_is_only_written(tmp_path):
    content, results = register(tmp_path, "coco", num_images=3)
    del content["annotations"]
    (tmp_path / "val.json").write_text(json.dumps(content))
    evaluator = RSCOCOEvaluator(NAME, output_dir=str(tmp_path / "out"))
    assert run(evaluator, as_outputs(content, results)) == {}
    saved = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert len(saved) == len(results)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", math.nan, "image 1: the model gives a score or box that is not finite"),
        ("pred_classes", 12, "the model predicts class 12, but the data set has 12 classes"),
        ("image_id", 77, "image 77 is not in the ground truth"),
    ],
)
def test_outputs_that_cannot_be_evaluated_are_named(tmp_path, field, value, message):
    content, results = register(tmp_path, "coco", num_images=2)
    entry, output = next(as_outputs(content, results))
    if field == "image_id":
        entry["image_id"] = value
    else:
        getattr(output["instances"], field)[3] = value
    with pytest.raises(UserError, match=f"^{NAME}: {message}"):
        RSCOCOEvaluator(NAME).process([entry], [output])


def test_classes_that_the_file_lacks_do_no_harm(tmp_path):
    content, results = register(tmp_path, "coco", num_images=2)
    whole = run(RSCOCOEvaluator(NAME, ("bbox",)), as_outputs(content, results))["bbox"]
    present = {a["category_id"] for a in content["annotations"]}
    absent = next(c["id"] for c in content["categories"] if c["id"] not in present)
    assert any(r["category_id"] == absent for r in results)
    content["categories"] = [c for c in content["categories"] if c["id"] != absent]
    (tmp_path / "val.json").write_text(json.dumps(content))
    fewer = run(RSCOCOEvaluator(NAME, ("bbox",)), as_outputs(content, results))["bbox"]
    assert fewer == pytest.approx(whole, abs=0, nan_ok=True)


def test_the_report_is_given_what_was_evaluated(tmp_path):
    content, results = register(tmp_path, "coco", num_images=4)
    given, out = [], tmp_path / "out"
    evaluator = RSCOCOEvaluator(NAME, output_dir=str(out), report=lambda *a: given.append(a))
    scores = run(evaluator, as_outputs(content, results))
    ((folder, evaluations),) = given
    assert folder == out
    assert evaluations.keys() == scores.keys() == {"bbox", "segm"}
    for task, evaluation in evaluations.items():
        assert evaluation.summary["AP"] == scores[task]["AP"]
        assert len(evaluation.detections) == len(results)
    for silent in (RSCOCOEvaluator(NAME, report=given.append), RSCOCOEvaluator(NAME)):
        run(silent, as_outputs(content, results))  # no folder; no report
    assert len(given) == 1
