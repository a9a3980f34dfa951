"""The one record that every head hands to its criterion.

Shapes: ``N`` images of a batch, ``R`` candidates (anchors, regions, cells) of it, ``K`` classes,
``P`` positives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

# What belongs to all candidates, or to the images; the rest to the positives.
_NOT_OF_POSITIVES = frozenset(
    (
        *("logits", "gt_classes", "positives", "encode"),
        *("num_images", "images", "negatives", "semantic_logits", "gt_semantic"),
    )
)


@dataclass(frozen=True)
class Candidates:
    """What a head scored, what each candidate should be, and what it predicts for the positives.

    All that concerns positives is in the order of ``positives``. A head fills in what it has;
    labels, weights and losses read what they need.

    Attributes:
        logits: [R, K]; with a softmax [R, K + 1], the last column the background.
        gt_classes: [R], int64: the class in [0, K), K for the background, below 0 for ignored.
        positives: int64 [P], ascending rows of the candidates with a class in [0, K).
        pred_boxes: [P, 4], XYXY, pixels: the positives' decoded boxes.
        gt_boxes: [P, 4], XYXY, pixels: their ground truths.
        pred_deltas: [P, 4], the raw outputs that ``pred_boxes`` were decoded from.
        anchors: [P, 4], XYXY, pixels: the boxes that they were decoded against.
        encode: from anchors and boxes [P, 4] to the deltas [P, 4] that decode to the boxes.
        objects: int64 [P], index of each positive's object among all of the batch.
        mask_logits: [P, H, W].
        gt_masks: [P, H, W], values in {0, 1}.
        mask_areas: [P], pixels of each mask that count, where the others were cropped away.
        quality_logits: [P], of a branch that predicts how good a box is.
        gt_quality: [P], in [0, 1], detached: what that branch should say.
        images: int64 [R], the image in [0, N) that each candidate belongs to.
        negatives: bool [N, K], the classes that candidates of each image may be negatives of;
            without it, all of them. A positive's own class is never asked for.
        num_images: N, whose candidates stand one after another, as many of each.
        semantic_logits: [N, K, H, W], of a branch that predicts the classes of each image's pixels.
        gt_semantic: [N, K, H, W], values in {0, 1}.
    """

    logits: Tensor
    gt_classes: Tensor
    positives: Tensor
    pred_boxes: Tensor | None = None
    gt_boxes: Tensor | None = None
    pred_deltas: Tensor | None = None
    anchors: Tensor | None = None
    encode: Callable[[Tensor, Tensor], Tensor] | None = None
    objects: Tensor | None = None
    mask_logits: Tensor | None = None
    gt_masks: Tensor | None = None
    mask_areas: Tensor | None = None
    quality_logits: Tensor | None = None
    gt_quality: Tensor | None = None
    images: Tensor | None = None
    negatives: Tensor | None = None
    num_images: int = 1
    semantic_logits: Tensor | None = None
    gt_semantic: Tensor | None = None

    @property
    def positive_classes(self) -> Tensor:
        """Classes of the positives, int64 [P]."""
        return self.gt_classes[self.positives]

    @property
    def positive_logits(self) -> Tensor:
        """All logits of the positives, [P, K] (or [P, K + 1])."""
        return self.logits[self.positives]

    def targets(self, quality: Tensor | float = 1.0) -> Tensor:
        """Targets of a ranking loss, float32 [R, K].

        A positive's quality at its class, 0 elsewhere, -1 in the rows and pairs that are ignored.

        Args:
            quality: [P], or one number for all.
        """
        targets = torch.zeros_like(self.logits, dtype=torch.float32)
        targets.masked_fill_((self.gt_classes < 0)[:, None], -1.0)
        if (ignored := self.ignored_pairs()) is not None:
            targets.masked_fill_(ignored, -1.0)
        quality = torch.as_tensor(quality, dtype=targets.dtype, device=targets.device)
        targets[self.positives, self.positive_classes] = quality
        return targets

    def ignored_pairs(self, rows: Tensor | None = None) -> Tensor | None:
        """Pairs of candidate and class that :attr:`negatives` leaves out, bool [R, K].

        None without that field, which leaves out no pair.

        Args:
            rows: int64, the candidates that are asked for, in place of all R.
        """
        if self.negatives is None:
            return None
        ignored = (~self.negatives)[self.images]
        ignored[self.positives, self.positive_classes] = False
        return ignored if rows is None else ignored[rows]

    def keep(self, mask: Tensor, background: int) -> Candidates:
        """The record in which only the positives where the mask [P] is true remain positives.

        Args:
            mask: bool [P].
            background: the class that the others get, K.
        """
        index = mask.nonzero().squeeze(1)  # once: on a GPU the host waits for it
        gt_classes = self.gt_classes.index_fill(0, self.positives, background)
        positives = self.positives[index]
        gt_classes[positives] = self.gt_classes[positives]
        kept = {
            field.name: value[index]
            for field in fields(self)
            if field.name not in _NOT_OF_POSITIVES
            and (value := getattr(self, field.name)) is not None
        }
        return replace(self, gt_classes=gt_classes, positives=positives, **kept)


def find_positives(gt_classes: Tensor, num_classes: int) -> Tensor:
    """Rows with a class in [0, K), ascending, int64 [P]; on a GPU the host waits for their number.

    Args:
        gt_classes: [R]; K is the background, below 0 is ignored.
        num_classes: K.
    """
    return ((gt_classes >= 0) & (gt_classes < num_classes)).nonzero().squeeze(1)


def only_positives(gt_classes: Tensor, mask_logits: Tensor, gt_masks: Tensor) -> Candidates:
    """The record of a head that sees positives alone and scores none, such as a mask head.

    Args:
        gt_classes: int64 [P].
        mask_logits: [P, H, W].
        gt_masks: [P, H, W].
    """
    rows = torch.arange(len(gt_classes), device=gt_classes.device)
    logits = mask_logits.new_zeros(len(gt_classes), 0)
    return Candidates(logits, gt_classes, rows, mask_logits=mask_logits, gt_masks=gt_masks)
