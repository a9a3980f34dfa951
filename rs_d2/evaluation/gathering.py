"""Detections of all processes in one, sent as a few arrays."""

from __future__ import annotations

import numpy as np
from detectron2.utils import comm

from rs_d2.coco.records import Detections, concatenate, object_array


def gather_detections(part: Detections, image_sizes: np.ndarray) -> Detections | None:
    """Collect the detections of every process in the first.

    Each process sends one table of numbers and the run lengths of its masks as one string of
    bytes, never an object per detection.

    Args:
        part: detections of this process; masks in all processes or in none, but for those without
            any detection.
        image_sizes: [I, 2], height and width, which say the size of each mask.

    Returns:
        All detections, in the order of the processes; None in every process but the first.
    """
    if comm.get_world_size() == 1:
        return part
    packed = comm.gather(_pack(part), dst=0)
    if not comm.is_main_process():
        return None
    parts = [_unpack(arrays, image_sizes) for arrays in packed if len(arrays[0])]
    return concatenate(parts) if parts else part


def _pack(part: Detections) -> tuple[np.ndarray, ...]:
    indices = np.stack([part.images, part.categories], axis=1).astype(np.int64)
    numbers = np.column_stack([part.scores, part.boxes]).astype(float)
    if part.rles is None:
        return indices, numbers
    counts = [rle["counts"] for rle in part.rles]
    counts = [c.encode() if isinstance(c, str) else c for c in counts]
    lengths = np.array([len(c) for c in counts], dtype=np.int64)
    return indices, numbers, lengths, np.frombuffer(b"".join(counts), dtype=np.uint8)


def _unpack(arrays: tuple[np.ndarray, ...], image_sizes: np.ndarray) -> Detections:
    indices, numbers, *masks = arrays
    rles = None
    if masks:
        ends, data = np.cumsum(masks[0]).tolist(), masks[1].tobytes()
        sizes = image_sizes[indices[:, 0]].tolist()
        rles = object_array(
            [
                {"size": size, "counts": data[start:end]}
                for size, start, end in zip(sizes, [0, *ends], ends, strict=False)
            ]
        )
    return Detections(indices[:, 0], indices[:, 1], numbers[:, 0], numbers[:, 1:], rles)
