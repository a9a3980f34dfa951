"""tools/check_dataset.py: arguments, output, exit codes."""

import json
import sys

import pytest
from conftest import REPO
from helpers.annotation_files import changed, coco
from PIL import Image

sys.path.insert(0, str(REPO / "tools"))
import check_dataset


@pytest.fixture
def data(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        Image.effect_noise((64, 48), 50).save(tmp_path / name)
    (tmp_path / "train.json").write_text(json.dumps(coco()))
    return tmp_path


def run(folder, *more, name="train.json"):
    return check_dataset.main(["--train-json", str(folder / name), "--jobs", "1", *map(str, more)])


def test_a_sound_set_ends_with_0(data, capsys):
    assert run(data, "--images", "--fix") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("2 images, 2 annotations, 2 categories; no findings")
    assert out[1].endswith("nothing to fix")


def test_findings_end_with_1_and_are_written(data, capsys):
    content = changed("annotations", 0, bbox=[1, 1, 0, 5])
    (data / "train.json").write_text(json.dumps(content))
    assert run(data, "--output", data / "found.json", "--fix") == 1
    assert "annotation 1: bbox: expected a width and a height above 0" in capsys.readouterr().out
    (found,) = json.loads((data / "found.json").read_text())
    assert found["is_sound"] is False
    assert found["findings"][0]["kind"] == "boxes without area"
    assert run(data, name="train.fixed.json") == 0


def test_no_image_is_overwritten(data, capsys):
    image = data / "a.png"
    before = image.read_bytes()
    (data / "found.json").symlink_to(image)
    assert run(data, "--output", data / "found.json") == 2
    assert f"found.json would overwrite the input {image}" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_train_and_val_are_compared(data, capsys):
    (data / "val.json").write_text(json.dumps(coco()))
    assert run(data, "--val-json", data / "val.json", "--images") == 0
    out = capsys.readouterr().out
    assert "image 7: looks like image 7 of train.json" in out
    assert "image 3: looks like image 3 of train.json" in out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "give --train-json, --val-json or both"),
        (["--train-json", "none.json"], "none.json: no such file"),
        (["--train-json", "train.json", "--train-images", "no"], "image folder no does not exist"),
        (
            ["--train-json", "train.json", "--output", "train.json"],
            "would overwrite the input train.json",
        ),
        (["--train-json", "train.json", "--jobs", "0"], "0 is not at least 1"),
        (["--train-json", "broken.json"], "broken.json: not json"),
    ],
)
def test_mistakes_end_with_2_in_one_line(data, monkeypatch, capsys, arguments, line):
    monkeypatch.chdir(data)
    (data / "broken.json").write_text("{")
    assert check_dataset.main(arguments) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_absolute_names_are_an_option(data, capsys):
    content = changed("images", 0, file_name=str(data / "a.png"))
    (data / "train.json").write_text(json.dumps(content))
    assert run(data) == 1
    assert "expected a name below the image folder" in capsys.readouterr().out
    assert run(data, "--absolute-paths") == 0
