"""A model of a config: the shapes of its tensors, and a run on one image to see that it works."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from rs_d2.checkpoint.last import not_finite
from rs_d2.criterion.balancing import Balancer
from rs_d2.utils.d2_compat import our_resizing
from rs_d2.utils.errors import UserError


def model_shapes(cfg: CfgNode) -> dict[str, torch.Size]:
    """Shapes of all weights of a config's model; no memory is taken for them.

    What balancers remember of a training is in the state dict, too, but is no weight.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "meta", ""
    with torch.device("meta"):
        model = build_model(cfg)
    balancers = tuple(
        f"{name}." for name, module in model.named_modules() if isinstance(module, Balancer)
    )
    return {
        name: value.shape
        for name, value in model.state_dict().items()
        if not name.startswith(balancers)
    }


def detect_on_cpu(cfg: CfgNode, state: Mapping[str, Tensor], image: np.ndarray) -> Instances:
    """Detections of a config's model with given weights, resized as the config says for the test.

    Args:
        cfg: its device and weights do not count.
        state: of the whole model.
        image: [H, W, 3] in the channel order of ``INPUT.FORMAT``, values in [0, 255].

    Returns:
        At most ``TEST.DETECTIONS_PER_IMAGE`` detections on the image's own scale, best first.

    Raises:
        UserError: A weight or a layer's output is not finite; names the first such.
    """
    for name in not_finite(state):
        raise UserError(f"{name} is not finite: the weights are broken")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    model = build_model(cfg).eval()
    model.load_state_dict(dict(state))
    _watch(model)
    height, width = image.shape[:2]
    size = cfg.INPUT.MIN_SIZE_TEST
    resize = our_resizing(
        transforms.ResizeShortestEdge([size, size], cfg.INPUT.MAX_SIZE_TEST), cfg.INPUT.SQUARE
    )
    resized = resize.get_transform(image).apply_image(image)
    tensor = torch.as_tensor(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    with torch.no_grad():
        (output,) = model([{"image": tensor, "height": height, "width": width}])
    found = output["instances"]
    return found[found.scores.argsort(descending=True, stable=True)]


def _watch(model: nn.Module) -> None:
    """Make the layers of a model look at what they put out.

    Detections that are not finite are dropped by the search for them, so that looking at the
    detections alone would tell of a broken model only that it finds nothing.
    """
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(_finite_or_error(name))


def _finite_or_error(name: str) -> Any:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not output.isfinite().all():
            raise UserError(f"the output of {name} is not finite on this image")

    return hook
