"""One page about an evaluation that opens anywhere: nothing in it is loaded from elsewhere."""

from __future__ import annotations

import html
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rs_d2.criterion.imbalance import format_cell
from rs_d2.evaluation.evaluate import METRICS, Evaluation
from rs_d2.report import figures as _figures
from rs_d2.report.class_counts import ClassCounts
from rs_d2.report.per_class import COLUMNS, per_class_rows, write_per_class
from rs_d2.report.worst_images import FOUND, MISSED, WRONG, draw, worst_images

_logger = logging.getLogger(__name__)

_WORST = 6
_TASKS = {"bbox": "Boxes", "segm": "Masks"}
_PARTS = ("oLRP", "oLRP_Loc", "oLRP_FP", "oLRP_FN")
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem }
table { border-collapse: collapse; margin: .6rem 0 }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, td.text { text-align: left }
figure { display: inline-block; margin: .4rem .4rem .4rem 0; vertical-align: top }
figcaption { color: #555; max-width: 30rem }
svg, img { max-width: 100%; height: auto }
.wide { overflow-x: auto }
"""


def write_report(
    folder: Path,
    evaluations: Mapping[str, Evaluation],
    title: str,
    image_root: str | Path | None = None,
    train_counts: ClassCounts | None = None,
    imbalance: Mapping[str, Any] | None = None,
) -> Path:
    """Write `report.html` and `per_class_{task}.csv`.

    Args:
        folder: made if needed.
        evaluations: by task, "bbox" or "segm"; at least one.
        title: what was evaluated.
        image_root: folder of the images; without it boxes are drawn on blank ones.
        train_counts: how often the training set has each class, if known.
        imbalance: a row of ``rs_d2.criterion.imbalance.imbalance_table``, if known.

    Returns:
        The path of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for task, evaluation in evaluations.items():
        write_per_class(folder / f"per_class_{task}.csv", evaluation, train_counts)
    path = folder / "report.html"
    root = None if image_root is None else Path(image_root)
    path.write_text(
        report_html(evaluations, title, root, train_counts, imbalance), encoding="utf-8"
    )
    _logger.info("report: %s", path)
    return path


def report_html(
    evaluations: Mapping[str, Evaluation],
    title: str,
    image_root: Path | None = None,
    train_counts: ClassCounts | None = None,
    imbalance: Mapping[str, Any] | None = None,
) -> str:
    """The page: tables, curves, histograms, the worst images and every class."""
    first = next(iter(evaluations.values()))
    sections = [_section(task, e, image_root, train_counts) for task, e in evaluations.items()]
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{html.escape(title)}</h1>",
            f"<p>{_describe(first)}</p>",
            _summary_table(evaluations),
            *sections,
            _imbalance_table(imbalance),
            "</body></html>\n",
        ]
    )


def _describe(evaluation: Evaluation) -> str:
    truth = evaluation.ground_truth
    return (
        f"{len(truth.image_ids):,} images, {int(evaluation.matches.num_objects[0].sum()):,} objects"
        f" of {int(evaluation.classes_with_objects().sum()):,} classes,"
        f" {len(evaluation.detections):,} detections. Rules of {truth.style.upper()}, computed by"
        f" {evaluation.engine}. All numbers are percent; of AP more is better, of oLRP less."
    )


def _summary_table(evaluations: Mapping[str, Evaluation]) -> str:
    names = [m for m in METRICS if any(not math.isnan(e.summary[m]) for e in evaluations.values())]
    rows = [[_TASKS[t], *(e.summary[name] for name in names)] for t, e in evaluations.items()]
    return _table(["", *names], rows)


def _section(
    task: str,
    evaluation: Evaluation,
    image_root: Path | None,
    train_counts: ClassCounts | None,
) -> str:
    by_count = _figures.ap_by_count(evaluation, train_counts)
    figures = (
        (_figures.precision_recall(evaluation), "Precision over recall, mean over classes."),
        (by_count, "AP of each class over how often it occurs."),
        (_figures.score_histogram(evaluation), "Scores of true and false positives, IoU 0.50."),
    )
    drawn = [_figure(svg, caption) for svg, caption in figures]
    return "\n".join(
        [
            f"<h2>{_TASKS[task]}</h2>",
            _group_table(evaluation),
            *drawn,
            _worst(evaluation, image_root),
            _class_table(evaluation, train_counts),
        ]
    )


def _group_table(evaluation: Evaluation) -> str:
    """AP and oLRP by size and by frequency; the parts of oLRP where they are averaged."""
    summary, rows = evaluation.summary, []
    for area in ("all", "small", "medium", "large"):
        suffix = "" if area == "all" else area[0]
        rows.append([area, summary[f"AP{suffix}"], *_parts(evaluation.lrp.mean(area))])
    for name, classes in _figures.groups(evaluation):
        if name != "all":
            rows.append(
                [name, summary[f"AP{name[0]}"], *_parts(evaluation.lrp.mean("all", classes))]
            )
    return _table(["objects", "AP", *_PARTS], rows)


def _parts(means: Mapping[str, float]) -> list[float]:
    return [means[name] for name in _PARTS]


def _worst(evaluation: Evaluation, image_root: Path | None) -> str:
    pictures = []
    for mistakes in worst_images(evaluation, _WORST):
        identity = evaluation.ground_truth.image_ids[mistakes.image]
        caption = (
            f"image {html.escape(str(identity))}: {len(mistakes.found)} found,"
            f" {len(mistakes.wrong)} false positives, {len(mistakes.missed)} missed"
        )
        picture = draw(evaluation, mistakes, image_root)
        pictures.append(_figure(f'<img alt="" src="{picture}">', caption))
    if not pictures:
        return ""
    legend = ", ".join(
        f'<b style="color:{color}">{text}</b>'
        for color, text in ((FOUND, "found"), (WRONG, "false positive"), (MISSED, "missed object"))
    )
    note = f"Detections above the LRP-optimal threshold of their class: {legend}."
    return f"<h3>Images with most mistakes</h3><p>{note}</p>" + "\n".join(pictures)


def _class_table(evaluation: Evaluation, train_counts: ClassCounts | None) -> str:
    rows = per_class_rows(evaluation, train_counts)
    rows = [list(row.values()) for row in rows if row["instances"]]
    table = _table(
        COLUMNS, rows, decimals={"threshold": 3, "train_count": 0}, text=("name", "frequency")
    )
    summary = f"<summary>All {len(rows)} classes with objects</summary>"
    return f'<details>{summary}<div class="wide">{table}</div></details>'


def _imbalance_table(imbalance: Mapping[str, Any] | None) -> str:
    if imbalance is None:
        return ""
    head = "<h2>Training</h2><p>Negatives for one positive, at the end of the training.</p>"
    return head + _table(tuple(imbalance), [[format_cell(v) for v in imbalance.values()]])


def _figure(content: str, caption: str) -> str:
    return f"<figure>{content}<figcaption>{caption}</figcaption></figure>"


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    decimals: Mapping[str, int] | None = None,
    text: Sequence[str] = (),
) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = []
    for row in rows:
        cells = [
            f"<td{' class=text' if column in text else ''}>"
            f"{_cell(value, (decimals or {}).get(column, 1))}</td>"
            for column, value in zip(columns, row, strict=True)
        ]
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _cell(value: Any, decimals: int) -> str:
    if value is None or value != value:
        return "–"
    return f"{value:.{decimals}f}" if isinstance(value, float) else html.escape(str(value))
