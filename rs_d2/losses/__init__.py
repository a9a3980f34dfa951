"""Losses as typed functions of tensors; nothing here knows Detectron2."""

from rs_d2.losses.rank_sort import RankSortLoss, rank_sort_loss

__all__ = ["RankSortLoss", "rank_sort_loss"]
