"""Pairs of candidate and class that a ranking learns from where not every class was looked for."""

import itertools

import pytest
import torch
from torch.nn import functional as F

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
    set_image_counts,
)
from rs_d2.criterion.negatives import VerifiedClasses, verified_negatives
from rs_d2.losses.classification import cross_entropy_loss, focal_loss
from rs_d2.utils.errors import UserError

K = 5
VERIFIED = [[0, 2, 3], [], [1, 2]]  # of three images; the second was searched for nothing
COUNTS = [14, 9, 20]


def batch(num_columns=K):
    """Candidates of three images; some positives are of classes that are not verified."""
    classes = torch.randint(K, (sum(COUNTS),))
    classes[torch.rand(len(classes)) < 0.6] = K
    classes[::11] = -1
    positives = find_positives(classes, K)
    boxes = torch.rand(len(positives), 4).cumsum(1) * 20
    deltas = torch.randn(len(positives), 4, requires_grad=True)
    verified = [
        VerifiedClasses.of(torch.tensor(v, dtype=torch.int64), n)
        for v, n in zip(VERIFIED, COUNTS, strict=True)
    ]
    return Candidates(
        torch.randn(len(classes), num_columns, requires_grad=True),
        classes,
        positives,
        pred_boxes=boxes + deltas * 0.1,
        gt_boxes=boxes,
        pred_deltas=deltas,
        anchors=boxes,
        **verified_negatives(verified, COUNTS, K),
    )


def criterion(ranking, negatives):
    box_loss = BOX_LOSSES["giou"]
    return Criterion(
        ranking=RANKINGS[ranking](num_classes=K, box_loss=box_loss),
        label=LABELS["iou"],
        weight=WEIGHTS["none"],
        tasks={"box": Task(box_loss, BALANCERS["constant"](), outputs="pred_deltas")},
        negatives=None if negatives is None else NEGATIVES[negatives](num_classes=K),
    )


def columns(ranking):
    return RANKINGS[ranking](num_classes=K).num_columns


def loop_targets(candidates):
    """1 positive, 0 negative, -1 neither: one pair of candidate and class after the other."""
    targets = torch.zeros(sum(COUNTS), K)
    row = 0
    for count, verified in zip(COUNTS, VERIFIED, strict=True):
        for _ in range(count):
            own = int(candidates.gt_classes[row])
            for c in range(K):
                if own < 0:
                    targets[row, c] = -1
                elif c == own:
                    targets[row, c] = 1
                else:
                    targets[row, c] = 0 if c in verified else -1
            row += 1
    return targets


def test_targets_are_those_of_a_loop():
    candidates = batch()
    expected = loop_targets(candidates)
    assert torch.equal(candidates.targets(), expected)
    assert {-1, 0, 1} == set(expected.flatten().tolist())


def test_positives_that_are_demoted_keep_their_image():
    candidates = batch()
    kept = candidates.keep(torch.arange(len(candidates.positives)) % 2 == 0, background=K)
    assert torch.equal(kept.targets(), loop_targets(kept))


@pytest.mark.parametrize("ranking", RANKINGS)
def test_an_ignored_logit_gets_no_gradient_and_does_not_matter(ranking):
    candidates = batch(columns(ranking))
    losses = criterion(ranking, "verified")(candidates).losses
    total = sum(losses.values())
    (gradient,) = torch.autograd.grad(total, candidates.logits)
    ignored = loop_targets(candidates) < 0
    assert (gradient[:, :K][ignored] == 0).all()
    assert (gradient[:, :K][~ignored] != 0).float().mean() > 0.3
    with torch.no_grad():
        candidates.logits[:, :K][ignored] += 100
    assert sum(criterion(ranking, "verified")(candidates).losses.values()) == total
    # `all` counts every pair, whatever the head says, as does a criterion without the choice
    every, default = (criterion(ranking, each)(candidates).losses for each in ("all", None))
    assert every == default
    assert sum(every.values()) != total


@pytest.mark.parametrize("ranking", ["rank_sort", "ap", "alrp"])
def test_a_ranking_is_that_of_the_pairs_that_are_left(ranking):
    candidates = batch()
    found = criterion(ranking, "verified")(candidates).losses
    targets = loop_targets(candidates)
    # Each negative as a candidate of its own, of a single class, among the positives.
    logits = torch.cat([candidates.logits[targets == 1], candidates.logits[targets == 0]])
    num = int((targets == 1).sum())
    classes = torch.full((len(logits),), 1).index_fill_(0, torch.arange(num), 0)
    fields = {name: getattr(candidates, name) for name in ("pred_boxes", "gt_boxes", "pred_deltas")}
    single = Candidates(logits[:, None], classes, torch.arange(num), **fields)
    box_loss = BOX_LOSSES["giou"]
    alone = RANKINGS[ranking](num_classes=1, box_loss=box_loss)
    expected = alone(single, LABELS["iou"](single)).terms
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_the_softmax_is_that_of_the_columns_that_are_left():
    candidates = batch(K + 1)
    used = (candidates.gt_classes >= 0).nonzero().squeeze(1)
    ignored, classes = candidates.ignored_pairs(used), candidates.gt_classes[used]
    logits = candidates.logits.detach()[used]
    found = cross_entropy_loss(logits, classes, K, ignored)
    for row, own, left_out, loss in zip(logits, classes, ignored, found, strict=True):
        left = [c for c in range(K) if not left_out[c]] + [K]
        target = torch.tensor(left.index(int(own)))
        torch.testing.assert_close(loss, F.cross_entropy(row[left], target))


@pytest.mark.parametrize("loss", ["sigmoid", "focal"])
def test_class_wise_losses_are_sums_over_the_classes_that_are_left(loss):
    candidates = batch()
    used = (candidates.gt_classes >= 0).nonzero().squeeze(1)
    ignored, classes = candidates.ignored_pairs(used), candidates.gt_classes[used]
    logits = candidates.logits.detach()[used]

    def losses(logits, classes, *ignored):
        if loss == "focal":
            return focal_loss(logits, classes, 0.25, 2.0, *ignored)
        return cross_entropy_loss(logits, classes, logits.shape[1], *ignored)

    found = losses(logits, classes, ignored)
    for row, own, left_out, value in zip(logits, classes, ignored, found, strict=True):
        left = [c for c in range(K) if not left_out[c]]
        target = left.index(int(own)) if own < K else len(left)
        torch.testing.assert_close(value, losses(row[None, left], torch.tensor([target]))[0])


def test_verified_without_any_lists_is_one_line():
    known = VerifiedClasses.of(torch.tensor([0]), 2)
    assert verified_negatives([known, None], [2, 2], K) == {}
    candidates = Candidates(torch.zeros(1, K), torch.tensor([K]), torch.tensor([], dtype=int))
    with pytest.raises(UserError, match=r"^CRITERION.NEGATIVES: verified needs neg_category_ids"):
        NEGATIVES["verified"](num_classes=K)(candidates)


def drawing(counts, num_drawn):
    sampled = NEGATIVES["sampled"](num_classes=len(counts), num_drawn=num_drawn)
    set_image_counts(torch.nn.ModuleList([torch.nn.Linear(1, 1), sampled]), torch.tensor(counts))
    return sampled


def of_classes(classes, num_classes):
    classes = torch.tensor(classes)
    rows = find_positives(classes, num_classes)
    return Candidates(torch.zeros(len(classes), num_classes), classes, rows)


def kept(sampled, classes):
    """The classes that are left in a batch with candidates of these."""
    candidates = sampled(of_classes(classes, sampled.num_classes))
    assert candidates.negatives[candidates.images].shape == candidates.logits.shape
    (negatives,) = candidates.negatives
    return negatives.nonzero().squeeze(1).tolist()


def test_sampled_keeps_the_batchs_own_classes_and_fills_up_to_the_number():
    sampled = drawing([5] * 1203, 50)
    classes = [7, 1203, 900, 7, -1]
    draws = {tuple(kept(sampled, classes)) for _ in range(5)}
    assert len(draws) == 5
    for draw in draws:
        assert len(draw) == 50
        assert {7, 900} <= {*draw}
    assert kept(sampled, [*range(60), 1203]) == [*range(60)]
    assert kept(drawing([5] * 30, 50), [3]) == [*range(30)]
    assert len(kept(sampled, [1203])) == 50


def test_a_class_without_training_images_is_not_drawn_but_kept_as_ones_own():
    sampled = drawing([0, 4, 0, 4, 0, 0], 4)
    assert kept(sampled, [6]) == [1, 3]
    assert kept(sampled, [2]) == [1, 2, 3]


def test_classes_are_drawn_without_replacement_by_the_square_root_of_their_images():
    counts, own, num_draws = [1, 9, 25, 100, 4], 2, 6000
    sampled = drawing(counts, 3)  # its own and two more
    roots = {c: n**0.5 for c, n in enumerate(counts) if c != own}
    whole = sum(roots.values())
    expected = dict.fromkeys(itertools.combinations(roots, 2), 0.0)
    for first, second in itertools.permutations(roots, 2):
        chance = roots[first] / whole * roots[second] / (whole - roots[first])
        expected[tuple(sorted((first, second)))] += chance
    found = dict.fromkeys(expected, 0)
    for _ in range(num_draws):
        drawn = kept(sampled, [own])
        drawn.remove(own)
        found[tuple(drawn)] += 1
    for pair, chance in expected.items():
        deviation = (chance * (1 - chance) / num_draws) ** 0.5
        assert abs(found[pair] / num_draws - chance) < 4.5 * deviation, pair


def test_a_draw_follows_from_torchs_random_state_and_takes_the_same_of_it_in_every_batch():
    sampled = drawing([3] * 100, 10)
    draws, states = [], []
    for classes in ([1], [1], [*range(40)]):
        torch.manual_seed(3)
        draws.append(kept(sampled, classes))
        states.append(torch.get_rng_state())
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(states[0], states[2])


def test_sampled_counts_images_only_where_it_draws_and_is_no_part_of_a_checkpoint():
    asked = []

    def counts(num_classes):
        asked.append(num_classes)
        return torch.arange(num_classes)

    set_image_counts(torch.nn.Linear(1, 1), counts)
    assert asked == []
    model = torch.nn.ModuleList([criterion("rank_sort", "sampled") for _ in range(2)])
    model.append(torch.nn.Linear(1, 1))
    set_image_counts(model, counts)
    assert asked == [K]
    for each in (model[0], model[1]):
        torch.testing.assert_close(each.negatives.weights, torch.arange(K).sqrt())
    assert model[0].state_dict() == {}


def test_sampled_without_counts_is_one_line():
    with pytest.raises(UserError, match=r"^CRITERION.NEGATIVES: sampled draws .* number of train"):
        NEGATIVES["sampled"](num_classes=K)(of_classes([0], K))


@pytest.mark.parametrize("ranking", RANKINGS)
def test_sampled_ignores_the_other_classes_in_every_candidate(ranking):
    candidates = batch(columns(ranking))
    few = (candidates.gt_classes < 0) | (candidates.gt_classes == 1) | (candidates.gt_classes == K)
    candidates = candidates.keep(few[candidates.positives], background=K)
    model = criterion(ranking, "sampled")
    model.negatives.num_drawn = 2
    model.negatives.set_image_counts(torch.ones(K))
    output = model(candidates)
    (gradient,) = torch.autograd.grad(sum(output.losses.values()), candidates.logits)
    (negatives,) = output.candidates.negatives
    assert negatives.sum() == 2
    assert negatives[1]
    reached = (gradient[:, :K] != 0).any(0)
    assert torch.equal(reached, negatives)
