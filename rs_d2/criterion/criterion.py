"""The one place that turns a head's candidates into losses; every head calls it.

Shapes: ``P`` positives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rs_d2.criterion.balancing import Balancer, Gradients
from rs_d2.criterion.candidates import Candidates
from rs_d2.criterion.labels import Label
from rs_d2.criterion.negatives import AllNegatives, Negatives
from rs_d2.criterion.ranking import Ranking
from rs_d2.criterion.tasks import Task
from rs_d2.criterion.weights import Weight
from rs_d2.losses import across_processes
from rs_d2.losses.kernel.processes import are_joined, gather_rows


@dataclass(frozen=True)
class LossOutput:
    """What a criterion returns.

    Attributes:
        losses: scalars by term ("rank", "sort", "cls", "box", ...), each attached to the graph;
            their sum is the head's loss. ``rs_d2.criterion.names`` gives them their final names.
        weights: [P], detached weights of the positives; a mask head uses them again.
        reference: scalar, detached: the value that other tasks are balanced to.
        ranking: scalar with its graph, the sum of the terms of the ranking itself.
        candidates: the record that all of it was computed from.
        has_positives: whether there is any, in whatever process shares the ranking.
        is_global: whether the ranking ran over the candidates of all processes.
    """

    losses: dict[str, Tensor]
    weights: Tensor
    reference: Tensor
    ranking: Tensor
    candidates: Candidates
    has_positives: bool
    is_global: bool = False

    def balance(self, balancer: Balancer, loss: Tensor, outputs: Tensor | None) -> Tensor:
        """A task's loss balanced to this ranking; without positives it is a zero and stays so.

        Args:
            balancer: scales it.
            loss: scalar, the task's mean over the positives.
            outputs: the raw outputs behind it, for balancers that ask for gradients.
        """
        if not self.has_positives:
            return loss
        gradients = Gradients(self.ranking, self.candidates.logits, outputs)
        with across_processes(self.is_global):
            return balancer(loss, self.reference, gradients)


class Criterion(nn.Module):
    """A ranking of all candidates, and tasks of the positives that are balanced to it.

    Nothing is sampled. ``task = balance(sum_i w_i L_i / sum_i w_i)`` over the positives.

    Args:
        ranking: the loss of the logits.
        label: quality of each positive, which a ranking may sort by.
        weight: weight of each positive in the tasks.
        tasks: by the name of their term, such as "box".
        negatives: of which classes a candidate may be a negative; without it, of all but its own.
        is_global: rank and average over the candidates of all processes, as if they were one batch;
            every process must then call the criterion. Losses have the whole batch's value, and
            gradients that ``DistributedDataParallel`` averages to the whole batch's.
    """

    def __init__(
        self,
        *,
        ranking: Ranking,
        label: Label,
        weight: Weight,
        tasks: Mapping[str, Task],
        negatives: Negatives | None = None,
        is_global: bool = False,
    ) -> None:
        super().__init__()
        self.ranking = ranking
        self.label = label
        self.weight = weight
        self.tasks = nn.ModuleDict(tasks)
        self.negatives = negatives or AllNegatives(num_classes=ranking.num_classes)
        self.is_global = is_global

    @property
    def num_classes(self) -> int:
        """K."""
        return self.ranking.num_classes

    @property
    def num_columns(self) -> int:
        """Columns of the logits: K, or K + 1 with one for the background."""
        return self.ranking.num_columns

    def forward(self, candidates: Candidates) -> LossOutput:
        """The losses of one batch; all are zeros attached to the graph where P = 0."""
        with across_processes(self.is_global):
            return self._losses(candidates)

    def _losses(self, candidates: Candidates) -> LossOutput:
        candidates = self.negatives(candidates)
        quality = self.label(candidates) if self.ranking.uses_quality else None
        ranked = self.ranking(candidates, quality)
        ranking = torch.stack([*ranked.terms.values()]).sum()
        weights = self.weight(candidates)
        output = LossOutput(
            losses=dict(ranked.terms),
            weights=weights,
            reference=ranked.reference,
            ranking=ranking,
            candidates=candidates,
            has_positives=count_positives(candidates) > 0,
            is_global=self.is_global,
        )
        for name, task in self.tasks.items():
            loss = ranked.tasks.get(name)
            if loss is None:
                loss = task.mean(candidates, weights, ranked.divisor)
            outputs = getattr(candidates, task.outputs) if task.outputs else None
            output.losses[name] = output.balance(task.balancer, loss, outputs)
        return output


def count_positives(candidates: Candidates) -> int:
    """P, of all processes that share the ranking."""
    count = len(candidates.positives)
    if not are_joined():
        return count
    return int(sum(row[0] for row in gather_rows([count], candidates.logits.device)))
