"""How those who wait on PostgreSQL are woken: one connection of each process listens, and hands out what it is told. Without it they look, again and again."""

from __future__ import annotations

import os
import select
import threading
import time
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..core.errors import EngineUnavailable
from .network import readable
from .postgresql_wire import Ambiguous, Array, Connection, Database, float_of, longs, rows_of, texts

if TYPE_CHECKING:
    from psycopg import pq

LOOKS_SECONDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""After so long a waiter looks for himself. The first looks find what was committed just as he lay down; the last is the net."""
IDLE_PIPES = 4
"""How many pipes a process keeps for the next who wait."""
WIDE_SUBSCRIPTION = 50
"""A wait for more results than this is told about every result."""

SIT = "SELECT key, seat FROM {s}.sit($1)"
ATTEND = "SELECT {s}.attend_queues($1)"
LEAVE = "SELECT {s}.leave_queues($1)"
LEAVE_RESULTS = "SELECT count(pg_advisory_unlock_shared(k)) FROM unnest($1::bigint[]) k"
ATTEND_RESULTS = "SELECT key, version, record FROM {s}.attend_results($1, $2)"
RESULTS_VERSION = "SELECT coalesce(sum(r.version), 0)::text FROM {s}.results r WHERE r.task_id = ANY ($1)"
OUTLOOK = "SELECT ready, due_in FROM {s}.outlook($1, $2)"
# First the seat, then the queue: who finds that somebody waits for the queue finds the seat.
ATTEND_AND_LOOK = (
    "WITH a AS MATERIALIZED (SELECT count(pg_advisory_lock(s)) + count(pg_advisory_lock_shared(k)) AS n FROM unnest($3::bigint[], $4::bigint[]) u (k, s))"
    " SELECT o.ready, o.due_in FROM a CROSS JOIN LATERAL {s}.outlook($1, $2::float8 + 0 * a.n) o"
)
LOOK = " UNION ALL SELECT 2, NULL, NULL, 0, 0, 0, o.due_in, o.ready, 0, NULL FROM {s}.outlook"
STEER = "; ".join(f"SET {name} = off" for name in ("enable_seqscan", "enable_bitmapscan", "enable_hashjoin", "enable_mergejoin", "jit")) + (
    "; SET plan_cache_mode = force_generic_plan; SET synchronous_commit = off; SET celeriac.steered = on"
)
"""For who waits: what is prepared is planned once, and by indexes, whatever the statistics say; and nothing waits for the disk, as in every `exchange`."""


def listening(database: Database, deadline: float) -> Connection:
    """A connection of the caller's own, on which he is told what he attends to."""
    connection = database.connect(deadline)
    try:
        connection.script(STEER, deadline)
        ((pid,),) = rows_of(connection.run("SELECT pg_backend_pid()", (), deadline))
        connection.run(f"LISTEN celeriac_{pid}", (), deadline)
        connection.run("LISTEN celeriac_all", (), deadline)
    except BaseException:
        connection.close()
        raise
    return connection


class Listener:
    """One connection of each process, on which all who wait are told. No thread belongs to it: each who waits watches its socket, and whoever finds something there
    hands it to those whom it concerns, each of whom has a pipe."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.RLock()
        self._connection: Connection | None = None
        self._places: dict[int, list[Place]] = {}
        self.generation = 0
        self.process = os.getpid()
        self._pipes: list[tuple[int, int]] = []
        """Clean ones, that nobody uses."""

    def attending(self, names: Sequence[str], results: Array | None = None) -> Place:
        """`with` it, one waits for these queues; or, with the ids of results, for what these names stand for, and knows what they looked like when that began."""
        return Place(self, names, results)

    def rows(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        """Of a statement that may be repeated. A connection that died while nobody used it is replaced without a word."""
        with self._lock:
            found = self._ask(sql, parameters)
            self._hand_out()
            return found

    def join(self, place: Place) -> None:
        with self._lock:
            if place.results is None:
                rows = self._ask(ATTEND, (texts(place.names),))
            else:
                rows = self._ask(ATTEND_RESULTS, (texts(place.names), place.results))
                _, place.version, place.record = rows[0]
            place.keys = [row[0] for row in rows]
            for key in place.keys:
                self._places.setdefault(key, []).append(place)
            place.generation = self.generation
            place.socket = self._connection.socket if self._connection is not None else -1
            self._hand_out()  # what came with the answer is for this place too

    def leave(self, place: Place) -> None:
        with self._lock:
            for key in place.keys:
                places = self._places.get(key)
                if places is not None:
                    with suppress(ValueError):
                        places.remove(place)
                    if not places:
                        del self._places[key]
            if self._connection is not None and place.generation == self.generation and place.keys:
                if place.results is None:
                    leave, parameters = LEAVE, (texts(place.names),)
                else:
                    leave, parameters = LEAVE_RESULTS, (longs(place.keys),)
                try:
                    self._connection.send(self._database.statement(leave), parameters)
                except EngineUnavailable:
                    self._lose()

    def pipe(self) -> tuple[int, int]:
        try:
            return self._pipes.pop()
        except IndexError:
            return _pipe()

    def give_pipe(self, pipe: tuple[int, int], *, clean: bool) -> None:
        if clean and self.process == os.getpid() and len(self._pipes) < IDLE_PIPES:
            self._pipes.append(pipe)
        else:
            _close(pipe)

    def read(self) -> None:
        """Takes what has come, and hands it out."""
        with self._lock:
            self._hand_out()

    def close(self) -> None:
        with self._lock:
            self._lose()
            self._close_pipes()

    def abandon(self) -> None:
        if self._connection is not None:
            self._connection.abandon()
        self._close_pipes()

    def _close_pipes(self) -> None:
        while self._pipes:
            _close(self._pipes.pop())

    def _ask(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        self._hand_out()
        while True:
            was_there = self._connection is not None
            try:
                connection = self._connected()
                return rows_of(connection.run(self._database.statement(sql), parameters, time.monotonic() + self._database.timeout_seconds))
            except BaseException as error:
                self._lose()
                if not (was_there and isinstance(error, Ambiguous) and not error.silent):
                    raise

    def _connected(self) -> Connection:
        if self._connection is None:
            deadline = time.monotonic() + self._database.timeout_seconds
            self._connection = listening(self._database, deadline)
        return self._connection

    def _hand_out(self) -> None:
        if self._connection is None:
            return
        try:
            told = self._connection.notifications()
        except EngineUnavailable:
            self._lose()
            return
        for text in told:
            key, count, *record = text.split(" ", 2)
            places = self._places.get(int(key), [])
            for place in places[: int(count)]:
                if record:
                    place.record = a2b_base64(record[0])
                # The next token is for somebody else, as long as there is somebody else.
                places.remove(place)
                places.append(place)
                place.ring()

    def _lose(self) -> None:
        """The connection is gone. All who waited look for themselves, and begin anew."""
        connection, self._connection = self._connection, None
        self.generation += 1
        places, self._places = self._places, {}
        for listed in places.values():
            for place in listed:
                place.ring()
        if connection is not None:
            connection.close()


class Place:
    """Of one who waits, at the listener."""

    def __init__(self, listener: Listener, names: Sequence[str], results: Array | None) -> None:
        self._listener = listener
        self.names = names
        self.results = results
        self.version = ""
        self.record: bytes | None = None
        """Of the first result: as it was at the beginning, then as the news told it."""
        self._pipe = listener.pipe()
        self._thread = threading.get_ident()
        self._is_watched = False
        self._is_rung = False
        self._is_written = False
        self.keys: list[int] = []
        self.generation = -1
        self.socket = -1

    def __enter__(self) -> Place:
        try:
            self._listener.join(self)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join_again(self) -> None:
        self._listener.join(self)

    def is_lost(self) -> bool:
        return self.generation != self._listener.generation

    def watched(self) -> int:
        """What can be read when it is rung for: for who waits elsewhere."""
        self._is_watched = True
        return self._pipe[0]

    def forget_record(self) -> None:
        self.record = None

    def ring(self) -> None:
        self._is_rung = True
        if self._is_watched or threading.get_ident() != self._thread:
            self._is_written = True
            with suppress(OSError):
                os.write(self._pipe[1], b"!")

    def rest(self, until: float) -> bool:
        """Waits until it is rung for. True: it was, or the connection is gone, so that one has to look."""
        self._thread = threading.get_ident()
        while True:
            if self.taken():
                return True
            if self.is_lost():
                return True
            left = until - time.monotonic()
            ready = readable((self.socket, self._pipe[0]), max(0.0, left))
            if self._pipe[0] in ready:
                self._drain()
            if self.socket in ready:
                self._listener.read()
            if not ready and left <= 0:
                return False

    def taken(self) -> bool:
        """It was rung for since this was asked last."""
        if self._is_written:
            self._drain()
        rung, self._is_rung = self._is_rung, False
        return rung

    def close(self) -> None:
        pipe, self._pipe = self._pipe, _NO_PIPE
        if pipe is _NO_PIPE:
            return
        if self._listener.process == os.getpid():
            self._listener.leave(self)
        self._listener.give_pipe(pipe, clean=not (self._is_written or self._is_watched))

    def abandon(self) -> None:
        self.keys = []
        self.close()

    def _drain(self) -> None:
        self._is_written = False
        with suppress(OSError):
            os.read(self._pipe[0], 4096)


class Waiter:
    """A worker that has nothing to do, and its own connection, on which it waits and is told, and asks for what it is told of. So the trip that reserves ends its attendance, and
    the one that settles begins it anew, before others can see what it settles: who publishes then finds somebody who waits."""

    def __init__(self, database: Database, names: Sequence[str]) -> None:
        self.names = names
        self.thread = threading.get_ident()
        self.was_told = False
        """What was taken last is what one who waited has been told of: there may be nothing else to do."""
        self.attends = False
        self.sees_something = False
        self._database = database
        self._connection: Connection | None = None
        self._queues = texts(names)
        self._seats: list[tuple[int, int]] = []
        """What stands for each queue among the locks, and for our seat there."""
        self._statements: dict[tuple[str, bool | None], str] = {}
        self._pauses = iter(LOOKS_SECONDS)
        self._look_at = 0.0

    def wait(self, now: float | None, deadline: float) -> bool:
        """As `Broker.wait`. `now`: for engines with a clock of their own."""
        while True:
            try:
                return self._wait(now, deadline)
            except BaseException as error:
                # Also of what was refused: the session may have taken a lock before, or have lost its seat with the whole schema.
                self.close()
                if not isinstance(error, Ambiguous) or error.silent or time.monotonic() >= deadline:
                    raise
                # It died while nobody used it; the losses that are counted tell that all exchanges are in doubt.

    def run(self, call: str, parameters: Sequence[Any], count: int, now: float | None, *, attends: bool) -> pq.abc.PGresult:
        """Runs this call of a function, whose parameter of the number `count` is a count, or null. Attends from then on, or does no longer; when that begins, `sees_something` tells whether
        there may be something to take (and a row of the kind 2 comes last). What does not succeed ends the attendance."""
        try:
            connection = self._connected()
            begins = attends and not self.attends
            if attends is not self.attends:
                # First the seat, then the queue: who finds that somebody waits for the queue finds the seat.
                keys = [key for queue, seat in self._seats for key in ((seat, queue) if attends else (queue, seat))]
                parameters = (*parameters, *keys, self._queues, now) if begins else (*parameters, *keys)
            sql = self._statement(call, count, len(parameters), locks=None if attends is self.attends else attends)
            result = self._database.run_on(connection, sql, parameters)
        except BaseException:
            self.close()
            raise
        if attends is not self.attends:
            self.attends, self.was_told = attends, not attends
            self._look_soon()
        if begins:
            due_in, ready = (result.get_value(result.ntuples - 1, column) for column in (6, 7))
            self.sees_something = self._may_be_ready(ready == b"\1", None if due_in is None else float_of(due_in))
        return result

    def leave(self) -> None:
        """We have something to do."""
        self.was_told = False
        if self.attends and self._connection is not None:
            self.attends = False
            try:
                self._connection.send(self._database.statement(LEAVE), (self._queues,))
            except EngineUnavailable:
                self._database.losses += 1
                self.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self.attends = self.was_told = False
        if connection is not None:
            connection.close()

    def abandon(self) -> None:
        if self._connection is not None:
            self._connection.abandon()

    def _statement(self, call: str, count: int, parameters: int, *, locks: bool | None) -> str:
        """For `run`. The locks are a part of the count, so that they are taken first, or given back."""
        known = self._statements.get((call, locks))
        if known is not None:
            return known
        sql = "SELECT * FROM " + call
        if locks is not None:
            last = parameters - 2 if locks else parameters
            places = range(last - 2 * len(self._seats) + 1, last + 1)
            names = ("lock", "lock_shared") if locks else ("unlock_shared", "unlock")
            locked = "".join(
                f" + 0 * (pg_advisory_{names[number % 2]}(${place}::bigint) IS NULL)::int" for number, place in enumerate(places)
            )
            sql = sql.replace(f"${count},", f"${count}::int{locked},")
            if locks:
                sql += f"{LOOK}(${parameters - 1}::text[], ${parameters}::float8) o"
        return self._statements.setdefault((call, locks), sql)

    def _wait(self, now: float | None, deadline: float) -> bool:
        connection = self._connected()
        self.was_told = False
        if not self.attends:
            rows = rows_of(self._database.run_on(connection, ATTEND_AND_LOOK, (self._queues, now, *self._locks())))
            self.attends = True
            self._look_soon()
            if self._may_be_ready(*rows[0]):
                return True
        while True:
            if self._is_told(connection, min(self._look_at, deadline)):
                return True
            if time.monotonic() >= deadline:
                return False
            self._look_at = time.monotonic() + next(self._pauses, LOOKS_SECONDS[-1])
            rows = rows_of(self._database.run_on(self._connected(), OUTLOOK, (self._queues, now)))
            if self._may_be_ready(*rows[0]):
                return True

    def _is_told(self, connection: Connection, until: float) -> bool:
        keys = [queue for queue, _ in self._seats]
        while True:
            try:
                told = connection.notifications()
            except EngineUnavailable:
                self._database.losses += 1
                raise
            if any(int(text.partition(" ")[0]) in keys for text in told):
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            readable((connection.socket,), left)

    def _may_be_ready(self, ready: bool, due_in: float | None) -> bool:
        if due_in is not None:
            self._look_at = min(self._look_at, time.monotonic() + max(0.0, due_in))
        return ready or (due_in is not None and due_in <= 0)

    def _locks(self) -> tuple[Array, Array]:
        return longs([queue for queue, _ in self._seats]), longs([seat for _, seat in self._seats])

    def _look_soon(self) -> None:
        self._pauses = iter(LOOKS_SECONDS)
        self._look_at = time.monotonic() + next(self._pauses)

    def _connected(self) -> Connection:
        if self._connection is None:
            deadline = time.monotonic() + self._database.timeout_seconds
            connection = listening(self._database, deadline)
            try:
                seats = connection.run(self._database.statement(SIT), (self._queues,), deadline)
            except BaseException:
                connection.close()
                raise
            self._seats = [(queue, seat) for queue, seat in rows_of(seats)]
            self._connection = connection
        return self._connection


class Subscription:
    """A place at the listener, and what the results looked like when it began."""

    def __init__(self, listener: Listener, ids: Sequence[str], hear: Callable[[bytes | None], object]) -> None:
        """`hear` gets the record of the first id, as it is when this begins, and as the news tells it."""
        self._listener = listener
        self._hear = hear
        self._ids = texts(ids)
        names = ["r", *(f"r{id}" for id in dict.fromkeys(ids))] if len(ids) <= WIDE_SUBSCRIPTION else ["r", "r*"]
        self._watch: Any = None
        self._place: Place | None = self._listener.attending(names, self._ids)
        self._begin(self._place.__enter__())

    def _begin(self, place: Place) -> None:
        self._version = place.version
        self._hear(place.record)
        self._pauses = iter(LOOKS_SECONDS)
        self._look_at = time.monotonic() + next(self._pauses)

    def fileno(self) -> int:
        """Of a set of descriptors: the pipe of our place, and the socket of the connection that listens, lest nobody else reads it."""
        assert self._place is not None, "the subscription is closed"
        if self._watch is None:
            # Either can itself be waited for; which there is depends on the system.
            self._watch = select.epoll() if hasattr(select, "epoll") else vars(select)["kqueue"]()
            self._add(self._place.watched())
            self._add(self._place.socket)
        return int(self._watch.fileno())

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + timeout_seconds
        place = self._place
        if place is None:
            return False
        while True:
            if place.is_lost():
                place.taken()
                place.join_again()
                if self._watch is not None:
                    self._add(place.socket)
                self._begin(place)
                return True
            place.forget_record()
            if place.rest(min(deadline, self._look_at)):
                if place.is_lost():
                    continue
                if place.record is not None:
                    self._hear(place.record)
                return True
            now = time.monotonic()
            if now >= self._look_at:
                self._look_at = now + next(self._pauses, LOOKS_SECONDS[-1])
                before = self._version
                ((self._version,),) = self._listener.rows(RESULTS_VERSION, (self._ids,))
                if self._version != before:
                    return True
            if now >= deadline:
                return False

    def close(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            place.close()
        if getattr(self, "_watch", None) is not None:
            self._watch.close()
            self._watch = None

    def __del__(self) -> None:
        if getattr(self, "_place", None) is not None:
            self.close()

    def _add(self, descriptor: int) -> None:
        with suppress(OSError):
            if hasattr(select, "epoll"):
                self._watch.register(descriptor, select.EPOLLIN)
            else:
                bsd = vars(select)
                self._watch.control([bsd["kevent"](descriptor, bsd["KQ_FILTER_READ"], bsd["KQ_EV_ADD"])], 0)


class PollingSubscription:
    """Where nobody listens: looks, again and again."""

    def __init__(self, database: Database, ids: Sequence[str], *, poll_seconds: float) -> None:
        self._database = database
        self._poll_seconds = poll_seconds
        self._ids = texts(ids)
        self._lock = threading.Lock()
        self._version = self._look()
        self._closed = threading.Event()
        self._pipe: tuple[int, int] | None = None
        self._looker: threading.Thread | None = None

    def fileno(self) -> int:
        """Of a pipe that a thread writes to: an event loop cannot look by itself."""
        if self._pipe is None:
            self._pipe = _pipe()
            self._looker = threading.Thread(target=self._look_for_others, name="celeriac-look", daemon=True)
            self._looker.start()
        return self._pipe[0]

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + timeout_seconds
        while True:
            with self._lock:
                before, self._version = self._version, self._look()
                if self._pipe is not None:
                    with suppress(BlockingIOError):
                        os.read(self._pipe[0], 4096)
            if self._version != before:
                return True
            left = deadline - time.monotonic()
            if left <= 0 or self._closed.is_set():
                return False
            time.sleep(min(left, self._poll_seconds))

    def close(self) -> None:
        self._closed.set()
        looker, self._looker = self._looker, None
        if looker is not None:
            looker.join()
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            _close(pipe)

    def _look_for_others(self) -> None:
        assert self._pipe is not None
        while not self._closed.wait(self._poll_seconds):
            with self._lock:
                try:
                    news = self._look() != self._version
                except EngineUnavailable:
                    news = True  # for who asks then to see
                if news:
                    with suppress(BlockingIOError):
                        os.write(self._pipe[1], b"!")

    def _look(self) -> list[tuple[Any, ...]]:
        return self._database.rows(RESULTS_VERSION, (self._ids,))


_NO_PIPE = (-1, -1)


def _pipe() -> tuple[int, int]:
    if hasattr(os, "pipe2"):
        return os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    pipe = os.pipe()
    for descriptor in pipe:
        os.set_blocking(descriptor, False)
    return pipe


def _close(pipe: tuple[int, int]) -> None:
    for descriptor in pipe:
        os.close(descriptor)
