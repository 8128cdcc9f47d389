"""Tasks that look now and then whether somebody wants them to stop, as in `celery.contrib.abortable`.

    @app.task(bind=True, base=AbortableTask)
    def crunch(self, rows):
        for row in rows:
            if self.is_aborted():
                return "stopped half-way"

    result = crunch.delay(rows)
    result.abort()

The wish is kept with the result, so it needs a result backend and works in every pool. To end a task that does not look, `result.revoke(terminate=True)`.
"""

from __future__ import annotations

from typing import Any, ClassVar, ParamSpec, TypeVar, cast

from msgspec import Raw

from ..core.message import Record
from ..tasks.result import AsyncResult
from ..tasks.task import Task

__all__ = ["ABORTED", "AbortableAsyncResult", "AbortableTask"]

P = ParamSpec("P")
R = TypeVar("R")

ABORTED = "ABORTED"
"""The state of a task that is to stop. Once it has stopped, its state is that of any other task."""


class AbortableAsyncResult(AsyncResult[R]):
    """The result of an AbortableTask."""

    def is_aborted(self) -> bool:
        """True once somebody has asked the task to stop, until it has."""
        return self.state == ABORTED

    def abort(self) -> None:
        """Asks the task to stop. Nothing happens when it has ended already."""
        if not self.ready():
            self.backend.store([Record(task_id=self.id, status=ABORTED, result=Raw(b"null"), name=self.name)])


class AbortableTask(Task[P, R]):
    """A base for tasks that ask `self.is_aborted()`."""

    abstract: ClassVar[bool] = True
    _result_class: ClassVar[type[AsyncResult[Any]]] = AbortableAsyncResult

    def is_aborted(self, task_id: str | None = None, **kwargs: Any) -> bool:
        """Whether this run (or the task with this id) is to stop."""
        wanted = task_id or self.request.id
        if wanted is None:
            return False
        return cast("AbortableAsyncResult[R]", self.AsyncResult(wanted)).is_aborted()
