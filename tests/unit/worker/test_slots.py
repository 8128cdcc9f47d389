from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress

import pytest
from msgspec import DecodeError

from celeriac.core.message import Holder, Lease, Settlement, Verdict
from celeriac.worker.slots import NOTHING, RING_BYTES, Harvest, Page, ProcessState


def settlement(number: int, reason: str = "") -> Settlement:
    return Settlement(id=f"task-{number}", verdict=Verdict.DONE, lease=Lease(Holder("node", 1), number), receipt=number, reason=reason)


@pytest.fixture
def page():
    page = Page.create(places=3)
    yield page
    page.close()


def test_what_runs_is_seen_with_its_deadlines(page: Page):
    page.start(1, "tâche", 4, 10.0, 12.0, 13.5)
    (running,) = page.running()
    assert (running.place, running.task_id, running.position) == (1, "tâche", 4)
    assert (running.started_at, running.soft_deadline, running.hard_deadline) == (10.0, 12.0, 13.5)
    page.clear(1)
    assert page.running() == []


def test_an_id_of_any_length_fits(page: Page):
    page.start(0, "x" * 255, 0, 1.0, 0.0, 0.0)
    assert page.running()[0].task_id == "x" * 255


def test_what_was_acknowledged_early_is_seen_until_another_runs_there(page: Page):
    for place, task_id in enumerate(["late", "early", "earl"]):
        page.start(place, task_id, place, 1.0, 2.0, 3.0)
    page.acknowledged("early")
    page.acknowledged("unknown")
    assert [(running.task_id, running.acknowledged) for running in page.running()] == [("late", False), ("early", True), ("earl", False)]
    page.clear(1)
    page.acknowledged("early")
    page.start(1, "late too", 1, 1.0, 2.0, 3.0)
    assert not any(running.acknowledged for running in page.running())


def test_outcomes_come_back_as_they_were(page: Page):
    page.begin_batch(3)
    for number in range(3):
        assert page.finish(settlement(number))
    assert page.outcomes() == [settlement(number) for number in range(3)]
    page.begin_batch(1)
    assert page.outcomes() == []


def test_a_harvest_takes_outcomes_out(page: Page):
    page.begin_batch(3)
    page.finish(settlement(0))
    generation = page.raise_generation()
    assert page.command() == (generation, 0)
    assert page.harvest(generation) is None
    page.answer(generation, Harvest(taken=1, kept=NOTHING), page.batch())
    assert page.harvest(generation) == Harvest(taken=1, kept=NOTHING)
    page.finish(settlement(1))
    assert page.outcomes() == [settlement(1)]
    page.begin_batch(2)
    page.finish(settlement(5))
    assert page.outcomes() == [settlement(5)]


def test_hostages_are_all_of_the_batch_but_what_runs_and_what_is_settled(page: Page):
    page.begin_batch(4)
    page.finish(settlement(0))
    assert page.hostages() == 3
    generation = page.raise_generation()
    page.answer(generation, Harvest(taken=1, kept=1), page.batch())
    assert page.hostages() == 2
    page.begin_batch(1)
    assert page.hostages() == 0


def test_a_full_ring_says_so_and_keeps_what_it_has(page: Page):
    page.begin_batch(9)
    big = "x" * (RING_BYTES // 2)
    assert page.finish(settlement(1, big))
    assert not page.finish(settlement(2, big))
    assert [outcome.id for outcome in page.outcomes()] == ["task-1"]


def test_a_killed_process_leaves_its_outcomes(page: Page):
    pid = os.fork()
    if pid == 0:
        page.set_state(ProcessState.BUSY)
        page.begin_batch(2)
        page.finish(settlement(7))
        page.start(0, "running", 1, 5.0, 0.0, 0.0)
        page.count(1)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert page.outcomes() == [settlement(7)]
    assert [running.task_id for running in page.running()] == ["running"]
    assert (page.done(), page.state()) == (1, ProcessState.BUSY)


def test_an_inherited_page_is_the_same_memory(page: Page):
    other = Page.attach(os.dup(page.fd), 3)
    other.stop()
    assert page.command() == (0, 1)
    other.close()


# -- while the other side writes ---------------------------------------------------------------------------------------


def beside(write: Callable[[int], None], look: Callable[[], None]) -> None:
    """Looks at a page again and again while another process writes to it, which may be interrupted between any two instructions."""
    pid = os.fork()
    if pid == 0:
        try:
            for number in range(1, 100_001):
                write(number)
        finally:
            os._exit(0)
    try:
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            look()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def test_what_is_finished_is_seen_while_the_next_outcome_comes(page: Page):
    seen: list[tuple[int, int]] = [(0, 0)]

    def write(number: int) -> None:
        if number % 10 == 1:
            page.begin_batch(10)
        page.finish(settlement(number % 10))

    def look() -> None:
        batch, count = page.batch(), 0
        with suppress(DecodeError):  # the next batch is written over this one while we look
            count = len(page.outcomes())
        if batch and batch == page.batch():
            assert seen[-1] <= (batch, count)
            seen.append((batch, count))

    beside(write, look)


def test_a_number_is_seen_as_it_was_or_as_it_is(page: Page):
    seen: list[tuple[int, float]] = [(0, 0.0)]

    def write(number: int) -> None:
        page.count(number)
        page.renew(float(number))

    def look() -> None:
        done, lease_until = page.done(), page.lease_until()
        assert done >= seen[-1][0] and lease_until >= seen[-1][1]
        seen.append((done, lease_until))

    beside(write, look)


def test_what_runs_is_seen_whole(page: Page):
    def write(number: int) -> None:
        page.start(1, f"task-{number}", number, float(number), float(number), float(number))
        page.clear(1)

    def look() -> None:
        for running in page.running():
            number = running.position
            assert running.task_id == f"task-{number}"
            assert (running.started_at, running.soft_deadline, running.hard_deadline) == (number, number, number)

    beside(write, look)
