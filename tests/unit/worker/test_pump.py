"""Taking and settling where many tasks run at once. The pool of these tests runs nothing until it is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from celeriac.core.message import Delivery, Settlement, Verdict
from celeriac.testing.contract.harness import eventually
from celeriac.testing.faulty import FaultyEngine
from celeriac.worker.pools.pump import EXIT_BROKEN, Pump
from celeriac.worker.slots import Page
from celeriac.worker.worker import EXIT_LEASE_LOST, EXIT_OK, EXIT_ORPHANED, EXIT_RECYCLED, Settler

from .lab import Lab, plan


class Pool:
    """Keeps what is started until `end`."""

    def __init__(self, lab: Lab, page: Page, *, broker: Any = None, **more: Any) -> None:
        engine = broker or lab.engine
        self.lab, self.page = lab, page
        self.started: list[tuple[int, Delivery]] = []
        self.pump = Pump(
            plan(pool="threads", places=page.places, **more),
            Settler(engine, engine, together=True),
            lab.executor(),
            page,
            lab.holder,
            start=self._start,
        )
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.pump.take, self.pump.settle)]

    def _start(self, pairs: list[tuple[int, Delivery]]) -> None:
        for place, delivery in pairs:
            self.pump.mark(place, delivery)
            self.started.append((place, delivery))

    def begin(self) -> Pool:
        for thread in self.threads:
            thread.start()
        return self

    def end(self, index: int = 0) -> str:
        """One of those that run comes to its end; its id."""
        place, delivery = self.started.pop(index)
        self.pump.finished(place, Settlement(id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, receipt=delivery.receipt))
        return delivery.id

    def join(self) -> int:
        """The exit code, once both loops have ended."""
        for thread in self.threads:
            thread.join(40)
            assert not thread.is_alive(), "a loop does not end"
        return self.pump.exit_code


@pytest.fixture
def page(lab: Lab) -> Iterator[Page]:
    page = lab.page(places=3)
    yield page
    page.close()


@pytest.fixture
def make_pool(lab: Lab, page: Page) -> Iterator[Callable[..., Pool]]:
    pools = []

    def make(**more: Any) -> Pool:
        pools.append(Pool(lab, page, **more))
        return pools[-1]

    yield make
    page.stop()
    for pool in pools:
        for thread in pool.threads:
            if thread.ident:
                while pool.started:
                    pool.end()
                thread.join(40)


@pytest.fixture
def send(lab: Lab) -> Callable[[int], list[str]]:
    @lab.app.task
    def work() -> None: ...

    return lambda count: [lab.publish(work).id for _ in range(count)]


def test_as_many_run_as_there_are_places(lab: Lab, page: Page, make_pool: Any, send: Any) -> None:
    ids = send(5)
    pool = make_pool().begin()
    eventually(lambda: len(pool.started) == 3)
    assert [running.task_id for running in page.running()] == [delivery.id for _, delivery in pool.started]
    assert [lab.where(task_id) for task_id in ids] == ["leased"] * 3 + ["ready"] * 2
    ended = pool.end()
    eventually(lambda: lab.where(ended) is None and len(pool.started) == 3)
    assert len({place for place, _ in pool.started}) == 3


def test_a_stop_waits_for_what_runs_and_takes_nothing_more(lab: Lab, page: Page, make_pool: Any, send: Any) -> None:
    send(3)
    pool = make_pool().begin()
    eventually(lambda: len(pool.started) == 3)
    page.stop()
    (more,) = send(1)
    ended = [pool.end() for _ in range(3)]
    assert pool.join() == EXIT_OK
    assert [lab.where(task_id) for task_id in (*ended, more)] == [None] * 3 + ["ready"]
    assert page.outcomes() == [] and page.done() == 3


def test_who_takes_nothing_more_is_not_taken_for_one_who_waits(
    lab: Lab, page: Page, make_pool: Any, send: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What runs may run for long, and meanwhile an engine would wake this process in the place of others."""
    verbs: list[str] = []
    for verb in ("reserve", "held"):
        real = getattr(lab.engine, verb)
        monkeypatch.setattr(lab.engine, verb, lambda *given, real=real, verb=verb, **more: verbs.append(verb) or real(*given, **more))
    send(1)
    pool = make_pool().begin()
    eventually(lambda: pool.started and verbs.count("reserve") > 2)  # it has started one, and waits for others
    page.stop()
    eventually(lambda: verbs[-1] == "held")
    pool.end()
    assert pool.join() == EXIT_OK


def test_no_more_begin_than_a_process_may_run(lab: Lab, make_pool: Any, send: Any) -> None:
    ids = send(5)
    pool = make_pool(max_tasks=2).begin()
    eventually(lambda: len(pool.started) == 2)
    pool.end()
    pool.end()
    assert pool.join() == EXIT_RECYCLED
    assert [lab.where(task_id) for task_id in ids] == [None] * 2 + ["ready"] * 3


def test_what_could_not_be_run_is_given_back(lab: Lab, page: Page, make_pool: Any, send: Any) -> None:
    (task_id,) = send(1)
    pool = make_pool().begin()
    eventually(lambda: pool.started)
    page.stop()
    pool.pump.abandon(*pool.started.pop())
    assert pool.join() == EXIT_OK and lab.where(task_id) == "ready"


def test_a_suspect_runs_alone(lab: Lab, page: Page, make_pool: Any, send: Any) -> None:
    (suspect,) = send(1)
    lab.engine.settle([_crashed(lab.reserve()[0])])
    others = send(2)
    pool = make_pool().begin()
    eventually(lambda: len(pool.started) == 2)
    assert {delivery.id for _, delivery in pool.started} == set(others)
    pool.end()
    assert len(pool.started) == 1
    pool.end()
    eventually(lambda: pool.started)
    assert [delivery.id for _, delivery in pool.started] == [suspect]
    (more,) = send(1)
    assert lab.where(more) == "ready"
    pool.end()
    eventually(lambda: pool.started)
    assert [delivery.id for _, delivery in pool.started] == [more]


def test_a_suspect_that_waits_is_given_back_by_a_stop(lab: Lab, page: Page, make_pool: Any, send: Any) -> None:
    (suspect,) = send(1)
    lab.engine.settle([_crashed(lab.reserve()[0])])
    send(2)
    pool = make_pool().begin()
    eventually(lambda: len(pool.started) == 2)
    page.stop()
    eventually(lambda: lab.where(suspect) == "ready")
    pool.end()
    pool.end()
    assert pool.join() == EXIT_OK


def _crashed(delivery: Delivery) -> Settlement:
    return Settlement(id=delivery.id, verdict=Verdict.CRASHED, lease=delivery.lease, receipt=delivery.receipt)


def test_outcomes_wait_for_an_engine_that_is_away(lab: Lab, page: Page, make_pool: Any, send: Any) -> None:
    send(2)
    faulty = FaultyEngine(lab.engine, fail_at=1, times=2, verbs=["settle"])
    pool = make_pool(broker=faulty).begin()
    eventually(lambda: len(pool.started) == 2)
    ended = [pool.end(), pool.end()]
    eventually(lambda: [lab.where(task_id) for task_id in ended] == [None, None])
    assert len(faulty.failures) == 2


@pytest.mark.parametrize("verb", ["reserve", "wait"])
def test_taking_goes_on_when_the_engine_is_back(lab: Lab, make_pool: Any, send: Any, verb: str) -> None:
    pool = make_pool(broker=FaultyEngine(lab.engine, fail_at=1, verbs=[verb])).begin()
    send(1)
    eventually(lambda: pool.started)


def test_a_lost_lease_ends_the_process_at_once(lab: Lab, make_pool: Any, send: Any) -> None:
    send(1)
    pool = make_pool().begin()
    eventually(lambda: pool.started)
    lab.engine.unregister("node-1")
    assert pool.join() == EXIT_LEASE_LOST


def test_a_process_that_cannot_settle_ends(lab: Lab, make_pool: Any, send: Any) -> None:
    send(1)
    faulty = FaultyEngine(lab.engine, fail_at=1, times=1000, verbs=["settle"], error=RuntimeError)
    pool = make_pool(broker=faulty).begin()
    eventually(lambda: pool.started)
    pool.end()
    assert pool.join() == EXIT_BROKEN


def test_a_process_that_cannot_take_ends_when_what_runs_has_ended_or_not(lab: Lab, make_pool: Any, send: Any) -> None:
    send(1)
    faulty = FaultyEngine(lab.engine, fail_at=2, times=1000, verbs=["reserve"], error=RuntimeError)
    pool = make_pool(broker=faulty).begin()
    assert pool.join() == EXIT_BROKEN


def test_a_process_whose_supervisor_is_dead_takes_nothing(lab: Lab, make_pool: Any, send: Any) -> None:
    (task_id,) = send(1)
    pool = make_pool(supervisor_pid=os.getpid()).begin()
    assert pool.join() == EXIT_ORPHANED
    assert lab.where(task_id) == "ready"


def test_limits_of_the_call_go_before_those_of_the_worker_and_those_of_remote_control_before_all(lab: Lab, make_pool: Any) -> None:
    @lab.app.task
    def work() -> None: ...

    pool = make_pool(time_limit=10.0, soft_time_limit=5.0, task_limits={"other": (1.0, 0.5)})
    assert pool.pump.mark(0, lab.deliver(work)) == (10.0, 5.0)
    assert pool.pump.mark(0, lab.deliver(work, time_limit=3, soft_time_limit=2)) == (3, 2)
    assert pool.pump.mark(0, lab.deliver("other", time_limit=3)) == (1.0, 0.5)
    assert {running.hard_deadline for running in pool.page.running()} == {0.0}
