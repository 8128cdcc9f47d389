"""Running a task on the spot: `Task.apply`, and every call while `task_always_eager` is set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import msgspec

from ..core import states
from ..core.errors import ChordError
from ..core.message import Message, Record
from ..core.serialize import decode_body, encode_exception, encode_value
from .callbacks import derived_ids, follow_ups, links
from .plan import publish
from .producer import _embed, _json_values, _own_name, _task_id, short_repr
from .request import Request, _current
from .result import AsyncResult, EagerResult, denied_join_result
from .run import Outcome, call, conclude
from .signature import Signature, signature_of

if TYPE_CHECKING:
    from .task import App, Task


_additions: ContextVar[list[Signature[Any]] | None] = ContextVar("celeriac_eager_additions", default=None)
"""While the header of a chord runs here: what its members have added to it (`Task.add_to_chord`)."""


@contextmanager
def collected_additions() -> Iterator[list[Signature[Any]]]:
    """Inside of it, tasks are members of a chord, and what they add to it is collected."""
    added: list[Signature[Any]] = []
    token = _additions.set(added)
    try:
        yield added
    finally:
        _additions.reset(token)


def apply(
    task: Task[..., Any], args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, options: dict[str, Any], throw: bool | None
) -> EagerResult[Any]:
    """Runs the task until it is not to be retried any more; without waiting between the tries."""
    additions = _additions.get()
    token = _additions.set(None)  # what this task calls is no member of the chord that it is in
    try:
        return _applied(task, args, kwargs, options, throw, additions)
    finally:
        _additions.reset(token)


def _applied(
    task: Task[..., Any],
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    options: dict[str, Any],
    throw: bool | None,
    additions: list[Signature[Any]] | None,
) -> EagerResult[Any]:
    app = task.app
    settings = app.settings
    embed = _embed(options) or {}
    message = _message(app, task, args or (), kwargs or {}, options)
    if additions is not None:
        message = msgspec.structs.replace(message, join=message.root_id)
    request = _request(message, tuple(args or ()), dict(kwargs or {}), embed)
    request.may_join = True
    doom = options.get("_doom")
    while True:
        outcome = call(task, request) if doom is None else conclude(task, request, doom, datetime.now(UTC))
        retry = outcome.retry
        if retry is None:
            break
        new_args = request.args if retry.new_args is None else tuple(retry.new_args)
        new_kwargs = request.kwargs if retry.new_kwargs is None else dict(retry.new_kwargs)
        request = _request(msgspec.structs.replace(request.message, retries=request.message.retries + 1), new_args, new_kwargs, embed)
        request.may_join = True
    if additions is not None and outcome.state == states.SUCCESS:
        additions += request.additions
    if task.store_eager_result:
        _store(app, task, request, outcome)
    if embed:
        _run_follow_ups(app, task, request, outcome)
    if throw is None:
        throw = settings.task_eager_propagates
    if throw and outcome.state == states.FAILURE and outcome.error is not None:
        raise outcome.error
    value = outcome.error if outcome.state == states.FAILURE else outcome.value
    return EagerResult(message.id, value, outcome.state, traceback=outcome.traceback, name=task.name)


def apply_instead_of_sending(
    task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: dict[str, Any]
) -> AsyncResult[Any]:
    """`apply_async` under `task_always_eager`. The arguments make the journey through the serializer, so that what could not be sent fails here too."""
    app = task.app
    message = app.producer_without_broker.message(task.name, args, kwargs, task=task, options=options, parent=_current.get())
    decoded_args, decoded_kwargs, _ = decode_body(message, _everything(message))
    with denied_join_result():
        return apply(task, decoded_args, decoded_kwargs, {**options, "task_id": message.id, "_message": message}, None)


def _everything(message: Message) -> frozenset[str]:
    return frozenset({message.content_type})


def _message(app: App, task: Task[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Message:
    """The message that would have been sent; `apply` needs its headers, and not its body."""
    made = options.get("_message")
    if isinstance(made, Message):
        return made
    from ..core.ids import new_id

    task_id = new_id() if options.get("task_id") is None else _task_id(options["task_id"])
    return Message(
        id=task_id,
        task=task.name,
        body=msgspec.Raw(b"[[],{},null]"),
        priority=options.get("priority") or 0,
        queue=options.get("queue") or task.queue or app.settings.task_default_queue,
        root_id=options.get("root_id") or task_id,
        parent_id=options.get("parent_id"),
        group=options.get("group_id"),
        group_index=options.get("group_index"),
        retries=options.get("retries") or 0,
        time_limit=options.get("time_limit"),
        soft_time_limit=options.get("soft_time_limit"),
        shadow=options.get("shadow"),
        argsrepr=short_repr(tuple(args)),
        kwargsrepr=short_repr(dict(kwargs)),
        origin=_own_name(),
        ignore_result=bool(options.get("ignore_result")),
        headers=_json_values(options.get("headers"), "headers"),
    )


def _request(message: Message, args: tuple[Any, ...], kwargs: dict[str, Any], embed: dict[str, Any]) -> Request:
    return Request(message, args, kwargs, embed, hostname=message.origin.partition("@")[2], is_eager=True)


def join_failed(body: Signature[Any], failed: AsyncResult[Any], options: Mapping[str, Any], *, sending: bool) -> AsyncResult[Any]:
    """What becomes of the body of a chord, in its normal form, when a member of the header has failed: it does not run, and those of its tasks that would start end with ChordError."""
    error = ChordError(f"Dependency {failed.id} raised {failed.result!r}")
    return body._run_here((), {}, {**options, "_doom": error}, sending=False)


def _run_follow_ups(app: App, task: Task[..., Any], request: Request, outcome: Outcome) -> None:
    """Links run here too when everything is eager; otherwise they are sent."""
    if not app.settings.task_always_eager:
        publish(cast("Any", app), follow_ups(task, request, outcome, app.producer))
        return
    token = _current.set(request)
    try:
        for link in links(app.tasks, request, outcome):
            normal = signature_of(link.signature, app=app)._normal(derived_ids(request.id or "", link.place))
            result = normal._run_here(link.args, {}, {}, sending=True)
            if task.trail:
                request.children.append(result)
    finally:
        _current.reset(token)


def _store(app: App, task: Task[..., Any], request: Request, outcome: Outcome) -> None:
    """`task_store_eager_result`."""
    message = request.message
    if message.ignore_result or outcome.state not in states.READY_STATES:
        return
    error = outcome.error
    app.backend.store(
        [
            Record(
                task_id=message.id,
                status=outcome.state,
                result=encode_value(outcome.value, "result") if error is None else encode_exception(error),
                traceback=outcome.traceback,
                date_done=datetime.now(UTC),
                name=task.name,
                args=message.argsrepr,
                kwargs=message.kwargsrepr,
                retries=message.retries,
                root_id=message.root_id,
                parent_id=message.parent_id,
            )
        ]
    )
