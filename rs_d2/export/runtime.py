"""Run an exported file on images; neither Detectron2 nor a config is needed for the graphs."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rs_d2.export import images
from rs_d2.export.about import ENTRY, IMAGE_MASKS, About, read_about
from rs_d2.export.images import ImageLike
from rs_d2.ops.masks import boxes_of_masks, to_pixels
from rs_d2.utils.errors import UserError

# In TorchScript: what reaches files; operators and classes of other libraries; names in disguise
_REACHES_OUT = re.compile(
    r"""\b(save|load|from_file|torch\s*\.\s*classes)\b
    | (?<![\w.])ops\b (?!\.torchvision\. | \.prim\.(?!rpc))
    | \bgetattr\b (?!\([\w.]+,[ ]"\w+"\))""",
    re.VERBOSE,
)

SUFFIXES = {"torchscript": ".ts", "onnx": ".onnx", "torch": ".pth"}

Graph = Callable[[Tensor], tuple[Tensor, ...]]


class ExportedDetections(NamedTuple):
    """What was found in an image, best first.

    ``boxes``: float32 [n, 4], XYXY in pixels of the image; ``scores``: float32 [n]; ``classes``:
    int64 [n]; ``masks``: bool [n, H, W], None of a model without masks.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    masks: np.ndarray | None = None


class ExportedDetector:
    """An exported graph as a function from images to :class:`ExportedDetections`.

    Attributes:
        about: what the file tells about itself.
        class_names: by class; empty if they are not known.
        graph: from float32 [3, h, w] to the outputs named in ``about``, for resized images.
    """

    def __init__(self, graph: Graph, about: About) -> None:
        self.graph = graph
        self.about = about
        self.class_names = about.class_names

    def __call__(self, image: ImageLike) -> ExportedDetections:
        """Detect the objects of an image.

        Args:
            image: path; PIL image; or uint8 array [H, W, 3] in BGR, as ``cv2.imread`` gives it.

        Raises:
            ValueError: The array has another shape or type.
            OSError: The file is not an image that can be read.
        """
        pixels = images.read(image, self.about.pixel_format)
        about = self.about
        resized = images.resize(pixels, about.min_size, about.max_size, about.square)
        boxes, scores, classes, *masks = self.graph(resized)
        size = (pixels.shape[0], pixels.shape[1])
        inner_size = (resized.shape[1], resized.shape[2])
        boxes = images.scale_boxes(boxes, inner_size, size)
        full = _are_full(boxes)
        found = [value[full] for value in (boxes, scores, classes, *masks)]
        if IMAGE_MASKS in about.outputs:
            stride = about.mask_stride
            extent = [stride * side for side in found[3].shape[1:]] if stride else inner_size
            found[3] = to_pixels(found[3], extent, inner_size, size, via_extent=stride > 0)
        elif masks:
            found[3] = torch.from_numpy(images.paste_masks(found[3], found[0], size))
        if about.boxes_from_masks:
            found[0] = boxes_of_masks(found[3])
            full = _are_full(found[0])
            found = [value[full] for value in found]
        return ExportedDetections(*(value.numpy() for value in found))


def _are_full(boxes: Tensor) -> Tensor:
    return ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)


class _Checkpoint:
    """A checkpoint behind the interface of :class:`ExportedDetector`."""

    def __init__(self, path: str) -> None:
        from rs_d2.prediction.predictor import Predictor

        self._predictor = Predictor(path, device="cpu")
        self.class_names = tuple(self._predictor.class_names)

    def __call__(self, image: ImageLike) -> ExportedDetections:
        found = self._predictor(image)
        masks = found.pred_masks.numpy() if found.has("pred_masks") else None
        return ExportedDetections(
            found.pred_boxes.tensor.numpy(),
            found.scores.numpy(),
            found.pred_classes.numpy(),
            masks,
        )


def load(path: str | PathLike) -> Callable[[ImageLike], ExportedDetections]:
    """A function from images to :class:`ExportedDetections`, from a file of any format.

    Args:
        path: ends in ``.ts`` (TorchScript), ``.onnx`` or ``.pth``.

    Returns:
        An :class:`ExportedDetector`; of a ``.pth`` an object called the same way, which needs
        Detectron2.

    Raises:
        UserError: The file is missing or not an exported model, or a package is missing.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES.values():
        raise UserError(f"{path}: an exported model ends in {', '.join(SUFFIXES.values())}")
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    if path.suffix == ".pth":
        return _Checkpoint(str(path))
    return ExportedDetector(*(_load_onnx(path) if path.suffix == ".onnx" else _load_script(path)))


def _load_script(path: Path) -> tuple[Graph, About]:
    import torchvision  # noqa: F401  registers its operators, which the graphs use

    _check_script(path)
    extra = {ENTRY: ""}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TorchScript's age
            module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} is not a TorchScript file") from error
    text = extra[ENTRY]
    about = read_about(text.decode() if isinstance(text, bytes) else text, str(path))

    def graph(image: Tensor) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return module(image)

    return graph, about


def _check_script(path: Path) -> None:
    """Refuse what would read or write files; a script's ``__setstate__`` runs as it is loaded."""
    try:
        with path.open("rb") as file:  # other formats have no source that could be read here
            is_zip = file.read(4) == b"PK\x03\x04"
        reader = torch._C.PyTorchFileReader(str(path)) if is_zip else None  # as torch.jit.load does
        names = reader.get_all_records() if reader else []
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path} is not a TorchScript file") from error
    if (
        reader is None or "model.json" in names
    ):  # of PyTorch before 1.4, where any entry may be source
        raise UserError(f"{path} is not a TorchScript file")
    for name in (name for name in names if name.lower().endswith(".py")):
        source = reader.get_record(name).decode(errors="replace")
        found = _REACHES_OUT.search(source)
        if found:
            line = source.count("\n", 0, found.start()) + 1
            raise UserError(
                f"{path} is refused: '{found[0]}' in line {line} of its {name} could reach files"
            )


def _load_onnx(path: Path) -> tuple[Graph, About]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("onnxruntime is not installed: pip install onnx onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of shapes that it infers itself
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its own family of exceptions, without a base
        raise UserError(f"{path} is not an ONNX file that onnxruntime can run") from error
    about = read_about(session.get_modelmeta().custom_metadata_map.get(ENTRY), str(path))

    def graph(image: Tensor) -> tuple[Tensor, ...]:
        outputs = session.run(list(about.outputs), {"image": image.numpy()})
        return tuple(torch.from_numpy(output) for output in outputs)

    return graph, about
