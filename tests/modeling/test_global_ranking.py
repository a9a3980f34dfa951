"""A whole RS-Mask R-CNN in two processes with ``CRITERION.GLOBAL`` equals one with both images."""

import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from helpers.tiny import write_config

from rs_d2.config.load import load_config
from rs_d2.utils.d2_compat import create_ddp_model
from rs_d2.utils.launch import launch

SIZE = 96
# Objects in each image; the mask head sees no positive of an image without any.
CASES = {"uneven": (3, 1), "one without objects": (2, 0)}


def image(number, num_objects):
    """One input of the model: noise, with boxes and masks of some classes."""
    rng = torch.Generator().manual_seed(number)
    corner = torch.rand(num_objects, 2, generator=rng) * 40
    boxes = torch.cat([corner, corner + 20 + torch.rand(num_objects, 2, generator=rng) * 30], 1)
    instances = Instances((SIZE, SIZE))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.randint(30, (num_objects,), generator=rng)
    masks = torch.zeros(num_objects, SIZE, SIZE, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = True
    instances.gt_masks = BitMasks(masks)
    picture = torch.randint(256, (3, SIZE, SIZE), generator=rng).float()
    return {"image": picture, "instances": instances, "height": SIZE, "width": SIZE}


def losses_and_gradients(config, numbers, num_objects):
    """What one process finds in its images, after the processes have averaged their gradients."""
    opts = ["MODEL.DEVICE", "cpu", "INPUT.MASK_FORMAT", "bitmask"]
    for head in ("RPN", "ROI_BOX_HEAD"):
        opts += [f"MODEL.{head}.CRITERION.GLOBAL", "True"]
    cfg, _ = load_config(config, opts)
    torch.manual_seed(0)
    model = create_ddp_model(build_model(cfg), broadcast_buffers=False)
    # Plain convolutions round an image alike whatever its batch: no ReLU flips.
    with EventStorage(), torch.backends.mkldnn.flags(enabled=False):
        losses = model([image(number, num_objects[number]) for number in numbers])
        sum(losses.values()).backward()
    parameters = getattr(model, "module", model).named_parameters()
    gradients = {name: parameter.grad for name, parameter in parameters}
    return {name: float(loss.detach()) for name, loss in losses.items()}, gradients


def work(config, folder):
    """Every case, in one of two processes with an image each."""
    rank = comm.get_rank()
    found = {case: losses_and_gradients(config, [rank], CASES[case]) for case in CASES}
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The config, and what each of the two processes found."""
    if torch.cuda.is_available():
        pytest.skip("processes of a GPU machine need a GPU each")
    folder = tmp_path_factory.mktemp("global")
    config = write_config(folder)
    launch(work, 2, args=(config, str(folder)))
    return config, [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_an_image_each_equal_one_with_both(case, runs):
    config, found = runs
    expected, gradients = losses_and_gradients(config, [0, 1], CASES[case])
    assert expected["loss_mask"] > 0
    for of_process in found:
        losses, averaged = of_process[case]
        assert losses == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert averaged.keys() == gradients.keys()
        for name, gradient in gradients.items():
            error = (averaged[name] - gradient).abs().max() / gradient.abs().max()
            assert error < 1e-4, name
