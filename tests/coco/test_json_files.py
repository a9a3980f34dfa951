"""Json files in any encoding; what is none is named."""

import gzip
import json
import os
import tracemalloc

import pytest
from helpers.annotation_files import coco

from rs_d2.coco import json_files
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


@pytest.mark.parametrize("path", ["pipe", "/dev/zero", "."])
def test_what_is_no_file_is_not_waited_for(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"no file$"):
        read_json(tmp_path / path)


def bomb(path, size):
    """A json of that many spaces, a thousandth of it on the disk."""
    with gzip.open(path, "wb", 9) as file:
        for _ in range(size >> 20):
            file.write(b" " * (1 << 20))
        file.write(b"[]")


def test_a_packed_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.json.gz"
    bomb(path, 40 << 20)
    assert path.stat().st_size < 50_000
    monkeypatch.setattr(json_files, "_ALWAYS_ALLOWED", 1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"x\.json\.gz: holds more than \d{7} bytes of json"):
            read_json(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_of_packed_files_can_be_set(tmp_path, monkeypatch):
    path = tmp_path / "x.json.gz"
    bomb(path, 2 << 20)
    assert read_json(path) == []
    monkeypatch.setenv("RS_D2_MAX_JSON_BYTES", "1000000")
    with pytest.raises(UserError, match=r"more than 1000000 bytes.*set RS_D2_MAX_JSON_BYTES"):
        read_json(path)
    monkeypatch.setenv("RS_D2_MAX_JSON_BYTES", "many")
    with pytest.raises(UserError, match=r"^RS_D2_MAX_JSON_BYTES: 'many' is not a number of bytes"):
        read_json(path)
