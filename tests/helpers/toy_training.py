"""A training whose iterations take milliseconds, with all that a resumed one has to restore."""

import json
import random

import numpy as np
import torch
from helpers.tiny import own_data, write_config
from PIL import Image
from torch import nn

from rs_d2 import engine
from rs_d2.criterion.balancing import EpochBalancer

SIZES = ((20, 12), (12, 20), (16, 16), (24, 10), (10, 24))  # both groups of aspect ratios


class Toy(nn.Module):
    """Draws from every source of random numbers; has running statistics and a balancer."""

    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.balancer = EpochBalancer(period=5)

    def forward(self, batch):
        images = [each["image"].float().flatten(1) / 255 for each in batch]
        features = torch.stack([torch.cat([x.mean(1), x.std(1)]) for x in images])
        boxes = torch.stack([each["instances"].gt_boxes.tensor.mean() / 20 for each in batch])
        features = nn.functional.dropout(self.norm(features), 0.2)
        first, second = self.linear(features).square().mean(0)
        noise = torch.rand(()) + np.random.rand() + random.random()
        loss = (second - boxes.mean()).square() + 1
        return {"loss_a": first * noise, "loss_b": self.balancer(loss, first.detach())}


class ToyTrainer(engine.RSTrainer):
    """The trainer, of that model; keeps the losses of every iteration."""

    @classmethod
    def build_model(cls, cfg):
        torch.manual_seed(1)  # as of pretrained weights
        return Toy()

    def __init__(self, cfg):
        super().__init__(cfg)
        self.seen = {}

    def after_step(self):
        latest = self.storage.latest()
        names = ("loss_a", "loss_b", "total_loss", "lr")
        super().after_step()
        self.seen[self.iter] = [latest[name] for name in names if name in latest]


def toy_data(folder, num_images=13):
    """A json with images of noise beside it; some classes are rare."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(exist_ok=True)
    images, annotations = [], []
    for i in range(num_images):
        width, height = SIZES[i % len(SIZES)]
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        box = [1, 1, 4 + i % 5, 6]
        annotations.append(
            {"id": i + 1, "image_id": i, "category_id": 1 + (i % 6 == 0), "bbox": box, "iscrowd": 0}
            | {"area": box[2] * box[3]}
        )
    categories = [{"id": 1, "name": "often"}, {"id": 2, "name": "rare"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


def toy_arguments(folder, output, *options):
    """For ``prepare``: 45 iterations of 2 images, a checkpoint every 6."""
    if not (folder / "train.json").is_file():
        toy_data(folder)
    config = folder / "tiny.yaml"
    if not config.is_file():
        write_config(folder)
    train, images = own_data(folder / "train.json")[1::2]
    fixed = ["OUTPUT_DIR", str(output), "MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "45"]
    fixed += ["SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "6", "SOLVER.STEPS", "(15,)"]
    fixed += ["INPUT.MIN_SIZE_TRAIN", "(10, 14)", "SOLVER.WARMUP_ITERS", "10"]
    fixed += ["DATALOADER.REPEAT_THRESHOLD", "0.7", *options]
    return str(config), fixed, engine.OwnData(train, images)


def toy_config(folder, output, *options, resume=False):
    """The config of a toy training."""
    cfg, _ = engine.prepare(*toy_arguments(folder, output, *options), resume=resume)
    return cfg


def toy_trainer(cfg, resume=False):
    """A trainer that has loaded what it goes on from."""
    from detectron2.utils.env import seed_all_rng

    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    trainer = ToyTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def log_lines(output):
    """Of ``train_log.jsonl``, without what measures time."""
    lines = [json.loads(line) for line in (output / "train_log.jsonl").read_text().splitlines()]
    times = ("time", "data_time", "eta_seconds")
    return [{name: line[name] for name in line if name not in times} for line in lines]
