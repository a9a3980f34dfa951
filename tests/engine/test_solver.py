import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from rs_d2 import add_rs_config
from rs_d2.config.check import check_clip_type
from rs_d2.engine.solver import build_optimizer, check_batch, scale_solver
from rs_d2.utils.errors import UserError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_rs_config(cfg)
    solver = cfg.SOLVER
    solver.REFERENCE_IMS_PER_BATCH = solver.IMS_PER_BATCH = 16
    solver.BASE_LR, solver.MAX_ITER, solver.STEPS = 0.012, 90000, (60000, 80000)
    solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD = 500, 5000, 7500
    return cfg


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 1))


@pytest.mark.parametrize("reference", [0, 16])
def test_the_published_batch_is_not_scaled(cfg, reference):
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = reference
    before = cfg.clone()
    assert scale_solver(cfg) == []
    assert cfg == before


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 32, 64])
def test_rate_follows_the_batch_and_the_epochs_stay(cfg, batch):
    before = cfg.clone()
    cfg.SOLVER.IMS_PER_BATCH = batch
    scale_solver(cfg)
    assert cfg.SOLVER.BASE_LR / batch == pytest.approx(before.SOLVER.BASE_LR / 16)
    for new, old in [
        (cfg.SOLVER.MAX_ITER, before.SOLVER.MAX_ITER),
        (cfg.SOLVER.STEPS[0], before.SOLVER.STEPS[0]),
        (cfg.SOLVER.STEPS[1], before.SOLVER.STEPS[1]),
        (cfg.SOLVER.CHECKPOINT_PERIOD, before.SOLVER.CHECKPOINT_PERIOD),
        (cfg.TEST.EVAL_PERIOD, before.TEST.EVAL_PERIOD),
    ]:
        assert new * batch == pytest.approx(old * 16, rel=1e-3)


def test_warm_up_keeps_its_iterations(cfg):
    cfg.SOLVER.IMS_PER_BATCH = 2
    scale_solver(cfg)
    assert cfg.SOLVER.WARMUP_ITERS == 500


def test_keys_of_the_command_line_are_kept_and_reported(cfg):
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, 1000
    (line,) = scale_solver(cfg, {"SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER"})
    assert cfg.SOLVER.MAX_ITER == 1000
    assert abs(cfg.SOLVER.BASE_LR - 0.0015) < 1e-9
    assert line.startswith("SOLVER.IMS_PER_BATCH 2 instead of 16: BASE_LR 0.012 -> 0.0015")
    assert "STEPS (60000, 80000) -> (480000, 640000)" in line
    assert line.endswith("(as given: MAX_ITER 1000)")


def test_never_stays_never(cfg):
    cfg.SOLVER.IMS_PER_BATCH, cfg.TEST.EVAL_PERIOD = 2, 0
    scale_solver(cfg)
    assert cfg.TEST.EVAL_PERIOD == 0


@pytest.mark.parametrize(("batch", "processes"), [(0, 1), (-4, 1), (6, 4), (1, 2)])
def test_a_batch_that_cannot_be_split_is_refused(cfg, batch, processes):
    cfg.SOLVER.IMS_PER_BATCH = batch
    with pytest.raises(UserError, match=f"^SOLVER.IMS_PER_BATCH: {batch} cannot be split"):
        check_batch(cfg, processes)


def test_images_per_gpu_are_remarked_on_for_published_configs_only(cfg):
    assert check_batch(cfg, 4) == []
    assert "2 images per GPU instead of the published 4" in check_batch(cfg, 8)[0]
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0
    assert check_batch(cfg, 8) == []


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_norm_layers_have_their_own_weight_decay(cfg, model, name, kind):
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY_NORM = name, 0.0
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, kind)
    decay = {p: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert set(decay) == set(model.parameters())
    assert decay[model[1].weight] == 0
    assert decay[model[0].weight] == cfg.SOLVER.WEIGHT_DECAY


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_clipping_the_full_model_bounds_the_norm_of_all_gradients(cfg, model, name):
    cfg.SOLVER.OPTIMIZER, clip = name, cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "full_model", 0.5
    for param in model.parameters():
        param.grad = torch.full_like(param, 3.0)
    build_optimizer(cfg, model).step()
    gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
    assert gradients.norm() == pytest.approx(0.5, rel=1e-4)
    assert gradients.max() == pytest.approx(gradients.min())  # the direction is kept


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_clipping_by_value_bounds_every_element(cfg, model, name):
    cfg.SOLVER.OPTIMIZER, clip = name, cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "value", 0.5
    for param in model.parameters():
        param.grad = torch.full_like(param, 3.0)
    build_optimizer(cfg, model).step()
    assert all(torch.equal(p.grad, torch.full_like(p, 0.5)) for p in model.parameters())


def test_small_gradients_are_not_clipped(cfg, model):
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE = True, "full_model", 100.0
    for param in model.parameters():
        param.grad = torch.full_like(param, 0.25)
    build_optimizer(cfg, model).step()
    assert all(torch.equal(p.grad, torch.full_like(p, 0.25)) for p in model.parameters())


def test_an_unknown_clip_type_is_named(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "median"
    with pytest.raises(UserError, match="'median' is not one of value, norm, full_model"):
        check_clip_type(cfg)
