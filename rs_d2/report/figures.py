"""The figures of the report, as SVG in text."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from rs_d2.evaluation.evaluate import Evaluation
from rs_d2.report.class_counts import ClassCounts

_COLORS = {"rare": "#c0392b", "common": "#e08e0b", "frequent": "#2471a3", "all": "#333333"}
_RECALLS = np.linspace(0, 1, 101)
_BINS = np.linspace(0, 1, 41)


def all_figures(
    evaluation: Evaluation, train_counts: ClassCounts | None
) -> tuple[tuple[str, str], ...]:
    """Every figure with its caption."""
    return (
        (precision_recall(evaluation), "Precision over recall, mean over classes."),
        (ap_by_count(evaluation, train_counts), "AP of each class over how often it occurs."),
        (score_histogram(evaluation), "Scores of true and false positives, IoU 0.50."),
    )


def precision_recall(evaluation: Evaluation) -> str:
    """Precision at IoU 0.5 over recall, averaged over the classes of each frequency group."""
    precision = evaluation.precision.precision[0, :, :, 0]
    with _figure("recall", "precision, IoU 0.50") as (axes, result):
        for name, classes in evaluation.frequency_groups().items():
            curve = precision[:, classes].mean(axis=1)
            label = f"{name} ({classes.sum()} classes)"
            axes.plot(_RECALLS, curve, color=_COLORS[name], label=label)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.legend(frameon=False)
    return result[0]


def ap_by_count(evaluation: Evaluation, train_counts: ClassCounts | None) -> str:
    """AP of each class over how often the training set has it, with a running mean.

    Where that is not known, over the number of objects that were evaluated.
    """
    counts, label = train_counts or (evaluation.matches.num_objects[0], "objects in this set")
    ap = evaluation.class_ap()
    with _figure(f"{label} (log scale)", "AP, percent") as (axes, result):
        for name, classes in evaluation.frequency_groups().items():
            chosen = classes & (counts > 0)
            axes.scatter(counts[chosen], ap[chosen], s=9, color=_COLORS[name], label=name)
        shown = np.flatnonzero((counts > 0) & ~np.isnan(ap))
        order = shown[np.argsort(counts[shown], kind="stable")]
        window = max(1, len(order) // 8)
        if len(order) > window:
            mean = np.convolve(ap[order], np.full(window, 1 / window), mode="valid")
            middle = counts[order][window // 2 : window // 2 + len(mean)]
            axes.plot(middle, mean, color="#777777", label=f"mean of {window}")
        axes.set_xscale("log")
        axes.set_ylim(-2, 102)
        axes.legend(frameon=False)
    return result[0]


def score_histogram(evaluation: Evaluation) -> str:
    """Scores of the true and the false positives at IoU 0.5."""
    matches = evaluation.matches
    scores = np.clip(matches.scores, 0, 1)
    with _figure("score", "detections (log scale)") as (axes, result):
        for label, chosen, color in (
            ("false positives", matches.false_positives(), "#c0392b"),
            ("true positives", matches.true_positives(), "#1e8449"),
        ):
            text = f"{label} ({chosen.sum():,})"
            axes.hist(scores[chosen], _BINS, color=color, alpha=0.55, label=text)
        axes.set_yscale("symlog")
        axes.set_ylim(0, 10 * axes.get_ylim()[1])  # room for the legend
        axes.set_xlim(0, 1)
        axes.legend(frameon=False)
    return result[0]


@contextmanager
def _figure(x: str, y: str) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on; the list holds the SVG afterwards."""
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes, result = figure.add_subplot(), []
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25)
    yield axes, result
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": "rs_d2"}):  # else every page would differ
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    result.append(text[text.index("<svg") :])
