"""Models by the names of their shipped configs, as in Detectron2's model zoo."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from rs_d2.utils.errors import UserError, did_you_mean
from rs_d2.utils.folders import cache_dir, config_dir

if TYPE_CHECKING:
    from detectron2.config import CfgNode
    from torch import nn

FOLDER_VARIABLE = "RS_D2_MODEL_ZOO"
HASH_LENGTH = 8  # hexadecimal digits, as in torch.hub's file names


def list_models() -> list[str]:
    """Names of all shipped configs, such as "COCO-Detection/rs_faster_rcnn_R_50_FPN_1x", sorted."""
    root = config_dir()
    paths = (path.relative_to(root) for path in root.glob("**/*.yaml"))
    return sorted(path.with_suffix("").as_posix() for path in paths if path.parts[0] != "_base_")


def get_config(name: str) -> CfgNode:
    """Config of a shipped model, not frozen.

    Args:
        name: as :func:`list_models` gives it, with or without ".yaml".

    Raises:
        UserError: There is no such model; names the nearest.
    """
    from rs_d2.config.load import load_config

    return load_config(str(config_dir() / f"{_known(name)}.yaml"), ())[0]


def get_checkpoint_path(name: str) -> Path:
    """Trained weights of a shipped model, in the folder that holds the user's.

    The folder is ``$RS_D2_MODEL_ZOO``, else ``rs_d2/model_zoo`` in the user's cache. Of files
    ``NAME-HASH.pth``, as ``tools/publish_model.py`` writes them, the newest is taken, and its
    content must have that hash; else ``NAME.pth``.

    Args:
        name: as in :func:`get_config`.

    Raises:
        UserError: There is no such model or file, or the file is damaged.
    """
    name = _known(name)
    folder = zoo_folder()
    stem = folder / name
    files = (path for path in stem.parent.glob("*.pth") if path.is_file())
    hashed = [path for path in files if _hash_of(path, stem.name)]
    if hashed:
        newest = max(hashed, key=lambda path: path.stat().st_mtime)
        found, expected = short_hash(newest), _hash_of(newest, stem.name)
        if found != expected:
            raise UserError(
                f"{newest} is damaged: its SHA-256 begins with {found}, not {expected};"
                " remove it, or fetch it again"
            )
        return newest
    plain = stem.with_name(f"{stem.name}.pth")
    if plain.is_file():
        return plain
    raise UserError(
        f"no trained weights of {name} in {folder} (${FOLDER_VARIABLE}): convert the published"
        f" file with tools/convert_mmdet.py, or train, and save it as {plain}"
    )


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build a shipped model; in training mode, as Detectron2's function of that name gives it.

    Args:
        name: as in :func:`get_config`.
        trained: load the weights of :func:`get_checkpoint_path`; else they are random.
        device: such as "cuda:0"; None: a GPU if there is one.

    Raises:
        UserError: The model or its weights are unknown, or do not fit each other.
    """
    from detectron2.modeling import build_model

    from rs_d2.checkpoint.loading import load_for_evaluation
    from rs_d2.prediction.predictor import choose_device

    cfg = get_config(name)
    cfg.MODEL.WEIGHTS = str(get_checkpoint_path(name)) if trained else ""
    cfg.MODEL.DEVICE = choose_device(device)
    model = build_model(cfg)
    if trained:
        load_for_evaluation(cfg, model)
    return model


def zoo_folder() -> Path:
    """The folder with the user's trained models; it need not be there."""
    stated = os.environ.get(FOLDER_VARIABLE)
    return Path(stated).expanduser() if stated else cache_dir("model_zoo")


def short_hash(path: Path) -> str:
    """The first digits of a file's SHA-256, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:HASH_LENGTH]


def _known(name: str) -> str:
    name = name.removesuffix(".yaml")
    known = list_models()
    if name not in known:
        raise UserError(f"model {name} is not known{did_you_mean(name, known)}")
    return name


def _hash_of(path: Path, stem: str) -> str:
    """The hash in a file's name; empty if it is no ``STEM-HASH.pth``."""
    match = re.fullmatch(rf"{re.escape(stem)}-([0-9a-f]{{{HASH_LENGTH}}})\.pth", path.name)
    return match[1] if match else ""
