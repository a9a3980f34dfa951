"""SOLOv2 in training and test: what the recordings of the original do not show."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from helpers.tiny_solov2 import tiny_solov2, tiny_solov2_config
from operation_count import count_operations

from rs_d2.analysis.search_times import SEARCHES, searching
from rs_d2.config.check import check_config
from rs_d2.losses.masks import dice_loss
from rs_d2.modeling.dense import solov2 as module
from rs_d2.modeling.dense.solo_head import with_coordinates
from rs_d2.utils.errors import UserError

SIZE = (96, 128)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_solov2().train()


@pytest.fixture(scope="module")
def baseline():
    torch.manual_seed(0)
    return tiny_solov2(baseline=True).train()


def objects(*boxes, size=SIZE):
    """Objects that fill their boxes, of classes 0, 1, 2, 0, ..."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return Instances(
        size,
        gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).view(-1, 4)),
        gt_classes=torch.arange(len(boxes)) % 3,
        gt_masks=BitMasks(masks),
    )


def nothing(size=SIZE):
    """What the mapper makes of an image without objects: there is no field for masks."""
    return Instances(size, gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0).long())


def batch(*instances):
    images = torch.randint(256, (len(instances), 3, *SIZE), dtype=torch.uint8)
    return [
        {"image": image[:, : one.image_size[0], : one.image_size[1]], "instances": one}
        for image, one in zip(images, instances, strict=True)
    ]


TWO = ((8, 8, 40, 48), (72, 32, 112, 80))


def candidates_of(model, *instances):
    inputs = batch(*instances)
    images = model.preprocess_image(inputs)
    features = [model.backbone(images.tensor)[name] for name in model.head_in_features]
    return model.candidates(images, features, model.head(features), list(instances))


def test_every_cell_has_the_class_and_the_mask_of_its_object(model):
    found = candidates_of(model, objects(*TWO), objects(*TWO[:1]))
    cells = sum(size**2 for size in model.grids)
    assert found.logits.shape == (2 * cells, 5)
    assert found.positives.equal(found.positives.sort()[0])
    assert set(found.positive_classes.tolist()) == {0, 1}
    assert {0, 1} == set((found.positives >= cells).long().tolist())
    for label, mask in zip(found.positive_classes.tolist(), found.gt_masks, strict=True):
        x1, y1, x2, y2 = (side // 4 for side in TWO[label])
        assert mask.sum() == (y2 - y1) * (x2 - x1)
        assert mask[y1:y2, x1:x2].all()


def test_an_object_may_stand_anywhere_in_the_list(model):
    """The original gives the Dice coefficient of one object's cells to those of another then."""
    one = objects(*TWO)
    inputs = batch(one)
    losses = [model([{**inputs[0], "instances": instances}]) for instances in (one, one[[1, 0]])]
    for name, loss in losses[0].items():
        assert torch.equal(loss, losses[1][name])


def test_the_mask_loss_is_balanced_to_the_ranking(model):
    losses = model(batch(objects(*TWO)))
    assert set(losses) == {"loss_rank", "loss_sort", "loss_mask"}
    reference = losses["loss_rank"] + losses["loss_sort"]
    assert float(losses["loss_mask"]) == pytest.approx(float(reference), rel=1e-5)


def test_the_baseline_has_focal_loss_and_three_times_the_mean_dice_loss(baseline):
    torch.manual_seed(3)
    inputs = batch(objects(*TWO))
    losses = baseline(inputs)
    torch.manual_seed(3)
    found = candidates_of(baseline, inputs[0]["instances"])
    dice = dice_loss(found.mask_logits, found.gt_masks).mean()
    assert set(losses) == {"loss_cls", "loss_mask"}
    assert float(losses["loss_mask"]) == pytest.approx(3 * float(dice), rel=1e-5)


def smaller_than_a_pixel():
    """Of no grid's size; its mask has a pixel all the same."""
    one = objects((10, 10, 11, 11))
    one.gt_boxes.tensor[:, 2:] -= 0.5
    return one


CROWD = [(x, y, x + 12, y + 12) for x in range(0, 116, 5) for y in range(0, 84, 4)][:500]
SCENES = {
    "nothing": [nothing()],
    "nothing beside something": [nothing(), objects(*TWO)],
    "no cell of any size": [smaller_than_a_pixel()],
    "500 objects": [objects(*CROWD)],
    "masks without pixels": [objects((10, 10, 10, 30), *TWO)],
    "smaller image": [objects(*TWO), objects((4, 4, 30, 40), size=(50, 61))],
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("kind", ["model", "baseline"])
def test_any_batch_trains(kind, scene, request):
    model = request.getfixturevalue(kind)
    losses = model(batch(*SCENES[scene]))
    assert all(loss.isfinite() for loss in losses.values())
    model.zero_grad()
    sum(losses.values()).backward()
    lost = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lost == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_polygons_give_the_masks_of_their_bitmaps(model):
    bitmaps = objects(*TWO)
    polygons = Instances(SIZE, gt_boxes=bitmaps.gt_boxes, gt_classes=bitmaps.gt_classes)
    polygons.gt_masks = PolygonMasks([[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in TWO])
    found = [candidates_of(model, instances).gt_masks for instances in (bitmaps, polygons)]
    assert torch.equal(*found)


def test_coordinates_run_from_minus_one_to_one():
    x = with_coordinates(torch.zeros(2, 3, 4, 5))
    assert x.shape == (2, 5, 4, 5)
    assert torch.allclose(x[1, 3, 2], torch.linspace(-1, 1, 5))
    assert torch.allclose(x[0, 4, :, 1], torch.linspace(-1, 1, 4))
    assert with_coordinates(torch.zeros(1, 1, 1, 1))[0, 1:].flatten().tolist() == [-1, -1]


def found_by(model, score_thresh=0.0, **changes):
    inputs = {"image": torch.randint(256, (3, 75, 121), dtype=torch.uint8), **changes}
    before = model.test_score_thresh, model.test_candidate_score_thresh
    model.test_score_thresh, model.test_candidate_score_thresh = 0.0, score_thresh
    try:
        with torch.no_grad():
            return model.eval()([inputs])[0]["instances"]
    finally:
        model.train()
        model.test_score_thresh, model.test_candidate_score_thresh = before


def test_detections_have_the_size_of_the_image_and_boxes_around_their_masks(model):
    found = found_by(model, height=150, width=242)
    assert found.image_size == (150, 242)
    assert 0 < len(found) <= 100
    assert found.pred_masks.shape == (len(found), 150, 242)
    assert found.pred_masks.dtype == torch.bool
    assert (found.scores.diff() <= 0).all()
    for mask, (x1, y1, x2, y2) in zip(found.pred_masks, found.pred_boxes, strict=True):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert (x1, x2) == (columns.min(), columns.max() + 1)
        assert (y1, y2) == (rows.min(), rows.max() + 1)
    assert found_by(model).image_size == (75, 121)


def test_a_threshold_that_nothing_passes_gives_no_detections(model):
    found = found_by(model, score_thresh=0.999)
    assert len(found) == 0
    assert found.pred_masks.shape == (0, 75, 121)
    assert found.pred_boxes.tensor.shape == (0, 4)


def test_masks_of_all_cells_are_looked_at_a_few_at_a_time(model, monkeypatch):
    cells = sum(size**2 for size in model.grids)
    kernels, features = torch.randn(cells, 32), torch.randn(32, 24, 32)
    least = torch.zeros(cells)

    def qualities():
        return module._mask_qualities(kernels, features, least)

    together = qualities()
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 10 * 24 * 32)
    assert torch.allclose(qualities(), together, atol=1e-6)
    assert count_operations(qualities).largest_bytes < 24 * 32 * 4 * cells / 4


def test_a_sweeps_detections_are_those_of_the_model_at_the_threshold(model):
    """Those of the lowest threshold that score higher: the threshold is applied last."""
    inputs = [{"image": torch.randint(256, (3, 75, 121), dtype=torch.uint8)}]
    model.eval().test_candidate_score_thresh, before = 0.0, model.test_candidate_score_thresh
    with torch.no_grad():
        for search in SEARCHES:
            with searching(model, search, 0.0):
                everything = model(inputs)[0]["instances"]
            threshold = float(everything.scores.median())
            with searching(model, search, threshold):
                some = model(inputs)[0]["instances"]
            expected = everything[everything.scores > threshold]
            assert 0 < len(expected) < len(everything)
            assert torch.equal(some.scores, expected.scores)
            assert torch.equal(some.pred_masks, expected.pred_masks)
    model.train().test_candidate_score_thresh = before


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("CRITERION.LABELS", "iou", "iou needs boxes, which SOLOv2 lacks"),
        ("CRITERION.LABELS", "iou_dice", "iou_dice needs boxes, which SOLOv2 lacks"),
        ("CRITERION.WEIGHTS", "centerness", "centerness needs boxes, which SOLOv2 lacks"),
        ("CRITERION.LOSS", "alrp", "alrp needs boxes, which SOLOv2 lacks"),
    ],
)
def test_what_needs_boxes_is_refused(key, value, message):
    cfg = tiny_solov2_config([f"MODEL.DENSE_HEAD.{key}", value])
    with pytest.raises(UserError, match=f"^MODEL.DENSE_HEAD.{key}: {message}$"):
        check_config(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.SOLO.GRIDS", [4, 3], r"2 entries, but MODEL.RETINANET.IN_FEATURES has 5 levels"),
        ("MODEL.SOLO.SCALE_RANGES", [[1, 9]], r"1 entries, but MODEL.RETINANET.IN_FEATURES has 5"),
        ("MODEL.RETINANET.IN_FEATURES", ["p2", "p3"], "SOLOv2 needs 3 levels, not 2"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_named(key, value, message):
    with pytest.raises(UserError, match=f"^{key}: {message}"):
        tiny_solov2([key, value])


@pytest.mark.parametrize(
    "pairs",
    [
        (["MODEL.DENSE_HEAD.CRITERION.WEIGHTS", "ranking"],),
        (["MODEL.DENSE_HEAD.CRITERION.BALANCE", "magnitude"],),
        (
            ["MODEL.DENSE_HEAD.CRITERION.LOSS", "ap"],
            ["MODEL.DENSE_HEAD.MASK_LOSS", "cross_entropy"],
        ),
        (["MODEL.DENSE_HEAD.CRITERION.LABELS", "binary"],),
    ],
)
def test_other_criteria_train(pairs):
    cfg = tiny_solov2_config(*pairs)
    check_config(cfg)
    model = tiny_solov2(*pairs).train()
    losses = model(batch(objects(*TWO)))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
