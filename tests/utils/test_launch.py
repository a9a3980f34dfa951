"""Several processes start together, and end together whatever ends one of them."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

pytest.importorskip("detectron2")

from rs_d2.utils import children, d2_compat, launch
from rs_d2.utils.children import ProcessFailed
from rs_d2.utils.errors import UserError
from rs_d2.utils.place import Place

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="processes without a GPU")


def add_up(folder: str) -> None:
    """Write what this process sees of the others; runs in spawned processes."""
    from detectron2.utils import comm

    rank = comm.get_rank()
    total = torch.tensor([rank + 1.0])
    dist.all_reduce(total)
    model = d2_compat.create_ddp_model(nn.Linear(2, 1, bias=False))
    model(torch.full((1, 2), rank + 1.0)).sum().backward()
    report = {
        "sum": total.item(),
        "local": [comm.get_local_rank(), comm.get_local_size()],
        "gathered": comm.all_gather(f"rank {rank}"),
        "gradient": model.module.weight.grad.flatten().tolist(),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(report))


def complain(text: str) -> None:
    raise UserError(text)


@no_gpu
def test_two_cpu_processes_work_together(tmp_path):
    launch.launch(add_up, 2, args=(str(tmp_path),))
    for rank in range(2):
        report = json.loads((tmp_path / f"{rank}.json").read_text())
        assert report["sum"] == 3.0
        assert report["local"] == [rank, 2]
        assert report["gathered"] == ["rank 0", "rank 1"]
        assert report["gradient"] == [1.5, 1.5]  # the mean over processes


@no_gpu
def test_error_of_the_user_in_a_worker_stays_one_line():
    with pytest.raises(UserError, match=r"^no such file: x\.json$"):
        launch.launch(complain, 2, args=("no such file: x.json",))


def act(deeds, folder):
    """Do what the deeds say for this process; the others wait for it in vain."""
    Path(folder, f"{dist.get_rank()}.pid").write_text(str(os.getpid()))
    dist.barrier()  # a failure ends the others at once: they might not have written theirs
    deed = deeds.get(dist.get_rank())
    if deed == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif deed == "bug":
        raise ZeroDivisionError("a bug")
    elif deed == "code 5":
        sys.exit(5)
    elif deed == "parent killed":
        time.sleep(0.3)
        os.kill(os.getppid(), signal.SIGKILL)
    elif deed == "parent stopped":
        time.sleep(0.3)
        os.kill(os.getppid(), signal.SIGTERM)
    dist.all_reduce(torch.ones(1))
    time.sleep(60)


def what_is_left():
    return "model_0000009.pth is left"


@no_gpu
def test_a_killed_process_ends_all_and_is_named(tmp_path):
    with pytest.raises(
        ProcessFailed,
        match=r"^rank 1 of 2 \(process \d+\) was ended by SIGKILL, .*"
        r"memory ran out; model_0000009\.pth is left$",
    ) as error:
        launch.launch(act, 2, args=({1: "killed"}, str(tmp_path)), left=what_is_left)
    assert error.value.exit_code == 1
    assert gone(tmp_path)


def test_a_process_that_dies_while_it_is_looked_at_is_named():
    class Dying:
        """Alive at the first look, dead at the second."""

        pid = 7
        sentinel = os.open("/dev/null", os.O_RDONLY)
        looks = iter([None])
        exitcode = property(lambda self: next(self.looks, -signal.SIGKILL))

    both = children.Children([], complain, ())
    both._processes, both._places = [Dying()], [Place(1, 2, 1, 2, "tcp://127.0.0.1:1")]
    with pytest.raises(ProcessFailed, match=r"rank 1 of 2 \(process 7\) was ended by SIGKILL"):
        both.join(None)
    os.close(Dying.sentinel)


@no_gpu
def test_a_bug_keeps_its_traceback_and_names_the_process(tmp_path, capfd):
    line = r"^rank 0 of 2: ZeroDivisionError: a bug; model_0000009\.pth is left$"
    with pytest.raises(ProcessFailed, match=line):
        launch.launch(act, 2, args=({0: "bug"}, str(tmp_path)), left=what_is_left)
    trace = capfd.readouterr().err
    assert trace.count("Traceback") == 1
    assert "ZeroDivisionError: a bug" in trace
    assert gone(tmp_path)


@no_gpu
def test_an_exit_code_is_kept(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        launch.launch(act, 2, args=({0: "code 5", 1: "code 5"}, str(tmp_path)))
    assert stopped.value.code == 5


@no_gpu
@pytest.mark.parametrize(("deed", "code"), [("parent killed", -9), ("parent stopped", 143)])
def test_the_processes_end_with_the_one_that_started_them(deed, code, tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    parent = context.Process(target=start_two, args=(deed, str(tmp_path)))
    parent.start()
    parent.join(100)
    assert parent.exitcode == code
    assert gone(tmp_path)


def start_two(deed, folder):
    try:
        launch.launch(act, 2, args=({1: deed}, folder), left=what_is_left)
    except ProcessFailed as error:
        sys.exit(error.exit_code)


def gone(folder):
    """Whether the two processes have ended, or do so within seconds."""
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    until = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return len(pids) == 2 and not any(map(is_alive, pids))


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1][:3]
    except OSError:
        return False


@no_gpu
def test_processes_that_never_come_are_named():
    url = f"tcp://127.0.0.1:{free_port()}"
    line = r"after 1 s rank 1 of 2 is still missing at tcp://127.*on every machine\?"
    with pytest.raises(UserError, match=line):
        launch.launch(complain, 1, 2, 0, url, args=("never",), start_timeout=1)


@no_gpu
def test_a_process_that_waits_for_the_others_can_be_ended(monkeypatch):
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    waiting = torch.multiprocessing.get_context("fork").Process(
        target=launch.run_as_one_of_several,
        args=(Place(0, 2, 0, 2, "env://"), complain, ("never",)),
        kwargs={"tell": print, "start_timeout": 60},
    )
    waiting.start()
    time.sleep(0.5)
    waiting.terminate()
    waiting.join(10)
    ended = waiting.exitcode
    waiting.kill()
    assert ended == -signal.SIGTERM


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--dist-url {url}: cannot listen there"):
            launch.launch(complain, 1, 2, 0, url, args=("never",))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried"), "CUDA out of memory. Tried"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "pid 7"),
        (FloatingPointError("loss is nan"), "loss is nan"),
        (RuntimeError("Too many open files. Communication with"), "too many open files (raise"),
        (RuntimeError("Caught KeyError in DataLoader worker process 0."), None),
        (ZeroDivisionError("a bug"), None),
    ],
)
def test_what_is_no_bug_is_told_in_a_line(error, line):
    reason = launch.reason_of(error)
    assert reason is None if line is None else line in reason


def test_single_process_runs_in_place():
    seen = []
    launch.launch(seen.append, 1, args=(1,))
    assert seen == [1]
    with pytest.raises(UserError, match="this line"):
        launch.launch(complain, 1, args=("this line",))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_more_gpus_than_there_are_is_one_line():
    with pytest.raises(UserError, match="--num-gpus 99: this machine has"):
        launch.launch(complain, 99, args=("never",))


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"num_gpus_per_machine": 0}, "--num-gpus 0"),
        ({"num_gpus_per_machine": 1, "num_machines": 2}, "--dist-url"),
        ({"num_gpus_per_machine": 1, "machine_rank": 1}, "--machine-rank 1"),
        ({"num_gpus_per_machine": 2, "dist_url": "localhost:1234"}, "is not tcp://HOST:PORT"),
    ],
)
def test_impossible_numbers_name_the_argument(arguments, culprit):
    with pytest.raises(UserError, match=culprit):
        launch.launch(complain, args=("never",), **arguments)
