"""Box and mask heads."""

from rs_d2.modeling.roi_heads.fast_rcnn import RSFastRCNNOutputLayers
from rs_d2.modeling.roi_heads.mask_head import RSMaskRCNNConvUpsampleHead
from rs_d2.modeling.roi_heads.roi_heads import RSROIHeads
from rs_d2.modeling.roi_heads.rs_cascade import RSCascadeROIHeads

__all__ = [
    "RSCascadeROIHeads",
    "RSFastRCNNOutputLayers",
    "RSMaskRCNNConvUpsampleHead",
    "RSROIHeads",
]
