"""Flow: one handle for a workflow that was started: how far it is, what it waits for, stop it, try again what failed.

flow = start(chain(fetch.s(url), group(scan.s(), index.s()), report.s()))
flow.progress()          3 of 4 have ended: {"SUCCESS": 3, "PENDING": 1}
flow.why()               for what it waits
flow.retry_failed()      the tasks that failed, and what comes after them; what has succeeded stays
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from msgspec import Struct, structs

from ..core import states
from ..core.errors import TimeoutError
from ..core.ids import new_id
from ..core.message import Arrival, Join, Record
from ..core.serialize import decode_value, encode_value
from ..tasks.plan import NOWHERE, Place, Plan, publish
from ..tasks.registry import find_current_app
from ..tasks.signature import Signature, signature_of
from .chain import chain
from .chord import chord
from .group import group
from .workflow import Workflow

if TYPE_CHECKING:
    from ..tasks.result import AsyncResult

__all__ = ["Flow", "Progress", "start"]

_AT_ONCE = 1000
_MOST_KEPT = 1000
"""The plan of a flow of more tasks than these is not kept in the result backend."""
_BAR_CHARACTERS = 30


class Progress(Struct, frozen=True, kw_only=True):
    """How far a flow is."""

    total: int
    ended: int
    states: dict[str, int]
    """How many tasks are in which state."""

    def __str__(self) -> str:
        named = ", ".join(f"{count} {state}" for state, count in sorted(self.states.items()))
        return f"{self.ended} of {self.total} have ended ({named})"


def start(signature: Signature[Any], *args: Any, app: Any = None, **kwargs: Any) -> Flow:
    """Sends a workflow, with these arguments for the tasks that start, and returns its handle."""
    normal = signature._normal(new_id)
    flow = Flow(normal, args, kwargs, app or signature.app)
    flow._keep()
    plan = Plan(flow.app.producer, checks=True, flush=lambda plan: publish(flow.app, plan))
    normal._write(plan, NOWHERE, args, kwargs)
    publish(flow.app, plan)
    return flow


class Flow:
    """A workflow that was started. Its id is that of its result."""

    def __init__(self, form: Signature[Any], args: Sequence[Any], kwargs: Mapping[str, Any], app: Any) -> None:
        self.form = form
        """The signature in its normal form: each task has its id."""
        self.args = tuple(args)
        self.kwargs = dict(kwargs)
        self.app = app
        self.result: AsyncResult[Any] = form._result()

    @property
    def id(self) -> str:
        return self.result.id

    @property
    def tasks(self) -> list[Signature[Any]]:
        """All its tasks, those before others first."""
        return list(self.form._tasks())

    @classmethod
    def restore(cls, id: str, app: Any = None) -> Flow | None:
        """The flow of this id; None when nothing is kept of it (any more)."""
        app = app or find_current_app()
        record = app.backend.fetch([_key(id)]).get(_key(id))
        if record is None:
            return None
        plan = decode_value(record.result)
        return cls(signature_of(plan["form"], app=app), plan["args"], plan["kwargs"], app)

    def _keep(self) -> None:
        if len(self.tasks) <= _MOST_KEPT:
            plan = encode_value({"form": self.form, "args": list(self.args), "kwargs": self.kwargs})
            self.app.backend.store([Record(task_id=_key(self.id), status=states.SUCCESS, result=plan, name="celeriac.flow")])

    # -- looking --------------------------------------------------------------------------------------------------------------------

    def records(self) -> dict[str, Record]:
        """What is known of its tasks, by their ids."""
        found: dict[str, Record] = {}
        ids = [task.options["task_id"] for task in self.tasks]
        for begin in range(0, len(ids), _AT_ONCE):
            found |= self.app.backend.fetch(ids[begin : begin + _AT_ONCE])
        return found

    def progress(self) -> Progress:
        """How many of its tasks have ended, and how."""
        records = self.records()
        counted: dict[str, int] = {}
        ended = 0
        for task in self.tasks:
            record = records.get(task.options["task_id"])
            state = states.PENDING if record is None else record.status
            counted[state] = counted.get(state, 0) + 1
            ended += state in states.READY_STATES
        return Progress(total=len(self.tasks), ended=ended, states=counted)

    def missing(self) -> list[str]:
        """The ids of the tasks that it waits for: they are with the engine and have not ended."""
        records = self.records()
        ids = [
            id
            for task in self.tasks
            if (record := records.get(id := task.options["task_id"])) is None or record.status not in states.READY_STATES
        ]
        held: dict[str, Any] = {}
        for begin in range(0, len(ids), _AT_ONCE):
            held |= self.app.broker.find(ids[begin : begin + _AT_ONCE])
        return [id for id in ids if id in held]

    def why(self, *, most: int = 5) -> list[str]:
        """Sentences that say what it waits for, or how it ended; of at most so many tasks."""
        from ..tasks.why import why

        sentences = [f"{self.progress()}."]
        missing = self.missing()
        calls = {task.options["task_id"]: repr(task) for task in self.tasks}
        for id in missing[:most]:
            sentences.append(f"It waits for {calls[id]} [{id}]: {' '.join(why(self.app, id, ask_node=False).sentences)}")
        if len(missing) > most:
            sentences.append(f"It waits for {len(missing) - most} more.")
        failed = [record for record in self.records().values() if record.status in states.PROPAGATE_STATES]
        if not missing and failed:
            sentences += why(self.app, failed[0].task_id, ask_node=False).sentences
        return sentences

    def graph(self, kind: str = "text") -> str:
        """Its picture: "text", "mermaid" or "svg"; each task with its state."""
        from .graph import drawn

        return drawn(self.form, self.records(), kind)

    # -- waiting -------------------------------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None, *, bar: bool | TextIO = False) -> Any:
        """The value of the whole. With `bar`, a line that grows is drawn meanwhile, on stderr or on the file that is given.

        Raises what failed; TimeoutError.
        """
        if not bar:
            return self.result.get(timeout=timeout)
        to: TextIO = sys.stderr if bar is True else bar
        deadline = None if timeout is None else time.monotonic() + timeout
        ids = [task.options["task_id"] for task in self.tasks]
        subscription = self.app.backend.subscribe(ids)
        try:
            while True:
                progress = self.progress()
                filled = _BAR_CHARACTERS * progress.ended // max(1, progress.total)
                to.write(f"\r[{'#' * filled}{'.' * (_BAR_CHARACTERS - filled)}] {progress}")
                to.flush()
                if progress.ended == progress.total or self.result.ready():
                    break
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"The operation timed out: of flow {self.id}, {progress} after {timeout:g} s.")
                subscription.changed(min(1.0, left))
        finally:
            subscription.close()
            to.write("\n")
        return self.result.get(timeout=0.0)

    # -- changing it ----------------------------------------------------------------------------------------------------------------------

    def cancel(self, *, terminate: bool = False) -> dict[str, str]:
        """None of its tasks that have not ended is to run (any more). Says of each what it was: "waiting", "running" or "unknown" (it has not come yet)."""
        records = self.records()
        ids = [
            id
            for task in self.tasks
            if (record := records.get(id := task.options["task_id"])) is None or record.status not in states.READY_STATES
        ]
        found: dict[str, str] = self.app.control.revoke_ids(ids, terminate=terminate) if ids else {}
        return found

    def retry_failed(self) -> int:
        """Sends the tasks again that have not succeeded, as far as nothing before them is missing; what comes after them follows. Returns how many it sent.

        What has succeeded does not run again: its result is taken from where it is kept. Raises ValueError: the flow has not ended.
        """
        missing = self.missing()
        if missing:
            raise ValueError(f"The flow {self.id} has not ended: it waits for {len(missing)} tasks, the first of them {missing[0]}.")
        succeeded = {id: record for id, record in self.records().items() if record.status == states.SUCCESS}
        resumed = _Resumed(self.app, succeeded)
        resumed.write(self.form, NOWHERE, self.args, self.kwargs)
        if resumed.plan.messages:
            self.app.backend.forget([id for task in self.tasks if (id := task.options["task_id"]) not in succeeded])
            self.result = self.form._result()
            count = len(resumed.plan.messages)
            if resumed.joins:
                resumed.plan.messages += self.app.joins.arrive(resumed.arrivals, opens=resumed.joins)
            publish(self.app, resumed.plan)
            return count
        return 0

    def __repr__(self) -> str:
        return f"<Flow {self.id}: {self.form!r}>"


class _Resumed:
    """What is left to do of a flow: the messages of what can start now, and the joins, at which what has succeeded has arrived."""

    def __init__(self, app: Any, succeeded: Mapping[str, Record]) -> None:
        self.plan = Plan(app.producer)
        self.succeeded = succeeded
        self.joins: list[Join] = []
        self.arrivals: list[Arrival] = []

    def write(self, form: Signature[Any], place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, Any]:
        """Whether all of it has succeeded, and its value."""
        if isinstance(form, chain):
            return self._chain(form, place, args, kwargs)
        if isinstance(form, chord):
            return self._chord(form, place, args, kwargs)
        if isinstance(form, group):
            values = [self.write(member, form._place_of(place, index), args, kwargs) for index, member in enumerate(form.tasks)]
            return all(done for done, _ in values), [value for _, value in values]
        record = self.succeeded.get(form.options["task_id"])
        if record is not None:
            return True, decode_value(record.result)
        form._write(self.plan, place, args, kwargs)
        return False, None

    def _chain(self, form: chain, place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, Any]:
        value: Any = None
        for position, step in enumerate(form.tasks):
            after = structs.replace(place, chain=(*place.chain, *reversed(form.tasks[position + 1 :])))
            done, value = self.write(step, place if isinstance(step, Workflow) else after, args, kwargs)
            if not done:
                return False, None
            args, kwargs = (value,), {}
        return True, value

    def _chord(self, form: chord, place: Place, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bool, Any]:
        id = form.options["task_id"]
        members = [self.write(member, form._place_of(place, index), args, kwargs) for index, member in enumerate(form.tasks)]
        if all(done for done, _ in members):
            return self.write(form.body, place, ([value for _, value in members],), {})
        then = self.plan.part()
        form.body._write(then, structs.replace(place, joined=id))
        self.joins += [*then.joins, Join(id=id, size=len(members), then=then.messages)]
        self.arrivals += [
            Arrival(join=id, index=index, task_id=id, result=encode_value(value)) for index, (done, value) in enumerate(members) if done
        ]
        return False, None


def _key(id: str) -> str:
    return f"flow:{id}"
