"""What joins cost in an SQLite file, and how old files come by them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from celeriac.contracts.mailbox import Node
from celeriac.core.message import Arrival, Delivery, Holder, Join, Message, Record, Settlement, Verdict
from celeriac.engines import sqlite_joins, sqlite_schema
from celeriac.engines.sqlite import SQLiteEngine
from celeriac.engines.sqlite_schema import MIGRATIONS
from celeriac.testing import FakeClock

HOLDER = Holder("node", 1)


def message(id: str, **fields: Any) -> Message:
    return Message(id=id, task="shop.tasks.charge", body=Raw(b"[[], {}, {}]"), **fields)


def chord(size: int, id: str = "j", **fields: Any) -> tuple[list[Message], Join]:
    members = [message(f"{id}{index}", join=id, join_index=index) for index in range(size)]
    return members, Join(id=id, size=size, then=[message(f"{id}-body", queue="bodies", joined=id, **fields)])


def end(delivery: Delivery) -> Settlement:
    assert delivery.message is not None
    arrival = Arrival(join=delivery.message.join or "", index=delivery.message.join_index, task_id=delivery.id)
    record = Record(task_id=delivery.id, status="SUCCESS")
    return Settlement(
        id=delivery.id,
        verdict=Verdict.DONE,
        lease=delivery.lease,
        receipt=delivery.receipt,
        record=record,
        arrival=arrival if delivery.message.join else None,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "celeriac.db"


@pytest.fixture
def open_(path: Path) -> Iterator[Callable[..., SQLiteEngine]]:
    engines: list[SQLiteEngine] = []

    def open_one(**options: Any) -> SQLiteEngine:
        engines.append(SQLiteEngine(f"sqlite:///{path}", **options))
        return engines[-1]

    yield open_one
    for engine in engines:
        engine.close()


@pytest.fixture
def engine(open_: Callable[..., SQLiteEngine]) -> SQLiteEngine:
    engine = open_()
    engine.register(Node(id=HOLDER.node, name="worker@host"), lease_seconds=60)
    return engine


def statements_of(engine: SQLiteEngine, work: Callable[[], object]) -> list[str]:
    """Those that SQLite ran, each time it ran them."""
    seen: list[str] = []
    assert engine._db is not None
    engine._db.set_trace_callback(seen.append)
    work()
    engine._db.set_trace_callback(None)
    return seen


def steps_of(engine: SQLiteEngine, work: Callable[[], object]) -> int:
    """How many thousands of SQLite's own instructions it took: what grows when rows are looked through."""
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    assert engine._db is not None
    engine._db.set_progress_handler(count, 100)
    work()
    engine._db.set_progress_handler(None, 0)
    return steps


def taken(engine: SQLiteEngine, limit: int) -> Sequence[Delivery]:
    deliveries = engine.reserve(["celery"], limit=limit, holder=HOLDER)
    assert len(deliveries) == limit
    return deliveries


class TestCost:
    def test_a_batch_of_arrivals_costs_a_statement_each_and_three_more(self, engine: SQLiteEngine) -> None:
        members, join = chord(100)
        engine.publish([*members, *(message(f"plain{number}") for number in range(50))], joins=[join])
        first, _, last = taken(engine, 50), taken(engine, 50), taken(engine, 50)
        arriving = statements_of(engine, lambda: engine.settle([end(one) for one in first]))
        plain = statements_of(engine, lambda: engine.settle([end(one) for one in last]))
        assert len(arriving) == len(plain) + 50 + 2, (arriving[-5:], plain[-5:])

    def test_messages_without_a_join_cost_nothing_more(self, engine: SQLiteEngine) -> None:
        engine.publish([message("a")])
        delivery = taken(engine, 1)[0]
        for seen in (
            statements_of(engine, lambda: engine.publish([message("b")])),
            statements_of(engine, lambda: engine.exchange([end(delivery)], ["celery"], limit=1, holder=HOLDER)),
        ):
            assert not [one for one in seen if "joins" in one or "arrivals" in one], seen

    def test_an_arrival_at_a_large_join_costs_what_one_at_a_small_one_costs(self, engine: SQLiteEngine) -> None:
        costs = []
        for size in (100, 20_000):
            engine.arrive([], opens=[Join(id=f"j{size}", size=size)])
            engine.arrive([Arrival(join=f"j{size}", index=index, task_id="t") for index in range(size - 60)])
            batch = [Arrival(join=f"j{size}", index=size - 60 + index, task_id="t") for index in range(50)]
            costs.append(steps_of(engine, partial(engine.arrive, batch)))
        assert 0 < costs[1] <= costs[0] + 2, costs

    def test_the_body_is_written_once(self, engine: SQLiteEngine) -> None:
        """However large it is, and however many arrive before it."""
        members, join = chord(3, argsrepr="x" * 1_000_000)
        engine.publish(members, joins=[join])
        first, last = taken(engine, 2), taken(engine, 1)
        seen = statements_of(engine, lambda: engine.settle([end(one) for one in first]))
        assert seen
        assert not [one for one in seen if "bodies" in one], seen
        engine.settle([end(one) for one in last])
        assert engine.depth(["bodies"])["bodies"].ready == 1

    def test_a_large_join_is_forgotten_a_little_at_a_time(
        self, open_: Callable[..., SQLiteEngine], engine: SQLiteEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_joins, "SWEEP_LIMIT", 10)
        monkeypatch.setattr(sqlite_joins, "PRUNE_LIMIT", 20)
        engine.arrive([Arrival(join="j", index=index, task_id="t") for index in range(55)], opens=[Join(id="j", size=55)])
        engine.leave(["j"])
        assert (engine.joins(["j"]), engine.arrivals("j")) == ({}, [])
        assert engine._query("SELECT count(*) FROM arrivals") == [(45,)]
        engine.arrive([Arrival(join="j", index=0, task_id="new")], opens=[Join(id="j", size=2)])
        for left in (25, 5, 0):
            engine.prune(limit=1)
            assert engine._query("SELECT count(*) FROM arrivals") == [(left + 1,)]
        assert [one.task_id for one in engine.arrivals("j")] == ["new"]
        engine.leave(["j"])
        for table in ("joins", "arrivals", "bodies"):
            assert engine._query(f"SELECT count(*) FROM {table}") == [(0,)]

    def test_pruned_ones_leave_nothing_behind(self, open_: Callable[..., SQLiteEngine]) -> None:
        clock = FakeClock()
        engine = open_(clock=clock, result_expires=100)
        for number in range(5):
            engine.arrive([Arrival(join=f"j{number}", index=0, task_id="t")], opens=[Join(id=f"j{number}", size=2, then=[message("m")])])
        clock.jump_wall(-1000)  # what was touched in a time to come was touched now
        engine.prune()
        assert len(engine.joins([f"j{number}" for number in range(5)])) == 5
        clock.advance(101)
        engine.prune(limit=2)
        assert len(engine.joins([f"j{number}" for number in range(5)])) == 3
        engine.prune()
        for table in ("joins", "arrivals", "bodies"):
            assert engine._query(f"SELECT count(*) FROM {table}") == [(0,)]


class TestOlderFiles:
    def make_old(self, path: Path) -> None:
        """As version 1 made it, with a message, a record and a paused queue in it."""
        db = sqlite3.connect(path, isolation_level=None)
        for statement in ("PRAGMA page_size = 2048", "PRAGMA journal_mode = WAL", *MIGRATIONS[0]):
            db.execute(statement)
        db.execute(f"PRAGMA application_id = {sqlite_schema.APPLICATION_ID}")
        db.execute("PRAGMA user_version = 1")
        body = b'{"id":"old","task":"t","body":[[],{},{}]}'
        db.execute(sqlite_schema.PUBLISH, ("old", "celery", 0, sqlite_schema.READY, 1.0, None, "t", 0, body))
        db.execute(sqlite_schema.STORE, ("done", "SUCCESS", 1.0, b'{"task_id":"done","status":"SUCCESS"}'))
        db.execute("INSERT INTO paused (queue, by) VALUES ('slow', 'anna')")
        db.close()

    def test_they_get_joins_and_keep_what_they_hold(self, path: Path, open_: Callable[..., SQLiteEngine]) -> None:
        self.make_old(path)
        engine = open_()
        engine.register(Node(id=HOLDER.node, name="worker@host"), lease_seconds=60)
        assert engine.fetch(["done"])["done"].status == "SUCCESS"
        assert engine.queues() == ["celery", "slow"]
        members, join = chord(2)
        engine.publish(members, joins=[join])
        deliveries = taken(engine, 3)
        assert deliveries[0].id == "old"
        engine.settle([end(one) for one in deliveries])
        assert [one.id for one in engine.peek("bodies")] == ["j-body"]
        assert engine._query("PRAGMA user_version") == [(len(MIGRATIONS),)]

    def test_a_fresh_file_and_a_migrated_one_are_alike(self, path: Path, tmp_path: Path, open_: Callable[..., SQLiteEngine]) -> None:
        self.make_old(path)
        fresh = SQLiteEngine(f"sqlite:///{tmp_path}/fresh.db")
        schema = "SELECT type, name, sql FROM sqlite_master ORDER BY name"
        assert fresh._query(schema) == open_()._query(schema)
        fresh.close()

    def test_who_has_it_open_goes_on(self, path: Path, open_: Callable[..., SQLiteEngine], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_schema, "MIGRATIONS", MIGRATIONS[:1])
        old = open_()
        old.publish([message("a")])
        monkeypatch.undo()
        new = open_()
        new.publish([message("b")], joins=[Join(id="j", size=1)])
        old.publish([message("c")])
        assert [one.id for one in old.peek("celery")] == ["a", "b", "c"]


HOT = {
    "FIND": ("j",),
    "ENLARGE": (1, 1, 1.0, "j"),
    "COUNT": (1, 1, None, 1.0, 1),
    "SEAL": (1, None, 1.0, 1),
    "MESSAGES": (1,),
    "LEAVE": (1, 1.0, "j"),
    "STATE": ("j",),
    "ARRIVALS": ("j",),
    "PRUNE_FUTURE": (1.0, 1.0),
    "PRUNE": (1.0, 5),
    "FORGOTTEN": (),
    "SWEEP": (1, 1, 5),
}


@pytest.mark.parametrize("name", HOT)
def test_no_statement_about_joins_reads_or_sorts_a_whole_table(engine: SQLiteEngine, name: str) -> None:
    plan = [row[3] for row in engine._query(f"EXPLAIN QUERY PLAN {getattr(sqlite_joins, name)}", HOT[name])]
    assert not [step for step in plan if "SCAN" in step or "TEMP B-TREE" in step], plan
