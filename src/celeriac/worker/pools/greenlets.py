"""`--pool=gevent` and `--pool=eventlet`: a greenlet for each task, in a process of its own whose standard library is patched."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
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
        self.spawn, self.timeout, self.throw = _gevent() if plan.pool == "gevent" else _eventlet()

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
        hard, soft = self.pump.mark(place, delivery)
        try:
            with self.timeout(soft, SoftTimeLimitExceeded(soft)), self.timeout(hard, TimeLimitExceeded(hard)):
                self.pump.finished(place, self.executor.run(delivery))
        except (SoftTimeLimitExceeded, TimeLimitExceeded, TaskRevokedError) as error:  # it came between two lines of ours
            self.pump.finished(place, self.executor.concluded(delivery, error))
        except EngineUnavailable:
            self.pump.abandon(place, delivery)
        except BaseException:
            logger.exception("A greenlet could not run %s", delivery.id)
            self.pump.abandon(place, delivery)
        finally:
            self.running.pop(delivery.id, None)

    def _act(self, command: dict[str, Any]) -> None:
        greenlet = self.running.get(command.get("cancel", ""))
        if greenlet is not None:
            self.throw(greenlet, TaskRevokedError("terminated"))


Spawn = Callable[..., Any]
Timeout = Callable[[float | None, BaseException], AbstractContextManager[Any]]
Throw = Callable[[Any, BaseException], None]


def _gevent() -> tuple[Spawn, Timeout, Throw]:
    import gevent

    return gevent.spawn, gevent.Timeout, lambda greenlet, error: greenlet.kill(error, block=False)


def _eventlet() -> tuple[Spawn, Timeout, Throw]:
    import eventlet

    return eventlet.spawn, eventlet.Timeout, lambda greenlet, error: greenlet.kill(error)
