"""Schedules in an SQLite file: what people change by SQL, and how quickly entries are found."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac.contracts.schedules import Planning
from celeriac.engines.schedules import sqlite as statements
from celeriac.engines.sqlite import SQLiteEngine
from celeriac.testing.clock import FakeClock
from celeriac.testing.contract.schedules import entry, firing, put, state


class Home:
    def __init__(self, path: Path) -> None:
        self.clock = FakeClock()
        self.engine = SQLiteEngine(f"sqlite:///{path}", clock=self.clock)
        self.store = self.engine.schedules
        self.path = path

    def sql(self, statement: str, *values: Any) -> list[Any]:
        connection = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def due(self) -> list[str]:
        return [found.name for found in self.store.due(10).states]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home(tmp_path / "celeriac.db")
    yield home
    home.engine.close()


def test_a_row_made_by_hand_is_due_at_once_to_be_planned(home: Home) -> None:
    assert home.due() == []
    home.sql("INSERT INTO schedules (name, schedule, task) VALUES ('a', '*/5 * * * *', 'shop.pay')")
    home.sql("INSERT INTO schedules (name, schedule, task, enabled) VALUES ('off', '30', 'shop.pay', 0)")
    assert home.due() == ["a"]
    found = state(home.store, "a")
    assert found.entry == entry("a", schedule="*/5 * * * *", task="shop.pay")
    assert (found.planned_at, found.due_at, found.version) == (None, 0.0, 0)
    home.store.resume(["off"])
    assert sorted(home.due()) == ["a", "off"]


def test_pausing_and_resuming_by_hand(home: Home) -> None:
    put(home.store, "a", at=home.store.now() + 100)
    home.sql("UPDATE schedules SET enabled = 0")
    paused = state(home.store, "a")
    assert (paused.enabled, paused.due_at) == (False, None)
    home.sql("UPDATE schedules SET enabled = 1")
    resumed = state(home.store, "a")
    assert (resumed.enabled, resumed.resumed, resumed.due_at, resumed.planned_at) == (True, True, 0.0, home.store.now() + 100)


def test_another_schedule_by_hand_is_planned_anew_and_other_changes_are_not(home: Home) -> None:
    put(home.store, "a", "b", at=home.store.now() + 100)
    before = {name: state(home.store, name) for name in "ab"}
    home.sql("UPDATE schedules SET schedule = '@daily' WHERE name = 'a'")
    home.sql("UPDATE schedules SET args = '[1]' WHERE name = 'b'")
    a, b = (state(home.store, name) for name in "ab")
    assert (a.planned_at, a.due_at) == (None, 0.0)
    assert (b.planned_at, b.due_at) == (home.store.now() + 100, 0.0), "looked at, to see whether it can be read now"
    assert [a.version, b.version] == [found.version + 1 for found in before.values()]


def test_what_was_changed_by_hand_meanwhile_is_not_fired(home: Home) -> None:
    put(home.store, "a")
    seen = state(home.store, "a")
    home.sql("UPDATE schedules SET kwargs = '{\"x\": 1}'")
    assert home.store.fire([firing(seen)]) == ["a"]
    assert home.store.fire([firing(state(home.store, "a"))]) == []


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [("args", "{}", "args must be a JSON array"), ("args", "[1", "cannot be read"), ("policy", "misfire", "policy must be a JSON object"),
     ("policy", '{"misfire":"never"}', "Invalid enum value"), ("options", "", "options must be a JSON object")],
)  # fmt: skip
def test_what_nobody_can_read_is_told_and_hinders_nobody(home: Home, column: str, value: str, said: str) -> None:
    put(home.store, "a", "b")
    home.sql(f"UPDATE schedules SET {column} = ? WHERE name = 'a'", value)
    found = state(home.store, "a")
    assert found.entry is None and said in found.error
    assert sorted(home.due()) == ["a", "b"]
    put(home.store, "a")
    assert state(home.store, "a").entry == entry("a")


def test_a_policy_by_hand(home: Home) -> None:
    home.store.entries()
    home.sql(
        "INSERT INTO schedules (name, schedule, task, policy) VALUES ('a', '30', 't', '{\"overlap\": \"skip\", \"jitter_seconds\": 3}')"
    )
    found = state(home.store, "a").entry
    assert found is not None and (found.overlap, found.jitter_seconds) == ("skip", 3.0)


def test_every_look_uses_an_index(home: Home) -> None:
    home.store.entries()
    for sql, values in (
        (statements.DUE, (1.0, 10)),
        (statements.NEXT_DUE, (1.0,)),
        (statements.BY_NAME, ("", 10)),
        (statements.BY_SOURCE, ("x", "", 10)),
        (statements.HISTORY, (1.0, 10)),
        (statements.HISTORY_OF_ENTRY, ("a", 1.0, 10)),
        (statements.OLDEST, ()),
        (statements.KEPT.replace("ORDER BY fired_at, n", ""), (1.0, 10)),
    ):
        plan = " ".join(row[3] for row in home.sql(f"EXPLAIN QUERY PLAN {sql}", *values))
        assert "USING" in plan or sql == statements.OLDEST, f"{sql}\n{plan}"
        assert "TEMP B-TREE FOR ORDER BY" not in plan, f"{sql}\n{plan}"


def test_an_entry_planned_for_never(home: Home) -> None:
    assert home.store.put([Planning(entry=entry("a"), planned_at=None, due_at=None)]) == []
    assert home.due() == []
