"""Shipped models by name, and their trained weights in the user's folder."""

import os

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.modeling import build_model
from helpers.tiny import write_checkpoint

from rs_d2 import model_zoo
from rs_d2.model_zoo import api
from rs_d2.utils.errors import UserError

NAME = "quick/rs_mask_rcnn_digits"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(api.FOLDER_VARIABLE, str(tmp_path))
    (tmp_path / "quick").mkdir()
    return tmp_path


@pytest.fixture(scope="module")
def weights():
    """The state of the shipped digits model with random weights."""
    cfg = model_zoo.get_config(NAME)
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(1)
    return build_model(cfg).state_dict()


def test_all_shipped_configs_are_listed_without_their_bases():
    names = model_zoo.list_models()
    assert names == sorted(names)
    assert {NAME, "rs_mask_rcnn_lvis", "COCO-Detection/rs_faster_rcnn_R_50_FPN_1x"} <= set(names)
    assert not [name for name in names if "_base_" in name or name.endswith(".yaml")]


def test_every_published_row_is_listed():
    names = {f"{name}.yaml" for name in model_zoo.list_models()}
    assert {row.config for row in model_zoo.PUBLISHED} <= names


@pytest.mark.parametrize("name", [NAME, f"{NAME}.yaml"])
def test_a_config_is_found_with_and_without_its_ending(name):
    cfg = model_zoo.get_config(name)
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 30
    assert not cfg.is_frozen()


@pytest.mark.parametrize("call", [model_zoo.get_config, model_zoo.get_checkpoint_path])
def test_an_unknown_model_names_the_nearest(call):
    with pytest.raises(UserError, match=r"^model quick/rs_mask_rcnn_digts is not known; did you"):
        call("quick/rs_mask_rcnn_digts")


def test_missing_weights_are_one_line_that_says_how_to_get_them(folder):
    with pytest.raises(UserError, match=r"convert_mmdet.*save it as .*digits\.pth$") as caught:
        model_zoo.get_checkpoint_path(NAME)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_folder_is_in_the_cache_unless_it_is_stated(monkeypatch, tmp_path):
    monkeypatch.setenv(api.FOLDER_VARIABLE, "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert api.zoo_folder() == tmp_path / "rs_d2" / "model_zoo"


def test_a_file_with_a_hash_is_checked(folder):
    path = folder / "quick" / "part.pth"
    path.write_bytes(b"weights")
    named = path.with_name(f"rs_mask_rcnn_digits-{api.short_hash(path)}.pth")
    path.rename(named)
    assert model_zoo.get_checkpoint_path(NAME) == named
    named.write_bytes(b"wieghts")
    with pytest.raises(UserError, match=r"is damaged: its SHA-256 .*; remove it, or") as caught:
        model_zoo.get_checkpoint_path(NAME)
    assert str(caught.value).startswith(str(named))
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_passed_over_and_not_waited_for(folder):
    path = folder / f"{NAME}-deadbeef.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    path.with_name(f"{path.stem[:-8]}00000000.pth").symlink_to("nowhere")
    with pytest.raises(UserError, match="no trained weights"):
        model_zoo.get_checkpoint_path(NAME)


def test_the_newest_file_is_taken_and_other_models_are_not(folder):
    for content, stem in ((b"old", "rs_mask_rcnn_digits"), (b"new", "rs_mask_rcnn_digits")):
        path = folder / "part"
        path.write_bytes(content)
        os.utime(path, (0, 100 if content == b"old" else 200))
        path.rename(folder / "quick" / f"{stem}-{api.short_hash(path)}.pth")
    other = folder / "quick" / "rs_mask_rcnn_digits-large-00000000.pth"
    other.write_bytes(b"other")
    assert model_zoo.get_checkpoint_path(NAME).read_bytes() == b"new"


def test_a_trained_model_has_the_weights_of_its_file(folder, weights):
    torch.save({"model": weights}, folder / f"{NAME}.pth")
    model = model_zoo.get(NAME, trained=True, device="cpu")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    assert model.training  # as Detectron2's


def test_an_untrained_model_needs_no_file(folder):
    assert model_zoo.get(f"{NAME}.yaml", device="cpu").device == torch.device("cpu")


def test_weights_of_another_model_are_refused(folder, tmp_path):
    other = write_checkpoint(tmp_path)
    os.replace(other, folder / f"{NAME}.pth")
    with pytest.raises(UserError, match="in this model"):
        model_zoo.get(NAME, trained=True, device="cpu")


@pytest.mark.parametrize(
    ("device", "message"),
    [("foo", "'foo' is not a device"), ("cuda:0", "'cuda:0' was asked for but no GPU is there")],
)
def test_a_device_that_is_not_there_is_named(device, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"^device: {message}$"):
        model_zoo.get(NAME, device=device)
