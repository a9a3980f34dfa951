"""From variants and a base config to trained, evaluated rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from rs_d2 import engine
from rs_d2.analysis.ablation.jobs import default_jobs, do_runs
from rs_d2.analysis.ablation.runs import Run, make_run
from rs_d2.analysis.ablation.summary import FILES, Summary, draw, markdown, summarize, write_tables
from rs_d2.analysis.ablation.tables import Row, Table
from rs_d2.analysis.ablation.variants import Variant, matching, variants_of
from rs_d2.config.check import check_config
from rs_d2.config.load import merge_pairs
from rs_d2.utils.cli import as_pairs
from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import make_folder
from rs_d2.utils.outputs import check_outputs
from rs_d2.utils.run_lock import locked_folder

# Keys that are set for every run, and what says how.
_OWN_KEYS = {
    "OUTPUT_DIR": "--output",
    "SEED": "--seeds",
    "TEST.EVAL_PERIOD": "--evaluations",
}


class Outcome(NamedTuple):
    """What a comparison has given.

    Attributes:
        summaries: of each row of the table.
        markdown: the table.
        files: by kind; the pictures are there only where a run has ended well.
        num_failed: runs.
    """

    summaries: list[Summary]
    markdown: str
    files: dict[str, Path]
    num_failed: int


def ablate(
    table: Table,
    folder: str | PathLike,
    *,
    variants: Sequence[Variant] | None = None,
    rows: Sequence[str] = (),
    base: str | PathLike = "",
    overrides: Mapping[str, Any] | Sequence[Any] = (),
    data: engine.OwnData | None = None,
    seeds: int = 1,
    jobs: int | None = None,
    evaluations: int = 4,
    tell: Callable[[str], None] = print,
) -> Outcome:
    """Train and evaluate every variant with every seed, and write the table.

    Variants of a seed share budget, order of the images, and the first weights of all layers that
    have the same shape. A run that has ended leaves ``result.json`` in a folder whose name holds a
    hash of its config and data: calling again does what is missing, each from its last checkpoint,
    and a changed config or budget is another run.

    Args:
        table: one of ``TABLES``, or from ``custom_table``.
        folder: for runs and table.
        variants: of the table's rows; None: those of a named table.
        rows: names of rows to train, with wildcards; none: all. Of the others the table shows what
            an earlier call has left.
        base: config that the variants are laid over; empty: the table's, for the digits or for
            ``data``.
        overrides: further keys and values, for all variants.
        data: the user's own; None: that of the base.
        seeds: from 1 on.
        jobs: processes side by side; None: one for each GPU, or for each core without any.
        evaluations: of each run, at even distances; some tables have their own.
        tell: shows a line.

    Raises:
        UserError: The base, its data or the folder cannot be used, there is no test set, or
            ``rows`` fit none. What is wrong with a single variant counts as its failure.
    """
    data, folder = data or engine.OwnData(), Path(folder)
    variants = variants_of(table) if variants is None else variants
    chosen = matching([variant.row.name for variant in variants], rows)
    if not base:
        base = f"ablations/{table.base}_{'own_data' if data.train_json else 'digits'}.yaml"
    pairs = as_pairs(overrides)
    for key in pairs[::2]:
        if key in _OWN_KEYS:
            raise UserError(f"{key} is set for every run: give {_OWN_KEYS[key]} instead")
    inputs = [base, data.train_json, data.val_json, *(variant.file for variant in variants)]
    outputs = [("--output", folder / name) for name in FILES.values()]
    check_outputs(inputs, outputs)
    for path in (path for _, path in outputs if path.exists() and not path.is_file()):
        raise UserError(f"--output: {path} is a folder, pipe or device")
    make_folder(folder, "--output")
    cfg, notes = engine.prepare(base, [*pairs, "OUTPUT_DIR", str(folder)], data)
    if not cfg.DATASETS.TEST:
        raise UserError("--val-json is missing: without it nothing can be compared")
    for note in notes:
        tell(note)
    with locked_folder(folder):
        work = _Work(table, folder, cfg, data, evaluations)
        if any(path.exists() for _, path in outputs):
            check_outputs(work.images, outputs)
        for variant in variants:
            for seed in range(1, seeds + 1):
                work.plan(variant, seed)
        missing = work.missing(chosen)
        tell(f"{table.name}: {len(missing)} of {len(work.runs)} runs to do, in {folder}")
        try:
            work.failures |= do_runs(
                missing,
                default_jobs() if jobs is None else jobs,
                label=table.name,
                tell=tell,
                done=work.write,
            )
        finally:  # also of an interrupted comparison
            outcome = work.write()
            draw(folder, table, outcome.summaries)
    return outcome


class _Work:
    """The runs of a comparison, and what is known of them."""

    def __init__(
        self, table: Table, folder: Path, cfg: CfgNode, data: engine.OwnData, evaluations: int
    ) -> None:
        self._table, self._folder, self._cfg, self._data = table, folder, cfg, data
        self._digest, num_images, self.images = _look_at(cfg)
        self._epoch = -(-num_images // cfg.SOLVER.IMS_PER_BATCH)
        self._evaluations = evaluations
        self.runs: list[Run] = []
        self.failures: dict[Run, str] = {}
        self._broken: dict[tuple[str, int], str] = {}

    def plan(self, variant: Variant, seed: int) -> None:
        """Add the run of a variant, or note what is wrong with its config."""
        cfg, name = self._cfg.clone(), variant.row.name
        cfg.defrost()
        try:
            merge_pairs(cfg, variant.pairs)
            check_config(cfg)
        except UserError as error:
            self._broken[name, seed] = f"failed: {error}"
            return
        every = -(-cfg.SOLVER.MAX_ITER // max(self._evaluations, 1))
        cfg.TEST.EVAL_PERIOD = self._epoch if self._table.by_epoch else every
        cfg.TEST.EXPECTED_RESULTS, cfg.TEST.REPORT, cfg.SEED = [], False, seed
        self.runs.append(make_run(name, cfg, self._folder, self._digest, self._data))

    def missing(self, names: Collection[str]) -> list[Run]:
        """Runs of these rows that have not ended well, seed by seed, so that all rows get one."""
        missing = [run for run in self.runs if run.variant in names and run.result() is None]
        return sorted(missing, key=lambda run: run.seed)

    def write(self) -> Outcome:
        """Write the table of what there is."""
        summaries = [self._summary(row) for row in self._table.rows]
        results = [result for run in self.runs if (result := run.result())]
        about = {
            "data": [*self._cfg.DATASETS.TRAIN, *self._cfg.DATASETS.TEST],
            "iterations": self._cfg.SOLVER.MAX_ITER,
            "images": self._cfg.SOLVER.IMS_PER_BATCH,
            "learning rate": self._cfg.SOLVER.BASE_LR,
            "runs": len(results),
            "code": sorted({result["revision"] for result in results}),
            "device": sorted({result["device"] for result in results}),
        }
        text = markdown(self._table, summaries, _about_line(about))
        write_tables(self._folder, self._table, summaries, about, text)
        files = {kind: self._folder / name for kind, name in FILES.items()}
        return Outcome(summaries, text, files, len(self.failures) + len(self._broken))

    def _summary(self, row: Row) -> Summary:
        runs = [run for run in self.runs if run.variant == row.name]
        failures = {seed: why for (name, seed), why in self._broken.items() if name == row.name}
        failures |= {run.seed: self.failures[run] for run in runs if run in self.failures}
        results = [result for run in runs if (result := run.result())]
        return summarize(row, results, failures, self._epoch)


def _look_at(cfg: CfgNode) -> tuple[str, int, list[str]]:
    """A hash of all annotations, the number of images that are trained on, the files of all."""
    found = hashlib.sha256()
    num_images, files = 0, []
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        dicts = DatasetCatalog.get(name)  # makes the digits, once for all runs
        if name in cfg.DATASETS.TRAIN:
            num_images += sum(bool(each["annotations"]) for each in dicts)
        files += [each["file_name"] for each in dicts]
        json_file = MetadataCatalog.get(name).get("json_file")
        found.update(Path(json_file).read_bytes() if json_file else name.encode())
    return found.hexdigest(), num_images, files


def _about_line(about: Mapping[str, Any]) -> str:
    code = f", code {', '.join(about['code'])}" if any(about["code"]) else ""
    return (
        f"Trained on {about['data'][0]}, evaluated on {', '.join(about['data'][1:])}:"
        f" {about['iterations']} iterations of {about['images']} images, learning rate"
        f" {about['learning rate']:g}{code}. Mean and standard deviation over the seeds, in"
        " percent; ratios are negatives for one positive."
    )
