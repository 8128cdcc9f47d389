"""Each reason why a task is not running, made and explained."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from celeriac.core.errors import TaskRevokedError
from celeriac.core.ids import new_id
from celeriac.core.message import Attempt, Delivery, Holder, Pause, Record, Revocation, Settlement, Verdict
from celeriac.core.serialize import encode_exception, encode_value
from celeriac.engines.memory import MemoryEngine
from celeriac.tasks.control import Control
from celeriac.tasks.why import duration_in_words, why
from tests.unit.cli.fakes import FakeApp, FakeWorker, message


class Clock:
    """2026-01-31 12:00, until somebody turns it."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()

    def time(self) -> float:
        return self.moment

    def monotonic(self) -> float:
        return self.moment


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def app(clock: Clock) -> FakeApp:
    return FakeApp(MemoryEngine(clock=clock))


def worker(app: FakeApp, **details: Any) -> FakeWorker:
    return FakeWorker(app.broker, **{"name": "celeriac@a", "tasks": ["shop.pay"], **details}).register()


def reserve(app: FakeApp, node: FakeWorker) -> Delivery:
    (delivery,) = app.broker.reserve(["celery"], limit=1, holder=Holder(node.node.id, 2))
    return delivery


def test_nobody_ever_heard_of_it(app: FakeApp) -> None:
    told = why(app, "no-such-id")
    assert (told.state, told.reasons) == ("unknown", ["unknown"])
    assert "no-such-id" in told.sentences[0] and "memory://" in told.sentences[0]


def test_an_id_so_old_that_its_result_has_expired(app: FakeApp) -> None:
    told = why(app, "01890000-0000-7000-8000-000000000000")
    assert told.reasons == ["result-expired"]
    assert "result_expires" in told.sentences[1]


def test_not_due(app: FakeApp) -> None:
    worker(app)
    sent = message(delay_seconds=3725)
    app.broker.publish([sent])
    told = why(app, sent.id)
    assert (told.state, told.reasons, told.task, told.queue) == ("scheduled", ["not-due"], "shop.pay", "celery")
    assert told.sentences == ["'shop.pay' is not due yet: it may start 2026-01-31 13:02:05 UTC, in 1 h 2 min."]


def test_waiting_for_its_retry(app: FakeApp, clock: Clock) -> None:
    worker(app)
    last = Attempt(
        worker="celeriac@a",
        started_at=datetime.fromtimestamp(clock.time(), UTC),
        runtime_seconds=1.5,
        state="RETRY",
        error="ConnectionError('x')",
    )
    sent = message(delay_seconds=60, retries=1, attempts=[last])
    app.broker.publish([sent])
    told = why(app, sent.id)
    assert told.reasons == ["retrying"]
    assert "retry number 1, which is due 2026-01-31 12:01:00 UTC, in 1 min" in told.sentences[0]
    assert "ConnectionError('x')" in told.sentences[1] and "celeriac@a" in told.sentences[1]
    assert told.facts["last_error"] == "ConnectionError('x')"


@pytest.mark.parametrize(
    ("pause", "reason", "words"),
    [
        (Pause(step="grace", seconds=3600), "sleeping", "sleeps at its step 'grace' until 2026-01-31 13:00:00 UTC, in 1 h"),
        (Pause(step="s", event="paid:1"), "awaiting-event", "waits for the event 'paid:1': `app.occur('paid:1', …)` lets it go on."),
        (Pause(step="s", event="e", seconds=60), "awaiting-event", "lets it go on. It waits until 2026-01-31 12:01:00 UTC, in"),
    ],
)
def test_at_a_durable_step(app: FakeApp, pause: Pause, reason: str, words: str) -> None:
    app.broker.publish([message()])
    delivery = reserve(app, worker(app))
    app.broker.settle([Settlement(id=delivery.id, verdict=Verdict.RETRY, lease=delivery.lease, receipt=delivery.receipt, pause=pause)])
    told = why(app, delivery.id)
    assert (told.state, told.reasons[0]) == ("scheduled", reason)
    assert words in told.sentences[0]


def test_paused_by_whom(app: FakeApp) -> None:
    worker(app)
    sent = message()
    app.broker.publish([sent])
    app.broker.pause(["celery"], by="ann@desk")
    told = why(app, sent.id)
    assert told.reasons == ["queue-paused"]
    assert told.sentences == ["Queue 'celery' is paused by ann@desk; `celeriac queues resume celery` lets it go on."]


def test_no_worker_at_all(app: FakeApp) -> None:
    sent = message()
    app.broker.publish([sent])
    told = why(app, sent.id)
    assert told.reasons == ["no-worker"]
    assert told.sentences == ["No worker is alive. Start one: `celeriac -A … worker -Q celery`."]


def test_workers_but_of_other_queues(app: FakeApp) -> None:
    worker(app, queues=["mail"])
    sent = message()
    app.broker.publish([sent])
    assert "celeriac@a consumes mail" in why(app, sent.id).sentences[0]


def test_a_worker_whose_lease_ran_out_does_not_count(app: FakeApp, clock: Clock) -> None:
    worker(app)
    clock.moment += 100
    sent = message()
    app.broker.publish([sent])
    told = why(app, sent.id)
    assert told.reasons == ["no-worker"]
    assert "its lease ran out 1 min 25 s ago" in told.sentences[0]


def test_no_worker_knows_the_task(app: FakeApp) -> None:
    worker(app, tasks=["shop.other"])
    sent = message()
    app.broker.publish([sent])
    told = why(app, sent.id)
    assert told.reasons == ["unknown-task"]
    assert "celeriac@a, the only live worker of queue 'celery', does not know task 'shop.pay'" in told.sentences[0]
    worker(app, name="celeriac@b", queues=["mail"])
    assert "celeriac@b does, but does not consume queue 'celery'." in why(app, sent.id).sentences[0]


def test_given_back_by_a_worker_that_does_not_know_it(app: FakeApp) -> None:
    node = worker(app, tasks=["shop.other"])
    sent = message()
    app.broker.publish([sent])
    delivery = reserve(app, node)
    app.broker.settle([Settlement(id=sent.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt, delay_seconds=5)])
    told = why(app, sent.id)
    assert told.reasons == ["unknown-task", "given-back"]
    assert "it is offered again in 5.0 s." in told.sentences[1]


def test_in_line(app: FakeApp) -> None:
    worker(app)
    sent = [message(id=f"m{number}") for number in range(4)]
    app.broker.publish(sent)
    told = why(app, "m3")
    assert (told.reasons, told.facts["ahead"]) == (["in-line"], 3)
    assert told.sentences == [
        "3 messages of queue 'celery' are ahead of it; the workers of this queue run up to 2 at once, and 0 are taken now."
    ]
    assert why(app, "m0").reasons == ["next"]


def test_expired_while_waiting(app: FakeApp, clock: Clock) -> None:
    worker(app)
    sent = message(expires=datetime.fromtimestamp(clock.time() + 5, UTC))
    app.broker.publish([sent])
    clock.moment += 10
    assert why(app, sent.id).reasons == ["expired"]


def test_running_where_and_since_when() -> None:
    app = FakeApp()
    sent = message()
    started_at = app.broker.now() - 90
    info = {"time_start": started_at, "worker_pid": 77}
    with FakeWorker(app.broker, "celeriac@a", tasks=["shop.pay"], query_task=lambda ids: {sent.id: ["active", info]}) as node:
        app.broker.publish([sent])
        reserve(app, node)
        told = why(app, sent.id, timeout_seconds=30)
    assert (told.state, told.reasons, told.facts["pid"], told.facts["node"]) == ("running", ["running"], 77, "celeriac@a")
    assert "is running on celeriac@a, process 77 since" in told.sentences[0] and re.search(r"\(1 min [345]. s\)", told.sentences[0])


def test_taken_but_behind_another() -> None:
    app = FakeApp()
    sent = message()
    with FakeWorker(app.broker, "celeriac@a", query_task=lambda ids: {sent.id: ["reserved", {}]}) as node:
        app.broker.publish([sent])
        reserve(app, node)
        told = why(app, sent.id, timeout_seconds=30)
    assert (told.state, told.reasons) == ("reserved", ["reserved"])


def test_progress_of_its_own(app: FakeApp) -> None:
    node = worker(app)
    sent = message()
    app.broker.publish([sent])
    reserve(app, node)
    app.backend.store([Record(task_id=sent.id, status="PROGRESS", result=encode_value({"done": 3}))])
    told = why(app, sent.id, ask_node=False)
    assert told.state == "running"
    assert "It says of itself: PROGRESS {'done': 3}." in told.sentences


def test_held_by_a_worker_that_is_silent(app: FakeApp, clock: Clock) -> None:
    node = worker(app)
    sent = message()
    app.broker.publish([sent])
    reserve(app, node)
    clock.moment += 20
    told = why(app, sent.id)
    assert told.reasons == ["holder-lost"]
    assert "No worker is alive to take it over" in told.sentences[0]
    worker(app, name="celeriac@b")
    assert "celeriac@b gives it to a live process" in why(app, sent.id).sentences[0]


def test_dead_letter(app: FakeApp) -> None:
    node = worker(app)
    sent = message()
    app.broker.publish([sent])
    delivery = reserve(app, node)
    app.broker.settle(
        [Settlement(id=sent.id, verdict=Verdict.DEAD, lease=delivery.lease, receipt=delivery.receipt, reason="3 processes died")]
    )
    told = why(app, sent.id)
    assert (told.state, told.reasons) == ("dead", ["dead"])
    assert "is a dead letter of queue 'celery' since 2026-01-31 12:00:00 UTC: 3 processes died." in told.sentences[0]
    assert f"celeriac dead replay {sent.id}" in told.sentences[-1]


@pytest.mark.parametrize(
    ("status", "result", "state", "reason", "text"),
    [
        ("SUCCESS", encode_value(4), "succeeded", "succeeded", "'shop.pay' succeeded on celeriac@a at 2026-01-31 12:00:00 UTC."),
        ("FAILURE", encode_exception(KeyError("x")), "failed", "failed", "failed on celeriac@a at 2026-01-31 12:00:00 UTC: KeyError('x')."),
        ("REVOKED", encode_exception(TaskRevokedError("revoked")), "revoked", "revoked", "was revoked before it ran"),
        ("REVOKED", encode_exception(TaskRevokedError("expired")), "revoked", "expired", "expired before it was started"),
        ("REVOKED", encode_exception(TaskRevokedError("terminated")), "revoked", "revoked", "was terminated while it ran"),
    ],
)
def test_finished(app: FakeApp, status: str, result: Any, state: str, reason: str, text: str) -> None:
    done = datetime(2026, 1, 31, 12, tzinfo=UTC)
    app.backend.store([Record(task_id="x", status=status, result=result, name="shop.pay", worker="celeriac@a", date_done=done)])
    told = why(app, "x")
    assert (told.state, told.reasons) == (state, [reason])
    assert text in told.sentences[0]


def test_unfinished_and_nowhere(app: FakeApp) -> None:
    app.backend.store([Record(task_id="x", status="STARTED", name="shop.pay")])
    told = why(app, "x")
    assert (told.state, told.reasons) == ("unfinished", ["lost"])


def test_running_though_acknowledged_before() -> None:
    app = FakeApp()
    app.backend.store([Record(task_id="x", status="STARTED", name="shop.pay")])
    with FakeWorker(app.broker, "celeriac@a", query_task=lambda ids: {"x": ["active", {}]}):
        assert why(app, "x", timeout_seconds=30).state == "running"


def test_who_may_run_it_is_asked_for_as_long_as_the_caller_says(app: FakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    app.backend.store([Record(task_id="x", status="STARTED", name="shop.pay")])
    worker(app)
    asked: list[float] = []
    monkeypatch.setattr(Control, "_answers", lambda control, address, expected, seconds, callback: asked.append(seconds) or [])
    assert why(app, "x", timeout_seconds=7).state == "unfinished"
    assert asked == [7]


def test_revoked_before_it_came(app: FakeApp) -> None:
    app.broker.revoke([Revocation(id="later")])
    assert (why(app, "later").state, why(app, "later").reasons) == ("revoked", ["revoked"])


def test_fresh_id_that_is_unknown_says_when_it_was_made() -> None:
    told = why(FakeApp(), new_id())
    assert told.reasons == ["unknown"]
    assert told.sentences[1].startswith("Its id was made ")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0304, "30 ms"),
        (3.14, "3.1 s"),
        (42.9, "42 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (86400, "1 day"),
        (97200 * 10, "11 days 6 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words
