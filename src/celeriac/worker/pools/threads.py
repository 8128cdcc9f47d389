"""`--pool=threads`: many tasks at once, for work that waits or releases the GIL. Threads cannot be killed, so there are no time limits, and a task ends
for a revoke when it asks: `if self.request.ended_by: raise self.request.ended_by`."""

from __future__ import annotations

import logging
import threading
from queue import SimpleQueue
from typing import Any

from ...core.errors import EngineUnavailable, TaskRevokedError
from ...core.message import Delivery, Holder
from ..executor import Executor
from ..plan import Plan
from ..slots import Page
from ..worker import Settler
from .pump import Pump, listen

logger = logging.getLogger("celeriac.worker")


class Threads:
    """A fixed number of threads, each running one delivery after the other."""

    def __init__(self, plan: Plan, settler: Settler, executor: Executor, page: Page, holder: Holder, control: int) -> None:
        self.plan = plan
        self.executor = executor
        self.control = control
        self.inbox: SimpleQueue[tuple[int, Delivery] | None] = SimpleQueue()
        self.pump = Pump(plan, settler, executor, page, holder, start=self._start)

    def run(self) -> int:
        """Works until told to stop."""
        settling = threading.Thread(target=self.pump.settle, name="settle")
        runners = [threading.Thread(target=self._run, name=f"task-{number}", daemon=True) for number in range(self.plan.places)]
        threading.Thread(target=listen, args=(self.control, self._act), daemon=True).start()
        for thread in (settling, *runners):
            thread.start()
        self.pump.take()
        settling.join()
        return self.pump.exit_code

    def _start(self, pairs: list[tuple[int, Delivery]]) -> None:
        for place, delivery in pairs:
            self.pump.mark(place, delivery)
            self.inbox.put((place, delivery))

    def _run(self) -> None:
        while (pair := self.inbox.get()) is not None:
            place, delivery = pair
            try:
                self.pump.finished(place, self.executor.run(delivery))
            except EngineUnavailable:
                self.pump.abandon(place, delivery)
            except BaseException:
                logger.exception("A thread could not run %s", delivery.id)
                self.pump.abandon(place, delivery)

    def _act(self, command: dict[str, Any]) -> None:
        request = self.executor.running.get(command.get("cancel", ""))
        if request is not None:
            request.ended_by = TaskRevokedError("terminated")
