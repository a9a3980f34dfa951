"""ATSS: anchors are positive by a threshold that adapts to each object."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from rs_d2.criterion.candidates import Candidates
from rs_d2.modeling.dense.anchor_detector import AnchorDenseDetector
from rs_d2.ops.boxes import centerness
from rs_d2.targets.assign_atss import assign_atss


@META_ARCH_REGISTRY.register()
class ATSS(AnchorDenseDetector):
    """Zhang et al., Bridging the Gap Between Anchor-based and Anchor-free Detection (CVPR 2020).

    With focal loss the quality of a box is its anchor's centerness.
    """

    def assign(self, anchors: Sequence[Tensor], gt_boxes: Tensor) -> list[Tensor]:
        """See :func:`rs_d2.targets.assign_atss.assign_atss`."""
        return assign_atss(anchors, gt_boxes, self.assign_topk)

    def quality_targets(self, candidates: Candidates) -> Tensor:
        """Centerness of the positives' anchors in their objects' boxes, [P]."""
        return centerness(candidates.anchors, candidates.gt_boxes)
