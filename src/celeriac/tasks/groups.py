"""ResultSet and GroupResult: the results of many tasks at once."""

from __future__ import annotations

import builtins
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..contracts.results import ResultBackend
from ..core import states
from ..core.errors import TimeoutError
from ..core.message import Record
from ..core.serialize import decode_value, encode_value
from .registry import find_current_app
from .result import _LONG_SECONDS, AsyncResult, EagerResult, assert_will_not_block, result_from_tuple

if TYPE_CHECKING:
    from .task import App

_AT_ONCE = 1000
"""So many records are asked for in one trip."""


class ResultSet(AsyncResult[list[Any]]):
    """Several results, in an order. What it asks the result backend, it asks for all of them together."""

    _has_record = False

    def __init__(self, results: Iterable[AsyncResult[Any]], app: App | None = None, ready_barrier: Any = None, **ignored: Any) -> None:
        self.id = ""
        self.parent = None
        self.ignored = False
        self._app = app
        self._backend = None
        self._task_name = None
        self._record = None
        self._value = None
        self.results: list[AsyncResult[Any]] = list(results)

    # -- as a collection -------------------------------------------------------------------------------------------------------------

    def add(self, result: AsyncResult[Any]) -> None:
        """Adds a result, unless it is there already."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: AsyncResult[Any] | str) -> None:
        """Raises KeyError when it is not there."""
        try:
            self.results.remove(result)  # type: ignore[arg-type]
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: AsyncResult[Any] | str) -> None:
        if result in self.results:
            self.remove(result)

    def update(self, results: Iterable[AsyncResult[Any]]) -> None:
        for result in results:
            self.add(result)

    def clear(self) -> None:
        self.results.clear()

    def __len__(self) -> int:
        return len(self.results)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[AsyncResult[Any]]:
        return iter(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    @property
    def app(self) -> App:
        if self._app is None:
            self._app = self.results[0].app if self.results else find_current_app()
        return self._app

    @property
    def backend(self) -> ResultBackend:
        return self.app.backend

    @property
    def children(self) -> list[AsyncResult[Any]]:
        return self.results

    # -- what is known of them now ----------------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """SUCCESS when all have succeeded, FAILURE when one has failed, REVOKED when one has been revoked, else PENDING."""
        found = self.counts()
        for state in (states.FAILURE, states.REVOKED):
            if found.get(state):
                return state
        return states.SUCCESS if found.get(states.SUCCESS, 0) == len(self.results) else states.PENDING

    status = state

    @property
    def result(self) -> Any:
        """The values so far; None for what has not ended, the exception for what has failed."""
        self._refresh()
        return [result.result for result in self.results]

    info = result

    def counts(self) -> dict[str, int]:
        """How many of them are in which state: `{"SUCCESS": 3, "PENDING": 1}`."""
        self._refresh()
        counted: dict[str, int] = {}
        for result in self.results:
            state = result._state_known()
            counted[state] = counted.get(state, 0) + 1
        return counted

    def ready(self) -> bool:
        """Whether all have ended, well or not."""
        self._refresh()
        return all(result._ended() for result in self.results)

    def successful(self) -> bool:
        """Whether all have succeeded."""
        self._refresh()
        return all(result._state_known() == states.SUCCESS for result in self.results)

    def failed(self) -> bool:
        """Whether any has failed."""
        self._refresh()
        return any(result._state_known() == states.FAILURE for result in self.results)

    def waiting(self) -> bool:
        """Whether any has not ended."""
        return not self.ready()

    def completed_count(self) -> int:
        """How many have succeeded."""
        return self.counts().get(states.SUCCESS, 0)

    def maybe_throw(self, propagate: bool = True, callback: Callable[[str, Any], Any] | None = None) -> None:
        """Raises what the first of them that has failed raised."""
        self._refresh()
        for result in self.results:
            result.maybe_throw(propagate=propagate, callback=callback)

    maybe_reraise = maybe_throw

    def _refresh(self) -> None:
        """Asks for all that have not ended, in few trips."""
        asking: dict[str, AsyncResult[Any]] = {}
        for result in self._leaves():
            if result._record is None and not isinstance(result, EagerResult):
                asking[result.id] = result
        self._ask(asking)

    def _ask(self, asking: dict[str, AsyncResult[Any]]) -> None:
        ids = list(asking)
        for start in range(0, len(ids), _AT_ONCE):
            found = self.backend.fetch(ids[start : start + _AT_ONCE])
            for id in ids[start : start + _AT_ONCE]:
                asking[id]._take(found.get(id))

    def _leaves(self) -> Iterator[AsyncResult[Any]]:
        """The results that have records. An empty group stands and falls with what comes before it."""
        for result in self.results or ([self.parent] if self.parent is not None else []):
            if isinstance(result, ResultSet):
                yield from result._leaves()
            else:
                yield result

    def _state_known(self) -> str:
        found = {result._state_known() for result in self.results}
        for state in (states.FAILURE, states.REVOKED):
            if state in found:
                return state
        return states.SUCCESS if found <= {states.SUCCESS} else states.PENDING

    def _ended(self) -> bool:
        return all(result._ended() for result in self.results)

    # -- waiting ----------------------------------------------------------------------------------------------------------------------

    def get(  # type: ignore[override]
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callable[[str, Any], Any] | None = None,
        no_ack: bool = True,
        on_message: Callable[[dict[str, Any]], Any] | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], Any] | None = None,
        on_progress: Callable[[int, int], Any] | None = None,
        **ignored: Any,
    ) -> list[Any]:
        """Waits for all, and returns their values in order; nested groups give nested lists.

        `callback(id, value)` is called for each; `on_message(meta)` for each as it ends; `on_progress(ended, all)` whenever some have ended.

        Raises: what the first of them that failed raised, as soon as it is known; with `propagate=False` exceptions are among the values.
                TimeoutError: they have not all ended in `timeout` seconds.
                RuntimeError: inside a task.
        """
        if disable_sync_subtasks:
            assert_will_not_block()
        if propagate:
            self._raise_of_parents()
        deadline = None if timeout is None else time.monotonic() + timeout
        leaves = {result.id: result for result in self._leaves() if not isinstance(result, EagerResult)}
        waiting = {id: result for id, result in leaves.items() if result._record is None and not result.ignored}
        told = len(leaves) - len(waiting)
        if waiting:
            subscription = self.backend.subscribe(list(waiting))
            try:
                while True:
                    self._ask(waiting)
                    ended = [result for result in waiting.values() if result._record is not None]
                    for result in ended:
                        del waiting[result.id]
                        if on_message is not None and result._record is not None:
                            on_message(result._as_meta(result._record))
                    if propagate and any(result._state_known() in states.PROPAGATE_STATES for result in ended):
                        self._throw_known()
                    if on_progress is not None and (ended or not told):
                        told = len(leaves) - len(waiting)
                        on_progress(told, len(leaves))
                    if not waiting:
                        break
                    if on_interval is not None:
                        on_interval()
                    left = _LONG_SECONDS if deadline is None else deadline - time.monotonic()
                    if left <= 0:
                        raise TimeoutError(
                            f"The operation timed out: {len(waiting)} of {len(leaves)} tasks have not ended after {timeout:g} s, "
                            f"the first of them {next(iter(waiting))}. Does a worker consume their queue?"
                        )
                    subscription.changed(min(left, _LONG_SECONDS if on_interval is None else interval))
            finally:
                subscription.close()
        return self._value_of_known(propagate, callback)

    wait = get  # type: ignore[assignment]
    join = get
    """Celery's other names of `get`: here all of them wait for what the engine tells."""
    join_native = get

    async def aget(self, timeout: float | None = None, propagate: bool = True, *, disable_sync_subtasks: bool = True) -> list[Any]:
        """`get` for coroutines."""
        import asyncio

        if disable_sync_subtasks:
            assert_will_not_block()
        if timeout is None:
            values = [await result.aget(None, propagate, disable_sync_subtasks=False) for result in self.results]
        else:
            try:
                async with asyncio.timeout(timeout):
                    values = [await result.aget(None, propagate, disable_sync_subtasks=False) for result in self.results]
            except builtins.TimeoutError:
                raise TimeoutError(f"The operation timed out: the group has not ended after {timeout:g} s.") from None
        return values

    def _value_of_known(self, propagate: bool, callback: Callable[[str, Any], Any] | None) -> list[Any]:
        if propagate:
            self._throw_known()
        return [result._value_of_known(propagate, callback) for result in self.results]

    def _throw_known(self) -> None:
        """Raises for the first of them that is known to have failed; for what came before it, where it failed because of that."""
        if self.parent is not None and (not self.results or self._state_known() in states.PROPAGATE_STATES):
            self._raise_of_parents()
        for result in self.results:
            result._throw_known()

    def iterate(self, timeout: float | None = None, propagate: bool = True, interval: float = 0.5) -> Iterator[Any]:
        """The values in the order in which the tasks end."""
        for _, meta in self.iter_native(timeout=timeout):
            result = meta["result"]
            if propagate and meta["status"] in states.PROPAGATE_STATES:
                raise result
            yield result

    def iter_native(
        self, timeout: float | None = None, interval: float = 0.5, no_ack: bool = True, on_message: Any = None, on_interval: Any = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """`(id, {"status", "result", …})` of each task, in the order in which they end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting: dict[str, AsyncResult[Any]] = {}
        for result in self._leaves():
            if isinstance(result, EagerResult):
                yield result.id, {"task_id": result.id, "status": result.state, "result": result.result, "traceback": result.traceback}
            else:
                waiting[result.id] = result
        if not waiting:
            return
        subscription = self.backend.subscribe(list(waiting))
        try:
            while True:
                self._ask({id: result for id, result in waiting.items() if result._record is None})
                for id, result in list(waiting.items()):
                    if result._record is not None:
                        del waiting[id]
                        yield id, result._as_meta(result._record)
                if not waiting:
                    return
                left = _LONG_SECONDS if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"The operation timed out: {len(waiting)} tasks have not ended after {timeout:g} s.")
                subscription.changed(min(left, _LONG_SECONDS))
        finally:
            subscription.close()

    # -- changing them ------------------------------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Removes all results from the backend."""
        leaves = [result for result in self._leaves() if not isinstance(result, EagerResult)]
        for result in leaves:
            result._record = None
        if leaves:
            self.backend.forget([result.id for result in leaves])

    def revoke(
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: str | None = None,
        wait: bool = False,
        timeout: float | None = None,
    ) -> None:
        """None of them is to run any more; with `terminate`, also those that run now."""
        ids = [result.id for result in self._leaves() if not isinstance(result, EagerResult)]
        if ids:
            self.app.control.revoke(ids, terminate=terminate, signal=signal or "SIGTERM", reply=wait, timeout=timeout)

    # -- as data -------------------------------------------------------------------------------------------------------------------------

    def as_list(self) -> list[str]:
        return [id for result in self.results for id in ([result.id] if not isinstance(result, ResultSet) else result.as_list())]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ResultSet):
            return other.results == self.results and other.id == self.id
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.id, *self.results))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(result.id for result in self.results[:20])}{', …' if len(self.results) > 20 else ''}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return ResultSet, (self.results,)

    def __copy__(self) -> ResultSet:
        return ResultSet(self.results, app=self._app)


class GroupResult(ResultSet):
    """The result of a group: `result.get()` is the list of its members' values, `result[0]` the result of the first."""

    def __init__(
        self,
        id: str | None = None,
        results: Iterable[AsyncResult[Any]] = (),
        parent: AsyncResult[Any] | None = None,
        app: App | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__(results, app=app)
        if not id:
            from ..core.ids import new_id

            id = new_id()
        self.id = id
        self.parent = parent

    def save(self, backend: ResultBackend | None = None) -> GroupResult:
        """Keeps in the result backend which tasks it is made of, so that `GroupResult.restore(id)` finds them, for as long as results are kept."""
        tree = encode_value(self.as_tuple())
        record = Record(task_id=self.id, status=states.SUCCESS, result=tree, name="celery.group", date_done=datetime.now(UTC))
        (backend or self.backend).store([record])
        return self

    def delete(self, backend: ResultBackend | None = None) -> None:
        """Undoes `save`."""
        (backend or self.backend).forget([self.id])

    @classmethod
    def restore(cls, id: str, backend: ResultBackend | None = None, app: App | None = None) -> GroupResult | None:
        """The group that was saved under this id; None when there is none (any more)."""
        app = app or find_current_app()
        record = (backend or app.backend).fetch([id]).get(id)
        if record is None or record.name != "celery.group":
            return None
        found = result_from_tuple(decode_value(record.result), app=app)
        return found if isinstance(found, GroupResult) else None

    def as_tuple(self) -> Any:
        """Celery's form: `[[id, parent], [children]]`."""
        return (self.id, self.parent.as_tuple() if self.parent is not None else None), [result.as_tuple() for result in self.results]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return other.id == self.id and other.results == self.results and other.parent == self.parent
        if isinstance(other, str):
            return other == self.id
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<GroupResult: {self.id} [{', '.join(result.id for result in self.results[:20])}{', …' if len(self.results) > 20 else ''}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupResult, (self.id, self.results, self.parent)

    def __copy__(self) -> GroupResult:
        return GroupResult(self.id, self.results, self.parent, self._app)
