"""Ratios of negatives to positives."""

import math

import pytest

from rs_d2.criterion.imbalance import ImbalanceMeter


def test_published_task_ratios_follow_from_the_instances():
    """COCO without samplers: 70.5 of some 1007 regions an image are positive, 1:1142 in tasks."""
    meter = ImbalanceMeter({"rpn": 1, "rcnn": 80})
    meter.update("rpn", 40, 267_040)
    meter.update("rcnn", 70.5, 936.5)
    ratios = meter.ratios()
    assert list(ratios) == ["rpn_instances", "rcnn_instances", "rpn_tasks", "rcnn_tasks"]
    assert ratios["rpn_instances"] == ratios["rpn_tasks"] == pytest.approx(6676)
    assert ratios["rcnn_instances"] == pytest.approx(936.5 / 70.5)
    assert ratios["rcnn_tasks"] == pytest.approx(1142, abs=1)


def test_a_softmax_is_one_task_per_region():
    meter = ImbalanceMeter({"rpn": 1, "rcnn": 1})
    meter.update("rcnn", 100, 300)
    assert meter.ratios()["rcnn_tasks"] == meter.ratios()["rcnn_instances"] == 3


def test_iterations_are_summed_before_the_division():
    meter = ImbalanceMeter({"rpn": 1, "rcnn": 2})
    meter.update("rpn", 0, 50)
    meter.update("rpn", 10, 50)
    assert meter.ratios()["rpn_instances"] == 10
    meter.reset()
    assert all(math.isnan(value) for value in meter.ratios().values())


def test_a_dense_detector_is_one_stage():
    meter = ImbalanceMeter({"dense": 30})
    meter.update("dense", 10, 990)
    assert meter.ratios() == pytest.approx({"dense_instances": 99, "dense_tasks": 2999})
