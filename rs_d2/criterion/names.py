"""The names that losses are logged by, in one place."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Detectron2's words for the box term, by head; every other term keeps its own.
_BOX = {"": "box_reg", "rpn": "loc"}


def name_losses(losses: Mapping[str, Tensor], head: str = "") -> dict[str, Tensor]:
    """A criterion's losses under the names that Detectron2 logs and weights them by.

    ``rank`` becomes ``loss_rank``, in an RPN ``loss_rpn_rank``; ``box`` becomes ``loss_box_reg``
    and ``loss_rpn_loc``.

    Args:
        losses: by term.
        head: "rpn", or "" for the last head of a model.
    """
    prefix = f"loss_{head}_" if head else "loss_"
    words = {"box": _BOX[head]}
    return {prefix + words.get(term, term): loss for term, loss in losses.items()}


def name_stage(losses: Mapping[str, Tensor], stage: int) -> dict[str, Tensor]:
    """Named losses of a cascade's stage, counted from 0: ``loss_rank_stage0``."""
    return {f"{name}_stage{stage}": loss for name, loss in losses.items()}
