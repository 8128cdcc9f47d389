"""What a supervisor sees in a page, and does about it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac.core.errors import SoftTimeLimitExceeded
from celeriac.core.message import Delivery, Settlement, Verdict
from celeriac.testing.faulty import FaultyEngine
from celeriac.worker import limits
from celeriac.worker.limits import HOSTAGE_SECONDS, SOFT_SIGNAL_SECONDS, free_hostages, install_soft_limit, watch
from celeriac.worker.slots import EVERYTHING, NOTHING, Page
from celeriac.worker.worker import EXIT_RECYCLED, Settler, Worker

from .lab import Lab, plan


class FakeProcess:
    """A process as its supervisor sees it, without the process."""

    def __init__(self, page: Page) -> None:
        self.plan, self.page, self.number, self.pid = plan(), page, 1, 4711
        self.soft_signalled: float | None = None
        self.next_soft_signal = 0.0
        self.freed: float | None = None
        self.audited_at = 0.0
        self.draining = self.interrupted = False
        self.exit_code: int | None = None
        self.doom: Any = None
        self.signals: list[int] = []

    def kill(self, signum: int = signal.SIGKILL) -> None:
        self.signals.append(signum)

    def end_task(self, task_id: str, error: str, *arguments: Any, signum: int = signal.SIGKILL) -> None:
        self.doom = (task_id, error, arguments)
        self.kill(signum)


@pytest.fixture
def page(lab: Lab) -> Iterator[Page]:
    page = lab.page()
    yield page
    page.close()


@pytest.fixture
def process(page: Page) -> Any:
    return FakeProcess(page)


def test_a_soft_limit_is_signalled_until_the_process_has_raised_it(lab: Lab, page: Page, process: Any) -> None:
    page.start(0, "task", 0, 100.0, 105.0, 0.0)
    for now in (104.9, 105.0, 105.01, 105.0 + SOFT_SIGNAL_SECONDS):
        watch(process, lab.settler, now)
    assert process.signals == [signal.SIGUSR1] * 2
    page.soft_limit_raised(0)
    watch(process, lab.settler, 110.0)
    assert process.signals == [signal.SIGUSR1] * 2


def test_a_hard_limit_kills_once_for_that_task(lab: Lab, page: Page, process: Any) -> None:
    page.start(0, "task", 0, 100.0, 105.0, 106.0)
    watch(process, lab.settler, 106.0)
    watch(process, lab.settler, 106.1)
    assert process.signals == [signal.SIGKILL]
    assert process.doom == ("task", "TimeLimitExceeded", (6.0,))


def begin(lab: Lab, page: Page, running: int, count: int = 3) -> list[Delivery]:
    """A batch of which the task at position `running` runs, and those before it are finished."""

    @lab.app.task
    def work() -> None: ...

    for _ in range(count):
        lab.publish(work)
    deliveries = lab.reserve(count)
    page.begin_batch(count)
    for delivery in deliveries[:running]:
        page.finish(Settlement(id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, receipt=delivery.receipt))
    page.start(0, deliveries[running].id, running, 100.0, 0.0, 0.0)
    return deliveries


def test_hostages_of_a_long_task_are_freed_once(lab: Lab, page: Page, process: Any) -> None:
    first, second, third = begin(lab, page, running=1)
    watch(process, lab.settler, 100.0 + HOSTAGE_SECONDS / 2)
    assert lab.where(third.id) == "leased"
    watch(process, lab.settler, 100.1)
    assert [lab.where(delivery.id) for delivery in (first, second, third)] == [None, "leased", "ready"]
    generation, _ = page.command()
    harvest = page.harvest(generation)
    assert harvest is not None and (harvest.taken, harvest.kept) == (1, 1)
    watch(process, lab.settler, 100.2)
    assert page.command() == (generation, 0)


def test_hostages_wait_for_an_engine_that_is_away(lab: Lab, page: Page, process: Any) -> None:
    first, _, third = begin(lab, page, running=1)
    faulty = FaultyEngine(lab.engine, fail_at=1, verbs=["settle"])
    settler = Settler(faulty, faulty, together=True)
    watch(process, settler, 100.1)
    harvest = page.harvest(page.command()[0])
    assert harvest is not None and (harvest.taken, harvest.kept) == (0, EVERYTHING)
    assert lab.where(third.id) == "leased"
    watch(process, settler, 100.2)
    assert (lab.where(first.id), lab.where(third.id)) == (None, "ready")


def test_nothing_is_taken_of_a_batch_that_the_process_settles_itself(lab: Lab, page: Page, process: Any) -> None:
    deliveries = begin(lab, page, running=2)
    page.clear(0)
    page.end_batch()
    assert free_hostages(process, lab.settler)
    harvest = page.harvest(page.command()[0])
    assert harvest is not None and harvest.kept == EVERYTHING
    assert [lab.where(delivery.id) for delivery in deliveries] == ["leased"] * 3


def test_nothing_is_taken_of_a_batch_that_began_meanwhile(lab: Lab, page: Page, process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    deliveries = begin(lab, page, running=0)
    raise_generation = page.raise_generation

    def and_the_process_goes_on() -> int:
        generation = raise_generation()
        page.begin_batch(3)
        return generation

    monkeypatch.setattr(page, "raise_generation", and_the_process_goes_on)
    free_hostages(process, lab.settler)
    assert [lab.where(delivery.id) for delivery in deliveries] == ["leased"] * 3


def test_nothing_is_taken_of_a_batch_that_begins_while_the_engine_is_slow(
    lab: Lab, page: Page, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = begin(lab, page, running=1)
    monkeypatch.setattr(limits, "HARVEST_SECONDS", 0.0)
    held = lab.engine.held

    def and_the_process_has_waited_in_vain(node: str, number: int) -> list[Delivery]:
        page.end_batch()
        lab.engine.settle([Settlement(id=one.id, verdict=Verdict.RELEASED, lease=one.lease, receipt=one.receipt) for one in deliveries])
        page.begin_batch(len(lab.reserve(3)))
        return held(node, number)

    monkeypatch.setattr(lab.engine, "held", and_the_process_has_waited_in_vain)
    freed = free_hostages(process, lab.settler)
    assert [lab.where(delivery.id) for delivery in deliveries] == ["leased"] * 3
    assert not freed


def test_what_a_harvest_took_of_one_batch_is_not_missing_in_the_next(lab: Lab, page: Page, process: Any) -> None:
    begin(lab, page, running=1)
    free_hostages(process, lab.settler)
    assert page.taken() == 1
    page.begin_batch(2)
    page.finish(Settlement(id="next", verdict=Verdict.DONE, lease=None))
    assert [settlement.id for settlement in page.outcomes()] == ["next"]


def test_nothing_runs_between_two_tasks(lab: Lab, page: Page, process: Any) -> None:
    deliveries = begin(lab, page, running=0)
    page.clear(0)
    free_hostages(process, lab.settler)
    harvest = page.harvest(page.command()[0])
    assert harvest is not None and harvest.kept == NOTHING
    assert [lab.where(delivery.id) for delivery in deliveries] == ["ready"] * 3


# -- both sides -------------------------------------------------------------------------------------------------------


def run_worker(lab: Lab, page: Page, *, most: int) -> int:
    import os

    worker = Worker(
        settler=lab.settler,
        executor=lab.executor(),
        page=page,
        holder=lab.holder,
        queues=["celery"],
        supervisor_pid=os.getppid(),
        max_tasks=most,
    )
    worker.batch_size._ramp = 64
    return worker.run()


@pytest.mark.parametrize("when", range(4))
@pytest.mark.parametrize("huge", [False, True], ids=["ring", "beyond the ring"])
def test_each_task_is_settled_once_whenever_it_is_harvested(lab: Lab, page: Page, process: Any, when: int, huge: bool) -> None:
    ran: list[int] = []

    @lab.app.task
    def work(number: int) -> str:
        ran.append(number)
        if len(ran) == when + 1:
            free_hostages(process, lab.settler)
        return "x" * (400_000 if huge else 1)

    ids = [lab.publish(work, number).id for number in range(4)]
    refused: list[str] = []
    settle = lab.engine.settle
    lab.engine.settle = lambda settlements: (found := settle(settlements), refused.extend(found))[0]  # type: ignore[method-assign]
    assert run_worker(lab, page, most=4) == EXIT_RECYCLED
    assert sorted(ran) == [0, 1, 2, 3]
    assert [lab.state(task_id) for task_id in ids] == ["SUCCESS"] * 4
    assert [lab.where(task_id) for task_id in ids] == [None] * 4
    assert refused == []


# -- the soft limit in the process ------------------------------------------------------------------------------------


@pytest.fixture
def soft_limits(lab: Lab, page: Page) -> Iterator[Any]:
    executor = lab.executor()
    before = signal.getsignal(signal.SIGUSR1)
    install_soft_limit(page, executor.running)
    yield executor
    signal.signal(signal.SIGUSR1, before)


def test_a_soft_limit_is_raised_in_the_tasks_own_code(lab: Lab, page: Page, soft_limits: Any) -> None:
    @lab.app.task(bind=True)
    def work(self: Any) -> str:
        page.start(0, self.request.id, 0, 1.0, 2.0, 0.0)
        try:
            signal.raise_signal(signal.SIGUSR1)
        except SoftTimeLimitExceeded as error:
            signal.raise_signal(signal.SIGUSR1)  # once is enough
            return f"tidied up after {error.args[0]}"
        return "not told"

    delivery = lab.deliver(work)
    lab.engine.settle([soft_limits.run(delivery)])
    record = lab.record(delivery.id)
    assert record is not None and bytes(record.result) == b'"tidied up after 1.0"'


def test_a_soft_limit_that_is_not_reached_is_not_raised(lab: Lab, page: Page, soft_limits: Any) -> None:
    @lab.app.task(bind=True)
    def work(self: Any) -> None:
        page.start(0, self.request.id, 0, 1.0, time.monotonic() + 1000, 0.0)
        signal.raise_signal(signal.SIGUSR1)

    delivery = lab.deliver(work)
    assert soft_limits.run(delivery).record.status == "SUCCESS"


@pytest.mark.parametrize("step", ["prepare", "settlement"])
def test_a_soft_limit_is_not_raised_in_our_own_code(
    lab: Lab, page: Page, soft_limits: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    @lab.app.task
    def work() -> None: ...

    original = getattr(soft_limits, step)

    def disturbed(delivery: Delivery, *arguments: Any) -> Any:
        page.start(0, delivery.id, 0, 1.0, 2.0, 0.0)
        signal.raise_signal(signal.SIGUSR1)
        return original(delivery, *arguments)

    monkeypatch.setattr(soft_limits, step, disturbed)
    assert soft_limits.run(lab.deliver(work)).record.status == "SUCCESS"
    assert page.running()[0].soft_deadline == 2.0


def test_a_soft_limit_is_not_raised_in_hooks(lab: Lab, page: Page, soft_limits: Any) -> None:
    from celeriac import Task

    class Hooked(Task):  # type: ignore[type-arg]
        def on_success(self, value: object, task_id: str, *_: Any) -> None:
            page.start(0, task_id, 0, 1.0, 2.0, 0.0)
            signal.raise_signal(signal.SIGUSR1)
            told.append(task_id)

    told: list[str] = []

    @lab.app.task(base=Hooked)
    def work() -> None: ...

    delivery = lab.deliver(work)
    assert soft_limits.run(delivery).record.status == "SUCCESS"
    assert told == [delivery.id]


def test_what_the_engine_has_forgotten_is_given_back_beside_a_long_task(lab: Lab, page: Page, process: Any) -> None:
    @lab.app.task
    def work() -> None: ...

    forgotten, long = lab.deliver(work), lab.deliver(work)
    process.plan = plan(audit_seconds=15.0)
    page.begin_batch(1)
    page.start(0, long.id, 0, 100.0, 0.0, 0.0)
    watch(process, lab.settler, 114.0)
    assert lab.engine.find([forgotten.id])[forgotten.id].state == "leased"
    watch(process, lab.settler, 116.0)
    generation, _ = page.command()
    found = lab.engine.find([forgotten.id, long.id])
    assert {id: waiting.state for id, waiting in found.items()} == {forgotten.id: "ready", long.id: "leased"}
    watch(process, lab.settler, 130.0)
    assert page.command()[0] == generation, "not again at once"
