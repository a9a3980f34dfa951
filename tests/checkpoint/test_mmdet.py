"""The published models' names and shapes convert without a rest, both ways."""

import gzip
import json
import re
from functools import cache

import pytest
import torch
from conftest import REPO, shared
from torch.nn import functional as F

pytest.importorskip("detectron2")

from detectron2.modeling import build_model
from helpers.tiny import write_config

from rs_d2.checkpoint.mmdet import describe, official_names, to_detectron2, to_mmdet
from rs_d2.checkpoint.smoke_run import model_shapes
from rs_d2.config.load import load_config
from rs_d2.model_zoo import PUBLISHED
from rs_d2.ops.carafe import carafe_upsample

D, S, L = "COCO-Detection/", "COCO-InstanceSegmentation/", "LVIS-InstanceSegmentation/"
# The original's config: ours, entries of its state dict.
MODELS = {
    "atss_r50_fpn_1x_coco": (D + "rs_atss_R_50_FPN_1x.yaml", 367),
    "paa_r50_fpn_1x_coco": (D + "rs_paa_R_50_FPN_1x.yaml", 367),
    "faster_rcnn_r50_fpn_1x_coco": (D + "rs_faster_rcnn_R_50_FPN_1x.yaml", 348),
    "faster_rcnn+_r50_fpn_1x_coco": (D + "rs_faster_rcnn_plus_R_50_FPN_1x.yaml", 368),
    "faster_rcnn_r101_fpn_1x_coco": (D + "rs_faster_rcnn_R_101_FPN_1x.yaml", 654),
    "faster_rcnn_r101_fpn_mstrain_dcn_3x_coco": (D + "rs_faster_rcnn_R_101_DCN_FPN_3x.yaml", 714),
    "faster_rcnn+_r101_fpn_mstrain_dcn_3x_coco": (
        D + "rs_faster_rcnn_plus_R_101_DCN_FPN_3x.yaml",
        734,
    ),
    "cascade_rcnn_r50_fpn_1x_coco": (D + "rs_cascade_rcnn_R_50_FPN_1x.yaml", 364),
    "mask_rcnn_r50_fpn_1x_coco": (S + "rs_mask_rcnn_R_50_FPN_1x.yaml", 360),
    "mask_rcnn+_r50_fpn_1x_coco": (S + "rs_mask_rcnn_plus_R_50_FPN_1x.yaml", 380),
    "mask_rcnn_r101_fpn_mstrain_3x_coco": (S + "rs_mask_rcnn_R_101_FPN_3x.yaml", 666),
    "mask_rcnn+_r101_fpn_mstrain_3x_coco": (S + "rs_mask_rcnn_plus_R_101_FPN_3x.yaml", 686),
    "mask_rcnn+_r101_dcn_fpn_mstrain_3x_coco": (S + "rs_mask_rcnn_plus_R_101_DCN_FPN_3x.yaml", 746),
    "mask_rcnn+_x101_dcn_fpn_mstrain_3x_coco": (
        S + "rs_mask_rcnn_plus_X_101_64x4d_DCN_FPN_3x.yaml",
        746,
    ),
    "solov2_r101_fpn_3x": (S + "rs_solov2_R_101_FPN_3x.yaml", 692),
    "solov2_light_448_r34_fpn_3x": (S + "rs_solov2_light_R_34_FPN_3x.yaml", 272),
    "yolact_r50_55e_coco": (S + "rs_yolact_R_50_FPN_55e.yaml", 352),
    "mask_rcnn_r50_fpn_1x_lvis_v1": (L + "rs_mask_rcnn_R_50_FPN_1x.yaml", 360),
}
PARAMETERS = {
    D + "rs_atss_R_50_FPN_1x.yaml": 32_680_257,
    D + "rs_paa_R_50_FPN_1x.yaml": 32_680_257,
    **{row.config: row.parameters for row in PUBLISHED},
}
STATISTIC = re.compile(r"running_mean|running_var|num_batches_tracked")


@cache
def shapes_of(config, *opts):
    return model_shapes(load_config(str(REPO / "configs" / config), opts)[0])


@cache
def published():
    return json.loads(
        gzip.decompress(shared("reference/official-state-dicts.json.gz").read_bytes())
    )


def official(name):
    """Tensors without memory under the original's names; the counters have their type."""
    shapes = published()[f"ranksort_{name}"]
    return {
        key: torch.empty(
            shape, device="meta", dtype=torch.int64 if "tracked" in key else torch.float32
        )
        for key, shape in shapes.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model_converts_without_a_rest(name):
    config, entries = MODELS[name]
    state = official(name)
    done = to_detectron2(state, shapes_of(config))
    assert describe(done) == ""
    assert done.complete
    assert len(state) == entries == len(done.state) + len(done.dropped)
    assert all("num_batches_tracked" in dropped for dropped in done.dropped)
    assert {k: v.shape for k, v in done.state.items()} == shapes_of(config)
    parameters = (v.numel() for k, v in done.state.items() if not STATISTIC.search(k))
    assert sum(parameters) == PARAMETERS[config]


@pytest.mark.parametrize("name", MODELS)
def test_the_way_back_restores_every_name_and_tensor(name):
    config, _ = MODELS[name]
    state = official(name)
    back = to_mmdet(to_detectron2(state, shapes_of(config)).state, shapes_of(config))
    assert back.complete
    assert set(back.state) == set(state)
    for key, value in back.state.items():
        # Live batch norm has a counter of its own, frozen statistics get one.
        if "num_batches_tracked" in key and value is not state[key]:
            assert (value.shape, value.dtype, value.item()) == ((), torch.int64, 0)
        else:
            assert value is state[key]


def test_every_published_model_is_tested():
    assert {f"ranksort_{name}" for name in MODELS} == set(published())


@pytest.mark.parametrize("path", sorted((REPO / "configs").glob("[A-Z]*/*.yaml")), ids=str)
def test_every_tensor_of_a_packaged_config_has_a_name_of_its_own(path):
    shapes = shapes_of(path.relative_to(REPO / "configs"))
    names = official_names(shapes)
    assert set(names) == set(shapes)
    assert len(set(names.values())) == len(names)


def test_the_baselines_quality_branch_is_the_originals_centerness():
    assert official_names(["head.quality.weight"]) == {
        "head.quality.weight": "bbox_head.atss_centerness.weight"
    }


def test_what_is_missing_left_over_or_misshapen_is_told():
    shapes = {
        "backbone.fpn_lateral2.weight": torch.Size([4, 3, 1, 1]),
        "backbone.fpn_lateral2.bias": torch.Size([4]),
        "roi_heads.box_predictor.cls_score.bias": torch.Size([80]),
        "something.else": torch.Size([]),
    }
    state = {
        "neck.lateral_convs.0.conv.weight": torch.zeros(4, 3, 1, 1),
        "roi_head.bbox_head.fc_cls.bias": torch.zeros(81),
        "roi_head.bbox_head.bn.num_batches_tracked": torch.tensor(7),
        "roi_head.grid_head.a.weight": torch.zeros(1),
        "roi_head.grid_head.a.bias": torch.zeros(1),
    }
    done = to_detectron2(state, shapes)
    assert not done.complete
    assert done.dropped == ("roi_head.bbox_head.bn.num_batches_tracked",)
    assert done.unmatched_source == ("roi_head.grid_head.a.weight", "roi_head.grid_head.a.bias")
    assert done.unmatched_target == ("backbone.fpn_lateral2.bias", "something.else")
    assert done.wrong_shapes == (("roi_heads.box_predictor.cls_score.bias", (81,), (80,)),)
    assert describe(done).splitlines() == [
        "in the file, but not in the config's model (2):",
        "  roi_head.grid_head.a.{weight, bias}",
        "in the config's model, but not in the file (2):",
        "  backbone.fpn_lateral2.{bias}",
        "  something.{else}",
        "of another shape (1):",
        "  roi_heads.box_predictor.cls_score.bias: (81,) in the file, (80,) in the model",
    ]


def test_an_entry_that_mmdetection_has_no_name_for_is_told_on_the_way_back():
    done = to_mmdet({"something.else": torch.zeros(())}, {"something.else": torch.Size([])})
    assert done.unmatched_source == ("something.else",)
    assert done.state == {}


@pytest.mark.parametrize("state", [{}, {"fc.weight": torch.zeros(2)}])
def test_a_file_that_shares_nothing_leaves_the_whole_model_unmatched(state):
    shapes = shapes_of(MODELS["faster_rcnn_r50_fpn_1x_coco"][0])
    done = to_detectron2(state, shapes)
    assert done.unmatched_target == tuple(shapes)
    assert done.unmatched_source == tuple(state)


def small_model(tmp_path, *opts):
    opts = (
        "MODEL.DEVICE",
        "cpu",
        "MODEL.RESNETS.NORM",
        "FrozenStatBN",
        "MODEL.FPN.NORM",
        "",
        *opts,
    )
    return build_model(load_config(write_config(tmp_path), opts)[0]).eval()


def converted(model):
    state = model.state_dict()
    done = to_mmdet(state, {name: value.shape for name, value in state.items()})
    assert done.complete
    return done.state


def conv(state, name, x, **kwargs):
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **kwargs)


def mmdet_neck(state, maps):
    """The original's pyramid, from its description: finest map first."""
    count = len(maps)
    learned = "neck.upsample_modules.0.content_encoder.weight" in state
    merged = [conv(state, f"neck.lateral_convs.{i}.conv", x) for i, x in enumerate(maps)]
    if learned:
        last = f"neck.lateral_convs.{count}.conv"
        merged.append(conv(state, last, maps[-1], stride=2, padding=1))
    for i in range(len(merged) - 1, 0, -1):
        above, below = merged[i], merged[i - 1]
        if learned:
            module = f"neck.upsample_modules.{i - 1}"
            compressed = conv(state, f"{module}.channel_compressor", above)
            kernels = conv(state, f"{module}.content_encoder", compressed, padding=1)
            above = carafe_upsample(above, kernels, 5, 2)[..., : below.shape[2], : below.shape[3]]
        else:
            above = F.interpolate(above, scale_factor=2)
        merged[i - 1] = below + above
    return [conv(state, f"neck.fpn_convs.{i}.conv", x, padding=1) for i, x in enumerate(merged)]


@pytest.mark.parametrize(
    "builder", ["build_rs_resnet_fpn_backbone", "build_rs_resnet_carafe_fpn_backbone"]
)
def test_the_levels_of_the_pyramid_are_in_the_originals_order(tmp_path, builder):
    backbone = small_model(tmp_path, "MODEL.BACKBONE.NAME", builder).backbone
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        state = converted(torch.nn.ModuleDict({"backbone": backbone}))
        images = torch.randn(1, 3, 64, 96)
        maps = list(backbone.bottom_up(images).values())
        expected = list(backbone(images).values())
        levels = mmdet_neck(state, maps)
    pooled = [] if "carafe" in builder else [levels[-1][..., ::2, ::2]]
    for ours, theirs in zip(expected, levels + pooled, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_layers_of_the_box_head_are_in_the_originals_order(tmp_path):
    heads = small_model(tmp_path).roi_heads
    state = converted(torch.nn.ModuleDict({"roi_heads": heads}))
    features = torch.randn(5, 32, 7, 7)
    x = features.flatten(1)
    for layer in (0, 1):
        name = f"roi_head.bbox_head.shared_fcs.{layer}"
        x = F.relu(F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    with torch.no_grad():
        logits, deltas = heads.box_predictor(heads.box_head(features))
    for name, ours in (("fc_cls", logits), ("fc_reg", deltas)):
        layer = f"roi_head.bbox_head.{name}"
        theirs = F.linear(x, state[f"{layer}.weight"], state[f"{layer}.bias"])
        assert torch.allclose(ours, theirs, atol=1e-6)
