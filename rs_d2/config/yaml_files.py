"""Config files read without running what they hold, each with the files that it is based on."""

from __future__ import annotations

import os
from collections.abc import Hashable
from typing import Any

import yaml
from detectron2.config import CfgNode
from fvcore.common.config import BASE_KEY
from yaml.nodes import Node, SequenceNode

from rs_d2.utils.errors import UserError


class SafeCfgNode(CfgNode):
    """Detectron2's config; files merged into it are read without running what they hold."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        """What :func:`read_config_file` gives; ``allow_unsafe``, Detectron2's, does nothing."""
        return read_config_file(filename)


_LONGEST = 1_000_000  # characters of a file
_MOST_NODES = 100_000  # values in a file, those that aliases repeat counted each time


class _Loader(yaml.SafeLoader):
    """Yaml's safe loader, with tuples, which older versions dumped, and a bound on aliases."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._count = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        before = self._count
        if isinstance(event, yaml.AliasEvent):  # one of an unfinished node would never end
            self._count += self._sizes.get(event.anchor, _MOST_NODES + 1)
        self._count += 1
        if self._count > _MOST_NODES:
            raise yaml.composer.ComposerError(
                problem="aliases repeat too much", problem_mark=event.start_mark
            )
        node = super().compose_node(parent, index)
        if not isinstance(event, yaml.AliasEvent) and event.anchor is not None:
            self._sizes[event.anchor] = self._count - before
        return node

    def _refuse(self, node: Node) -> None:
        raise yaml.constructor.ConstructorError(
            problem=f"the tag {node.tag} is refused, since reading it could run code",
            problem_mark=node.start_mark,
        )

    def _tuple(self, node: Node) -> tuple[Any, ...]:
        if not isinstance(node, SequenceNode):
            self._refuse(node)
        return tuple(self.construct_sequence(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _Loader._tuple)
_Loader.add_constructor(None, _Loader._refuse)


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A config's text as a tree of plain values; nothing in it is executed.

    Args:
        text: yaml of a mapping; ``!!python/tuple`` is the only tag beside yaml's own.
        source: name of the file, for messages.

    Raises:
        UserError: It is not; names the line, where there is one.
    """
    try:
        content = yaml.load(text, _Loader)  # a safe loader, see above
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}: {error.problem}"
        raise UserError(f"{source}{where or ' is not valid yaml'}") from error
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        # of scalars such as 2024-99-99, "!!int x" or keys that are lists
        raise UserError(f"{source} is not valid yaml ({error})") from error
    except RecursionError as error:
        raise UserError(f"{source} is not valid yaml (nested too deeply)") from error
    if not isinstance(content, dict):
        raise UserError(f"{source} is not a mapping of config keys")
    _check_keys(content, source)
    return content


def read_config_file(path: str, including: tuple[str, ...] = ()) -> dict[str, Any]:
    """A config file merged over the files that its ``_BASE_`` names, as Detectron2 merges them.

    Args:
        path: or an address that Detectron2's ``PathManager`` knows.
        including: files that led to this one.

    Raises:
        UserError: A file cannot be read, is no config, or includes itself.
    """
    identity = path if "://" in path else os.path.realpath(path)
    chain = (*including, identity)
    if identity in including:
        loop = " -> ".join(map(os.path.basename, chain[including.index(identity) :]))
        raise UserError(f"{path} includes itself by {BASE_KEY} ({loop})")
    content = parse_yaml(_read(path, f", a base of {including[-1]}" if including else ""), path)
    bases = content.pop(BASE_KEY, [])
    merged: dict[str, Any] = {}
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"{path}: {BASE_KEY}: {base!r} is no file")
        base = os.path.expanduser(base)
        if not base.startswith(("/", "https://", "http://")):
            base = os.path.join(os.path.dirname(path), base)
        _merge(read_config_file(base, chain), merged, path)
    _merge(content, merged, path)
    return merged


def read_own_lines(path: str) -> dict[str, Any]:
    """What a config file itself holds, without the files that its ``_BASE_`` names.

    Raises:
        UserError: It cannot be read, or is no config.
    """
    content = parse_yaml(_read(path), path)
    content.pop(BASE_KEY, None)
    return content


def _read(path: str, by: str = "") -> str:
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe or device might never end
        raise UserError(f"{path} is no regular file")
    try:
        with CfgNode._open_cfg(path) as file:
            text = file.read(_LONGEST + 1)
    except (OSError, ValueError) as error:  # the second: not UTF-8, a zero in the name
        raise UserError(f"{path}{by} cannot be read ({error})") from error
    if len(text) > _LONGEST:
        raise UserError(f"{path} is no config: it has more than {_LONGEST} characters")
    return text


def _merge(source: dict[str, Any], target: dict[str, Any], path: str, prefix: str = "") -> None:
    for key, value in source.items():
        if not isinstance(value, dict) or key not in target:
            target[key] = value
        elif isinstance(target[key], dict):
            _merge(value, target[key], path, f"{prefix}{key}.")
        else:
            raise UserError(f"{path}: {prefix}{key} holds keys, but a value in a base")


def _check_keys(tree: dict[Hashable, Any], source: str) -> None:
    for key, value in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{source}: {key!r} is no name of a config key")
        if isinstance(value, dict):
            _check_keys(value, source)
