"""Which classes a candidate may be a negative of, where not every class was looked for everywhere.

In a federated data set such as LVIS each image has been searched for some of the classes only. Of
the others it may well hold objects that nobody has annotated. A choice of negatives is a module,
``(candidates) -> candidates``, that sets :attr:`Candidates.negatives`: pairs of a candidate and
another class are ignored by every ranking, and their logits get no gradient. Add one of your own
with ``@NEGATIVES.register("name")`` over a subclass of :class:`Negatives`.

Shapes: ``N`` images, ``R`` candidates, ``K`` classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from rs_d2.criterion.candidates import Candidates
from rs_d2.losses.kernel.processes import are_joined, gather_columns, num_joined
from rs_d2.utils.errors import UserError
from rs_d2.utils.registry import Registry

VERIFIED_FIELD = "gt_verified"  # of Detectron2's ``Instances``, a VerifiedClasses


@dataclass(frozen=True, eq=False)
class VerifiedClasses:
    """The classes whose objects in an image are all annotated, as a field of its instances.

    A field must have as many entries as there are instances, and all entries of this one are the
    same: indexing and concatenating change the number alone. So it also rides with the instances of
    an image that has none.

    Attributes:
        classes: int64 [M], each once: the classes that the image has been searched for completely.
        entries: [n], of any content, n the number of instances.
    """

    classes: Tensor
    entries: Tensor

    @classmethod
    def of(cls, classes: Tensor, num_instances: int) -> VerifiedClasses:
        """The field of so many instances."""
        return cls(classes, classes.new_zeros(num_instances))

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, item: Any) -> VerifiedClasses:
        return VerifiedClasses(self.classes, self.entries[item])

    def to(self, *args: Any, **kwargs: Any) -> VerifiedClasses:
        """On another device."""
        return VerifiedClasses(self.classes.to(*args, **kwargs), self.entries.to(*args, **kwargs))

    @staticmethod
    def cat(parts: Sequence[VerifiedClasses]) -> VerifiedClasses:
        """The field of the instances of one image, put together."""
        return VerifiedClasses(parts[0].classes, torch.cat([part.entries for part in parts]))


def verified_negatives(
    verified: Sequence[VerifiedClasses | None], counts: Sequence[int], num_classes: int
) -> dict[str, Tensor]:
    """``images`` and ``negatives`` of a :class:`Candidates`, by name; empty if not all are known.

    Args:
        verified: [N], of each image.
        counts: [N], its number of candidates; those of an image lie next to each other.
        num_classes: K.
    """
    if any(each is None for each in verified):
        return {}
    device = verified[0].classes.device
    negatives = torch.zeros(len(verified), num_classes, dtype=torch.bool, device=device)
    for row, each in zip(negatives, verified, strict=True):
        row.index_fill_(0, each.classes, True)
    repeats = torch.tensor(counts, device=device)
    images = torch.arange(len(counts), device=device)
    return {
        "images": images.repeat_interleave(repeats, output_size=sum(counts)),
        "negatives": negatives,
    }


class Negatives(nn.Module):
    """What all choices are constructed with, and what each says about itself.

    Args:
        num_classes: K.
        num_drawn: classes that a choice which draws some keeps.
    """

    # Does it ask for Candidates.negatives, which comes from lists in the data set?
    needs_verified: ClassVar[bool] = False

    def __init__(self, *, num_classes: int, num_drawn: int = 50) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_drawn = num_drawn

    def forward(self, candidates: Candidates) -> Candidates:
        """The record with the field ``negatives`` that the rankings are to read.

        Args:
            candidates: as the head made it; its own ``negatives`` are the verified ones.
        """
        raise NotImplementedError


NEGATIVES: Registry[type[Negatives]] = Registry("choice of negatives")


@NEGATIVES.register("all")
class AllNegatives(Negatives):
    """A candidate is a negative of every class but its own, as published."""

    def forward(self, candidates: Candidates) -> Candidates:
        """The record without ``negatives``."""
        return candidates if candidates.negatives is None else replace(candidates, negatives=None)


@NEGATIVES.register("verified")
class VerifiedNegatives(Negatives):
    """Negatives of those classes only whose objects in the image are all annotated."""

    needs_verified = True

    def forward(self, candidates: Candidates) -> Candidates:
        """The record unchanged.

        Raises:
            UserError: The head or the data does not say which classes are verified.
        """
        if candidates.negatives is None:
            raise UserError(
                "CRITERION.NEGATIVES: verified needs neg_category_ids of every image; there are"
                f" instances without {VERIFIED_FIELD}, which rs_d2.data.mapper.ImageMapper makes of"
                " them"
            )
        return candidates


@NEGATIVES.register("sampled")
class SampledNegatives(Negatives):
    """The federated loss: negatives of the batch's own classes and of some that are drawn.

    As many are drawn, without replacement and with probabilities in proportion to the square root
    of a class's number of training images, as make ``num_drawn`` with the batch's own; own ones are
    kept however many there are. It reads no lists. Zhou et al., Probabilistic two-stage detection
    (CenterNet2, 2021), which counts the background among the 50.
    """

    def __init__(self, *, num_classes: int, num_drawn: int = 50) -> None:
        super().__init__(num_classes=num_classes, num_drawn=num_drawn)
        # Follows from the data set, so that checkpoints need not hold it.
        self.register_buffer("weights", None, persistent=False)

    def set_image_counts(self, counts: Tensor, device: torch.device | None = None) -> None:
        """Tell the number of training images with each class, [K]; one without any is not drawn."""
        self.weights = counts.to(device, torch.float32).sqrt()

    def forward(self, candidates: Candidates) -> Candidates:
        """The record with the same ``negatives`` for all candidates of the batch.

        Raises:
            UserError: Nobody has called :func:`set_image_counts`.
        """
        if self.weights is None:
            raise UserError(
                "CRITERION.NEGATIVES: sampled draws classes by their number of training images;"
                " tell them by rs_d2.criterion.set_image_counts(model, counts)"
            )
        own = torch.zeros_like(self.weights).index_fill_(0, candidates.positive_classes, 1.0)
        waiting = torch.empty_like(self.weights).exponential_()
        if are_joined():  # as one batch: the classes of all, the draw of the first
            columns = gather_columns(
                torch.stack([own, waiting]), [self.num_classes] * num_joined()
            ).unflatten(1, (-1, self.num_classes))
            own, waiting = columns[0].amax(0), columns[1, 0]
        # The shortest of waiting times with rates w are a draw without replacement by weights w. It
        # takes as many random numbers in every step, and the host need not wait for a GPU.
        order = (self.weights / waiting).masked_fill(own > 0, torch.inf)
        first = order.topk(min(self.num_drawn, self.num_classes)).indices
        drawn = torch.zeros_like(order, dtype=torch.bool).index_fill_(0, first, True)
        negatives = (drawn & (self.weights > 0)) | (own > 0)
        images = torch.zeros_like(candidates.gt_classes)
        return replace(candidates, images=images, negatives=negatives[None])


def set_image_counts(model: nn.Module, counts: Tensor | Callable[[int], Tensor]) -> None:
    """Tell a model that draws classes the number of training images with each.

    Args:
        model: any; nothing happens where it draws none.
        counts: [K], or a function from K to them.
    """
    drawing = [each for each in model.modules() if isinstance(each, SampledNegatives)]
    if drawing and callable(counts):
        counts = counts(drawing[0].num_classes)
    for each in drawing:
        each.set_image_counts(counts, next(model.parameters()).device)
