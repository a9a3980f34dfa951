"""Losses of short trainings at a fixed seed, to show that a change of structure changes no number.

``python tests/helpers/training_losses.py --output before.json`` on one revision, then
``--compare before.json`` on another: prints the largest difference of each model and term.
Needs nothing but Detectron2, this package and its configs.
"""

import argparse
import json
from pathlib import Path

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from rs_d2 import add_rs_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SMALL_R50 = """
    MODEL.RESNETS.STEM_OUT_CHANNELS 8 MODEL.RESNETS.RES2_OUT_CHANNELS 32
    MODEL.FPN.OUT_CHANNELS 64 MODEL.ROI_BOX_HEAD.FC_DIM 64 MODEL.ROI_MASK_HEAD.CONV_DIM 16
    MODEL.RPN.POST_NMS_TOPK_TRAIN 200 MODEL.RETINANET.NUM_CONVS 1
    MODEL.BACKBONE.FREEZE_AT 0 MODEL.RESNETS.NORM BN
"""
# Quick configs as they are, and published ones with narrow layers: each model and its baseline.
MODELS = {
    "mask_quick": ("quick/rs_mask_rcnn_digits.yaml", ""),
    "mask": ("COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x.yaml", SMALL_R50),
    "mask_baseline": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml", SMALL_R50),
    "cascade_quick": ("quick/rs_cascade_rcnn_own_data.yaml", ""),
    "cascade": ("COCO-Detection/rs_cascade_rcnn_R_50_FPN_1x.yaml", SMALL_R50),
    "cascade_baseline": ("COCO-Detection/cascade_rcnn_R_50_FPN_1x.yaml", SMALL_R50),
    "atss_quick": ("quick/rs_atss_digits.yaml", ""),
    "atss_baseline_quick": ("quick/atss_digits.yaml", ""),
    "atss": ("COCO-Detection/rs_atss_R_50_FPN_1x.yaml", SMALL_R50),
    "atss_baseline": ("COCO-Detection/atss_R_50_FPN_1x.yaml", SMALL_R50),
    "paa_quick": ("quick/rs_paa_digits.yaml", ""),
    "paa_baseline_quick": ("quick/paa_digits.yaml", ""),
    "paa": ("COCO-Detection/rs_paa_R_50_FPN_1x.yaml", SMALL_R50),
    "paa_baseline": ("COCO-Detection/paa_R_50_FPN_1x.yaml", SMALL_R50),
}
ITERATIONS = 20


def batch(generator, num_classes, with_masks):
    """Two images of different sizes with one to eight objects each."""
    inputs = []
    for height, width in ((160, 192), (128, 200)):
        number = int(torch.randint(1, 9, (), generator=generator))
        corner = torch.rand(number, 2, generator=generator) * torch.tensor([width, height]) * 0.7
        size = 12 + torch.rand(number, 2, generator=generator) * 60
        far = torch.minimum(corner + size, torch.tensor([width - 1.0, height - 1.0]))
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([corner, far], dim=1))
        instances.gt_classes = torch.randint(num_classes, (number,), generator=generator)
        if with_masks:
            y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            center, radius = (corner + far) / 2, (far - corner) / 2
            dx = (x[None] - center[:, 0, None, None]) / radius[:, 0, None, None]
            dy = (y[None] - center[:, 1, None, None]) / radius[:, 1, None, None]
            instances.gt_masks = BitMasks(dx.square() + dy.square() <= 1)
        image = torch.randint(256, (3, height, width), generator=generator, dtype=torch.uint8)
        inputs.append({"image": image, "instances": instances, "height": height, "width": width})
    return inputs


def train(name):
    """Losses of every iteration, by term."""
    config, options = MODELS[name]
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_file(str(CONFIGS / config))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", *options.split()])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    dense = cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN"
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES if dense else cfg.MODEL.ROI_HEADS.NUM_CLASSES
    rows = []
    with EventStorage(0):
        for _ in range(ITERATIONS):
            losses = model(batch(generator, num_classes, cfg.MODEL.MASK_ON))
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            rows.append({key: float(value.detach()) for key, value in losses.items()})
    return rows


def largest_differences(before, after):
    """Term -> (relative to the larger of both and 1e-3, iteration)."""
    found = {}
    for iteration, (old, new) in enumerate(zip(before, after, strict=True)):
        if old.keys() != new.keys():
            return {"terms": (sorted(old), sorted(new))}
        for term, value in old.items():
            relative = abs(value - new[term]) / max(abs(value), abs(new[term]), 1e-3)
            found[term] = max(found.get(term, (0.0, 0)), (relative, iteration))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in args.only:
        results[name] = train(name)
        if args.compare:
            before = json.loads(args.compare.read_text())[name]
            worst = largest_differences(before, results[name])
            print(f"{name:22}", worst, flush=True)
        else:
            print(f"{name:22}", results[name][-1], flush=True)
    if args.output:
        args.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
