"""Json files of users: plain or compressed, in any Unicode encoding."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

from rs_d2.utils.errors import UserError

LIMIT_VARIABLE = "RS_D2_MAX_JSON_BYTES"
_ALWAYS_ALLOWED = 2**28  # bytes
_MOST_EXPANSION = 100  # json of boxes expands 3 to 20 times, a bomb 1000 times


def read_json(path: Path) -> Any:
    """The content of a `.json` or `.json.gz` file in UTF-8, UTF-16 or UTF-32, with a BOM or not.

    A packed file may have 256 MiB, or 100 times its own size, of json in it; the variable
    `RS_D2_MAX_JSON_BYTES` sets another limit.

    Raises:
        UserError: The file cannot be read, is not json, holds more than that, or is a pipe, which
            would be waited for.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'a pipe or device'}, no file")
    try:
        return json.loads(_unpack(path) if path.suffix == ".gz" else path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not json ({error.msg} in line {error.lineno})") from None
    except (UnicodeDecodeError, RecursionError):
        raise UserError(f"{path}: not json") from None
    except ValueError as error:  # a number of more digits than Python converts
        raise UserError(f"{path}: {str(error).split(';')[0]}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"{path}: not a whole gzip file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def is_plain(path: Path) -> bool:
    """Whether any reader can read a json file: not packed, UTF-8, no byte-order mark."""
    with open(path, "rb") as file:
        return path.suffix != ".gz" and json.detect_encoding(file.read(4)) == "utf-8"


def _unpack(path: Path) -> bytes:
    """Content of a gzip file, which is read no further than to its limit."""
    stated = os.environ.get(LIMIT_VARIABLE)
    if stated is not None and not stated.isdecimal():
        raise UserError(f"{LIMIT_VARIABLE}: '{stated}' is not a number of bytes")
    limit = int(stated) if stated else max(_ALWAYS_ALLOWED, _MOST_EXPANSION * path.stat().st_size)
    with gzip.open(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise UserError(
            f"{path}: holds more than {limit} bytes of json; if it should, set {LIMIT_VARIABLE}"
        )
    return data
