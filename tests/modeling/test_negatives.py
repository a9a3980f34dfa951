"""The lists of an image reach every head that tells classes apart, and the logits of no other."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from helpers.tiny import write_config

from rs_d2.config.load import find_config, load_config
from rs_d2.criterion import set_image_counts
from rs_d2.criterion.negatives import VerifiedClasses
from rs_d2.utils.errors import UserError

K, SIZE = 6, (64, 96)
# Two images with objects, one of them with a class that is not exhaustive, and one without any.
OBJECTS = [[0, 3], [], [2]]
VERIFIED = [[0, 3, 5], [1], [4]]
BOXES = torch.tensor([[6.0, 8, 40, 44], [44, 20, 90, 60]])
NARROW = [
    *("MODEL.DEVICE", "cpu", "MODEL.RETINANET.NUM_CLASSES", str(K), "MODEL.FPN.OUT_CHANNELS", "32"),
    *("MODEL.ROI_HEADS.NUM_CLASSES", str(K), "MODEL.RPN.POST_NMS_TOPK_TRAIN", "20"),
    *("INPUT.MASK_FORMAT", "bitmask", "MODEL.RETINANET.NUM_CONVS", "1"),
]
HEADS = {
    "box head": ("tiny", ""),
    "box head with samplers": ("tiny", "MODEL.ROI_HEADS.SAMPLER random MODEL.RPN.SAMPLER random"),
    "softmax": ("tiny", "MODEL.ROI_BOX_HEAD.CRITERION.LOSS cross_entropy"),
    "cascade": ("quick/rs_cascade_rcnn_own_data.yaml", "MODEL.ROI_BOX_HEAD.FC_DIM 16"),
    "cascade with a sampler": (
        "quick/rs_cascade_rcnn_own_data.yaml",
        "MODEL.ROI_BOX_HEAD.FC_DIM 16 MODEL.ROI_HEADS.SAMPLER random",
    ),
    "ATSS": ("quick/rs_atss_digits.yaml", ""),
    "PAA with focal loss": ("quick/paa_digits.yaml", ""),
    "YOLACT": ("quick/rs_yolact_digits.yaml", ""),
    "SOLOv2": ("quick/rs_solov2_digits.yaml", "MODEL.SOLO.GRIDS [8,6,4,3]"),
}


def image(classes, verified):
    boxes = BOXES[: len(classes)]
    masks = torch.ones(len(classes), *SIZE, dtype=torch.bool)
    instances = Instances(SIZE, gt_boxes=Boxes(boxes), gt_classes=torch.tensor(classes).long())
    instances.gt_masks = BitMasks(masks)
    if verified is not None:
        instances.gt_verified = VerifiedClasses.of(torch.tensor(verified), len(classes))
    return {"image": torch.randint(256, (3, *SIZE), dtype=torch.uint8), "instances": instances}


def build(head, choice, folder):
    config, options = HEADS[head]
    path = write_config(folder) if config == "tiny" else find_config(config)
    options = [*NARROW, "MODEL.WEIGHTS", "", *options.split()]
    for node in ("ROI_BOX_HEAD", "DENSE_HEAD"):
        options += [f"MODEL.{node}.CRITERION.NEGATIVES", choice]
        options += [f"MODEL.{node}.CRITERION.NEGATIVES_NUM_CLASSES", "4"]
    return build_model(load_config(path, options)[0]).train()


def step(model, images):
    """The record of every criterion that was called, with the gradients of its logits."""
    records = []

    def keep(module, _, output):
        output.candidates.logits.retain_grad()
        records.append((module, output.candidates))

    modules = [m for m in model.modules() if type(m).__name__ == "Criterion"]
    hooks = [m.register_forward_hook(keep) for m in modules]
    losses = model(images)
    sum(losses.values()).backward()
    for hook in hooks:
        hook.remove()
    assert all(loss.isfinite() for loss in losses.values())
    assert len(records) == len(modules)
    return records


@pytest.mark.parametrize("head", HEADS)
def test_a_step_leaves_the_logits_of_unverified_classes_alone(head, tmp_path):
    model = build(head, "verified", tmp_path)
    records = step(model, [image(*each) for each in zip(OBJECTS, VERIFIED, strict=True)])
    with_classes = [(m, c) for m, c in records if m.num_classes == K]
    assert len(with_classes) == (3 if head.startswith("cascade") else 1)
    for _, candidates in with_classes:
        assert candidates.images.bincount(minlength=3).min() > 0
        assert (candidates.images.diff() >= 0).all()
        gradient = candidates.logits.grad[:, :K]
        reached = 0
        for row, (number, own) in enumerate(
            zip(candidates.images.tolist(), candidates.gt_classes.tolist(), strict=True)
        ):
            assert own < 0 or own == K or own in OBJECTS[number]
            may = {*VERIFIED[number]} | {own}
            others = [c for c in range(K) if c not in may]
            assert (gradient[row, others] == 0).all()
            reached += int((gradient[row] != 0).sum())
        assert reached > 0
    for module, candidates in records:  # of the RPN: an object is an object
        if module.num_classes == 1:
            assert candidates.negatives is None


@pytest.mark.parametrize("head", ["box head", "cascade", "ATSS", "SOLOv2"])
def test_a_step_with_sampled_classes(head, tmp_path):
    model = build(head, "sampled", tmp_path)
    set_image_counts(model, torch.ones(K))
    records = step(model, [image(classes, None) for classes in OBJECTS])
    for _, candidates in [(m, c) for m, c in records if m.num_classes == K]:
        (negatives,) = candidates.negatives
        assert negatives.sum() == 4
        assert negatives[candidates.positive_classes].all()
        assert (candidates.logits.grad[:, ~negatives] == 0).all()


@pytest.mark.parametrize("head", ["box head", "ATSS", "SOLOv2"])
def test_instances_that_bring_no_lists_are_one_line(head, tmp_path):
    model = build(head, "verified", tmp_path)
    images = [image(OBJECTS[0], VERIFIED[0]), image(OBJECTS[1], None)]
    with pytest.raises(UserError, match=r"^CRITERION.NEGATIVES: verified needs neg_category_ids"):
        model(images)
