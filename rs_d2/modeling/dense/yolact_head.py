"""YOLACT's head: one shared convolution for classes, boxes and mask coefficients, and prototypes.

Shapes: ``N`` images, ``K`` classes, ``M`` prototypes, ``a`` anchors per location, ``H`` and ``W``
of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rs_d2.modeling.build import bias_for_prior


class YOLACTHead(nn.Module):
    """Predicts everything that YOLACT needs from the levels of the pyramid.

    Weights start from Xavier's uniform distribution, biases at 0.

    Args:
        in_channels: of every level, and of the hidden layers.
        num_anchors: anchors per location.
        num_columns: of the logits: K, or K + 1 with one for the background.
        num_prototypes: M; 0 for boxes alone.
        num_semantic_classes: K, to predict the classes of pixels in training; 0: not to.
        prior_prob: score of every class at the start of the training; None: biases stay at 0.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_anchors: int,
        num_columns: int,
        num_prototypes: int = 32,
        num_semantic_classes: int = 0,
        prior_prob: float | None = None,
    ) -> None:
        super().__init__()
        self.prediction = PredictionHead(in_channels, num_anchors, num_columns, num_prototypes)
        self.protonet = _protonet(in_channels, num_prototypes) if num_prototypes else None
        self.semantic = (
            nn.Conv2d(in_channels, num_semantic_classes, 1) if num_semantic_classes else None
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
        if prior_prob is not None:
            bias_for_prior(self.prediction.cls_score, prior_prob)

    def forward(self, features: Sequence[Tensor]) -> dict[str, list[Tensor]]:
        """Outputs of each level, and of the finest one for the whole image.

        Args:
            features: per level [N, C, H, W].

        Returns:
            Per level ``logits`` [N, a K, H, W] (K + 1 with a background), ``deltas``
            [N, a 4, H, W] and ``coefficients`` [N, a M, H, W] in [-1, 1]. One tensor each:
            ``prototypes`` [N, M, 2 H0, 2 W0], not negative, and in training, where there is the
            branch, ``semantic`` logits [N, K, H0, W0].
        """
        levels = [self.prediction(feature) for feature in features]
        outputs = {name: [level[name] for level in levels] for name in levels[0]}
        if self.protonet is not None:
            outputs["prototypes"] = [self.protonet(features[0])]
        if self.semantic is not None and self.training:
            outputs["semantic"] = [self.semantic(features[0])]
        return outputs


class PredictionHead(nn.Module):
    """What is predicted for every anchor; see :class:`YOLACTHead`."""

    def __init__(
        self, channels: int, num_anchors: int, num_columns: int, num_prototypes: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.cls_score = nn.Conv2d(channels, num_anchors * num_columns, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, 3, padding=1)
        self.coefficients = (
            nn.Conv2d(channels, num_anchors * num_prototypes, 3, padding=1)
            if num_prototypes
            else None
        )

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """Outputs of one level by name."""
        hidden = self.conv(feature).relu()
        outputs = {"logits": self.cls_score(hidden), "deltas": self.bbox_pred(hidden)}
        if self.coefficients is not None:
            outputs["coefficients"] = self.coefficients(hidden).tanh()
        return outputs


def _protonet(channels: int, num_prototypes: int) -> nn.Sequential:
    """Prototypes of twice the level's size; the numbers of the layers are the original's."""
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
    layers += [nn.Upsample(scale_factor=2, mode="bilinear"), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
    layers += [nn.Conv2d(channels, num_prototypes, 1), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
