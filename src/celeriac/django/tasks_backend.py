"""`django.tasks` on Celeriac: TASKS = {"default": {"BACKEND": "celeriac.django.TasksBackend"}}.

Each function that Django's `@task` decorates is also a task of ours, named by its path: the same workers run it, from the same queues, and everything that shows tasks shows it. Django 6 has `django.tasks`;
on 5.2 the package django-tasks is its backport, and works the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from math import ceil
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ..core import states
from ..core.errors import Paused, TaskPredicate
from ..core.message import Record
from ..core.serialize import decode_value
from ..tasks import registry
from ..tasks.task import Task as TaskBase
from ..tasks.task import define
from .project import ensure_app

try:
    from django.tasks import DEFAULT_TASK_QUEUE_NAME, TaskContext, TaskResult, TaskResultStatus
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import TASK_MAX_PRIORITY, TASK_MIN_PRIORITY, Task, TaskError
    from django.tasks.exceptions import TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
except ImportError:
    try:
        from django_tasks import DEFAULT_TASK_QUEUE_NAME, TaskContext, TaskResult, TaskResultStatus
        from django_tasks.backends.base import BaseTaskBackend
        from django_tasks.base import TASK_MAX_PRIORITY, TASK_MIN_PRIORITY, Task, TaskError
        from django_tasks.exceptions import TaskResultDoesNotExist
        from django_tasks.signals import task_enqueued, task_finished, task_started
        from django_tasks.utils import normalize_json
    except ImportError:
        raise ImportError("celeriac.django.TasksBackend needs Django 6, or the package django-tasks: pip install django-tasks.") from None

if TYPE_CHECKING:
    from ..app import Celeriac
    from ..contracts.inspect import Waiting
    from ..tasks.request import Request

EVEN_PRIORITY = 4
"""What Django's priority 0 is in ours; while TASKS names this backend, tasks that say nothing have it too."""


_UNKNOWN: dict[str, Any] = {
    "status": TaskResultStatus.READY,
    "started_at": None,
    "finished_at": None,
    "last_attempted_at": None,
}
"""Of the result of a task that has not started."""


class CeleriacTask(Task):
    """Django's Task, known to workers from the moment it is defined."""

    __slots__ = ()

    def __post_init__(self) -> None:
        Task.__post_init__(self)
        if registry.shared_task_named(self.module_path) is None:
            registry.share(_task_of(self))


class TasksBackend(BaseTaskBackend):
    task_class = CeleriacTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    @property
    def app(self) -> Celeriac:
        return ensure_app()

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Sends the task. Raises EnqueueError, as `delay` does."""
        self.validate_task(task)
        args, kwargs = normalize_json(list(args)), normalize_json(dict(kwargs))
        sent = self.app.tasks[task.module_path].apply_async(
            args,
            kwargs,
            eta=task.run_after,
            queue=self._queue(task.queue_name),
            priority=_priority(task.priority),
            # What a result keeps of its call is text; here it is one that can be read back.
            argsrepr=msgspec.json.encode(args).decode(),
            kwargsrepr=msgspec.json.encode(kwargs).decode(),
        )
        result = self._result(task, sent.id, args, kwargs)
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> Any:
        """Raises TaskResultDoesNotExist: no task of that id is waiting, and no result is kept. ResultsDisabled: none are."""
        app = self.app
        record = app.backend.fetch([result_id]).get(result_id)
        if record is not None and record.status in states.READY_STATES:
            return self._ended(record)
        waiting = app.broker.find([result_id]).get(result_id)
        if waiting is not None and waiting.message is not None:
            return self._waiting(waiting, record)
        record = app.backend.fetch([result_id]).get(result_id)  # it has ended meanwhile
        if record is None:
            raise TaskResultDoesNotExist(result_id)
        return self._ended(record)

    def running(self, task: Any, request: Request) -> Any:
        """The result of the task that runs now: what its context shows."""
        attempts = request.message.attempts
        now = datetime.now(UTC)
        return self._result(
            task,
            cast("str", request.id),
            list(request.args),
            dict(request.kwargs),
            status=TaskResultStatus.RUNNING,
            started_at=attempts[0].started_at if attempts else now,
            last_attempted_at=now,
            worker_ids=[*(attempt.worker for attempt in attempts), request.hostname or ""],
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _queue(self, name: str) -> str:
        return self.app.conf.task_default_queue if name == DEFAULT_TASK_QUEUE_NAME else name

    def _result(self, task: Any, id: str, args: Any, kwargs: Any, **known: Any) -> Any:
        return TaskResult(
            task=task,
            id=id,
            enqueued_at=_made_at(id),
            args=args,
            kwargs=kwargs,
            backend=self.alias,
            **{**_UNKNOWN, "errors": [], "worker_ids": [], **known},
        )

    def _waiting(self, waiting: Waiting, record: Record | None) -> Any:
        message = waiting.message
        assert message is not None
        task = self._task(message.task, message.queue, message.eta)
        return self._result(
            task,
            message.id,
            _json(message.argsrepr, []),
            _json(message.kwargsrepr, {}),
            status=TaskResultStatus.RUNNING if waiting.state == "leased" else TaskResultStatus.READY,
            started_at=message.attempts[0].started_at if message.attempts else None,
            last_attempted_at=message.attempts[-1].started_at if message.attempts else None,
            worker_ids=[attempt.worker for attempt in message.attempts],
        )

    def _ended(self, record: Record) -> Any:
        task = self._task(record.name or "", record.queue or "", None)
        attempts = record.attempts
        succeeded = record.status == states.SUCCESS
        result = self._result(
            task,
            record.task_id,
            _json(record.args, []),
            _json(record.kwargs, {}),
            status=TaskResultStatus.SUCCESSFUL if succeeded else TaskResultStatus.FAILED,
            started_at=attempts[0].started_at if attempts else None,
            last_attempted_at=attempts[-1].started_at if attempts else None,
            finished_at=record.date_done,
            worker_ids=[attempt.worker for attempt in attempts],
            errors=[] if succeeded else [_error(record)],
        )
        if succeeded:
            object.__setattr__(result, "_return_value", decode_value(record.result))
        return result

    def _task(self, path: str, queue: str, run_after: datetime | None) -> Any:
        known = registry.shared_task_named(path)
        task = getattr(known, "django_task", None)
        if task is None:
            raise TaskResultDoesNotExist(f"{path!r} is not a task of django.tasks")
        name = DEFAULT_TASK_QUEUE_NAME if queue == self.app.conf.task_default_queue else queue
        return task.using(queue_name=name or None, run_after=run_after)


def _task_of(task: Any) -> TaskBase[..., Any]:
    """The task of ours that runs one of Django's."""
    if iscoroutinefunction(task.func):

        async def run(self: TaskBase[..., Any], *args: Any, **kwargs: Any) -> Any:
            result, before = _begin(task, self)
            try:
                value = normalize_json(await task.func(*before, *args, **kwargs))
            except BaseException as error:
                _end(task, result, error)
                raise
            _end(task, result, None, value)
            return value
    else:

        def run(self: TaskBase[..., Any], *args: Any, **kwargs: Any) -> Any:  # type: ignore[misc]
            result, before = _begin(task, self)
            try:
                value = normalize_json(task.func(*before, *args, **kwargs))
            except BaseException as error:
                _end(task, result, error)
                raise
            _end(task, result, None, value)
            return value

    made = define(run, name=task.module_path, app=None, base=TaskBase, bind=True, options={"typing": False})
    made.__dict__["django_task"] = task
    return made


def _begin(task: Any, running: TaskBase[..., Any]) -> tuple[Any, tuple[Any, ...]]:
    backend = task.get_backend()
    result = backend.running(task, running.request)
    task_started.send(sender=type(backend), task_result=result)
    return result, (TaskContext(task_result=result),) if task.takes_context else ()


def _end(task: Any, result: Any, error: BaseException | None, value: Any = None) -> None:
    if isinstance(error, (TaskPredicate, Paused)):
        return  # it will be continued
    found = replace(
        result,
        status=TaskResultStatus.SUCCESSFUL if error is None else TaskResultStatus.FAILED,
        finished_at=datetime.now(UTC),
        errors=[] if error is None else [_error_of(error)],
    )
    object.__setattr__(found, "_return_value", value)
    task_finished.send(type(task.get_backend()), task_result=found)


def _error_of(error: BaseException) -> Any:
    from traceback import format_exception

    return TaskError(
        exception_class_path=f"{type(error).__module__}.{type(error).__qualname__}", traceback="".join(format_exception(error))
    )


def _error(record: Record) -> Any:
    data = msgspec.json.decode(record.result)
    data = data if isinstance(data, dict) else {}
    path = f"{data.get('exc_module') or 'builtins'}.{data.get('exc_type') or 'Exception'}"
    return TaskError(exception_class_path=path, traceback=record.traceback or str(data.get("exc_message", "")))


def _priority(priority: int) -> int:
    """Django's −100 … 100 in our 0 … 9."""
    if priority < 0:
        return EVEN_PRIORITY - int(ceil(EVEN_PRIORITY * priority / TASK_MIN_PRIORITY))
    return EVEN_PRIORITY + int(ceil((9 - EVEN_PRIORITY) * priority / TASK_MAX_PRIORITY))


def _made_at(id: str) -> datetime:
    """The time that stands in an id of ours (UUID version 7)."""
    return datetime.fromtimestamp(int(id[:8] + id[9:13], 16) / 1000, UTC)


def _json(text: str | None, default: Any) -> Any:
    try:
        return msgspec.json.decode(text or "")
    except msgspec.DecodeError:
        return default
