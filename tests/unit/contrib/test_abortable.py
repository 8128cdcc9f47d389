"""Tasks that may be asked to stop."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from celeriac import Celeriac
from celeriac.contrib.abortable import ABORTED, AbortableAsyncResult, AbortableTask
from celeriac.tasks import registry
from celeriac.worker.inline import InlineWorker


@pytest.fixture
def app() -> Iterator[Celeriac]:
    before = registry.current.app
    app = Celeriac("proj", broker="memory://")
    yield app
    app.close()
    registry.set_current_app(None)
    registry.set_default_app(before)


def test_a_task_sees_that_it_is_to_stop_and_ends_as_it_likes(app: Celeriac) -> None:
    results: list[Any] = []

    @app.task(bind=True, base=AbortableTask)
    def crunch(self: Any) -> str:
        assert not self.is_aborted()
        results[0].abort()
        assert results[0].is_aborted() and results[0].state == ABORTED
        return "half-way" if self.is_aborted() else "to the end"

    with InlineWorker(app) as worker:
        results.append(crunch.delay())
        assert isinstance(results[0], AbortableAsyncResult)
        worker.run_all()
        assert results[0].get(timeout=1) == "half-way"
        assert not results[0].is_aborted()
        results[0].abort()
        assert results[0].state == "SUCCESS"
        assert isinstance(crunch.AsyncResult(results[0].id), AbortableAsyncResult)


def test_a_plain_call_is_not_aborted(app: Celeriac) -> None:
    @app.task(bind=True, base=AbortableTask)
    def crunch(self: Any) -> bool:
        return bool(self.is_aborted())

    assert crunch() is False
    assert crunch.apply().get() is False
