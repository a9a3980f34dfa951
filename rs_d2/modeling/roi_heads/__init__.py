"""Box and mask heads."""

from rs_d2.modeling.roi_heads.fast_rcnn import RSFastRCNNOutputLayers
from rs_d2.modeling.roi_heads.mask_head import RSMaskRCNNConvUpsampleHead
from rs_d2.modeling.roi_heads.roi_heads import RSROIHeads

__all__ = ["RSFastRCNNOutputLayers", "RSMaskRCNNConvUpsampleHead", "RSROIHeads"]
