"""What a worker takes from RabbitMQ: one connection for all its processes, kept by the supervisor.

RabbitMQ gives a message to a connection, and takes it back when that connection ends; nobody else can acknowledge it. So the connection belongs to the
supervisor, which outlives its processes, runs no user code and so never misses a heartbeat; its processes ask it over a local socket. When a process dies, the
supervisor still holds what it was running; when the supervisor dies, RabbitMQ has everything back at once.

    buffered    given by RabbitMQ, wanted by no process yet. While nobody asks (all run something long) nothing more is taken, and what is buffered is given back
    held        reserved by a process
    in custody  held for longer than `custody_seconds`: acknowledged, with a copy in a queue of the node's own, so that the broker's `consumer_timeout` never cuts a
                task off. When the node dies, its copies go back to their queues by themselves
    lost        held, but the connection that held it is gone. RabbitMQ gives it to whoever comes first; mostly to us, a moment later, and then it is held again.
                Whoever settles it within that moment is told to try again; after it, that it belongs to somebody else

Given back means: published again, with its counts, to the queue `….celeriac.returned`, which is read first, and then acknowledged.

While it serves processes it waits for nothing: what it publishes itself goes over a second connection (RabbitMQ reads nothing from one that publishes while it has no
memory left, and acknowledgements have to arrive), and what has to be done when that is confirmed is remembered until then (`_Posted`). When one of the two is lost, so
is the other: the messages are the broker's again.

The broker's own count of deliveries (`x-delivery-count`) tells that a message was given to somebody and came back, and not that anybody started it: it grows when a
connection is lost with it in a buffer, and even when a subscription is cancelled while it is on its way. So it counts as an interruption. From then on the
message is handed out alone, and in custody from the start: if its holder dies then, the copy says that this was a crash.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from ..contracts.mailbox import Letter, Node
from ..core.clock import Clock
from ..core.errors import EngineUnavailable, NodeLost
from ..core.ids import new_id
from ..core.message import Holder
from ..core.trouble import Trouble
from . import rabbitmq_wire as wire
from .network import readable
from .rabbitmq_desk import Answer, is_ours, length, listen, pack, unlisten, unpack
from .rabbitmq_held import Held, addressed, read_slip, readdressed, relabelled
from .rabbitmq_sender import LETTER_SECONDS, LOCAL_SECONDS, MANY_DELIVERIES, Publication, Sender, Topology, is_being_made, is_same, noted

QUIET_SECONDS = 0.05
"""Nobody has asked for so long: what is buffered would wait behind something long. Twice as long after each time that it was given back for this, up to …"""
LONGEST_QUIET_SECONDS = 1.0
"""… so that a machine that is only slow does not carry messages to and fro."""
PATIENCE_SECONDS = 0.02
"""So long a process that asks is kept waiting at least, for what RabbitMQ may be about to give; it takes "nothing" as a sign that it is idle."""
CALM_SECONDS = 10.0
"""After so long without it, the shortest time holds again."""
CONNECT_SECONDS = 3.0
DOUBT_SECONDS = 2.0
"""A server that has left somebody without an answer may take so long to answer the supervisor whether it is there."""
AWAY_SECONDS = 1.0
"""So long what a process asks is kept for a lost connection to come back. Then it is told, so that it can look whether it is to stop."""
RETURN_SECONDS = 3.0
"""So long after a new connection is made, what the last one held may come back to us."""
REMEMBERED = 10_000
"""So many settled messages are remembered, lest they run again when a lost connection has swallowed their acknowledgements."""
PROMISE_SECONDS = 2.0
"""How long a process waits at most for the custody of what it gets."""
WORN_RETURNS = 10
"""What has come back so often is published anew, before it is dropped: RabbitMQ 4 allows 20 returns, unless its queue says otherwise, and counts what was only buffered too."""
SLEPT_SECONDS = 2.0
"""A supervisor that looks at its connection as seldom as this was stopped, or its machine was."""
BEGIN_SECONDS = 20.0
"""So long the server may take to begin to give of a queue."""
REPEAT_SECONDS = 0.1
"""When something is published again that RabbitMQ did not take."""
LINGER_SECONDS = 0.003
"""So long who wants many is kept waiting while there are several: each answer costs the same, however many it brings. One alone is not part of a stream."""
MAILBOXES = 16
"""So many that belong to no node here, but wait for an answer, say, are listened to at once; those that were opened before have had theirs."""
SLICE_SECONDS = 0.02
NOTES = 4
"""The channel of the notes: RabbitMQ closes it when their stream is away."""
FOLLOW_SECONDS = 1.0
"""So often a stream that is away is looked for."""
logger = logging.getLogger("celeriac.engines.rabbitmq")
_json = msgspec.json.Decoder().decode
_decode_letter = msgspec.json.Decoder(tuple[float, Letter]).decode


class _Consumer(msgspec.Struct):
    """A subscription to one queue of the broker."""

    tag: str
    queue: str
    kind: str
    prefetch: int = 0
    """So many are given at most, by it and by those that were begun before it for the same queue."""
    begun: bool = False
    """The server has said that it began; until then it must not be cancelled (RabbitMQ 3.10 loses the channel over it)."""
    closing: bool = False
    asked_at: float = 0.0


class _Posted(msgspec.Struct, eq=False):
    """What we publish ourselves, until RabbitMQ has confirmed all of it."""

    publications: Sequence[Publication]
    first: int
    waiting: int
    tags: Sequence[int]
    """To be acknowledged then."""
    at: float
    refused: list[Publication] = []


class _Question(NamedTuple):
    """A process wants messages."""

    queues: Sequence[str]
    limit: int
    refused: list[str]
    """The ids that it could not settle; it is told with the answer."""
    since: float
    until: float
    """Then it is told that there is nothing."""


class _Client:
    """A process of ours, at the other end of a local socket."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.buffer = bytearray()
        self.asks: _Question | None = None
        self.promised: tuple[list[str], list[Held]] | None = None
        """Refused ids, and what it gets as soon as that is in custody."""
        self.deferred: tuple[list[Any], float] | None = None
        """What it has asked, and can be told only when RabbitMQ is there again; and since when it waits."""
        self.holder: Holder | None = None


class Intake:
    """The consuming side of an engine."""

    def __init__(
        self,
        addresses: Sequence[wire.Address],
        topology: Topology,
        sender: Sender,
        clock: Clock,
        *,
        tls: Any = None,
        heartbeat_seconds: int = 10,
        custody_seconds: float = 30.0,
        revokes_expire_seconds: float = 10800,
    ) -> None:
        self.addresses = addresses
        self.topology = topology
        self.sender = sender
        self.clock = clock
        self.tls = tls
        self.heartbeat_seconds = heartbeat_seconds
        self.custody_seconds = custody_seconds
        self.revokes_expire_seconds = revokes_expire_seconds
        self.lock = threading.RLock()
        self.connection: wire.Connection | None = None
        self.outlet: wire.Connection | None = None
        """Over which we publish; made when it is needed first."""
        self.nodes: dict[str, tuple[Node, float]] = {}
        self.held: dict[str, Held] = {}
        self.buffer: dict[str, list[Held]] = {}
        self.paused: dict[str, str] = {}
        self.revoked: dict[str, float] = {}
        self.letters: dict[str, deque[Letter]] = {}
        self._consumers: dict[str, _Consumer] = {}
        self._ended: dict[str, _Consumer] = {}
        self._open: dict[tuple[str, str], _Consumer] = {}
        self._numbers = 0
        self._marks: set[str] = set()
        self._declared: set[tuple[str, str]] = set()
        self._windows: dict[str, int] = {}
        """How much of each queue the lost connection could be given."""
        self._queues: set[str] = set()
        """Of which we have been given messages."""
        self._follows = False
        self._notes_open = False
        self._follow_at = 0.0
        self._blindness = Trouble(logger, f"The stream {topology.own('notes')!r}, which tells of pauses and revokes,")
        self._named: set[str] = set()
        """Queues whose names are among the notes."""
        self._waiting: dict[str, int] = {}
        """How many callers in this process wait for each queue."""
        self._demand: dict[Holder, tuple[int, Sequence[str]]] = {}
        self._asked_at = 0.0
        self._not_due: list[tuple[Held, float]] = []
        self._worn: list[Held] = []
        self._outbox: dict[int, _Posted] = {}
        self._posted = 0
        self._refused: list[tuple[float, _Posted]] = []
        self._custody = ""
        self._copies: dict[str, int] = {}
        """Ids and tokens of what is on its way into custody."""
        self._void: dict[str, int] = {}
        """... and of what was, when the connection was lost before anybody had it."""
        self._given: deque[int] = deque()
        """The numbers of what RabbitMQ has given, from the first that is not settled on …"""
        self._settled: set[int] = set()
        """… and those among them that are settled."""
        self._done: dict[str, tuple[int, float, bool]] = {}
        """Of what was settled of late: token, since when it had waited, and whether it was a publication that was repeated. Its acknowledgement may be lost."""
        self._lost_until = 0.0
        """Until then, what is lost may come back."""
        self._successors: dict[str, Held] = {}
        """Published by the settlement of a message that we still hold: its acknowledgement is on its way to us."""
        self._custody_at = 0.0
        self._listeners: dict[str, socket.socket] = {}
        self._clients: dict[int, _Client] = {}

    # -- nodes -------------------------------------------------------------------------------------------------------

    def register(self, node: Node, until: float, heartbeat_seconds: int) -> None:
        with self.lock:
            if heartbeat_seconds < self.heartbeat_seconds:
                self.heartbeat_seconds = heartbeat_seconds
                self._disconnect()
            self.connected(time.monotonic() + LOCAL_SECONDS)
            self.nodes[node.id] = (node, until)
            if node.id not in self._listeners and node.pid == os.getpid():
                self._listeners[node.id] = listen(node.id)

    def give_up(self, node: str, *, crashed: bool) -> list[str]:
        """The node is gone: what it held is ready again. Returns the ids."""
        with self.lock:
            ids = self._begin_to_give_up(node, crashed=crashed)
            if ids:
                self._await(lambda: not self._outbox and not self._refused, time.monotonic() + LOCAL_SECONDS)
            return ids

    def _begin_to_give_up(self, node: str, *, crashed: bool) -> list[str]:
        self.nodes.pop(node, None)
        listener = self._listeners.pop(node, None)
        if listener is not None:
            unlisten(listener)
        mine = [held for held in self.held.values() if held.holder is not None and held.holder.node == node]
        self._publish_back(mine, crashed=crashed, interrupted=not crashed)
        self._forget_demand(node)
        return [held.id for held in mine if not held.lost]

    def _forget_demand(self, node: str) -> None:
        self._demand = {holder: wish for holder, wish in self._demand.items() if holder.node != node}

    # -- reserving, in this process ------------------------------------------------------------------------------------

    def reserve(self, queues: Sequence[str], limit: int, holder: Holder) -> list[Held]:
        """Looks, takes, and leaves nothing buffered."""
        with self.lock:
            self._require(holder.node)
            if limit <= 0 or not queues:
                return []
            deadline = time.monotonic() + LOCAL_SECONDS
            self.sync(deadline)
            wanted = [queue for queue in dict.fromkeys(queues) if queue not in self.paused]
            for last in (False, False, True):
                try:
                    if self._count(wanted) < limit:
                        self._look(wanted, limit, deadline)
                    break
                except EngineUnavailable as problem:
                    # RabbitMQ ends a connection that reads a queue which somebody else is just making.
                    if last or self.held or "INTERNAL_ERROR" not in str(problem):
                        raise
                    self._disconnect()
                    time.sleep(0.1)
            taken = self._take(wanted, limit, holder)
            if not self._waiting and not self._demand:
                self._give_back_buffer(wanted)
            if taken and taken[0].doubtful:
                self._copy_into_custody(taken)
            self._await(lambda: not (self._outbox or self._refused or self._copies), deadline)
            return taken

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        """True as soon as something is buffered."""
        deadline = time.monotonic() + timeout_seconds
        wanted = list(dict.fromkeys(queues))
        with self.lock:
            self.sync(time.monotonic() + LOCAL_SECONDS)
            for queue in wanted:
                self._waiting[queue] = self._waiting.get(queue, 0) + 1
        try:
            first = True
            while True:
                with self.lock:
                    connection = self.connected(time.monotonic() + LOCAL_SECONDS)
                    free = [queue for queue in wanted if queue not in self.paused]
                    if first and free and not self._count(free):
                        self._look(free, 1, time.monotonic() + LOCAL_SECONDS, keep=True)
                        first = False
                    for queue in free:
                        self._consume(queue, 1)
                    self._pump()
                    if self._count(free):
                        return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                readable([connection.fileno()], min(left, SLICE_SECONDS))
        finally:
            with self.lock, suppress(EngineUnavailable):
                done = []
                for queue in wanted:
                    self._waiting[queue] -= 1
                    if not self._waiting[queue]:
                        del self._waiting[queue]
                        done.append(queue)
                self._stop_consuming(done, time.monotonic() + LOCAL_SECONDS)

    def _look(self, queues: Sequence[str], limit: int, deadline: float, *, keep: bool = False) -> None:
        """Until as much as wanted is buffered, or there is nothing more: RabbitMQ says so itself."""
        connection = self.connected(deadline)
        for queue in queues:
            self._consume(queue, limit)
        names = [name for queue in queues for name in (self.topology.queue(queue), self.topology.returned(queue))]
        while self._count(queues) < limit:
            ready = 0
            connection.send(b"".join([wire.declare_queue(3, name, passive=True) for name in names]), deadline)
            for _ in names:
                ready += wire.counted(connection.await_one(3, (wire.QUEUE_DECLARE_OK,), deadline))[1]
            # What was given to our channel before these answers has come before this one.
            connection.ask(1, wire.frame(1, wire.CHANNEL_FLOW, b"\x01"), wire.CHANNEL_FLOW_OK, deadline)
            self._digest()
            if not ready:
                break
            if not connection.read(min(deadline, time.monotonic() + 0.01)) and time.monotonic() > deadline:
                break
            self._digest()
        if not keep:
            self._stop_consuming([queue for queue in queues if queue not in self._waiting], deadline)

    def _take(self, queues: Sequence[str], limit: int, holder: Holder) -> list[Held]:
        """buffered → held, the best first."""
        if len(queues) == 1:
            candidates = self.buffer.get(queues[0]) or []
        else:
            candidates = [held for queue in queues for held in self.buffer.get(queue) or ()]
        if not candidates:
            return []
        candidates = sorted(candidates, key=_by_place)
        # One whose start counts goes alone: nothing that waits behind it is counted with it.
        if any(held.doubtful for held in candidates[:limit]):
            limit = 1 if candidates[0].doubtful else next(at for at, held in enumerate(candidates) if held.doubtful)
        taken = candidates[:limit]
        if len(queues) == 1:
            self.buffer[queues[0]] = candidates[limit:]
        else:
            gone = {held.tag for held in taken}
            for queue in queues:
                if queue in self.buffer:
                    self.buffer[queue] = [held for held in self.buffer[queue] if held.tag not in gone]
        now = time.monotonic()
        wall = self.clock.time() if self.revoked else 0.0
        mine: list[Held] = []
        for held in taken:
            twin = self.held.get(held.id)
            if twin is not None and not twin.lost:  # two copies were buffered; they never run side by side here
                if held.base < twin.token or self._successors.setdefault(held.id, held) is not held:
                    self._acknowledge([held.tag] if held.tag is not None else [])
                continue
            mine.append(held)
            held.token += 1
            held.holder = holder
            held.taken_at = now
            held.revoked = bool(self.revoked) and self.revoked.get(held.id, wall) > wall
            self.held[held.id] = held
        return mine

    def _place(self, held: Held, kind: str) -> tuple[int, float, int, float]:
        """By priority where the queue has priorities; then by how long it has waited. In the same millisecond, what was given back comes first; else as RabbitMQ gives."""
        priority = 0
        given = self.topology.queues.get(held.queue)
        if given is not None and "max_priority" in given.options:
            with suppress(ValueError, IndexError, struct.error):
                priority = int(wire.read_properties(held.properties)[1].get("priority", 0))
        self._arrivals += 1
        return (-priority, round(held.since, 3), 1, self._arrivals) if kind == "queue" else (-priority, round(held.since, 3), 0, held.since)

    _arrivals = 0

    def _count(self, queues: Iterable[str]) -> int:
        return sum(len(self.buffer.get(queue) or ()) for queue in queues)

    def _require(self, node: str) -> None:
        if node not in self.nodes:
            raise NodeLost(node)

    # -- settling --------------------------------------------------------------------------------------------------------

    def stale(self, leases: Iterable[tuple[str, int, str, int]]) -> list[str]:
        """Of (id, token, node, process): the ids that these do not hold, and will not. Raises EngineUnavailable while that is not known."""
        with self.lock:
            if self._lost_until:
                self._await_returns(leases)
            refused: list[str] = []
            for id, token, node, process in leases:
                held = self.held.get(id)
                if held is None or held.token != token or held.holder != Holder(node, process):
                    refused.append(id)
                elif held.lost:  # should it come to us after all, it has to be run anew: its holder is told to let go
                    del self.held[id]
                    refused.append(id)
                    self._admit_successor(id)
            return refused

    def _await_returns(self, leases: Iterable[tuple[str, int, str, int]]) -> None:
        if time.monotonic() > self._lost_until:
            self._lost_until = 0.0
        elif any((held := self.held.get(id)) is not None and held.lost and held.token == token for id, token, _, _ in leases):
            raise EngineUnavailable("The connection to RabbitMQ was lost; whether it gives back what was held is not known yet.")

    def acknowledge(self, leases: Iterable[tuple[str, int, str, int]]) -> list[str]:
        """held → gone. Returns the ids that were refused. Raises EngineUnavailable while it is not known which; then nothing was done."""
        with self.lock:
            if self._lost_until:
                self._await_returns(leases)
            refused: list[str] = []
            tags: list[int] = []
            for id, token, node, process in leases:
                held = self.held.get(id)
                if held is None or held.token != token or held.holder != Holder(node, process):
                    refused.append(id)
                    continue
                del self.held[id]  # also when it is lost: should it come to us after all, it has to be run anew
                if held.lost:
                    refused.append(id)
                    self._admit_successor(id)
                    continue
                self._done[id] = token, held.since, _MARK in held.properties
                if held.tag is not None:
                    tags.append(held.tag)
                if self._successors:
                    self._admit_successor(id)
            self._acknowledge(tags)
            if len(self._done) > 2 * REMEMBERED:
                for id in list(islice(self._done, REMEMBERED)):
                    del self._done[id]
            return refused

    def _admit_successor(self, id: str) -> None:
        held = self._successors.pop(id, None)
        if held is not None:
            self.buffer.setdefault(held.queue, []).append(held)

    def _acknowledge(self, tags: Sequence[int]) -> None:
        """Says that these are done. When that does not arrive, RabbitMQ gives them again, and `_done` knows them."""
        connection = self.connection
        if not tags or connection is None or connection.closed:
            return
        self._settled.update(tags)
        given, up_to = self._given, 0
        while given and given[0] in self._settled:
            first = given.popleft()
            self._settled.discard(first)
            if first in tags:
                up_to = first
        # One word for all from the first on (it has to name one of these), and one for each of the others: the server's work is by words.
        data = [wire.acknowledgement(1, up_to, multiple=True)] if up_to else []
        data += [wire.acknowledgement(1, tag) for tag in tags if tag > up_to]
        with suppress(EngineUnavailable):  # whoever reads next finds the connection closed
            connection.send(b"".join(data), time.monotonic() + self.heartbeat_seconds)

    def holdings(self, node: str, process: int | None = None) -> list[Held]:
        """Raises EngineUnavailable while that is not known."""
        with self.lock:
            mine = [
                held for held in self.held.values()
                if held.holder is not None and held.holder.node == node and process in (None, held.holder.process)
            ]  # fmt: skip
            if self._lost_until:
                self._await_returns([(held.id, held.token, "", 0) for held in mine])
            return [held for held in mine if not held.lost]

    def _publish_back(self, messages: Sequence[Held], *, crashed: bool = False, interrupted: bool = False) -> None:
        """→ ready again, with these counts; out of our hands."""
        ours = [held for held in messages if not held.lost]
        publications = [
            readdressed(held, self.topology, crashes=held.crashes + crashed, interruptions=held.interruptions + interrupted)
            for held in ours
        ]
        for held in messages:
            self.held.pop(held.id, None)
            if held.id in self._copies:
                self._void[held.id] = held.token
            self._admit_successor(held.id)
        self._post(publications, [held.tag for held in ours if held.tag is not None])

    def _give_back_buffer(self, queues: Iterable[str] | None = None) -> None:
        names = list(self.buffer) if queues is None else list(queues)
        self._give_back([held for queue in names for held in self.buffer.pop(queue, ())])

    def _give_back(self, spare: Sequence[Held]) -> None:
        """Of what nobody has started."""
        publications = [readdressed(held, self.topology) for held in spare]
        self._post(publications, [held.tag for held in spare if held.tag is not None])

    # -- publishing, on the connection that consumes --------------------------------------------------------------------------

    def _post(self, publications: Sequence[Publication], tags: Sequence[int] = ()) -> None:
        """Publishes, and acknowledges these deliveries when RabbitMQ has confirmed. Does not wait for it; what is not taken is sent again, and what cannot be sent just now
        (EngineUnavailable) too."""
        if not publications:
            return
        connection = self.connection
        try:
            outlet = self._outlet()
            self._declare([need for publication in publications for need in publication.needs])
        except EngineUnavailable:
            if tags and connection is not None and self.connection is connection:
                self._refused.append((time.monotonic() + REPEAT_SECONDS, _Posted(publications, 0, 0, tags, 0.0, list(publications))))
            raise
        if tags and self.connection is not connection:
            return  # these deliveries are the broker's again
        posted = _Posted(publications, self._posted + 1, len(publications), tags, time.monotonic())
        self._posted += len(publications)
        self._outbox.update(dict.fromkeys(range(posted.first, self._posted + 1), posted))
        data = [
            wire.publication(
                1, wire.shortstr(one.exchange), wire.shortstr(one.key), one.properties, one.body,
                mandatory=True, largest=outlet.largest_frame,
            )
            for one in publications
        ]  # fmt: skip
        outlet.send(b"".join(data), time.monotonic() + LOCAL_SECONDS)

    def _mention(self, note: Publication) -> None:
        """Publishes what nobody waits for: its stream may be away, and it is said again."""
        outlet = self._outlet()
        self._posted += 1
        data = wire.publication(1, wire.shortstr(note.exchange), wire.shortstr(note.key), note.properties, note.body)
        outlet.send(data, time.monotonic() + LOCAL_SECONDS)

    def _outlet(self) -> wire.Connection:
        deadline = time.monotonic() + LOCAL_SECONDS
        connection = self.connected(deadline)
        if self.outlet is None:
            deadline = time.monotonic() + CONNECT_SECONDS
            try:
                fresh = wire.Connection(
                    connection.address, deadline, heartbeat_seconds=self.heartbeat_seconds, tls=self.tls, name="celeriac worker, publishing"
                )
                fresh.open_channel(1, deadline)
                fresh.ask(1, wire.frame(1, wire.CONFIRM_SELECT, b"\x00"), wire.CONFIRM_SELECT_OK, deadline)
            except EngineUnavailable as problem:
                self.sender.breaker.failed(str(problem))
                raise
            self.outlet = fresh
        return self.outlet

    def _declare(self, needs: Iterable[tuple[str, str]]) -> None:
        missing = dict.fromkeys(need for need in needs if need not in self._declared)
        if missing:
            deadline = time.monotonic() + LOCAL_SECONDS
            with self.sender.link(deadline) as link:
                for kind, name in missing:
                    link.declare(kind, name, deadline)
            self._declared |= missing.keys()

    def _answered(self, one: wire.Arrived) -> None:
        """What RabbitMQ says of what we have published."""
        if one.method == wire.BASIC_RETURN:
            for posted in dict.fromkeys(self._outbox.values()):
                for publication in posted.publications:
                    if is_same(publication, one):
                        posted.refused.append(publication)
                        return
            return
        number = int.from_bytes(one.arguments[:8], "big")
        multiple = one.arguments[8] & 1
        for answered in [other for other in self._outbox if other <= number] if multiple else [number]:
            if answered not in self._outbox:  # only a mention
                continue
            posted = self._outbox.pop(answered)
            posted.waiting -= 1
            if one.method == wire.BASIC_NACK:
                posted.refused.append(posted.publications[answered - posted.first])
            if posted.waiting:
                continue
            if posted.refused:
                self._declared.clear()
                self._refused.append((time.monotonic() + REPEAT_SECONDS, posted))
            else:
                self._acknowledge(posted.tags)

    def _check_outlet(self, now: float) -> None:
        """A server that confirms nothing for so long, and does not say that it cannot, is not there."""
        oldest = next(iter(self._outbox.values()), None)
        if oldest is not None and now - oldest.at > LOCAL_SECONDS and self.outlet is not None and not self.outlet.blocked:
            self._disconnect()
            raise EngineUnavailable("RabbitMQ did not confirm in time.")

    def _check_beginnings(self, now: float) -> None:
        """RabbitMQ does nothing else for a channel while it waits for the leader of a queue that we want to read."""
        for consumer in self._consumers.values():
            if consumer.asked_at and not consumer.begun and now - consumer.asked_at > BEGIN_SECONDS:
                if consumer.kind == "notes":
                    self._blindness.seen(EngineUnavailable("RabbitMQ does not begin to give of it."))
                    continue
                name = self.topology.name(consumer.kind, consumer.queue)
                self._disconnect()
                raise EngineUnavailable(
                    f"RabbitMQ does not begin to give of {name!r}: the queue has no leader. If it stays so, see docs/engines/rabbitmq.md, 'A server that was killed too early'."
                )

    def _post_again(self, now: float) -> None:
        while self._refused and self._refused[0][0] <= now:
            _, posted = self._refused.pop(0)
            self._post(posted.refused, posted.tags)

    def renew(self, node: str, until: float, note: dict[str, Any]) -> bool:
        """The node lives, for so long at least, and says so. Does not wait for the confirmation. False: it is not registered any more."""
        with self.lock:
            known = self.nodes.get(node)
            if known is not None and known[1] <= self.clock.monotonic():
                self._pump()  # a connection that was lost since then has taken the node with it
                known = self.nodes.get(node)
            if known is None:
                return False
            self._mention(noted(self.topology, "nodes", note))
            self.nodes[node] = (known[0], until)
            return True

    def _remembered(self) -> bool:
        """The server knows the queues from which it has given to us before."""
        deadline = time.monotonic() + LOCAL_SECONDS
        try:
            with self.sender.link(deadline) as link:
                for queue in self._queues:
                    link.risk(wire.declare_queue(2, self.topology.returned(queue), passive=True), wire.QUEUE_DECLARE_OK, deadline)
        except wire.Refused as refused:
            return refused.code != wire.NOT_FOUND
        return True

    def lives(self) -> bool:
        """There is a connection."""
        return self.connection is not None and not self.connection.closed

    def _forget_all(self) -> None:
        """All that we held is gone, or is with others for good. Whoever asks for our nodes hears that they are not registered."""
        self._queues.clear()
        for node in list(self.nodes):
            del self.nodes[node]
            listener = self._listeners.pop(node, None)
            if listener is not None:
                unlisten(listener)
        self.held.clear()
        self._lost_until = 0.0

    def _await(self, done: Callable[[], bool], deadline: float) -> None:
        """Reads until it is so. For those who may wait: what serves processes may not."""
        connection = self.connected(deadline)
        while not self._has_come(done):
            if time.monotonic() >= deadline:
                self._disconnect()
                raise EngineUnavailable(f"RabbitMQ at {connection.address} did not answer in time.")
            pause = REPEAT_SECONDS if self._refused else deadline - time.monotonic()
            readable(self._descriptors(), pause)
            self._pump()
            if connection is not self.connection:
                raise EngineUnavailable("The connection to RabbitMQ was lost meanwhile.")

    def _descriptors(self) -> list[int]:
        return [one.fileno() for one in (self.connection, self.outlet) if one is not None]

    def _has_come(self, done: Callable[[], bool]) -> bool:
        self._digest()
        self._post_again(time.monotonic())
        return done()

    # -- the connection ----------------------------------------------------------------------------------------------------

    def connected(self, deadline: float) -> wire.Connection:
        connection = self.connection
        if connection is not None and not connection.closed and not (self.outlet is not None and self.outlet.closed):
            return connection
        if connection is not None:
            self._disconnect()
        self.sender.breaker.check(deadline)
        problem: EngineUnavailable | None = None
        for position, address in enumerate(self.addresses):
            share = time.monotonic() + min(deadline - time.monotonic(), CONNECT_SECONDS) / (len(self.addresses) - position)
            try:
                fresh = wire.Connection(address, share, heartbeat_seconds=self.heartbeat_seconds, tls=self.tls, name="celeriac worker")
                for channel in (1, 2, 3):
                    fresh.open_channel(channel, share)
                self.sender.breaker.answered()
                self.connection = fresh
                self._after_connecting()
                return fresh
            except (EngineUnavailable, wire.Refused) as trouble:
                self._disconnect()
                problem = trouble if isinstance(trouble, EngineUnavailable) else EngineUnavailable(str(trouble))
        self.sender.breaker.failed(str(problem))
        assert problem is not None
        raise problem

    def _after_connecting(self) -> None:
        """What was being listened to is listened to again."""
        if not self._remembered():
            self._forget_all()
        if self._lost_until:
            self._lost_until = time.monotonic() + RETURN_SECONDS
        self._follow_at = 0.0
        self._follow_again(time.monotonic())
        if self._custody:
            self._open_custody()
        for address in self.letters:
            self._listen_to(address)
        # As much as the last one had been given: what is held is among it, and those who hold it ask for nothing new before they have settled it.
        for queue, prefetch in self._windows.items():
            self._consume(queue, prefetch)
        self._windows.clear()

    _unacknowledged_notes = 0

    def _disconnect(self) -> None:
        """All that was given to the connection is the broker's again."""
        for one in (self.connection, self.outlet):
            if one is not None:
                one.drop("")
        self.connection = self.outlet = None
        self._doubted_at = 0.0
        if self._demand:
            self._windows.update({queue: consumer.prefetch for (queue, kind), consumer in self._open.items() if kind == "queue"})
        self._notes_open = False
        self._named.clear()
        self._consumers.clear()
        self._ended.clear()
        self._open.clear()
        self.buffer.clear()
        self._not_due.clear()
        self._worn.clear()
        self._successors.clear()
        self._given.clear()
        self._settled.clear()
        self._outbox.clear()
        self._refused.clear()
        self._posted = 0
        self._declared.clear()
        self._copies.clear()
        for client in self._clients.values():
            if client.promised is not None:  # not its yet, and the original is with the broker
                for held in client.promised[1]:
                    if self.held.pop(held.id, None) is not None:
                        self._void[held.id] = held.token
                client.promised = None
        for held in self.held.values():
            held.lost = True
            held.tag = None
        if self.held:
            self._lost_until = math.inf

    def close(self) -> None:
        with self.lock:
            with suppress(EngineUnavailable):
                self._give_back_buffer()
            for node in list(self._listeners):
                unlisten(self._listeners.pop(node))
            for client in list(self._clients.values()):
                self._drop_client(client)
            if self.connection is not None:
                with suppress(EngineUnavailable):
                    # Copies of what is done must not stay in custody: they would come back as if their holder had died.
                    self._await(lambda: not (self._outbox or self._refused or self._copies), time.monotonic() + 2.0)
            for one in (self.connection, self.outlet):
                if one is not None:
                    one.close()
            self._disconnect()
            self.held.clear()
            self._lost_until = 0.0
            self.letters.clear()
            self._follows = False

    def forget(self) -> None:
        """In a child of the process that opened this: closes our copies, without a word to the server."""
        for one in (self.connection, self.outlet):
            if one is not None:
                one.drop("")
        for listener in self._listeners.values():
            listener.close()
        for client in self._clients.values():
            client.link.close()

    # -- consumers ---------------------------------------------------------------------------------------------------------

    def _consume(self, queue: str, prefetch: int) -> None:
        """Makes RabbitMQ give us up to `prefetch` unacknowledged messages at a time of a queue, and as many that were given back."""
        prefetch = max(1, min(prefetch, 65000))
        deadline = time.monotonic() + LOCAL_SECONDS
        self._declare([("queue", queue), ("returned", queue)])
        connection = self.connected(deadline)  # if it is a new one, it may have begun with this queue
        self._queues.add(queue)
        for kind in ("returned", "queue"):
            consumer = self._open.get((queue, kind))
            there = consumer.prefetch if consumer is not None else 0
            if there >= prefetch:
                continue
            self._numbers += 1
            fresh = _Consumer(f"c{self._numbers}", queue, kind, prefetch, asked_at=time.monotonic())
            self._consumers[fresh.tag] = self._open[queue, kind] = fresh
            # One more subscription, never another in the place of the last: what is on its way to one that is cancelled goes back, as if somebody had died with it.
            data = wire.prefetch(1, prefetch - there) + wire.consume(1, self.topology.name(kind, queue), fresh.tag)
            connection.send(data, deadline)

    def _stop_consuming(self, queues: Iterable[str], deadline: float) -> None:
        """Nothing more comes of these queues when this returns."""
        self._begin_to_stop(queues)
        self._await(lambda: not any(consumer.closing for consumer in self._consumers.values()), deadline)

    def _make_room(self) -> None:
        """For what the lost connection held. RabbitMQ may notice its end after it has filled the new one with others, which nobody takes before that is settled."""
        for queue in {held.queue for held in self.held.values() if held.lost} - self.paused.keys():
            self._consume(queue, self._count([queue]) + sum(held.queue == queue for held in self.held.values()))

    def _begin_to_stop(self, queues: Iterable[str]) -> None:
        data = b""
        for queue in queues:
            for kind in ("returned", "queue"):
                if self._open.pop((queue, kind), None) is not None:
                    for consumer in self._consumers.values():
                        if consumer.queue == queue and consumer.kind == kind and not consumer.closing:
                            data += self._cancel(consumer)
        if data:
            self.connected(time.monotonic() + LOCAL_SECONDS).send(data, time.monotonic() + LOCAL_SECONDS)

    def _has_ended(self, tag: str) -> _Consumer | None:
        """It is remembered: a quorum queue may give to a subscription even after it has said that it ended."""
        consumer = self._consumers.pop(tag, None)
        if consumer is not None:
            self._ended[tag] = consumer
            if len(self._ended) > 100:
                del self._ended[next(iter(self._ended))]
        return consumer

    def _cancel(self, consumer: _Consumer) -> bytes:
        consumer.closing = True
        return wire.cancel(1, consumer.tag) if consumer.begun else b""

    # -- what arrives --------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Reads what has come, without waiting."""
        connection = self.connected(time.monotonic() + LOCAL_SECONDS)
        try:
            for one in (connection, self.outlet):
                if one is not None:
                    while one.read(0.0):
                        pass
                    one.heartbeat()
            self._digest()
            self._pumped_at = time.monotonic()
        except EngineUnavailable:
            self._disconnect()
            if self._slept() and any(until <= self.clock.monotonic() for _, until in self.nodes.values()):
                self._forget_all()  # others have had time to run all that we held
            raise

    def _ask_if_in_doubt(self) -> None:
        """A call has failed since we heard of the server: a connection that nobody has closed may be dead all the same.

        Raises EngineUnavailable until it speaks, or another call has been answered.
        """
        connection, now = self.connected(time.monotonic() + LOCAL_SECONDS), time.monotonic()
        if connection.heard_at > self.sender.breaker.failed_at:
            self._doubted_at = 0.0
            return
        if not self._doubted_at:
            self._doubted_at = now
            connection.send(wire.prefetch(3, 1), now + DOUBT_SECONDS)  # this changes nothing, and is answered
        elif now - self._doubted_at > DOUBT_SECONDS:
            self._disconnect()
        if connection.closed or self.sender.breaker.fails():
            raise EngineUnavailable(f"RabbitMQ at {connection.address} is silent.")

    _doubted_at = 0.0

    def _slept(self) -> bool:
        """We were stopped: else the loss of a connection is seen at once."""
        return time.monotonic() - self._pumped_at > SLEPT_SECONDS

    _pumped_at = 0.0

    def _digest(self) -> None:
        connection = self.connection
        if connection is None:
            return
        arrived = connection.arrived
        later: list[wire.Arrived] = []
        while arrived and connection is self.connection:  # not what was given by one that has been replaced meanwhile
            one = arrived.popleft()
            method = one.method
            if method == wire.BASIC_DELIVER:
                self._delivered(one)
            elif method == wire.BASIC_CONSUME_OK:
                begun = self._consumers.get(wire.read_short(one.arguments, 0)[0])
                if begun is not None:
                    begun.begun = True
                    if begun.kind == "notes":
                        self._blindness.over()
                    if begun.closing:
                        connection.send(wire.cancel(1, begun.tag), time.monotonic() + LOCAL_SECONDS)
            elif method == wire.BASIC_CANCEL_OK:
                self._has_ended(wire.read_short(one.arguments, 0)[0])
            elif method == wire.BASIC_CANCEL:  # the queue was deleted, or its node is gone
                gone = self._has_ended(wire.read_short(one.arguments, 0)[0])
                if gone is not None:
                    for kind in ("returned", "queue"):
                        self._open.pop((gone.queue, kind), None)
                    self._declared = {need for need in self._declared if need[1] != gone.queue}
            elif method == wire.CHANNEL_CLOSE:
                code, text = int.from_bytes(one.arguments[:2], "big"), wire.read_short(one.arguments, 2)[0]
                if one.channel == NOTES:
                    connection.send(wire.frame(NOTES, wire.CHANNEL_CLOSE_OK), time.monotonic() + LOCAL_SECONDS)
                    self._consumers.pop("notes", None)
                    self._notes_open = False
                    self._blindness.seen(EngineUnavailable(text))
                    continue
                self._disconnect()
                raise EngineUnavailable(f"RabbitMQ closed a channel ({code}): {text}")
            elif method not in _NOTHING_TO_SAY:
                later.append(one)
        arrived.extend(later)
        self._hear_confirmations()
        if self._not_due:
            self._put_off()
        if self._worn:
            worn, self._worn = self._worn, []
            self._give_back([held for held in worn if held.holder is None])
            self._copy_into_custody([held for held in worn if held.holder is not None])

    def _hear_confirmations(self) -> None:
        while self.outlet is not None and self.outlet.arrived:
            one = self.outlet.arrived.popleft()
            if one.method in _ABOUT_PUBLICATIONS:
                self._answered(one)
            elif one.method == wire.CHANNEL_CLOSE:
                self._disconnect()
                raise EngineUnavailable(f"RabbitMQ closed a channel: {wire.read_short(one.arguments, 2)[0]}")

    def _delivered(self, one: wire.Arrived) -> None:
        name, tag, redelivered, _, _ = wire.delivered(one)
        if one.channel == 1:
            self._given.append(tag)
        consumer = self._consumers.get(name) or self._ended.get(name)
        if consumer is None:
            self._disconnect()  # so that it goes back
            raise EngineUnavailable(f"RabbitMQ gave for a subscription that there is not ({name}).")
        kind = consumer.kind
        if kind == "queue" or kind == "returned":
            held, wait = read_slip(one.properties, one.body, consumer.queue, tag, redelivered, self.clock.time())
            known = self.held.get(held.id)
            if known is not None and held.base >= known.token and not held.copy:
                # Not the same once more, but what its settlement has published (a retry, say), before the acknowledgement has come to us.
                held.place = self._place(held, kind)
                if known.lost:
                    self.buffer.setdefault(consumer.queue, []).append(held)
                elif self._successors.setdefault(held.id, held) is not held:
                    self._acknowledge([tag])
            elif known is not None:
                if known.lost or known.tag is None:  # our own, from before the connection was lost: its task still runs
                    known.tag, known.lost = tag, False
                    if held.returns >= WORN_RETURNS:
                        self._worn.append(known)
                else:
                    self._acknowledge([tag])
            elif self._is_done(held):
                self._acknowledge([tag])
            elif wait > 0.0:
                self._not_due.append((held, wait))
            elif held.returns >= WORN_RETURNS:
                self._worn.append(held)
            else:
                held.place = self._place(held, kind)
                self.buffer.setdefault(consumer.queue, []).append(held)
        elif kind == "custody":
            self._came_into_custody(one, tag)
        elif kind == "letters":
            posted_at, letter = _decode_letter(one.body)
            if posted_at > self.clock.time() - LETTER_SECONDS:
                self.letters.setdefault(consumer.queue, deque()).append(letter)
        else:
            self._noted(_json(one.body))
            self._unacknowledged_notes += 1
            if self._unacknowledged_notes >= 200 and self.connection is not None:
                self._unacknowledged_notes = 0
                self.connection.send(wire.acknowledgement(NOTES, tag, multiple=True), time.monotonic() + LOCAL_SECONDS)

    def _is_done(self, held: Held) -> bool:
        """It was settled here: it comes once more because a lost connection has swallowed the acknowledgement, or because its publication was repeated."""
        token, since, marked = self._done.get(held.id, _NEVER)
        if held.base >= token:
            return False
        return marked or _MARK in held.properties or (held.doubtful and held.since == since)

    def _put_off(self) -> None:
        """Not due: it waits in the broker."""
        waiting, self._not_due = self._not_due, []
        publications = [
            addressed(
                self.topology, "queue", held.queue, self.topology.queue(held.queue),
                relabelled(held.properties, {"celeriac-since": held.since + wait, "celeriac-left": 0.0}), held.body, wait,
            )
            for held, wait in waiting
        ]  # fmt: skip
        self._post(publications, [held.tag for held, _ in waiting if held.tag is not None])

    # -- notes: what everybody has to know -----------------------------------------------------------------------------------

    def sync(self, deadline: float) -> None:
        """All notes that were confirmed before this call are known when it returns; those to come are followed."""
        mark = new_id()
        self._marks.add(mark)
        self.sender.note("notes", {"mark": mark}, deadline)
        self.connected(deadline)
        if "notes" not in self._consumers:
            self._follow()
        self._await(lambda: mark not in self._marks, deadline)

    def _follow(self) -> None:
        """All notes are read, from the first on; and what is noted from now on."""
        self._declare([("stream", "notes")])
        deadline = time.monotonic() + LOCAL_SECONDS
        connection = self.connected(deadline)
        self._follows = True
        consumer = _Consumer("notes", "", "notes", asked_at=time.monotonic())
        self._consumers[consumer.tag] = consumer
        begin = wire.prefetch(NOTES, 1000) + wire.consume(NOTES, self.topology.own("notes"), consumer.tag, {"x-stream-offset": "first"})
        if not self._notes_open:
            self._notes_open = True
            begin = wire.frame(NOTES, wire.CHANNEL_OPEN, b"\x00") + begin
        connection.send(begin, deadline)

    def _follow_again(self, now: float) -> None:
        """After the connection was lost, or the stream. What we know of pauses and revokes holds meanwhile, and nobody waits for more (docs/decisions/0024)."""
        if not self._follows or "notes" in self._consumers or now < self._follow_at:
            return
        self._follow_at = now + FOLLOW_SECONDS
        try:
            self._follow()
        except EngineUnavailable as problem:
            if not self.lives():
                raise
            self._blindness.seen(problem)

    def _name_queues(self) -> None:
        """Who made them could not, when the stream was away."""
        notes = self._consumers.get("notes")
        unnamed = self._queues - self._named - self.topology.queues.keys()
        if notes is not None and notes.begun and unnamed:
            self._named |= unnamed
            self._post([noted(self.topology, "notes", {"queue": queue}) for queue in unnamed])

    def _noted(self, note: dict[str, Any]) -> None:
        if "mark" in note:
            self._marks.discard(note["mark"])
        elif "queue" in note:
            self._named.add(note["queue"])
        elif "pause" in note:
            self.paused.update(dict.fromkeys(note["pause"], note["by"]))
            self._begin_to_stop(note["pause"])
            self._give_back_buffer(note["pause"])
        elif "resume" in note:
            for queue in note["resume"]:
                self.paused.pop(queue, None)
        elif "revoke" in note:
            self._note_revokes(note)
        elif note.get("gone") in self.nodes:
            self._begin_to_give_up(note["gone"], crashed=True)

    def _note_revokes(self, note: dict[str, Any]) -> None:
        until = note["at"] + self.revokes_expire_seconds
        if until < self.clock.time():
            return
        for id in note["revoke"]:
            self.revoked[id] = until
            held = self.held.get(id)
            if held is not None and held.holder is not None and note.get("terminate"):
                letter = Letter(method="terminate", arguments={"task_id": id, "signal": note["terminate"]})
                self.letters.setdefault(held.holder.node, deque()).append(letter)

    # -- letters -------------------------------------------------------------------------------------------------------------

    def collect(self, address: str, timeout_seconds: float) -> list[Letter]:
        """The letters of a mailbox. While it waits, the processes of this node are served."""
        for last in (False, False, True):
            try:
                return self._collect(address, timeout_seconds)
            except EngineUnavailable as problem:
                with self.lock:
                    self._serve_meanwhile(problem)
                # Somebody may be making the same mailbox, to post there. What holds messages begins anew only when it must.
                if last or self.held or not is_being_made(problem):
                    raise
            time.sleep(REPEAT_SECONDS)
        raise AssertionError("unreachable")

    def _collect(self, address: str, timeout_seconds: float) -> list[Letter]:
        deadline = time.monotonic() + timeout_seconds
        with self.lock:
            self.connected(time.monotonic() + LOCAL_SECONDS)
            expected = 0
            if address not in self.letters:
                expected = self._listen_to(address)
                self.letters.setdefault(address, deque())
                self._leave_mailboxes()
                deadline = max(deadline, time.monotonic() + 0.2 * bool(expected))
                if address in self.nodes and not self._follows:
                    self.sync(time.monotonic() + LOCAL_SECONDS)
        while True:
            with self.lock:
                self._pump()
                self._ask_if_in_doubt()
                self._tick()
                box = self.letters.get(address)
                if box and (len(box) >= expected or time.monotonic() > deadline):
                    self.letters[address] = deque()
                    return list(box)
                descriptors = [*self._descriptors(), *self._local_descriptors()]
                pause = self._pause_seconds()
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            ready = readable(descriptors, min(left, pause))
            if ready:
                with self.lock:
                    self._serve(ready)

    def _listen_to(self, address: str) -> int:
        """From now on its letters come to us. Returns how many are there already."""
        deadline = time.monotonic() + LOCAL_SECONDS
        with self.sender.link(deadline) as link:
            link.declared.discard(("letters", address))  # it may have expired meanwhile
            link.declare("letters", address, deadline)
            there = link.risk(wire.declare_queue(2, self.topology.name("letters", address), passive=True), wire.QUEUE_DECLARE_OK, deadline)
        self._numbers += 1
        consumer = _Consumer(f"c{self._numbers}", address, "letters")
        self._consumers[consumer.tag] = consumer
        self.connected(deadline).send(wire.consume(2, self.topology.name("letters", address), consumer.tag, acknowledged=False), deadline)
        return wire.counted(there)[1]

    def _leave_mailboxes(self) -> None:
        """They expire then."""
        old = [address for address in self.letters if address not in self.nodes][:-MAILBOXES]
        for consumer in self._consumers.values():
            if consumer.kind == "letters" and consumer.queue in old:
                self.connected(time.monotonic() + LOCAL_SECONDS).send(wire.cancel(2, consumer.tag), time.monotonic() + LOCAL_SECONDS)
        for address in old:
            del self.letters[address]

    # -- the processes of this node ------------------------------------------------------------------------------------------

    def _local_descriptors(self) -> list[int]:
        return [*(one.fileno() for one in self._listeners.values()), *self._clients]

    def _serve_meanwhile(self, problem: EngineUnavailable) -> None:
        """RabbitMQ is away: nobody who asks is kept waiting for it for long."""
        self._serve(readable(self._local_descriptors(), 0.0))
        now = time.monotonic()
        for client in list(self._clients.values()):
            if client.deferred is not None and now - client.deferred[1] > AWAY_SECONDS:
                client.deferred = None
                self._answer(client, ("away", [str(problem)], ()))
        self._answer_those_who_ask(now)

    def _serve(self, ready: Iterable[int]) -> None:
        listeners = {one.fileno(): one for one in self._listeners.values()}
        for descriptor in ready:
            if descriptor in listeners:
                self._accept(listeners[descriptor])
            elif descriptor in self._clients:
                self._hear(self._clients[descriptor])

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            link, _ = listener.accept()
            if not is_ours(link):
                link.close()
                return
            link.setblocking(False)
            self._clients[link.fileno()] = _Client(link)

    def _hear(self, client: _Client) -> None:
        try:
            data = client.link.recv(wire.RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop_client(client)
            return
        buffer = client.buffer
        buffer += data
        while len(buffer) >= 4:
            (size,) = length.unpack_from(buffer)
            if len(buffer) < 4 + size:
                break
            request = unpack(bytes(memoryview(buffer)[4 : 4 + size]))
            del buffer[: 4 + size]
            self._reply(client, request)

    def _reply(self, client: _Client, request: list[Any], since: float | None = None) -> None:
        client.deferred = None
        try:
            self._answer(client, self._act(client, *request))
        except NodeLost:
            self._answer(client, ("lost", (), ()))
        except EngineUnavailable:
            client.deferred = request, time.monotonic() if since is None else since

    def _drop_client(self, client: _Client) -> None:
        self._clients.pop(client.link.fileno(), None)
        client.link.close()
        if client.holder is not None:
            self._demand.pop(client.holder, None)

    def _answer(self, client: _Client, answer: Any) -> None:
        if answer is None:
            return
        raw = pack(answer)
        try:
            raw = length.pack(len(raw)) + raw
            try:
                sent = client.link.send(raw)
            except BlockingIOError:
                sent = 0
            if sent < len(raw):
                client.link.settimeout(5.0)
                client.link.sendall(memoryview(raw)[sent:])
                client.link.setblocking(False)
        except OSError:
            self._drop_client(client)

    def _act(self, client: _Client, verb: str, *arguments: Any) -> Any:
        if self.connection is None or self.connection.closed:
            raise EngineUnavailable("The worker has no connection to RabbitMQ just now.")
        match verb:
            case "exchange":
                node, process, leases, queues, limit, wait_seconds = arguments
                holder = client.holder = Holder(node, process)
                self._require(node)
                refused = self.acknowledge(leases)
                if limit <= 0:
                    return ("ok", refused, ())
                now = time.monotonic()
                client.asks = _Question(queues, limit, refused, now, now + max(PATIENCE_SECONDS, wait_seconds))
                return self._handed(client, refused, self._stream(holder, queues, limit))
            case "settle":
                return ("ok", self.acknowledge(arguments[0]), ())
            case "stale":
                return ("ok", self.stale(arguments[0]), ())
            case _:
                node, process = arguments
                return ("ok", (), self.holdings(node, process))

    def _stream(self, holder: Holder, queues: Sequence[str], limit: int) -> list[Held]:
        """For a process: what is buffered, at once; and RabbitMQ is told to give as much as all processes want."""
        self._asked_at = time.monotonic()
        self._demand[holder] = (limit, queues)
        free = [queue for queue in queues if queue not in self.paused] if self.paused else queues
        taken = self._take(free, limit, holder) if self._count(free) >= limit else []
        with suppress(EngineUnavailable):  # the next connection begins with it
            self._steer()
        return taken

    def _steer(self) -> None:
        wanted: dict[str, int] = {}
        for limit, queues in self._demand.values():
            for queue in queues:
                wanted[queue] = wanted.get(queue, 0) + (2 * limit if limit >= 4 else limit)
        for queue, count in wanted.items():
            if queue not in self.paused:
                consumer = self._open.get((queue, "queue"))
                if consumer is None or consumer.prefetch < count:
                    self._consume(queue, count if count <= 3 * len(self._demand) else 2 * count)

    def _answer_those_who_ask(self, now: float) -> None:
        for client in list(self._clients.values()):
            if client.promised is not None:
                if now - client.promised[1][0].taken_at > PROMISE_SECONDS:
                    self._keep_promise(client.promised[1][0])  # its crash may not be counted then
                continue
            if client.asks is None or client.holder is None:
                continue
            asks = client.asks
            free = [queue for queue in asks.queues if queue not in self.paused]
            there = self._count(free)
            if there == 1 or there >= asks.limit or (there and now - asks.since >= LINGER_SECONDS):
                taken = self._take(free, asks.limit, client.holder)
                if taken:
                    self._answer(client, self._handed(client, asks.refused, taken))
            elif now >= asks.until:
                client.asks = None
                self._answer(client, ("ok", asks.refused, ()))

    def _handed(self, client: _Client, refused: list[str], taken: list[Held]) -> Answer | None:
        """The answer of who gets these; None: it gets one later."""
        if not taken:
            return None
        if taken[0].doubtful:
            with suppress(EngineUnavailable):  # then its crash will not be counted
                self._copy_into_custody(taken)
                client.promised = refused, taken
                return None
        client.asks = None
        return ("ok", refused, taken)

    def _pause_seconds(self) -> float:
        asked = [client.asks.until for client in self._clients.values() if client.asks is not None]
        if self._count(self.buffer):
            return LINGER_SECONDS if asked else self._quiet_seconds
        return max(LINGER_SECONDS, min(asked) - time.monotonic()) if asked else 1.0  # who waits for custody may have asked long ago

    def _tick(self) -> None:
        """What the passing of time asks for."""
        now = time.monotonic()
        for client in list(self._clients.values()):
            if client.deferred is not None:
                self._reply(client, *client.deferred)
        self._check_outlet(now)
        self._check_beginnings(now)
        self._post_again(now)
        self._answer_those_who_ask(now)
        if self._surplus(now):
            self._begin_to_stop([queue for queue, kind in self._open if kind == "queue"])
            if not any(consumer.closing for consumer in self._consumers.values()):
                self._give_back_buffer()
                self._quiet_seconds = min(LONGEST_QUIET_SECONDS, 2 * self._quiet_seconds)
                self._given_back_at = now
        elif now - self._given_back_at > CALM_SECONDS:
            self._quiet_seconds = QUIET_SECONDS
        self._follow_again(now)
        if now < self._lost_until < math.inf:
            self._make_room()
        if now - self._custody_at >= 1.0:
            self._custody_at = now
            self._name_queues()
            old = [
                held for held in self.held.values()
                if now - held.taken_at > self.custody_seconds and held.tag is not None and held.id not in self._copies
                and held.holder is not None and held.holder.node in self.nodes
            ]  # fmt: skip
            if old:
                self._copy_into_custody(old)

    _quiet_seconds = QUIET_SECONDS
    _given_back_at = 0.0

    def _surplus(self, now: float) -> bool:
        """Something is buffered, and nobody has asked for a while: all processes run something long, and do not just wait for what a lost connection held."""
        return (
            bool(self._count(self.buffer))
            and now >= self._lost_until
            and not self._waiting
            and now - self._asked_at > self._quiet_seconds
            and not any(client.asks is not None for client in self._clients.values())
        )

    # -- custody ---------------------------------------------------------------------------------------------------------------

    def _copy_into_custody(self, messages: Sequence[Held]) -> None:
        """A copy to a queue of our own. When it comes to us from there, the original is acknowledged: the broker's clock, and its count, begin anew."""
        if not messages:
            return
        if not self._custody:
            self._custody = self.topology.own(f"held.{new_id()}")
            try:
                self._open_custody()
            except EngineUnavailable:
                self._custody = ""
                raise
        publications = []
        for held in messages:
            held.taken_at = time.monotonic()
            counts = [held.crashes + 1, held.interruptions, held.token, 1]
            mark = {"celeriac-counts": counts, "celeriac-since": held.since, "id": held.id}
            properties = relabelled(held.properties, mark)
            back = self.topology.returned(held.queue)
            publications.append(Publication(self._custody, back, properties, held.body, (("returned", held.queue),)))
        self._post(publications)
        self._copies.update({held.id: held.token for held in messages})

    def _open_custody(self) -> None:
        deadline = time.monotonic() + LOCAL_SECONDS
        arguments = {
            "x-queue-type": "quorum",
            "x-message-ttl": 10_000,
            "x-expires": 600_000,
            "x-overflow": "reject-publish",
            "x-dead-letter-strategy": "at-least-once",
            "x-dead-letter-exchange": "",
            "x-delivery-limit": MANY_DELIVERIES,
        }
        name = self._custody
        with self.sender.link(deadline) as link:
            link.risk(wire.declare_queue(2, name, arguments), wire.QUEUE_DECLARE_OK, deadline)
            link.risk(wire.declare_exchange(2, name, "fanout", auto_delete=True), wire.EXCHANGE_DECLARE_OK, deadline)
            link.risk(wire.bind_queue(2, name, name, ""), wire.QUEUE_BIND_OK, deadline)
        connection = self.connected(deadline)
        if "custody" not in self._consumers:  # a new connection has begun with it
            self._consumers["custody"] = _Consumer("custody", "", "custody")
            connection.send(wire.prefetch(1, 0) + wire.consume(1, name, "custody"), deadline)

    def _came_into_custody(self, one: wire.Arrived, tag: int) -> None:
        headers, _ = wire.read_properties(one.properties)
        id, token = str(headers["id"]), headers["celeriac-counts"][2]
        if self._copies.get(id) == token:
            del self._copies[id]
        held = self.held.get(id)
        if held is not None and held.token == token:
            if held.tag is not None:
                self._acknowledge([held.tag])
            held.tag, held.lost = tag, False
            self._keep_promise(held)
        elif self._void.pop(id, None) == token or token <= self._done.get(id, _NEVER)[0]:
            self._acknowledge([tag])  # the original is with the broker, or it was settled while this was on its way
        else:  # nobody's any more: its holder was refused
            counts = [headers["celeriac-counts"][0] - 1, headers["celeriac-counts"][1] + 1, token]
            properties = relabelled(one.properties, {"celeriac-counts": counts})
            self._post([Publication("", wire.delivered(one)[4], properties, one.body)], [tag])

    def _keep_promise(self, held: Held) -> None:
        for client in list(self._clients.values()):
            if client.promised is not None and held in client.promised[1]:
                refused, taken = client.promised
                client.promised = client.asks = None
                self._answer(client, ("ok", refused, taken))


_by_place = attrgetter("place")
_NOTHING_TO_SAY = frozenset((wire.BASIC_QOS_OK, wire.CHANNEL_OPEN_OK))
_ABOUT_PUBLICATIONS = frozenset((wire.BASIC_ACK, wire.BASIC_NACK, wire.BASIC_RETURN))
_NEVER = (0, 0.0, False)
_MARK = b"celeriac-again"
