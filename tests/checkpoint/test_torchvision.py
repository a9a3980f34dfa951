"""Every entry of a torchvision ResNet has its place in Detectron2's."""

import pytest
import torch
import torchvision

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_backbone

from rs_d2 import add_rs_config
from rs_d2.checkpoint.loading import RSCheckpointer
from rs_d2.checkpoint.torchvision import torchvision_resnet


def detectron2_resnet(depth, num_groups=1, width_per_group=64):
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_rs_resnet_backbone"
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP = depth, num_groups, width_per_group
    resnets.RES2_OUT_CHANNELS = 256 if depth >= 50 else 64
    resnets.NORM, resnets.STRIDE_IN_1X1, resnets.OUT_FEATURES = "FrozenStatBN", False, ["res5"]
    return build_backbone(cfg)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"depth": 18}),
        ("resnet50", {"depth": 50}),
        ("resnet101", {"depth": 101}),
        ("resnext101_64x4d", {"depth": 101, "num_groups": 64, "width_per_group": 4}),
    ],
)
def test_names_and_shapes_are_those_of_detectron2(name, settings):
    with torch.device("meta"):
        state = getattr(torchvision.models, name)().state_dict()
        ours = detectron2_resnet(**settings).state_dict()
    renamed = torchvision_resnet(state)
    assert {k: v.shape for k, v in renamed.items()} == {k: v.shape for k, v in ours.items()}


def test_the_network_is_the_same_function():
    theirs = torchvision.models.resnet18().eval()
    for norm in theirs.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(norm.weight)
            torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
            torch.nn.init.normal_(norm.running_mean)
    ours = detectron2_resnet(18)
    ours.load_state_dict(torchvision_resnet(theirs.state_dict()))
    images = torch.randn(2, 3, 64, 64)
    classifier_input = ours(images)["res5"].mean((2, 3))
    assert torch.allclose(theirs.fc(classifier_input), theirs(images), atol=1e-5)


@pytest.mark.parametrize("wrap", [dict, lambda state: {"state_dict": state, "meta": {}}])
def test_a_downloaded_file_loads_as_it_is(tmp_path, wrap):
    theirs = torchvision.models.resnet18()
    torch.save(wrap(theirs.state_dict()), tmp_path / "resnet18.pth")
    model = torch.nn.ModuleDict({"backbone": detectron2_resnet(18)})
    checkpointer = RSCheckpointer(model)
    checkpointer.load(str(tmp_path / "resnet18.pth"))
    assert checkpointer.unset == {}
    loaded = model["backbone"].res5[1].conv2.weight
    assert torch.equal(loaded, theirs.layer4[1].conv2.weight)


def test_other_checkpoints_are_left_alone():
    assert torchvision_resnet(detectron2_resnet(18).state_dict()) is None
