"""Time limits of process pools, and hostages: what a supervisor sees in a page and does about it.

It acts from outside, since a thread inside the process could not while C code holds the GIL.
"""

from __future__ import annotations

import logging
import signal
import time
from typing import TYPE_CHECKING

from ..core.errors import EngineUnavailable, SoftTimeLimitExceeded
from ..core.message import Settlement, Verdict
from .slots import EVERYTHING, NOTHING, Harvest, Page, Running

if TYPE_CHECKING:
    from .process import Process
    from .worker import Settler

logger = logging.getLogger("celeriac.worker")

HOSTAGE_SECONDS = 0.03
"""A task that has run so long holds up those that wait behind it in its batch."""


def watch(process: Process, settler: Settler, now: float) -> None:
    """One look at one process: signals, kills and frees hostages as its page says."""
    running = process.page.running()
    for task in running:
        if task.hard_deadline and now >= task.hard_deadline:
            _enforce_hard_limit(process, task)
            return
        if task.soft_deadline and now >= task.soft_deadline and process.soft_signalled != task.started_at:
            process.soft_signalled = task.started_at
            logger.warning("Soft time limit (%gs) exceeded for task %s", task.soft_deadline - task.started_at, task.task_id)
            process.kill(signal.SIGUSR1)
    if len(running) == 1 and _holds_hostages(process, running[0], now):
        process.freed = running[0].started_at
        free_hostages(process, settler)


def _holds_hostages(process: Process, task: Running, now: float) -> bool:
    is_long = now - task.started_at > HOSTAGE_SECONDS
    return is_long and process.freed != task.started_at and process.page.hostages() > 0 and not process.draining


def _enforce_hard_limit(process: Process, task: Running) -> None:
    limit = task.hard_deadline - task.started_at
    logger.error("Hard time limit (%gs) exceeded for task %s; killing process %d", limit, task.task_id, process.number)
    process.doomed = {"exc_type": "TimeLimitExceeded", "exc_message": [round(limit, 6)], "exc_module": "celery.exceptions"}
    process.kill()


def free_hostages(process: Process, settler: Settler) -> None:
    """Settles what the ring holds and gives the unstarted back, in one call; the process goes on with its long task alone.

    So neither those behind a long task wait for it, nor the results of those before it.
    """
    page = process.page
    generation = page.raise_generation()
    running = page.running()
    taken = page.taken()
    outcomes = page.outcomes()
    kept = running[0].position if running else NOTHING
    keep = {settlement.id for settlement in outcomes} | {task.task_id for task in running}
    try:
        held = settler.broker.held(process.plan.node, process.number)
        back = [
            Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt)
            for delivery in held
            if delivery.id not in keep
        ]
        settler.settle([*outcomes, *back])
    except EngineUnavailable:
        page.answer(generation, Harvest(taken=taken, kept=EVERYTHING))
        return
    page.answer(generation, Harvest(taken=taken + len(outcomes), kept=kept))


def install_soft_limit(page: Page) -> None:
    """In a child: SIGUSR1 raises SoftTimeLimitExceeded in the task that has really reached its soft limit."""

    def on_signal(signum: int, frame: object) -> None:
        now = time.monotonic()
        for task in page.running():
            if task.soft_deadline and now >= task.soft_deadline:
                raise SoftTimeLimitExceeded(task.soft_deadline - task.started_at)

    signal.signal(signal.SIGUSR1, on_signal)
