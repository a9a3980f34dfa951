"""Json files in and out, and image files found and measured; no Detectron2."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import cache_dir

_EXIF_ORIENTATION = 0x0112
_QUARTER_TURNS = (5, 6, 7, 8)


def read_json(path: Path) -> Any:
    """The content of a `.json` or `.json.gz` file.

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


def write_cached_json(content: Any, stem: str) -> Path:
    """Write json into the user's cache folder, under a name that follows from the content.

    Equal content is written once; several processes may do so at the same time.

    Args:
        content: what `json` can write.
        stem: first part of the file's name.
    """
    data = json.dumps(content).encode()
    path = _cache_dir() / f"{stem}-{hashlib.sha256(data).hexdigest()[:16]}.json"
    if not path.exists():
        handle, partial = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    return path


def locate_images(images: Iterable[dict], root: Path, source: Path) -> dict[Any, str]:
    """Find the file of every image.

    An image is `root / file_name`; where that is not there, the last two parts, then the last part,
    of `coco_url` below `root`.

    Args:
        images: entries of a json's `images`.
        root: folder of the images.
        source: the json, for the message.

    Returns:
        Path by image id.

    Raises:
        UserError: The folder or any file is missing; names the first and counts the others.
    """
    if not root.is_dir():
        raise UserError(f"{source}: its image folder {root} does not exist")
    found, missing = {}, []
    for image in images:
        candidates = _candidates(image, root)
        path = next((c for c in candidates if os.path.isfile(c)), None)
        if path is None:
            missing.append(candidates[0])
        found[image["id"]] = path
    if missing:
        raise UserError(
            f"{source}: {len(missing)} of {len(found)} image files are missing, first {missing[0]}"
        )
    return found


def check_image_sizes(images: Sequence[dict], paths: Mapping[Any, str], source: Path) -> None:
    """Compare width and height in the json with at most 100 of the files, spread over the set.

    Wrong sizes mostly come in whole sets: of pictures scaled after they were annotated, or that
    were annotated without their EXIF rotation, which training applies.

    Args:
        images: entries of a json's `images`.
        paths: file by image id.
        source: the json, for the message.

    Raises:
        UserError: A file has another size, or cannot be read as an image.
    """
    for image in images[:: -(-len(images) // 100)]:
        path = paths[image["id"]]
        stated = (image["width"], image["height"])
        try:
            actual = _image_size(path)
        except OSError:
            raise UserError(f"{source}: {path} is not an image that can be read") from None
        if actual != stated:
            raise UserError(
                f"{source}: image {image['id']}: {stated[0]} x {stated[1]} pixels are stated, "
                f"but {path} has {actual[0]} x {actual[1]}"
            )


def _image_size(path: str) -> tuple[int, int]:
    """Width and height as a viewer shows them."""
    with Image.open(path) as image:
        rotated = image.getexif().get(_EXIF_ORIENTATION, 1) in _QUARTER_TURNS
        return image.size[::-1] if rotated else image.size


def _candidates(image: dict, root: Path) -> list[str]:
    names = [image["file_name"]] if image.get("file_name") else []
    if image.get("coco_url"):
        parts = image["coco_url"].split("/")
        names += ["/".join(parts[-2:]), parts[-1]]
    return [os.path.join(root, name) for name in names]


def _cache_dir() -> Path:
    """A folder for completed annotation files; a temporary one where the home is read-only."""
    folder = cache_dir("annotations")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="rs_d2-"))
