"""One run of a task, from `task_prerun` to `task_postrun`, the same for workers and for `Task.apply`.

`call → begin → your function → classify → hooks and signals → Outcome`. What becomes of the outcome (settled, stored, retried) is the caller's business.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Coroutine, Generator
from contextvars import Token, copy_context
from datetime import UTC, datetime
from time import perf_counter
from types import CoroutineType, TracebackType
from typing import TYPE_CHECKING, Any

from msgspec import Raw, Struct

from ..core import events, states
from ..core.errors import Ignore, Paused, Reject, Replaced, Retry, SoftTimeLimitExceeded, TaskRevokedError
from ..core.message import Pause
from ..core.retry import backoff_seconds
from ..core.serialize import encode_value
from .request import Request, _current

if TYPE_CHECKING:
    import asyncio

    from .task import Task

logger = logging.getLogger("celeriac.task")

__all__ = ["ExceptionInfo", "Outcome", "acall", "call", "conclude"]


class Outcome(Struct, kw_only=True):
    """What came of one run."""

    state: str
    """SUCCESS, FAILURE, RETRY, REVOKED, IGNORED, REJECTED or PAUSED."""
    value: Any = None
    encoded: Raw | None = None
    """With SUCCESS: the value as JSON; None when no result is to be stored, or the run was eager."""
    error: BaseException | None = None
    """With FAILURE and REVOKED: what ended the task. With RETRY: why it wants to be tried again, if it said so."""
    traceback: str | None = None
    retry: Retry | None = None
    reason: str = ""
    """With REJECTED: why."""
    pause: Pause | None = None
    """With PAUSED: what it waits for."""
    requeue: bool = False
    """With REJECTED: back into the queue instead of into the dead letters."""
    replaced_by: Any = None
    """With IGNORED: the signature that does the rest (`Task.replace`)."""
    expected: bool = False
    """With FAILURE: the task says that it may raise this (`throws`)."""
    started_at: datetime
    runtime_seconds: float = 0.0


class ExceptionInfo:
    """What hooks and signals get as `einfo`: the exception, and its traceback as text."""

    def __init__(self, error: BaseException, *, skip_frames: int = 0) -> None:
        tb = error.__traceback__
        for _ in range(skip_frames):
            tb = tb.tb_next if tb is not None and tb.tb_next is not None else tb
        self.type = type(error)
        self.exception = error
        self.tb: TracebackType | None = tb
        try:
            self.traceback = "".join(traceback.format_exception(type(error), error, tb))
        except Exception as problem:  # an exception whose own methods raise
            self.traceback = f"{type(error).__qualname__}, of which no traceback can be made: {problem!r}\n"
        self.internal = False

    def __str__(self) -> str:
        return self.traceback

    def __repr__(self) -> str:
        return f"<ExceptionInfo: {self.exception!r}>"


def call(task: Task[..., Any], request: Request) -> Outcome:
    """Runs the task once and says what came of it. Never raises for what the task does, not even for SystemExit.

    Only a KeyboardInterrupt of an eager run goes through: there it is the user who asks. An `async def` task runs on an event loop that this thread keeps.
    """
    token, started_at, started = _begin(task, request)
    try:
        try:
            request.exposed = True
            task.before_start(request.id, request.args, request.kwargs)
            entry = task if task._has_own_call else task.run
            value = entry(*request.args, **request.kwargs)
            if type(value) is CoroutineType:
                value = _run_coroutine(value)
            request.exposed = False
        except BaseException as error:
            request.exposed = False
            if request.is_eager and isinstance(error, KeyboardInterrupt):
                raise
            outcome, info = _classify(task, request, error)
        else:
            outcome, info = _returned(task, request, value)
        outcome.started_at = started_at
        outcome.runtime_seconds = perf_counter() - started
        _tell(task, request, outcome, info)
        return outcome
    finally:
        _current.reset(token)


async def acall(task: Task[..., Any], request: Request) -> Outcome:
    """As `call`, on the event loop that runs here. A plain function runs in a thread beside it. Raises only CancelledError, when somebody cancels this run."""
    import asyncio

    if not task.is_async:
        return await asyncio.to_thread(call, task, request)
    token, started_at, started = _begin(task, request)
    try:
        try:
            task.before_start(request.id, request.args, request.kwargs)
            entry = task if task._has_own_call else task.run
            value = await entry(*request.args, **request.kwargs)
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                myself = asyncio.current_task()
                if myself is not None and myself.cancelling():
                    raise
            outcome, info = _classify(task, request, error)
        else:
            outcome, info = _returned(task, request, value)
        outcome.started_at = started_at
        outcome.runtime_seconds = perf_counter() - started
        _tell(task, request, outcome, info)
        return outcome
    finally:
        _current.reset(token)


def _begin(task: Task[..., Any], request: Request) -> tuple[Token[Request | None], datetime, float]:
    request.running = task
    request.outer = _current.get()
    request.entered = not task._has_own_call
    token = _current.set(request)
    if events.task_prerun.receivers:
        events.task_prerun.send(sender=task, task_id=request.id, task=task, args=request.args, kwargs=request.kwargs)
    return token, datetime.now(UTC), perf_counter()


def conclude(task: Task[..., Any], request: Request, error: BaseException, started_at: datetime) -> Outcome:
    """The outcome of a delivery that ended outside of `call`: its process died, its limit ran out, it was doomed. Hooks and signals as for any failure."""
    request.running = task
    request.outer = _current.get()
    token = _current.set(request)
    try:
        if isinstance(error, SoftTimeLimitExceeded):  # as if the task had raised it
            outcome, info = _classify(task, request, error)
        else:
            request.ended_by = error
            outcome, info = _failed(task, request, error)
        outcome.started_at = started_at
        outcome.runtime_seconds = max(0.0, (datetime.now(UTC) - started_at).total_seconds())
        _tell(task, request, outcome, info)
        return outcome
    finally:
        _current.reset(token)


def _returned(task: Task[..., Any], request: Request, value: Any) -> tuple[Outcome, ExceptionInfo | None]:
    asked = request.retry_asked
    if isinstance(asked, Retry):
        return Outcome(state=states.RETRY, error=asked.exc, retry=asked, started_at=_EPOCH), ExceptionInfo(asked)
    if request.is_eager or (request.ignore_result and request.message.join is None):
        return Outcome(state=states.SUCCESS, value=value, started_at=_EPOCH), None
    try:
        encoded = encode_value(value, "result")
    except Exception as error:
        return _failed(task, request, error)
    return Outcome(state=states.SUCCESS, value=value, encoded=encoded, started_at=_EPOCH), None


def _failed(task: Task[..., Any], request: Request, error: BaseException) -> tuple[Outcome, ExceptionInfo]:
    info = ExceptionInfo(error, skip_frames=1)
    if error is request.ended_by and isinstance(error, TaskRevokedError):
        return Outcome(state=states.REVOKED, error=error, traceback=info.traceback, reason=str(error), started_at=_EPOCH), info
    expected = bool(task.throws) and isinstance(error, task.throws)
    return Outcome(state=states.FAILURE, error=error, traceback=info.traceback, expected=expected, started_at=_EPOCH), info


def _classify(task: Task[..., Any], request: Request, error: BaseException) -> tuple[Outcome, ExceptionInfo | None]:
    """Turns what a task raised into its outcome."""
    if error is request.ended_by and not isinstance(error, SoftTimeLimitExceeded):
        return _failed(task, request, error)
    if isinstance(error, Paused):
        return Outcome(state=states.PAUSED, pause=error.pause, started_at=_EPOCH), None
    if isinstance(error, Ignore):
        replaced_by = error.signature if isinstance(error, Replaced) else None
        return Outcome(state=states.IGNORED, replaced_by=replaced_by, started_at=_EPOCH), None
    if isinstance(error, Reject):
        reason = "" if error.reason is None else str(error.reason)
        return Outcome(state=states.REJECTED, reason=reason, requeue=error.requeue, started_at=_EPOCH), None
    retry = error if isinstance(error, Retry) else None
    if retry is None and task.autoretry_for and isinstance(error, task.autoretry_for) and not isinstance(error, task.dont_autoretry_for):
        try:
            retry = _automatic_retry(task, request, error)
        except BaseException as final:
            error = final
    if retry is None:
        return _failed(task, request, error)
    info = ExceptionInfo(error, skip_frames=1)
    return Outcome(state=states.RETRY, error=retry.exc, traceback=info.traceback, retry=retry, started_at=_EPOCH), info


def _automatic_retry(task: Task[..., Any], request: Request, error: BaseException) -> Retry:
    """The Retry that `autoretry_for` stands for. Raises what `Task.retry` raises when there are no retries left: `error` itself."""
    options = dict(task.retry_kwargs)
    if task.retry_backoff:
        options["countdown"] = backoff_seconds(
            request.retries,
            factor=int(max(1, task.retry_backoff)),
            maximum=task.retry_backoff_max,
            jitter=task.retry_jitter,
        )
    options.setdefault("exc", error)
    options["throw"] = False
    retry = task.retry(**options)
    request.retry_asked = None
    return retry


def _tell(task: Task[..., Any], request: Request, outcome: Outcome, info: ExceptionInfo | None) -> None:
    """Hooks and signals. One that raises is logged, and changes nothing.

    As in Celery, `after_return` comes when the task has ended: not between two tries, and not when it has taken itself back by Ignore or Reject.
    """
    state = outcome.state
    task_id, args, kwargs = request.id, request.args, request.kwargs
    value: Any = outcome.value
    try:
        if state == states.SUCCESS:
            task.on_success(value, task_id, args, kwargs)
            if events.task_success.receivers:
                events.task_success.send(sender=task, result=value, runtime=outcome.runtime_seconds)
        elif state == states.FAILURE:
            value = outcome.error
            if events.task_failure.receivers:
                tb = info.tb if info is not None else None
                events.task_failure.send(sender=task, task_id=task_id, exception=value, args=args, kwargs=kwargs, traceback=tb, einfo=info)
            task.on_failure(value, task_id, args, kwargs, info)
        elif state == states.REVOKED:
            value = outcome.error
            if events.task_revoked.receivers:
                events.task_revoked.send(sender=task, request=request, terminated=True, signum=None, expired=False)
            task.on_failure(value, task_id, args, kwargs, info)
        elif state == states.RETRY:
            value = outcome.retry
            task.on_retry(outcome.error if outcome.error is not None else value, task_id, args, kwargs, info)
            if events.task_retry.receivers:
                events.task_retry.send(sender=task, request=request, reason=value, einfo=info)
    except Exception:
        _hook_raised(task, request)
    if state in states.READY_STATES:
        try:
            task.after_return(state, value, task_id, args, kwargs, info)
        except Exception:
            _hook_raised(task, request)
    if events.task_postrun.receivers:
        events.task_postrun.send(sender=task, task_id=task_id, task=task, args=args, kwargs=kwargs, retval=value, state=state)


def _hook_raised(task: Task[..., Any], request: Request) -> None:
    logger.error("A hook of task %s[%s] raised; the outcome of the task stays as it was.", task.name, request.id, exc_info=sys.exc_info())


# -- async def in a plain thread -------------------------------------------------------------------------------------------

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_thread = threading.local()
# A forked child must not share its parent's event loop.
os.register_at_fork(after_in_child=_thread.__dict__.clear)


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs it on this thread's own event loop, which is made once (`asyncio.run` would cost 70 µs a task)."""
    import asyncio

    if asyncio._get_running_loop() is not None:
        return _run_elsewhere(coroutine)
    loop: asyncio.AbstractEventLoop | None = getattr(_thread, "loop", None)
    if loop is None or loop.is_closed():
        loop = _thread.loop = asyncio.new_event_loop()
    body = _Interruptible(coroutine)
    running = loop.create_task(body.run())
    try:
        return loop.run_until_complete(running)
    except BaseException as error:
        if running.done():
            raise
        # A signal handler (a soft time limit) raised while the loop was waiting: let the task see it, at the await where it stands.
        body.interrupt(error, running)
        return loop.run_until_complete(running)


class _Interruptible:
    """Awaits a coroutine, into which an exception can be thrown from outside; asyncio itself can only cancel."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self.coroutine = coroutine
        self.error: BaseException | None = None

    def interrupt(self, error: BaseException, running: asyncio.Task[Any]) -> None:
        self.error = error
        running.cancel()
        running.uncancel()

    async def run(self) -> Any:
        return await self

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Callable[[Any], Any] = self.coroutine.send
        value: Any = None
        while True:
            try:
                awaited = step(value)
            except StopIteration as stop:
                return stop.value
            try:
                value = yield awaited
                step = self.coroutine.send
            except BaseException as error:
                value, self.error = self.error or error, None
                step = self.coroutine.throw


def _run_elsewhere(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """An eager call inside a coroutine: this thread's loop is busy with the caller, so the task gets a thread of its own."""
    import asyncio

    context = copy_context()
    answer: list[Any] = []
    problem: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(context.run(asyncio.run, coroutine))
        except BaseException as error:
            problem.append(error)

    thread = threading.Thread(target=run, name="celeriac-eager")
    thread.start()
    thread.join()
    if problem:
        raise problem[0]
    return answer[0]
