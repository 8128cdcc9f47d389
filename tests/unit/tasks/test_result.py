"""AsyncResult: looking, waiting, and what it raises."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from celeriac import AsyncResult, Celeriac, EagerResult, Task
from celeriac.core import states
from celeriac.core.errors import TaskRevokedError, TimeoutError
from celeriac.core.message import Record
from celeriac.core.serialize import encode_exception, encode_value
from celeriac.result import allow_join_result, result_from_tuple
from celeriac.tasks.request import Request
from celeriac.tasks.result import ResultsDisabled
from celeriac.tasks.run import call


def store(app: Celeriac, task_id: str, value: Any = None, state: str = states.SUCCESS, **more: Any) -> None:
    encoded = encode_exception(value) if isinstance(value, BaseException) else encode_value(value)
    done = datetime.now(UTC) if state in states.READY_STATES else None
    app.backend.store([Record(task_id=task_id, status=state, result=encoded, date_done=done, **more)])


@pytest.fixture
def later() -> Iterator[list[threading.Timer]]:
    timers: list[threading.Timer] = []
    yield timers
    for timer in timers:
        timer.join()


def soon(later: list[threading.Timer], function: Any, *args: Any, **kwargs: Any) -> None:
    timer = threading.Timer(0.05, function, args, kwargs)
    later.append(timer)
    timer.start()


def test_nothing_is_known(app: Celeriac) -> None:
    result = app.AsyncResult("x")
    assert (result.state, result.status, result.result, result.info, result.traceback, result.children) == (
        "PENDING",
        "PENDING",
        None,
        None,
        None,
        None,
    )
    assert not result.ready() and not result.successful() and not result.failed()
    assert (result.id, result.task_id, str(result), repr(result)) == ("x", "x", "x", "<AsyncResult: x>")


def test_success(app: Celeriac) -> None:
    store(app, "x", {"a": 1}, name="t", worker="w", retries=2, queue="q", children=[[["c", None], None]])
    result = app.AsyncResult("x")
    assert result.ready() and result.successful()
    assert result.get() == result.result == {"a": 1}
    assert (result.name, result.worker, result.retries, result.queue) == ("t", "w", 2, "q")
    assert result.children == [AsyncResult("c")]
    assert result.date_done is not None


def test_failure_raises_what_the_task_raised(app: Celeriac) -> None:
    store(app, "x", ValueError("bad", 1), states.FAILURE, traceback="Traceback…")
    result = app.AsyncResult("x")
    assert result.failed() and result.ready()
    assert isinstance(result.result, ValueError)
    with pytest.raises(ValueError, match="bad") as caught:
        result.get()
    assert "Traceback…" in caught.value.__notes__[0]
    value = result.get(propagate=False)
    assert isinstance(value, ValueError)
    assert result.traceback == "Traceback…"


def test_revoked(app: Celeriac) -> None:
    store(app, "x", TaskRevokedError("terminated"), states.REVOKED)
    with pytest.raises(TaskRevokedError, match="terminated"):
        app.AsyncResult("x").get()


def test_a_state_of_the_tasks_own(app: Celeriac) -> None:
    store(app, "x", {"done": 3}, "PROGRESS")
    result = app.AsyncResult("x")
    assert (result.state, result.info) == ("PROGRESS", {"done": 3})
    store(app, "x", "end")
    assert (result.state, result.info) == ("SUCCESS", "end")


def test_an_ended_task_is_not_asked_about_again(app: Celeriac) -> None:
    store(app, "x", 1)
    result = app.AsyncResult("x")
    assert result.get() == 1
    app.backend.forget(["x"])
    assert (result.state, result.get()) == ("SUCCESS", 1)
    result.forget()
    assert result.state == "PENDING"


def test_get_waits_until_it_is_told(app: Celeriac, later: list[threading.Timer]) -> None:
    app.backend.fetch([])
    soon(later, store, app, "x", 7)
    assert app.AsyncResult("x").get(timeout=40) == 7


def test_get_tells_of_states_on_the_way(app: Celeriac, later: list[threading.Timer]) -> None:
    store(app, "x", {"n": 1}, "PROGRESS")
    seen: list[Any] = []
    called: list[Any] = []

    def tell(meta: Any) -> None:
        seen.append(meta)
        if len(seen) == 1:
            soon(later, store, app, "x", 7)

    result = app.AsyncResult("x")
    assert result.get(timeout=40, on_message=tell, callback=lambda id, value: called.append((id, value))) == 7
    assert [(meta["status"], meta["result"]) for meta in seen] == [("PROGRESS", {"n": 1}), ("SUCCESS", 7)]
    assert called == [("x", 7)]


def test_get_gives_up_in_time(app: Celeriac) -> None:
    with pytest.raises(TimeoutError, match="timed out"):
        app.AsyncResult("x").get(timeout=0.02)
    with pytest.raises(TimeoutError):
        app.AsyncResult("x").get(timeout=0)


def test_aget(app: Celeriac, later: list[threading.Timer]) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await app.AsyncResult("x").aget(timeout=0.02)
        soon(later, store, app, "x", 7)
        results = await asyncio.gather(*(app.AsyncResult("x").aget(timeout=40) for _ in range(5)))
        assert results == [7] * 5
        store(app, "y", KeyError("k"), states.FAILURE)
        with pytest.raises(KeyError):
            await app.AsyncResult("y").aget()
        waiting = asyncio.create_task(app.AsyncResult("z").aget())
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_aget_that_is_cancelled_at_once_leaves_no_subscription(app: Celeriac, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    closed: list[Any] = []
    subscribe = app.backend.subscribe
    go_on = threading.Event()

    def slowly(ids: Any) -> Any:
        go_on.wait(40)
        subscription = subscribe(ids)
        close = subscription.close
        monkeypatch.setattr(subscription, "close", lambda: (closed.append(subscription), close()))
        opened.append(subscription)
        return subscription

    monkeypatch.setattr(app.backend, "subscribe", slowly)

    async def main() -> None:
        waiting = asyncio.create_task(app.AsyncResult("x").aget())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go_on.set()
        async with asyncio.timeout(40):
            while not closed:
                await asyncio.sleep(0.001)

    asyncio.run(main())
    assert opened == closed


def test_an_ignored_result_is_none_at_once(app: Celeriac) -> None:
    @app.task(ignore_result=True)
    def f() -> None: ...

    assert f.delay().get() is None
    assert asyncio.run(f.delay().aget()) is None


def test_no_waiting_inside_a_task(app: Celeriac) -> None:
    store(app, "x", 1)

    @app.task
    def f(allowed: bool) -> Any:
        if allowed:
            with allow_join_result():
                return app.AsyncResult("x").get()
        return app.AsyncResult("x").get()

    def run(allowed: bool) -> Any:
        message = app.producer.message(f.name, (allowed,), {}, task=f)
        return call(f, Request(message, (allowed,), {}, {}, hostname="w"))

    error = run(False).error
    assert isinstance(error, RuntimeError)
    assert "Never call result.get() within a task!" in str(error)
    assert run(True).value == 1
    assert f(False) == 1


def test_disabled_results_say_how_to_enable_them(app: Celeriac) -> None:
    app.conf.result_backend = "disabled"

    @app.task
    def f() -> None: ...

    result = f.delay()
    for ask in (lambda: result.state, lambda: result.get(timeout=1), result.forget, result.ready):
        with pytest.raises(ResultsDisabled, match="result_backend"):
            ask()
    assert not app.results_with_broker


def test_update_state(app: Celeriac) -> None:
    @app.task(bind=True)
    def f(self: Task[..., Any]) -> str:
        self.update_state(state="PROGRESS", meta={"n": 1})
        seen = app.AsyncResult("x")
        return f"{seen.state} {seen.info}"

    message = app.producer.message(f.name, (), {}, task=f, options={"task_id": "x"})
    assert call(f, Request(message, (), {}, {}, hostname="w")).value == "PROGRESS {'n': 1}"
    f.update_state("other", "MINE", ValueError("v"))
    assert app.AsyncResult("other").state == "MINE"
    with pytest.raises(ValueError, match="task_id="):
        f.update_state(state="PROGRESS")


def test_update_state_is_fenced_by_the_lease_as_long_as_there_is_one(app: Celeriac) -> None:
    from celeriac.contracts.mailbox import Node
    from celeriac.core.message import Holder, Settlement, Verdict

    @app.task(bind=True, name="late")
    def late(self: Task[..., Any]) -> None:
        self.update_state(state="PROGRESS")

    @app.task(bind=True, name="early", acks_late=False)
    def early(self: Task[..., Any]) -> None:
        self.update_state(state="PROGRESS")

    app.broker.register(Node(id="n", name="n"), lease_seconds=60)
    for task, state in ((late, "PENDING"), (early, "PROGRESS")):
        result = task.delay()
        (delivery,) = app.broker.reserve(["celery"], limit=1, holder=Holder("n"))
        # the message is gone: acknowledged before the run, or taken away from a zombie
        app.broker.settle([Settlement(id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, receipt=delivery.receipt)])
        assert delivery.message is not None
        call(task, Request(delivery.message, (), {}, {}, hostname="w", delivery=delivery))
        assert result.state == state


def test_revoke_goes_to_the_engine(app: Celeriac) -> None:
    @app.task
    def f() -> None: ...

    result = f.delay()
    result.revoke()
    assert app.broker.depth(["celery"])["celery"].ready == 0
    assert result.state == states.REVOKED


def test_results_compare_by_id_and_travel(app: Celeriac) -> None:
    result = AsyncResult[Any]("x", app=app, parent=AsyncResult("p"))
    assert result == AsyncResult("x") == "x"
    assert result != AsyncResult("y")
    assert {result: 1}[AsyncResult("x")] == 1
    assert result.as_tuple() == (("x", (("p", None), None)), None)
    assert result.as_list() == ["x", "p"]
    again = pickle.loads(pickle.dumps(result))
    assert (again, again.parent) == (result, AsyncResult("p"))
    assert copy.copy(result) == result
    revived = result_from_tuple(result.as_tuple())
    assert revived is not None and (revived, revived.parent) == (result, AsyncResult("p"))
    assert result_from_tuple(5) is None
    with pytest.raises(ValueError):
        AsyncResult("")


def test_collect_walks_the_children(app: Celeriac) -> None:
    store(app, "a", 1, children=[[["b", None], None], [["c", None], None]])
    store(app, "b", 2)
    store(app, "c", 3)
    result = app.AsyncResult("a")
    assert [value for _, value in result.collect()] == [1, 2, 3]
    assert result.get_leaf() == 3
    assert [(parent and parent.id, child.id) for parent, child in result.iterdeps()] == [(None, "a"), ("a", "b"), ("a", "c")]


def test_an_eager_result() -> None:
    good: EagerResult[int] = EagerResult("x", 1, states.SUCCESS)
    assert (good.get(), good.result, good.state, good.ready(), repr(good)) == (1, 1, "SUCCESS", True, "<EagerResult: x>")
    bad: EagerResult[int] = EagerResult("x", ValueError("v"), states.FAILURE, traceback="tb")
    assert bad.failed() and bad.traceback == "tb"
    with pytest.raises(ValueError):
        bad.get()
    assert isinstance(bad.get(propagate=False), ValueError)
    assert pickle.loads(pickle.dumps(good)).get() == 1
    assert asyncio.run(good.aget()) == 1
