"""Checkpoint files read without running what they hold."""

from __future__ import annotations

import pickle
import re
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rs_d2.utils.atomic_write import atomic_write
from rs_d2.utils.errors import UserError

_DEEPEST, _MOST_CONTAINERS = 100, 300_000
_LARGEST_EXPANDED = 1 << 24  # numbers of a tensor that stores fewer
_REFUSED = re.compile(r"GLOBAL (\S+)")  # torch's word for a class that is not on its list


def read_checkpoint(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Content of a file that ``torch.save`` wrote, on the CPU.

    Only tensors and plain types are read (``weights_only``): a pickle that would run code is
    refused.

    Args:
        path: of the file.
        mmap: map the tensors into memory, so that those that nobody looks at, such as the
            optimizer's, are never read. The file must not be written in place while they live;
            :func:`write_checkpoint` may replace it.

    Raises:
        UserError: The file is missing, no checkpoint, or more than tensors and plain types.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist" if not Path(path).exists() else f"{path}: no file")
    try:
        _refuse_tar(path)
        is_zip = zipfile.is_zipfile(path)  # files of torch before 1.6 are not
        if is_zip:
            _refuse_packed(path)
        mmap = mmap and is_zip
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        _check_contained(content)
    except pickle.UnpicklingError as error:
        named = _REFUSED.search(str(error))
        if named is None:
            raise UserError(f"{path} is not a checkpoint") from error
        raise UserError(
            f"{path} holds {named[1]}, more than tensors and plain types: refused, since reading"
            " it could run code"
        ) from error
    except UserError:
        raise
    except Exception as error:  # whatever a file that is no checkpoint makes its reader raise
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path} is not a checkpoint ({reason})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint (it holds a {type(content).__name__})")
    return content


def read_pickle(path: str | Path) -> dict[Any, Any]:
    """Content of a pickle of arrays, as Detectron2's model zoo and proposal files are.

    No function that the file names is called, NumPy's own included: with a data type of its choice
    a file could make an array of it read any address. Arrays are built here, of plain numbers and
    texts only.

    Raises:
        UserError: The file is missing, no pickle, or holds more than arrays and plain types.
    """
    try:
        with open(path, "rb") as file:
            content = _built(_ArraysOnly(file, encoding="latin1").load(), {})
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # whatever a file that is no pickle makes its reader raise
        raise UserError(f"{path} is not a checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a checkpoint (it holds a {type(content).__name__})")
    return content


def _refuse_packed(path: str | Path) -> None:
    """Refuse a zip file that grows when it is read; torch never packs what it stores."""
    with zipfile.ZipFile(path) as file:
        size = sum(each.file_size for each in file.infolist())
    if size > Path(path).stat().st_size:
        raise UserError(f"{path} is not a checkpoint (packed: it would grow to {size} bytes)")


def _check_contained(content: Any) -> None:
    """Check that a content is no larger than its file, which any look at all of it would bring out.

    Raises:
        ValueError: Containers within containers without end, or tensors with more numbers than
            are stored, or with none that could be compared.
    """
    stack, seen = [(content, 0)], 0
    while stack:
        value, depth = stack.pop()
        seen += 1
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
                raise ValueError(f"a tensor of the kind {value.layout}, {value.device}")
            stored = value.untyped_storage().nbytes() // value.element_size()
            if value.numel() > max(stored, _LARGEST_EXPANDED):
                raise ValueError(f"a tensor of {value.numel()} numbers, {stored} of them stored")
        elif isinstance(value, (dict, list, tuple, set)):
            if depth > _DEEPEST or seen > _MOST_CONTAINERS:
                raise ValueError("containers in containers without end")
            inner = value.values() if isinstance(value, dict) else value
            stack += [
                (each, depth + 1)
                for each in inner
                if isinstance(each, (Tensor, dict, list, tuple, set))
            ]


def _refuse_tar(path: str | Path) -> None:
    """Refuse the format of torch before 0.1.10, which torch up to 2.5 reads without its checks."""
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # as torch tells them apart
    if not is_zip and tarfile.is_tarfile(path):
        raise UserError(
            f"{path} is a tar file of a very old torch: refused, since it could run code"
        )


class _DataType:
    """A NumPy data type in a pickle: numbers of one kind or texts, no fields and no objects."""

    _PLAIN = re.compile(r"[<>=|]?[?biufcSU]\d*")

    def __init__(self, name: str, *_: Any) -> None:
        if not isinstance(name, str) or self._PLAIN.fullmatch(name) is None:
            raise pickle.UnpicklingError(f"holds arrays of the type {name!r}: refused")
        self.value = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, byte_order, *structure = state[:5]
        if any(part is not None for part in structure):
            raise pickle.UnpicklingError("holds arrays of a composed type: refused")
        self.value = self.value.newbyteorder(byte_order)


class _Array:
    """An array in a pickle, before it is built."""

    value: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, in_columns, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
        array = np.frombuffer(data, kind.value).reshape(shape, order="F" if in_columns else "C")
        self.value = array.copy(order="K")  # one that can be written


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(kind: _DataType, data: bytes | str) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, kind.value, count=1)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"holds text in {encoding}: refused")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {  # for what arrays are pickled with; "numpy." left out
    ("core.multiarray", "_reconstruct"): _reconstruct,
    ("core.multiarray", "scalar"): _scalar,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DataType,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): lambda: b"",  # protocols 0 to 2 write no bytes that way
    ("collections", "OrderedDict"): OrderedDict,
}


class _ArraysOnly(pickle._Unpickler):
    """In Python: for an index of 2 ** 31, the one in C fills a table of 34 GB."""

    def find_class(self, module: str, name: str) -> Any:
        key = (module.removeprefix("numpy.").replace("_core", "core"), name)
        if key in _STAND_INS:
            return _STAND_INS[key]
        raise pickle.UnpicklingError(
            f"holds {module}.{name}, more than arrays and plain types: refused, since reading it"
            " could run code"
        )


def _built(content: Any, done: dict[int, Any]) -> Any:
    """The content with arrays in place of what stood for them; each object is visited once."""
    if id(content) in done:
        return done[id(content)]
    built = content
    if isinstance(content, dict):
        built = done[id(content)] = {}
        built.update((name, _built(value, done)) for name, value in content.items())
    elif isinstance(content, (list, tuple)):
        built = type(content)(_built(value, done) for value in content)
    elif isinstance(content, (_Array, _DataType)):
        built = content.value
    done[id(content)] = built
    return built


def write_checkpoint(content: dict[str, Any], path: str | Path) -> None:
    """Write a file that :func:`read_checkpoint` reads: whole or not at all.

    Raises:
        UserError: The file cannot be written there.
    """
    try:
        with atomic_write(path) as file:
            torch.save(content, file)
    except RuntimeError as error:  # torch's own for a full disk
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be written ({reason})") from error
