"""The engine for tests: everything in the memory of one process.

    storage    dictionaries; messages, records and letters as the bytes they would be elsewhere, so that nothing is shared by accident and what cannot travel fails here too
    a crash    loses everything: it is not durable, and no other process sees it
    order      priority, then how long it has waited, then the order of publishing; a heap for each queue
    waiting    each waiter has an event; what becomes ready wakes one waiter of its queue
    atomic     one lock around every verb; whatever can fail (encoding) is done before it is taken

`memory://` is a storage of its own; two engines of `memory://name` in one process share theirs.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from heapq import heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, assert_never
from urllib.parse import unquote
from weakref import WeakValueDictionary

import msgspec
from msgspec import Raw

from ..contracts.broker import Capabilities
from ..contracts.inspect import Depth, Waiting
from ..contracts.joins import JoinState
from ..contracts.mailbox import Letter, Node
from ..contracts.steps import Step
from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import NodeLost
from ..core.message import Arrival, Delivery, Holder, Join, Lease, Message, Pause, Record, Revocation, Settlement, Verdict
from ..core.states import READY_STATES

if TYPE_CHECKING:
    from ..contracts.engine import Engine
    from ..contracts.results import Subscription
    from ..contracts.schedules import Schedules

LETTER_SECONDS = 60.0
"""How long a letter waits for its reader."""
GLANCE_SECONDS = 1.0
"""How long a waiter trusts the clock by which messages come due: somebody may set it."""

_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(Message).decode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_letter = msgspec.json.Decoder(Letter).decode
_decode_arrival = msgspec.json.Decoder(Arrival).decode

_OPENED, _SEALED = -1, -2
"""What completed a join, when it was no arrival."""


class _Row:
    """A message that we hold."""

    __slots__ = (
        "body", "crashes", "died_at", "due_at", "expires_at", "holder", "id", "interruptions", "priority",
        "queue", "reason", "revocation", "sequence", "state", "token", "waiting_since",
    )  # fmt: skip

    id: str
    queue: str
    priority: int
    body: bytes
    expires_at: float | None

    def __init__(self, message: Message, body: bytes, sequence: int) -> None:
        self.sequence = sequence
        self.state = "new"
        self.token = 0
        self.crashes = 0
        self.interruptions = 0
        self.waiting_since: float | None = None
        self.due_at: float | None = None
        self.holder: Holder | None = None
        self.revocation: Revocation | None = None
        self.reason = ""
        self.died_at: float | None = None
        self.write(message, body)

    def write(self, message: Message, body: bytes) -> None:
        self.id = message.id
        self.queue = message.queue
        self.priority = message.priority
        self.body = body
        self.expires_at = message.expires.timestamp() if message.expires is not None else None

    def rank(self) -> tuple[int, float, int]:
        """The smaller, the sooner reserved."""
        return (-self.priority, self.waiting_since or 0.0, self.sequence)


class _Join:
    """A join that we hold."""

    __slots__ = ("arrivals", "completed_by", "enlarged", "failed", "size", "then", "to_leave", "touched_at")

    def __init__(self, size: int | None, then: list[tuple[Message, bytes]], now: float) -> None:
        self.size = size
        self.enlarged = 0
        """By how many before it had a size."""
        self.then = then
        self.arrivals: dict[int, bytes] = {}
        self.failed = 0
        self.completed_by: int | None = None
        """The index of the last arrival, or _OPENED, or _SEALED; None as long as the join is not complete."""
        self.to_leave = max(1, len(then))
        self.touched_at = now


class _Storage:
    """What is kept, and the one lock around it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sequence = 0
        self.rows: dict[str, _Row] = {}
        """Waiting and leased messages."""
        self.ready: dict[str, list[tuple[int, float, int, _Row]]] = {}
        """A heap for each queue. A message that left otherwise than by being reserved is still in it, with the state "gone"."""
        self.scheduled: dict[str, list[tuple[float, int, _Row]]] = {}
        """The same, by due time."""
        self.leased: dict[str, dict[str, _Row]] = {}
        """node → id → message, in the order in which they were reserved."""
        self.dead: dict[str, _Row] = {}
        self.paused: dict[str, str] = {}
        self.revoked: dict[str, float] = {}
        """id → until when it is remembered."""
        self.nodes: dict[str, tuple[Node, float]] = {}
        """node → when its lease runs out, by the clock that only goes on."""
        self.letters: dict[str, list[tuple[float, bytes]]] = {}
        self.records: dict[str, tuple[bytes, bool, float]] = {}
        """id → record, whether its state is a ready one, when it was stored. The longest stored come first."""
        self.joins: dict[str, _Join] = {}
        self.steps: dict[str, dict[str, Step]] = {}
        """task → name → step, in the order in which they were first named."""
        self.stepped_at: dict[str, float] = {}
        """task → when a step of it changed last."""
        self.awaiting: dict[str, dict[str, str]] = {}
        """event → task → the step that waits for it."""
        self.events: dict[str, tuple[bytes, float]] = {}
        """event → its value, and when it occurred last. The longest past come first."""
        self.waiters: list[tuple[frozenset[str], threading.Event]] = []
        self.readers: list[tuple[str, threading.Event]] = []
        self.subscriptions: dict[str, list[_Subscription]] = {}


_named: WeakValueDictionary[str, _Storage] = WeakValueDictionary()


class MemoryEngine:
    """The engine of `memory://`."""

    capabilities = Capabilities(engine="memory", schedules=True, steps=True, processes=False, durable=False)

    def __init__(
        self,
        url: str = "memory://",
        *,
        clock: Clock = SYSTEM_CLOCK,
        result_expires: float | None = 86400,
        revokes_expire_seconds: float = 10800,
        **transport_options: Any,
    ) -> None:
        self.url = url
        self._clock = clock
        self._result_expires = result_expires
        self._revokes_expire_seconds = revokes_expire_seconds
        name = unquote(url.partition("://")[2]).strip("/")
        self._storage = _named.setdefault(name, _Storage()) if name else _Storage()
        self._schedules: Schedules | None = None

    @property
    def schedules(self) -> Schedules:
        """Where schedules are kept, under the same lock."""
        if self._schedules is None:
            from .schedules.memory import MemorySchedules

            self._schedules = MemorySchedules(self)
        return self._schedules

    # -- the life of a message -----------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, joins: Sequence[Join] = (), timeout_seconds: float | None = None) -> None:
        encoded = _encoded(messages)
        opened = [(join, _encoded(join.then)) for join in joins]
        with self._storage.lock:
            now = self._clock.time()
            complete = [self._open(join, then, now) for join, then in opened]
            self._publish_all(encoded, now)
            for then in complete:
                self._publish_all(then, now)

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder, wait_seconds: float = 0.0) -> list[Delivery]:
        if wait_seconds > 0.0 and not self.wait(queues, wait_seconds):
            return []
        with self._storage.lock:
            self._require(holder.node)
            return self._reserve(queues, limit, holder)

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        prepared = [_Prepared(settlement) for settlement in settlements]
        with self._storage.lock:
            return self._settle_all(prepared)

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        prepared = [_Prepared(settlement) for settlement in settlements]
        with self._storage.lock:
            self._require(holder.node)
            return self._settle_all(prepared), self._reserve(queues, limit, holder)

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        with self._storage.lock:
            now = self._clock.time()
            rows = self._storage.leased.get(node, {}).values()
            return [self._delivery(row, now) for row in rows if row.holder and process in (None, row.holder.process)]

    def lost(self, node: str, process: int) -> list[str]:
        return []

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        for revocation in revocations:
            _encode(revocation)
        with self._storage.lock:
            now = self._clock.time()
            return {revocation.id: self._revoke(revocation, now) for revocation in revocations}

    # -- nodes and their leases ----------------------------------------------------------------------------------

    def register(self, node: Node, *, lease_seconds: float) -> None:
        with self._storage.lock:
            self._storage.nodes[node.id] = (node, self._clock.monotonic() + lease_seconds)

    def heartbeat(self, node: str, *, lease_seconds: float) -> bool:
        with self._storage.lock:
            known = self._storage.nodes.get(node)
            if known is None:
                return False
            self._storage.nodes[node] = (known[0], self._clock.monotonic() + lease_seconds)
            return True

    def unregister(self, node: str) -> None:
        with self._storage.lock:
            self._give_back(node, crashed=False)

    def reclaim(self, nodes: Sequence[str] = ()) -> list[str]:
        with self._storage.lock:
            now = self._clock.monotonic()
            silent = [id for id, (_, until) in self._storage.nodes.items() if until <= now]
            unregistered = [id for id in self._storage.leased if id not in self._storage.nodes]
            lost = dict.fromkeys([*nodes, *silent, *unregistered])
            return [id for node in lost for id in self._give_back(node, crashed=True)]

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        waiter = (frozenset(queues), threading.Event())
        while True:
            with self._storage.lock:
                with suppress(ValueError):
                    self._storage.waiters.remove(waiter)
                until_due = self._seconds_until_ready(waiter[0])
                left = deadline - time.monotonic()
                if until_due <= 0 or left <= 0:
                    return until_due <= 0
                waiter[1].clear()
                self._storage.waiters.append(waiter)
            glance = GLANCE_SECONDS if until_due < float("inf") else threading.TIMEOUT_MAX
            waiter[1].wait(min(left, until_due, glance))

    def close(self) -> None:
        """There is nothing to give back."""

    # -- results -------------------------------------------------------------------------------------------------

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        bodies = [_encode(record) for record in records]
        with self._storage.lock:
            now = self._clock.time()
            refused = []
            for record, body in zip(records, bodies, strict=True):
                fenced_out = lease is not None and self._leased_row(record.task_id, lease) is None
                if fenced_out or not self._store(record, body, now):
                    refused.append(record.task_id)
            return refused

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        with self._storage.lock:
            bodies = {id: self._storage.records[id][0] for id in ids if id in self._storage.records}
        return {id: _decode_record(body) for id, body in bodies.items()}

    def forget(self, ids: Sequence[str]) -> None:
        with self._storage.lock:
            for id in ids:
                self._storage.records.pop(id, None)

    def subscribe(self, ids: Sequence[str]) -> Subscription:
        subscription = _Subscription(self._storage, ids)
        with self._storage.lock:
            for id in subscription.ids:
                self._storage.subscriptions.setdefault(id, []).append(subscription)
        return subscription

    def prune(self, limit: int = 1000) -> int:
        if self._result_expires is None:
            return 0
        with self._storage.lock:
            horizon = self._clock.time() - self._result_expires
            expired = [id for id, (_, _, stored_at) in self._storage.records.items() if stored_at < horizon][:limit]
            for id in expired:
                del self._storage.records[id]
            for id in [id for id, join in self._storage.joins.items() if join.touched_at < horizon]:
                del self._storage.joins[id]
            held = (self._storage.rows, self._storage.dead)
            for id in [id for id, at in self._storage.stepped_at.items() if at < horizon and not any(id in those for those in held)]:
                self._forget_steps(id)
            for event in [event for event, (_, at) in self._storage.events.items() if at < horizon]:
                del self._storage.events[event]
            return len(expired)

    # -- joins ---------------------------------------------------------------------------------------------------

    def seal(self, id: str, size: int) -> None:
        with self._storage.lock:
            now = self._clock.time()
            self._publish_all(self._seal(id, size, now), now)

    def joins(self, ids: Sequence[str]) -> dict[str, JoinState]:
        with self._storage.lock:
            known = {id: self._storage.joins[id] for id in ids if id in self._storage.joins}
            return {id: JoinState(id=id, size=join.size, arrived=len(join.arrivals), failed=join.failed) for id, join in known.items()}

    def arrivals(self, id: str) -> list[Arrival]:
        with self._storage.lock:
            join = self._storage.joins.get(id)
            bodies = [] if join is None else [join.arrivals[index] for index in sorted(join.arrivals)]
        return [_decode_arrival(body) for body in bodies]

    def arrive(
        self,
        arrivals: Sequence[Arrival],
        *,
        opens: Sequence[Join] = (),
        enlarges: Mapping[str, int] | None = None,
        seals: Mapping[str, int] | None = None,
    ) -> list[Message]:
        encoded = [(arrival, _encode(arrival)) for arrival in arrivals]
        opened = [(join, _encoded(join.then)) for join in opens]
        with self._storage.lock:
            now = self._clock.time()
            complete = [self._open(join, then, now, again=True) for join, then in opened]
            first = self._storage.joins.get(arrivals[0].join) if arrivals else None
            if first is None or arrivals[0].index not in first.arrivals:
                for id, more in (enlarges or {}).items():
                    self._enlarge(id, more, now)
            complete += [self._seal(id, size, now, again=True) for id, size in (seals or {}).items()]
            complete += [self._arrive(arrival, body, now, again=True) for arrival, body in encoded]
        then = [_decode_message(body) for each in complete for _, body in each]
        return list({message.id: message for message in then}.values())

    def leave(self, ids: Sequence[str]) -> None:
        with self._storage.lock:
            now = self._clock.time()
            for id in ids:
                self._leave(id, now)

    # -- steps ---------------------------------------------------------------------------------------------------

    def remember(self, task_id: str, name: str, result: Raw, *, failed: bool = False, lease: Lease | None = None) -> Step | None:
        with self._storage.lock:
            if lease is not None and self._leased_row(task_id, lease) is None:
                return None
            return self._remember(task_id, name, result, failed, self._clock.time())

    def recall(self, task_id: str) -> dict[str, Step]:
        with self._storage.lock:
            return dict(self._storage.steps.get(task_id, {}))

    def occur(self, event: str, value: Raw) -> list[str]:
        with self._storage.lock:
            now = self._clock.time()
            self._storage.events.pop(event, None)
            self._storage.events[event] = (bytes(value), now)
            waiting = list(self._storage.awaiting.get(event, {}).items())
            for task_id, name in waiting:
                until = self._storage.steps[task_id][name].until
                self._remember(task_id, name, value, False, now)
                row = self._storage.rows.get(task_id)
                if row is not None and row.state == "scheduled" and row.due_at == (inf if until is None else until):
                    self._wait_since(row, now)
            return [task_id for task_id, _ in waiting]

    # -- what people see -----------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock.time()

    def queues(self) -> list[str]:
        with self._storage.lock:
            return sorted(self._queues())

    def depth(self, queues: Sequence[str] | None = None) -> dict[str, Depth]:
        with self._storage.lock:
            now = self._clock.time()
            counts = {
                queue: dict.fromkeys(("ready", "scheduled", "leased", "dead"), 0)
                for queue in (self._queues() if queues is None else queues)
            }
            for row in (*self._storage.rows.values(), *self._storage.dead.values()):
                if row.queue in counts:
                    counts[row.queue][_state(row, now)] += 1
            return {queue: Depth(**count, paused_by=self._storage.paused.get(queue)) for queue, count in counts.items()}

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        with self._storage.lock:
            now = self._clock.time()
            if state == "dead":
                rows = [row for row in reversed(self._storage.dead.values()) if row.queue == queue]
            else:
                rows = [row for row in self._storage.rows.values() if row.queue == queue and _state(row, now) == state]
                rows.sort(key=lambda row: (row.due_at or 0.0, row.sequence) if state == "scheduled" else _due_rank(row))
            return [self._waiting(row, now) for row in rows[offset : offset + limit]]

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        with self._storage.lock:
            now = self._clock.time()
            found = {}
            for id in ids:
                row = self._storage.rows.get(id) or self._storage.dead.get(id)
                if row is not None:
                    found[id] = self._waiting(row, now, count_ahead=True)
            return found

    def revoked(self) -> list[str]:
        with self._storage.lock:
            now = self._clock.time()
            return [id for id, until in self._storage.revoked.items() if until > now and not self._is_waiting(id)]

    def purge(self, queues: Sequence[str]) -> int:
        with self._storage.lock:
            gone = [row for row in self._storage.rows.values() if row.queue in queues and row.state != "leased"]
            for row in gone:
                self._remove(row)
            for queue in queues:
                self._storage.ready.pop(queue, None)
                self._storage.scheduled.pop(queue, None)
            return len(gone)

    def pause(self, queues: Sequence[str], *, by: str) -> None:
        with self._storage.lock:
            self._storage.paused.update(dict.fromkeys(queues, by))

    def resume(self, queues: Sequence[str]) -> None:
        with self._storage.lock:
            for queue in queues:
                if self._storage.paused.pop(queue, None) is not None:
                    self._wake(queue, everybody=True)

    def replay(self, ids: Sequence[str]) -> list[str]:
        with self._storage.lock:
            replayed = [id for id in dict.fromkeys(ids) if id in self._storage.dead and id not in self._storage.rows]
            for id in replayed:
                row = self._storage.dead.pop(id)
                row.crashes = row.interruptions = 0
                row.waiting_since = row.died_at = None
                row.reason = ""
                self._storage.rows[id] = row
                self._wait_since(row, self._clock.time())
            return replayed

    def discard(self, ids: Sequence[str]) -> list[str]:
        with self._storage.lock:
            return [id for id in ids if self._storage.dead.pop(id, None) is not None]

    # -- letters -------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        with self._storage.lock:
            now = self._clock.monotonic()
            return [msgspec.structs.replace(node, lease_left_seconds=until - now) for node, until in self._storage.nodes.values()]

    def post(self, addresses: Sequence[str], letter: Letter) -> None:
        body = _encode(letter)
        with self._storage.lock:
            for address in addresses:
                self._post(address, body)

    def collect(self, address: str, timeout_seconds: float = 0.0) -> list[Letter]:
        deadline = time.monotonic() + timeout_seconds
        reader = (address, threading.Event())
        while True:
            with self._storage.lock:
                with suppress(ValueError):
                    self._storage.readers.remove(reader)
                self._throw_away_old_letters()
                letters = self._storage.letters.pop(address, [])
                left = deadline - time.monotonic()
                if letters or left <= 0:
                    return [_decode_letter(body) for _, body in letters]
                self._storage.readers.append(reader)
            reader[1].wait(min(left, threading.TIMEOUT_MAX))

    # -- steps; all of them under the lock -----------------------------------------------------------------------

    def _require(self, node: str) -> None:
        if node not in self._storage.nodes:
            raise NodeLost(node)

    def _publish_all(self, messages: Iterable[tuple[Message, bytes]], now: float) -> None:
        for message, body in messages:
            self._publish(message, body, now)

    def _publish(self, message: Message, body: bytes, now: float, *, token: int = 0, pause_until: float | None = None) -> None:
        if message.id in self._storage.rows:
            return
        self._storage.sequence += 1
        row = _Row(message, body, self._storage.sequence)
        row.token = token
        self._storage.rows[row.id] = row
        due_at = _due_at(message, now) if pause_until is None else pause_until
        if due_at is None or due_at <= now:
            self._wait_since(row, now)
        else:
            self._schedule(row, due_at)

    def _wait_since(self, row: _Row, moment: float) -> None:
        """→ ready. `moment` counts when the message was never ready before."""
        if row.waiting_since is None:
            row.waiting_since = moment
        row.state = "ready"
        row.due_at = None
        heappush(self._storage.ready.setdefault(row.queue, []), (*row.rank(), row))
        self._wake(row.queue)

    def _schedule(self, row: _Row, due_at: float) -> None:
        row.state = "scheduled"
        row.due_at = due_at
        heappush(self._storage.scheduled.setdefault(row.queue, []), (due_at, row.sequence, row))
        self._wake(row.queue)  # it may come due before what the waiter waits for

    def _promote(self, queue: str, now: float) -> None:
        heap = self._storage.scheduled.get(queue)
        while heap and (heap[0][2].state != "scheduled" or heap[0][0] <= now):
            due_at, _, row = heappop(heap)
            if row.state == "scheduled":
                self._wait_since(row, due_at)

    def _reserve(self, queues: Sequence[str], limit: int, holder: Holder) -> list[Delivery]:
        now = self._clock.time()
        heaps = []
        for queue in dict.fromkeys(queues):
            if queue not in self._storage.paused:
                self._promote(queue, now)
                heaps.append(self._storage.ready.get(queue, []))
        deliveries: list[Delivery] = []
        while len(deliveries) < limit and (row := _pop_first(heaps)) is not None:
            row.state = "leased"
            row.token += 1
            row.holder = holder
            self._storage.leased.setdefault(holder.node, {})[row.id] = row
            deliveries.append(self._delivery(row, now))
        return deliveries

    def _delivery(self, row: _Row, now: float) -> Delivery:
        assert row.holder is not None
        message, error = _decode(row.body)
        return Delivery(
            id=row.id,
            queue=row.queue,
            lease=Lease(row.holder, row.token),
            message=message,
            crashes=row.crashes,
            interruptions=row.interruptions,
            waiting_since=row.waiting_since or 0.0,
            expired=row.expires_at is not None and now > row.expires_at,
            revoked=row.revocation is not None or self._storage.revoked.get(row.id, now) > now,
            raw_message=b"" if message is not None else row.body,
            error=error,
        )

    def _settle_all(self, prepared: Iterable[_Prepared]) -> list[str]:
        now = self._clock.time()
        settled: list[_Prepared] = []
        refused: list[str] = []
        for item in prepared:
            if self._settle(item, now):
                settled.append(item)
            else:
                refused.append(item.settlement.id)
        for item in settled:
            if item.settlement.arrival is not None:
                self._publish_all(self._arrive(item.settlement.arrival, item.arrival, now), now)
        for item in settled:
            if item.settlement.leaves is not None:
                self._leave(item.settlement.leaves, now)
        return refused

    def _settle(self, item: _Prepared, now: float) -> bool:
        """All of it, but what arrives and what leaves: that comes when all of the list have opened and enlarged."""
        settlement = item.settlement
        if settlement.lease is not None:
            row = self._leased_row(settlement.id, settlement.lease)
            if row is None:
                return False
            self._move(row, item, now)
        if settlement.record is not None:
            self._store(settlement.record, item.record, now)
        if settlement.forgets:
            self._forget_steps(settlement.id)
        for record, body in zip(settlement.more_records, item.more_records, strict=True):
            self._store(record, body, now)
        for join, then in item.opens:
            self._publish_all(self._open(join, then, now), now)
        for id, more in settlement.enlarges.items():
            self._enlarge(id, more, now)
        self._publish_all(item.follow_ups, now)
        return True

    def _move(self, row: _Row, item: _Prepared, now: float) -> None:
        settlement = item.settlement
        self._let_go(row)
        verdict = settlement.verdict
        match verdict:
            case Verdict.RETRY | Verdict.RELEASED | Verdict.CRASHED if row.revocation is not None:
                self._end_revoked(row, now)
            case Verdict.DONE:
                self._remove(row)
            case Verdict.RETRY:
                message, body = settlement.message, item.message
                if message is None:
                    message, body = _decode_message(row.body), row.body
                self._remove(row)
                pause_until = self._pause(row.id, settlement.pause, now) if settlement.pause is not None else None
                self._publish(message, body, now, token=row.token, pause_until=pause_until)
            case Verdict.RELEASED | Verdict.CRASHED:
                if settlement.message is not None:
                    row.write(settlement.message, item.message)
                delay_seconds = settlement.delay_seconds if verdict is Verdict.RELEASED else 0.0
                self._make_ready_again(row, now, crashed=verdict is Verdict.CRASHED, delay_seconds=delay_seconds)
            case Verdict.DEAD:
                self._remove(row)
                row.state, row.reason, row.died_at = "dead", settlement.reason, now
                self._storage.dead.pop(row.id, None)
                self._storage.dead[row.id] = row
            case _:
                assert_never(verdict)

    def _give_back(self, node: str, *, crashed: bool) -> list[str]:
        """The node is gone, and what it held is ready."""
        now = self._clock.time()
        self._storage.nodes.pop(node, None)
        rows = list(self._storage.leased.get(node, {}).values())
        for row in rows:
            self._let_go(row)
            if row.revocation is not None:
                self._end_revoked(row, now)
            else:
                self._make_ready_again(row, now, crashed=crashed)
        return [row.id for row in rows]

    def _make_ready_again(self, row: _Row, now: float, *, crashed: bool, delay_seconds: float = 0.0) -> None:
        if crashed:
            row.crashes += 1
        else:
            row.interruptions += 1
        if delay_seconds > 0:
            self._schedule(row, now + delay_seconds)
        else:
            self._wait_since(row, now)

    def _end_revoked(self, row: _Row, now: float) -> None:
        self._remove(row)
        self._forget_steps(row.id)
        if row.revocation is not None:
            self._conclude(row.revocation, now)

    def _conclude(self, revocation: Revocation, now: float) -> None:
        if revocation.record is not None:
            self._store(revocation.record, _encode(revocation.record), now)
        if revocation.arrival is not None:
            self._publish_all(self._arrive(revocation.arrival, _encode(revocation.arrival), now), now)

    def _leased_row(self, id: str, lease: Lease) -> _Row | None:
        """The message, if this very lease holds it."""
        row = self._storage.rows.get(id)
        return row if row is not None and row.holder == lease.holder and row.token == lease.token else None

    def _let_go(self, row: _Row) -> None:
        assert row.holder is not None
        held = self._storage.leased[row.holder.node]
        del held[row.id]
        if not held:
            del self._storage.leased[row.holder.node]
        row.holder = None

    def _remove(self, row: _Row) -> None:
        row.state = "gone"
        del self._storage.rows[row.id]

    def _revoke(self, revocation: Revocation, now: float) -> str:
        row = self._storage.rows.get(revocation.id)
        if row is not None and row.holder is None:
            self._remove(row)
            self._forget_steps(row.id)
            self._conclude(revocation, now)
            return "waiting"
        self._storage.revoked = {id: until for id, until in self._storage.revoked.items() if until > now}
        self._storage.revoked[revocation.id] = now + self._revokes_expire_seconds
        if row is None or row.holder is None:
            return "unknown"
        row.revocation = revocation
        if revocation.terminate:
            letter = Letter(method="terminate", arguments={"task_id": revocation.id, "signal": revocation.signal})
            self._post(row.holder.node, _encode(letter))
        return "running"

    def _remember(self, task_id: str, name: str, result: Raw, failed: bool, now: float) -> Step:
        steps = self._storage.steps.setdefault(task_id, {})
        known = steps.get(name)
        if known is not None and known.result is not None:
            return known
        if known is not None:
            self._await_no_more(task_id, known)
        event, until = (known.event, known.until) if known is not None else (None, None)
        steps[name] = Step(name=name, result=Raw(bytes(result)), failed=failed, event=event, until=until)
        self._storage.stepped_at[task_id] = now
        return steps[name]

    def _pause(self, task_id: str, pause: Pause, now: float) -> float:
        """The step is a wait from now on, if it was not before. Returns until when its message is scheduled."""
        steps = self._storage.steps.setdefault(task_id, {})
        self._storage.stepped_at[task_id] = now
        until = None if pause.seconds is None else now + pause.seconds
        step = steps.setdefault(pause.step, Step(name=pause.step, event=pause.event, until=until))
        if step.result is not None:
            return now
        if step.event is not None and step.event in self._storage.events:
            self._remember(task_id, step.name, Raw(self._storage.events[step.event][0]), False, now)
            return now
        if step.event is not None:
            self._storage.awaiting.setdefault(step.event, {})[task_id] = step.name
        return inf if step.until is None else step.until

    def _forget_steps(self, task_id: str) -> None:
        self._storage.stepped_at.pop(task_id, None)
        for step in self._storage.steps.pop(task_id, {}).values():
            self._await_no_more(task_id, step)

    def _await_no_more(self, task_id: str, step: Step) -> None:
        tasks = self._storage.awaiting.get(step.event or "", {})
        if tasks.get(task_id) == step.name:
            del tasks[task_id]
            if not tasks:
                del self._storage.awaiting[step.event or ""]

    # Of joins. Those that return messages return what is to be published now.

    def _open(self, join: Join, then: list[tuple[Message, bytes]], now: float, *, again: bool = False) -> list[tuple[Message, bytes]]:
        if join.id not in self._storage.joins:
            self._storage.joins[join.id] = _Join(join.size, then, now)
        return self._completed(self._storage.joins[join.id], _OPENED, again)

    def _enlarge(self, id: str, more: int, now: float) -> None:
        join = self._storage.joins.get(id)
        if join is None or join.completed_by is not None:
            return
        join.touched_at = now
        if join.size is None:
            join.enlarged += more
        else:
            join.size += more

    def _seal(self, id: str, size: int, now: float, *, again: bool = False) -> list[tuple[Message, bytes]]:
        join = self._storage.joins.get(id)
        if join is None:
            return []
        if join.size is None:
            join.size = size + join.enlarged
            join.touched_at = now
        return self._completed(join, _SEALED, again)

    def _arrive(self, arrival: Arrival, body: bytes, now: float, *, again: bool = False) -> list[tuple[Message, bytes]]:
        join = self._storage.joins.get(arrival.join)
        if join is None:
            return []
        if arrival.index not in join.arrivals:
            join.arrivals[arrival.index] = body
            join.failed += arrival.failed
            join.touched_at = now
        return self._completed(join, arrival.index, again)

    def _completed(self, join: _Join, by: int, again: bool) -> list[tuple[Message, bytes]]:
        """What comes then, if the join has just become complete; or, when asked again, if it was this that completed it."""
        if join.completed_by is not None:
            return join.then if again and join.completed_by == by else []
        if join.size is None or len(join.arrivals) < join.size:
            return []
        join.completed_by = by
        return join.then

    def _leave(self, id: str, now: float) -> None:
        join = self._storage.joins.get(id)
        if join is None:
            return
        join.to_leave -= 1
        join.touched_at = now
        if join.to_leave == 0:
            del self._storage.joins[id]

    def _store(self, record: Record, body: bytes, now: float) -> bool:
        ready = record.status in READY_STATES
        known = self._storage.records.pop(record.task_id, None)
        if known is not None and known[1] and not ready:
            self._storage.records[record.task_id] = known
            return False
        self._storage.records[record.task_id] = (body, ready, now)
        for subscription in self._storage.subscriptions.get(record.task_id, ()):
            subscription.tell()
        return True

    def _post(self, address: str, body: bytes) -> None:
        self._throw_away_old_letters()
        self._storage.letters.setdefault(address, []).append((self._clock.monotonic(), body))
        for reader in self._storage.readers:
            if reader[0] == address:
                reader[1].set()

    def _throw_away_old_letters(self) -> None:
        horizon = self._clock.monotonic() - LETTER_SECONDS
        for address, letters in list(self._storage.letters.items()):
            if letters[0][0] < horizon:
                fresh = [letter for letter in letters if letter[0] >= horizon]
                if fresh:
                    self._storage.letters[address] = fresh
                else:
                    del self._storage.letters[address]

    def _wake(self, queue: str, *, everybody: bool = False) -> None:
        if queue in self._storage.paused:
            return
        for waiter in [waiter for waiter in self._storage.waiters if queue in waiter[0]]:
            self._storage.waiters.remove(waiter)
            waiter[1].set()
            if not everybody:
                return

    def _seconds_until_ready(self, queues: Iterable[str]) -> float:
        """0 when something is ready, infinity when nothing is even scheduled."""
        now = self._clock.time()
        nearest = float("inf")
        for queue in queues:
            if queue in self._storage.paused:
                continue
            if _first(self._storage.ready.get(queue, [])) is not None:
                return 0.0
            heap = self._storage.scheduled.get(queue, [])
            while heap and heap[0][2].state != "scheduled":
                heappop(heap)
            if heap:
                nearest = min(nearest, max(0.0, heap[0][0] - now))
        return nearest

    def _queues(self) -> set[str]:
        rows = (*self._storage.rows.values(), *self._storage.dead.values())
        return {row.queue for row in rows} | self._storage.paused.keys()

    def _is_waiting(self, id: str) -> bool:
        row = self._storage.rows.get(id)
        return row is not None and row.holder is None

    def _waiting(self, row: _Row, now: float, *, count_ahead: bool = False) -> Waiting:
        state = _state(row, now)
        ahead = None
        if count_ahead and state == "ready":
            rank = _due_rank(row)
            ahead = sum(
                1
                for other in self._storage.rows.values()
                if other.queue == row.queue and _state(other, now) == "ready" and _due_rank(other) < rank
            )
        return Waiting(
            id=row.id,
            queue=row.queue,
            state=state,
            message=_decode(row.body)[0],
            due_at=None if row.due_at == inf else row.due_at,
            waiting_since=row.waiting_since or 0.0,
            ahead=ahead,
            node=row.holder.node if row.holder else None,
            process=row.holder.process if row.holder else None,
            crashes=row.crashes,
            interruptions=row.interruptions,
            reason=row.reason,
            died_at=row.died_at,
        )


class _Prepared:
    """A settlement with everything encoded that it wants stored, before anything is changed."""

    __slots__ = ("arrival", "follow_ups", "message", "more_records", "opens", "record", "settlement")

    def __init__(self, settlement: Settlement) -> None:
        self.settlement = settlement
        self.message = _encode(settlement.message) if settlement.message is not None else b""
        self.record = _encode(settlement.record) if settlement.record is not None else b""
        self.more_records = [_encode(record) for record in settlement.more_records]
        self.follow_ups = _encoded(settlement.follow_ups)
        self.opens = [(join, _encoded(join.then)) for join in settlement.opens]
        self.arrival = _encode(settlement.arrival) if settlement.arrival is not None else b""


class _Subscription:
    """An event; and a pipe for those who want a file descriptor."""

    def __init__(self, storage: _Storage, ids: Sequence[str]) -> None:
        self.ids = list(dict.fromkeys(ids))
        self._storage = storage
        self._event = threading.Event()
        self._pipe: tuple[int, int] | None = None

    def fileno(self) -> int:
        with self._storage.lock:
            if self._pipe is None:
                self._pipe = os.pipe()
                if self._event.is_set():
                    os.write(self._pipe[1], b"!")
            return self._pipe[0]

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        if not self._event.wait(min(max(0.0, timeout_seconds), threading.TIMEOUT_MAX)):
            return False
        with self._storage.lock:
            if self._event.is_set() and self._pipe is not None:
                os.read(self._pipe[0], 1)
            self._event.clear()
        return True

    def close(self) -> None:
        with self._storage.lock:
            for id in self.ids:
                others = [other for other in self._storage.subscriptions.get(id, ()) if other is not self]
                if others:
                    self._storage.subscriptions[id] = others
                else:
                    self._storage.subscriptions.pop(id, None)
            pipe, self._pipe = self._pipe, None
        for end in pipe or ():
            os.close(end)

    def tell(self) -> None:
        """Under the lock: at most one byte is in the pipe, so writing never blocks."""
        if not self._event.is_set():
            self._event.set()
            if self._pipe is not None:
                os.write(self._pipe[1], b"!")


# -- pure helpers ------------------------------------------------------------------------------------------------


def _encoded(messages: Iterable[Message]) -> list[tuple[Message, bytes]]:
    return [(message, _encode(message)) for message in messages]


def _due_at(message: Message, now: float) -> float | None:
    if message.delay_seconds is not None:
        return now + message.delay_seconds
    return message.eta.timestamp() if message.eta is not None else None


def _decode(body: bytes) -> tuple[Message | None, str]:
    try:
        return _decode_message(body), ""
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, f"The stored message cannot be decoded: {error}"


def _state(row: _Row, now: float) -> str:
    """As a reader is to see it: what has come due is ready, though nobody has promoted it yet."""
    return "ready" if row.state == "scheduled" and (row.due_at or 0.0) <= now else row.state


def _due_rank(row: _Row) -> tuple[int, float, int]:
    since = row.waiting_since if row.waiting_since is not None else row.due_at
    return (-row.priority, since or 0.0, row.sequence)


def _first(heap: list[tuple[int, float, int, _Row]]) -> tuple[int, float, int, _Row] | None:
    while heap and heap[0][3].state != "ready":
        heappop(heap)
    return heap[0] if heap else None


def _pop_first(heaps: list[list[tuple[int, float, int, _Row]]]) -> _Row | None:
    """Takes the best of several queues."""
    best = None
    for heap in heaps:
        first = _first(heap)
        if first is not None and (best is None or first[:3] < best[0][:3]):
            best = heap
    return heappop(best)[3] if best is not None else None


if TYPE_CHECKING:
    _complete: type[Engine] = MemoryEngine
