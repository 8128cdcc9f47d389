"""The engine of one PostgreSQL database (13 or newer), in a schema of its own.

    storage    tables in the schema `celeriac` (option `schema`): a row for each message that waits or is leased, one for each record, dead letter, node and letter
    a crash    of a client loses nothing that a verb had answered. Verbs commit durably, as `synchronous_commit` of the server has it, but for `reserve` and `exchange`, which a busy
               worker lives by: a crash of the server may undo the last moments of them (3 × `wal_writer_delay`), and what was settled then runs again, with its result, its
               follow-ups and its arrival undone as well
    order      priority, then how long it has waited, then the order of publishing
    atomic     every verb is one transaction, and the busy ones are one trip: a function of the schema does the rest. Workers pass each other by (`SKIP LOCKED`)
    waiting    who waits for messages holds an advisory lock of his own, that of his seat, and shares one with all who wait for the queue, on the one connection that listens. Who publishes
               tries that of the queue: when he gets it nobody waits, and nothing is sent; else he goes round the seats and notifies as many of those who wait as there are messages.
               Who waits for a result shares a lock on it, and `pg_locks` names him. So NOTIFY, which makes commits stand in line, is used only when somebody sleeps. Looks at growing
               distances, up to a second, are the net. A worker that has nothing to do reserves and settles on the connection on which it waits: the trip that reserves ends the wait, the
               one that settles begins it, and looks for more. A NOTIFY wakes every session that listens in the database, so nobody listens for what can wait: letters are looked for every
               `poll_seconds`. With `listen=false` (PgBouncer in transaction mode) there are only looks
    clocks     the server's, for everything: setting it forward ends leases. The times of a clock that was injected go before it
    cannot     keep ids and queue names that take more than some 2,700 bytes when compressed, since they are indexed

Beside it: `postgresql_schema.py` (tables and functions), `postgresql_wire.py` (connections, errors, the binary format), `postgresql_listen.py` (who waits).
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl, quote, urlencode
from weakref import WeakSet

import msgspec
from msgspec import Raw

from ..contracts.broker import Capabilities
from ..contracts.inspect import Depth, Waiting
from ..contracts.joins import JoinState
from ..contracts.mailbox import Letter, Node
from ..contracts.steps import Step
from ..core.clock import SYSTEM_CLOCK, Clock
from ..core.errors import EngineUnavailable, ImproperlyConfigured, NodeLost
from ..core.message import Arrival, Delivery, Holder, Join, Lease, Message, Record, Revocation, Settlement, Verdict
from ..core.states import READY_STATES
from .postgresql_listen import LOOKS_SECONDS, OUTLOOK, Listener, PollingSubscription, Subscription, Waiter
from .postgresql_schema import ensure
from .postgresql_wire import (
    Ambiguous,
    Array,
    Database,
    Json,
    Refused,
    Server,
    Transaction,
    bodies,
    booleans,
    clean,
    float_of,
    floats,
    int_of,
    ints,
    smalls,
    text_of,
    texts,
)

if TYPE_CHECKING:
    from psycopg import pq

    from ..contracts.engine import Engine
    from ..contracts.results import Subscription as SubscriptionContract
    from ..contracts.schedules import Schedules

# -- settings ----------------------------------------------------------------------------------------------------

LETTER_SECONDS = 60.0
"""How long a letter waits for its reader."""
PURGE_LIMIT = 5000
"""How many rows one transaction of `purge` removes."""
DOUBT_SECONDS = 600.0
"""How long an engine remembers what it published without hearing an answer."""
TOMB_SECONDS = 900.0
"""How long it can be told that a message without a result has been there: longer than any doubt."""
WIDE_LOOK_SECONDS = 0.25
"""How often a busy worker looks for what was given back by others (see `take`)."""
QUICK_LOOK_SECONDS = 0.0005
"""A look at everything that takes no longer passes by few that were taken before: an idle worker then takes so …"""
SLOW_LOOKS = 4
"""… unless so many in a row took longer."""
HEARD_SECONDS = 0.05
"""How old what a thread was told of a result may be when it looks."""
LATE_COMMIT_SECONDS = 0.05
"""A message that was published earlier may become visible so much later than its neighbours."""
VACUUM_ROWS = 20_000
"""So many dead rows are swept out by whoever prunes, without waiting for the server's autovacuum."""

OPTIONS: dict[str, tuple[Callable[[Any], Any], Any]] = {}
"""Name → how to read it, default. Filled in below, by the helpers that read."""

# -- SQL -----------------------------------------------------------------------------------------------------------

READY, SCHEDULED = 0, 1
_STATES = ("ready", "scheduled", "leased", "dead")
_VERDICTS = {Verdict.DONE: 0, Verdict.RETRY: 1, Verdict.RELEASED: 2, Verdict.CRASHED: 3, Verdict.DEAD: 4}

PUBLISH = "SELECT {s}.publish($1, $2, $3, $4, $5, $6, $7, $8, $9)"
PUBLISH_JOINING = "SELECT {s}.publish_joining($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
PUBLISH_IN = "SELECT {s}.publish_joining(%s::text[], %s::text[], %s::smallint[], %s::float8[], %s::float8[], %s::bytea[], %s::float8, NULL, NULL, %s::jsonb)"
EXCHANGE_DONE = "{s}.exchange_done(" + ", ".join(f"${number}" for number in range(1, 17)) + ")"
EXCHANGE_EACH = "{s}.exchange_each(" + ", ".join(f"${number}" for number in range(1, 31)) + ")"
TAKE = "{s}.take($1, $2, $3, $4, $5, $6)"
LIMITS = {EXCHANGE_DONE: 13, EXCHANGE_EACH: 27, TAKE: 4}
"""Which of their parameters says how many to take."""
NOBODY = (None, None, None, None, None)
"""Who takes, with which the two that exchange only settle."""
JOIN_UP = "SELECT m FROM {s}.join_up($1, NULL, $2, $3, NULL, $4) m"
JOINS = "SELECT id, size, arrived, failed FROM {s}.joins WHERE id = ANY ($1::text[])"
ARRIVALS = "SELECT arrival FROM {s}.arrivals WHERE join_id = $1 ORDER BY index"
PRUNE_JOINS = """
    WITH gone AS (
        DELETE FROM {s}.joins j WHERE j.id IN (
            SELECT o.id FROM {s}.joins o WHERE o.hour <= floor($1::float8 / 3600)::int AND o.touched < $1::float8 ORDER BY o.hour LIMIT $2::int FOR UPDATE SKIP LOCKED
        ) RETURNING j.id
    ), arrivals AS (DELETE FROM {s}.arrivals a USING gone g WHERE a.join_id = g.id)
    DELETE FROM {s}.thens t USING gone g WHERE t.join_id = g.id
"""
PRUNE_ENDINGS = "DELETE FROM {s}.endings e WHERE NOT EXISTS (SELECT FROM {s}.messages m WHERE m.id = e.id)"
REMEMBER = "SELECT * FROM {s}.remember($1, $2, $3, $4, $5, $6, $7, $8)"
STEPS = "SELECT name, result, failed, event, until FROM {s}.steps WHERE task_id = $1 ORDER BY n"
OCCUR = "SELECT {s}.occur($1, $2, $3)"
PRUNE_FUTURE_STEPS = "UPDATE {s}.steps SET touched = $1::float8 WHERE touched > $1::float8 + 60"
PRUNE_FUTURE_EVENTS = "UPDATE {s}.events SET at = $1::float8 WHERE at > $1::float8 + 60"
# Of tasks of which there is neither message nor dead letter. The others are looked at again when as much time has gone by.
PRUNE_STEPS = """
    WITH old AS (
        SELECT s.n, EXISTS (SELECT FROM {s}.messages m WHERE m.id = s.task_id) OR EXISTS (SELECT FROM {s}.dead d WHERE d.id = s.task_id) AS held
        FROM {s}.steps s WHERE s.touched < $1::float8 ORDER BY s.touched LIMIT $2::int FOR UPDATE SKIP LOCKED
    ), kept AS (UPDATE {s}.steps s SET touched = $3::float8 FROM old WHERE s.n = old.n AND old.held)
    DELETE FROM {s}.steps s USING old WHERE s.n = old.n AND NOT old.held
"""
PRUNE_EVENTS = "DELETE FROM {s}.events WHERE event IN (SELECT e.event FROM {s}.events e WHERE e.at < $1::float8 ORDER BY e.at LIMIT $2::int FOR UPDATE SKIP LOCKED)"
REVOKE = "SELECT {s}.revoke($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
HELD = (
    "SELECT 1, m.id, m.queue, m.token, m.crashes, m.interruptions, m.at,"
    " m.revoked OR EXISTS (SELECT FROM {s}.revokes r WHERE r.id = m.id AND r.until > coalesce($2::float8, {s}.now())), coalesce($2::float8, {s}.now()), m.message, m.process"
    " FROM {s}.messages m WHERE m.state = 2 AND m.node = $1 ORDER BY m.taken"
)
STORE_FENCE = "SELECT 1 FROM {s}.messages m WHERE m.id = $1 AND m.node = $2 AND m.process = $3 AND m.token = $4 FOR SHARE"
KEEP = "SELECT {s}.keep($1, $2, $3, $4, coalesce($5, {s}.now()))"
PRUNE = "DELETE FROM {s}.results WHERE task_id IN (SELECT r.task_id FROM {s}.results r WHERE r.stored < $1::float8 ORDER BY r.stored LIMIT $2::int FOR UPDATE SKIP LOCKED)"
# The clock may have been set back: what claims to come from the future was stored now.
PRUNE_FUTURE = "UPDATE {s}.results SET stored = $1::float8 WHERE task_id IN (SELECT r.task_id FROM {s}.results r WHERE r.stored > $1::float8 + 60 LIMIT $2::int)"

_FIELDS = "{{id}}, {{queue}}, {state}, {due}, {{at}}, {{priority}}::int, {{n}}, {node}, {process}, {{crashes}}, {{interruptions}}, {reason}, {died}, {{message}}"
_COLUMNS = (
    "m.id, m.queue, {state}, {due}, m.at, m.priority, m.n, {node}, {process}, m.crashes, m.interruptions, {reason}, {died}, m.message"
)
WAITING = (
    _COLUMNS.format(state="m.state::int", due="m.due", node="m.node", process="m.process", reason="''::text", died="NULL::float8")
    + " FROM {s}.messages m"
)
DEAD = (
    _COLUMNS.format(state="3", due="NULL::float8", node="NULL::text", process="NULL::int", reason="m.reason", died="m.died")
    + " FROM {s}.dead m"
)
PEEK = {
    # The due ones that nobody promoted yet are few; so they alone are sorted, and the others come as the index has them.
    "ready": (
        f"SELECT * FROM ((SELECT {WAITING} WHERE m.state = 0 AND m.queue = $1 ORDER BY m.priority DESC, m.at, m.n LIMIT $3::int + $4::int)"
        f" UNION ALL (SELECT {WAITING} WHERE m.state = 1 AND m.queue = $1 AND m.due <= $2 ORDER BY m.priority DESC, m.at, m.n LIMIT $3::int + $4::int)) u"
        " ORDER BY u.priority DESC, u.at, u.n LIMIT $3::int OFFSET $4::int"
    ),
    "scheduled": f"SELECT {WAITING} WHERE m.state = 1 AND m.queue = $1 AND m.due > $2 ORDER BY m.due, m.n LIMIT $3::int OFFSET $4::int",
    "leased": f"SELECT {WAITING} WHERE m.state = 2 AND m.queue = $1 AND $2::float8 > 0 ORDER BY m.priority DESC, m.at, m.n LIMIT $3::int OFFSET $4::int",
    "dead": f"SELECT {DEAD} WHERE m.queue = $1 AND $2::float8 > 0 ORDER BY m.n DESC LIMIT $3::int OFFSET $4::int",
}
COUNTS = (
    "SELECT q.name, (SELECT count(*) FROM {s}.messages m WHERE m.state = 0 AND m.queue = q.name),"
    " (SELECT count(*) FROM {s}.messages m WHERE m.state = 1 AND m.queue = q.name AND m.due <= $2),"
    " (SELECT count(*) FROM {s}.messages m WHERE m.state = 1 AND m.queue = q.name AND m.due > $2),"
    " (SELECT count(*) FROM {s}.messages m WHERE m.state = 2 AND m.queue = q.name),"
    " (SELECT count(*) FROM {s}.dead d WHERE d.queue = q.name), (SELECT p.by FROM {s}.paused p WHERE p.queue = q.name)"
    " FROM unnest($1::text[]) WITH ORDINALITY q (name, place) ORDER BY q.place"
)
AHEAD = (
    "SELECT (SELECT count(*) FROM {s}.messages m WHERE m.state = 0 AND m.queue = $1 AND m.priority > $2)"
    " + (SELECT count(*) FROM {s}.messages m WHERE m.state = 0 AND m.queue = $1 AND m.priority = $2 AND (m.at, m.n) < ($3, $4))"
    " + (SELECT count(*) FROM {s}.messages m WHERE m.state = 1 AND m.queue = $1 AND m.due <= $5 AND (-m.priority, m.at, m.n) < (-$2::int, $3, $4))"
)
# Steps from name to name through the index instead of reading all its rows.
QUEUES = """
    WITH RECURSIVE
        ready (queue) AS (
            (SELECT queue FROM {s}.messages WHERE state = 0 ORDER BY queue LIMIT 1)
            UNION ALL SELECT (SELECT m.queue FROM {s}.messages m WHERE m.state = 0 AND m.queue > ready.queue ORDER BY m.queue LIMIT 1) FROM ready WHERE ready.queue IS NOT NULL
        ),
        scheduled (queue) AS (
            (SELECT queue FROM {s}.messages WHERE state = 1 ORDER BY queue LIMIT 1)
            UNION ALL SELECT (SELECT m.queue FROM {s}.messages m WHERE m.state = 1 AND m.queue > scheduled.queue ORDER BY m.queue LIMIT 1)
            FROM scheduled WHERE scheduled.queue IS NOT NULL
        )
    SELECT queue FROM ready WHERE queue IS NOT NULL
    UNION SELECT queue FROM scheduled WHERE queue IS NOT NULL
    UNION SELECT queue FROM {s}.messages WHERE state = 2
    UNION SELECT queue FROM {s}.dead
    UNION SELECT queue FROM {s}.paused
    ORDER BY 1
"""
REPLAY = """
    WITH back AS (
        INSERT INTO {s}.messages (id, queue, priority, state, at, token, message)
        SELECT d.id, d.queue, d.priority, 0, coalesce($2::float8, {s}.now()), d.token, d.message FROM {s}.dead d WHERE d.id = $1
        ON CONFLICT (id) DO NOTHING RETURNING id
    )
    DELETE FROM {s}.dead d USING back WHERE d.id = back.id RETURNING d.id, d.queue
"""

_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(Message).decode
_decode_arrival = msgspec.json.Decoder(Arrival).decode
_decode_record = msgspec.json.Decoder(Record).decode
_decode_letter = msgspec.json.Decoder(Letter).decode
_decode_node = msgspec.json.Decoder(Node).decode


class PostgreSQLEngine:
    """The engine of `postgresql://user:password@host:port/database`; what libpq knows may follow (`?sslmode=verify-full&…`), several hosts too.

    Options, in the URL or in `broker_transport_options`: `schema`, `pool_size` (connections of one process beside the one that listens), `timeout_seconds` (of every
    verb but `publish`, which is told), `listen` and `prepare` (both false behind PgBouncer in transaction mode), `poll_seconds` (how often to look for letters, and without `listen` for everything).
    """

    capabilities = Capabilities(engine="postgresql", schedules=True, steps=True, forgets=True)

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
        base, in_url = _split(url)
        options = _options({**in_url, **transport_options})
        self._schema: str = options["schema"]
        self._timeout_seconds: float = options["timeout_seconds"]
        self._listens: bool = options["listen"]
        self._poll_seconds: float = options["poll_seconds"]
        self._clock = clock
        self._server_clock = clock is SYSTEM_CLOCK
        self._result_expires = result_expires
        self._revokes_expire_seconds = revokes_expire_seconds
        self._doubts: dict[str, float] = {}
        self._looked = ("", 0.0)
        """At which address letters were looked for last, and when."""
        self._floors = _Floors()
        self._losses: int | None = None
        """Of connections, at the last exchange."""
        self._database = Database(
            Server(base),
            self._schema,
            size=options["pool_size"],
            prepares=options["prepare"],
            timeout_seconds=self._timeout_seconds,
            ensure=lambda connection, deadline: ensure(connection, self._schema, deadline),
        )
        self._listener = Listener(self._database)
        self._waiter: Waiter | None = None
        self._heard = threading.local()
        """What a subscription has said a moment ago, which spares who waits for a result a trip: (id, record, until when it counts)."""
        self._schedules: Schedules | None = None
        _engines.add(self)

    @property
    def schedules(self) -> Schedules:
        """Where schedules are kept, in the same schema and the same transactions."""
        if self._schedules is None:
            from .schedules.postgresql import PostgreSQLSchedules

            self._schedules = PostgreSQLSchedules(self)
        return self._schedules

    # -- the life of a message -----------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, joins: Sequence[Join] = (), timeout_seconds: float | None = None) -> None:
        rows = _Rows(messages)
        happening = _joins(opens=joins) if joins else None
        if not messages and happening is None:
            return
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = time.monotonic() + seconds
        ids = rows.ids if happening is None else [*rows.ids, *(join.id for join in joins)]
        doubt = self._doubt(ids) if self._doubts else None
        begin = time.monotonic()
        lock_ms = max(1, int(seconds * 900))
        parameters = (*rows.parameters(), self._now(), lock_ms, doubt)
        try:
            if happening is None:
                self._database.run(PUBLISH, parameters, deadline)
            else:
                self._database.run(PUBLISH_JOINING, (*parameters, happening), deadline)
        except Ambiguous:
            # It was sent, and no answer came. A repeat must not double what was done meanwhile.
            self._remember(ids, begin)
            raise
        except Refused as refusal:
            if not refusal.code.startswith("57"):
                raise
            # It was cut off, perhaps while it waited for a replica, with the message there already.
            self._remember(ids, begin)
            raise Ambiguous(str(refusal), silent=False) from refusal
        if doubt is not None:
            for id in ids:
                self._doubts.pop(id, None)

    def publish_in(self, connection: Any, messages: Sequence[Message], *, joins: Sequence[Join] = ()) -> None:
        """Publishes in a transaction of the caller: the messages come with its commit, or never.

        `connection` is a DB-API connection to the same database, of psycopg, psycopg2 or Django (`django.db.connection`); the caller commits.
        Whoever waits for work is told at the commit. Raises what the connection's driver raises.
        """
        if messages or joins:
            self._database.ensure_schema()
            self._publish_in(connection, messages, joins)

    def _publish_in(self, connection: Any, messages: Sequence[Message], joins: Sequence[Join]) -> None:
        rows = _Rows(messages)
        happening = _joins(opens=joins) or b"{}"
        ids, queues = ([clean(text) for text in column] for column in (rows.ids, rows.queues))
        cursor = connection.cursor()
        try:
            cursor.execute(
                PUBLISH_IN.replace("{s}", self._schema),
                [ids, queues, rows.priorities, rows.delays, rows.etas, rows.bodies, self._now(), happening.decode()],
            )
        finally:
            cursor.close()

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder, wait_seconds: float = 0.0) -> list[Delivery]:
        waiter = self._waiter_for(queues) if wait_seconds > 0.0 else None
        if waiter is None:
            if wait_seconds > 0.0 and not self.wait(queues, wait_seconds):
                return []
            return self.exchange((), queues, limit=limit, holder=holder)[1]
        deadline = time.monotonic() + wait_seconds
        while waiter.wait(self._now(), deadline):
            deliveries = self._take((), tuple(dict.fromkeys(queues)), limit, holder, waiter)[1]
            if deliveries:
                return deliveries
        return []

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        if not settlements:
            return []
        return self._exchange(settlements, NOBODY, None)[0]

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        waiter = self._waiter if self._waiter is not None and self._waiter.thread == threading.get_ident() else None
        names = tuple(dict.fromkeys(queues))
        alone = waiter is not None and waiter.was_told and waiter.names == names
        refused, deliveries = self._take(settlements, names, limit, holder, waiter if alone else None)
        if deliveries and waiter is not None:
            waiter.leave()
        return refused, deliveries

    def _take(
        self, settlements: Sequence[Settlement], names: tuple[str, ...], limit: int, holder: Holder, waiter: Waiter | None
    ) -> tuple[list[str], list[Delivery]]:
        floors = None if waiter is not None and self._floors.are_needless else self._floors.of(names)
        taker = (holder.node, holder.process, texts(names), limit, floors)
        begin = time.monotonic()
        is_settled = False
        refused: list[str] = []
        try:
            if waiter is None:
                refused, deliveries = self._exchange(settlements, taker, holder)
            else:
                # Whoever waits for the result is told at the end of the first trip; there is seldom more to do.
                if settlements:
                    refused, is_settled = self._exchange(settlements, NOBODY, None, waiter)[0], True
                    if not waiter.sees_something:
                        self._doubt_after_a_loss()
                        return refused, []
                begin = time.monotonic()
                result = waiter.run(TAKE, (*taker, self._now()), LIMITS[TAKE], self._now(), attends=bool(settlements))
                deliveries = [_delivery(result, row, holder) for row in range(result.ntuples)]
        except Refused as refusal:
            if refusal.code != "CLN01":
                raise
            if is_settled:
                return refused, []  # who asks next is told that the node is lost
            raise NodeLost(holder.node) from None
        self._floors.learn(names, deliveries, None if floors is not None else time.monotonic() - begin)
        self._doubt_after_a_loss()
        return refused, deliveries

    def _doubt_after_a_loss(self) -> None:
        """Exchanges do not wait for the server's disk: if it has crashed, it may think again that a message is leased which was settled. So who uses them has to ask what
        the server thinks he holds, and is told as by an answer that was lost.

        Raises: EngineUnavailable: a connection was lost since the last exchange.
        """
        before, self._losses = self._losses, self._database.losses
        if before not in (None, self._losses):
            raise EngineUnavailable(f"A connection to {self._database.server} was lost, and the last exchange with it is in doubt.")

    def _waiter_for(self, queues: Sequence[str]) -> Waiter | None:
        """Of the one thread that waits for work by reserving. None: nobody listens here, or it is another thread."""
        waiter, names = self._waiter, tuple(dict.fromkeys(queues))
        if not self._listens or (waiter is not None and waiter.thread != threading.get_ident()):
            return None
        if waiter is None or waiter.names != names:
            if waiter is not None:
                waiter.close()
            self._waiter = waiter = Waiter(self._database, names)
        return waiter

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        if self._waiter is not None and self._waiter.thread == threading.get_ident():
            # When a connection was lost, this one is as good as lost; it must not tell later of what is asked for now.
            end = self._waiter.leave if self._losses in (None, self._database.losses) else self._waiter.close
            end()
        if process is not None:
            self._database.run("SELECT pg_advisory_xact_lock({s}.key('h' || $1::int || ' ' || $2::text))", (process, node))
        losses = self._database.losses
        result = self._database.run(HELD, (node, self._now()))
        self._losses = losses
        holders: dict[int, Holder] = {}
        deliveries = []
        for row in range(result.ntuples):
            number = int_of(result.get_value(row, 10) or b"")
            if process in (None, number):
                deliveries.append(_delivery(result, row, holders.setdefault(number, Holder(node, number))))
        return deliveries

    def lost(self, node: str, process: int) -> list[str]:
        return []

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        if not revocations:
            return {}
        records = [one.record for one in revocations]
        letters = [
            _encode(Letter(method="terminate", arguments={"task_id": one.id, "signal": one.signal})) if one.terminate else None
            for one in revocations
        ]
        arriving = _arriving([(owner, one.arrival) for owner, one in enumerate(revocations, 1) if one.arrival is not None])
        parameters = (
            texts([one.id for one in revocations]),
            *_optional_records(records),
            Json(_encode({"arrivals": arriving})) if arriving else None,
            bodies(letters),
            self._monotonic(),
            self._revokes_expire_seconds,
            self._now(),
        )
        was = self._database.rows(REVOKE, parameters)
        return {one.id: answer for one, (answer,) in zip(revocations, was, strict=True)}

    # -- nodes and their leases ----------------------------------------------------------------------------------

    def register(self, node: Node, *, lease_seconds: float) -> None:
        self._database.run(
            "INSERT INTO {s}.nodes (id, until, node) VALUES ($1, coalesce($2::float8, {s}.now()) + $3::float8, $4)"
            " ON CONFLICT (id) DO UPDATE SET until = excluded.until, node = excluded.node",
            (node.id, self._monotonic(), lease_seconds, _encode(node)),
        )

    def heartbeat(self, node: str, *, lease_seconds: float) -> bool:
        sql = "UPDATE {s}.nodes SET until = coalesce($2::float8, {s}.now()) + $3::float8 WHERE id = $1 RETURNING 1"
        return self._database.run(sql, (node, self._monotonic(), lease_seconds)).ntuples == 1

    def unregister(self, node: str) -> None:
        self._floors.forget()
        self._database.run("SELECT {s}.give_back($1, false, $2)", (node, self._now()))

    def reclaim(self, nodes: Sequence[str] = ()) -> list[str]:
        self._floors.forget()
        gone = self._database.rows(
            "SELECT n.id FROM {s}.nodes n WHERE n.until <= coalesce($1::float8, {s}.now())"
            " UNION SELECT DISTINCT m.node FROM {s}.messages m WHERE m.state = 2 AND NOT EXISTS (SELECT FROM {s}.nodes n WHERE n.id = m.node)",
            (self._monotonic(),),
        )
        if not nodes and not gone:
            return []
        ids: list[str] = []
        named = set(nodes)
        for node in dict.fromkeys([*nodes, *(id for (id,) in gone)]):
            # Looked at again: it may have been renewed meanwhile.
            sql = (
                "SELECT {s}.give_back($1, true, $2) WHERE $3::boolean"
                " OR NOT EXISTS (SELECT FROM {s}.nodes n WHERE n.id = $1 AND n.until > coalesce($4::float8, {s}.now()))"
            )
            for (found,) in self._database.rows(sql, (node, self._now(), node in named, self._monotonic())):
                ids += found
        return ids

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        # First the lock is taken, then the tables are looked at: what was published earlier is seen, who publishes later finds the lock. The looks that soon follow find
        # what was on its way in between.
        deadline = time.monotonic() + timeout_seconds
        names = texts(dict.fromkeys(queues))
        if timeout_seconds <= 0 or not self._listens:
            return self._wait_looking(names, deadline)
        listener = self._listener
        with listener.attending(list(dict.fromkeys(queues))) as place:
            pauses = iter(LOOKS_SECONDS)
            while True:
                ((ready, due_in),) = listener.rows(OUTLOOK, (names, self._now()))
                if ready or (due_in is not None and due_in <= 0):
                    return True
                pause = next(pauses, LOOKS_SECONDS[-1])
                look_at = time.monotonic() + (pause if due_in is None else min(pause, due_in))
                if place.rest(min(look_at, deadline)):
                    return True
                if time.monotonic() >= deadline:
                    return False

    def close(self) -> None:
        self._listener.close()
        waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.close()
        self._database.close()

    # -- results -------------------------------------------------------------------------------------------------

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        if not records:
            return []
        self._heard.__dict__.clear()
        # One statement takes each task once; of several records of one task the last that counts stays.
        batches: list[dict[str, Record]] = [{}]
        for record in records:
            if record.task_id in batches[-1]:
                batches.append({})
            batches[-1][record.task_id] = record
        prepared = [(list(batch), _records(list(batch.values()))) for batch in batches]
        refused: list[str] = []
        if lease is None and len(prepared) == 1:
            ids, parameters = prepared[0]
            ((kept,),) = self._database.rows(KEEP, (*parameters, self._now()))
            return _without(ids, kept)
        with self._database.transaction() as run:
            if lease is not None:
                run("SET LOCAL synchronous_commit = off")
            for ids, parameters in prepared:
                if lease is not None and not run(STORE_FENCE, ids[0], lease.holder.node, lease.holder.process, lease.token):
                    refused += ids
                    continue
                ((kept,),) = run(KEEP, *parameters, self._now())
                refused += _without(ids, kept)
        return refused

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        if not ids:
            return {}
        if len(ids) == 1:
            heard = self._heard.__dict__.pop("of", None)
            if heard is not None and heard[0] == ids[0] and time.monotonic() < heard[2]:
                return {} if heard[1] is None else {ids[0]: _decode_record(heard[1])}
            result = self._database.run("SELECT record FROM {s}.results WHERE task_id = $1", (ids[0],))
        else:
            result = self._database.run("SELECT record FROM {s}.results WHERE task_id = ANY ($1::text[])", (texts(ids),))
        records = [_decode_record(result.get_value(row, 0) or b"") for row in range(result.ntuples)]
        return {record.task_id: record for record in records}

    def forget(self, ids: Sequence[str]) -> None:
        self._heard.__dict__.clear()
        self._database.run("DELETE FROM {s}.results WHERE task_id = ANY ($1::text[])", (texts(ids),))

    def subscribe(self, ids: Sequence[str]) -> SubscriptionContract:
        if self._listens and len(ids) == 1:
            return Subscription(
                self._listener, ids, lambda record: self._heard.__dict__.update(of=(ids[0], record, time.monotonic() + HEARD_SECONDS))
            )
        if self._listens:
            return Subscription(self._listener, ids, lambda record: None)
        return PollingSubscription(self._database, ids, poll_seconds=self._poll_seconds)

    def prune(self, limit: int = 1000) -> int:
        """Also sweeps out what else is out of date: memories of revocations, letters, tombs."""
        with self._database.transaction() as run:
            now = self._time(run)
            run("DELETE FROM {s}.revokes WHERE until <= $1", now)
            run("DELETE FROM {s}.tombs WHERE at < $1::float8 - $2::float8 OR at > $1::float8 + 60", now, TOMB_SECONDS)
            self._throw_away_old_letters(run)
            pruned = 0
            run(PRUNE_ENDINGS)
            run(PRUNE_FUTURE_STEPS, now)
            run(PRUNE_FUTURE_EVENTS, now)
            if self._result_expires is not None:
                run(PRUNE_STEPS, now - self._result_expires, limit, now)
                run(PRUNE_EVENTS, now - self._result_expires, limit)
                run(PRUNE_JOINS, now - self._result_expires, limit)
                run(PRUNE_FUTURE, now, limit)
                pruned = run.count(PRUNE, now - self._result_expires, limit)
            ((dead_rows,),) = run("SELECT pg_stat_get_dead_tuples('{s}.messages'::regclass)")
        if dead_rows > VACUUM_ROWS:
            with suppress(EngineUnavailable):  # not our table, or the server is busy with it: it will do so itself
                self._database.run("VACUUM (SKIP_LOCKED, TRUNCATE FALSE) {s}.messages", (), time.monotonic() + 60.0)
        return pruned

    # -- joins -------------------------------------------------------------------------------------------------------

    def seal(self, id: str, size: int) -> None:
        self._database.run(JOIN_UP, (_joins(seals={id: size}), True, 0, self._now()))

    def joins(self, ids: Sequence[str]) -> dict[str, JoinState]:
        rows = self._database.rows(JOINS, (texts(ids),))
        return {id: JoinState(id=id, size=size, arrived=arrived, failed=failed) for id, size, arrived, failed in rows}

    def arrivals(self, id: str) -> list[Arrival]:
        return [_decode_arrival(body) for (body,) in self._database.rows(ARRIVALS, (id,))]

    def arrive(
        self,
        arrivals: Sequence[Arrival],
        *,
        opens: Sequence[Join] = (),
        enlarges: Mapping[str, int] | None = None,
        seals: Mapping[str, int] | None = None,
    ) -> list[Message]:
        happening = _joins(opens=opens, enlarges=enlarges or {}, seals=seals or {}, arrivals=arrivals)
        if happening is None:
            return []
        return [_decode_message(body) for (body,) in self._database.rows(JOIN_UP, (happening, False, 0, self._now()))]

    def leave(self, ids: Sequence[str]) -> None:
        self._database.run(JOIN_UP, (_joins(leaves=ids), True, 0, self._now()))

    # -- steps -------------------------------------------------------------------------------------------------------

    def remember(self, task_id: str, name: str, result: Raw, *, failed: bool = False, lease: Lease | None = None) -> Step | None:
        fence = (None, None, None) if lease is None else (lease.holder.node, lease.holder.process, lease.token)
        rows = self._database.rows(REMEMBER, (task_id, name, bytes(result), failed, *fence, self._now()))
        return _step(rows[0]) if rows else None

    def recall(self, task_id: str) -> dict[str, Step]:
        return {row[0]: _step(row) for row in self._database.rows(STEPS, (task_id,))}

    def occur(self, event: str, value: Raw) -> list[str]:
        return [task_id for (task_id,) in self._database.rows(OCCUR, (event, bytes(value), self._now()))]

    # -- what people see -----------------------------------------------------------------------------------------

    def now(self) -> float:
        now = self._now()
        if now is None:
            ((now,),) = self._database.rows("SELECT {s}.now()")
        return float(now)

    def queues(self) -> list[str]:
        return [queue for (queue,) in self._database.rows(QUEUES)]

    def depth(self, queues: Sequence[str] | None = None) -> dict[str, Depth]:
        names = list(dict.fromkeys(self.queues() if queues is None else queues))
        rows = self._database.rows(COUNTS, (texts(names), self.now()))
        return {
            name: Depth(ready=ready + due, scheduled=scheduled, leased=leased, dead=dead, paused_by=by)
            for name, ready, due, scheduled, leased, dead, by in rows
        }

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        if state not in PEEK:
            raise ValueError(f"There is no state {state!r} of a message; there are {', '.join(PEEK)}.")
        now = self.now()
        return [_waiting(row, now) for row in self._database.rows(PEEK[state], (queue, now, limit, offset))]

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        if not ids:
            return {}
        now = self.now()
        found: dict[str, Waiting] = {}
        for row in self._database.rows(f"SELECT {DEAD} WHERE m.id = ANY ($1::text[])", (texts(ids),)):
            found[row[0]] = _waiting(row, now)
        for row in self._database.rows(f"SELECT {WAITING} WHERE m.id = ANY ($1::text[])", (texts(ids),)):
            waiting = _waiting(row, now)
            if waiting.state == "ready":
                ((ahead,),) = self._database.rows(AHEAD, (row[1], row[5], row[4], row[6], now))
                waiting = msgspec.structs.replace(waiting, ahead=ahead)
            found[row[0]] = waiting
        return found

    def revoked(self) -> list[str]:
        sql = (
            "SELECT r.id FROM {s}.revokes r WHERE r.until > coalesce($1::float8, {s}.now())"
            " AND NOT EXISTS (SELECT FROM {s}.messages m WHERE m.id = r.id AND m.state <> 2)"
            " UNION SELECT m.id FROM {s}.messages m WHERE m.revoked"
        )
        return [id for (id,) in self._database.rows(sql, (self._now(),))]

    def purge(self, queues: Sequence[str]) -> int:
        purged = 0
        for queue in dict.fromkeys(queues):
            for state in (READY, SCHEDULED):
                sql = (
                    "WITH gone AS (DELETE FROM {s}.messages WHERE id IN (SELECT m.id FROM {s}.messages m"
                    f" WHERE m.state = {state} AND m.queue = $1 LIMIT {PURGE_LIMIT} FOR UPDATE SKIP LOCKED) RETURNING 1) SELECT count(*) FROM gone"
                )
                while True:
                    ((removed,),) = self._database.rows(sql, (queue,))
                    purged += removed
                    if removed < PURGE_LIMIT:
                        break
        return purged

    def pause(self, queues: Sequence[str], *, by: str) -> None:
        sql = "INSERT INTO {s}.paused (queue, by) SELECT q, $2 FROM unnest($1::text[]) q ON CONFLICT (queue) DO UPDATE SET by = excluded.by"
        self._database.run(sql, (texts(dict.fromkeys(queues)), by))

    def resume(self, queues: Sequence[str]) -> None:
        self._floors.forget()
        with self._database.transaction() as run:
            run("DELETE FROM {s}.paused WHERE queue = ANY ($1::text[])", texts(queues))
            self._ring(run, queues)

    def replay(self, ids: Sequence[str]) -> list[str]:
        self._floors.forget()
        replayed: list[str] = []
        with self._database.transaction() as run:
            queues = []
            for id in dict.fromkeys(ids):
                for replayed_id, queue in run(REPLAY, id, self._now()):
                    replayed.append(replayed_id)
                    queues.append(queue)
            self._ring(run, queues)
        return replayed

    def discard(self, ids: Sequence[str]) -> list[str]:
        gone = {id for (id,) in self._database.rows("DELETE FROM {s}.dead WHERE id = ANY ($1::text[]) RETURNING id", (texts(ids),))}
        return [id for id in dict.fromkeys(ids) if id in gone]

    # -- letters -------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        sql = "SELECT node, until - coalesce($1::float8, {s}.now()) FROM {s}.nodes"
        return [
            msgspec.structs.replace(_decode_node(body), lease_left_seconds=left)
            for body, left in self._database.rows(sql, (self._monotonic(),))
        ]

    def post(self, addresses: Sequence[str], letter: Letter) -> None:
        body = _encode(letter)
        with self._database.transaction() as run:
            self._post(run, addresses, body)

    def collect(self, address: str, timeout_seconds: float = 0.0) -> list[Letter]:
        """Looks every `poll_seconds`. Letters are few, and a session that listens is woken by the server for whatever is told to anybody."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            looked_for, looked_at = self._looked
            left = looked_at + self._poll_seconds - time.monotonic() if looked_for == address and timeout_seconds > 0 else 0.0
            if left > 0:
                too_late = max(0.0, deadline - time.monotonic())
                time.sleep(min(left, too_late))
                if left > too_late:
                    return []
            letters = self._take_letters(address)
            self._looked = (address, time.monotonic())  # who could not look looks again at once
            if letters or time.monotonic() >= deadline:
                return letters

    # -- steps -----------------------------------------------------------------------------------------------------

    def _exchange(
        self, settlements: Sequence[Settlement], taker: tuple[Any, Any, Any, Any, Any], holder: Holder | None, waiter: Waiter | None = None
    ) -> tuple[list[str], list[Delivery]]:
        plain = _plain(settlements)
        if plain is not None:
            call, columns = EXCHANGE_DONE, plain
        else:
            self._floors.forget()
            call, columns = EXCHANGE_EACH, self._each(settlements)
        parameters = (*columns, *taker, self._now(), _rest(settlements))
        if waiter is None:
            result = self._database.run(f"SELECT * FROM {call}", parameters)
        else:
            result = waiter.run(call, parameters, LIMITS[call], self._now(), attends=True)
        refused: list[str] = []
        deliveries: list[Delivery] = []
        for row in range(result.ntuples):
            kind = int_of(result.get_value(row, 0) or b"")
            if kind == 1:
                assert holder is not None
                deliveries.append(_delivery(result, row, holder))
            elif kind == 0:
                refused.append(text_of(result.get_value(row, 1) or b""))
        return refused, deliveries

    def _each(self, settlements: Sequence[Settlement]) -> tuple[Any, ...]:
        """The arrays of EXCHANGE_EACH: all is encoded before anything is sent."""
        leases = [settlement.lease for settlement in settlements]
        messages = [self._replacement(settlement) for settlement in settlements]
        new = _Rows([message for message in messages if message is not None])
        places = iter(range(len(new.ids)))
        place = [next(places) if message is not None else None for message in messages]

        def spread(values: list[Any]) -> list[Any]:
            return [values[where] if where is not None else None for where in place]

        records = [settlement.record for settlement in settlements]
        owners = [owner for owner, settlement in enumerate(settlements, 1) for _ in settlement.follow_ups]
        follow_ups = _Rows([follow_up for settlement in settlements for follow_up in settlement.follow_ups])
        return (
            texts([settlement.id for settlement in settlements]),
            texts([lease.holder.node if lease else None for lease in leases]),
            ints([lease.holder.process if lease else None for lease in leases]),
            ints([lease.token if lease else None for lease in leases]),
            smalls([_VERDICTS[settlement.verdict] for settlement in settlements]),
            floats([settlement.delay_seconds for settlement in settlements]),
            texts([settlement.reason for settlement in settlements]),
            *_optional_records(records),
            texts(spread(new.queues)),
            smalls(spread(new.priorities)),
            floats(spread(new.delays)),
            floats(spread(new.etas)),
            bodies(spread(new.bodies)),
            ints(owners),
            *follow_ups.parameters(),
        )

    def _replacement(self, settlement: Settlement) -> Message | None:
        if settlement.message is None and settlement.verdict is Verdict.RETRY and settlement.lease is not None:
            for (body,) in self._database.rows("SELECT message FROM {s}.messages WHERE id = $1", (settlement.id,)):
                return _decode_message(body)
        return settlement.message

    def _post(self, run: Transaction, addresses: Sequence[str], body: bytes) -> None:
        self._throw_away_old_letters(run)
        sql = "INSERT INTO {s}.letters (at, address, letter) SELECT coalesce($1::float8, {s}.now()), a, $3 FROM unnest($2::text[]) a"
        run(sql, self._monotonic(), texts(addresses), body)

    def _take_letters(self, address: str) -> list[Letter]:
        rows = self._database.rows(
            "DELETE FROM {s}.letters WHERE address = $1 AND at >= coalesce($2::float8, {s}.now()) - $3::float8 RETURNING n, letter",
            (address, self._monotonic(), LETTER_SECONDS),
        )
        return [_decode_letter(body) for _, body in sorted(rows)]

    def _throw_away_old_letters(self, run: Transaction) -> None:
        """Also those that claim to be of a time to come."""
        sql = (
            "DELETE FROM {s}.letters WHERE n IN (SELECT l.n FROM {s}.letters l"
            " WHERE l.at < coalesce($1::float8, {s}.now()) - $2::float8 OR l.at > coalesce($1::float8, {s}.now()) + $2::float8 FOR UPDATE SKIP LOCKED)"
        )
        run(sql, self._monotonic(), LETTER_SECONDS)

    def _ring(self, run: Transaction, queues: Sequence[str]) -> None:
        if queues:
            run("SELECT {s}.ring(n, 1000) FROM unnest($1::text[]) n", texts(dict.fromkeys(queues)))

    def _wait_looking(self, names: Array, deadline: float) -> bool:
        while True:
            ((ready, due_in),) = self._database.rows(OUTLOOK, (names, self._now()))
            if ready or (due_in is not None and due_in <= 0):
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, self._poll_seconds, due_in if due_in is not None else math.inf))

    # -- time --------------------------------------------------------------------------------------------------------

    def _now(self) -> float | None:
        """None: the server's."""
        return None if self._server_clock else self._clock.time()

    def _monotonic(self) -> float | None:
        return None if self._server_clock else self._clock.monotonic()

    def _time(self, run: Transaction) -> float:
        now = self._now()
        if now is None:
            ((now,),) = run("SELECT {s}.now()")
        return float(now)

    # -- doubt -------------------------------------------------------------------------------------------------------

    def _remember(self, ids: Sequence[str], begin: float) -> None:
        horizon = time.monotonic() - DOUBT_SECONDS
        for id, since in list(self._doubts.items()):
            if since < horizon:
                self._doubts.pop(id, None)
        for id in ids:
            self._doubts.setdefault(id, begin)

    def _doubt(self, ids: Sequence[str]) -> float | None:
        """For how many seconds one of them may have been there already. None: for none of them can that be."""
        oldest = min((self._doubts[id] for id in ids if id in self._doubts), default=None)
        return None if oldest is None else time.monotonic() - oldest + 5.0

    def _after_fork_in_child(self) -> None:
        self._database.abandon()
        self._listener.abandon()
        self._listener = Listener(self._database)
        if self._waiter is not None:
            self._waiter.abandon()
            self._waiter = None


# -- what goes in and out ----


class _Rows:
    """New messages, column by column."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.bodies = [_encode(message) for message in messages]
        self.ids = [message.id for message in messages]
        self.queues = [message.queue for message in messages]
        self.priorities = [message.priority for message in messages]
        self.delays = [message.delay_seconds for message in messages]
        self.etas = [message.eta.timestamp() if message.eta is not None else None for message in messages]

    def parameters(self) -> tuple[Array, ...]:
        return (
            texts(self.ids),
            texts(self.queues),
            smalls(self.priorities),
            floats(self.delays),
            floats(self.etas),
            bodies(self.bodies),
        )


def _rest(settlements: Sequence[Settlement]) -> Json | None:
    """What these settlements bring about beside their messages; their numbers own it. None: nothing."""
    for one in settlements:
        if one.arrival is not None or one.leaves is not None or one.forgets or one.opens or one.enlarges or one.more_records or one.pause:
            break
    else:
        return None
    numbered = list(enumerate(settlements, 1))
    opens = [(owner, join) for owner, one in numbered for join in one.opens]
    parts: dict[str, Any] = {
        "records": [
            {
                "owner": owner,
                "id": clean(record.task_id),
                "status": clean(record.status),
                "ready": record.status in READY_STATES,
                "body": _encode(record),
            }
            for owner, one in numbered
            for record in one.more_records
        ],
        "forgets": [{"owner": owner, "id": clean(one.id)} for owner, one in numbered if one.forgets],
        "pauses": [
            {
                "owner": owner,
                "step": clean(one.pause.step),
                "event": None if one.pause.event is None else clean(one.pause.event),
                "seconds": one.pause.seconds,
            }
            for owner, one in numbered
            if one.pause is not None
        ],
        "opens": _opens(opens),
        "then": _then([join for _, join in opens]),
        "enlarges": [{"owner": owner, "id": clean(id), "more": more} for owner, one in numbered for id, more in one.enlarges.items()],
        "arrivals": _arriving([(owner, one.arrival) for owner, one in numbered if one.arrival is not None]),
        "leaves": [{"owner": owner, "id": clean(one.leaves)} for owner, one in numbered if one.leaves is not None],
    }
    return Json(_encode({name: part for name, part in parts.items() if part}))


def _joins(
    *,
    opens: Sequence[Join] = (),
    enlarges: Mapping[str, int] | None = None,
    seals: Mapping[str, int] | None = None,
    arrivals: Sequence[Arrival] = (),
    leaves: Sequence[str] = (),
) -> Json | None:
    """What happens to joins, for `join_up`. Nobody in particular owns it. None: nothing happens."""
    if not (opens or enlarges or seals or arrivals or leaves):
        return None
    parts: dict[str, Any] = {
        "opens": _opens([(None, join) for join in opens]),
        "then": _then(opens),
        "enlarges": [{"id": clean(id), "more": more} for id, more in (enlarges or {}).items()],
        "seals": [{"id": clean(id), "size": size} for id, size in (seals or {}).items()],
        "arrivals": _arriving([(None, arrival) for arrival in arrivals]),
        "leaves": [{"id": clean(id)} for id in leaves],
    }
    return Json(_encode({name: part for name, part in parts.items() if part}))


def _opens(joins: Sequence[tuple[int | None, Join]]) -> list[dict[str, Any]]:
    return [{"owner": owner, "place": place, "id": clean(join.id), "size": join.size} for place, (owner, join) in enumerate(joins, 1)]


def _then(joins: Sequence[Join]) -> list[dict[str, Any]]:
    return [
        {
            "open": number,
            "place": place,
            "id": clean(message.id),
            "queue": clean(message.queue),
            "priority": message.priority,
            "delay": message.delay_seconds,
            "eta": message.eta.timestamp() if message.eta is not None else None,
            "body": _encode(message),
        }
        for number, join in enumerate(joins, 1)
        for place, message in enumerate(join.then)
    ]


def _arriving(arrivals: Sequence[tuple[int | None, Arrival]]) -> list[dict[str, Any]]:
    return [
        {"owner": owner, "place": place, "join": clean(one.join), "index": one.index, "failed": one.failed, "body": _encode(one)}
        for place, (owner, one) in enumerate(arrivals)
    ]


class _Floors:
    """Below which nothing is ready, by queue and priority, as far as this process knows: what is given back by others it finds a little later."""

    def __init__(self) -> None:
        self._floors: dict[str, list[float]] = {}
        self._wide_at = 0.0
        self._slow_looks = 0

    @property
    def are_needless(self) -> bool:
        """Looks at everything are no slower for what has been taken before. (A single one may be slow for other reasons.)"""
        return self._slow_looks < SLOW_LOOKS

    def of(self, queues: Sequence[str]) -> Array | None:
        """For `take`; None when it is time to look at everything."""
        if time.monotonic() >= self._wide_at:
            return None
        try:
            return floats([floor for queue in queues for floor in self._floors[queue]])
        except KeyError:
            return None

    def learn(self, queues: Sequence[str], deliveries: Sequence[Delivery], seconds: float | None) -> None:
        """From what was taken; `seconds`: for how long everything was looked at."""
        if seconds is not None:
            self._slow_looks = self._slow_looks + 1 if seconds >= QUICK_LOOK_SECONDS else 0
            self._wide_at = time.monotonic() + max(WIDE_LOOK_SECONDS, 20 * seconds)
        if len(self._floors) > 1000:
            self._floors = {}
        for queue in queues:
            self._floors.setdefault(queue, [-math.inf] * 10)
        seen = set()
        for delivery in deliveries:
            message = delivery.message
            if message is not None and 0 <= message.priority <= 9 and (delivery.queue, message.priority) not in seen:
                seen.add((delivery.queue, message.priority))
                self._floors[delivery.queue][message.priority] = delivery.waiting_since - LATE_COMMIT_SECONDS

    def forget(self) -> None:
        self._wide_at = 0.0


def _plain(settlements: Sequence[Settlement]) -> tuple[Any, ...] | None:
    """The parameters of EXCHANGE_DONE, when these are all DONE, of one holder, and nothing follows."""
    if not settlements:
        return _NOTHING_DONE
    lease = settlements[0].lease
    if lease is None:
        return None
    holder = lease.holder
    done = Verdict.DONE
    ids: list[str] = []
    tokens: list[int] = []
    records: list[Record] = []
    silent: list[str] = []
    for settlement in settlements:
        lease, record = settlement.lease, settlement.record
        if settlement.verdict is not done or lease is None or settlement.follow_ups or lease.holder != holder:
            return None
        ids.append(settlement.id)
        tokens.append(lease.token)
        if record is None:
            silent.append(settlement.id)
        elif record.task_id != settlement.id:
            return None
        else:
            records.append(record)
    if len(set(ids)) < len(ids):
        return None
    kept = _records(records) if records else (None, None, None, None)
    return (holder.node, holder.process, texts(ids), ints(tokens), *kept, texts(silent) if silent else None)


_NOTHING_DONE = (None,) * 9


def _records(records: Sequence[Record]) -> tuple[Array, ...]:
    return (
        texts([record.task_id for record in records]),
        texts([record.status for record in records]),
        booleans([record.status in READY_STATES for record in records]),
        bodies([_encode(record) for record in records]),
    )


def _optional_records(records: Sequence[Record | None]) -> tuple[Array, ...]:
    return (
        texts([record.task_id if record else None for record in records]),
        texts([record.status if record else None for record in records]),
        booleans([record.status in READY_STATES if record else None for record in records]),
        bodies([_encode(record) if record else None for record in records]),
    )


def _delivery(result: pq.abc.PGresult, row: int, holder: Holder) -> Delivery:
    value = cast("Callable[[int, int], Any]", result.get_value)
    now = float_of(value(row, 8))
    body = value(row, 9)
    message: Message | None
    try:
        message = _decode_message(body)
        raw, error = b"", ""
        expired = message.expires is not None and now > message.expires.timestamp()
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as trouble:
        message, expired = None, False
        raw, error = body, f"The stored message cannot be decoded: {trouble}"
    return Delivery(
        id=text_of(value(row, 1)),
        queue=text_of(value(row, 2)),
        lease=Lease(holder, int_of(value(row, 3))),
        message=message,
        crashes=int_of(value(row, 4)),
        interruptions=int_of(value(row, 5)),
        waiting_since=float_of(value(row, 6)),
        expired=expired,
        revoked=value(row, 7) == b"\1",
        raw_message=raw,
        error=error,
    )


def _waiting(row: Any, now: float) -> Waiting:
    id, queue, state, due, at, _, _, node, process, crashes, interruptions, reason, died, body = row
    name = _STATES[state]
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
        due_at=None if due == math.inf else due,
        waiting_since=0.0 if name == "scheduled" and at == due else at,
        node=node,
        process=process,
        crashes=crashes,
        interruptions=interruptions,
        reason=reason,
        died_at=died,
    )


def _step(row: Any) -> Step:
    name, result, failed, event, until = row
    return Step(name=name, result=None if result is None else Raw(result), failed=failed, event=event, until=until)


def _without(ids: Sequence[str], kept: Sequence[str] | None) -> list[str]:
    there = set(kept or ())
    return [id for id in ids if id not in there]


def _split(url: str) -> tuple[str, dict[str, str]]:
    """The URL for libpq, and our own options of its query."""
    base, mark, query = url.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    ours = {name: value for name, value in pairs if name in OPTIONS}
    theirs = [(name, value) for name, value in pairs if name not in OPTIONS]
    return (f"{base}?{urlencode(theirs, quote_via=quote)}" if theirs else base), ours


def _options(given: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(given.keys() - OPTIONS.keys())
    if unknown:
        raise ImproperlyConfigured(f"The PostgreSQL engine has no option {', '.join(unknown)}. It has {', '.join(OPTIONS)}.")
    values = {}
    for name, (read, default) in OPTIONS.items():
        try:
            values[name] = read(given[name]) if name in given else default
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(f"The PostgreSQL engine's option {name} is {given[name]!r}: {error}.") from None
    return values


def _identifier(value: Any) -> str:
    text = str(value)
    if not (text.isascii() and text.isidentifier() and text == text.lower() and len(text) <= 63):
        raise ValueError("it must be a name of lower-case letters, digits and underscores, of at most 63 characters")
    return text


def _boolean(value: Any) -> bool:
    if str(value).lower() in ("true", "1", "yes", "on"):
        return True
    if str(value).lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("it must be true or false")


def _positive(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def positive(value: Any) -> Any:
        number = read(value)
        if number <= 0:
            raise ValueError("it must be more than 0")
        return number

    return positive


OPTIONS.update({
    "schema": (_identifier, "celeriac"),
    "pool_size": (_positive(int), 10),
    "timeout_seconds": (_positive(float), 10.0),
    "listen": (_boolean, True),
    "prepare": (_boolean, True),
    "poll_seconds": (_positive(float), 0.1),
})  # fmt: skip

# -- forks -------------------------------------------------------------------------------------------------------------

_engines: WeakSet[PostgreSQLEngine] = WeakSet()


def _after_fork_in_child() -> None:
    for engine in list(_engines):
        engine._after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)

if TYPE_CHECKING:
    _complete: type[Engine] = PostgreSQLEngine
