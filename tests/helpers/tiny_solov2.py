"""The smallest SOLOv2: ResNet-18, five levels of 32 channels, one convolution in each tower."""

from itertools import chain

from detectron2.modeling import build_model

from rs_d2.config.load import find_config, load_config

TINY = """
    MODEL.DEVICE cpu
    MODEL.WEIGHTS
    MODEL.BACKBONE.FREEZE_AT 0
    MODEL.RESNETS.DEPTH 18
    MODEL.RESNETS.STEM_OUT_CHANNELS 8
    MODEL.FPN.OUT_CHANNELS 32
    MODEL.RETINANET.NUM_CLASSES 5
    MODEL.RETINANET.NUM_CONVS 1
    MODEL.SOLO.GRIDS [10,8,6,4,3]
    MODEL.SOLO.SCALE_RANGES [[1,24],[12,48],[24,96],[48,192],[96,512]]
    MODEL.SOLO.CONV_DIM 32
    MODEL.SOLO.KERNEL_DIM 32
    MODEL.SOLO.MASK_DIM 32
"""
CONFIG = "COCO-InstanceSegmentation/{}solov2_light_R_34_FPN_3x.yaml"


def tiny_solov2_config(*pairs, baseline=False):
    """Its config; more keys and values come last."""
    tiny = [(line.split() + [""])[:2] for line in TINY.strip().splitlines()]
    name = CONFIG.format("" if baseline else "rs_")
    return load_config(find_config(name), [*chain(*tiny), *chain(*pairs)])[0]


def tiny_solov2(*pairs, baseline=False):
    """The model of :func:`tiny_solov2_config`."""
    return build_model(tiny_solov2_config(*pairs, baseline=baseline))
