"""Losses of the logits: rankings of all candidates, and the baselines they are compared with.

A ranking is a module that gets the candidates and the qualities of their positives. Add one of your
own with ``@RANKINGS.register("name")`` over a subclass of :class:`Ranking`.

Shapes: ``R`` candidates, ``K`` classes, ``P`` positives.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from rs_d2.criterion.candidates import Candidates
from rs_d2.criterion.tasks import TaskLoss
from rs_d2.losses import alrp_loss, average_precision_loss, rank_sort_loss
from rs_d2.losses.classification import cross_entropy_loss, focal_loss, hardest_negatives
from rs_d2.losses.kernel.processes import total
from rs_d2.utils.registry import Registry


class Ranked(NamedTuple):
    """What a ranking returns.

    ``terms``: its losses by name, scalars attached to the graph. ``reference``: scalar, detached,
    what other tasks are balanced to. ``tasks``: losses of tasks that the ranking itself defines,
    not balanced yet; they take the place of the criterion's own. ``divisor``: what the tasks' sums
    over the positives are divided by; None for the sum of their weights.
    """

    terms: dict[str, Tensor]
    reference: Tensor
    tasks: dict[str, Tensor] = {}  # noqa: RUF012  never changed
    divisor: int | None = None


class Ranking(nn.Module):
    """What all rankings are constructed with, and what each says about itself.

    Args:
        num_classes: K.
        delta: half width of the ramp that smooths the step function, in logits; None: the one the
            loss was published with.
        box_loss: for a ranking that looks at the boxes' losses.
        positive_iou: least IoU of a positive with its object, below 1.
        focal_alpha: weight of a positive in the focal loss.
        focal_gamma: how much easy candidates lose influence in it.
    """

    default_delta: ClassVar[float] = 0.5
    # Does it sort positives by a label? Others get none.
    uses_quality: ClassVar[bool] = False
    # How its tasks are balanced where the config leaves that open.
    default_balance: ClassVar[str] = "value"
    # A baseline's tasks are weighted and balanced in its own way, whatever the config says.
    is_baseline: ClassVar[bool] = False
    baseline_weights: ClassVar[str] = "none"
    # Score that its class layer starts with; None: bias 0, because a ranking has no scale.
    prior_prob: ClassVar[float | None] = None

    def __init__(
        self,
        *,
        num_classes: int,
        delta: float | None = None,
        box_loss: TaskLoss | None = None,
        positive_iou: float = 0.5,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.delta = self.default_delta if delta is None else delta
        self.box_loss = box_loss
        self.positive_iou = positive_iou
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma

    @property
    def num_columns(self) -> int:
        """Columns of the logits: K, or K + 1 with one for the background."""
        return self.num_classes

    def forward(self, candidates: Candidates, quality: Tensor | None) -> Ranked:
        """The losses of one batch.

        Args:
            candidates: the record.
            quality: [P] in (0, 1], detached; None where :attr:`uses_quality` is false.

        Returns:
            Losses; all are zeros attached to the graph where P = 0.
        """
        raise NotImplementedError


RANKINGS: Registry[type[Ranking]] = Registry("loss")


@RANKINGS.register("rank_sort")
class RankSort(Ranking):
    """Rank & Sort Loss over all R x K class-wise logits of the batch in one list."""

    uses_quality = True

    def forward(self, candidates: Candidates, quality: Tensor) -> Ranked:
        """The terms ``rank`` and ``sort``; see :func:`rs_d2.losses.rank_sort_loss`."""
        # A diverged box has no quality: the losses become NaN, which training reports by name.
        nan_if_diverged = total(0 * quality.sum())
        targets = candidates.targets(quality.nan_to_num(1.0))
        losses = rank_sort_loss(candidates.logits.flatten(), targets.flatten(), self.delta)
        ranking, sorting = (loss + nan_if_diverged for loss in losses)
        return Ranked({"rank": ranking, "sort": sorting}, (ranking + sorting).detach())


@RANKINGS.register("ap")
class AveragePrecision(Ranking):
    """Interpolated AP Loss over all R x K class-wise logits of the batch in one list."""

    default_delta = 1.0

    def forward(self, candidates: Candidates, quality: None = None) -> Ranked:
        """The term ``cls``; see :func:`rs_d2.losses.average_precision_loss`."""
        targets = candidates.targets()
        loss = average_precision_loss(candidates.logits.flatten(), targets.flatten(), self.delta)
        return Ranked({"cls": loss}, loss.detach())


@RANKINGS.register("alrp")
class ALRP(Ranking):
    """aLRP Loss over all R x K class-wise logits of the batch in one list.

    It brings its own box term: the boxes' losses, weighted by how the positives are ranked. The
    localisation errors in the logits' gradient are ``e = L_box / (2 (1 - tau))`` with ``tau`` the
    least IoU of a positive, as published for GIoU; the box term itself is not divided.
    """

    default_delta = 1.0
    default_balance = "epoch"

    def forward(self, candidates: Candidates, quality: None = None) -> Ranked:
        """The term ``cls`` and the task ``box``; see :func:`rs_d2.losses.alrp_loss`."""
        targets = candidates.targets()
        scale = 2 * (1 - self.positive_iou)
        errors = self.box_loss(candidates) / scale
        loss = alrp_loss(candidates.logits.flatten(), targets.flatten(), errors, self.delta)
        return Ranked(
            {"cls": loss.classification},
            loss.classification.detach(),
            tasks={"box": loss.localization * scale},
        )


class CrossEntropy(Ranking):
    """Mean cross-entropy of the candidates that are not ignored, with the box loss beside it.

    The sum of the positives' box losses is divided by the same number as Detectron2 does it, so
    that every positive has the same influence however many there are.
    """

    default_balance = "constant"
    is_baseline = True

    def forward(self, candidates: Candidates, quality: None = None) -> Ranked:
        """The term ``cls``."""
        used = (candidates.gt_classes >= 0).nonzero().squeeze(1)
        count = max(len(used), 1)
        losses = cross_entropy_loss(
            candidates.logits[used],
            candidates.gt_classes[used],
            self.num_classes,
            candidates.ignored_pairs(used),
        )
        loss = losses.sum() / count
        return Ranked({"cls": loss}, loss.detach(), divisor=count)


@RANKINGS.register("cross_entropy")
class SoftmaxCrossEntropy(CrossEntropy):
    """With a softmax over the classes and the background.

    An RPN's logits, which have a single column, get a sigmoid.
    """

    @property
    def num_columns(self) -> int:
        """K + 1, the last for the background."""
        return self.num_classes + 1


@RANKINGS.register("ohem_cross_entropy")
class HardNegativeCrossEntropy(SoftmaxCrossEntropy):
    """With a softmax, over the positives and three negatives of each image for each positive.

    These are its negatives of largest loss (online hard example mining; Liu et al., SSD, ECCV
    2016). The sum is divided by the number of positives of the batch.
    """

    def forward(self, candidates: Candidates, quality: None = None) -> Ranked:
        """The term ``cls``."""
        gt_classes, num_images = candidates.gt_classes, candidates.num_images
        losses = cross_entropy_loss(
            candidates.logits,
            gt_classes.clamp(min=0),
            self.num_classes,
            candidates.ignored_pairs(),
        ).view(num_images, -1)
        negatives = (gt_classes == self.num_classes).view(num_images, -1)
        positives = (gt_classes >= 0).view(num_images, -1) & ~negatives
        hardest = hardest_negatives(losses, negatives, 3 * positives.sum(1))
        # Not times 0: rows that are ignored may be infinite.
        own = losses.masked_fill(~positives, 0).sum(1)
        loss = (hardest + own).sum() / max(len(candidates.positives), 1)
        return Ranked({"cls": loss}, loss.detach())


@RANKINGS.register("sigmoid_cross_entropy")
class SigmoidCrossEntropy(CrossEntropy):
    """With a sigmoid for every class, summed over the classes."""


@RANKINGS.register("focal")
class Focal(Ranking):
    """Sum of the candidates' focal losses, divided by P.

    The boxes are weighted by the qualities that a branch beside them is to predict, where there is
    one, else equally.
    """

    baseline_weights = "gt_quality"
    default_balance = "constant"
    is_baseline = True
    prior_prob = 0.01

    def forward(self, candidates: Candidates, quality: None = None) -> Ranked:
        """The term ``cls``; see :func:`rs_d2.losses.classification.focal_loss`."""
        used = (candidates.gt_classes >= 0).nonzero().squeeze(1)
        count = max(len(candidates.positives), 1)
        losses = focal_loss(
            candidates.logits[used],
            candidates.gt_classes[used],
            self.focal_alpha,
            self.focal_gamma,
            candidates.ignored_pairs(used),
        )
        loss = losses.sum() / count
        return Ranked({"cls": loss}, loss.detach())
