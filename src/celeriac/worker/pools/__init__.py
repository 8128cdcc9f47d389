"""Pools that run several tasks at once in one process. `prefork` and `solo` need none: their loop is `worker.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ...core.message import Holder
    from ..executor import Executor
    from ..plan import Plan
    from ..slots import Page
    from ..worker import Settler


class PoolWorker(Protocol):
    """The loop of such a process."""

    def run(self) -> int:
        """Works until told to stop. Returns the exit code."""
        ...


def open_pool(plan: Plan, settler: Settler, executor: Executor, page: Page, holder: Holder, control: int) -> PoolWorker:
    """The loop for `plan.pool`. `control` is the descriptor at which the supervisor's commands arrive, a JSON object a line."""
    if plan.pool == "threads":
        from .threads import Threads

        return Threads(plan, settler, executor, page, holder, control)
    if plan.pool == "asyncio":
        from .aio import Coroutines

        return Coroutines(plan, settler, executor, page, holder, control)
    from .greenlets import Greenlets

    return Greenlets(plan, settler, executor, page, holder, control)
