"""From scores and boxes to detections, at a cost that does not depend on the score threshold.

Shapes: ``R`` regions of an image, ``K`` classes, ``n`` candidates or detections. Boxes are XYXY
corners in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from torch import Tensor

from rs_d2.ops.nms import BoxTable, StoredBoxes, batched_nms, class_wise_nms, clip, finite_rows

Search = Callable[[BoxTable, Tensor, float, float, int], tuple[Tensor, Tensor]]

_replace: ContextVar[Callable[[Search], Search]] = ContextVar("replace", default=lambda own: own)
_SURELY_FINITE = 1e30  # far below the largest float32, far above any box


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[Instances, Tensor]:
    """The best detections of an image after class-wise suppression; see ``rs_d2.ops.nms``.

    As Detectron2's function of this name, but for scores without a background column, for a
    defined order of equal scores, and for kept rows that count all rows of the input.

    Args:
        boxes: [R, 4] for class-agnostic boxes, else [R, 4K], class-major. Regions with a box or
            score that is not finite are left out.
        scores: [R, K], compared in float32.
        image_shape: height and width; boxes are clipped to it.
        score_thresh: candidates score higher.
        nms_thresh: IoU in [0, 1] above which the lower of two boxes of a class is dropped.
        topk_per_image: most detections; below 0 all of them.

    Returns:
        Instances with ``pred_boxes``, ``scores`` (float32) and ``pred_classes``, best first, and
        the row in [0, R) of each; both empty where nothing passes.

    Raises:
        ValueError: The shapes do not belong together.
    """
    _check_shapes(boxes, scores)
    table = StoredBoxes(boxes, image_shape)
    return detect(table, scores, image_shape, score_thresh, nms_thresh, topk_per_image)


def fast_rcnn_inference(
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    image_shapes: Sequence[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """``fast_rcnn_inference_single_image`` of each image of a batch."""
    found = [
        fast_rcnn_inference_single_image(*image, score_thresh, nms_thresh, topk_per_image)
        for image in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in found], [rows for _, rows in found]


def detect(
    table: BoxTable,
    scores: Tensor,
    image_shape: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
    search: Search = class_wise_nms,
) -> tuple[Instances, Tensor]:
    """``fast_rcnn_inference_single_image`` with boxes that are made when they are looked at.

    ``search`` takes and returns what ``rs_d2.ops.nms.class_wise_nms`` does.
    """
    search = _replace.get()(search)
    rows, classes = search(table, scores, score_thresh, nms_thresh, topk_per_image)
    instances = Instances(image_shape)
    instances.pred_boxes = Boxes(table.at(rows, classes))
    instances.scores = scores[rows, classes].float()
    instances.pred_classes = classes
    return instances, rows


@contextmanager
def searching_with(replace: Callable[[Search], Search]) -> Iterator[None]:
    """Let :func:`detect` use another search inside the ``with`` block.

    Args:
        replace: from a detector's own search to the one in its place.
    """
    token = _replace.set(replace)
    try:
        yield
    finally:
        _replace.reset(token)


def select_detections(candidates: Instances, nms_thresh: float, topk_per_image: int) -> Instances:
    """The best of listed candidates after class-wise suppression, for dense heads and ensembles.

    Args:
        candidates: ``pred_boxes``, ``scores`` and ``pred_classes``, any further fields. Those with
            a box or score that is not finite are left out. Boxes are compared as they are.
        nms_thresh: IoU in [0, 1] above which the lower of two boxes of a class is dropped.
        topk_per_image: most detections; below 0 all of them.

    Returns:
        The kept candidates, best first; of equal scores the earlier one of the list.
    """
    finite = candidates.pred_boxes.tensor.isfinite().all(1) & candidates.scores.isfinite()
    if not finite.all():
        candidates = candidates[finite]
    boxes = candidates.pred_boxes.tensor
    kept = batched_nms(
        boxes, candidates.scores, candidates.pred_classes, nms_thresh, topk_per_image
    )
    return candidates[kept]


class DecodedBoxes:
    """Class-specific boxes of an image, decoded from deltas where a candidate is looked at.

    Args:
        transform: Detectron2's transform between deltas and boxes.
        deltas: [R, 4K], class-major.
        proposal_boxes: [R, 4].
        image_shape: height and width; decoded boxes are clipped to it.
    """

    def __init__(
        self,
        transform: Box2BoxTransform,
        deltas: Tensor,
        proposal_boxes: Tensor,
        image_shape: tuple[int, int],
    ) -> None:
        self._transform = transform
        self._deltas = deltas
        self._proposal_boxes = proposal_boxes
        self._image_shape = image_shape

    def at(self, rows: Tensor, classes: Tensor) -> Tensor:
        """Float32 boxes [n, 4] of the candidates with these rows [n] and classes [n]."""
        deltas = self._deltas.unflatten(1, (-1, 4))[rows, classes]
        boxes = self._transform.apply_deltas(deltas, self._proposal_boxes[rows])
        return clip(boxes, self._image_shape)

    def finite_rows(self) -> Tensor | None:
        """Mask [R] of the regions whose boxes are all finite; ``None`` where all surely are."""
        if self._deltas.device.type == "cpu" and self._are_moderate():
            return None
        return finite_rows(self._transform.apply_deltas(self._deltas, self._proposal_boxes))

    def _are_moderate(self) -> bool:
        # Moderate deltas cannot take moderate proposals to infinity, which spares decoding all.
        if self._deltas.numel() == 0:
            return True
        reach = [max(map(abs, _range(t))) for t in (self._deltas, self._proposal_boxes)]
        return (1 + reach[0]) * (1 + reach[1]) < _SURELY_FINITE


def _range(values: Tensor) -> tuple[float, float]:
    low, high = values.detach().aminmax()
    return float(low), float(high)


def _check_shapes(boxes: Tensor, scores: Tensor) -> None:
    fits = (
        scores.dim() == boxes.dim() == 2
        and len(scores) == len(boxes)
        and scores.shape[1] > 0
        and boxes.shape[1] in (4, 4 * scores.shape[1])
    )
    if not fits:
        raise ValueError(
            "scores [R, K] without a background column and boxes [R, 4] or [R, 4K] expected, not"
            f" scores {tuple(scores.shape)} and boxes {tuple(boxes.shape)}"
        )
