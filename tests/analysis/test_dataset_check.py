"""Everything that is wrong with a data set, found before the training."""

import gzip
import json
import os
from contextlib import suppress

import numpy as np
import pytest
from conftest import shared
from helpers.annotation_files import annotation, changed, coco
from helpers.dirty_json import ACCEPTED, LEFT_OUT, STOPPED
from PIL import Image, ImageEnhance

from rs_d2.analysis import dataset_check
from rs_d2.analysis.dataset_check import (
    as_json,
    as_text,
    check_dataset,
    compare_sets,
    write_fixed,
)
from rs_d2.coco.reading import read_annotations
from rs_d2.utils.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(seed, width=64, height=48):
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def save(tmp_path):
    """Write a json and, below its folder, the images that its entries state."""

    def write(content, name="train.json", first_seed=0):
        for index, image in enumerate(content["images"]):
            path = tmp_path / image["file_name"]
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                noise(first_seed + index, image["width"], image["height"]).save(path)
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


def found(check):
    return [(finding.severity.name, str(finding)) for finding in check.findings]


def test_a_sound_set_has_no_finding(save):
    check = check_dataset(save(coco()), decode=True)
    assert (found(check), check.is_sound, len(check.hashes)) == ([], True, 2)
    assert as_text([check]).endswith("2 images, 2 annotations, 2 categories; no findings")
    assert write_fixed(check) is None


def test_every_file_is_looked_at(save, tmp_path):
    names = ["good.png", "none.png", "empty.png", "text.png", "cut.jpg", "small.png", "turned.jpg"]
    names += ["deep.png", "long.png"]
    images = [{"id": n, "file_name": n, "width": 64, "height": 48} for n in names]
    images[-1]["width"], images[-1]["height"] = 1000, 4
    notes = [annotation(i, image_id=n) for i, n in enumerate(names, 1)]
    notes[-1] = annotation(
        9, image_id="long.png", bbox=[1, 1, 2, 2], segmentation=[[1, 1, 3, 1, 3, 3]]
    )
    path = save(coco(images=images, annotations=notes, categories=[{"id": 9, "name": "fig"}]))
    (tmp_path / "none.png").unlink()
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    data = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) * 9 // 10])
    noise(0, 9, 9).save(tmp_path / "small.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(0, 48, 64).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(np.full((48, 64), 999, dtype=np.uint16)).save(tmp_path / "deep.png")
    fast = check_dataset(path)
    assert found(fast) == [
        ("NOTED", "image long.png: 1000 x 4 pixels"),
        ("STOPS_TRAINING", f"image none.png: {tmp_path}/none.png is missing"),
        ("STOPS_TRAINING", f"image empty.png: {tmp_path}/empty.png is empty"),
        (
            "STOPS_TRAINING",
            f"image text.png: {tmp_path}/text.png is not an image that can be read",
        ),
        (
            "STOPS_TRAINING",
            f"image small.png: 64 x 48 pixels are stated, but {tmp_path}/small.png has 9 x 9",
        ),
        ("NOTED", f"image turned.jpg: {tmp_path}/turned.jpg is turned as its EXIF entry says (6)"),
        ("NOTED", f"image deep.png: {tmp_path}/deep.png has 16 bits; 0 to 65535 become 0 to 255"),
    ]
    cut = f"image cut.jpg: {tmp_path}/cut.jpg cannot be decoded (image file is truncated"
    thorough = check_dataset(path, decode=True, num_jobs=2)
    assert [text for _, text in found(thorough) if text.startswith(cut)]
    assert len(thorough.findings) == len(fast.findings) + 1
    written = write_fixed(thorough)
    assert written == tmp_path / "train.fixed.json"
    assert [image["id"] for image in json.loads(written.read_text())["images"]] == [
        "good.png", "turned.jpg", "deep.png", "long.png",
    ]  # fmt: skip
    assert check_dataset(written, decode=True).is_sound


def test_floats_and_further_frames_are_noted(save, tmp_path):
    images = [{"id": n, "file_name": n, "width": 64, "height": 48} for n in ("f.tif", "n.gif")]
    notes = [annotation(1, image_id="f.tif"), annotation(2, image_id="n.gif")]
    path = save(coco(images=images, annotations=notes, categories=[{"id": 9, "name": "fig"}]))
    Image.fromarray(np.ones((48, 64), dtype=np.float32)).save(tmp_path / "f.tif")
    noise(1).save(tmp_path / "n.gif", save_all=True, append_images=[noise(2)])
    assert found(check_dataset(path, decode=True)) == [
        ("NOTED", f"image f.tif: {tmp_path}/f.tif has floats; they are cut to 0 to 255"),
        ("NOTED", f"image n.gif: {tmp_path}/n.gif has several frames"),
    ]


def test_oddities_are_noted_and_nothing_is_left_out_for_them(save):
    content = changed("annotations", 0, bbox=[50.0, 10.0, 20.0, 20.0])
    content["categories"] += [{"id": 1, "name": "fig"}]
    content["images"] += [{"id": 1, "file_name": "c.png", "width": 64, "height": 48}]
    content["images"][0] |= {
        "neg_category_ids": [9, 4, 77],
        "not_exhaustive_category_ids": [4],
    }
    check = check_dataset(save(content))
    assert check.is_sound
    assert found(check) == [
        ("NOTED", "category 9: 2 have the name 'fig'"),
        ("NOTED", "category 1: no image has it ('fig')"),
        ("NOTED", "category 1: 2 have the name 'fig'"),
        ("NOTED", "image 1: no object that is used"),
        ("NOTED", "annotation 1: bbox: [50.0, 10.0, 20.0, 20.0]"),
        ("NOTED", "image 7: neg_category_ids: categories absent and annotated: [9]"),
        ("NOTED", "image 7: neg_category_ids: categories absent and not exhaustive: [4]"),
        ("NOTED", "image 7: neg_category_ids: unknown categories in lists: [77]"),
    ]


def test_images_that_both_sets_have_are_found(save, tmp_path):
    train = check_dataset(save(coco()), decode=True)
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 96, "height": 72} for i in (1, 2, 3)]
    scaled = noise(1).resize((96, 72))
    ImageEnhance.Brightness(scaled).enhance(0.7).save(tmp_path / "2.jpg", quality=60)
    Image.new("RGB", (96, 72), "gray").save(tmp_path / "3.jpg")
    notes = [annotation(i, image_id=i) for i in (1, 2, 3)]
    path = save(coco(images=images, annotations=notes), "val.json", first_seed=50)
    val = check_dataset(path, decode=True)
    assert [str(f) for f in compare_sets(train, val)] == [
        "image 2: looks like image 3 of train.json"
    ]
    assert compare_sets(check_dataset(path), val) == []  # not decoded


def test_real_sets_have_no_image_twice():
    folder = shared("data/nuts")
    train, val = (
        check_dataset(folder / f"{part}.json", folder / "images", decode=True)
        for part in ("train", "val")
    )
    assert train.is_sound
    assert compare_sets(train, val) == []


def test_a_fixed_json_is_what_training_uses(save, tmp_path):
    notes = [annotation(i) for i in range(1, 9)]
    notes[0] |= {"bbox": [1, 1, 0, 5]}
    notes[1] |= {"segmentation": [*notes[1]["segmentation"], [1, 1]]}
    notes[2] |= {"image_id": 99}
    notes[3] |= {"iscrowd": "0"}
    notes[4] |= {"id": "5"}
    notes[5] |= {"ignore": 1}
    notes[6] |= {"id": 8}
    path = save(coco(annotations=notes))
    before = path.read_bytes()
    check = check_dataset(path)
    assert not check.is_sound
    with pytest.raises(UserError):
        read_annotations(path)
    written = write_fixed(check)
    fixed = read_annotations(written)
    assert [a["id"] for a in fixed.annotations] == [2, 6]
    assert fixed.left_out == ""
    assert fixed.content["annotations"] == fixed.annotations
    assert len(fixed.annotations[0]["segmentation"]) == 1
    assert check_dataset(written).is_sound
    assert path.read_bytes() == before
    with pytest.raises(UserError, match=r"train.fixed.json is there already"):
        write_fixed(check)


def test_images_are_looked_at_where_annotations_are_broken(save, tmp_path):
    path = save(changed("annotations", 0, id="1"))
    (tmp_path / "a.png").unlink()
    check = check_dataset(path)
    assert [text for _, text in found(check)] == [
        "annotations[0]: id: expected an integer, found '1'",
        f"image 7: {tmp_path}/a.png is missing",
    ]
    fixed = read_annotations(write_fixed(check))
    assert [image["id"] for image in fixed.images] == [3]


def test_what_training_leaves_out_is_left_out_of_the_fixed_json(save):
    path = save(changed("annotations", 0, bbox=[1, 1, 0, 5]))
    written = write_fixed(check_dataset(path))
    assert read_annotations(written).annotations == read_annotations(path).annotations


def test_classes_that_training_does_not_have_are_found(save):
    train, val = check_dataset(save(coco())), coco()
    val["categories"] = [
        {"id": 9, "name": "nut"},
        {"id": 4, "name": "date"},
        {"id": 5, "name": "x"},
    ]
    findings = compare_sets(train, check_dataset(save(val, "val.json")))
    assert [str(f) for f in findings] == [
        "category 9: 'nut', but train.json has 'fig'",
        "category 5: 'x', but train.json has no such category",
    ]


def die(item, decode):
    os._exit(9)


def test_a_decoder_that_ends_its_process_is_told_in_one_line(save, monkeypatch):
    """The pool starts its processes by fork, so they have the replaced function, too."""
    monkeypatch.setattr(dataset_check, "examine", die)
    with pytest.raises(UserError, match=r"a process died while it opened .*a.png or one of"):
        check_dataset(save(coco()), num_jobs=2)


def test_an_archive_is_not_unpacked_for_nothing(save):
    path = save(coco())
    archive = path.with_name("train.json.gz")
    archive.write_bytes(gzip.compress(path.read_bytes()))
    assert write_fixed(check_dataset(archive)) is None
    archive.write_bytes(gzip.compress(json.dumps(changed("annotations", 0, id="1")).encode()))
    assert write_fixed(check_dataset(archive)).name == "train.fixed.json"


def test_a_sound_json_in_another_encoding_is_written_plain(save):
    path = save(coco())
    path.write_bytes(json.dumps(coco()).encode("utf-16"))
    assert "train.json: not plain UTF-8" in as_text([check_dataset(path)])
    assert json.loads(write_fixed(check_dataset(path)).read_text("utf-8")) == coco()


@pytest.mark.parametrize(
    "content", [[], {}, coco(categories=[]), changed("categories", 0, frequency="x")]
)
def test_what_no_entry_is_to_blame_for_is_not_fixed(tmp_path, content):
    (tmp_path / "train.json").write_text(json.dumps(content))
    check = check_dataset(tmp_path / "train.json")
    with pytest.raises(UserError, match="nothing can be left out to mend this: "):
        write_fixed(check)
    assert as_json([check])[0]["findings"][0]["severity"] == "stops"


def test_many_findings_of_a_kind_are_cut_short_in_text_only(save):
    notes = [annotation(i, bbox=[1, 1, 0, 5]) for i in range(1, 30)]
    check = check_dataset(save(coco(annotations=[*notes, annotation(30)])))
    text = as_text([check], num_shown=3)
    assert text.count("expected a width and a height above 0") == 3
    assert "and 26 more: boxes without area" in text
    assert sum(f["kind"] == "boxes without area" for f in as_json([check])[0]["findings"]) == 29


def test_every_dirty_json_is_told_and_mended_or_named(save, tmp_path):
    save(coco())  # the images
    path, target = tmp_path / "dirty.json", tmp_path / "dirty.fixed.json"
    mended = 0
    for name, (content, _) in {**STOPPED, **LEFT_OUT}.items():
        path.write_text(json.dumps(content))
        check = check_dataset(path)
        assert not check.is_sound, name
        json.dumps(as_json([check]))
        assert as_text([check]).encode(errors="backslashreplace")
        with suppress(UserError):
            write_fixed(check)
            assert check_dataset(target).is_sound, name
            read_annotations(target)
            target.unlink()
            mended += 1
    assert mended > len(LEFT_OUT) + len(STOPPED) / 2
    for name, content in ACCEPTED.items():
        path.write_text(json.dumps(content))
        assert all(f.severity.name != "STOPS" for f in check_dataset(path).findings), name
