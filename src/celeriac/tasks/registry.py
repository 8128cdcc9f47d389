"""Which tasks an app knows, which app is the current one, and how `shared_task` finds it.

`shared_task` is the one late binding of the package: a library's tasks are written before the app that will run them exists. Such a task asks
for the current app each time it is used, and every app gets a copy of it when it is finalized (an app that is finalized already, at once).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from ..core.errors import ImproperlyConfigured, NotRegistered
from .request import _current as current_run

if TYPE_CHECKING:
    from .task import App, Task


class TaskRegistry(dict[str, "Task[..., Any]"]):
    """The tasks of an app, by name."""

    def __missing__(self, name: str) -> Task[..., Any]:
        raise NotRegistered(
            f"Task {name!r} is not registered in this app ({len(self)} tasks are). Is its module imported: through autodiscover_tasks(), "
            "the `imports` setting, or `include=`?"
        )

    def register(self, task: Task[..., Any]) -> None:
        self[task.name] = task

    def unregister(self, name: str | Task[..., Any]) -> None:
        """Raises NotRegistered when there is no such task."""
        key = name if isinstance(name, str) else name.name
        if key not in self:
            self.__missing__(key)
        del self[key]

    def regular(self) -> Iterator[tuple[str, Task[..., Any]]]:
        yield from self.items()


# -- the current app -----------------------------------------------------------------------------------------------------------


class _CurrentApp(threading.local):
    """`app` is this thread's app when `set_current` named one, else the process's."""

    app: App | None = None


current = _CurrentApp()


def set_default_app(app: App | None) -> None:
    """The app of all threads that have not been given one of their own."""
    _CurrentApp.app = app


def set_current_app(app: App | None) -> None:
    """The app of this thread."""
    if app is None:
        current.__dict__.pop("app", None)
    else:
        current.app = app


def find_current_app() -> App:
    app = current.app
    if app is None:
        raise ImproperlyConfigured(
            "There is no Celeriac app yet, which a shared task needs to be sent or to read its settings. Create one, app = Celeriac('proj'), and import it "
            "where the process starts: in Django, `from .celery import app as celery_app` in proj/__init__.py."
        )
    return app


# -- shared tasks --------------------------------------------------------------------------------------------------------------

_shared: dict[str, Task[..., Any]] = {}
_apps: WeakSet[App] = WeakSet()


def share(task: Task[..., Any]) -> None:
    """Keeps a shared task for every app that is finalized later, and gives it to those that are finalized already."""
    _shared[task.name] = task
    for app in list(_apps):
        app.adopt(task)


def shared_task_named(name: str) -> Task[..., Any] | None:
    """The shared task of this name, whatever apps there are."""
    return _shared.get(name)


def shared_tasks(app: App) -> list[Task[..., Any]]:
    """All shared tasks so far; from now on `app` gets each new one at once."""
    _apps.add(app)
    return list(_shared.values())


# -- what Celery's users import ------------------------------------------------------------------------------------------------


class Proxy:
    """Stands for an object that is looked up anew at each use (`current_app`, `current_task`)."""

    __slots__ = ("_find",)

    def __init__(self, find: Any) -> None:
        object.__setattr__(self, "_find", find)

    def _get_current_object(self) -> Any:
        return object.__getattribute__(self, "_find")()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._get_current_object(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._get_current_object(), name, value)

    def __bool__(self) -> bool:
        return bool(self._get_current_object())

    def __eq__(self, other: object) -> bool:
        return bool(self._get_current_object() == other)

    def __hash__(self) -> int:
        return hash(self._get_current_object())

    def __repr__(self) -> str:
        return repr(self._get_current_object())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._get_current_object()(*args, **kwargs)


def find_current_task() -> Task[..., Any] | None:
    request = current_run.get()
    return None if request is None else request.running
