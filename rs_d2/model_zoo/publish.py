"""A training checkpoint made ready to be given away: weights and metadata, named by their hash."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from rs_d2.checkpoint.metadata import ENTRY, CheckpointMetadata
from rs_d2.model_zoo.api import HASH_LENGTH
from rs_d2.model_zoo.rows import Measurement
from rs_d2.utils.atomic_write import atomic_write
from rs_d2.utils.folders import make_folder
from rs_d2.utils.outputs import check_outputs

_TASKS = {"bbox": "box", "segm": "mask"}
_SHOWN = ("AP", "AP50", "AP75", "APr", "APc", "APf", "oLRP")


def write_published(
    state: Mapping[str, torch.Tensor],
    about: CheckpointMetadata,
    folder: Path,
    name: str,
    inputs: Iterable[str | Path | None] = (),
) -> Path:
    """Write ``NAME-HASH.pth``; equal content and version of PyTorch give equal bytes.

    The hash is the beginning of the file's SHA-256. The file appears at once and whole; one that
    is there with this very content is left as it is.

    Args:
        state: tensors by parameter name, as the model's ``state_dict`` gives them.
        about: what the file says of them.
        folder: made if needed.
        name: may have folders in front, such as "COCO-Detection/rs_faster_rcnn_R_50_FPN_1x".

        inputs: files that must not be overwritten.

    Returns:
        The file.

    Raises:
        UserError: It cannot be written.
    """
    # As json gives it: pickle's bytes depend on which equal strings are one object.
    entry = json.loads(json.dumps(about.to_entry()))
    content = io.BytesIO()
    torch.save({"model": _plain(state), ENTRY: entry}, content)
    digest = hashlib.sha256(content.getbuffer()).hexdigest()[:HASH_LENGTH]
    path = folder / f"{name}-{digest}.pth"
    make_folder(path.parent, "OUT_FOLDER")
    if path.is_file() and path.read_bytes() == content.getbuffer():
        return path
    check_outputs(inputs, [("OUT_FOLDER", path)])
    with atomic_write(path) as file:
        file.write(content.getbuffer())
    return path


def measurement(cfg: Any, about: CheckpointMetadata, config: str) -> Measurement:
    """The row of the model zoo for a published file.

    Args:
        cfg: config it was trained with.
        about: its metadata.
        config: name of the config, below ``configs/``.
    """
    solver = cfg.SOLVER
    return Measurement(
        config=config,
        data=", ".join(cfg.DATASETS.TRAIN),
        budget=f"{solver.MAX_ITER} iterations of {solver.IMS_PER_BATCH} images",
        result=_result(about.metrics) or "not evaluated",
    )


def _result(metrics: Mapping[str, float]) -> str:
    """Such as "box AP 33.4, AP50 57.3; mask AP 32.2"."""
    parts = []
    for task in dict.fromkeys(name.rpartition("/")[0] for name in metrics):
        named = ((metric, metrics.get(f"{task}/{metric}")) for metric in _SHOWN)
        values = ", ".join(f"{metric} {value:.1f}" for metric, value in named if value is not None)
        if values:
            *dataset, kind = task.split("/")
            parts.append(" ".join([*dataset, _TASKS.get(kind, kind), values]))
    return "; ".join(parts)


def _plain(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies that share no memory, in the order of their names: one form for equal content."""
    return {
        sys.intern(name): state[name].detach().cpu().contiguous().clone() for name in sorted(state)
    }
