"""Writers of the three formats."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.onnx.errors import OnnxExporterError

from rs_d2.checkpoint.files import write_checkpoint
from rs_d2.checkpoint.metadata import ENTRY as CHECKPOINT_ENTRY
from rs_d2.checkpoint.metadata import CheckpointMetadata, portable_config
from rs_d2.checkpoint.revision import code_revision
from rs_d2.export.about import ENTRY, about_model
from rs_d2.export.graph import ExportableDetector, traceable
from rs_d2.utils.atomic_write import atomic_write
from rs_d2.utils.errors import UserError

_OPSET = 19  # the first with deformable convolution
_REFUSED = "Could not export"  # TorchScript's word for what it has no form for


def export_model(
    model: nn.Module,
    cfg: CfgNode,
    image: Tensor,
    path: str | Path,
    kind: str,
    class_names: Sequence[str] = (),
) -> None:
    """Write a trained detector to a file that :func:`rs_d2.export.load` reads.

    Args:
        model: in evaluation mode, on the CPU.
        cfg: its config; thresholds and sizes are fixed in the file.
        image: float32 [3, H, W] in [0, 255], resized as for a test; the graph takes other sizes.
        path: of the file.
        kind: "torchscript", "onnx" or "torch" (weights, config and class names in one file).
        class_names: in the order of the classes.

    Raises:
        UserError: The model cannot be exported, a package is missing, or the file not be written.
    """
    FORMATS[kind](model, cfg, image, Path(path), class_names)


def _write_torchscript(
    model: nn.Module, cfg: CfgNode, image: Tensor, path: Path, class_names: Sequence[str]
) -> None:
    graph = ExportableDetector(model)
    with traceable(model), _tracing():
        traced = torch.jit.trace(graph, (image,), check_trace=False)
        about = about_model(cfg, graph, class_names, code_revision())
        content = io.BytesIO()
        torch.jit.save(traced, content, _extra_files={ENTRY: about.to_text()})
    with atomic_write(path) as file:
        file.write(content.getvalue())


def _write_onnx(
    model: nn.Module, cfg: CfgNode, image: Tensor, path: Path, class_names: Sequence[str]
) -> None:
    try:
        import onnx
    except ImportError as error:
        raise UserError("onnx is not installed: pip install onnx onnxruntime") from error
    graph = ExportableDetector(model)
    content = io.BytesIO()
    axes = {name: {0: "detections"} for name in graph.outputs}
    with traceable(model), _tracing():
        torch.onnx.export(
            graph,
            (image,),
            content,
            dynamo=False,  # the other exporter stops at Detectron2's branches on data
            opset_version=_OPSET,
            input_names=["image"],
            output_names=list(graph.outputs),
            dynamic_axes={"image": {1: "height", 2: "width"}, **axes},
        )
    written = onnx.load_model_from_string(content.getvalue())
    onnx.checker.check_model(written)
    about = about_model(cfg, graph, class_names, code_revision())
    written.metadata_props.add(key=ENTRY, value=about.to_text())
    with atomic_write(path) as file:
        file.write(written.SerializeToString())


def _write_torch(
    model: nn.Module, cfg: CfgNode, image: Tensor, path: Path, class_names: Sequence[str]
) -> None:
    about = CheckpointMetadata(portable_config(cfg), tuple(class_names), revision=code_revision())
    write_checkpoint({"model": model.state_dict(), CHECKPOINT_ENTRY: about.to_entry()}, path)


Writer = Callable[[nn.Module, CfgNode, Tensor, Path, Sequence[str]], None]
FORMATS: dict[str, Writer] = {
    "torchscript": _write_torchscript,
    "onnx": _write_onnx,
    "torch": _write_torch,
}


@contextmanager
def _tracing() -> Iterator[None]:
    """Keep the tracer from talking, and let it end in one line where it cannot go on.

    It warns of every shape that is constant and of its own age, and turns on a log in which it
    shows the whole graph.
    """
    torch._C._jit_set_onnx_log_enabled(False)  # an exporter that ran before may have left it on
    with warnings.catch_warnings(), mock.patch("torch._C._jit_set_onnx_log_enabled"):
        warnings.simplefilter("ignore")
        try:
            yield
        except RuntimeError as error:
            reason = next(filter(None, str(error).splitlines()), "").partition(". ")[0]
            if not isinstance(error, OnnxExporterError) and not reason.startswith(_REFUSED):
                raise
            raise UserError(f"the model cannot be exported: {reason} (docs/export.md)") from error
