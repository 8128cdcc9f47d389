"""A worker inside a test: the real executor over a real engine (`memory`), in the test's own thread and on a clock that the test turns.

with InlineWorker(app) as worker:
    send_reminder.apply_async((user.id,), countdown=3600)
    worker.assert_enqueued(send_reminder, args=(user.id,), countdown=3600)
    worker.run()                 # nothing: it is not due
    worker.advance(3600)
    worker.run()                 # now it ran
    worker.run_all()             # … and this jumps over every ETA and retry that is left
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..core.errors import CeleriacError
from ..core.ids import new_id
from ..core.message import Delivery, Holder, Message, Settlement
from ..core.serialize import decode_body
from ..engines.memory import MemoryEngine
from ..testing.clock import FakeClock
from .executor import Executor

if TYPE_CHECKING:
    from ..app import Celeriac
    from ..contracts.mailbox import Node
    from ..tasks.task import Task

MOST_RUNS = 10_000
_LEASE_SECONDS = 1e9
_BATCH = 100


class InlineWorker:
    """Runs what an app sends, when the test says so. While it is open, the app's broker and results are an engine in memory."""

    def __init__(self, app: Celeriac, clock: FakeClock | None = None) -> None:
        """`clock`: by default one that stands at the present moment."""
        self.app = app
        self.clock = clock or FakeClock(time=time.time())
        self.engine = MemoryEngine("memory://", clock=self.clock)
        self.settled: list[Settlement] = []
        """What came of each run so far, in order."""
        self._holder = Holder(f"inline-{new_id()}", 1)
        self._open = ExitStack()

    def __enter__(self) -> InlineWorker:
        self.app.finalize()
        self._open.enter_context(self.app.with_engine(self.engine))
        self.engine.register(self._node(), lease_seconds=_LEASE_SECONDS)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._open.close()

    # -- running -------------------------------------------------------------------------------------------------

    def run(self, *, most: int = MOST_RUNS) -> int:
        """Runs all that is due, and what that sends, until nothing is due. Returns how many runs it took.

        Raises: CeleriacError: after `most` runs there is still work: tasks that send each other for ever.
        """
        executor = self._executor()
        runs = 0
        while deliveries := self._reserve():
            for delivery in deliveries:
                if runs >= most:
                    raise CeleriacError(f"After {most} runs there is still something due. Do tasks send each other for ever?")
                self.settled.append(executor.run(delivery))
                self.engine.settle(self.settled[-1:])
                runs += 1
        return runs

    def run_all(self, *, most: int = MOST_RUNS) -> int:
        """As `run`, and when nothing is due, turns the clock to the next moment when something is: over ETAs, countdowns and retries."""
        runs = self.run(most=most)
        while (due_at := self.next_due_at()) is not None and runs < most:
            self.advance(max(0.0, due_at - self.clock.time()))
            runs += self.run(most=most - runs)
        return runs

    def advance(self, seconds: float | timedelta) -> None:
        """Turns the clock forward. Nothing runs by that."""
        self.clock.advance(seconds.total_seconds() if isinstance(seconds, timedelta) else seconds)

    def next_due_at(self) -> float | None:
        """When the next message comes due, in seconds since 1970; None when none waits for its time."""
        waiting = [self.engine.peek(queue, state="scheduled", limit=1) for queue in self.engine.queues()]
        return min((found[0].due_at for found in waiting if found and found[0].due_at is not None), default=None)

    # -- looking -------------------------------------------------------------------------------------------------

    def enqueued(self, task: Task[..., Any] | str | None = None, *, queue: str | None = None) -> list[Message]:
        """The messages that wait: ready ones first, then those that are not due."""
        self._flush_outbox()
        name = task if task is None or isinstance(task, str) else task.name
        queues = self.engine.queues() if queue is None else [queue]
        found = [
            waiting.message
            for state in ("ready", "scheduled")
            for queue_name in queues
            for waiting in self.engine.peek(queue_name, state=state, limit=1_000_000)
        ]
        return [message for message in found if message is not None and name in (None, message.task)]

    def assert_enqueued(
        self,
        task: Task[..., Any] | str,
        *,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        countdown: float | None = None,
        count: int | None = None,
    ) -> list[Message]:
        """Fails unless such a call waits: at least one, or exactly `count`. What is None does not matter. Returns the messages."""
        __tracebackhide__ = True
        candidates = self.enqueued(task, queue=queue)
        found = [message for message in candidates if _fits(message, args, kwargs, countdown)]
        if (count is None and not found) or (count is not None and len(found) != count):
            name = task if isinstance(task, str) else task.name
            wanted = "at least one call" if count is None else f"{count} calls"
            waiting = "\n".join(f"  {_describe(message)}" for message in self.enqueued()) or "  (nothing waits)"
            call = f"{name}({_arguments(args, kwargs)})"
            raise AssertionError(f"Expected {wanted} of {call} to wait, found {len(found)}. What waits:\n{waiting}")
        return found

    def assert_not_enqueued(self, task: Task[..., Any] | str, **criteria: Any) -> None:
        """Fails if such a call waits."""
        __tracebackhide__ = True
        self.assert_enqueued(task, count=0, **criteria)

    # -- parts ---------------------------------------------------------------------------------------------------

    def _executor(self) -> Executor:
        app = self.app
        return Executor(
            tasks=app.tasks, broker=self.engine, backend=self.engine, producer=app.producer, settings=app.settings, hostname="inline@test"
        )

    def _flush_outbox(self) -> None:
        """What waits for a commit, which in a test of Django's may never come, is looked at as if it had come."""
        if self.app.outbox is not None:
            self.app.outbox.flush()

    def _reserve(self) -> list[Delivery]:
        self._flush_outbox()
        return self.engine.reserve(self.engine.queues(), limit=_BATCH, holder=self._holder)

    def _node(self) -> Node:
        from ..contracts.mailbox import Node

        return Node(id=self._holder.node, name="inline@test", pid=os.getpid(), pool="inline", concurrency=1, tasks=sorted(self.app.tasks))


def _fits(message: Message, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, countdown: float | None) -> bool:
    sent_args, sent_kwargs, _ = decode_body(message)
    return (
        (args is None or list(args) == list(sent_args))
        and (kwargs is None or dict(kwargs) == sent_kwargs)
        and (countdown is None or message.delay_seconds == countdown)
    )


def _describe(message: Message) -> str:
    later = f" in {message.delay_seconds:g} s" if message.delay_seconds else f" at {message.eta}" if message.eta else ""
    return f"{message.task}{message.argsrepr} {message.kwargsrepr} in queue {message.queue!r}{later}"


def _arguments(args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None) -> str:
    shown = ["…"] if args is None else [repr(value) for value in args]
    shown += ["…"] if kwargs is None and args is not None else [f"{name}={value!r}" for name, value in (kwargs or {}).items()]
    return ", ".join(shown)
