"""ATSS and PAA: which anchors they learn from, what they find, how their parts fit together."""

import pytest
import torch
from conftest import REPO

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from torch.nn import functional as F
from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss

from rs_d2 import add_rs_config
from rs_d2.modeling.dense.paa import score_voting
from rs_d2.targets.assign_atss import assign_atss
from rs_d2.targets.assign_paa import assign_by_iou, separate_by_loss
from rs_d2.utils.errors import UserError

K, STRIDES, SIDE = 3, (8, 16, 32), 64
GRIDS = [SIDE // stride for stride in STRIDES]


def config(architecture="ATSS", loss="rank_sort", anchors=3):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_file(str(REPO / "configs" / "quick" / "rs_atss_digits.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", architecture
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS = K, 1
    cfg.MODEL.DENSE_HEAD.CRITERION.LOSS = loss
    cfg.MODEL.ANCHOR_GENERATOR.SCALES_PER_OCTAVE = anchors
    return cfg


def detector(*args, **kwargs):
    torch.manual_seed(0)
    return build_model(config(*args, **kwargs))


def features(num_images=1, grids=GRIDS):
    return [torch.zeros(num_images, 64, grid, grid) for grid in grids]


def predictions(model, num_images=1, grids=GRIDS, seed=0):
    """Random outputs of the shapes of the head's, as leaves that take gradients."""
    rng = torch.Generator().manual_seed(seed)
    head = model.head
    layers = {"logits": head.cls_score, "deltas": head.bbox_pred, "quality": head.quality}
    return {
        name: [
            (
                torch.randn(num_images, layer.out_channels, g, g, generator=rng) * 0.5
            ).requires_grad_()
            for g in grids
        ]
        for name, layer in layers.items()
        if layer is not None
    }


def of_levels(preds, change):
    """The same outputs, each level changed by a function."""
    return {name: [change(level) for level in levels] for name, levels in preds.items()}


def images(*sizes):
    side = max(max(size) for size in sizes)
    return ImageList(torch.zeros(len(sizes), 3, side, side), list(sizes))


def objects(boxes, classes, size=(SIDE, SIDE)):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes).long())


BOXES, CLASSES = [[4, 6, 40, 44], [24, 20, 60, 62]], [1, 2]


def train(model, preds, gts, size=SIDE, grids=GRIDS):
    sizes = [instances.image_size for instances in gts]
    return model.forward_training(images(*sizes), features(len(gts), grids), preds, gts)


def flat(levels, width):
    """[N, A, width] in the order image, level, row, column, anchor: an independent spelling."""
    rows = []
    for level in levels:
        n, _, h, w = level.shape
        rows.append(level.reshape(n, -1, width, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, width))
    return torch.cat(rows, dim=1)


def anchors_by_hand(num_anchors=3):
    """Square anchors centred on the cells' corners: [H, W, a, 4] of each level."""
    grids = []
    for stride, grid in zip(STRIDES, GRIDS, strict=True):
        ys, xs = torch.meshgrid(*[torch.arange(grid) * stride] * 2, indexing="ij")
        half = torch.tensor([2 * stride * 2 ** (i / num_anchors) for i in range(num_anchors)])
        center = torch.stack([xs, ys, xs, ys], dim=-1).float()[:, :, None]
        grids.append(center + half[:, None] * torch.tensor([-1.0, -1, 1, 1]))
    return grids


@pytest.mark.parametrize("architecture", ["ATSS", "PAA"])
@pytest.mark.parametrize("loss", ["rank_sort", "ap", "alrp", "sigmoid_cross_entropy", "focal"])
def test_a_step_has_finite_losses_and_reaches_every_parameter(architecture, loss):
    model = detector(architecture, loss)
    image = {"image": torch.randint(256, (3, 64, 96), dtype=torch.uint8)}
    image["instances"] = objects(BOXES, CLASSES, (64, 96))
    losses = model([image, {**image, "instances": objects([], [], (64, 96))}])
    expected = {
        "rank_sort": {"loss_rank", "loss_sort", "loss_box_reg"},
        "focal": {"loss_cls", "loss_box_reg", "loss_quality"},
    }
    assert set(losses) == expected.get(loss, {"loss_cls", "loss_box_reg"})
    sum(losses.values()).backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, g in grads.items() if g is None or not g.isfinite().all()] == []


@pytest.mark.parametrize("architecture", ["ATSS", "PAA"])
def test_the_box_loss_is_balanced_to_the_ranking(architecture):
    model = detector(architecture)
    losses = train(model, predictions(model), [objects(BOXES, CLASSES)])
    torch.testing.assert_close(losses["loss_box_reg"], losses["loss_rank"] + losses["loss_sort"])


@pytest.mark.parametrize("architecture", ["ATSS", "PAA"])
@pytest.mark.parametrize("loss", ["rank_sort", "focal"])
def test_images_without_objects_give_attached_zeros_or_negatives_only(architecture, loss):
    model = detector(architecture, loss)
    preds = predictions(model)
    losses = train(model, preds, [objects([], [])])
    assert losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    for level in preds["deltas"]:
        assert not level.grad.any()
    if loss == "rank_sort":
        assert losses["loss_rank"] == losses["loss_sort"] == 0
        assert not any(level.grad.any() for level in preds["logits"])
    else:
        assert losses["loss_cls"] > 0


def atss_by_hand(preds):
    """What ATSS with Rank & Sort Loss should get from one image, put together step by step."""
    gts = torch.tensor(BOXES).float()
    grids = anchors_by_hand()
    matched = torch.cat([level.flatten() for level in assign_atss(grids, gts)])
    anchors = torch.cat([level.reshape(-1, 4) for level in grids])
    positive = matched >= 0
    size, center = anchors[:, 2:] - anchors[:, :2], (anchors[:, 2:] + anchors[:, :2]) / 2
    deltas = flat(preds["deltas"], 4)[0]
    new_center = center + deltas[:, :2] / 10 * size
    new_size = size * (deltas[:, 2:] / 5).exp()
    boxes = torch.cat([new_center - new_size / 2, new_center + new_size / 2], dim=1)[positive]
    return matched, positive, boxes, gts[matched[positive]]


def test_atss_ranks_every_anchor_with_the_iou_of_its_decoded_box():
    model = detector("ATSS")
    preds = predictions(model)
    seen = {}
    forward = model.criterion.forward

    def spy(candidates):
        seen.update(vars(candidates))
        return forward(candidates)

    model.criterion.forward = spy
    train(model, preds, [objects(BOXES, CLASSES)])
    matched, positive, boxes, gt_boxes = atss_by_hand(preds)
    expected = torch.full_like(matched, K)
    expected[positive] = torch.tensor(CLASSES)[matched[positive]]
    assert positive.sum() > 4
    assert torch.equal(seen["gt_classes"], expected)
    torch.testing.assert_close(seen["logits"], flat(preds["logits"], K)[0])
    torch.testing.assert_close(seen["pred_boxes"], boxes)
    assert torch.equal(seen["gt_boxes"], gt_boxes)


def test_the_focal_baseline_of_atss_is_the_sum_written_out():
    model = detector("ATSS", "focal")
    for name, weight in (("box", 2.0), ("quality", 0.5)):
        model.criterion.tasks[name].balancer.weight = weight
    preds = predictions(model)
    losses = train(model, preds, [objects(BOXES, CLASSES)])
    matched, positive, boxes, gt_boxes = atss_by_hand(preds)
    num_positives = int(positive.sum())
    target = torch.zeros(len(matched), K)
    target[positive, torch.tensor(CLASSES)[matched[positive]]] = 1.0
    p = flat(preds["logits"], K)[0].sigmoid()
    positive_part = -0.25 * target * (1 - p) ** 2 * p.log()
    negative_part = -0.75 * (1 - target) * p**2 * (1 - p).log()
    cls = (positive_part + negative_part).sum() / num_positives
    torch.testing.assert_close(losses["loss_cls"], cls)
    anchors = torch.cat([level.reshape(-1, 4) for level in anchors_by_hand()])[positive]
    cx, cy = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
    left, top = cx - gt_boxes[:, 0], cy - gt_boxes[:, 1]
    right, bottom = gt_boxes[:, 2] - cx, gt_boxes[:, 3] - cy
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    quality = (horizontal * vertical).sqrt()
    box = (generalized_box_iou_loss(boxes, gt_boxes) * quality).sum() / quality.sum() * 2
    torch.testing.assert_close(losses["loss_box_reg"], box)
    logits = flat(preds["quality"], 1)[0, positive, 0]
    expected = F.binary_cross_entropy_with_logits(logits, quality) * 0.5
    torch.testing.assert_close(losses["loss_quality"], expected)


def test_paa_keeps_the_candidates_that_the_mixture_keeps():
    model = detector("PAA")
    preds = predictions(model)
    seen = {}
    forward = model.criterion.forward
    model.criterion.forward = lambda c: seen.update(vars(c)) or forward(c)
    train(model, preds, [objects(BOXES, CLASSES)])

    gts = torch.tensor(BOXES).float()
    grids = anchors_by_hand()
    matched = torch.cat([level.flatten() for level in assign_by_iou(grids, gts, 0.1)])
    rows = (matched >= 0).nonzero().squeeze(1)
    anchors = torch.cat([level.reshape(-1, 4) for level in grids])
    boxes = model.box2box_transform.apply_deltas(flat(preds["deltas"], 4)[0], anchors)[rows]
    classes = torch.tensor(CLASSES)[matched[rows]]
    p = flat(preds["logits"], K)[0][rows].sigmoid()
    target = F.one_hot(classes, K)
    alpha = 0.25 * target + 0.75 * (1 - target)
    p_t = p * target + (1 - p) * (1 - target)
    cost = (-alpha * (1 - p_t) ** 2 * p_t.log()).sum(1)
    cost = (cost + generalized_box_iou_loss(boxes, gts[matched[rows]])).detach()
    levels = torch.tensor([i for i, g in enumerate(GRIDS) for _ in range(g * g * 3)])[rows]
    kept = separate_by_loss(cost, matched[rows], levels)
    expected = torch.full_like(matched, K)
    expected[rows[kept]] = classes[kept]
    assert 0 < kept.sum() < len(rows)
    assert torch.equal(seen["gt_classes"], expected)


def test_objects_of_different_images_are_kept_apart():
    model = detector("PAA")
    both = predictions(model, 2)
    gts = [objects(BOXES[:1], CLASSES[:1]), objects(BOXES, CLASSES)]
    seen = []
    forward = model.criterion.forward
    model.criterion.forward = lambda c: seen.append(c.gt_classes) or forward(c)
    train(model, both, gts)
    for i, instances in enumerate(gts):
        train(model, of_levels(both, lambda level, i=i: level[i : i + 1]), [instances])
    assert torch.equal(seen[0], torch.cat(seen[1:]))


@pytest.mark.parametrize("loss", ["rank_sort", "focal"])
def test_anchors_in_the_padding_of_a_batch_are_ignored(loss):
    model = detector("ATSS", loss)
    grids = [12, 6, 3]  # 96 pixels, of which the image fills 40, rounded up to 64
    preds = predictions(model, 1, grids)
    gts = [objects(BOXES[:1], CLASSES[:1], (40, 40))]
    sum(train(model, preds, gts, grids=grids).values()).backward()
    for level, stride in zip(preds["logits"], STRIDES, strict=True):
        cells = 64 // stride
        assert not level.grad[..., cells:, :].any()
        assert not level.grad[..., cells:].any()
        assert level.grad[..., :cells, :cells].any()


@pytest.mark.parametrize("loss", ["rank_sort", "focal"])
def test_detections_are_those_of_a_plain_search_over_the_best_anchors(loss):
    model = detector("ATSS", loss)
    model.test_topk_candidates, model.test_topk_per_image = 20, 15
    preds = of_levels(predictions(model, 2), torch.Tensor.detach)
    found = model.forward_inference(images((SIDE, SIDE), (SIDE, 50)), features(2), preds)
    anchors = torch.cat([level.reshape(-1, 4) for level in anchors_by_hand()])
    sizes = [grid * grid * 3 for grid in GRIDS]
    for i, (instances, width) in enumerate(zip(found, (SIDE, 50), strict=True)):
        scores = flat(preds["logits"], K)[i].sigmoid()
        if loss == "focal":
            scores = (scores * flat(preds["quality"], 1)[i].sigmoid()).sqrt()
        boxes = model.box2box_transform.apply_deltas(flat(preds["deltas"], 4)[i], anchors)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, SIDE)
        rows, start = [], 0
        for size in sizes:
            level = scores[start : start + size].amax(1).sort(descending=True).indices[:20]
            rows.append(level + start)
            start += size
        rows = torch.cat(rows)
        where = (scores[rows] > 0.05).nonzero()
        candidates, classes = rows[where[:, 0]], where[:, 1]
        values = scores[candidates, classes]
        kept = batched_nms(boxes[candidates], values, classes, 0.6)[:15]
        assert len(instances) == 15
        torch.testing.assert_close(instances.scores, values[kept])
        assert torch.equal(instances.pred_classes, classes[kept])
        torch.testing.assert_close(instances.pred_boxes.tensor, boxes[candidates[kept]])


def test_scores_of_half_precision_are_computed_in_float32():
    model = detector("ATSS")
    preds = of_levels(predictions(model), lambda level: level.detach().half())
    (regions,) = model.best_regions(model.anchors(None, features()), preds)
    assert regions.boxes.dtype == regions.scores.dtype == torch.float32


def test_voting_is_the_weighted_mean_of_the_boxes_around():
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(60, 2, generator=rng) * 30
    boxes = torch.cat([corner, corner + 5 + torch.rand(60, 2, generator=rng) * 20], dim=1)
    scores = torch.rand(60, K, generator=rng) * 0.3
    rows, classes = torch.tensor([3, 17, 40]), torch.tensor([0, 2, 2])
    voted = score_voting(boxes[rows], classes, boxes, scores, 0.05)
    for detection, (row, label) in enumerate(zip(rows, classes, strict=True)):
        total, weight_sum = torch.zeros(4, dtype=torch.float64), 0.0
        for candidate in range(60):
            score = float(scores[candidate, label])
            iou = float(box_iou(boxes[row : row + 1], boxes[candidate : candidate + 1]))
            if score > 0.05 and iou > 0.01:
                weight = score * torch.exp(torch.tensor(-((1 - iou) ** 2) / 0.025)).item()
                total += weight * boxes[candidate].double()
                weight_sum += weight
        torch.testing.assert_close(voted[detection].double(), total / weight_sum)


def test_voting_leaves_a_lone_box_and_no_box_as_they_are():
    box = torch.tensor([[1.0, 2, 30, 40]])
    alone = score_voting(box, torch.tensor([1]), box, torch.tensor([[0.1, 0.9]]), 0.05)
    torch.testing.assert_close(alone, box)
    low = score_voting(box, torch.tensor([0]), box, torch.tensor([[0.01, 0.9]]), 0.05)
    assert torch.equal(low, box)
    none = score_voting(box[:0], torch.zeros(0).long(), box, torch.tensor([[0.1, 0.9]]), 0.05)
    assert none.shape == (0, 4)


def test_paa_votes_and_atss_does_not():
    found = {}
    for architecture in ("ATSS", "PAA"):
        model = detector(architecture)
        preds = of_levels(predictions(model), torch.Tensor.detach)
        (found[architecture],) = model.forward_inference(images((SIDE, SIDE)), features(), preds)
    assert torch.equal(found["ATSS"].scores, found["PAA"].scores)
    assert torch.equal(found["ATSS"].pred_classes, found["PAA"].pred_classes)
    moved = (found["ATSS"].pred_boxes.tensor - found["PAA"].pred_boxes.tensor).abs()
    assert moved.max() > 0.1


def test_a_box_that_is_not_finite_spoils_no_vote():
    model = detector("PAA")
    preds = of_levels(predictions(model), torch.Tensor.detach)
    preds["deltas"][0][0, :, 2, 3] = float("nan")
    (found,) = model.forward_inference(images((SIDE, SIDE)), features(), preds)
    assert len(found) > 0
    assert found.pred_boxes.tensor.isfinite().all()


def test_the_prior_sets_the_first_scores():
    head = detector("ATSS").head
    logits = head([torch.zeros(1, 64, 4, 4)] * 3)["logits"]
    for level in logits:
        torch.testing.assert_close(level.sigmoid(), torch.full_like(level, 0.01))


def test_levels_share_weights_and_scale_their_own_boxes():
    head = detector("ATSS").head
    with torch.no_grad():
        head.scales[1].fill_(3.0)
    x = torch.randn(1, 64, 4, 4)
    outputs = head([x, x, x])
    assert torch.equal(*outputs["logits"][:2])
    torch.testing.assert_close(outputs["deltas"][1], 3 * outputs["deltas"][0])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
@pytest.mark.parametrize("architecture", ["ATSS", "PAA"])
@pytest.mark.parametrize("loss", ["rank_sort", "focal"])
def test_diverged_boxes_show_in_the_losses(architecture, loss, value):
    model = detector(architecture, loss)
    preds = predictions(model)
    with torch.no_grad():
        for level in preds["deltas"]:
            level.fill_(value)
    losses = train(model, preds, [objects(BOXES, CLASSES)])
    assert not losses["loss_box_reg"].isfinite()


def test_voting_under_autocast_keeps_the_digits_of_boxes():
    corner = torch.rand(500, 2) * 900
    boxes = torch.cat([corner, corner + 20 + torch.rand(500, 2) * 300], dim=1)
    scores, rows = torch.rand(500, K), torch.arange(50)
    classes = torch.randint(K, (50,))
    expected = score_voting(boxes[rows], classes, boxes, scores, 0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = score_voting(boxes[rows], classes, boxes, scores, 0.05)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_anchors_that_are_not_finite_crowd_out_no_others():
    model = detector("ATSS")
    model.test_topk_candidates = 20
    preds = of_levels(predictions(model), torch.Tensor.detach)
    preds["logits"][0][0, :, :2] = float("nan")
    (regions,) = model.best_regions(model.anchors(None, features()), preds)
    assert regions.scores[:20].isfinite().all()


def test_scores_that_saturate_are_still_told_apart():
    model = detector("ATSS")
    model.test_topk_candidates = 1
    preds = of_levels(predictions(model), torch.Tensor.detach)
    preds["logits"][0][0, 0] = 30.0 + torch.arange(64.0).view(8, 8)
    (regions,) = model.best_regions(model.anchors(None, features()), preds)
    anchor = anchors_by_hand()[0][7, 7, 0]
    expected = model.box2box_transform.apply_deltas(
        preds["deltas"][0][0, :4, 7, 7][None], anchor[None]
    )
    torch.testing.assert_close(regions.boxes[:1], expected)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.RETINANET.IN_FEATURES", ["p3", "p9"]], "p9 is not a level of the backbone"),
        (["MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]], "sizes for 2 levels, but .* has 3"),
        (
            ["MODEL.BACKBONE.NAME", "build_rs_resnet_backbone"]
            + ["MODEL.RETINANET.IN_FEATURES", ["res3", "res4", "res5"]],
            "as many channels on each, not 128, 256, 512",
        ),
    ],
)
def test_levels_that_do_not_fit_are_named(opts, message):
    cfg = config()
    cfg.merge_from_list(opts)
    with pytest.raises(UserError, match=message):
        build_model(cfg)


def test_levels_with_different_numbers_of_anchors_are_refused():
    cfg = config()
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64, 80], [128]]
    with pytest.raises(UserError, match=r"^MODEL.ANCHOR_GENERATOR: .* not 1, 2, 1$"):
        build_model(cfg)


def test_p6_and_p7_are_convolved_from_p5_without_a_relu_between():
    cfg = config()
    cfg.MODEL.BACKBONE.NAME = "build_rs_resnet_fpn_p6p7_backbone"
    cfg.MODEL.RETINANET.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    backbone = build_model(cfg).backbone
    levels = backbone(torch.randn(1, 3, 128, 128))
    top = backbone.top_block
    p6 = F.conv2d(levels["p5"], top.p6.weight, top.p6.bias, stride=2, padding=1)
    p7 = F.conv2d(p6, top.p7.weight, top.p7.bias, stride=2, padding=1)
    assert (p6 < 0).any()
    torch.testing.assert_close(levels["p6"], p6)
    torch.testing.assert_close(levels["p7"], p7)
    assert {name: shape.stride for name, shape in backbone.output_shape().items()} == {
        f"p{i}": 2**i for i in range(3, 8)
    }
