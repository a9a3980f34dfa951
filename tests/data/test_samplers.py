"""Class-balanced repeat."""

import itertools
from collections import Counter

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.samplers import TrainingSampler

from rs_d2.config import add_rs_config
from rs_d2.data import build_train_sampler
from rs_d2.data.samplers import repeat_factors
from rs_d2.utils.errors import UserError


def dicts(*images):
    """One dict per image, given as the classes of its objects."""
    return [{"annotations": [{"category_id": c} for c in classes]} for classes in images]


def repeating(rounding):
    """The sampler of these images with a threshold of 0.5."""
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    cfg.DATALOADER.REPEAT_ROUNDING = rounding
    return build_train_sampler(cfg, IMAGES)


# Class 0 is in all of 16 images, class 1 in 4, class 2 in 1; the last image holds nothing.
IMAGES = dicts(*[[0]] * 11, *[[0, 1]] * 3, [0, 1, 1, 2], [])


def test_an_image_is_repeated_for_its_rarest_class():
    factors = repeat_factors(IMAGES, 0.5, "stochastic")
    expected = [1.0] * 11 + [(0.5 / (4 / 16)) ** 0.5] * 3 + [(0.5 / (1 / 16)) ** 0.5] + [1.0]
    torch.testing.assert_close(factors, torch.tensor(expected))


def test_ceil_rounds_each_image_up():
    factors = repeat_factors(IMAGES, 0.5, "ceil")
    assert factors.tolist() == [1.0] * 11 + [2.0] * 3 + [3.0] + [1.0]


def test_a_whole_factor_is_not_rounded_up():
    factors = repeat_factors(dicts(*[[0]] * 15, [1]), 0.25, "ceil")
    assert factors[-1] == 2  # sqrt(0.25 / (1 / 16))


def test_a_threshold_below_every_frequency_repeats_nothing():
    for rounding in ("ceil", "stochastic"):
        assert repeat_factors(IMAGES, 0.01, rounding).tolist() == [1.0] * 16


def test_an_unknown_rounding_is_refused():
    with pytest.raises(UserError, match="REPEAT_ROUNDING: 'floor' is not one of stochastic, ceil"):
        repeat_factors(IMAGES, 0.5, "floor")


def test_an_epoch_shows_each_image_its_factor_of_times():
    factors = repeat_factors(IMAGES, 0.5, "ceil")
    sampler = repeating("ceil")
    epoch = Counter(itertools.islice(iter(sampler), int(factors.sum())))
    assert [epoch[i] for i in range(len(IMAGES))] == factors.tolist()


def test_stochastic_rounding_keeps_the_factors_on_average():
    factors = repeat_factors(IMAGES, 0.5, "stochastic")
    sampler = repeating("stochastic")
    epochs = 2000
    shown = Counter(itertools.islice(iter(sampler), int(epochs * factors.sum())))
    counts = torch.tensor([shown[i] / epochs for i in range(len(IMAGES))])
    torch.testing.assert_close(counts, factors, atol=0.05, rtol=0)


def test_the_sampler_is_the_one_that_the_config_names():
    cfg = get_cfg()
    add_rs_config(cfg)
    assert type(build_train_sampler(cfg, IMAGES)) is TrainingSampler
    cfg.DATALOADER.SAMPLER_TRAIN = "RandomSubsetTrainingSampler"
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    drawn = [set(itertools.islice(iter(build_train_sampler(cfg, IMAGES, 3)), 40)) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 8
    epoch = Counter(itertools.islice(iter(repeating("ceil")), 21))
    assert epoch[14] == 3
