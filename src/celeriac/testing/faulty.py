"""An engine that fails once, at the operation you choose: before it took effect, or after, when only the answer is lost.

Run a scenario for N = 1, 2, 3 … until it passes without having met its fault, and look each time whether anything was lost or is stuck:

    for when in ("before", "after"):
        for number in count(1):
            engine = FaultyEngine(make_engine(), fail_at=number, when=when)
            scenario(engine)
            if not engine.failed:
                break
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeVar, cast

from msgspec import Raw

from ..contracts.broker import Capabilities
from ..contracts.engine import Engine
from ..contracts.inspect import Depth, Waiting
from ..contracts.joins import JoinState
from ..contracts.mailbox import Letter, Node
from ..contracts.results import Subscription
from ..contracts.schedules import Due, EntryState, Firing, LedgerLine, Planning, Schedules, SchedulingEngine
from ..contracts.steps import Step, Steps
from ..core.errors import EngineUnavailable
from ..core.message import Arrival, Delivery, Holder, Join, Lease, Message, Record, Revocation, Settlement

T = TypeVar("T")
When = Literal["before", "after"]


class _FaultySchedules:
    """`FaultyEngine.schedules`: its operations are counted with all others, as `schedules.fire` and so on."""

    def __init__(self, engine: FaultyEngine, schedules: Schedules) -> None:
        self._engine = engine
        self._schedules = schedules

    def _operate(self, verb: str, operation: Callable[[], T]) -> T:
        return self._engine._operate(f"schedules.{verb}", operation)

    def now(self) -> float:
        return self._operate("now", self._schedules.now)

    def put(self, plannings: Sequence[Planning]) -> list[str]:
        return self._operate("put", lambda: self._schedules.put(plannings))

    def remove(self, names: Sequence[str]) -> list[str]:
        return self._operate("remove", lambda: self._schedules.remove(names))

    def pause(self, names: Sequence[str]) -> list[str]:
        return self._operate("pause", lambda: self._schedules.pause(names))

    def resume(self, names: Sequence[str]) -> list[str]:
        return self._operate("resume", lambda: self._schedules.resume(names))

    def entries(
        self, names: Sequence[str] | None = None, *, source: str | None = None, after: str = "", limit: int = 1000
    ) -> list[EntryState]:
        return self._operate("entries", lambda: self._schedules.entries(names, source=source, after=after, limit=limit))

    def due(self, limit: int) -> Due:
        return self._operate("due", lambda: self._schedules.due(limit))

    def fire(self, firings: Sequence[Firing], *, publish: bool = True) -> list[str]:
        return self._operate("fire", lambda: self._schedules.fire(firings, publish=publish))

    def kept(self, limit: int, *, older_than_seconds: float = 0.0) -> list[Message]:
        return self._operate("kept", lambda: self._schedules.kept(limit, older_than_seconds=older_than_seconds))

    def sent(self, ids: Sequence[str]) -> None:
        self._operate("sent", lambda: self._schedules.sent(ids))

    def history(self, entry: str | None = None, *, limit: int = 100, before: float | None = None) -> list[LedgerLine]:
        return self._operate("history", lambda: self._schedules.history(entry, limit=limit, before=before))

    def prune(self, older_than_seconds: float, *, limit: int = 1000) -> int:
        return self._operate("prune", lambda: self._schedules.prune(older_than_seconds, limit=limit))


class FaultyEngine:
    """Hands every operation on to `engine`; the `fail_at`-th of `verbs` (all, when none are named) raises `error`.

    With `when="after"` it breaks the promise that nothing has changed, as a network does that is cut between the deed and its answer.
    With `times`, so many operations from that one on fail.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        fail_at: int,
        when: When = "before",
        verbs: Sequence[str] = (),
        times: int = 1,
        error: Callable[[str], Exception] = EngineUnavailable,
    ) -> None:
        self.engine = engine
        self.url: str = engine.url
        self.capabilities: Capabilities = engine.capabilities
        self.fail_at = fail_at
        self.when = when
        self.verbs = frozenset(verbs)
        self.times = times
        self.operations = 0
        """How many operations have been counted."""
        self.failures: list[str] = []
        """The verbs that failed."""
        self._error = error
        self._lock = threading.Lock()

    @property
    def failed(self) -> bool:
        """Whether the fault was met."""
        return bool(self.failures)

    def _operate(self, verb: str, operation: Callable[[], T], *, undo: Callable[[T], object] | None = None) -> T:
        if not self._fails_now(verb):
            return operation()
        if self.when == "after":
            answer = operation()
            if undo is not None:
                undo(answer)
        raise self._error(f"Operation {self.operations} ({verb}) fails on purpose, {self.when} it took effect.")

    def _fails_now(self, verb: str) -> bool:
        with self._lock:
            if self.verbs and verb not in self.verbs:
                return False
            self.operations += 1
            fails = self.fail_at <= self.operations < self.fail_at + self.times
            if fails:
                self.failures.append(verb)
            return fails

    # -- the life of a message -----------------------------------------------------------------------------------

    def publish(self, messages: Sequence[Message], *, joins: Sequence[Join] = (), timeout_seconds: float | None = None) -> None:
        self._operate("publish", lambda: self.engine.publish(messages, joins=joins, timeout_seconds=timeout_seconds))

    def reserve(self, queues: Sequence[str], *, limit: int, holder: Holder, wait_seconds: float = 0.0) -> list[Delivery]:
        return self._operate("reserve", lambda: self.engine.reserve(queues, limit=limit, holder=holder, wait_seconds=wait_seconds))

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        return self._operate("settle", lambda: self.engine.settle(settlements))

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], *, limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        return self._operate("exchange", lambda: self.engine.exchange(settlements, queues, limit=limit, holder=holder))

    def held(self, node: str, process: int | None = None) -> list[Delivery]:
        return self._operate("held", lambda: self.engine.held(node, process))

    def lost(self, node: str, process: int) -> list[str]:
        return self._operate("lost", lambda: self.engine.lost(node, process))

    def revoke(self, revocations: Sequence[Revocation]) -> dict[str, str]:
        return self._operate("revoke", lambda: self.engine.revoke(revocations))

    # -- nodes, waiting ------------------------------------------------------------------------------------------

    def register(self, node: Node, *, lease_seconds: float) -> None:
        self._operate("register", lambda: self.engine.register(node, lease_seconds=lease_seconds))

    def heartbeat(self, node: str, *, lease_seconds: float) -> bool:
        return self._operate("heartbeat", lambda: self.engine.heartbeat(node, lease_seconds=lease_seconds))

    def unregister(self, node: str) -> None:
        self._operate("unregister", lambda: self.engine.unregister(node))

    def reclaim(self, nodes: Sequence[str] = ()) -> list[str]:
        return self._operate("reclaim", lambda: self.engine.reclaim(nodes))

    def wait(self, queues: Sequence[str], timeout_seconds: float) -> bool:
        return self._operate("wait", lambda: self.engine.wait(queues, timeout_seconds))

    def close(self) -> None:
        """Never fails: it is not an operation on the data."""
        self.engine.close()

    # -- results -------------------------------------------------------------------------------------------------

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        return self._operate("store", lambda: self.engine.store(records, lease=lease))

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        return self._operate("fetch", lambda: self.engine.fetch(ids))

    def forget(self, ids: Sequence[str]) -> None:
        self._operate("forget", lambda: self.engine.forget(ids))

    def subscribe(self, ids: Sequence[str]) -> Subscription:
        return self._operate("subscribe", lambda: self.engine.subscribe(ids), undo=lambda subscription: subscription.close())

    def prune(self, limit: int = 1000) -> int:
        return self._operate("prune", lambda: self.engine.prune(limit))

    # -- joins ---------------------------------------------------------------------------------------------------

    def seal(self, id: str, size: int) -> None:
        self._operate("seal", lambda: self.engine.seal(id, size))

    def joins(self, ids: Sequence[str]) -> dict[str, JoinState]:
        return self._operate("joins", lambda: self.engine.joins(ids))

    def arrivals(self, id: str) -> list[Arrival]:
        return self._operate("arrivals", lambda: self.engine.arrivals(id))

    def arrive(
        self,
        arrivals: Sequence[Arrival],
        *,
        opens: Sequence[Join] = (),
        enlarges: Mapping[str, int] | None = None,
        seals: Mapping[str, int] | None = None,
    ) -> list[Message]:
        return self._operate("arrive", lambda: self.engine.arrive(arrivals, opens=opens, enlarges=enlarges, seals=seals))

    def leave(self, ids: Sequence[str]) -> None:
        self._operate("leave", lambda: self.engine.leave(ids))

    # -- steps; only of engines that keep them ------------------------------------------------------------------

    def remember(self, task_id: str, name: str, result: Raw, *, failed: bool = False, lease: Lease | None = None) -> Step | None:
        return self._operate("remember", lambda: self._steps.remember(task_id, name, result, failed=failed, lease=lease))

    def recall(self, task_id: str) -> dict[str, Step]:
        return self._operate("recall", lambda: self._steps.recall(task_id))

    def occur(self, event: str, value: Raw) -> list[str]:
        return self._operate("occur", lambda: self._steps.occur(event, value))

    @property
    def _steps(self) -> Steps:
        return cast("Steps", self.engine)

    # -- schedules; only of engines that keep them --------------------------------------------------------------

    @property
    def schedules(self) -> Schedules:
        return _FaultySchedules(self, cast("SchedulingEngine", self.engine).schedules)

    # -- what people see -----------------------------------------------------------------------------------------

    def now(self) -> float:
        return self._operate("now", self.engine.now)

    def queues(self) -> list[str]:
        return self._operate("queues", self.engine.queues)

    def depth(self, queues: Sequence[str] | None = None) -> dict[str, Depth]:
        return self._operate("depth", lambda: self.engine.depth(queues))

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        return self._operate("peek", lambda: self.engine.peek(queue, state=state, limit=limit, offset=offset))

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        return self._operate("find", lambda: self.engine.find(ids))

    def revoked(self) -> list[str]:
        return self._operate("revoked", self.engine.revoked)

    def purge(self, queues: Sequence[str]) -> int:
        return self._operate("purge", lambda: self.engine.purge(queues))

    def pause(self, queues: Sequence[str], *, by: str) -> None:
        self._operate("pause", lambda: self.engine.pause(queues, by=by))

    def resume(self, queues: Sequence[str]) -> None:
        self._operate("resume", lambda: self.engine.resume(queues))

    def replay(self, ids: Sequence[str]) -> list[str]:
        return self._operate("replay", lambda: self.engine.replay(ids))

    def discard(self, ids: Sequence[str]) -> list[str]:
        return self._operate("discard", lambda: self.engine.discard(ids))

    # -- letters -------------------------------------------------------------------------------------------------

    def nodes(self) -> list[Node]:
        return self._operate("nodes", self.engine.nodes)

    def post(self, addresses: Sequence[str], letter: Letter) -> None:
        self._operate("post", lambda: self.engine.post(addresses, letter))

    def collect(self, address: str, timeout_seconds: float = 0.0) -> list[Letter]:
        return self._operate("collect", lambda: self.engine.collect(address, timeout_seconds))


if TYPE_CHECKING:
    _complete: type[Engine] = FaultyEngine
