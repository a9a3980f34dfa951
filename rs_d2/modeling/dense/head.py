"""The head that dense detectors share.

Shapes: ``N`` images, ``K`` classes, ``a`` anchors per location, ``H`` and ``W`` of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn, ones

from rs_d2.modeling.build import bias_for_prior


class DenseHead(nn.Module):
    """Two towers of 3x3 convolutions on every level, one for classes, one for boxes.

    Weights are shared by the levels; each level scales its boxes' deltas by a learnt number. They
    start from N(0, 0.01), class biases at ``-log((1 - prior) / prior)``, other biases at 0.

    Args:
        in_channels: of every level, and of the towers.
        num_levels: levels that :meth:`forward` is given.
        num_convs: convolutions of each tower.
        num_anchors: anchors per location.
        num_classes: K; there is no background column.
        norm: after each convolution of the towers, a name Detectron2 knows; "" for none.
        prior_prob: score of every class at the start of the training.
        with_quality: predict one more logit per anchor, from the boxes' tower.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_levels: int,
        num_convs: int,
        num_anchors: int,
        num_classes: int,
        norm: str,
        prior_prob: float,
        with_quality: bool,
    ) -> None:
        super().__init__()
        self.cls_tower, self.bbox_tower = (
            nn.Sequential(*(conv(in_channels, in_channels, norm) for _ in range(num_convs)))
            for _ in range(2)
        )
        self.cls_score = nn.Conv2d(in_channels, num_anchors * num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, num_anchors * 4, 3, padding=1)
        self.quality = nn.Conv2d(in_channels, num_anchors, 3, padding=1) if with_quality else None
        self.scales = nn.ParameterList(nn.Parameter(ones(())) for _ in range(num_levels))
        start_small(self)
        bias_for_prior(self.cls_score, prior_prob)

    def forward(self, features: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Outputs of each level.

        Args:
            features: per level [N, C, H, W].

        Returns:
            Per level: ``logits`` of the classes [N, a K, H, W], ``deltas`` of the boxes
            [N, a 4, H, W] and, where there is the branch, ``quality`` logits [N, a, H, W].
        """
        outputs: dict[str, list[Tensor]] = {"logits": [], "deltas": []}
        if self.quality is not None:
            outputs["quality"] = []
        for feature, scale in zip(features, self.scales, strict=True):
            box_feature = self.bbox_tower(feature)
            outputs["logits"].append(self.cls_score(self.cls_tower(feature)))
            outputs["deltas"].append(self.bbox_pred(box_feature) * scale)
            if self.quality is not None:
                outputs["quality"].append(self.quality(box_feature))
        return outputs


def start_small(head: nn.Module) -> None:
    """Let all convolutions start from N(0, 0.01), biases at 0."""
    for layer in head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def conv(in_channels: int, out_channels: int, norm: str, size: int = 3) -> Conv2d:
    """A convolution that keeps height and width, with norm and ReLU."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=size,
        padding=size // 2,
        bias=not norm,
        norm=get_norm(norm, out_channels),
        activation=nn.ReLU(inplace=True),
    )
