"""Which of several processes this one is, as arguments or torchrun's environment say."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from rs_d2.utils.errors import UserError

FROM_ENVIRONMENT = "env://"
_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Place:
    """One process among those that train together.

    Attributes:
        rank: among all processes, from 0.
        num_processes: on all machines.
        local_rank: on this machine, from 0; the number of its GPU.
        num_local: processes on this machine, the same on every machine.
        url: where the processes meet: tcp://HOST:PORT, or ``FROM_ENVIRONMENT``.
        restarts: how often torchrun has started these processes anew.
        may_restart: whether torchrun would.
    """

    rank: int
    num_processes: int
    local_rank: int
    num_local: int
    url: str
    restarts: int = 0
    may_restart: bool = False

    @property
    def machine(self) -> int:
        """Rank of this machine."""
        return self.rank // self.num_local

    @property
    def num_machines(self) -> int:
        """Machines that take part."""
        return self.num_processes // self.num_local

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.num_processes}"


def place_from_environment(environment: Mapping[str, str] | None = None) -> Place | None:
    """Read what torchrun, or a script in its manner, tells a process; None without any of it.

    Args:
        environment: by default that of this process.

    Raises:
        UserError: A variable is missing, is no number, or contradicts another one.
    """
    found = os.environ if environment is None else environment
    if not found.get("WORLD_SIZE") or ("LOCAL_RANK" not in found and found["WORLD_SIZE"] == "1"):
        return None  # also a container that calls itself the only one
    missing = [name for name in (*_RANKS, "MASTER_ADDR", "MASTER_PORT") if not found.get(name)]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {found['WORLD_SIZE']} but {', '.join(missing)} is not set: start with"
            " torchrun, or unset WORLD_SIZE"
        )
    rank, world, local_rank = (_number(found, name) for name in _RANKS)
    if not found.get("LOCAL_WORLD_SIZE") and world > 1:
        raise UserError("LOCAL_WORLD_SIZE, the processes on this machine, is not set")
    num_local = _number(found, "LOCAL_WORLD_SIZE") if world > 1 else 1
    if not 0 < _number(found, "MASTER_PORT") < 65536:
        raise UserError(f"MASTER_PORT: {found['MASTER_PORT']} is no port")
    if not (rank < world and local_rank < num_local):
        raise UserError(
            f"RANK {rank} of WORLD_SIZE {world}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE"
            f" {num_local}: a rank must be below the number of processes"
        )
    if world % num_local or rank % num_local != local_rank:
        raise UserError(
            f"RANK {rank} of WORLD_SIZE {world}, LOCAL_RANK {local_rank} of LOCAL_WORLD_SIZE"
            f" {num_local}: every machine must have as many processes, with ranks in a row"
        )
    restarts = _number(found, "TORCHELASTIC_RESTART_COUNT", "0")
    may_restart = restarts < _number(found, "TORCHELASTIC_MAX_RESTARTS", "0")
    return Place(rank, world, local_rank, num_local, FROM_ENVIRONMENT, restarts, may_restart)


def check_arguments(
    place: Place,
    num_gpus: int | None,
    num_machines: int | None,
    machine_rank: int | None,
    dist_url: str | None,
) -> None:
    """Check that arguments do not contradict the environment; None stands for one not given.

    Raises:
        UserError: The first that does.
    """
    for option, given, known in (
        ("--num-gpus", num_gpus, place.num_local),
        ("--num-machines", num_machines, place.num_machines),
        ("--machine-rank", machine_rank, place.machine),
    ):
        if given is not None and given != known:
            raise UserError(
                f"{option} {given} contradicts the environment (torchrun?), which says {known}:"
                f" leave {option} out"
            )
    if dist_url not in (None, "auto"):
        raise UserError("--dist-url: the environment (torchrun?) already says where to meet")


def check_machines(num_machines: int, machine_rank: int | None, dist_url: str | None) -> None:
    """Check what several machines, or one, need as arguments; None stands for one not given.

    Raises:
        UserError: An argument is missing, is too many or has no sense.
    """
    if dist_url not in (None, "auto"):
        meeting_point(dist_url)
    if num_machines > 1 and dist_url in (None, "auto"):
        raise UserError("--num-machines above 1 needs --dist-url tcp://<first machine>:<port>")
    if num_machines > 1 and machine_rank is None:
        raise UserError("--num-machines above 1 needs --machine-rank, another on each machine")
    if not 0 <= (machine_rank or 0) < num_machines:
        raise UserError(
            f"--machine-rank {machine_rank} must be below --num-machines {num_machines}"
        )


def meeting_point(url: str) -> tuple[str, int]:
    """Host and port of ``--dist-url``.

    Raises:
        UserError: It is not tcp://HOST:PORT, or the host has no address.
    """
    match = re.fullmatch(r"tcp://(\[[0-9a-fA-F:.]+\]|[^\s/:]+):(\d+)/?", url)
    if match is None or not 0 < int(match[2]) < 65536:
        raise UserError(f"--dist-url: '{url}' is not tcp://HOST:PORT")
    host, port = match[1].strip("[]"), int(match[2])
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--dist-url {url}: no address for '{host}' ({error})") from error
    return host, port


def _number(found: Mapping[str, str], name: str, default: str = "") -> int:
    text = found.get(name) or default
    if not text.isdecimal():
        raise UserError(f"{name}: '{text}' is not a number of at least 0")
    return int(text)
