"""What durable steps cost in an SQLite file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from celeriac.contracts.mailbox import Node
from celeriac.core.message import Delivery, Holder, Message, Pause, Settlement, Verdict
from celeriac.engines import sqlite_steps
from celeriac.engines.sqlite import SQLiteEngine
from celeriac.testing import FakeClock

HOLDER = Holder("node", 1)
NULL = Raw(b"null")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def engine(tmp_path: Path, clock: FakeClock) -> Iterator[SQLiteEngine]:
    engine = SQLiteEngine(f"sqlite:///{tmp_path}/celeriac.db", clock=clock, result_expires=100)
    engine.register(Node(id=HOLDER.node, name="worker@host"), lease_seconds=60)
    yield engine
    engine.close()


def taken(engine: SQLiteEngine, *ids: str) -> list[Delivery]:
    engine.publish([Message(id=id, task="shop.tasks.charge", body=Raw(b"[[], {}, {}]")) for id in ids])
    deliveries = engine.reserve(["celery"], limit=100, holder=HOLDER)
    assert [delivery.id for delivery in deliveries] == list(ids)
    return deliveries


def done(delivery: Delivery, **fields: Any) -> Settlement:
    return Settlement(id=delivery.id, verdict=fields.pop("verdict", Verdict.DONE), lease=delivery.lease, receipt=delivery.receipt, **fields)


def test_tasks_without_steps_cost_nothing_more(engine: SQLiteEngine) -> None:
    seen: list[str] = []
    (delivery,) = taken(engine, "a")
    assert engine._db is not None
    engine._db.set_trace_callback(seen.append)
    engine.exchange([done(delivery)], ["celery"], limit=1, holder=HOLDER)
    assert seen
    assert not [statement for statement in seen if "steps" in statement or "events" in statement], seen


def test_those_of_tasks_that_are_held_are_looked_at_once_in_a_while(engine: SQLiteEngine, clock: FakeClock) -> None:
    """However many sleep for months, each `prune` looks at no more than its limit, and gets at the others all the same."""
    deliveries = taken(engine, *(f"m{number}" for number in range(10)))
    engine.settle([done(delivery, verdict=Verdict.RETRY, pause=Pause(step="s", seconds=1e6)) for delivery in deliveries])
    engine.remember("gone", "s", NULL)
    clock.advance(101)
    for _ in range(2):
        engine.prune(limit=5)
        assert engine.recall("gone")
    engine.prune(limit=5)
    assert not engine.recall("gone")
    assert all(engine.recall(f"m{number}") for number in range(10))
    assert engine._query("SELECT count(*) FROM steps") == [(10,)]


def test_those_from_a_time_to_come_are_pruned_in_the_end(engine: SQLiteEngine, clock: FakeClock) -> None:
    engine.remember("gone", "s", NULL)
    engine.occur("e", NULL)
    clock.jump_wall(-10_000)
    engine.prune()
    assert engine.recall("gone")
    clock.advance(101)
    engine.prune()
    assert not engine.recall("gone")
    assert engine._query("SELECT count(*) FROM events") == [(0,)]


HOT = {
    "REMEMBER": ("t", "s", 0, b"null", 1.0),
    "WAIT": ("t", "s", "e", 1.0, 1.0),
    "STEP": ("t", "s"),
    "STEPS": ("t",),
    "FORGET": ("t",),
    "VALUE": ("e",),
    "AWAITING": ("e",),
    "COME": (b"null", 1.0, 1),
    "MAKE_READY": (1.0, "t", 1.0),
    "QUEUE": ("t",),
    "OLD": (1.0, 5),
    "PRUNE_EVENTS": (1.0, 5),
}


@pytest.mark.parametrize("name", HOT)
def test_no_statement_about_steps_reads_or_sorts_a_whole_table(engine: SQLiteEngine, name: str) -> None:
    plan = [row[3] for row in engine._query(f"EXPLAIN QUERY PLAN {getattr(sqlite_steps, name)}", HOT[name])]
    # The steps of one task are few.
    wrong = [step for step in plan if "SCAN" in step or ("TEMP B-TREE" in step and name not in ("STEPS", "AWAITING"))]
    assert not wrong, plan
