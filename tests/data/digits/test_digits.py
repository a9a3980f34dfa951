"""The embedded digits set: honest annotations, long tail, deterministic, never half-made."""

import hashlib
import importlib.util
import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from rs_d2.data.digits import digits
from rs_d2.data.digits.digits import digits_categories, find_digits, make_digits, split_scans
from rs_d2.data.digits.scene import MIN_VISIBLE, Digit, compose
from rs_d2.utils.errors import UserError

CLI = Path(__file__).resolve().parents[3] / "datasets" / "make_digits.py"
SMALL = {"num_train": 24, "num_val": 12, "size": 128, "seed": 3, "progress": False}
SMALL_SHA256 = "c2e0a6224e32b3f23eebe8b28aeb844fe8b3c2b0875596e9e1e42d51d5f68230"


def read(path: str | Path) -> dict:
    return json.loads(Path(path).read_text())


def images_by_category(data: dict) -> dict[int, set[int]]:
    images = defaultdict(set)
    for annotation in data["annotations"]:
        images[annotation["category_id"]].add(annotation["image_id"])
    return images


def content_sha256(root: str | Path) -> str:
    """Of both annotation files and the decoded pixels of every image, in order."""
    digest = hashlib.sha256()
    for split in ("train", "val"):
        data = read(Path(root) / f"{split}.json")
        digest.update(json.dumps(data, sort_keys=True).encode())
        for image in data["images"]:
            digest.update(np.asarray(Image.open(Path(root) / image["file_name"])).tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SimpleNamespace:
    """A small set on disk: its files, and its two annotation files as dicts."""
    files = make_digits(tmp_path_factory.mktemp("data") / "digits", **SMALL)
    return SimpleNamespace(files=files, train=read(files.train_json), val=read(files.val_json))


def test_the_same_seed_gives_the_same_bytes_everywhere(small):
    assert content_sha256(small.files.image_root) == SMALL_SHA256


def test_another_seed_gives_other_pictures(small, tmp_path):
    make_digits(tmp_path / "digits", **{**SMALL, "seed": 4})
    assert content_sha256(tmp_path / "digits") != content_sha256(small.files.image_root)


def test_there_are_thirty_categories_numbered_from_one():
    categories = digits_categories()
    assert [c["id"] for c in categories] == list(range(1, 31))
    assert len({c["name"] for c in categories}) == 30
    assert categories[0]["name"] == "orange_0"
    assert categories[-1]["name"] == "purple_9"


def test_default_counts_give_the_groups_by_the_limits_of_lvis():
    frequency = {c["id"]: c["frequency"] for c in digits_categories()}
    counts = digits._train_image_counts(600)
    for category_id, count in counts.items():
        assert frequency[category_id] == ("r" if count <= 10 else "c" if count <= 100 else "f")
    assert [list(frequency.values()).count(letter) for letter in "fcr"] == [9, 13, 8]
    assert min(counts.values()) >= 4
    assert min(digits._val_image_counts(120).values()) >= 8


def test_every_third_of_the_tail_has_every_digit():
    names = {c["id"]: c["name"] for c in digits_categories()}
    ranked = [names[i] for i in digits._ids_by_rank()]
    assert len(set(ranked)) == 30
    for third in (ranked[:10], ranked[10:20], ranked[20:]):
        assert {name[-1] for name in third} == set("0123456789")


def test_categories_are_in_exactly_the_planned_number_of_images(small):
    planned = {"train": digits._train_image_counts(24), "val": digits._val_image_counts(12)}
    for split, counts in planned.items():
        found = images_by_category(getattr(small, split))
        assert {c: len(images) for c, images in found.items()} == counts


def test_both_files_count_the_training_part(small):
    found = images_by_category(small.train)
    for category in small.train["categories"]:
        objects = [a for a in small.train["annotations"] if a["category_id"] == category["id"]]
        assert category["image_count"] == len(found[category["id"]])
        assert category["instance_count"] == len(objects)
    assert small.val["categories"] == small.train["categories"]


def test_polygons_area_and_box_describe_the_same_mask_without_overlaps(small):
    for data in (small.train, small.val):
        taken = defaultdict(lambda: np.zeros((128, 128), dtype=int))
        for annotation in data["annotations"]:
            rle = coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], 128, 128))
            mask = coco_mask.decode(rle)
            assert mask.sum() == annotation["area"] > 0
            assert coco_mask.toBbox(rle).tolist() == annotation["bbox"]
            taken[annotation["image_id"]] += mask
        assert max(count.max() for count in taken.values()) == 1


def test_negatives_are_absent_and_inexhaustive_categories_present(small):
    for data in (small.train, small.val):
        present = defaultdict(set)
        for annotation in data["annotations"]:
            present[annotation["image_id"]].add(annotation["category_id"])
        for image in data["images"]:
            assert image["neg_category_ids"]
            assert not present[image["id"]] & set(image["neg_category_ids"])
            assert present[image["id"]] >= set(image["not_exhaustive_category_ids"])


def test_unannotated_digits_belong_to_inexhaustive_categories():
    rng, scans = np.random.RandomState(0), split_scans(0)[0]
    crowded = 0
    for _ in range(200):
        picture = digits._picture(rng, [1, 8, 30])
        drawn = digits._draw_digits(rng, picture, scans)
        hidden = [d.category_id for d in drawn if not d.annotated]
        assert hidden == picture.not_exhaustive_ids * 2
        crowded += bool(hidden)
    assert 0 < crowded < 40


def test_train_and_val_share_no_scan(small):
    train, val = ({a["scan"] for a in data["annotations"]} for data in (small.train, small.val))
    assert not train & val
    train, val = (np.concatenate(part) for part in split_scans(3))
    assert sorted([*train, *val]) == list(range(1797))


def test_scans_are_drawn_as_the_digit_they_show(small):
    labels = digits._load_scans()[1]
    for annotation in small.train["annotations"]:
        assert labels[annotation["scan"]] == (annotation["category_id"] - 1) // 3


def test_enough_of_every_digit_stays_visible():
    images = digits._load_scans()[0] / 16
    for seed in range(3):
        rng = np.random.RandomState(seed)
        wanted = [Digit(1, "teal", i, images[i], True) for i in range(10)]
        pixels, placed = compose(rng, 128, wanted)
        assert pixels.shape == (128, 128, 3)
        assert pixels.dtype == np.uint8
        assert [p.digit.scan_index for p in placed] == list(range(10))
        assert all(p.mask.sum() >= MIN_VISIBLE * p.num_pixels > 0 for p in placed)


def test_visible_ink_has_the_named_colour():
    scan = digits._load_scans()[0][0] / 16
    channels = {"orange": (0, 2), "teal": (1, 0), "purple": (2, 1)}  # stronger, weaker
    for color, (strong, weak) in channels.items():
        pixels, (placed,) = compose(np.random.RandomState(0), 128, [Digit(1, color, 0, scan, True)])
        ink = pixels[placed.mask].mean(axis=0)
        assert ink[strong] > ink[weak] + 30


def test_detectron2_loads_every_image_and_object(small):
    lvis = pytest.importorskip("detectron2.data.datasets.lvis")
    pytest.importorskip("lvis")
    for path, data in ((small.files.train_json, small.train), (small.files.val_json, small.val)):
        records = lvis.load_lvis_json(path, small.files.image_root)
        assert len(records) == len(data["images"])
        assert sum(len(r["annotations"]) for r in records) == len(data["annotations"])
        assert all(Path(r["file_name"]).is_file() for r in records)
        assert {a["category_id"] for r in records for a in r["annotations"]} == set(range(30))


def test_a_set_with_the_same_parameters_is_kept(small):
    before = Path(small.files.train_json).stat().st_mtime_ns
    assert make_digits(small.files.image_root, **SMALL) == small.files
    assert Path(small.files.train_json).stat().st_mtime_ns == before


def test_a_set_with_other_parameters_is_replaced(tmp_path):
    root = tmp_path / "digits"
    make_digits(root, num_train=10, num_val=10, size=96, progress=False)
    files = make_digits(root, num_train=12, num_val=10, size=96, progress=False)
    assert len(read(files.train_json)["images"]) == 12
    assert len(list((root / "train").iterdir())) == 12
    assert list(tmp_path.iterdir()) == [root]


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_annotation", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "digits", **SMALL)
    assert find_digits(tmp_path / "digits") is None
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    (tmp_path / "holiday.jpg").write_text("")
    with pytest.raises(UserError, match="not a digits set"):
        make_digits(tmp_path, **SMALL)
    assert (tmp_path / "holiday.jpg").exists()


@pytest.mark.parametrize(
    ("name", "value"), [("num_train", 9), ("num_val", 0), ("size", 95), ("seed", -1)]
)
def test_too_small_numbers_are_named(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name} is {value}"):
        make_digits(tmp_path / "digits", **{**SMALL, name: value})


def run_cli(arguments: list[str]) -> int:
    """The exit code of datasets/make_digits.py, called in this process."""
    spec = importlib.util.spec_from_file_location("make_digits_cli", CLI)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(arguments)


def test_the_command_makes_the_set_and_says_where(tmp_path, capsys):
    root = tmp_path / "set"
    numbers = ["--num-train", "10", "--num-val", "10", "--size", "96", "--seed", "5"]
    assert run_cli(["--output", str(root), *numbers]) == 0
    assert str(root / "train.json") in capsys.readouterr().out
    assert find_digits(root) is not None


def test_the_command_reports_a_mistake_in_one_line(tmp_path, capsys):
    assert run_cli(["--output", str(tmp_path / "set"), "--size", "8"]) == 2
    assert capsys.readouterr().err == "error: digits set: size is 8, must be at least 96\n"


def test_a_set_of_an_older_version_does_not_count(tmp_path):
    make_digits(tmp_path / "digits", num_train=10, num_val=10, size=96, progress=False)
    made = tmp_path / "digits" / "made.json"
    assert find_digits(tmp_path / "digits") is not None
    made.write_text(json.dumps(read(made) | {"format": digits.FORMAT - 1}))
    assert find_digits(tmp_path / "digits") is None
    made.write_text("not json")
    assert find_digits(tmp_path / "digits") is None
