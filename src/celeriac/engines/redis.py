"""The engine of a Redis (6.2 or newer) or Valkey server, alone, behind Sentinel, or a Cluster.

    storage    a hash of messages; sorted sets of ids, ready and scheduled ones by queue; a hash of leases for each node. Results are what Celery writes:
               `celery-task-meta-<id>`, a string of JSON that expires, told by pub/sub on the same name. `redis_scripts.py` names every key
    a crash    of a process loses nothing that a verb had answered. Of the server: what its persistence says (`appendonly yes`; `appendfsync everysec` may lose a
               second, `always` nothing). Of a primary: what had not reached the replica that took over
    order      priority, then how long it has waited, then the order of publishing
    atomic     every verb is one script, which Redis runs whole and alone: a settlement with its record and its follow-ups, and the next reservation, are one step
    waiting    a token in a sorted set for each queue, taken by BZPOPMIN: one wakes for each message, and who leaves ready work behind puts the token back. A look
               once a second is the net. A worker that waits has sent its reservation along, so the answer that wakes it brings the message
    repeats    who publishes or settles signs with a pen of its own and a number; the server remembers the last number of each pen for a minute. So a call whose answer
               was lost is asked again and has happened once, and what arrives after its sender has asked again does nothing
    clocks     due times and leases follow the server's clock: setting *that* clock by more than a lease ends leases, since Redis has no other
    Cluster    all keys of an application bear one hash tag, so that a step is atomic there too, whatever queues it touches. Its memory and its work are those of one
               shard; the others stand by, or serve other applications (another `key_prefix`)
    bounded    results, joins, events, letters and pens expire; steps and the ledger of schedules are pruned by their age; waiting messages, dead letters, schedules and
               names of queues stay until somebody takes them; all else is as many as there are workers. No verb scans the key space
    cannot     keep anything when `maxmemory-policy` evicts keys: it must be `noeviction`

A connection belongs to one call at a time and is never shared with a child: after a fork the child closes its copies and opens its own.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import msgspec
from msgspec import Raw

from ..contracts.broker import Capabilities
from ..contracts.inspect import Depth, Waiting
from ..contracts.joins import JoinState
from ..contracts.mailbox import Letter, Node
from ..contracts.steps import Step
from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import NodeLost
from ..core.message import Arrival, Delivery, Holder, Join, Lease, Message, Record, Revocation, Settlement, Verdict
from ..core.states import READY_STATES
from . import redis_scripts as scripts
from .redis_scripts import BAND, FOREVER, TICKS
from .redis_wire import Place, Refused, Script, Server, Subscription, bulk, command

if TYPE_CHECKING:
    from ..contracts.engine import Engine
    from ..contracts.schedules import Schedules

LETTER_SECONDS = 60
"""How long a letter waits for its reader."""
NET_SECONDS = 1.0
"""How often a waiter looks, should a token have been lost."""
HEARD_SECONDS = 0.05
"""How old what a thread was told of a result may be when it looks."""

_encode_bytes = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_decode_message = msgspec.json.Decoder(Message).decode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_arrival = msgspec.json.Decoder(Arrival).decode
_decode_letter = msgspec.json.Decoder(Letter).decode
_decode_node = msgspec.json.Decoder(Node).decode
_DONE = Verdict.DONE


def _encode(value: Any) -> str:
    """JSON as text, since the server's MessagePack knows no bytes."""
    return _encode_bytes(value).decode()


class RedisEngine:
    """The engine of `redis://`, `rediss://`, `redis+socket://`, `unix://`, `sentinel://`, `redis+cluster://` and `rediss+cluster://`.

    Options, also in the URL's query: `key_prefix` (or Celery's `global_keyprefix`: all our keys and channels begin with it), `cluster`, `master_name` and
    `sentinel_kwargs` (Sentinel), `socket_timeout` (how long a verb waits for the server), `socket_connect_timeout`, and redis-py's `ssl_…`, `username`, `password`, `client_name`.
    """

    capabilities = Capabilities(engine="redis", schedules=True, steps=True, forgets=True)

    def __init__(
        self,
        url: str,
        *,
        clock: Clock = SYSTEM_CLOCK,
        result_expires: float | None = 86400,
        revokes_expire_seconds: float = 10800,
        **transport_options: Any,
    ) -> None:
        self.url = url
        self._clock = clock
        self._own_clock = clock is not SYSTEM_CLOCK
        self._ttl_milliseconds = str(max(1, round(result_expires * 1000))) if result_expires else None
        self._revokes_expire_seconds = revokes_expire_seconds
        place = Place(url, transport_options)
        self._server = Server(place)
        self._prefix = (place.key_prefix + "celeriac:").encode()
        self._results = (place.key_prefix + "celery-task-meta-").encode()
        self._seconds = place.timeout_seconds
        self._scripts: dict[str, Script] = {}
        self._pens: deque[_Pen] = deque()
        self._unsure: dict[Any, tuple[_Pen, float]] = {}
        self._heard = threading.local()
        self._due: dict[tuple[str, ...], float] = {}
        """When the next message of these queues is due, as far as is known, by `time.monotonic()`."""
        self._schedules: Schedules | None = None
        _engines.add(self)

    @property
    def schedules(self) -> Schedules:
        """Where schedules are kept, on the same server and in the same steps."""
        if self._schedules is None:
            from .schedules.redis import RedisSchedules

            self._schedules = RedisSchedules(self)
        return self._schedules

    # -- the life of a message -----------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, joins: Sequence[Join] = (), timeout_seconds: float | None = None) -> None:
        if not messages and not joins:
            return
        rows = [_row(message) for message in messages]
        opens = [_join_row(join) for join in joins]
        key = rows[0][0] if len(rows) == 1 else (*[row[0] for row in rows], *[row[0] for row in opens])
        self._once(scripts.PUBLISH, key, self._seconds if timeout_seconds is None else timeout_seconds, rows, opens)

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder, wait_seconds: float = 0.0) -> list[Delivery]:
        deadline = time.monotonic() + wait_seconds
        names = tuple(dict.fromkeys(queues))
        tokens = [self._prefix + b"w:" + name.encode() for name in names]
        while True:
            # Who waits for a token has sent his reservation along: so the message comes in the answer that wakes him.
            now = time.monotonic()
            seconds = min(deadline, now + NET_SECONDS, self._due.get(names, now)) - now
            first = _await_token(tokens, seconds) if tokens and seconds > 0 else b""
            deliveries = self._exchange((), names, limit, holder, first=first, blocked_seconds=seconds if first else 0.0)[1]
            left = deadline - time.monotonic()
            if deliveries or left <= 0:
                return deliveries
            if not tokens:
                time.sleep(left)

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        if not settlements:
            return []
        key = ("settle", *[settlement.id for settlement in settlements])
        return _texts(self._once(scripts.EXCHANGE, key, self._seconds, None, 0, (), 0, *_settlement_rows(settlements))[1])

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        return self._exchange(settlements, tuple(dict.fromkeys(queues)), limit, holder)

    def _exchange(
        self, settlements: Sequence[Settlement], names: tuple[str, ...], limit: int, holder: Holder, **waiting: Any
    ) -> tuple[list[str], list[Delivery]]:
        rows = _settlement_rows(settlements)
        try:
            key = ("exchange", holder, *[settlement.id for settlement in settlements])
            reply = self._once(scripts.EXCHANGE, key, self._seconds, holder.node, holder.process, names, limit, *rows, **waiting)
        except Refused as refusal:
            if refusal.code == "NODELOST":
                raise NodeLost(holder.node) from None
            raise
        deliveries = _deliveries(reply, holder.node)
        if not deliveries:
            self._due[names] = time.monotonic() + (float(reply[5]) if reply[5] else NET_SECONDS)
        return _texts(reply[1]), deliveries

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        # Who asks this wants to go on from the answer: so exchanges that got none must not happen afterwards.
        unsure = {key: self._unsure.pop(key) for key in list(self._unsure) if _is_exchange(key, node, process)}
        for pen, _ in unsure.values():
            pen.number += 1
        try:
            reply = self._run(scripts.HELD, node, [(pen.name.decode(), f"{pen.number:020d}") for pen, _ in unsure.values()])
        except BaseException:
            self._unsure.update(unsure)
            raise
        self._pens.extend(pen for pen, _ in unsure.values())
        deliveries = _deliveries(reply, node)
        deliveries.sort(key=lambda delivery: _order(delivery.receipt))
        return [delivery for delivery in deliveries if process in (None, delivery.lease.holder.process)]

    def lost(self, node: str, process: int) -> list[str]:
        return []

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        rows = []
        for revocation in revocations:
            letter = Letter(method="terminate", arguments={"task_id": revocation.id, "signal": revocation.signal})
            record = _record_row(revocation.record) if revocation.record is not None else None
            arrival = _arrival_row(revocation.arrival) if revocation.arrival is not None else None
            rows.append((revocation.id, record, arrival, _encode(letter) if revocation.terminate else None))
        if not rows:
            return {}
        answers = _texts(self._run(scripts.REVOKE, rows, self._revokes_expire_seconds, LETTER_SECONDS))
        return {row[0]: answer for row, answer in zip(rows, answers, strict=True)}

    # -- nodes and their leases ----------------------------------------------------------------------------------

    def register(self, node: Node, *, lease_seconds: float) -> None:
        self._run(scripts.REGISTER, node.id, _encode(node), lease_seconds)

    def heartbeat(self, node: str, *, lease_seconds: float) -> bool:
        return bool(self._run(scripts.HEARTBEAT, node, lease_seconds))

    def unregister(self, node: str) -> None:
        self._run(scripts.UNREGISTER, node)

    def reclaim(self, nodes: Sequence[str] = ()) -> list[str]:
        return _texts(self._run(scripts.RECLAIM, list(nodes)))

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        deadline = time.monotonic() + timeout_seconds
        names = list(dict.fromkeys(queues))
        tokens = [self._prefix + b"w:" + name.encode() for name in names]
        while True:
            outlook = self._run(scripts.OUTLOOK, names)
            seconds = float(outlook) if outlook else NET_SECONDS
            left = deadline - time.monotonic()
            if seconds <= 0 or left <= 0:
                return seconds <= 0
            if not tokens:
                time.sleep(left)
                return False
            # A token "!" says that something is ready; "~" that the outlook has changed.
            token = self._take_token(tokens, min(left, seconds, NET_SECONDS))
            if token == b"!":
                return True

    def close(self) -> None:
        self._server.close()

    # -- results -------------------------------------------------------------------------------------------------

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        self._heard.__dict__.clear()
        rows = [_record_row(record) for record in records]
        fence = (lease.holder.node, _fence(lease)) if lease is not None else None
        return _texts(self._run(scripts.STORE, rows, fence)) if rows else []

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        if not ids:
            return {}
        heard = self._heard_records(ids)
        if heard is not None:
            return heard
        bodies = self._server.ask(command(b"MGET", *[self._results + id.encode() for id in ids]), self._seconds)
        return {id: _read_record(id, body) for id, body in zip(ids, bodies, strict=True) if body is not None}

    def forget(self, ids: Sequence[str]) -> None:
        self._heard.__dict__.clear()
        self._run(scripts.FORGET, list(ids))

    def subscribe(self, ids: Sequence[str]) -> Subscription:
        channels = [self._results + id.encode() for id in dict.fromkeys(ids)]
        return Subscription(self._server, channels, self._seconds, lambda told: self._heard.__dict__.update(told=told, at=time.monotonic()))

    def _heard_records(self, ids: Sequence[str]) -> dict[str, Record] | None:
        """What this thread was told a moment ago, by a subscription: its beginning says what there is, and the news of a result bears it, which spares those who wait a trip."""
        told = self._heard.__dict__.pop("told", None)
        if told is None or time.monotonic() > self._heard.at + HEARD_SECONDS:
            return None
        try:
            texts = [(id, told[self._results + id.encode()]) for id in ids]
        except KeyError:
            return None
        return {id: _read_record(id, text) for id, text in texts if text is not None}

    def prune(self, limit: int = 1000) -> int:
        """Results expire by themselves, by the server's clock. With a clock of its own the engine removes them."""
        return int(self._run(scripts.PRUNE, limit))

    # -- joins ---------------------------------------------------------------------------------------------------

    def seal(self, id: str, size: int) -> None:
        self._run(scripts.SEAL, id, size)

    def joins(self, ids: Sequence[str]) -> dict[str, JoinState]:
        found = self._run(scripts.JOINS, list(ids)) if ids else ()
        return {
            id: JoinState(id=id, size=int(size) if size is not None else None, arrived=int(arrived), failed=int(failed))
            for id, (size, arrived, failed) in zip(ids, found, strict=True)
            if arrived is not None
        }

    def arrivals(self, id: str) -> list[Arrival]:
        found = self._run(scripts.ARRIVALS, id)
        # The arrivals are those whose field is a number.
        rows = [(int(found[at]), found[at + 1]) for at in range(0, len(found), 2) if found[at][:1] <= b"9"]
        return [_decode_arrival(text) for _, text in sorted(rows)]

    def arrive(
        self,
        arrivals: Sequence[Arrival],
        *,
        opens: Sequence[Join] = (),
        enlarges: Mapping[str, int] | None = None,
        seals: Mapping[str, int] | None = None,
    ) -> list[Message]:
        rows = [_arrival_row(arrival) for arrival in arrivals]
        opened = [_join_row(join) for join in opens]
        enlarged, sealed = list((enlarges or {}).items()), list((seals or {}).items())
        key = ("arrive", *[(row[0], row[1]) for row in rows], *[row[0] for row in opened], *enlarged, *sealed)
        texts = self._once(scripts.ARRIVE, key, self._seconds, rows, opened, enlarged, sealed)
        then = [_decode_message(text.partition(b"\n")[2]) for text in texts]
        return list({message.id: message for message in then}.values())

    def leave(self, ids: Sequence[str]) -> None:
        if ids:
            self._once(scripts.LEAVE, ("leave", *ids), self._seconds, list(ids))

    # -- steps ---------------------------------------------------------------------------------------------------

    def remember(self, task_id: str, name: str, result: Raw, *, failed: bool = False, lease: Lease | None = None) -> Step | None:
        fence = (lease.holder.node, _fence(lease)) if lease is not None else None
        kept = self._run(scripts.REMEMBER, task_id, name, bytes(result).decode(), failed, fence)
        return _step(name, _unpack(kept)) if kept is not None else None

    def recall(self, task_id: str) -> dict[str, Step]:
        found = self._run(scripts.RECALL, task_id)
        rows = sorted((_unpack(found[at + 1])[-1], found[at].decode(), _unpack(found[at + 1])) for at in range(0, len(found), 2))
        return {name: _step(name, row) for _, name, row in rows}

    def occur(self, event: str, value: Raw) -> list[str]:
        return _texts(self._run(scripts.OCCUR, event, bytes(value).decode()))

    # -- what people see -----------------------------------------------------------------------------------------

    def now(self) -> float:
        if self._own_clock:
            return self._clock.time()
        seconds, microseconds = self._run(scripts.NOW)
        return int(seconds) + int(microseconds) / 1e6

    def queues(self) -> list[str]:
        return sorted(_texts(self._run(scripts.QUEUES)))

    def depth(self, queues: Sequence[str] | None = None) -> dict[str, Depth]:
        names = list(dict.fromkeys(self.queues() if queues is None else queues))
        return {
            name: Depth(
                ready=ready, scheduled=scheduled, leased=leased, dead=dead, paused_by=by.decode().removeprefix("by ") if by else None
            )
            for name, (ready, scheduled, leased, dead, by) in zip(names, self._run(scripts.DEPTH, names), strict=True)
        }

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        if state not in ("ready", "scheduled", "leased", "dead"):
            raise ValueError(f"There is no state {state!r} of a message; there are ready, scheduled, leased, dead.")
        return [_waiting(row, queue) for row in self._run(scripts.PEEK, queue, state, max(0, offset), max(0, limit)) if row[1] is not None]

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        found = self._run(scripts.FIND, list(ids)) if ids else ()
        return {id: _waiting(row) for id, row in zip(ids, found, strict=True) if row is not None}

    def revoked(self) -> list[str]:
        return _texts(self._run(scripts.REVOKED))

    def purge(self, queues: Sequence[str]) -> int:
        purged = 0
        for queue in dict.fromkeys(queues):
            while removed := int(self._run(scripts.PURGE, queue, 2000)):
                purged += removed
        return purged

    def pause(self, queues: Sequence[str], *, by: str) -> None:
        self._run(scripts.PAUSE, list(queues), by)

    def resume(self, queues: Sequence[str]) -> None:
        self._run(scripts.RESUME, list(queues))

    def replay(self, ids: Sequence[str]) -> list[str]:
        return _texts(self._run(scripts.REPLAY, list(ids)))

    def discard(self, ids: Sequence[str]) -> list[str]:
        return _texts(self._run(scripts.DISCARD, list(ids)))

    # -- letters -------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        now, rows, leases = self._run(scripts.NODES)
        until = {leases[at]: float(leases[at + 1]) for at in range(0, len(leases), 2)}
        return [
            msgspec.structs.replace(_decode_node(rows[at + 1]), lease_left_seconds=until.get(rows[at], 0.0) - float(now))
            for at in range(0, len(rows), 2)
        ]

    def post(self, addresses: Sequence[str], letter: Letter) -> None:
        self._run(scripts.POST, list(addresses), _encode(letter), LETTER_SECONDS)

    def collect(self, address: str, timeout_seconds: float = 0.0) -> list[Letter]:
        deadline = time.monotonic() + timeout_seconds
        token = self._prefix + b"bw:" + address.encode()
        while True:
            now, rows = self._run(scripts.COLLECT, address)
            horizon = float(now) - LETTER_SECONDS
            letters = [_decode_letter(body) for at, _, body in (row.partition(b" ") for row in rows) if float(at) >= horizon]
            left = deadline - time.monotonic()
            if letters or left <= 0:
                return letters
            self._take_token([token], min(left, NET_SECONDS))

    # -- one trip --------------------------------------------------------------------------------------------------

    def _arguments(self, arguments: Iterable[Any]) -> bytes:
        if self._own_clock:
            return _pack((self._clock.time(), self._clock.monotonic(), self._ttl_milliseconds, True, *arguments))
        return _pack((None, None, self._ttl_milliseconds, False, *arguments))

    def _script(self, text: str, arguments: int) -> Script:
        script = self._scripts.get(text)
        if script is None:
            script = self._scripts[text] = Script(text, (self._prefix, self._results), arguments)
        return script

    def _run(self, text: str, *arguments: Any) -> Any:
        """A script that may be repeated when its answer is lost."""
        script = self._script(text, 1)
        return self._server.ask(script.head + bulk(self._arguments(arguments)), self._seconds, script)

    def _once(self, text: str, key: Any, seconds: float, *arguments: Any, **waiting: Any) -> Any:
        """A script that must not happen twice: a repeat bears the same pen and number, also when it is the caller who repeats. `key` says that it is one: it names the call."""
        script = self._script(text, 3)
        unsure = self._unsure.pop(key, None) if self._unsure else None
        if unsure is not None:
            pen = unsure[0]
        else:
            try:
                pen = self._pens.pop()
                pen.number += 1
            except IndexError:
                pen = _Pen()
        request = script.head + bulk(self._arguments(arguments)) + pen.signature()
        try:
            reply = self._server.ask(request, seconds, script, **waiting)
        except Refused:
            # It has not happened, so the pen is free; a repeat that was refused is still one.
            if unsure is not None:
                self._unsure[key] = unsure
            else:
                self._pens.append(pen)
            raise
        except BaseException:
            self._forget_old_pens()
            self._unsure[key] = (pen, time.monotonic())
            raise
        self._pens.append(pen)
        return reply

    def _forget_old_pens(self) -> None:
        if len(self._unsure) > 100:
            horizon = time.monotonic() - scripts.PEN_SECONDS
            self._unsure = {key: unsure for key, unsure in list(self._unsure.items()) if unsure[1] > horizon}

    def _take_token(self, keys: list[bytes], seconds: float) -> bytes | None:
        reply = self._server.ask(_await_token(keys, seconds), self._seconds, blocked_seconds=seconds)
        return None if reply is None else reply[1]

    def _after_fork_in_child(self) -> None:
        self._pens = deque()
        self._unsure = {}
        self._server.after_fork_in_child()


# -- what goes in and out ----------------------------------------------------------------------------------------


def _await_token(keys: Sequence[bytes], seconds: float) -> bytes:
    return command(b"BZPOPMIN", *keys, b"%.3f" % max(0.001, seconds))


def _is_exchange(key: Any, node: str, process: int | None) -> bool:
    """Whether a call that goes by this key was an exchange of this node."""
    return type(key) is tuple and len(key) > 1 and isinstance(key[1], Holder) and key[1].node == node and process in (None, key[1].process)


class _Pen:
    """What a call signs with that must not happen twice. One call at a time writes with it."""

    __slots__ = ("name", "number")

    def __init__(self) -> None:
        self.name = os.urandom(9).hex().encode()
        self.number = 1

    def signature(self) -> bytes:
        return b"$18\r\n%b\r\n$20\r\n%020d\r\n" % (self.name, self.number)


def _row(message: Message) -> tuple[str, str, int, float | None, float | None, str]:
    """A new message, as the scripts want it."""
    eta, queue, priority = message.eta, message.queue, message.priority
    head = _HEADS.get((priority, queue))
    if head is None:
        head = _new_head(priority, queue)
    return (
        message.id,
        queue,
        priority,
        message.delay_seconds,
        eta.timestamp() if eta is not None else None,
        head + _encode(message),
    )


_HEADS: dict[tuple[int, str], str] = {}


def _new_head(priority: int, queue: str) -> str:
    escaped = queue.replace("\\", "\\\\").replace("\n", "\\n")
    if len(_HEADS) >= 1000:
        _HEADS.clear()
    return _HEADS.setdefault((priority, queue), f"0 0 0 {priority} {escaped}\n")


def _settlement_rows(settlements: Sequence[Settlement]) -> tuple[tuple[Any, ...] | None, list[Any]]:
    """As the script wants them: those that only end one of one node's messages, in columns, with the arrivals of each join; and all others."""
    ids: list[str] = []
    leases: list[str] = []
    records: list[str | None] = []
    joins: dict[str, tuple[str, list[int], list[str], list[str], list[bool]]] = {}
    slow: list[Settlement] = []
    node = fence = ""
    holder: Any = None
    token = 0
    for settlement in settlements:
        lease = settlement.lease
        if settlement.verdict is not _DONE or lease is None or (node and lease.holder.node != node):
            slow.append(settlement)
            continue
        if lease.holder is not holder or lease.token != token:
            holder, token, fence = lease.holder, lease.token, _fence(lease)
        id, receipt, record, arrival = settlement.id, settlement.receipt, settlement.record, settlement.arrival
        if (
            type(receipt) is not str
            or not receipt.startswith(fence)
            or (record is not None and (record.status not in READY_STATES or record.task_id != id))
            or settlement.follow_ups
            or settlement.leaves is not None
            or settlement.opens
            or settlement.enlarges
            or settlement.more_records
            or settlement.forgets
        ):
            slow.append(settlement)
            continue
        node = holder.node
        ids.append(id)
        leases.append(receipt)
        records.append(None if record is None else _record_text(record))
        if arrival is not None:
            _, numbers, indexes, texts, failures = joins.setdefault(arrival.join, (arrival.join, [], [], [], []))
            numbers.append(len(ids))
            indexes.append(str(arrival.index))
            texts.append(_encode(arrival))
            failures.append(arrival.failed)
    if not node:
        return None, [_settlement_row(settlement) for settlement in slow]
    if len(set(ids)) < len(ids):
        return None, [_settlement_row(settlement) for settlement in settlements]
    return (node, ids, leases, records, list(joins.values())), [_settlement_row(settlement) for settlement in slow]


def _settlement_row(settlement: Settlement) -> tuple[Any, ...]:
    lease, pause = settlement.lease, settlement.pause
    records = [*([settlement.record] if settlement.record is not None else ()), *settlement.more_records]
    return (
        settlement.id,
        settlement.verdict.value,
        lease.holder.node if lease is not None else None,
        _fence(lease) if lease is not None else None,
        settlement.reason,
        settlement.delay_seconds,
        _row(settlement.message) if settlement.message is not None else None,
        [_record_row(record) for record in records],
        [_row(message) for message in settlement.follow_ups],
        [_join_row(join) for join in settlement.opens],
        list(settlement.enlarges.items()),
        _arrival_row(settlement.arrival) if settlement.arrival is not None else None,
        settlement.leaves,
        (pause.step, pause.event, pause.seconds) if pause is not None else None,
        settlement.forgets,
    )


def _join_row(join: Join) -> tuple[str, int | None, list[Any]]:
    return (join.id, join.size, [_row(message) for message in join.then])


def _arrival_row(arrival: Arrival) -> tuple[str, str, str, bool]:
    return (arrival.join, str(arrival.index), _encode(arrival), arrival.failed)


def _record_row(record: Record) -> tuple[str, bool, str]:
    return (record.task_id, record.status in READY_STATES, _record_text(record))


def _record_text(record: Record) -> str:
    """The record as JSON, with the fields that Celery's clients expect to find whatever they hold."""
    body = _encode(record)
    missing = ""
    if '"result":' not in body:
        missing = ',"result":null'
    if record.traceback is None:
        missing += ',"traceback":null'
    if not record.children:
        missing += ',"children":[]'
    if record.date_done is None:
        missing += ',"date_done":null'
    return f"{body[:-1]}{missing}}}" if missing else body


def _step(name: str, row: Any) -> Step:
    result, failed, event, until, _ = row
    return Step(
        name=name,
        result=Raw(result.encode()) if result is not False else None,
        failed=failed,
        event=event if event is not False else None,
        until=float(until) if until is not False else None,
    )


def _read_record(id: str, body: bytes) -> Record:
    """Also one that a Celery worker wrote, whose fields may be of other types."""
    try:
        return _decode_record(body)
    except msgspec.ValidationError:
        found = msgspec.json.decode(body, type=dict[str, Raw])
    fields: dict[str, Any] = {}
    for name, raw in found.items():
        if name in ("result", "attempts") or name not in Record.__struct_fields__:
            continue
        value = msgspec.json.decode(raw)
        if name in ("name", "args", "kwargs", "worker", "queue", "root_id", "parent_id", "group_id", "traceback") and value is not None:
            value = value if isinstance(value, str) else repr(value)
        if value is not None:
            fields[name] = value
    fields["task_id"] = id
    record = msgspec.convert(fields, Record)
    return msgspec.structs.replace(record, result=Raw(bytes(found["result"]))) if "result" in found else record


def _fence(lease: Lease) -> str:
    """How the text of this lease begins."""
    key = (lease.holder.process, lease.token)
    fence = _FENCES.get(key)
    if fence is None:
        if len(_FENCES) >= 1000:
            _FENCES.clear()
        fence = _FENCES[key] = f"{key[0]} {key[1]} "
    return fence


_FENCES: dict[tuple[int, int], str] = {}


def _order(lease: str) -> tuple[int, float]:
    """When, by the text of its lease, a message was reserved."""
    _, _, place, number, _ = lease.split(" ", 4)
    return int(number), float(place)


def _since(place: float) -> float:
    """When what has this place became ready."""
    return place % BAND / TICKS


def _deliveries(reply: Any, node: str) -> list[Delivery]:
    leases = reply[2]
    if not leases:
        return []
    now = float(reply[0])
    revoked = set(reply[4])
    leased: dict[str, Lease] = {}
    deliveries = []
    pairs = iter(leases)
    for id, text, body in zip(pairs, pairs, reply[3], strict=True):
        receipt = text.decode()
        process, token, place, _ = receipt.split(" ", 3)
        # Nearly all of a batch have the same: a holder, and a first token.
        lease = leased.get(process + token)
        if lease is None or lease.token != int(token):
            lease = leased[process + token] = Lease(Holder(node, int(process)), int(token))
        # One that somebody else has removed is delivered as undecodable, and so leaves.
        head, _, text = (body or b"").partition(b"\n")
        queue, crashes, interruptions = _READ.get(head) or _read_head(head)
        error = ""
        message: Message | None
        try:
            message = _decode_message(text)
            expires = message.expires
        except (msgspec.DecodeError, UnicodeDecodeError) as problem:
            message, expires, error = None, None, f"The stored message cannot be decoded: {problem}"
        deliveries.append(
            Delivery(
                id=id.decode(),
                queue=queue,
                lease=lease,
                receipt=receipt,
                message=message,
                crashes=crashes,
                interruptions=interruptions,
                waiting_since=_since(float(place)),
                expired=expires is not None and now > expires.timestamp(),
                revoked=id in revoked,
                raw_message=b"" if message is not None else text or body or b"",
                error=error,
            )
        )
    return deliveries


def _read_head(head: bytes) -> tuple[str, int, int]:
    """Queue, crashes, interruptions."""
    try:
        _, crashes, interruptions, _, queue = head.decode().split(" ", 4)
        read = (re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], queue), int(crashes), int(interruptions))
    except ValueError:
        return "", 0, 0
    if len(_READ) >= 1000:
        _READ.clear()
    return _READ.setdefault(head, read)


_READ: dict[bytes, tuple[str, int, int]] = {}


def _waiting(row: Any, asked_queue: str = "") -> Waiting:
    id, body, state, told, *more = row
    head, _, text = body.partition(b"\n")
    queue, crashes, interruptions = _read_head(head)
    fields: dict[str, Any] = {"crashes": crashes, "interruptions": interruptions}
    match state:
        case b"ready":
            fields |= {"waiting_since": _since(float(told)), "ahead": more[0] if more else None}
        case b"scheduled":
            fields |= {"due_at": float(told) if float(told) < FOREVER else None}
        case b"leased":
            fields |= {"waiting_since": _since(float(told)), "node": more[0].decode(), "process": more[1]}
        case _:
            queue, place, _, crashes, interruptions, reason, died_at = _unpack(told)
            fields = {
                "crashes": crashes,
                "interruptions": interruptions,
                "reason": reason,
                "died_at": float(died_at),
                "waiting_since": _since(place),
            }
    message: Message | None
    try:
        message = _decode_message(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = None
    return Waiting(id=id.decode(), queue=queue or asked_queue, state=state.decode(), message=message, **fields)


def _texts(values: Iterable[bytes]) -> list[str]:
    return [value.decode() for value in values]


# -- forks -------------------------------------------------------------------------------------------------------

_engines: WeakSet[RedisEngine] = WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)

if TYPE_CHECKING:
    _complete: type[Engine] = RedisEngine
