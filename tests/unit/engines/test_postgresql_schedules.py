"""Schedules in PostgreSQL: what people change by SQL, how quickly entries are found, and what beats do that fire the same in other orders."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac.contracts.schedules import Planning
from celeriac.testing.clock import FakeClock
from celeriac.testing.contract.schedules import entry, firing, put, state
from tests.support.postgresql import SessionServer

pytest.importorskip("psycopg")
PostgreSQLEngine = pytest.importorskip("celeriac.engines.postgresql").PostgreSQLEngine
statements = pytest.importorskip("celeriac.engines.schedules.postgresql")

DEADLINE_SECONDS = 20.0


class Home:
    def __init__(self, url: str) -> None:
        self.clock = FakeClock()
        self.url = url
        self.schema = f"celeriac_{uuid.uuid4().hex}"
        self.engine = PostgreSQLEngine(url, clock=self.clock, schema=self.schema)
        self.store = self.engine.schedules
        self.store.entries()

    def sql(self, statement: str, *values: Any) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement.replace("{s}", self.schema), values)  # type: ignore[call-overload]

    def due(self) -> list[str]:
        return [found.name for found in self.store.due(10).states]


@pytest.fixture(scope="module")
def server() -> Iterator[SessionServer]:
    server = SessionServer()
    yield server
    server.close()


@pytest.fixture
def home(server: SessionServer) -> Iterator[Home]:
    home = Home(server.url())
    yield home
    home.engine.close()
    home.sql("DROP SCHEMA {s} CASCADE")


def test_a_row_made_by_hand_is_due_at_once_to_be_planned(home: Home) -> None:
    assert home.due() == []
    home.sql("INSERT INTO {s}.schedules (name, schedule, task) VALUES ('a', '*/5 * * * *', 'shop.pay')")
    home.sql("INSERT INTO {s}.schedules (name, schedule, task, enabled) VALUES ('off', '30', 'shop.pay', false)")
    assert home.due() == ["a"]
    found = state(home.store, "a")
    assert found.entry == entry("a", schedule="*/5 * * * *", task="shop.pay")
    assert (found.planned_at, found.due_at) == (None, 0.0)
    home.store.resume(["off"])
    assert sorted(home.due()) == ["a", "off"]


def test_pausing_and_resuming_by_hand(home: Home) -> None:
    put(home.store, "a", at=home.store.now() + 100)
    home.sql("UPDATE {s}.schedules SET enabled = false")
    paused = state(home.store, "a")
    assert (paused.enabled, paused.due_at) == (False, None)
    home.sql("UPDATE {s}.schedules SET enabled = true")
    resumed = state(home.store, "a")
    assert (resumed.enabled, resumed.resumed, resumed.due_at, resumed.planned_at) == (True, True, 0.0, home.store.now() + 100)


def test_another_schedule_by_hand_is_planned_anew_and_other_changes_are_not(home: Home) -> None:
    put(home.store, "a", "b", at=home.store.now() + 100)
    before = {name: state(home.store, name) for name in "ab"}
    home.sql("UPDATE {s}.schedules SET schedule = '@daily' WHERE name = 'a'")
    home.sql("UPDATE {s}.schedules SET args = '[1]' WHERE name = 'b'")
    a, b = (state(home.store, name) for name in "ab")
    assert (a.planned_at, a.due_at) == (None, 0.0)
    assert (b.planned_at, b.due_at) == (home.store.now() + 100, 0.0), "looked at, to see whether it can be read now"
    assert [a.version, b.version] == [found.version + 1 for found in before.values()]


def test_what_was_changed_by_hand_meanwhile_is_not_fired(home: Home) -> None:
    put(home.store, "a")
    seen = state(home.store, "a")
    home.sql("UPDATE {s}.schedules SET kwargs = '{\"x\": 1}'")
    assert home.store.fire([firing(seen)]) == ["a"]
    assert home.store.fire([firing(state(home.store, "a"))]) == []


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("args", "{}", "args must be a JSON array"), ("args", "[1", "cannot be read"), ("policy", "misfire", "policy must be a JSON object"),
     ("policy", '{"misfire":"never"}', "Invalid enum value"), ("options", "", "options must be a JSON object")],
)  # fmt: skip
def test_what_nobody_can_read_is_told_and_hinders_nobody(home: Home, column: str, value: str, said: str) -> None:
    put(home.store, "a", "b")
    home.sql(f"UPDATE {{s}}.schedules SET {column} = %s WHERE name = 'a'", value)
    found = state(home.store, "a")
    assert found.entry is None
    assert said in found.error
    assert sorted(home.due()) == ["a", "b"]
    put(home.store, "a")
    assert state(home.store, "a").entry == entry("a")


def test_every_look_uses_an_index(home: Home) -> None:
    home.store.put([Planning(entry=entry(f"e{number}"), planned_at=1.0 * number, due_at=1.0 * number) for number in range(2000)])
    home.sql("INSERT INTO {s}.ledger (entry, planned_at, outcome, due_at, fired_at, why, occurrences, suppressed)"
             " SELECT 'e' || n, n, 'sent', n, n, '', 1, 0 FROM generate_series(1, 2000) n")  # fmt: skip
    for table in ("schedules", "ledger"):
        home.sql(f"ANALYZE {{s}}.{table}")
    for sql, values in (
        (statements.OUTLOOK, ("1",)),
        (statements.DUE, ("1", "10")),
        (statements.ENTRIES, ("''", "10")),
        (statements.BY_SOURCE, ("''", "10", "'x'")),
        (statements.HISTORY, ("1", "10")),
        (statements.HISTORY_OF_ENTRY, ("1", "10", "'a'")),
        (statements.KEPT, ("1", "0", "10")),
        (statements.PRUNE, ("1", "0", "10")),
    ):
        for number, value in enumerate(values, 1):
            sql = sql.replace(f"${number}", value)
        plan = "\n".join(line for (line,) in home.engine._database.rows(f"EXPLAIN {sql}"))
        assert "Seq Scan" not in plan, plan
        assert "Index" in plan, plan


def test_beats_that_fire_the_same_entries_in_other_orders_lock_them_in_one(home: Home) -> None:
    """Whoever waits for the first entry holds none of the others, so no two beats can wait for each other."""
    import psycopg

    put(home.store, "a", "b", "c")
    states = {found.name: found for found in home.store.entries()}
    refused: list[list[str]] = []
    beat = threading.Thread(target=lambda: refused.append(home.store.fire([firing(states[name]) for name in "cba"])))
    look = f"SELECT name FROM {home.schema}.schedules WHERE name = ANY (%s) FOR UPDATE NOWAIT"
    with psycopg.connect(home.url) as first, psycopg.connect(home.url, autocommit=True) as others:
        first.execute(look, [["a"]])  # type: ignore[call-overload]
        beat.start()
        waiting = "SELECT pg_sleep(0.01), count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s"
        for _ in range(2000):
            row = others.execute(waiting, [f"%{home.schema}.fire(%"]).fetchone()
            assert row is not None
            if row[1]:
                break
        else:
            raise AssertionError("nobody waits")
        assert len(others.execute(look, [["b", "c"]]).fetchall()) == 2  # type: ignore[call-overload]
    beat.join(DEADLINE_SECONDS)
    assert refused == [[]]
    assert sorted(line.entry for line in home.store.history()) == ["a", "b", "c"]


def test_an_entry_planned_for_never(home: Home) -> None:
    assert home.store.put([Planning(entry=entry("a"), planned_at=None, due_at=None)]) == []
    assert home.due() == []
