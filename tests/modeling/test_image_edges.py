"""What lies at or beyond an image's right and bottom edge (docs/porting.md says why so)."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.modeling.roi_heads import build_roi_heads
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from torch.nn import functional as F

from rs_d2.utils.folders import config_dir

SHAPES = {"p3": ShapeSpec(channels=4, stride=8)}


@pytest.fixture
def cfg(mask_cfg):
    mask_cfg.MODEL.RPN.IN_FEATURES = mask_cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3"]
    mask_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16]]
    return mask_cfg


def objects(size, boxes):
    boxes = Boxes(torch.tensor(boxes))
    return Instances(size, gt_boxes=boxes, gt_classes=torch.zeros(len(boxes)).long())


def test_proposals_that_lie_in_the_batchs_padding_are_dropped(cfg):
    rpn = build_proposal_generator(cfg, SHAPES).train()
    sizes = [(64, 96), (64, 64)]
    images = ImageList(torch.zeros(2, 3, 64, 96), sizes)
    features = {"p3": torch.randn(2, 4, 8, 12)}
    (anchors,) = rpn.anchor_generator([features["p3"]])
    anchors.clip(sizes[1])
    assert not anchors.nonempty().all()
    gts = [objects(size, [[8.0, 8.0, 24.0, 24.0]]) for size in sizes]
    proposals, _ = rpn(images, features, gts)
    assert all(p.proposal_boxes.nonempty().all() for p in proposals)
    assert len(proposals[0]) > len(proposals[1]) > 0


def test_regions_that_a_stage_moves_out_of_the_image_are_dropped(cfg, monkeypatch):
    cfg.merge_from_file(str(config_dir() / "_base_/loss/rank_sort_cascade.yaml"))
    cfg.MODEL.MASK_ON = False
    heads = build_roi_heads(cfg, SHAPES).train()
    with torch.no_grad():  # ten widths to the right
        heads.box_predictor[0].bbox_pred.bias[0] = 100.0
    label, counts = heads.label_proposals, []

    def count(proposals, *args):
        counts.append(len(proposals[0]))
        return label(proposals, *args)

    monkeypatch.setattr(heads, "label_proposals", count)
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [30.0, 30.0, 60.0, 60.0]])
    proposals = Instances((64, 64), proposal_boxes=Boxes(boxes), objectness_logits=torch.zeros(2))
    images = ImageList(torch.zeros(1, 3, 64, 64), [(64, 64)])
    gts = [objects((64, 64), [[4.0, 4.0, 20.0, 20.0]])]
    _, losses = heads(images, {"p3": torch.randn(1, 4, 8, 8)}, [proposals], gts)
    # What is left to the later stages is the ground truth, which joins each anew.
    assert counts == [2, 0, 0]
    assert all(loss.isfinite() for loss in losses.values())


def test_mask_targets_at_the_right_and_bottom_edge_mirror_those_at_the_left_and_top(cfg):
    """A mirrored image has mirrored targets; not so where bitmaps are padded at two sides."""
    side, cells = 20, 28
    heads = build_roi_heads(cfg, SHAPES)
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[10:, -1] = True  # one column, half of which a coarser cell must fill
    box = torch.tensor([[13.0, 6.5, 20.0, 20.0]])

    def targets(mask, box):
        gt = objects(tuple(mask.shape), box.tolist())
        gt.gt_masks = BitMasks(mask[None])
        empty = Instances(
            tuple(mask.shape), proposal_boxes=Boxes(box[:0]), objectness_logits=torch.zeros(0)
        )
        (region,) = heads.label_and_sample_proposals([empty], [gt])
        return region.gt_masks.crop_and_resize(region.proposal_boxes.tensor, cells)[0]

    at_edge = targets(mask, box)
    mirrored = targets(mask.flip(0, 1), side - box[:, [2, 3, 0, 1]])
    assert at_edge.any()
    assert torch.equal(at_edge, mirrored.flip(0, 1))
    assert not torch.equal(targets(F.pad(mask, (0, 12, 0, 12)), box), at_edge)
