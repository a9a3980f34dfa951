"""One of each from outside the package: registered with a line, named in yaml, used by a head."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rs_d2 import add_rs_config
from rs_d2.config.check import check_config
from rs_d2.criterion import (
    BALANCERS,
    BOX_LOSSES,
    LABELS,
    RANKINGS,
    WEIGHTS,
    Balancer,
    Ranked,
    Ranking,
)
from rs_d2.utils.errors import UserError
from rs_d2.utils.folders import config_dir
from rs_d2.utils.registry import Registry

YAML = """
_BASE_: {configs}/{base}
MODEL:
  {head}:
    CRITERION:
      {key}: tests_own
"""


class Margin(Ranking):
    """Half of the negatives' scores: a ranking with one term of an unheard name."""

    uses_quality = True

    def forward(self, candidates, quality):
        loss = candidates.logits.sigmoid().mean() * quality.mean()
        return Ranked({"margin": loss}, loss.detach())


class Halved(Balancer):
    def forward(self, loss, reference, gradients=None):
        return loss / 2


def small_label(candidates):
    return torch.full_like(candidates.positives, 0.25, dtype=torch.float32)


def square_weight(candidates):
    return candidates.positive_logits.detach().amax(1).square()


def corner_loss(candidates):
    return (candidates.pred_boxes - candidates.gt_boxes).abs().mean(1)


OWN = {
    "LOSS": (RANKINGS, Margin),
    "LABELS": (LABELS, small_label),
    "WEIGHTS": (WEIGHTS, square_weight),
    "BOX_LOSS": (BOX_LOSSES, corner_loss),
    "BALANCE": (BALANCERS, Halved),
}
BASES = {
    "RPN": "quick/rs_mask_rcnn_digits.yaml",
    "ROI_BOX_HEAD": "quick/rs_mask_rcnn_digits.yaml",
    "DENSE_HEAD": "quick/rs_atss_digits.yaml",
}


@pytest.fixture(params=sorted(OWN))
def key(request, monkeypatch):
    registry, entry = OWN[request.param]
    monkeypatch.setitem(registry, "tests_own", None)  # taken out again after the test
    del registry["tests_own"]
    assert registry.register("tests_own")(entry) is entry
    return request.param


def losses_of(config):
    """One training step of a config's model on a picture with two objects, and its losses."""
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_file(str(config))
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "cpu", False
    check_config(cfg)
    model = build_model(cfg).train()
    instances = Instances(
        (64, 96),
        gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40], [30, 20, 80, 60]])),
        gt_classes=torch.tensor([3, 7]),
    )
    image = {"image": torch.randint(256, (3, 64, 96), dtype=torch.uint8), "instances": instances}
    with EventStorage():
        losses = model([image])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    return losses


@pytest.mark.parametrize("head", sorted(BASES))
def test_what_a_user_registers_is_named_in_yaml_and_trains(key, head, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(YAML.format(configs=config_dir(), base=BASES[head], head=head, key=key))
    losses = losses_of(path)
    if key == "LOSS":
        name = {"RPN": "loss_rpn_margin"}.get(head, "loss_margin")
        assert losses[name] > 0


def test_a_focal_loss_of_the_users_own_has_the_quality_branch_that_it_weights_by(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(RANKINGS, "tests_own", type("OwnFocal", (RANKINGS["focal"],), {}))
    path = tmp_path / "own.yaml"
    base, head = BASES["DENSE_HEAD"], "DENSE_HEAD"
    path.write_text(YAML.format(configs=config_dir(), base=base, head=head, key="LOSS"))
    assert set(losses_of(path)) == {"loss_cls", "loss_box_reg", "loss_quality"}


def test_a_name_is_registered_once_and_an_unknown_one_has_a_hint():
    registry = Registry("colour")
    registry.register("green")(1)
    with pytest.raises(ValueError, match="'green' is registered already"):
        registry.register("green")(2)
    with pytest.raises(UserError, match=r"^'gren' is no colour; did you mean green\?$"):
        registry["gren"]
    assert "gren" not in registry
