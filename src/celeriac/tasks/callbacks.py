"""`link` and `link_error`: what follows the end of a task. The same for workers and for eager runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..core import states
from ..core.message import Message
from .producer import Producer
from .request import Request
from .result import AsyncResult

if TYPE_CHECKING:
    from .run import Outcome
    from .task import Task

logger = logging.getLogger("celeriac.task")


def follow_ups(task: Task[..., Any], request: Request, outcome: Outcome, producer: Producer) -> list[Message]:
    """The messages to publish in the step that settles the task: its callbacks after SUCCESS, its errbacks after FAILURE. Publishes nothing.

    Errbacks of the new style, `(request, exc, traceback)`, are functions to call and not tasks to send: they are called here.
    A follow-up whose id nobody has decided gets one that derives from the task's, so that making it twice makes it once.
    """
    if outcome.state == states.SUCCESS:
        callbacks = request.embed.get("callbacks")
        if not callbacks:
            return []
        messages = [_follow_up(producer, request, signature, (outcome.value,), "link", index) for index, signature in enumerate(callbacks)]
        return [message for message in messages if message is not None]
    if outcome.state == states.FAILURE:
        errbacks = request.embed.get("errbacks")
        if errbacks:
            return failure_follow_ups(task.app.tasks, request, outcome.error, outcome.traceback, producer)
    return []


def failure_follow_ups(
    tasks: Mapping[str, Task[..., Any]], request: Request, error: BaseException | None, traceback: str | None, producer: Producer
) -> list[Message]:
    """Errbacks alone; also for a failure that no run ended in (killed, timed out, poisoned), where the supervisor may not call user code:
    with empty `tasks`, all of them are sent."""
    messages = []
    for index, signature in enumerate(request.embed.get("errbacks") or ()):
        errback = tasks.get(signature["task"])
        if errback is not None and _is_new_style(errback, signature):
            _call(errback, signature, request, error, traceback)
        else:
            message = _follow_up(producer, request, signature, (request.id,), "link_error", index)
            if message is not None:
                messages.append(message)
    return messages


def _follow_up(
    producer: Producer, request: Request, signature: Mapping[str, Any], prepend: tuple[Any, ...], kind: str, index: int
) -> Message | None:
    """None when the signature cannot be sent: that must not undo what the task has done."""
    extra: dict[str, Any] = {}
    if not (signature.get("options") or {}).get("task_id"):
        extra["task_id"] = derived_id(request.id or "", f"{kind}.{index}")
    try:
        message = producer.from_signature(signature, prepend=prepend, parent=request, **extra)
    except Exception:
        logger.exception("%s of task %s[%s] to %s cannot be sent.", kind, request.task, request.id, signature.get("task"))
        return None
    if request.running is None or request.running.trail:
        request.children.append(AsyncResult(message.id))
    return message


def derived_id(parent_id: str, place: str) -> str:
    """The id of the follow-up at this place: always the same for the same parent."""
    from uuid import UUID, uuid5

    return str(uuid5(UUID("b6ad4c6e-3c2b-5a0e-9d3c-6b1f2f0c7c11"), f"{parent_id}/{place}"))


def _call(
    errback: Task[..., Any], signature: Mapping[str, Any], request: Request, error: BaseException | None, traceback: str | None
) -> None:
    args = tuple(signature.get("args") or ())
    if not signature.get("immutable"):
        args = (request, error, traceback, *args)
    try:
        errback(*args, **(signature.get("kwargs") or {}))
    except Exception:
        logger.exception("Errback %s of task %s[%s] raised.", errback.name, request.task, request.id)


def _is_new_style(errback: Task[..., Any], signature: Mapping[str, Any]) -> bool:
    """Celery's rule: a decorated task, not bound, whose arguments that are not stored in the signature are more than one."""
    function: Callable[..., Any] | None = errback._function
    if function is None or errback._bound or errback.is_async:
        return False
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    if code.co_flags & 0x04:
        return True
    names = code.co_varnames[: code.co_argcount]
    stored = 0 if signature.get("immutable") else len(signature.get("args") or ())
    given = signature.get("kwargs") or {}
    return len([name for name in names if name not in given]) - stored > 1
