"""The N-sized half of the ranking losses: bucket sums of the negatives, and their gradient.

Two forms of the same thing. :class:`GridNegatives` is made for the CPU: chunks that stay in the
cache, a lookup grid instead of a search. :class:`SortedNegatives` is made for devices that favour
few large operations: one sort, one scan, ``searchsorted``, and nothing that the host must wait for.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rs_d2.losses.kernel.device_dispatch import takes_cpu_path
from rs_d2.losses.kernel.inputs import nonzero_on_cpu
from rs_d2.losses.kernel.ranking import BucketSums, Line, Windows, cumulate_from_top, scan_

_CHUNK = 1 << 16  # logits; the temporaries of a chunk stay in the second-level cache
_CELLS_PER_EDGE = 16
_MIN_CELLS, _MAX_CELLS = 1 << 10, 1 << 16
_FAR_OUT = 32  # times the range of the central edges
_MAX_STEPS = 8  # edges in one cell up to which stepping over them beats a binary search


class Negatives(Protocol):
    """The candidates whose target is 0."""

    def sums(self) -> BucketSums:
        """How many there are in each bucket, and the sum of their places."""

    def spread(self, line: Line) -> Tensor:
        """The line's value at every negative and 0 elsewhere, [N] in the logits' dtype."""


def find_negatives(logits: Tensor, targets: Tensor, windows: Windows) -> Negatives:
    """The form of :class:`Negatives` that suits the logits' device."""
    form = GridNegatives if takes_cpu_path(logits) else SortedNegatives
    return form(logits, targets, windows)


def round_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest numbers of ``dtype`` not below ``values``: x >= value exactly if x >= result."""
    rounded = values.to(dtype)
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return above.where(rounded.to(values.dtype) < values, rounded)


class Grid:
    """A uniform grid over the edges' range: most logits are in a cell that lies in one bucket.

    Edges and logits get their cells by the same arithmetic, which is monotone, so that a logit in
    a higher cell than an edge is not below it, whatever was rounded. Only the logits in a cell with
    an edge are compared with edges. Cell 0 is nobody's; it is for entries that do not take part.
    """

    def __init__(self, edges: Tensor, dtype: torch.dtype, num_logits: int) -> None:
        num = len(edges)
        self.edges = torch.cat([round_up(edges, dtype), edges.new_full((1,), torch.inf)]).to(dtype)
        self.floor, self.top = float(self.edges[0]), float(self.edges[num - 1])
        useful = max(min(_CELLS_PER_EDGE * num, num_logits, _MAX_CELLS), _MIN_CELLS)
        self.cells = 1 << (useful - 1).bit_length()
        self._start, span = _central_range(edges)
        self._scale = min((self.cells - 3) / span, 1e30) if span > 0 else 0.0
        edge_cells = self.locate(self.edges[:num])
        edges_in_cell = torch.bincount(edge_cells, minlength=self.cells)
        self.first_bucket = edges_in_cell.cumsum(0).sub_(edges_in_cell)
        self.has_edge = edges_in_cell > 0
        self.max_edges = int(edges_in_cell.max())

    def locate(self, logits: Tensor) -> Tensor:
        """The cell of each logit (inside the edges' range), int32."""
        cell = (logits - self._start).mul_(self._scale).add_(1)
        return cell.clamp_(1, self.cells - 1).to(torch.int32)

    def search(self, logits: Tensor, cells: Tensor) -> Tensor:
        """The exact bucket of logits in cells with an edge, int64."""
        if self.max_edges > _MAX_STEPS:
            return torch.bucketize(logits, self.edges, right=True)
        bucket = self.first_bucket.index_select(0, cells)
        for _ in range(self.max_edges):
            bucket += logits >= self.edges.index_select(0, bucket)
        return bucket


class _Chunk(NamedTuple):
    """A stretch of the input, or the negatives in it that lie above the lowest edge.

    ``place``: a slice (then others than these negatives have cell 0) or an index, int64 [C].
    ``logits``: [C], inside the edges' range; ``cells``: int32 [C]. ``mixed``: which of them are in
    a cell with an edge, and ``mixed_buckets``: the buckets of those.
    """

    place: slice | Tensor
    logits: Tensor
    cells: Tensor
    mixed: Tensor
    mixed_buckets: Tensor


class GridNegatives:
    """Negatives located by a lookup grid, a chunk at a time (see :class:`Negatives`)."""

    def __init__(self, logits: Tensor, targets: Tensor, windows: Windows) -> None:
        self._input = logits
        self._windows = windows
        floor = float(round_up(windows.edges[:1], logits.dtype))
        logits_np, targets_np = logits.numpy(), targets.numpy()
        used = (targets_np == 0) & (logits_np >= floor)
        count = int(np.count_nonzero(used))
        self._grid = Grid(windows.edges, logits.dtype, count)
        if 2 * count > len(logits):
            stretches = (slice(i, i + _CHUNK) for i in range(0, len(logits), _CHUNK))
            self._chunks = [self._locate(part, torch.from_numpy(used[part])) for part in stretches]
        else:
            stretches = nonzero_on_cpu(used).split(_CHUNK) if count else ()
            self._chunks = [self._locate(part) for part in stretches]

    def sums(self) -> BucketSums:
        """See :meth:`Negatives.sums`."""
        grid, edges = self._grid, self._windows.edges
        buckets = len(edges) + 1
        in_cell = edges.new_zeros(2, grid.cells)
        in_bucket = edges.new_zeros(2, buckets)
        for chunk in self._chunks:
            _add(in_cell, chunk.cells, chunk.logits)
            _add(in_bucket, chunk.mixed_buckets, chunk.logits.index_select(0, chunk.mixed))
        in_cell *= ~grid.has_edge
        for total, part in zip(in_bucket, in_cell, strict=True):
            total += torch.bincount(grid.first_bucket, weights=part, minlength=buckets)
        return cumulate_from_top(self._to_places(in_bucket))

    def spread(self, line: Line) -> Tensor:
        """See :meth:`Negatives.spread`."""
        gradient = torch.zeros_like(self._input)
        slope, intercept = (part.index_select(0, self._grid.first_bucket) for part in line)
        for chunk in self._chunks:
            logits = chunk.logits.double()
            value = intercept.index_select(0, chunk.cells)
            value.addcmul_(slope.index_select(0, chunk.cells), logits)
            bucket = chunk.mixed_buckets
            mixed = logits.index_select(0, chunk.mixed).mul_(line.slope.index_select(0, bucket))
            mixed += line.intercept.index_select(0, bucket)
            value.index_copy_(0, chunk.mixed, mixed)
            gradient[chunk.place] = value.clamp_(min=0).to(gradient.dtype)
        return gradient

    def _locate(self, place: slice | Tensor, used: Tensor | None = None) -> _Chunk:
        grid = self._grid
        logits = self._input[place].clamp(grid.floor, grid.top)
        if used is None:
            cells = grid.locate(logits)
        else:
            logits = logits.nan_to_num_()  # of ignored entries; all others are free of NaN
            cells = grid.locate(logits).mul_(used)
        mixed = nonzero_on_cpu(grid.has_edge.index_select(0, cells).numpy())
        buckets = grid.search(logits.index_select(0, mixed), cells.index_select(0, mixed))
        return _Chunk(place, logits, cells, mixed, buckets)

    def _to_places(self, in_bucket: Tensor) -> Tensor:
        """Sums of logits per bucket to sums of places; each stays between its bucket's ends."""
        windows = self._windows
        in_bucket[:, 0] = 0.0
        count, total = in_bucket[:, 1:]
        beyond = (total - count * windows.edges).clamp_(min=0).minimum(count * windows.widths)
        total.copy_(beyond.addcmul_(count, windows.places))
        return in_bucket


class SortedNegatives:
    """Negatives located by one sort; no operation depends on what they are (see the Protocol)."""

    def __init__(self, logits: Tensor, targets: Tensor, windows: Windows) -> None:
        self._windows = windows
        self._logits = logits.masked_fill(targets != 0, -torch.inf)
        self._edges = round_up(windows.edges, logits.dtype)

    def sums(self) -> BucketSums:
        """See :meth:`Negatives.sums`."""
        falling = self._logits.sort(descending=True).values
        above = torch.searchsorted(-falling, -self._edges, right=True)
        total = torch.nn.functional.pad(scan_(self._places(falling), -1), (1, 0))
        per_edge = torch.stack([above.to(total.dtype), total[above]])
        return BucketSums(*torch.nn.functional.pad(per_edge, (1, 1)))

    def spread(self, line: Line) -> Tensor:
        """See :meth:`Negatives.spread`."""
        bucket = torch.bucketize(self._logits, self._edges, right=True)
        edges = self._windows.edges
        logits = self._logits.double().clamp_(edges[0], edges[-1])
        value = torch.addcmul(line.intercept[bucket], line.slope[bucket], logits)
        return value.clamp_(min=0).to(self._logits.dtype)

    def _places(self, logits: Tensor) -> Tensor:
        """Places of logits, float64; 0 below the first edge."""
        windows = self._windows
        edge = torch.bucketize(logits, self._edges, right=True).sub_(1).clamp_(min=0)
        beyond = (logits.double() - windows.edges[edge]).clamp_(min=0)
        return beyond.minimum(windows.widths[edge]).add_(windows.places[edge])


def _central_range(edges: Tensor) -> tuple[float, float]:
    """Start and width of the range that a grid should resolve.

    All of it, unless a few edges lie so far out that the others would share a few cells.
    """
    num = len(edges)
    first, low, high, last = edges[[0, num // 32, num - 1 - num // 32, num - 1]].tolist()
    central = high - low
    if last - first <= _FAR_OUT * central or central == 0:
        return first, last - first
    return low - central, 3 * central


def _add(sums: Tensor, index: Tensor, logits: Tensor) -> None:
    """Add counts (row 0) and logits (row 1) to ``sums`` at ``index``; sequential, so repeatable."""
    sums[0] += torch.bincount(index, minlength=sums.shape[1])
    # Float weights would be summed in float.
    sums[1] += torch.bincount(index, weights=logits.double(), minlength=sums.shape[1])
