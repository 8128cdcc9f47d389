"""How PostgreSQL's tables fare under a queue: `python -m bench.bloat [--tasks 1000000] [--long-transaction]`.

Two producers and two consumers go on until so many messages have been published, reserved and settled with a result; every few seconds a line says how fast that is, how
many dead rows there are, and how large the tables and their indexes are. With --long-transaction another session holds a snapshot from the second tenth to the seventh, as
a report or a forgotten psql would, so that nothing that died since can be swept out. Consumers prune as workers do, and that is all that sweeps, beside autovacuum.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from msgspec import Raw

from celeriac.contracts.mailbox import Node
from celeriac.core.message import Holder, Message, Record, Settlement, Verdict
from celeriac.engines.postgresql import PostgreSQLEngine

from .servers import postgresql

BATCH = 16
AT_ONCE = 100
"""Messages that a producer publishes in one transaction: one by one it would wait for the disk, and the consumers for it."""
MOST_WAITING = 20_000
PRUNE_SECONDS = 30.0
SAMPLE_SECONDS = 5.0
BODY = Raw(b'[["' + b"x" * 100 + b'"], {}, {}]')
SIZES = """
    SELECT (SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE relname = 'messages')::bigint, pg_relation_size('celeriac.messages'), pg_indexes_size('celeriac.messages'),
        (SELECT sum(n_dead_tup) FROM pg_stat_user_tables WHERE relname = 'results')::bigint
"""


def produce(url: str, name: str, tasks: int, done: Any) -> None:
    engine = PostgreSQLEngine(url)
    for first in range(0, tasks, AT_ONCE):
        while first - done.value / 2 > MOST_WAITING / 2:
            time.sleep(0.01)
        engine.publish(
            [
                Message(id=f"{name}-{number:08d}-aaaa-bbbb-cccc-0123456789ab", task="shop.tasks.charge", body=BODY)
                for number in range(first, first + AT_ONCE)
            ]
        )
    engine.close()


def consume(url: str, name: str, tasks: int, done: Any) -> None:
    engine = PostgreSQLEngine(url, result_expires=60)
    engine.register(Node(id=name, name=name), lease_seconds=86400)
    holder = Holder(name, 0)
    settlements: list[Settlement] = []
    pruned_at = time.monotonic()
    while done.value < tasks:
        refused, deliveries = engine.exchange(settlements, ["celery"], limit=BATCH, holder=holder)
        assert not refused
        with done.get_lock():
            done.value += len(settlements)
        settlements = [
            Settlement(id=one.id, verdict=Verdict.DONE, lease=one.lease, record=Record(task_id=one.id, status="SUCCESS", result=Raw(b"4")))
            for one in deliveries
        ]
        if not deliveries:
            engine.wait(["celery"], 0.1)
        if time.monotonic() > pruned_at + PRUNE_SECONDS:
            pruned_at = time.monotonic()
            engine.prune(1000)
    engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--long-transaction", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, postgresql(Path(directory)) as server, ExitStack() as stack:
        import psycopg

        server.empty()
        url = server.url()
        PostgreSQLEngine(url).queues()
        done: Any = multiprocessing.Value("q", 0)
        children = [
            multiprocessing.Process(target=produce, args=(url, f"p{number}", options.tasks // 2, done), daemon=True) for number in range(2)
        ]
        children += [
            multiprocessing.Process(target=consume, args=(url, f"w{number}", options.tasks, done), daemon=True) for number in range(2)
        ]
        watcher = stack.enter_context(psycopg.connect(url, autocommit=True))
        for child in children:
            child.start()
        print(f"{'done':>9} {'per s':>7} {'dead messages':>14} {'table MB':>9} {'indexes MB':>11} {'dead results':>13}  held back")
        holding: Any = None
        before, at = 0, time.monotonic()
        while any(child.is_alive() for child in children):
            time.sleep(SAMPLE_SECONDS)
            if options.long_transaction and holding is None and 0.2 < done.value / options.tasks < 0.7:
                holding = psycopg.connect(url)
                holding.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                holding.execute("SELECT count(*) FROM celeriac.nodes")
            if holding is not None and done.value / options.tasks > 0.7:
                holding.close()
            dead, table, indexes, dead_results = watcher.execute(SIZES).fetchone()  # type: ignore[misc]
            now, count = time.monotonic(), done.value
            held = "yes" if holding is not None and not holding.closed else ""
            print(
                f"{count:>9} {(count - before) / (now - at):>7.0f} {dead:>14} {table / 1e6:>9.1f} {indexes / 1e6:>11.1f} {dead_results:>13}  {held}",
                flush=True,
            )
            before, at = count, now


if __name__ == "__main__":
    main()
