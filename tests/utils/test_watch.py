"""Several small processes that watch one another: whichever dies, all end and one says why."""

import json
import multiprocessing
import os
import signal
import socket
import time

import pytest

from rs_d2.utils import watch
from rs_d2.utils.place import Place
from rs_d2.utils.watch import Failure, Watch, end_process

fork = multiprocessing.get_context("fork")
NUM = 3


def wait_without_the_interpreter(_):
    """What `json.load` of a huge file does: no thread of this process runs meanwhile."""
    import ctypes

    ctypes.PyDLL(None).sleep(2)


# What a process does after all are connected; the others wait for ever.
DEEDS = {
    "is killed": lambda _: os.kill(os.getpid(), signal.SIGKILL),
    "leaves without a word": lambda _: os._exit(0),
    "fails": lambda w: w.fail(Failure(w._place.rank, f"rank {w._place.rank} fails", 7)),
}


class Store:
    """A folder in place of torch's store, which does not like to be forked."""

    host, port = "127.0.0.1", 1

    def __init__(self, folder):
        self._folder = folder

    def set(self, key, value):
        path = self._folder / key.replace("/", "_")
        path.with_suffix(".part").write_text(value)
        path.with_suffix(".part").rename(path)

    def get(self, key):
        path = self._folder / key.replace("/", "_")
        while not path.exists():
            time.sleep(0.01)
        return path.read_text()


def _process(rank, store, told, deeds):
    """One process: does its deed once all are there."""
    watch._PATIENCE = 1.0
    place = Place(rank, NUM, rank, NUM, "tcp://127.0.0.1:1")
    connection = Watch(place, store, lambda failure: told.put(failure))
    store.set(f"there {rank}", "")
    for each in range(NUM):
        store.get(f"there {each}")
    if rank in deeds:
        deeds[rank](connection)
    else:
        time.sleep(60)


def together(folder, deeds):
    """Exit codes of the processes, what was told, and the seconds that it took."""
    folder = folder / str(time.monotonic_ns())
    folder.mkdir()
    told = fork.SimpleQueue()
    processes = [
        fork.Process(target=_process, args=(rank, Store(folder), told, deeds))
        for rank in range(NUM)
    ]
    began = time.monotonic()
    for process in processes:
        process.start()
    while any(process.exitcode is None for process in processes) and time.monotonic() < began + 20:
        time.sleep(0.02)  # join() would wait for grandchildren, too
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    lines = []
    while not told.empty():
        lines.append(told.get())
    return codes, lines, time.monotonic() - began


@pytest.mark.parametrize("rank", range(NUM))
@pytest.mark.parametrize("deed", DEEDS)
def test_all_end_and_one_says_why(deed, rank, tmp_path):
    codes, told, seconds = together(tmp_path, {rank: DEEDS[deed]})
    assert None not in codes, codes
    assert seconds < 10
    (failure,) = told
    assert failure.rank == rank
    if deed == "fails":
        assert codes == [7] * NUM
        assert failure.line == f"rank {rank} fails"
    else:
        assert [code for r, code in enumerate(codes) if r != rank] == [1] * (NUM - 1)
        assert failure.line.startswith(f"rank {rank} of {NUM}")
        assert failure.line.endswith("died without a word: killed, or out of memory")


def test_the_same_mistake_in_all_is_told_once(tmp_path):
    codes, told, _ = together(tmp_path, dict.fromkeys(range(NUM), DEEDS["fails"]))
    assert codes == [7] * NUM
    assert len(told) == 1


def test_two_deaths_at_once_end_the_third(tmp_path):
    codes, told, _ = together(tmp_path, {0: DEEDS["is killed"], 2: DEEDS["is killed"]})
    assert codes[1] == 1
    assert len(told) == 1


def test_who_leaves_in_peace_ends_nobody(tmp_path):
    def leave(connection):
        connection.leave()
        os._exit(0)

    def later(connection):
        time.sleep(0.5)
        leave(connection)

    assert together(tmp_path, {0: leave, 1: later, 2: later})[:2] == ([0, 0, 0], [])
    assert together(tmp_path, {0: later, 1: leave, 2: leave})[:2] == ([0, 0, 0], [])


def test_a_failure_after_the_first_has_left_is_still_told(tmp_path):
    def leave(connection):
        connection.leave()
        time.sleep(0.3)
        os._exit(0)

    def fail_later(connection):
        time.sleep(0.6)
        DEEDS["fails"](connection)

    codes, told, _ = together(tmp_path, {0: leave, 1: fail_later, 2: leave})
    assert codes == [0, 7, 0]
    assert [failure.line for failure in told] == ["rank 1 fails"]


def test_a_process_that_holds_the_interpreter_for_long_is_not_taken_for_dead(tmp_path):
    def work(connection):
        wait_without_the_interpreter(connection)
        connection.leave()
        os._exit(0)

    codes, told, _ = together(tmp_path, {0: work, 1: work, 2: work})
    assert (codes, told) == ([0, 0, 0], [])


def test_the_children_of_a_dead_process_do_not_hide_its_death(tmp_path):
    def with_child(connection):
        if os.fork() == 0:  # a loader's worker that has not noticed yet
            time.sleep(5)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    codes, told, seconds = together(tmp_path, {1: with_child})
    assert codes[::2] == [1, 1]
    assert len(told) == 1
    assert seconds < 4


def test_a_stranger_at_the_port_changes_nothing(tmp_path):
    def knock(connection):
        port = connection._connection.getpeername()[1]
        for line in (
            b"GET / HTTP/1.1\r\n\r\n",
            b'{"failed": [0, "no", 1]}\n',
            b"[]\n",
            b"x" * 200_000,
        ):
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(line)
        time.sleep(0.3)
        connection.leave()
        os._exit(0)

    def later(connection):
        time.sleep(1)
        connection.leave()
        os._exit(0)

    assert together(tmp_path, {0: later, 1: knock, 2: later})[:2] == ([0, 0, 0], [])


def test_the_end_takes_the_children_along(tmp_path):
    def parent():
        child = fork.Process(target=time.sleep, args=(60,))
        child.start()
        (tmp_path / "pid").write_text(json.dumps(child.pid))
        end_process(3, lambda: time.sleep(60))  # and a terminal that nobody reads

    watch_patience, watch._PATIENCE = watch._PATIENCE, 0.2
    process = fork.Process(target=parent)
    process.start()
    watch._PATIENCE = watch_patience
    process.join(10)
    assert process.exitcode == 3
    pid = int((tmp_path / "pid").read_text())
    time.sleep(0.1)
    assert not os.path.exists(f"/proc/{pid}") or "Z" in _state(pid)


def _state(pid):
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().split()[2]
