"""From what a head predicts to its losses: labels, weights, rankings, task balance."""

from rs_d2.criterion.balancing import BALANCERS, Balancer
from rs_d2.criterion.candidates import Candidates, find_positives
from rs_d2.criterion.criterion import Criterion, LossOutput
from rs_d2.criterion.labels import LABELS
from rs_d2.criterion.negatives import NEGATIVES, Negatives, set_image_counts
from rs_d2.criterion.ranking import RANKINGS, Ranked, Ranking
from rs_d2.criterion.tasks import BOX_LOSSES, MASK_LOSSES, Task
from rs_d2.criterion.weights import WEIGHTS

__all__ = [
    "BALANCERS",
    "BOX_LOSSES",
    "Balancer",
    "Candidates",
    "Criterion",
    "LABELS",
    "LossOutput",
    "MASK_LOSSES",
    "NEGATIVES",
    "Negatives",
    "RANKINGS",
    "Ranked",
    "Ranking",
    "Task",
    "WEIGHTS",
    "find_positives",
    "set_image_counts",
]
