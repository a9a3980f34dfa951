"""ResNet weights under torchvision's names, as its hub and mmdetection's give them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Of a whole name, in this order; what matches none of them keeps its name.
_RENAMES = (
    (re.compile(r"^(conv1|bn1)\."), r"stem.\1."),
    (re.compile(r"^layer(\d)\.(\d+)\."), lambda match: f"res{int(match[1]) + 1}.{match[2]}."),
    (re.compile(r"\bdownsample\.0\."), "shortcut."),
    (re.compile(r"\bdownsample\.1\."), "shortcut.norm."),
    (re.compile(r"\bbn(\d)\."), r"conv\1.norm."),
)
_RECOGNISED = ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight")
_UNUSED = re.compile(r"^fc\.|\.num_batches_tracked$")


def torchvision_resnet(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Entries of a torchvision ResNet or ResNeXt under the names of Detectron2's ResNet.

    ``layer1.0.bn2.weight`` becomes ``res2.0.conv2.norm.weight`` and so on; the values do not
    change. The classifier and the counters of batch norm have no counterpart and are left out.

    Args:
        content: of a file; the entries, or a dictionary that has them as ``state_dict``.

    Returns:
        The renamed entries; None if the names are not torchvision's.
    """
    state = content.get("state_dict", content)
    if not set(_RECOGNISED) <= set(state):
        return None
    return {_rename(name): value for name, value in state.items() if not _UNUSED.search(name)}


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name
