"""Results are kept, told and forgotten."""

from __future__ import annotations

import os
import select
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec import Raw

from ...contracts.engine import Engine
from ...contracts.results import Subscription
from ...core.message import Attempt, Record, Revocation, Verdict
from ...core.states import READY_STATES
from ..clock import FakeClock
from .harness import DEADLINE_SECONDS, EngineMaker, EngineTests, eventually, message, record, settlement, start, take_one

FULL = Record(
    task_id="é",
    status="FAILURE",
    result=Raw('{"exc_type":"ValueError","exc_message":["é",123456789012345678901234567890],"exc_module":"builtins"}'.encode()),
    traceback="Traceback é",
    date_done=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    children=[[["child", "é"], None]],
    name="t.é",
    args="('é',)",
    kwargs="{}",
    worker="celeriac@é",
    queue="q",
    retries=3,
    root_id="root",
    parent_id="parent",
    group_id="group",
    attempts=[Attempt(worker="w", started_at=datetime(2026, 1, 1, tzinfo=UTC), runtime_seconds=0.5, state="RETRY", error="é")],
)


def open_files() -> set[str]:
    """What the descriptors of this process stand for; only where the system tells."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{descriptor} {os.readlink(f'/proc/self/fd/{descriptor}')}")
        except OSError:  # the one that lists
            continue
    return found


def told(subscription: Subscription, seconds: float = 0.0) -> bool:
    return subscription.changed(seconds)


class Results(EngineTests):
    """An engine that keeps no results (`atomic_results` false) is not asked."""

    @pytest.fixture(autouse=True)
    def keeps_results(self, request: pytest.FixtureRequest, make_engine: EngineMaker) -> None:
        """For the tests of this file alone, though the whole suite inherits it."""
        if request.function.__module__ == __name__ and not make_engine.capabilities.atomic_results:
            pytest.skip("this engine keeps no results")

    def test_a_record_comes_back_whole(self, engine: Engine, other: Engine) -> None:
        assert engine.store([FULL]) == []
        assert other.fetch(["é", "nothing"]) == {"é": FULL}

    def test_ten_megabytes(self, engine: Engine) -> None:
        large = record("m", result=Raw(b'"' + b"x" * 10_000_000 + b'"'))
        engine.store([large])
        assert engine.fetch(["m"])["m"] == large

    def test_any_id(self, engine: Engine) -> None:
        strange = ["é🎉", "a/b", "'; --", "%_*", "line\nbreak", "nul\0byte", "x" * 5000, " "]
        engine.store([record(id) for id in strange])
        assert sorted(engine.fetch(strange)) == sorted(strange)

    def test_many_at_once(self, engine: Engine) -> None:
        task_ids = [f"m{number}" for number in range(2500)]
        assert engine.store([record(id) for id in task_ids]) == []
        assert len(engine.fetch(task_ids)) == 2500
        engine.forget(task_ids[:2000])
        assert sorted(engine.fetch(task_ids)) == sorted(task_ids[2000:])

    def test_the_later_replaces_the_earlier(self, engine: Engine) -> None:
        for status in ("PENDING", "STARTED", "MY OWN", "RETRY", "STARTED", "FAILURE", "SUCCESS", "REVOKED"):
            assert engine.store([record("m", status)]) == []
            assert engine.fetch(["m"])["m"].status == status

    @pytest.mark.parametrize("ready", sorted(READY_STATES))
    def test_a_ready_state_is_never_replaced_by_an_unready_one(self, engine: Engine, ready: str) -> None:
        engine.store([record("m", ready)])
        for status in ("PENDING", "STARTED", "MY OWN", "RETRY"):
            assert engine.store([record("n", status), record("m", status), record("o", status)]) == ["m"]
            assert engine.fetch(["m"])["m"].status == ready
        assert sorted(engine.fetch(["n", "o"])) == ["n", "o"]

    def test_a_settlement_is_not_refused_for_its_record(self, engine: Engine) -> None:
        engine.store([record("m", "SUCCESS")])
        engine.publish([message("m")])
        delivery = take_one(engine, start(engine))
        assert engine.settle([settlement(delivery, Verdict.RETRY, record=record("m", "RETRY"))]) == []
        assert engine.fetch(["m"])["m"].status == "SUCCESS"
        assert engine.find(["m"])["m"].state == "ready"

    def test_forget(self, engine: Engine) -> None:
        engine.store([record("m"), record("n")])
        engine.forget(["m", "nothing"])
        assert list(engine.fetch(["m", "n"])) == ["n"]
        assert engine.store([record("m", "STARTED")]) == []

    def test_results_are_durable(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        if not make_engine.capabilities.durable:
            pytest.skip("this engine is not durable")
        engine = make_engine(clock=clock)
        engine.store([FULL])
        engine.close()
        again = make_engine(clock=clock)
        assert again.fetch(["é"]) == {"é": FULL}
        again.close()

    # -- fenced ----------------------------------------------------------------------------------------------------------

    def test_with_a_lease_only_while_it_holds(self, engine: Engine) -> None:
        engine.publish([message("m")])
        zombie = take_one(engine, start(engine, "anna"))
        assert engine.store([record("m", "STARTED")], lease=zombie.lease) == []
        engine.reclaim(["anna"])
        assert engine.store([record("m", "PROGRESS")], lease=zombie.lease) == ["m"]
        heir = take_one(engine, start(engine, "bert"))
        assert engine.store([record("m", "PROGRESS")], lease=zombie.lease) == ["m"]
        assert engine.fetch(["m"])["m"].status == "STARTED"
        assert engine.store([record("m", "PROGRESS")], lease=heir.lease) == []
        engine.settle([settlement(heir)])
        assert engine.store([record("m", "LATE")], lease=heir.lease) == ["m"]
        assert engine.fetch(["m"])["m"].status == "PROGRESS"

    # -- expiry ----------------------------------------------------------------------------------------------------------

    def test_prune_removes_what_has_expired(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        engine = make_engine(clock=clock, result_expires=100)
        engine.store([record("old"), record("renewed")])
        clock.advance(60)
        engine.store([record("renewed"), record("young")])
        assert engine.prune() == 0
        clock.advance(50)
        assert engine.prune() == 1
        assert sorted(engine.fetch(["old", "renewed", "young"])) == ["renewed", "young"]
        engine.close()

    def test_prune_keeps_its_limit(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        engine = make_engine(clock=clock, result_expires=100)
        engine.store([record(f"m{number}") for number in range(5)])
        clock.advance(101)
        assert [engine.prune(2), engine.prune(2), engine.prune(2), engine.prune(2)] == [2, 2, 1, 0]
        engine.close()

    def test_without_expiry_nothing_is_pruned(self, make_engine: EngineMaker, clock: FakeClock) -> None:
        engine = make_engine(clock=clock, result_expires=None)
        engine.store([record("m")])
        clock.advance(10 * 365 * 86400)
        assert engine.prune() == 0
        assert list(engine.fetch(["m"])) == ["m"]
        engine.close()

    # -- subscriptions ---------------------------------------------------------------------------------------------------

    def test_nothing_changed(self, live: Engine) -> None:
        live.store([record("m", "STARTED")])
        with closing(live.subscribe(["m", "n"])) as subscription:
            assert told(subscription) is False
            begin = time.monotonic()
            assert told(subscription, 0.05) is False
            assert time.monotonic() - begin >= 0.04

    @pytest.mark.parametrize("how", ["store", "settle", "revoke", "exchange", "end of a revoked one"])
    def test_every_way_to_a_result_is_told(self, live: Engine, live_other: Engine, how: str) -> None:
        live.publish([message("m")])
        holder = start(live)
        with closing(live_other.subscribe(["m"])) as subscription:
            assert live_other.fetch(["m"]) == {}
            match how:
                case "store":
                    live.store([record("m")])
                case "settle":
                    live.settle([settlement(take_one(live, holder), record=record("m"))])
                case "exchange":
                    live.exchange([settlement(take_one(live, holder), record=record("m"))], ["celery"], limit=1, holder=holder)
                case "revoke":
                    live.revoke([Revocation(id="m", record=record("m", "REVOKED"))])
                case _:
                    delivery = take_one(live, holder)
                    live.revoke([Revocation(id="m", record=record("m", "REVOKED"))])
                    live.settle([settlement(delivery, Verdict.RELEASED)])
            assert told(subscription, DEADLINE_SECONDS) is True
            assert list(live_other.fetch(["m"])) == ["m"]

    def test_it_comes_to_rest(self, live: Engine, live_other: Engine) -> None:
        with closing(live.subscribe(["m"])) as subscription:
            for number in range(5):
                live_other.store([record("m", f"STEP {number}")])
                assert told(subscription, DEADLINE_SECONDS)
                assert [told(subscription) for _ in range(5)].count(False) > 0

    def test_no_change_is_missed(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor) -> None:
        """Subscribe, look, wait: whenever the result comes, it is seen, and soon."""

        def get(id: str) -> float:
            with closing(live.subscribe([id])) as subscription:
                deadline = time.monotonic() + DEADLINE_SECONDS
                while id not in live.fetch([id]):
                    assert subscription.changed(max(0.0, deadline - time.monotonic())), "the change was missed"
            return time.monotonic()

        took: list[float] = []
        for number in range(40):
            begin = time.monotonic()
            reader = threads.submit(get, f"m{number}")
            live_other.store([record(f"m{number}")])
            took.append(reader.result(DEADLINE_SECONDS + 5) - begin)
        assert statistics.median(took) < 0.25, "that is polling"

    def test_many_wait_for_one_and_one_for_many(self, live: Engine, live_other: Engine, threads: ThreadPoolExecutor) -> None:
        task_ids = [f"m{number}" for number in range(30)]
        ready = threading.Barrier(9)

        def get_all() -> int:
            with closing(live.subscribe(task_ids)) as subscription:
                ready.wait(DEADLINE_SECONDS)
                deadline = time.monotonic() + DEADLINE_SECONDS
                while len(live.fetch(task_ids)) < len(task_ids):
                    assert subscription.changed(max(0.0, deadline - time.monotonic()))
            return len(task_ids)

        readers = [threads.submit(get_all) for _ in range(8)]
        ready.wait(DEADLINE_SECONDS)
        for id in task_ids:
            live_other.store([record(id)])
        assert [reader.result(DEADLINE_SECONDS + 5) for reader in readers] == [30] * 8

    def test_its_descriptor_is_readable_when_it_has_something_to_say(self, live: Engine, live_other: Engine) -> None:
        with closing(live.subscribe(["m"])) as subscription:
            assert select.select([subscription.fileno()], [], [], 0)[0] == []
            for number in range(3):
                live_other.store([record("m", f"STEP {number}")])
                assert select.select([subscription.fileno()], [], [], DEADLINE_SECONDS)[0]
                assert told(subscription, DEADLINE_SECONDS)
                while told(subscription):
                    pass
                assert select.select([subscription.fileno()], [], [], 0)[0] == []

    def test_the_descriptor_tells_of_what_came_before_it_was_asked_for(self, live: Engine) -> None:
        with closing(live.subscribe(["m"])) as subscription:
            live.store([record("m")])
            assert select.select([subscription.fileno()], [], [], DEADLINE_SECONDS)[0]

    @pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="the system does not list open files")
    def test_nothing_remains_of_a_closed_one(self, live: Engine) -> None:
        with closing(live.subscribe(["warm"])) as subscription:
            subscription.fileno()
            live.store([record("warm")])
            subscription.changed(DEADLINE_SECONDS)
        files, running = open_files(), threading.active_count()
        for number in range(30):
            subscription = live.subscribe([f"m{number}", "n"])
            subscription.fileno()
            live.store([record("n")])
            subscription.close()
            subscription.close()
        # What others had, in this process, may end meanwhile.
        eventually(lambda: threading.active_count() <= running)
        eventually(lambda: open_files() <= files)
        live.store([record("m0"), record("n")])
