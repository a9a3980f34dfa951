"""Ground truth and detections made at random, in the forms of COCO and LVIS."""

import numpy as np
from pycocotools import mask as mask_util

SIDE = 160  # pixels of every image


def made(style, seed=0, num_images=20, num_classes=12, num_objects=6, num_detections=40):
    """Content of a json and a list of results with boxes and masks.

    Objects overlap, some are crowds (COCO) or ignored (LVIS), classes are long-tailed; detections
    are shaken objects, duplicates, other classes and noise, with scores of two decimals: many ties.
    """
    random = np.random.default_rng(seed)
    frequent = 1 / np.arange(1, num_classes + 1)
    frequent /= frequent.sum()
    images, annotations, results = [], [], []
    for image in range(1, num_images + 1):
        count = random.poisson(num_objects)
        classes = random.choice(num_classes, count, p=frequent) + 1
        boxes = _boxes(random, count)
        entry = {"id": image, "height": SIDE, "width": SIDE, "file_name": f"{image}.png"}
        if style == "lvis":
            others = sorted(set(range(1, num_classes + 1)) - set(classes.tolist()))
            absent = random.choice(others, min(4, len(others)), replace=False).tolist()
            unsure = [c for c in sorted(set(classes.tolist())) if random.random() < 0.2]
            entry |= {"neg_category_ids": absent, "not_exhaustive_category_ids": unsure}
        images.append(entry)
        for category, box in zip(classes.tolist(), boxes, strict=True):
            flag = int(random.random() < 0.1)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box.tolist(),
                    "area": float(box[2] * box[3] * random.uniform(0.4, 1)),
                    "segmentation": rle(box),
                    **({"ignore": flag} if style == "lvis" else {"iscrowd": flag}),
                }
            )
        results += _results(random, image, classes, boxes, num_classes, num_detections)
    categories = [
        {"id": k, "name": f"class {k}", "frequency": "fcr"[3 * k // (num_classes + 1)]}
        for k in range(1, num_classes + 1)
    ]
    if style == "coco":
        categories = [{"id": c["id"], "name": c["name"]} for c in categories]
    return {"images": images, "annotations": annotations, "categories": categories}, results


def rle(box):
    """Run lengths of an ellipse in a box XYWH."""
    y, x = np.ogrid[:SIDE, :SIDE]
    cx, cy, rx, ry = box[0] + box[2] / 2, box[1] + box[3] / 2, box[2] / 2, box[3] / 2
    mask = ((x - cx) / max(rx, 0.5)) ** 2 + ((y - cy) / max(ry, 0.5)) ** 2 <= 1
    found = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [SIDE, SIDE], "counts": found["counts"].decode()}


def _boxes(random, count):
    sides = np.exp(random.uniform(np.log(6), np.log(140), (count, 2)))
    corners = random.uniform(0, 1, (count, 2)) * (SIDE - sides)
    return np.hstack([corners, sides]).round(2)


def _results(random, image, classes, boxes, num_classes, count):
    found = []
    for _ in range(count):
        kind = random.random()
        category = int(random.integers(1, num_classes + 1))
        box = _boxes(random, 1)[0]
        if kind < 0.7 and len(boxes):
            which = random.integers(len(boxes))
            shake = random.normal(0, 0.12, 4) * np.tile(boxes[which, 2:], 2)
            box = (boxes[which] + shake).round(2)
            box[2:] = np.maximum(box[2:], 0)
            category = int(classes[which]) if kind < 0.6 else category
        found.append(
            {
                "image_id": image,
                "category_id": category,
                "bbox": box.tolist(),
                "segmentation": rle(box),
                "score": float(random.random().__round__(2)),
            }
        )
    return found
