"""Find an installer (pip or uv) and fetch the source archive of Detectron2 from the package index.

No address of an index is written down here: pip, uv and the fetcher know theirs, and an index that
the user configured for one of them is passed on.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from detectron2_wheel import SDIST_NAME, WheelError, check_sdist

PROJECT, PROJECT_VERSION = "pb1-detectron2", "0.6"
FETCHER = "unearth==0.19.0"  # downloads a source archive without running its setup.py


class FetchError(Exception):
    """No installer is available, or a command of it failed."""


def install_command() -> list[str]:
    """The start of an install command for this Python: pip where it has one, otherwise uv.

    Raises:
        FetchError: Neither is there and the standard library cannot provide pip.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    if importlib.util.find_spec("pip"):
        return pip
    if uv := os.environ.get("UV") or shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    run([sys.executable, "-m", "ensurepip"], "this Python has no pip, uv is not on PATH")
    return pip


def run(command: list[str], failure: str, **options: object) -> str:
    """Run a command silently and return its output.

    Raises:
        FetchError: It failed; the message is `failure` and the end of what the command said.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, **options)
    except OSError as error:
        raise FetchError(f"{failure}: {command[0]}: {error.strerror}") from None
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise FetchError(f"{failure}: {said[-1].strip() if said else f'exit {done.returncode}'}")
    return done.stdout


def index_url() -> str | None:
    """The package index that the user configured for pip or uv; None means their default."""
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if url := os.environ.get(name):
            return re.sub(r"^\w+=", "", url)  # uv allows `name=url`
    if importlib.util.find_spec("pip") is None:
        return None
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    answer = subprocess.run(command, capture_output=True, text=True)
    return answer.stdout.strip() or None


def fetch_sdist(folder: Path) -> Path:
    """The pinned source archive in `folder`, downloaded unless a good copy lies there already.

    Raises:
        FetchError: It cannot be had from the index.
        WheelError: The index has a different file under this name.
    """
    target = folder / SDIST_NAME
    if target.exists():
        check_sdist(target)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        reasons = []
        for fetch in (_fetch_with_unearth, _fetch_with_pip):
            try:
                archive = fetch(Path(scratch))
                check_sdist(archive)
                os.replace(archive, target)  # never a half-written archive under the final name
                return target
            except FetchError as error:
                reasons.append(str(error))
    raise FetchError(
        f"cannot fetch {SDIST_NAME} from the package index ({'; '.join(reasons)}); "
        "if you have the file, pass it with --sdist"
    )


def _fetch_with_unearth(scratch: Path) -> Path:
    tool, downloads = scratch / "unearth", scratch / "downloads"
    run([*install_command(), "--target", str(tool), FETCHER], f"{FETCHER} cannot be installed")
    command = [sys.executable, "-m", "unearth", "--no-binary", "--download", str(downloads)]
    if url := index_url():
        command += ["--index-url", url]
    environment = {**os.environ, "PYTHONPATH": str(tool)}
    run([*command, f"{PROJECT}=={PROJECT_VERSION}"], "unearth", env=environment)
    return _only_file(downloads)


def _fetch_with_pip(scratch: Path) -> Path:
    """Let pip itself find and download the file.

    `pip download` would run the archive's setup.py, which needs PyTorch and a compiler. pip's
    finder does not, but it is not a public interface, so this is the second choice.
    """
    if importlib.util.find_spec("pip") is None:
        raise FetchError("no pip to fall back to")
    try:
        from pip._internal.commands import create_command
        from pip._vendor.packaging.specifiers import SpecifierSet

        command = create_command("download", isolated=False)
        options, _ = command.parse_args(["--quiet", "--no-binary", PROJECT, PROJECT])
        with command.main_context():
            session = command.get_default_session(options)
            finder = command._build_package_finder(options=options, session=session)
            version = SpecifierSet(f"=={PROJECT_VERSION}")
            best = finder.find_best_candidate(PROJECT, version).best_candidate
            if best is None:
                raise FetchError(f"pip finds no {PROJECT}=={PROJECT_VERSION}")
            response = session.get(best.link.url_without_fragment)
            response.raise_for_status()
    except FetchError:
        raise
    except Exception as error:  # whatever a private interface may raise
        raise FetchError(f"pip: {type(error).__name__}: {error}") from None
    archive = scratch / SDIST_NAME
    archive.write_bytes(response.content)
    return archive


def _only_file(folder: Path) -> Path:
    files = [path for path in folder.glob("*") if path.is_file()]
    if len(files) != 1:
        raise WheelError(f"expected one downloaded file, found {[path.name for path in files]}")
    return files[0]
