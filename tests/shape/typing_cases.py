"""What a type checker must say about calls of tasks. Checked by test_types.py, never imported.

A line that ends in `# error` must be an error in mypy and in pyright, and no other line may be one.
"""

from __future__ import annotations

from typing import Any, assert_type

from celeriac import AsyncResult, Celeriac, EagerResult, Signature, Task, shared_task

app = Celeriac("proj")


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task(bind=True, max_retries=3)
def bound(self: Task[..., Any], text: str, *, loud: bool = False) -> str:
    assert_type(self.request.retries, int)
    raise self.retry(countdown=5)


@app.task(bind=True)
def untyped_self(self, text: str) -> str:  # type: ignore[no-untyped-def]
    return text


@shared_task
def shared(a: int) -> list[int]:
    return [a]


@shared_task(name="other", ignore_result=True)
def shared_with_options(a: int) -> None: ...


@shared_task(bind=True)
def shared_bound(self: Task[..., Any], a: int) -> float:
    return a / 2


@app.task
async def fetch(url: str) -> bytes:
    return url.encode()


@app.task(bind=True)
async def fetch_bound(self: Task[..., Any], url: str) -> bytes:
    return url.encode()


class Report(Task[..., Any]):
    def run(self, n: int) -> int:
        return n


def calls() -> None:
    assert_type(add.delay(1, 2), AsyncResult[int])
    assert_type(add.delay(1, b=2).get(), int)
    assert_type(add.apply_async((1, 2), countdown=5, queue="q"), AsyncResult[int])
    assert_type(add.apply((1, 2)), EagerResult[int])
    assert_type(add.apply((1, 2)).get(), int)
    assert_type(add(1, 2), int)
    assert_type(add.s(1), Signature[int])
    assert_type(add.s(1).delay(2), AsyncResult[int])
    add.delay("x")  # error
    add.delay(1)  # error
    add.delay(1, 2, 3)  # error
    add.delay(1, c=2)  # error
    add(1, "2")  # error
    add.apply_async((1, 2), contdown=5)  # error
    add.apply_async((1, 2), countdown="soon")  # error

    assert_type(bound.delay("x", loud=True), AsyncResult[str])
    assert_type(bound("x"), str)
    bound.delay(1)  # error
    bound.delay("x", True)  # error
    assert_type(untyped_self.delay("x"), AsyncResult[str])
    untyped_self.delay(5)  # error

    assert_type(shared.delay(1), AsyncResult[list[int]])
    shared.delay("1")  # error
    assert_type(shared_with_options.delay(1), AsyncResult[None])
    shared_with_options.delay()  # error
    assert_type(shared_bound.delay(1), AsyncResult[float])
    shared_bound.delay(None, 1)  # error

    assert_type(fetch.delay("x"), AsyncResult[bytes])
    assert_type(fetch.delay("x").get(), bytes)
    assert_type(fetch_bound.delay("x"), AsyncResult[bytes])
    fetch.delay(1)  # error
    fetch_bound.delay(1)  # error

    report = app.register_task(Report())
    assert_type(report, Report)
    assert_type(app.conf.task_acks_late, bool)
    app.conf.task_acks_late = False
    app.conf.update(task_time_limit=5)
    app.conf.task_acks_late = "x"  # error


async def awaits() -> None:
    assert_type(await add.adelay(1, 2), AsyncResult[int])
    assert_type(await (await add.adelay(1, 2)).aget(), int)
    assert_type(await fetch("x"), bytes)
    assert_type(await fetch.aapply_async(("x",)), AsyncResult[bytes])
    await add.adelay("x", 1)  # error
