"""mmdetection's names of a detector's tensors, and checkpoints renamed from and to them.

The layers are the same on both sides: no tensor is transposed, reordered or scaled.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# Detectron2's name of a layer (or of a parameter outside of layers), mmdetection's name. ``{x}`` is
# a number; on the right it may be lowered, by ``first`` too: the number of the pyramid's finest
# level, 2 for P2. ``{norm}`` is bn, or gn for a norm without statistics. The first match counts.
RULES = (
    ("backbone.bottom_up.stem.conv1.norm", "backbone.{norm}1"),
    ("backbone.bottom_up.stem.conv1", "backbone.conv1"),
    ("backbone.bottom_up.res{s}.{b}.conv{k}.norm", "backbone.layer{s-1}.{b}.{norm}{k}"),
    ("backbone.bottom_up.res{s}.{b}.conv2_offset", "backbone.layer{s-1}.{b}.conv2.conv_offset"),
    ("backbone.bottom_up.res{s}.{b}.conv{k}", "backbone.layer{s-1}.{b}.conv{k}"),
    ("backbone.bottom_up.res{s}.{b}.shortcut.norm", "backbone.layer{s-1}.{b}.downsample.1"),
    ("backbone.bottom_up.res{s}.{b}.shortcut", "backbone.layer{s-1}.{b}.downsample.0"),
    ("backbone.fpn_lateral{i}.norm", "neck.lateral_convs.{i-first}.{norm}"),
    ("backbone.fpn_lateral{i}", "neck.lateral_convs.{i-first}.conv"),
    ("backbone.fpn_output{i}.norm", "neck.fpn_convs.{i-first}.{norm}"),
    ("backbone.fpn_output{i}", "neck.fpn_convs.{i-first}.conv"),
    ("backbone.top_block.p{i}", "neck.fpn_convs.{i-first}.conv"),
    (
        "backbone.fpn_upsample{i}.channel_compressor",
        "neck.upsample_modules.{i-first-1}.channel_compressor",
    ),
    (
        "backbone.fpn_upsample{i}.content_encoder",
        "neck.upsample_modules.{i-first-1}.content_encoder",
    ),
    ("proposal_generator.rpn_head.conv", "rpn_head.rpn_conv"),
    ("proposal_generator.rpn_head.objectness_logits", "rpn_head.rpn_cls"),
    ("proposal_generator.rpn_head.anchor_deltas", "rpn_head.rpn_reg"),
    ("roi_heads.box_head.fc{i}", "roi_head.bbox_head.shared_fcs.{i-1}"),
    ("roi_heads.box_predictor.cls_score", "roi_head.bbox_head.fc_cls"),
    ("roi_heads.box_predictor.bbox_pred", "roi_head.bbox_head.fc_reg"),
    ("roi_heads.box_head.{k}.fc{i}", "roi_head.bbox_head.{k}.shared_fcs.{i-1}"),
    ("roi_heads.box_predictor.{k}.cls_score", "roi_head.bbox_head.{k}.fc_cls"),
    ("roi_heads.box_predictor.{k}.bbox_pred", "roi_head.bbox_head.{k}.fc_reg"),
    ("roi_heads.mask_head.mask_fcn{i}.norm", "roi_head.mask_head.convs.{i-1}.{norm}"),
    ("roi_heads.mask_head.mask_fcn{i}", "roi_head.mask_head.convs.{i-1}.conv"),
    ("roi_heads.mask_head.deconv", "roi_head.mask_head.upsample"),
    ("roi_heads.mask_head.predictor", "roi_head.mask_head.conv_logits"),
    ("head.cls_tower.{i}.norm", "bbox_head.cls_convs.{i}.{norm}"),
    ("head.cls_tower.{i}", "bbox_head.cls_convs.{i}.conv"),
    ("head.bbox_tower.{i}.norm", "bbox_head.reg_convs.{i}.{norm}"),
    ("head.bbox_tower.{i}", "bbox_head.reg_convs.{i}.conv"),
    ("head.cls_score", "bbox_head.atss_cls"),
    ("head.bbox_pred", "bbox_head.atss_reg"),
    ("head.quality", "bbox_head.atss_centerness"),
    ("head.scales.{i}", "bbox_head.scales.{i}.scale"),
    ("head.category_tower.{i}.norm", "bbox_head.cate_convs.{i}.{norm}"),
    ("head.category_tower.{i}", "bbox_head.cate_convs.{i}.conv"),
    ("head.kernel_tower.{i}.norm", "bbox_head.kernel_convs.{i}.{norm}"),
    ("head.kernel_tower.{i}", "bbox_head.kernel_convs.{i}.conv"),
    ("head.category", "bbox_head.solo_cate"),
    ("head.kernel", "bbox_head.solo_kernel"),
    (
        "head.mask_features.levels.{k}.{i}.norm",
        "mask_feat_head.convs_all_levels.{k}.conv{i}.{norm}",
    ),
    ("head.mask_features.levels.{k}.{i}", "mask_feat_head.convs_all_levels.{k}.conv{i}.conv"),
    ("head.mask_features.out.norm", "mask_feat_head.conv_pred.0.{norm}"),
    ("head.mask_features.out", "mask_feat_head.conv_pred.0.conv"),
    ("head.prediction.conv", "bbox_head.head_convs.0.conv"),
    ("head.prediction.cls_score", "bbox_head.conv_cls"),
    ("head.prediction.bbox_pred", "bbox_head.conv_reg"),
    ("head.prediction.coefficients", "bbox_head.conv_coeff"),
    ("head.protonet.{i}", "mask_head.protonet.{i}"),
    ("head.semantic", "segm_head.segm_conv"),
)

_COUNTER = "num_batches_tracked"  # of live batch norm; nothing reads it where statistics are frozen
_STATISTIC = "running_mean"
_ENTRY = rf"(?P<entry>\.(?:weight|bias|{_STATISTIC}|running_var|{_COUNTER}))?"
_NUMBER = re.compile(r"\{(\w+)((?:-\w+)*)\}")
_LATERAL = re.compile(r"backbone\.fpn_lateral(\d+)\.")


class WrongShape(NamedTuple):
    """A tensor whose counterpart has another shape."""

    name: str
    found: tuple[int, ...]
    expected: tuple[int, ...]


class Conversion(NamedTuple):
    """A renamed state dict, and what stands in its way.

    ``state``: by the new names; ``dropped``: old names without a counterpart that nothing needs;
    ``unmatched_source``: old names that the model has no place for; ``unmatched_target``: new names
    that nothing in the source gives; ``wrong_shapes``: by the new names.
    """

    state: dict[str, Tensor]
    dropped: tuple[str, ...]
    unmatched_source: tuple[str, ...]
    unmatched_target: tuple[str, ...]
    wrong_shapes: tuple[WrongShape, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor found its place."""
        return not (self.unmatched_source or self.unmatched_target or self.wrong_shapes)


def official_names(names: Collection[str]) -> dict[str, str]:
    """The name that mmdetection gives to each of a model's tensors.

    Args:
        names: all keys of the state dict of a model of this package: the finest level of its
            pyramid shifts the numbers of the others, statistics tell batch norm from group norm.

    Returns:
        By the given names; what mmdetection has no counterpart for is left out.
    """
    known = set(names)
    levels = [int(match[1]) for match in map(_LATERAL.match, known) if match]
    first = min(levels, default=2)
    found = ((name, _official_name(name, known, first)) for name in names)
    return {name: official for name, official in found if official is not None}


def to_detectron2(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Conversion:
    """Rename the tensors of mmdetection's checkpoint for a model of this package.

    Args:
        state: the entry ``state_dict`` of the checkpoint.
        shapes: of all tensors in the state dict of the model, by name.
    """
    official = official_names(shapes)
    return _rename(state, {name: official.get(name, "") for name in shapes}, shapes)


def to_mmdet(state: Mapping[str, Tensor], shapes: Mapping[str, torch.Size]) -> Conversion:
    """Rename the tensors of a model of this package for mmdetection.

    Each batch norm gets the counter (0) that mmdetection's layers have.

    Args:
        state: of the model, or read from a checkpoint of it.
        shapes: of all tensors in the state dict of the model, by name.
    """
    official = official_names(shapes)
    sources = {theirs: ours for ours, theirs in official.items()}
    done = _rename(state, sources, {theirs: shapes[ours] for theirs, ours in sources.items()})
    for name in [name for name in done.state if name.endswith(f".{_STATISTIC}")]:
        counter = name.removesuffix(_STATISTIC) + _COUNTER
        done.state.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return done


def describe(conversion: Conversion) -> str:
    """Everything that stands in a conversion's way, a layer in a line; empty if it is complete."""
    parts = []
    for title, names in (
        ("in the file, but not in the config's model", conversion.unmatched_source),
        ("in the config's model, but not in the file", conversion.unmatched_target),
    ):
        layers: dict[str, list[str]] = {}
        for name in names:
            layer, _, entry = name.rpartition(".")
            layers.setdefault(layer, []).append(entry)
        parts += [f"{title} ({len(names)}):"] if names else []
        parts += [f"  {layer}.{{{', '.join(entries)}}}" for layer, entries in layers.items()]
    wrong = conversion.wrong_shapes
    parts += [f"of another shape ({len(wrong)}):"] if wrong else []
    parts += [f"  {w.name}: {w.found} in the file, {w.expected} in the model" for w in wrong]
    return "\n".join(parts)


def _rename(
    state: Mapping[str, Tensor], sources: Mapping[str, str], shapes: Mapping[str, torch.Size]
) -> Conversion:
    """Fill the names of ``sources`` with the tensors that their values name."""
    renamed = {name: state[source] for name, source in sources.items() if source in state}
    used = set(sources.values())
    unused = [name for name in state if name not in used]
    wrong = (
        WrongShape(name, tuple(value.shape), tuple(shapes[name])) for name, value in renamed.items()
    )
    return Conversion(
        state=renamed,
        dropped=tuple(name for name in unused if name.endswith(f".{_COUNTER}")),
        unmatched_source=tuple(name for name in unused if not name.endswith(f".{_COUNTER}")),
        unmatched_target=tuple(name for name in sources if name not in renamed),
        wrong_shapes=tuple(entry for entry in wrong if entry.found != entry.expected),
    )


def _official_name(name: str, known: Collection[str], first: int) -> str | None:
    for pattern, official in _PATTERNS:
        match = pattern.fullmatch(name)
        if match is not None:
            entry = match["entry"] or ""
            has_statistics = f"{name.removesuffix(entry)}.{_STATISTIC}" in known
            values = {**match.groupdict(), "first": first, "norm": "bn" if has_statistics else "gn"}
            return _filled(official, values) + entry
    return None


def _filled(template: str, values: Mapping[str, str | int]) -> str:
    """Put the values in, less what is to be taken off them."""

    def value(match: re.Match[str]) -> str:
        name, less = match[1], match[2].split("-")[1:]
        if not less:
            return str(values[name])
        return str(int(values[name]) - sum(int(values.get(term, term)) for term in less))

    return _NUMBER.sub(value, template)


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(template)) + _ENTRY)


_PATTERNS = [(_pattern(ours), official) for ours, official in RULES]
