"""Every head's detections come from the exact search, and are Detectron2's where that is exact."""

import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import GeneralizedRCNNWithTTA as StockTTA
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image as stock_single
from detectron2.structures import Boxes, ImageList, Instances
from helpers.reference_nms import class_wise_nms as literal_loop

from rs_d2.modeling import RSFastRCNNOutputLayers
from rs_d2.modeling.inference import (
    DecodedBoxes,
    fast_rcnn_inference,
    fast_rcnn_inference_single_image,
    select_detections,
)
from rs_d2.modeling.test_time_augmentation import GeneralizedRCNNWithTTA

SIZE = (60, 80)
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
SHAPES = {name: ShapeSpec(channels=16, stride=stride) for name, stride in STRIDES.items()}


def image(num_rows=300, num_classes=5, specific=False):
    """Overlapping boxes and scores without ties."""
    shape = (num_rows, num_classes if specific else 1)
    centers = torch.rand(4, 2)[torch.randint(4, (num_rows,))][:, None] * torch.tensor([80.0, 60])
    centers = centers + torch.randn(*shape, 2) * 4
    half = 4 + 12 * torch.rand(*shape, 2)
    scores = torch.randperm(num_rows * num_classes).float().view(num_rows, num_classes)
    return torch.cat([centers - half, centers + half], 2).flatten(1), (scores + 1) / scores.numel()


def with_background(scores):
    return torch.cat([scores, torch.zeros(len(scores), 1)], 1)


def assert_same(actual, expected):
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(actual.scores, expected.scores)
    assert torch.equal(actual.pred_classes, expected.pred_classes)
    assert actual.image_size == expected.image_size


# With more than 1000 candidates, Detectron2 goes through the classes one by one, which is exact.
@pytest.mark.parametrize("specific", [False, True])
@pytest.mark.parametrize("topk", [10, 100, -1])
@pytest.mark.parametrize("score_thresh", [1e-4, 0.1])
def test_an_image_gets_detectron2s_detections(specific, topk, score_thresh):
    boxes, scores = image(specific=specific)
    arguments = (SIZE, score_thresh, 0.5, topk)
    expected, expected_rows = stock_single(boxes.clone(), with_background(scores), *arguments)
    actual, rows = fast_rcnn_inference_single_image(boxes, scores, *arguments)
    assert len(actual) > 0
    assert_same(actual, expected)
    assert torch.equal(rows, expected_rows)


def test_the_input_is_not_changed():
    boxes, scores = image()
    before = boxes.clone(), scores.clone()
    fast_rcnn_inference_single_image(boxes, scores, SIZE, 0.1, 0.5, 10)
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


def test_rows_that_are_not_finite_are_left_out_as_in_detectron2():
    boxes, scores = image()
    boxes[3, 2], scores[7, 1], scores[8] = float("inf"), float("nan"), float("-inf")
    arguments = (SIZE, 1e-4, 0.5, 100)
    expected, _ = stock_single(boxes.clone(), with_background(scores), *arguments)
    actual, rows = fast_rcnn_inference_single_image(boxes, scores, *arguments)
    assert_same(actual, expected)
    assert torch.equal(scores[rows, actual.pred_classes], actual.scores)  # rows of the input
    assert set(rows.tolist()).isdisjoint({3, 7, 8})


def test_half_precision_is_compared_in_float32():
    boxes, scores = image(num_rows=40)
    actual, rows = fast_rcnn_inference_single_image(boxes.half(), scores.half(), SIZE, 0.1, 0.5, 20)
    assert actual.scores.dtype == actual.pred_boxes.tensor.dtype == torch.float32
    expected = literal_loop(boxes.half().float(), scores.half().float(), SIZE, 0.1, 0.5, 20)
    assert list(zip(rows.tolist(), actual.pred_classes.tolist(), strict=True)) == expected


@pytest.mark.parametrize("num_rows", [0, 5])
def test_nothing_to_return_is_an_empty_result(num_rows):
    boxes, scores = image(num_rows=num_rows)
    found, rows = fast_rcnn_inference_single_image(boxes, scores, SIZE, 2.0, 0.5, 10)
    assert len(found) == len(rows) == 0
    assert found.pred_boxes.tensor.shape == (0, 4)
    assert found.pred_classes.dtype == rows.dtype == torch.int64


@pytest.mark.parametrize(
    ("boxes", "scores"),
    [((5, 4), (4, 3)), ((5, 8), (5, 3)), ((5, 12), (5, 0)), ((5, 5), (5, 3)), ((5, 4), (5,))],
)
def test_shapes_that_do_not_belong_together_are_named(boxes, scores):
    with pytest.raises(ValueError, match=r"without a background column .* not scores \("):
        fast_rcnn_inference_single_image(
            torch.zeros(boxes), torch.zeros(scores), SIZE, 0.1, 0.5, 10
        )


def test_a_batch_is_its_images():
    images = [image(num_rows=20), image(num_rows=0), image(num_rows=9)]
    boxes, scores = zip(*images, strict=True)
    found, rows = fast_rcnn_inference(boxes, scores, [SIZE] * 3, 0.1, 0.5, 10)
    for i, (image_boxes, image_scores) in enumerate(images):
        one, one_rows = fast_rcnn_inference_single_image(
            image_boxes, image_scores, SIZE, 0.1, 0.5, 10
        )
        assert_same(found[i], one)
        assert torch.equal(rows[i], one_rows)


def test_boxes_decoded_where_looked_at_are_the_decoded_boxes():
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    proposals, deltas = image(num_rows=50)[0], torch.randn(50, 20)
    table = DecodedBoxes(transform, deltas, proposals, SIZE)
    everything = Boxes(transform.apply_deltas(deltas, proposals).view(-1, 4))
    everything.clip(SIZE)
    rows, classes = torch.randint(50, (30,)), torch.randint(5, (30,))
    assert torch.equal(table.at(rows, classes), everything.tensor.view(50, 5, 4)[rows, classes])
    assert table.finite_rows() is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 3e38, 1e31])
@pytest.mark.parametrize("column", [0, 6])
def test_rows_whose_decoded_boxes_are_not_finite_are_found(value, column):
    transform = Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0))
    proposals, deltas = image(num_rows=50)[0], torch.randn(50, 20)
    deltas[7, column] = value
    decoded = transform.apply_deltas(deltas, proposals)
    found = DecodedBoxes(transform, deltas, proposals, SIZE).finite_rows()
    finite = torch.ones(50, dtype=torch.bool) if found is None else found
    assert torch.equal(finite, decoded.isfinite().all(1))


def predictor_outputs(mask_cfg, loss, agnostic):
    mask_cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS = loss
    mask_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = agnostic
    mask_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.01
    predictor = RSFastRCNNOutputLayers(mask_cfg, ShapeSpec(channels=8))
    proposals = [Instances(SIZE, proposal_boxes=Boxes(image(num_rows=n)[0])) for n in (350, 0, 40)]
    logits, deltas = predictor(torch.randn(390, 8))
    return predictor, (logits * 30, deltas), proposals


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("loss", ["rank_sort", "cross_entropy"])
def test_the_predictor_returns_what_the_search_finds(mask_cfg, loss, agnostic):
    predictor, predictions, proposals = predictor_outputs(mask_cfg, loss, agnostic)
    with torch.no_grad():
        found, rows = predictor.inference(predictions, proposals)
        boxes = predictor.predict_boxes(predictions, proposals)
        probs = predictor.predict_probs(predictions, proposals)
    for i in range(3):
        expected = literal_loop(boxes[i], probs[i][:, :-1], SIZE, 0.01, 0.5, 100)
        pairs = list(zip(rows[i].tolist(), found[i].pred_classes.tolist(), strict=True))
        assert pairs == expected
    assert [len(f) > 0 for f in found] == [True, False, True]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("loss", ["rank_sort", "cross_entropy"])
def test_the_predictor_returns_detectron2s_detections(mask_cfg, loss, agnostic):
    predictor, predictions, proposals = predictor_outputs(mask_cfg, loss, agnostic)
    with torch.no_grad():
        found, rows = predictor.inference(predictions, proposals)
        expected, expected_rows = super(RSFastRCNNOutputLayers, predictor).inference(
            predictions, proposals
        )
    assert_same(found[0], expected[0])
    assert torch.equal(rows[0], expected_rows[0])


def test_half_precision_logits_get_float32_scores(mask_cfg):
    predictor, (logits, deltas), proposals = predictor_outputs(mask_cfg, "rank_sort", True)
    scores = predictor.predict_scores((logits.half(), deltas.half()), proposals)
    assert torch.equal(torch.cat(scores), logits.half().float().sigmoid())


def test_the_cascade_returns_detectron2s_detections(mask_cfg):
    mask_cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS = "cross_entropy"
    mask_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    mask_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    mask_cfg.MODEL.MASK_ON = False
    heads = {}
    for name in ("CascadeROIHeads", "RSCascadeROIHeads"):
        mask_cfg.MODEL.ROI_HEADS.NAME = name
        heads[name] = build_roi_heads(mask_cfg, SHAPES).eval()
    for predictor in heads["CascadeROIHeads"].box_predictor:
        torch.nn.init.normal_(predictor.cls_score.weight)
    heads["RSCascadeROIHeads"].load_state_dict(heads["CascadeROIHeads"].state_dict())
    features = {n: torch.randn(2, 16, 128 // s, 128 // s) for n, s in STRIDES.items()}
    images = ImageList(torch.zeros(2, 3, 128, 128), [(128, 128)] * 2)
    proposals = [image(num_rows=400)[0] + 20 for _ in range(2)]
    outputs = []
    for head in heads.values():
        given = [Instances((128, 128), proposal_boxes=Boxes(boxes)) for boxes in proposals]
        with torch.no_grad():
            outputs.append(head(images, features, given)[0])
    for expected, actual in zip(*outputs, strict=True):
        assert len(actual) == 100
        torch.testing.assert_close(actual.scores, expected.scores)  # means in another order
        actual.scores = expected.scores
        assert_same(actual, expected)


def augmented_models(mask_cfg):
    mask_cfg.TEST.AUG.MIN_SIZES = (64, 96)
    mask_cfg.TEST.DETECTIONS_PER_IMAGE = 20
    model = build_model(mask_cfg).eval()
    return StockTTA(mask_cfg, model), GeneralizedRCNNWithTTA(mask_cfg, model)


def test_views_are_merged_into_detectron2s_detections(mask_cfg):
    stock, ours = augmented_models(mask_cfg)
    boxes, scores = image(num_rows=1500, num_classes=3)
    boxes[5, 1] = float("nan")
    classes = torch.randint(3, (1500,))
    views = (boxes, list(scores[:, 0]), list(classes), SIZE)
    assert_same(ours._merge_detections(*views), stock._merge_detections(*views))


def test_views_without_a_detection_are_merged_into_none(mask_cfg):
    _, ours = augmented_models(mask_cfg)
    assert len(ours._merge_detections(torch.zeros(0, 4), [], [], SIZE)) == 0


def test_a_model_runs_under_augmentation(mask_cfg):
    mask_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    _, ours = augmented_models(mask_cfg)
    picture = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8)
    with torch.no_grad():
        (output,) = ours([{"image": picture, "height": SIZE[0], "width": SIZE[1]}])
    found = output["instances"]
    assert len(found) == 20
    assert found.pred_masks.shape == (20, *SIZE)


def test_views_are_detectron2s_but_of_at_least_a_pixel(mask_cfg):
    stock, ours = (model.tta_mapper for model in augmented_models(mask_cfg))
    picture = torch.randint(0, 256, (3, 48, 64), dtype=torch.uint8)
    entry = {"image": picture, "height": 30, "width": 40}
    boxes = np.array([[1.0, 2, 30, 25]])
    for expected, view in zip(stock(entry), ours(entry), strict=True):
        assert (view["image"] == expected["image"]).all()
        moved = view["transforms"].apply_box(boxes)
        assert moved == pytest.approx(expected["transforms"].apply_box(boxes))
    ours.max_size = 96
    long = {"image": picture[:, :1].repeat(1, 20, 125), "height": 20, "width": 8000}
    for view in ours(long):
        assert view["image"].shape == (3, 1, 96)
        back = view["transforms"].inverse().apply_box(np.array([[0.0, 0, 96, 1]]))
        assert back == pytest.approx(np.array([[0.0, 0, 8000, 20]]))


def test_a_dense_head_returns_detectron2s_detections():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.PRIOR_PROB = 3, 0.3
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.head.cls_score.weight)  # else most scores tie
    picture = [{"image": torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8)}]
    taken = {}

    def record(name):
        method = getattr(model, name)

        def recorded(*args):
            result = method(*args)
            taken[name] = copy.deepcopy(result)  # the model will clip its boxes in place
            return result

        setattr(model, name, recorded)

    record("_decode_multi_level_predictions")
    record("inference_single_image")
    with torch.no_grad():
        model(picture)
    candidates = taken["_decode_multi_level_predictions"]
    actual = select_detections(candidates, model.test_nms_thresh, model.max_detections_per_image)
    assert len(candidates) > 1000
    assert len(actual) == 100
    assert_same(actual, taken["inference_single_image"])


def test_candidates_that_are_not_finite_are_left_out_and_fields_stay():
    boxes, scores = image(num_rows=30, num_classes=1)
    scores = scores[:, 0].clone()
    boxes[2, 0], scores[4] = float("nan"), float("inf")
    candidates = Instances(
        SIZE,
        pred_boxes=Boxes(boxes),
        scores=scores,
        pred_classes=torch.zeros(30, dtype=torch.long),
        number=torch.arange(30),
    )
    kept = select_detections(candidates, 0.5, 5)
    assert torch.equal(kept.scores, scores[kept.number])
    assert {2, 4}.isdisjoint(kept.number.tolist())
    assert kept.scores.tolist() == sorted(kept.scores.tolist(), reverse=True)
