"""The publication's tables of comparisons: rows, config files, and the numbers that it printed.

A row's own lines stand in ``configs/ablations/<table>/<name>.yaml``, its published numbers here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

_AP, _AP50, _AP75 = "bbox/AP", "bbox/AP50", "bbox/AP75"
_MASKS = ("segm/AP", "segm/AP50", "segm/AP75")
FIRST_EPOCH = "bbox/AP after one epoch"
RATIOS = ("rpn_instances", "rcnn_instances", "rpn_tasks", "rcnn_tasks")  # negatives for a positive


@dataclass(frozen=True)
class Row:
    """A variant of a table.

    Attributes:
        name: of its file, and of its runs.
        labels: what it is, in the table's ``columns``.
        published: the publication's numbers by metric.
        is_other_data: it differs in data or schedule, so only its published numbers are shown.
    """

    name: str
    labels: tuple[str, ...]
    published: Mapping[str, float] = field(default_factory=dict)
    is_other_data: bool = False


@dataclass(frozen=True)
class Table:
    """A comparison.

    Attributes:
        name: "S1" and so on.
        title: what is compared.
        columns: names of the rows' labels; of a grid the second one runs to the right.
        metrics: what is shown, such as "bbox/AP".
        rows: the variants.
        base: configs that the variants are laid over, ``ablations/{base}_digits.yaml`` and
            ``ablations/{base}_own_data.yaml``.
        is_grid: the rows are cells of a grid, of which the first metric is shown.
        by_epoch: evaluate after every epoch.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    base: str
    is_grid: bool = False
    by_epoch: bool = False


def _ap(ap: float, ap50: float | None = None, ap75: float | None = None) -> dict[str, float]:
    values = {_AP: ap, _AP50: ap50, _AP75: ap75}
    return {name: value for name, value in values.items() if value is not None}


_S1_BALANCES = {
    "constant_1": "constant 1",
    "constant_2": "constant 2",
    "constant_3": "constant 3",
    "value": "value",
    "magnitude": "magnitude",
}
_S1 = {
    "none": (38.9, 39.7, 39.7, 39.7, 39.4),
    "centerness": (38.8, 39.8, 39.6, 39.6, 39.5),
    "score": (39.1, 39.8, 39.7, 39.9, 39.7),
    "iou": (39.0, 39.7, 39.8, 39.7, 39.6),
    "ranking": (39.1, 39.9, 39.6, 39.9, 39.6),
}
_S3 = {"0.0": 39.3, "0.5": 39.4, "1.0": 39.8, "1.5": 39.9, "2.0": 39.8, "default": 39.5}
_S4 = {"0.25": 39.0, "0.40": 39.7, "0.50": 39.9, "0.60": 39.7, "0.75": 39.8, "1.00": 39.4}
_S6 = {  # masks, then boxes
    "binary": ((29.1, 49.9, 29.4), (32.9, 53.8, 34.2)),
    "iou": ((29.9, 50.5, 30.6), (33.8, 54.2, 35.4)),
    "dice": ((29.8, 50.4, 30.2), (33.5, 54.3, 35.1)),
    "iou_dice": ((29.6, 50.2, 30.0), (33.4, 54.1, 34.8)),
}
_SAMPLERS = (("random", "random"), ("none", "random"), ("none", "none"))
_S8 = {
    "cross_entropy": ((37.6, 58.2, 41.0), (32.7, 49.4, 35.9), (30.1, 45.3, 33.2)),
    "focal": ((31.8, 47.4, 35.0), (32.0, 47.5, 35.1), (30.7, 44.6, 34.2)),
    "rs": ((38.5, 58.5, 41.5), (39.3, 59.6, 42.3), (39.6, 59.5, 43.0)),
}
_S8_LABELS = {"cross_entropy": "cross-entropy", "focal": "focal", "rs": "RS"}


def _ratios(
    rpn: float, rcnn: float, rpn_tasks: float, rcnn_tasks: float, ap: float
) -> dict[str, float]:
    return {**dict(zip(RATIOS, (rpn, rcnn, rpn_tasks, rcnn_tasks), strict=True)), _AP: ap}


def _epochs(first: float, last: float) -> dict[str, float]:
    return {FIRST_EPOCH: first, _AP: last}


_TABLES = (
    Table(
        "S1",
        "instance weights and task balance, RS-ATSS",
        ("instance weight", "balance"),
        (_AP,),
        tuple(
            Row(f"{weight}_{balance}", (weight, label), _ap(ap))
            for weight, line in _S1.items()
            for (balance, label), ap in zip(_S1_BALANCES.items(), line, strict=True)
        ),
        base="atss",
        is_grid=True,
    ),
    Table(
        "S2",
        "aLRP Loss against RS Loss, Faster R-CNN",
        ("loss", "schedule"),
        (FIRST_EPOCH, _AP),
        (
            Row("alrp_standard", ("aLRP", "standard"), _epochs(14.4, 37.4)),
            Row("rs_standard", ("RS", "standard"), _epochs(22.0, 39.6)),
            Row("alrp_heavy", ("aLRP", "heavy"), _epochs(9.4, 40.7), is_other_data=True),
            Row("rs_heavy", ("RS", "heavy"), _epochs(17.7, 41.2), is_other_data=True),
        ),
        base="faster_rcnn",
        by_epoch=True,
    ),
    Table(
        "S3",
        "smoothing of the ranking-based instance weight, RS-ATSS",
        ("delta_loc",),
        (_AP,),
        tuple(
            Row(f"delta_loc_{delta.replace('.', '_')}", (delta,), _ap(ap))
            for delta, ap in _S3.items()
        ),
        base="atss",
    ),
    Table(
        "S4",
        "smoothing of RS Loss, RS-ATSS",
        ("delta_RS",),
        (_AP,),
        tuple(
            Row(f"delta_{delta.replace('.', '_')}", (delta,), _ap(ap)) for delta, ap in _S4.items()
        ),
        base="atss",
    ),
    Table(
        "S6",
        "labels of the positives, RS-YOLACT",
        ("label",),
        (*_MASKS, _AP, _AP50, _AP75),
        tuple(
            Row(label, (label,), {**dict(zip(_MASKS, masks, strict=True)), **_ap(*boxes)})
            for label, (masks, boxes) in _S6.items()
        ),
        base="yolact",
    ),
    Table(
        "S7",
        "negatives for a positive with and without samplers, RS Loss",
        ("data set", "RPN sampler", "R-CNN sampler"),
        (*RATIOS, _AP),
        (
            Row("coco_random_random", ("COCO", *_SAMPLERS[0]), _ratios(7, 8, 7, 702, 38.5)),
            Row("coco_none_random", ("COCO", *_SAMPLERS[1]), _ratios(6676, 8, 6676, 702, 39.3)),
            Row("coco_none_none", ("COCO", *_SAMPLERS[2]), _ratios(6676, 13, 6676, 1142, 39.6)),
            Row(
                "lvis_none_none",
                ("LVIS", *_SAMPLERS[2]),
                # the publication gives the AP of masks here
                {**_ratios(3487, 12, 3487, 10470, 25.2)},
                is_other_data=True,
            ),
        ),
        base="faster_rcnn",
    ),
    Table(
        "S8",
        "losses with and without samplers, Faster R-CNN",
        ("loss", "RPN sampler", "R-CNN sampler"),
        (_AP, _AP50, _AP75, *RATIOS),
        tuple(
            Row(f"{loss}_{rpn}_{rcnn}", (_S8_LABELS[loss], rpn, rcnn), _ap(*numbers))
            for loss, lines in _S8.items()
            for (rpn, rcnn), numbers in zip(_SAMPLERS, lines, strict=True)
        ),
        base="faster_rcnn",
    ),
)
TABLES = {table.name: table for table in _TABLES}
