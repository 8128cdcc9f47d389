"""How the processes of a worker on RabbitMQ ask their supervisor, which keeps the connection (rabbitmq_intake.py): over a local socket, a question and an answer at a time.

`Desk` is the process's end, `Reception` the supervisor's, which never waits.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from ..core.errors import EngineUnavailable, NodeLost
from ..core.message import Holder
from .network import readable
from .rabbitmq_held import Held
from .rabbitmq_ledger import Unread
from .rabbitmq_sender import LOCAL_SECONDS
from .rabbitmq_wire import RECEIVE_BYTES

ANSWER_SECONDS = 10.0
"""A supervisor that leaves its process without an answer for so long, and for three heartbeats, is stopped or dead: RabbitMQ has given others what it held."""

AWAY_SECONDS = 1.0
"""So long what a process asks is kept for a lost connection to come back. Then it is told, so that it can look whether it is to stop."""
UNKNOWN_SECONDS = 5.0
"""... and so long for a connection that is there to bring an answer: less than it takes until a supervisor that says nothing is thought to be dead."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_length = struct.Struct(">I")
"""Goes before each question and each answer."""

Answer = tuple[str, list[str], list[Held]]
"""What a process is answered: a word, ids (or what is wrong), messages."""
_unpack_answer: Callable[[memoryview], Answer] = msgspec.msgpack.Decoder(Answer).decode


class Desk:
    """Asks the supervisor of a node, from one of its processes. One thread uses it."""

    def __init__(self, node: str, heartbeat_seconds: float) -> None:
        self.node = node
        self._link = _reach(node)
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

    def leave(self, leases: Sequence[Any]) -> list[str]:
        """Settles these, whose tasks run after this: RabbitMQ gives them to nobody else any more. Waits until that is known, or the connection is lost."""
        while True:
            with suppress(Unread):
                return self._ask(["leave", leases])[1]

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
        if answer[0] == "unread":
            raise Unread
        if answer[0] == "away":
            raise EngineUnavailable(answer[1][0])
        return answer

    def _send(self, request: Any) -> None:
        raw = _pack(request)
        try:
            self._link.settimeout(LOCAL_SECONDS)
            self._link.sendall(_length.pack(len(raw)) + raw)
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
            if len(received) >= _length.size:
                size = _length.size + _length.unpack_from(received)[0]
        return _unpack_answer(memoryview(received)[_length.size :])


# -- the supervisor's end ----------------------------------------------------------------------------------------------


class Wish(NamedTuple):
    """A process wants messages, now."""

    queues: Sequence[str]
    limit: int
    refused: list[str]
    """The ids that it could not settle; it is told with the answer."""
    since: float
    until: float
    """Then it is told that there is nothing."""


class Client:
    """A process of ours, at the other end of a local socket."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.buffer = bytearray()
        self.holder: Holder | None = None
        self.asks: Wish | None = None
        self.wants: tuple[int, Sequence[str]] | None = None
        """How many of which queues it wanted last, and will want next."""
        self.promised: tuple[list[str], list[Held]] | None = None
        """Refused ids, and what it gets as soon as that is in custody."""
        self.deferred: tuple[list[Any], float] | None = None
        """What it has asked, and can be told only when RabbitMQ is there again; and since when it waits."""


class Reception:
    """Hears the processes of this node. `act` answers a question: None when the answer comes later, EngineUnavailable when it cannot be known just now."""

    def __init__(self, act: Callable[..., Answer | None]) -> None:
        self._act = act
        self.listeners: dict[str, socket.socket] = {}
        self.clients: dict[int, Client] = {}

    def open(self, node: str) -> None:
        if node not in self.listeners:
            self.listeners[node] = _listen(node)

    def shut(self, node: str) -> None:
        listener = self.listeners.pop(node, None)
        if listener is not None:
            _unlisten(listener)

    def close(self) -> None:
        for node in list(self.listeners):
            self.shut(node)
        for client in list(self.clients.values()):
            self._drop(client)

    def forget(self) -> None:
        """In a child: closes our copies."""
        for listener in self.listeners.values():
            listener.close()
        for client in self.clients.values():
            client.link.close()

    def descriptors(self) -> list[int]:
        return [*(one.fileno() for one in self.listeners.values()), *self.clients]

    def serve(self, ready: Iterable[int]) -> None:
        """Those who have something to say."""
        listeners = {one.fileno(): one for one in self.listeners.values()}
        for descriptor in ready:
            if descriptor in listeners:
                self._accept(listeners[descriptor])
            elif descriptor in self.clients:
                self._hear(self.clients[descriptor])

    def answer_deferred(self) -> None:
        """What could not be known."""
        for client in list(self.clients.values()):
            if client.deferred is not None:
                self._reply(client, *client.deferred)

    def excuse(self, problem: EngineUnavailable) -> None:
        """RabbitMQ is away: nobody who asks is kept waiting for it for long."""
        now = time.monotonic()
        for client in list(self.clients.values()):
            if client.deferred is not None and now - client.deferred[1] > AWAY_SECONDS:
                client.deferred = None
                self.answer(client, ("away", [str(problem)], []))

    def answer(self, client: Client, answer: Answer) -> None:
        raw = _pack(answer)
        raw = _length.pack(len(raw)) + raw
        try:
            try:
                sent = client.link.send(raw)
            except BlockingIOError:
                sent = 0
            if sent < len(raw):
                client.link.settimeout(5.0)
                client.link.sendall(memoryview(raw)[sent:])
                client.link.setblocking(False)
        except OSError:
            self._drop(client)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            link, _ = listener.accept()
            if not _is_ours(link):
                link.close()
                return
            link.setblocking(False)
            self.clients[link.fileno()] = Client(link)

    def _hear(self, client: Client) -> None:
        try:
            data = client.link.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        buffer = client.buffer
        buffer += data
        while len(buffer) >= _length.size:
            end = _length.size + _length.unpack_from(buffer)[0]
            if len(buffer) < end:
                break
            request = _unpack(bytes(memoryview(buffer)[_length.size : end]))
            del buffer[:end]
            self._reply(client, request, time.monotonic())

    def _reply(self, client: Client, request: list[Any], since: float) -> None:
        client.deferred = None
        try:
            answer = self._act(client, *request)
        except NodeLost:
            answer = "lost", [], []
        except EngineUnavailable as problem:
            if time.monotonic() - since < UNKNOWN_SECONDS:
                client.deferred = request, since
                return
            answer = "unread" if isinstance(problem, Unread) else "away", [str(problem)], []
        if answer is not None:
            self.answer(client, answer)

    def _drop(self, client: Client) -> None:
        self.clients.pop(client.link.fileno(), None)
        client.link.close()


# -- local sockets -----------------------------------------------------------------------------------------------------


def _local_address(node: str) -> str:
    name = f"celeriac-{os.getuid()}-{node}"[:100]
    return f"\0{name}" if sys.platform == "linux" else os.path.join(tempfile.gettempdir(), name)


def _listen(node: str) -> socket.socket:
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


def _unlisten(listener: socket.socket) -> None:
    address = listener.getsockname()
    listener.close()
    if isinstance(address, str) and address:
        with suppress(OSError):
            os.unlink(address)


def _reach(node: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.settimeout(LOCAL_SECONDS)
        link.connect(_local_address(node))
    except OSError as problem:
        link.close()
        raise NodeLost(node) from problem
    return link


def _is_ours(link: socket.socket) -> bool:
    """The other end runs as the same user. (Names of this kind have no owner that the system would check.)"""
    if sys.platform != "linux":
        return True
    _, user, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return bool(user == os.getuid())
