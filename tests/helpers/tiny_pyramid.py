"""A backbone of a few thousand weights, ``MODEL.BACKBONE.NAME TinyPyramid`` once imported."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import nn
from torch.nn import functional as F


@BACKBONE_REGISTRY.register()
class TinyPyramid(Backbone):
    """P2 to P7, each a convolution of the shrunken image."""

    size_divisibility = 128

    def __init__(self, cfg, input_shape):
        super().__init__()
        self.levels = nn.ModuleDict({f"p{level}": nn.Conv2d(3, 16, 1) for level in range(2, 8)})

    def output_shape(self):
        return {name: ShapeSpec(channels=16, stride=2 ** int(name[1])) for name in self.levels}

    def forward(self, x):
        strides = {name: shape.stride for name, shape in self.output_shape().items()}
        return {name: conv(F.avg_pool2d(x, strides[name])) for name, conv in self.levels.items()}
