"""Readers of files answer anything with content or with one line, never with a trace."""

import copy
import gzip
import io
import json
import pickle

import numpy as np
import pytest
import torch
from helpers.made_detections import made
from hypothesis import given
from hypothesis import strategies as st

from rs_d2.checkpoint.files import read_checkpoint, read_pickle
from rs_d2.coco import prepared
from rs_d2.coco.ground_truth import ground_truth_from, ground_truth_of
from rs_d2.coco.json_files import read_json
from rs_d2.coco.reading import find_problems, read_annotations
from rs_d2.coco.results import detections_from
from rs_d2.utils.errors import UserError

NUMBERS = st.one_of(
    st.integers(-3, 200),
    st.integers(),
    st.sampled_from([2**31, 2**53, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e10, 1e308]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=5), st.just("\ud800"))
BOX = st.lists(NUMBERS, min_size=4, max_size=4)
POLYGONS = st.lists(st.lists(NUMBERS, max_size=9), max_size=2)
RLE = st.fixed_dictionaries(
    {
        "size": st.one_of(st.just([160, 160]), st.lists(NUMBERS, max_size=3)),
        "counts": st.one_of(
            st.lists(NUMBERS, max_size=5), st.text(max_size=12), st.binary(max_size=9)
        ),
    }
)
VALUES = st.one_of(
    SCALARS,
    BOX,
    POLYGONS,
    RLE,
    st.recursive(
        SCALARS,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)
FIELDS = st.sampled_from(
    [
        *("id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd", "score"),
        *("file_name", "width", "height", "name", "frequency", "neg_category_ids", "coco_url"),
        *("not_exhaustive_category_ids", "ignore", "keypoints", "num_keypoints"),
    ]
)
TABLES = st.sampled_from(["images", "annotations", "categories"])
DAMAGE = st.lists(
    st.tuples(TABLES, st.integers(0, 5), FIELDS, VALUES, st.sampled_from(["set", "del", "all"])),
    min_size=1,
    max_size=3,
)
CONTENTS = {
    style: made(style, num_images=2, num_classes=3, num_objects=3) for style in ("coco", "lvis")
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where files go; the user's cache is there, too."""
    folder = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def one_line(function, *arguments):
    """The result, or None after a ``UserError`` of one printable line."""
    try:
        return function(*arguments)
    except UserError as error:
        text = str(error)
        assert text
        assert "\n" not in text
        assert len(text) < 1500
        return None


def damaged(style, damage):
    content = copy.deepcopy(CONTENTS[style][0])
    for table, index, field, value, how in damage:
        if how == "all":
            content[table] = value
            continue
        entries = content[table]
        if not isinstance(entries, list) or not entries:
            continue
        entry = entries[index % len(entries)]
        if not isinstance(entry, dict) or (how == "del" and field not in entry):
            entries[index % len(entries)] = value
        elif how == "del":
            del entry[field]
        else:
            entry[field] = value
    return content


@given(st.sampled_from(["coco", "lvis"]), DAMAGE)
def test_a_damaged_annotation_file_is_read_or_one_line(folder, style, damage):
    content = damaged(style, damage)
    for finding in find_problems(content):
        assert "\n" not in str(finding)
    one_line(ground_truth_from, content, style)  # which refuses what others leave out
    path = folder / "x.json"
    try:
        text = json.dumps(content)
    except TypeError:  # bytes
        return
    path.write_text(text)
    file = one_line(read_annotations, path)
    if file is None:
        return
    assert ground_truth_of(file, file.format) is not None
    ids = {image["id"] for image in file.images}
    for annotation in file.annotations:
        x, y, width, height = annotation["bbox"]
        assert np.isfinite([x, y, width, height]).all()
        assert width > 0
        assert height > 0
        assert annotation["image_id"] in ids
    again = prepared.load(file.stamp)  # what another process finds
    assert again is None or repr(again["annotations"]) == repr(file.annotations)  # NaN too


@given(
    st.sampled_from(["bbox", "segm"]),
    st.lists(st.tuples(st.integers(0, 20), FIELDS, VALUES), min_size=1, max_size=3),
)
def test_damaged_results_are_read_or_one_line(iou_type, damage):
    content, results = CONTENTS["coco"]
    truth = ground_truth_from(content, "coco")
    results = copy.deepcopy(results[:8])
    for index, field, value in damage:
        if index == 20:
            results = value
        elif (
            isinstance(results, list)
            and results
            and isinstance(results[index % len(results)], dict)
        ):
            results[index % len(results)][field] = value
    found = one_line(detections_from, results, truth, iou_type)
    if found is not None:
        assert np.isfinite(found.boxes).all()
        assert np.isfinite(found.scores).all()


PIECES = st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=4)), max_size=6)


def with_pieces(data, pieces, cut):
    data = bytearray(data[: len(data) - cut % (len(data) + 1)])
    for position, piece in pieces:
        position %= len(data) + 1
        data[position : position + len(piece)] = piece
    return bytes(data)


def samples():
    state = {"model": {"a.weight": torch.ones(2, 3)}, "iteration": 3, "names": ["x"]}
    forms = {}
    for name, is_zip in (("new.pth", True), ("old.pth", False)):
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=is_zip)
        forms[name] = buffer.getvalue()
    arrays = {"model": {"a": np.ones((2, 3), np.float32), "n": np.float64(2)}, "__author__": "x"}
    for protocol in (0, 2, 4):
        forms[f"{protocol}.pkl"] = pickle.dumps(arrays, protocol=protocol)
    text = json.dumps(CONTENTS["coco"][0])[:3000].encode()
    return {**forms, "x.json": text, "x.json.gz": gzip.compress(text, mtime=0)}


SAMPLES = samples()


@given(st.sampled_from(sorted(SAMPLES)), PIECES, st.one_of(st.just(0), st.integers(0, 5000)))
def test_damaged_bytes_are_read_or_one_line(folder, name, pieces, cut):
    path = folder / name
    path.write_bytes(with_pieces(SAMPLES[name], pieces, cut))
    if name.endswith(".pkl"):
        one_line(read_pickle, path)
    elif name.endswith(".pth"):
        one_line(read_checkpoint, path)
    else:
        one_line(read_json, path)
