"""Every ranking takes a training step with each pair of samplers that the publication compares."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances

from rs_d2.criterion import RANKINGS, Criterion

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
SHAPES = {name: ShapeSpec(channels=16, stride=stride) for name, stride in STRIDES.items()}
SIZE, ANCHORS, REGIONS = 96, 32, 16  # the samplers' numbers, for each image
PAIRS = [("random", "random"), ("none", "random"), ("none", "none")]  # of Tables S7 and S8
TERMS = {"rank_sort": ["rank", "sort"]}  # the others have one


def scene():
    """Features of two images, and objects on both."""
    rng = torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(2, 16, -(-SIZE // stride), -(-SIZE // stride), generator=rng)
        for name, stride in STRIDES.items()
    }
    boxes = torch.tensor([[10.0, 12, 50, 60], [40, 30, 92, 90], [64, 4, 90, 40]])
    targets = []
    for count in (3, 1):
        masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes[:count].int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        found = Instances((SIZE, SIZE), gt_boxes=Boxes(boxes[:count]), gt_masks=BitMasks(masks))
        found.gt_classes = torch.arange(count)
        targets.append(found)
    return ImageList(torch.zeros(2, 3, SIZE, SIZE), [(SIZE, SIZE)] * 2), features, targets


@pytest.mark.parametrize("heads", ["RSROIHeads", "RSCascadeROIHeads"])
@pytest.mark.parametrize("samplers", PAIRS, ids=["/".join(pair) for pair in PAIRS])
@pytest.mark.parametrize("ranking", sorted(RANKINGS))
def test_a_step_with_samplers_in_neither_one_or_both_stages(mask_cfg, ranking, samplers, heads):
    model = mask_cfg.MODEL
    model.RPN.SAMPLER, model.ROI_HEADS.SAMPLER = samplers
    model.RPN.BATCH_SIZE_PER_IMAGE, model.ROI_HEADS.BATCH_SIZE_PER_IMAGE = ANCHORS, REGIONS
    model.RPN.PRE_NMS_TOPK_TRAIN = model.RPN.POST_NMS_TOPK_TRAIN = 60
    model.RPN.CRITERION.LOSS = model.ROI_BOX_HEAD.CRITERION.LOSS = ranking
    model.ROI_HEADS.NAME = heads
    if heads == "RSCascadeROIHeads":
        model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
        model.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS = [[10.0, 10.0, 5.0, 5.0]] * 3
    torch.manual_seed(0)
    rpn = build_proposal_generator(mask_cfg, SHAPES)
    roi_heads = build_roi_heads(mask_cfg, SHAPES)
    both, seen = torch.nn.ModuleList([rpn, roi_heads]).train(), []
    for module in both.modules():
        if isinstance(module, Criterion):
            module.register_forward_hook(lambda _, inputs, output: seen.append(inputs[0]))
    images, features, targets = scene()
    proposals, losses = rpn(images, features, targets)
    losses.update(roi_heads(images, features, proposals, targets)[1])

    assert all(loss.isfinite() for loss in losses.values())
    for term in TERMS.get(ranking, ["cls"]):
        assert f"loss_rpn_{term}" in losses
        assert f"loss_{term}" in losses or f"loss_{term}_stage2" in losses
    anchors = len(seen[0].gt_classes)
    used = (seen[0].gt_classes >= 0).sum()
    assert used == 2 * ANCHORS if samplers[0] == "random" else anchors / 2 < used <= anchors
    regions = len(seen[1].gt_classes)
    assert regions == (2 * REGIONS if samplers[1] == "random" else sum(map(len, proposals)) + 4)
    assert all(len(candidates.positives) > 0 for candidates in seen[:2])

    sum(losses.values()).backward()
    missing = [name for name, value in both.named_parameters() if value.grad is None]
    assert missing == []
    torch.optim.SGD(both.parameters(), lr=0.01).step()
    assert all(value.isfinite().all() for value in both.parameters())
