"""The order of the training images; rare classes more often by LVIS's class-balanced repeat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from rs_d2.utils.errors import UserError


def repeat_factors(
    dataset_dicts: Sequence[dict[str, Any]], threshold: float, rounding: str
) -> Tensor:
    """How often each image is shown in an epoch.

    r(I) = max over the classes c in image I of max(1, sqrt(threshold / f(c))), where f(c) is the
    share of images with c.

    Args:
        dataset_dicts: [N] Detectron2 dicts.
        threshold: share of images below which a class is repeated.
        rounding: "stochastic" leaves the factors fractional, for the sampler to round anew in each
            epoch; "ceil" rounds them up, as published.

    Returns:
        [N], float32; 1 for an image without objects.

    Raises:
        UserError: The rounding is unknown.
    """
    from detectron2.data.samplers import RepeatFactorTrainingSampler as Upstream

    if rounding not in ("stochastic", "ceil"):
        raise UserError(f"DATALOADER.REPEAT_ROUNDING: '{rounding}' is not one of stochastic, ceil")
    factors = Upstream.repeat_factors_from_category_frequency(dataset_dicts, threshold)
    return torch.ceil(factors) if rounding == "ceil" else factors


def build_train_sampler(
    cfg: Any, dataset_dicts: Sequence[dict[str, Any]], seed: int | None = None
) -> Sampler:
    """The endless sampler that ``DATALOADER.SAMPLER_TRAIN`` names; see ``train_sampler_maker``."""
    return train_sampler_maker(cfg, dataset_dicts)(seed)


def train_sampler_maker(
    cfg: Any, dataset_dicts: Sequence[dict[str, Any]]
) -> Callable[[int | None], Sampler]:
    """From a seed to the endless sampler that ``DATALOADER.SAMPLER_TRAIN`` names.

    The order of the images follows from the seed, which must be the same in all processes; None
    draws one. The annotations are looked at here, once, and not kept.

    Args:
        cfg: config with `DATALOADER.{SAMPLER_TRAIN, REPEAT_THRESHOLD, REPEAT_ROUNDING,
            RANDOM_SUBSET_RATIO}`.
        dataset_dicts: what the loader will index, after empty images were filtered out.

    Raises:
        UserError: The sampler is unknown.
    """
    from detectron2.data.samplers import (
        RandomSubsetTrainingSampler,
        RepeatFactorTrainingSampler,
        TrainingSampler,
    )

    keys, size = cfg.DATALOADER, len(dataset_dicts)
    if keys.SAMPLER_TRAIN == "TrainingSampler":
        return lambda seed: TrainingSampler(size, seed=seed)
    if keys.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        factors = repeat_factors(dataset_dicts, keys.REPEAT_THRESHOLD, keys.REPEAT_ROUNDING)
        return lambda seed: RepeatFactorTrainingSampler(factors, seed=seed)
    if keys.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        ratio = keys.RANDOM_SUBSET_RATIO
        return lambda seed: RandomSubsetTrainingSampler(
            size, ratio, seed_shuffle=seed, seed_subset=seed
        )
    known = "TrainingSampler, RepeatFactorTrainingSampler, RandomSubsetTrainingSampler"
    raise UserError(f"DATALOADER.SAMPLER_TRAIN: '{keys.SAMPLER_TRAIN}' is not one of {known}")
