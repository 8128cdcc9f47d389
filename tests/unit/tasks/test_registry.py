"""Shared tasks, the current app, and what an app knows."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac import Celeriac, Task, current_app, current_task, shared_task
from celeriac.core.errors import ImproperlyConfigured, NotRegistered
from celeriac.tasks import registry


@pytest.fixture(autouse=True)
def _no_app_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = registry.current.app
    registry.set_default_app(None)
    monkeypatch.setattr(registry, "_shared", {})
    yield
    registry.set_current_app(None)
    registry.set_default_app(before)


def test_a_shared_task_without_an_app_says_what_is_missing() -> None:
    @shared_task
    def f(x: int) -> int:
        return x

    assert f(1) == 1
    assert f.request.id is None
    with pytest.raises(ImproperlyConfigured, match="There is no Celeriac app yet"):
        f.delay(1)
    assert "of __main__" in repr(f)


def test_a_shared_task_belongs_to_the_current_app_at_each_use() -> None:
    @shared_task
    def f() -> None: ...

    one, two = Celeriac("one", broker="memory://"), Celeriac("two", broker="memory://")
    f.delay()
    one.set_current()
    f.delay()
    assert f.app is one
    one.set_default()
    registry.set_current_app(None)
    f.delay()
    assert (one.broker.depth()["celery"].ready, two.broker.depth()["celery"].ready) == (2, 1)
    one.close()
    two.close()


def test_the_current_app_of_a_thread_is_the_default_one_unless_it_has_its_own() -> None:
    one, two = Celeriac("one"), Celeriac("two")
    two.set_current()
    one.set_default()
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(current_app._get_current_object()))
    thread.start()
    thread.join()
    assert seen == [one]
    assert current_app == two
    assert current_app.main == "two"


def test_every_app_gets_the_shared_tasks() -> None:
    @shared_task(name="early", bind=True)
    def early(self: Task[..., Any]) -> Any:
        return self.app

    one, two = Celeriac("one"), Celeriac("two")
    assert "early" in one.tasks and "early" in two.tasks
    assert one.tasks["early"].app is one
    assert one.tasks["early"]() is one
    assert two.tasks["early"]() is two

    @shared_task(name="late")
    def late() -> None: ...

    assert one.tasks["late"].app is one
    assert two.tasks["late"].app is two


def test_the_settings_of_a_shared_task_are_its_apps() -> None:
    @shared_task(name="f")
    def f() -> None: ...

    one, two = Celeriac("one", task_acks_late=False), Celeriac("two", task_acks_late=True)
    assert (one.tasks["f"].acks_late, two.tasks["f"].acks_late) == (False, True)


def test_a_task_that_is_not_there() -> None:
    app = Celeriac("x")
    with pytest.raises(NotRegistered, match="'nope' is not registered in this app"):
        app.tasks["nope"]
    with pytest.raises(NotRegistered):
        app.tasks.unregister("nope")
    assert app.tasks.get("nope") is None


def test_current_task() -> None:
    app = Celeriac("x", broker="memory://")

    @app.task
    def f() -> Any:
        return current_task.name, current_task.request.id

    assert f.apply(task_id="i").get() == (f.name, "i")
    assert not current_task
