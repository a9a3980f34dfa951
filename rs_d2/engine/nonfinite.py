"""A loss or gradient that is no finite number, and where it comes from."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rs_d2.checkpoint.files import write_checkpoint
from rs_d2.checkpoint.last import not_finite
from rs_d2.criterion.balancing import Balancer

_SHOWN_FILES = 8


class TrainingDiverged(FloatingPointError):
    """A number is no longer finite; one line says which, and which checkpoint is left."""


class NotFinite(Exception):
    """What is not finite in an iteration of this process; both empty if it is another's."""

    def __init__(self, losses: Mapping[str, float], gradient: str = "") -> None:
        super().__init__()
        self.losses, self.gradient = losses, gradient

    def __str__(self) -> str:
        parts = [f"{name} is {value}" for name, value in self.losses.items()]
        parts += [f"the gradient of {self.gradient} is not finite"] if self.gradient else []
        return ", ".join(parts)


def any_broken_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """Whether one is not finite, bool []; the host need not wait for it."""
    return ~torch.stack([loss.detach().float() for loss in losses.values()]).isfinite().all()


def broken_losses(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Those that are not finite, by name."""
    values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
    named = zip(losses, values, strict=True)
    return {name: value for name, value in named if value - value != 0}


def any_broken_gradient(model: nn.Module) -> Tensor:
    """Whether a gradient is not finite, bool []; the host need not wait for it."""
    gradients = [each.grad for each in model.parameters() if each.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.bool, device=next(model.parameters()).device)
    return ~torch.stack(torch._foreach_norm(gradients, float("inf"))).isfinite().all()


def broken_gradient(model: nn.Module) -> str:
    """The first parameter with a gradient that is not finite; empty if there is none."""
    return next(not_finite({name: each.grad for name, each in model.named_parameters()}), "")


def running_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers that training changes, each process its own: statistics of norms, balancers' sums."""
    for name, module in model.named_modules():
        if isinstance(module, (Balancer, _BatchNorm)):
            yield from module.named_buffers(name, recurse=False)


@dataclass
class Diagnosis:
    """Where a number that is not finite comes from.

    ``weight``: the first weight that was not finite before the iteration; ``module``: the first
    whose output is not; both empty if there is none. ``files``: the images of the batch.
    """

    weight: str
    module: str
    files: Sequence[str]

    def __str__(self) -> str:
        parts = []
        if self.weight:
            parts.append(f"the weight {self.weight} was not finite before")
        elif self.module:
            parts.append(f"the first output that is not finite is that of {self.module}")
        if self.files:
            more = len(self.files) - _SHOWN_FILES
            images = ", ".join(self.files[:_SHOWN_FILES]) + (f" and {more} more" * (more > 0))
            parts.append(f"images: {images}")
        return "; ".join(parts)


def diagnose(model: nn.Module, batch: Any) -> Diagnosis:
    """Run a batch once more and look at the output of every module.

    Args:
        model: in training, with the weights and the random numbers of the iteration; without the
            wrapper for several processes, all of which have to call this at once.
        batch: what it got.
    """
    weight = next(not_finite(dict(model.named_parameters())), "")
    return Diagnosis(weight, "" if weight else _first_module(model, batch), files_of(batch))


def write_diagnosis(
    path: Path, model: nn.Module, batch: Any, found: NotFinite, diagnosis: Diagnosis, iteration: int
) -> None:
    """Write the batch and a summary of the weights, in tensors and plain types, for torch.load."""
    weights = {}
    for name, value in model.state_dict().items():
        finite = value.detach().double().flatten()
        finite = finite[finite.isfinite()]
        weights[name] = {
            "shape": list(value.shape),
            "finite": finite.numel() == value.numel(),
            "min": float(finite.min()) if finite.numel() else None,
            "max": float(finite.max()) if finite.numel() else None,
            "norm": float(finite.norm()),
        }
    content = {
        "iteration": iteration,
        "losses": dict(found.losses),
        "gradient": found.gradient,
        "weight": diagnosis.weight,
        "module": diagnosis.module,
        "files": list(diagnosis.files),
        "batch": _plain(batch),
        "weights": weights,
    }
    write_checkpoint(content, path)


def _first_module(model: nn.Module, batch: Any) -> str:
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found and next(not_finite(_tensors(output)), None) is not None:
                found.append(name or type(model).__name__)

        return hook

    handles = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad():
            model(batch)
    except Exception as error:  # the first failure is what is to be told, not this one
        logging.getLogger(__name__).debug("the batch did not run once more: %s", error)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


def _tensors(output: Any) -> Any:
    """What ``not_finite`` can look into."""
    if isinstance(output, Instances):
        return {name: _tensors(value) for name, value in output.get_fields().items()}
    if isinstance(output, Boxes):
        return output.tensor
    if isinstance(output, Mapping):
        return {name: _tensors(value) for name, value in output.items()}
    if isinstance(output, (list, tuple)):
        return [_tensors(value) for value in output]
    return output


def files_of(batch: Any) -> list[str]:
    """Names of the images of a batch, as far as it tells them."""
    entries = batch if isinstance(batch, Sequence) else []
    return [
        str(each["file_name"])
        for each in entries
        if isinstance(each, Mapping) and "file_name" in each
    ]


def _plain(value: Any) -> Any:
    """Tensors and plain types, which torch.load reads without running code."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Instances):
        fields = {name: _plain(field) for name, field in value.get_fields().items()}
        return {"image_size": list(value.image_size), **fields}
    if isinstance(value, (Boxes, BitMasks)):
        return value.tensor.cpu()
    if isinstance(value, PolygonMasks):
        return [[torch.as_tensor(ring) for ring in rings] for rings in value.polygons]
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else repr(value)
