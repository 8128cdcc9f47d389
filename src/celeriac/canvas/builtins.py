"""The tasks that every app has, under the names that Celery's messages call them by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ..tasks.registry import find_current_app, share
from ..tasks.run import _run_coroutine
from ..tasks.signature import signature_of
from ..tasks.task import define

if TYPE_CHECKING:
    from ..tasks.task import Task


def accumulate(self: Any, *args: Any, index: int | None = None, **ignored: Any) -> Any:
    """Gives back what it is given: gathers the results of a group where one value is waited for."""
    return args if index is None else args[index]


def call_each(self: Any, task: Mapping[str, Any], it: Iterable[Any]) -> list[Any]:
    """Calls a task for each item."""
    call = signature_of(task, app=self.app)
    return [_finished(call(item)) for item in it]


def call_each_with_stars(self: Any, task: Mapping[str, Any], it: Iterable[Any]) -> list[Any]:
    """Calls a task with each list of arguments."""
    call = signature_of(task, app=self.app)
    return [_finished(call(*items)) for items in it]


def _finished(value: Any) -> Any:
    """What a coroutine returns, if it is one."""
    return _run_coroutine(value) if type(value) is CoroutineType else value


def send_chunks(self: Any, task: Mapping[str, Any], it: Iterable[Any], n: int) -> Any:
    """Sends a task's calls in chunks."""
    from .maps import chunks

    return chunks(task, it, n, app=self.app)().as_tuple()


def clean_up() -> int:
    """Removes results that have expired. Workers do it by themselves; this is for schedules that were written for Celery."""
    removed = 0
    while batch := find_current_app().backend.prune():
        removed += batch
    return removed


_BUILT_IN: list[Task[..., Any]] = [
    define(accumulate, name="celery.accumulate", app=None, bind=True, options={}),
    define(call_each, name="celery.map", app=None, bind=True, options={}),
    define(call_each_with_stars, name="celery.starmap", app=None, bind=True, options={}),
    define(send_chunks, name="celery.chunks", app=None, bind=True, options={}),
    define(clean_up, name="celery.backend_cleanup", app=None, options={}),
]

for _task in _BUILT_IN:
    share(_task)
