"""Deformable ResNets, frozen statistics and the pyramid with content-aware upsampling."""

import gzip
import json
import re

import pytest
import torch
from conftest import shared
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone, build_backbone, build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock as StockDeformBottleneckBlock
from torch import nn

from rs_d2 import add_rs_config
from rs_d2.checkpoint.torchvision import torchvision_resnet
from rs_d2.engine.solver import build_optimizer
from rs_d2.modeling.backbone import CARAFE, CARAFEFPN, DeformBottleneckBlock
from rs_d2.ops.norm import FrozenStatBatchNorm2d
from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import config_dir


def config(*axes):
    """A published model from the axes of configs/_base_/detector."""
    cfg = get_cfg()
    add_rs_config(cfg)
    for name in axes:
        cfg.merge_from_file(str(config_dir() / "_base_" / "detector" / f"{name}.yaml"))
    cfg.merge_from_file(str(config_dir() / "_base_" / "loss" / "rank_sort.yaml"))
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "cpu"
    return cfg


def on_meta(build, cfg):
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build(cfg)


@pytest.fixture
def small_cfg():
    """A deformable ResNet-50 and a CARAFE pyramid with narrow layers."""
    cfg = config("faster_rcnn_r50_fpn", "dcn", "carafe_fpn")
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    return cfg


class TestDeformableStages:
    def test_stages_3_to_5_deform_and_stage_2_does_not(self, small_cfg):
        bottom_up = build_backbone(small_cfg).bottom_up
        kinds = {n: {type(b) for b in getattr(bottom_up, n)} for n in bottom_up.stage_names}
        assert kinds == {
            "res2": {BottleneckBlock},
            "res3": {DeformBottleneckBlock},
            "res4": {DeformBottleneckBlock},
            "res5": {DeformBottleneckBlock},
        }

    def test_names_and_shapes_are_those_of_detectron2s_block(self):
        settings = {"bottleneck_channels": 8, "stride": 2, "norm": "FrozenBN", "num_groups": 2}
        try:
            theirs = StockDeformBottleneckBlock(
                16, 32, **settings, deform_modulated=True, deform_num_groups=4
            )
        except ImportError as error:
            pytest.skip(f"Detectron2 without its compiled code has no such block ({error})")
        ours = DeformBottleneckBlock(BottleneckBlock(16, 32, **settings), 4)
        assert {k: v.shape for k, v in ours.state_dict().items()} == {
            k: v.shape for k, v in theirs.state_dict().items()
        }

    def test_offsets_start_at_zero_and_learn(self, small_cfg):
        block = build_backbone(small_cfg).bottom_up.res3[0]
        assert not block.conv2_offset.weight.any()
        assert not block.conv2_offset.bias.any()
        assert block.conv2_offset.out_channels == 108
        block(torch.randn(1, 32, 8, 8)).sum().backward()
        assert block.conv2_offset.weight.grad.any()

    @pytest.mark.parametrize("stride", [1, 2])
    def test_with_zero_offsets_a_block_is_the_plain_one_with_a_halved_kernel(self, stride):
        plain = BottleneckBlock(8, 16, bottleneck_channels=4, stride=stride, norm="")
        images = torch.randn(2, 8, 7, 9)
        deformed = DeformBottleneckBlock(plain, 2)(images)
        plain.conv2.weight.data /= 2
        assert torch.allclose(deformed, plain(images), atol=1e-5)

    def test_a_frozen_stage_has_nothing_to_train(self, small_cfg):
        small_cfg.MODEL.BACKBONE.FREEZE_AT = 3
        bottom_up = build_backbone(small_cfg).bottom_up
        assert not any(p.requires_grad for p in bottom_up.res3.parameters())
        assert all(p.requires_grad for p in bottom_up.res4.parameters())

    def test_settings_that_cannot_be_met_are_named(self, small_cfg):
        small_cfg.MODEL.RESNETS.DEFORM_MODULATED = False
        with pytest.raises(UserError, match=r"^MODEL.RESNETS.DEFORM_MODULATED: "):
            build_backbone(small_cfg)
        small_cfg.MODEL.RESNETS.DEFORM_MODULATED = True
        small_cfg.MODEL.RESNETS.DEPTH = 18
        with pytest.raises(UserError, match=r"^MODEL.RESNETS.DEFORM_ON_PER_STAGE: ResNet-18 "):
            build_backbone(small_cfg)


class TestFrozenStatistics:
    def test_the_stem_and_the_first_stage_are_frozen_the_others_train(self, small_cfg):
        bottom_up = build_backbone(small_cfg).bottom_up
        for name in ("stem", "res2", "res3", "res4", "res5"):
            norms = [m for m in getattr(bottom_up, name).modules() if hasattr(m, "running_mean")]
            frozen = name in ("stem", "res2")
            assert {type(m) for m in norms} == {
                FrozenBatchNorm2d if frozen else FrozenStatBatchNorm2d
            }

    def test_a_step_of_training_leaves_every_statistic(self, small_cfg):
        model = build_backbone(small_cfg).train()
        before = {k: v.clone() for k, v in model.state_dict().items()}
        levels = model(torch.randn(2, 3, 64, 64))
        sum(level.square().mean() for level in levels.values()).backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
        changed = {k for k, v in model.state_dict().items() if (v != before[k]).any()}
        assert not [k for k in changed if "running" in k]
        affine = re.compile(r"res[345].*norm\.(weight|bias)$")
        assert {k for k in before if affine.search(k)} <= changed

    def test_its_parameters_decay_as_the_norm_layers(self, small_cfg):
        small_cfg.SOLVER.WEIGHT_DECAY_NORM = 0.25
        model = build_backbone(small_cfg)
        optimizer = build_optimizer(small_cfg, model)
        decays = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        norm = model.bottom_up.res4[0].conv1.norm
        assert [decays[id(p)] for p in (norm.weight, norm.bias)] == [0.25, 0.25]

    def test_a_checkpoint_of_a_frozen_network_loads_completely(self, small_cfg):
        ours = build_backbone(small_cfg)
        small_cfg.MODEL.RESNETS.NORM = "FrozenBN"
        frozen = build_backbone(small_cfg)
        ours.load_state_dict(frozen.state_dict())
        images = torch.randn(1, 3, 64, 64)
        for level, expected in zip(ours(images).values(), frozen(images).values(), strict=True):
            assert torch.allclose(level, expected, atol=1e-4)

    def test_other_norms_are_left_as_they_are(self, small_cfg):
        small_cfg.MODEL.RESNETS.NORM, small_cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0
        kinds = {type(m) for m in build_backbone(small_cfg).modules()}
        assert nn.BatchNorm2d in kinds
        assert FrozenStatBatchNorm2d not in kinds


class Levels(Backbone):
    """Feature maps of given sizes instead of a network."""

    def __init__(self, sizes, channels=4):
        super().__init__()
        self.maps = {f"res{i}": torch.randn(1, channels, *s) for i, s in enumerate(sizes, 2)}

    def forward(self, x):
        return self.maps

    def output_shape(self):
        return {n: ShapeSpec(channels=4, stride=2 ** int(n[3:])) for n in self.maps}


class TestCarafePyramid:
    def test_levels_and_strides(self, small_cfg):
        model = build_backbone(small_cfg)
        levels = model(torch.randn(1, 3, 64, 96))
        assert {n: tuple(x.shape[2:]) for n, x in levels.items()} == {
            "p2": (16, 24), "p3": (8, 12), "p4": (4, 6), "p5": (2, 3), "p6": (1, 2)
        }  # fmt: skip
        assert {n: s.stride for n, s in model.output_shape().items()} == {
            "p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64
        }  # fmt: skip
        assert model.size_divisibility == 32

    def test_the_top_down_path_starts_at_the_last_level(self):
        sizes = [(12, 20), (6, 10), (3, 5)]
        bottom_up = Levels(sizes)
        neck = CARAFEFPN(bottom_up, ["res2", "res3", "res4"], 4)
        levels = neck(torch.zeros(1))
        merged = neck.fpn_lateral5(bottom_up.maps["res4"])
        assert merged.shape[2:] == (2, 3)
        assert torch.equal(levels["p5"], neck.fpn_output5(merged))
        for i in (4, 3, 2):
            lateral = getattr(neck, f"fpn_lateral{i}")(bottom_up.maps[f"res{i}"])
            upsampled = getattr(neck, f"fpn_upsample{i + 1}")(merged)
            merged = lateral + upsampled[:, :, : lateral.shape[2], : lateral.shape[3]]
            assert torch.equal(levels[f"p{i}"], getattr(neck, f"fpn_output{i}")(merged))

    def test_initialisation_is_the_published_one(self):
        neck = CARAFEFPN(Levels([(8, 8), (4, 4)], channels=4), ["res2", "res3"], 64)
        for conv in (m for m in neck.modules() if isinstance(m, nn.Conv2d)):
            assert not conv.bias.any()
        for conv in (neck.fpn_lateral4, neck.fpn_output3, neck.fpn_upsample3.channel_compressor):
            fans = conv.weight[0].numel() + conv.weight[:, 0].numel()
            bound = (6 / fans) ** 0.5
            assert 0.95 * bound < conv.weight.abs().max() <= bound
        encoder = neck.fpn_upsample3.content_encoder
        assert encoder.weight.std().item() == pytest.approx(1e-3, rel=0.05)

    def test_an_upsampler_of_untrained_kernels_is_nearly_a_mean(self):
        upsampler = CARAFE(8)
        out = upsampler(torch.ones(1, 8, 10, 12))
        assert out.shape == (1, 8, 20, 24)
        assert torch.allclose(out[:, :, 4:-4, 4:-4], torch.tensor(1.0))

    def test_a_traced_network_takes_other_image_sizes(self, small_cfg):
        model = build_backbone(small_cfg).eval()
        images = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 96, 160)
        with torch.no_grad():
            traced = torch.jit.trace(model, images[0], strict=False)
            levels, expected = traced(images[1]), model(images[1])
        for name in expected:
            assert torch.allclose(levels[name], expected[name], atol=1e-4)

    def test_a_way_of_fusing_that_it_has_not_is_named(self, small_cfg):
        small_cfg.MODEL.FPN.FUSE_TYPE = "avg"
        with pytest.raises(UserError, match=r"^MODEL.FPN.FUSE_TYPE: 'avg'"):
            build_backbone(small_cfg)

    def test_maps_whose_strides_do_not_double_are_named(self):
        with pytest.raises(ValueError, match="do not double"):
            CARAFEFPN(Levels([(8, 8), (4, 4), (2, 2)]), ["res2", "res4"], 4)


# The axes of each official model, and whether it has a mask head.
OFFICIAL = {
    "ranksort_faster_rcnn_r50_fpn_1x_coco": [],
    "ranksort_faster_rcnn+_r50_fpn_1x_coco": ["carafe_fpn"],
    "ranksort_faster_rcnn_r101_fpn_1x_coco": ["r101"],
    "ranksort_faster_rcnn_r101_fpn_mstrain_dcn_3x_coco": ["r101", "dcn"],
    "ranksort_faster_rcnn+_r101_fpn_mstrain_dcn_3x_coco": ["r101", "carafe_fpn", "dcn"],
    "ranksort_mask_rcnn+_r50_fpn_1x_coco": ["carafe_fpn"],
    "ranksort_mask_rcnn_r101_fpn_mstrain_3x_coco": ["r101"],
    "ranksort_mask_rcnn+_r101_fpn_mstrain_3x_coco": ["carafe_fpn", "r101"],
    "ranksort_mask_rcnn+_r101_dcn_fpn_mstrain_3x_coco": ["dcn", "r101", "carafe_fpn"],
    "ranksort_mask_rcnn+_x101_dcn_fpn_mstrain_3x_coco": ["x101_64x4d", "dcn", "carafe_fpn"],
}


def official_shapes(name):
    with gzip.open(shared("reference/official-state-dicts.json.gz"), "rt") as file:
        return json.load(file)[name]


def expected_backbone(official):
    """Names and shapes of an official backbone and neck, under our names."""
    prefix = "backbone."
    resnet = {k[len(prefix) :]: v for k, v in official.items() if k.startswith(prefix)}
    resnet = torchvision_resnet(resnet)
    names = {k.replace("conv2.conv_offset", "conv2_offset"): v for k, v in resnet.items()}
    expected = {f"bottom_up.{k}": v for k, v in names.items()}
    kinds = {"lateral_convs": ("lateral", 2), "fpn_convs": ("output", 2)}
    kinds["upsample_modules"] = ("upsample", 3)
    for key, shape in official.items():
        match = re.match(r"neck\.(\w+)\.(\d)\.(?:conv\.)?(.*)", key)
        if match:
            kind, first = kinds[match[1]]
            expected[f"fpn_{kind}{int(match[2]) + first}.{match[3]}"] = shape
    return expected


@pytest.mark.parametrize("name", OFFICIAL)
def test_backbone_names_map_one_to_one_to_the_official_ones(name):
    base = "mask_rcnn_r50_fpn" if "mask" in name else "faster_rcnn_r50_fpn"
    model = on_meta(build_backbone, config(base, *OFFICIAL[name]))
    ours = {k: list(v.shape) for k, v in model.state_dict().items()}
    assert ours == expected_backbone(official_shapes(name))


@pytest.mark.parametrize("name", OFFICIAL)
def test_parameter_counts_are_the_official_ones(name):
    counted = re.compile(r"running_(mean|var)$|num_batches_tracked$")
    official = official_shapes(name)
    expected = sum(torch.Size(s).numel() for k, s in official.items() if not counted.search(k))
    base = "mask_rcnn_r50_fpn" if "mask" in name else "faster_rcnn_r50_fpn"
    model = on_meta(build_model, config(base, *OFFICIAL[name]))
    state = model.state_dict()
    assert sum(v.numel() for k, v in state.items() if not counted.search(k)) == expected


def test_the_plus_model_has_the_published_number_of_parameters():
    model = on_meta(build_model, config("faster_rcnn_r50_fpn", "carafe_fpn"))
    frozen = [b for n, b in model.named_buffers() if re.search(r"norm\.(weight|bias)$", n)]
    parameters = [*model.parameters(), *frozen]
    assert sum(p.numel() for p in parameters) == 47_357_551
