"""Whole models against recordings of the official code: same weights, same batch, same numbers.

Each recording is a tiny model of one type with its losses, gradients, proposals and detections
(``../shared/golden/models/README.md``). A further type needs one line in ``MODELS`` and, where its
losses have names of their own, lines in ``OUR_NAME``.
"""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from conftest import shared
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, ROIMasks
from detectron2.utils.events import EventStorage

from rs_d2 import add_rs_config
from rs_d2.checkpoint.mmdet import official_names, to_detectron2
from rs_d2.checkpoint.smoke_run import model_shapes
from rs_d2.utils.folders import config_dir

# Type -> the published config of that model, and keys beside those that the recording names.
MODELS = {
    "faster": ("COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml", {}),
    "mask": ("COCO-InstanceSegmentation/rs_mask_rcnn_R_50_FPN_1x.yaml", {}),
    "cascade": ("COCO-Detection/rs_cascade_rcnn_R_50_FPN_1x.yaml", {}),
    "cascade_border": ("COCO-Detection/rs_cascade_rcnn_R_50_FPN_1x.yaml", {}),
    "faster_plus": ("COCO-Detection/rs_faster_rcnn_plus_R_50_FPN_1x.yaml", {}),
    "atss": ("COCO-Detection/rs_atss_R_50_FPN_1x.yaml", {}),
    "paa": ("COCO-Detection/rs_paa_R_50_FPN_1x.yaml", {}),
    "yolact": ("COCO-InstanceSegmentation/rs_yolact_R_50_FPN_55e.yaml", {}),
    "faster_alrp": (
        "COCO-Detection/rs_faster_rcnn_R_50_FPN_1x.yaml",
        {"MODEL.RPN.CRITERION.LOSS": "alrp", "MODEL.ROI_BOX_HEAD.CRITERION.LOSS": "alrp"},
    ),
}
# Official name of a loss -> ours, where they differ. A cascade's "s0." becomes "_stage0".
OUR_NAME = {
    "loss_rpn_bbox": "loss_rpn_loc",
    "loss_roi_rank": "loss_rank",
    "loss_roi_sort": "loss_sort",
    "loss_roi_bbox": "loss_box_reg",
    "loss_bbox": "loss_box_reg",
    "ranking_loss": "loss_rank",
    "sorting_loss": "loss_sort",
}
# A convolution's last bit depends on the processor's kernels, and fifty layers make 1e-5 of it; a
# ReLU whose input is near 0 then passes another gradient to all layers in front of it. With the
# kernels that conftest.py asks for, every loss agrees within 2e-6 and every gradient within 2e-5 of
# its recorded norm. On processors without them losses were seen within 7e-5, gradients of the last
# layers, with no ReLU between them and the loss, within 1.3e-4, and others within 0.064.
# A gradient below GRADIENT_FLOOR of the largest one is compared with that instead.
LAST_LAYERS = ("objectness_logits", "anchor_deltas", "cls_score", "bbox_pred", "predictor")
LAST_LAYERS += ("coefficients",)
SAME_KERNELS = torch.backends.cpu.get_cpu_capability() == "AVX2"
LOSS_TOLERANCE = 1e-5 if SAME_KERNELS else 2e-4
LAST_LAYERS_TOLERANCE = 5e-5 if SAME_KERNELS else 5e-4
GRADIENT_TOLERANCE = 5e-5 if SAME_KERNELS else 0.15
GRADIENT_FLOOR = 1e-4
# Two detections are the same within this many pixels and hundredths of a score (seen: 0.012) if
# their classes are equal.
SAME = 0.05


@dataclass
class Recording:
    """One official run, and the config and weights of the same model here."""

    name: str
    data: dict
    cfg: object
    state: dict

    def group(self, prefix):
        """Tensors whose names start with ``prefix``, by the rest of the name."""
        return {
            key[len(prefix) :]: torch.from_numpy(value)
            for key, value in self.data.items()
            if key.startswith(prefix)
        }

    def batch(self, *, with_objects):
        """The images as Detectron2 takes them."""
        entries = []
        for i, (height, width) in enumerate(self.data["image_sizes"].tolist()):
            image = torch.from_numpy(self.data["batch"][i, :, :height, :width].copy())
            entries.append({"image": image, "height": height, "width": width})
            if with_objects:
                entries[-1]["instances"] = self._objects(i, height, width)
        return entries

    def _objects(self, i, height, width):
        objects = Instances((height, width))
        objects.gt_boxes = Boxes(torch.from_numpy(self.data[f"gt_boxes/{i}"]))
        objects.gt_classes = torch.from_numpy(self.data[f"gt_classes/{i}"])
        if self.cfg.MODEL.MASK_ON:
            count = len(objects) * height * width
            bits = np.unpackbits(self.data[f"gt_masks/{i}"], count=count)
            objects.gt_masks = BitMasks(torch.from_numpy(bits.reshape(-1, height, width) > 0))
        return objects

    def model(self):
        model = build_model(self.cfg)
        model.load_state_dict(self.state)
        return model


@pytest.fixture(scope="module", params=MODELS)
def recording(request):
    path = shared(f"golden/models/{request.param}.npz")
    with np.load(path) as stored:
        data = {key: stored[key] for key in stored.files}
    config_file, extra = MODELS[request.param]
    cfg = get_cfg()
    add_rs_config(cfg)
    cfg.merge_from_file(str(config_dir() / config_file))
    settings = json.loads(str(data["meta"]))["config"] | extra
    if cfg.MODEL.META_ARCHITECTURE in ("ATSS", "PAA"):
        del settings["MODEL.ANCHOR_GENERATOR.SIZES"]  # our configs must have the same
    for key, value in settings.items():
        if not key.startswith("_"):
            cfg.merge_from_list([key, value])
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    shapes = model_shapes(cfg)
    made = Recording(request.param, data, cfg, {})
    converted = to_detectron2(made.group("state/"), shapes)
    assert converted.complete
    made.state = converted.state
    return made


@pytest.fixture(scope="module")
def trained(recording):
    """The model after one backward pass, its losses and the proposals that its box head got."""
    model = recording.model().train()
    proposals = []
    if hasattr(model, "proposal_generator"):
        model.proposal_generator.register_forward_hook(lambda _m, _i, out: proposals.extend(out[0]))
    with EventStorage():
        losses = model(recording.batch(with_objects=True))
    sum(losses.values()).backward()
    return model, losses, proposals


def same_rows(actual, expected):
    """Whether the rows of two tables are the same within ``SAME``, in whatever order."""
    if len(actual) != len(expected):
        return False
    near = torch.cdist(actual.double(), expected.double(), p=torch.inf) < SAME
    return bool(near.any(0).all() and near.any(1).all())


def test_losses(recording, trained):
    _, losses, _ = trained
    expected = {}
    for name, value in recording.group("loss/").items():
        stage, _, base = name.rpartition(".")
        suffix = f"_stage{stage[1:]}" if stage else ""
        expected[OUR_NAME.get(base, base) + suffix] = float(value)
    actual = {name: float(value) for name, value in losses.items()}
    assert actual == pytest.approx(expected, rel=LOSS_TOLERANCE)


def test_gradients(recording, trained):
    model, _, _ = trained
    gradients = {n: p.grad.flatten() for n, p in model.named_parameters() if p.grad is not None}
    expected = recording.group("grad/")
    official = official_names(model.state_dict().keys())
    assert {official[name] for name in gradients} == set(expected)
    sample = json.loads(str(recording.data["meta"]))["grad_sample"]
    floor = GRADIENT_FLOOR * recording.data["grad_norms"].max()
    for name, gradient in gradients.items():
        values = expected[official[name]]
        sampled = gradient[:: -(-len(gradient) // sample)]
        error = (sampled - values).norm() / values.norm().clamp(min=floor)
        is_last = name.split(".")[-2] in LAST_LAYERS
        assert error <= (LAST_LAYERS_TOLERANCE if is_last else GRADIENT_TOLERANCE), name


def test_statistics(recording, trained):
    model, _, _ = trained
    after = recording.group("after/")
    if not after:
        pytest.skip("the statistics of its norms are frozen")
    state, official = model.state_dict(), official_names(model.state_dict().keys())
    learnt = {official[name]: value for name, value in state.items() if official[name] in after}
    assert set(learnt) == set(after)
    for name, value in learnt.items():
        torch.testing.assert_close(value, after[name], atol=1e-5, rtol=1e-4)


def test_proposals(recording, trained):
    model, _, proposals = trained
    if not hasattr(model, "proposal_generator"):
        pytest.skip("a dense detector has no proposals")
    assert len(proposals) == 2
    for i, found in enumerate(proposals):
        scores = found.objectness_logits.sigmoid()[:, None]
        rows = torch.cat([found.proposal_boxes.tensor, scores], dim=1)
        assert same_rows(rows, torch.from_numpy(recording.data[f"proposals_train/{i}"]))


@pytest.mark.parametrize("number", [0, 1])
def test_detections(recording, number):
    threshold = json.loads(str(recording.data["meta"]))["thresholds"][number]
    cfg = recording.cfg.clone()
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = threshold
    model = build_model(cfg).eval()
    model.load_state_dict(recording.state)
    batch = recording.batch(with_objects=False)
    with torch.no_grad():
        if hasattr(model, "roi_heads"):
            found = model.inference(batch, do_postprocess=False)
        else:
            images = model.preprocess_image(batch)
            features = model.backbone(images.tensor)
            levels = [features[name] for name in model.head_in_features]
            found = model.forward_inference(images, levels, model.head(levels))
    for i, mine in enumerate(found):
        boxes = torch.from_numpy(recording.data[f"det{number}/boxes/{i}"])
        classes = torch.from_numpy(recording.data[f"det{number}/classes/{i}"])
        # The official dense heads keep boxes without area, which voting turns into NaN.
        full = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        assert full.any()
        mine = mine[mine.pred_boxes.nonempty()]
        expected = as_rows(boxes[full, :4], boxes[full, 4], classes[full])
        actual = as_rows(mine.pred_boxes.tensor, mine.scores, mine.pred_classes)
        assert same_rows(actual, expected)
        if mine.has("pred_masks") and number == 1:
            probabilities = torch.from_numpy(recording.data[f"det1/maskprob/{i}"])
            first = expected[: len(probabilities)]
            rows = torch.cdist(actual, first, p=torch.inf).argmin(0)
            masks = mine.pred_masks
            masks = masks.tensor if isinstance(masks, ROIMasks) else masks[:, 0]
            torch.testing.assert_close(masks[rows], probabilities, atol=1e-4, rtol=0)


def as_rows(boxes, scores, classes):
    """Boxes, scores and classes in one table whose differences count in the same way."""
    return torch.cat([boxes, 100 * scores[:, None], 1000.0 * classes[:, None]], dim=1)
