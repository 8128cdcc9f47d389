"""AsyncResult: what became of a task, and waiting for it."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from ..contracts.results import ResultBackend, Subscription
from ..core import errors, states
from ..core.errors import ImproperlyConfigured
from ..core.message import Lease, Record
from ..core.serialize import decode_exception, decode_value
from .registry import find_current_app
from .request import current_request

if TYPE_CHECKING:
    import asyncio

    from .task import App

R = TypeVar("R")

_join_allowed: ContextVar[bool | None] = ContextVar("celeriac_join_allowed", default=None)

_LONG_SECONDS = 3600.0


@contextmanager
def allow_join_result() -> Iterator[None]:
    """Inside of it, a task may wait for results."""
    token = _join_allowed.set(True)
    try:
        yield
    finally:
        _join_allowed.reset(token)


@contextmanager
def denied_join_result() -> Iterator[None]:
    """Inside of it, nothing may wait for results."""
    token = _join_allowed.set(False)
    try:
        yield
    finally:
        _join_allowed.reset(token)


def assert_will_not_block() -> None:
    """Raises RuntimeError inside a task: the worker that should run the other task may be this one."""
    allowed = _join_allowed.get()
    if allowed is None:
        request = current_request()
        allowed = request is None or request.may_join
    if not allowed:
        raise RuntimeError(
            "Never call result.get() within a task! It blocks a worker slot that the other task may need. Use link= or a chain; "
            "or, when you are sure, `with allow_join_result():`."
        )


class AsyncResult(Generic[R]):
    """The result of one call, by its id. Asks the result backend only when it is asked itself, and never again once the task has ended."""

    _has_record: ClassVar[bool] = True
    """False for a result that is made of others, or was never stored."""
    TimeoutError: ClassVar[type[errors.TimeoutError]] = errors.TimeoutError
    """`except result.TimeoutError`, as in Celery."""

    def __init__(
        self,
        id: str,
        backend: ResultBackend | None = None,
        task_name: str | None = None,
        app: App | None = None,
        parent: AsyncResult[Any] | None = None,
        *,
        ignored: bool = False,
    ) -> None:
        if not id:
            raise ValueError("AsyncResult needs the id of a task.")
        self.id = id
        self.parent = parent
        self.ignored = ignored
        """True when it is known that no result will be stored."""
        self._app = app
        self._backend = backend
        self._task_name = task_name
        self._record: Record | None = None
        self._value: Any = None
        self._seen: str = states.PENDING

    @property
    def app(self) -> App:
        return self._app or find_current_app()

    @property
    def backend(self) -> ResultBackend:
        return self._backend if self._backend is not None else self.app.backend

    @property
    def task_id(self) -> str:
        return self.id

    # -- what is known of it now -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """PENDING (also for an unknown id), STARTED, RETRY, SUCCESS, FAILURE, REVOKED, or a state that the task made up."""
        record = self._look()
        return states.PENDING if record is None else record.status

    status = state

    @property
    def result(self) -> Any:
        """What the task returned; the exception when it failed; the meta of a state that it made up; None when nothing is known."""
        return self._decoded(self._look())

    info = result

    @property
    def traceback(self) -> str | None:
        record = self._look()
        return None if record is None else record.traceback

    @property
    def children(self) -> list[AsyncResult[Any]] | None:
        """The results of the tasks that it has sent."""
        record = self._look()
        if record is None:
            return None
        return [result for result in (result_from_tuple(child, app=self._app) for child in record.children) if result is not None]

    @property
    def name(self) -> str | None:
        record = self._look()
        return self._task_name if record is None or record.name is None else record.name

    @property
    def args(self) -> Any:
        record = self._look()
        return None if record is None else record.args

    @property
    def kwargs(self) -> Any:
        record = self._look()
        return None if record is None else record.kwargs

    @property
    def worker(self) -> str | None:
        record = self._look()
        return None if record is None else record.worker

    @property
    def queue(self) -> str | None:
        record = self._look()
        return None if record is None else record.queue

    @property
    def retries(self) -> int | None:
        record = self._look()
        return None if record is None else record.retries

    @property
    def date_done(self) -> datetime | None:
        record = self._look()
        return None if record is None else record.date_done

    @property
    def attempts(self) -> list[Any]:
        """The finished tries: worker, start, run time, error."""
        record = self._look()
        return [] if record is None else record.attempts

    def ready(self) -> bool:
        """Whether the task has ended, well or not."""
        return self.state in states.READY_STATES

    def successful(self) -> bool:
        return self.state == states.SUCCESS

    def failed(self) -> bool:
        return self.state == states.FAILURE

    # -- waiting -----------------------------------------------------------------------------------------------------------------

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        no_ack: bool = True,
        follow_parents: bool = True,
        callback: Callable[[str, Any], Any] | None = None,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        on_interval: Callable[[], Any] | None = None,
        disable_sync_subtasks: bool = True,
    ) -> R:
        """Waits until the task has ended, and returns what it returned. The engine tells when that is; nothing polls.

        Raises: TimeoutError: it has not ended in `timeout` seconds.
                what the task raised, or TaskRevokedError; unless `propagate=False`, which returns the exception.
                RuntimeError: inside a task.
        """
        if self.ignored:
            return None  # type: ignore[return-value]
        if disable_sync_subtasks:
            assert_will_not_block()
        record = self._record or self._wait(timeout, on_message, on_interval, follow_parents and propagate)
        return self._outcome(record, propagate, callback, follow_parents)

    wait = get

    async def aget(self, timeout: float | None = None, propagate: bool = True, *, disable_sync_subtasks: bool = True) -> R:
        """`get` for coroutines: the event loop goes on meanwhile."""
        if self.ignored:
            return None  # type: ignore[return-value]
        if disable_sync_subtasks:
            assert_will_not_block()
        record = self._record or await self._await(timeout)
        if propagate and self.parent is not None and record.status in states.PROPAGATE_STATES:
            import asyncio

            await asyncio.to_thread(self._raise_of_parents)
        return self._outcome(record, propagate, None, False)

    def _wait(
        self,
        timeout: float | None,
        on_message: Callable[[dict[str, Any]], Any] | None,
        on_interval: Callable[[], Any] | None,
        follow_parents: bool = True,
    ) -> Record:
        deadline = None if timeout is None else time.monotonic() + timeout
        before = {parent.id: parent for parent in self._parents() if parent._has_record} if follow_parents else {}
        ids = [*before, self.id]
        subscription = self.backend.subscribe(ids)
        seen: Record | None = None
        try:
            while True:
                found = self.backend.fetch(ids)
                record = self._take(found.get(self.id))
                if on_message is not None and record is not None and record != seen:
                    on_message(self._as_meta(record))
                    seen = record
                if record is not None and record.status in states.READY_STATES:
                    return record
                for id, parent in before.items():
                    parent._take(found.get(id))
                    if parent._record is not None:
                        parent._outcome(parent._record, True, None)
                if on_interval is not None:
                    on_interval()
                left = _LONG_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise self._too_late(timeout, record)
                subscription.changed(min(left, _LONG_SECONDS))
        finally:
            subscription.close()

    async def _await(self, timeout: float | None) -> Record:
        import asyncio

        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        backend = self.backend

        def begin() -> tuple[Subscription, Record | None]:
            return backend.subscribe([self.id]), self._fetch()

        def look() -> Record | None:
            subscription.changed(0.0)
            return self._fetch()

        opening = asyncio.ensure_future(asyncio.to_thread(begin))
        try:
            subscription, record = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise
        descriptor = subscription.fileno()
        try:
            while record is None or record.status not in states.READY_STATES:
                left = None if deadline is None else deadline - loop.time()
                if left is not None and left <= 0:
                    raise self._too_late(timeout, record)
                await readable(descriptor, left)
                record = await asyncio.to_thread(look)
            return record
        finally:
            await asyncio.shield(asyncio.to_thread(subscription.close))

    def _too_late(self, timeout: float | None, record: Record | None) -> errors.TimeoutError:
        state = states.PENDING if record is None else record.status
        return errors.TimeoutError(
            f"The operation timed out: task {self.id} is {state} after {timeout:g} s. Does a worker consume its queue?"
        )

    def _outcome(self, record: Record, propagate: bool, callback: Callable[[str, Any], Any] | None, follow_parents: bool = True) -> R:
        value = self._decoded(record)
        if propagate and record.status in states.PROPAGATE_STATES:
            if follow_parents and self.parent is not None:
                self._raise_of_parents()
            self._raise(value)
        if callback is not None:
            callback(self.id, value)
        return value  # type: ignore[no-any-return]

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        """Raises what the task raised, if it has failed; returns its value otherwise."""
        record = self._look()
        if record is None:
            return None
        return self._outcome(record, propagate, callback)

    maybe_reraise = maybe_throw

    def throw(self) -> None:
        self._raise(self.result)

    def _raise(self, value: Any) -> None:
        if isinstance(value, BaseException) and not isinstance(value, Exception):
            # SystemExit, KeyboardInterrupt, CancelledError: the task's own end, and not the end of who asks for its result.
            raise errors.TaskError(f"Task {self.id} ended with {value!r}.") from value
        raise value if isinstance(value, Exception) else Exception(value)

    def _raise_of_parents(self) -> None:
        """Raises what the first of those before it raised, if one has failed or was revoked: then it never comes itself."""
        for parent in self._parents():
            parent.maybe_throw()

    def _parents(self) -> list[AsyncResult[Any]]:
        parents: list[AsyncResult[Any]] = []
        parent = self.parent
        while parent is not None:
            parents.append(parent)
            parent = parent.parent
        return parents[::-1]

    # -- changing it -------------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Removes the result from the backend."""
        self._record = None
        self.backend.forget([self.id])
        if self.parent is not None:
            self.parent.forget()

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """The task is not to run any more; with `terminate`, also when it is running now."""
        self.app.control.revoke(self.id, terminate=terminate, signal=signal or "SIGTERM", reply=wait, timeout=timeout)

    # -- records -----------------------------------------------------------------------------------------------------------------

    def _look(self) -> Record | None:
        return self._record or self._fetch()

    def _fetch(self) -> Record | None:
        return self._take(self.backend.fetch([self.id]).get(self.id))

    def _take(self, record: Record | None) -> Record | None:
        """What the backend has just said of it."""
        self._seen = states.PENDING if record is None else record.status
        if record is not None and record.status in states.READY_STATES:
            self._value = _decode(record)
            self._record = record
        return record

    def _state_known(self) -> str:
        """The state as it was when the backend was last asked."""
        return self._record.status if self._record is not None else self._seen

    def _ended(self) -> bool:
        return self._state_known() in states.READY_STATES

    def _throw_known(self) -> None:
        """Raises what the task raised, as far as the backend has said so."""
        if self._record is not None:
            self._outcome(self._record, True, None)

    def _value_of_known(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> Any:
        if self._record is None:
            return None  # no result is kept of it
        return self._outcome(self._record, propagate, callback)

    def _decoded(self, record: Record | None) -> Any:
        if record is None:
            return None
        return self._value if record is self._record else _decode(record)

    def _as_meta(self, record: Record) -> dict[str, Any]:
        return {
            "task_id": self.id,
            "status": record.status,
            "result": self._decoded(record),
            "traceback": record.traceback,
            "children": record.children,
            "date_done": record.date_done,
        }

    def as_tuple(self) -> Any:
        """Celery's form of a result in messages and records: `[[id, parent], null]`."""
        return (self.id, self.parent.as_tuple() if self.parent is not None else None), None

    def as_list(self) -> list[str]:
        """The ids of this result and its parents."""
        return [self.id, *(self.parent.as_list() if self.parent is not None else [])]

    def get_leaf(self) -> Any:
        """The value of the last descendant."""
        return [value for _, value in self.collect()][-1]

    def collect(self, intermediate: bool = False, **options: Any) -> Iterator[tuple[AsyncResult[Any], Any]]:
        """This result and all that came of it, each with its value, parents first; waits for each."""
        todo: list[AsyncResult[Any]] = [self]
        while todo:
            result = todo.pop(0)
            yield result, result.get(**options)
            todo.extend(result.children or [])

    def iterdeps(self, intermediate: bool = False) -> Iterator[tuple[AsyncResult[Any] | None, AsyncResult[Any]]]:
        """Pairs of a result and the one that it came from."""
        todo: list[tuple[AsyncResult[Any] | None, AsyncResult[Any]]] = [(None, self)]
        while todo:
            pair = todo.pop(0)
            yield pair
            todo.extend((pair[1], child) for child in pair[1].children or [])

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, AsyncResult):
            return other.id == self.id
        if isinstance(other, str):
            return other == self.id
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.id, None, self._task_name, None, self.parent)

    def __copy__(self) -> AsyncResult[R]:
        return type(self)(self.id, self._backend, self._task_name, self._app, self.parent, ignored=self.ignored)

    def __deepcopy__(self, memo: Any) -> AsyncResult[R]:
        return self.__copy__()


class EagerResult(AsyncResult[R]):
    """The result of a task that was run on the spot."""

    _has_record = False

    def __init__(self, id: str, value: Any, state: str, traceback: str | None = None, name: str | None = None) -> None:
        super().__init__(id, task_name=name)
        self._result = value
        self._state = state
        self._traceback = traceback

    def _look(self) -> Record | None:
        return None

    def _state_known(self) -> str:
        return self._state

    def _throw_known(self) -> None:
        self.get(disable_sync_subtasks=False)

    def _value_of_known(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> Any:
        value = self.get(propagate=propagate, disable_sync_subtasks=False)
        if callback is not None:
            callback(self.id, value)
        return value

    @property
    def state(self) -> str:
        return self._state

    status = state

    @property
    def result(self) -> Any:
        return self._result

    info = result

    @property
    def traceback(self) -> str | None:
        return self._traceback

    @property
    def name(self) -> str | None:
        return self._task_name

    @property
    def children(self) -> list[AsyncResult[Any]] | None:
        return None

    def ready(self) -> bool:
        return True

    def get(self, timeout: float | None = None, propagate: bool = True, disable_sync_subtasks: bool = True, **options: Any) -> R:  # type: ignore[override]
        """What the task returned; raises what it raised."""
        if disable_sync_subtasks:
            assert_will_not_block()
        if propagate and self._state in states.PROPAGATE_STATES:
            self._raise_of_parents()
            self._raise(self._result)
        return self._result  # type: ignore[no-any-return]

    wait = get  # type: ignore[assignment]

    async def aget(self, timeout: float | None = None, propagate: bool = True, *, disable_sync_subtasks: bool = True) -> R:
        return self.get(propagate=propagate, disable_sync_subtasks=disable_sync_subtasks)

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> Any:
        return self.get(propagate=propagate, disable_sync_subtasks=False)

    maybe_reraise = maybe_throw

    def forget(self) -> None:
        pass

    def revoke(self, *args: Any, **kwargs: Any) -> None:
        self._state = states.REVOKED

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.id, self._result, self._state, self._traceback, self._task_name)

    def __copy__(self) -> EagerResult[R]:
        return type(self)(self.id, self._result, self._state, self._traceback, self._task_name)

    def __repr__(self) -> str:
        return f"<EagerResult: {self.id}>"


async def readable(descriptor: int, seconds: float | None) -> None:
    """Returns once this descriptor can be read, or when the time is over."""
    import asyncio

    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    # Only while nobody reads the descriptor out: a readable one would keep the loop spinning.
    loop.add_reader(descriptor, told.set)
    try:
        async with asyncio.timeout(seconds):
            await told.wait()
    except builtins.TimeoutError:
        pass
    finally:
        loop.remove_reader(descriptor)


def _close_opened(opening: asyncio.Future[tuple[Subscription, Record | None]]) -> None:
    """Whoever asked has been cancelled while the subscription was being opened."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].close()


def _decode(record: Record) -> Any:
    if record.status in states.EXCEPTION_STATES:
        error = decode_exception(record.result)
        if record.traceback:
            error.add_note(f"Traceback of the task, in its worker:\n{record.traceback}")
        return error
    return decode_value(record.result)


def result_from_tuple(value: Any, app: App | None = None) -> AsyncResult[Any] | None:
    """A result from its `as_tuple` form, as it stands in the children of a record; None for what is not one."""
    if isinstance(value, AsyncResult):
        return value
    try:
        head, nodes = value
    except (TypeError, ValueError):
        return None
    identity, parent = head if isinstance(head, (list, tuple)) else (head, None)
    before = result_from_tuple(parent, app) if parent else None
    if nodes is not None:
        from .groups import GroupResult

        members = [result_from_tuple(node, app) for node in nodes]
        return GroupResult(identity, [member for member in members if member is not None], parent=before, app=app)
    return AsyncResult(identity, app=app, parent=before)


class ResultsDisabled(ImproperlyConfigured, NotImplementedError):
    """A result was asked for, and none are kept."""


class DisabledBackend:
    """`result_backend="disabled"`: keeps nothing, and says so to whoever asks."""

    url = "disabled://"

    def store(self, records: Any, *, lease: Lease | None = None) -> list[str]:
        return []

    def fetch(self, ids: Any) -> dict[str, Record]:
        raise self._error()

    def forget(self, ids: Any) -> None:
        raise self._error()

    def subscribe(self, ids: Any) -> Subscription:
        raise self._error()

    def prune(self, limit: int = 1000) -> int:
        return 0

    def close(self) -> None:
        pass

    def _error(self) -> ResultsDisabled:
        return ResultsDisabled(
            "No results are kept: result_backend is 'disabled'. To keep them, leave result_backend out (the broker's own engine keeps them), "
            "or set it to a URL, such as 'sqlite:///results.db'."
        )
