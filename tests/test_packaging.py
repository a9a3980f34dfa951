"""What a user gets from a wheel, and whether the pins agree with the bounds."""

import json
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
USE = """
import json, rs_d2
from rs_d2.utils.folders import config_dir
files = config_dir().rglob("*.yaml")
yaml = sorted(f"configs/{file.relative_to(config_dir()).as_posix()}" for file in files)
print(json.dumps({"rs_d2": rs_d2.__file__, "configs": str(config_dir()), "yaml": yaml}))
"""
USE_ZOO = """
import json
from rs_d2 import model_zoo
from rs_d2.config.load import find_config, load_config
flagship = model_zoo.get_config("rs_mask_rcnn_lvis")
other, _ = load_config(find_config("COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml"), [])
print(json.dumps({
    "models": model_zoo.list_models(),
    "classes": [cfg.MODEL.ROI_HEADS.NUM_CLASSES for cfg in (flagship, other)],
    "heads": flagship.MODEL.ROI_HEADS.NAME,
}))
"""
RENDER = """
import json
from rs_d2.report import page
print(json.dumps({"title": page._TEMPLATES.get_template("page.html.j2").name}))
"""
DATA = {p.relative_to(REPO).as_posix() for p in (REPO / "rs_d2").rglob("*.*") if p.is_file()}
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


def install(archive: Path, folder: Path) -> Path:
    """Have pip put an archive's package, and nothing else, into a folder."""
    pytest.importorskip("pip")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--no-build-isolation", "--no-compile", "--target", str(folder), str(archive)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory) -> Path:
    """A folder into which pip has put the wheel."""
    return install(next(built.glob("*.whl")), tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile):
    text = wheel.read(f"rs_d2-{__version__}.dist-info/METADATA").decode()
    return Parser().parsestr(text)


@pytest.fixture(scope="module")
def pins() -> list[Requirement]:
    text = re.sub(r"^#.*", "", (REPO / "requirements.txt").read_text(), flags=re.MULTILINE)
    entries = re.sub(r"\\\n\s*--hash=sha256:[0-9a-f]{64}", "", text).splitlines()
    return [Requirement(entry) for entry in entries if entry]


def run_installed(installed: Path, folder: Path, code: str) -> dict:
    """Run code that prints json, outside the checkout, with the installed package in front."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_wheel_has_every_config_and_only_our_package(wheel):
    names = set(wheel.namelist())
    assert {f"rs_d2/{path}" for path in CONFIGS} <= names
    assert {name.split("/")[0] for name in names} == {"rs_d2", f"rs_d2-{__version__}.dist-info"}


def test_wheel_has_every_file_of_the_package(wheel):
    ours = {path for path in DATA if "__pycache__" not in path}
    assert "rs_d2/report/page.html.j2" in ours
    assert ours - set(wheel.namelist()) == set()


def test_installed_package_finds_the_page_of_its_report(installed, tmp_path):
    pytest.importorskip("detectron2")
    assert run_installed(installed, tmp_path, RENDER) == {"title": "page.html.j2"}


def test_installed_package_finds_its_configs(installed, tmp_path):
    assert run_installed(installed, tmp_path, USE) == {
        "rs_d2": str(installed / "rs_d2" / "__init__.py"),
        "configs": str(installed / "rs_d2" / "configs"),
        "yaml": sorted(CONFIGS),
    }


def test_installed_package_builds_the_models_of_its_zoo(installed, tmp_path):
    pytest.importorskip("detectron2")
    models = [path for path in CONFIGS if "/_base_/" not in path]
    assert run_installed(installed, tmp_path, USE_ZOO) == {
        "models": sorted(path.removeprefix("configs/").removesuffix(".yaml") for path in models),
        "classes": [1203, 80],
        "heads": "RSROIHeads",
    }


def test_source_archive_installs_the_same_files(built, installed, tmp_path):
    def files(folder):
        return {p.relative_to(folder).as_posix() for p in (folder / "rs_d2").rglob("*.*")}

    assert files(install(next(built.glob("*.tar.gz")), tmp_path)) == files(installed)


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
        here = {"python_version": python, "python_full_version": f"{python}.0"}
        if pin.marker is None or pin.marker.evaluate(here):
            (specifier,) = pin.specifier
            versions.setdefault(canonicalize_name(pin.name), []).append(specifier.version)
    assert [name for name, found in versions.items() if len(found) != 1] == []
    for bound in map(Requirement, metadata.get_all("Requires-Dist")):
        (version,) = versions[canonicalize_name(bound.name)]
        assert bound.specifier.contains(version), f"{bound} against {version}"
