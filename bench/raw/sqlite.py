"""sqlite3: each process knows beforehand which rows are its own. A batch is one transaction: it removes the rows of the batch before, stores their results, marks the next
rows as taken and reads them."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from functools import partial
from pathlib import Path

from . import BATCH, Stored, seconds_of
from . import call_us as timed


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    return connection


def create(path: Path) -> None:
    connection = connect(path)
    connection.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, taken INTEGER NOT NULL DEFAULT 0, body BLOB NOT NULL)")
    connection.execute("CREATE TABLE result (id TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID")
    connection.close()


def call_us(directory: Path, stored: Stored, count: int) -> float:
    """One INSERT in a transaction of its own."""
    path = directory / "raw-insert.db"
    create(path)
    connection = connect(path)
    body = os.urandom(stored.message)
    microseconds = timed(lambda: connection.execute("INSERT INTO message (body) VALUES (?)", (body,)), count)
    connection.close()
    return microseconds


def drain_rate(directory: Path, stored: Stored, count: int, processes: int = 2) -> float:
    path = directory / "raw-drain.db"
    create(path)
    connection = connect(path)
    body = os.urandom(stored.message)
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO message (body) VALUES (?)", ((body,) for _ in range(count)))
    connection.execute("COMMIT")
    connection.close()
    share = count // processes
    record = os.urandom(stored.record)
    seconds = seconds_of(
        [partial(_drain, path, range(1 + number * share, 1 + (number + 1) * share), record) for number in range(processes)]
    )
    connection = connect(path)
    answered = connection.execute("SELECT count(*) FROM result").fetchone()[0]
    connection.close()
    if answered != share * processes:
        raise RuntimeError(f"raw sqlite3 answered {answered} of {share * processes} rows")
    return share * processes / seconds


def _drain(path: Path, rows: range, record: bytes) -> None:
    connection = connect(path)
    execute, executemany = connection.execute, connection.executemany
    # Writers take turns through a lock on a side file: sqlite3's own busy handler sleeps, and would make the limit look lower than it is.
    turn = os.open(str(path) + "-turn", os.O_RDWR | os.O_CREAT, 0o600)
    before: range = range(0)
    for first in [*range(rows.start, rows.stop, BATCH), rows.stop]:
        batch = range(first, min(first + BATCH, rows.stop))
        fcntl.flock(turn, fcntl.LOCK_EX)
        execute("BEGIN IMMEDIATE")
        if before:
            execute("DELETE FROM message WHERE id BETWEEN ? AND ?", (before[0], before[-1]))
            executemany("INSERT INTO result VALUES (?, ?)", [(f"{row:032x}", record) for row in before])
        if batch:
            taken = execute("UPDATE message SET taken = 1 WHERE id BETWEEN ? AND ? RETURNING id, body", (batch[0], batch[-1])).fetchall()
            assert len(taken) == len(batch)
        execute("COMMIT")
        fcntl.flock(turn, fcntl.LOCK_UN)
        before = batch
    connection.close()
