"""A COCO or LVIS json, read and checked once; plain Python, usable without Detectron2.

What makes a file ambiguous (a wrong type, an id that occurs twice or does not exist) is an error;
a single annotation that cannot be used is left out and counted, so that training is not lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rs_d2.coco import prepared
from rs_d2.coco.checks import Finding, Severity, check_content
from rs_d2.coco.cleaning import clean_content, summarise
from rs_d2.coco.json_files import read_json
from rs_d2.coco.prepared import Stamp
from rs_d2.utils.errors import UserError

_RARE, _COMMON = 10, 100  # LVIS: rare classes are in up to 10 training images, common in up to 100
_MOST_IN_MEMORY, _LARGEST_IN_MEMORY = 8, 128 * 2**20  # files, bytes of a json


@dataclass(frozen=True)
class AnnotationFile:
    """A checked json: what can be trained and evaluated on. Nobody may change its entries.

    Attributes:
        path: of the json.
        stamp: its size and time when it was read.
        content: the json as it was read.
        format: "lvis" if an image has `neg_category_ids` or a category has `frequency`, else
            "coco".
        images: sorted by id.
        annotations: the usable ones in the file's order; those with `ignore` have `iscrowd`, too.
        categories: sorted by id.
        has_masks: every annotation has a segmentation; else none has.
        left_out: what was dropped, in one line; empty if nothing was.
        training_problem: why it cannot be trained on, in one line; empty if it can be.
    """

    path: Path
    stamp: Stamp
    content: dict[str, Any]
    format: str
    images: list[dict]
    annotations: list[dict]
    categories: list[dict]
    has_masks: bool
    left_out: str
    training_problem: str


_in_memory: dict[Stamp, AnnotationFile] = {}


def read_annotations(path: str | Path) -> AnnotationFile:
    """Read a COCO or LVIS json (`.json` or `.json.gz`) to train on.

    A file is read and checked once: the result is kept in memory, if the file is not large, and in
    the user's cache, from where other processes load it, until the file changes. A file in which
    at most half of the annotations have a segmentation counts as boxes only. `ignore` in an
    annotation means the same as `iscrowd`.

    Raises:
        UserError: The file is missing, not json, has a field of a wrong type, an id twice, an
            annotation of an unknown image or category, or nothing to train or evaluate on.
    """
    file = _recall(Path(path))
    if file is None:
        file = _checked(Path(path))
        keep(file)
    remember(file)
    if file.training_problem:
        raise UserError(f"{path}: {file.training_problem}")
    return file


def read_to_evaluate(path: str | Path) -> AnnotationFile:
    """The same to evaluate on: file names, category names and all objects may be missing.

    Nothing is written to the user's cache.
    """
    file = _recall(Path(path)) or _checked(Path(path))
    remember(file)
    return file


def keep(file: AnnotationFile) -> None:
    """Leave a file in the user's cache for other processes."""
    names = [field.name for field in fields(file) if field.name not in ("path", "stamp")]
    prepared.store(file.stamp, {name: getattr(file, name) for name in names})


def remember(file: AnnotationFile) -> None:
    """Keep a file in memory for whoever reads its path in this process; few, and no large ones."""
    if file.stamp.size <= _LARGEST_IN_MEMORY:
        _in_memory[file.stamp] = file
    while len(_in_memory) > _MOST_IN_MEMORY:
        del _in_memory[next(iter(_in_memory))]  # the one that was read longest ago


def find_problems(content: Any) -> list[Finding]:
    """Everything that is wrong with the content of a json, in the order of the tables."""
    findings = [*check_content(content)]
    if not any(finding.severity is Severity.STOPS for finding in findings):
        findings += clean_content(content)[2]
    return findings


def check_same_categories(file: AnnotationFile, ids: Sequence[int], names: Sequence[str]) -> None:
    """Make sure that a file's categories are among those a model is trained on.

    Args:
        file: the file to check; it may lack categories.
        ids: the training file's category ids.
        names: their names.

    Raises:
        UserError: An id is unknown or has another name; names the first such category.
    """
    known = dict(zip(ids, names, strict=True))
    for category in file.categories:
        identity, name = category["id"], category["name"]
        if known.get(identity) != name:
            other = f"is '{known[identity]}'" if identity in known else "does not exist"
            raise UserError(
                f"{file.path}: category {identity} '{name}' {other} in the training set"
            )


def category_frequencies(file: AnnotationFile) -> dict[int, str]:
    """LVIS frequency group of each category: "r", "c" or "f".

    The file's own `frequency`; where a category has none, by the file's number of images with it
    (up to 10, up to 100, more). Rare if it has none.
    """
    pairs = {(a["image_id"], a["category_id"]) for a in file.annotations}
    counts = Counter(category for _, category in pairs)
    return {c["id"]: c.get("frequency") or _group(counts[c["id"]]) for c in file.categories}


def _group(num_images: int) -> str:
    return "r" if num_images <= _RARE else "c" if num_images <= _COMMON else "f"


def _recall(path: Path) -> AnnotationFile | None:
    """What memory or the cache knows of the file as it is now."""
    stamp = prepared.stamp(path)
    file = _in_memory.pop(stamp, None)
    if file is not None:
        return replace(file, path=path)  # one file can be named in several ways
    known = prepared.load(stamp)
    return None if known is None else AnnotationFile(path, stamp, **known)


def _checked(path: Path) -> AnnotationFile:
    stamp = prepared.stamp(path)
    content = read_json(path)
    findings = []
    for finding in check_content(content):
        if finding.severity is Severity.STOPS:
            raise UserError(f"{path}: {finding}")
        findings.append(finding)
    annotations, has_masks, more = clean_content(content)
    findings += more
    images, categories = content["images"], content["categories"]
    federated = any(image.get("neg_category_ids") is not None for image in images)
    lvis = federated or any(category.get("frequency") for category in categories)
    stops_training = [str(f) for f in findings if f.severity is Severity.STOPS_TRAINING]
    return AnnotationFile(
        path=path,
        stamp=stamp,
        content=content,
        format="lvis" if lvis else "coco",
        images=sorted(images, key=lambda image: image["id"]),
        annotations=annotations,
        categories=sorted(categories, key=lambda category: category["id"]),
        has_masks=has_masks,
        left_out=summarise(findings),
        training_problem=stops_training[0] if stops_training else "",
    )
