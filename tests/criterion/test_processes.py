"""One ranking over several processes equals that of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist

from rs_d2.criterion import (
    BALANCERS,
    BOX_LOSSES,
    LABELS,
    NEGATIVES,
    RANKINGS,
    WEIGHTS,
    Candidates,
    Criterion,
    Task,
    find_positives,
)
from rs_d2.losses import across_processes, rank_sort_loss
from rs_d2.utils.launch import launch

K = 3
# Candidates and positives of each process.
SPLITS = {
    2: {"even": [(40, 6), (40, 6)], "uneven": [(7, 1), (120, 20)]},
    4: {
        "uneven": [(30, 4), (5, 0), (80, 11), (12, 12)],
        "one without candidates": [(0, 0), (60, 9), (25, 2), (25, 0)],
        "no positives at all": [(9, 0), (3, 0), (0, 0), (4, 0)],
    },
}
BALANCES = {"rank_sort": ["value", "magnitude"], "ap": ["value"], "alrp": ["epoch"]}
CASES = [(ranking, balance, "all") for ranking, names in BALANCES.items() for balance in names]
CASES.append(("rank_sort", "value", "verified"))


def part(num, num_positives, seed):
    """Leaves of one process, an image each: logits, classes, boxes, deltas, verified classes."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, K, generator=rng).requires_grad_()
    classes = torch.full((num,), K)
    rows = torch.randperm(num, generator=rng)[:num_positives]
    classes[rows] = torch.randint(K, (num_positives,), generator=rng)
    if num > num_positives + 2:
        classes[(classes == K).nonzero()[0]] = -1
    corner = torch.rand(num_positives, 2, generator=rng) * 50
    gt_boxes = torch.cat([corner, corner + 5 + torch.rand(num_positives, 2, generator=rng)], 1)
    deltas = torch.randn(num_positives, 4, generator=rng).requires_grad_()
    verified = torch.tensor([[c != seed % K for c in range(K)]])
    return logits, classes, gt_boxes, deltas, verified


def run(parts, ranking, balance, negatives, is_global):
    """Losses of the parts put together, and the gradients of their leaves."""
    logits, classes, gt_boxes, deltas, verified = (torch.cat(x) for x in zip(*parts, strict=True))
    task = Task(BOX_LOSSES["giou"], BALANCERS[balance](), outputs="pred_deltas")
    criterion = Criterion(
        ranking=RANKINGS[ranking](num_classes=K, box_loss=BOX_LOSSES["giou"]),
        label=LABELS["iou"],
        weight=WEIGHTS["score"],
        tasks={"box": task},
        negatives=NEGATIVES[negatives](num_classes=K),
        is_global=is_global,
    )
    candidates = Candidates(
        logits,
        classes,
        find_positives(classes, K),
        pred_boxes=gt_boxes + deltas,
        gt_boxes=gt_boxes,
        pred_deltas=deltas,
        images=torch.tensor([i for i, p in enumerate(parts) for _ in p[1]], dtype=torch.int64),
        negatives=verified,
    )
    losses = criterion(candidates).losses
    sum(losses.values()).backward()
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    grads = [
        [torch.zeros_like(x) if x.grad is None else x.grad for x in (p[0], p[3])] for p in parts
    ]
    return values, grads


def draw(classes, seed, is_global):
    """The classes that are drawn for a batch of candidates of these classes."""
    sampled = NEGATIVES["sampled"](num_classes=100, num_drawn=20)
    sampled.set_image_counts(torch.arange(100))
    classes = torch.tensor(classes)
    torch.manual_seed(seed)
    candidates = Candidates(torch.zeros(len(classes), 100), classes, find_positives(classes, 100))
    with across_processes(is_global):
        return sampled(candidates).negatives


def work(folder, splits):
    """Every case of every split, in one of the processes."""
    rank = dist.get_rank()
    found = {
        name: {case: run([part(*sizes[rank], seed=rank)], *case, is_global=True) for case in CASES}
        for name, sizes in splits.items()
    }
    found["draw"] = draw([rank, 10 * rank], seed=rank, is_global=True)
    try:
        with across_processes():
            rank_sort_loss(torch.zeros(2), torch.tensor([1.0, 2.0 if rank == 1 else 0.0]))
    except ValueError as error:
        found["wrong target"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module", params=SPLITS, ids=lambda num: f"{num} processes")
def found(request, tmp_path_factory):
    """What each of a number of processes found."""
    folder = tmp_path_factory.mktemp("processes")
    launch(work, request.param, args=(str(folder), SPLITS[request.param]))
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize(("ranking", "balance", "negatives"), CASES)
def test_values_and_averaged_gradients_are_those_of_the_whole_batch(
    found, ranking, balance, negatives
):
    for name, sizes in SPLITS[len(found)].items():
        parts = [part(*size, seed=rank) for rank, size in enumerate(sizes)]
        expected, gradients = run(parts, ranking, balance, negatives, is_global=False)
        for rank, of_rank in enumerate(found):
            values, ((logits, deltas),) = of_rank[name][ranking, balance, negatives]
            assert values == pytest.approx(expected, rel=1e-5, abs=1e-6), name
            # DistributedDataParallel divides by the number of processes.
            for ours, whole in ((logits, gradients[rank][0]), (deltas, gradients[rank][1])):
                torch.testing.assert_close(ours / len(found), whole, rtol=1e-5, atol=1e-7)


def test_all_processes_draw_the_classes_of_the_whole_batch(found):
    classes = [c for rank in range(len(found)) for c in (rank, 10 * rank)]
    expected = draw(classes, seed=0, is_global=False)  # by the first one's random numbers
    assert expected.sum() == 20
    assert all(torch.equal(of_rank["draw"], expected) for of_rank in found)


def test_a_wrong_target_in_one_process_ends_all_of_them(found):
    messages = [of_rank["wrong target"] for of_rank in found]
    assert (
        messages[1]
        == "rank_sort_loss: targets must be at most 1, got 2.0 at index 1 (1 such values)"
    )
    assert set(messages) - {messages[1]} == {
        "rank_sort_loss: targets must be at most 1, process 1 has others"
    }


def test_one_process_alone_exchanges_nothing():
    logits, targets = torch.randn(9), (torch.rand(9) > 0.6).float()
    with across_processes():
        assert rank_sort_loss(logits, targets) == rank_sort_loss(logits, targets)
