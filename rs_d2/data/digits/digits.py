"""The embedded digits set: real handwritten digits in a long-tailed LVIS v1 form, made in seconds.

The 1797 handwritten digits that scikit-learn ships (8 x 8 scans, UCI) are enlarged, inked in one of
three colours and composed on textured backgrounds. A category is a digit in a colour: 30 of them,
whose training images fall off so that LVIS's frequent / common / rare groups exist. Layout::

    digits/train.json  digits/val.json      LVIS v1 annotations
    digits/train/*.png  digits/val/*.png    RGB images
    digits/made.json                        the parameters; its presence marks a complete set

What is annotated: every digit in a picture, by the mask of its visible part, except a few further
digits of the categories in ``not_exhaustive_category_ids``. Of every digit at least 65 % can be
seen, so none has to be left out.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.random import RandomState
from PIL import Image
from tqdm import tqdm

from rs_d2.data.digits.outlines import mask_to_box, mask_to_polygons
from rs_d2.data.digits.scene import Digit, Placed, compose
from rs_d2.utils.errors import UserError

FORMAT = 1  # raised whenever the same parameters would give other files

COLORS = ("orange", "teal", "purple")
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Of the 600 training images the most frequent category is in 400; the number falls by a constant
# factor per rank down to 5. LVIS calls a category rare with at most 10 training images, common with
# at most 100: ranks 22 to 29 and 9 to 21. Other set sizes scale the numbers and keep the groups.
_DEFAULT_TRAIN, _MOST, _LEAST, _FALL = 600, 400, 5, 0.1677
_FIRST_COMMON, _FIRST_RARE = 9, 22
_VAL_PER_IMAGE = 4.4  # distinct categories
_NUM_NEGATIVES = 12  # categories per image that are stated to be absent
_NUM_UNANNOTATED = 2  # digits left out where a category is not exhaustive
_MAX_DIGITS = 8


class DigitsFiles(NamedTuple):
    """Where a digits set lies; ``image_root`` ends with a slash, as ``load_lvis_json`` wants it."""

    train_json: str
    val_json: str
    image_root: str


class _Picture(NamedTuple):
    """What one image is to hold, by category id."""

    category_ids: list[int]
    not_exhaustive_ids: list[int]
    neg_ids: list[int]


def digits_categories() -> list[dict[str, Any]]:
    """The 30 categories in LVIS form, by id from 1 on, without the counts of a particular set."""
    frequency = dict(zip(_ids_by_rank(), _frequencies(), strict=True))
    return [
        {
            "id": _category_id(digit, color),
            "name": f"{name}_{digit}",
            "synonyms": [f"{name}_{digit}"],
            "synset": f"{_WORDS[digit]}.n.01",
            "def": f"the handwritten digit {digit}, written in {name}",
            "frequency": frequency[_category_id(digit, color)],
        }
        for digit in range(10)
        for color, name in enumerate(COLORS)
    ]


def find_digits(root: str | Path) -> DigitsFiles | None:
    """The files of a complete set in ``root``, whatever its parameters.

    None without one, also where an older version of this module made it.
    """
    root = Path(root)
    try:
        if json.loads((root / "made.json").read_text())["format"] != FORMAT:
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return DigitsFiles(str(root / "train.json"), str(root / "val.json"), f"{root}/")


def make_digits(
    root: str | Path,
    num_train: int = _DEFAULT_TRAIN,
    num_val: int = 120,
    size: int = 192,
    seed: int = 0,
    progress: bool = True,
) -> DigitsFiles:
    """Make the digits set in ``root``, or keep the one that is there with the same parameters.

    The set is written beside ``root`` and moved into place when complete, so that an interrupted
    run leaves nothing half-made. A set with other parameters is replaced.

    Args:
        root: folder of the set.
        num_train: training images, at least 10.
        num_val: validation images, at least 10; they share no scan with the training images.
        size: side of the square images in pixels, at least 96.
        seed: everything else follows from it.
        progress: whether to show a progress bar.

    Raises:
        UserError: a number is too small, or ``root`` holds something that is no digits set.
    """
    root = Path(root)
    _check(num_train=(num_train, 10), num_val=(num_val, 10), size=(size, 96), seed=(seed, 0))
    made = {"format": FORMAT, "num_train": num_train, "num_val": num_val, "size": size}
    made = json.dumps({**made, "seed": seed})
    if _is_made(root, made):
        return find_digits(root)
    if root.exists() and not (root / "made.json").is_file() and not _is_empty_folder(root):
        raise UserError(f"{root} holds something that is not a digits set; choose another folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        bar = tqdm(
            total=num_train + num_val,
            desc="digits",
            unit="img",
            disable=not progress,
            mininterval=0.1 if sys.stderr.isatty() else 10,  # few lines in a log file
        )
        with bar:
            for path, content in _build(num_train, num_val, size, seed):
                (draft / path).parent.mkdir(exist_ok=True)
                if isinstance(content, np.ndarray):
                    Image.fromarray(content).save(draft / path, compress_level=4)
                    bar.update()
                else:
                    (draft / path).write_text(json.dumps(content, separators=(",", ":")))
        (draft / "made.json").write_text(made)
        draft.chmod(0o755)  # mkdtemp makes private folders
        _move_into_place(draft, root, made)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return find_digits(root)


def split_scans(seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Indices of scikit-learn's scans for training and validation, one array per digit; 3 to 1."""
    labels = _load_scans()[1]
    rng = RandomState([seed, 0])
    train, val = [], []
    for digit in range(10):
        indices = rng.permutation(np.flatnonzero(labels == digit))
        cut = len(indices) * 3 // 4
        train.append(indices[:cut])
        val.append(indices[cut:])
    return train, val


def _build(
    num_train: int, num_val: int, size: int, seed: int
) -> Iterator[tuple[str, np.ndarray | dict[str, Any]]]:
    """Yield the files of the set by relative path: images first, then the two jsons."""
    train_scans, val_scans = split_scans(seed)
    train_counts = _train_image_counts(num_train)
    val_counts = _val_image_counts(num_val)
    splits = {}
    for stream, (split, counts, num_images, scans) in enumerate(
        (
            ("train", train_counts, num_train, train_scans),
            ("val", val_counts, num_val, val_scans),
        ),
        start=1,
    ):
        plan = _plan(RandomState([seed, stream]), counts, num_images)
        images, annotations = [], []
        for i, picture in enumerate(plan):
            rng = RandomState([seed, stream, i])
            pixels, placed = compose(rng, size, _draw_digits(rng, picture, scans))
            path = f"{split}/{i + 1:06d}.png"
            yield path, pixels
            images.append(_image_record(i + 1, path, size, picture))
            for digit in placed:
                if digit.digit.annotated:
                    annotations.append(_annotation(len(annotations) + 1, i + 1, digit))
        splits[split] = (images, annotations)
    categories = _counted_categories(splits["train"][1])
    for split, (images, annotations) in splits.items():
        yield f"{split}.json", _lvis_json(split, images, annotations, categories)


def _plan(rng: RandomState, image_counts: dict[int, int], num_images: int) -> list[_Picture]:
    """Deal the categories to the images so that each is in exactly its number of images."""
    load = rng.uniform(0, 4, num_images)
    dealt: list[list[int]] = [[] for _ in range(num_images)]
    for category_id, count in image_counts.items():
        # The emptiest images first, with some chance in it: pictures hold about equally much.
        chosen = np.argsort(load + rng.uniform(0, 2, num_images), kind="stable")[:count]
        load[chosen] += 1
        for i in chosen.tolist():
            dealt[i].append(category_id)
    return [_picture(rng, category_ids) for category_ids in dealt]


def _picture(rng: RandomState, category_ids: list[int]) -> _Picture:
    """Repeat some categories, mark one in 15 images as not exhaustive, draw the negatives."""
    repeated = [c for c in category_ids if rng.random_sample() < 0.3]
    room = max(_MAX_DIGITS - len(category_ids), 0)
    crowded = []
    if room >= _NUM_UNANNOTATED and rng.random_sample() < 1 / 15:
        crowded = [category_ids[rng.randint(len(category_ids))]]
        room -= _NUM_UNANNOTATED
    absent = [c["id"] for c in digits_categories() if c["id"] not in category_ids]
    negatives = rng.permutation(absent)[:_NUM_NEGATIVES].tolist()
    return _Picture(category_ids + repeated[:room], crowded, sorted(negatives))


def _draw_digits(rng: RandomState, picture: _Picture, scans: list[np.ndarray]) -> list[Digit]:
    """Choose a scan for every digit of a picture; a shuffled list, back to front."""
    wanted = [(c, True) for c in picture.category_ids]
    wanted += [(c, False) for c in picture.not_exhaustive_ids for _ in range(_NUM_UNANNOTATED)]
    images = _load_scans()[0]
    digits = []
    for i in rng.permutation(len(wanted)).tolist():
        category_id, annotated = wanted[i]
        value, color = divmod(category_id - 1, len(COLORS))
        index = int(scans[value][rng.randint(len(scans[value]))])
        digits.append(Digit(category_id, COLORS[color], index, images[index] / 16, annotated))
    return digits


def _image_record(image_id: int, path: str, size: int, picture: _Picture) -> dict[str, Any]:
    """One image in LVIS form; its path for readers of LVIS (``coco_url``) and COCO files."""
    return {
        "id": image_id,
        "file_name": path,
        "coco_url": path,
        "width": size,
        "height": size,
        "license": 1,
        "neg_category_ids": picture.neg_ids,
        "not_exhaustive_category_ids": picture.not_exhaustive_ids,
    }


def _annotation(annotation_id: int, image_id: int, placed: Placed) -> dict[str, Any]:
    """One object in LVIS form; ``scan`` is its index in scikit-learn's set."""
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": placed.digit.category_id,
        "bbox": mask_to_box(placed.mask),
        "area": float(placed.mask.sum()),
        "segmentation": mask_to_polygons(placed.mask),
        "scan": placed.digit.scan_index,
    }


def _counted_categories(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The categories with LVIS's image and instance counts, those of the training part."""
    categories = digits_categories()
    for category in categories:
        images = [a["image_id"] for a in annotations if a["category_id"] == category["id"]]
        category["image_count"] = len(set(images))
        category["instance_count"] = len(images)
    return categories


def _lvis_json(
    split: str,
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> dict[str, Any]:
    """A whole annotation file."""
    return {
        "info": {
            "description": f"Handwritten digits in three colours, {split}, in LVIS v1 form",
            "version": f"v{FORMAT}",
            "frequency": "r: in at most 1/60 of the training images, c: at most 1/6, f: more; "
            "with 600 training images LVIS's own limits, 10 and 100",
        },
        "licenses": [
            {
                "id": 1,
                "name": "Creative Commons Attribution 4.0",
                "url": "https://creativecommons.org/licenses/by/4.0/",
                "credit": "Optical Recognition of Handwritten Digits, E. Alpaydin, C. Kaynak, UCI",
            }
        ],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


def _train_image_counts(num_images: int) -> dict[int, int]:
    """Training images of each category id, most frequent first."""
    shares = [max(_MOST * np.exp(-_FALL * rank), _LEAST) for rank in range(30)]
    scale = num_images / _DEFAULT_TRAIN
    counts = [max(1, int(share * scale + 0.5)) for share in shares]
    return dict(zip(_ids_by_rank(), counts, strict=True))


def _val_image_counts(num_images: int) -> dict[int, int]:
    """Validation images of each category id: a flatter tail, so that AP of the rare is no noise."""
    shares = np.array(list(_train_image_counts(_DEFAULT_TRAIN).values())) ** (1 / 3)
    shares *= num_images * _VAL_PER_IMAGE / shares.sum()
    counts = [max(1, int(share + 0.5)) for share in shares.tolist()]
    return dict(zip(_ids_by_rank(), counts, strict=True))


def _ids_by_rank() -> list[int]:
    """Category ids, most frequent first.

    Each third of the ranks holds every digit once and mixes the colours, so that a rare category
    combines a digit and a colour that are well known from others.
    """
    return [
        _category_id(digit, (digit + third) % len(COLORS))
        for third in range(3)
        for digit in np.roll((3, 8, 0, 5, 6, 1, 9, 2, 7, 4), 3 * third).tolist()
    ]


def _frequencies() -> list[str]:
    """LVIS's frequency letter by rank."""
    return [
        "f" if rank < _FIRST_COMMON else "c" if rank < _FIRST_RARE else "r" for rank in range(30)
    ]


def _category_id(digit: int, color: int) -> int:
    return len(COLORS) * digit + color + 1


@cache
def _load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Scans [1797, 8, 8], 0 to 16, and their digits [1797]."""
    from sklearn.datasets import load_digits  # slow to import, and rarely needed

    scans = load_digits()
    return scans.images, scans.target


def _check(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        if value < least:
            raise UserError(f"digits set: {name} is {value}, must be at least {least}")


def _is_made(root: Path, made: str) -> bool:
    try:
        return (root / "made.json").read_text() == made
    except OSError:
        return False


def _is_empty_folder(root: Path) -> bool:
    return root.is_dir() and not any(root.iterdir())


def _move_into_place(draft: Path, root: Path, made: str) -> None:
    """Rename the finished draft to ``root``; another process may have done so first."""
    if root.exists():
        old = draft.with_name(f"{draft.name}-old")
        os.replace(root, old)
        shutil.rmtree(old)
    try:
        os.replace(draft, root)
    except OSError:
        if not _is_made(root, made):
            raise
