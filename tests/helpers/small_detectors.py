"""Small detectors of every family that is exported, and pictures that they find something in."""

from typing import NamedTuple

import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image

from rs_d2.config.load import find_config, load_config
from rs_d2.export.runtime import ExportedDetections
from rs_d2.prediction.predictor import InputMaker

# Some levels of some pictures have more anchors than these, others fewer.
SMALL = """
    MODEL.DEVICE cpu
    MODEL.FPN.OUT_CHANNELS 64
    MODEL.RESNETS.STEM_OUT_CHANNELS 8
    MODEL.RETINANET.NUM_CONVS 1
    MODEL.RETINANET.SCORE_THRESH_TEST 0.1
    MODEL.RETINANET.TOPK_CANDIDATES_TEST 100
    MODEL.RPN.POST_NMS_TOPK_TEST 60
    MODEL.RPN.PRE_NMS_TOPK_TEST 500
    MODEL.ROI_BOX_HEAD.FC_DIM 32
    MODEL.ROI_MASK_HEAD.CONV_DIM 16
    MODEL.ROI_MASK_HEAD.NUM_CONV 1
    TEST.DETECTIONS_PER_IMAGE 30
    INPUT.MIN_SIZE_TEST 0
"""
R18 = "MODEL.RESNETS.DEPTH 18 MODEL.RESNETS.RES2_OUT_CHANNELS 64"
R50 = "MODEL.RESNETS.DEPTH 50 MODEL.RESNETS.RES2_OUT_CHANNELS 32"
MEAN = 116  # a picture of this grey is all zeros for the model, which then sees nothing in it


class Detector(NamedTuple):
    """A model in evaluation mode, and what it is run by."""

    cfg: object
    model: torch.nn.Module

    def __call__(self, pixels):
        """What :func:`rs_d2.export.load` returns, from Detectron2's own inference."""
        with torch.inference_mode():
            (output,) = self.model([self.inputs(pixels)])
        found = output["instances"]
        masks = found.pred_masks.numpy() if found.has("pred_masks") else None
        values = found.pred_boxes.tensor, found.scores, found.pred_classes
        return ExportedDetections(*(value.numpy() for value in values), masks)

    def inputs(self, pixels):
        return InputMaker(self.cfg)(pixels)

    def image(self, pixels):
        """The graph's input."""
        return self.inputs(pixels)["image"].float()


def small_detector(config, *opts):
    """A published config made small, with weights that find something in a picture and not in grey.

    Args:
        config: name of a packaged one.
        opts: more keys and values; they come last.
    """
    given = " ".join((SMALL, *opts)).split()
    cfg, _ = load_config(find_config(f"{config}.yaml"), [*given, "MODEL.WEIGHTS", ""])
    cfg.MODEL.PIXEL_MEAN = [float(MEAN)] * 3
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _spread(name, parameter)
    return Detector(cfg, model)


def _spread(name, parameter):
    """Weights drawn for training give all regions nearly the same score."""
    if name == "head.cls_score.weight":
        parameter.mul_(10)
    elif name in ("head.category.weight", "head.kernel.weight"):
        parameter.mul_(20)
    elif name.startswith("head.prediction.cls_score"):
        parameter.mul_(3) if name.endswith("weight") else parameter.sub_(3)
    elif name.startswith("head.prediction.bbox_pred"):
        parameter.mul_(0.3)
    elif name.endswith(("cls_score.weight", "objectness_logits.weight")):
        parameter.mul_(40)
    elif name.endswith("cls_score.bias") and not name.startswith("head"):
        parameter.sub_(3)
        parameter[-1:].add_(4 if len(parameter) % 10 == 1 else 0)  # of the background, if there
    elif name.endswith("conv2_offset.weight"):
        parameter.normal_(std=0.02)
    elif name.endswith(("bbox_pred.weight", "predictor.weight")):
        parameter.mul_(5)


def picture(height, width, seed=0):
    """Blobs, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def grey(height, width):
    """Nothing to see."""
    return np.full((height, width, 3), MEAN, dtype=np.uint8)
