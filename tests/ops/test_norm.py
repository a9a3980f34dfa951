"""Batch norm with frozen statistics: what moves, what stays, whose checkpoints it reads."""

import pytest
import torch
from torch import nn

from rs_d2.ops.norm import FrozenStatBatchNorm2d, freeze_batch_norm_statistics


def randomised(norm):
    nn.init.uniform_(norm.weight.data, 0.5, 2)
    nn.init.normal_(norm.bias.data)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


def test_a_training_step_moves_the_affine_map_and_not_the_statistics():
    norm = randomised(FrozenStatBatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    optimizer = torch.optim.SGD(norm.parameters(), lr=0.1)
    norm(3 + 2 * torch.randn(2, 4, 5, 5)).square().sum().backward()
    optimizer.step()
    changed = {name for name, value in norm.state_dict().items() if (value != before[name]).any()}
    assert changed == {"weight", "bias"}


@pytest.mark.parametrize("training", [True, False])
def test_output_is_that_of_a_batch_norm_in_evaluation(training):
    stock = randomised(nn.BatchNorm2d(4)).eval()
    ours = FrozenStatBatchNorm2d(4).train(training)
    ours.load_state_dict(stock.state_dict())
    images = torch.randn(2, 4, 5, 6)
    assert torch.equal(ours(images), stock(images))


def test_an_empty_batch_passes():
    norm = FrozenStatBatchNorm2d(4).train()
    assert norm(torch.zeros(0, 4, 5, 6)).shape == (0, 4, 5, 6)


def test_replacing_keeps_the_state_and_leaves_other_layers_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4)), nn.GroupNorm(2, 4))
    stock = randomised(model[1][0])
    frozen = freeze_batch_norm_statistics(model)
    assert frozen is model
    assert [type(m) for m in (model[0], model[1][0], model[2])] == [
        nn.Conv2d,
        FrozenStatBatchNorm2d,
        nn.GroupNorm,
    ]
    assert model[1][0].weight is stock.weight
    assert torch.equal(model[1][0].running_var, stock.running_var)


def test_a_single_layer_is_replaced_too():
    assert isinstance(freeze_batch_norm_statistics(nn.BatchNorm2d(4)), FrozenStatBatchNorm2d)


def test_scripting_and_tracing_keep_the_statistics():
    norm = randomised(FrozenStatBatchNorm2d(4))
    images = torch.randn(2, 4, 5, 6)
    for exported in (torch.jit.script(norm), torch.jit.trace(norm, images)):
        assert torch.equal(exported(images), norm(images))


class TestBesideDetectron2:
    """With its ``FrozenBatchNorm2d``."""

    @pytest.fixture
    def stock(self):
        layers = pytest.importorskip("detectron2.layers")
        return randomised(layers.FrozenBatchNorm2d(4))

    def test_the_output_is_the_same(self, stock):
        ours = FrozenStatBatchNorm2d(4)
        ours.load_state_dict(stock.state_dict())
        images = torch.randn(2, 4, 5, 6)
        assert torch.equal(ours(images), stock(images))

    def test_checkpoints_go_both_ways(self, stock):
        ours = FrozenStatBatchNorm2d(4)
        assert set(ours.state_dict()) == set(stock.state_dict())
        stock.load_state_dict(randomised(ours).state_dict())
        assert torch.equal(stock.running_mean, ours.running_mean)

    def test_a_file_without_versions_loads_without_a_counter(self, stock):
        state = dict(stock.state_dict())  # no metadata, as in pickled weights
        FrozenStatBatchNorm2d(4).load_state_dict(state)

    def test_freezing_a_stage_converts_it(self, stock):
        ours = randomised(FrozenStatBatchNorm2d(4))
        frozen = type(stock).convert_frozen_batchnorm(nn.Sequential(ours))[0]
        assert type(frozen) is type(stock)
        assert torch.equal(frozen.running_mean, ours.running_mean)
        assert torch.equal(frozen.weight, ours.weight)
