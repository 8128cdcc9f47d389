"""One run of a task: outcomes, retries, hooks, signals."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celeriac import Celeriac, Task
from celeriac.core import events, states
from celeriac.core.errors import Ignore, MaxRetriesExceededError, Reject, Retry, SoftTimeLimitExceeded, WorkerLostError
from celeriac.core.message import Message
from celeriac.core.serialize import decode_body
from celeriac.tasks.request import Request, current_request
from celeriac.tasks.run import Outcome, acall, call, conclude


def request_for(app: Celeriac, task: Task[..., Any], *args: Any, **options: Any) -> Request:
    message: Message = app.producer.message(task.name, args, {}, task=task, options=options)
    decoded, kwargs, embed = decode_body(message)
    return Request(message, decoded, kwargs, embed, hostname="w@h")


def run(app: Celeriac, task: Task[..., Any], *args: Any, **options: Any) -> Outcome:
    return call(task, request_for(app, task, *args, **options))


def test_success(app: Celeriac) -> None:
    @app.task
    def f(x: int) -> int:
        return x + 1

    before = datetime.now(UTC)
    outcome = run(app, f, 1)
    assert (outcome.state, outcome.value, bytes(outcome.encoded or b"")) == ("SUCCESS", 2, b"2")
    assert before <= outcome.started_at <= datetime.now(UTC)
    assert outcome.runtime_seconds >= 0
    assert current_request() is None


def test_a_result_that_cannot_be_stored_is_a_failure_unless_nobody_wants_it(app: Celeriac) -> None:
    @app.task
    def f() -> object:
        return object()

    outcome = run(app, f)
    assert outcome.state == states.FAILURE
    assert "result is" in str(outcome.error)
    assert run(app, f, ignore_result=True).state == states.SUCCESS


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), RecursionError(), SoftTimeLimitExceeded(), asyncio.CancelledError()]
)
def test_whatever_a_task_raises_is_its_failure(app: Celeriac, error: BaseException) -> None:
    @app.task
    def f() -> None:
        raise error

    outcome = run(app, f)
    assert (outcome.state, outcome.error) == (states.FAILURE, error)
    assert "in f" in (outcome.traceback or "")
    assert "celeriac/tasks/run.py" not in (outcome.traceback or "")
    assert current_request() is None


def test_expected_exceptions_are_told_apart(app: Celeriac) -> None:
    @app.task(throws=(KeyError,))
    def f(name: str) -> None:
        raise {"key": KeyError, "value": ValueError}[name]

    assert run(app, f, "key").expected
    assert not run(app, f, "value").expected


def test_ignore_and_reject(app: Celeriac) -> None:
    @app.task
    def f(error: str) -> None:
        raise {"ignore": Ignore(), "reject": Reject("bad", requeue=True)}[error]

    assert run(app, f, "ignore").state == states.IGNORED
    outcome = run(app, f, "reject")
    assert (outcome.state, outcome.reason, outcome.requeue) == (states.REJECTED, "bad", True)


# -- retry ----------------------------------------------------------------------------------------------------------------------


def test_retry_by_hand(app: Celeriac) -> None:
    @app.task(bind=True, default_retry_delay=7)
    def f(self: Task[..., Any], how: str) -> None:
        options: dict[str, Any] = {
            "plain": {},
            "countdown": {"countdown": 3, "queue": "slow"},
            "delta": {"countdown": timedelta(minutes=1)},
            "eta": {"eta": datetime(2099, 1, 1)},
            "args": {"args": ("new",), "kwargs": {"a": 1}},
        }[how]
        raise self.retry(**options)

    def retry(how: str) -> Retry:
        outcome = run(app, f, how)
        assert outcome.state == states.RETRY
        assert outcome.retry is not None
        return outcome.retry

    assert retry("plain").when == 7
    assert (retry("countdown").when, retry("countdown").options) == (3, {"queue": "slow"})
    assert retry("delta").when == 60
    assert retry("eta").when == datetime(2099, 1, 1)
    assert (retry("args").new_args, retry("args").new_kwargs) == (("new",), {"a": 1})


def test_retries_end_with_the_exception_given_or_with_max_retries_exceeded(app: Celeriac) -> None:
    @app.task(bind=True, max_retries=2)
    def f(self: Task[..., Any], give: bool, limit: int | None = None) -> None:
        try:
            raise OSError("down")
        except OSError as error:
            raise self.retry(exc=error if give else None, max_retries=limit) from error

    assert run(app, f, True, retries=1).state == states.RETRY
    ended = run(app, f, True, retries=2)
    assert isinstance(ended.error, OSError)
    assert ended.state == states.FAILURE
    ended = run(app, f, False, retries=2, task_id="id")
    assert isinstance(ended.error, MaxRetriesExceededError)
    assert f"Can't retry {f.name}[id] args:(False,) kwargs:{{}}" in str(ended.error)
    assert run(app, f, True, 5, retries=2).state == states.RETRY
    assert run(app, f, True, 0).state == states.FAILURE


def test_retry_for_ever(app: Celeriac) -> None:
    @app.task(bind=True, max_retries=None)
    def f(self: Task[..., Any]) -> None:
        self.retry()

    assert run(app, f, retries=1000).state == states.RETRY


def test_retry_without_throwing_counts_when_the_run_ends(app: Celeriac) -> None:
    @app.task(bind=True)
    def f(self: Task[..., Any]) -> str:
        self.retry(countdown=5, throw=False)
        return "unused"

    outcome = run(app, f)
    assert outcome.state == states.RETRY
    assert outcome.retry is not None and outcome.retry.when == 5


def test_retry_with_an_unknown_option(app: Celeriac) -> None:
    @app.task(bind=True)
    def f(self: Task[..., Any]) -> None:
        self.retry(coutdown=5)

    outcome = run(app, f)
    assert isinstance(outcome.error, TypeError)
    assert "countdown" in str(outcome.error)


def test_retry_of_a_plain_call_raises_what_went_wrong(app: Celeriac) -> None:
    @app.task(bind=True)
    def f(self: Task[..., Any], give: bool) -> None:
        try:
            raise OSError("down")
        except OSError as error:
            self.retry(exc=error if give else None)

    with pytest.raises(OSError):
        f(True)
    with pytest.raises(Retry) as caught:
        f(False)
    assert isinstance(caught.value.__cause__, OSError)


def test_automatic_retry(app: Celeriac) -> None:
    @app.task(autoretry_for=(OSError,), dont_autoretry_for=(FileNotFoundError,), retry_kwargs={"max_retries": 4, "countdown": 9})
    def f(name: str) -> None:
        raise {"os": OSError, "file": FileNotFoundError, "value": ValueError}[name]("x")

    outcome = run(app, f, "os", retries=3)
    assert outcome.retry is not None
    assert (outcome.state, outcome.retry.when, repr(outcome.error)) == (states.RETRY, 9, "OSError('x')")
    assert "OSError: x" in (outcome.traceback or "")
    assert run(app, f, "os", retries=4).state == states.FAILURE
    assert run(app, f, "file").state == states.FAILURE
    assert run(app, f, "value").state == states.FAILURE
    with pytest.raises(OSError):
        f("os")


def test_automatic_retry_with_backoff(app: Celeriac) -> None:
    @app.task(autoretry_for=(Exception,), retry_backoff=3, retry_backoff_max=20, retry_jitter=False, max_retries=10)
    def f() -> None:
        raise ValueError

    @app.task(autoretry_for=(Exception,), retry_backoff=True, max_retries=None)
    def g() -> None:
        raise ValueError

    def pause(task: Task[..., Any], retries: int) -> Any:
        outcome = run(app, task, retries=retries)
        assert outcome.retry is not None
        return outcome.retry.when

    assert [pause(f, n) for n in range(5)] == [3, 6, 12, 20, 20]
    assert all(0 <= pause(g, 3) <= 8 for _ in range(20))


def test_retry_ignore_and_reject_are_not_retried_automatically(app: Celeriac) -> None:
    @app.task(bind=True, autoretry_for=(Exception,))
    def f(self: Task[..., Any], name: str) -> None:
        if name == "retry":
            self.retry(countdown=1)
        raise {"ignore": Ignore(), "reject": Reject()}[name]

    assert [run(app, f, name).state for name in ("retry", "ignore", "reject")] == [states.RETRY, states.IGNORED, states.REJECTED]
    retry = run(app, f, "retry").retry
    assert retry is not None and retry.when == 1


# -- the request ------------------------------------------------------------------------------------------------------------------


def test_the_request_inside_and_around(app: Celeriac) -> None:
    seen: list[Any] = []

    @app.task(bind=True)
    def inner(self: Task[..., Any]) -> None:
        seen.append((self.request.id, self.request.called_directly))
        seen.append(outer.request.id)

    @app.task(bind=True)
    def outer(self: Task[..., Any]) -> None:
        seen.append((self.request.id, self.request.called_directly, self.request.hostname))
        inner()
        seen.append(inner.request.id)
        current = current_request()
        seen.append(current is not None and current.id)

    run(app, outer, task_id="o")
    assert seen == [("o", False, "w@h"), (None, True), "o", None, "o"]


def test_a_request_answers_by_celerys_names(app: Celeriac) -> None:
    @app.task(bind=True)
    def f(self: Task[..., Any], x: int) -> dict[str, Any]:
        r = self.request
        assert r.get("nothing", 5) == 5
        assert not hasattr(r, "nothing")
        r.custom = 1  # type: ignore[attr-defined]
        text = repr(r)
        assert text.startswith("<Context: {'id': 'i'")
        return {
            "task": r.task, "args": r.args, "kwargs": r.kwargs, "retries": r.retries, "eta": r.eta, "timelimit": r.timelimit,
            "info": r.delivery_info, "tenant": r.tenant, "headers": r.headers, "root": r.root_id, "corr": r.correlation_id,
            "callbacks": len(r.callbacks or []), "errbacks": r.errbacks, "custom": r.get("custom"),
        }  # fmt: skip

    outcome = run(app, f, 3, task_id="i", priority=4, time_limit=9, headers={"tenant": "t"}, link=f.s(), queue="q")
    assert outcome.value == {
        "task": f.name, "args": (3,), "kwargs": {}, "retries": 0, "eta": None, "timelimit": [9, None],
        "info": {"exchange": "", "routing_key": "q", "priority": 4, "redelivered": False, "is_eager": False},
        "tenant": "t", "headers": {"tenant": "t"}, "root": "i", "corr": "i", "callbacks": 1, "errbacks": None, "custom": 1,
    }  # fmt: skip


def test_what_a_task_sends_are_its_children(app: Celeriac) -> None:
    @app.task
    def child() -> None: ...

    @app.task(bind=True)
    def parent(self: Task[..., Any]) -> None:
        child.delay()
        child.apply_async(add_to_parent=False)
        app.send_task("by.name")

    request = request_for(app, parent, task_id="p", root_id="r")
    call(parent, request)
    assert len(request.children) == 2
    assert request.children_as_tuples()[0] == ((request.children[0].id, None), None)
    sent = [waiting.message for waiting in app.broker.peek("celery")]
    assert {(message.parent_id, message.root_id) for message in sent if message} == {("p", "r")}


def test_a_task_class_may_wrap_the_call(app: Celeriac) -> None:
    seen: list[Any] = []

    class Wrapped(Task[..., Any]):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(("before", self.request.id))
            return super().__call__(*args, **kwargs)

    @app.task(base=Wrapped, bind=True)
    def f(self: Task[..., Any]) -> None:
        seen.append(("run", self.request.id))

    run(app, f, task_id="i")
    assert seen == [("before", "i"), ("run", "i")]


# -- hooks and signals --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def log() -> list[Any]:
    return []


@pytest.fixture
def listening(log: list[Any]) -> Iterator[None]:
    def listen(name: str, argument: str) -> Any:
        return lambda sender, **given: log.append((name, given[argument]))

    wanted = {
        "task_prerun": "task_id",
        "task_postrun": "state",
        "task_success": "result",
        "task_failure": "exception",
        "task_retry": "reason",
    }
    receivers = {name: listen(name, argument) for name, argument in wanted.items()}
    for name, receiver in receivers.items():
        getattr(events, name).connect(receiver)
    yield
    for name, receiver in receivers.items():
        getattr(events, name).disconnect(receiver)


class Hooked(Task[..., Any]):
    abstract = True
    log: list[Any]

    def before_start(self, task_id: Any, args: Any, kwargs: Any) -> None:
        self.log.append(("before_start", task_id))

    def on_success(self, retval: Any, task_id: Any, args: Any, kwargs: Any) -> None:
        self.log.append(("on_success", retval))

    def on_failure(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        self.log.append(("on_failure", exc, "ValueError" in str(einfo)))

    def on_retry(self, exc: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        self.log.append(("on_retry", exc))

    def after_return(self, status: str, retval: Any, task_id: Any, args: Any, kwargs: Any, einfo: Any) -> None:
        self.log.append(("after_return", status))


def test_hooks_and_signals_come_in_celerys_order(app: Celeriac, log: list[Any], listening: None) -> None:
    error = ValueError("x")

    @app.task(base=Hooked, bind=True)
    def f(self: Task[..., Any], name: str) -> str:
        self.log.append("run")  # type: ignore[attr-defined]
        if name == "fail":
            raise error
        if name == "retry":
            self.retry(exc=error)
        return "value"

    f.log = log  # type: ignore[attr-defined]
    run(app, f, "ok", task_id="i")
    assert log == [
        ("task_prerun", "i"), ("before_start", "i"), "run", ("on_success", "value"), ("task_success", "value"),
        ("after_return", "SUCCESS"), ("task_postrun", "SUCCESS"),
    ]  # fmt: skip
    log.clear()
    run(app, f, "fail", task_id="i")
    assert log[3:] == [("task_failure", error), ("on_failure", error, True), ("after_return", "FAILURE"), ("task_postrun", "FAILURE")]
    log.clear()
    run(app, f, "retry", task_id="i")
    assert [entry[0] for entry in log[3:]] == ["on_retry", "task_retry", "task_postrun"]
    assert log[3] == ("on_retry", error)
    for withdrawn in (Ignore(), Reject("no")):
        log.clear()
        error = withdrawn  # type: ignore[assignment]
        run(app, f, "fail", task_id="i")
        assert [entry[0] for entry in log[3:]] == ["task_postrun"]


def test_a_raising_hook_is_logged_and_changes_nothing(app: Celeriac, caplog: pytest.LogCaptureFixture) -> None:
    def on_success(self: Any, *args: Any) -> None:
        raise RuntimeError("hook")

    def after_return(self: Any, *args: Any) -> None:
        raise RuntimeError("other hook")

    @app.task(on_success=on_success, after_return=after_return)
    def f() -> int:
        return 1

    with caplog.at_level(logging.ERROR, "celeriac.task"):
        assert run(app, f).state == states.SUCCESS
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info and record.exc_info[1]] == [("hook",), ("other hook",)]


def test_before_start_that_raises_is_a_failure(app: Celeriac) -> None:
    @app.task(before_start=lambda self, task_id, args, kwargs: 1 / 0)
    def f() -> None: ...

    assert isinstance(run(app, f).error, ZeroDivisionError)


def test_conclude_is_a_failure_without_a_run(app: Celeriac, log: list[Any], listening: None) -> None:
    @app.task(base=Hooked, autoretry_for=(Exception,))
    def f() -> None:
        raise AssertionError("must not run")

    f.log = log  # type: ignore[attr-defined]
    error = WorkerLostError("gone")
    outcome = conclude(f, request_for(app, f), error, datetime.now(UTC))
    assert (outcome.state, outcome.error) == (states.FAILURE, error)
    assert [entry[0] for entry in log] == ["task_failure", "on_failure", "after_return", "task_postrun"]
    soft = conclude(f, request_for(app, f), SoftTimeLimitExceeded(), datetime.now(UTC))
    assert soft.state == states.RETRY


# -- async def ---------------------------------------------------------------------------------------------------------------------


def test_a_coroutine_runs_in_call_on_one_loop_per_thread(app: Celeriac) -> None:
    @app.task(bind=True)
    async def f(self: Task[..., Any]) -> tuple[int, str | None]:
        await asyncio.sleep(0)
        return id(asyncio.get_running_loop()), self.request.id

    first, second = run(app, f, task_id="a"), run(app, f, task_id="b")
    assert first.value[0] == second.value[0]
    assert (first.value[1], second.value[1]) == ("a", "b")


def test_what_a_coroutine_raises(app: Celeriac) -> None:
    @app.task(bind=True)
    async def f(self: Task[..., Any], name: str) -> None:
        await asyncio.sleep(0)
        if name == "retry":
            raise self.retry(countdown=2)
        if name == "exit":
            sys.exit(4)
        raise ValueError(name)

    assert run(app, f, "retry").state == states.RETRY
    assert isinstance(run(app, f, "x").error, ValueError)
    assert isinstance(run(app, f, "exit").error, SystemExit)
    assert isinstance(run(app, f, "x").error, ValueError)


def test_acall(app: Celeriac) -> None:
    @app.task(bind=True)
    async def f(self: Task[..., Any], x: int) -> str | None:
        await asyncio.sleep(0)
        if x < 0:
            raise ValueError(x)
        return self.request.id

    @app.task
    def plain(x: int) -> int:
        current = current_request()
        assert current is not None
        return x

    async def main() -> None:
        outcomes = await asyncio.gather(*(acall(f, request_for(app, f, n, task_id=str(n))) for n in range(20)))
        assert [outcome.value for outcome in outcomes] == [str(n) for n in range(20)]
        assert isinstance((await acall(f, request_for(app, f, -1))).error, ValueError)
        assert (await acall(plain, request_for(app, plain, 5))).value == 5

    asyncio.run(main())


def test_acall_passes_on_that_it_was_cancelled(app: Celeriac) -> None:
    @app.task
    async def endless() -> None:
        await asyncio.Event().wait()

    @app.task
    async def cancels_itself() -> None:
        raise asyncio.CancelledError

    async def main() -> None:
        running = asyncio.create_task(acall(endless, request_for(app, endless)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await acall(cancels_itself, request_for(app, cancels_itself))).state == states.FAILURE
        assert current_request() is None

    asyncio.run(main())


def test_an_async_task_may_catch_its_soft_time_limit(app: Celeriac) -> None:
    import signal

    @app.task
    async def patient(clean: bool) -> str:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            await asyncio.Event().wait()
        except SoftTimeLimitExceeded:
            if not clean:
                raise
            await asyncio.sleep(0)
            return "cleaned up"
        return "never"

    def interrupt(signum: int, frame: Any) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        assert run(app, patient, True).value == "cleaned up"
        assert isinstance(run(app, patient, False).error, SoftTimeLimitExceeded)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert asyncio.run(_nothing()) is None


async def _nothing() -> None: ...
