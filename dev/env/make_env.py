"""Make a working `.venv` in this checkout; what `make env` runs.

The pinned requirements and Detectron2 (6 GB) live in a virtual environment in the user's cache
folder, named by a hash of what decides its content, so that all checkouts with the same pins share
it. The checkout's `.venv` is a few kilobytes: it sees that environment, has its own editable rs_d2,
and anything else installed into it stays there.

    python dev/env/make_env.py             set up, or do nothing when all is there
    python dev/env/make_env.py --rebuild   start over, also in the cache

INSTALLER=uv installs with uv instead of pip; XDG_CACHE_HOME moves the cache folder.
Needs Python 3.10 to 3.12 on Linux or macOS and nothing beyond the standard library.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import NamedTuple

import env_guards as guards
import venv_layers as layers
from run_logged import CommandError, duration, run_logged

ROOT = Path(__file__).resolve().parents[2]
BYTES_NEEDED = 10 * 10**9

DECIDES_DEPENDENCIES = (
    "requirements.txt",
    "dev/env/install_detectron2.py",
    "dev/env/detectron2_*.py",
)
DECIDES_CHECKOUT = ("setup.py", "pyproject.toml", "rs_d2/version.py", "dev/env/venv_layers.py")


class Places(NamedTuple):
    """Where things go.

    Attributes:
        root: The checkout.
        cache: Folder in the user's cache that all checkouts share.
        dependencies: Virtual environment with the requirements and Detectron2, inside `cache`.
    """

    root: Path
    cache: Path
    dependencies: Path

    @property
    def venv(self) -> Path:
        """The checkout's own virtual environment."""
        return self.root / ".venv"


def places(root: Path = ROOT) -> Places:
    """The folders of one checkout; the dependencies are named by all that decides their content."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(base).resolve() / "rs_d2"
    python = f"{sys.implementation.cache_tag}-{platform.system()}-{platform.machine()}"
    return Places(root, cache, cache / f"venv-{digest(root, DECIDES_DEPENDENCIES, python)[:12]}")


def digest(root: Path, patterns: tuple[str, ...], *more: str) -> str:
    """Hash of the files that the patterns match, of their names, and of further strings."""
    total = hashlib.sha256("\n".join(more).encode())
    for path in sorted(path for pattern in patterns for path in root.glob(pattern)):
        total.update(f"\n{path.relative_to(root)}\n".encode() + path.read_bytes())
    return total.hexdigest()


def build_dependencies(at: Places, installer: str, lock: int) -> None:
    """Install the pinned requirements and Detectron2 into the cache; the stamp is written last."""
    if layers.is_complete(at.dependencies, at.dependencies.name):
        return
    guards.need_room(at.cache, BYTES_NEEDED)
    older = [p.name for p in at.cache.glob("venv-*") if p.is_dir() and p != at.dependencies]
    if older:
        print(f"note: {at.cache} has environments of other versions ({', '.join(older)})")
    log = at.cache / f"{at.dependencies.name}.log"
    log.unlink(missing_ok=True)
    layers.create(at.dependencies, with_pip=True)
    python = str(at.dependencies / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--progress-bar", "off"]
    uv = [os.environ.get("UV") or shutil.which("uv") or "uv", "pip", "install", "--python", python]
    run = functools.partial(run_logged, log=log, env=clean_environment(), pass_fds=(lock,))
    run(
        [*(uv if installer == "uv" else pip), "-r", str(at.root / "requirements.txt")],
        f"installing the requirements into {at.dependencies}, 6 GB",
        "3 min, 10 min on a busy machine",
    )
    script = str(at.root / "tools" / "install_detectron2.py")
    wheels = str(at.cache / "wheels")
    run([python, script, "--wheel-dir", wheels], "installing Detectron2", "15 s")
    layers.mark_complete(at.dependencies, at.dependencies.name)


def build_checkout(at: Places, lock: int) -> None:
    """Make the checkout's `.venv` on top of the dependencies, with an editable rs_d2."""
    if layers.is_complete(at.venv, checkout_state(at)):
        return
    if layers.is_foreign(at.venv):
        raise guards.EnvError(
            f"{at.venv} was not made by `make env`; move it away, or use it as README.md says: "
            "python tools/install_detectron2.py && pip install -e ."
        )
    log = at.cache / "checkout.log"
    log.unlink(missing_ok=True)
    layers.create(at.venv, with_pip=False)
    layers.put_on_top(at.venv, at.dependencies)
    python = str(at.venv / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    run = functools.partial(run_logged, log=log, env=clean_environment(), pass_fds=(lock,))
    title = f"making {at.venv} with an editable rs_d2"
    run([*pip, "--editable", str(at.root)], title, "5 s")
    run([python, "-c", "import detectron2, rs_d2"], "trying it", "10 s", cwd=at.venv)
    layers.mark_complete(at.venv, checkout_state(at))


def checkout_state(at: Places) -> str:
    """What a finished `.venv` depends on: a moved checkout or new metadata makes it outdated."""
    return digest(at.root, DECIDES_CHECKOUT, str(at.root), str(at.dependencies))


def clean_environment() -> dict[str, str]:
    """This process's environment without what would redirect an installation."""
    redirecting = {"PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"}
    return {name: value for name, value in os.environ.items() if name not in redirecting}


def ensure(at: Places, installer: str, rebuild: bool) -> None:
    """Build what is missing; two quick look-ups when nothing is."""
    done = layers.is_complete(at.dependencies, at.dependencies.name)
    if done and layers.is_complete(at.venv, checkout_state(at)) and not rebuild:
        print(f"environment is up to date: {at.venv}")
        return
    started = time.monotonic()
    with guards.only_one(at.cache) as lock:
        if rebuild:
            layers.mark_incomplete(at.dependencies)
            layers.mark_incomplete(at.venv)
        build_dependencies(at, installer, lock)
        build_checkout(at, lock)
    print(f"environment ready in {duration(time.monotonic() - started)}: source .venv/bin/activate")


def main(argv: list[str] | None = None) -> int:
    """Run the script; failures become one line and exit code 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rebuild", action="store_true", help="start over, also in the cache")
    args = parser.parse_args(argv)
    installer = os.environ.get("INSTALLER") or "pip"
    try:
        if installer not in ("pip", "uv"):
            raise guards.EnvError(f"INSTALLER={installer}: must be pip or uv")
        guards.use_supported_python()
        ensure(places(), installer, args.rebuild)
    except (guards.EnvError, CommandError, layers.LayerError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the next `make env` starts this step again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
