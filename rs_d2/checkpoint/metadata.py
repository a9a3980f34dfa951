"""What a checkpoint file tells about its model: config, class names, results.

It stands under one entry beside ``model``, made of plain types, so that ``torch.load`` reads it
with ``weights_only=True`` and Detectron2 passes over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rs_d2.utils.errors import UserError
from rs_d2.version import __version__

ENTRY = "rs_d2"


class CheckpointMetadata(NamedTuple):
    """The entry ``rs_d2`` of a checkpoint.

    ``config``: the whole config as yaml; ``class_names``: in the order of the model's outputs,
    empty if they are not known; ``metrics``: of an evaluation, such as "bbox/AP", in percent;
    ``revision``: of the code, with git; ``version``: of rs_d2.
    """

    config: str
    class_names: tuple[str, ...] = ()
    metrics: Mapping[str, float] = {}
    revision: str = ""
    version: str = __version__

    def to_entry(self) -> dict[str, Any]:
        """The same in plain types, to be stored under ``ENTRY``."""
        return {
            "config": self.config,
            "class_names": list(self.class_names),
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "revision": self.revision,
            "version": self.version,
        }


def portable_config(cfg: Any) -> str:
    """A config as yaml, without the paths and the device of the machine that it comes from."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE, cfg.OUTPUT_DIR = "", "cuda", "./output"
    return cfg.dump()


def read_metadata(content: Mapping[str, Any], filename: str) -> CheckpointMetadata | None:
    """The metadata of a loaded checkpoint; None where it has none, such as Detectron2's own files.

    Args:
        content: what ``torch.load`` returned.
        filename: for the message.

    Raises:
        UserError: The entry is not what :meth:`CheckpointMetadata.to_entry` writes.
    """
    entry = content.get(ENTRY)
    if entry is None:
        return None
    names = entry.get("class_names", []) if isinstance(entry, Mapping) else None
    fits = (
        isinstance(names, Sequence)
        and all(isinstance(name, str) for name in names)
        and isinstance(entry.get("config"), str)
        and isinstance(entry.get("metrics", {}), Mapping)
    )
    if not fits:
        raise UserError(f"{filename}: its entry '{ENTRY}' is not the metadata of a checkpoint")
    return CheckpointMetadata(
        config=entry["config"],
        class_names=tuple(names),
        metrics=dict(entry.get("metrics", {})),
        revision=str(entry.get("revision", "")),
        version=str(entry.get("version", "")),
    )
