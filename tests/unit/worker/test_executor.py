"""One delivery from start to outcome, over an engine in memory."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec import Raw, json, structs

from celeriac import Task
from celeriac.core import events
from celeriac.core.errors import EngineUnavailable, Ignore, Reject, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from celeriac.core.message import Message, Revocation, Verdict
from celeriac.testing.faulty import FaultyEngine

from .lab import Lab, MakeLab


def error_of(lab: Lab, task_id: str) -> str:
    record = lab.record(task_id)
    assert record is not None
    return str(json.decode(record.result)["exc_type"])


def doomed(lab: Lab, task: Any, error: str, *arguments: Any, **options: Any) -> Any:
    """A delivery whose run the supervisor has ended."""
    delivery = lab.deliver(task, **options)
    assert delivery.message is not None
    doom = {"exc_type": error, "exc_message": list(arguments), "exc_module": "celery.exceptions"}
    return structs.replace(delivery, message=structs.replace(delivery.message, doom=doom))


# -- what tasks do ----------------------------------------------------------------------------------------------------


def test_success(lab: Lab) -> None:
    @lab.app.task
    def add(x: int, y: int) -> int:
        return x + y

    delivery = lab.deliver(add, 1, 2)
    assert lab.run(delivery).verdict is Verdict.DONE
    record = lab.record(delivery.id)
    assert record is not None and (record.status, bytes(record.result), record.name, record.worker) == ("SUCCESS", b"3", add.name, "w@h")
    assert (record.args, [attempt.state for attempt in record.attempts]) == ("(1, 2)", ["SUCCESS"])
    assert lab.where(delivery.id) is None


def test_failure(lab: Lab) -> None:
    @lab.app.task
    def fail() -> None:
        raise ValueError("no")

    delivery = lab.deliver(fail)
    assert lab.run(delivery).verdict is Verdict.DONE
    assert (lab.state(delivery.id), error_of(lab, delivery.id), lab.where(delivery.id)) == ("FAILURE", "ValueError", None)


@pytest.mark.parametrize(
    ("settings", "options", "error", "where"),
    [
        ({}, {}, ValueError(), None),
        ({"task_acks_on_failure_or_timeout": False}, {}, ValueError(), "dead"),
        ({"task_acks_on_failure_or_timeout": False}, {}, SoftTimeLimitExceeded(), "dead"),
        ({"task_acks_on_failure": False}, {}, ValueError(), "dead"),
        ({"task_acks_on_failure": False}, {}, SoftTimeLimitExceeded(), None),
        ({"task_acks_on_timeout": False}, {}, ValueError(), None),
        ({"task_acks_on_timeout": False}, {}, SoftTimeLimitExceeded(), "dead"),
        ({"task_acks_on_failure": False}, {"acks_on_failure": True}, ValueError(), None),
        ({}, {"acks_on_failure_or_timeout": False}, ValueError(), "dead"),
    ],
)
def test_whether_a_failure_is_acknowledged(make_lab: MakeLab, settings: Any, options: Any, error: Exception, where: str | None) -> None:
    lab = make_lab(**settings)

    @lab.app.task(**options)
    def fail() -> None:
        raise error

    delivery = lab.deliver(fail)
    lab.run(delivery)
    assert (lab.state(delivery.id), lab.where(delivery.id)) == ("FAILURE", where)


def test_a_hard_time_limit_is_a_timeout_that_need_not_be_acknowledged(make_lab: MakeLab) -> None:
    lab = make_lab(task_acks_on_timeout=False)

    @lab.app.task
    def work() -> None: ...

    delivery = doomed(lab, work, "TimeLimitExceeded", 5)
    lab.run(delivery)
    assert (lab.state(delivery.id), lab.where(delivery.id)) == ("FAILURE", "dead")


def test_expected_errors_are_logged_as_such(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    @lab.app.task(throws=(KeyError,))
    def fail() -> None:
        raise KeyError("known")

    lab.run(lab.deliver(fail))
    assert [(record.levelname, "raised expected" in record.message) for record in caplog.records][-1] == ("INFO", True)


def test_retry(lab: Lab) -> None:
    @lab.app.task(bind=True)
    def again(self: Task[..., Any], x: int) -> None:
        raise self.retry(args=(x + 1,), countdown=30, exc=ValueError("not yet"))

    delivery = lab.deliver(again, 1)
    assert lab.run(delivery).verdict is Verdict.RETRY
    assert (lab.state(delivery.id), lab.where(delivery.id)) == ("RETRY", "scheduled")
    lab.clock.advance(30)
    (second,) = lab.reserve()
    assert second.message is not None
    assert (second.message.retries, second.message.argsrepr, len(second.message.attempts)) == (1, "(2,)", 1)


def test_a_retry_that_cannot_be_sent_is_a_failure(lab: Lab) -> None:
    @lab.app.task(bind=True)
    def again(self: Task[..., Any]) -> None:
        raise self.retry(args=(object(),), throw=True)

    delivery = lab.deliver(again)
    lab.run(delivery)
    assert (lab.state(delivery.id), error_of(lab, delivery.id), lab.where(delivery.id)) == ("FAILURE", "EncodeError", None)


def test_an_error_whose_repr_raises_is_a_failure_like_others(lab: Lab) -> None:
    class Broken(Exception):
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    @lab.app.task
    def fail() -> None:
        raise Broken

    delivery = lab.deliver(fail)
    lab.run(delivery)
    assert (lab.state(delivery.id), lab.where(delivery.id)) == ("FAILURE", None)


def test_ignore(lab: Lab) -> None:
    @lab.app.task
    def ignore() -> None:
        raise Ignore

    delivery = lab.deliver(ignore)
    lab.run(delivery)
    assert (lab.state(delivery.id), lab.where(delivery.id)) == (None, None)


@pytest.mark.parametrize(("requeue", "where", "state"), [(False, "dead", "FAILURE"), (True, "ready", None)])
def test_reject(lab: Lab, requeue: bool, where: str, state: str | None) -> None:
    @lab.app.task
    def reject() -> None:
        raise Reject("not today", requeue=requeue)

    delivery = lab.deliver(reject)
    lab.run(delivery)
    assert (lab.where(delivery.id), lab.state(delivery.id)) == (where, state)
    if not requeue:
        assert lab.engine.find([delivery.id])[delivery.id].reason == "not today"


def test_a_result_that_cannot_be_stored(lab: Lab) -> None:
    @lab.app.task
    def strange() -> object:
        return object()

    delivery = lab.deliver(strange)
    lab.run(delivery)
    assert (lab.state(delivery.id), error_of(lab, delivery.id)) == ("FAILURE", "EncodeError")


def test_a_call_with_wrong_arguments_is_a_failure(lab: Lab) -> None:
    @lab.app.task(typing=False)
    def work(x: int) -> None: ...

    delivery = lab.deliver(work)
    lab.run(delivery)
    assert (lab.state(delivery.id), error_of(lab, delivery.id)) == ("FAILURE", "TypeError")


@pytest.mark.parametrize(("setting", "state"), [(False, None), (True, "FAILURE")])
def test_ignore_result(make_lab: MakeLab, setting: bool, state: str | None) -> None:
    lab = make_lab(task_ignore_result=True, task_store_errors_even_if_ignored=setting)

    @lab.app.task
    def work(fails: bool) -> int:
        return 1 // (0 if fails else 1)

    good, bad, unknown_here = lab.deliver(work, False), lab.deliver(work, True), lab.deliver(work.name, False)
    for delivery in (good, bad, unknown_here):
        lab.run(delivery)
    assert (lab.state(good.id), lab.state(bad.id), lab.state(unknown_here.id)) == (None, state, None)


def test_links_are_published_with_the_outcome(lab: Lab) -> None:
    @lab.app.task
    def work(x: int) -> int:
        return x

    delivery = lab.deliver(work, 1, link=work.s())
    settlement = lab.run(delivery)
    (follower,) = lab.reserve()
    assert follower.message is not None and follower.message.argsrepr == "(1,)"
    assert [message.id for message in settlement.follow_ups] == [follower.id]


# -- before the call --------------------------------------------------------------------------------------------------


def test_track_started(lab: Lab) -> None:
    seen = []

    @lab.app.task(bind=True, track_started=True)
    def work(self: Task[..., Any]) -> None:
        seen.append(lab.state(self.request.id))

    lab.run(lab.deliver(work))
    assert seen == ["STARTED"]


def test_the_start_of_a_task_that_is_acknowledged_early_is_recorded_too(lab: Lab) -> None:
    seen = []

    @lab.app.task(bind=True, track_started=True, acks_late=False)
    def work(self: Task[..., Any]) -> None:
        seen.append(lab.state(self.request.id))

    lab.run(lab.deliver(work))
    assert seen == ["STARTED"]


def test_a_start_that_cannot_be_recorded_starts_all_the_same(lab: Lab) -> None:
    @lab.app.task(track_started=True)
    def work() -> int:
        return 1

    delivery = lab.deliver(work)
    lab.run(delivery, broker=FaultyEngine(lab.engine, fail_at=1, verbs=["store"]))
    assert lab.state(delivery.id) == "SUCCESS"


def test_acks_early_removes_the_message_before_the_run(lab: Lab) -> None:
    seen = []

    @lab.app.task(bind=True, acks_late=False)
    def work(self: Task[..., Any]) -> None:
        seen.append(lab.where(self.request.id))
        raise ValueError

    delivery = lab.deliver(work)
    settlement = lab.run(delivery)
    assert (seen, settlement.lease, lab.state(delivery.id)) == ([None], None, "FAILURE")


def test_acks_early_is_said_before_it_is_done(lab: Lab) -> None:
    """Else who dies in between leaves a task that nobody runs, and of which nobody hears."""
    said = []

    @lab.app.task(acks_late=False)
    def early() -> None: ...

    @lab.app.task
    def late() -> None: ...

    for task in (late, early):
        delivery = lab.deliver(task)
        lab.run(delivery, acknowledged=lambda task_id: said.append((task_id, lab.where(task_id))))
    assert said == [(delivery.id, "leased")]


def test_acks_early_does_not_run_what_belongs_to_somebody_else(lab: Lab) -> None:
    @lab.app.task(acks_late=False)
    def work() -> None:
        pytest.fail("it ran")

    delivery = lab.deliver(work)
    lab.engine.unregister("node-1")
    assert lab.run(delivery).verdict is Verdict.RELEASED
    assert lab.where(delivery.id) == "ready"


def test_acks_early_does_not_run_while_the_engine_is_away(lab: Lab) -> None:
    @lab.app.task(acks_late=False)
    def work() -> None:
        pytest.fail("it ran")

    delivery = lab.deliver(work)
    with pytest.raises(EngineUnavailable):
        lab.executor(FaultyEngine(lab.engine, fail_at=1, verbs=["settle"])).run(delivery)
    assert lab.where(delivery.id) == "leased"


def test_acks_early_and_a_retry(lab: Lab) -> None:
    @lab.app.task(bind=True, acks_late=False)
    def again(self: Task[..., Any]) -> None:
        raise self.retry(countdown=10)

    delivery = lab.deliver(again)
    lab.run(delivery)
    assert (lab.state(delivery.id), lab.where(delivery.id)) == ("RETRY", "scheduled")


def test_a_task_over_its_rate_limit_is_given_back_with_a_pause(lab: Lab) -> None:
    @lab.app.task(rate_limit="1/m")
    def work() -> None:
        pytest.fail("it ran")

    delivery = lab.deliver(work)
    lab.run(delivery, gate=lambda task: 7.0)
    assert lab.where(delivery.id) == "scheduled"
    lab.clock.advance(7.0)
    assert [again.id for again in lab.reserve()] == [delivery.id]


def test_the_default_rate_limit_is_every_tasks(make_lab: MakeLab) -> None:
    lab = make_lab(task_default_rate_limit="10/s")

    @lab.app.task
    def work() -> None: ...

    delivery = lab.deliver(work)
    assert lab.run(delivery, gate=lambda task: 1.0 if task.rate_limit == "10/s" else 0.0).verdict is Verdict.RELEASED


# -- deliveries that do not run ---------------------------------------------------------------------------------------


def test_expired(lab: Lab) -> None:
    told = []
    receiver = lambda expired, terminated, **_: told.append((expired, terminated))  # noqa: E731
    events.task_revoked.connect(receiver, weak=False)

    @lab.app.task
    def work() -> None:
        pytest.fail("it ran")

    try:
        lab.engine.publish([structs.replace(lab.app.producer.message(work.name, (), {}, task=work), expires=_moment(lab, 5))])
        lab.clock.advance(6)
        (delivery,) = lab.reserve()
        lab.run(delivery)
    finally:
        events.task_revoked.disconnect(receiver)
    assert (lab.state(delivery.id), error_of(lab, delivery.id), lab.where(delivery.id)) == ("REVOKED", "TaskRevokedError", None)
    assert told == [(True, False)]


def _moment(lab: Lab, seconds: float) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(lab.clock.time() + seconds, UTC)


def test_revoked_before_it_came(lab: Lab) -> None:
    @lab.app.task
    def work() -> None:
        pytest.fail("it ran")

    lab.engine.revoke([Revocation(id="known")])
    delivery = lab.deliver(work, task_id="known")
    lab.run(delivery)
    assert (lab.state("known"), lab.where("known")) == ("REVOKED", None)


def test_a_revoked_task_whose_result_nobody_wants_leaves_no_record(lab: Lab) -> None:
    @lab.app.task(ignore_result=True)
    def work() -> None: ...

    lab.engine.revoke([Revocation(id="known")])
    lab.run(lab.deliver(work, task_id="known"))
    assert (lab.state("known"), lab.where("known")) == (None, None)


def test_doomed_by_its_time_limit(lab: Lab) -> None:
    told = []

    class Told(Task):  # type: ignore[type-arg]
        def on_failure(self, exc: BaseException, *_: Any) -> None:
            told.append(exc)

    @lab.app.task(base=Told, autoretry_for=(Exception,))
    def work() -> None:
        pytest.fail("it ran")

    delivery = doomed(lab, work, "TimeLimitExceeded", 5)
    lab.run(delivery)
    assert (lab.state(delivery.id), error_of(lab, delivery.id), lab.where(delivery.id)) == ("FAILURE", "TimeLimitExceeded", None)
    assert isinstance(told[0], TimeLimitExceeded)


def test_doomed_by_a_revoke(lab: Lab) -> None:
    told = []
    receiver = lambda terminated, **_: told.append(terminated)  # noqa: E731
    events.task_revoked.connect(receiver, weak=False)

    @lab.app.task
    def work() -> None:
        pytest.fail("it ran")

    try:
        delivery = doomed(lab, work, "TaskRevokedError", "terminated")
        lab.run(delivery)
    finally:
        events.task_revoked.disconnect(receiver)
    assert (lab.state(delivery.id), error_of(lab, delivery.id), told) == ("REVOKED", "TaskRevokedError", [True])


def test_an_error_callback_follows_a_doom(lab: Lab) -> None:
    @lab.app.task
    def work(*args: Any) -> None: ...

    @lab.app.task(bind=True)
    def tell(self: Task[..., Any], task_id: str) -> None: ...

    delivery = doomed(lab, work, "TimeLimitExceeded", 5, link_error=tell.s())
    lab.run(delivery)
    (follower,) = lab.reserve()
    assert follower.message is not None and follower.message.task == tell.name


def test_a_task_that_raises_what_came_of_another_has_failed(lab: Lab) -> None:
    @lab.app.task
    def asks() -> None:
        raise TaskRevokedError("the other one")

    delivery = lab.deliver(asks)
    lab.run(delivery)
    assert lab.state(delivery.id) == "FAILURE"


def test_poisoned(make_lab: MakeLab) -> None:
    lab = make_lab(task_max_crashes=2)
    ran = []

    @lab.app.task
    def work() -> None:
        ran.append(1)

    delivery = lab.crash(lab.deliver(work))
    assert lab.executor().run(delivery).verdict is Verdict.DONE
    delivery = lab.crash(delivery)
    lab.run(delivery)
    assert (ran, lab.where(delivery.id), lab.state(delivery.id), error_of(lab, delivery.id)) == ([1], "dead", "FAILURE", "WorkerLostError")
    assert "died 2 times" in lab.engine.find([delivery.id])[delivery.id].reason


def test_a_task_that_says_so_is_not_repeated_after_a_crash(lab: Lab) -> None:
    @lab.app.task(reject_on_worker_lost=False)
    def work() -> None:
        pytest.fail("it ran")

    delivery = lab.crash(lab.deliver(work))
    lab.run(delivery)
    assert (lab.where(delivery.id), lab.state(delivery.id)) == ("dead", "FAILURE")


def test_unknown_tasks_wait_and_become_dead_letters(make_lab: MakeLab, caplog: pytest.LogCaptureFixture) -> None:
    lab = make_lab(task_unknown_expires=60)
    delivery = lab.deliver("nobody.knows")
    lab.run(delivery)
    assert (lab.where(delivery.id), lab.state(delivery.id)) == ("scheduled", None)
    for _ in range(11):
        lab.clock.advance(5)
        (delivery,) = lab.reserve()
        lab.run(delivery)
        assert lab.where(delivery.id) == "scheduled"
    lab.clock.advance(5)
    (delivery,) = lab.reserve()
    lab.run(delivery)
    assert (lab.where(delivery.id), lab.state(delivery.id), error_of(lab, delivery.id)) == ("dead", "FAILURE", "NotRegistered")
    assert len([record for record in caplog.records if "waits for a worker" in record.message]) == 1


def test_what_cannot_be_decoded_goes_to_the_dead_letters(lab: Lab) -> None:
    @lab.app.task
    def work() -> None: ...

    delivery = lab.deliver(work)
    broken = structs.replace(delivery, message=None, raw_message=b"{", error="no JSON")
    lab.run(broken)
    assert (lab.where(delivery.id), lab.state(delivery.id)) == ("dead", "FAILURE")


@pytest.mark.parametrize(
    "changes",
    [
        {"content_type": "application/x-python-serialize", "body": Raw(b'"gASVAAA="')},
        {"content_type": "application/unheard-of"},
        {"body": Raw(b'{"not": "an array"}')},
        {"body": Raw(b"[[],{}]")},
        {"body": Raw(b'[{"__type__": "unheard-of", "__value__": 1}, {}, null]')},
        {"body": Raw(b"[1, {}, null]")},
        {"body": Raw(b"[[], {}, 5]")},
        {"body": Raw(b'[[], {}, {"errbacks": 5}]')},
    ],
    ids=["pickle", "unknown", "object", "two", "tag", "args", "embed", "errbacks"],
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_body_that_makes_no_sense_never_ends_the_process(lab: Lab, changes: dict[str, Any], fails: bool) -> None:
    @lab.app.task
    def work() -> None:
        if fails:
            raise ValueError

    message: Message = structs.replace(lab.app.producer.message(work.name, (), {}, task=work), **changes)
    lab.engine.publish([message])
    (delivery,) = lab.reserve()
    lab.run(delivery)
    assert lab.where(message.id) in ("dead", None)
    assert lab.state(message.id) in ("FAILURE", "SUCCESS")
    if changes.get("content_type"):
        assert (lab.where(message.id), lab.state(message.id)) == ("dead", "FAILURE")


# -- coroutines -------------------------------------------------------------------------------------------------------


def test_a_coroutine_ends_with_the_reason_of_its_cancellation(lab: Lab) -> None:
    @lab.app.task(acks_late=False)
    async def waits() -> None:
        await asyncio.Event().wait()

    delivery = lab.deliver(waits)
    executor = lab.executor()

    async def main() -> Any:
        running = asyncio.create_task(executor.arun(delivery, lambda: TaskRevokedError("terminated")))
        while not executor.running:
            await asyncio.sleep(0)
        running.cancel()
        return await running

    settlement = asyncio.run(main())
    assert (settlement.lease, settlement.record.status, executor.running) == (None, "REVOKED", {})


def test_a_coroutine_that_is_cancelled_without_a_reason_comes_to_no_end(lab: Lab) -> None:
    @lab.app.task
    async def waits() -> None:
        await asyncio.Event().wait()

    delivery = lab.deliver(waits)
    executor = lab.executor()

    async def main() -> None:
        running = asyncio.create_task(executor.arun(delivery))
        while not executor.running:
            await asyncio.sleep(0)
        running.cancel()
        await running

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert executor.running == {}
