"""`--pool=asyncio`: coroutines on one event loop, plain functions in threads beside it. Limits and revokes cancel coroutines."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...core.errors import EngineUnavailable, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from ...core.message import Delivery, Holder
from ..executor import Executor
from ..plan import Plan
from ..slots import Page
from ..worker import Settler
from .pump import Pump, listen

logger = logging.getLogger("celeriac.worker")

PLAIN_FUNCTION_THREADS = 32


class Coroutines:
    """The loop runs in the main thread; taking and settling, which wait for the engine, in threads."""

    def __init__(self, plan: Plan, settler: Settler, executor: Executor, page: Page, holder: Holder, control: int) -> None:
        self.plan = plan
        self.executor = executor
        self.control = control
        self.pump = Pump(plan, settler, executor, page, holder, start=self._start)
        self.loop: asyncio.AbstractEventLoop
        self.running: dict[str, asyncio.Task[None]] = {}
        """Those that have been started, by the id of their delivery."""
        self.reasons: dict[str, BaseException] = {}
        """Why those of them were cancelled that we have cancelled."""
        self.threads = ThreadPoolExecutor(min(plan.places, PLAIN_FUNCTION_THREADS), thread_name_prefix="task")

    def run(self) -> int:
        """Works until told to stop."""
        with asyncio.Runner() as runner:
            runner.run(self._main())
        return self.pump.exit_code

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_default_executor(self.threads)
        threading.Thread(target=listen, args=(self.control, self._act), daemon=True).start()
        done = self.loop.create_future()

        def work() -> None:
            taking = threading.Thread(target=self.pump.take, name="take")
            taking.start()
            try:
                self.pump.settle()
                taking.join()
            finally:
                self.loop.call_soon_threadsafe(done.set_result, None)

        threading.Thread(target=work, name="settle").start()
        await done
        self.threads.shutdown(wait=False)

    def _start(self, pairs: list[tuple[int, Delivery]]) -> None:
        self.loop.call_soon_threadsafe(self._start_here, pairs)

    def _start_here(self, pairs: list[tuple[int, Delivery]]) -> None:
        for place, delivery in pairs:
            self.running[delivery.id] = self.loop.create_task(self._run(place, delivery))

    async def _run(self, place: int, delivery: Delivery) -> None:
        hard, soft = self.pump.mark(place, delivery)
        timers: list[asyncio.TimerHandle] = []
        if soft:
            timers.append(self.loop.call_later(soft, self._end, delivery.id, SoftTimeLimitExceeded(soft)))
        if hard:
            timers.append(self.loop.call_later(hard, self._end, delivery.id, TimeLimitExceeded(hard)))
        try:
            self.pump.finished(place, await self.executor.arun(delivery, lambda: self.reasons.get(delivery.id)))
        except EngineUnavailable:
            self.pump.abandon(place, delivery)
        except asyncio.CancelledError:  # by the end of the loop: the delivery is not ours any more
            raise
        except BaseException:
            logger.exception("The loop could not run %s", delivery.id)
            self.pump.abandon(place, delivery)
        finally:
            for timer in timers:
                timer.cancel()
            self.running.pop(delivery.id, None)
            self.reasons.pop(delivery.id, None)

    def _act(self, command: dict[str, Any]) -> None:
        if "cancel" in command:
            self.loop.call_soon_threadsafe(self._end, command["cancel"], TaskRevokedError("terminated"))

    def _end(self, task_id: str, error: BaseException) -> None:
        """Cancels a coroutine. A plain function, which runs in a thread, can only be told of a revoke, as in --pool=threads."""
        running, request = self.running.get(task_id), self.executor.running.get(task_id)
        if running is None or request is None:
            return
        if request.running is None or request.running.is_async:
            self.reasons[task_id] = error
            running.cancel()
        elif isinstance(error, TaskRevokedError):
            request.ended_by = error
