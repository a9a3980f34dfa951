"""The cascade without samplers: labels, losses and scores of its stages."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances

from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import config_dir

SIZE = 64
SHAPES = {name: ShapeSpec(channels=16, stride=2 ** int(name[1])) for name in ("p2", "p3")}


@pytest.fixture
def cascade_cfg(mask_cfg):
    mask_cfg.merge_from_file(str(config_dir() / "_base_/loss/rank_sort_cascade.yaml"))
    mask_cfg.MODEL.ROI_HEADS.IN_FEATURES = list(SHAPES)
    mask_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    return mask_cfg


def features(images=1, requires_grad=False):
    return {
        name: torch.randn(
            images, 16, SIZE // s.stride, SIZE // s.stride, requires_grad=requires_grad
        )
        for name, s in SHAPES.items()
    }


def proposals(boxes):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(
        (SIZE, SIZE), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(len(boxes))
    )


def targets(boxes, classes):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return Instances(
        (SIZE, SIZE),
        gt_boxes=Boxes(boxes),
        gt_classes=torch.tensor(classes, dtype=torch.long),
        gt_masks=BitMasks(masks),
    )


def image_list(num=1):
    return ImageList(torch.zeros(num, 3, SIZE, SIZE), [(SIZE, SIZE)] * num)


PROPOSALS = [[8, 8, 30, 30], [10, 10, 34, 32], [40, 40, 60, 60], [0, 0, 12, 12]]
OBJECTS = [[9, 9, 31, 31], [38, 42, 60, 60]]


@pytest.mark.parametrize("mask_on", [True, False])
def test_every_stage_has_its_losses_and_reaches_every_parameter(cascade_cfg, mask_on):
    cascade_cfg.MODEL.MASK_ON = mask_on
    heads = build_roi_heads(cascade_cfg, SHAPES)
    batch = [proposals(PROPOSALS), proposals(PROPOSALS)]
    objects = [targets(OBJECTS, [0, 2]), targets([], [])]
    _, losses = heads(image_list(2), features(2), batch, objects)
    names = {f"loss_{n}_stage{k}" for n in ("rank", "sort", "box_reg") for k in range(3)}
    assert set(losses) == names | ({"loss_mask"} if mask_on else set())
    for stage in range(3):
        ranking = losses[f"loss_rank_stage{stage}"] + losses[f"loss_sort_stage{stage}"]
        torch.testing.assert_close(losses[f"loss_box_reg_stage{stage}"], ranking)
    if mask_on:
        first = losses["loss_rank_stage0"] + losses["loss_sort_stage0"]
        torch.testing.assert_close(losses["loss_mask"], first)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in heads.parameters())


def test_later_stages_match_more_strictly(cascade_cfg):
    heads = build_roi_heads(cascade_cfg, SHAPES)
    iou = torch.tensor([[0.55, 0.65, 0.75]])
    labels = [matcher(iou)[1].tolist() for matcher in heads.proposal_matchers]
    assert labels == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]


def test_the_ground_truth_joins_every_stage_once(cascade_cfg):
    heads = build_roi_heads(cascade_cfg, SHAPES)
    seen = []
    run_stage = heads._run_stage

    def spy(levels, stage_proposals, stage):
        seen.append(stage_proposals[0])
        return run_stage(levels, stage_proposals, stage)

    heads._run_stage = spy
    objects = targets(OBJECTS, [0, 2])
    heads(image_list(), features(), [proposals(PROPOSALS)], [objects])
    assert [len(p) for p in seen] == [len(PROPOSALS) + len(OBJECTS)] * 3
    for stage in seen:
        assert torch.equal(stage.proposal_boxes.tensor[-2:], objects.gt_boxes.tensor)
        assert stage.gt_classes[-2:].tolist() == [0, 2]


def test_the_features_gradient_is_not_divided_by_the_stages(cascade_cfg):
    cascade_cfg.MODEL.MASK_ON = False
    heads = build_roi_heads(cascade_cfg, SHAPES)
    levels = features(requires_grad=True)
    p = proposals(PROPOSALS)
    logits, _ = heads._run_stage(list(levels.values()), [p], 0)
    logits.sum().backward()
    pooled = heads.box_pooler(list(levels.values()), [p.proposal_boxes])
    expected = torch.autograd.grad(
        heads.box_predictor[0].cls_score(heads.box_head[0](pooled)).sum(), levels["p2"]
    )[0]
    torch.testing.assert_close(levels["p2"].grad, expected)


def test_scores_are_sigmoids_of_the_mean_logits(cascade_cfg):
    cascade_cfg.MODEL.MASK_ON = False
    heads = build_roi_heads(cascade_cfg, SHAPES).eval()
    stages = [(torch.full((4, 3), v), torch.zeros(4, 4)) for v in (-2.0, 0.5, 3.0)]
    heads._run_stage = lambda levels, p, stage: stages[stage]
    detections, _ = heads(image_list(), features(), [proposals(PROPOSALS)])
    expected = torch.tensor(0.5).sigmoid()
    assert len(detections[0]) > 0
    torch.testing.assert_close(detections[0].scores, expected.expand(len(detections[0])))


def test_with_cross_entropy_scores_are_mean_probabilities(cascade_cfg):
    cascade_cfg.MODEL.MASK_ON = False
    cascade_cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS = "cross_entropy"
    heads = build_roi_heads(cascade_cfg, SHAPES).eval()
    logits = torch.zeros(3, 4, 4)
    logits[0, :, 0] = 5.0
    stages = [(stage_logits, torch.zeros(4, 4)) for stage_logits in logits]
    heads._run_stage = lambda levels, p, stage: stages[stage]
    detections, _ = heads(image_list(), features(), [proposals(PROPOSALS)])
    expected = logits.softmax(-1).mean(0)[0, 0]
    torch.testing.assert_close(detections[0].scores.max(), expected)


def test_no_object_and_no_proposal_are_fine(cascade_cfg):
    heads = build_roi_heads(cascade_cfg, SHAPES)
    _, losses = heads(image_list(), features(), [proposals(PROPOSALS)], [targets([], [])])
    assert all(loss == 0 for name, loss in losses.items() if "rank" in name or "sort" in name)
    sum(losses.values()).backward()
    heads.eval()
    detections, _ = heads(image_list(), features(), [proposals([])])
    assert len(detections[0]) == 0


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "CLS_AGNOSTIC_BBOX_REG must be True"),
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", [0.5, 0.6], "got 2 and 3"),
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", [0.4, 0.6, 0.7], "starts with 0.4"),
    ],
)
def test_stages_that_do_not_fit_are_refused_by_name(cascade_cfg, key, value, message):
    cascade_cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=message):
        build_roi_heads(cascade_cfg, SHAPES)
