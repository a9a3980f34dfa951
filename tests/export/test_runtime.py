"""Exported files on their own: what they tell, what is refused, and that Detectron2 is not used."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPO
from helpers.doc_blocks import blocks
from PIL import Image

pytest.importorskip("detectron2")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from helpers.small_detectors import R18, picture, small_detector

from rs_d2.export import ExportedDetector, export_model, load
from rs_d2.utils.errors import UserError
from rs_d2.version import __version__

SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx", "torch": ".pth"}
SIZES = "INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 120 OUTPUT_DIR /home/somebody/output"
NAMES = tuple(f"thing {index}" for index in range(80))


@pytest.fixture(scope="module")
def detector():
    config = "COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x"
    detector = small_detector(config, R18, SIZES)
    detector.cfg.MODEL.WEIGHTS = "/home/somebody/model_final.pth"
    return detector


@pytest.fixture(scope="module")
def files(detector, tmp_path_factory):
    folder, image = tmp_path_factory.mktemp("files"), detector.image(picture(96, 120))
    for kind, suffix in SUFFIXES.items():
        path = folder / f"model{suffix}"
        export_model(detector.model, detector.cfg, image, path, kind, NAMES)
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_a_path_a_picture_and_an_array_give_what_the_model_gives(suffix, detector, files, tmp_path):
    path, pixels = tmp_path / "image.png", picture(131, 150)
    Image.fromarray(pixels[:, :, ::-1]).save(path)
    file, expected = load(files / f"model{suffix}"), detector(pixels)
    assert len(expected.scores) > 0
    for image in (pixels, path, str(path), Image.open(path)):
        found = file(image)
        assert np.abs(found.boxes - expected.boxes).max() < 1e-3
        assert np.abs(found.scores - expected.scores).max() < 1e-5
        assert np.array_equal(found.classes, expected.classes)
        assert (found.masks != expected.masks).mean() < 1e-4
    assert file.class_names == NAMES


@pytest.mark.parametrize("suffix", [".ts", ".onnx"])
def test_a_file_tells_about_itself_and_not_about_the_machine(suffix, files):
    file = load(files / f"model{suffix}")
    assert isinstance(file, ExportedDetector)
    about = file.about
    assert about.outputs == ("boxes", "scores", "classes", "masks")
    assert (about.pixel_format, about.min_size, about.max_size) == ("RGB", 96, 120)
    assert about.version == __version__
    assert "RSRPN" in about.config
    assert b"somebody" not in (files / f"model{suffix}").read_bytes()


def test_the_checkpoint_does_not_tell_about_the_machine_either(files):
    entry = torch.load(files / "model.pth", weights_only=True)["rs_d2"]
    assert "somebody" not in json.dumps(entry)
    assert entry["class_names"] == list(NAMES)


def test_equal_images_give_equal_answers(files):
    for suffix in SUFFIXES.values():
        file = load(files / f"model{suffix}")
        first, second = (file(picture(100, 110)) for _ in range(2))
        for value, again in zip(first, second, strict=True):
            assert np.array_equal(value, again)


RUN_ALONE = """
import sys
sys.modules["detectron2"] = sys.modules["fvcore"] = None
import rs_d2.export.runtime
from rs_d2.export import load
for path in sys.argv[2:]:
    found = load(path)(sys.argv[1])
    print(len(found.scores), found.masks.shape[1:])
"""


def test_the_graphs_run_without_detectron2(files, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(picture(131, 150)).save(path)
    command = [sys.executable, "-W", "ignore", "-c", RUN_ALONE, path]
    command += [files / "model.ts", files / "model.onnx"]
    done = subprocess.run(
        [str(part) for part in command], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    assert first.endswith("(131, 150)")
    assert int(first.split()[0]) > 0


def test_the_examples_of_the_page_run_as_they_stand(files, tmp_path, monkeypatch):
    Image.fromarray(picture(131, 150)[:, :, ::-1]).save(tmp_path / "street.jpg")
    shutil.copy(files / "model.onnx", tmp_path)
    monkeypatch.chdir(tmp_path)
    short, alone = ({}, {})
    for names, (_, code) in zip((short, alone), blocks("export.md", "python"), strict=True):
        exec(code, names)
    found = short["found"]
    assert len(found.scores) > 0
    assert np.array_equal(alone["scores"], found.scores)
    assert np.abs(alone["boxes"] - found.boxes).max() < 1e-3
    assert alone["names"] == [NAMES[index] for index in found.classes]


def test_what_makes_files_is_there_by_name():
    from rs_d2 import export

    assert sorted(export.FORMATS) == ["onnx", "torch", "torchscript"]
    for _ in range(2):  # no module of the package hides a function of its name
        assert all(callable(getattr(export, name)) for name in export.__all__ if name != "FORMATS")
    with pytest.raises(AttributeError, match="has no attribute 'exprt'"):
        _ = export.exprt


def _foreign_onnx(path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [out]
    )
    opset = [onnx.helper.make_opsetid("", 19)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def _foreign_script(path):
    with pytest.warns(FutureWarning):
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(path))


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("missing.onnx", None, "missing.onnx does not exist"),
        ("missing.ts", None, "missing.ts does not exist"),
        ("missing.pth", None, "missing.pth does not exist"),
        ("folder.ts", lambda path: path.mkdir(), "folder.ts does not exist"),
        ("model.pt", None, "model.pt: an exported model ends in .ts, .onnx, .pth"),
        ("text.ts", lambda path: path.write_text("text"), "text.ts is not a TorchScript file"),
        ("text.onnx", lambda path: path.write_text("text"), "text.onnx is not an ONNX file that"),
        ("text.pth", lambda path: path.write_text("text"), "text.pth is not a checkpoint"),
        ("empty.ts", lambda path: path.write_bytes(b""), "empty.ts is not a TorchScript file"),
        ("empty.onnx", lambda path: path.write_bytes(b""), "empty.onnx "),
        ("state.ts", lambda path: torch.save({}, path), "state.ts is not a TorchScript file"),
        ("other.onnx", _foreign_onnx, "other.onnx was not written by tools/export_model.py"),
        ("other.ts", _foreign_script, "other.ts was not written by tools/export_model.py"),
    ],
)
def test_a_file_of_another_kind_is_one_line(name, write, message, tmp_path):
    if write is not None:
        write(tmp_path / name)
    with pytest.raises(UserError) as refusal:
        load(tmp_path / name)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_package_that_is_missing_is_named(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="onnxruntime is not installed: pip install onnx"):
        load(files / "model.onnx")


@pytest.mark.parametrize("suffix", SUFFIXES.values())
def test_what_is_no_image_is_refused(suffix, files, tmp_path):
    file = load(files / f"model{suffix}")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(OSError, match="cannot identify image file"):
        file(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"float64 [\[(]4, 4, 3[\])]"):
        file(np.zeros((4, 4, 3)))
