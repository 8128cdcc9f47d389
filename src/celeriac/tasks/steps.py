"""Durable steps: what a task has finished it does not do again, and what it waits for costs nothing meanwhile.

    from celeriac.steps import sleep, step, wait_for_event

    @app.task
    def order(order_id):
        step("charge", charge_card, order_id)             # remembered: a retry, a crash, a deploy go on behind it
        sleep("grace", 3600)                              # the place is free for an hour
        parcel = wait_for_event(f"packed:{order_id}")     # until somebody calls app.occur(f"packed:{order_id}", …)
        step("tell", send_mail, order_id, parcel)

The function runs from its top each time; finished steps return at once what they returned. So what lies between the steps must be quick, and may happen several times.
Steps are kept in the engine, by the id of the task and under its lease: a worker that lost it remembers nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from msgspec import Raw

from ..contracts.steps import Step, Steps
from ..core.errors import EngineUnavailable, Ignore, ImproperlyConfigured, Paused, Reject, TimeoutError
from ..core.message import Pause
from ..core.serialize import decode_exception, decode_value, encode_exception, encode_value
from .request import Request, _current

if TYPE_CHECKING:
    from ..contracts.broker import Broker

__all__ = ["astep", "sleep", "step", "wait_for_event"]

P = ParamSpec("P")
R = TypeVar("R")


def step(name: str, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Calls the function, and remembers what it returned, as JSON can carry it. If an earlier run of this task has got so far, returns that instead.

    A step that raises is not remembered: the next run tries it again. Whether a crash came just before the step was remembered nobody can know, so it happens at least once;
    a step that cannot be remembered since the engine is away gives the task back.
    A name stands for one step of the task: ValueError when a run uses it twice.
    """
    kept = _kept(name)
    found = kept.outcome(name)
    if found is None:
        found = kept.remember(name, encode_value(function(*args, **kwargs), f"what step {name!r} returned"))
    return cast("R", _value(found))


async def astep(name: str, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """`step` for a coroutine function."""
    import asyncio

    kept = _kept(name)
    found = await asyncio.to_thread(kept.outcome, name)
    if found is None:
        result = encode_value(await function(*args, **kwargs), f"what step {name!r} returned")
        found = await asyncio.to_thread(kept.remember, name, result)
    return cast("R", _value(found))


def sleep(name: str, seconds: float) -> None:
    """Goes on after so many seconds: hours or months, at no cost. The run ends here, and the task runs again from its top when the time has come.

    The time counts from when this was first reached. In eager mode, and when the task is called as a function, no time goes by.
    """
    kept = _kept(name)
    if kept.outcome(name) is None:
        if not kept.is_over(name):
            raise Paused(Pause(step=name, seconds=max(0.0, float(seconds))))
        kept.remember(name, Raw(b"null"))


def wait_for_event(event: str, timeout: float | None = None, *, name: str | None = None) -> Any:
    """Waits until `app.occur(event, value)` is called, and returns the value. An event that has occurred already is not waited for. `name` is the step's, by default the event's.

    Raises: TimeoutError: after `timeout` seconds from when this was first reached. In eager mode at once: nobody can call meanwhile.
    """
    name = event if name is None else name
    kept = _kept(name)
    found = kept.outcome(name)
    if found is None:
        if not kept.is_over(name):
            raise Paused(Pause(step=name, event=event, seconds=None if timeout is None else max(0.0, float(timeout))))
        late = TimeoutError(f"The event {event!r} did not occur in time.")
        found = kept.remember(name, encode_exception(late), failed=True)
    return _value(found)


class Kept:
    """The steps of one run of a task. This one keeps them no longer than the run: for eager mode, and for calls as a function."""

    used = False
    """Whether the engine may hold a step of this task."""

    def __init__(self) -> None:
        self.named: set[str] = set()

    def outcome(self, name: str) -> Step | None:
        return None

    def is_over(self, name: str) -> bool:
        return True

    def remember(self, name: str, result: Raw, *, failed: bool = False) -> Step:
        return Step(name=name, result=result, failed=failed)


class _KeptInEngine(Kept):
    """The engine is asked for them when the first of them is named."""

    used = True

    def __init__(self, request: Request, broker: Broker) -> None:
        super().__init__()
        assert request.delivery is not None
        self._request = request
        self._lease = request.delivery.lease
        self._broker = broker
        self._steps = cast("Steps", broker)
        self._known: dict[str, Step] | None = None

    def outcome(self, name: str) -> Step | None:
        found = self._recalled().get(name)
        return found if found is not None and found.result is not None else None

    def is_over(self, name: str) -> bool:
        wait = self._recalled().get(name)
        return wait is not None and wait.until is not None and wait.until <= self._broker.now()

    def remember(self, name: str, result: Raw, *, failed: bool = False) -> Step:
        try:
            kept = self._steps.remember(self._request.message.id, name, result, failed=failed, lease=self._lease)
        except EngineUnavailable as error:
            raise Reject(f"Step {name!r} could not be remembered: {error}", requeue=True) from error
        if kept is None:
            raise Ignore(f"{self._request.task}[{self._request.id}] belongs to another worker now; step {name!r} is not remembered.")
        return kept

    def _recalled(self) -> dict[str, Step]:
        if self._known is None:
            try:
                self._known = self._steps.recall(self._request.message.id)
            except EngineUnavailable as error:
                raise Reject(
                    f"The steps of {self._request.task}[{self._request.id}] could not be recalled: {error}", requeue=True
                ) from error
        return self._known


def _kept(name: str) -> Kept:
    """The steps of the run that we are in, of which this is the next."""
    request = _current.get()
    if request is None or request.running is None:
        raise RuntimeError("Durable steps are for the code of a task: there is none running here.")
    if request.kept_steps is None:
        request.kept_steps = _begun(request)
    if name in request.kept_steps.named:
        raise ValueError(
            f"{request.task}[{request.id}] has two steps of the name {name!r}. Give each a name of its own, such as {name + '-2'!r}."
        )
    request.kept_steps.named.add(name)
    return request.kept_steps


def _begun(request: Request) -> Kept:
    if request.is_eager or request.delivery is None:
        return Kept()
    task = request.running
    assert task is not None
    broker = task.app.producer.broker
    if not broker.capabilities.steps:
        raise ImproperlyConfigured(
            f"Durable steps need a broker that keeps them: sqlite:// or memory://. {broker.capabilities.engine} does not."
        )
    late = task.app.settings.task_acks_late if task.acks_late is None else task.acks_late
    if not late:
        raise ImproperlyConfigured(
            f"Task {task.name} has acks_late=False: it is out of the queue before it runs, and cannot go on later. Durable steps need acks_late."
        )
    return _KeptInEngine(request, broker)


def _value(found: Step) -> Any:
    assert found.result is not None
    if found.failed:
        raise decode_exception(found.result)
    return decode_value(found.result)
