"""Results that live elsewhere than the messages: who may store them, and what becomes of a message that comes back although it has one."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from msgspec import Raw, structs

from celeriac.core.message import Delivery, Record, Settlement, Verdict
from celeriac.engines.memory import MemoryEngine
from celeriac.worker.executor import Executor
from celeriac.worker.worker import Settler

from .lab import Lab


def apart(lab: Lab, lease_until: Callable[[], float] = lambda: math.inf) -> Settler:
    return Settler(lab.engine, MemoryEngine("memory://", clock=lab.clock), together=False, lease_until=lease_until)


def executor(lab: Lab, settler: Settler, **more: Any) -> Executor:
    return Executor(
        tasks=lab.app.tasks,
        broker=lab.engine,
        backend=settler.backend,
        producer=lab.app.producer,
        settings=lab.app.settings,
        hostname="w@h",
        **more,
    )


def done(delivery: Delivery) -> Settlement:
    record = Record(task_id=delivery.id, status="SUCCESS")
    return Settlement(id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, receipt=delivery.receipt, record=record)


def released(lab: Lab, delivery: Delivery) -> Delivery:
    """It is given back, and taken again."""
    lab.engine.settle([Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt)])
    (again,) = lab.reserve()
    return again


def ended(lab: Lab, delivery: Delivery, *, before: float = 0.0, **fields: Any) -> Record:
    """Its result, of so many seconds before it was sent."""
    moment = datetime.fromtimestamp(delivery.waiting_since - before, UTC)
    return Record(**{"task_id": delivery.id, "status": "SUCCESS", "result": Raw(b"7"), "date_done": moment, **fields})


@pytest.fixture
def work(lab: Lab) -> Any:
    @lab.app.task
    def work() -> None:
        raise AssertionError("it is run")

    return work


def test_past_its_lease_a_process_stores_only_what_it_still_holds(lab: Lab, work: Any) -> None:
    settler = apart(lab, lambda: 0.0)
    mine, lost = lab.deliver(work), lab.deliver(work)
    released(lab, lost)
    assert settler.settle([done(mine), done(lost)]) == [lost.id]
    assert list(settler.backend.fetch([mine.id, lost.id])) == [mine.id]


@pytest.mark.parametrize("certain", [True, False])
def test_past_its_lease_a_run_asks_whether_its_message_is_still_its_own(lab: Lab, work: Any, certain: bool) -> None:
    runs = executor(lab, apart(lab), lease_until=lambda: math.inf if certain else 0.0)
    kept, lost = lab.deliver(work), lab.deliver(work)
    released(lab, lost)
    for delivery, is_held in ((kept, True), (lost, certain)):
        prepared = runs.prepare(delivery)
        assert not isinstance(prepared, Settlement)
        assert prepared[1].is_held() is is_held


def test_what_has_its_success_only_publishes_what_follows(lab: Lab, work: Any) -> None:
    settler = apart(lab)
    delivery = released(lab, lab.deliver(work, link=work.s()))
    record = ended(lab, delivery)
    settler.backend.store([record])
    (sifted,) = settler.sifted([delivery])
    settlement = executor(lab, settler).run(sifted)
    assert (settlement.verdict, len(settlement.follow_ups)) == (Verdict.DONE, 1)
    settler.settle([settlement])
    assert settler.backend.fetch([delivery.id]) == {delivery.id: record}
    assert lab.where(delivery.id) is None


def test_what_a_later_try_has_ended_is_over(lab: Lab, work: Any) -> None:
    settler = apart(lab)
    delivery = released(lab, lab.deliver(work))
    settler.backend.store([ended(lab, delivery, retries=1, status="FAILURE")])
    assert settler.sifted([delivery]) == []
    assert lab.where(delivery.id) is None


@pytest.mark.parametrize("of", [{"status": "FAILURE"}, {"status": "RETRY"}, {"before": 1.0}], ids=["failure", "retry", "earlier call"])
def test_all_else_is_run_again(lab: Lab, work: Any, of: dict[str, Any]) -> None:
    settler = apart(lab)
    delivery = released(lab, lab.deliver(work))
    settler.backend.store([ended(lab, delivery, **of)])
    assert settler.sifted([delivery]) == [delivery]


def test_a_second_copy_of_what_is_done_is_acknowledged(lab: Lab, work: Any) -> None:
    settler = apart(lab)
    copy = structs.replace(lab.deliver(work), repeated=True)
    settler.backend.store([ended(lab, copy, status="FAILURE", before=1.0)])
    assert settler.sifted([copy]) == []
    assert lab.where(copy.id) is None


@pytest.mark.parametrize(
    ("retries", "crashes", "runs"),
    [(1, 0, False), (2, 0, False), (0, 0, True), (1, 1, True)],
    ids=["this try", "a later try", "the try before it", "it ran itself"],
)
def test_a_second_copy_of_a_try_that_ended_with_another_is_acknowledged(
    lab: Lab, work: Any, retries: int, crashes: int, runs: bool
) -> None:
    """Whoever ran the first copy has published what comes next; or has the first copy still, and runs it again."""
    settler = apart(lab)
    delivery = lab.deliver(work)
    assert delivery.message is not None
    copy = structs.replace(delivery, message=structs.replace(delivery.message, retries=1), repeated=True, crashes=crashes)
    settler.backend.store([Record(task_id=copy.id, status="RETRY", retries=retries)])
    assert settler.sifted([copy]) == ([copy] if runs else [])
    assert lab.where(copy.id) == ("leased" if runs else None)
