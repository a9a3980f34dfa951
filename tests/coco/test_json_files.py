"""Json files in any encoding; what is none is named."""

import json

import pytest
from helpers.annotation_files import coco

from rs_d2.coco.json_files import read_json
from rs_d2.coco.reading import read_annotations
from rs_d2.utils.errors import UserError


def problem_of(path):
    with pytest.raises(UserError) as error:
        read_annotations(path)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "no such file"),
        (b"{", "not json (Expecting property name enclosed in double quotes in line 1)"),
        (b"\xff\xfe\xfd", "not json"),
        (b"[]", "neither COCO nor LVIS: the top level is not an object"),
        (b"{}", "images: expected a list, found nothing"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path, data, problem):
    path = tmp_path / "train.json"
    if data is not None:
        path.write_bytes(data)
    assert problem_of(path) == problem


def test_a_cut_off_gzip_file_is_refused(save, tmp_path):
    whole = save(coco(), "train.json.gz").read_bytes()
    path = tmp_path / "cut.json.gz"
    path.write_bytes(whole[: len(whole) // 2])
    assert problem_of(path) == "not a whole gzip file"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_any_unicode_encoding_is_read(tmp_path, encoding):
    path = tmp_path / "val.json"
    path.write_text(json.dumps(["Größe"], ensure_ascii=False), encoding=encoding)
    assert read_json(path) == ["Größe"]
