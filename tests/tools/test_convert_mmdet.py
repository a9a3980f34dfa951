"""tools/convert_mmdet.py on files, good and bad."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPO
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from helpers.tiny import write_config

from rs_d2.checkpoint.files import read_checkpoint
from rs_d2.checkpoint.loading import RSCheckpointer
from rs_d2.checkpoint.metadata import read_metadata
from rs_d2.checkpoint.mmdet import to_mmdet
from rs_d2.checkpoint.smoke_run import detect_on_cpu, model_shapes
from rs_d2.config.load import load_config

sys.path.insert(0, str(REPO / "tools"))
import convert_mmdet

NAMES = tuple(f"thing {i}" for i in range(30))
# Batch norm with statistics, as in the published models.
OPTS = ["MODEL.RESNETS.NORM", "FrozenStatBN"]
FASTER = "COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model's config, and its random weights as Detectron2 and mmdetection write them."""
    tmp_path = tmp_path_factory.mktemp("made")
    cfg = small_config(write_config(tmp_path))
    torch.manual_seed(3)
    model = build_model(cfg)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    state = model.state_dict()
    torch.save({"model": state, "iteration": 9}, tmp_path / "ours.pth")
    theirs = to_mmdet(state, {name: value.shape for name, value in state.items()}).state
    optimizer = {"state": {0: {"momentum_buffer": torch.zeros(1)}}, "param_groups": []}
    meta = {"CLASSES": NAMES, "config": "model = dict()", "epoch": 12, "hook_msgs": {}}
    content = {"meta": meta, "state_dict": theirs, "optimizer": optimizer}
    torch.save(content, tmp_path / "theirs.pth")
    pixels = np.random.default_rng(0).integers(256, size=(90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path


@pytest.fixture
def files(folder, tmp_path):
    """The same in a folder of the test's own; the files are links, to be replaced, not changed."""
    for path in folder.iterdir():
        (tmp_path / path.name).hardlink_to(path)
    return tmp_path


def small_config(path):
    return load_config(str(path), ["MODEL.DEVICE", "cpu", *OPTS])[0]


def convert(folder, source, target, *more, config=None):
    paths = [str(folder / source), str(folder / target)]
    config = config or str(folder / "tiny.yaml")
    return convert_mmdet.main(["--config-file", config, *paths, *map(str, more), *OPTS])


def equal(state, other):
    return set(state) == set(other) and all(torch.equal(state[k], other[k]) for k in state)


def test_there_and_back_is_the_same_model(files):
    assert convert(files, "ours.pth", "out.pth", "--to-mmdet") == 0
    assert convert(files, "out.pth", "back.pth") == 0
    ours = read_checkpoint(files / "ours.pth")["model"]
    back = read_checkpoint(files / "back.pth")["model"]
    assert equal(ours, back)
    image = np.asarray(Image.open(files / "image.png"))
    found = [
        detect_on_cpu(small_config(files / "tiny.yaml"), state, image) for state in (ours, back)
    ]
    assert len(found[0]) > 0
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(found[0].get(field), found[1].get(field))
    assert torch.equal(found[0].pred_boxes.tensor, found[1].pred_boxes.tensor)
    assert equal(
        read_checkpoint(files / "out.pth")["state_dict"],
        read_checkpoint(files / "theirs.pth")["state_dict"],
    )


def test_the_output_loads_and_tells_its_config_and_classes(files, capsys):
    assert convert(files, "theirs.pth", "out.pth") == 0
    assert "out.pth: " in (line := capsys.readouterr().out)
    assert "30 class names" in line
    assert "batch counters left out" in line
    content = read_checkpoint(files / "out.pth")
    metadata = read_metadata(content, "out.pth")
    assert metadata.class_names == NAMES
    (files / "dumped.yaml").write_text(metadata.config)
    dumped, _ = load_config(str(files / "dumped.yaml"), [])
    assert dumped.MODEL.WEIGHTS == ""
    assert model_shapes(dumped) == {k: v.shape for k, v in content["model"].items()}
    checkpointer = RSCheckpointer(build_model(small_config(files / "tiny.yaml")))
    checkpointer.load(str(files / "out.pth"))
    assert checkpointer.unset == {}


def test_class_names_go_back_too(files):
    assert convert(files, "theirs.pth", "ours2.pth") == 0
    assert convert(files, "ours2.pth", "theirs2.pth", "--to-mmdet") == 0
    assert read_checkpoint(files / "theirs2.pth")["meta"] == {"CLASSES": NAMES}
    assert convert(files, "ours.pth", "theirs3.pth", "--to-mmdet") == 0
    assert read_checkpoint(files / "theirs3.pth")["meta"] == {}


def test_names_of_another_number_give_way_to_those_of_the_data(files):
    content = {**read_checkpoint(files / "theirs.pth"), "meta": {"CLASSES": ("one", "two")}}
    torch.save(content, files / "in.pth")
    assert convert(files, "in.pth", "out.pth", "DATASETS.TEST", "('digits_val',)") == 0
    found = read_metadata(read_checkpoint(files / "out.pth"), "out.pth").class_names
    assert list(found) == MetadataCatalog.get("digits_val").thing_classes
    assert convert(files, "in.pth", "out.pth", "DATASETS.TEST", "()") == 0
    assert read_metadata(read_checkpoint(files / "out.pth"), "out.pth").class_names == ()


def test_a_file_of_tensors_alone_is_taken_as_it_is(files):
    state = read_checkpoint(files / "theirs.pth")["state_dict"]
    torch.save(state, files / "bare.pth")
    assert convert(files, "bare.pth", "out.pth") == 0
    assert equal(
        read_checkpoint(files / "out.pth")["model"], read_checkpoint(files / "ours.pth")["model"]
    )


def test_group_norm_has_a_name_of_its_own(files):
    cfg, _ = load_config(str(files / "tiny.yaml"), ["MODEL.DEVICE", "cpu"])
    torch.save(build_model(cfg).state_dict(), files / "gn.pth")
    argv = ["--config-file", str(files / "tiny.yaml"), "--to-mmdet"]
    assert convert_mmdet.main([*argv, str(files / "gn.pth"), str(files / "out.pth")]) == 0
    state = read_checkpoint(files / "out.pth")["state_dict"]
    assert {"backbone.gn1.weight", "backbone.layer1.0.gn2.bias"} <= set(state)
    assert "neck.lateral_convs.0.gn.weight" in state
    assert not any("num_batches_tracked" in name for name in state)


def test_the_check_shows_what_the_model_finds(files, capsys):
    more = ["--check", files / "image.png", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.1"]
    assert convert(files, "theirs.pth", "out.pth", *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "detections score above 0.1 (MODEL.ROI_HEADS.SCORE_THRESH_TEST)" in lines[0]
    assert sum("thing " in line for line in lines) == 10


def test_the_check_says_that_no_score_is_above_the_threshold(files, capsys):
    more = ["--check", files / "image.png", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.99"]
    assert convert(files, "theirs.pth", "out.pth", *more) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "0 detections score above 0.99" in lines[0]
    assert lines[1] == "  the best of the others:"
    assert "thing " in lines[2]


def test_weights_that_are_not_finite_fail_the_check(files, capsys):
    content = read_checkpoint(files / "theirs.pth")
    content["state_dict"]["rpn_head.rpn_cls.bias"][1] = float("nan")
    torch.save(content, files / "nan.pth")
    assert convert(files, "nan.pth", "out.pth", "--check", files / "image.png") == 2
    error = capsys.readouterr().err
    assert "proposal_generator.rpn_head.objectness_logits.bias is not finite" in error
    assert not (files / "out.pth").exists()


def test_outputs_that_are_not_finite_fail_the_check(files, capsys):
    content = read_checkpoint(files / "theirs.pth")
    content["state_dict"]["roi_head.bbox_head.fc_cls.weight"].fill_(3e38)
    torch.save(content, files / "huge.pth")
    assert convert(files, "huge.pth", "out.pth", "--check", files / "image.png") == 2
    error = capsys.readouterr().err
    assert "the output of roi_heads.box_predictor.cls_score is not finite on this image" in error


def test_every_tensor_without_counterpart_is_listed(files, capsys):
    content = read_checkpoint(files / "theirs.pth")
    content["state_dict"]["neck.extra.weight"] = torch.zeros(1)
    del content["state_dict"]["rpn_head.rpn_reg.bias"]
    torch.save(content, files / "odd.pth")
    (files / "out.pth").write_text("kept")
    assert convert(files, "odd.pth", "out.pth") == 2
    error = capsys.readouterr().err
    assert "in the file, but not in the config's model (1):\n  neck.extra.{weight}\n" in error
    assert "not in the file (1):\n  proposal_generator.rpn_head.anchor_deltas.{bias}\n" in error
    assert error.splitlines()[-1].startswith("error: ")
    assert "out.pth is not written" in error
    assert (files / "out.pth").read_text() == "kept"


def test_another_class_count_is_told_with_both_shapes(files, capsys):
    assert convert(files, "theirs.pth", "out.pth", "MODEL.ROI_HEADS.NUM_CLASSES", "7") == 2
    error = capsys.readouterr().err
    assert "roi_heads.box_predictor.cls_score.weight: (30, 64) in the file, (7, 64)" in error
    assert "of another shape (6):" in error


def test_a_wrong_config_is_told_together_with_the_right_one(files, capsys):
    right = "COCO-Detection/rs_cascade_rcnn_R_50_FPN_1x.yaml"
    shapes = model_shapes(load_config(str(REPO / "configs" / right), [])[0])
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    torch.save(to_mmdet(state, shapes).state, files / "cascade.pth")
    argv = ["--config-file", FASTER, str(files / "cascade.pth"), str(files / "out.pth")]
    assert convert_mmdet.main(argv) == 2
    assert f"does not fit {FASTER}; it fits {right};" in capsys.readouterr().err


class Code:
    """Unpickling it would run a command."""

    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"words", "in.pth "),
        (b"", "in.pth "),
        ({"meta": {}}, "in.pth has no entry 'state_dict' and is no mapping of names to tensors"),
        ({}, "in.pth has no entry 'state_dict' and is no mapping of names to tensors"),
        ({"model": {}}, "it has 'model': add --to-mmdet?"),
        ({"state_dict": {"a": 1}}, "its entry 'state_dict' is not a mapping of names to tensors"),
        ({"state_dict": [1]}, "its entry 'state_dict' is not a mapping of names to tensors"),
        ([1], "in.pth "),
        ({"state_dict": Code()}, "in.pth "),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_line(files, capsys, monkeypatch, content, message):
    monkeypatch.chdir(files)
    if isinstance(content, bytes):
        (files / "in.pth").write_bytes(content)
    else:
        torch.save(content, files / "in.pth")
    assert convert(files, "in.pth", "out.pth") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (files / "out.pth").exists()
    assert not (files / "ran").exists()


def test_mmdetections_file_is_not_taken_for_detectron2s(files, capsys):
    assert convert(files, "theirs.pth", "out.pth", "--to-mmdet") == 2
    assert "it has 'state_dict': leave --to-mmdet out?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "more", "message"),
    [
        ("gone.pth", "out.pth", [], "gone.pth does not exist"),
        ("theirs.pth", "gone/out.pth", [], "gone does not exist"),
        ("theirs.pth", ".", [], "is a folder"),
        ("theirs.pth", "theirs.pth", [], "would overwrite the input"),
        ("theirs.pth", "out.pth", ["--check", "gone.png"], "--check: gone.png cannot be read"),
        ("theirs.pth", "out.pth", ["--check", __file__], "cannot be read as an image"),
        ("theirs.pth", "out.pth", ["MODEL.NONSENSE", "1"], "MODEL.NONSENSE is not a config key"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(files, capsys, source, target, more, message):
    before = (files / "theirs.pth").read_bytes()
    assert convert(files, source, target, *more) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert (files / "theirs.pth").read_bytes() == before


def test_a_config_that_does_not_exist_is_named(files, capsys):
    assert convert(files, "theirs.pth", "out.pth", config="rs_faster.yaml") == 2
    assert "rs_faster.yaml does not exist" in capsys.readouterr().err


def test_a_key_without_a_value_is_refused(files, capsys):
    assert convert(files, "theirs.pth", "out.pth", "MODEL.MASK_ON") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: KEY VALUE pairs: 'FrozenStatBN' has no partner in MODEL.MASK_ON")


def test_a_write_that_fails_leaves_nothing_behind(files, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    before = sorted(files.iterdir())
    assert convert(files, "theirs.pth", "out.pth") == 2
    assert "out.pth cannot be written (No space left on device)" in capsys.readouterr().err
    assert sorted(files.iterdir()) == before


def test_it_runs_as_a_program_from_anywhere(files):
    command = [sys.executable, str(REPO / "tools" / "convert_mmdet.py")]
    argv = ["--config-file", "tiny.yaml", "theirs.pth", "out.pth", "--check", "image.png", *OPTS]
    done = subprocess.run(command + argv, cwd=files, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "out.pth: " in done.stdout


def test_names_of_a_distributed_wrapper_are_unwrapped(files):
    content = torch.load(files / "theirs.pth", weights_only=True)
    content["state_dict"] = {f"module.{k}": v for k, v in content["state_dict"].items()}
    torch.save(content, files / "wrapped.pth")
    assert convert(files, "wrapped.pth", "out.pth") == 0
    ours = read_checkpoint(files / "ours.pth")["model"]
    assert equal(read_checkpoint(files / "out.pth")["model"], ours)


def test_class_names_of_newer_versions_are_found(files):
    content = torch.load(files / "theirs.pth", weights_only=True)
    content["meta"] = {"dataset_meta": {"classes": NAMES[::-1]}}
    torch.save(content, files / "newer.pth")
    assert convert(files, "newer.pth", "out.pth") == 0
    written = read_checkpoint(files / "out.pth")
    assert read_metadata(written, "out.pth").class_names == NAMES[::-1]


def test_weights_that_are_no_floating_point_numbers_are_named(files, capsys):
    content = torch.load(files / "theirs.pth", weights_only=True)
    name = "roi_head.bbox_head.fc_cls.weight"
    content["state_dict"][name] = content["state_dict"][name].to(torch.int32)
    torch.save(content, files / "quantised.pth")
    assert convert(files, "quantised.pth", "out.pth") == 2
    assert f"{name} holds torch.int32" in capsys.readouterr().err
    assert not (files / "out.pth").exists()
