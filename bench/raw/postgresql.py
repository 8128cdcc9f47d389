"""psycopg 3, binary, prepared: each process knows beforehand which rows are its own. A batch is one statement: it removes the rows of the batch before, stores their results,
marks the next rows as taken and returns them. As in Celeriac, that commit does not wait for the disk (losing it only repeats work), and that of a call does."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from . import BATCH, Stored, seconds_of
from . import call_us as timed

BATCH_STATEMENT = """
WITH removed AS (DELETE FROM raw_message WHERE id BETWEEN %(first)s::bigint AND %(last)s::bigint RETURNING id),
stored AS (INSERT INTO raw_result SELECT lpad(id::text, 32, '0'), %(record)s::bytea FROM removed)
UPDATE raw_message SET taken = 1 WHERE id BETWEEN %(next)s::bigint AND %(end)s::bigint RETURNING id, body
"""


def call_us(url: str, stored: Stored, count: int) -> float:
    """One INSERT, committed to the disk."""
    connection = _connect(url)
    connection.execute("CREATE TABLE raw_call (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body bytea NOT NULL)")
    body = os.urandom(stored.message)
    microseconds = timed(lambda: connection.execute("INSERT INTO raw_call (body) VALUES (%b)", (body,), prepare=True), count)
    connection.close()
    return microseconds


def drain_rate(url: str, stored: Stored, count: int, processes: int = 2) -> float:
    connection = _connect(url)
    connection.execute("CREATE TABLE raw_message (id bigint PRIMARY KEY, taken int NOT NULL DEFAULT 0, body bytea NOT NULL)")
    connection.execute("CREATE TABLE raw_result (id text PRIMARY KEY, record bytea NOT NULL)")
    connection.execute(
        "INSERT INTO raw_message (id, body) SELECT n, %b FROM generate_series(1, %s::bigint) n", (os.urandom(stored.message), count)
    )
    connection.execute("VACUUM ANALYZE raw_message")
    share = count // processes
    record = os.urandom(stored.record)
    seconds = seconds_of([partial(_drain, url, range(1 + number * share, 1 + (number + 1) * share), record) for number in range(processes)])
    answered = connection.execute("SELECT count(*) FROM raw_result").fetchone()[0]
    connection.close()
    if answered != share * processes:
        raise RuntimeError(f"raw psycopg answered {answered} of {share * processes} rows")
    return share * processes / seconds


def _drain(url: str, rows: range, record: bytes) -> None:
    connection = _connect(url)
    connection.execute("SET synchronous_commit = off")
    cursor = connection.cursor(binary=True)
    before = range(0)
    for first in [*range(rows.start, rows.stop, BATCH), rows.stop]:
        batch = range(first, min(first + BATCH, rows.stop))
        numbers = {
            "first": before[0] if before else 0,
            "last": before[-1] if before else -1,
            "next": batch[0] if batch else 0,
            "end": batch[-1] if batch else -1,
            "record": record,
        }
        taken = cursor.execute(BATCH_STATEMENT, numbers, prepare=True).fetchall()
        assert len(taken) == len(batch)
        before = batch
    connection.close()


def _connect(url: str) -> Any:
    import psycopg

    return psycopg.connect(url, autocommit=True)
