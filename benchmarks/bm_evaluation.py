"""CPU time and memory of the evaluation: ours, with each engine, and the packages by themselves.

Made data of the size of COCO val and of a tenth of LVIS val. Every row runs in a process of its
own, from a list of results as a json file holds it to the summary; memory is the growth of the peak
from there. The reference package (pycocotools, lvis) gives AP only; `oLRP` is the matching and the
arithmetic of the oLRP family alone, from arrays.

    python benchmarks/bm_evaluation.py             six minutes on one core
    python benchmarks/bm_evaluation.py --scale 20  a twentieth of the images, seconds
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # without an installation

from common import peak_memory, table, write_results

from rs_d2.evaluation import Detections, GroundTruth

# style, IoU type, images, objects and detections an image, classes
SETS = {
    "COCO boxes": ("coco", "bbox", 5000, 7.3, 100, 80),
    "COCO masks": ("coco", "segm", 1000, 7.3, 100, 80),
    "LVIS boxes": ("lvis", "bbox", 2000, 12, 300, 1203),
}
METHODS = ("reference package", "AP", "AP and oLRP", "AP and oLRP from arrays", "oLRP")
SIDE = 640
COLUMNS = ("set", "method", "cpu_s", "times_faster", "peak_mib", "memory_ratio", "AP", "oLRP")


def make(
    style: str, masks: bool, images: int, objects: float, detections: int, classes: int
) -> tuple[dict, list]:
    """Content of a ground-truth json, and results: shaken objects, other classes and noise."""
    random = np.random.default_rng(0)
    rates = 1 / np.arange(1, classes + 1) ** 0.9
    rates /= rates.sum()
    content: dict[str, list] = {"images": [], "annotations": [], "categories": []}
    results: list[dict] = []
    for image in range(1, images + 1):
        count = 1 + random.poisson(objects - 1)
        kinds = random.choice(classes, count, p=rates) + 1
        boxes = _boxes(random, count)
        absent = sorted({*(random.choice(classes, 8) + 1).tolist()} - {*kinds.tolist()})
        content["images"].append({"id": image, "height": SIDE, "width": SIDE, "file_name": ""})
        if style == "lvis":
            unsure = [k for k in {*kinds.tolist()} if random.random() < 0.05]
            federation = {"neg_category_ids": absent, "not_exhaustive_category_ids": unsure}
            content["images"][-1] |= federation
        for kind, box in zip(kinds.tolist(), boxes, strict=True):
            entry = _entry(image, kind, box, masks)
            identity, area = len(content["annotations"]) + 1, float(0.7 * box[2] * box[3])
            crowd = int(style == "coco" and random.random() < 0.02)
            entry |= {"id": identity, "area": area, "iscrowd": crowd}
            content["annotations"].append(entry)
        which = random.integers(0, count, detections)
        found = (
            boxes[which] + random.normal(0, 0.1, (detections, 4)) * boxes[which][:, [2, 3, 2, 3]]
        )
        found[:, 2:] = np.maximum(found[:, 2:], 1)
        noise = random.random(detections) < 0.6
        found[noise] = _boxes(random, int(noise.sum()))
        named = np.array([*kinds.tolist(), *absent])
        others = np.where(
            random.random(detections) < 0.5,
            random.choice(named, detections),
            random.choice(classes, detections, p=rates) + 1,
        )
        labels = np.where(noise, others, kinds[which]).tolist()
        scores = random.random(detections).round(5).tolist()
        for box, label, score in zip(found.round(2), labels, scores, strict=True):
            results.append(_entry(image, label, box, masks) | {"score": score})
    content["categories"] = [
        {"id": k, "name": f"class {k}", "frequency": "fcr"[3 * k // (classes + 1)]}
        for k in range(1, classes + 1)
    ]
    return content, results


def _boxes(random: np.random.Generator, count: int) -> np.ndarray:
    sides = np.exp(random.uniform(np.log(8), np.log(300), (count, 2)))
    return np.hstack([random.uniform(0, 1, (count, 2)) * (SIDE - sides), sides]).round(2)


def _entry(image: int, kind: int, box: np.ndarray, masks: bool) -> dict[str, Any]:
    entry = {"image_id": image, "category_id": kind, "bbox": box.tolist()}
    if masks:
        from pycocotools import mask as mask_util

        x, y, w, h = box.tolist()
        corners = [x + w / 2, y, x + w, y + h / 2, x + w / 2, y + h, x, y + h / 2]
        rle = mask_util.frPyObjects([corners], SIDE, SIDE)[0]
        entry["segmentation"] = {"size": [SIDE, SIDE], "counts": rle["counts"].decode()}
    return entry


def run_reference(content: dict, results: list, iou_type: str) -> dict[str, float]:
    """The package by itself, as its own examples call it."""
    if "neg_category_ids" in content["images"][0]:
        from rs_d2.utils.d2_compat import patch_numpy_for_lvis

        patch_numpy_for_lvis()
        import logging

        from lvis import LVIS, LVISEval, LVISResults

        truth = LVIS.__new__(LVIS)  # its constructor takes a file
        truth.logger, truth.dataset = logging.getLogger("lvis"), content
        truth._create_index()
        evaluation = LVISEval(truth, LVISResults(truth, results), iou_type)
        evaluation.run()
        return {"AP": 100 * float(evaluation.results["AP"])}
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO()
    truth.dataset = content
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), iou_type)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {"AP": 100 * float(evaluation.stats[0])}


def prepare(
    name: str, content: dict, results: list, style: str, iou_type: str
) -> Callable[[], dict[str, float]]:
    """What a row times, as a call without arguments."""
    if name == "reference package":
        return lambda: run_reference(content, results, iou_type)
    from rs_d2.evaluation import detections_from, evaluate_detections, ground_truth_from
    from rs_d2.evaluation.ap_backends import average_precision
    from rs_d2.evaluation.evaluate import MAX_DETS
    from rs_d2.evaluation.lrp import optimal_lrp
    from rs_d2.evaluation.matching import match
    from rs_d2.evaluation.top_k import cap_per_image

    def read() -> tuple[GroundTruth, Detections]:
        truth = ground_truth_from(content, style)
        return truth, detections_from(results, truth, iou_type)

    def precision() -> dict[str, float]:
        found = average_precision(*read(), iou_type, "hotcoco", MAX_DETS[style])
        values = found.precision[..., 0]
        return {"AP": 100 * float(values[values > -1].mean())}

    if name == "AP":
        return precision
    if name == "AP and oLRP":
        return lambda: evaluate_detections(*read(), iou_type, "hotcoco").summary
    columns = read()
    if name == "AP and oLRP from arrays":
        return lambda: evaluate_detections(*columns, iou_type, "hotcoco").summary

    def lrp() -> dict[str, float]:
        truth, found = columns
        if style == "lvis":
            found = found.select(cap_per_image(found, MAX_DETS[style]))
            return optimal_lrp(match(truth, found, iou_type)).mean()
        return optimal_lrp(match(truth, found, iou_type, MAX_DETS[style])).mean()

    return lrp


def run_row(set_name: str, method: str, scale: int) -> dict[str, Any]:
    """One row, in this process."""
    style, iou_type, images, objects, detections, classes = SETS[set_name]
    content, results = make(
        style, iou_type == "segm", images // scale, objects, detections, classes
    )
    call = prepare(method, content, results, style, iou_type)
    row: dict[str, Any] = {"set": set_name, "method": method}
    row["detections"] = images // scale * detections

    def timed() -> None:
        start = time.process_time()
        numbers = call()
        row["cpu_s"] = time.process_time() - start
        row.update({name: numbers.get(name) for name in ("AP", "oLRP")})

    peak = peak_memory(timed)
    return row | {"peak_mib": None if peak is None else peak / 2**20}


def main(argv: Sequence[str] | None = None) -> int:
    """Run every row in a process of its own, print and write the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=int, default=1, help="divide the number of images by this")
    parser.add_argument("--sets", nargs="+", choices=tuple(SETS), default=tuple(SETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--output", type=Path, help="json to write")
    parser.add_argument("--row", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.row:
        print(json.dumps(run_row(*args.row, args.scale)))
        return 0
    rows = []
    for set_name in args.sets:
        for method in args.methods:
            rows.append(_in_a_process(set_name, method, args.scale))
            _compare(rows[-1], rows)
            print(table(rows[-1:], COLUMNS).splitlines()[-1], flush=True)
    print(table(rows, COLUMNS))
    print(write_results("evaluation", rows, args.output, scale=args.scale))
    return 0


def _in_a_process(set_name: str, method: str, scale: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--scale", str(scale), "--row", set_name, method]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _compare(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """Add the ratios to the reference of the same set."""
    for other in rows:
        if other["set"] == row["set"] and other["method"] == METHODS[0]:
            row["times_faster"] = other["cpu_s"] / row["cpu_s"]
            if row["peak_mib"] is not None:
                row["memory_ratio"] = row["peak_mib"] / other["peak_mib"]


if __name__ == "__main__":
    sys.exit(main())
