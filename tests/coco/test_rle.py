"""Run lengths: as pycocotools makes and counts them."""

import numpy as np
import pytest
from helpers.made_detections import SIDE, rle
from pycocotools import mask as mask_util

from rs_d2.coco.rle import encode_mask, run_totals


def masks():
    rng = np.random.default_rng(0)
    shapes = {"empty": np.zeros((7, 5)), "full": np.ones((7, 5)), "one": np.zeros((7, 5))}
    shapes["one"][3, 2] = 1
    shapes["corners"] = np.zeros((6, 9))
    shapes["corners"][0, 0] = shapes["corners"][-1, -1] = 1
    shapes["columns"] = np.zeros((6, 9))
    shapes["columns"][:, 3:6] = 1  # one run over three columns
    shapes["row"] = np.zeros((1, 9))
    shapes["row"][0, 2:5] = 1
    for i, density in enumerate((0.02, 0.5, 0.98)):
        shapes[f"noise {i}"] = rng.random((23, 31)) < density
    return {name: mask.astype(bool) for name, mask in shapes.items()}


@pytest.mark.parametrize("name", masks())
def test_encoded_masks_are_those_of_pycocotools(name):
    mask = masks()[name]
    expected = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    found = encode_mask(mask)
    assert found["size"] == list(expected["size"])
    assert found["counts"] == expected["counts"].decode()


def test_runs_are_counted_without_decoding():
    masks = [rle([x, 10, 5 + x, 100 - x]) for x in range(0, 90, 7)]
    masks += [rle([0, 0, 0, 0])]
    counts = [mask["counts"] for mask in masks]
    assert run_totals(counts).tolist() == [SIDE * SIDE] * len(masks)
    assert run_totals([c.encode() for c in counts]).tolist() == [SIDE * SIDE] * len(masks)
    broken = [counts[0], "", counts[1][:-1] + "o", "é", counts[2]]
    assert run_totals(broken)[[0, 4]].tolist() == [SIDE * SIDE] * 2
    assert run_totals(broken)[1] == 0
    assert run_totals(broken)[[2, 3]].tolist() == [-1, -1]
    assert run_totals([]).tolist() == []


def test_runs_of_noise_are_counted():
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (3, 500), (200, 321)):
        mask = np.asfortranarray((random.random((height, width)) < 0.5).astype(np.uint8))
        assert run_totals([mask_util.encode(mask)["counts"]]).tolist() == [height * width]
