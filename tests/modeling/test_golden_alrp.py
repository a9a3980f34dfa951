"""RPN and box head with aLRP Loss against what the original heads gave, and AP Loss alone."""

import numpy as np
import pytest
import torch
from conftest import shared
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import build_proposal_generator
from detectron2.structures import Boxes, Instances

from rs_d2.losses import average_precision_loss
from rs_d2.modeling import RSFastRCNNOutputLayers

FILE = "golden/heads/alrp_ap.npz"
RPN = ["a", "one_image", "flat", "spread", "many", "period3"]
BOX = ["a", "agnostic", "one_class", "many", "period3"]


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(shared(FILE)))


def tensor(value):
    return torch.from_numpy(np.array(value))


def iterations(golden, case):
    """What a case recorded, iteration by iteration."""
    number = 0
    while any(key.startswith(f"{case}/it{number}/") for key in golden):
        prefix = f"{case}/it{number}/"
        yield {k.removeprefix(prefix): v for k, v in golden.items() if k.startswith(prefix)}
        number += 1


def close(actual, expected, scale=1e-5):
    """Within 1e-5 of the size of the whole."""
    actual, expected = actual.detach(), tensor(expected)
    assert float((actual - expected).norm()) <= scale * max(float(expected.norm()), 1e-3)


@pytest.mark.parametrize("name", RPN)
def test_the_rpn(golden, mask_cfg, name):
    case = f"rpn_alrp_{name}"
    mask_cfg.MODEL.RPN.CRITERION.LOSS = "alrp"
    mask_cfg.MODEL.RPN.CRITERION.BALANCE_PERIOD = int(golden[f"{case}/period"])
    mask_cfg.MODEL.RPN.IN_FEATURES = ["p3"]
    mask_cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16]]
    rpn = build_proposal_generator(mask_cfg, {"p3": ShapeSpec(channels=4, stride=8)}).train()
    levels = range(3)
    anchors = [tensor(golden[f"{case}/anchors/{i}"]) for i in levels]
    all_anchors = torch.cat(anchors)
    for step in iterations(golden, case):
        logits, deltas = (
            [tensor(step[f"{kind}/{i}"]).requires_grad_() for i in levels]
            for kind in ("logits", "deltas")
        )
        flat_logits = [x.permute(0, 2, 3, 1).flatten(1) for x in logits]
        flat_deltas = [x.permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in deltas]
        labels = torch.cat([tensor(step[f"labels/{i}"]) for i in levels], dim=1)
        targets = torch.cat([tensor(step[f"target_deltas/{i}"]) for i in levels], dim=1)
        gt_boxes = [rpn.box2box_transform.apply_deltas(t, all_anchors) for t in targets]
        losses = rpn.losses(
            [Boxes(level) for level in anchors], flat_logits, [*labels], flat_deltas, gt_boxes
        )
        sum(losses.values()).backward()
        close(losses["loss_rpn_cls"], step["loss_rpn_cls"])
        close(losses["loss_rpn_loc"], step["loss_rpn_bbox"])
        close(rpn.criterion.tasks["box"].balancer.factor, step["balance_after"])
        for i in levels:
            close(logits[i].grad, step[f"grad_logits/{i}"])
            close(deltas[i].grad, step[f"grad_deltas/{i}"])


def box_head(golden, mask_cfg, case):
    mask_cfg.MODEL.ROI_BOX_HEAD.CRITERION.LOSS = "alrp"
    mask_cfg.MODEL.ROI_BOX_HEAD.CRITERION.BALANCE_PERIOD = int(golden[f"{case}/period"])
    mask_cfg.MODEL.ROI_HEADS.NUM_CLASSES = int(golden[f"{case}/num_classes"])
    return RSFastRCNNOutputLayers(mask_cfg, ShapeSpec(channels=4)).train()


def losses_of(head, step):
    logits, deltas = (tensor(step[kind]).requires_grad_() for kind in ("logits", "deltas"))
    regions = Instances(
        (200, 200),
        proposal_boxes=Boxes(tensor(step["rois"])),
        gt_classes=tensor(step["labels"]).long(),
        gt_boxes=Boxes(tensor(step["gt_of_roi"])),
    )
    losses = head.losses((logits, deltas), [regions])
    sum(losses.values()).backward()
    return losses, logits.grad, deltas.grad


@pytest.mark.parametrize("name", BOX)
def test_the_box_head(golden, mask_cfg, name):
    case = f"box_alrp_{name}"
    head = box_head(golden, mask_cfg, case)
    for step in iterations(golden, case):
        losses, logits_grad, deltas_grad = losses_of(head, step)
        close(losses["loss_cls"], step["loss_cls"])
        close(losses["loss_box_reg"], step["loss_bbox"])
        close(head.criterion.tasks["box"].balancer.factor, step["balance_after"])
        close(logits_grad, step["grad_logits"])
        close(deltas_grad, step["grad_deltas"])


def test_without_positives_nothing_is_learned_and_the_balance_stays(golden, mask_cfg):
    """The original logs the constant 1 for both terms; here they are zeros (docs/porting.md)."""
    case = "box_alrp_no_positives"
    head = box_head(golden, mask_cfg, case)
    (step,) = iterations(golden, case)
    losses, logits_grad, deltas_grad = losses_of(head, step)
    assert [float(loss) for loss in losses.values()] == [0, 0]
    close(logits_grad, step["grad_logits"])
    close(deltas_grad, step["grad_deltas"])
    balancer = head.criterion.tasks["box"].balancer
    assert balancer.factor == step["balance_after"]
    assert balancer.count == 0


def test_every_recorded_case_is_tested(golden):
    cases = {key.split("/")[0] for key in golden} - {"meta"}
    tested = {f"rpn_alrp_{name}" for name in RPN} | {f"box_alrp_{name}" for name in BOX}
    assert {c for c in cases if not c.startswith("ap_")} == tested | {"box_alrp_no_positives"}


def test_average_precision_loss(golden):
    for case in sorted({key.split("/")[0] for key in golden if key.startswith("ap_")}):
        logits = tensor(golden[f"{case}/logits"]).requires_grad_()
        loss = average_precision_loss(logits, tensor(golden[f"{case}/targets"]))
        loss.backward()
        close(loss, golden[f"{case}/loss_ap"])
        close(logits.grad, golden[f"{case}/grad_logits"])
