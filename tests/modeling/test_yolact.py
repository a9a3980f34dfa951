"""YOLACT: the original's recorded heads, what it learns from, what it finds."""

from functools import cache

import numpy as np
import pytest
import torch
from conftest import REPO, shared
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks
from torch.nn import functional as F

from rs_d2 import add_rs_config
from rs_d2.config.check import check_config
from rs_d2.modeling import YOLACT
from rs_d2.ops.fast_nms import fast_nms
from rs_d2.ops.nms import class_wise_nms
from rs_d2.utils.errors import UserError

HEAD = "MODEL.DENSE_HEAD."
SIDE, GRIDS = 72, (9, 5, 3, 2, 1)
DIGITS = "quick/rs_yolact_digits.yaml"
BASELINE = "quick/yolact_digits.yaml"


def settings(config, *opts):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_file(str(REPO / "configs" / config))
    small = ["MODEL.DEVICE", "cpu", "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.RETINANET.NUM_CLASSES", 3]
    cfg.merge_from_list([*small, *opts])
    check_config(cfg)
    return cfg


@cache
def detector(config=DIGITS, *opts):
    """A model in training mode, the same for the same arguments; no test may change it."""
    torch.manual_seed(0)
    return build_model(settings(config, *opts)).train()


def objects(count=2, size=(SIDE, SIDE), seed=0, num_classes=3):
    """Boxes with an ellipse in each; as in training, no field for masks without objects."""
    instances = Instances(size, gt_classes=torch.arange(count) % num_classes)
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng) * torch.tensor([size[1], size[0]]) * 0.6
    boxes = torch.cat([corner, corner + 12 + torch.rand(count, 2, generator=rng) * 14], dim=1)
    instances.gt_boxes = Boxes(boxes)
    if count:
        y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in size), indexing="ij")
        center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
        dx, dy = (
            (grid - center[:, i, None, None]) / half[:, i, None, None]
            for i, grid in enumerate((x, y))
        )
        instances.gt_masks = BitMasks(dx**2 + dy**2 < 1)
    return instances


def entry(instances):
    """An image as a mapper gives it."""
    height, width = instances.image_size
    image = torch.randint(256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


@pytest.fixture(scope="module")
def recorded():
    with np.load(shared("golden/heads/yolact.npz")) as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files if key != "meta"}


@pytest.fixture(scope="module")
def official():
    """A model with the classes and prototypes of the recorded heads."""
    return detector(DIGITS, "MODEL.RETINANET.NUM_CLASSES", 80)


def recorded_objects(recorded, case, i):
    instances = Instances((SIDE, SIDE))
    instances.gt_boxes = Boxes(recorded[f"{case}/gt_boxes/{i}"])
    instances.gt_classes = recorded[f"{case}/gt_classes/{i}"]
    packed = recorded[f"{case}/gt_masks/{i}"].numpy()
    bits = np.unpackbits(packed, count=len(instances) * SIDE * SIDE)
    instances.gt_masks = BitMasks(torch.from_numpy(bits.reshape(-1, SIDE, SIDE) > 0))
    return instances


@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
def test_the_heads_losses_and_gradients_are_the_originals(recorded, official, case):
    def leaves(name):
        return [recorded[f"{case}/{name}/{i}"].clone().requires_grad_() for i in range(5)]

    names = ("logits", "deltas", "coefficients")
    preds = {name: leaves(name) for name in names}
    preds["prototypes"] = [recorded[f"{case}/prototypes"].clone().requires_grad_()]
    gts = [recorded_objects(recorded, case, i) for i in range(2)]
    features = [torch.zeros(2, 1, side, side) for side in GRIDS]
    images = ImageList(torch.zeros(2, 3, SIDE, SIDE), [(SIDE, SIDE)] * 2)

    for i, anchors in enumerate(official.anchors(images, features)):
        expected = recorded[f"{case}/anchors/{i}"]
        torch.testing.assert_close(anchors, expected, atol=1e-5, rtol=0)
    candidates = official.candidates(images, features, preds, gts)
    labels = torch.cat([recorded[f"{case}/anchor_labels/{i}"].long() for i in range(5)], dim=1)
    assert torch.equal(candidates.gt_classes, labels.flatten())

    losses = official.forward_training(images, features, preds, gts)
    ours = {"ranking_loss": "rank", "sorting_loss": "sort", "loss_bbox": "box_reg"}
    for name in (*ours, "loss_mask"):
        actual = losses[f"loss_{ours.get(name, 'mask')}"]
        torch.testing.assert_close(actual, recorded[f"{case}/{name}"], atol=1e-5, rtol=1e-5)
    sum(losses.values()).backward()
    for name, levels in preds.items():
        for i, level in enumerate(levels):
            suffix = "" if name == "prototypes" else f"/{i}"
            expected = recorded[f"{case}/grad_{name}{suffix}"]
            grad = torch.zeros_like(level) if level.grad is None else level.grad
            error = (grad - expected).norm() / expected.norm().clamp(min=1e-6)
            assert error < 1e-5, (name, i)


EXPECTED = {
    DIGITS: {"loss_rank", "loss_sort", "loss_box_reg", "loss_mask"},
    BASELINE: {"loss_cls", "loss_box_reg", "loss_mask", "loss_semantic"},
}


@pytest.mark.parametrize("config", EXPECTED)
@pytest.mark.parametrize("counts", [(2, 0), (0, 0), (500, 1)])
def test_a_step_has_finite_losses_and_reaches_every_parameter(config, counts):
    model = detector(config)
    sizes = (SIDE, SIDE), (SIDE - 16, SIDE - 8)
    batch = [entry(objects(n, size)) for n, size in zip(counts, sizes, strict=True)]
    model.zero_grad()
    losses = model(batch)
    assert set(losses) == EXPECTED[config]
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, g in grads.items() if g is None or not g.isfinite().all()] == []
    if sum(counts) == 0:
        assert {n for n, loss in losses.items() if loss != 0} <= {"loss_semantic"}


def test_box_and_mask_losses_are_balanced_to_the_ranking():
    losses = detector()([entry(objects())])
    both = losses["loss_rank"] + losses["loss_sort"]
    torch.testing.assert_close(losses["loss_box_reg"], both)
    torch.testing.assert_close(losses["loss_mask"], both)


def test_the_labels_are_those_of_the_config():
    candidates, labels = candidates_of(detector(), objects(6)), {}
    for kind in ("binary", "iou", "dice", "iou_dice"):
        criterion = YOLACT.build_criterion(settings(DIGITS, HEAD + "CRITERION.LABELS", kind))
        labels[kind] = criterion.label(candidates)
        assert bool(criterion(candidates).losses["sort"] > 0) == (kind != "binary")
    assert (labels["binary"] == 1).all()
    probabilities, masks = candidates.mask_logits.sigmoid(), candidates.gt_masks.float()
    squares = (probabilities**2).sum((1, 2)) + masks.sum((1, 2)) + 1e-5
    dice = 2 * (probabilities * masks).sum((1, 2)) / squares
    torch.testing.assert_close(labels["dice"], dice.clamp(min=1e-6))
    torch.testing.assert_close(labels["iou_dice"], (labels["iou"] + labels["dice"]) / 2)


def candidates_of(model, instances):
    images = model.preprocess_image([entry(instances)])
    features = [model.backbone(images.tensor)[name] for name in model.head_in_features]
    return model.candidates(images, features, model.head(features), [instances])


def test_masks_are_cropped_to_the_boxes_of_their_objects():
    instances = objects(3)
    found = candidates_of(detector(), instances)
    masks = F.interpolate(instances.gt_masks.tensor[None].float(), (18, 18), mode="bilinear")[0]
    assert torch.equal(found.gt_masks, (masks > 0.5)[found.objects])
    for logits, box, area in zip(
        found.mask_logits, found.gt_boxes / 4, found.mask_areas, strict=True
    ):
        rows, columns = (logits > -100).nonzero().unbind(1)
        assert len(rows) == area
        for cells, low, high in ((rows, box[1], box[3]), (columns, box[0], box[2])):
            assert low - 1 <= cells.min() < low
            assert high <= cells.max() < high + 1 or cells.max() == 17


def test_polygons_are_as_good_as_bitmaps():
    boxes = torch.tensor([[8.0, 8, 40, 32], [30, 30, 60, 64]])
    corners = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes.tolist()]
    polygons = Instances((SIDE, SIDE), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1]))
    polygons.gt_masks = PolygonMasks(corners)
    bitmaps = Instances((SIDE, SIDE), gt_boxes=Boxes(boxes), gt_classes=torch.tensor([0, 1]))
    bitmaps.gt_masks = BitMasks.from_polygon_masks(PolygonMasks(corners), SIDE, SIDE)
    model = detector()
    assert torch.equal(
        candidates_of(model, polygons).gt_masks, candidates_of(model, bitmaps).gt_masks
    )


def test_the_semantic_target_is_the_union_of_a_class():
    instances = objects(4, num_classes=2)
    found = candidates_of(detector(BASELINE), instances)
    masks = F.interpolate(instances.gt_masks.tensor[None].float(), (9, 9), mode="bilinear")[0] > 0.5
    expected = torch.stack([masks[0::2].any(0), masks[1::2].any(0), torch.zeros(9, 9) > 0])
    assert torch.equal(found.gt_semantic[0], expected)
    assert found.semantic_logits.shape == (1, 3, 9, 9)


def detections(model, size=(SIDE, SIDE), times=1):
    height, width = size
    inputs = {"image": torch.randint(256, (3, height, width), dtype=torch.uint8)}
    with torch.no_grad():
        (output,) = model.eval()([{**inputs, "height": times * height, "width": times * width}])
    model.train()
    return output["instances"]


@pytest.mark.parametrize("config", EXPECTED)
def test_masks_of_detections_have_the_size_of_the_image_and_stay_near_their_boxes(config):
    found = detections(detector(config), times=3)
    assert len(found) > 10
    assert found.pred_masks.dtype == torch.bool
    assert found.pred_masks.shape[1:] == (3 * SIDE, 3 * SIDE)
    assert found.pred_masks.any()
    reach = 3 * 2.5 * SIDE / 18  # of two cells and a half: the last one that is kept, its slope
    for mask, box in zip(found.pred_masks, found.pred_boxes, strict=True):
        where = mask.nonzero().flip(1)
        if len(where):
            assert (where >= box[:2] - reach).all()
            assert (where <= box[2:] + reach).all()


def test_the_background_takes_its_part_of_the_baselines_scores():
    model = detector(BASELINE)
    logits = torch.randn(2, 7, 4)
    torch.testing.assert_close(model.scores(logits), logits.softmax(-1)[..., :3])


def test_the_search_is_the_configs():
    everything, node = ("TEST.DETECTIONS_PER_IMAGE", -1), "MODEL.YOLACT."
    exact = detector(DIGITS, node + "NMS", "exact", *everything)
    fast = detector(DIGITS, node + "NMS_TOPK", 2, *everything)
    assert 0 < len(detections(fast)) <= 2 * 3 < len(detections(exact))
    assert (fast.search.func, exact.search) == (fast_nms, class_wise_nms)


def test_without_masks_it_learns_and_finds_boxes():
    model = detector(DIGITS, "MODEL.MASK_ON", False)
    instances = objects()
    instances.remove("gt_masks")
    assert set(model([entry(instances)])) == {"loss_rank", "loss_sort", "loss_box_reg"}
    found = detections(model)
    assert len(found) > 10
    assert not found.has("pred_masks")


def test_what_it_cannot_do_is_said():
    with pytest.raises(UserError, match=r"^MODEL.ANCHOR_GENERATOR.NAME: OctaveAnchorGenerator is"):
        detector(DIGITS, "MODEL.ANCHOR_GENERATOR.NAME", "OctaveAnchorGenerator")
    with pytest.raises(UserError, match=r"LABELS: dice needs masks"):
        detector(DIGITS, "MODEL.MASK_ON", False, HEAD + "CRITERION.LABELS", "dice")
    with pytest.raises(UserError, match=r"^MODEL.FPN.FUSE_TYPE: 'avg' is not sum"):
        detector(DIGITS, "MODEL.FPN.FUSE_TYPE", "avg")
