"""`--pool=asyncio`: coroutines on one event loop, plain functions in threads beside it. Limits and revokes cancel coroutines."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ...core.errors import EngineUnavailable, SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded
from ...core.message import Delivery, Holder, Settlement
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
        self.revoked: set[str] = set()
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
            self.pump.settle()
            taking.join()
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
        timer: asyncio.TimerHandle | None = None
        limits = [limit for limit in (soft, hard) if limit]
        if limits:
            myself = asyncio.current_task()
            assert myself is not None
            timer = self.loop.call_later(min(limits), myself.cancel)
        try:
            self.pump.finished(place, await self.executor.arun(delivery))
        except asyncio.CancelledError:
            self.pump.finished(place, self._cancelled(delivery, hard, soft))
        except EngineUnavailable:
            self.pump.abandon(place, delivery)
        except BaseException:
            logger.exception("The loop could not run %s", delivery.id)
            self.pump.abandon(place, delivery)
        finally:
            if timer is not None:
                timer.cancel()
            self.running.pop(delivery.id, None)
            self.revoked.discard(delivery.id)

    def _cancelled(self, delivery: Delivery, hard: float | None, soft: float | None) -> Settlement:
        if delivery.id in self.revoked:
            return self.executor.concluded(delivery, TaskRevokedError("terminated"))
        if soft and (not hard or soft <= hard):
            return self.executor.concluded(delivery, SoftTimeLimitExceeded(soft))
        return self.executor.concluded(delivery, TimeLimitExceeded(hard))

    def _act(self, command: dict[str, Any]) -> None:
        if "cancel" in command:
            self.loop.call_soon_threadsafe(self._cancel, command["cancel"])

    def _cancel(self, task_id: str) -> None:
        task = self.running.get(task_id)
        if task is not None:
            self.revoked.add(task_id)
            task.cancel()
