"""Load a checkpoint into a model, with one clear line when a file is not usable."""

from __future__ import annotations

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import nn

from rs_d2.checkpoint.files import read_checkpoint, read_pickle
from rs_d2.checkpoint.last import not_finite, resumable_checkpoint
from rs_d2.checkpoint.torchvision import torchvision_resnet
from rs_d2.utils.errors import UserError


class RSCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer; a file that cannot be used is a ``UserError`` that names it.

    Heads of another class count are skipped with Detectron2's warning, so that weights of one data
    set can start the training on another.
    """

    # what the last load could not set: name -> its shape in the file, None if it is not there
    unset: dict[str, tuple[int, ...] | None] = {}  # noqa: RUF012
    _content: dict[str, Any] | None = None

    def load(
        self, path: str, *args: Any, content: dict[str, Any] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Load a checkpoint from a path or address; an empty one does not change the model.

        Args:
            path: of the file.
            args: further arguments of Detectron2's method.
            content: what ``read_checkpoint`` gave for that file, which is not read again then.
            kwargs: see ``args``.

        Raises:
            UserError: The file is absent, not a checkpoint, shares no tensor with the model, or has
                weights that are not finite.
        """
        self._content = content
        try:
            return super().load(path, *args, **kwargs)
        except (OSError, AssertionError) as error:  # the second if a file is not there
            advice = "; fetch it elsewhere and give its path" if "://" in path else ""
            raise UserError(f"MODEL.WEIGHTS: {path} cannot be read ({error}){advice}") from error

    def _load_file(self, filename: str) -> dict[str, Any]:
        # Not Detectron2's method, which executes what a pickle asks for.
        try:
            loaded = _read(filename) if self._content is None else self._content
            loaded = {"model": loaded, **loaded}  # a copy, since loading takes entries out
            names = set(loaded["model"])
            resnet = torchvision_resnet(loaded["model"])
        except UserError as error:
            raise UserError(f"MODEL.WEIGHTS: {error}") from error
        except (TypeError, AttributeError, KeyError) as error:  # no mapping of names
            raise _not_a_checkpoint(filename, type(error).__name__) from error
        if not all(isinstance(name, str) for name in names):
            raise _not_a_checkpoint(filename, "no named tensors")
        self._filename = filename
        if resnet is not None:
            return {"model": resnet, "matching_heuristics": True}
        return loaded

    def _load_model(self, checkpoint: Any) -> Any:
        try:
            incompatible = super()._load_model(checkpoint)
        except (AttributeError, ValueError) as error:  # entries that are no tensors
            raise _not_a_checkpoint(self._filename, type(error).__name__) from error
        parameters = [name for name, _ in self.model.named_parameters()]
        self.unset = {name: None for name in parameters if name in incompatible.missing_keys}
        self.unset.update((name, tuple(old)) for name, old, _ in incompatible.incorrect_shapes)
        if set(parameters).issubset(self.unset):
            raise UserError(
                f"MODEL.WEIGHTS: no tensor of {self._filename} fits this model; is it a checkpoint"
                " of another config?"
            )
        for name in not_finite(self.model.state_dict()):
            raise UserError(
                f"MODEL.WEIGHTS: {self._filename} has a NaN or an infinite value in {name}: these"
                " weights are broken"
            )
        return incompatible


def training_classes(cfg: CfgNode) -> tuple[str, ...]:
    """Class names of the first training set, if it is registered here; else empty."""
    if not cfg.DATASETS.TRAIN:
        return ()
    return tuple(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).get("thing_classes", ()))


def load_for_evaluation(
    cfg: CfgNode, model: nn.Module, *, resume: bool = False, content: dict[str, Any] | None = None
) -> None:
    """Load the weights to evaluate into ``model``, in place.

    Args:
        cfg: config; its ``MODEL.WEIGHTS`` are loaded.
        model: of the config.
        resume: load the last checkpoint of the output folder instead, if there is one.
        content: what ``read_checkpoint`` gave for ``MODEL.WEIGHTS``, if it has been read.

    Raises:
        UserError: The file does not fit: evaluating a head left at random would mislead.
    """
    checkpointer = RSCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    found = resumable_checkpoint(cfg.OUTPUT_DIR) if resume else None
    if found is not None:
        for problem in found.problems:
            checkpointer.logger.warning(f"--resume: {problem}; taking {found.path.name}")
        checkpointer.load(str(found.path), content=found.content)
    else:
        checkpointer.load(cfg.MODEL.WEIGHTS, content=content)
    for name, shape in checkpointer.unset.items():
        stored = "not in the file" if shape is None else f"{shape} in the file"
        wanted = tuple(model.state_dict()[name].shape)
        raise UserError(
            f"MODEL.WEIGHTS: {name} is {stored} but {wanted} in this model; was it trained with"
            " other classes or another config?"
        )


def _read(filename: str) -> dict[str, Any]:
    """The forms that Detectron2 knows: its own, and those of Caffe2 and pycls, to be renamed."""
    if filename.endswith(".pkl"):
        content = read_pickle(filename)
        if "model" in content and "__author__" in content:
            return content
        author, state, unused = "Caffe2", content.get("blobs", content), "_momentum"
    else:
        content = read_checkpoint(filename)
        if not filename.endswith(".pyth"):
            return content
        author, state, unused = "pycls", content["model_state"], "num_batches_tracked"
    state = {name: value for name, value in state.items() if not name.endswith(unused)}
    return {"model": state, "__author__": author, "matching_heuristics": True}


def _not_a_checkpoint(filename: str, reason: str) -> UserError:
    return UserError(f"MODEL.WEIGHTS: {filename} is not a checkpoint ({reason})")
