"""Batch normalisation that learns its affine map but not its statistics."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class FrozenStatBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with constant statistics and trainable weight and bias.

    ``y = (x - running_mean) / sqrt(running_var + eps) * weight + bias``, in training mode too:
    small batches of large images give poor statistics, but nothing keeps the affine map from
    learning. The state dict has the four entries of Detectron2's ``FrozenBatchNorm2d``, so that
    checkpoints go both ways; a batch counter in a checkpoint of live batch norm is dropped. As a
    subclass of ``BatchNorm2d`` it is a norm layer to optimizers (``SOLVER.WEIGHT_DECAY_NORM``) and
    to Detectron2's freezing of stages.

    Args:
        num_features: channels C of the input [N, C, H, W]; N, H and W may be 0.
        eps: added to the variance.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        self.num_batches_tracked = None  # nothing is tracked

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [N, C, H, W] with the stored statistics, whatever the mode of the module."""
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        # Without this version torch would add the counter that older checkpoints lack.
        super()._load_from_state_dict(
            state_dict, prefix, {**local_metadata, "version": self._version}, *args
        )


def freeze_batch_norm_statistics(module: nn.Module) -> nn.Module:
    """Replace every ``BatchNorm2d`` by a :class:`FrozenStatBatchNorm2d` of the same state.

    Layers that are frozen altogether (of other classes) stay as they are.

    Args:
        module: changed in place, unless it is such a layer itself.

    Returns:
        The module, or the layer that takes its place.
    """
    if isinstance(module, nn.BatchNorm2d):
        return _with_frozen_statistics(module)
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm_statistics(child))
    return module


def _with_frozen_statistics(norm: nn.BatchNorm2d) -> FrozenStatBatchNorm2d:
    frozen = FrozenStatBatchNorm2d(norm.num_features, eps=norm.eps)
    frozen.weight, frozen.bias = norm.weight, norm.bias
    frozen.running_mean, frozen.running_var = norm.running_mean, norm.running_var
    return frozen.train(norm.training)
