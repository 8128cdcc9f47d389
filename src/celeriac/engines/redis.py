"""The engine of a Redis (6.2 or newer) or Valkey server, alone, behind Sentinel, or a Cluster.

    storage    a hash of messages and a hash of what is known of each; sorted sets of ids: ready and scheduled ones by queue, leased ones by node. Results are
               what Celery writes: `celery-task-meta-<id>`, a string of JSON that expires, told by pub/sub on the same name
    a crash    of a process loses nothing that a verb had answered. Of the server: what its persistence says (`appendonly yes`; `appendfsync everysec` may lose a
               second, `always` nothing). Of a primary: what had not reached the replica that took over
    order      priority, then how long it has waited, then the order of publishing
    atomic     every verb is one script, which Redis runs whole and alone: a settlement with its record and its follow-ups, and the next reservation, are one step
    waiting    a token in a sorted set for each queue, taken by BZPOPMIN: one wakes for each message, and who leaves ready work behind puts the token back. A look
               once a second is the net
    repeats    who publishes or settles signs with a pen of its own and a number; the server remembers the last number of each pen for a minute. So a call whose answer
               was lost is asked again and has happened once
    clocks     due times and leases follow the server's clock: setting *that* clock by more than a lease ends leases, since Redis has no other
    Cluster    all keys of an application bear one hash tag, so that a step is atomic there too, whatever queues it touches. Its memory and its work are those of one
               shard; the others stand by, or serve other applications (another `key_prefix`)
    bounded    results, letters and pens expire; waiting messages, dead letters and names of queues stay until somebody takes them; all else is as many as there are
               workers. No verb scans the key space
    cannot     keep anything when `maxmemory-policy` evicts keys: it must be `noeviction`

A connection belongs to one call at a time and is never shared with a child: after a fork the child closes its copies and opens its own.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import msgspec

from ..contracts.broker import Capabilities
from ..contracts.inspect import Depth, Waiting
from ..contracts.mailbox import Letter, Node
from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import NodeLost
from ..core.message import Delivery, Holder, Lease, Message, Record, Revocation, Settlement, Verdict
from ..core.states import READY_STATES
from . import redis_scripts as scripts
from .redis_wire import Place, Refused, Script, Server, Subscription, bulk, command

if TYPE_CHECKING:
    from ..contracts.engine import Engine

LETTER_SECONDS = 60
"""How long a letter waits for its reader."""
NET_SECONDS = 1.0
"""How often a waiter looks, should a token have been lost."""

_encode_bytes = msgspec.json.Encoder().encode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_decode_message = msgspec.json.Decoder(Message).decode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_letter = msgspec.json.Decoder(Letter).decode
_decode_node = msgspec.json.Decoder(Node).decode


def _encode(value: Any) -> str:
    """JSON as text, since the server's MessagePack knows no bytes."""
    return _encode_bytes(value).decode()


class RedisEngine:
    """The engine of `redis://`, `rediss://`, `redis+socket://`, `unix://`, `sentinel://`, `redis+cluster://` and `rediss+cluster://`.

    Options, also in the URL's query: `key_prefix` (or Celery's `global_keyprefix`: all our keys and channels begin with it), `cluster`, `master_name` and
    `sentinel_kwargs` (Sentinel), `socket_timeout` (how long a verb waits for the server), `socket_connect_timeout`, and redis-py's `ssl_…`, `username`, `password`, `client_name`.
    """

    capabilities = Capabilities(engine="redis")

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
        self._ttl_milliseconds = max(1, round(result_expires * 1000)) if result_expires else None
        self._revokes_expire_seconds = revokes_expire_seconds
        place = Place(url, transport_options)
        self._server = Server(place)
        self._prefix = (place.key_prefix + "celeriac:").encode()
        self._results = (place.key_prefix + "celery-task-meta-").encode()
        self._seconds = place.timeout_seconds
        self._scripts: dict[str, Script] = {}
        self._pens: deque[_Pen] = deque()
        self._unsure: dict[Any, tuple[_Pen, float]] = {}
        _engines.add(self)

    # -- the life of a message -----------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, timeout_seconds: float | None = None) -> None:
        if not messages:
            return
        rows = [_row(message) for message in messages]
        key = rows[0][0] if len(rows) == 1 else tuple([row[0] for row in rows])
        self._once(scripts.PUBLISH, key, self._seconds if timeout_seconds is None else timeout_seconds, rows)

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder) -> list[Delivery]:
        return self.exchange((), queues, limit=limit, holder=holder)[1]

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        if not settlements:
            return []
        rows, fast = self._settlement_rows(settlements)
        key = ("settle", *[settlement.id for settlement in settlements])
        return _texts(self._once(scripts.EXCHANGE, key, self._seconds, None, 0, (), 0, fast, rows)[1])

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        rows, fast = self._settlement_rows(settlements)
        names = list(dict.fromkeys(queues)) if len(queues) > 1 else list(queues)
        quick = None
        if (
            (fast or not rows)
            and len(names) == 1
            and len(rows) <= scripts.QUICK_LIMIT >= limit
            and all(row[8] is None or row[8][1] for row in rows)
        ):
            quick = (holder.node, holder.process, names[0], limit, rows)
        try:
            reply = self._once(scripts.EXCHANGE, holder, self._seconds, holder.node, holder.process, names, limit, fast, rows, quick=quick)
        except Refused as refusal:
            if refusal.code == "NODELOST":
                raise NodeLost(holder.node) from None
            raise
        return _texts(reply[1]), _deliveries(reply)

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        reply = self._run(scripts.HELD, node)
        rows = sorted(zip(reply[2], reply[3], reply[4], strict=True), key=lambda row: _unpack(row[1])[9])
        deliveries = _deliveries([reply[0], (), *zip(*rows, strict=True), reply[5]]) if rows else []
        return [delivery for delivery in deliveries if process in (None, delivery.lease.holder.process)]

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        rows = []
        for revocation in revocations:
            letter = Letter(method="terminate", arguments={"task_id": revocation.id, "signal": revocation.signal})
            record = _record_row(revocation.record) if revocation.record is not None else None
            rows.append((revocation.id, record, _encode(letter) if revocation.terminate else None))
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
        rows = [_record_row(record) for record in records]
        fence = (lease.holder.node, lease.holder.process, lease.token) if lease is not None else None
        return _texts(self._run(scripts.STORE, rows, fence)) if rows else []

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        if not ids:
            return {}
        bodies = self._run(scripts.FETCH, list(ids))
        return {id: _read_record(id, body) for id, body in zip(ids, bodies, strict=True) if body is not None}

    def forget(self, ids: Sequence[str]) -> None:
        self._run(scripts.FORGET, list(ids))

    def subscribe(self, ids: Sequence[str]) -> Subscription:
        return Subscription(self._server, [self._results + id.encode() for id in dict.fromkeys(ids)], self._seconds)

    def prune(self, limit: int = 1000) -> int:
        """Results expire by themselves, by the server's clock. With a clock of its own the engine removes them."""
        return int(self._run(scripts.PRUNE, limit))

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
            name: Depth(ready=ready, scheduled=scheduled, leased=leased, dead=dead, paused_by=by.decode() if by is not None else None)
            for name, (ready, scheduled, leased, dead, by) in zip(names, self._run(scripts.DEPTH, names), strict=True)
        }

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        if state not in ("ready", "scheduled", "leased", "dead"):
            raise ValueError(f"There is no state {state!r} of a message; there are ready, scheduled, leased, dead.")
        ids, metas, bodies, scores = self._run(scripts.PEEK, queue, state, max(0, offset), max(0, limit))
        return [
            _dead(id.decode(), meta, body) if state == "dead" else _waiting(id.decode(), meta, body, score)
            for id, meta, body, score in zip(ids, metas, bodies, scores, strict=True)
            if meta is not None
        ]

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        found: dict[str, Waiting] = {}
        for id, row in zip(ids, self._run(scripts.FIND, list(ids)) if ids else (), strict=True):
            if row is None:
                continue
            meta, body, due, ahead = row
            found[id] = _dead(id, meta, body) if due == b"dead" else _waiting(id, meta, body, due, ahead if ahead >= 0 else None)
        return found

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
        request = script.head + bulk(self._arguments(arguments))
        return self._server.ask(lambda again: request, self._seconds, script)

    def _once(self, text: str, key: Any, seconds: float, *arguments: Any, quick: tuple[Any, ...] | None = None) -> Any:
        """A script that must not happen twice: a repeat bears the same pen and number, also when it is the caller who repeats. `key` says that it is one.

        With `quick`, the first try is of the script QUICK with these arguments.
        """
        script = self._script(text, 4)
        first = script if quick is None else self._script(scripts.QUICK, 4)
        start = first.head + bulk(self._arguments(arguments if quick is None else quick))
        unsure = self._unsure.pop(key, None) if self._unsure else None
        if unsure is not None:
            pen = unsure[0]
        else:
            try:
                pen = self._pens.pop()
                pen.number += 1
            except IndexError:
                pen = _Pen()
        signature = pen.signature()

        def request(again: bool) -> bytes:
            if not again:
                return start + signature + b"$0\r\n\r\n"
            begin = start if quick is None else script.head + bulk(self._arguments(arguments))
            return begin + signature + b"$1\r\n1\r\n"

        try:
            reply = self._server.ask(request, seconds, first, again=unsure is not None, repeat=script)
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
        seconds = max(0.001, seconds)
        request = command(b"BZPOPMIN", *keys, b"%.3f" % seconds)
        reply = self._server.ask(lambda again: request, self._seconds, blocked_seconds=seconds)
        return None if reply is None else reply[1]

    def _settlement_rows(self, settlements: Sequence[Settlement]) -> tuple[list[Any], bool]:
        """As the script wants them, and whether they can take the fast way."""
        rows: list[Any] = []
        fast = bool(settlements)
        node = None
        for settlement in settlements:
            lease, verdict, record = settlement.lease, settlement.verdict, settlement.record
            record_row = _record_row(record) if record is not None else None
            if lease is None:
                fast = False
                holder: tuple[Any, Any, Any] = (None, 0, 0)
            else:
                holder = (lease.holder.node, lease.holder.process, lease.token)
                node = node or holder[0]
            message = settlement.message
            message_row = _row(message) if message is not None else None
            follow_ups = [_row(follow_up) for follow_up in settlement.follow_ups] if settlement.follow_ups else None
            if verdict is not Verdict.DONE:
                fast = False
                if verdict is Verdict.RETRY and message_row is None:
                    message_row = self._as_it_was(settlement.id)
            elif follow_ups or holder[0] != node:
                fast = False
            rows.append(
                (settlement.id, verdict.value, *holder, settlement.reason, settlement.delay_seconds, message_row, record_row, follow_ups)
            )
        return rows, fast and len({row[0] for row in rows}) == len(rows)

    def _as_it_was(self, id: str) -> Any:
        found = self._run(scripts.FIND, [id])[0]
        return _row(_decode_message(found[1])) if found is not None else None

    def _after_fork_in_child(self) -> None:
        self._pens = deque()
        self._unsure = {}
        self._server.after_fork_in_child()


# -- what goes in and out ----------------------------------------------------------------------------------------


class _Pen:
    """What a call signs with that must not happen twice. One call at a time writes with it."""

    __slots__ = ("name", "number")

    def __init__(self) -> None:
        self.name = os.urandom(9).hex().encode()
        self.number = 1

    def signature(self) -> bytes:
        number = b"%d" % self.number
        return b"$18\r\n%b\r\n$%d\r\n%b\r\n" % (self.name, len(number), number)


def _row(message: Message) -> tuple[str, str, int, float | None, float | None, str]:
    """A new message, as the scripts want it."""
    eta = message.eta
    return (
        message.id,
        message.queue,
        message.priority,
        message.delay_seconds,
        eta.timestamp() if eta is not None else None,
        _encode(message),
    )


def _record_row(record: Record) -> tuple[str, bool, str]:
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
    return (record.task_id, record.status in READY_STATES, f"{body[:-1]}{missing}}}" if missing else body)


def _read_record(id: str, body: bytes) -> Record:
    """Also one that a Celery worker wrote, whose fields may be of other types."""
    try:
        return _decode_record(body)
    except msgspec.ValidationError:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
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
    return msgspec.structs.replace(record, result=msgspec.Raw(bytes(found["result"]))) if "result" in found else record


def _deliveries(reply: Any) -> list[Delivery]:
    ids = reply[2]
    if not ids:
        return []
    now = float(reply[0])
    revoked = set(reply[5]) if reply[5] else ()
    deliveries = []
    for id, meta, body in zip(ids, reply[3], reply[4], strict=True):
        queue, _, place, token, crashes, interruptions, node, process, revocation, _ = _unpack(meta)
        message, error = _decode(body)
        expires = message.expires if message is not None else None
        deliveries.append(
            Delivery(
                id=id.decode(),
                queue=queue,
                lease=Lease(Holder(node, process), token),
                message=message,
                crashes=crashes,
                interruptions=interruptions,
                waiting_since=int(place[:17]) / 1e6,
                expired=expires is not None and now > expires.timestamp(),
                revoked=bool(revocation) or id in revoked,
                raw_message=b"" if message is not None else body or b"",
                error=error,
            )
        )
    return deliveries


def _decode(body: bytes | None) -> tuple[Message | None, str]:
    try:
        return _decode_message(body or b""), ""
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return None, f"The stored message cannot be decoded: {error}"


def _waiting(id: str, meta: bytes, body: bytes | None, due: bytes, ahead: int | None = None) -> Waiting:
    queue, _, place, _, crashes, interruptions, node, process, _, _ = _unpack(meta)
    return Waiting(
        id=id,
        queue=queue,
        state="leased" if node else "scheduled" if due else "ready",
        message=_decode(body)[0],
        due_at=float(due) if due else None,
        waiting_since=int(place[:17]) / 1e6,
        ahead=ahead,
        node=node or None,
        process=process if node else None,
        crashes=crashes,
        interruptions=interruptions,
    )


def _dead(id: str, meta: bytes, body: bytes | None) -> Waiting:
    queue, _, place, _, crashes, interruptions, reason, died_at = _unpack(meta)
    return Waiting(
        id=id,
        queue=queue,
        state="dead",
        message=_decode(body)[0],
        waiting_since=int(place[:17]) / 1e6,
        crashes=crashes,
        interruptions=interruptions,
        reason=reason,
        died_at=float(died_at),
    )


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
