"""Class-wise suppression of an image's boxes: Detectron2's search beside the early-stopping one.

    python benchmarks/bm_inference.py                  # all cases; about 10 minutes on a CPU
    python benchmarks/bm_inference.py --quick          # 80 classes; a minute
    python benchmarks/bm_inference.py --device cuda

Both search the same 1000 boxes in turn in one process, on one thread: medians of CPU time on a CPU,
of wall time on a GPU. The scores are made: `rs` is high, as a ranking loss makes them (of a score
matrix 95 % > 0.1, 24 % > 0.4, 4 % > 0.6, 0.1 % > 0.8), `ce` is low, as cross-entropy does (57 % >
1e-4, 4 % > 1e-3, 0.01 % > 1e-2). Read the ratios, not the milliseconds.

Last, whole models that make the masks of all detections in one product of two matrices: an image
with 10 and with 100 detections, random weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image as plain
from torch import Tensor, nn
from tqdm import tqdm

from rs_d2.config.load import find_config, load_config
from rs_d2.modeling.inference import fast_rcnn_inference_single_image as early_stopping

THRESHOLDS = (1e-4, 1e-3, 1e-2, 0.1, 0.4, 0.6, 0.8)
MODELS = [  # classes, detections per image, boxes of each class
    (1203, 300, "agnostic"),
    (1203, 300, "specific"),
    (80, 100, "agnostic"),
    (80, 100, "specific"),
]
FEW_CLASSES = [(3, 100), (1, 100)]  # where there is little to save
NUM_BOXES, IMAGE, NMS_THRESH = 1000, (800, 1333), 0.5
BOXES_PER_OBJECT = 8
COLUMNS = ("classes", "boxes", "scores", "threshold", "candidates", "plain ms", "ours ms")
COLUMNS += ("plain / ours",)
# One-stage models with masks, the side of their images, and settings that leave 100 detections of
# random weights. SOLOv2's score low, so that the masks of all its cells are looked at.
MASK_MODELS = {
    "YOLACT": (
        *("COCO-InstanceSegmentation/rs_yolact_R_50_FPN_55e.yaml", 550),
        *("MODEL.RETINANET.NMS_THRESH_TEST", "1.0"),
    ),
    "SOLOv2-light": (
        *("COCO-InstanceSegmentation/rs_solov2_light_R_34_FPN_3x.yaml", 448),
        *("MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "MODEL.SOLO.DECAYED_SCORE_THRESH", "0.0"),
    ),
}
MASK_COLUMNS = ("model", "10 ms", "100 ms", "100 / 10")
WORST_COLUMNS = ("classes", "input", "plain ms", "ours ms", "ours / typical", "plain / ours")


def make_boxes(num_classes: int, kind: str, rng: torch.Generator) -> Tensor:
    """Boxes around objects of all sizes, [1000, 4] or, for each class its own, [1000, 4K]."""
    num_objects = NUM_BOXES // BOXES_PER_OBJECT
    center = torch.rand(num_objects, 2, generator=rng) * torch.tensor([IMAGE[1], IMAGE[0]])
    size = torch.exp(3 + 2.5 * torch.rand(num_objects, 2, generator=rng))
    owner = torch.arange(NUM_BOXES) % num_objects
    shape = (NUM_BOXES, num_classes if kind == "specific" else 1, 2)
    center = center[owner, None] + 0.08 * size[owner, None] * torch.randn(*shape, generator=rng)
    size = size[owner, None] * torch.exp(0.1 * torch.randn(*shape, generator=rng))
    return torch.cat([center - size / 2, center + size / 2], 2).flatten(1)


def make_scores(num_classes: int, kind: str, rng: torch.Generator) -> Tensor:
    """Scores [1000, K] of a ranking loss ("rs") or of cross-entropy ("ce")."""
    noise = torch.randn(NUM_BOXES, num_classes, generator=rng)
    return (0.775 * noise - 0.952).sigmoid() if kind == "rs" else torch.exp(1.195 * noise - 9.0)


def searches(boxes: Tensor, scores: Tensor, threshold: float, topk: int) -> dict[str, Callable]:
    """Both searches of one image; Detectron2's wants a background column."""
    padded = torch.cat([scores, scores.new_zeros(len(scores), 1)], 1)
    setting = (IMAGE, threshold, NMS_THRESH, topk)
    return {
        "plain": partial(plain, boxes, padded, *setting),
        "ours": partial(early_stopping, boxes, scores, *setting),
    }


def compare(boxes: Tensor, scores: Tensor, threshold: float, topk: int) -> dict[str, Any]:
    """Times of both searches on one input."""
    methods = searches(boxes, scores, threshold, topk)
    _check_agreement(methods)
    candidates = int((scores > threshold).sum())
    slow = candidates > 20_000
    times = common.measure(
        methods,
        rounds=3 if slow else 9,
        warmup=0 if slow else 1,
        device=boxes.device.type,
        inner={"ours": 5},
    )
    plain_ms, ours_ms = times["plain"].median_ms, times["ours"].median_ms
    return {
        "candidates": candidates,
        "plain ms": plain_ms,
        "ours ms": ours_ms,
        "plain / ours": plain_ms / ours_ms,
        "range ms": {name: time.spread_ms for name, time in times.items()},
    }


def compare_thresholds(models: list[tuple[int, int, str]], device: str) -> list[dict[str, Any]]:
    """A row for each model, kind of scores and threshold."""
    cases = [(*model, kind) for model in models for kind in ("rs", "ce")]
    rows = []
    for num_classes, topk, boxes_kind, scores_kind in tqdm(cases, desc="thresholds"):
        rng = torch.Generator().manual_seed(0)
        boxes = make_boxes(num_classes, boxes_kind, rng).to(device)
        scores = make_scores(num_classes, scores_kind, rng).to(device)
        named = {"classes": num_classes, "boxes": boxes_kind, "scores": scores_kind}
        rows += [{**named, "threshold": t, **compare(boxes, scores, t, topk)} for t in THRESHOLDS]
    return rows


def compare_ours(models: list[tuple[int, int, str]], device: str) -> list[dict[str, Any]]:
    """Times of our search alone, all thresholds in turn: high scores, a row for each model."""
    rows = []
    for num_classes, topk, boxes_kind in models:
        rng = torch.Generator().manual_seed(0)
        boxes = make_boxes(num_classes, boxes_kind, rng).to(device)
        scores = make_scores(num_classes, "rs", rng).to(device)
        methods = {t: searches(boxes, scores, t, topk)["ours"] for t in THRESHOLDS}
        times = common.measure(methods, rounds=15, device=device, inner=dict.fromkeys(methods, 3))
        row = {f"{t:g}": time.median_ms for t, time in times.items()}
        largest = max(row.values()) / min(row.values())
        rows.append(
            {"classes": num_classes, "boxes": boxes_kind, **row, "largest / least": largest}
        )
    return rows


def worst_inputs(num_classes: int, rng: torch.Generator) -> dict[str, tuple[Tensor, Tensor]]:
    """Inputs made to be slow, by name; the first is the typical one."""
    boxes = make_boxes(num_classes, "agnostic", rng)
    scores = make_scores(num_classes, "rs", rng)
    one_box = torch.tensor([[400.0, 300, 700, 500]]).repeat(NUM_BOXES, 1)
    one_object = one_box + 4 * torch.randn(NUM_BOXES, 4, generator=rng)
    column, row = torch.arange(NUM_BOXES) % 40, torch.arange(NUM_BOXES) // 40
    apart = torch.stack([column * 33, row * 31, column * 33 + 30, row * 31 + 30], 1).float()
    equal = torch.full_like(scores, 0.5)
    high = scores / 2
    high[:, :20] += 0.5
    return {
        "typical": (boxes, scores),
        "all boxes on one object": (one_object, scores),
        "identical boxes, equal scores": (one_box, equal),
        "equal scores": (boxes, equal),
        "no overlaps": (apart, scores),
        "20 classes high, no overlaps": (apart, high),
        "20 classes high, one object": (one_object, high),
        "half-precision scores": (boxes, scores.half().float()),
    }


def compare_worst(models: list[tuple[int, int]], device: str) -> list[dict[str, Any]]:
    """A row for each input made to be slow, at threshold 1e-3."""
    rows = []
    for num_classes, topk in models:
        typical = None
        inputs = worst_inputs(num_classes, torch.Generator().manual_seed(0))
        for name, (boxes, scores) in tqdm(inputs.items(), desc=f"worst, {num_classes} classes"):
            row = compare(boxes.to(device), scores.to(device), 1e-3, topk)
            typical = typical or row["ours ms"]
            row |= {
                "classes": num_classes,
                "input": name,
                "ours / typical": row["ours ms"] / typical,
            }
            rows.append(row)
    return rows


def compare_masks(device: str) -> list[dict[str, Any]]:
    """Times of an image with 10 and with 100 detections, resized masks included."""
    rows = []
    for name, (config, side, *options) in MASK_MODELS.items():
        given = ["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", *options]
        cfg, _ = load_config(find_config(config), given)
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        image = torch.randint(256, (3, side, side), dtype=torch.uint8)
        inputs = [{"image": image, "height": side, "width": side}]
        methods = {f"{n} ms": partial(_detect, model, inputs, n) for n in (10, 100)}
        times = common.measure(methods, rounds=5, device=device)
        row = {column: time.median_ms for column, time in times.items()}
        rows.append({"model": name, **row, "100 / 10": row["100 ms"] / row["10 ms"]})
    return rows


def _detect(model: nn.Module, inputs: list[dict[str, Any]], count: int) -> None:
    model.test_topk_per_image = count
    with torch.no_grad():
        found = model(inputs)[0]["instances"]
    assert len(found) == count


def _check_agreement(methods: dict[str, Callable]) -> None:
    """A search that finds something else would be compared in vain."""
    theirs, ours = (methods[name]()[0] for name in ("plain", "ours"))
    assert len(theirs) == len(ours)
    # Detectron2's offsets between classes round boxes of 1203 classes to 1/8 pixel.
    different = (theirs.scores != ours.scores).float().mean() if len(ours) else 0
    assert different < 0.02, f"{different:.1%} of the detections differ"


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print its tables and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="80 classes only")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/inference_DEVICE.json"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    models = MODELS[2:] if args.quick else MODELS
    rows = compare_thresholds(models, args.device)
    ours = compare_ours(models, args.device)
    sizes = [*dict.fromkeys(model[:2] for model in models), *FEW_CLASSES]
    worst = compare_worst(sizes, args.device)
    masks = compare_masks(args.device)
    tables = ((rows, COLUMNS), (ours, tuple(ours[0])), (worst, WORST_COLUMNS))
    tables += ((masks, MASK_COLUMNS),)
    print(*(common.table(*each) for each in tables), sep="\n\n")
    name = f"inference_{args.device}"
    output = args.output or common.RESULTS / f"{name}{'_quick' if args.quick else ''}.json"
    print("written:", common.write_results(name, rows, output, ours=ours, worst=worst, masks=masks))


if __name__ == "__main__":
    main()
