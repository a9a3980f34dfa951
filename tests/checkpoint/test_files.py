"""Checkpoint files: what is read, what is refused, and that none is left half written."""

import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rs_d2.checkpoint.files import read_checkpoint, read_pickle, write_checkpoint
from rs_d2.checkpoint.metadata import ENTRY, CheckpointMetadata, read_metadata
from rs_d2.utils.errors import UserError


class Stranger:
    """Something that no list of harmless types has."""


def test_what_is_written_is_read(tmp_path):
    content = {"model": {"w": torch.arange(3.0)}, "iteration": 7, "names": ["a", "b"]}
    write_checkpoint(content, tmp_path / "x.pth")
    found = read_checkpoint(tmp_path / "x.pth")
    assert torch.equal(found.pop("model")["w"], torch.arange(3.0))
    assert found == {"iteration": 7, "names": ["a", "b"]}
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"missing/x.pth cannot be written \("):
        write_checkpoint({}, tmp_path / "missing" / "x.pth")


def test_a_file_may_be_replaced_while_it_is_read(tmp_path):
    write_checkpoint({"w": torch.zeros(1 << 20)}, tmp_path / "x.pth")
    before = read_checkpoint(tmp_path / "x.pth", mmap=True)["w"]
    write_checkpoint({"w": torch.ones(1)}, tmp_path / "x.pth")
    assert torch.equal(before, torch.zeros(1 << 20))
    before.add_(1)  # of this process alone
    assert torch.equal(read_checkpoint(tmp_path / "x.pth")["w"], torch.ones(1))


def test_a_file_in_the_format_before_torch_1_6_is_read(tmp_path):
    content = {"model": {"w": torch.arange(3.0)}}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    for mmap in (False, True):
        found = read_checkpoint(tmp_path / "x.pth", mmap=mmap)
        assert torch.equal(found["model"]["w"], torch.arange(3.0))


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_checkpoint({"a": 1}, tmp_path / "x.pth")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_checkpoint({"a": lambda: None}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def nested(levels):
    """Each level holds the one below twice: few objects, many ways to them."""
    content = []
    for _ in range(levels):
        content = [content, content]
    return content


LARGER = {
    "expanded": {"w": torch.zeros(1).expand(1 << 40)},
    "overlapping": {"w": torch.zeros(1 << 14).as_strided((1 << 13, 1 << 13), (1, 1))},
    "sparse": {"w": torch.eye(2).to_sparse()},
    "meta": {"w": torch.empty(1 << 40, device="meta")},
    "nested": {"w": nested(60)},
    "deep": {"w": [nested(0)]},
}
for _ in range(200):
    LARGER["deep"] = {"w": LARGER["deep"]}


@pytest.mark.parametrize("kind", LARGER)
def test_a_content_larger_than_its_file_is_refused(tmp_path, kind):
    torch.save(LARGER[kind], tmp_path / "x.pth")
    for mmap in (False, True):
        with pytest.raises(UserError, match=r"x\.pth is not a checkpoint \((a tensor|containers)"):
            read_checkpoint(tmp_path / "x.pth", mmap=mmap)


def test_a_small_tensor_may_be_expanded(tmp_path):
    torch.save({"w": torch.ones(1).expand(4, 4)}, tmp_path / "x.pth")
    assert read_checkpoint(tmp_path / "x.pth")["w"].sum() == 16


def test_a_packed_file_is_refused(tmp_path):
    torch.save({"w": torch.zeros(100)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "x.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name) + bytes(1 << 20))
    with pytest.raises(UserError, match=r"x\.pth is not a checkpoint \(packed: it would grow"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"\x80\x02]q\x00.", b"PK\x03\x04 broken"])
def test_other_files_are_refused_by_name(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pth is not a checkpoint"):
        read_checkpoint(path)


def test_a_file_in_the_old_format_that_is_cut_anywhere_is_refused_by_name(tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"x\.pth (is not a checkpoint|holds)"):
            read_checkpoint(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"x\.pth does not exist$"):
        read_checkpoint(tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"no file$"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_file_that_could_run_code_is_refused_and_its_class_named(tmp_path, new_format):
    path = tmp_path / "x.pth"
    torch.save({"x": Stranger()}, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UserError, match=r"x\.pth holds \S+\.Stranger, more than tensors"):
        read_checkpoint(path)


def test_an_ordered_dictionary_of_tensors_is_plain_enough(tmp_path):
    torch.save({"model": collections.OrderedDict(w=torch.ones(2))}, tmp_path / "x.pth")
    assert list(read_checkpoint(tmp_path / "x.pth")["model"]) == ["w"]


def test_metadata_survive_a_file(tmp_path):
    metadata = CheckpointMetadata("A: 1\n", ("cat", "dog"), {"bbox/AP": 33.4}, "abc", "0.1")
    path = Path(tmp_path / "x.pth")
    write_checkpoint({ENTRY: metadata.to_entry()}, path)
    assert read_metadata(read_checkpoint(path), path.name) == metadata


@pytest.mark.parametrize("entry", [5, {"config": 3}, {"config": "", "class_names": [1]}])
def test_an_entry_that_is_no_metadata_is_refused(entry):
    with pytest.raises(UserError, match=r"^x\.pth: its entry 'rs_d2' is not the metadata"):
        read_metadata({ENTRY: entry}, "x.pth")


def test_files_without_metadata_have_none():
    assert read_metadata({"model": {}}, "x.pth") is None


def test_a_pickle_of_arrays_passes(tmp_path):
    path = tmp_path / "x.pkl"
    arrays = {"model": {"w": np.ones((2, 3), np.float32), "n": np.int64(3)}, "__author__": "a"}
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(arrays, protocol=protocol))
        read_pickle(path)


def test_a_pickle_that_could_run_code_is_refused_unread(tmp_path):
    path, mark = tmp_path / "x.pkl", tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    path.write_bytes(pickle.dumps({"model": Bomb()}))
    with pytest.raises(UserError, match=r"x\.pkl: holds \S+open, more than arrays"):
        read_pickle(path)
    assert not mark.exists()


def test_what_is_no_pickle_is_named(tmp_path):
    (tmp_path / "x.pkl").write_text("hello")
    with pytest.raises(UserError, match=r"x\.pkl"):
        read_pickle(tmp_path / "x.pkl")
    with pytest.raises(UserError, match="cannot be read"):
        read_pickle(tmp_path / "missing.pkl")
