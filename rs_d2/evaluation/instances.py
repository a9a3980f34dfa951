"""What a model returns for an image, as detections."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.structures import Instances

from rs_d2.coco.records import Detections, GroundTruth, indices_of, object_array
from rs_d2.coco.rle import encode_mask
from rs_d2.utils.errors import UserError


def detections_of_instances(
    instances: Instances,
    image_id: Any,
    ground_truth: GroundTruth,
    categories: np.ndarray,
    with_masks: bool = True,
    source: str = "model",
) -> Detections:
    """Detections of one image.

    Args:
        instances: on the CPU, at least one: `pred_boxes` (XYXY, pixels), `scores`, `pred_classes`
            and, where there are masks, `pred_masks` [N, H, W] of the image's size.
        image_id: id of the image in the ground truth.
        ground_truth: what the detections are to be compared with.
        categories: index in the ground truth of each of the model's classes.
        with_masks: encode the masks, where there are any.
        source: what the model was run on, for messages.

    Raises:
        UserError: An image or class that the data set does not have, or a number that is not
            finite.
    """
    image = int(indices_of([image_id], ground_truth.image_ids)[0])
    if image < 0:
        raise UserError(f"{source}: image {image_id} is not in the ground truth")
    classes = instances.pred_classes.numpy()
    if classes.min() < 0 or classes.max() >= len(categories):
        raise UserError(
            f"{source}: the model predicts class {classes.max()}, but the data set has "
            f"{len(categories)} classes"
        )
    boxes = instances.pred_boxes.tensor.numpy().copy()
    boxes[:, 2:] -= boxes[:, :2]  # in the model's precision, as Detectron2 does it
    scores = instances.scores.numpy().astype(float)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise UserError(
            f"{source}: image {image_id}: the model gives a score or box that is not finite"
        )
    rles = None
    if with_masks and instances.has("pred_masks"):
        rles = object_array([encode_mask(mask) for mask in instances.pred_masks.numpy()])
    images = np.full(len(scores), image)
    return Detections(images, categories[classes], scores, boxes.astype(float), rles)
