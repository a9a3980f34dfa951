"""With cross-entropy and random samplers our heads are Detectron2's: they add nothing else."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances

STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
SHAPES = {name: ShapeSpec(channels=16, stride=stride) for name, stride in STRIDES.items()}
SIZE = 128


@pytest.fixture
def baseline_cfg(mask_cfg):
    """Cross-entropy, random samplers, GIoU box loss, plain binary cross-entropy of the masks."""
    for node in (mask_cfg.MODEL.RPN, mask_cfg.MODEL.ROI_BOX_HEAD):
        node.CRITERION.LOSS = "cross_entropy"
        node.BBOX_REG_LOSS_TYPE = "giou"
    mask_cfg.MODEL.RPN.SAMPLER = mask_cfg.MODEL.ROI_HEADS.SAMPLER = "random"
    mask_cfg.MODEL.RPN.LOW_QUALITY_MIN_IOU = 1e-3
    mask_cfg.MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU = 1.0
    mask = mask_cfg.MODEL.ROI_MASK_HEAD.CRITERION
    mask.LOSS, mask.WEIGHTS, mask.BALANCE = "cross_entropy", "none", "constant"
    return mask_cfg


def stock(cfg):
    cfg = cfg.clone()
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    return cfg


def scene():
    """Features of two images, and objects on both."""
    features = {n: torch.randn(2, 16, SIZE // s, SIZE // s) for n, s in STRIDES.items()}
    boxes = torch.tensor([[10.0, 12, 60, 70], [40, 50, 120, 110], [64, 4, 100, 40]])
    targets = []
    for count in (3, 2):
        masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes[:count].int().tolist(), strict=True):
            mask[y1 : (y1 + y2) // 2, x1:x2] = True
        targets.append(
            Instances(
                (SIZE, SIZE),
                gt_boxes=Boxes(boxes[:count]),
                gt_classes=torch.arange(count),
                gt_masks=BitMasks(masks),
            )
        )
    images = ImageList(torch.zeros(2, 3, SIZE, SIZE), [(SIZE, SIZE)] * 2)
    return images, features, targets


def same_weights(build, cfg, ours_cfg):
    torch.manual_seed(1)
    theirs = build(stock(cfg), SHAPES)
    ours = build(ours_cfg, SHAPES)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.train(), theirs.train()


def test_rpn_losses_and_proposals_are_detectron2s(baseline_cfg):
    # A batch that the sampler fills, so that "per candidate" and "per sampled anchor" agree.
    baseline_cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 64
    ours, theirs = same_weights(build_proposal_generator, baseline_cfg, baseline_cfg)
    images, features, targets = scene()
    torch.manual_seed(7)
    expected_proposals, expected = theirs(images, features, targets)
    torch.manual_seed(7)
    proposals, losses = ours(images, features, targets)
    assert set(losses) == set(expected)
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name] / baseline_cfg.MODEL.RPN.LOSS_WEIGHT, loss / 0.2)
    for mine, his in zip(proposals, expected_proposals, strict=True):
        assert torch.equal(mine.proposal_boxes.tensor, his.proposal_boxes.tensor)


def test_box_and_mask_losses_are_detectron2s(baseline_cfg):
    ours, theirs = same_weights(build_roi_heads, baseline_cfg, baseline_cfg)
    images, features, targets = scene()

    def proposals():
        noise = torch.Generator().manual_seed(3)
        return [
            Instances(
                (SIZE, SIZE),
                proposal_boxes=Boxes(
                    t.gt_boxes.tensor.repeat(8, 1)
                    + 12 * torch.randn(8 * len(t), 4, generator=noise)
                ),
                objectness_logits=torch.zeros(8 * len(t)),
            )
            for t in targets
        ]

    torch.manual_seed(7)
    _, expected = theirs(images, features, proposals(), targets)
    torch.manual_seed(7)
    _, losses = ours(images, features, proposals(), targets)
    assert set(losses) == set(expected) == {"loss_cls", "loss_box_reg", "loss_mask"}
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss)


def test_detections_are_detectron2s(baseline_cfg):
    baseline_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    ours, theirs = same_weights(build_roi_heads, baseline_cfg, baseline_cfg)
    images, features, targets = scene()
    proposals = [Instances((SIZE, SIZE), proposal_boxes=t.gt_boxes) for t in targets]
    with torch.no_grad():
        expected, _ = theirs.eval()(images, features, proposals)
        actual, _ = ours.eval()(images, features, proposals)
    for mine, his in zip(actual, expected, strict=True):
        assert len(mine) > 0
        assert torch.equal(mine.scores, his.scores)
        assert torch.equal(mine.pred_boxes.tensor, his.pred_boxes.tensor)
        assert torch.equal(mine.pred_masks, his.pred_masks)
