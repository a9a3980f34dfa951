"""What dropping the samplers must not break: padding, empty images, missed boxes, NaN, memory."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, Instances, pairwise_iou

from rs_d2.criterion import Candidates, LossOutput, find_positives
from rs_d2.modeling import RSFastRCNNOutputLayers
from rs_d2.modeling.roi_heads.roi_heads import choose_positives
from rs_d2.utils.errors import UserError

SHAPE = {"p3": ShapeSpec(channels=4, stride=8)}


@pytest.fixture
def rpn(mask_cfg):
    mask_cfg.MODEL.RPN.IN_FEATURES = ["p3"]
    mask_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16]]
    return build_proposal_generator(mask_cfg, SHAPE)


@pytest.fixture
def predictor(mask_cfg):
    return RSFastRCNNOutputLayers(mask_cfg, ShapeSpec(channels=4))


def objects(size, boxes, classes=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = (
        torch.zeros(len(boxes), dtype=torch.long) if classes is None else torch.tensor(classes)
    )
    return Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes)


def image(size, boxes, classes=None):
    """One training example of the whole model."""
    instances = objects(size, boxes, classes)
    masks = torch.zeros(len(instances), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, instances.gt_boxes.tensor.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    instances.gt_masks = BitMasks(masks)
    return {"image": torch.rand(3, *size) * 255, "instances": instances}


def test_every_anchor_that_is_not_ignored_takes_part(rpn):
    anchors = rpn.anchor_generator([torch.zeros(1, 4, 40, 40)])
    labels, _ = rpn.label_and_sample_anchors(anchors, [objects((320, 320), [[100, 100, 118, 118]])])
    iou_unsure = (labels[0] < 0).sum()
    assert 0 < iou_unsure < 50
    assert (labels[0] >= 0).sum() == 40 * 40 * 3 - iou_unsure


def test_anchors_in_batch_padding_are_ignored(rpn):
    """A 40 x 72 image occupies 64 x 96 pixels of a 160 x 160 batch: 8 x 12 cells of stride 8."""
    anchors = rpn.anchor_generator([torch.zeros(1, 4, 20, 20)])
    labels, _ = rpn.label_and_sample_anchors(anchors, [objects((40, 72), [])])
    cells = labels[0].reshape(20, 20, 3)
    assert (cells[:8, :12] == 0).all()
    assert (cells[8:] == -1).all()
    assert (cells[:, 12:] == -1).all()


def test_anchors_across_the_border_are_left_out_before_matching(rpn):
    """Objects at the border claim the best anchors inside, which a later mask would take away."""
    rpn.anchor_boundary_thresh = 0
    anchors = rpn.anchor_generator([torch.zeros(1, 4, 20, 20)])
    (boxes,) = anchors
    inside = boxes.inside_box((40, 72))
    claims_lost_by_a_later_mask = 0
    for _ in range(20):
        corners = torch.rand(4, 2) * torch.tensor([56.0, 24.0])
        objs = objects(
            (40, 72), torch.cat([corners, corners + 8 + 8 * torch.rand(4, 2)], 1).tolist()
        )
        (labels,), (gt_boxes,) = rpn.label_and_sample_anchors(anchors, [objs])
        index, expected = rpn.anchor_matcher(pairwise_iou(objs.gt_boxes, boxes[inside]))
        assert torch.equal(labels[inside], expected)
        assert (labels[~inside] == -1).all()
        assert torch.equal(gt_boxes[inside], objs.gt_boxes.tensor[index])
        _, of_all = rpn.anchor_matcher(pairwise_iou(objs.gt_boxes, boxes))
        claims_lost_by_a_later_mask += int((of_all[inside] != expected).sum())
    assert claims_lost_by_a_later_mask > 0


def test_an_object_that_no_anchor_touches_claims_none(rpn):
    anchors = rpn.anchor_generator([torch.zeros(1, 4, 20, 20)])
    far = objects((160, 160), [[900, 900, 910, 910]])
    labels, _ = rpn.label_and_sample_anchors(anchors, [far])
    assert (labels[0] == 0).all()


def test_a_positive_whose_box_misses_stays_a_positive_with_a_box_loss(predictor):
    proposals = objects((100, 100), [[10, 10, 30, 30]], [1])
    proposals.proposal_boxes = Boxes(torch.tensor([[60.0, 60, 90, 90]]))
    logits = torch.zeros(1, 3, requires_grad=True)
    deltas = torch.zeros(1, 12, requires_grad=True)
    losses = predictor.losses((logits, deltas), [proposals])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_box_reg"] > 0
    assert deltas.grad.abs().sum() > 0
    assert logits.grad[0, 1] < 0  # still pushed up


def test_a_nan_box_makes_the_losses_nan_instead_of_vanishing(predictor):
    proposals = objects((100, 100), [[10, 10, 30, 30]], [1])
    proposals.proposal_boxes = Boxes(torch.tensor([[10.0, 10, 30, 30]]))
    losses = predictor.losses((torch.zeros(1, 3), torch.full((1, 12), torch.nan)), [proposals])
    assert all(loss.isnan() for loss in losses.values())


def test_perfect_boxes_give_a_finite_gradient(predictor):
    proposals = objects((100, 100), [[10, 10, 30, 30]], [1])
    proposals.proposal_boxes = proposals.gt_boxes
    logits = torch.zeros(1, 3, requires_grad=True)
    deltas = torch.zeros(1, 12, requires_grad=True)
    losses = predictor.losses((logits, deltas), [proposals])
    sum(losses.values()).backward()
    assert losses["loss_box_reg"].abs() < 1e-6
    assert deltas.grad.isfinite().all()


def test_the_predictor_has_one_zero_biased_column_per_class(predictor):
    assert predictor.cls_score.weight.shape[0] == 3
    assert (predictor.cls_score.bias == 0).all()


def test_scores_are_sigmoids_of_the_logits(predictor):
    logits = torch.tensor([[2.0, -1.0, 0.0]])
    proposals = [Instances((50, 50), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 9, 9]])))]
    (scores,) = predictor.predict_probs((logits, torch.zeros(1, 12)), proposals)
    torch.testing.assert_close(scores[:, :3], logits.sigmoid())
    assert (scores[:, 3] == 0).all()


@pytest.mark.parametrize(
    "scenes",
    [
        [[[10, 10, 60, 60], [30, 30, 90, 80]], []],
        [[], []],
        [[[20, 20, 80, 80]] * 3],
    ],
    ids=["one image empty", "no objects", "duplicates"],
)
def test_a_training_step_reaches_every_parameter(mask_cfg, scenes):
    model = build_model(mask_cfg).train()
    losses = model([image((96, 128), boxes) for boxes in scenes])
    assert set(losses) == {
        "loss_rpn_rank",
        "loss_rpn_sort",
        "loss_rpn_loc",
        "loss_rank",
        "loss_sort",
        "loss_box_reg",
        "loss_mask",
    }
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    if not any(scenes):
        assert all(loss == 0 for loss in losses.values())


def test_every_proposal_and_every_object_enters_the_box_head(mask_cfg, event_storage):
    mask_cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 50
    model = build_model(mask_cfg).train()
    model([image((96, 128), [[10, 10, 60, 60], [30, 30, 90, 80]])])
    latest = {name: value for name, (value, _) in event_storage.latest().items()}
    assert latest["roi_head/num_fg_samples"] + latest["roi_head/num_bg_samples"] == 50 + 2
    assert latest["roi_head/num_fg_samples"] >= 2


def test_mask_loss_has_the_value_of_the_box_heads_ranking(mask_cfg):
    losses = build_model(mask_cfg).train()([image((96, 128), [[10, 10, 60, 60]])])
    torch.testing.assert_close(losses["loss_mask"], losses["loss_rank"] + losses["loss_sort"])


@pytest.fixture
def roi_heads(mask_cfg):
    def build(min_iou):
        mask_cfg.MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU = min_iou
        shapes = {f"p{level}": ShapeSpec(channels=4, stride=2**level) for level in range(2, 6)}
        return build_roi_heads(mask_cfg, shapes)

    return build


@pytest.mark.parametrize(("min_iou", "owner_of_the_shared_proposal"), [(0.5, 1), (1.0, 0)])
def test_an_object_claims_its_best_proposal_from_another(
    roi_heads, min_iou, owner_of_the_shared_proposal
):
    """The proposal has IoU 0.89 with object 0 and 0.8 with object 1, whose best one it is."""
    targets = objects((99, 99), [[0, 0, 10, 18], [0, 0, 10, 25]], [0, 1])
    proposals = Instances((99, 99), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 10, 20]])))
    proposals.objectness_logits = torch.zeros(1)
    heads = roi_heads(min_iou)
    (labelled,) = heads.label_and_sample_proposals([proposals], [targets])
    assert labelled.gt_classes.tolist() == [owner_of_the_shared_proposal, 0, 1]
    assert torch.equal(labelled.gt_boxes.tensor[1:], targets.gt_boxes.tensor)
    assert torch.equal(labelled.proposal_boxes.tensor[1:], targets.gt_boxes.tensor)


def test_proposals_share_the_masks_of_their_image(roi_heads):
    targets = image((99, 99), [[0, 0, 10, 20], [30, 30, 60, 70]], [0, 1])["instances"]
    proposals = Instances((99, 99), proposal_boxes=Boxes(torch.rand(500, 4).cumsum(1) * 30))
    proposals.objectness_logits = torch.zeros(500)
    (labelled,) = roi_heads(1.0).label_and_sample_proposals([proposals], [targets])
    assert labelled.gt_masks._masks is targets.gt_masks
    own = labelled[torch.tensor([501, 500])]
    crops = own.gt_masks.crop_and_resize(own.proposal_boxes.tensor, 7)
    assert crops.shape == (2, 7, 7)
    assert crops.all()


def test_a_training_step_in_bfloat16_has_float32_losses(mask_cfg):
    model = build_model(mask_cfg).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([image((96, 128), [[10, 10, 60, 60]]), image((96, 128), [])])
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_mask_head_under_other_roi_heads_is_one_line(mask_cfg):
    mask_cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    model = build_model(mask_cfg).train()
    with pytest.raises(UserError, match="RSROIHeads"):
        model([image((96, 128), [[10, 10, 60, 60]])])


def box_output(proposals):
    """What the box head hands on: its positives, each with its id as the weight."""
    classes = torch.cat([p.gt_classes for p in proposals])
    positives = find_positives(classes, 3)
    candidates = Candidates(torch.zeros(len(classes), 3), classes, positives)
    ids = torch.cat([p.mask_id for p in proposals])
    zero = torch.zeros(())
    return LossOutput({}, ids[positives].float(), zero, zero, candidates, len(positives) > 0)


def regions(start, count):
    classes = torch.tensor([0, 3] * count)  # every other one is background
    return Instances((9, 9), gt_classes=classes, mask_id=torch.arange(start, start + 2 * count))


def test_the_mask_heads_cap_keeps_weights_and_masks_of_the_same_positives():
    proposals = [regions(0, 150), regions(300, 150)]
    kept = choose_positives(proposals, box_output(proposals), maximum=200)
    assert sum(len(k) for k in kept) == 200
    assert all(50 < len(k) < 150 for k in kept)
    for part, low in zip(kept, (0, 300), strict=True):
        assert torch.equal(part.loss_weight.long(), part.mask_id)
        assert (part.gt_classes == 0).all()
        assert ((part.mask_id >= low) & (part.mask_id < low + 300)).all()
        assert (part.mask_id.diff() > 0).all()


def test_a_smaller_batch_keeps_all_its_positives_in_order():
    proposals = [
        regions(0, 2),
        Instances((9, 9), gt_classes=torch.zeros(0).long(), mask_id=torch.zeros(0).long()),
        regions(10, 1),
    ]
    kept = choose_positives(proposals, box_output(proposals), maximum=3)
    assert [k.mask_id.tolist() for k in kept] == [[0, 2], [], [10]]
    assert [k.loss_weight.tolist() for k in kept] == [[0.0, 2.0], [], [10.0]]


def test_a_model_without_detections_returns_empty_instances(mask_cfg):
    mask_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    model = build_model(mask_cfg).eval()
    with torch.no_grad():
        (output,) = model([{"image": torch.rand(3, 64, 64) * 255, "height": 64, "width": 64}])
    assert len(output["instances"]) == 0
    assert output["instances"].pred_masks.shape[1:] == (64, 64)


def test_gradient_balance_of_a_mask_head_that_is_not_ours_is_one_line(mask_cfg):
    mask_cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    mask_cfg.MODEL.ROI_MASK_HEAD.CRITERION.BALANCE = "magnitude"
    line = (
        r"^MODEL\.ROI_MASK_HEAD\.CRITERION\.BALANCE: magnitude .* MODEL\.ROI_MASK_HEAD\.NAME Mask"
    )
    with pytest.raises(UserError, match=line):
        build_model(mask_cfg)
    mask_cfg.MODEL.MASK_ON = False
    build_model(mask_cfg)
