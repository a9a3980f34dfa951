"""What docs/extending.md shows works as it says."""

import pytest
import torch
from conftest import REPO
from helpers.doc_blocks import blocks

pytest.importorskip("detectron2")

from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from rs_d2 import add_rs_config
from rs_d2.config import architecture_of, architectures, num_classes_key
from rs_d2.config.check import check_config
from rs_d2.criterion import BALANCERS, LABELS, Candidates
from rs_d2.modeling.build import build_box_criterion


@pytest.fixture(scope="module")
def page():
    """The names that the page's code leaves behind."""
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPO)
        for _, code in blocks("extending.md", "python"):
            exec(compile(code, "docs/extending.md", "exec"), names)
    yield names
    META_ARCH_REGISTRY._obj_map.pop("MiddleDetector")
    architectures._ARCHITECTURES.pop("MiddleDetector")
    del LABELS["centre"], BALANCERS["half"]


def test_the_head_is_thirty_lines_and_learns(page):
    code = next(code for _, code in blocks("extending.md", "python") if "PointHead" in code)
    lines = code[code.index("class PointHead") :].splitlines()
    assert len([line for line in lines if line]) <= 30
    first, last = page["history"][0], page["history"][-1]
    assert last["rank"] < 0.2 * first["rank"]
    assert last["box"] == pytest.approx(last["rank"] + last["sort"], rel=1e-4)


def test_the_head_takes_a_batch_without_objects(page):
    losses = page["head"](page["features"], [torch.zeros(0, 4)] * 2, [torch.zeros(0).long()] * 2)
    sum(losses.values()).backward()
    assert [float(loss) for loss in losses.values()] == [0.0, 0.0, 0.0]


def test_a_label_and_a_balance_of_the_users_are_named_in_yaml(page, tmp_path):
    ((_, text),) = blocks("extending.md", "yaml")
    (tmp_path / "own.yaml").write_text(text)
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_file(str(tmp_path / "own.yaml"))
    check_config(cfg)
    criterion = build_box_criterion(cfg)
    boxes = torch.tensor([[0.0, 0, 30, 40], [0, 0, 30, 40]])
    moved = boxes + torch.tensor([[0.0], [10.0]])
    classes, rows = torch.tensor([1, 0]), torch.tensor([0, 1])
    candidates = Candidates(torch.zeros(2, 80), classes, rows, moved, boxes)
    torch.testing.assert_close(criterion.label(candidates), torch.tensor([1, 1 - 200**0.5 / 50]))
    output = criterion(candidates)
    torch.testing.assert_close(output.losses["box"], output.reference / 2)


def test_the_detector_trains_and_detects(page):
    model = page["model"]
    boxes = Boxes(torch.tensor([[8.0, 8, 60, 60]]))
    instances = Instances((96, 96), gt_boxes=boxes, gt_classes=torch.tensor([3]))
    image = {"image": torch.randint(256, (3, 96, 96), dtype=torch.uint8), "instances": instances}
    with EventStorage() as storage:
        losses = model([image])
        assert storage.latest()["dense/num_pos_anchors"][0] > 1
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    with torch.no_grad():
        (output,) = model.eval()([image])
    assert len(output["instances"]) > 0


def test_programs_know_a_detector_of_the_users_as_dense(page):
    architecture = architecture_of(page["cfg"])  # that of AnchorDenseDetector
    assert [stage.name for stage in architecture.stages] == ["dense"]
    assert architecture.is_exportable
    assert page["inherited"].title(page["cfg"]) == "RS-MiddleDetector"
    assert architecture.title(page["cfg"]) == "Middles"
    assert num_classes_key(page["cfg"]) == "MODEL.RETINANET.NUM_CLASSES"
