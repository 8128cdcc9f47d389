"""The calling side of remote control: `app.control`, with Celery's names and the shapes of its answers.

A command is a `Letter` in the mailbox of each node; the answers come to a mailbox that is made up for this one question. The engine
says which nodes there are, so a question is over as soon as all that live have answered, not when its timeout is.

What the engine itself can do (`revoke`, `purge`) is done there, at once and for good, and needs no worker.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any, Protocol

from ..contracts.broker import Broker
from ..contracts.inspect import Waiting
from ..contracts.mailbox import Letter, Node
from ..contracts.results import ResultBackend
from ..core import states
from ..core.errors import TaskRevokedError
from ..core.ids import new_id
from ..core.message import Arrival, Record, Revocation
from ..core.serialize import decode_body, encode_exception
from .callbacks import arrival, never_coming

__all__ = ["Control", "ControlledApp", "Inspect", "flatten_reply", "known_queues", "live_nodes"]

_AT_ONCE = 1000
Reply = dict[str, Any]
"""`{node: answer}`."""


class ControlledApp(Protocol):
    """What remote control needs of an app."""

    @property
    def broker(self) -> Broker: ...
    @property
    def backend(self) -> ResultBackend: ...
    @property
    def results_with_broker(self) -> bool: ...
    @property
    def joins(self) -> Any: ...
    @property
    def producer(self) -> Any: ...
    @property
    def conf(self) -> Any: ...


def live_nodes(broker: Broker) -> list[Node]:
    """The nodes whose lease has not run out, by name."""
    return sorted((node for node in broker.nodes() if node.lease_left_seconds > 0), key=lambda node: node.name)


def known_queues(conf: Any) -> list[str]:
    """The queues that a worker with these settings consumes when it is told nothing else."""
    declared = conf.task_queues
    names = [queue if isinstance(queue, str) else str(queue.name) for queue in declared or ()]
    return names or [conf.task_default_queue]


def flatten_reply(replies: Iterable[Reply]) -> Reply:
    """`[{a: 1}, {b: 2}]` → `{a: 1, b: 2}`; warns when two nodes answered under one name."""
    by_node: Reply = {}
    doubles: set[str] = set()
    for reply in replies:
        doubles.update(name for name in reply if name in by_node)
        by_node.update(reply)
    if doubles:
        names = ", ".join(sorted(doubles))
        warnings.warn(f"Several workers answered under the same name: {names}. Give each its own with `-n`.", stacklevel=2)
    return by_node


class Control:
    """Commands to the workers of an app. Without `reply=True` a command returns None as soon as it is posted; with it, `[{node: answer}, …]`."""

    def __init__(self, app: ControlledApp) -> None:
        self.app = app

    # -- asking and telling -------------------------------------------------------------------------------------

    def broadcast(
        self,
        command: str,
        arguments: dict[str, Any] | None = None,
        destination: str | Sequence[str] | None = None,
        connection: Any = None,
        reply: bool = False,
        timeout: float | None = 1.0,
        limit: int | None = None,
        callback: Callable[[Reply], object] | None = None,
        channel: Any = None,
        pattern: str | None = None,
        matcher: str | None = None,
        **more_arguments: Any,
    ) -> list[Reply] | None:
        """Send `command` to the nodes named in `destination`, or whose name fits `pattern` (`matcher`: "glob" or "pcre"), or to all.

        With `reply`, waits until every live one of them, or `limit`, have answered, for at most `timeout` seconds, and calls
        `callback` with each `{node: answer}` as it comes. `connection` and `channel` are accepted for Celery's sake.
        """
        broker = self.app.broker
        nodes = [node for node in broker.nodes() if _addressed(node.name, destination, pattern, matcher)]
        if not nodes:
            return [] if reply else None
        ticket = new_id()
        address = f"reply.{ticket}"
        broker.post(
            [node.id for node in nodes],
            Letter(method=command, arguments={**(arguments or {}), **more_arguments}, reply_to=address if reply else None, ticket=ticket),
        )
        if not reply:
            return None
        expected = sum(node.lease_left_seconds > 0 for node in nodes)
        return self._answers(address, expected if limit is None else min(limit, expected), 1.0 if timeout is None else timeout, callback)

    def _answers(self, address: str, expected: int, timeout_seconds: float, callback: Callable[[Reply], object] | None) -> list[Reply]:
        deadline = time.monotonic() + timeout_seconds
        replies: list[Reply] = []
        while len(replies) < expected:
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0:
                break
            for letter in self.app.broker.collect(address, left_seconds):
                answer = {str(letter.arguments.get("node")): letter.arguments.get("reply")}
                replies.append(answer)
                if callback is not None:
                    callback(answer)
        return replies

    def inspect(
        self,
        destination: str | Sequence[str] | None = None,
        timeout: float | None = 1.0,
        callback: Callable[[Reply], object] | None = None,
        connection: Any = None,
        app: ControlledApp | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> Inspect:
        """Questions that change nothing: `app.control.inspect().active()`."""
        control = self if app is None else Control(app)
        return Inspect(control, destination=destination, timeout=timeout, callback=callback, limit=limit, pattern=pattern, matcher=matcher)

    def ping(self, destination: str | Sequence[str] | None = None, timeout: float | None = 1.0, **kwargs: Any) -> list[Reply]:
        """`[{node: {"ok": "pong"}}, …]` of all that live."""
        return self.broadcast("ping", reply=True, destination=destination, timeout=timeout, **kwargs) or []

    # -- what the engine does -----------------------------------------------------------------------------------

    def revoke(
        self,
        task_id: str | Iterable[str],
        destination: Any = None,
        terminate: bool = False,
        signal: str = "SIGTERM",
        reply: bool = False,
        **kwargs: Any,
    ) -> list[Reply] | None:
        """These tasks shall not run. Lasts over every restart and needs no worker; with `terminate` a running one is stopped too.

        `destination` is accepted for Celery's sake: the engine keeps the revocation for all nodes. So with `reply` no node is asked
        either; the answers are those of the nodes that are bound by it.
        """
        ids = _as_ids(task_id)
        found = self.revoke_ids(ids, terminate=terminate, signal=signal)
        if not reply:
            return None
        if terminate:
            running = ", ".join(id for id in ids if found.get(id) == "running")
            text = f"terminate: {running or 'tasks unknown'}"
        else:
            text = f"tasks {', '.join(ids)} flagged as revoked"
        return [{node.name: {"ok": text}} for node in live_nodes(self.app.broker)]

    def revoke_ids(self, ids: Sequence[str], *, terminate: bool = False, signal: str = "SIGTERM") -> dict[str, str]:
        """Revokes, and says of each id what its task was: "waiting", "running" or "unknown" (it will be dropped if it comes yet)."""
        found: dict[str, str] = {}
        for start in range(0, len(ids), _AT_ONCE):
            found |= self._revoke_some(ids[start : start + _AT_ONCE], terminate=terminate, signal=signal)
        return found

    def _revoke_some(self, ids: Sequence[str], *, terminate: bool, signal: str) -> dict[str, str]:
        broker = self.app.broker
        where = broker.find(ids)
        word = "terminated" if terminate else "revoked"
        records = {id: _revoked_record(id, where.get(id), word) for id in ids}
        arrivals = {id: _revoked_arrival(where.get(id), word) for id in ids}
        states_found = broker.revoke(
            [Revocation(id=id, terminate=terminate, signal=_signal_name(signal), record=records[id], arrival=arrivals[id]) for id in ids]
        )
        gone = [id for id in ids if states_found.get(id) == "waiting"]
        ended = [record for id in gone for record in _steps_after(where.get(id), word)]
        if not self.app.results_with_broker:
            ended += [record for id in gone if (record := records[id]) is not None]
        if ended:
            self.app.backend.store(ended)
        if not broker.capabilities.joins:
            self._arrive([found for id in gone if (found := arrivals[id]) is not None])
        return states_found

    def _arrive(self, arrivals: Sequence[Arrival]) -> None:
        """Where the broker keeps no joins: what was revoked counts at them here."""
        if arrivals:
            messages = self.app.joins.arrive(arrivals)
            if messages:
                self.app.producer.publish(messages)

    def terminate(
        self, task_id: str | Iterable[str], destination: Any = None, signal: str = "SIGTERM", **kwargs: Any
    ) -> list[Reply] | None:
        """`revoke` with `terminate=True`."""
        return self.revoke(task_id, destination=destination, terminate=True, signal=signal, **kwargs)

    def revoke_by_stamped_headers(
        self,
        headers: dict[str, Any],
        destination: Any = None,
        terminate: bool = False,
        signal: str = "SIGTERM",
        **kwargs: Any,
    ) -> list[Reply] | None:
        """Revokes the tasks that the engine holds now and that carry one of these stamps; tasks sent later are not concerned."""
        ids = [waiting.id for waiting in self._held_messages() if _stamped(waiting, headers)]
        return self.revoke(ids, destination=destination, terminate=terminate, signal=signal, **kwargs) if ids else None

    def _held_messages(self) -> Iterator[Waiting]:
        page_size = 500
        broker = self.app.broker
        for queue in broker.queues():
            for state in ("ready", "scheduled", "leased"):
                offset = 0
                while page := broker.peek(queue, state=state, limit=page_size, offset=offset):
                    yield from page
                    offset += page_size

    def purge(self, connection: Any = None) -> int:
        """Throws away all waiting tasks of the queues that the settings name. Returns how many."""
        return self.app.broker.purge(known_queues(self.app.conf))

    discard_all = purge

    # -- what nodes do ------------------------------------------------------------------------------------------

    def rate_limit(self, task_name: str, rate_limit: str | float, destination: Any = None, **kwargs: Any) -> list[Reply] | None:
        """How often a task may start: `"10/s"`, `"100/m"`, `"5/h"`; 0 lifts the limit."""
        return self.broadcast("rate_limit", {"task_name": task_name, "rate_limit": rate_limit}, destination, **kwargs)

    def time_limit(
        self, task_name: str, soft: float | None = None, hard: float | None = None, destination: Any = None, **kwargs: Any
    ) -> list[Reply] | None:
        """New time limits in seconds, for the tasks of this name that start from now on."""
        return self.broadcast("time_limit", {"task_name": task_name, "hard": hard, "soft": soft}, destination, **kwargs)

    def add_consumer(
        self,
        queue: str,
        exchange: str | None = None,
        exchange_type: str = "direct",
        routing_key: str | None = None,
        options: dict[str, Any] | None = None,
        destination: Any = None,
        **kwargs: Any,
    ) -> list[Reply] | None:
        """Consume from one more queue."""
        arguments = {"queue": queue, "exchange": exchange, "exchange_type": exchange_type, "routing_key": routing_key, **(options or {})}
        return self.broadcast("add_consumer", arguments, destination, **kwargs)

    def cancel_consumer(self, queue: str, destination: Any = None, **kwargs: Any) -> list[Reply] | None:
        """Consume no longer from a queue."""
        return self.broadcast("cancel_consumer", {"queue": queue}, destination, **kwargs)

    def pool_grow(self, n: int = 1, destination: Any = None, **kwargs: Any) -> list[Reply] | None:
        """`n` more at once."""
        return self.broadcast("pool_grow", {"n": n}, destination, **kwargs)

    def pool_shrink(self, n: int = 1, destination: Any = None, **kwargs: Any) -> list[Reply] | None:
        """`n` fewer at once."""
        return self.broadcast("pool_shrink", {"n": n}, destination, **kwargs)

    def pool_restart(
        self, modules: Sequence[str] | None = None, reload: bool = False, reloader: Any = None, destination: Any = None, **kwargs: Any
    ) -> list[Reply] | None:
        """New processes in place of the present ones, each when its task has ended."""
        return self.broadcast("pool_restart", {"modules": list(modules or ()), "reload": reload}, destination, **kwargs)

    def autoscale(self, max: int, min: int, destination: Any = None, **kwargs: Any) -> list[Reply] | None:
        """The most and the fewest at once, for a worker started with `--autoscale`."""
        return self.broadcast("autoscale", {"max": max, "min": min}, destination, **kwargs)

    def enable_events(self, destination: Any = None, **kwargs: Any) -> list[Reply] | None:
        """Workers tell of each task's life from now on."""
        return self.broadcast("enable_events", {}, destination, **kwargs)

    def disable_events(self, destination: Any = None, **kwargs: Any) -> list[Reply] | None:
        """Workers keep it to themselves again."""
        return self.broadcast("disable_events", {}, destination, **kwargs)

    def heartbeat(self, destination: Any = None, **kwargs: Any) -> list[Reply] | None:
        """A sign of life, now."""
        return self.broadcast("heartbeat", {}, destination, **kwargs)

    def shutdown(self, destination: Any = None, **kwargs: Any) -> list[Reply] | None:
        """Stop as on SIGTERM: take nothing new, finish what runs. Nobody answers."""
        return self.broadcast("shutdown", {}, destination, **kwargs)


class Inspect:
    """Questions to the workers. Each returns `{node: answer}`, or None when nobody answered; with one node's name (not a list) as
    `destination`, that node's answer alone."""

    def __init__(
        self,
        control: Control,
        *,
        destination: str | Sequence[str] | None = None,
        timeout: float | None = 1.0,
        callback: Callable[[Reply], object] | None = None,
        limit: int | None = None,
        pattern: str | None = None,
        matcher: str | None = None,
    ) -> None:
        self.control = control
        self.app = control.app
        self.destination = destination
        self.timeout = timeout
        self.callback = callback
        self.limit = limit
        self.pattern = pattern
        self.matcher = matcher

    def request(self, command: str, /, **arguments: Any) -> Any:
        """Ask any command by name."""
        replies = self.control.broadcast(
            command,
            arguments,
            self.destination,
            reply=True,
            timeout=self.timeout,
            limit=self.limit,
            callback=self.callback,
            pattern=self.pattern,
            matcher=self.matcher,
        )
        if not replies:
            return None
        by_node = flatten_reply(replies)
        return by_node.get(self.destination) if isinstance(self.destination, str) else by_node

    _request = request
    """Celery's name of it, which tools call."""

    def ping(self, destination: str | Sequence[str] | None = None) -> Any:
        """`{node: {"ok": "pong"}}`."""
        if destination:
            self.destination = destination
        return self.request("ping")

    def active(self, safe: bool | None = None) -> Any:
        """What runs now: `{node: [info, …]}`."""
        return self.request("active", safe=bool(safe))

    def reserved(self, safe: bool | None = None) -> Any:
        """What nodes have taken and not started."""
        return self.request("reserved")

    def scheduled(self, safe: bool | None = None) -> Any:
        """What waits for its time inside nodes; ours wait in the engine."""
        return self.request("scheduled")

    def registered(self, *taskinfoitems: str) -> Any:
        """The tasks each node knows, with these attributes of theirs."""
        return self.request("registered", taskinfoitems=list(taskinfoitems))

    registered_tasks = registered

    def stats(self) -> Any:
        """Counts, pool, resources."""
        return self.request("stats")

    def revoked(self) -> Any:
        """The ids that are remembered as revoked."""
        return self.request("revoked")

    def active_queues(self) -> Any:
        """The queues each node consumes."""
        return self.request("active_queues")

    def query_task(self, *ids: Any) -> Any:
        """Which node has these tasks: `{node: {id: [state, info]}}`."""
        if len(ids) == 1 and isinstance(ids[0], (list, tuple)):
            ids = tuple(ids[0])
        return self.request("query_task", ids=list(ids))

    def conf(self, with_defaults: bool = False) -> Any:
        """Each node's settings, secrets masked."""
        return self.request("conf", with_defaults=with_defaults)

    def report(self) -> Any:
        """`{node: {"ok": text}}` for a bug report."""
        return self.request("report")

    def clock(self) -> Any:
        """Each node's logical clock."""
        return self.request("clock")

    def hello(self, from_node: str, revoked: Any = None) -> Any:
        """Celery's greeting between workers."""
        return self.request("hello", from_node=from_node, revoked=revoked)

    def memsample(self) -> Any:
        """Resident memory now."""
        return self.request("memsample")

    def memdump(self, samples: int = 10) -> Any:
        """Earlier memory samples."""
        return self.request("memdump", samples=samples)

    def objgraph(self, type: str = "Request", n: int = 200, max_depth: int = 10) -> Any:
        """A graph of objects that are not collected."""
        return self.request("objgraph", num=n, max_depth=max_depth, type=type)


def _addressed(name: str, destination: str | Sequence[str] | None, pattern: str | None, matcher: str | None) -> bool:
    if destination:
        return name == destination if isinstance(destination, str) else name in destination
    if pattern is None:
        return True
    return re.search(pattern, name) is not None if matcher == "pcre" else fnmatchcase(name, pattern)


def _as_ids(task_id: str | Iterable[str]) -> list[str]:
    return [task_id] if isinstance(task_id, str) else [str(id) for id in task_id]


def _signal_name(signal: Any) -> str:
    """`TERM`, `SIGTERM`, `signal.SIGTERM` and 15 are all "SIGTERM"."""
    if isinstance(signal, str):
        name = signal.upper()
        return name if name.startswith("SIG") else f"SIG{name}"
    from signal import Signals

    return Signals(signal).name


def _revoked_record(id: str, where: Waiting | None, word: str) -> Record | None:
    """What the result of a revoked task says; None when its caller wanted no result."""
    message = where.message if where is not None else None
    result = encode_exception(TaskRevokedError(word))
    moment = datetime.now(UTC)
    if message is None:
        return Record(task_id=id, status=states.REVOKED, result=result, date_done=moment)
    if message.ignore_result:
        return None
    return Record(
        task_id=id,
        status=states.REVOKED,
        result=result,
        date_done=moment,
        name=message.task,
        args=message.argsrepr,
        kwargs=message.kwargsrepr,
        queue=message.queue,
        retries=message.retries,
        root_id=message.root_id,
        parent_id=message.parent_id,
        group_id=message.group,
        attempts=message.attempts,
    )


def _revoked_arrival(where: Waiting | None, word: str) -> Arrival | None:
    """Its end at the join that it is a member of."""
    message = where.message if where is not None else None
    return None if message is None else arrival(message, encode_exception(TaskRevokedError(word)), failed=True)


def _steps_after(where: Waiting | None, word: str) -> list[Record]:
    """The results of the steps of its chain that come after it."""
    message = where.message if where is not None else None
    if message is None:
        return []
    try:
        _, _, embed = decode_body(message, {message.content_type})
    except ValueError:
        return []
    return never_coming(embed, states.REVOKED, encode_exception(TaskRevokedError(word)), None)


def _stamped(waiting: Waiting, headers: dict[str, Any]) -> bool:
    message = waiting.message
    if message is None:
        return False
    for name, wanted in headers.items():
        value = message.stamps.get(name, message.headers.get(name))
        if value is None:
            continue
        if set(_as_values(value)) & set(_as_values(wanted)):
            return True
    return False


def _as_values(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple, set)) else [value]
