"""What follows the end of a task: `link` and `link_error`, its arrival at a join, and the end of the steps that will not come. The same for workers and for eager runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from msgspec import Raw, Struct

from ..core import states
from ..core.message import Arrival, Message, Record
from .plan import NOWHERE, Plan
from .producer import Producer
from .request import Request
from .signature import signature_of

if TYPE_CHECKING:
    from .run import Outcome
    from .task import Task

logger = logging.getLogger("celeriac.task")


class Link(Struct, frozen=True):
    """A signature to send after the end of a task, with arguments that go before its own."""

    place: str
    signature: Mapping[str, Any]
    args: tuple[Any, ...]


def follow_ups(task: Task[..., Any], request: Request, outcome: Outcome, producer: Producer) -> Plan:
    """What to publish in the step that settles the task: its callbacks after SUCCESS, its errbacks after FAILURE. Publishes nothing.

    A follow-up whose id nobody has decided gets one that derives from the task's, so that making it twice makes it once. One that cannot be sent is logged: that must not undo
    what the task has done.
    """
    plan = Plan(producer, parent=request)
    for link in links(task.app.tasks, request, outcome):
        part = Plan(producer, parent=request, fresh_id=derived_ids(request.id or "", link.place))
        try:
            _, result = signature_of(link.signature, app=task.app)._send(part, NOWHERE, link.args)
        except Exception:
            logger.exception("%s of task %s[%s] to %s cannot be sent.", link.place, request.task, request.id, link.signature.get("task"))
            continue
        plan.include(part)
        if request.running is None or request.running.trail:
            request.children.append(result)
    return plan


def links(tasks: Mapping[str, Task[..., Any]], request: Request, outcome: Outcome) -> list[Link]:
    """The callbacks or errbacks to send. Errbacks of the new style, `(request, exc, traceback)`, are functions to call and not tasks to send: they are called here, if
    they are among `tasks`."""
    embed = request.embed
    if outcome.state == states.SUCCESS:
        callbacks = embed.get("callbacks")
        return [Link(f"link.{index}", callback, (outcome.value,)) for index, callback in enumerate(callbacks)] if callbacks else []
    if outcome.state != states.FAILURE:
        return []
    found = []
    for index, errback in enumerate(embed.get("errbacks") or ()):
        task = tasks.get(errback["task"])
        if task is not None and _is_new_style(task, errback):
            _call(task, errback, request, outcome.error, outcome.traceback)
        else:
            found.append(Link(f"link_error.{index}", errback, (request.id,)))
    return found


def arrival(message: Message, result: Raw, *, failed: bool = False) -> Arrival | None:
    """The end of this message at its join; None when it is the member of none."""
    if message.join is None:
        return None
    return Arrival(join=message.join, index=message.join_index, task_id=message.id, failed=failed, result=result)


def never_coming(embed: Mapping[str, Any], state: str, error: Raw, traceback: str | None) -> list[Record]:
    """The results of the steps after one that did not succeed: whoever waits for one of them learns why it never comes."""
    chained: Sequence[Mapping[str, Any]] = embed.get("chain") or ()
    moment = datetime.now(UTC)
    return [
        Record(task_id=task.options["task_id"], status=state, result=error, traceback=traceback, date_done=moment, name=task.task)
        for step in reversed(chained)
        for task in signature_of(step)._tasks()
        if task.options.get("task_id") and not task.options.get("ignore_result")
    ]


def derived_ids(parent_id: str, place: str) -> Callable[[], str]:
    """Gives the ids of what is sent at this place, one after the other: always the same for the same parent."""
    counted: Iterator[str] = _derived(parent_id, place)
    return counted.__next__


def _derived(parent_id: str, place: str) -> Iterator[str]:
    number = 0
    while True:
        yield derived_id(parent_id, f"{place}.{number}")
        number += 1


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
