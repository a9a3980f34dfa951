"""When one of several processes dies, all end, and one of them tells why.

Every process holds a connection to one of them, the hub, in the process of rank 0. The system
closes the connection of a process that is gone, however it went; a process that fails by itself
says why before. The hub then sends the first failure to all, and they end. The connections do not
depend on what the main threads are doing: those may be waiting in a collective that will never
complete.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import secrets
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from rs_d2.utils.place import Place

_KEY = "rs_d2/hub"
_LONGEST = 1 << 16  # bytes of a message
_PATIENCE = 4.0  # seconds for the others to hear, and for a verdict to arrive
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class Failure(NamedTuple):
    """Why the processes end.

    Attributes:
        rank: of the process that failed.
        line: for the user.
        exit_code: of all processes.
    """

    rank: int
    line: str
    exit_code: int


class Watch:
    """This process's connection to the others.

    Args:
        place: of this process.
        store: where all processes meet; the hub's address goes through it.
        tell: shows a failure to the user; called in one process, or in more if the hub is lost.
    """

    def __init__(self, place: Place, store: Any, tell: Callable[[Failure], None]) -> None:
        self._place, self._tell = place, tell
        self._over = threading.Event()  # the hub has left in peace, or this process has
        self._hub = None
        if place.rank == 0:
            self._hub = _Hub(place.num_processes, tell)
            store.set(_KEY, json.dumps([own_address(store), self._hub.port, self._hub.token]))
        host, port, token = json.loads(store.get(_KEY))
        self._connection = _kept(socket.create_connection((host, port), timeout=30))
        self._connection.settimeout(None)
        self._messages = _messages(self._connection)
        self._send({"token": token, "rank": place.rank, "name": _name_of_process(place)})
        if self._hub is None:
            self._hear(next(self._messages, None))  # the hub knows this process
            threading.Thread(target=self._listen, daemon=True, name="rs_d2 watch").start()

    def wait_for_another(self) -> None:
        """Let another process's failure, if there is one, end this process first."""
        time.sleep(_PATIENCE)  # the end comes from another thread

    def fail(self, failure: Failure) -> NoReturn:
        """End all processes because of this one."""
        try:
            self._send({"failed": failure})
            time.sleep(_PATIENCE)
        except OSError:  # no hub to tell it
            pass
        end_process(failure.exit_code, lambda: self._tell(failure))

    def leave(self, exit_code: int = 0) -> None:
        """End in peace: the others go on."""
        if exit_code:
            time.sleep(0.3)  # a signal that ends this process may follow the death of another one
        self._over.set()
        try:
            self._send({"left": exit_code})
        except OSError:
            return
        if self._hub is not None:
            self._hub.leave()
        _shut(self._connection)

    def _send(self, message: Any) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _listen(self) -> None:
        for message in self._messages:
            self._hear(message)
        self._hear(None)

    def _hear(self, message: dict[str, Any] | None) -> None:
        """Do as the hub says; None if it is gone."""
        if message is not None and "failed" in message:
            end_process(Failure(*message["failed"]).exit_code)
        if message is not None and "left" in message:
            self._over.set()
        if message is not None or self._over.is_set():
            return
        place = self._place
        lost = _death(0, f"rank 0 of {place.num_processes}")
        is_teller = place.rank == 1 or place.local_rank == 0
        end_process(lost.exit_code, (lambda: self._tell(lost)) if is_teller else None)


class _Hub:
    """Hears of every failure, and passes the first one on."""

    def __init__(self, num_processes: int, tell: Callable[[Failure], None]) -> None:
        self.token = secrets.token_hex(16)  # strangers can reach the port, too
        self._tell = tell
        self._lock = threading.Lock()
        self._is_over = False
        self._last_message: dict[str, Any] = {}
        self._members: dict[int, socket.socket] = {}
        family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
        self._server = _kept(
            socket.create_server(
                ("", 0),
                family=family,
                backlog=num_processes,
                dualstack_ipv6=family == socket.AF_INET6,
            )
        )
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True, name="rs_d2 hub").start()

    def leave(self) -> None:
        """Let the others go on without a hub."""
        with self._lock:
            self._is_over = True
            self._send_all({"left": 0})
        _shut(self._server)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            arguments = (_kept(connection),)
            threading.Thread(target=self._serve, args=arguments, daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        messages = _messages(connection)
        hello = next(messages, {})
        if not secrets.compare_digest(str(hello.get("token")), self.token):
            _shut(connection)
            return
        rank, has_left = hello["rank"], False
        with self._lock:
            self._members[rank] = connection
            self._send_to(connection, self._last_message)
        for message in messages:
            if "failed" in message:
                self._end(Failure(*message["failed"]))
            has_left = True
        with self._lock:
            del self._members[rank]
        if not has_left:
            self._end(_death(rank, hello["name"]))

    def _end(self, failure: Failure) -> None:
        """Let all processes end, this one last."""
        with self._lock:
            if self._is_over:  # another failure was first
                return
            self._is_over = True
            self._send_all({"failed": failure})
            left = {0, failure.rank}  # this thread will not see that one go
        end_process(
            failure.exit_code, lambda: self._tell(failure), lambda: self._wait_for_all(left)
        )

    def _send_all(self, message: dict[str, Any]) -> None:
        self._last_message = message  # for those who come later
        for connection in self._members.values():
            self._send_to(connection, message)

    def _send_to(self, connection: socket.socket, message: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # gone, which its own thread notices
            connection.sendall(json.dumps(message).encode() + b"\n")

    def _wait_for_all(self, but: set[int]) -> None:
        """Wait till the others are gone: what was sent to them could be lost otherwise."""
        until = time.monotonic() + _PATIENCE / 2
        while not but.issuperset(self._members) and time.monotonic() < until:
            time.sleep(0.02)


def end_process(exit_code: int, *before: Callable[[], None] | None) -> NoReturn:
    """End this process and its children at once, whatever its threads are waiting for."""

    def last_words() -> None:
        for call in before:
            if call is not None:
                call()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # of a program that was started without
                stream.flush()

    talker = threading.Thread(target=last_words, daemon=True)
    talker.start()
    talker.join(_PATIENCE)  # a stream that nobody reads must not keep the process
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(exit_code)


def end_with_parent() -> None:
    """Let the system kill this process when the one that started it dies (on Linux)."""
    import ctypes

    parent = os.getppid()
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    except (OSError, AttributeError):
        return
    if os.getppid() != parent:  # it was faster
        os._exit(1)


def own_address(store: Any) -> str:
    """An address of this machine that those can reach who use the store, too."""
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    host, port = store.host, store.port
    kind = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(kind[0], socket.SOCK_DGRAM) as probe:
        probe.connect(kind[4])  # sends nothing; finds the way there
        address = probe.getsockname()[0]
    return host if address.startswith("127.") or address == "::1" else address


def _death(rank: int, name: str) -> Failure:
    return Failure(rank, f"{name} died without a word: killed, or out of memory", 1)


def _name_of_process(place: Place) -> str:
    where = f" on {socket.gethostname()}" if place.num_machines > 1 else ""
    return f"{place} (process {os.getpid()}{where})"


def _kept(connection: socket.socket) -> socket.socket:
    """Ask the system to find out when the other machine is gone, within ten seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 3), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
    _sockets.add(connection)
    return connection


def _close_in_fork() -> None:
    """A data-loader worker must not keep a connection open that its dead parent had."""
    for connection in list(_sockets):
        fd = connection.detach()
        if fd >= 0:
            os.close(fd)


os.register_at_fork(after_in_child=_close_in_fork)


def _messages(connection: socket.socket) -> Any:
    """The messages of the other side until it closes."""
    try:
        with connection.makefile("rb") as lines:
            while line := lines.readline(_LONGEST):
                message = json.loads(line)
                if isinstance(message, dict):
                    yield message
    except (OSError, ValueError):  # broken off, or not one of ours
        return


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
