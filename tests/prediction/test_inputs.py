"""Which images an input stands for, under which names, and how they are read."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.config import get_cfg

from rs_d2 import add_rs_config
from rs_d2.prediction.inputs import (
    Frame,
    Unreadable,
    find_images,
    load_images,
)
from rs_d2.prediction.predictor import InputMaker
from rs_d2.utils.errors import UserError


@pytest.fixture
def prepare():
    cfg = get_cfg()
    add_rs_config(cfg)
    return InputMaker(cfg)


@pytest.fixture
def tree(tmp_path):
    """Two images of one name, others of other kinds, and files that are none."""
    for name in ("b/1.jpg", "a/1.jpg", "a/2.PNG", "a/deep/1.jpg", "a/3.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path


def names(files):
    return [file.picture for file in files]


def test_a_folder_is_searched_in_the_order_of_names(tree):
    found = find_images([str(tree / "a")], tree / "out")
    assert names(found) == ["1.jpg", "2.PNG", "3.tif.png", "deep/1.jpg"]
    assert [file.path.name for file in found] == ["1.jpg", "2.PNG", "3.tif", "1.jpg"]


def test_no_two_pictures_share_a_name(tree):
    (tree / "c").mkdir()
    Image.new("RGB", (8, 6)).save(tree / "c" / "1.JPG")
    inputs = [str(tree / part) for part in ("a", "b", "c")]
    chosen = names(find_images(inputs, tree / "out"))
    assert chosen == ["1.jpg", "2.PNG", "3.tif.png", "deep/1.jpg", "1_2.jpg", "1_3.JPG"]
    assert len({name.lower() for name in chosen}) == len(chosen)


def test_a_file_counts_once(tree):
    inputs = [str(tree / "a" / "1.jpg"), str(tree / "a"), str(tree / "a" / "*.jpg")]
    assert len(find_images(inputs, tree / "out")) == 4


def test_a_pattern_finds_images_only(tree):
    found = find_images([str(tree / "a" / "**" / "*")], tree / "out")
    assert sorted(file.path.name for file in found) == ["1.jpg", "1.jpg", "2.PNG", "3.tif"]


def test_pictures_of_an_earlier_run_are_no_input(tree):
    (tree / "a" / "out").mkdir()
    Image.new("RGB", (8, 6)).save(tree / "a" / "out" / "1.jpg")
    assert len(find_images([str(tree / "a")], tree / "a" / "out")) == 4
    assert len(find_images([str(tree / "a")], tree / "a")) == 5  # what was asked for
    assert len(find_images([str(tree / "a")], tree)) == 5


@pytest.mark.parametrize(
    ("given", "output", "count"),
    [
        ("a", "a/../a/out", 4),
        ("link", "a/out", 4),
        ("a", "link/out", 4),
        ("a/**/*.jpg", "a/out", 2),
        ("link/**/*.jpg", "a/deep/../out", 2),
        ("a/../*/*.jpg", "b", 1),
    ],
)
def test_the_output_is_known_by_any_path(tree, monkeypatch, given, output, count):
    monkeypatch.chdir(tree)
    (tree / "a" / "out").mkdir()
    Image.new("RGB", (8, 6)).save(tree / "a" / "out" / "1.jpg")
    (tree / "link").symlink_to(tree / "a")
    assert len(find_images([given], Path(output))) == count


def test_a_file_counts_once_by_whatever_path(tree, monkeypatch):
    monkeypatch.chdir(tree)
    (tree / "link").symlink_to(tree / "a")
    inputs = ["a/1.jpg", "./b/../a/1.jpg", "link/1.jpg", str(tree / "a" / "1.jpg")]
    (file,) = find_images(inputs, tree / "out")
    assert file.path == tree / "a" / "1.jpg"


def test_hidden_files_are_found_by_their_name_only(tree):
    (tree / "a" / ".cache").mkdir()
    for hidden in ("a/._1.jpg", "a/.cache/1.jpg"):
        (tree / hidden).write_text("no image")
    assert len(find_images([str(tree / "a")], tree / "out")) == 4
    assert len(find_images([str(tree / "a" / "**" / "*")], tree / "out")) == 4
    named = find_images([str(tree / "a" / "._1.jpg")], tree / "out")
    assert [file.path.name for file in named] == ["._1.jpg"]


def test_a_folder_that_matches_a_pattern_is_no_image(tree):
    (tree / "b" / "2.jpg").mkdir()
    assert len(find_images([str(tree / "b" / "*.jpg")], tree / "out")) == 1


@pytest.mark.parametrize(
    ("given", "problem"),
    [("nowhere", "does not exist"), ("*.none", "no image found"), ("empty", "no image found")],
)
def test_an_input_without_images_is_named(tree, given, problem):
    (tree / "empty").mkdir()
    with pytest.raises(UserError, match=f"^INPUT: .*{given.lstrip('*')}:? {problem}"):
        find_images([str(tree / given)], tree / "out")


def test_a_pipe_is_refused_and_not_waited_for(tree):
    os.mkfifo(tree / "pipe.jpg")
    with pytest.raises(UserError, match=r"pipe.jpg is neither a regular file nor a folder"):
        find_images([str(tree / "pipe.jpg")], tree / "out")
    with pytest.raises(UserError, match=r"INPUT: .*pipe.jpg\*: no image found"):
        find_images([str(tree / "pipe.jpg*")], tree / "out")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_unreadable_images_keep_their_place(tree, prepare, num_workers):
    (tree / "a" / "0.jpg").write_text("words")
    whole = (tree / "a" / "1.jpg").read_bytes()
    (tree / "a" / "4.jpg").write_bytes(whole[: len(whole) // 2])
    files = find_images([str(tree / "a")], tree / "out")
    options = {"batch_size": 4, "num_workers": num_workers, "with_pixels": True}
    first, second = load_images(files, prepare, **options)
    assert [type(entry) for entry in first] == [Unreadable, Frame, Frame, Frame]
    assert [entry.position for entry in first + second] == list(range(6))
    assert first[0].reason == "not an image"
    assert isinstance(second[0], Unreadable)
    assert first[1].pixels.shape == (6, 8, 3)
    assert first[1].inputs["image"].dtype == torch.uint8


def test_pixels_are_kept_only_for_pictures(tree, prepare):
    files = find_images([str(tree / "b")], tree / "out")
    options = {"batch_size": 1, "num_workers": 0, "with_pixels": False}
    ((frame,),) = load_images(files, prepare, **options)
    assert frame.pixels is None
