"""What becomes of the deliveries of a process that is gone."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import Raw

from celeriac.core.errors import EngineUnavailable
from celeriac.core.message import Delivery, Record, Settlement, Verdict
from celeriac.testing.faulty import FaultyEngine
from celeriac.worker.process import Doom
from celeriac.worker.recovery import give_back_abandoned, recover
from celeriac.worker.worker import Settler

from .lab import Lab, plan

KILLED = -signal.SIGKILL
TERMINATED = {"exc_type": "TaskRevokedError", "exc_message": ["terminated"], "exc_module": "celery.exceptions"}
Make = Callable[..., Any]


@pytest.fixture
def died(lab: Lab) -> Iterator[Make]:
    """A process that is dead; `running` are the ids that its page shows, `early` are those of them that it has acknowledged."""
    pages = []

    def make(
        *running: str, early: Any = (), finished: Any = (), exit_code: int = KILLED, doom: Any = None, interrupted: bool = False
    ) -> Any:
        page = lab.page(places=4)
        pages.append(page)
        page.begin_batch(4)
        for settlement in finished:
            page.finish(settlement)
        for place, task_id in enumerate(running):
            page.start(place, task_id, place, 1.0, 0.0, 0.0)
        for task_id in early:
            page.acknowledged(task_id)
        return SimpleNamespace(plan=plan(), page=page, number=1, pid=4711, exit_code=exit_code, doom=doom, interrupted=interrupted)

    yield make
    for page in pages:
        page.close()


@pytest.fixture
def deliver(lab: Lab) -> Callable[[], Delivery]:
    @lab.app.task
    def work() -> None: ...

    return lambda: lab.deliver(work)


def done(delivery: Delivery, *, early: bool = False) -> Settlement:
    record = Record(task_id=delivery.id, status="SUCCESS", result=Raw(b"1"))
    lease = None if early else delivery.lease
    return Settlement(id=delivery.id, verdict=Verdict.DONE, lease=lease, receipt=delivery.receipt, record=record)


def counts(lab: Lab, task_id: str) -> tuple[str, int, int] | None:
    waiting = lab.engine.find([task_id]).get(task_id)
    return None if waiting is None else (waiting.state, waiting.crashes, waiting.interruptions)


def test_what_is_finished_is_settled_what_ran_has_crashed_the_rest_is_given_back(lab: Lab, died: Make, deliver: Any) -> None:
    finished, ran, waited = deliver(), deliver(), deliver()
    recover(died(ran.id, finished=[done(finished)]), lab.settler)
    assert (counts(lab, finished.id), lab.state(finished.id)) == (None, "SUCCESS")
    assert counts(lab, ran.id) == ("ready", 1, 0)
    assert counts(lab, waited.id) == ("ready", 0, 1)


def test_what_is_finished_and_still_looks_as_if_it_ran_is_finished(lab: Lab, died: Make, deliver: Any) -> None:
    delivery = deliver()
    recover(died(delivery.id, finished=[done(delivery)]), lab.settler)
    assert (counts(lab, delivery.id), lab.state(delivery.id)) == (None, "SUCCESS")


def test_all_that_ran_at_once_are_suspect(lab: Lab, died: Make, deliver: Any) -> None:
    ran = [deliver(), deliver()]
    recover(died(*(delivery.id for delivery in ran)), lab.settler)
    assert [counts(lab, delivery.id) for delivery in ran] == [("ready", 1, 0)] * 2


def test_a_shutdown_counts_as_an_interruption(lab: Lab, died: Make, deliver: Any) -> None:
    delivery = deliver()
    recover(died(delivery.id, interrupted=True), lab.settler)
    assert counts(lab, delivery.id) == ("ready", 0, 1)


def test_the_doomed_task_gets_its_error(lab: Lab, died: Make, deliver: Any) -> None:
    delivery = deliver()
    recover(died(delivery.id, doom=Doom(delivery.id, signal.SIGKILL, TERMINATED)), lab.settler)
    assert counts(lab, delivery.id) == ("ready", 0, 1)
    (again,) = lab.reserve()
    assert again.message is not None and again.message.doom == TERMINATED
    lab.run(again)
    assert lab.state(delivery.id) == "REVOKED"


def test_the_next_task_does_not_get_the_error_of_the_doomed_one(lab: Lab, died: Make, deliver: Any) -> None:
    doomed, next_one = deliver(), deliver()
    recover(died(next_one.id, finished=[done(doomed)], doom=Doom(doomed.id, signal.SIGKILL, TERMINATED)), lab.settler)
    assert (counts(lab, doomed.id), lab.state(doomed.id)) == (None, "SUCCESS")
    assert counts(lab, next_one.id) == ("ready", 0, 1), "we killed its process, so it is no crash of it"
    (again,) = lab.reserve()
    assert again.message is not None and again.message.doom is None


def test_a_process_that_dies_of_something_else_than_its_doom_has_crashed(lab: Lab, died: Make, deliver: Any) -> None:
    doomed, next_one = deliver(), deliver()
    process = died(next_one.id, finished=[done(doomed)], doom=Doom(doomed.id, signal.SIGABRT, TERMINATED), exit_code=-signal.SIGSEGV)
    recover(process, lab.settler)
    assert counts(lab, next_one.id) == ("ready", 1, 0)


def test_what_was_acknowledged_early_and_ran_has_failed(lab: Lab, died: Make, deliver: Any) -> None:
    delivery = deliver()
    lab.engine.settle([Settlement(id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, receipt=delivery.receipt)])
    recover(died(delivery.id, early=[delivery.id], exit_code=3), lab.settler)
    record = lab.record(delivery.id)
    assert record is not None and record.status == "FAILURE" and b"exit code 3" in bytes(record.result)


def test_what_was_acknowledged_early_and_terminated_is_revoked(lab: Lab, died: Make, deliver: Any) -> None:
    delivery = deliver()
    lab.engine.settle([Settlement(id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, receipt=delivery.receipt)])
    recover(died(delivery.id, early=[delivery.id], doom=Doom(delivery.id, signal.SIGKILL, TERMINATED)), lab.settler)
    assert lab.state(delivery.id) == "REVOKED"


def test_what_was_acknowledged_early_and_has_ended_keeps_its_outcome(lab: Lab, died: Make, deliver: Any) -> None:
    in_ring, settled = deliver(), deliver()
    for delivery in (in_ring, settled):
        lab.engine.settle([Settlement(id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, receipt=delivery.receipt)])
    lab.engine.settle([done(settled, early=True)])
    recover(died(in_ring.id, settled.id, early=[in_ring.id, settled.id], finished=[done(in_ring, early=True)]), lab.settler)
    assert [lab.state(delivery.id) for delivery in (in_ring, settled)] == ["SUCCESS", "SUCCESS"]


@pytest.mark.parametrize("doom", [None, TERMINATED])
def test_what_ran_and_belongs_to_somebody_else_by_now_has_not_failed(lab: Lab, died: Make, deliver: Any, doom: Any) -> None:
    """As when a connection is lost, and RabbitMQ gives to others what it held."""
    delivery = deliver()
    lab.engine.settle([Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt)])
    (elsewhere,) = lab.reserve(process=2)
    recover(died(delivery.id, doom=doom and Doom(delivery.id, signal.SIGKILL, doom)), lab.settler)
    assert (lab.where(delivery.id), lab.state(delivery.id)) == ("leased", None)
    lab.run(elsewhere)
    assert lab.state(delivery.id) == "SUCCESS"


def test_what_others_got_when_it_was_about_to_be_acknowledged_has_not_failed(
    lab: Lab, died: Make, deliver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a connection is lost before RabbitMQ has heard the acknowledgement."""
    delivery = deliver()
    lab.engine.settle([Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt)])
    (elsewhere,) = lab.reserve(process=2)
    monkeypatch.setattr(lab.engine, "lost", lambda node, process: [delivery.id])
    recover(died(delivery.id, early=[delivery.id]), lab.settler)
    assert (lab.where(delivery.id), lab.state(delivery.id), elsewhere.id) == ("leased", None, delivery.id)


def test_outcomes_of_what_others_hold_are_left_out(lab: Lab, died: Make, deliver: Any) -> None:
    delivery = deliver()
    lab.engine.settle([Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt)])
    (elsewhere,) = lab.reserve(process=2)
    recover(died(finished=[done(delivery)]), lab.settler)
    assert (lab.where(delivery.id), lab.state(delivery.id), elsewhere.id) == ("leased", None, delivery.id)


def test_a_revoked_task_that_ran_is_not_repeated(lab: Lab, died: Make, deliver: Any) -> None:
    from celeriac.core.message import Revocation

    delivery = deliver()
    record = Record(task_id=delivery.id, status="REVOKED")
    lab.engine.revoke([Revocation(id=delivery.id, record=record)])
    recover(died(delivery.id), lab.settler)
    assert (lab.where(delivery.id), lab.state(delivery.id)) == (None, "REVOKED")


@pytest.mark.parametrize("verb", ["held", "lost", "fetch", "settle"])
def test_it_can_be_done_again_when_the_engine_was_away(lab: Lab, died: Make, deliver: Any, verb: str) -> None:
    finished, ran, early = deliver(), deliver(), deliver()
    lab.engine.settle([Settlement(id=early.id, verdict=Verdict.DONE, lease=early.lease, receipt=early.receipt)])
    process = died(ran.id, early.id, early=[early.id], finished=[done(finished)])
    faulty = FaultyEngine(lab.engine, fail_at=1, verbs=[verb])
    settler = Settler(faulty, faulty, together=True)
    with pytest.raises(EngineUnavailable):
        recover(process, settler)
    recover(process, settler)
    assert (lab.state(finished.id), counts(lab, ran.id), lab.state(early.id)) == ("SUCCESS", ("ready", 1, 0), "FAILURE")


def test_what_processes_hold_that_are_gone_is_given_back(lab: Lab, deliver: Any) -> None:
    delivery = deliver()
    holder = delivery.lease.holder
    give_back_abandoned(holder.node, {holder.process}, lab.settler)
    assert counts(lab, delivery.id) == ("leased", 0, 0)
    give_back_abandoned(holder.node, {holder.process + 1}, lab.settler)
    assert counts(lab, delivery.id) == ("ready", 0, 1)
