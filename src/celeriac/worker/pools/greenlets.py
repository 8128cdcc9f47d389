"""`--pool=gevent` and `--pool=eventlet`: a greenlet for each task, in a process of its own whose standard library is patched.

`async def` tasks run here one after the other; `--pool=asyncio` is the pool for many of them at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from ...core.errors import EngineUnavailable, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from ...core.message import Delivery, Holder
from ..executor import Executor
from ..plan import Plan
from ..slots import Page
from ..worker import Settler
from .pump import Pump, listen

logger = logging.getLogger("celeriac.worker")


class Greenlets:
    """Threads are greenlets here, since the library is patched: the pump is the same as for threads."""

    def __init__(self, plan: Plan, settler: Settler, executor: Executor, page: Page, holder: Holder, control: int) -> None:
        self.plan = plan
        self.executor = executor
        self.control = control
        self.pump = Pump(plan, settler, executor, page, holder, start=self._start)
        self.running: dict[str, Any] = {}
        self.one_loop = threading.Lock()
        self.spawn, self.later = _gevent() if plan.pool == "gevent" else _eventlet()

    def run(self) -> int:
        """Works until told to stop."""
        settling = threading.Thread(target=self.pump.settle, name="settle")
        settling.start()
        threading.Thread(target=listen, args=(self.control, self._act), daemon=True).start()
        self.pump.take()
        settling.join()
        return self.pump.exit_code

    def _start(self, pairs: list[tuple[int, Delivery]]) -> None:
        for place, delivery in pairs:
            self.running[delivery.id] = self.spawn(self._run, place, delivery)

    def _run(self, place: int, delivery: Delivery) -> None:
        if self._is_coroutine(delivery):
            with self.one_loop:
                self._run_now(place, delivery)
        else:
            self._run_now(place, delivery)

    def _run_now(self, place: int, delivery: Delivery) -> None:
        hard, soft = self.pump.mark(place, delivery)
        cancels: list[Callable[[], object]] = []
        if soft:
            self._end_later(soft, delivery.id, SoftTimeLimitExceeded(soft), cancels)
        if hard:
            self._end_later(hard, delivery.id, TimeLimitExceeded(hard), cancels)
        try:
            self.pump.finished(place, self.executor.run(delivery))
        except EngineUnavailable:
            self.pump.abandon(place, delivery)
        except BaseException:
            logger.exception("A greenlet could not run %s", delivery.id)
            self.pump.abandon(place, delivery)
        finally:
            self.running.pop(delivery.id, None)
            for cancel in cancels:
                cancel()

    def _is_coroutine(self, delivery: Delivery) -> bool:
        """Greenlets share one thread, and a thread can run one event loop at a time: so `async def` tasks run one after the other."""
        task = self.executor.tasks.get(delivery.message.task) if delivery.message is not None else None
        return task is not None and task.is_async

    def _end_later(self, seconds: float, task_id: str, error: BaseException, cancels: list[Callable[[], object]]) -> None:
        cancels.append(self.later(seconds, self._end, task_id, self.running.get(task_id), error, cancels))

    def _end(self, task_id: str, greenlet: Any, error: BaseException, cancels: list[Callable[[], object]]) -> None:
        """Raises in a greenlet, while its task's own code waits; not in ours, so it may take another look. Called by the hub, beside all greenlets."""
        running, request = self.running.get(task_id), self.executor.running.get(task_id)
        if running is None or running is not greenlet:
            return
        if request is None or not request.exposed:
            self._end_later(AGAIN_SECONDS, task_id, error, cancels)
            return
        request.ended_by = error
        running.throw(error)

    def _act(self, command: dict[str, Any]) -> None:
        task_id = command.get("cancel", "")
        if task_id in self.running:
            self._end_later(0.0, task_id, TaskRevokedError("terminated"), [])


AGAIN_SECONDS = 0.05

Spawn = Callable[..., Any]
Later = Callable[..., Callable[[], object]]
"""Calls a function in so many seconds, in the hub. Returns what takes that back."""


def _gevent() -> tuple[Spawn, Later]:
    import gevent

    def later(seconds: float, function: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
        timer = gevent.get_hub().loop.timer(seconds)
        timer.start(function, *arguments)
        close: Callable[[], object] = timer.close
        return close

    return gevent.spawn, later


def _eventlet() -> tuple[Spawn, Later]:
    import eventlet
    from eventlet.hubs import get_hub

    def later(seconds: float, function: Callable[..., Any], *arguments: Any) -> Callable[[], object]:
        cancel: Callable[[], object] = get_hub().schedule_call_global(seconds, function, *arguments).cancel
        return cancel

    return eventlet.spawn, later
