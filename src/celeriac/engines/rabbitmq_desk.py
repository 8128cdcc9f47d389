"""How the processes of a worker on RabbitMQ ask their supervisor, which keeps the connection (rabbitmq_intake.py): over a local socket, a question and an answer at a time."""

from __future__ import annotations

import math
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from ..core.errors import EngineUnavailable, NodeLost
from ..core.message import Holder
from .network import readable
from .rabbitmq_held import Held
from .rabbitmq_sender import LOCAL_SECONDS
from .rabbitmq_wire import RECEIVE_BYTES

ANSWER_SECONDS = 10.0
"""A supervisor that leaves its process without an answer for so long, and for three heartbeats, is stopped or dead: RabbitMQ has given others what it held."""

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder().decode
length = struct.Struct(">I")
"""Goes before each question and each answer."""

Answer = tuple[str, list[str], list[Held]]
"""What a process is answered: a word, ids (or what is wrong), messages."""
_unpack_answer: Callable[[memoryview], Answer] = msgspec.msgpack.Decoder(Answer).decode


class Desk:
    """Asks the supervisor of a node, from one of its processes. One thread uses it."""

    def __init__(self, node: str, heartbeat_seconds: float) -> None:
        self.node = node
        self._link = reach(node)
        self._patience_seconds = max(ANSWER_SECONDS, 3.0 * heartbeat_seconds)
        self._silent = False

    def exchange(
        self, holder: Holder, leases: Sequence[Any], queues: Sequence[str], limit: int, wait_seconds: float = 0.0
    ) -> tuple[list[str], list[Held]]:
        """Settles these, and takes what is next as soon as there is something, within so many seconds."""
        _, refused, held = self._ask(["exchange", holder.node, holder.process, leases, queues, limit, wait_seconds], wait_seconds)
        return refused, held

    def settle(self, leases: Sequence[Any]) -> list[str]:
        return self._ask(["settle", leases])[1]

    def stale(self, leases: Sequence[Any]) -> list[str]:
        return self._ask(["stale", leases])[1]

    def held(self, node: str, process: int | None) -> list[Held]:
        return self._ask(["held", node, process])[2]

    def close(self) -> None:
        self._link.close()

    def _ask(self, request: Any, wait_seconds: float = 0.0) -> Answer:
        self._send(request)
        answer = None if self._silent else self._receive(time.monotonic() + self._patience_seconds + wait_seconds)
        if answer is None:
            self._silent = True
            raise NodeLost(self.node)
        if answer[0] == "lost":
            raise NodeLost(self.node)
        if answer[0] == "away":
            raise EngineUnavailable(answer[1][0])
        return answer

    def _send(self, request: Any) -> None:
        raw = pack(request)
        try:
            self._link.settimeout(LOCAL_SECONDS)
            self._link.sendall(length.pack(len(raw)) + raw)
            self._link.setblocking(False)
        except OSError as problem:
            raise EngineUnavailable(f"The supervisor of this process is gone: {problem}") from problem

    def _receive(self, deadline: float) -> Answer | None:
        """None when it has not come in time."""
        received = bytearray()
        size = math.inf
        while len(received) < size:
            if not readable((self._link.fileno(),), deadline - time.monotonic()):
                return None
            try:
                part = self._link.recv(RECEIVE_BYTES)
            except BlockingIOError:
                continue
            except OSError as problem:
                raise EngineUnavailable(f"The supervisor of this process is gone: {problem}") from problem
            if not part:
                raise EngineUnavailable("The supervisor of this process is gone.")
            received += part
            if len(received) >= length.size:
                size = length.size + length.unpack_from(received)[0]
        return _unpack_answer(memoryview(received)[length.size :])


# -- local sockets -----------------------------------------------------------------------------------------------------


def _local_address(node: str) -> str:
    name = f"celeriac-{os.getuid()}-{node}"[:100]
    return f"\0{name}" if sys.platform == "linux" else os.path.join(tempfile.gettempdir(), name)


def listen(node: str) -> socket.socket:
    address = _local_address(node)
    if not address.startswith("\0"):
        with suppress(FileNotFoundError):
            os.unlink(address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    if not address.startswith("\0"):
        os.chmod(address, 0o600)
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def unlisten(listener: socket.socket) -> None:
    address = listener.getsockname()
    listener.close()
    if isinstance(address, str) and address:
        with suppress(OSError):
            os.unlink(address)


def reach(node: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(LOCAL_SECONDS)
        link.connect(_local_address(node))
    except OSError as problem:
        link.close()
        raise NodeLost(node) from problem
    return link


def is_ours(link: socket.socket) -> bool:
    """The other end runs as the same user. (Names of this kind have no owner that the system would check.)"""
    if sys.platform != "linux":
        return True
    _, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(user == os.getuid())
