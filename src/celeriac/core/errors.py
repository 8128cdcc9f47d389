"""Every error a user can meet, as one tree. Each message says what happened, to which value, and what to do.

    CeleriacError
    ├── ImproperlyConfigured        settings, the app, the command line
    ├── EncodeError · DecodeError   a value that cannot travel
    │   └── ContentDisallowed       … in a format that `accept_content` does not name
    ├── OperationalError            the engine cannot be reached or used
    │   ├── EnqueueError            … when sending a task
    │   └── EngineUnavailable       … in any other operation
    │       ├── EngineCorrupt       … and waiting will not help
    │       └── EngineUnsure        … and it may have been done
    ├── NodeLost                    this worker's lease has run out
    ├── NotRegistered               no task of that name
    ├── TimeoutError                a result did not come in time
    ├── TaskError
    │   ├── MaxRetriesExceededError, TaskRevokedError, WorkerLostError, TimeLimitExceeded, QueueNotFound
    │   └── ChordError
    └── TaskPredicate               not errors: how a task tells what is to become of it
        └── Retry, Ignore (└── Replaced), Reject
    SoftTimeLimitExceeded           a plain Exception, so that a task may catch it
    Paused                          a BaseException, so that a task does not catch it by mistake

Where Celery has an exception of that meaning, ours has its name.
"""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .message import Pause


class CeleriacError(Exception):
    """Base of all errors of Celeriac."""


class ImproperlyConfigured(CeleriacError):
    """A setting, a URL or an option is wrong."""


class EncodeError(CeleriacError, ValueError):
    """A value cannot be encoded. `path` names it: `args[0]`, `kwargs['user']`, `result`."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class DecodeError(CeleriacError, ValueError):
    """What arrived cannot be decoded."""


class ContentDisallowed(DecodeError):
    """What arrived is in a format that `accept_content` does not name."""


class OperationalError(CeleriacError):
    """The engine cannot be reached or used right now."""


class EngineUnavailable(OperationalError):
    """The engine cannot be reached or used right now; nothing was changed by the call that raised this, unless it is an `EngineUnsure`."""

    tried = True
    """False: nothing was asked of the server, since the last tries have failed; to ask again at once is of no use."""


class EngineUnsure(EngineUnavailable):
    """The question was sent, and the answer was lost: what was asked for may have been done. `repeatable`: asking again at once is harmless, since the engine knows ids."""

    def __init__(self, message: str, *, repeatable: bool = True) -> None:
        super().__init__(message)
        self.repeatable = repeatable


class EngineCorrupt(EngineUnavailable):
    """The engine's data is damaged, of a newer version, or not ours. Waiting does not help."""


class EnqueueError(OperationalError):
    """A task could not be sent. `task_name` and `task_id` say which. It is in no queue; with `unsure` it may be in its queue all the same, since only the answer was lost."""

    def __init__(self, message: str, task_name: str = "", task_id: str = "", *, unsure: bool = False) -> None:
        super().__init__(message)
        self.task_name = task_name
        self.task_id = task_id
        self.unsure = unsure


class NodeLost(CeleriacError):
    """The lease of this worker has run out, and others may have taken its deliveries."""

    def __init__(self, node: str) -> None:
        super().__init__(f"The lease of node {node} has run out; whatever it held has been given to others.")
        self.node = node


class NotRegistered(CeleriacError, KeyError):
    """No task of that name is registered."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class AlreadyRegistered(CeleriacError):
    """Another task of that name is registered."""


class TimeoutError(CeleriacError, builtins.TimeoutError):
    """A result did not come in time."""


class TaskError(CeleriacError):
    """Base of what becomes of tasks that did not succeed."""


class MaxRetriesExceededError(TaskError):
    """The task has been retried as often as it may be."""

    def __init__(self, *args: Any, task_args: Any = (), task_kwargs: Any = None) -> None:
        super().__init__(*args)
        self.task_args = task_args
        self.task_kwargs = task_kwargs or {}


class TaskRevokedError(TaskError):
    """The task was revoked, has expired, or was terminated."""


class WorkerLostError(TaskError):
    """The process that ran the task died."""


class TimeLimitExceeded(TaskError):
    """The task ran longer than its hard time limit and was killed."""


class ChordError(TaskError):
    """A member of a chord's header failed."""


class QueueNotFound(TaskError, KeyError):
    """The task is routed to a queue that `task_queues` does not name."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class SoftTimeLimitExceeded(Exception):
    """The task has run longer than its soft time limit. It may catch this and clean up."""


class TaskPredicate(CeleriacError):
    """Raised in a task to say what is to become of it."""


class Retry(TaskPredicate):
    """The task is to be tried again. Raised by `Task.retry`; `when` is seconds from now, or a moment."""

    def __init__(
        self,
        message: str | None = None,
        exc: BaseException | None = None,
        when: float | datetime | None = None,
        *,
        args: Any = None,
        kwargs: Any = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, exc, when)
        self.message = message
        self.exc = exc
        self.when = when
        self.new_args = args
        self.new_kwargs = kwargs
        self.options = options or {}

    def humanize(self) -> str:
        """`in 60s` or `at 2026-01-01 00:00:00+00:00`."""
        if isinstance(self.when, datetime):
            return f"at {self.when}"
        return f"in {self.when or 0:g}s"

    def __str__(self) -> str:
        if self.message:
            return self.message
        text = f"Retry {self.humanize()}"
        return f"{text}: {self.exc!r}" if self.exc is not None else text


class Paused(BaseException):
    """The run ends here, and the task goes on later: raised by `sleep` and `wait_for_event`. No Exception, so that a task that catches these does not catch it."""

    def __init__(self, pause: Pause) -> None:
        super().__init__(f"waits at step {pause.step!r}")
        self.pause = pause


class Ignore(TaskPredicate):
    """The task's outcome is not to be stored."""


class Replaced(Ignore):
    """The task is not done: `signature` does the rest, in its place. Raised by `Task.replace`."""

    def __init__(self, signature: Any) -> None:
        super().__init__("Replaced by a new task")
        self.signature = signature


class Reject(TaskPredicate):
    """The task rejects its message: into the dead letters, or with `requeue=True` back into the queue."""

    def __init__(self, reason: Any = None, requeue: bool = False) -> None:
        super().__init__(reason, requeue)
        self.reason = reason
        self.requeue = requeue
