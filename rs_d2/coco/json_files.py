"""Json files of users: plain or compressed, in any Unicode encoding."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from rs_d2.utils.errors import UserError


def read_json(path: Path) -> Any:
    """The content of a `.json` or `.json.gz` file in UTF-8, UTF-16 or UTF-32, with a BOM or not.

    Raises:
        UserError: The file cannot be read or is not json.
    """
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not json ({error.msg} in line {error.lineno})") from None
    except (UnicodeDecodeError, RecursionError):
        raise UserError(f"{path}: not json") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise UserError(f"{path}: not a whole gzip file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
