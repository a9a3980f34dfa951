"""Results in COCO's form, to be written."""

from __future__ import annotations

from typing import Any

from rs_d2.coco.records import Detections, GroundTruth


def as_results(detections: Detections, ground_truth: GroundTruth) -> list[dict[str, Any]]:
    """Results in COCO's form, in the order of the detections; masks where there are any."""
    columns = {
        "image_id": ground_truth.image_ids[detections.images].tolist(),
        "category_id": ground_truth.category_ids[detections.categories].tolist(),
        "bbox": detections.boxes.tolist(),
        "score": detections.scores.tolist(),
    }
    if detections.rles is not None:
        columns["segmentation"] = [
            {"size": [int(side) for side in rle["size"]], "counts": _as_text(rle["counts"])}
            for rle in detections.rles
        ]
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _as_text(counts: str | bytes) -> str:
    return counts if isinstance(counts, str) else counts.decode()
