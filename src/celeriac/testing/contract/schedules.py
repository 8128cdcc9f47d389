"""Schedules: entries that are due by the engine's clock, and firings that happen once, whole or not at all."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from multiprocessing.connection import Connection
from typing import Any, cast

import pytest
from msgspec import Raw
from msgspec.structs import replace

from ...contracts.engine import Engine
from ...contracts.schedules import Entry, EntryState, Firing, LedgerLine, Misfire, Overlap, Planning, Schedules, SchedulingEngine
from ...core.errors import EngineUnavailable
from ..clock import FakeClock
from ..faulty import FaultyEngine, When
from .harness import DEADLINE_SECONDS, EngineMaker, EngineTests, ids, message, start, take
from .processes import kill_after_some, running

ENTRIES = 20
ROUNDS = 15
KILLS = 8


def schedules_of(engine: Engine) -> Schedules:
    return cast("SchedulingEngine", engine).schedules


def entry(name: str, **fields: Any) -> Entry:
    return Entry(**{"name": name, "schedule": "10", "task": "tests.task", **fields})


def put(store: Schedules, *names: str, at: float | None = None, **fields: Any) -> None:
    """Entries whose first occurrence is at `at`, or now."""
    at = store.now() if at is None else at
    assert store.put([Planning(entry=entry(name, **fields), planned_at=at, due_at=at) for name in names]) == []


def state(store: Schedules, name: str) -> EntryState:
    (found,) = store.entries([name])
    return found


def occurrence_id(line: LedgerLine) -> str:
    return f"{line.entry}@{line.planned_at!r}"


def firing(state: EntryState, *, seconds: float = 10.0, times: int = 1, **changes: Any) -> Firing:
    """The usual one: the occurrence that is planned is sent (so often, each `seconds` after the one before), and the next is planned."""
    assert state.planned_at is not None
    lines = [
        LedgerLine(entry=state.name, planned_at=state.planned_at + seconds * number, due_at=state.planned_at, outcome="sent")
        for number in range(times)
    ]
    lines = [replace(line, message_id=occurrence_id(line)) for line in lines]
    next_at = state.planned_at + seconds * times
    fields: dict[str, Any] = {
        "planned_at": next_at,
        "due_at": next_at,
        "lines": lines,
        "messages": [message(occurrence_id(line)) for line in lines],
    }
    return Firing(name=state.name, version=state.version, **{**fields, **changes})


# -- what other processes run ----------------------------------------------------------------------------------------


def fire_all(engine: Engine, until: float) -> int:
    """What a beat does, as fast as it can, until every entry is planned after `until`. Returns how many firings were refused."""
    store = schedules_of(engine)
    refused = 0
    while True:
        states = [found for found in store.entries() if found.planned_at is not None and found.planned_at <= until]
        if not states:
            return refused
        random.shuffle(states)
        refused += len(store.fire([firing(found, seconds=1.0) for found in states[:5]]))


def run_beat(make_engine: EngineMaker, until: float, answer: Connection) -> None:
    engine = make_engine()
    answer.send(fire_all(engine, until))
    engine.close()


def run_beat_until_killed(make_engine: EngineMaker, ready: Connection) -> None:
    engine = make_engine()
    os.write(ready.fileno(), b".")
    fire_all(engine, 1e18)


class Scheduling(EngineTests):
    """The verbs of `contracts/schedules.py`."""

    @pytest.fixture
    def store(self, engine: Engine) -> Schedules:
        if not engine.capabilities.schedules:
            pytest.skip("this engine keeps no schedules")
        return schedules_of(engine)

    @pytest.fixture
    def other_store(self, store: Schedules, other: Engine) -> Schedules:
        return schedules_of(other)

    # -- entries ---------------------------------------------------------------------------------------------------------

    def test_an_entry_comes_back_as_it_was_put(self, store: Schedules, other_store: Schedules) -> None:
        full = entry(
            "é 'quoted' name",
            schedule='{"cron":"0 9 * * mon-fri","tz":"Asia/Kathmandu"}',
            args=Raw(b'[1,"\xc3\xa9"]'),
            kwargs=Raw(b'{"x":[1.5,null]}'),
            options=Raw(b'{"queue":"high"}'),
            source="settings of shop",
            description="What it is for",
            misfire=Misfire.ALL,
            misfire_window_seconds=3600.0,
            misfire_grace_seconds=2.5,
            overlap=Overlap.QUEUE,
            jitter_seconds=3.0,
            starts_at=1_700_000_100.25,
            ends_at=1_800_000_000.0,
            max_runs=7,
            expires_seconds=60.0,
        )
        assert store.put([Planning(entry=full, planned_at=1_700_000_200.123456, due_at=1_700_000_201.5)]) == []
        found = state(other_store, full.name)
        assert found.entry == full
        assert (found.planned_at, found.due_at, found.enabled, found.error) == (1_700_000_200.123456, 1_700_000_201.5, True, "")
        assert (found.total_run_count, found.last_run_at, found.last_message_id, found.queued_at) == (0, None, None, None)

    def test_the_same_again_changes_nothing(self, store: Schedules) -> None:
        put(store, "a", at=store.now() + 5)
        before = state(store, "a")
        put(store, "a", at=store.now() + 500)
        assert state(store, "a") == before

    def test_what_does_not_change_when_it_comes_leaves_it_where_it_stands(self, store: Schedules) -> None:
        put(store, "a")
        assert store.fire([firing(state(store, "a"))]) == []
        before = state(store, "a")
        put(store, "a", at=store.now() + 500, args=Raw(b"[2]"), max_runs=3, overlap=Overlap.SKIP)
        after = state(store, "a")
        assert after.entry is not None and (bytes(after.entry.args), after.entry.max_runs) == (b"[2]", 3)
        assert (after.planned_at, after.due_at, after.total_run_count) == (before.planned_at, before.due_at, 1)
        assert after.version != before.version

    @pytest.mark.parametrize("change", [{"schedule": "20"}, {"starts_at": 1.0}, {"ends_at": 1e10}])
    def test_another_schedule_is_planned_anew(self, store: Schedules, change: dict[str, Any]) -> None:
        put(store, "a")
        assert store.fire([firing(state(store, "a"))]) == []
        later = store.now() + 500
        put(store, "a", at=later, **change)
        after = state(store, "a")
        assert (after.planned_at, after.due_at, after.total_run_count) == (later, later, 1)

    def test_a_finished_entry_that_is_changed_begins_again(self, store: Schedules) -> None:
        put(store, "a", max_runs=1)
        assert store.fire([firing(state(store, "a"), planned_at=None, due_at=None)]) == []
        put(store, "a", max_runs=1, at=store.now() + 500)
        assert state(store, "a").planned_at is None, "nothing was changed"
        put(store, "a", max_runs=2, at=store.now() + 500)
        assert state(store, "a").planned_at == store.now() + 500

    def test_an_entry_of_another_source_is_not_taken_over(self, store: Schedules) -> None:
        put(store, "a", source="settings of shop")
        before = state(store, "a")
        plannings = [Planning(entry=entry(name, task="tests.other"), planned_at=None, due_at=None) for name in "ab"]
        assert store.put(plannings) == ["a"]
        assert state(store, "a") == before
        assert state(store, "b").enabled

    def test_entries_come_by_name_and_in_pages(self, store: Schedules) -> None:
        put(store, "c", "a", "d", "b")
        assert [found.name for found in store.entries()] == ["a", "b", "c", "d"]
        assert [found.name for found in store.entries(limit=2)] == ["a", "b"]
        assert [found.name for found in store.entries(after="b", limit=10)] == ["c", "d"]
        assert [found.name for found in store.entries(["d", "nobody", "a", "d"])] == ["a", "d"]
        assert store.entries([]) == []

    def test_entries_of_a_source(self, store: Schedules) -> None:
        put(store, "c", "a", "d", "b", source="settings of shop")
        put(store, "e", "f")
        assert [found.name for found in store.entries(source="settings of shop", limit=3)] == ["a", "b", "c"]
        assert [found.name for found in store.entries(source="settings of shop", after="c")] == ["d"]
        assert [found.name for found in store.entries(source="")] == ["e", "f"]
        assert [found.name for found in store.entries(["a", "e"], source="")] == ["e"]

    def test_removed_entries_are_gone_and_their_ledger_stays(self, store: Schedules) -> None:
        put(store, "a", "b")
        assert store.fire([firing(state(store, "a"))]) == []
        assert store.remove(["a", "nobody", "a"]) == ["a"]
        assert [found.name for found in store.entries()] == ["b"]
        assert len(store.history("a")) == 1
        assert [found.name for found in store.due(10).states] == ["b"]

    # -- due -------------------------------------------------------------------------------------------------------------

    def test_entries_are_due_by_the_engines_clock(self, store: Schedules, clock: FakeClock) -> None:
        now = store.now()
        put(store, "late", at=now - 60)
        put(store, "soon", at=now + 5)
        put(store, "later", at=now + 50)
        put(store, "now", at=now)
        due = store.due(10)
        assert due.now == pytest.approx(now, abs=1.0)
        assert [found.name for found in due.states] == ["late", "now"]
        assert due.next_due_at == now + 5
        clock.advance(6)
        assert [found.name for found in store.due(10).states] == ["late", "now", "soon"]
        assert store.due(10).next_due_at == now + 50
        assert [found.name for found in store.due(2).states] == ["late", "now"]

    def test_nothing_is_due_where_there_is_nothing(self, store: Schedules) -> None:
        due = store.due(10)
        assert (due.states, due.next_due_at) == ([], None)

    def test_what_is_to_be_planned_is_due_at_once(self, store: Schedules) -> None:
        assert store.put([Planning(entry=entry("a"), planned_at=None, due_at=0.0)]) == []
        (found,) = store.due(10).states
        assert (found.name, found.planned_at, found.due_at) == ("a", None, 0.0)

    def test_paused_entries_are_never_due(self, store: Schedules, other_store: Schedules, clock: FakeClock) -> None:
        put(store, "a", "b")
        assert store.pause(["a", "nobody"]) == ["a"]
        assert other_store.pause(["a"]) == []
        clock.advance(1000)
        assert [found.name for found in other_store.due(10).states] == ["b"]
        paused = state(store, "a")
        assert (paused.enabled, paused.resumed, paused.due_at) == (False, False, None)
        assert paused.planned_at is not None, "where it stood is not forgotten"

    def test_resumed_entries_are_due_at_once_and_say_so(self, store: Schedules) -> None:
        put(store, "a", at=store.now() + 100)
        assert store.pause(["a"]) == ["a"]
        assert store.resume(["a", "nobody"]) == ["a"]
        assert store.resume(["a"]) == []
        (found,) = store.due(10).states
        assert (found.enabled, found.resumed, found.planned_at) == (True, True, store.now() + 100)
        assert store.fire([firing(found, lines=[], messages=[], planned_at=found.planned_at, due_at=found.planned_at)]) == []
        assert (state(store, "a").resumed, state(store, "a").due_at) == (False, store.now() + 100)

    def test_an_entry_may_begin_as_a_paused_one(self, store: Schedules) -> None:
        put(store, "a", enabled=False)
        assert store.due(10).states == []
        put(store, "a", enabled=True)
        assert not state(store, "a").enabled, "only `resume` resumes"
        assert store.resume(["a"]) == ["a"]
        assert [found.name for found in store.due(10).states] == ["a"]

    # -- fire ------------------------------------------------------------------------------------------------------------

    def test_a_firing_claims_writes_and_publishes(self, engine: Engine, store: Schedules, other_store: Schedules) -> None:
        put(store, "a", at=store.now() - 2)
        before = state(store, "a")
        assert store.fire([firing(before)]) == []
        after = state(other_store, "a")
        id = f"a@{before.planned_at!r}"
        assert after.planned_at == after.due_at == (before.planned_at or 0) + 10
        assert (after.total_run_count, after.last_planned_at, after.last_message_id) == (1, before.planned_at, id)
        assert after.last_run_at == pytest.approx(store.now(), abs=1.0)
        (line,) = other_store.history("a")
        assert (line.entry, line.planned_at, line.outcome, line.message_id) == ("a", before.planned_at, "sent", id)
        assert line.fired_at == pytest.approx(store.now(), abs=1.0)
        assert line.late_seconds == pytest.approx(2, abs=1.0)
        assert ids(take(engine, start(engine))) == [id]
        assert store.due(10).states == []

    def test_whoever_comes_second_is_refused_and_counted(self, engine: Engine, store: Schedules, other_store: Schedules) -> None:
        put(store, "a")
        seen, seen_too = state(store, "a"), state(other_store, "a")
        assert store.fire([firing(seen)]) == []
        after = state(store, "a")
        assert other_store.fire([firing(seen_too, messages=[message("another")], lines=[
            LedgerLine(entry="a", planned_at=seen.planned_at or 0, outcome="sent", message_id="another")])]) == ["a"]  # fmt: skip
        assert state(store, "a") == after
        (line,) = store.history("a")
        assert (line.suppressed, line.message_id) == (1, f"a@{seen.planned_at!r}")
        assert ids(engine.peek("celery")) == [f"a@{seen.planned_at!r}"]

    def test_what_has_changed_meanwhile_is_not_fired(self, engine: Engine, store: Schedules) -> None:
        put(store, "edited", "paused", "removed", "untouched")
        seen = {found.name: found for found in store.entries()}
        put(store, "edited", args=Raw(b"[2]"))
        store.pause(["paused"])
        store.remove(["removed"])
        assert sorted(store.fire([firing(found) for found in seen.values()])) == ["edited", "paused", "removed"]
        assert [waiting.id.partition("@")[0] for waiting in engine.peek("celery")] == ["untouched"]
        assert [line.entry for line in store.history()] == ["untouched"]

    def test_an_occurrence_is_sent_once_whatever_is_fired(self, engine: Engine, store: Schedules) -> None:
        """Also when somebody sets an entry back."""
        put(store, "a")
        first = state(store, "a")
        assert store.fire([firing(first)]) == []
        take(engine, start(engine))
        again = firing(replace(state(store, "a"), planned_at=first.planned_at), times=2)
        assert store.fire([again]) == []
        assert ids(engine.peek("celery")) == [f"a@{(first.planned_at or 0) + 10!r}"], "only the second of them"
        assert [line.suppressed for line in store.history("a")] == [0, 1]
        assert state(store, "a").total_run_count == 2
        assert state(store, "a").planned_at == (first.planned_at or 0) + 20

    def test_several_occurrences_in_one_firing(self, engine: Engine, store: Schedules) -> None:
        put(store, "a")
        before = state(store, "a")
        assert store.fire([firing(before, times=3)]) == []
        after = state(store, "a")
        assert (after.total_run_count, after.last_planned_at) == (3, (before.planned_at or 0) + 20)
        assert [line.planned_at - (before.planned_at or 0) for line in store.history("a")] == [20, 10, 0]
        assert len(engine.peek("celery")) == 3

    def test_lines_of_what_is_not_sent(self, engine: Engine, store: Schedules) -> None:
        put(store, "a")
        before = state(store, "a")
        at = before.planned_at or 0
        skipped = LedgerLine(entry="a", planned_at=at, until=at + 90, occurrences=10, outcome="skipped", why="misfire", due_at=at)
        assert store.fire([firing(before, lines=[skipped], messages=[])]) == []
        (line,) = store.history("a")
        assert replace(line, fired_at=0.0) == skipped
        after = state(store, "a")
        assert (after.total_run_count, after.last_run_at, after.last_planned_at) == (0, None, None)
        assert engine.peek("celery") == []

    def test_a_queued_occurrence_becomes_a_sent_one(self, engine: Engine, store: Schedules) -> None:
        put(store, "a")
        before = state(store, "a")
        at = before.planned_at or 0
        queued = LedgerLine(entry="a", planned_at=at, outcome="queued", why="overlap", due_at=at)
        assert store.fire([firing(before, lines=[queued], messages=[], queued_at=at)]) == []
        waiting = state(store, "a")
        assert (waiting.queued_at, waiting.total_run_count) == (at, 0)
        sent = LedgerLine(entry="a", planned_at=at, outcome="sent", why="after the one before it", due_at=at, message_id="m")
        assert store.fire([firing(waiting, lines=[sent], messages=[message("m")])]) == []
        (line,) = store.history("a")
        assert (line.outcome, line.why, line.message_id) == ("sent", "after the one before it", "m")
        assert (state(store, "a").queued_at, state(store, "a").last_planned_at) == (None, at)
        assert ids(engine.peek("celery")) == ["m"]

    def test_an_entry_is_finished_when_nothing_is_planned(self, store: Schedules, clock: FakeClock) -> None:
        put(store, "a")
        assert store.fire([firing(state(store, "a"), planned_at=None, due_at=None)]) == []
        clock.advance(1e6)
        assert store.due(10).states == []
        assert (state(store, "a").planned_at, state(store, "a").due_at, state(store, "a").enabled) == (None, None, True)

    def test_a_paused_entry_that_is_fired_by_hand_stays_paused(self, engine: Engine, store: Schedules) -> None:
        put(store, "a")
        store.pause(["a"])
        assert store.fire([firing(state(store, "a"))]) == []
        assert len(engine.peek("celery")) == 1
        assert (state(store, "a").enabled, state(store, "a").due_at) == (False, None)

    def test_one_that_is_refused_does_not_hinder_the_others(self, engine: Engine, store: Schedules) -> None:
        put(store, *"abcd")
        seen = store.entries()
        store.remove(["b"])
        assert store.fire([firing(found) for found in seen]) == ["b"]
        assert len(engine.peek("celery")) == 3

    def test_what_cannot_be_encoded_changes_nothing(self, engine: Engine, store: Schedules) -> None:
        put(store, "a", "b")
        before = store.entries()
        bad = firing(before[1], messages=[message("x", headers={"x": object()})])
        with pytest.raises((TypeError, ValueError)):
            store.fire([firing(before[0]), bad])
        assert store.entries() == before
        assert (store.history(), engine.peek("celery")) == ([], [])

    def test_a_message_may_wait_for_its_time(self, engine: Engine, store: Schedules, clock: FakeClock) -> None:
        put(store, "a")
        before = state(store, "a")
        line = LedgerLine(entry="a", planned_at=before.planned_at or 0, outcome="sent", message_id="m")
        assert store.fire([firing(before, lines=[line], messages=[message("m", delay_seconds=30.0, priority=5, queue="high")])]) == []
        holder = start(engine)
        assert take(engine, holder, "high") == []
        clock.advance(31)
        assert ids(take(engine, holder, "high")) == ["m"]

    def test_a_firing_wakes_a_worker(self, make_engine: EngineMaker, threads: ThreadPoolExecutor) -> None:
        engine, other = make_engine(), make_engine()
        if not engine.capabilities.schedules:
            pytest.skip("this engine keeps no schedules")
        store = schedules_of(engine)
        put(store, "a")
        woken = threads.submit(other.wait, ["celery"], DEADLINE_SECONDS)
        assert store.fire([firing(state(store, "a"))]) == []
        assert woken.result(DEADLINE_SECONDS)
        engine.close()
        other.close()

    # -- for another broker ----------------------------------------------------------------------------------------------

    def test_kept_messages_are_there_until_they_are_reported_as_sent(
        self, engine: Engine, store: Schedules, other_store: Schedules, clock: FakeClock
    ) -> None:
        put(store, "a", "b")
        a, b = store.entries()
        assert store.fire([firing(a)], publish=False) == []
        clock.advance(10)
        assert store.fire([firing(b)], publish=False) == []
        assert engine.peek("celery") == []
        assert [line.outcome for line in store.history()] == ["kept", "kept"]
        assert [state(store, name).total_run_count for name in "ab"] == [1, 1]
        of_a, of_b = (f"{found.name}@{found.planned_at!r}" for found in (a, b))
        assert ids(other_store.kept(10)) == [of_a, of_b]
        assert ids(other_store.kept(1)) == [of_a]
        assert ids(other_store.kept(10, older_than_seconds=5)) == [of_a]
        assert other_store.kept(10)[0] == message(of_a)
        other_store.sent([of_a, "nobody"])
        assert ids(store.kept(10)) == [of_b]
        assert {line.entry: line.outcome for line in store.history()} == {"a": "sent", "b": "kept"}

    def test_lines_of_kept_messages_are_not_pruned(self, store: Schedules, clock: FakeClock) -> None:
        put(store, "a", "b")
        a, b = store.entries()
        assert store.fire([firing(a)], publish=False) == []
        assert store.fire([firing(b)]) == []
        clock.advance(1000)
        assert store.prune(100) == 1
        assert [line.entry for line in store.history()] == ["a"]
        store.sent(ids(store.kept(10)))
        assert store.prune(100) == 1

    # -- the ledger ------------------------------------------------------------------------------------------------------

    def test_history_comes_latest_first_and_in_pages(self, store: Schedules) -> None:
        put(store, "a", "b")
        start_at = store.now()
        for _ in range(3):
            assert store.fire([firing(found) for found in store.entries()]) == []
        assert [line.planned_at - start_at for line in store.history("a")] == [20, 10, 0]
        assert [line.planned_at - start_at for line in store.history("a", limit=2)] == [20, 10]
        assert [line.planned_at - start_at for line in store.history("a", before=start_at + 10)] == [0]
        assert [line.planned_at - start_at for line in store.history()] == [20, 20, 10, 10, 0, 0]
        assert {line.entry for line in store.history(limit=2)} == {"a", "b"}
        assert len(store.history(before=start_at + 20)) == 4
        assert store.history("nobody") == []

    def test_old_lines_are_pruned_a_few_at_a_time(self, store: Schedules, clock: FakeClock) -> None:
        put(store, "a")
        for _ in range(5):
            assert store.fire([firing(state(store, "a"))]) == []
        clock.advance(100)
        assert store.fire([firing(state(store, "a"))]) == []
        assert store.prune(50, limit=3) == 3
        assert store.prune(50, limit=3) == 2
        assert store.prune(50, limit=3) == 0
        assert len(store.history("a")) == 1
        assert state(store, "a").total_run_count == 6

    # -- faults ----------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("when", ["before", "after"])
    @pytest.mark.parametrize("publish", [True, False])
    def test_any_operation_may_fail_before_or_after_it_took_effect(
        self, make_engine: EngineMaker, clock: FakeClock, when: When, publish: bool
    ) -> None:
        """Whoever repeats what failed sends each occurrence once."""
        for number in count(1):
            engine = make_engine(clock=clock)
            if not engine.capabilities.schedules:
                pytest.skip("this engine keeps no schedules")
            faulty = FaultyEngine(engine, fail_at=number, when=when)
            prefix = f"{when}{publish}{number}-"
            at = schedules_of(engine).now()
            self.send_three(schedules_of(cast("Engine", faulty)), prefix, at, publish)
            store = schedules_of(engine)
            for name in (f"{prefix}a", f"{prefix}b"):
                lines = store.history(name)
                assert [line.planned_at for line in lines] == [at + 20, at + 10, at], f"failed: {faulty.failures}"
                assert state(store, name).total_run_count == 3
                sent = {line.message_id for line in lines}
                published = [waiting.id for waiting in engine.peek("celery", limit=1000) if waiting.id.startswith(name)]
                assert sorted(published) == (sorted(map(str, sent)) if publish else [])
            assert len([kept for kept in store.kept(1000) if kept.id.startswith(prefix)]) == 0
            engine.close()
            if not faulty.failed:
                return

    def send_three(self, store: Schedules, prefix: str, at: float, publish: bool) -> None:
        def repeated(operation: Callable[[], Any]) -> Any:
            try:
                return operation()
            except EngineUnavailable:
                return operation()

        names = [f"{prefix}a", f"{prefix}b"]
        plannings = [Planning(entry=entry(name), planned_at=at, due_at=at) for name in names]
        assert repeated(lambda: store.put(plannings)) == []
        repeated(lambda: store.pause(names))
        repeated(lambda: store.resume(names))
        while True:
            states = [found for found in repeated(lambda: store.entries(names)) if found.planned_at < at + 30]
            if not states:
                break
            firings = [firing(found) for found in states]
            try:
                store.fire(firings, publish=publish)
            except EngineUnavailable:
                continue  # it is looked at anew: what was fired is planned for later now
        repeated(lambda: store.sent([message.id for message in repeated(lambda: store.kept(100))]))

    # -- many at once ----------------------------------------------------------------------------------------------------

    def live_store(self, make_engine: EngineMaker) -> tuple[Engine, Schedules]:
        engine = make_engine()
        if not engine.capabilities.schedules:
            pytest.skip("this engine keeps no schedules")
        return engine, schedules_of(engine)

    def check_all_were_fired_once(self, engine: Engine, store: Schedules, start_at: float, rounds: int) -> None:
        lines = store.history(limit=100_000)
        assert [key for key, times in Counter((line.entry, line.planned_at) for line in lines).items() if times > 1] == []
        assert len(lines) == ENTRIES * rounds
        assert {line.planned_at - start_at for line in lines} == set(map(float, range(rounds)))
        published = ids(engine.peek("celery", limit=100_000))
        assert len(published) == len(set(published)) == len(lines)
        assert {line.message_id for line in lines} == set(published)
        assert {found.total_run_count for found in store.entries()} == {rounds}

    def test_threads_that_fire_the_same(self, make_engine: EngineMaker, threads: ThreadPoolExecutor) -> None:
        engine, store = self.live_store(make_engine)
        engines = [engine, make_engine(), make_engine()]
        start_at = float(int(store.now()))
        put(store, *(f"e{number}" for number in range(ENTRIES)), at=start_at)
        barrier = threading.Barrier(6)

        def beat(number: int) -> int:
            barrier.wait(DEADLINE_SECONDS)
            return fire_all(engines[number % 3], start_at + ROUNDS - 1)

        refused = sum(done.result(DEADLINE_SECONDS) for done in [threads.submit(beat, number) for number in range(6)])
        self.check_all_were_fired_once(engine, store, start_at, ROUNDS)
        assert sum(line.suppressed for line in store.history(limit=100_000)) == refused
        for opened in engines:
            opened.close()

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_processes_that_fire_the_same(self, make_engine: EngineMaker, method: str) -> None:
        engine, store = self.live_store(make_engine)
        if not engine.capabilities.processes:
            pytest.skip("this engine lives in one process")
        start_at = float(int(store.now()))
        put(store, *(f"e{number}" for number in range(ENTRIES)), at=start_at)
        context: Any = multiprocessing.get_context(method)
        pipes = [context.Pipe(duplex=False) for _ in range(4)]
        children = [context.Process(target=run_beat, args=(make_engine, start_at + ROUNDS - 1, writer), daemon=True) for _, writer in pipes]
        with running(children):
            for reader, _ in pipes:
                assert reader.poll(DEADLINE_SECONDS * 10), "a process does not come to its end"
                reader.recv()
        self.check_all_were_fired_once(engine, store, start_at, ROUNDS)
        engine.close()

    def test_killed_while_firing(self, make_engine: EngineMaker) -> None:
        """Each firing is there whole or not at all, and somebody else goes on from there."""
        engine, store = self.live_store(make_engine)
        if not (engine.capabilities.processes and engine.capabilities.durable):
            pytest.skip("this engine does not outlive a process")
        start_at = float(int(store.now()))
        put(store, *(f"e{number}" for number in range(ENTRIES)), at=start_at)
        dice = random.Random(5)
        context: Any = multiprocessing.get_context("fork")
        for _ in range(KILLS):
            reader, writer = context.Pipe(duplex=False)
            children = [context.Process(target=run_beat_until_killed, args=(make_engine, writer), daemon=True) for _ in range(2)]
            with running(children):
                writer.close()
                kill_after_some(children[0], reader, dice)
            make_engine.after_kill()
            self.check_each_firing_is_whole(engine, store, start_at)
        rounds = 1 + int(max(found.planned_at or 0 for found in store.entries()) - start_at)
        fire_all(engine, start_at + rounds - 1)
        self.check_all_were_fired_once(engine, store, start_at, rounds)
        engine.close()

    def check_each_firing_is_whole(self, engine: Engine, store: Schedules, start_at: float) -> None:
        sent = Counter(line.entry for line in store.history(limit=1_000_000))
        published = Counter(waiting.id.partition("@")[0] for waiting in engine.peek("celery", limit=1_000_000))
        assert sent == published
        for found in store.entries():
            assert found.total_run_count == sent[found.name] == (found.planned_at or 0) - start_at
