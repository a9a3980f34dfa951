"""What a user gets from a wheel, and whether the pins agree with the bounds."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import REPO
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rs_d2.version import __version__

SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "rs_d2", "configs")
CONFIGS = {path.relative_to(REPO).as_posix() for path in REPO.glob("configs/**/*.yaml")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wheel and a source archive of a copy of this checkout."""
    folder = tmp_path_factory.mktemp("packaging")
    for name in SOURCES:
        if (REPO / name).is_dir():
            shutil.copytree(REPO / name, folder / name)
        else:
            shutil.copy(REPO / name, folder / name)
    build = "from setuptools import build_meta as b; b.build_wheel('.'); b.build_sdist('.')"
    subprocess.run([sys.executable, "-c", build], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile):
    text = wheel.read(f"rs_d2-{__version__}.dist-info/METADATA").decode()
    return Parser().parsestr(text)


@pytest.fixture(scope="module")
def pins() -> list[Requirement]:
    lines = (REPO / "requirements.txt").read_text().splitlines()
    lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in lines]
    return [Requirement(line) for line in lines if line]


def test_wheel_has_every_config_and_only_our_package(wheel):
    names = set(wheel.namelist())
    assert {f"rs_d2/{path}" for path in CONFIGS} <= names
    assert {name.split("/")[0] for name in names} == {"rs_d2", f"rs_d2-{__version__}.dist-info"}


def test_installed_package_finds_its_configs(wheel, tmp_path):
    wheel.extractall(tmp_path)
    code = "from rs_d2._compat import config_dir; print(config_dir())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "rs_d2" / "configs"), done.stderr


def test_source_archive_can_be_built_again(built, tmp_path):
    shutil.unpack_archive(next(built.glob("*.tar.gz")), tmp_path)
    (top,) = tmp_path.iterdir()
    assert {p.relative_to(top).as_posix() for p in top.glob("configs/**/*.yaml")} == CONFIGS
    assert (top / "setup.py").is_file()


def test_detectron2_is_no_requirement(metadata):
    names = {Requirement(text).name for text in metadata.get_all("Requires-Dist")}
    assert "detectron2" not in names
    assert {"torch", "scikit-learn", "lvis"} <= names
    extras = {"all", "dev", "digits", "evaluation", "export", "lvis"}
    assert set(metadata.get_all("Provides-Extra")) == extras


def test_requirements_are_exact(pins):
    assert [pin.name for pin in pins if [s.operator for s in pin.specifier] != ["=="]] == []


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12"])
def test_pins_satisfy_the_bounds_on_every_python(python, pins, metadata):
    versions: dict[str, list[str]] = {}
    for pin in pins:
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            (specifier,) = pin.specifier
            versions.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    assert [name for name, found in versions.items() if len(found) != 1] == []
    for bound in map(Requirement, metadata.get_all("Requires-Dist")):
        (version,) = versions[canonicalize_name(bound.name)]
        assert bound.specifier.contains(version), f"{bound} against {version}"
