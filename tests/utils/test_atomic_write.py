"""A file is written whole or not at all."""

import os
import stat
import threading

import pytest

from rs_d2.utils.atomic_write import atomic_write
from rs_d2.utils.errors import UserError


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("mode", "content"), [("wb", b"\x00\xff"), ("w", "zwölf\n")])
def test_a_file_appears_with_its_content_and_nothing_else(tmp_path, mode, content):
    path = tmp_path / "x"
    with atomic_write(path, mode) as file:
        file.write(content)
        assert not path.exists()
    assert path.read_bytes() == (content if mode == "wb" else content.encode())
    assert os.listdir(path.parent) == ["x"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x"
    path.write_text("old")

    def half():
        with atomic_write(path, "w") as file:
            file.write("half")
            raise error

    with pytest.raises(error):
        half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(UserError, match=r"x cannot be written \(No space left on device\)$"),
        atomic_write(tmp_path / "x"),
    ):
        raise OSError(28, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path / "missing" / "x", tmp_path):
        with (
            pytest.raises(UserError, match=f"{path} cannot be written"),
            atomic_write(path) as file,
        ):
            file.write(b"x")
    assert os.listdir(tmp_path) == ["file"]


def test_permissions_are_the_umasks_or_those_of_the_file_before(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "new"):
            pass
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "new") == 0o640
    (tmp_path / "new").chmod(0o604)
    with atomic_write(tmp_path / "new"):
        pass
    assert mode_of(tmp_path / "new") == 0o604


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_write(tmp_path / "link", "w") as file:
        file.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_pipe_is_written_as_it_comes(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_text()))
    reader.start()
    with atomic_write(tmp_path / "pipe", "w") as file:
        file.write("through")
    reader.join()
    assert found == ["through"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
