"""The search behind :mod:`rs_d2.ops.nms` on the CPU, in NumPy: its arrays are small.

Shapes: ``R`` regions, ``C`` classes, ``n`` candidates. A candidate's *key* is an integer that sorts
as the canonical order does: best score first, then smallest r * C + c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torchvision.ops import nms

BoxesAt = Callable[[np.ndarray, np.ndarray], np.ndarray]  # rows [n], classes [n] -> XYXY [n, 4]
BoxesOf = Callable[[np.ndarray], np.ndarray]  # indices [n] -> XYXY [n, 4]

_LAST_KEY = np.uint64(2**64 - 1)
_FEW_CLASSES = 8  # so many are finished one by one in compiled code
_MANY_PER_CLASS = 64  # and these, where many of them will be returned
_SAMPLE_STEP = 17  # no divisor of usual class counts, so that all columns are sampled
_SMALLEST_SAMPLE = 4096
_FIRST_PREFIX, _GROWTH = 4, 8  # first prefix in units of topk, and how much larger the next is


def search(
    scores: np.ndarray, boxes_at: BoxesAt, score_thresh: float, nms_thresh: float, topk: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and classes of the first ``topk`` survivors of a score matrix; see ``class_wise_nms``.

    Args:
        scores: float32 [R, C] without NaN; -inf where a region takes no part. Any strides.
        boxes_at: gives the float32 boxes of candidates.
        score_thresh: candidates score higher.
        nms_thresh: IoU above which a box is dropped.
        topk: most survivors; below 0 all of them.

    Returns:
        Two int64 arrays in canonical order.
    """
    num_classes = scores.shape[1]
    kept = np.empty(0, np.uint64)
    for flat, is_last in _prefixes(scores, np.float32(score_thresh), topk):
        rows, classes = np.divmod(flat, num_classes)
        keys = canonical_keys(scores[rows, classes], flat)
        kept = greedy(keys, classes, _choice(boxes_at, rows, classes), nms_thresh, topk)
        if is_last or len(kept) >= topk:
            break
    return np.divmod(positions(kept), num_classes)


def canonical_keys(scores: np.ndarray, position: np.ndarray) -> np.ndarray:
    """uint64 keys in whose order float32 scores descend and, among equals, positions ascend."""
    bits = (scores + np.float32(0)).view(np.uint32)  # the sum turns -0.0 into the equal 0.0
    descending = np.where(bits >> 31, bits, bits ^ np.uint32(0x7FFFFFFF))
    return (descending.astype(np.uint64) << np.uint64(32)) | position.astype(np.uint64)


def positions(keys: np.ndarray) -> np.ndarray:
    """Invert the second half of :func:`canonical_keys`."""
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def greedy(
    keys: np.ndarray,
    classes: np.ndarray,
    boxes_of: BoxesOf,
    nms_thresh: float,
    topk: int,
) -> np.ndarray:
    """Class-wise greedy suppression, all classes a step at a time, until ``topk`` are certain.

    The best candidate left in a class survives. With the survivors so far these heads make a list
    of known survivors; what comes after its ``topk``-th entry cannot be returned and is forgotten.
    The j-th step thus touches at most topk / j classes.

    Args:
        keys: uint64 [n], distinct.
        classes: int [n].
        boxes_of: XYXY float32 boxes [m, 4] of the candidates with the given indices [m].
        nms_thresh: IoU above which a box is dropped.
        topk: most survivors; below 0 all of them.

    Returns:
        Keys of the survivors, ascending.
    """
    limit = float32_below(nms_thresh)
    index = _stable_argsort(classes)
    keys, classes = keys[index], classes[index]
    kept, boxes = np.empty(0, np.uint64), None
    while len(keys):
        starts = _segment_starts(classes)
        heads = np.minimum.reduceat(keys, starts)
        bound = _bound(np.concatenate([kept, heads]), topk)
        if bound < _LAST_KEY:
            kept = kept[kept <= bound]
            reachable = keys <= bound
            if not reachable.all():
                keys, classes, index = keys[reachable], classes[reachable], index[reachable]
                boxes = boxes if boxes is None else boxes[:, reachable]
                heads, starts = heads[heads <= bound], _segment_starts(classes)
        if len(heads) == len(keys):  # nobody left to suppress
            kept = np.concatenate([kept, keys])
            break
        if boxes is None:
            boxes = np.ascontiguousarray(boxes_of(index).T)
        if topk < 0 or _ends_sooner_one_by_one(len(keys), len(heads), topk):
            kept = np.concatenate([kept, *_one_by_one(keys, boxes, starts, nms_thresh)])
            break
        segment = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys)))
        is_head = keys == heads[segment]
        stays = ~_overlaps(boxes, boxes[:, is_head][:, segment], limit) & ~is_head
        kept = np.concatenate([kept, heads])
        keys, classes, index, boxes = keys[stays], classes[stays], index[stays], boxes[:, stays]
    kept.sort()
    return kept[:topk] if topk >= 0 else kept


def _ends_sooner_one_by_one(num_candidates: int, num_classes: int, topk: int) -> bool:
    """Whether compiled code for each class is faster than another step of all."""
    many_are_needed = 8 * topk >= num_candidates
    large_classes = num_candidates > _MANY_PER_CLASS * num_classes
    return num_classes <= _FEW_CLASSES or (many_are_needed and large_classes)


def _choice(boxes_at: BoxesAt, rows: np.ndarray, classes: np.ndarray) -> BoxesOf:
    return lambda index: boxes_at(rows[index], classes[index])


def _prefixes(
    scores: np.ndarray, score_thresh: np.float32, topk: int
) -> Iterator[tuple[np.ndarray, bool]]:
    """Growing prefixes of the canonical order, as sorted flat indices, and whether it is the last.

    A prefix may also hold later candidates: they cannot change what comes before them.
    """
    if topk < 0:
        yield np.flatnonzero(scores > score_thresh), True
        return
    best = scores.max(0)
    enough_classes = topk <= np.count_nonzero(best > score_thresh)
    mask = _up_to_best_heads(scores, best, topk) if enough_classes else scores > score_thresh
    every = np.flatnonzero(mask)
    for cut in _guessed_cuts(scores, every, topk):
        prefix = np.flatnonzero(scores >= cut)
        if len(prefix) < len(every) // 2:  # else it was a tie
            yield prefix, False
    yield every, True


def _up_to_best_heads(scores: np.ndarray, best: np.ndarray, topk: int) -> np.ndarray:
    """Mask [R, C] of what comes no later than the ``topk``-th of the classes' best candidates.

    A class's best candidate survives, so these hold ``topk`` survivors. ``best`` [C] is its score.
    """
    cut = np.partition(best, len(best) - topk)[len(best) - topk]
    tied = np.flatnonzero(best == cut)
    first_rows = (scores[:, tied] == cut).argmax(0)
    ties_needed = topk - np.count_nonzero(best > cut)
    flat = first_rows * scores.shape[1] + tied
    row, column = divmod(int(np.partition(flat, ties_needed - 1)[ties_needed - 1]), scores.shape[1])
    mask = np.empty(scores.shape, bool)
    np.greater_equal(scores[:row], cut, out=mask[:row])
    np.greater_equal(scores[row, : column + 1], cut, out=mask[row, : column + 1])
    np.greater(scores[row, column + 1 :], cut, out=mask[row, column + 1 :])
    np.greater(scores[row + 1 :], cut, out=mask[row + 1 :])
    return mask


def _guessed_cuts(scores: np.ndarray, every: np.ndarray, topk: int) -> Iterator[np.float32]:
    """Scores that about 4, 32, 256, ... times ``topk`` candidates reach; any cut is a legal one."""
    step = min(_SAMPLE_STEP, 1 + len(every) // _SMALLEST_SAMPLE)
    sample = np.sort(scores[np.divmod(every[::step], scores.shape[1])])
    wanted = max(1, _FIRST_PREFIX * topk // step)
    while wanted < len(sample) // 2:
        yield sample[-wanted]
        wanted *= _GROWTH


def _bound(known: np.ndarray, topk: int) -> np.uint64:
    """The ``topk``-th key of the known survivors, the largest of all keys while there are fewer."""
    if topk < 0 or len(known) < topk:
        return _LAST_KEY
    return np.partition(known, topk - 1)[topk - 1] if topk > 0 else np.uint64(0)


def _stable_argsort(classes: np.ndarray) -> np.ndarray:
    # NumPy sorts 16-bit integers by radix, several times faster.
    small = len(classes) > 0 and classes.max() < 2**16 and classes.min() >= 0
    return np.argsort(classes.astype(np.uint16) if small else classes, kind="stable")


def _segment_starts(classes: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.concatenate([[True], classes[1:] != classes[:-1]]))


def _one_by_one(
    keys: np.ndarray, boxes: np.ndarray, starts: np.ndarray, nms_thresh: float
) -> Iterator[np.ndarray]:
    """Keys of the survivors of each class, by torchvision's loop over sorted boxes."""
    for begin, end in zip(starts, [*starts[1:], len(keys)], strict=True):
        order = np.argsort(keys[begin:end])
        candidates = torch.from_numpy(np.ascontiguousarray(boxes[:, begin:end][:, order].T))
        descending = torch.arange(end - begin, 0, -1, dtype=torch.float32)  # no ties to settle
        yield keys[begin:end][order[nms(candidates, descending, nms_thresh).numpy()]]


def _overlaps(boxes: np.ndarray, others: np.ndarray, limit: np.float32) -> np.ndarray:
    """Mask [n]: IoU of boxes [4, n] with others [4, n] above ``limit``, rounded as torchvision."""
    zero = np.float32(0)
    with np.errstate(all="ignore"):  # boxes without area: 0 / 0 is not above anything
        width = np.minimum(boxes[2], others[2]) - np.maximum(boxes[0], others[0])
        height = np.minimum(boxes[3], others[3]) - np.maximum(boxes[1], others[1])
        inter = np.maximum(width, zero) * np.maximum(height, zero)
        return inter / (_area(others) + _area(boxes) - inter) > limit


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[2] - boxes[0]) * (boxes[3] - boxes[1])


def float32_below(value: float) -> np.float32:
    """The largest float32 not above ``value``: a float32 exceeds one where it exceeds the other."""
    rounded = np.float32(value)
    return rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf))
