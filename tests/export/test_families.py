"""Every "yes" of the table in docs/export.md: a file finds what its model finds."""

import numpy as np
import pytest

pytest.importorskip("detectron2")
pytest.importorskip("onnxruntime")

from helpers.small_detectors import R18, R50, grey, picture, small_detector

from rs_d2.export import export_model, load
from rs_d2.export.comparison import compare

AGNOSTIC = (
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG True MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK True"
)
LVIS = "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.5 MODEL.RPN.POST_NMS_TOPK_TEST 30"
X101 = "MODEL.RESNETS.NUM_GROUPS 8 MODEL.RESNETS.WIDTH_PER_GROUP 4 MODEL.PIXEL_STD [10.0,10.0,10.0]"
SOLO = """MODEL.SOLO.CONV_DIM 32 MODEL.SOLO.KERNEL_DIM 32 MODEL.SOLO.MASK_DIM 32
    MODEL.SOLO.GRIDS [10,8,6,4,3] MODEL.FPN.OUT_CHANNELS 32
    INPUT.MIN_SIZE_TEST 100 INPUT.MAX_SIZE_TEST 150"""  # its masks are resized in two steps
FAMILIES = {
    "rs_faster": ("COCO-Detection/rs_faster_rcnn_R_50_FPN_1x", R18),
    "rs_mask": ("COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x", R18),
    "rs_mask_agnostic": ("COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x", R18, AGNOSTIC),
    "rs_mask_lvis": ("LVIS-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x", R18, LVIS),
    "rs_cascade": ("COCO-Detection/rs_cascade_rcnn_R_50_FPN_1x", R18),
    "rs_atss": ("COCO-Detection/rs_atss_R_50_FPN_1x", R18),
    "rs_paa": ("COCO-Detection/rs_paa_R_50_FPN_1x", R18),
    "faster": ("COCO-Detection/faster_rcnn_R_50_FPN_1x", R18),
    "mask": ("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", R18),
    "cascade": ("COCO-Detection/cascade_rcnn_R_50_FPN_1x", R18),
    "atss": ("COCO-Detection/atss_R_50_FPN_1x", R18),
    "paa": ("COCO-Detection/paa_R_50_FPN_1x", R18),
    "rs_solov2": ("COCO-InstanceSegmentation/rs_solov2_light_R_34_FPN_3x", R18, SOLO),
    "rs_yolact": ("COCO-InstanceSegmentation/rs_yolact_R_50_FPN_55e", R18),
    "yolact": ("COCO-InstanceSegmentation/yolact_R_50_FPN_55e", R18),
    "rs_mask_carafe": ("COCO-InstanceSegmentation/rs_mask_rcnn_plus_R_50_FPN_1x", R18),
    "rs_faster_dcn": ("COCO-Detection/rs_faster_rcnn_R_101_DCN_FPN_3x", R50),
    "rs_mask_carafe_dcn_groups": (
        "COCO-InstanceSegmentation/rs_mask_rcnn_plus_X_101_64x4d_DCN_FPN_3x",
        *(R50, X101),
    ),
}
# One of each kind of head, for what does not depend on the family.
KINDS = ("rs_mask", "paa")
SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx"}
TRACED = (96, 128)
SIZES = ((128, 160), (64, 96), (75, 121))  # larger, smaller, no multiple of any stride


def exported(detector, pixels, kind, folder):
    path = folder / f"model{SUFFIXES[kind]}"
    export_model(detector.model, detector.cfg, detector.image(pixels), path, kind)
    return load(path)


def assert_same(found, expected, size):
    difference = compare(found, expected, size)
    assert difference.acceptable, difference
    assert difference.masks <= 0.01
    for value, counterpart in zip(found, expected, strict=True):
        if counterpart is None:
            assert value is None
        else:
            assert (value.shape, value.dtype) == (counterpart.shape, counterpart.dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_finds_what_its_model_finds(family, tmp_path):
    detector = small_detector(*FAMILIES[family])
    files = [exported(detector, picture(*TRACED), kind, tmp_path) for kind in SUFFIXES]
    for size in SIZES:
        expected = detector(picture(*size))
        assert len(expected.scores) > 3
        assert np.ptp(expected.scores) > 0
        for file in files:
            assert_same(file(picture(*size)), expected, size)
    nothing = detector(grey(*SIZES[0]))
    assert len(nothing.scores) == 0
    for file in files:
        assert_same(file(grey(*SIZES[0])), nothing, SIZES[0])


@pytest.mark.parametrize("kind", SUFFIXES)
@pytest.mark.parametrize("family", KINDS)
def test_an_example_without_detections_is_as_good(family, kind, tmp_path):
    detector = small_detector(*FAMILIES[family])
    assert len(detector(grey(*TRACED)).scores) == 0
    file = exported(detector, grey(*TRACED), kind, tmp_path)
    expected = detector(picture(*SIZES[0]))
    assert len(expected.scores) > 0
    assert_same(file(picture(*SIZES[0])), expected, SIZES[0])


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_threshold_that_nothing_passes_gives_empty_arrays(kind, tmp_path):
    config, *opts = FAMILIES["rs_mask"]
    detector = small_detector(config, *opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST 0.9999")
    found = exported(detector, picture(*TRACED), kind, tmp_path)(picture(*SIZES[2]))
    assert [value.shape for value in found] == [(0, 4), (0,), (0,), (0, *SIZES[2])]


@pytest.mark.parametrize("kind", SUFFIXES)
def test_the_files_of_a_limit_of_none_hold_everything(kind, tmp_path):
    config, *opts = FAMILIES["rs_faster"]
    detector = small_detector(config, *opts, "TEST.DETECTIONS_PER_IMAGE -1")
    expected = detector(picture(*SIZES[1]))
    assert len(expected.scores) > 30
    found = exported(detector, picture(*TRACED), kind, tmp_path)(picture(*SIZES[1]))
    assert_same(found, expected, SIZES[1])


@pytest.mark.parametrize("kind", SUFFIXES)
def test_many_proposals_are_suppressed_level_by_level(kind, tmp_path):
    # Above 1000 boxes torchvision's batched_nms goes another way than below.
    config, *opts = FAMILIES["rs_faster"]
    many = "MODEL.RPN.PRE_NMS_TOPK_TEST 2000 MODEL.RPN.POST_NMS_TOPK_TEST 1500"
    detector = small_detector(config, *opts, many)
    expected = detector(picture(*SIZES[0]))
    found = exported(detector, picture(*TRACED), kind, tmp_path)(picture(*SIZES[0]))
    assert_same(found, expected, SIZES[0])


def test_a_model_can_be_used_and_exported_again_after_an_export(tmp_path):
    detector = small_detector(*FAMILIES["rs_cascade"])
    before = detector(picture(*SIZES[1]))
    for kind in ("onnx", "torchscript", "onnx"):
        file = exported(detector, picture(*TRACED), kind, tmp_path)
    after = detector(picture(*SIZES[1]))
    assert np.array_equal(before.boxes, after.boxes)
    assert_same(file(picture(*SIZES[1])), before, SIZES[1])
