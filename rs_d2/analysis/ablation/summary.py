"""The results of a comparison as one table: text, CSV, JSON and two pictures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rs_d2.analysis.ablation.tables import FIRST_EPOCH, RATIOS, Row, Table
from rs_d2.criterion.imbalance import format_cell
from rs_d2.utils.atomic_write import atomic_write, write_json
from rs_d2.utils.csv_files import write_csv

FILES = {
    "table": "ablation.md",
    "csv": "ablation.csv",
    "json": "ablation.json",
    "curves": "curves.png",
    "final": "final.png",
}
_TITLES = {"bbox": "box", "segm": "mask"}
_RATIO_TITLES = dict(
    zip(RATIOS, ("RPN instances", "R-CNN instances", "RPN tasks", "R-CNN tasks"), strict=True)
)


class Summary(NamedTuple):
    """What is known of a row.

    Attributes:
        row: of the table.
        seeds: of the runs that have ended well.
        values: by metric, one of each of these seeds; metrics that one lacks are left out.
        curves: of each seed, the evaluations in order, see ``runs.train``.
        failures: by seed, why its run failed.
    """

    row: Row
    seeds: list[int]
    values: dict[str, list[float]]
    curves: list[list[dict[str, float]]]
    failures: dict[int, str]

    def mean(self, metric: str) -> float | None:
        """Over the seeds; None without any."""
        values = self.values.get(metric)
        return statistics.fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """Standard deviation over the seeds (n - 1); None with fewer than two."""
        values = self.values.get(metric, ())
        return statistics.stdev(values) if len(values) > 1 else None


def summarize(
    row: Row, results: Sequence[Mapping[str, Any]], failures: Mapping[int, str], epoch: int
) -> Summary:
    """Put the runs of a row together.

    Args:
        row: of the table.
        results: contents of their ``result.json``.
        failures: by seed.
        epoch: iterations of one.
    """
    numbers = [_numbers(result, epoch) for result in results]
    shared = [name for name in (numbers or [{}])[0] if all(name in each for each in numbers)]
    return Summary(
        row,
        [result["seed"] for result in results],
        {name: [each[name] for each in numbers] for name in shared},
        [result["curve"] for result in results],
        dict(failures),
    )


def _numbers(result: Mapping[str, Any], epoch: int) -> dict[str, float]:
    numbers = {**result["metrics"], **result["ratios"]}
    for point in result["curve"]:
        if point["iterations"] == epoch and "bbox/AP" in point:
            numbers[FIRST_EPOCH] = point["bbox/AP"]
    return numbers


def markdown(table: Table, summaries: Sequence[Summary], about: str) -> str:
    """The table in the publication's layout, our numbers beside the published ones.

    Args:
        table: says the layout.
        summaries: of its rows.
        about: a line below the title.
    """
    lines = _grid(table, summaries) if table.is_grid else _list(table, summaries)
    text = [f"### {table.name}: {table.title}", "", about, ""]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    failures = [
        f"* {summary.row.name}, seed {seed}: {why}"
        for summary in summaries
        for seed, why in summary.failures.items()
    ]
    return "\n".join([*text, *(["", *failures] if failures else [])]) + "\n"


def _list(table: Table, summaries: Sequence[Summary]) -> list[list[str]]:
    measured = [m for m in table.metrics if any(m in s.values for s in summaries)]
    published = [m for m in table.metrics if any(m in row.published for row in table.rows)]
    header = [*table.columns, *map(_title, measured or table.metrics)]
    header += [f"published {_title(metric)}" for metric in published]
    lines = [header, ["---"] * len(header)]
    for summary in summaries:
        cells = [_cell(summary, metric) for metric in measured or table.metrics]
        stated = [_number(metric, summary.row.published.get(metric)) for metric in published]
        lines.append([*summary.row.labels, *cells, *stated])
    return lines


def _grid(table: Table, summaries: Sequence[Summary]) -> list[list[str]]:
    metric = table.metrics[0]
    columns = list(dict.fromkeys(row.labels[1] for row in table.rows))
    corner = f"{table.columns[0]} \\ {table.columns[1]}: {_title(metric)} (published)"
    lines = [[corner, *columns], ["---"] * (1 + len(columns))]
    cells: dict[str, dict[str, str]] = {}
    for summary in summaries:
        down, across = summary.row.labels
        stated = _number(metric, summary.row.published.get(metric))
        cells.setdefault(down, {})[across] = f"{_cell(summary, metric)} ({stated})"
    return lines + [[down, *(line.get(c, "") for c in columns)] for down, line in cells.items()]


def _cell(summary: Summary, metric: str) -> str:
    mean, spread = summary.mean(metric), summary.spread(metric)
    if mean is None:
        return "failed" if summary.failures else "-"
    text = _number(metric, mean)
    return text if spread is None or metric in RATIOS else f"{text} ± {spread:.1f}"


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return "-"
    return format_cell(float(value)) if metric in RATIOS else f"{value:.1f}"


def _title(metric: str) -> str:
    if metric in RATIOS:
        return _RATIO_TITLES[metric]
    task, _, name = metric.partition("/")
    return f"{_TITLES.get(task, task)} {name}"


def write_tables(
    folder: Path, table: Table, summaries: Sequence[Summary], about: Mapping[str, Any], text: str
) -> None:
    """Write ``ablation.md``, ``.csv`` (a line for each run) and ``.json`` (everything)."""
    with atomic_write(folder / FILES["table"], "w") as file:
        file.write(text)
    metrics = sorted({metric for summary in summaries for metric in summary.values})
    columns = ["name", *table.columns, "seed", *metrics, "failure"]
    lines = []
    for summary in summaries:
        empty = dict.fromkeys(columns)
        empty |= dict(zip(table.columns, summary.row.labels, strict=True))
        empty["name"] = summary.row.name
        for index, seed in enumerate(summary.seeds):
            values = {name: values[index] for name, values in summary.values.items()}
            lines.append({**empty, "seed": seed, **values})
        for seed, why in summary.failures.items():
            lines.append({**empty, "seed": seed, "failure": why})
    write_csv(folder / FILES["csv"], columns, lines)
    rows = [_everything(table, summary) for summary in summaries]
    write_json(folder / FILES["json"], {"table": table.name, **about, "rows": rows})


def _everything(table: Table, summary: Summary) -> dict[str, Any]:
    return {
        "name": summary.row.name,
        **dict(zip(table.columns, summary.row.labels, strict=True)),
        "published": dict(summary.row.published),
        "seeds": summary.seeds,
        "mean": {name: summary.mean(name) for name in summary.values},
        "spread": {name: summary.spread(name) for name in summary.values},
        "values": summary.values,
        "curves": summary.curves,
        "failures": summary.failures,
    }


def draw(folder: Path, table: Table, summaries: Sequence[Summary]) -> None:
    """Write ``curves.png`` and ``final.png`` of the first metric of boxes or masks."""
    metric = next((m for m in table.metrics if m not in RATIOS and m != FIRST_EPOCH), "bbox/AP")
    shown = [summary for summary in summaries if metric in summary.values]
    if not shown:
        return
    height = max(3.4, 0.3 * len(shown) + 1.2)
    figure = Figure(figsize=(8, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for summary in shown:
        axes.plot(*_mean_curve(summary, metric), ".-", label=" / ".join(summary.row.labels))
    axes.set(xlabel="iterations", ylabel=f"{_title(metric)}, percent", title=table.title)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, folder / FILES["curves"])

    figure = Figure(figsize=(8, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, summary in enumerate(reversed(shown)):
        values = summary.values[metric]
        axes.errorbar(summary.mean(metric), place, xerr=summary.spread(metric), fmt="k|", capsize=3)
        axes.scatter(values, [place] * len(values), s=14, color="#2471a3", zorder=3)
    axes.set_yticks(range(len(shown)), [" / ".join(s.row.labels) for s in reversed(shown)])
    axes.set(xlabel=f"{_title(metric)}, percent: each seed, mean and spread", title=table.title)
    axes.grid(alpha=0.25, axis="x")
    _save(figure, folder / FILES["final"])


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as file:
        figure.savefig(file, dpi=150, metadata={"Software": None}, format="png")


def _mean_curve(summary: Summary, metric: str) -> tuple[list[float], list[float]]:
    """Iterations of the evaluations that all seeds have, and the mean of the metric there."""
    found = [{p["iterations"]: p[metric] for p in curve if metric in p} for curve in summary.curves]
    shared = sorted(set.intersection(*(set(points) for points in found)))
    return shared, [statistics.fmean(points[x] for points in found) for x in shared]
