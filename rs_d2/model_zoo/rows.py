"""Results by config: those of the publication, and those measured with this code.

Metrics are in percent. The publication's numbers on COCO are its Table S10 (test threshold 0.40);
where that table has no row, the number of its code release is given, and `-` where there is none.
"""

from __future__ import annotations

from typing import NamedTuple


class Metrics(NamedTuple):
    """AP, AP50, AP75, and oLRP with its parts for localisation, false positives and negatives."""

    ap: float
    ap50: float | None = None
    ap75: float | None = None
    olrp: float | None = None
    olrp_loc: float | None = None
    olrp_fp: float | None = None
    olrp_fn: float | None = None


class PublishedRow(NamedTuple):
    """A model of the publication.

    ``config``: below ``configs/``; ``parameters``: of the official model, batch norm's affine ones
    included; ``fps``: images/s on the publication's GPU, boxes and, after a slash, masks.
    """

    config: str
    parameters: int
    box: Metrics | None = None
    mask: Metrics | None = None
    fps: str | None = None
    note: str = ""


class Measurement(NamedTuple):
    """A result of this code: what was run on which data, and what came out."""

    config: str
    data: str
    budget: str
    result: str


_D, _I, _L = "COCO-Detection/", "COCO-InstanceSegmentation/", "LVIS-InstanceSegmentation/"

PUBLISHED = (
    PublishedRow(
        _D + "rs_faster_rcnn_R_50_FPN_1x.yaml",
        41_752_031,
        Metrics(39.6, 59.5, 43.0, 67.9, 16.3, 27.8, 45.4),
        fps="22.5",
    ),
    PublishedRow(
        _D + "rs_faster_rcnn_plus_R_50_FPN_1x.yaml",
        47_357_551,
        Metrics(40.7, 61.4, 43.8, 66.9, 16.3, 26.4, 43.7),
        fps="21.5",
        note="AP 40.8 at threshold 0.05",
    ),
    PublishedRow(_D + "rs_faster_rcnn_R_101_FPN_1x.yaml", 60_744_159),
    PublishedRow(
        _D + "rs_faster_rcnn_R_101_DCN_FPN_3x.yaml",
        68_461_191,
        Metrics(47.6, 67.8, 51.2, 61.1, 14.4, 22.7, 37.9),
        fps="14.1",
    ),
    PublishedRow(
        _D + "rs_faster_rcnn_plus_R_101_DCN_FPN_3x.yaml",
        74_066_711,
        Metrics(47.6, 68.1, 51.9, 60.9, 14.7, 20.9, 38.2),
        fps="13.6",
    ),
    PublishedRow(
        _D + "rs_cascade_rcnn_R_50_FPN_1x.yaml",
        69_391_691,
        Metrics(41.3, 58.9, 44.7, 66.6),
    ),
    PublishedRow(
        _D + "rs_atss_R_50_FPN_1x.yaml",
        32_680_257,
        Metrics(39.9, olrp=67.9),
        note="threshold 0.05",
    ),
    PublishedRow(
        _D + "rs_paa_R_50_FPN_1x.yaml",
        32_680_257,
        Metrics(41.0, olrp=67.3),
        note="threshold 0.05",
    ),
    PublishedRow(
        _I + "rs_mask_rcnn_R_50_FPN_1x.yaml",
        44_395_311,
        Metrics(40.0, 59.8, 43.4, 67.5, 16.1, 27.6, 44.7),
        Metrics(36.4, 57.3, 39.2, 70.1, 18.2, 28.7, 46.5),
        "22.8 / 17.1",
    ),
    PublishedRow(
        _I + "rs_mask_rcnn_plus_R_50_FPN_1x.yaml",
        50_000_831,
        Metrics(41.1, 61.4, 44.8, 66.6, 16.0, 26.2, 44.0),
        Metrics(37.3, 58.6, 40.2, 69.4, 18.1, 28.0, 45.3),
        "21.1 / 16.7",
    ),
    PublishedRow(
        _I + "rs_mask_rcnn_R_101_FPN_3x.yaml",
        63_387_439,
        Metrics(44.7, 64.4, 48.8, 63.7, 14.7, 24.5, 41.3),
        Metrics(40.3, 61.9, 43.8, 66.9, 17.3, 24.3, 43.0),
        "17.1 / 14.8",
    ),
    PublishedRow(
        _I + "rs_mask_rcnn_plus_R_101_FPN_3x.yaml",
        68_992_959,
        Metrics(46.1, 66.2, 50.3, 62.6, 14.5, 23.5, 39.9),
        Metrics(41.4, 63.6, 44.7, 65.9, 17.1, 22.8, 42.2),
        "16.6 / 14.3",
    ),
    PublishedRow(
        _I + "rs_mask_rcnn_plus_R_101_DCN_FPN_3x.yaml",
        76_709_991,
        Metrics(48.7, 68.9, 53.1, 60.2, 14.3, 21.3, 36.9),
        Metrics(43.5, 66.5, 47.2, 64.0, 17.2, 22.3, 38.5),
        "13.5 / 11.9",
    ),
    PublishedRow(
        _I + "rs_mask_rcnn_plus_X_101_64x4d_DCN_FPN_3x.yaml",
        138_757_479,
        Metrics(49.9, 70.0, 54.3, 59.1, 14.0, 20.3, 36.2),
        Metrics(44.4, 67.8, 47.7, 63.1, 17.1, 21.1, 37.7),
        "6.4 / 6.0",
    ),
    PublishedRow(
        _I + "rs_yolact_R_50_FPN_55e.yaml",
        35_266_236,
        Metrics(33.8, 54.2, 35.4, 71.8),
        Metrics(29.9, 50.5, 30.6, 74.7),
        note="threshold 0.05",
    ),
    PublishedRow(
        _I + "rs_solov2_R_101_FPN_3x.yaml",
        65_585_040,
        mask=Metrics(39.7, olrp=66.9),
        note="threshold 0.20, before the masks' own quality",
    ),
    PublishedRow(
        _I + "rs_solov2_light_R_34_FPN_3x.yaml",
        28_379_920,
        mask=Metrics(32.6, olrp=72.7),
        note="images of 448 pixels; threshold as above",
    ),
    PublishedRow(
        _L + "rs_mask_rcnn_R_50_FPN_1x.yaml",
        50_439_297,
        Metrics(25.9),
        Metrics(25.2),
        "11.7",
        "mask AP rare, common, frequent: 16.8, 24.3, 29.9; threshold 0.60; fps on an A100",
    ),
)

MEASURED = (
    Measurement(
        "quick/rs_mask_rcnn_digits.yaml",
        "digits (generated)",
        "480 iterations of 4 images, two CPU cores, 6 min",
        "box AP 35.3, AP50 58.3, oLRP 71.2; mask AP 33.1, AP50 56.3, oLRP 72.6",
    ),
    Measurement(
        "quick/rs_mask_rcnn_own_data.yaml",
        "BCCD (blood cells, 3 classes)",
        "550 iterations of 4 images, two CPU cores, 10 min",
        "box AP 53.5, AP50 87.8",
    ),
    Measurement(
        "quick/rs_mask_rcnn_own_data.yaml",
        "BCCD",
        "550 iterations of 4 images, one thread, together with the next row",
        "box AP 52.7, AP50 86.0, oLRP 52.6",
    ),
    Measurement(
        "quick/rs_cascade_rcnn_own_data.yaml",
        "BCCD",
        "the same",
        "box AP 55.1, AP50 87.3, oLRP 50.0",
    ),
    Measurement(
        "quick/rs_mask_rcnn_digits.yaml",
        "digits, `MODEL.MASK_ON False`",
        "480 iterations of 4 images, one thread, 5 to 7 min",
        "box AP 29.5, AP50 49.6, oLRP 76.3",
    ),
    Measurement(
        "quick/rs_atss_digits.yaml",
        "digits",
        "the same",
        "box AP 29.1, AP50 42.0, oLRP 77.2; with focal loss (`atss_digits.yaml`) 12.6, 19.2, 87.6",
    ),
    Measurement(
        "quick/rs_paa_digits.yaml",
        "digits",
        "the same",
        "box AP 29.2, AP50 41.9, oLRP 76.9; with focal loss (`paa_digits.yaml`) 15.1, 23.4, 86.6",
    ),
    Measurement(
        "quick/rs_atss_own_data.yaml",
        "BCCD",
        "550 iterations of 4 images, one thread",
        "box AP 55.0, AP50 86.7, oLRP 51.4; with focal loss 53.4, 85.1, 53.0",
    ),
    Measurement(
        "quick/rs_paa_own_data.yaml",
        "BCCD",
        "the same",
        "box AP 54.0, AP50 85.8, oLRP 51.6; with focal loss 51.7, 81.6, 54.0",
    ),
)
