"""Suppression for graphs finds what the search of ``rs_d2.ops.nms`` finds."""

import warnings

import pytest
import torch

pytest.importorskip("detectron2")

from torchvision.ops import batched_nms

from rs_d2.export.operators import NonMaxSuppression, deform_conv2d
from rs_d2.export.suppression import _search_by_operator, traceable_batched_nms, traceable_search
from rs_d2.ops.deform_conv import modulated_deform_conv
from rs_d2.ops.nms import StoredBoxes, class_wise_nms

SIZE = (60, 90)
SEARCHES = (traceable_search, _search_by_operator)


def scene(num_regions, num_classes, agnostic=False, levels=0, seed=0):
    """Overlapping boxes, some beyond the image; ``levels`` > 0 leaves so many different scores."""
    generator = torch.Generator().manual_seed(seed)
    width = 1 if agnostic else num_classes
    corners = torch.rand(num_regions, width, 2, generator=generator) * 80 - 5
    sides = torch.rand(num_regions, width, 2, generator=generator) * 40
    boxes = torch.cat([corners, corners + sides], dim=2).flatten(1)
    count = num_regions * num_classes
    scores = torch.randperm(count, generator=generator).view(num_regions, num_classes) / max(
        count, 1
    )
    return boxes, (scores * levels).ceil() / levels if levels else scores


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("topk", [-1, 1, 7, 10_000])
@pytest.mark.parametrize(
    "made",
    [
        {"num_regions": 50, "num_classes": 6},
        {"num_regions": 50, "num_classes": 6, "agnostic": True},
        {"num_regions": 40, "num_classes": 1},
        {"num_regions": 1, "num_classes": 3},
        {"num_regions": 30, "num_classes": 200, "agnostic": True},
    ],
    ids=str,
)
def test_a_search_that_can_be_traced_finds_the_same(search, made, topk):
    for seed in range(3):
        boxes, scores = scene(**made, seed=seed)
        arguments = (StoredBoxes(boxes, SIZE), scores, 0.3, 0.5, topk)
        found, expected = search(*arguments), class_wise_nms(*arguments)
        for value, counterpart in zip(found, expected, strict=True):
            assert torch.equal(value, counterpart)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("agnostic", [False, True])
def test_the_best_come_first_among_many_equal_scores(search, agnostic):
    boxes, scores = scene(60, 5, agnostic, levels=4)
    arguments = (StoredBoxes(boxes, SIZE), scores, 0.2, 0.5, 40)
    rows, classes = search(*arguments)
    expected_rows, expected_classes = class_wise_nms(*arguments)
    assert torch.equal(scores[rows, classes], scores[expected_rows, expected_classes])
    assert len(set(zip(rows.tolist(), classes.tolist(), strict=True))) == 40


@pytest.mark.parametrize("search", SEARCHES)
def test_nothing_above_the_threshold_gives_nothing(search):
    boxes, scores = scene(20, 4)
    for topk in (-1, 5):
        rows, classes = search(StoredBoxes(boxes, SIZE), scores, 1.0, 0.5, topk)
        assert rows.shape == classes.shape == (0,)
        assert rows.dtype == classes.dtype == torch.int64


@pytest.mark.parametrize("search", SEARCHES)
def test_no_regions_give_nothing(search):
    table = StoredBoxes(torch.zeros(0, 12), SIZE)
    rows, classes = search(table, torch.zeros(0, 3), 0.1, 0.5, 5)
    assert rows.shape == classes.shape == (0,)


@pytest.mark.parametrize("num_boxes", [0, 1, 300])
def test_levels_suppress_none_of_each_others_boxes(num_boxes):
    boxes, scores = scene(num_boxes, 1)
    levels = torch.arange(num_boxes) % 4
    found = traceable_batched_nms(5)(boxes, scores[:, 0], levels, 0.6)  # one level is empty
    assert torch.equal(found, batched_nms(boxes, scores[:, 0], levels, 0.6))


def test_the_operator_answers_image_by_image():
    boxes = torch.tensor([[[0, 0, 10, 10.0], [0, 0, 10, 11], [20, 20, 30, 30]]] * 2)
    scores = torch.tensor([[[0.9, 0.8, 0.7]], [[0.1, 0.6, 0.5]]])
    chosen = NonMaxSuppression.apply(boxes, scores, 10, 0.5, 0.2)
    assert chosen.tolist() == [[0, 0, 0], [0, 0, 2], [1, 0, 1], [1, 0, 2]]
    assert NonMaxSuppression.apply(boxes, scores, 1, 0.5, 0.2).tolist() == [[0, 0, 0], [1, 0, 1]]
    nothing = NonMaxSuppression.apply(boxes, scores, 10, 0.5, 0.95)
    assert (nothing.shape, nothing.dtype) == ((0, 3), torch.int64)


class Deformable(torch.nn.Module):
    """Two groups of channels, two deformable groups, a stride, with or without a bias."""

    def __init__(self, biased):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 2, 3, 3))
        self.bias = torch.nn.Parameter(torch.randn(6)) if biased else None

    def forward(self, features, offsets):
        return modulated_deform_conv(
            features, offsets, self.weight, self.bias, stride=(2, 1), padding=(1, 2)
        )


@pytest.mark.parametrize("biased", [False, True])
def test_the_operator_of_deformable_convolution_is_torchvisions(biased, monkeypatch, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    module = Deformable(biased).eval()
    inputs = torch.randn(1, 4, 9, 11), torch.randn(1, 54, 5, 13)
    expected = module(*inputs)
    monkeypatch.setattr("rs_d2.ops.deform_conv.deform_conv2d", deform_conv2d)
    assert torch.equal(module(*inputs), expected)  # outside an export, torchvision's own
    path = str(tmp_path / "deformable.onnx")
    names = ["features", "offsets"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, inputs, path, dynamo=False, opset_version=19, input_names=names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    (found,) = session.run(None, given)
    assert abs(torch.from_numpy(found) - expected).max() < 1e-5
