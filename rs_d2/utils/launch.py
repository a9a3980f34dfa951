"""Start a function in one process or in several, on GPUs or on the CPU."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from rs_d2.utils.errors import UserError


def launch(
    main_func: Callable[..., Any],
    num_gpus_per_machine: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str | None = None,
    args: tuple[Any, ...] = (),
) -> None:
    """Run `main_func(*args)` in one process per GPU, or per CPU worker on a machine without GPUs.

    Detectron2's `launch` where a GPU is there. Detectron2 0.6 refuses to start several processes
    without one, so these are started here and talk through gloo.

    Args:
        main_func: Importable function; runs in this process when there is only one.
        num_gpus_per_machine: Processes per machine.
        num_machines: Number of machines.
        machine_rank: Rank of this machine.
        dist_url: Rendezvous address; None or "auto" picks a free port (one machine only).
        args: Arguments of `main_func`.

    Raises:
        UserError: The numbers do not fit this machine, or a worker raised a `UserError`.
    """
    if num_machines > 1 and dist_url in (None, "auto"):
        raise UserError("--num-machines above 1 needs --dist-url tcp://<first machine>:<port>")
    if not 0 <= machine_rank < num_machines:
        raise UserError(
            f"--machine-rank {machine_rank} must be below --num-machines {num_machines}"
        )
    if num_gpus_per_machine < 1:
        raise UserError(f"--num-gpus {num_gpus_per_machine} must be at least 1")
    world_size = num_machines * num_gpus_per_machine
    if world_size == 1:
        main_func(*args)
        return
    try:
        if torch.cuda.is_available():
            _launch_gpu(main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, args)
        else:
            dist_url = f"tcp://127.0.0.1:{_free_port()}" if dist_url in (None, "auto") else dist_url
            job = (main_func, num_gpus_per_machine, num_machines, machine_rank, dist_url, args)
            torch.multiprocessing.spawn(_cpu_worker, job, nprocs=num_gpus_per_machine)
    except torch.multiprocessing.ProcessRaisedException as error:
        _reraise_user_error(error)


def _launch_gpu(main_func, num_gpus, num_machines, machine_rank, dist_url, args) -> None:
    from detectron2.engine import launch as upstream

    if num_gpus > torch.cuda.device_count():
        raise UserError(f"--num-gpus {num_gpus}: this machine has {torch.cuda.device_count()}")
    upstream(main_func, num_gpus, num_machines, machine_rank, dist_url or "auto", args)


def _cpu_worker(local_rank, main_func, num_local, num_machines, machine_rank, dist_url, args):
    from detectron2.utils import comm

    torch.set_num_threads(max(1, torch.get_num_threads() // num_local))
    dist.init_process_group(
        "gloo",
        init_method=dist_url,
        world_size=num_local * num_machines,
        rank=machine_rank * num_local + local_rank,
    )
    try:
        _create_local_groups(comm, num_local, num_machines, machine_rank)
        comm.synchronize()
        main_func(*args)
    finally:
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


def _reraise_user_error(error: Exception) -> None:
    """Turn a worker's traceback that ends in one of our user errors back into that error."""
    last_line = str(error).strip().splitlines()[-1]
    match = re.match(r"rs_d2\.[\w.]*Error: (.*)", last_line)
    if match:
        raise UserError(match[1]) from None
    raise error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
