"""Joins in an SQLite file: what the engine does with them inside its transactions.

A join is a row that counts; what arrived is a row each, in a table ordered by join and place, so that the results are read as they lie. An arrival costs
one insertion, and all arrivals of a batch at one join cost one update of its row, however many members it has. What is forgotten loses its id at once, and its
arrivals a thousand at a time, so that no transaction is long.

Functions that complete joins return the messages that come then; the engine publishes them in the same transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Raw

from ..contracts.joins import JoinState
from ..core.message import Arrival, Join, Message

OPENED, SEALED = -1, -2
"""What completed a join, when it was no arrival: stands in `completed` in place of the last one's index."""
SWEEP_LIMIT = 1000
"""How many arrivals of a forgotten join one transaction removes, besides those that `prune` removes."""
PRUNE_LIMIT = 10_000
"""How many arrivals of forgotten joins one `prune` removes."""

SCHEMA = (
    """
    CREATE TABLE joins (
        n INTEGER PRIMARY KEY,
        id TEXT UNIQUE,
        size INTEGER,
        enlarged INTEGER NOT NULL DEFAULT 0,
        arrived INTEGER NOT NULL DEFAULT 0,
        failed INTEGER NOT NULL DEFAULT 0,
        completed INTEGER,
        leaving INTEGER NOT NULL,
        touched REAL NOT NULL
    )
    """,
    "CREATE INDEX joins_touched ON joins (touched)",
    # Apart, since the rows of `joins` are written again and again.
    "CREATE TABLE bodies (n INTEGER PRIMARY KEY, messages BLOB NOT NULL)",
    """
    CREATE TABLE arrivals (
        n INTEGER NOT NULL,
        place INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        task_id TEXT NOT NULL,
        result BLOB NOT NULL,
        PRIMARY KEY (n, place)
    ) WITHOUT ROWID
    """,
)
"""A join without an id is forgotten. `completed` is NULL until it is complete; `leaving` counts down from the number of its messages."""

OPEN = "INSERT INTO joins (id, size, completed, leaving, touched) VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
FIND = "SELECT n, size, enlarged, arrived, failed, completed FROM joins WHERE id = ?"
ENLARGE = "UPDATE joins SET size = size + ?, enlarged = enlarged + ?, touched = ? WHERE id = ? AND completed IS NULL"
ARRIVE = "INSERT INTO arrivals (n, place, failed, task_id, result) VALUES (?, ?, ?, ?, ?) ON CONFLICT (n, place) DO NOTHING"
COUNT = "UPDATE joins SET arrived = ?, failed = ?, completed = ?, touched = ? WHERE n = ?"
SEAL = "UPDATE joins SET size = ?, completed = ?, touched = ? WHERE n = ?"
MESSAGES = "SELECT messages FROM bodies WHERE n = ?"
LEAVE = "UPDATE joins SET leaving = leaving - ?, touched = ? WHERE id = ?"
STATE = "SELECT id, size, arrived, failed FROM joins WHERE id = ?"
ARRIVALS = "SELECT place, failed, task_id, result FROM arrivals WHERE n = (SELECT n FROM joins WHERE id = ?) ORDER BY place"
# The wall clock may have been set back: what claims to come from the future was touched now.
PRUNE_FUTURE = "UPDATE joins SET touched = ? WHERE touched > ?"
PRUNE = "UPDATE joins SET id = NULL WHERE n IN (SELECT n FROM joins WHERE touched < ? AND id IS NOT NULL LIMIT ?)"
FORGOTTEN = "SELECT n FROM joins WHERE id IS NULL LIMIT 1"
SWEEP = "DELETE FROM arrivals WHERE n = ? AND place IN (SELECT place FROM arrivals WHERE n = ? LIMIT ?)"

_encode = msgspec.json.Encoder().encode
_decode_messages = msgspec.json.Decoder(list[Message]).decode

JoinRow = tuple[str, "int | None", int, bytes]


def join_row(join: Join) -> JoinRow:
    """A join with everything encoded, as `open_join` wants it."""
    return (join.id, join.size, max(1, len(join.then)), _encode(join.then))


def open_join(db: sqlite3.Connection, row: JoinRow, now: float, *, again: bool = False) -> list[Message]:
    """With `again`, one that was complete as it was opened the first time is told again, as long as it is held."""
    id, size, leaving, messages = row
    complete = size is not None and size <= 0
    opened = db.execute(OPEN, (id, size, OPENED if complete else None, leaving, now))
    if opened.rowcount == 1:
        db.execute("INSERT INTO bodies (n, messages) VALUES (?, ?)", (opened.lastrowid, messages))
        return _decode_messages(messages) if complete else []
    return _told_again(db, id, OPENED) if again else []


def enlarge(db: sqlite3.Connection, id: str, more: int, now: float) -> None:
    db.execute(ENLARGE, (more, more, now, id))


def seal(db: sqlite3.Connection, id: str, size: int, now: float, *, again: bool = False) -> list[Message]:
    found = db.execute(FIND, (id,)).fetchone()
    if found is None:
        return []
    n, known_size, enlarged, arrived, _, completed = found
    if known_size is not None:
        return _told_again(db, id, SEALED) if again and completed is not None else []
    size += enlarged
    completed = SEALED if arrived >= size else None
    db.execute(SEAL, (size, completed, now, n))
    return _messages(db, n) if completed is not None else []


def arrive(db: sqlite3.Connection, arrivals: Iterable[Arrival], now: float) -> list[Message]:
    """All arrivals of one settlement, of any joins."""
    by_join: dict[str, dict[int, Arrival]] = {}
    for arrival in arrivals:
        by_join.setdefault(arrival.join, {}).setdefault(arrival.index, arrival)
    then: list[Message] = []
    for id, given in by_join.items():
        then += _arrive_at(db, id, list(given.values()), now)
    return then


def arrive_again(db: sqlite3.Connection, arrival: Arrival, now: float) -> list[Message]:
    """One arrival that may be a repeated one: if it is the one that completed the join, that is told again."""
    return _arrive_at(db, arrival.join, [arrival], now) or _told_again(db, arrival.join, arrival.index)


def has_arrived(db: sqlite3.Connection, arrival: Arrival) -> bool:
    sql = "SELECT 1 FROM arrivals WHERE n = (SELECT n FROM joins WHERE id = ?) AND place = ?"
    return db.execute(sql, (arrival.join, arrival.index)).fetchone() is not None


def leave(db: sqlite3.Connection, ids: Sequence[str], now: float) -> None:
    for id in dict.fromkeys(ids):
        db.execute(LEAVE, (ids.count(id) if len(ids) > 1 else 1, now, id))
        for (n,) in db.execute("SELECT n FROM joins WHERE id = ? AND leaving <= 0", (id,)).fetchall():
            db.execute("UPDATE joins SET id = NULL WHERE n = ?", (n,))
            _sweep(db, n, SWEEP_LIMIT)


def prune(db: sqlite3.Connection, now: float, horizon: float | None, limit: int) -> None:
    """Forgets those that nobody has touched since `horizon`, and removes what forgotten ones left behind."""
    if horizon is not None:
        db.execute(PRUNE_FUTURE, (now, now))
        db.execute(PRUNE, (horizon, limit))
    room = max(limit, PRUNE_LIMIT)
    while room > 0 and (found := db.execute(FORGOTTEN).fetchone()) is not None:
        room -= 1 + _sweep(db, found[0], room)


def state(row: Sequence[object]) -> JoinState:
    """Of a row of STATE."""
    return msgspec.convert(dict(zip(("id", "size", "arrived", "failed"), row, strict=True)), JoinState)


def arrivals_of(id: str, rows: Iterable[tuple[int, int, str, bytes]]) -> list[Arrival]:
    """Of the rows of ARRIVALS."""
    return [
        Arrival(join=id, index=place, task_id=task_id, failed=bool(failed), result=Raw(result)) for place, failed, task_id, result in rows
    ]


def _arrive_at(db: sqlite3.Connection, id: str, given: list[Arrival], now: float) -> list[Message]:
    found = db.execute(FIND, (id,)).fetchone()
    if found is None:
        return []
    n, size, _, arrived, failed, completed = found
    # Failures apart, since the count of the rows does not say which of them are new.
    new = [_insert(db, n, [arrival for arrival in given if arrival.failed is kind]) for kind in (False, True)]
    if not any(new):
        return []
    arrived, failed = arrived + sum(new), failed + new[True]
    completes = completed is None and size is not None and arrived >= size
    db.execute(COUNT, (arrived, failed, given[-1].index if completes else completed, now, n))
    return _messages(db, n) if completes else []


def _insert(db: sqlite3.Connection, n: int, arrivals: list[Arrival]) -> int:
    if not arrivals:
        return 0
    return db.executemany(ARRIVE, [(n, one.index, one.failed, one.task_id, bytes(one.result)) for one in arrivals]).rowcount


def _messages(db: sqlite3.Connection, n: int) -> list[Message]:
    ((messages,),) = db.execute(MESSAGES, (n,)).fetchall()
    return _decode_messages(messages)


def _told_again(db: sqlite3.Connection, id: str, by: int) -> list[Message]:
    found = db.execute("SELECT n FROM joins WHERE id = ? AND completed = ?", (id, by)).fetchone()
    return _messages(db, found[0]) if found is not None else []


def _sweep(db: sqlite3.Connection, n: int, limit: int) -> int:
    """Removes arrivals of a forgotten join, and with the last of them the join. Its number is free only then."""
    removed = db.execute(SWEEP, (n, n, limit)).rowcount
    if removed < limit:
        db.execute("DELETE FROM bodies WHERE n = ?", (n,))
        db.execute("DELETE FROM joins WHERE n = ?", (n,))
    return removed
