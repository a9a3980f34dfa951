"""What positives owe each other: sums over the positives of lower label, without a P x P table.

Shapes: ``P`` positives, ``W`` sets of weights, ``B`` positives in a block. All float64.

The positives, in the order of their labels, are cut into blocks of about the square root of P.
Those of lower label than positive i are some whole blocks and a part of one more. Over the part the
sum is taken term by term, P x B terms; over whole blocks a table of sums by (number of blocks,
place in the order of the scores) has it in four entries, as the step is linear between its ends.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rs_d2.losses.kernel.device_dispatch import takes_cpu_path
from rs_d2.losses.kernel.ranking import scan, scan_, smoothed_step

# Up to so many positives, term by term costs less than the table.
_NO_BLOCKS = {"cpu": 400, "device": 2048}
# A table of 2 MB stays in a CPU's cache; one of 128 MB keeps a GPU busy.
_TERMS_AT_ONCE = {"cpu": 1 << 18, "device": 1 << 24}


class SortingError(NamedTuple):
    """Current minus target sorting error per positive, and the gradient of its mean, both [P]."""

    error: Tensor
    gradient: Tensor


def sorting_error(
    scores: Tensor, labels: Tensor, weights: Tensor, sums: Tensor, delta: float, eps: float
) -> SortingError:
    """Sorting error of every positive and its gradient.

    With ``M_i, B_i`` the sums of ``H(s_j - s_i)`` and ``H(s_j - s_i)(1 - y_j)`` over the positives
    of lower label, ``A_i`` the second over all positives and ``R_i`` the first, the error is
    ``v_i M_i`` with ``v_i = (B_i / M_i - (A_i - B_i) / (R_i - M_i)) / R_i``: current minus target
    error, without the difference of two nearly equal means.

    Args:
        scores: logits [P].
        labels: localisation quality [P], in (0, 1].
        weights: 1 and ``1 - y_j``, [2, P].
        sums: ``R_i`` and ``A_i``, the sums of the weights times H over all positives, [2, P].
        delta: half width of the ramp, in logits.
        eps: a positive whose ``M_i`` is not above it has no sorting error.
    """
    missorted = sum_lower_labels(scores, labels, weights, delta)
    mass, rank = missorted[0], sums[0]
    wrong = missorted[1] / mass.clamp(min=max(eps, 1e-300))
    well_sorted = sums - missorted
    right = well_sorted[1] / well_sorted[0]
    per_unit = (wrong - right) / rank * (mass > eps)
    error = per_unit * mass
    # Seen from the other side: what a positive receives from those of higher label, from below.
    received = sum_lower_labels(-scores, -labels, per_unit[None], delta)[0]
    return SortingError(error, (received - error) / len(scores))


def sum_lower_labels(scores: Tensor, labels: Tensor, weights: Tensor, delta: float) -> Tensor:
    """``sum of w_j H(s_j - s_i)`` over the positives j with ``y_j < y_i``, for every i.

    Args:
        scores: [P], finite.
        labels: [P]; equal labels are not lower than each other.
        weights: [W, P], not negative.
        delta: half width of the ramp, in logits.

    Returns:
        [W, P].
    """
    path = "cpu" if takes_cpu_path(scores) else "device"
    order = labels.argsort(stable=True)
    num_lower = torch.searchsorted(labels[order], labels)
    block = _block_size(len(scores), _NO_BLOCKS[path])
    ordered = scores[order], weights[:, order]
    terms = _Terms(*ordered, block, delta)
    rows = max(1, _TERMS_AT_ONCE[path] // block)
    parts = zip(scores.split(rows), num_lower.split(rows), strict=True)
    sums = [terms.sum_part(*part) for part in parts]
    sums = torch.cat(sums, dim=1) if len(sums) > 1 else sums[0]
    if block < len(scores):
        table = _Table(*ordered, block, delta)
        sums += table.sum_whole_blocks(scores, num_lower // block)
    return sums


def _block_size(num: int, no_blocks: int) -> int:
    """P itself while a table does not pay, else a power of two near twice its square root."""
    return num if num <= no_blocks else 1 << round(num.bit_length() / 2 + 1)


class _Terms:
    """Sums term by term over a part of one block."""

    def __init__(self, scores: Tensor, weights: Tensor, block: int, delta: float) -> None:
        pad = -len(scores) % block
        if pad:
            scores, weights = (torch.nn.functional.pad(x, (0, pad)) for x in (scores, weights))
        self.delta, self.block = delta, block
        self.scores, self.weights = scores.view(-1, block), weights.view(len(weights), -1, block)
        self.place = torch.arange(block, dtype=scores.dtype, device=scores.device)

    def sum_part(self, scores: Tensor, num_lower: Tensor) -> Tensor:
        """``sum w_j H(s_j - s_i)`` over those of the last block that ``num_lower`` reaches into.

        Args:
            scores: [C] of the positives i.
            num_lower: int64 [C].

        Returns:
            [W, C].
        """
        others, weights, part = self.scores, self.weights, num_lower
        if len(others) > 1:
            which, part = num_lower // self.block, num_lower % self.block
            others, weights = others[which], weights[:, which]
        step = smoothed_step(others - scores[:, None], self.delta)
        # A mask of floats: 1 at places below part. Comparing and converting would cost more.
        step.mul_((part[:, None] - self.place).clamp_(0, 1))
        return (weights * step).sum(-1)


class _Table:
    """Sums over the first q blocks and the scores from the r-th up, for all q and r."""

    def __init__(self, scores: Tensor, weights: Tensor, block: int, delta: float) -> None:
        self.delta = delta
        self.sorted, order = scores.sort()
        # Gaps beyond the ramp are cut to its width: no ramp reaches both of their sides.
        self.places = scan(self.sorted.diff(prepend=self.sorted[:1]).clamp_(max=2 * delta))
        num_blocks = -(-len(scores) // block)
        weights = weights[:, order]
        entries = torch.stack([weights, weights * self.places])
        cells = entries.new_zeros(2, len(weights), num_blocks + 1, len(scores) + 1)
        column = torch.arange(len(scores), 0, -1, device=scores.device)  # the highest score first
        cells[:, :, order // block + 1, column] = entries
        self.sums = scan_(scan_(cells, -1), -2)

    def sum_whole_blocks(self, scores: Tensor, num_blocks: Tensor) -> Tensor:
        """``sum w_j H(s_j - s_i)`` over the first ``num_blocks[i]`` blocks, [W, P]."""
        above = self._from(scores + self.delta, num_blocks)
        if self.delta == 0:
            return above[0]
        from_low = self._from(scores - self.delta, num_blocks)
        inside, moment = from_low - above
        origin = self.places[torch.searchsorted(self.sorted, scores)] - self.delta
        ramp = (moment - inside * origin) / (2 * self.delta)
        return above[0] + ramp.clamp_(min=0).minimum(inside)

    def _from(self, scores: Tensor, num_blocks: Tensor) -> Tensor:
        """Weights and moments of the entries at ``scores`` and above, [2, W, P]."""
        num_above = len(self.sorted) - torch.searchsorted(self.sorted, scores)
        return self.sums[:, :, num_blocks, num_above]
