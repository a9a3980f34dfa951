"""From a config file and KEY VALUE pairs to a checked config."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg

from rs_d2.config import add_rs_config, lookup
from rs_d2.config.yaml_files import SafeCfgNode, parse_yaml, read_config_file
from rs_d2.utils.errors import UserError, did_you_mean
from rs_d2.utils.folders import config_dir

_UNKNOWN_KEY = re.compile(r"[Nn]on-existent (?:config )?key: ([^\s'\"]+)")
_WRONG_TYPE = re.compile(
    r"with values \((?P<old>.*) vs\. (?P<new>.*)\) for config key: (?P<key>\S+)"
)
_COMPLAINTS = (  # of yacs and of Python's parser, which reads the values
    AssertionError,
    AttributeError,
    KeyError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


def load_config(config_file: str, opts: Sequence[str]) -> tuple[CfgNode, set[str]]:
    """Merge a config file and KEY VALUE pairs into the defaults.

    Args:
        config_file: path as ``find_config`` returns it; empty for the defaults alone.
        opts: keys and values in turn.

    Returns:
        The config, not frozen, and the keys that the file, its bases or ``opts`` name.

    Raises:
        UserError: A file is not readable, or a key or the type of a value is wrong.
    """
    cfg = SafeCfgNode(get_cfg())
    add_rs_config(cfg)
    named: set[str] = set(opts[0::2])
    if config_file:
        named.update(_merge_file(cfg, config_file))
    merge_pairs(cfg, opts)
    return cfg, named


def config_from_text(text: str, source: str, opts: Sequence[str] = ()) -> CfgNode:
    """Merge a config's whole text, as a checkpoint holds it, and KEY VALUE pairs into the defaults.

    Args:
        text: yaml with plain types.
        source: name of the file, for messages.
        opts: keys and values in turn.

    Raises:
        UserError: The text is not a config of this version, or a pair is wrong.
    """
    cfg, _ = load_config("", ())
    try:
        cfg.merge_from_other_cfg(CfgNode(parse_yaml(text, f"{source}: its config")))
    except _COMPLAINTS as error:
        raise UserError(f"{source}: its config: {_explain(error, cfg, 'a value')}") from error
    merge_pairs(cfg, opts)
    return cfg


def find_config(name: str) -> str:
    """Find a config file: a path, or else a name among the packaged configs, ".yaml" or not.

    Raises:
        UserError: There is no such file; names the nearest of the packaged ones.
    """
    if not name or Path(name).is_file():
        return name
    packaged = config_dir()
    for folder in (packaged, packaged.parent):  # with and without the leading "configs/"
        for path in (folder / name, folder / f"{name}.yaml"):
            if path.is_file():
                return str(path)
    known = [str(path.relative_to(packaged)) for path in packaged.glob("**/*.yaml")]
    raise UserError(f"--config-file: {name} does not exist{did_you_mean(name, known)}")


def merge_pairs(cfg: CfgNode, opts: Sequence[str]) -> None:
    """Merge KEY VALUE pairs into a config, in place.

    Raises:
        UserError: A key or the type of a value is wrong.
    """
    for key, value in zip(opts[0::2], opts[1::2], strict=True):
        try:
            cfg.merge_from_list([key, value])
        except _COMPLAINTS as error:
            raise UserError(_explain(error, cfg, culprit=key)) from error


def _merge_file(cfg: CfgNode, path: str) -> set[str]:
    """Merge a yaml file with its bases and return the keys they name."""
    try:
        loaded = read_config_file(path)
    except UserError as error:
        raise UserError(f"--config-file: {error}") from error
    try:
        cfg.merge_from_file(path)
    except _COMPLAINTS as error:
        raise UserError(f"{_explain(error, cfg, culprit='a value')} in {path}") from error
    return set(_keys(loaded))


def _keys(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the full names of all keys, those that hold other keys included."""
    for name, value in tree.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


def _explain(error: Exception, cfg: CfgNode, culprit: str) -> str:
    """Put yacs' many kinds of complaint into one line."""
    text = " ".join(str(error).split())
    if unknown := _UNKNOWN_KEY.search(text):
        return f"{unknown[1]} is not a config key{did_you_mean(unknown[1], _keys(cfg))}"
    if wrong := _WRONG_TYPE.search(text):
        new, old = (_shorten(wrong[name], 80) for name in ("new", "old"))
        if isinstance(lookup(cfg, wrong["key"]), CfgNode):
            return f"{wrong['key']}: {new} is no mapping, but this key holds others"
        return f"{wrong['key']}: {new} is not of the type of its default, {old}"
    return f"{culprit} is not valid: {_shorten(text, 500)}"


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."
