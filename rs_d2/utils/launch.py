"""Start a function in one process or in several, on GPUs or on the CPU."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from rs_d2.utils.children import Children, with_rest
from rs_d2.utils.errors import UserError
from rs_d2.utils.place import FROM_ENVIRONMENT, Place, check_machines, meeting_point
from rs_d2.utils.watch import Failure, Watch, end_process, end_with_parent, own_address

_START_TIMEOUT = 600.0  # seconds until all processes have come
_COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # Detectron2's
_MARK = "rs_d2/start"
_INTERRUPTED = 128 + signal.SIGINT  # exit code


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int | None = None,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
    *,
    left: Callable[[], str] | None = None,
    start_timeout: float = _START_TIMEOUT,
) -> None:
    """Run `main_func(*args)` in one process per GPU, or per CPU worker on a machine without GPUs.

    Like Detectron2's `launch`, which refuses to start several processes without a GPU. They talk
    through NCCL, on the CPU through gloo. When one of them dies, all end within ten seconds.

    Args:
        main_func: Importable function; runs in this process when there is only one.
        num_gpus_per_machine: Processes per machine.
        num_machines: Number of machines.
        machine_rank: Rank of this machine; may be left out for one machine.
        dist_url: tcp://HOST:PORT of the first machine; None or "auto" picks a free port (one
            machine only).
        args: Arguments of `main_func`.
        left: Says what a failed run has left behind, as the end of the line about the failure.
        start_timeout: Seconds until all processes must have come.

    Raises:
        UserError: The numbers do not fit this machine, or a process raised a `UserError`.
        ProcessFailed: A process died, or raised another exception, whose trace it has printed.
        SystemExit: A process ended by itself with an exit code above 0.
    """
    check_machines(num_machines, machine_rank, dist_url)
    if num_gpus_per_machine < 1:
        raise UserError(f"--num-gpus {num_gpus_per_machine} must be at least 1")
    if num_machines * num_gpus_per_machine == 1:
        main_func(*args)
        return
    if torch.cuda.is_available() and num_gpus_per_machine > torch.cuda.device_count():
        raise UserError(
            f"--num-gpus {num_gpus_per_machine}: this machine has {torch.cuda.device_count()}"
        )
    machine = machine_rank or 0
    host, port = ("127.0.0.1", 0) if dist_url in (None, "auto") else meeting_point(dist_url)
    store = _open_store(host, port) if machine == 0 else None
    url = dist_url if store is None or port else f"tcp://127.0.0.1:{store.port}"
    places = [
        Place(
            rank=machine * num_gpus_per_machine + local_rank,
            num_processes=num_machines * num_gpus_per_machine,
            local_rank=local_rank,
            num_local=num_gpus_per_machine,
            url=url,
        )
        for local_rank in range(num_gpus_per_machine)
    ]
    Children(places, _child, (main_func, args, left, start_timeout)).join(left)


def run_as_one_of_several(
    place: Place,
    main_func: Callable[..., Any],
    args: tuple[Any, ...] = (),
    *,
    tell: Callable[[Failure], None],
    left: Callable[[], str] | None = None,
    start_timeout: float = _START_TIMEOUT,
) -> None:
    """Run `main_func(*args)` in this process, together with others that were started beside it.

    After a failure, of this process or of another one, it does not return: the process ends.

    Args:
        place: of this process.
        main_func: what to run.
        args: its arguments.
        tell: shows a failure; called in one process.
        left: see `launch`.
        start_timeout: see `launch`.

    Raises:
        SystemExit: `main_func` did; the other processes go on.
        KeyboardInterrupt: likewise.
    """
    if place.url != FROM_ENVIRONMENT or "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()

    def tell_all(failure: Failure) -> None:
        tell(failure._replace(line=with_rest(failure.line, failure.exit_code, left)))

    watch = None
    try:
        store = _meet(place, start_timeout)
        if place.url == FROM_ENVIRONMENT and threading.current_thread() is threading.main_thread():
            # torchrun sends it as soon as another process is dead: not before that is told
            signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        watch = Watch(place, store, tell_all)
        with _process_group(place, store):
            main_func(*args)
    except (SystemExit, KeyboardInterrupt) as stopped:
        if watch is not None:
            watch.leave(_exit_code(stopped))
        raise
    except BaseException as error:
        if watch is not None and reason_of(error) is None and isinstance(error, RuntimeError):
            watch.wait_for_another()  # how another one's death looks from here is no news
        if reason_of(error) is None:
            traceback.print_exc()
        failure = _failure_of(error, place)
        if watch is not None:
            watch.fail(failure)
        end_process(failure.exit_code, lambda: tell_all(failure))
    watch.leave()


def reason_of(error: BaseException) -> str | None:
    """One line about an error that is no mistake in the code, and None about others."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError | FloatingPointError):
        return text
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return f"out of memory ({text})" if text else "out of memory"
    if isinstance(error, RuntimeError) and "DataLoader worker (pid" in text:
        return f"a data-loader worker died ({text})"
    if isinstance(error, RuntimeError) and text.startswith("Too many open files"):
        return "too many open files (raise `ulimit -n`, or lower DATALOADER.NUM_WORKERS)"
    return None


def _child(place: Place, report: Connection, main_func, args, left, start_timeout) -> None:
    """One of the processes that ``launch`` starts."""
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // place.num_local))
    try:
        run_as_one_of_several(
            place, main_func, args, tell=report.send, left=left, start_timeout=start_timeout
        )
    except KeyboardInterrupt:  # told by the parent
        sys.exit(_INTERRUPTED)


def _open_store(host: str, port: int) -> dist.TCPStore:
    """The store where all processes meet, in the first machine's parent process."""
    try:
        return dist.TCPStore(host, port, is_master=True, wait_for_workers=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--dist-url tcp://{host}:{port}: cannot listen there ({reason})"
        ) from error


def _meet(place: Place, timeout: float) -> Any:
    """The store, once all processes are there."""
    limit = timedelta(seconds=timeout)
    began = time.monotonic()
    try:
        if place.url == FROM_ENVIRONMENT:
            outer, _, _ = next(dist.rendezvous(place.url, timeout=limit))
            store = _fresh_store(place, outer, began + timeout)
        else:
            host, port = meeting_point(place.url)
            store = dist.TCPStore(host, port, is_master=False, timeout=limit)
    except RuntimeError as error:
        raise UserError(
            f"{place}: nobody answers at {_where(place)} ({str(error).splitlines()[0]})"
        ) from error
    keys = [f"rs_d2/rank/{rank}" for rank in range(place.num_processes)]
    if store.add(keys[place.rank], 1) > 1:
        raise UserError(
            f"{place} is there twice: --machine-rank must differ between machines, and"
            f" {_where(place)} between trainings"
        )
    try:
        store.wait(keys, timedelta(seconds=max(1.0, timeout - (time.monotonic() - began))))
    except RuntimeError as error:
        absent = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        raise UserError(
            f"after {timeout:.0f} s rank {', '.join(absent)} of {place.num_processes} is still"
            f" missing at {_where(place)}: is the program running on every machine?"
        ) from error
    store.set_timeout(_COLLECTIVE_TIMEOUT)
    return store


def _fresh_store(place: Place, outer: Any, until: float) -> dist.TCPStore:
    """A store of this start's own: torchrun's still holds what an earlier start has left in it."""
    if place.rank == 0:
        host, mark = own_address(outer), secrets.token_hex(8)
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        store.set(_MARK, mark)
        outer.set(_MARK, json.dumps([host, store.port, mark]))
        return store
    while time.monotonic() < until:
        host, port, mark = json.loads(outer.get(_MARK))
        with contextlib.suppress(OSError, RuntimeError):  # that of a start that is over
            socket.create_connection((host, port), timeout=5).close()
            store = dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
            if store.check([_MARK]) and store.get(_MARK).decode() == mark:
                return store
        time.sleep(0.2)
    raise RuntimeError(f"rank 0 was last seen at {host}:{port}")


def _where(place: Place) -> str:
    if place.url == FROM_ENVIRONMENT:
        return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return place.url


@contextmanager
def _process_group(place: Place, store: Any) -> Iterator[None]:
    from detectron2.utils import comm

    on_gpu = torch.cuda.is_available()
    if on_gpu:
        if place.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{place}: {place.num_local} processes on a machine with"
                f" {torch.cuda.device_count()} GPUs"
            )
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=dist.PrefixStore("detectron2", store),
        world_size=place.num_processes,
        rank=place.rank,
        timeout=_COLLECTIVE_TIMEOUT,
    )
    _create_local_groups(comm, place.num_local, place.num_machines, place.machine)
    comm.synchronize()
    yield
    dist.destroy_process_group()


def _create_local_groups(comm, num_local: int, num_machines: int, machine_rank: int) -> None:
    """Tell Detectron2 which processes share this machine."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(num_local)
        return
    for machine in range(num_machines):  # every process must create every group
        group = dist.new_group(list(range(machine * num_local, (machine + 1) * num_local)))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group


def _failure_of(error: BaseException, place: Place) -> Failure:
    if isinstance(error, UserError):
        return Failure(place.rank, _short(str(error)), 2)
    if isinstance(error, FloatingPointError):  # says itself in which process
        return Failure(place.rank, _short(str(error)), 1)
    reason = reason_of(error) or f"{type(error).__name__}: {error}"
    return Failure(place.rank, _short(f"{place}: {reason}"), 1)


def _short(text: str) -> str:
    """One line, which a pipe takes whole."""
    line = " ".join(text.split())
    return line if len(line) <= 2000 else line[:2000] + " ..."


def _exit_code(stopped: BaseException) -> int:
    if isinstance(stopped, KeyboardInterrupt):
        return _INTERRUPTED
    code = stopped.code
    return code if isinstance(code, int) else int(code is not None)
