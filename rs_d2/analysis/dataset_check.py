"""Everything that can be wrong with a json and its images, before days are spent on them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from rs_d2.coco.checks import Finding, Severity, check_content, label, printable, shorten
from rs_d2.coco.cleaning import clean_content
from rs_d2.coco.image_files import find_image_files, measure_file, reason_of
from rs_d2.coco.json_files import is_plain, read_json
from rs_d2.coco.notes import note_oddities
from rs_d2.coco.pixels import is_deep, open_image, orientation
from rs_d2.coco.reading import find_problems
from rs_d2.utils.atomic_write import atomic_write
from rs_d2.utils.errors import UserError
from rs_d2.utils.terminal import is_live

_HASH_SIDE = 16  # differences of neighbours in a row, in as many rows
_ALIKE = 10  # bits of 256 that may differ
_FLAT = 8.0  # grey levels of deviation; below, a hash says nothing
_PASSES = 6  # problems of one table can hide those of the next


@dataclass
class DatasetCheck:
    """What was found in a json and its images.

    ``image_files``: those that are there. ``hashes``: [N, 256] bool of the images that were decoded
    and show something, by ``hashed``, their labels.
    """

    path: Path
    content: Any
    findings: list[Finding] = field(default_factory=list)
    image_files: list[str] = field(default_factory=list)
    hashed: list[str] = field(default_factory=list)
    hashes: np.ndarray = field(default_factory=lambda: np.zeros((0, _HASH_SIDE**2), dtype=bool))

    @property
    def is_sound(self) -> bool:
        """Whether nothing stops a training and nothing is left out."""
        return all(finding.severity is Severity.NOTED for finding in self.findings)


def check_dataset(
    json_file: Path,
    image_root: Path | None = None,
    *,
    decode: bool = False,
    absolute_paths: bool = False,
    num_jobs: int = 1,
) -> DatasetCheck:
    """Find all that is wrong with a json and its images.

    Args:
        json_file: `.json` or `.json.gz`.
        image_root: folder of its images; None: of the json.
        decode: read the pixels of every image; else only the heads of the files.
        absolute_paths: names of images may be absolute.
        num_jobs: processes that open images.

    Raises:
        UserError: The json or the folder cannot be read at all.
    """
    content = read_json(json_file)
    check = DatasetCheck(json_file, content, find_problems(content))
    stops = any(finding.severity is Severity.STOPS for finding in check.findings)
    if stops and not _has_sound_images(content):
        return check
    if not _is_readable_by_all(json_file):
        told = "not plain UTF-8 without a byte-order mark, which other programs may not read"
        check.findings.append(Finding(json_file.name, "", "", told, Severity.NOTED, "encoding"))
    if not stops:
        check.findings += note_oddities(content, clean_content(content)[0])
    root = image_root or json_file.parent
    if not root.is_dir():
        raise UserError(f"{json_file}: its image folder {root} does not exist")
    there = []
    found = find_image_files(content["images"], root, absolute_paths=absolute_paths)
    for index, (image, path, finding) in enumerate(found):
        if finding is not None:
            check.findings.append(finding)
        elif path is not None:
            there.append((image, path, label(image, "images", index)))
            check.image_files.append(path)
    hashes = []
    for (_, _, where), (findings, bits) in zip(
        there, _in_processes(partial(examine, decode=decode), there, num_jobs), strict=True
    ):
        check.findings += findings
        if bits is not None:
            check.hashed.append(where)
            hashes.append(bits)
    if hashes:
        check.hashes = np.stack(hashes)
    return check


def _has_sound_images(content: Any) -> bool:
    """Whether the table of images can be read, whatever is wrong with the others."""
    if not isinstance(content, dict):
        return False
    alone = {"images": content.get("images"), "categories": [{"id": 0, "name": "any"}]}
    return all(finding.severity is not Severity.STOPS for finding in check_content(alone))


def examine(item: tuple[dict, str, str], decode: bool) -> tuple[list[Finding], np.ndarray | None]:
    """Open one image; the findings, and its hash if it was decoded and shows something.

    Args:
        item: entry of the json, path of the file, name of the entry.
        decode: read its pixels.
    """
    image, path, where = item
    finding = measure_file(image, path, where)
    if finding is not None:
        return [finding], None
    findings = []
    with Image.open(path) as opened:
        turn = orientation(opened)
        for is_so, told, kind in (
            (turn != 1, f"is turned as its EXIF entry says ({turn})", "images that EXIF turns"),
            (is_deep(opened), "has 16 bits; 0 to 65535 become 0 to 255", "images of 16 bits"),
            (opened.mode == "F", "has floats; they are cut to 0 to 255", "images of floats"),
            (getattr(opened, "n_frames", 1) > 1, "has several frames", "only the first is used"),
        ):
            if is_so:
                told = f"{printable(path)} {told}"
                findings.append(Finding(where, "", "", told, Severity.NOTED, kind))
    if not decode:
        return findings, None
    try:
        return findings, perceptual_hash(open_image(path))
    except Exception as error:  # whatever a broken file makes its decoder raise
        told = f"{printable(path)} cannot be decoded{reason_of(error)}"
        kind = "files that cannot be decoded"
        return [*findings, Finding(where, "", "", told, Severity.STOPS_TRAINING, kind)], None


def perceptual_hash(image: Image.Image) -> np.ndarray | None:
    """[256] bool that stay nearly the same when an image is scaled, compressed or brightened.

    Of 16 x 17 means of grey, whether each is brighter than its left neighbour (a difference hash).
    None for an image of a single grey.
    """
    small = image.convert("L").resize((_HASH_SIDE + 1, _HASH_SIDE), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=float)
    return None if grey.std() < _FLAT else (grey[:, 1:] > grey[:, :-1]).reshape(-1)


def compare_sets(train: DatasetCheck, val: DatasetCheck) -> list[Finding]:
    """What is wrong with a validation set beside its training set: other classes, same images.

    Images are compared where those of both sets were decoded.
    """
    if any(f.severity is Severity.STOPS for f in [*train.findings, *val.findings]):
        return []
    findings = []
    names = {category["id"]: category.get("name") for category in train.content["categories"]}
    for index, category in enumerate(val.content["categories"]):
        identity, name = category["id"], category.get("name")
        if identity not in names or names[identity] != name:
            there = shorten(names[identity]) if identity in names else "no such category"
            told = f"{shorten(name)}, but {train.path.name} has {there}"
            where, kind = label(category, "categories", index), "categories of another set"
            findings.append(Finding(where, "", "", told, Severity.STOPS_TRAINING, kind))
    known = np.where(train.hashes, 1, -1).astype(np.float32).T
    for start in range(0, len(val.hashes) if len(train.hashes) else 0, 256):
        part = np.where(val.hashes[start : start + 256], 1, -1).astype(np.float32)
        differing = (_HASH_SIDE**2 - part @ known) / 2
        nearest = differing.argmin(axis=1)
        for row in np.flatnonzero(differing.min(axis=1) <= _ALIKE).tolist():
            told = f"looks like {train.hashed[nearest[row]]} of {train.path.name}"
            where, kind = val.hashed[start + row], "images that the training set has, too"
            findings.append(Finding(where, "", "", told, Severity.NOTED, kind))
    return findings


def write_fixed(check: DatasetCheck) -> Path | None:
    """Write what training would use of a json beside it, as ``NAME.fixed.json``.

    Every entry that a finding names is left out; with an image its objects, with a mask's broken
    polygons only these.

    Returns:
        The file written; None if there is nothing to fix.

    Raises:
        UserError: What is wrong is no entry's, or there is such a file already.
    """
    if check.is_sound and _is_readable_by_all(check.path):
        return None
    content = _without_named(check)
    annotations = clean_content(content)[0]
    name = check.path.name.removesuffix(".gz").removesuffix(".json")
    target = check.path.with_name(f"{name}.fixed.json")
    if target.exists():
        raise UserError(f"--fix: {target} is there already; it is not overwritten")
    with atomic_write(target, "w") as file:
        json.dump({**content, "annotations": annotations}, file)
    return target


def _is_readable_by_all(path: Path) -> bool:
    return path.suffix == ".gz" or is_plain(path)


def _without_named(check: DatasetCheck) -> dict[str, Any]:
    content, findings = check.content, check.findings
    for _ in range(_PASSES):
        stops = [f for f in findings if f.severity in (Severity.STOPS, Severity.STOPS_TRAINING)]
        if not stops:
            return content
        if not isinstance(content, dict):
            break
        names = {finding.entry for finding in stops}
        kept = {
            table: [
                entry
                for index, entry in enumerate(content.get(table) or [])
                if f"{table}[{index}]" not in names
                and not (isinstance(entry, dict) and label(entry, table, index) in names)
            ]
            for table in ("images", "annotations")
            if isinstance(content.get(table), list)
        }
        if all(len(entries) == len(content[table]) for table, entries in kept.items()):
            break
        content = {**content, **kept}
        findings = find_problems(content)
    raise UserError(f"--fix: {check.path}: nothing can be left out to mend this: {stops[0]}")


def _in_processes(function: Any, items: Sequence[Any], num_jobs: int) -> Iterator[Any]:
    """Results in order, with a bar."""
    bar = partial(tqdm, total=len(items), unit="im", dynamic_ncols=True, disable=not is_live())
    if num_jobs == 1 or len(items) < 2:
        yield from bar(map(function, items))
        return
    done = 0
    try:
        with ProcessPoolExecutor(min(num_jobs, len(items))) as pool:
            for result in bar(pool.map(function, items, chunksize=8)):
                done += 1
                yield result
    except BrokenProcessPool:
        raise UserError(
            f"a process died while it opened {items[done][1]} or one of the next images;"
            " --jobs 1 ends at it"
        ) from None


def as_text(checks: Iterable[DatasetCheck], num_shown: int = 5) -> str:
    """A line for each finding, the first few of each kind; what stops a training first."""
    lines = []
    for check in checks:
        lines.append(f"{check.path}: {_counts(check)}")
        for severity in Severity:
            kinds: dict[str, list[Finding]] = {}
            for finding in check.findings:
                if finding.severity is severity:
                    kinds.setdefault(finding.kind or finding.field, []).append(finding)
            if kinds:
                lines.append(f"  {severity.value}:")
            for kind, findings in kinds.items():
                shown = [" ".join(str(finding).split()) for finding in findings[:num_shown]]
                lines += [f"    {line}" for line in shown]
                if len(findings) > num_shown:
                    lines.append(f"    and {len(findings) - num_shown} more: {kind or 'the like'}")
    return "\n".join(lines)


def as_json(checks: Iterable[DatasetCheck]) -> list[dict[str, Any]]:
    """The same, complete, for programs."""
    return [
        {
            "file": os.fspath(check.path),
            "is_sound": check.is_sound,
            "findings": [
                {**vars(finding), "severity": finding.severity.name.lower()}
                for finding in check.findings
            ],
        }
        for check in checks
    ]


def _counts(check: DatasetCheck) -> str:
    if not isinstance(check.content, dict):
        return "no data set"
    sizes = [
        f"{len(check.content[table])} {table}"
        for table in ("images", "annotations", "categories")
        if isinstance(check.content.get(table), list)
    ]
    number = len(check.findings)
    return f"{', '.join(sizes)}; {number or 'no'} finding{'' if number == 1 else 's'}"
