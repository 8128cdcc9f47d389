"""ResultSet and GroupResult."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac import AsyncResult, Celeriac, GroupResult, Task, chain, group
from celeriac.core.errors import TaskRevokedError, TimeoutError
from celeriac.result import ResultSet, allow_join_result, result_from_tuple
from celeriac.worker.inline import InlineWorker


@pytest.fixture
def worker(app: Celeriac) -> Iterator[InlineWorker]:
    with InlineWorker(app) as worker:
        yield worker


@pytest.fixture
def work(app: Celeriac) -> Task[..., Any]:
    @app.task(name="work")
    def work(value: int) -> int:
        if value < 0:
            raise ValueError(value)
        return value

    return work


def test_it_tells_how_far_it_is(worker: InlineWorker, work: Task[..., Any]) -> None:
    result = group(work.s(n) for n in (1, 2, -3, 4)).apply_async()
    assert (result.ready(), result.waiting(), result.successful(), result.failed(), result.completed_count()) == (
        False,
        True,
        False,
        False,
        0,
    )
    assert result.counts() == {"PENDING": 4} and result.state == "PENDING"
    worker.run()
    assert (result.ready(), result.waiting(), result.successful(), result.failed(), result.completed_count()) == (
        True,
        False,
        False,
        True,
        3,
    )
    assert result.counts() == {"SUCCESS": 3, "FAILURE": 1} and result.state == "FAILURE"
    assert len(result) == 4 and [member.id for member in result] == [member.id for member in result.results]
    assert result[1].get() == 2


def test_values_come_in_order(worker: InlineWorker, work: Task[..., Any]) -> None:
    result = group(work.s(n) for n in range(5)).apply_async()
    worker.run()
    assert result.get() == result.join() == result.join_native() == list(range(5))
    assert sorted(result.iterate()) == list(range(5))
    assert {id: meta["result"] for id, meta in result.iter_native()} == {member.id: n for n, member in enumerate(result)}
    seen: list[Any] = []
    progress: list[Any] = []
    fresh = GroupResult(result.id, [AsyncResult(member.id, app=result.app) for member in result])
    metas: list[Any] = []
    fresh.get(
        callback=lambda id, value: seen.append((id, value)), on_message=metas.append, on_progress=lambda n, of: progress.append((n, of))
    )
    assert seen == [(member.id, n) for n, member in enumerate(result)]
    assert sorted(meta["result"] for meta in metas) == list(range(5))
    assert progress[-1] == (5, 5)


def test_failures_raise_and_are_values_when_asked(worker: InlineWorker, work: Task[..., Any]) -> None:
    result = group(work.s(n) for n in (1, -2, 3)).apply_async()
    worker.run()
    with pytest.raises(ValueError, match="-2"):
        result.get()
    with pytest.raises(ValueError, match="-2"):
        list(result.iterate())
    with pytest.raises(ValueError, match="-2"):
        result.maybe_throw()
    values = result.get(propagate=False)
    assert values[0] == 1 and isinstance(values[1], ValueError) and values[2] == 3


def test_a_failure_is_raised_before_the_others_end(worker: InlineWorker, work: Task[..., Any]) -> None:
    result = group(work.s(-1), work.s(2).set(countdown=60)).apply_async()
    worker.run()
    with pytest.raises(ValueError, match="-1"):
        result.get(timeout=5)
    with pytest.raises(TimeoutError, match="1 of 2 tasks have not ended"):
        result.get(timeout=0.01, propagate=False)


def test_waiting_is_told_not_asked(worker: InlineWorker, work: Task[..., Any]) -> None:
    result = group(work.s(n) for n in range(3)).apply_async()
    values: list[Any] = []
    waiting = threading.Thread(target=lambda: values.append(result.get(timeout=20)))
    waiting.start()
    worker.run()
    waiting.join(20)
    assert values == [[0, 1, 2]]


def test_aget(worker: InlineWorker, work: Task[..., Any]) -> None:
    result = group(work.s(n) for n in range(3)).apply_async()
    worker.run()
    assert asyncio.run(result.aget(timeout=5)) == [0, 1, 2]
    pending = group(work.s(1)).apply_async()
    with pytest.raises(TimeoutError):
        asyncio.run(pending.aget(timeout=0.01))


def test_nested_groups_are_nested_lists(worker: InlineWorker, work: Task[..., Any]) -> None:
    result = group(work.s(0), chain(work.s(1), group(work.s(), work.s()))).apply_async()
    worker.run()
    assert result.get() == [0, [1, 1]]
    assert asyncio.run(result.aget()) == [0, [1, 1]]
    assert result.counts() == {"SUCCESS": 2}


def test_an_empty_group_is_ready(worker: InlineWorker, app: Celeriac) -> None:
    result = group(app=app).apply_async()
    assert result.get() == [] and result.ready() and result.successful() and isinstance(result, GroupResult)


def test_it_is_kept_and_found_again(worker: InlineWorker, work: Task[..., Any], app: Celeriac) -> None:
    result = chain(work.s(5), group(work.s(), work.s())).apply_async()
    assert GroupResult.restore(result.id, app=app) is None
    assert result.save() is result
    worker.run()
    found = GroupResult.restore(result.id, app=app)
    assert found == result and found is not None and found.get() == [5, 5]
    assert found.parent is not None and found.parent.get() == 5
    found.delete()
    assert GroupResult.restore(result.id, app=app) is None
    assert GroupResult.restore(result[0].id, app=app) is None, "a task is not a group"


def test_its_tuple_is_celerys(worker: InlineWorker, work: Task[..., Any], app: Celeriac) -> None:
    result = chain(work.s(5), group(work.s(), chain(work.s(), group(work.s())))).apply_async()
    found = result_from_tuple(result.as_tuple(), app=app)
    assert found == result and isinstance(found, GroupResult)
    (id, (parent, nodes)), members = result.as_tuple()
    assert (id, parent[0], nodes) == (result.id, result.parent.id, None)
    assert len(members) == 2 and members[0] == ((result[0].id, None), None)
    assert pickle.loads(pickle.dumps(result)) == result == copy.copy(result)
    assert hash(result) == hash(copy.copy(result)) and result != group(work.s(1)).apply_async()


def test_revoking_it_revokes_all(worker: InlineWorker, work: Task[..., Any]) -> None:
    result = group(work.s(n) for n in range(3)).apply_async()
    result.revoke()
    assert worker.run() == 0
    assert result.counts() == {"REVOKED": 3} and result.state == "REVOKED"
    with pytest.raises(TaskRevokedError):
        result.get(timeout=0)
    result.forget()
    assert result.counts() == {"PENDING": 3}


def test_a_set_of_results_that_somebody_collected(worker: InlineWorker, work: Task[..., Any]) -> None:
    results = [work.delay(n) for n in range(3)]
    collected = ResultSet([])
    collected.update(results)
    collected.add(results[0])
    assert len(collected) == 3
    collected.discard(results[2])
    collected.discard("nobody")
    with pytest.raises(KeyError):
        collected.remove("nobody")
    worker.run()
    assert collected.get() == [0, 1]
    collected.clear()
    assert collected.get() == [] and ResultSet([]) == collected


def test_a_task_may_not_wait_for_it(worker: InlineWorker, app: Celeriac, work: Task[..., Any]) -> None:
    @app.task
    def waits(allowed: bool) -> Any:
        result = group(work.s(1)).apply_async()
        if not allowed:
            return result.get()
        with allow_join_result():
            try:
                return result.get(timeout=0)
            except TimeoutError:
                return "may wait"

    refused, allowed = waits.delay(False), waits.delay(True)
    worker.run()
    with pytest.raises(RuntimeError, match="Never call"):
        refused.get()
    assert allowed.get() == "may wait"


def test_asking_for_many_is_few_trips(worker: InlineWorker, work: Task[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    result = group(work.s(n) for n in range(2500)).apply_async()
    worker.run()
    asked: list[int] = []
    fetch = worker.engine.fetch
    monkeypatch.setattr(worker.engine, "fetch", lambda ids: asked.append(len(ids)) or fetch(ids))
    assert result.completed_count() == 2500
    assert asked == [1000, 1000, 500]
    assert result.get() == list(range(2500)) and len(asked) == 3, "what has ended is not asked for again"
