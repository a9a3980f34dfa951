"""One run at a time in an output folder, whatever stands where its lock file goes."""

import errno
import fcntl
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from rs_d2.utils.errors import UserError
from rs_d2.utils.run_lock import LOCK, locked_folder


def test_a_folder_serves_one_run_at_a_time(tmp_path):
    with locked_folder(tmp_path):
        with pytest.raises(UserError, match=r"in use by process \d+ on .*run.lock"):
            locked_folder(tmp_path).__enter__()
        assert (tmp_path / LOCK).exists()
    assert list(tmp_path.iterdir()) == []


def lock_of(path, **changes):
    with locked_folder(path):
        content = json.loads((path / LOCK).read_text())
    (path / LOCK).write_text(json.dumps({**content, **changes}))


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": 2**22 + 1},
        {"pid": os.getppid(), "started": "{machine} 1"},  # an id that was given to another
        {"pid": os.getppid(), "started": "another machine 1"},
        {"pid": 0},
        {"pid": "x"},
        {"host": "elsewhere"},
    ],
)
def test_the_lock_of_a_dead_run_does_not_count(tmp_path, changes):
    with locked_folder(tmp_path):
        machine = json.loads((tmp_path / LOCK).read_text())["started"].rpartition(" ")[0]
    if "started" in changes:
        changes = {**changes, "started": changes["started"].format(machine=machine)}
    lock_of(tmp_path, **changes)
    with locked_folder(tmp_path, beat=0.02):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (tmp_path / LOCK).write_bytes(b"\x80")
    with locked_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"host": "elsewhere"}, {"started": "a machine of this name"}])
def test_a_run_that_lives_on_another_machine_counts(tmp_path, changes):
    lock_of(tmp_path, **changes, pid=2**22 + 1)
    done = threading.Event()

    def beat():
        while not done.wait(0.02):
            os.utime(tmp_path / LOCK)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="in use by process"):
            locked_folder(tmp_path, beat=0.05).__enter__()
    finally:
        done.set()
        thread.join()


MADE = {
    "link": lambda lock: lock.symlink_to("victim"),
    "hard link": lambda lock: os.link(lock.with_name("victim"), lock),
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda lock: lock.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("kind", MADE)
def test_a_lock_that_is_no_file_of_a_run_is_told_and_left(tmp_path, kind):
    (tmp_path / "victim").write_text("precious")
    MADE[kind](tmp_path / LOCK)
    with pytest.raises(UserError, match=r"^OUTPUT_DIR: "):
        locked_folder(tmp_path).__enter__()
    assert (tmp_path / "victim").read_text() == "precious"
    assert os.path.lexists(tmp_path / LOCK)


def test_a_lock_that_another_program_holds_is_not_waited_for_without_end(tmp_path):
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another program holds"):
            locked_folder(tmp_path, beat=0.01).__enter__()


def test_without_locks_of_the_file_system_a_living_run_still_counts(tmp_path, monkeypatch):
    def unknown(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with locked_folder(tmp_path), pytest.raises(UserError, match="in use by process"):
        locked_folder(tmp_path).__enter__()


@pytest.mark.parametrize("put_back", [os.mkdir, Path.touch])
def test_a_folder_that_is_gone_at_the_end_of_a_run_is_no_failure(tmp_path, put_back):
    folder = tmp_path / "out"
    folder.mkdir()
    with locked_folder(folder):
        shutil.rmtree(folder)
        put_back(folder)
    assert folder.exists()


@pytest.mark.parametrize("is_dead_lock_there", [True, False])
def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path, is_dead_lock_there):
    for number in range(30):
        folder = tmp_path / str(number)
        folder.mkdir()
        if is_dead_lock_there:
            lock_of(folder, pid=2**22 + 1)
        assert winners(folder, 8) == 1
        assert list(folder.iterdir()) == []


def winners(folder, number):
    start, end, got = threading.Barrier(number), threading.Barrier(number), []

    def attempt():
        start.wait()
        try:
            with locked_folder(folder):
                got.append(1)
                end.wait()
        except UserError:
            end.wait()

    threads = [threading.Thread(target=attempt) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(got)
