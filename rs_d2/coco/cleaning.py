"""Leave out single annotations that nobody can train or evaluate on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from rs_d2.coco.checks import Finding, Severity, show
from rs_d2.coco.polygons import is_usable
from rs_d2.coco.rle import run_totals

_Problem = tuple[str, str, str]  # field, name of all such findings, what was expected
_NO_AREA = ("bbox", "boxes without area", "a width and a height above 0")
_NOT_FINITE = ("bbox", "boxes that are not finite", "four finite numbers")
_HUGE = ("bbox", "boxes beyond a million pixels", "four numbers of at most 1,000,000")
_OUTSIDE = ("bbox", "boxes outside their image", "a box with a part in the image")
_NO_MASK = ("segmentation", "annotations without a mask", "a mask, as most annotations have one")
_MINORITY = ("segmentation", "masks in a file that mostly has none", "none, as most have none")
_BAD_RUNS = (
    "segmentation",
    "run-length masks of another size than their image",
    "runs that cover the image",
)
_BAD_POLYGON = (
    "segmentation",
    "polygons with fewer than 3 points, an odd count or a number that is not finite",
    "polygons of at least 3 points, finite numbers in pairs",
)
_FAR_POLYGON = (
    "segmentation",
    "polygons far beyond their image",
    "polygons within ten images of theirs",
)
LARGEST_COORDINATE = 1e6


def clean_content(content: Mapping[str, Any]) -> tuple[list[dict], bool, list[Finding]]:
    """Keep the annotations that have a box with area in the image and, with masks, a mask.

    Masks count if more than half of the annotations, crowds aside, have one. Boxes that reach over
    the border are not changed: training clips them, and the numbers of official files stay the
    official ones. Broken polygons of a mask are left out.

    Args:
        content: of a json that ``check_content`` finds nothing wrong with.

    Returns:
        The annotations that are kept, copied where changed, those with `ignore` with `iscrowd`,
        too; whether all of them have a mask (else none has); and what was found.
    """
    annotations = content.get("annotations") or []
    annotations = [{**a, "iscrowd": 1} if a.get("ignore") else a for a in annotations]
    single = [annotation for annotation in annotations if not annotation.get("iscrowd")]
    has_masks = 2 * sum(bool(a.get("segmentation")) for a in single) > len(single)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    changed: dict[int, dict | None] = {}
    findings = []
    for index, usable, finding in _unusable(annotations, sizes, has_masks):
        changed[index] = usable
        findings.append(finding)
    kept = (changed.get(index, annotation) for index, annotation in enumerate(annotations))
    annotations = [annotation for annotation in kept if annotation is not None]
    if all(annotation.get("iscrowd") for annotation in annotations):
        told = "nothing to train or evaluate on"
        told += f" ({summarise(findings)} left out)" if findings else ""
        findings.append(Finding("annotations", "", "", told, Severity.STOPS_TRAINING))
    return annotations, has_masks, findings


def summarise(findings: Iterable[Finding]) -> str:
    """What is left out, in one line: how many of each kind, and the first; else empty."""
    kinds: dict[str, list[str]] = {}
    for finding in findings:
        if finding.severity is Severity.LEFT_OUT:
            kinds.setdefault(finding.kind, []).append(finding.entry)
    return "; ".join(
        f"{kind} ({len(entries)}, first: {entries[0]})" for kind, entries in kinds.items()
    )


def mask_problems(content: Mapping[str, Any]) -> Iterator[Finding]:
    """Masks of a checked content that cannot be rasterised: bad run lengths, bad polygons.

    ``clean_content`` leaves these out; who counts every object has to stop.
    """
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    annotations = [a for a in content.get("annotations") or [] if a.get("segmentation")]
    owners = [sizes[annotation["image_id"]] for annotation in annotations]
    problems = _run_problems(annotations, owners)
    for index, (annotation, owner) in enumerate(zip(annotations, owners, strict=True)):
        problem = problems.get(index) or _mask_problem(annotation, *owner)[1]
        if problem is not None:
            yield _finding(annotation, problem)


def _finding(annotation: dict, problem: _Problem) -> Finding:
    field, kind, expected = problem
    entry, found = f"annotation {annotation['id']}", show(annotation, field)
    return Finding(entry, field, expected, found, Severity.LEFT_OUT, kind)


def _unusable(
    annotations: Sequence[dict], sizes: Mapping[Any, tuple[int, int]], has_masks: bool
) -> Iterator[tuple[int, dict | None, Finding]]:
    """Index, what is left of the annotation, and why, of all that cannot be kept unchanged."""
    owners = [sizes[annotation["image_id"]] for annotation in annotations]
    problems = _box_problems([annotation["bbox"] for annotation in annotations], owners)
    if has_masks:
        problems = _run_problems(annotations, owners) | problems
    for index, annotation in enumerate(annotations):
        usable, problem = None, problems.get(index)
        if problem is None and has_masks:
            usable, problem = _mask_problem(annotation, *owners[index])
        elif problem is None and annotation.get("segmentation"):
            usable, problem = {**annotation, "segmentation": []}, _MINORITY
        if problem is not None:
            yield index, usable, _finding(annotation, problem)


def _box_problems(
    boxes: Sequence[list[float]], sizes: Sequence[tuple[int, int]]
) -> dict[int, _Problem]:
    """The problem by the index of the box."""
    x, y, w, h = np.array(boxes, dtype=float).reshape(-1, 4).T
    width, height = np.array(sizes, dtype=float).reshape(-1, 2).T
    with np.errstate(invalid="ignore"):  # infinity and minus infinity
        outside = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
    finite = np.isfinite([x, y, w, h]).all(axis=0)
    problems: dict[int, _Problem] = {}
    for bad, problem in (
        (outside, _OUTSIDE),
        ((w <= 0) | (h <= 0), _NO_AREA),
        ((np.abs([x, y, w, h]) > LARGEST_COORDINATE).any(axis=0), _HUGE),
        (~finite, _NOT_FINITE),  # the last that holds is told
    ):
        problems |= dict.fromkeys(np.flatnonzero(bad).tolist(), problem)
    return problems


def _run_problems(
    annotations: Sequence[dict], sizes: Sequence[tuple[int, int]]
) -> dict[int, _Problem]:
    """The same of run lengths, compressed or not."""
    masks = {i: a["segmentation"] for i, a in enumerate(annotations) if _has_runs(a)}
    texts = {i: mask["counts"] for i, mask in masks.items() if isinstance(mask["counts"], str)}
    totals = dict(zip(texts, run_totals([*texts.values()]).tolist(), strict=True))
    problems = {}
    for index, mask in masks.items():
        (width, height), counts = sizes[index], mask["counts"]
        if index not in totals:
            totals[index] = sum(counts) if min(counts, default=-1) >= 0 else -1
        if mask["size"] != [height, width] or totals[index] != width * height:
            problems[index] = _BAD_RUNS
    return problems


def _has_runs(annotation: dict) -> bool:
    return isinstance(annotation.get("segmentation"), dict) and bool(annotation["segmentation"])


def _mask_problem(annotation: dict, width: int, height: int) -> tuple[dict | None, _Problem | None]:
    """The annotation with the usable polygons of its mask, or None, and what is wrong with it."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None, _NO_MASK
    if isinstance(segmentation, dict):
        return annotation, None
    polygons = [polygon for polygon in segmentation if is_usable(polygon, height, width)]
    if len(polygons) == len(segmentation):
        return annotation, None
    kind = _FAR_POLYGON if any(map(_is_far, segmentation)) else _BAD_POLYGON
    return ({**annotation, "segmentation": polygons} if polygons else None), kind


def _is_far(polygon: Sequence[float]) -> bool:
    """Whether nothing else can be wrong with an unusable polygon than its extent."""
    if len(polygon) < 6 or len(polygon) % 2:
        return False
    return all(-math.inf < number < math.inf for number in polygon)
