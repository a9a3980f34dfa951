"""Anchors and objects of every kind for the assigners."""

import torch

ANCHOR_COUNTS = [1, 3]
LEVELS = [(12, 16, 8), (6, 8, 16), (3, 4, 32), (2, 2, 64), (1, 1, 128)]  # H, W, stride
IMAGE = (96.0, 128.0)


def grid(height, width, stride, per_cell):
    """Anchors as a Detectron2 generator makes them, centred on the corners of the cells."""
    ratios = torch.tensor([1.0, 0.5, 2.0])[:per_cell]
    sides = torch.stack([ratios.rsqrt(), ratios.sqrt()], dim=1) * stride * 4
    base = torch.cat([-sides, sides], dim=1) / 2
    x, y = torch.arange(width) * float(stride), torch.arange(height) * float(stride)
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, x, y], dim=-1)[:, :, None] + base


def pyramid(per_cell, levels=LEVELS):
    return [grid(*level, per_cell) for level in levels]


def boxes(center, side):
    return torch.cat([center - side / 2, center + side / 2], dim=1)


def scenes():
    """Ground truths by name."""
    generator = torch.Generator().manual_seed(0)

    def uniform(number):
        return torch.rand(number, 2, generator=generator)

    area = torch.tensor([IMAGE[1], IMAGE[0]])
    some = boxes(uniform(12) * area, uniform(12) * 60 + 8)
    return {
        "some": some,
        "crowd": boxes(30 + uniform(60) * 20, uniform(60) * 30 + 10),
        "tiny": boxes(uniform(20) * area, uniform(20) * 3 + 0.1),
        "one pixel": boxes((uniform(20) * area).round() + 0.5, torch.ones(20, 2)),
        "half a pixel around a centre": boxes((uniform(9) * 11).round() * 8, torch.ones(9, 2) / 2),
        "on the grid": boxes((uniform(30) * 11).round() * 8, (uniform(30) * 6).round() * 8 + 8),
        "between the cells": boxes((uniform(30) * 11).round() * 8 + 4, torch.full((30, 2), 32.0)),
        "as the anchors": pyramid(3)[1].reshape(-1, 4)[::7],
        "none": torch.zeros(0, 4),
        "outside": boxes(uniform(9) * 50 + 300, uniform(9) * 40 + 1),
        "beyond the edge": boxes(uniform(9) * 20 - 20, uniform(9) * 90 + 1),
        "whole image": torch.tensor([[0.0, 0.0, IMAGE[1], IMAGE[0]]]),
        "duplicates": some[[0, 1, 1, 2, 0, 3, 3, 3]],
        "apart": boxes(
            torch.tensor([[20.0, 20.0], [90.0, 30.0], [50.0, 80.0]]), uniform(3) * 9 + 30
        ),
        "no area": boxes(uniform(5) * area, torch.zeros(5, 2)),
    }


SCENES = scenes()
