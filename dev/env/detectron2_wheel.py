"""Turn the source archive of Detectron2 0.6 into a pure-Python wheel, byte for byte reproducible.

A wheel is a zip file with three metadata files, so no build backend, PyTorch or network is needed.
"""

from __future__ import annotations

import base64
import csv
import difflib
import hashlib
import io
import os
import posixpath
import tarfile
import zipfile
from pathlib import Path

from detectron2_edits import EditError, apply_edits

SDIST_NAME = "pb1-detectron2-0.6.tar.gz"
SDIST_SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
SDIST_BYTES = 518_688

NAME, VERSION = "detectron2", "0.6+py"
WHEEL_NAME = f"{NAME}-{VERSION}-py3-none-any.whl"
DIST_INFO = f"{NAME}-{VERSION}.dist-info"

# What Detectron2 0.6 asks for, less what only caffe2 and a formatter needed, in today's ranges.
REQUIRES = (
    "Pillow>=10",
    "matplotlib>=3.8",
    "pycocotools>=2.0.8",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.9,<0.2",
    "omegaconf>=2.3,<2.4",
    "hydra-core>=1.3,<1.4",
)

# The small projects that Detectron2 installs as detectron2.projects.*
PROJECTS = {
    "projects/PointRend/point_rend/": "detectron2/projects/point_rend/",
    "projects/DeepLab/deeplab/": "detectron2/projects/deeplab/",
    "projects/Panoptic-DeepLab/panoptic_deeplab/": "detectron2/projects/panoptic_deeplab/",
}

_TIMESTAMP = (2021, 11, 15, 0, 0, 0)  # the month of the release; a fixed one keeps the bytes equal


class WheelError(Exception):
    """The archive is not the pinned one, or cannot be turned into a wheel."""


def check_sdist(path: Path) -> None:
    """Raise `WheelError` unless the file is exactly the pinned source archive."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WheelError(f"cannot read {path}: {error.strerror}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != SDIST_SHA256:
        raise WheelError(
            f"{path} is not the pinned {SDIST_NAME}: {len(data)} bytes with sha256 {digest}, "
            f"expected {SDIST_BYTES} bytes with {SDIST_SHA256}; delete it and try again"
        )


def build_wheel(sdist: Path, wheel_dir: Path) -> Path:
    """Write the wheel and return its path; the same archive always gives the same bytes.

    Args:
        sdist: The pinned source archive; its checksum is verified first.
        wheel_dir: Folder to write into, created when missing.

    Raises:
        WheelError: The archive is a different one.
    """
    original = read_tree(sdist)
    files = {**original, **_edited(original)}
    files.update(_metadata())
    files[f"{DIST_INFO}/RECORD"] = _record(files)
    wheel_dir.mkdir(parents=True, exist_ok=True)
    target = wheel_dir / WHEEL_NAME
    partial = wheel_dir / f".{WHEEL_NAME}.{os.getpid()}"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(files, key=lambda p: (p.startswith(DIST_INFO), p)):
            info = zipfile.ZipInfo(path, date_time=_TIMESTAMP)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix, on every system
            info.external_attr = 0o100644 << 16
            archive.writestr(info, files[path])
    os.replace(partial, target)  # never a half-written wheel under the final name
    return target


def show_patch(sdist: Path) -> str:
    """Everything that the wheel changes or adds, as a unified diff against the source archive."""
    original = read_tree(sdist)
    lines: list[str] = []
    for path, new in sorted(_edited(original).items()):
        old = original.get(path, b"").decode()
        lines += difflib.unified_diff(
            old.splitlines(keepends=True),
            new.decode().splitlines(keepends=True),
            f"a/{path}" if path in original else "/dev/null",
            f"b/{path}",
        )
    return "".join(lines)


def read_tree(sdist: Path) -> dict[str, bytes]:
    """The files that go into the wheel, by their path there; nothing is unpacked to disk.

    Raises:
        WheelError: The archive is not the pinned one.
    """
    check_sdist(sdist)
    files: dict[str, bytes] = {}
    with tarfile.open(sdist) as archive:
        for member in archive:
            path = _wheel_path(posixpath.normpath(member.name).partition("/")[2])
            stream = archive.extractfile(member) if path else None
            if stream is not None:
                files[path] = stream.read()
    return files


def _wheel_path(source: str) -> str:
    """Where a file of the source tree goes inside the wheel; empty when it does not."""
    if source == "LICENSE":
        return f"{DIST_INFO}/licenses/LICENSE"
    if source.startswith("detectron2/"):
        return source
    for folder, package in PROJECTS.items():
        if source.startswith(folder):
            return package + source.removeprefix(folder)
    return ""


def _edited(files: dict[str, bytes]) -> dict[str, bytes]:
    sources = {path: data.decode() for path, data in files.items() if path.endswith(".py")}
    try:
        return {path: text.encode() for path, text in apply_edits(sources).items()}
    except EditError as error:
        raise WheelError(str(error)) from None


def _metadata() -> dict[str, bytes]:
    metadata = [
        "Metadata-Version: 2.1",
        f"Name: {NAME}",
        f"Version: {VERSION}",
        "Summary: Detectron2 0.6 without compiled code, edited for today's PyTorch and NumPy",
        "Author: FAIR",
        "License: Apache-2.0",
        "Project-URL: Source, https://github.com/facebookresearch/detectron2",
        "Requires-Python: >=3.10",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
    ]
    wheel = [
        "Wheel-Version: 1.0",
        "Generator: rs_d2 tools/install_detectron2.py",
        "Root-Is-Purelib: true",
        "Tag: py3-none-any",
    ]
    texts = {"METADATA": metadata, "WHEEL": wheel, "top_level.txt": [NAME]}
    return {f"{DIST_INFO}/{name}": ("\n".join(ls) + "\n").encode() for name, ls in texts.items()}


def _record(files: dict[str, bytes]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for path in sorted(files):
        digest = base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).rstrip(b"=")
        writer.writerow([path, f"sha256={digest.decode()}", len(files[path])])
    writer.writerow([f"{DIST_INFO}/RECORD", "", ""])
    return text.getvalue().encode()
