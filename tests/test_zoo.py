"""Every config of the publication takes a whole training step and detects something, on a CPU."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from rs_d2 import add_rs_config
from rs_d2.config import lookup, num_classes_key, score_thresh_key

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LEAVES = sorted(CONFIGS.glob("[A-Z]*/*.yaml"))
SIZE = 96


def small(path):
    """The config with few proposals and cells; layers, depth and classes stay as they are."""
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.merge_from_list([score_thresh_key(cfg), 0.0, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0])
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    cfg.MODEL.SOLO.GRIDS = [10, 9, 6, 4, 3]  # a quarter: its towers do not see the size of images
    return cfg


def example(num_classes):
    boxes = torch.tensor([[8.0, 8, 50, 60], [30, 40, 90, 90]])
    masks = torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    masks[0, 8:60, 8:50] = masks[1, 40:90, 30:90] = True
    instances = Instances((SIZE, SIZE), gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
    instances.gt_classes = torch.tensor([0, num_classes - 1])
    image = torch.randint(256, (3, SIZE, SIZE), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": SIZE, "width": SIZE}


def tame(model):
    """Untrained residual branches would let activations grow without bound."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv3.weight"):
                parameter.mul_(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("path", LEAVES, ids=[str(p.relative_to(CONFIGS)) for p in LEAVES])
def test_a_training_step_reaches_every_parameter(path):
    cfg = small(path)
    model = build_model(cfg)
    tame(model)
    batch = [example(lookup(cfg, num_classes_key(cfg)))]
    with EventStorage():
        losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    lost = [n for n, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()]
    assert lost == []
    with torch.no_grad():
        (output,) = model.eval()(batch)
    found = output["instances"]
    assert 0 < len(found) <= 5
    assert found.has("pred_masks") == cfg.MODEL.MASK_ON
