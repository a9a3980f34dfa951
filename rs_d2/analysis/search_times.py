"""Images per second of a model at score thresholds, with our search and with Detectron2's."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from detectron2.layers import batched_nms
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn

from rs_d2.config import architecture_of_model
from rs_d2.modeling.inference import Search, searching_with
from rs_d2.ops.nms import BoxTable
from rs_d2.utils.errors import UserError

SEARCHES = ("early stopping", "plain")  # the predictor's own search, and Detectron2's


def measure(
    model: nn.Module, images: Sequence[Any], thresholds: Sequence[float]
) -> list[dict[str, float]]:
    """Images per second of a model, and milliseconds of its search alone, at each threshold.

    All thresholds and both ``SEARCHES`` take turns on each image; medians over the images. On the
    CPU one thread runs and its CPU time counts, on a GPU wall time.

    Args:
        model: in evaluation mode.
        images: inputs of the model; without any, the rows are empty.
        thresholds: score thresholds.
    """
    if not images:
        return [{} for _ in thresholds]
    combinations = [(threshold, search) for threshold in thresholds for search in SEARCHES]
    seconds: dict[Any, list[tuple[float, float]]] = {each: [] for each in combinations}
    with torch.no_grad(), _one_thread():
        model(images[0])  # warms up
        for inputs in images:
            for threshold, search in combinations:
                with searching(model, search, threshold) as spent:
                    start = _now()
                    model(inputs)
                    seconds[threshold, search].append((_now() - start, sum(spent)))
    middle = {
        each: [median(times) for times in zip(*s, strict=True)] for each, s in seconds.items()
    }
    return [
        {f"images/s {search}": 1 / middle[threshold, search][0] for search in SEARCHES}
        | {f"search ms {search}": 1e3 * middle[threshold, search][1] for search in SEARCHES}
        for threshold in thresholds
    ]


@contextmanager
def searching(model: nn.Module, search: str, threshold: float) -> Iterator[list[float]]:
    """Let a model use one of ``SEARCHES`` at a threshold; yields a list of the seconds it takes.

    Raises:
        UserError: The model has not one box predictor, and is no dense detector.
    """
    architecture = architecture_of_model(model)
    if architecture.is_sweepable and not architecture.has_proposals:
        with _searching_dense(model, search, threshold) as spent:
            yield spent
        return
    predictor = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
    if not architecture.is_sweepable or not isinstance(predictor, FastRCNNOutputLayers):
        raise UserError(
            "--config-file: a sweep needs a model with one box predictor, or a dense detector"
        )
    kind = type(predictor) if search == SEARCHES[0] else FastRCNNOutputLayers
    before, spent = predictor.test_score_thresh, []

    def inference(*args: Any) -> Any:
        start = _now()
        result = kind.inference(predictor, *args)
        spent.append(_now() - start)
        return result

    predictor.test_score_thresh, predictor.inference = threshold, inference
    try:
        yield spent
    finally:
        predictor.test_score_thresh = before
        del predictor.inference


@contextmanager
def _searching_dense(model: nn.Module, search: str, threshold: float) -> Iterator[list[float]]:
    before, spent = model.test_score_thresh, []

    def timed(own: Search) -> Search:
        chosen = own if search == SEARCHES[0] else _plain_search

        def run(*args: Any) -> Any:
            start = _now()
            result = chosen(*args)
            spent.append(_now() - start)
            return result

        return run

    model.test_score_thresh = threshold
    try:
        with searching_with(timed):
            yield spent
    finally:
        model.test_score_thresh = before


def _plain_search(
    table: BoxTable, scores: Tensor, score_thresh: float, nms_thresh: float, topk: int
) -> tuple[Tensor, Tensor]:
    """Detectron2's: suppression among all candidates, then the best of what is left."""
    rows, classes = (scores > score_thresh).nonzero().unbind(1)
    boxes = table.at(rows, classes)
    kept = batched_nms(boxes, scores[rows, classes], classes, nms_thresh)
    kept = kept if topk < 0 else kept[:topk]
    return rows[kept], classes[kept]


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _now() -> float:
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()
