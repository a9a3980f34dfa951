"""Every part of Detectron2 imports by itself and before rs_d2; our pure half imports without it.

(`detectron2.projects.panoptic_deeplab` is left out: it needs a package that is on no index.)
"""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPO

DETECTRON2 = (
    "checkpoint",
    "config",
    "data",
    "engine",
    "evaluation",
    "export",
    "layers",
    "model_zoo",
    "modeling",
    "projects.deeplab",
    "projects.point_rend",
    "solver",
    "structures",
    "utils.visualizer",
)
PURE = ("coco", "criterion", "losses", "ops", "targets", "utils", "version")

# A new interpreter for each part would spend its time on importing PyTorch; the fork of one that
# has imported nothing of Detectron2 is as fresh.
IMPORT_EACH = """
import importlib, json, os, sys, traceback
import cv2, fvcore.nn, hydra, matplotlib.pyplot, omegaconf, torch, torchvision
import torch.utils.tensorboard

def attempt(names):
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            for name in names:
                importlib.import_module(name)
            answer = ""
        except BaseException:
            answer = traceback.format_exc()
        os.write(write, answer[-4000:].encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        answer = stream.read()
    os.wait()
    return answer

hidden, groups = json.loads(sys.argv[1])
for name in hidden:
    sys.modules[name] = None
print(json.dumps([attempt(names) for names in groups]))
"""


def import_each(groups: list[list[str]], hidden: tuple[str, ...] = ()) -> list[str]:
    """The traceback of each group of imports, empty where they succeed.

    Args:
        groups: Module names, imported in this order in a process of their own.
        hidden: Modules that behave as if they were not installed.
    """
    command = [sys.executable, "-W", "ignore", "-c", IMPORT_EACH, json.dumps([hidden, groups])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def detectron2_imports() -> dict[str, str]:
    answers = import_each([[f"detectron2.{name}", "rs_d2"] for name in DETECTRON2])
    return dict(zip(DETECTRON2, answers, strict=True))


@pytest.fixture(scope="module")
def pure_imports() -> dict[str, str]:
    answers = import_each([[f"rs_d2.{name}"] for name in PURE], hidden=("detectron2",))
    return dict(zip(PURE, answers, strict=True))


@pytest.mark.parametrize("name", DETECTRON2)
def test_part_of_detectron2_imports_before_rs_d2(name, detectron2_imports):
    assert detectron2_imports[name] == ""


@pytest.mark.parametrize("name", PURE)
def test_pure_half_imports_without_detectron2(name, pure_imports):
    assert pure_imports[name] == ""


def test_a_detectron2_that_cannot_be_imported_is_one_line(tmp_path):
    (tmp_path / "detectron2").mkdir()
    broken = tmp_path / "detectron2" / "__init__.py"
    broken.write_text("raise AttributeError('no LINEAR in PIL.Image')\n")
    code = "import rs_d2.losses, train_net, sys; sys.exit(train_net.main(['--help']))"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPO}"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Detectron2 at ")
    assert "no LINEAR in PIL.Image" in line
