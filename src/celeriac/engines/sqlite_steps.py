"""Durable steps in an SQLite file: what the engine does with them inside its transactions.

A step is a row, found by task and name; one that waits for an event is found by the event too, through an index that holds no others. A message that waits for an
event alone is scheduled for a day that never comes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from msgspec import Raw

from ..contracts.steps import Step
from ..core.message import Pause

FOREVER = 1e15
"""Due never: seconds since 1970 that no clock reaches."""

SCHEMA = (
    """
    CREATE TABLE steps (
        n INTEGER PRIMARY KEY,
        task_id TEXT NOT NULL,
        name TEXT NOT NULL,
        event TEXT,
        until REAL,
        failed INTEGER NOT NULL DEFAULT 0,
        result BLOB,
        touched REAL NOT NULL,
        UNIQUE (task_id, name)
    )
    """,
    "CREATE INDEX steps_waiting ON steps (event) WHERE event IS NOT NULL AND result IS NULL",
    "CREATE INDEX steps_touched ON steps (touched)",
    "CREATE TABLE events (event TEXT PRIMARY KEY, value BLOB NOT NULL, at REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX events_at ON events (at)",
)

REMEMBER = (
    "INSERT INTO steps (task_id, name, failed, result, touched) VALUES (?, ?, ?, ?, ?) ON CONFLICT (task_id, name)"
    " DO UPDATE SET failed = excluded.failed, result = excluded.result, touched = excluded.touched WHERE steps.result IS NULL"
)
WAIT = "INSERT INTO steps (task_id, name, event, until, touched) VALUES (?, ?, ?, ?, ?) ON CONFLICT (task_id, name) DO UPDATE SET touched = excluded.touched"
STEP = "SELECT name, result, failed, event, until FROM steps WHERE task_id = ? AND name = ?"
STEPS = "SELECT name, result, failed, event, until FROM steps WHERE task_id = ? ORDER BY n"
FORGET = "DELETE FROM steps WHERE task_id = ?"
VALUE = "SELECT value FROM events WHERE event = ?"
OCCUR = "INSERT OR REPLACE INTO events (event, value, at) VALUES (?, ?, ?)"
AWAITING = "SELECT n, task_id, until FROM steps WHERE event = ? AND result IS NULL ORDER BY n"
COME = "UPDATE steps SET result = ?, touched = ? WHERE n = ?"
MAKE_READY = "UPDATE messages SET state = 0, at = ?, due = NULL WHERE id = ? AND state = 1 AND due = ?"
QUEUE = "SELECT queue FROM messages WHERE id = ?"
# The wall clock may have been set back: what claims to come from the future is of now.
PRUNE_FUTURE = ("UPDATE steps SET touched = ? WHERE touched > ?", "UPDATE events SET at = ? WHERE at > ?")
OLD = (
    "SELECT n, EXISTS (SELECT 1 FROM messages WHERE id = task_id) OR EXISTS (SELECT 1 FROM dead WHERE id = task_id)"
    " FROM steps WHERE touched < ? ORDER BY touched LIMIT ?"
)
PRUNE_EVENTS = "DELETE FROM events WHERE event IN (SELECT event FROM events WHERE at < ? LIMIT ?)"

StepRow = tuple[str, "bytes | None", int, "str | None", "float | None"]


def step(row: StepRow) -> Step:
    """Of a row of STEP or STEPS."""
    name, result, failed, event, until = row
    return Step(name=name, result=None if result is None else Raw(result), failed=bool(failed), event=event, until=until)


def remember(db: sqlite3.Connection, task_id: str, name: str, result: Raw, failed: bool, now: float) -> Step:
    db.execute(REMEMBER, (task_id, name, failed, bytes(result), now))
    return step(db.execute(STEP, (task_id, name)).fetchone())


def pause(db: sqlite3.Connection, task_id: str, given: Pause, now: float) -> float | None:
    """The step is a wait from now on, if it was nothing before. Returns until when; None: there is nothing to wait for."""
    db.execute(WAIT, (task_id, given.step, given.event, None if given.seconds is None else now + given.seconds, now))
    known = step(db.execute(STEP, (task_id, given.step)).fetchone())
    if known.result is not None:
        return None
    if known.event is not None:
        occurred = db.execute(VALUE, (known.event,)).fetchone()
        if occurred is not None:
            db.execute(REMEMBER, (task_id, known.name, False, occurred[0], now))
            return None
    until = FOREVER if known.until is None else known.until
    return until if until > now else None


def occur(db: sqlite3.Connection, event: str, value: Raw, now: float) -> tuple[list[str], set[str]]:
    """Returns the tasks that waited for it, and the queues in which messages are ready now."""
    db.execute(OCCUR, (event, bytes(value), now))
    task_ids: list[str] = []
    queues: set[str] = set()
    for n, task_id, until in db.execute(AWAITING, (event,)).fetchall():
        db.execute(COME, (bytes(value), now, n))
        task_ids.append(task_id)
        if db.execute(MAKE_READY, (now, task_id, FOREVER if until is None else until)).rowcount == 1:
            queues.update(queue for (queue,) in db.execute(QUEUE, (task_id,)))
    return task_ids, queues


def forget(db: sqlite3.Connection, task_ids: Iterable[str]) -> None:
    db.executemany(FORGET, [(task_id,) for task_id in task_ids])


def prune(db: sqlite3.Connection, now: float, horizon: float, limit: int) -> None:
    """Those of tasks of which there is neither message nor dead letter. The others are looked at again when as much time has gone by."""
    for statement in PRUNE_FUTURE:
        db.execute(statement, (now, now))
    for n, held in db.execute(OLD, (horizon, limit)).fetchall():
        if held:
            db.execute("UPDATE steps SET touched = ? WHERE n = ?", (now, n))
        else:
            db.execute("DELETE FROM steps WHERE n = ?", (n,))
    db.execute(PRUNE_EVENTS, (horizon, limit))
