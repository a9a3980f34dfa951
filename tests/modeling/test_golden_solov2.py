"""SOLOv2's losses, gradients and detections against what the original gave for the same outputs.

In these recordings objects and cells come in the same order, so that the original's misaligned Dice
labels are the aligned ones. Its Dice coefficient has 0.002 in the denominator, ours 0.00001.
"""

import json

import numpy as np
import pytest
import torch
from conftest import shared
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import BitMasks, Boxes, ImageList, Instances
from helpers.tiny_solov2 import tiny_solov2

from rs_d2.modeling.dense.solov2 import with_boxes_of_masks

FILE = "golden/heads/solov2.npz"
CASES = ("high_scores", "one_image", "three_objects", "two_images")
LEVELS = range(5)


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(shared(FILE)))


@pytest.fixture(scope="module")
def model(golden):
    about = json.loads(str(golden["meta"]))
    test = about["inference"]
    return tiny_solov2(
        ["MODEL.RETINANET.NUM_CLASSES", about["num_classes"]],
        ["MODEL.SOLO.GRIDS", about["grids"]],
        ["MODEL.SOLO.SCALE_RANGES", about["scale_ranges"]],
        ["MODEL.SOLO.CENTER_SIZE", about["sigma"]],
        ["MODEL.DENSE_HEAD.CRITERION.DELTA", about["delta"]],
        ["MODEL.RETINANET.SCORE_THRESH_TEST", test["score_thr"]],
        ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", test["pre"]],
        ["MODEL.SOLO.NMS_KERNEL", test["kernel"]],
        ["MODEL.SOLO.NMS_SIGMA", test["nms_sigma"]],
        ["MODEL.SOLO.DECAYED_SCORE_THRESH", test["update_thr"]],
        ["TEST.DETECTIONS_PER_IMAGE", test["max_per_image"]],
    )


def tensor(golden, key):
    return torch.from_numpy(golden[key].copy())


def unpacked(golden, key, shape):
    bits = np.unpackbits(golden[key])[: np.prod(shape)]
    return torch.from_numpy(bits.reshape(shape)).bool()


def recorded(golden, case):
    """The head's outputs, the batch that they belong to, and its objects."""
    outputs = {
        ours: [tensor(golden, f"{case}/{theirs}/{i}").requires_grad_() for i in LEVELS]
        for ours, theirs in (("logits", "category"), ("kernels", "kernel"))
    }
    outputs["mask_features"] = [tensor(golden, f"{case}/mask_features").requires_grad_()]
    num_images, _, height, width = outputs["mask_features"][0].shape
    sizes = [tuple(size) for size in golden[f"{case}/image_sizes"].tolist()]
    images = ImageList(torch.zeros(num_images, 3, 4 * height, 4 * width), sizes)
    objects = []
    for i in range(num_images):
        shape = tuple(golden[f"{case}/gt_masks_shape/{i}"].tolist())
        objects.append(
            Instances(
                shape[1:],
                gt_boxes=Boxes(tensor(golden, f"{case}/gt_boxes/{i}")),
                gt_classes=tensor(golden, f"{case}/gt_classes/{i}"),
                gt_masks=BitMasks(unpacked(golden, f"{case}/gt_masks/{i}", shape)),
            )
        )
    return images, outputs, objects


def close(actual, expected):
    """Within 1e-5, and within 2e-5 of the size of the whole: that is what the epsilon makes."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert float((actual - expected).norm()) <= 2e-5 * max(float(expected.norm()), 1e-6)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(golden, model, case):
    images, outputs, objects = recorded(golden, case)
    losses = model.train().forward_training(images, [], outputs, objects)
    for ours, theirs in (("rank", "rank"), ("sort", "sort"), ("mask", "ins")):
        assert float(losses[f"loss_{ours}"]) == pytest.approx(
            float(golden[f"{case}/loss_{theirs}"]), abs=1e-6
        )
    sum(losses.values()).backward()
    close(outputs["mask_features"][0].grad, tensor(golden, f"{case}/grad_mask_features"))
    for i in LEVELS:
        close(outputs["logits"][i].grad, tensor(golden, f"{case}/grad_category/{i}"))
        close(outputs["kernels"][i].grad, tensor(golden, f"{case}/grad_kernel/{i}"))


@pytest.mark.parametrize("case", CASES)
def test_detections(golden, model, case):
    images, outputs, _ = recorded(golden, case)
    with torch.no_grad():
        found = model.eval().forward_inference(images, [], outputs)
    assert len(found) == len(images.image_sizes)
    for i, detections in enumerate(found):
        size = tuple(golden[f"{case}/det_original_size/{i}"].tolist())
        detections = with_boxes_of_masks(detector_postprocess(detections, *size))
        scores = tensor(golden, f"{case}/det_scores/{i}")
        torch.testing.assert_close(detections.scores, scores, rtol=0, atol=1e-6)
        assert detections.pred_classes.tolist() == golden[f"{case}/det_classes/{i}"].tolist()
        masks = unpacked(golden, f"{case}/det_masks/{i}", (len(scores), *size))
        overlap = (detections.pred_masks & masks).sum((1, 2))
        assert (overlap / (detections.pred_masks | masks).sum((1, 2))).min() >= 0.99


def test_every_recorded_case_is_tested(golden):
    assert {key.split("/")[0] for key in golden} - {"meta"} == set(CASES)
