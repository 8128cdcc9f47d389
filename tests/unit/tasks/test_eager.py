"""Tasks that run on the spot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from celeriac import AsyncResult, Celeriac, EagerResult, Task
from celeriac.core.errors import EncodeError


@pytest.fixture
def eager(app: Celeriac) -> Celeriac:
    app.conf.task_always_eager = True
    return app


def test_apply_runs_with_a_request(app: Celeriac) -> None:
    @app.task(bind=True)
    def f(self: Task[..., Any], x: int) -> Any:
        r = self.request
        return (r.id, r.is_eager, r.called_directly, r.args, r.retries, r.delivery_info["is_eager"], x)

    result = f.apply((5,), task_id="i", retries=1)
    assert isinstance(result, EagerResult)
    assert result.get() == ("i", True, False, (5,), 1, True, 5)


def test_apply_tells_a_failure_and_throws_when_asked(app: Celeriac) -> None:
    @app.task
    def f() -> None:
        raise ValueError("bad")

    result = f.apply()
    assert (result.state, "ValueError: bad" in (result.traceback or "")) == ("FAILURE", True)
    with pytest.raises(ValueError):
        result.get()
    with pytest.raises(ValueError):
        f.apply(throw=True)
    app.conf.task_eager_propagates = True
    with pytest.raises(ValueError):
        f.apply()
    assert f.apply(throw=False).failed()


def test_apply_retries_without_waiting(app: Celeriac) -> None:
    seen: list[Any] = []

    @app.task(bind=True, max_retries=3)
    def f(self: Task[..., Any], x: int) -> int:
        seen.append((self.request.retries, x))
        if x < 3:
            raise self.retry(args=(x + 1,), countdown=1000)
        return x

    @app.task(autoretry_for=(OSError,), max_retries=2)
    def g() -> None:
        seen.append("g")
        raise OSError("still down")

    assert f.apply((1,)).get() == 3
    assert seen == [(0, 1), (1, 2), (2, 3)]
    seen.clear()
    assert isinstance(g.apply().result, OSError)
    assert len(seen) == 3


def test_always_eager_opens_no_broker(eager: Celeriac) -> None:
    @eager.task
    def f(x: int) -> int:
        return x + 1

    result = f.delay(1)
    assert result.get() == 2
    assert f.apply_async((1,), countdown=100, queue="q").get() == 2
    assert eager.send_task(f.name, (3,)).get() == 4
    assert eager._broker is None


def test_always_eager_sends_arguments_through_the_serializer(eager: Celeriac) -> None:
    @eager.task
    def f(x: Any) -> Any:
        return x

    assert f.delay((1, 2)).get() == [1, 2]
    with pytest.raises(EncodeError, match=r"args\[0\]"):
        f.delay(object())
    with pytest.raises(TypeError):
        f.apply_async(())


def test_always_eager_may_be_switched_while_the_app_is_in_use(app: Celeriac) -> None:
    @app.task
    def f() -> int:
        return 1

    assert not isinstance(f.delay(), EagerResult)
    app.conf.task_always_eager = True
    assert isinstance(f.delay(), EagerResult)
    app.conf.task_always_eager = False
    assert not isinstance(f.delay(), EagerResult)


def test_links_run_too(eager: Celeriac) -> None:
    seen: list[Any] = []

    @eager.task
    def f(x: int) -> int:
        if x < 0:
            raise ValueError(x)
        return x + 1

    @eager.task
    def note(*args: Any) -> None:
        seen.append(args)

    @eager.task
    def old_style(task_id: str) -> None:
        seen.append(task_id)

    f.apply_async((1,), link=[note.s("extra"), note.si("fixed"), f.s().set(link=note.s("second"))])
    assert seen == [(2, "extra"), ("fixed",), (3, "second")]
    seen.clear()
    f.apply_async((-1,), link_error=[note.s(), old_style.s()], task_id="i")
    request, error, traceback = seen[0]
    assert (request.id, repr(error), "ValueError" in traceback) == ("i", "ValueError(-1)", True)
    assert seen[1] == "i"


def test_links_of_apply_alone_are_sent(app: Celeriac) -> None:
    @app.task
    def f(x: int) -> int:
        return x

    f.apply((1,), link=f.s().set(queue="linked"))
    assert app.broker.depth(["linked"])["linked"].ready == 1


def test_no_join_under_always_eager_as_in_a_worker(eager: Celeriac) -> None:
    @eager.task
    def inner() -> int:
        return 1

    @eager.task
    def outer() -> int:
        return inner.delay().get()

    with pytest.raises(RuntimeError, match="Never call"):
        outer.delay().get()
    # called by apply(), waiting is allowed
    eager.conf.task_always_eager = False
    assert outer.run is not None

    @eager.task
    def applies() -> int:
        return inner.apply().get()

    assert applies.apply().get() == 1


def test_results_are_stored_when_asked_to(eager: Celeriac) -> None:
    eager.conf.task_store_eager_result = True

    @eager.task
    def f(x: int) -> int:
        return 10 // x

    good, bad = f.delay(5), f.delay(0)
    assert eager.AsyncResult(good.id).get() == 2
    assert isinstance(eager.AsyncResult(bad.id).result, ZeroDivisionError)
    assert isinstance(good, AsyncResult)


def test_eager_from_a_coroutine(eager: Celeriac) -> None:
    @eager.task
    async def f(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    async def main() -> tuple[int, int, int]:
        return f.delay(1).get(), await (await f.adelay(2)).aget(), await f(3)

    assert asyncio.run(main()) == (2, 3, 4)
    assert f.delay(4).get() == 5


def test_debug_task_of_every_tutorial(eager: Celeriac, capsys: pytest.CaptureFixture[str]) -> None:
    @eager.task(bind=True, ignore_result=True)
    def debug_task(self):  # type: ignore[no-untyped-def]
        print(f"Request: {self.request!r}")

    debug_task.delay()
    assert "Request: <Context: {'id': " in capsys.readouterr().out
