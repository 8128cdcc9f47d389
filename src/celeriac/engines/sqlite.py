"""The engine of one SQLite file: no server, and any number of processes of one machine.

    storage    the file, in WAL mode: a row for each message that waits or is leased, one for each record, dead letter, node and letter.
               Beside it the directory `<file>.wake`, which holds nothing of value: a lock file, and named pipes to wake by. It may be
               removed at any time
    a crash    of a process loses nothing that a verb had answered. At power loss or a crash of the kernel `synchronous=NORMAL` (the default)
               may lose the last moments, never the file: what was published then is gone, what was settled then runs again. `synchronous=FULL` loses nothing,
               and costs an fsync for each transaction
    order      priority, then how long it has waited, then the order of publishing
    atomic     every verb is one transaction. Writers take turns by `flock` on the lock file, since SQLite's own way of waiting lets the unlucky starve
               when several processes are busy; SQLite's locks guard the data all the same
    waiting    whoever publishes writes a byte (a token) into the pipe of the queue; whoever waits polls it. A token stays until it is read, and who reads it
               puts it back when he leaves ready work behind. A look into the file once a second is the net for everything
    clocks     due times follow the wall clock; leases the clock that only goes on, together with the kernel's boot id: setting the time ends no lease, a reboot ends all
    together   with the tables of a program, in its file: with the option `prefix`, which all our tables' names then begin with
    cannot     be shared over a network file system: WAL needs shared memory. Where there is no `mkfifo` it polls every 20 ms. A process that is stopped (not killed)
               in the midst of a write lets all other writers wait until it goes on or dies; they give up after their timeout, and name it

A connection must not live through a fork, not even unused: SQLite keeps its file locks for each process and its own account of them in memory, so that a child which
inherits the account believes in locks it does not have, and its parent would remove the write-ahead log under its feet. So it is closed before each fork
and opened again by the next verb.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import posix  # for read and write that never wait: in `os`, eventlet replaces them
import re
import select
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, assert_never, cast
from urllib.parse import parse_qsl, unquote
from weakref import WeakSet

import msgspec
from msgspec import Raw

from ..contracts.broker import Capabilities
from ..contracts.inspect import Depth, Waiting
from ..contracts.joins import JoinState
from ..contracts.mailbox import Letter, Node
from ..contracts.steps import Step
from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import EngineCorrupt, EngineUnavailable, ImproperlyConfigured, NodeLost
from ..core.message import Arrival, Delivery, Holder, Join, Lease, Message, Record, Revocation, Settlement, Verdict
from ..core.states import READY_STATES
from . import sqlite_joins, sqlite_steps
from . import sqlite_schema as sql
from .sqlite_schema import LEASED, READY, SCHEDULED, STATES

if TYPE_CHECKING:
    from ..contracts.engine import Engine
    from ..contracts.results import Subscription
    from ..contracts.schedules import Schedules

# -- settings ----------------------------------------------------------------------------------------------------

LETTER_SECONDS = 60.0
"""How long a letter waits for its reader."""
NET_SECONDS = 1.0
"""How often a waiter looks into the file, should a token have been lost."""
LOCK_SECONDS = 0.0003
"""The longest pause between two tries to get the lock."""
POLL_SECONDS = 0.02
"""The same, where there are no named pipes."""
COUNTED_EACH = 8
"""For more messages of a queue than this, the places of the whole queue are numbered instead of counting for each."""
LEASE_ROWS = 64
"""How many rows one statement leases; SQLite has a limit, and each number of rows is a statement of its own."""
PURGE_LIMIT = 5000
"""How many rows one transaction of `purge` removes."""
WIDE_SUBSCRIPTION = 50
"""A wait for more results than this is told about every result."""
OPEN_PIPES = 100
"""How many queues' pipes a publisher keeps open."""
SPARE_EARS = 16
"""How many pipes of closed subscriptions are kept for the next ones."""
STALE_SECONDS = 60.0
"""A named pipe that is older and that nobody reads belonged to a process that died."""

_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(Message).decode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_letter = msgspec.json.Decoder(Letter).decode
_decode_node = msgspec.json.Decoder(Node).decode
_decode_revocation = msgspec.json.Decoder(Revocation).decode


class SQLiteEngine:
    """The engine of `sqlite:///relative.db` and `sqlite:////absolute.db`.

    Options: `synchronous` ("NORMAL", or "FULL" to survive power loss, see above), `busy_timeout_seconds` (how long a verb waits for its turn to write), `prefix` (what the names
    of our tables begin with; without one the file must be ours alone).
    They may stand in the URL's query too.
    """

    capabilities = Capabilities(engine="sqlite", schedules=True, steps=True)

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
        self._path, in_url = _parse(url)
        self._synchronous, self._timeout_seconds, self._prefix = _options({**in_url, **transport_options})
        self._clock = clock
        self._boot = _boot_id()
        self._result_expires = result_expires
        self._revokes_expire_seconds = revokes_expire_seconds
        self._pipes = Pipes(self._path + ".wake")
        self._mutex: Any = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._file_id = (0, 0)
        self._look_at = 0.0
        self._lock_fd = -1
        self._unusable = ""
        self._commits = 0
        self._schedules: Schedules | None = None
        _engines.add(self)

    @property
    def schedules(self) -> Schedules:
        """Where schedules are kept, in the same file and the same transactions."""
        if self._schedules is None:
            from .schedules.sqlite import SQLiteSchedules

            self._schedules = SQLiteSchedules(self)
        return self._schedules

    # -- the life of a message -----------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, joins: Sequence[Join] = (), timeout_seconds: float | None = None) -> None:
        now = self._clock.time()
        rows = [_row(message, now) for message in messages]
        opened = [sqlite_joins.join_row(join) for join in joins] if joins else ()
        queues = {row[1] for row in rows}
        with _Transaction(self, timeout_seconds) as db:
            for join in opened:
                self._publish(db, sqlite_joins.open_join(db, join, now), now, queues)
            if len(rows) == 1:
                db.execute(sql.PUBLISH, rows[0])
            else:
                db.executemany(sql.PUBLISH, rows)
        self._pipes.ring_queues(queues)

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder, wait_seconds: float = 0.0) -> list[Delivery]:
        if wait_seconds > 0.0 and not self.wait(queues, wait_seconds):
            return []
        with _Transaction(self) as db:
            batch = self._reserve(db, queues, limit, holder)
        self._pipes.ring_queues(batch.leftover)
        return batch.deliveries()

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        prepared = _Prepared(settlements, self._clock.time())
        with _Transaction(self) as db:
            effects = self._settle(db, prepared)
        self._announce(effects)
        return effects.refused

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        prepared = _Prepared(settlements, self._clock.time())
        with _Transaction(self) as db:
            effects = self._settle(db, prepared)
            batch = self._reserve(db, queues, limit, holder)
        effects.queues |= batch.leftover
        self._announce(effects)
        return effects.refused, batch.deliveries()

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        now = self._clock.time()
        rows = self._query(sql.HELD, (node,))
        revoked = self._query_each(sql.REVOKED, [(row[1], now) for row in rows])
        return [
            _delivery(row[:8], Holder(node, row[8]), now, revoked=row[9] is not None or bool(known))
            for row, known in zip(rows, revoked, strict=True)
            if process in (None, row[8])
        ]

    def lost(self, node: str, process: int) -> list[str]:
        return []

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        now = self._clock.time()
        effects = _Effects()
        answers: dict[str, str] = {}
        encoded = [(revocation, _encode(revocation)) for revocation in revocations]
        with _Transaction(self) as db:
            for revocation, body in encoded:
                answers[revocation.id] = self._revoke(db, revocation, body, now, effects)
        self._announce(effects)
        return answers

    # -- nodes and their leases ----------------------------------------------------------------------------------

    def register(self, node: Node, *, lease_seconds: float) -> None:
        until = self._clock.monotonic() + lease_seconds
        body = _encode(node)
        with _Transaction(self) as db:
            db.execute("INSERT OR REPLACE INTO nodes (id, boot, until, node) VALUES (?, ?, ?, ?)", (node.id, self._boot, until, body))

    def heartbeat(self, node: str, *, lease_seconds: float) -> bool:
        until = self._clock.monotonic() + lease_seconds
        with _Transaction(self) as db:
            return db.execute("UPDATE nodes SET until = ?, boot = ? WHERE id = ?", (until, self._boot, node)).rowcount == 1

    def unregister(self, node: str) -> None:
        effects = _Effects()
        with _Transaction(self) as db:
            self._give_back(db, node, self._clock.time(), effects, crashed=False)
        self._announce(effects)

    def reclaim(self, nodes: Sequence[str] = ()) -> list[str]:
        monotonic = self._clock.monotonic()
        known = {id: until if boot == self._boot else -math.inf for id, boot, until in self._query("SELECT id, boot, until FROM nodes")}
        holding = {node for (node,) in self._query("SELECT DISTINCT node FROM messages WHERE state = 2")}
        if not nodes and min(known.values(), default=math.inf) > monotonic and holding <= known.keys():
            return []
        effects = _Effects()
        ids: list[str] = []
        with _Transaction(self) as db:
            silent = db.execute("SELECT id FROM nodes WHERE until <= ? OR boot <> ?", (monotonic, self._boot)).fetchall()
            unregistered = db.execute(
                "SELECT DISTINCT node FROM messages WHERE state = 2 AND NOT EXISTS (SELECT 1 FROM nodes WHERE nodes.id = messages.node)"
            ).fetchall()
            for node in dict.fromkeys([*nodes, *(id for (id,) in silent), *(id for (id,) in unregistered)]):
                ids += self._give_back(db, node, self._clock.time(), effects, crashed=True)
        self._announce(effects)
        return ids

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        # First the pipes are opened and emptied, then the file is looked at: what was published earlier is seen, what is published later leaves a token.
        deadline = time.monotonic() + timeout_seconds
        fds = self._pipes.listen(queues)
        while True:
            _poll(fds, 0.0)
            seconds = self._seconds_until_ready(queues)
            if seconds <= 0:
                return True
            look_at = time.monotonic() + min(seconds, NET_SECONDS if None not in fds else POLL_SECONDS)
            while (now := time.monotonic()) < look_at:
                if now >= deadline:
                    return False
                if _poll(fds, min(look_at, deadline)):
                    return True
            fds = self._pipes.listen(queues, check=True)

    def close(self) -> None:
        with self._mutex:
            self._disconnect()
        self._pipes.close()

    # -- results -------------------------------------------------------------------------------------------------

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        now = self._clock.time()
        rows = [(record.task_id, record.status, now, _encode(record)) for record in records]
        refused: list[str] = []
        stored: list[str] = []
        with _Transaction(self) as db:
            for row in rows:
                fenced = lease is None or db.execute(sql.FENCED, (row[0], lease.holder.node, lease.holder.process, lease.token)).fetchone()
                (stored if fenced and _store(db, row) else refused).append(row[0])
        self._pipes.ring_results(stored)
        return refused

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        rows = self._query_each("SELECT record FROM results WHERE task_id = ?", [(id,) for id in ids])
        return {id: _decode_record(found[0][0]) for id, found in zip(ids, rows, strict=True) if found}

    def forget(self, ids: Sequence[str]) -> None:
        with _Transaction(self) as db:
            db.executemany("DELETE FROM results WHERE task_id = ?", [(id,) for id in ids])

    def subscribe(self, ids: Sequence[str]) -> Subscription:
        return _Subscription(self, ids)

    def prune(self, limit: int = 1000) -> int:
        """Also sweeps out what else is out of date: joins, steps, events, memories of revocations, letters, the pipes of processes that died."""
        with _Transaction(self) as db:
            now = self._clock.time()
            db.execute("DELETE FROM revokes WHERE until <= ?", (now,))
            self._throw_away_old_letters(db)
            pruned = 0
            horizon = None if self._result_expires is None else now - self._result_expires
            if horizon is not None:
                db.execute(sql.PRUNE_FUTURE, (now, now, limit))
                pruned = db.execute(sql.PRUNE, (horizon, limit)).rowcount
                sqlite_steps.prune(db, now, horizon, limit)
            sqlite_joins.prune(db, now, horizon, limit)
        self._pipes.sweep()
        return pruned

    # -- joins ---------------------------------------------------------------------------------------------------

    def seal(self, id: str, size: int) -> None:
        now = self._clock.time()
        queues: set[str] = set()
        with _Transaction(self) as db:
            self._publish(db, sqlite_joins.seal(db, id, size, now), now, queues)
        self._pipes.ring_queues(queues)

    def joins(self, ids: Sequence[str]) -> dict[str, JoinState]:
        rows = self._query_each(sqlite_joins.STATE, [(id,) for id in ids])
        return {found[0][0]: sqlite_joins.state(found[0]) for found in rows if found}

    def arrivals(self, id: str) -> list[Arrival]:
        return sqlite_joins.arrivals_of(id, self._query(sqlite_joins.ARRIVALS, (id,)))

    def arrive(
        self,
        arrivals: Sequence[Arrival],
        *,
        opens: Sequence[Join] = (),
        enlarges: Mapping[str, int] | None = None,
        seals: Mapping[str, int] | None = None,
    ) -> list[Message]:
        now = self._clock.time()
        opened = [sqlite_joins.join_row(join) for join in opens]
        then: list[Message] = []
        with _Transaction(self) as db:
            for join in opened:
                then += sqlite_joins.open_join(db, join, now, again=True)
            if enlarges and not (arrivals and sqlite_joins.has_arrived(db, arrivals[0])):
                for id, more in enlarges.items():
                    sqlite_joins.enlarge(db, id, more, now)
            for id, size in (seals or {}).items():
                then += sqlite_joins.seal(db, id, size, now, again=True)
            for arrival in arrivals:
                then += sqlite_joins.arrive_again(db, arrival, now)
        return list({message.id: message for message in then}.values())

    def leave(self, ids: Sequence[str]) -> None:
        with _Transaction(self) as db:
            sqlite_joins.leave(db, ids, self._clock.time())

    # -- steps ---------------------------------------------------------------------------------------------------

    def remember(self, task_id: str, name: str, result: Raw, *, failed: bool = False, lease: Lease | None = None) -> Step | None:
        with _Transaction(self) as db:
            if lease is not None:
                fence = (task_id, lease.holder.node, lease.holder.process, lease.token)
                if db.execute(sql.FENCED, fence).fetchone() is None:
                    return None
            return sqlite_steps.remember(db, task_id, name, result, failed, self._clock.time())

    def recall(self, task_id: str) -> dict[str, Step]:
        return {row[0]: sqlite_steps.step(row) for row in self._query(sqlite_steps.STEPS, (task_id,))}

    def occur(self, event: str, value: Raw) -> list[str]:
        with _Transaction(self) as db:
            task_ids, queues = sqlite_steps.occur(db, event, value, self._clock.time())
        self._pipes.ring_queues(queues)
        return task_ids

    # -- what people see -----------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock.time()

    def queues(self) -> list[str]:
        return [queue for (queue,) in self._query(sql.QUEUES)]

    def depth(self, queues: Sequence[str] | None = None) -> dict[str, Depth]:
        names = list(dict.fromkeys(self.queues() if queues is None else queues))
        now = self._clock.time()
        leased = dict(self._query(sql.LEASED_COUNTS))
        counts = self._query_each(sql.COUNTS, [{"queue": name, "now": now} for name in names])
        return {
            name: Depth(ready=ready + due, scheduled=scheduled, leased=leased.get(name, 0), dead=dead, paused_by=by)
            for name, ((ready, due, scheduled, dead, by),) in zip(names, counts, strict=True)
        }

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        if state not in sql.PEEK:
            raise ValueError(f"There is no state {state!r} of a message; there are {', '.join(sql.PEEK)}.")
        now = self._clock.time()
        stop = limit + offset
        rows = self._query(sql.PEEK[state], {"queue": queue, "now": now, "limit": limit, "offset": offset, "stop": stop})
        return [_waiting(row, now) for row in rows]

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        now = self._clock.time()
        found: dict[str, Waiting] = {}
        ready: dict[str, list[Any]] = {}
        for id in dict.fromkeys(ids):
            rows = self._query(f"SELECT {sql.WAITING} WHERE id = ?", (id,)) or self._query(f"SELECT {sql.DEAD} WHERE id = ?", (id,))
            for row in rows:
                found[id] = _waiting(row, now)
                if found[id].state == "ready":
                    ready.setdefault(row[1], []).append(row)
        for queue, rows in ready.items():
            for id, ahead in self._places(queue, rows, now):
                found[id] = msgspec.structs.replace(found[id], ahead=ahead)
        return found

    def revoked(self) -> list[str]:
        statement = (
            "SELECT id FROM revokes WHERE until > ? AND NOT EXISTS (SELECT 1 FROM messages WHERE messages.id = revokes.id AND state <> 2)"
            " UNION SELECT id FROM messages WHERE revocation IS NOT NULL"
        )
        return [id for (id,) in self._query(statement, (self._clock.time(),))]

    def purge(self, queues: Sequence[str]) -> int:
        purged = 0
        for queue in dict.fromkeys(queues):
            for state in (READY, SCHEDULED):
                statement = (
                    f"DELETE FROM messages WHERE n IN (SELECT n FROM messages WHERE state = {state} AND queue = ? LIMIT {PURGE_LIMIT})"
                )
                while True:
                    with _Transaction(self) as db:
                        removed = db.execute(statement, (queue,)).rowcount
                    purged += removed
                    if removed < PURGE_LIMIT:
                        break
        return purged

    def pause(self, queues: Sequence[str], *, by: str) -> None:
        with _Transaction(self) as db:
            db.executemany("INSERT OR REPLACE INTO paused (queue, by) VALUES (?, ?)", [(queue, by) for queue in queues])

    def resume(self, queues: Sequence[str]) -> None:
        with _Transaction(self) as db:
            db.executemany("DELETE FROM paused WHERE queue = ?", [(queue,) for queue in queues])
        self._pipes.ring_queues(set(queues))

    def replay(self, ids: Sequence[str]) -> list[str]:
        now = self._clock.time()
        replayed: list[str] = []
        queues: set[str] = set()
        with _Transaction(self) as db:
            for id in dict.fromkeys(ids):
                row = db.execute("SELECT n, queue, priority, task, token, message FROM dead WHERE id = ?", (id,)).fetchone()
                if row is None:
                    continue
                n, queue, priority, task, token, message = row
                if db.execute(sql.PUBLISH, (id, queue, priority, READY, now, None, task, token, message)).rowcount == 1:
                    db.execute("DELETE FROM dead WHERE n = ?", (n,))
                    replayed.append(id)
                    queues.add(queue)
        self._pipes.ring_queues(queues)
        return replayed

    def discard(self, ids: Sequence[str]) -> list[str]:
        with _Transaction(self) as db:
            return [id for id in dict.fromkeys(ids) if db.execute("DELETE FROM dead WHERE id = ?", (id,)).rowcount == 1]

    # -- letters -------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        now = self._clock.monotonic()
        rows = self._query("SELECT node, until, boot FROM nodes")
        return [
            msgspec.structs.replace(_decode_node(body), lease_left_seconds=until - now if boot == self._boot else -LETTER_SECONDS)
            for body, until, boot in rows
        ]

    def post(self, addresses: Sequence[str], letter: Letter) -> None:
        body = _encode(letter)
        with _Transaction(self) as db:
            self._post(db, addresses, body)
        self._pipes.ring_boxes(addresses)

    def collect(self, address: str, timeout_seconds: float = 0.0) -> list[Letter]:
        deadline = time.monotonic() + timeout_seconds
        box = self._pipes.box(address)
        while True:
            if _poll((box.fd,), 0.0) or time.monotonic() >= box.look_at:
                box.look_at = time.monotonic() + (NET_SECONDS if box.fd is not None else POLL_SECONDS)
                letters = self._take_letters(address)
                if letters:
                    return letters
            if time.monotonic() >= deadline:
                return []
            if _poll((box.fd,), min(deadline, box.look_at)):
                box.look_at = 0.0

    # -- steps of a transaction ----------------------------------------------------------------------------------

    def _reserve(self, db: sqlite3.Connection, queues: Sequence[str], limit: int, holder: Holder) -> _Batch:
        names = list(dict.fromkeys(queues)) if len(queues) > 1 else queues
        gate = db.execute(sql.GATE, (names[0] if names else "", holder.node)).fetchone()
        if gate is None:
            raise NodeLost(holder.node)
        now = self._clock.time()
        batch = _Batch(holder, now)
        if limit <= 0:
            return batch
        any_paused, any_revoked, first_due = gate
        if any_paused:
            paused = {queue for (queue,) in db.execute("SELECT queue FROM paused")}
            names = [queue for queue in names if queue not in paused]
        for queue in names:
            if queue != queues[0]:
                first_due = db.execute(sql.FIRST_DUE, (queue,)).fetchone()[0]
            if first_due is not None and first_due <= now:
                db.execute(sql.PROMOTE, (queue, now))
        batch.rows, batch.leftover = _ready_rows(db, names, limit)
        if any_revoked and batch.rows:
            batch.revoked = {row[1] for row in batch.rows if db.execute(sql.REVOKED, (row[1], now)).fetchone()}
        # Under the lock of the writers this clock gives every batch a later moment than all before it. One statement for all is quicker than one for each.
        for start in range(0, len(batch.rows), LEASE_ROWS):
            taken = [row[0] for row in batch.rows[start : start + LEASE_ROWS]]
            db.execute(_lease_sql(len(taken)), (holder.node, holder.process, time.monotonic_ns(), *taken))
        return batch

    def _settle(self, db: sqlite3.Connection, prepared: _Prepared) -> _Effects:
        effects = _Effects()
        if prepared.removals is not None:
            if not prepared.removals or db.executemany(sql.REMOVE, prepared.removals).rowcount == len(prepared.removals):
                if prepared.records:
                    db.executemany(sql.STORE, prepared.records)
                    effects.results = [row[0] for row in prepared.records]
                if prepared.members:
                    self._count(db, prepared.items, prepared.now, effects)
                return effects
            # Somebody else holds one of them, and the count does not say which.
            db.execute("ROLLBACK")
            db.execute("BEGIN IMMEDIATE")
        settled: list[_Item] = []
        for item in prepared.items:
            if self._settle_one(db, item, prepared.now, effects):
                settled.append(item)
            else:
                effects.refused.append(item[0].id)
        if prepared.members:
            self._count(db, settled, prepared.now, effects)
        return effects

    def _count(self, db: sqlite3.Connection, settled: Sequence[_Item], now: float, effects: _Effects) -> None:
        """At the end of a settlement, when all of it has opened and enlarged: who arrives at a join, who leaves one, and whose steps are forgotten."""
        arrivals = [item[0].arrival for item in settled if item[0].arrival is not None]
        if arrivals:
            self._publish(db, sqlite_joins.arrive(db, arrivals, now), now, effects.queues)
        leaves = [item[0].leaves for item in settled if item[0].leaves is not None]
        if leaves:
            sqlite_joins.leave(db, leaves, now)
        sqlite_steps.forget(db, [item[0].id for item in settled if item[0].forgets])

    def _settle_one(self, db: sqlite3.Connection, item: _Item, now: float, effects: _Effects) -> bool:
        settlement, message_row, record_row, follow_up_rows, join_rows = item
        lease = settlement.lease
        if lease is not None:
            found = db.execute(sql.FENCED, (settlement.id, lease.holder.node, lease.holder.process, lease.token)).fetchone()
            if found is None:
                return False
            if record_row is not None:
                effects.store(db, record_row)
            self._move(db, settlement, message_row, found[0], found[1], now, effects)
        elif record_row is not None:
            effects.store(db, record_row)
        for record in settlement.more_records:
            effects.store(db, (record.task_id, record.status, now, _encode(record)))
        for join in join_rows:
            self._publish(db, sqlite_joins.open_join(db, join, now), now, effects.queues)
        for id, more in settlement.enlarges.items():
            sqlite_joins.enlarge(db, id, more, now)
        for row in follow_up_rows:
            db.execute(sql.PUBLISH, row)
            effects.queues.add(row[1])
        return True

    def _publish(self, db: sqlite3.Connection, messages: Iterable[Message], now: float, queues: set[str]) -> None:
        for message in messages:
            row = _row(message, now)
            db.execute(sql.PUBLISH, row)
            queues.add(row[1])

    def _move(
        self,
        db: sqlite3.Connection,
        settlement: Settlement,
        row: _MessageRow | None,
        n: int,
        revocation: bytes | None,
        now: float,
        effects: _Effects,
    ) -> None:
        match settlement.verdict:
            case Verdict.RETRY | Verdict.RELEASED | Verdict.CRASHED if revocation is not None:
                self._end_revoked(db, n, revocation, now, effects)
            case Verdict.DONE:
                db.execute("DELETE FROM messages WHERE n = ?", (n,))
            case Verdict.RETRY:
                if row is None:
                    ((body, token),) = db.execute("SELECT message, token FROM messages WHERE n = ?", (n,)).fetchall()
                    row = _row(_decode_message(body), now)
                else:
                    ((token,),) = db.execute("SELECT token FROM messages WHERE n = ?", (n,)).fetchall()
                db.execute("DELETE FROM messages WHERE n = ?", (n,))
                state, at, due = row[3:6]
                if settlement.pause is not None:
                    due = sqlite_steps.pause(db, settlement.id, settlement.pause, now)
                    state, at = (READY, now) if due is None else (SCHEDULED, due)
                db.execute(sql.PUBLISH, (*row[:3], state, at, due, row[6], token, row[8]))
                effects.queues.add(row[1])
            case Verdict.RELEASED | Verdict.CRASHED:
                if row is not None:
                    db.execute(sql.REWRITE, (row[1], row[2], row[6], row[8], n))
                crashed = settlement.verdict is Verdict.CRASHED
                due = now + settlement.delay_seconds if settlement.delay_seconds > 0 and not crashed else None
                db.execute(sql.GIVE_BACK, (READY if due is None else SCHEDULED, due, crashed, not crashed, n))
                ((queue,),) = db.execute("SELECT queue FROM messages WHERE n = ?", (n,)).fetchall()
                effects.queues.add(queue)
            case Verdict.DEAD:
                db.execute(sql.BURY, (now, settlement.reason, n))
                db.execute("DELETE FROM messages WHERE n = ?", (n,))
            case _:
                assert_never(settlement.verdict)

    def _give_back(self, db: sqlite3.Connection, node: str, now: float, effects: _Effects, *, crashed: bool) -> list[str]:
        """The node is gone, and what it held is ready."""
        db.execute("DELETE FROM nodes WHERE id = ?", (node,))
        rows = db.execute("SELECT n, id, queue, revocation FROM messages WHERE state = 2 AND node = ?", (node,)).fetchall()
        for n, _, queue, revocation in rows:
            if revocation is not None:
                self._end_revoked(db, n, revocation, now, effects)
            else:
                db.execute(sql.GIVE_BACK, (READY, None, crashed, not crashed, n))
                effects.queues.add(queue)
        return [row[1] for row in rows]

    def _end_revoked(self, db: sqlite3.Connection, n: int, revocation: bytes, now: float, effects: _Effects) -> None:
        db.execute("DELETE FROM messages WHERE n = ?", (n,))
        self._conclude(db, _decode_revocation(revocation), now, effects)

    def _conclude(self, db: sqlite3.Connection, revocation: Revocation, now: float, effects: _Effects) -> None:
        sqlite_steps.forget(db, [revocation.id])
        record, arrival = revocation.record, revocation.arrival
        if record is not None:
            effects.store(db, (record.task_id, record.status, now, _encode(record)))
        if arrival is not None:
            self._publish(db, sqlite_joins.arrive(db, [arrival], now), now, effects.queues)

    def _revoke(self, db: sqlite3.Connection, revocation: Revocation, body: bytes, now: float, effects: _Effects) -> str:
        row = db.execute("SELECT n, state, node FROM messages WHERE id = ?", (revocation.id,)).fetchone()
        if row is not None and row[1] != LEASED:
            db.execute("DELETE FROM messages WHERE n = ?", (row[0],))
            self._conclude(db, revocation, now, effects)
            return "waiting"
        db.execute("INSERT OR REPLACE INTO revokes (id, until) VALUES (?, ?)", (revocation.id, now + self._revokes_expire_seconds))
        if row is None:
            return "unknown"
        db.execute("UPDATE messages SET revocation = ? WHERE n = ?", (body, row[0]))
        if revocation.terminate:
            letter = Letter(method="terminate", arguments={"task_id": revocation.id, "signal": revocation.signal})
            self._post(db, [row[2]], _encode(letter))
            effects.addresses.append(row[2])
        return "running"

    def _post(self, db: sqlite3.Connection, addresses: Iterable[str], body: bytes) -> None:
        now = self._throw_away_old_letters(db)
        db.executemany("INSERT INTO letters (address, at, letter) VALUES (?, ?, ?)", [(address, now, body) for address in addresses])

    def _take_letters(self, address: str) -> list[Letter]:
        if not self._query("SELECT 1 FROM letters WHERE address = ? LIMIT 1", (address,)):
            return []
        with _Transaction(self) as db:
            self._throw_away_old_letters(db)
            rows = db.execute("SELECT letter FROM letters WHERE address = ? ORDER BY n", (address,)).fetchall()
            db.execute("DELETE FROM letters WHERE address = ?", (address,))
        return [_decode_letter(body) for (body,) in rows]

    def _throw_away_old_letters(self, db: sqlite3.Connection) -> float:
        """Also those of before a reboot: they are of a time to come. Returns what time it is."""
        now = self._clock.monotonic()
        db.execute("DELETE FROM letters WHERE at < ? OR at > ?", (now - LETTER_SECONDS, now))
        return now

    def _seconds_until_ready(self, queues: Sequence[str]) -> float:
        """0 when something is ready, infinity when nothing is even scheduled."""
        now = self._clock.time()
        nearest = math.inf
        for rows in self._query_each(sql.OUTLOOK, [{"queue": queue} for queue in queues]):
            for ready, due in rows:
                if ready:
                    return 0.0
                if due is not None:
                    nearest = min(nearest, max(0.0, due - now))
        return nearest

    def _places(self, queue: str, rows: Sequence[Any], now: float) -> list[tuple[str, int]]:
        """How many come before each of these ready messages."""
        if len(rows) > COUNTED_EACH:
            wanted = {row[0] for row in rows}
            return [(id, place) for id, place in self._query(sql.PLACES, {"queue": queue, "now": now}) if id in wanted]
        given = [{"queue": queue, "priority": row[5], "at": row[4], "n": row[6], "now": now} for row in rows]
        counts = self._query_each(sql.AHEAD, given)
        return [(row[0], count) for row, ((count,),) in zip(rows, counts, strict=True)]

    def _announce(self, effects: _Effects) -> None:
        """After the commit: tells those who wait."""
        if effects.results:
            self._pipes.ring_results(effects.results)
        if effects.queues:
            self._pipes.ring_queues(effects.queues)
        if effects.addresses:
            self._pipes.ring_boxes(effects.addresses)

    # -- the connection ------------------------------------------------------------------------------------------

    def _query(self, statement: str, parameters: Any = ()) -> list[Any]:
        return self._query_each(statement, [parameters])[0]

    def _query_each(self, statement: str, parameters: Sequence[Any]) -> list[list[Any]]:
        """Reads; needs no turn of a writer."""
        if (callers := self._callers_transaction()) is not None:
            with _Transaction(self, callers=callers) as db:
                return [db.execute(statement, given).fetchall() for given in parameters]
        deadline = time.monotonic() + self._timeout_seconds
        self._enter(self._timeout_seconds)
        try:
            while True:
                try:
                    db = self._db or self._connect(deadline)
                    return [db.execute(statement, given).fetchall() for given in parameters]
                except sqlite3.OperationalError as error:
                    if not _is_busy(error) or time.monotonic() >= deadline:
                        raise self._translated(error) from error
                    time.sleep(0.001)
        except sqlite3.DatabaseError as error:
            raise self._translated(error) from error
        finally:
            self._leave()

    def _callers_transaction(self) -> AbstractContextManager[sqlite3.Connection] | None:
        """A part, done as a whole or not at all, of the transaction in this file that the calling thread is in on a connection of its own; None: it is in none.

        Where there is one, verbs become part of it: one that waited for its own turn to write would wait for its caller."""
        return None

    def _version(self) -> tuple[int, int]:
        """Differs when anybody has written since: the others, or this connection."""
        ((others,),) = self._query("PRAGMA data_version")
        return others, self._commits

    def _enter(self, timeout_seconds: float) -> None:
        """Our turn among the threads of this process."""
        mutex = self._mutex
        if mutex._is_owned():
            raise EngineUnavailable(
                f"The engine {self.url} was called from within itself, by a signal handler: what it interrupted must end first. Call it from the program's own course."
            )
        try:
            entered = mutex.acquire(timeout=max(0.0, timeout_seconds))
        except BaseException:
            self._leave()
            raise
        if not entered:
            raise EngineUnavailable(
                f"The database {self._path} is busy: other threads of this process have been using it for {timeout_seconds:g} s. Try again later."
            )

    def _leave(self) -> None:
        if self._mutex._is_owned():
            self._mutex.release()

    def _begin(self, timeout_seconds: float) -> sqlite3.Connection:
        """Our turn among all writers; the transaction has begun."""
        deadline = time.monotonic() + timeout_seconds
        self._enter(timeout_seconds)
        try:
            db = self._db or self._connect(deadline)
            self._lock(deadline, timeout_seconds)
            if time.monotonic() >= self._look_at and self._moved():
                self._disconnect(keep_lock=True)
                db = self._connect(deadline)
                self._lock(deadline, timeout_seconds)
            while True:
                try:
                    db.execute("BEGIN IMMEDIATE")
                    return db
                except sqlite3.OperationalError as error:
                    if not _is_busy(error) or time.monotonic() >= deadline:
                        raise
                    time.sleep(0.001)
        except BaseException as error:
            self._end()
            if isinstance(error, sqlite3.DatabaseError):
                raise self._translated(error) from error
            raise

    def _end(self) -> None:
        """Undoes what is not committed, and lets others in. May be called again when a signal's exception cut it short."""
        if not self._mutex._is_owned():
            return
        if self._db is not None and self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                self._disconnect()
        if self._lock_fd >= 0:
            fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
        self._mutex.release()

    def _lock(self, deadline: float, timeout_seconds: float) -> None:
        fd = self._lock_fd
        if fd < 0:
            return
        pause = 0.00005
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                now = time.monotonic()
                if now >= deadline:
                    raise EngineUnavailable(self._locked_sentence(timeout_seconds)) from None
                time.sleep(min(pause, max(0.0, deadline - now)))
                pause = min(pause * 1.5, LOCK_SECONDS)

    def _moved(self) -> bool:
        """True when the file was removed or replaced since we opened it. Asked once a second."""
        self._look_at = time.monotonic() + NET_SECONDS
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return True
        return (found.st_dev, found.st_ino) != self._file_id

    def _connect(self, deadline: float) -> sqlite3.Connection:
        if self._unusable:
            raise EngineUnavailable(self._unusable)
        directory = os.path.dirname(self._path)
        if not os.path.isdir(directory):
            raise EngineUnavailable(
                f"The directory {directory} of the database {self._path} does not exist. Create it, or change the URL {self.url}."
            )
        if os.path.isdir(self._path):
            raise EngineUnavailable(f"{self._path} is a directory, not a database file. Change the URL {self.url}.")
        if self._lock_fd < 0:
            self._lock_fd = self._pipes.open_lock()
        db: sqlite3.Connection | None = None
        try:
            db = self._named(
                sqlite3.connect(self._path, timeout=0.05, isolation_level=None, check_same_thread=False, cached_statements=256)
            )
            while True:
                try:
                    self._prepare(db, deadline)
                    break
                except sqlite3.OperationalError as error:
                    if not _is_busy(error) or time.monotonic() >= deadline:
                        raise
                    time.sleep(0.002)
            found = os.stat(self._path)
        except BaseException as error:
            if db is not None:
                db.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise self._translated(error) from error
            raise
        self._file_id = (found.st_dev, found.st_ino)
        self._db = db
        return db

    def _prepare(self, db: sqlite3.Connection, deadline: float) -> None:
        """Makes sure that the file is ours and of this version. Waits for nobody when there is nothing to change."""
        db.execute("BEGIN")  # all of it as of one moment: somebody else may just be migrating
        try:
            version = self._schema_version(db)
        finally:
            db.execute("ROLLBACK")
        if version < len(sql.MIGRATIONS) or self._prefix and db.execute("PRAGMA journal_mode").fetchall() != [("wal",)]:
            self._lock(deadline, self._timeout_seconds)
            try:
                self._migrate(db)
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                if self._lock_fd >= 0:
                    fcntl.flock(self._lock_fd, fcntl.LOCK_UN)
        for pragma in (*sql.PRAGMAS, f"PRAGMA synchronous = {self._synchronous}"):
            db.execute(pragma).fetchall()

    def _named(self, db: sqlite3.Connection) -> sqlite3.Connection:
        """The connection, on which our tables are called as they are here."""
        return cast("sqlite3.Connection", _Prefixing(db, self._prefix)) if self._prefix else db

    def _schema_version(self, db: sqlite3.Connection) -> int:
        if self._prefix:
            return self._version_beside_others(db)
        ((version,),) = db.execute("PRAGMA user_version").fetchall()
        ((application_id,),) = db.execute("PRAGMA application_id").fetchall()
        fresh = version == 0 and application_id == 0 and not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        if not fresh and application_id != sql.APPLICATION_ID:
            raise EngineCorrupt(
                f"{self._path} is an SQLite database of another program, not Celeriac's. Give Celeriac a file of its own: change the URL {self.url}."
            )
        if version > len(sql.MIGRATIONS):
            raise self._too_new(version)
        return int(version)

    def _version_beside_others(self, db: sqlite3.Connection) -> int:
        """In the file of another program, whose pragmas are its own, a table says it."""
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (f"{self._prefix}version",)).fetchall():
            return 0
        ((version,),) = db.execute(f"SELECT version FROM {self._prefix}version").fetchall()
        if version > len(sql.MIGRATIONS):
            raise self._too_new(version)
        return int(version)

    def _too_new(self, version: int) -> EngineCorrupt:
        return EngineCorrupt(
            f"{self._path} was written by a newer Celeriac (its schema is version {version}, this one knows {len(sql.MIGRATIONS)})."
            " Upgrade Celeriac here too, or use another file."
        )

    def _migrate(self, db: sqlite3.Connection) -> None:
        if not self._prefix:
            db.execute(f"PRAGMA page_size = {sql.PAGE_BYTES}")
        ((journal_mode,),) = db.execute("PRAGMA journal_mode = WAL").fetchall()
        if journal_mode != "wal":
            raise EngineUnavailable(
                f"The file system of {self._path} has no shared memory, as SQLite's WAL mode needs it. Put the database on a local disk: change the URL {self.url}."
            )
        db.execute("BEGIN IMMEDIATE")
        self._upgrade(db)
        db.execute("COMMIT")

    def _upgrade(self, db: sqlite3.Connection) -> None:
        """Within a transaction: the tables are there, and of this version."""
        # Somebody else may have done it while we waited for our turn.
        version = self._schema_version(db)
        if version == len(sql.MIGRATIONS):
            return
        for statements in sql.MIGRATIONS[version:]:
            for statement in statements:
                db.execute(statement)
        if self._prefix:
            db.execute(f"DROP TABLE IF EXISTS {self._prefix}version")
            db.execute(f"CREATE TABLE {self._prefix}version AS SELECT {len(sql.MIGRATIONS)} AS version")
        else:
            db.execute(f"PRAGMA application_id = {sql.APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {len(sql.MIGRATIONS)}")

    def _disconnect(self, *, keep_lock: bool = False) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()
        if self._lock_fd >= 0 and not keep_lock:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _locked_sentence(self, timeout_seconds: float) -> str:
        owner = _lock_owner(self._lock_fd)
        by = f"process {owner}" if owner else "another process"
        return (
            f"The database {self._path} is busy: {by} has been writing for longer than {timeout_seconds:g} s."
            " Is it stopped, or is the disk very slow? Nothing was changed; try again later."
        )

    def _translated(self, error: sqlite3.DatabaseError) -> Exception:
        """The same trouble, in words that say what to do."""
        code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
        path = self._path
        match code:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return EngineUnavailable(
                    f"The database {path} is busy: another program has been writing to it for too long. Nothing was changed; try again later."
                )
            case sqlite3.SQLITE_FULL:
                return EngineUnavailable(f"The disk (or quota) of the database {path} is full. Nothing was changed. Make room there.")
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                return EngineUnavailable(
                    f"The database {path} cannot be written: it, its directory or the file system is read-only for this user. Give it write permission on the file and on its directory."
                )
            case sqlite3.SQLITE_CANTOPEN:
                return EngineUnavailable(
                    f"The database {path} cannot be opened ({error}). This user needs permission to read and write the file and its directory."
                )
            case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
                return EngineCorrupt(
                    f"{path} is damaged, or is not an SQLite database ({error}). Move it and the files beside it that begin with its name away;"
                    f" `sqlite3 {path} .recover` may save what it held."
                )
            case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_NOLFS | sqlite3.SQLITE_PROTOCOL:
                self._disconnect(keep_lock=True)
                return EngineUnavailable(
                    f"The disk refused to read or write the database {path} ({error}). Nothing was changed. Look at the disk, and at the system's log."
                )
            case sqlite3.SQLITE_ERROR:
                return EngineCorrupt(
                    f"The database {path} lacks what Celeriac once put there ({error}). Has somebody changed it? Use another file, or a backup."
                )
            case _:
                return EngineUnavailable(f"SQLite refused an operation on {path} ({error}). Nothing was changed.")

    # -- forks ---------------------------------------------------------------------------------------------------

    def _before_fork(self) -> bool:
        """Closes the connection, and lets no thread open another until the fork is done."""
        if self._mutex._is_owned() or not self._mutex.acquire(timeout=self._timeout_seconds):
            return False
        self._disconnect()
        return True

    def _after_fork_in_child(self) -> None:
        if self._db is not None:
            # Nobody asked us before the fork (it was not Python's own), so the connection came along.
            if self._mutex._is_owned() or not self._mutex.acquire(blocking=False):
                _abandoned.append(self._db)
                self._unusable = (
                    f"This process was forked while another thread of its parent was using the database {self._path}; SQLite cannot be used here any more."
                    " Fork before starting threads, or start processes with the method 'spawn'."
                )
                self._db = None
            # Its locks belong to the parent, so that closing it takes none of them away.
        self._disconnect()
        self._mutex = threading.RLock()
        self._pipes.reset()
        self._pipes.close(remove=False)


class _Transaction:
    """`with _Transaction(engine) as db:` commits at the end of the block, or changes nothing."""

    __slots__ = ("_callers", "_engine", "_timeout_seconds")

    def __init__(
        self, engine: SQLiteEngine, timeout_seconds: float | None = None, callers: AbstractContextManager[sqlite3.Connection] | None = None
    ) -> None:
        self._engine = engine
        self._callers = callers or engine._callers_transaction()
        self._timeout_seconds = engine._timeout_seconds if timeout_seconds is None else timeout_seconds

    def __enter__(self) -> sqlite3.Connection:
        if self._callers is None:
            return self._engine._begin(self._timeout_seconds)
        try:
            return self._callers.__enter__()
        except sqlite3.DatabaseError as refusal:
            raise self._engine._translated(refusal) from refusal

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        engine = self._engine
        try:
            if self._callers is not None:
                self._callers.__exit__(kind, error, traceback)
            elif error is None and engine._db is not None:
                engine._db.execute("COMMIT")
                engine._commits += 1
        except sqlite3.DatabaseError as refusal:
            raise engine._translated(refusal) from refusal
        finally:
            try:
                engine._end()
            except BaseException:
                engine._end()
                raise
        if isinstance(error, sqlite3.DatabaseError):
            raise engine._translated(error) from error


class _Prefixing:
    """A connection to a file that has other tables beside ours; all names of ours begin with a prefix there."""

    def __init__(self, db: sqlite3.Connection, prefix: str) -> None:
        self._db = db
        self._prefix = prefix

    def execute(self, statement: str, parameters: Any = ()) -> sqlite3.Cursor:
        return self._db.execute(_prefixed(statement, self._prefix), parameters)

    def executemany(self, statement: str, parameters: Any) -> sqlite3.Cursor:
        return self._db.executemany(_prefixed(statement, self._prefix), parameters)

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def close(self) -> None:
        self._db.close()


@cache
def _prefixed(statement: str, prefix: str) -> str:
    return re.sub(rf"\b(?=(?:{'|'.join(_our_names())})\b)", prefix, statement)


@cache
def _our_names() -> list[str]:
    """Of tables, indexes and triggers."""
    return [name for step in sql.MIGRATIONS for statement in step for name in re.findall(r"CREATE (?:UNIQUE )?[A-Z]+ (\w+)", statement)]


# -- what goes in and out ----------------------------------------------------------------------------------------

_MessageRow = tuple[str, str, int, int, float, float | None, str, int, bytes]
_RecordRow = tuple[str, str, float, bytes]
_Item = tuple[Settlement, "_MessageRow | None", "_RecordRow | None", Sequence["_MessageRow"], Sequence[sqlite_joins.JoinRow]]


class _Effects:
    """What a transaction changed that others may be waiting for."""

    __slots__ = ("addresses", "queues", "refused", "results")

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.results: list[str] = []
        self.queues: set[str] = set()
        self.addresses: list[str] = []

    def store(self, db: sqlite3.Connection, row: _RecordRow) -> None:
        if _store(db, row):
            self.results.append(row[0])


class _Prepared:
    """Settlements with everything encoded that they want stored, before anything is locked or changed."""

    __slots__ = ("items", "members", "now", "records", "removals")

    def __init__(self, settlements: Sequence[Settlement], now: float) -> None:
        self.now = now
        self.items: list[_Item] = []
        self.removals: list[tuple[Any, str, str, int, int]] | None = []
        """The fast path: all of them leave, and nothing follows."""
        self.records: list[_RecordRow] = []
        self.members = False
        """Whether anybody arrives at a join, leaves one, or forgets his steps."""
        done = Verdict.DONE
        for settlement in settlements:
            record, message, lease = settlement.record, settlement.message, settlement.lease
            message_row = _row(message, now) if message is not None else None
            record_row = (record.task_id, record.status, now, _encode(record)) if record is not None else None
            follow_ups = [_row(follow_up, now) for follow_up in settlement.follow_ups] if settlement.follow_ups else ()
            opens = [sqlite_joins.join_row(join) for join in settlement.opens] if settlement.opens else ()
            self.items.append((settlement, message_row, record_row, follow_ups, opens))
            if settlement.arrival is not None or settlement.leaves is not None or settlement.forgets:
                self.members = True
            if self.removals is None:
                continue
            follows = follow_ups or opens or settlement.enlarges or settlement.more_records
            if settlement.verdict is done and lease is not None and settlement.receipt is not None and not follows:
                self.removals.append((settlement.receipt, settlement.id, lease.holder.node, lease.holder.process, lease.token))
                if record_row is not None:
                    self.records.append(record_row)
                    if record_row[1] not in READY_STATES:
                        self.removals = None
            else:
                self.removals = None


class _Batch:
    """What one `reserve` took. Decoded after the commit, when others can write again."""

    __slots__ = ("holder", "leftover", "now", "revoked", "rows")

    def __init__(self, holder: Holder, now: float) -> None:
        self.holder = holder
        self.now = now
        self.rows: list[Any] = []
        self.revoked: set[str] = set()
        self.leftover: set[str] = set()
        """Queues in which something is ready still."""

    def deliveries(self) -> list[Delivery]:
        holder, now, revoked = self.holder, self.now, self.revoked
        return [_delivery(row, holder, now, revoked=row[1] in revoked) for row in self.rows]


def _row(message: Message, now: float) -> _MessageRow:
    """A new message, as PUBLISH wants it."""
    due: float | None = None
    if message.delay_seconds is not None:
        due = now + message.delay_seconds
    elif message.eta is not None:
        due = message.eta.timestamp()
    body = _encode(message)
    if due is None or due <= now:
        return (message.id, message.queue, message.priority, READY, now, None, message.task, 0, body)
    return (message.id, message.queue, message.priority, SCHEDULED, due, due, message.task, 0, body)


@cache
def _lease_sql(rows: int) -> str:
    return sql.LEASE.format(", ".join("?" * rows))


def _store(db: sqlite3.Connection, row: _RecordRow) -> bool:
    """False, and nothing stored, when the record's state is an unready one and that of the one before it is not."""
    if row[1] not in READY_STATES:
        before = db.execute(sql.STORED_STATUS, (row[0],)).fetchone()
        if before is not None and before[0] in READY_STATES:
            return False
    db.execute(sql.STORE, row)
    return True


def _ready_rows(db: sqlite3.Connection, queues: Sequence[str], limit: int) -> tuple[list[Any], set[str]]:
    """The first `limit` ready ones of all the queues together, and the queues that have more. Of each queue no more than that many and one are looked at."""
    if len(queues) == 1:
        rows = db.execute(sql.READY_ROWS, (queues[0], limit + 1)).fetchall()
        return rows[:limit], set(queues) if len(rows) > limit else set()
    keys: list[Any] = []
    for queue in queues:
        keys += db.execute(sql.READY_KEYS, (queue, limit + 1)).fetchall()
    keys.sort()
    return [db.execute(sql.ROW, (key[2],)).fetchone() for key in keys[:limit]], {key[3] for key in keys[limit:]}


def _delivery(row: Any, holder: Holder, now: float, *, revoked: bool) -> Delivery:
    n, id, queue, token, crashes, interruptions, at, body = row
    message: Message | None
    try:
        message = _decode_message(body)
        raw, error = b"", ""
        expired = message.expires is not None and now > message.expires.timestamp()
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as trouble:
        message, expired = None, False
        raw, error = _bytes(body), f"The stored message cannot be decoded: {trouble}"
    return Delivery(
        id=id,
        queue=queue,
        lease=Lease(holder, token),
        receipt=n,
        message=message,
        crashes=crashes,
        interruptions=interruptions,
        waiting_since=at,
        expired=expired,
        revoked=revoked,
        raw_message=raw,
        error=error,
    )


def _waiting(row: Any, now: float) -> Waiting:
    id, queue, state, due, at, _, _, node, process, crashes, interruptions, reason, died, body = row
    name = "dead" if state == 3 else STATES[state]
    if state == SCHEDULED and due <= now:
        name = "ready"
    try:
        message = _decode_message(body)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        message = None
    return Waiting(
        id=id,
        queue=queue,
        state=name,
        message=message,
        due_at=None if due == sqlite_steps.FOREVER else due,
        waiting_since=0.0 if name == "scheduled" and at == due else at,
        node=node,
        process=process,
        crashes=crashes,
        interruptions=interruptions,
        reason=reason,
        died_at=died,
    )


def _bytes(stored: Any) -> bytes:
    return stored if isinstance(stored, bytes) else str(stored).encode(errors="replace")


# -- waking ------------------------------------------------------------------------------------------------------


class _Box:
    """The pipe of a mailbox that this process collects from."""

    __slots__ = ("fd", "look_at", "path", "used_at")

    def __init__(self, fd: int | None, path: str) -> None:
        self.fd = fd
        self.path = path
        self.look_at = 0.0
        self.used_at = 0.0


class _Ear:
    """The pipe of a subscription."""

    __slots__ = ("fd", "home", "names")

    def __init__(self, fd: int, home: str) -> None:
        self.fd = fd
        self.home = home
        """Its path while it waits for nothing."""
        self.names: list[str] = []


class Pipes:
    """The directory beside the file: named pipes that wake, and the lock file. All of it can be lost; then the net catches, within a second.

    lock                    held while somebody writes to the database
    queue.<name>            read by all who wait for messages of the queue. Writers hold it open for reading too: so it never breaks
    box.<address>           read by whoever collects there
    results/<id>~<random>   read by one subscription; a subscription to many has a name for each, or the name `+`
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._results = os.path.join(directory, "results")
        self._queues: dict[str, int | None] = {}
        self._boxes: dict[str, _Box] = {}
        self._ears: list[_Ear] = []
        """Pipes of closed subscriptions, for the next ones."""
        self._listed: dict[str, list[str]] = {}
        self._listed_at = -1
        self._lock = threading.Lock()

    def open_lock(self) -> int:
        """The lock file, -1 where there is none to be had."""
        try:
            os.makedirs(self._results, exist_ok=True)
            return os.open(os.path.join(self._directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError:
            return -1

    def listen(self, queues: Sequence[str], *, check: bool = False) -> list[int | None]:
        """The pipes of these queues. With `check`, those that somebody removed are made anew."""
        if check:
            for queue in queues:
                self._check(queue)
        return [self._queue(queue) for queue in queues]

    def ring_queues(self, queues: Iterable[str]) -> None:
        for queue in queues:
            if queue not in self._queues and len(self._queues) >= OPEN_PIPES:
                self._ring(os.path.join(self._directory, _name("queue", queue)))
            elif (fd := self._queue(queue)) is not None:
                with suppress(BlockingIOError):  # a full pipe holds tokens enough
                    posix.write(fd, b"!")

    def ring_boxes(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            self._ring(os.path.join(self._directory, _name("box", address)))

    def ring_results(self, ids: Sequence[str]) -> None:
        listed = self._subscriptions()
        if not listed:
            return
        names: list[str] = list(listed.get("+", ()))
        for id in ids:
            names += listed.get(_name("", id), ())
        for name in names:
            self._ring(os.path.join(self._results, name))

    def box(self, address: str) -> _Box:
        box = self._boxes.get(address)
        now = time.monotonic()
        if box is None:
            with self._lock:
                for other, unused in list(self._boxes.items()):
                    if unused.used_at < now - 2 * LETTER_SECONDS:
                        self._close_box(self._boxes.pop(other))
                path = os.path.join(self._directory, _name("box", address))
                box = self._boxes.setdefault(address, _Box(_open_pipe(path), path))
        box.used_at = now
        return box

    def open_subscription(self, ids: Sequence[str]) -> _Ear | None:
        """A pipe under names that say what it waits for. It gets them when it is open, lest one without a reader is taken for a stale one."""
        try:
            ear = self._ears.pop()
        except IndexError:
            home = os.path.join(self._results, f".~{os.urandom(8).hex()}")
            fd = _open_pipe(home)
            if fd is None:
                return None
            ear = _Ear(fd, home)
        number = ear.home.rpartition("/.")[2]
        keys = dict.fromkeys(_name("", id) for id in ids) if len(ids) <= WIDE_SUBSCRIPTION else ("+",)
        ear.names = [os.path.join(self._results, key + number) for key in keys]
        with suppress(OSError):
            for name in ear.names[1:]:
                os.link(ear.home, name)
            if ear.names:
                os.rename(ear.home, ear.names[0])
        return ear

    def close_subscription(self, ear: _Ear) -> None:
        """Keeps a few pipes for the next subscriptions: renaming one costs half of making one."""
        try:
            for name in ear.names[1:]:
                os.unlink(name)
            if len(self._ears) < SPARE_EARS:
                if ear.names:
                    os.rename(ear.names[0], ear.home)
                _poll((ear.fd,), 0.0)
                self._ears.append(ear)
                return
        except OSError:
            pass  # somebody removed the directory
        self._close_ear(ear)

    def sweep(self) -> None:
        """Removes the pipes of processes that died."""
        horizon = time.time() - STALE_SECONDS
        for directory in (self._directory, self._results):
            with suppress(OSError), os.scandir(directory) as entries:
                for entry in entries:
                    found = entry.stat(follow_symlinks=False)
                    if stat.S_ISFIFO(found.st_mode) and found.st_ctime < horizon:
                        self._ring(entry.path, token=b"")

    def close(self, *, remove: bool = True) -> None:
        with self._lock:
            queues, self._queues = self._queues, {}
            boxes, self._boxes = self._boxes, {}
            while self._ears:
                self._close_ear(self._ears.pop(), remove=remove)
            for fd in queues.values():
                if fd is not None:
                    os.close(fd)
            for box in boxes.values():
                self._close_box(box, remove=remove)

    def reset(self) -> None:
        """In a child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def _queue(self, queue: str) -> int | None:
        try:
            return self._queues[queue]
        except KeyError:
            with self._lock:
                if queue not in self._queues:
                    self._queues[queue] = _open_pipe(os.path.join(self._directory, _name("queue", queue)))
                return self._queues[queue]

    def _check(self, queue: str) -> None:
        with self._lock:
            fd = self._queues.get(queue)
            path = os.path.join(self._directory, _name("queue", queue))
            try:
                if fd is not None and os.stat(path).st_ino == os.fstat(fd).st_ino:
                    return
            except OSError:
                pass
            self._queues[queue] = _open_pipe(path)
            if fd is not None:
                os.close(fd)

    def _close_ear(self, ear: _Ear, *, remove: bool = True) -> None:
        for path in (ear.home, *ear.names) if remove else ():
            with suppress(OSError):
                os.unlink(path)
        os.close(ear.fd)

    def _close_box(self, box: _Box, *, remove: bool = True) -> None:
        if box.fd is not None:
            if remove:
                with suppress(OSError):
                    os.unlink(box.path)
            os.close(box.fd)

    def _subscriptions(self) -> dict[str, list[str]]:
        """The names in `results`, by key. Read anew when the directory has changed; or changed so lately that the file system's clock may not tell."""
        try:
            changed_at = os.stat(self._results).st_mtime_ns
            if changed_at == self._listed_at:
                return self._listed
            listed: dict[str, list[str]] = {}
            for name in os.listdir(self._results):
                key, mark, _ = name.rpartition("~")
                if mark and key != ".":  # an ear without a name is a spare one
                    listed.setdefault(key, []).append(name)
        except OSError:
            return {}
        self._listed = listed
        self._listed_at = changed_at if time.time_ns() - changed_at > 20_000_000 else -1
        return listed

    def _ring(self, path: str, token: bytes = b"!") -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nobody reads it
                with suppress(OSError):
                    if os.stat(path).st_ctime < time.time() - STALE_SECONDS:
                        os.unlink(path)
            return
        try:
            if token:
                posix.write(fd, token)
        except OSError:
            pass
        finally:
            os.close(fd)


class _Subscription:
    """A named pipe of our own."""

    def __init__(self, engine: SQLiteEngine, ids: Sequence[str]) -> None:
        self._engine = engine
        self._ear = engine._pipes.open_subscription(ids)
        self._fd = self._ear.fd if self._ear else None
        self._process = os.getpid()
        self._spare: tuple[int, int] | None = None
        self._version = None if self._ear else engine._version()
        self._look_at = time.monotonic() + (NET_SECONDS if self._ear else 0.0)
        self._closed = False

    def fileno(self) -> int:
        if self._fd is not None:
            return self._fd
        if self._spare is None:
            # Always readable: its owner asks `changed` in a loop, which is all that can be done here.
            self._spare = os.pipe()
            posix.write(self._spare[1], b"!")
        return self._spare[0]

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + timeout_seconds
        net_seconds = NET_SECONDS if self._fd is not None else POLL_SECONDS
        while True:
            if _poll((self._fd,), min(deadline, self._look_at)):
                return True
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + net_seconds
                # At the first look nothing is known of what was before: it may have changed.
                before, self._version = self._version, self._engine._version()
                if self._version != before:
                    return True
            if now >= deadline:
                return False

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._ear is not None:
            if self._process == os.getpid():
                self._engine._pipes.close_subscription(self._ear)
            else:  # a child's copy: the names are the parent's
                os.close(self._ear.fd)
        for fd in self._spare or ():
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def _open_pipe(path: str) -> int | None:
    """Open for reading and writing, so that it stays a pipe however many come and go; None where there are no named pipes."""
    for _ in range(3):
        try:
            return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.mkfifo(path, 0o666)
            except FileExistsError:
                pass
            except OSError:
                return None
        except OSError:
            return None
    return None


def _poll(fds: Sequence[int | None], deadline: float) -> bool:
    """Waits until there is a token in one of the pipes, and takes all tokens of all of them. False: none came, or somebody was quicker."""
    open_fds = [fd for fd in fds if fd is not None]
    seconds = max(0.0, deadline - time.monotonic()) if deadline else 0.0
    if not open_fds:
        if seconds:
            time.sleep(seconds)
        return False
    if seconds:
        open_fds = _readable(open_fds, min(seconds, 1e6))
    found = False
    for fd in open_fds:
        with suppress(OSError):
            found = bool(posix.read(fd, 65536)) or found
    return found


def _readable(fds: list[int], seconds: float) -> list[int]:
    if not hasattr(select, "poll"):  # eventlet takes it away
        return list(select.select(fds, (), (), seconds)[0])
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return [fd for fd, event in poll.poll(seconds * 1000) if event & select.POLLIN]


def _name(kind: str, text: str) -> str:
    """A file name for any text."""
    if len(text) <= 100 and text.isascii() and text.replace("-", "").replace("_", "").replace(".", "").isalnum():
        name = text
    else:
        from hashlib import sha256  # milliseconds, and seldom needed

        name = "#" + sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
    return f"{kind}.{name}" if kind else name


# -- helpers -----------------------------------------------------------------------------------------------------


def _parse(url: str) -> tuple[str, dict[str, str]]:
    """The file's absolute path, and the options of the query."""
    scheme, _, rest = url.partition("://")
    place, _, query = rest.partition("?")
    path = unquote(place)
    if path.strip("/") in ("", ":memory:") and scheme == "sqlite":
        raise ImproperlyConfigured(
            f"{url!r} names no file. Write sqlite:///relative.db or sqlite:////absolute/path.db; memory:// needs none."
        )
    if not path.startswith("/") or path.endswith("/"):
        raise ImproperlyConfigured(f"{url!r} names no file. Write sqlite:///relative.db or sqlite:////absolute/path.db.")
    return os.path.abspath(path[1:]), dict(parse_qsl(query))


def _options(given: dict[str, Any]) -> tuple[str, float, str]:
    synchronous = str(given.pop("synchronous", "NORMAL")).upper()
    if synchronous not in ("NORMAL", "FULL"):
        raise ImproperlyConfigured(f"The SQLite engine's option synchronous is {synchronous!r}; it can be NORMAL or FULL.")
    try:
        timeout_seconds = float(given.pop("busy_timeout_seconds", 10.0))
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"The SQLite engine's option busy_timeout_seconds must be a number: {error}.") from None
    prefix = str(given.pop("prefix", ""))
    if prefix and not (prefix.isascii() and prefix.isidentifier()):
        raise ImproperlyConfigured(
            f"The SQLite engine's option prefix is {prefix!r}; it must be a name of letters, digits and underscores."
        )
    if given:
        raise ImproperlyConfigured(
            f"The SQLite engine has no option {', '.join(sorted(given))}. It has synchronous, busy_timeout_seconds and prefix."
        )
    return synchronous, timeout_seconds, prefix


def _boot_id() -> str:
    """Names this run of the kernel, where it can be told."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        pass
    if os.uname().sysname == "Darwin":
        import subprocess

        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(
                ["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, timeout=5, check=True
            ).stdout.strip()
    return ""


def _is_busy(error: sqlite3.DatabaseError) -> bool:
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _lock_owner(fd: int) -> int | None:
    """Who holds the lock file, where the system tells (Linux)."""
    try:
        inode = str(os.fstat(fd).st_ino)
        with open("/proc/locks") as file:
            for line in file:
                fields = line.split()
                if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
                    return int(fields[4])
    except (OSError, ValueError, IndexError):
        pass
    return None


# -- forks -------------------------------------------------------------------------------------------------------

_engines: WeakSet[SQLiteEngine] = WeakSet()
_abandoned: list[sqlite3.Connection] = []
_forking = threading.local()
"""The engines that a fork of this thread has stopped."""


def _before_fork() -> None:
    _forking.engines = [engine for engine in list(_engines) if engine._before_fork()]


def _after_fork_in_parent() -> None:
    for engine in _forking.__dict__.pop("engines", ()):
        engine._mutex.release()


def _after_fork_in_child() -> None:
    _forking.__dict__.clear()
    for engine in list(_engines):
        engine._after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)

if TYPE_CHECKING:
    _complete: type[Engine] = SQLiteEngine
