"""What a variant changes in the base config."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from rs_d2.analysis.ablation.tables import Row, Table
from rs_d2.config.load import find_config
from rs_d2.config.yaml_files import read_own_lines
from rs_d2.utils.errors import UserError, did_you_mean

_NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
_NOT_IN_NAMES = re.compile(r"[^\w .+-]")  # would break a table, a title or a terminal
_BETWEEN_PAIRS = re.compile(r",\s*(?=[A-Z][A-Z0-9_.]* )")  # not the comma in a list of numbers


class Variant(NamedTuple):
    """A row with the config keys and values that it sets, in turn, and the file they are from."""

    row: Row
    pairs: tuple[Any, ...]
    file: str | None = None


def variants_of(table: Table) -> list[Variant]:
    """The rows of a named table that can run on any data, from their files."""
    return [
        Variant(row, model_lines(find_config(f"ablations/{table.name}/{row.name}.yaml")))
        for row in table.rows
        if not row.is_other_data
    ]


def matching(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The names that fit a pattern with wildcards; all without patterns.

    Raises:
        UserError: A pattern fits none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = did_you_mean(pattern, names) or f"; there are {', '.join(names)}"
            raise UserError(f"--rows: there is no row {pattern}{hint}")
    return [
        name
        for name in names
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    ]


def variant_of(text: str) -> Variant:
    """A variant from a yaml file, or from ``name=KEY VALUE,KEY VALUE``.

    Of a file its own ``MODEL`` lines count, without its bases: data, schedule and learning rate are
    the base's, the same for all; in its name, what a table could not show becomes "_". Pairs may
    set anything.

    Raises:
        UserError: It is neither, or the file cannot be read.
    """
    if text.endswith((".yaml", ".yml")) and "=" not in text:
        name = _NOT_IN_NAMES.sub("_", Path(text).stem)
        try:
            file = find_config(text)
            return Variant(Row(name, (name,)), model_lines(file), file)
        except UserError as error:
            raise UserError(f"--variant: {str(error).removeprefix('--config-file: ')}") from error
    name, equals, rest = text.partition("=")
    if not equals or not _NAME.fullmatch(name):
        raise UserError(f"--variant: '{text}' is neither a yaml file nor name=KEY VALUE,KEY VALUE")
    pairs: list[str] = []
    for pair in filter(None, _BETWEEN_PAIRS.split(rest.strip())):
        key, _, value = pair.strip().partition(" ")
        if not value.strip():
            raise UserError(f"--variant: {name}: {key} has no value")
        pairs += [key, value.strip()]
    return Variant(Row(name, (name,)), tuple(pairs))


def custom_table(variants: Sequence[Variant], name: str = "custom") -> Table:
    """A table of one's own variants.

    Raises:
        UserError: Two have the same name.
    """
    names = Counter(variant.row.name for variant in variants)
    for twice in (name for name, count in names.items() if count > 1):
        raise UserError(f"--variant: {twice} is there twice")
    # those of a data set without frequencies, or without masks, are not there and not shown
    metrics = (
        *("bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/APr", "bbox/APc", "bbox/APf", "bbox/oLRP"),
        *("segm/AP", "segm/AP50"),
    )
    rows = tuple(variant.row for variant in variants)
    return Table(name, "variants", ("variant",), metrics, rows, base="faster_rcnn")


def model_lines(path: str) -> tuple[Any, ...]:
    """Keys and values that a file itself sets below ``MODEL``, in turn.

    Raises:
        UserError: It cannot be read.
    """
    lines = read_own_lines(path).get("MODEL") or {}
    if not isinstance(lines, Mapping):
        raise UserError(f"{path}: MODEL holds no keys")
    return tuple(_pairs(lines, "MODEL"))


def _pairs(tree: Mapping[str, Any], prefix: str) -> Iterator[Any]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _pairs(value, f"{prefix}.{name}")
        else:
            yield from (f"{prefix}.{name}", value)
