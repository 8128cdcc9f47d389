"""psycopg 3, binary, prepared: each process knows beforehand which rows are its own. A batch is one statement: it removes the rows of the batch before, stores their results,
marks the next rows as taken and returns them. As in Celeriac, that commit does not wait for the disk (losing it only repeats work), and that of a call does."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from . import BATCH, Stored, round_trips_ms, seconds_of
from . import call_us as timed

BATCH_STATEMENT = """
WITH removed AS (DELETE FROM raw_message WHERE id BETWEEN %(first)s::bigint AND %(last)s::bigint RETURNING id),
stored AS (INSERT INTO raw_result SELECT lpad(id::text, 32, '0'), %(record)s::bytea FROM removed)
UPDATE raw_message SET taken = 1 WHERE id BETWEEN %(next)s::bigint AND %(end)s::bigint RETURNING id, body
"""

CALL_STATEMENT = "WITH told AS (SELECT pg_notify('raw_work', '')) INSERT INTO raw_trip (body) SELECT %b FROM told"
ANSWER_STATEMENT = """
WITH removed AS (DELETE FROM raw_trip RETURNING id), stored AS (INSERT INTO raw_answer SELECT %(record)s::bytea FROM removed)
SELECT pg_notify('raw_answers', 'done') FROM removed
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


def round_trips(url: str, stored: Stored, count: int) -> dict[str, float]:
    """A row, committed to the disk, and a notification; a process removes it, stores the answer and notifies the caller, in one commit that does not wait for the disk."""
    connection, news = _connect(url), _connect(url)
    connection.execute("CREATE TABLE raw_trip (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body bytea NOT NULL)")
    connection.execute("CREATE TABLE raw_answer (record bytea NOT NULL)")
    news.execute("LISTEN raw_answers")
    body = os.urandom(stored.message)

    def call() -> None:
        connection.execute(CALL_STATEMENT, (body,), prepare=True)
        if not list(news.notifies(timeout=60.0, stop_after=1)):
            raise RuntimeError("no answer came")

    numbers = round_trips_ms(partial(_serve, url, os.urandom(stored.record)), call, count)
    news.close()
    connection.close()
    return numbers


def _serve(url: str, record: bytes) -> None:
    connection, news = _connect(url), _connect(url)
    connection.execute("SET synchronous_commit = off")
    news.execute("LISTEN raw_work")
    while True:
        connection.execute(ANSWER_STATEMENT, {"record": record}, prepare=True)
        list(news.notifies(timeout=60.0, stop_after=1))


def _connect(url: str) -> Any:
    import psycopg

    return psycopg.connect(url, autocommit=True)
