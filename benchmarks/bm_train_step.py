"""Time of a training step with Rank & Sort Loss beside the same step with the usual losses.

    python benchmarks/bm_train_step.py                 # about 5 minutes on a CPU
    python benchmarks/bm_train_step.py --device cuda --size 800 --images 4

Each pair is one model on one batch with the same number of RoIs (nothing is sampled), once with
cross-entropy (dense detectors: focal loss) and once with Rank & Sort Loss, in turn, in one process.
ATSS and PAA have three anchors per cell with both; "as published" the baseline has one.

The loss's time is that inside the criteria: targets, weights and box loss included, the backward
pass not, which favours cross-entropy, as Rank & Sort Loss has its gradient by then. On a CPU the
convolutions take seconds, so the loss's share says more there than the ratio of the steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import common
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.model_zoo import get_config_file
from detectron2.modeling import RetinaNet, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from retinanet import RankSortRetinaNet
from torch import nn
from tqdm import tqdm

from rs_d2.config.load import find_config, load_config
from rs_d2.criterion import Criterion, LossOutput

LOSSES = ("baseline", "rank_sort")
COLUMNS = ("model", "positives", "baseline s", "rank_sort s", "step ratio")
COLUMNS += ("baseline loss ms", "rank_sort loss ms", "loss adds")


class LossClock:
    """Adds up the time inside the criteria of a model."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.seconds, self.positives, self.candidates = 0.0, 0, 0
        self._device, self._running = device, False
        for module in model.modules():
            if isinstance(module, Criterion):
                module.forward = partial(self._run, module.forward)
        if isinstance(model, RetinaNet):
            model.losses = partial(self._run, model.losses)

    def _run(self, forward: Callable[..., Any], *args: Any) -> Any:
        outermost, self._running = not self._running, True
        start = self._now()
        result = forward(*args)
        if outermost:
            self.seconds += self._now() - start
            self._running = False
        if isinstance(result, LossOutput):
            self.positives += len(result.weights)
            self.candidates += result.candidates.logits.numel()
        return result

    def _now(self) -> float:
        if self._device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def rcnn_config(name: str, loss: str) -> CfgNode:
    """A shipped config with a loss in both stages; of the baseline that is cross-entropy."""
    loss = "cross_entropy" if loss == "baseline" else loss
    opts = ["MODEL.WEIGHTS", ""]
    for head in ("RPN", "ROI_BOX_HEAD"):
        opts += [f"MODEL.{head}.CRITERION.LOSS", loss]
    return load_config(find_config(name), opts)[0]


def retinanet_config(loss: str) -> CfgNode:
    """Detectron2's RetinaNet, or the same with Rank & Sort Loss."""
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file("COCO-Detection/retinanet_R_50_FPN_1x.yaml"))
    cfg.MODEL.WEIGHTS = ""
    if loss == "rank_sort":
        cfg.MODEL.META_ARCHITECTURE = RankSortRetinaNet.__name__
    return cfg


def dense_config(architecture: str, loss: str, *, as_published: bool = False) -> CfgNode:
    """A shipped dense detector; its baseline gets the same anchors, if not as published."""
    ranked = f"configs/COCO-Detection/rs_{architecture}_R_50_FPN_1x.yaml"
    opts = ["MODEL.WEIGHTS", ""]
    if loss == "rank_sort":
        return load_config(find_config(ranked), opts)[0]
    name = f"configs/COCO-Detection/{architecture}_R_50_FPN_1x.yaml"
    cfg = load_config(find_config(name), opts)[0]
    if not as_published:
        anchors = load_config(find_config(ranked), opts)[0].MODEL.ANCHOR_GENERATOR
        cfg.MODEL.ANCHOR_GENERATOR = anchors
    return cfg


def one_stage_mask_config(model: str, loss: str) -> CfgNode:
    """YOLACT or SOLOv2 as shipped."""
    prefix = "rs_" if loss == "rank_sort" else ""
    name = f"configs/COCO-InstanceSegmentation/{prefix}{model}.yaml"
    return load_config(find_config(name), ["MODEL.WEIGHTS", ""])[0]


CONFIGS = {
    "Faster R-CNN": "configs/COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml",
    "Mask R-CNN": "configs/COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x.yaml",
    "Cascade R-CNN": "configs/COCO-Detection/rs_cascade_rcnn_R_50_FPN_1x.yaml",
}
MODELS: dict[str, Callable[[str], CfgNode]] = {
    **{name: partial(rcnn_config, path) for name, path in CONFIGS.items()},
    "RetinaNet": retinanet_config,
    "ATSS": partial(dense_config, "atss"),
    "PAA": partial(dense_config, "paa"),
    "YOLACT": partial(one_stage_mask_config, "yolact_R_50_FPN_55e"),
    "SOLOv2-light": partial(one_stage_mask_config, "solov2_light_R_34_FPN_3x"),
    "ATSS as published": partial(dense_config, "atss", as_published=True),
    "PAA as published": partial(dense_config, "paa", as_published=True),
}


def make_batch(
    num_images: int, size: int, num_objects: int = 7, num_classes: int = 80
) -> list[dict[str, Any]]:
    """Noise with boxes and masks of many sizes, as a mapper would return it."""
    rng = torch.Generator().manual_seed(0)
    batch = []
    for _ in range(num_images):
        corner = torch.rand(num_objects, 2, generator=rng) * size * 0.6
        extent = (torch.rand(num_objects, 2, generator=rng) * 0.35 + 0.05) * size
        boxes = torch.cat([corner, corner + extent], dim=1)
        instances = Instances((size, size), gt_boxes=Boxes(boxes))
        instances.gt_classes = torch.randint(num_classes, (num_objects,), generator=rng)
        instances.gt_masks = BitMasks(torch.rand(num_objects, size, size, generator=rng) > 0.5)
        image = torch.randint(256, (3, size, size), generator=rng, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": size, "width": size})
    return batch


def build(cfg: CfgNode, device: str) -> nn.Module:
    """The model with random weights, quiet enough that boxes stay on the image."""
    cfg.MODEL.DEVICE = device
    torch.manual_seed(0)
    model = build_model(cfg).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("conv3.weight"):  # untrained residual branches would explode
                parameter.mul_(0.1)
    return model


def step(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    """Forward and backward."""
    with EventStorage():
        sum(model(batch).values()).backward()
    model.zero_grad()


def time_losses(
    models: Mapping[str, nn.Module], batch: list[dict[str, Any]], rounds: int, device: str
) -> tuple[dict[str, Any], dict[str, LossClock], dict[str, float]]:
    """Times of a step of each model in turn, and the clocks and milliseconds of their criteria."""
    clocks = {name: LossClock(model, device) for name, model in models.items()}
    steps = {name: partial(step, model, batch) for name, model in models.items()}
    for one_step in steps.values():
        one_step()  # warm up
    for clock in clocks.values():
        clock.seconds, clock.positives, clock.candidates = 0.0, 0, 0
    times = common.measure(steps, rounds, warmup=0, device=device)
    return times, clocks, {name: 1e3 * clock.seconds / rounds for name, clock in clocks.items()}


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One row: a model with its usual losses and with Rank & Sort Loss."""
    batch = make_batch(args.images, args.size)
    models = {loss: build(MODELS[name](loss), args.device) for loss in LOSSES}
    times, clocks, loss_ms = time_losses(models, batch, args.rounds, args.device)
    baseline, rank_sort = (times[loss].median_ms for loss in LOSSES)
    return {
        "model": name,
        "positives": clocks["rank_sort"].positives // args.rounds,
        "baseline s": baseline / 1e3,
        "rank_sort s": rank_sort / 1e3,
        "step ratio": rank_sort / baseline,
        "baseline loss ms": loss_ms["baseline"],
        "rank_sort loss ms": loss_ms["rank_sort"],
        "loss adds": f"{(loss_ms['rank_sort'] - loss_ms['baseline']) / baseline:.1%}",
        "range ms": {loss: time.spread_ms for loss, time in times.items()},
    }


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark, print its table and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, default=320, help="side of an image, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="default: results/train_step_DEVICE.json")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = [compare(name, args) for name in tqdm(args.models, desc="models")]
    print(common.table(rows, COLUMNS))
    setting = {"images": args.images, "size": args.size, "rounds": args.rounds}
    name = f"train_step_{args.device}"
    print("written:", common.write_results(name, rows, args.output, setting=setting))


if __name__ == "__main__":
    main()
