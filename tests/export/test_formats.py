"""Models that cannot be exported, and files that cannot be written, are one line."""

import sys

import pytest
import torch

pytest.importorskip("detectron2")
pytest.importorskip("onnx")

from detectron2 import model_zoo
from detectron2.modeling import build_model
from helpers.small_detectors import R18, picture, small_detector

from rs_d2.export import FORMATS, export_model
from rs_d2.export.graph import ExportableDetector
from rs_d2.utils.errors import UserError


@pytest.fixture
def detector():
    return small_detector("COCO-Detection/rs_atss_R_50_FPN_1x", R18)


def refusal(detector, kind, path):
    with pytest.raises(UserError) as refused:
        export_model(detector.model, detector.cfg, detector.image(picture(64, 64)), path, kind)
    assert not path.exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


class Doubled(torch.autograd.Function):
    """A user's function, for which TorchScript has no form."""

    @staticmethod
    def forward(ctx, features):
        return features * 2


def put_before_the_backbone(detector, function):
    hook = detector.model.backbone.register_forward_pre_hook
    hook(lambda module, arguments: (function(arguments[0]),))


@pytest.mark.parametrize(
    ("kind", "function", "named"),
    [
        ("onnx", torch.special.bessel_j0, "aten::special_bessel_j0"),
        ("torchscript", Doubled.apply, "Doubled"),
    ],
)
def test_an_operator_without_a_form_is_named_in_one_line(
    kind, function, named, detector, tmp_path, capfd
):
    put_before_the_backbone(detector, function)
    torch._C._jit_set_onnx_log_enabled(True)  # as another export leaves it
    message = refusal(detector, kind, tmp_path / "model")
    assert message.startswith("the model cannot be exported: ")
    assert named in message
    assert message.endswith("(docs/export.md)")
    shown = capfd.readouterr()
    assert shown.out + shown.err == ""


def test_a_mistake_inside_the_model_is_not_hidden(detector, tmp_path):
    put_before_the_backbone(detector, lambda images: images.reshape(7, 7))
    image = detector.image(picture(64, 64))
    with pytest.raises(RuntimeError, match="is invalid for input of size"):
        export_model(detector.model, detector.cfg, image, tmp_path / "model", "onnx")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "RetinaNet cannot be exported"),
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", "ProposalNetwork cannot be exported"),
        ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "Res5ROIHeads cannot be exported"),
        ("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml", "MODEL.KEYPOINT_ON: keypoints cannot"),
    ],
)
def test_an_architecture_that_is_not_in_the_table_is_named(config, message):
    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    with pytest.raises(UserError, match=message):
        ExportableDetector(model)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_that_cannot_be_written_is_named(kind, detector, tmp_path):
    path = tmp_path / "missing" / "model"
    message = refusal(detector, kind, path)
    assert message.startswith(f"{path} cannot be written")
    assert list(tmp_path.iterdir()) == []


def test_onnx_that_is_not_installed_is_named(detector, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = refusal(detector, "onnx", tmp_path / "model.onnx")
    assert message == "onnx is not installed: pip install onnx onnxruntime"
