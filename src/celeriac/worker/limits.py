"""Time limits of process pools, and hostages: what a supervisor sees in a page and does about it.

It acts from outside, since a thread inside the process could not while C code holds the GIL.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..core.errors import EngineUnavailable, SoftTimeLimitExceeded
from ..core.message import Settlement, Verdict
from .slots import EVERYTHING, HARVEST_SECONDS, NOTHING, Harvest, Page, Running

if TYPE_CHECKING:
    from ..tasks.request import Request
    from .process import Process
    from .worker import Settler

logger = logging.getLogger("celeriac.worker")

SOFT_SIGNAL_SECONDS = 0.1
"""Between two signals for the same soft limit."""
HOSTAGE_SECONDS = 0.03
"""A task that has run so long holds up those that wait behind it in its batch."""


def watch(process: Process, settler: Settler, now: float) -> None:
    """One look at one process: signals, kills and frees hostages as its page says."""
    if process.doom is not None:
        return
    running = process.page.running()
    for task in running:
        if task.hard_deadline and now >= task.hard_deadline:
            _enforce_hard_limit(process, task)
            return
        if task.soft_deadline and now >= task.soft_deadline:
            _signal_soft_limit(process, task, now)
    if len(running) == 1 and (_holds_hostages(process, running[0], now) or _is_to_be_audited(process, running[0], now)):
        if free_hostages(process, settler):
            process.freed = running[0].started_at
            process.audited_at = now


def _signal_soft_limit(process: Process, task: Running, now: float) -> None:
    """Again and again: the process raises it in the task's own code only, and takes the deadline away when it has."""
    if process.soft_signalled != task.started_at:
        process.soft_signalled = task.started_at
        logger.warning("Soft time limit (%gs) exceeded for task %s", task.soft_deadline - task.started_at, task.task_id)
    elif now < process.next_soft_signal:
        return
    process.next_soft_signal = now + SOFT_SIGNAL_SECONDS
    process.kill(signal.SIGUSR1)


def _holds_hostages(process: Process, task: Running, now: float) -> bool:
    is_long = now - task.started_at > HOSTAGE_SECONDS
    return is_long and process.freed != task.started_at and process.page.hostages() > 0 and not process.draining


def _is_to_be_audited(process: Process, task: Running, now: float) -> bool:
    """The process itself asks what it is thought to hold, but only between two tasks."""
    every = process.plan.audit_seconds
    return bool(every) and now - max(task.started_at, process.audited_at) > every and process.page.batch() > 0 and not process.draining


def _enforce_hard_limit(process: Process, task: Running) -> None:
    limit = task.hard_deadline - task.started_at
    logger.error("Hard time limit (%gs) exceeded for task %s; killing process %d", limit, task.task_id, process.number)
    process.end_task(task.task_id, "TimeLimitExceeded", round(limit, 6))


def free_hostages(process: Process, settler: Settler) -> bool:
    """Settles what the ring holds and gives the unstarted back, in one call; the process goes on with its long task alone.

    So neither those behind a long task wait for it, nor the results of those before it. What has ended, but the engine has forgotten it, is given back too.
    False: the engine is away, or so slow that the process does not wait any longer.
    """
    page = process.page
    deadline = time.monotonic() + HARVEST_SECONDS
    batch = page.batch()
    generation = page.raise_generation()
    taken = page.taken()
    if not batch or page.batch() != batch:  # the process is settling it itself, or has gone on to another
        page.answer(generation, Harvest(taken=taken, kept=EVERYTHING))
        return True
    running = page.running()
    outcomes = page.outcomes()
    kept = running[0].position if running else NOTHING
    keep = {settlement.id for settlement in outcomes} | {task.task_id for task in running}
    try:
        held = settler.broker.held(process.plan.node, process.number)
        if time.monotonic() > deadline:  # some of this may be of its next batch, which it has begun
            page.answer(generation, Harvest(taken=taken, kept=EVERYTHING))
            return False
        back = [
            Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt)
            for delivery in held
            if delivery.id not in keep
        ]
        settler.settle([*outcomes, *back])
    except EngineUnavailable:
        page.answer(generation, Harvest(taken=taken, kept=EVERYTHING))
        return False
    page.answer(generation, Harvest(taken=taken + len(outcomes), kept=kept), batch)
    return True


def install_soft_limit(page: Page, calls: Mapping[str, Request]) -> None:
    """In a child: SIGUSR1 raises SoftTimeLimitExceeded in the task that has really reached its soft limit, while its own code runs.

    Not in ours: not while its message is acknowledged, its outcome settled, or the next one begun. The supervisor signals again.
    """

    def on_signal(signum: int, frame: object) -> None:
        now = time.monotonic()
        for task in page.running():
            request = calls.get(task.task_id)
            if task.soft_deadline and now >= task.soft_deadline and request is not None and request.exposed:
                page.soft_limit_raised(task.place)
                raise SoftTimeLimitExceeded(task.soft_deadline - task.started_at)

    signal.signal(signal.SIGUSR1, on_signal)
