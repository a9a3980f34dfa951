"""The only file that creates configuration keys.

Where Detectron2 already has a key with the same meaning it is reused, not doubled:
``MODEL.RPN.LOSS_WEIGHT`` is the constant 0.20 on all three RPN terms, ``*.BBOX_REG_WEIGHTS`` are
the inverse standard deviations of the box deltas, ``MODEL.ROI_HEADS.SCORE_THRESH_TEST`` is the
pre-NMS threshold and ``TEST.DETECTIONS_PER_IMAGE`` the cap after NMS. ATSS, PAA and SOLOv2 read
``MODEL.RETINANET`` for what they share with RetinaNet: classes, features, number of convolutions,
norm, prior, box weights, focal loss, thresholds of the test.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rs_d2.criterion.balancing import BALANCERS
from rs_d2.criterion.labels import LABELS
from rs_d2.criterion.negatives import NEGATIVES
from rs_d2.criterion.ranking import RANKINGS
from rs_d2.criterion.tasks import BOX_LOSSES, MASK_LOSSES
from rs_d2.criterion.weights import WEIGHTS
from rs_d2.ops.matrix_nms import DECAYS

# Allowed values of every key that names one of several; where they come from a registry, an entry
# that somebody adds to it is allowed at once. ``check_choices`` enforces them; None stands for the
# choice that the loss itself makes.
CHOICES: dict[str, Collection[str | None]] = {
    "MODEL.RPN.SAMPLER": ("none", "random"),
    "MODEL.ROI_HEADS.SAMPLER": ("none", "random"),
    "MODEL.ROI_MASK_HEAD.CRITERION.LOSS": MASK_LOSSES,
    "MODEL.ROI_MASK_HEAD.CRITERION.WEIGHTS": ("box_head", "none"),
    "MODEL.ROI_MASK_HEAD.CRITERION.BALANCE": BALANCERS,
    "INPUT.AUGMENTATION": ("detectron2", "ssd"),
    "MODEL.DENSE_HEAD.MASK_LOSS": MASK_LOSSES,
    "MODEL.YOLACT.NMS": ("fast", "exact"),
    "MODEL.SOLO.NMS_KERNEL": DECAYS,
    "DATALOADER.ON_BAD_IMAGE": ("skip", "error"),
    "DATALOADER.REPEAT_ROUNDING": ("ceil", "stochastic"),
    "SOLVER.OPTIMIZER": ("sgd", "adamw"),
    "SOLVER.ON_NONFINITE": ("error", "skip"),
    "TEST.EVALUATOR_ENGINE": ("auto", "hotcoco", "reference"),
}
for _head in ("RPN", "ROI_BOX_HEAD", "DENSE_HEAD"):
    CHOICES |= {
        f"MODEL.{_head}.CRITERION.LOSS": RANKINGS,
        f"MODEL.{_head}.CRITERION.LABELS": LABELS,
        f"MODEL.{_head}.CRITERION.WEIGHTS": WEIGHTS,
        f"MODEL.{_head}.CRITERION.BOX_LOSS": BOX_LOSSES,
        f"MODEL.{_head}.CRITERION.BALANCE": BALANCERS,
    }
for _head in ("ROI_BOX_HEAD", "DENSE_HEAD"):
    CHOICES[f"MODEL.{_head}.CRITERION.NEGATIVES"] = NEGATIVES
# Keys that may be None.
OPEN_KEYS = frozenset(key for key in CHOICES if key.endswith(".BALANCE") and "MASK" not in key)


def add_rs_config(cfg: Any) -> None:
    """Add the keys of rs_d2 to a Detectron2 config, with the published values as defaults.

    Args:
        cfg: a ``detectron2.config.CfgNode`` made by ``get_cfg()``; changed in place.
    """
    node = type(cfg)
    cfg.MODEL.RPN.CRITERION = _detection_criterion(node)
    cfg.MODEL.ROI_BOX_HEAD.CRITERION = _class_criterion(node)
    cfg.MODEL.ROI_MASK_HEAD.CRITERION = _mask_criterion(node)
    cfg.MODEL.DENSE_HEAD = _dense_head(node)
    cfg.MODEL.YOLACT = _yolact(node)
    cfg.MODEL.SOLO = _solo(node)
    _add_anchor_keys(cfg)
    _add_assignment_keys(cfg)
    _add_training_keys(cfg)


def _detection_criterion(node: type) -> Any:
    """The node shared by every head that scores boxes."""
    criterion = node()
    # rank_sort: Rank & Sort Loss over class-wise sigmoid logits, no background column. ap, alrp:
    # the rankings it is compared with; alrp brings a box term of its own. cross_entropy:
    # Detectron2's baseline (softmax with a background column in the box head, a sigmoid in the
    # RPN). sigmoid_cross_entropy: class-wise. focal: in dense heads with a branch that predicts
    # centerness (ATSS) or IoU (PAA). ohem_cross_entropy: a softmax over the positives and three
    # hard negatives for each. The last four ignore LABELS, WEIGHTS and BALANCE.
    criterion.LOSS = "rank_sort"
    # Half width of the ramp that smooths the step function, in logits ("delta_RS" in the paper,
    # which found 0.50 best of 0.25 to 1.0). 0 is the hard step. None: what the loss was published
    # with, 0.5 for rank_sort, 1.0 for ap and alrp.
    criterion.DELTA = None
    # Label of a positive, in (0, 1], detached. iou: IoU of its decoded box with its ground truth.
    # dice: Dice coefficient of its mask, where the head predicts one. iou_dice: their mean. binary:
    # 1, which leaves nothing to sort. Only rank_sort reads this key.
    criterion.LABELS = "iou"
    # Weight w_i of a positive in the box loss sum(w_i L_i) / sum(w_i). score: its largest class
    # score; iou: IoU of its decoded box; centerness: of its anchor; ranking: its share in how all
    # positives are ranked, as in aLRP Loss; none: 1. All detached.
    criterion.WEIGHTS = "score"
    # Half width of the ramps of WEIGHTS ranking (published: 1.5 best of 0 to 2). None: a hard step,
    # and DELTA in the ranks.
    criterion.DELTA_LOC = None
    # Loss L_i of a positive's decoded box. giou: 1 - GIoU, in [0, 2]; iou: 1 - IoU, in [0, 1].
    # smooth_l1: of the raw deltas, summed over the four.
    criterion.BOX_LOSS = "giou"
    # Task balance of the box loss. value: times (ranking + sorting) / box loss, detached, so that
    # both tasks have equal value. magnitude: so that the gradients in the logits and in the box
    # outputs have equal L1 norms. constant: times a constant (MODEL.RPN.BBOX_REG_LOSS_WEIGHT,
    # MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT, MODEL.DENSE_HEAD.BOX_LOSS_WEIGHT). epoch: times a
    # factor from the means over an epoch, aLRP's. None: what the loss was published with, epoch for
    # alrp, else value.
    criterion.BALANCE = None
    # Iterations of an epoch for the balance of that name. 0: an epoch of the training set.
    criterion.BALANCE_PERIOD = 0
    # One ranking over the candidates of all processes, equal to that of one process with the whole
    # batch, by exchanging a few kilobytes. False: each process ranks its own, as published.
    criterion.GLOBAL = False
    return criterion


def _class_criterion(node: type) -> Any:
    """The node of a head that tells classes apart, which an RPN does not."""
    criterion = _detection_criterion(node)
    # Classes that a candidate may be a negative of, where a data set such as LVIS says for which
    # classes an image was searched. all: of every class but its own, as published. verified: of
    # those whose objects in the image are all annotated: (annotated + neg_category_ids) -
    # not_exhaustive_category_ids; needs a data set with these lists. sampled: the federated loss
    # of CenterNet2, of the batch's own classes and of others drawn by the square root of their
    # number of training images. The pairs left out are ignored by every LOSS. An RPN has no such
    # key: nearly every image has unverified classes, so every background anchor may be an object.
    criterion.NEGATIVES = "all"
    # Classes that NEGATIVES sampled keeps in each iteration, the batch's own among them.
    criterion.NEGATIVES_NUM_CLASSES = 50
    return criterion


def _mask_criterion(node: type) -> Any:
    """The mask head's node: its labels and scores come from the box head."""
    criterion = node()
    # dice: 1 - 2 sum(p t) / (sum(p^2) + sum(t^2)) per positive; cross_entropy: mean binary
    # cross-entropy of its pixels.
    criterion.LOSS = "dice"
    # box_head: the box head's instance weights w_i, same normalisation; none: plain mean.
    criterion.WEIGHTS = "box_head"
    # value: scaled to the box head's ranking + sorting; constant: unchanged; the others as in the
    # box head, magnitude with the masks' logits as the outputs.
    criterion.BALANCE = "value"
    criterion.BALANCE_PERIOD = 0
    return criterion


def _dense_head(node: type) -> Any:
    """What dense detectors do not share with RetinaNet."""
    head = node()
    head.CRITERION = _class_criterion(node)
    # Anchors that an object takes as candidates from each level ("k" in both papers).
    head.ASSIGN_TOPK = 9
    # PAA: anchors of at least this IoU with an object, in (0, 1], are its candidates.
    head.CANDIDATE_MIN_IOU = 0.1
    # Weight of the box loss with focal loss (published: ATSS 2.0, PAA 1.3) and with
    # CRITERION.BALANCE constant.
    head.BOX_LOSS_WEIGHT = 1.0
    # PAA: weight of the box loss in the sum by which positives are separated from negatives. None:
    # BOX_LOSS_WEIGHT.
    head.SEPARATION_BOX_WEIGHT = None
    # Weight of the loss of the branch that focal loss brings (published: ATSS 1.0, PAA 0.5).
    head.QUALITY_LOSS_WEIGHT = 1.0
    # PAA: replace each detection's box by a mean of the boxes around it.
    head.SCORE_VOTING = True
    # Loss of a positive's mask, of detectors that predict masks; it is weighted and balanced as
    # the box loss is. dice: 1 minus the Dice coefficient; cross_entropy: mean binary cross-entropy
    # of its pixels, in YOLACT those inside its box.
    head.MASK_LOSS = "dice"
    # Weight of it in a baseline (published: YOLACT 6.125, SOLOv2 3.0) and with CRITERION.BALANCE
    # constant.
    head.MASK_LOSS_WEIGHT = 1.0
    return head


def _yolact(node: type) -> Any:
    """What only YOLACT has."""
    yolact = node()
    # Prototypes, and coefficients of each anchor.
    yolact.NUM_PROTOTYPES = 32
    # Suppression. fast: a box is dropped by any better one of its class, also by one that is
    # dropped itself, as published; exact: class-wise, as in the other detectors.
    yolact.NMS = "fast"
    # Regions of each class that fast suppression looks at, the best ones.
    yolact.NMS_TOPK = 200
    # In training, also predict the classes of pixels from the finest level, with a loss of weight
    # 1; published for the baseline, not with Rank & Sort Loss.
    yolact.SEMANTIC = False
    return yolact


def _solo(node: type) -> Any:
    """SOLOv2's own settings; it shares MODEL.RETINANET and MODEL.DENSE_HEAD with the others."""
    solo = node()
    # Rows and columns of the grid over each level of MODEL.RETINANET.IN_FEATURES.
    solo.GRIDS = [40, 36, 24, 16, 12]
    # Objects of each grid: least and largest square root of the box's area, in pixels.
    solo.SCALE_RANGES = [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]]
    # Side of the region around an object's centre of mass whose cells are positives, relative to
    # its box, in (0, 1] ("sigma" in the paper).
    solo.CENTER_SIZE = 0.2
    # Channels: of the convolutions on the grids; of the kernels, hence of the features that they
    # are applied to; of these features before the last convolution.
    solo.CONV_DIM = 512
    solo.KERNEL_DIM = 256
    solo.MASK_DIM = 128
    # How a score decays by the overlap with a better mask. gaussian: exp(-NMS_SIGMA IoU^2);
    # linear: 1 - IoU.
    solo.NMS_KERNEL = "gaussian"
    solo.NMS_SIGMA = 2.0
    # Detections score higher than this, after the decay. MODEL.RETINANET.SCORE_THRESH_TEST is for
    # the class scores of cells, before their masks are looked at.
    solo.DECAYED_SCORE_THRESH = 0.05
    return solo


def _add_anchor_keys(cfg: Any) -> None:
    # OctaveAnchorGenerator: anchors of each level have the sizes OCTAVE_BASE_SCALE * stride *
    # 2^(q / SCALES_PER_OCTAVE) pixels, q = 0 ... SCALES_PER_OCTAVE - 1. Only where SIZES is empty.
    cfg.MODEL.ANCHOR_GENERATOR.OCTAVE_BASE_SCALE = 4.0
    cfg.MODEL.ANCHOR_GENERATOR.SCALES_PER_OCTAVE = 3


def _add_assignment_keys(cfg: Any) -> None:
    # none: every anchor that is not ignored takes part. random: Detectron2's sampler of
    # MODEL.RPN.BATCH_SIZE_PER_IMAGE anchors, POSITIVE_FRACTION of them positive.
    cfg.MODEL.RPN.SAMPLER = "none"
    # A ground truth claims the anchors that overlap it most if their IoU is at least this, in
    # (0, 1]. Without a minimum a ground truth that no anchor touches would claim all of them.
    cfg.MODEL.RPN.LOW_QUALITY_MIN_IOU = 0.3
    # none: every proposal and every ground-truth box takes part. random: Detectron2's sampler of
    # MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE regions, POSITIVE_FRACTION of them positive.
    cfg.MODEL.ROI_HEADS.SAMPLER = "none"
    # The same claim in the box head, IoU in (0, 1]. 1.0 leaves exact copies of the ground truth
    # only, which are positive anyhow; the published Mask R-CNN uses 0.5.
    cfg.MODEL.ROI_HEADS.LOW_QUALITY_MIN_IOU = 1.0
    # Most positives the mask head trains on in one batch of one GPU, drawn at random: a bound on
    # memory.
    cfg.MODEL.ROI_MASK_HEAD.MAX_POSITIVES = 200


def _add_training_keys(cfg: Any) -> None:
    # Images per iteration over all GPUs that the solver's numbers are meant for (published: 4 GPUs
    # x 4 images). With another SOLVER.IMS_PER_BATCH the learning rate is scaled linearly and the
    # schedule keeps its number of epochs. 0: nothing is scaled.
    cfg.SOLVER.REFERENCE_IMS_PER_BATCH = 0
    # sgd: Detectron2's; adamw: torch's AdamW with the same per-parameter settings. With both,
    # Detectron2's SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be full_model: the norm of all gradients
    # together is clipped to CLIP_VALUE.
    cfg.SOLVER.OPTIMIZER = "sgd"
    # How training images are augmented before the flip of RANDOM_FLIP. detectron2: resized by their
    # short side, and cropped where CROP says so. ssd: SSD's way, for long schedules: distorted
    # colours, a random window of the image on a canvas of MODEL.PIXEL_MEAN, resized to a square of
    # MIN_SIZE_TRAIN (one number); objects whose centre lies outside of the window are left out.
    cfg.INPUT.AUGMENTATION = "detectron2"
    # Images become squares of MIN_SIZE_TRAIN and MIN_SIZE_TEST pixels, whatever their proportions.
    cfg.INPUT.SQUARE = False
    # Objects of fewer pixels in width or height, in the image as stored, are left out of training
    # (published: 4 for YOLACT).
    cfg.INPUT.MIN_OBJECT_SIZE = 0.0
    # What to do in training with an image that cannot be read, or is of another size than stated.
    # skip: tell it in the log, with a count, and take another one at random; 100 in a row end the
    # training. error: end the training. In evaluation it is an error either way.
    cfg.DATALOADER.ON_BAD_IMAGE = "skip"
    # A loss or gradient that is not finite. error: stop, name its images and the module it comes
    # from, and leave the batch in OUTPUT_DIR/nonfinite_*.pth. skip: do without that iteration and
    # count it, until more than NONFINITE_LIMIT in a row had to be skipped.
    cfg.SOLVER.ON_NONFINITE = "error"
    cfg.SOLVER.NONFINITE_LIMIT = 10
    # How RepeatFactorTrainingSampler makes an image's repeat factor whole. ceil: rounded up, as
    # published; stochastic: up with the probability of its fraction, Detectron2's way.
    cfg.DATALOADER.REPEAT_ROUNDING = "ceil"
    # Images of the first test set drawn with predictions beside ground truth after training and
    # by --eval-only, into OUTPUT_DIR/predictions. 0: none.
    cfg.TEST.DRAW_IMAGES = 8
    # Keep the checkpoint of the evaluation (every TEST.EVAL_PERIOD iterations) with the best value
    # of this metric as model_best.pth: "segm/AP", "bbox/oLRP" (least is best) and so on. "": none.
    cfg.TEST.BEST_METRIC = ""
    # What computes the average precision. hotcoco: the package of that name; reference:
    # pycocotools or lvis, equal to 1e-9 and some 50 times slower; auto: hotcoco where installed.
    cfg.TEST.EVALUATOR_ENGINE = "auto"
    # Write report.html and a table of all classes beside the detections of every evaluation.
    cfg.TEST.REPORT = True
    # Also evaluate without a cap per image, the best 10,000 detections of each class: AP_fixed and
    # so on. The model must not cap either: raise TEST.DETECTIONS_PER_IMAGE.
    cfg.TEST.FIXED_AP = False
