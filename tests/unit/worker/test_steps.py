"""Durable steps, over an engine in memory and on a clock that the test turns."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from celeriac import Celeriac, chord, group
from celeriac.core.errors import EngineUnavailable, ImproperlyConfigured
from celeriac.exceptions import TimeoutError
from celeriac.steps import astep, sleep, step, wait_for_event
from celeriac.worker.inline import InlineWorker


@pytest.fixture
def app() -> Celeriac:
    return Celeriac("steps", broker="memory://")


@pytest.fixture
def worker(app: Celeriac) -> Iterator[InlineWorker]:
    with InlineWorker(app) as worker:
        yield worker


class Log(list[str]):
    """What was done, in order."""

    def do(self, what: str, value: Any = None) -> Any:
        self.append(what)
        return value


@pytest.fixture
def log() -> Log:
    return Log()


def recalled(worker: InlineWorker, task_id: str) -> list[str]:
    return list(worker.engine.recall(task_id))


# -- steps -----------------------------------------------------------------------------------------------------------


def test_a_retry_goes_on_behind_the_last_finished_step(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    @app.task(bind=True, max_retries=3)
    def order(self: Any) -> Any:
        one = step("one", log.do, "one", {"paid": 1})
        if self.request.retries < 2:
            raise self.retry(countdown=10)
        two = step("two", log.do, "two")
        return [one, two]

    result = order.delay()
    worker.run_all()
    assert (log, result.get()) == (["one", "two"], [{"paid": 1}, None])
    assert recalled(worker, result.id) == []


def test_a_step_that_raises_is_tried_again(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    def fail_once() -> str:
        log.append("two")
        if log.count("two") == 1:
            raise OSError("away")
        return "done"

    @app.task(autoretry_for=(OSError,), default_retry_delay=1)
    def order() -> str:
        step("one", log.do, "one")
        return step("two", fail_once)

    result = order.delay()
    worker.run_all()
    assert (log, result.get()) == (["one", "two", "two"], "done")


@pytest.mark.parametrize("value", [Decimal("1.50"), datetime(2026, 1, 2, tzinfo=UTC), b"\xff", {"é": [None]}, 10**30])
def test_values_are_what_they_were(app: Celeriac, worker: InlineWorker, value: Any) -> None:
    seen = []

    @app.task(bind=True)
    def order(self: Any) -> None:
        seen.append(step("one", lambda: value))
        if self.request.retries < 1:
            raise self.retry(countdown=1)

    order.delay()
    worker.run_all()
    assert seen == [value, value]


def test_the_first_run_gets_what_later_ones_will_get(app: Celeriac, worker: InlineWorker) -> None:
    @app.task
    def order() -> str:
        return type(step("one", lambda: (1, 2))).__name__

    result = order.delay()
    worker.run()
    assert result.get() == "list"


def test_what_cannot_be_remembered_fails_and_is_named(app: Celeriac, worker: InlineWorker) -> None:
    @app.task
    def order() -> None:
        step("one", object)

    result = order.delay()
    worker.run()
    with pytest.raises(Exception, match="what step 'one' returned"):
        result.get()


def test_a_name_stands_for_one_step(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    @app.task
    def order() -> None:
        step("one", log.do, "a")
        step("one", log.do, "b")

    result = order.delay()
    worker.run()
    with pytest.raises(ValueError, match="two steps of the name 'one'"):
        result.get()
    assert log == ["a"]


@pytest.mark.parametrize("ending", ["success", "failure", "replace"])
def test_the_end_of_a_task_forgets_its_steps(app: Celeriac, worker: InlineWorker, log: Log, ending: str) -> None:
    @app.task
    def other() -> Any:
        return step("one", log.do, "other", "other")

    @app.task(bind=True)
    def order(self: Any) -> Any:
        step("one", log.do, "order")
        if ending == "failure":
            raise ValueError
        if ending == "replace":
            self.replace(other.s())
        return "order"

    result = order.delay()
    worker.run()
    assert recalled(worker, result.id) == []
    assert result.status == ("FAILURE" if ending == "failure" else "SUCCESS")
    if ending == "replace":
        assert (result.get(), log) == ("other", ["order", "other"])


def test_a_coroutine_remembers_too(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    async def fetch(value: int) -> int:
        log.append("fetch")
        return value + 1

    @app.task(bind=True)
    async def order(self: Any) -> int:
        value = await astep("fetch", fetch, 41)
        sleep("grace", 60)
        if self.request.retries < 1:
            raise self.retry(countdown=1)
        return value

    result = order.delay()
    worker.run_all()
    assert (result.get(), log) == (42, ["fetch"])


def test_who_lost_the_lease_does_nothing_more(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    """The node is declared dead in the middle of the task, and its message runs elsewhere."""

    @app.task
    def order() -> None:
        step("one", log.do, "one")
        if log == ["one"]:
            worker.engine.reclaim([worker._holder.node])
            worker.engine.register(worker._node(), lease_seconds=1e9)
        step("two", log.do, "two")
        log.append("end")

    result = order.delay()
    worker.run()
    assert log == ["one", "two", "two", "end"]
    assert result.get() is None


def test_an_engine_that_is_away_gives_the_task_back(app: Celeriac, worker: InlineWorker, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    remember = worker.engine.remember

    def refuse(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(worker.engine, "remember", remember)
        raise EngineUnavailable("away")

    @app.task
    def order() -> Any:
        return step("one", log.do, "one", "done")

    result = order.delay()
    monkeypatch.setattr(worker.engine, "remember", refuse)
    worker.run()
    assert (result.get(), log) == ("done", ["one", "one"])


# -- waits -----------------------------------------------------------------------------------------------------------


def test_sleep_gives_the_place_back(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    @app.task(bind=True)
    def order(self: Any) -> str:
        log.append(f"run {self.request.retries}")
        step("one", log.do, "one")
        sleep("grace", 3600)
        step("two", log.do, "two")
        sleep("again", 3600)
        return "done"

    result = order.delay()
    assert worker.run() == 1
    assert log == ["run 0", "one"]
    worker.advance(3599)
    assert worker.run() == 0
    worker.advance(2)
    assert worker.run() == 1
    assert log == ["run 0", "one", "run 0", "two"]
    assert not result.ready()
    worker.advance(3601)
    worker.run()
    assert result.get() == "done"
    assert log.count("one") == log.count("two") == 1
    assert recalled(worker, result.id) == []


def test_an_event_goes_on_with_its_value(app: Celeriac, worker: InlineWorker) -> None:
    @app.task
    def order(number: int) -> Any:
        return wait_for_event(f"paid:{number}")

    results = [order.delay(number) for number in range(3)]
    worker.run()
    worker.advance(1e7)
    assert worker.run() == 0
    assert app.occur("paid:1", {"amount": Decimal("9.50")}) == [results[1].id]
    assert worker.run() == 1
    assert results[1].get() == {"amount": Decimal("9.50")}
    assert not results[0].ready()
    app.occur("paid:0")
    worker.run()
    assert results[0].get() is None
    assert app.occur("paid:0") == []


def test_an_event_that_occurred_before_is_not_waited_for(app: Celeriac, worker: InlineWorker) -> None:
    @app.task
    def order() -> Any:
        return wait_for_event("paid", name="first"), wait_for_event("paid", 10, name="second")

    assert app.occur("paid", "early") == []
    result = order.delay()
    worker.run()
    assert result.get() == ["early", "early"]


def test_an_event_that_does_not_come_in_time(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    @app.task
    def order() -> str:
        try:
            wait_for_event("paid", timeout=60)
        except TimeoutError as late:
            step("remind", log.do, str(late))
            sleep("once more", 60)
            return "late"
        return "paid"

    result = order.delay()
    worker.run()
    worker.advance(61)
    worker.run()
    app.occur("paid")  # too late: what was decided stays decided
    worker.advance(61)
    worker.run()
    assert result.get() == "late"
    assert log == ["The event 'paid' did not occur in time."]


def test_what_expires_while_it_waits_goes_on(app: Celeriac, worker: InlineWorker) -> None:
    @app.task
    def order() -> str:
        sleep("grace", 3600)
        return "done"

    result = order.apply_async(expires=60)
    worker.run_all()
    assert result.get() == "done"


def test_what_is_revoked_while_it_waits_is_gone(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    @app.task
    def order() -> None:
        wait_for_event("paid")
        log.append("ran")

    result = order.delay()
    worker.run()
    result.revoke()
    app.occur("paid")
    assert worker.run() == 0
    assert (result.status, log) == ("REVOKED", [])


def test_except_and_finally_in_the_task(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    """`except Exception` does not take the wait for an error."""

    @app.task
    def order() -> str:
        try:
            sleep("grace", 10)
        except Exception:
            return "caught"
        finally:
            log.append("finally")
        return "done"

    result = order.delay()
    worker.run_all()
    assert (result.get(), log) == ("done", ["finally", "finally"])


def test_a_member_of_a_chord_and_its_body_may_wait(app: Celeriac, worker: InlineWorker, log: Log) -> None:
    @app.task
    def member(number: int) -> Any:
        sleep("grace", 10 * number)
        return step("value", log.do, f"member {number}", number)

    @app.task
    def body(numbers: list[int]) -> Any:
        sleep("grace", 100)
        return step("sum", log.do, "body", sum(numbers))

    result = chord(group(member.s(number) for number in range(4)))(body.s())
    worker.run_all()
    assert result.get() == 6
    assert sorted(log) == ["body", "member 0", "member 1", "member 2", "member 3"]
    assert worker.engine.queues() == []


# -- where there is nothing durable ------------------------------------------------------------------------------------


def test_eager_and_direct_calls_do_not_wait(app: Celeriac, log: Log) -> None:
    @app.task
    def order() -> list[Any]:
        sleep("long", 1e9)
        try:
            wait_for_event("paid")
        except TimeoutError:
            log.append("late")
        return [step("one", log.do, "one", (1,))]

    assert order.apply().get() == [[1]]
    assert order() == [[1]]
    assert log == ["late", "one"] * 2


def test_outside_of_a_task_there_are_none() -> None:
    with pytest.raises(RuntimeError, match="none running"):
        step("one", print)


def test_at_most_once_has_no_steps(app: Celeriac, worker: InlineWorker) -> None:
    @app.task(acks_late=False)
    def order() -> None:
        step("one", print)

    result = order.delay()
    worker.run()
    with pytest.raises(ImproperlyConfigured, match="acks_late"):
        result.get()


def test_an_engine_without_steps_is_named(app: Celeriac, worker: InlineWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    import msgspec

    monkeypatch.setattr(worker.engine, "capabilities", msgspec.structs.replace(worker.engine.capabilities, engine="other", steps=False))

    @app.task
    def order() -> None:
        step("one", print)

    result = order.delay()
    worker.run()
    with pytest.raises(ImproperlyConfigured, match="other does not"):
        result.get()
    with pytest.raises(ImproperlyConfigured, match="other does not"):
        app.occur("paid")


def test_who_uses_no_steps_does_not_load_them() -> None:
    code = "import sys, celeriac; from celeriac.app import Celeriac; assert 'celeriac.tasks.steps' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
