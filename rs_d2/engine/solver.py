"""Optimizers, and the linear rule that fits a published schedule to another batch size."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from rs_d2.config import lookup
from rs_d2.utils.errors import UserError

# Published runs used 4 GPUs x 4 images; Rank & Sort Loss ranks over the images of one GPU.
_PUBLISHED_BATCH, _PUBLISHED_IMAGES_PER_GPU = 16, 4
# Numbers of iterations that stand for epochs; 0 means "never". Warm-up is not among them: it
# serves the optimizer, and a smaller learning rate needs no longer one.
_ITERATION_KEYS = (
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.EVAL_PERIOD",
)


def scale_solver(cfg: CfgNode, explicit: Collection[str] = ()) -> list[str]:
    r"""Fit the solver to a batch other than ``SOLVER.REFERENCE_IMS_PER_BATCH``, in place.

    The linear rule: with ``r = IMS_PER_BATCH / REFERENCE_IMS_PER_BATCH`` the learning rate becomes
    ``r * BASE_LR`` and the schedule ``1 / r`` times as long, so that the number of epochs stays.
    Nothing changes when the reference is 0 or equals the batch.

    Args:
        cfg: config that is not frozen.
        explicit: keys given on the command line; they keep the value given.

    Returns:
        Lines for the log that say what was changed; empty if nothing was.
    """
    reference, batch = cfg.SOLVER.REFERENCE_IMS_PER_BATCH, cfg.SOLVER.IMS_PER_BATCH
    if reference == 0 or reference == batch:
        return []
    ratio = batch / reference
    changes, kept = [], []
    for key in ("SOLVER.BASE_LR", *_ITERATION_KEYS):
        parent, _, name = key.rpartition(".")
        node = lookup(cfg, parent)
        old = node[name]
        if key in explicit:
            kept.append(f"{name} {_show(old)}")
            continue
        node[name] = old * ratio if name == "BASE_LR" else _stretch(old, ratio)
        if node[name] != old:
            changes.append(f"{name} {_show(old)} -> {_show(node[name])}")
    line = f"SOLVER.IMS_PER_BATCH {batch} instead of {reference}: {', '.join(changes)}"
    return [line + (f" (as given: {', '.join(kept)})" if kept else "")]


def check_batch(cfg: CfgNode, world_size: int) -> list[str]:
    """Check that the batch can be split over the processes.

    Returns:
        A line for the log if a config of the published batch gives a GPU another number of images
        than published; else empty.

    Raises:
        UserError: The batch is not a positive multiple of the number of processes.
    """
    batch = cfg.SOLVER.IMS_PER_BATCH
    if batch < 1 or batch % world_size:
        processes = "1 process" if world_size == 1 else f"{world_size} processes"
        raise UserError(f"SOLVER.IMS_PER_BATCH: {batch} cannot be split over {processes}")
    images = batch // world_size
    if (
        cfg.SOLVER.REFERENCE_IMS_PER_BATCH != _PUBLISHED_BATCH
        or images == _PUBLISHED_IMAGES_PER_GPU
    ):
        return []
    return [
        f"{images} images per GPU instead of the published {_PUBLISHED_IMAGES_PER_GPU}: the ranking"
        " runs over the images of one GPU, so results may differ a little even at equal total batch"
    ]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer that ``SOLVER.OPTIMIZER`` names, with gradient clipping.

    Both take Detectron2's per-parameter settings (norm layers, biases) and its clip types ``value``
    and ``norm``, which look at each parameter by itself. A third type, ``full_model``, bounds the
    norm of all gradients together.

    Args:
        cfg: config; ``check_clip_type`` has accepted it.
        model: its parameters without ``requires_grad`` are left out.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip_whole_model = clip.ENABLED and clip.CLIP_TYPE == "full_model"
    local_cfg = cfg
    if clip_whole_model:  # Detectron2's builder knows only the other two types
        local_cfg = cfg.clone()
        local_cfg.defrost()
        local_cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    if cfg.SOLVER.OPTIMIZER == "sgd":
        optimizer = build_sgd(local_cfg, model)
    else:
        params = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        optimizer = maybe_add_gradient_clipping(local_cfg, torch.optim.AdamW)(
            params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY
        )
    if clip_whole_model:
        _clip_whole_model(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
    return optimizer


def _clip_whole_model(optimizer: torch.optim.Optimizer, limit: float, norm_type: float) -> None:
    """Clip before every step; mixed precision has unscaled the gradients by then."""

    def clip(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        nn.utils.clip_grad_norm_(params, limit, norm_type)

    optimizer.register_step_pre_hook(clip)


def _stretch(iterations: Any, ratio: float) -> Any:
    if isinstance(iterations, tuple):
        return tuple(_stretch(step, ratio) for step in iterations)
    return max(1, round(iterations / ratio)) if iterations > 0 else iterations


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_show, value))})"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def check_optimizer_state(optimizer: torch.optim.Optimizer) -> None:
    """Check that restored averages and momenta have the shapes of their parameters.

    Raises:
        UserError: One has not: the parameters stand in another order than when it was saved.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            for name in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
                shape = getattr(state.get(name), "shape", parameter.shape)
                if shape != parameter.shape:
                    raise UserError(
                        "--resume: the optimizer's state does not fit this config"
                        f" ({name} of {list(shape)} for a parameter of {list(parameter.shape)})"
                    )
