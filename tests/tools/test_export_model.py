"""tools/export_model.py: the files it writes, how it compares them, what it refuses."""

import subprocess
import sys

import pytest
from conftest import REPO
from PIL import Image

pytest.importorskip("detectron2")
pytest.importorskip("onnxruntime")

from helpers.small_detectors import picture
from helpers.tiny import write_checkpoint

from rs_d2 import export
from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.checkpoint.files import write_checkpoint as write_file

sys.path.insert(0, str(REPO / "tools"))
import export_model

NAMES = tuple(f"thing {index}" for index in range(30))
FORMATS = {"torchscript": "model_final.ts", "onnx": "model_final.onnx"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("trained"), class_names=NAMES)


@pytest.fixture
def weights(trained, tmp_path):
    (tmp_path / "model_final.pth").symlink_to(trained)
    return tmp_path / "model_final.pth"


@pytest.fixture
def image(tmp_path):
    Image.fromarray(picture(90, 120)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


def run(*arguments):
    return export_model.main([str(argument) for argument in arguments])


def rows(text):
    """The cells of the table that was shown."""
    return [line.split() for line in text.splitlines()[4:]]


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_written_beside_the_weights_and_compared(kind, weights, image, capsys):
    assert run("--format", kind, "--weights", weights, "--image", image) == 0
    path = weights.with_name(FORMATS[kind])
    shown = capsys.readouterr().out
    assert shown.startswith(f"{path}: largest differences from the model\n")
    table = rows(shown)
    assert [row[:3] for row in table] == [
        ["120", "x", "90"],
        ["120", "x", "63"],
        ["72", "x", "90"],
        ["120", "x", "90"],
    ]
    assert all(row[-1] == "yes" for row in table)
    assert int(table[0][3]) > 0
    file = export.load(path)
    assert file.class_names == NAMES
    assert len(file(image).scores) == int(table[0][3])
    assert sorted(path.parent.iterdir()) == sorted([path, image, weights])  # nothing else is left


def test_a_checkpoint_with_another_threshold_is_enough_by_itself(weights, tmp_path, capsys):
    output, key = tmp_path / "own.pth", "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
    assert run("--format", "torch", "--weights", weights, "--output", output, key, "0.25") == 0
    assert set(read_checkpoint(output)) == {"model", "rs_d2"}
    file = export.load(output)
    assert file.class_names == NAMES
    assert all(row[-1] == "yes" for row in rows(capsys.readouterr().out))


def test_a_file_that_differs_is_told_by_the_exit_code(weights, image, monkeypatch, capsys):
    paste = export.images.paste_masks
    monkeypatch.setattr(
        export.images, "scale_boxes", lambda boxes, *sizes: boxes.clamp(0, 60) + 0.25
    )
    monkeypatch.setattr(export.images, "paste_masks", paste)
    assert run("--format", "torchscript", "--weights", weights, "--image", image) == 1
    assert "NO" in capsys.readouterr().out


def refused(capsys, *arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "onnx"], "the following arguments are required: --weights"),
        (["--format", "onnx", "--weights", "no.pth"], "no.pth does not exist"),
        (["--format", "coreml", "--weights", "no.pth"], "invalid choice: 'coreml'"),
        (["--format", "onnx", "--weights", "no.pth", "A.B"], "'A.B' has no partner"),
        (
            ["--format", "onnx", "--weights", "a.pth", "--output", "a.ts"],
            "--output: a.ts must end in .onnx",
        ),
        (
            ["--format", "torch", "--weights", "a.pth", "--output", "a.pth"],
            "a.pth would overwrite the input",
        ),
        (
            ["--format", "onnx", "--weights", "a.pth", "--output", "no/a.onnx"],
            "--output: the folder no does not exist",
        ),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(arguments, message, capsys):
    assert message in refused(capsys, *arguments)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--image", "no.png"], "--image: no.png cannot be read as an image"),
        (["--config-file", "no.yaml"], "no.yaml does not exist"),
        (["MODEL.ROI_HEDS.NUM_CLASSES", "3"], "MODEL.ROI_HEDS"),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "RetinaNet"),
        (["MODEL.KEYPOINT_ON", "True"], "roi_heads.keypoint_head"),
    ],
)
def test_a_mistake_in_the_config_or_image_is_one_line(more, message, weights, capsys):
    arguments = ["--format", "onnx", "--weights", weights, *more]
    assert message in refused(capsys, *arguments)
    assert not weights.with_suffix(".onnx").exists()


def test_a_file_that_is_no_image_is_one_line(weights, tmp_path, capsys):
    (tmp_path / "text.png").write_text("text")
    arguments = ["--format", "onnx", "--weights", weights, "--image", tmp_path / "text.png"]
    assert "text.png cannot be read as an image" in refused(capsys, *arguments)


def test_weights_without_a_config_need_one(weights, tmp_path, capsys):
    bare = tmp_path / "bare.pth"
    write_file({"model": read_checkpoint(weights)["model"]}, bare)
    message = refused(capsys, "--format", "onnx", "--weights", bare)
    assert "bare.pth holds no config" in message


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_package_that_is_missing_is_one_line(package, weights, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    message = refused(capsys, "--format", "onnx", "--weights", weights)
    assert message == f"error: {package} is not installed: pip install onnx onnxruntime\n"


def test_help_needs_no_detectron2():
    code = (
        "import sys; sys.modules['detectron2'] = None; sys.path.insert(0, 'tools');"
        "import export_model; export_model.main(['--help'])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--format" in done.stdout
