"""Results that are sent to whoever called: `result_backend="rpc://"`, beside a RabbitMQ broker, as Celery has it.

    storage    none. Each calling process has a queue of its own, which every message names (`reply_to`); the worker sends the result there, as Celery's JSON
    a crash    of the caller loses its results: nobody else reads them. Its queue goes `result_expires` after its last reader
    cannot     be asked by another process, also not by a child or by the next run of the program; count chords; tell a result twice to two processes

For programs that wait for what they have called, and for nothing else.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ..core.errors import EngineUnavailable
from ..core.ids import new_id
from ..core.message import Delivery, Lease, Record
from ..core.states import READY_STATES
from . import rabbitmq_wire as wire
from .network import readable
from .rabbitmq_sender import LOCAL_SECONDS, Publication, Sender

if TYPE_CHECKING:
    from ..contracts.results import ResultBackend, Subscription

REMEMBERED = 100_000
"""So many results a process keeps that nobody has forgotten."""
CALLERS = 10_000
"""Of so many deliveries a worker's process knows who called."""
_SLICE_SECONDS = 0.02
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode


class Replies:
    """The result backend of `rpc://`."""

    url = "rpc://"

    def __init__(self, sender: Sender, *, expires_seconds: float | None) -> None:
        self.sender = sender
        sender.topology.replies_expire_seconds = expires_seconds or 86400.0
        self._lock = threading.RLock()
        self._address = ""
        self._pid = 0
        self._link: wire.Connection | None = None
        self._records: dict[str, Record] = {}
        self._reply_to: dict[str, str] = {}

    def address(self) -> str:
        """The queue of this process."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._address = new_id()
            self._records = {}
            self._lock = threading.RLock()
            if self._link is not None:
                self._link.drop("")
                self._link = None
        return self._address

    # -- in the worker -----------------------------------------------------------------------------------------------

    def expect(self, deliveries: Sequence[Delivery]) -> None:
        """Results of these will be stored here: who has called is remembered."""
        for delivery in deliveries:
            if delivery.message is not None and delivery.message.reply_to:
                self._reply_to[delivery.id] = delivery.message.reply_to
        while len(self._reply_to) > CALLERS:
            del self._reply_to[next(iter(self._reply_to))]

    def caller(self, task_id: str) -> str:
        """The queue of who called this task, and so of who waits for what follows it."""
        return self._reply_to.get(task_id, "")

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        publications = []
        for record in records:
            address = self._reply_to.get(record.task_id)
            if address:
                properties = wire.properties(
                    {}, content_type="application/json", content_encoding="utf-8", priority=0, correlation_id=record.task_id
                )
                publications.append(Publication("", address, properties, _as_celery(record), optional=True))
        self.sender.publish(publications, time.monotonic() + LOCAL_SECONDS)
        return []

    def prune(self, limit: int = 1000) -> int:
        return 0

    # -- in the program that called ------------------------------------------------------------------------------------

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        with self._lock:
            self._pump()
            return {id: self._records[id] for id in ids if id in self._records}

    def forget(self, ids: Sequence[str]) -> None:
        with self._lock:
            for id in ids:
                self._records.pop(id, None)

    def subscribe(self, ids: Sequence[str]) -> Subscription:
        with self._lock:
            self._pump()
        return _Wait(self, ids)

    def close(self) -> None:
        with self._lock:
            if self._link is not None and self._pid == os.getpid():
                self._link.close()
            self._link = None

    def connection(self) -> wire.Connection:
        """Reads our queue; opened at the first use, and again when it is lost."""
        address = self.address()
        if self._link is not None and not self._link.closed:
            return self._link
        deadline = time.monotonic() + LOCAL_SECONDS
        with self.sender.link(deadline) as link:
            link.declare("replies", address, deadline)
            where = link.address
        fresh = wire.Connection(where, deadline, tls=self.sender.tls, name="celeriac replies")
        fresh.open_channel(1, deadline)
        fresh.send(wire.consume(1, address, "replies", acknowledged=False), deadline)
        self._link = fresh
        return fresh

    def _pump(self) -> None:
        connection = self.connection()
        try:
            while connection.read(0.0):
                pass
        except EngineUnavailable:
            connection = self.connection()  # the queue has kept what has come meanwhile
        while connection.arrived:
            arrived = connection.arrived.popleft()
            if arrived.method != wire.BASIC_DELIVER:
                continue
            record = _decode(arrived.body)
            known = self._records.pop(record.task_id, None)
            if known is not None and known.status in READY_STATES and record.status not in READY_STATES:
                record = known
            self._records[record.task_id] = record
            if len(self._records) > REMEMBERED:
                del self._records[next(iter(self._records))]


class _Wait:
    """A wait for results of this process."""

    def __init__(self, replies: Replies, ids: Sequence[str]) -> None:
        self._replies = replies
        self._ids = list(ids)
        self._seen = {id: replies._records.get(id) for id in self._ids}

    def fileno(self) -> int:
        with self._replies._lock:
            return self._replies.connection().fileno()

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + timeout_seconds
        while True:
            with self._replies._lock:
                self._replies._pump()
                descriptor = self._replies.connection().fileno()
                now = {id: self._replies._records.get(id) for id in self._ids}
            if any(now[id] is not self._seen[id] for id in self._ids):
                self._seen = now
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            readable([descriptor], min(left, _SLICE_SECONDS))  # another thread may read what is ours

    def close(self) -> None:
        """Nothing was asked of the server."""


def _as_celery(record: Record) -> bytes:
    """The record, with the fields that Celery's clients look for though they say nothing."""
    fields: dict[str, Any] = {name: value for name in record.__struct_fields__ if (value := getattr(record, name)) not in (None, [], 0)}
    return _encode({"traceback": None, "children": [], "date_done": None, **fields, "result": record.result})


if TYPE_CHECKING:
    _complete: type[ResultBackend] = Replies
