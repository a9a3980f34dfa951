"""The search returns the survivors of the literal loop, bit for bit and in its order."""

import numpy as np
import pytest
import torch
from helpers.reference_nms import class_wise_nms as literal_loop
from torch.utils._python_dispatch import TorchDispatchMode

from rs_d2.ops._nms_device import search_on_device
from rs_d2.ops._nms_search import float32_below
from rs_d2.ops.nms import StoredBoxes, batched_nms, class_wise_nms

SIZE = (60, 80)
THRESHOLDS = (1e-4, 1e-3, 1e-2, 0.1, 0.4, 0.6, 0.8)


def case(rng, num_rows=None, num_classes=None):
    """Random boxes around a few objects, random scores, random settings."""
    rows = int(rng.integers(1, 20)) if num_rows is None else num_rows
    classes = int(rng.choice([1, 2, 5, 20])) if num_classes is None else num_classes
    shape = (rows, classes) if rng.integers(2) else (rows, 1)  # class-specific boxes or not
    objects = rng.uniform(0, 80, (int(rng.integers(1, 6)), 2))
    centers = objects[rng.integers(0, len(objects), rows)]
    centers = centers[:, None] + rng.normal(0, 4, (*shape, 2))
    half = rng.uniform(3, 14, (*shape, 2))
    boxes = np.concatenate([centers - half, centers + half], 2).reshape(rows, 4 * shape[1])
    scores = 1 / (1 + np.exp(-rng.normal(-0.5, 1.5, (rows, classes))))
    return {
        "boxes": boxes.astype(np.float32),
        "scores": scores.astype(np.float32),
        "score_thresh": float(rng.choice(THRESHOLDS)),
        "nms_thresh": float(rng.choice([0.0, 0.3, 0.5, 0.6, 0.7, 1.0])),
        "topk": int(rng.integers(1, 30)),
    }


def many_ties(rng):
    # A grid of scores that meets every threshold.
    c = case(rng)
    c["scores"] = rng.choice(np.float32([0.0001, 0.1, 0.4, 0.6, 0.8, 1.0]), c["scores"].shape)
    return c


def all_scores_equal(rng):
    c = case(rng)
    c["scores"][:] = 0.5
    return c


def identical_boxes(rng):
    c = case(rng)
    c["boxes"][:] = c["boxes"][:1]
    return c


def half_precision_scores(rng):
    c = case(rng)
    c["scores"] = c["scores"].astype(np.float16)
    return c


def rows_that_are_not_finite(rng):
    c = case(rng)
    for name in ("boxes", "scores"):
        bad = rng.random(len(c[name])) < 0.2
        column = rng.integers(c[name].shape[1])
        c[name][bad, column] = rng.choice(np.float32([np.nan, np.inf, -np.inf]))
    return c


def huge_coordinates(rng):
    c = case(rng)
    c["boxes"] *= np.float32(10.0 ** rng.integers(2, 30))
    return c


def nothing_above_the_threshold(rng):
    return {**case(rng), "score_thresh": 1.5}


def negative_scores(rng):
    c = case(rng)
    c["scores"] = np.round(c["scores"] * 4 - 2) * rng.choice(np.float32([-1, 1]), c["scores"].shape)
    return {**c, "score_thresh": -1.5}


def lvis_classes(rng):
    c = case(rng, num_rows=int(rng.integers(1, 5)), num_classes=1203)
    return {
        **c,
        "topk": int(rng.choice([1, 50, 300])),
        "score_thresh": float(rng.choice([0.1, 0.8])),
    }


KINDS = {
    "anything": (case, 500),
    "many ties": (many_ties, 200),
    "all scores equal": (all_scores_equal, 100),
    "identical boxes": (identical_boxes, 100),
    "half-precision scores": (half_precision_scores, 100),
    "rows that are not finite": (rows_that_are_not_finite, 150),
    "huge coordinates": (huge_coordinates, 100),
    "nothing above the threshold": (nothing_above_the_threshold, 50),
    "negative scores": (negative_scores, 100),
    "1203 classes": (lvis_classes, 100),
    "one class": (lambda rng: case(rng, num_classes=1), 100),
    "one region": (lambda rng: case(rng, num_rows=1), 100),
    "no region": (lambda rng: case(rng, num_rows=0), 50),
    "one survivor asked for": (lambda rng: {**case(rng), "topk": 1}, 100),
    "none asked for": (lambda rng: {**case(rng), "topk": 0}, 50),
    "more asked for than there are": (lambda rng: {**case(rng), "topk": 10_000}, 50),
    "all asked for": (lambda rng: {**case(rng), "topk": -1}, 100),
}


def run(c):
    table = StoredBoxes(torch.from_numpy(c["boxes"]), SIZE)
    scores = torch.from_numpy(c["scores"])
    rows, classes = class_wise_nms(table, scores, c["score_thresh"], c["nms_thresh"], c["topk"])
    return list(zip(rows.tolist(), classes.tolist(), strict=True))


def expected(c):
    return literal_loop(
        c["boxes"], c["scores"], SIZE, c["score_thresh"], c["nms_thresh"], c["topk"]
    )


def test_there_are_two_thousand_cases():
    assert sum(count for _, count in KINDS.values()) >= 2000


@pytest.mark.parametrize("kind", KINDS)
def test_survivors_and_their_order_are_the_literal_loops(kind):
    make, count = KINDS[kind]
    rng = np.random.default_rng(0)
    for _ in range(count):
        c = make(rng)
        assert run(c) == expected(c)


def full_case(rng, num_classes=20, topk=30):
    """An image with more candidates than the first prefix holds."""
    return {**case(rng, num_rows=60, num_classes=num_classes), "score_thresh": 1e-4, "topk": topk}


@pytest.mark.parametrize("num_classes", [3, 20, 60])
@pytest.mark.parametrize("topk", [5, 30, 100])
def test_longer_prefixes_give_the_literal_loops_result(num_classes, topk):
    rng = np.random.default_rng(1)
    for scores in (lambda s: s, np.round, lambda s: s * [4.0, *[1.0] * (num_classes - 1)]):
        c = full_case(rng, num_classes, topk)
        c["scores"] = scores(c["scores"]).astype(np.float32)
        assert run(c) == expected(c)


def test_the_result_for_fewer_is_the_beginning_of_the_result_for_more():
    rng = np.random.default_rng(2)
    for _ in range(20):
        c = full_case(rng)
        everything = run({**c, "topk": -1})
        for topk in (0, 1, 7, 40, len(everything)):
            assert run({**c, "topk": topk}) == everything[:topk]


def test_scores_may_be_a_view_that_leaves_a_column_out():
    c = full_case(np.random.default_rng(3))
    wide = torch.cat([torch.from_numpy(c["scores"]), torch.ones(60, 1)], 1)
    table = StoredBoxes(torch.from_numpy(c["boxes"]), SIZE)
    rows, classes = class_wise_nms(table, wide[:, :-1], 1e-4, c["nms_thresh"], 30)
    c["score_thresh"] = 1e-4
    assert list(zip(rows.tolist(), classes.tolist(), strict=True)) == expected(c)


def test_only_few_of_many_boxes_are_looked_at():
    looked_at = []

    class Counting(StoredBoxes):
        def at(self, rows, classes):
            looked_at.append(len(rows))
            return super().at(rows, classes)

    rng = np.random.default_rng(4)
    c = case(rng, num_rows=200, num_classes=400)
    scores = torch.from_numpy(rng.random((200, 400), np.float32))
    rows, _ = class_wise_nms(Counting(torch.from_numpy(c["boxes"]), SIZE), scores, 1e-4, 0.5, 50)
    assert len(rows) == 50
    assert sum(looked_at) < 1000


@pytest.mark.parametrize("value", [0.5, 0.6, 1 / 3, 0.7, 1.0, 0.0, np.nextafter(0.5, 1)])
def test_a_float32_exceeds_the_limit_where_it_exceeds_the_threshold(value):
    limit = float32_below(value)
    for near in (limit, np.nextafter(limit, np.float32(-1)), np.nextafter(limit, np.float32(2))):
        assert (near > limit) == (float(near) > value)


def test_a_list_of_candidates_is_searched_like_a_matrix():
    rng = np.random.default_rng(5)
    for topk in (-1, 0, 3, 25):
        c = full_case(rng, topk=topk)
        rows, classes = np.divmod(rng.permutation(60 * 20)[:500], 20)
        boxes = StoredBoxes(torch.from_numpy(c["boxes"]), SIZE).at(
            torch.from_numpy(rows), torch.from_numpy(classes)
        )
        scores = np.round(c["scores"][rows, classes], 2)
        kept = batched_nms(
            boxes, torch.from_numpy(scores), torch.from_numpy(classes), c["nms_thresh"], topk
        )
        # The literal loop takes the list as a matrix with a row for each candidate.
        matrix = np.full((500, 20), -1, np.float32)
        matrix[np.arange(500), classes] = scores
        literal = literal_loop(boxes, matrix, SIZE, 0.0, c["nms_thresh"], topk)
        assert kept.tolist() == [row for row, _ in literal]


def test_an_empty_list_has_no_survivors():
    none = torch.empty(0, dtype=torch.long)
    assert batched_nms(torch.empty(0, 4), torch.empty(0), none, 0.5, 10).tolist() == []


def test_a_list_of_another_length_is_an_error():
    with pytest.raises(ValueError, match=r"not \(3, 4\), \(2,\), \(3,\)"):
        batched_nms(torch.zeros(3, 4), torch.zeros(2), torch.zeros(3), 0.5)


def on_device(c, device="cpu"):
    """What the form for GPUs finds, here on the CPU; None where it needs the other form."""
    scores = torch.from_numpy(c["scores"]).float().to(device)
    table = StoredBoxes(torch.from_numpy(c["boxes"]).to(device), SIZE)
    limit = float(float32_below(c["nms_thresh"]))
    found = search_on_device(scores, table.at, c["score_thresh"], limit, c["topk"])
    return found and list(zip(*(i.tolist() for i in found), strict=True))


DEVICE_KINDS = ("anything", "many ties", "all scores equal", "1203 classes", "one class")


@pytest.mark.parametrize("kind", DEVICE_KINDS)
def test_the_form_for_gpus_finds_the_same(kind):
    rng = np.random.default_rng(6)
    for _ in range(30):
        c = KINDS[kind][0](rng)
        assert on_device(c) == expected(c)


def test_the_form_for_gpus_does_not_answer_where_a_prefix_cuts_through_ties():
    c = full_case(np.random.default_rng(7), num_classes=60, topk=30)
    c["scores"][:] = 0.5  # 3600 candidates, prefixes of 1024
    assert on_device(c) is None
    assert run(c) == expected(c)


def test_the_form_for_gpus_does_not_answer_for_more_than_a_prefix_holds():
    c = full_case(np.random.default_rng(8), num_classes=200, topk=5000)
    assert on_device(c) is None


def test_the_form_for_gpus_does_not_answer_before_a_long_chain_is_settled():
    left = torch.arange(40.0) * 2  # each box overlaps the next one by half
    boxes = torch.stack([left, torch.zeros(40), left + 6, torch.full((40,), 5.0)], 1)
    c = {"boxes": boxes.numpy(), "scores": np.linspace(1, 0.5, 40, dtype=np.float32)[:, None]}
    c |= {"score_thresh": 0.1, "nms_thresh": 0.3, "topk": 40}
    assert on_device(c) is None
    assert run(c) == [(row, 0) for row in range(0, 40, 2)]


class HostReads(TorchDispatchMode):
    """Counts the operations that make the host wait for a GPU."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indexed = args[1] if name.startswith("index") and len(args) > 1 else ()
        masks = [i for i in indexed if isinstance(i, torch.Tensor) and i.dtype == torch.bool]
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "unique") or masks:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def test_the_form_for_gpus_reads_one_answer(monkeypatch):
    answers = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: answers.append(t) or tolist(t))
    c = full_case(np.random.default_rng(9))
    table = StoredBoxes(torch.from_numpy(c["boxes"]), SIZE)
    with HostReads() as reads:
        found = search_on_device(torch.from_numpy(c["scores"]), table.at, 1e-4, 0.5, 30)
    assert found is not None
    assert len(answers) == 1
    assert reads.names == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_finds_the_same(kind):
    rng = np.random.default_rng(10)
    for _ in range(20):
        c = KINDS[kind][0](rng)
        table = StoredBoxes(torch.from_numpy(c["boxes"]).cuda(), SIZE)
        scores = torch.from_numpy(c["scores"]).cuda()
        rows, classes = class_wise_nms(table, scores, c["score_thresh"], c["nms_thresh"], c["topk"])
        assert list(zip(rows.tolist(), classes.tolist(), strict=True)) == expected(c)
