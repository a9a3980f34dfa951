"""Speed of prediction end to end, against the bare loop over the model.

    python benchmarks/bm_predict.py             # two models; some minutes on a CPU
    python benchmarks/bm_predict.py --quick     # few images; a minute
    python benchmarks/bm_predict.py --device cuda

The bare loop has its inputs in memory and drops what the model finds. End to end reads and resizes
JPEG files, runs the model, paints boxes, masks and labels and writes JPEG pictures and json: what
`tools/predict.py` does after it has loaded the model. Both take turns in one process; medians of
wall time. The weights are random, the number of detections of an image is set; random masks are
ragged, so painting and encoding them is at its slowest. Wall time needs an idle machine with a core
besides the model's; the CPU times, all processes together, say what is left to hide on it.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from detectron2.modeling import build_model
from PIL import Image
from tqdm import tqdm

from rs_d2 import Predictor, model_zoo
from rs_d2.prediction.inputs import find_images
from rs_d2.prediction.runner import predict_images

IMAGE = (480, 640)
CASES = [  # config, detections per image, batch size
    ("quick/rs_mask_rcnn_own_data", 20, 1),
    ("quick/rs_mask_rcnn_own_data", 100, 1),
    ("quick/rs_mask_rcnn_own_data", 20, 4),
    ("quick/rs_cascade_rcnn_own_data", 20, 1),
]
COLUMNS = ("config", "detections", "batch", "bare images/s", "end to end images/s")
COLUMNS += ("end to end / bare", "bare CPU ms", "end to end CPU ms")


def make_images(folder: Path, count: int) -> None:
    """JPEG files of coloured blobs, 480 x 640 pixels."""
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        fine = coarse.resize(IMAGE[::-1], Image.Resampling.BICUBIC)
        fine.save(folder / f"{index:03d}.jpg", quality=90)


def make_predictor(config: str, detections: int, folder: Path, device: str) -> Predictor:
    """A shipped model with random weights that finds so many objects in every image."""
    torch.manual_seed(0)
    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE, cfg.TEST.DETECTIONS_PER_IMAGE = "cpu", detections
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model.pth")
    return Predictor(folder / "model.pth", config=cfg, device=device)


def compare(predictor: Predictor, folder: Path, batch: int, workers: int, rounds: int) -> dict:
    """Images per second of both, and their ratio."""
    files = find_images([str(folder / "images")], folder / "out")
    inputs = [predictor.prepare(file.path) for file in files]
    batches = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
    found: list[int] = []

    def bare() -> None:
        found[:] = [len(each) for some in batches for each in predictor.predict(some)]

    def end_to_end() -> None:
        options = {"batch_size": batch, "num_workers": workers}
        predict_images(predictor, files, folder / "out", **options)

    wall, cpu = _seconds({"bare": bare, "end to end": end_to_end}, rounds)
    bare_rate, whole_rate = (len(files) / statistics.median(wall[name]) for name in wall)
    ratios = [alone / whole for alone, whole in zip(*wall.values(), strict=True)]
    cpu_ms = {
        f"{name} CPU ms": 1e3 * statistics.median(values) / len(files)
        for name, values in cpu.items()
    }
    return {
        "detections": round(statistics.mean(found)),
        "batch": batch,
        "bare images/s": bare_rate,
        "end to end images/s": whole_rate,
        "end to end / bare": whole_rate / bare_rate,
        **cpu_ms,
        "range of the ratio": (min(ratios), max(ratios)),
    }


def _seconds(
    methods: dict[str, Callable[[], None]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Wall time, and CPU time of this process and those it started, of each method and round."""
    wall: dict[str, list[float]] = {name: [] for name in methods}
    cpu: dict[str, list[float]] = {name: [] for name in methods}
    for turn in range(-1, rounds):  # the first warms up
        for name, call in methods.items():
            start, used = time.perf_counter(), sum(os.times()[:4])
            call()
            gc.collect()  # ends the processes that read, so that their time counts
            if turn >= 0:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(sum(os.times()[:4]) - used)
    return wall, cpu


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print its table and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the model on a CPU")
    parser.add_argument("--workers", type=int, default=1, help="processes that read images")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--config", help="this one alone, with 100 detections")
    parser.add_argument("--quick", action="store_true", help="8 images, 3 rounds, one case")
    parser.add_argument(
        "--output", type=Path, help="default: benchmarks/results/predict_DEVICE.json"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    count, rounds, cases = args.images, args.rounds, CASES
    if args.quick:
        count, rounds, cases = 8, 3, CASES[:1]
    if args.config:
        cases = [(args.config, 100, 1)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        make_images(folder / "images", count)
        for config, detections, batch in tqdm(cases, desc="models"):
            predictor = make_predictor(config, detections, folder, args.device)
            row = compare(predictor, folder, batch, args.workers, rounds)
            rows.append({"config": config, **row})
    print(common.table(rows, COLUMNS))
    benchmark = f"predict_{args.device}"
    output = args.output or common.RESULTS / f"{benchmark}{'_quick' if args.quick else ''}.json"
    extra = {"images": count, "rounds": rounds, "workers": args.workers}
    print("written:", common.write_results(benchmark, rows, output, **extra))


if __name__ == "__main__":
    main()
