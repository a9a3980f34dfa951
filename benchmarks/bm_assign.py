"""Time and memory of the dense detectors' assigners beside the usual ways to write them.

    python benchmarks/bm_assign.py              # two minutes on a CPU

ATSS on an image of 1024 x 1664 pixels, 3 anchors per cell, 9 candidates per level. `loop`: one
ground truth and one level after the other, vectorised over anchors. `dense`: tables of all anchors
and ground truths. PAA's second pass on about 50 positives per ground truth. `sklearn`: one fit of
scikit-learn's GaussianMixture after the other. All run in turn in one process, on one thread:
medians of CPU time. Memory is what a call adds at its peak. Read the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from torch import Tensor
from torchvision.ops import box_iou
from tqdm import tqdm

from rs_d2.targets.assign_atss import assign_atss
from rs_d2.targets.assign_paa import separate_by_loss

IMAGE = (1024, 1664)
STRIDES = (8, 16, 32, 64, 128)
RATIOS = (0.5, 1.0, 2.0)
TOPK = 9
OBJECTS = (1, 10, 100, 1000)
DENSE_LIMIT = 20_000_000  # elements of a table of anchors and ground truths
ATSS_COLUMNS = ("A", "G", "ours ms", "loop ms", "dense ms", "ours / loop", "ours / dense")
ATSS_COLUMNS += ("ours MiB", "loop MiB", "dense MiB")
PAA_COLUMNS = ("P", "G", "ours ms", "sklearn ms", "ours / sklearn")
Assign = Callable[[list[Tensor], Tensor], Tensor]


def make_anchors(image: tuple[int, int] = IMAGE) -> list[Tensor]:
    """Per level [H, W, 3, 4], of eight strides, centred on the cells' corners."""
    ratios = torch.tensor(RATIOS)
    sides = 8 * torch.stack([ratios.rsqrt(), ratios.sqrt()], dim=1)
    levels = []
    for stride in STRIDES:
        y, x = (torch.arange(math.ceil(side / stride)) * float(stride) for side in image)
        y, x = torch.meshgrid(y, x, indexing="ij")
        base = torch.cat([-sides, sides], dim=1) * stride / 2
        levels.append(torch.stack([x, y, x, y], dim=-1)[:, :, None] + base)
    return levels


def make_objects(number: int, image: tuple[int, int] = IMAGE) -> Tensor:
    """[number, 4] anywhere in the image, with sides from 8 to 400 pixels."""
    rng = torch.Generator().manual_seed(0)
    center = torch.rand(number, 2, generator=rng) * torch.tensor(image[::-1])
    sides = 8 * torch.exp(torch.rand(number, 2, generator=rng) * math.log(50))
    return torch.cat([center - sides / 2, center + sides / 2], dim=1)


def atss_ours(anchors: list[Tensor], gt_boxes: Tensor) -> Tensor:
    """Index of the ground truth, [A], -1 for negatives."""
    return torch.cat([level.flatten() for level in assign_atss(anchors, gt_boxes, TOPK)])


def atss_loop(anchors: list[Tensor], gt_boxes: Tensor) -> Tensor:
    """The same, one ground truth and level at a time; IoUs of the candidates only."""
    flat = [level.reshape(-1, 4) for level in anchors]
    boxes, centers = torch.cat(flat), [_centers(level) for level in flat]
    highest, matched = torch.zeros(len(boxes)), torch.full((len(boxes),), -1)
    for number, gt in enumerate(gt_boxes):
        candidates, start = [], 0
        for points in centers:
            distance = (points - _centers(gt)).square().sum(dim=1)
            nearest = distance.topk(min(TOPK, len(points)), largest=False).indices
            candidates.append(nearest + start)
            start += len(points)
        index = torch.cat(candidates)
        iou = box_iou(boxes[index], gt[None])[:, 0]
        points = _centers(boxes[index])
        inside = torch.cat([points - gt[:2], gt[2:] - points], dim=1).amin(dim=1) > 0.01
        wins = (iou >= iou.mean() + iou.std()) & inside & (iou > highest[index])
        highest[index[wins]], matched[index[wins]] = iou[wins], number
    return matched


def atss_dense(anchors: list[Tensor], gt_boxes: Tensor) -> Tensor:
    """The same on tables [A, G]."""
    flat = [level.reshape(-1, 4) for level in anchors]
    boxes = torch.cat(flat)
    iou, points, objects = box_iou(boxes, gt_boxes), _centers(boxes), torch.arange(len(gt_boxes))
    distance = (points[:, None] - _centers(gt_boxes)).square().sum(dim=2)
    candidates, start = [], 0
    for part in distance.split([len(level) for level in flat]):
        candidates.append(part.topk(min(TOPK, len(part)), dim=0, largest=False).indices + start)
        start += len(part)
    index = torch.cat(candidates)
    overlaps, points = iou[index, objects], points[index]
    sides = torch.cat([points - gt_boxes[:, :2], gt_boxes[:, 2:] - points], dim=2)
    positive = (overlaps >= overlaps.mean(0) + overlaps.std(0)) & (sides.amin(dim=2) > 0.01)
    wanted = torch.full_like(iou, -torch.inf)
    wanted[index, objects] = overlaps.where(positive, -torch.inf)
    highest, matched = wanted.max(dim=1)
    return matched.where(highest > -torch.inf, -1)


def make_losses(num_objects: int) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, ground truths and levels of 50 positives per ground truth; a third of them low."""
    rng = torch.Generator().manual_seed(0)
    number = 50 * num_objects
    high = torch.rand(number, generator=rng) > 1 / 3
    losses = 0.5 + 1.5 * high + 0.4 * torch.randn(number, generator=rng).abs()
    gt_index = torch.randint(num_objects, (number,), generator=rng)
    return losses, gt_index, torch.randint(len(STRIDES), (number,), generator=rng)


def paa_sklearn(losses: Tensor, gt_index: Tensor, levels: Tensor) -> Tensor:
    """Which positives stay, bool [P]: one fit per ground truth."""
    from sklearn.mixture import GaussianMixture

    stays = torch.zeros_like(losses, dtype=torch.bool)
    for number in gt_index.unique():
        own = (gt_index == number).nonzero()[:, 0]
        parts = [own[levels[own] == level] for level in range(len(STRIDES))]
        parts = [p[losses[p].topk(min(TOPK, len(p)), largest=False).indices] for p in parts]
        pool = torch.cat(parts)
        if len(pool) < 2:
            continue
        pool = pool[losses[pool].argsort()]
        column = losses[pool, None].double().numpy()
        mixture = GaussianMixture(
            2,
            covariance_type="diag",
            weights_init=[0.5, 0.5],
            means_init=[column.min(0), column.max(0)],
            precisions_init=[[1.0], [1.0]],
            reg_covar=1e-5,
        ).fit(column)
        low = torch.from_numpy(mixture.predict(column)) == 0
        likelihood = torch.from_numpy(mixture.score_samples(column))
        if low.any():
            last = likelihood.where(low, -torch.inf).argmax()
            stays[pool[: last + 1][low[: last + 1]]] = True
    return stays


ATSS: dict[str, Assign] = {"ours": atss_ours, "loop": atss_loop, "dense": atss_dense}
PAA = {"ours": partial(separate_by_loss, topk=TOPK), "sklearn": paa_sklearn}


def compare_atss(num_objects: int, image: tuple[int, int] = IMAGE) -> dict[str, Any]:
    """One row: every way to assign one image."""
    batch = make_anchors(image), make_objects(num_objects, image)
    num_anchors = sum(level[..., 0].numel() for level in batch[0])
    too_large = num_anchors * num_objects > DENSE_LIMIT
    methods = {
        name: partial(assign, *batch)
        for name, assign in ATSS.items()
        if name != "dense" or not too_large
    }
    row = {"A": num_anchors, "G": num_objects, **_compare(methods, rounds=5)}
    row.update({f"{name} MiB": _mebibytes(call) for name, call in methods.items()})
    return row


def compare_paa(num_objects: int) -> dict[str, Any]:
    """One row: both ways to separate the positives of one image."""
    batch = make_losses(num_objects)
    methods = {name: partial(separate, *batch) for name, separate in PAA.items()}
    return {"P": len(batch[0]), "G": num_objects, **_compare(methods, rounds=5)}


def _compare(methods: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, Any]:
    _check_agreement(methods)
    times = common.measure(methods, rounds=rounds)
    ours = times["ours"].median_ms
    return {
        **{f"{name} ms": time.median_ms for name, time in times.items()},
        **{f"ours / {n}": ours / time.median_ms for n, time in times.items() if n != "ours"},
        "range ms": {name: time.spread_ms for name, time in times.items()},
    }


def _check_agreement(methods: dict[str, Callable[[], Tensor]]) -> None:
    """A method that computes something else would be compared in vain.

    The others round in float32 and leave the order of ties to the library: a few may differ.
    """
    expected = methods["ours"]()
    positive = expected if expected.dtype == torch.bool else expected >= 0
    for name, call in methods.items():
        found = call()
        differing = (found != expected).sum() / max(positive.sum(), 1)
        assert differing < 0.01, f"{name} differs in {differing:.1%} of the positives"


def _mebibytes(call: Callable[[], Tensor]) -> float | None:
    peak = common.peak_memory(call)
    return None if peak is None else peak / 2**20


def _centers(boxes: Tensor) -> Tensor:
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print its tables and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/assign.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [compare_atss(number) for number in tqdm(OBJECTS, desc="ATSS")]
    separation = [compare_paa(number) for number in tqdm(OBJECTS[:3], desc="PAA")]
    print(common.table(rows, ATSS_COLUMNS), common.table(separation, PAA_COLUMNS), sep="\n\n")
    written = common.write_results("assign", rows, args.output, separation=separation)
    print("written:", written)


if __name__ == "__main__":
    main()
