"""Losses as typed functions of tensors; nothing here knows Detectron2."""

from rs_d2.losses.alrp import ALRPLoss, alrp_loss
from rs_d2.losses.ap import average_precision_loss
from rs_d2.losses.kernel.processes import across_processes
from rs_d2.losses.rank_sort import RankSortLoss, rank_sort_loss
from rs_d2.losses.ranking_weights import ranking_weights

__all__ = [
    "ALRPLoss",
    "RankSortLoss",
    "across_processes",
    "alrp_loss",
    "average_precision_loss",
    "rank_sort_loss",
    "ranking_weights",
]
