"""What the pools that run many tasks at once have in common: one thread takes, one thread settles, and the kind of pool runs.

    take: free places? → reserve as many → start each        settle: wait for what is finished → settle all of it in one trip

A task whose process has died under it is run alone the next time: nothing runs beside it that could be blamed with it, or go down with it.
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec

from ...core.errors import EngineUnavailable, NodeLost
from ...core.message import Delivery, Holder, Settlement, Verdict
from ...core.trouble import Trouble
from ..executor import Executor
from ..plan import Plan
from ..slots import Page, ProcessState
from ..worker import EXIT_LEASE_LOST, EXIT_OK, EXIT_ORPHANED, EXIT_RECYCLED, RETRY_SECONDS, WAIT_SECONDS, WAITS, Settler, report_forgotten

logger = logging.getLogger("celeriac.worker")

LARGEST_RESERVATION = 512
"""Each starts at once, so it need not be small; and a thread that waits for the engine waits for its turn beside the tasks, too, once a trip."""
EXIT_BROKEN = 70
_AT_ONCE = frozenset({EXIT_ORPHANED, EXIT_LEASE_LOST, EXIT_BROKEN})
"""The exit codes of a process that waits for nothing more: it can settle nothing."""
Start = Callable[[list[tuple[int, Delivery]]], None]


class Pump:
    """Takes deliveries for free places, hands them to `start`, and settles what `finished` is told of.

    `start` gets (place, delivery) pairs and returns at once; for each, `finished(place, settlement)` has to be called some time, from any thread.
    """

    def __init__(self, plan: Plan, settler: Settler, executor: Executor, page: Page, holder: Holder, *, start: Start) -> None:
        self.plan = plan
        self.settler = settler
        self.broker = settler.broker
        self.executor = executor
        self.page = page
        self.holder = holder
        self.start = start
        self.exit_code = EXIT_OK
        self.done = 0
        self.begun = 0
        self._free = list(range(plan.places))
        self._changed = threading.Condition()
        self._finished: deque[Settlement] = deque()
        self._unanswered = True
        """As in `Worker`: there may be deliveries that we do not know of."""
        self._audit_seconds = plan.audit_seconds or math.inf
        self._audit_at = time.monotonic() + self._audit_seconds
        self._in_hand: set[str] = set()
        """Ids that were reserved and are not settled."""
        self._taking = True
        self._trouble = Trouble(logger, "The engine")

    # -- told by the pool ----------------------------------------------------------------------------------------

    def finished(self, place: int, settlement: Settlement) -> None:
        """The delivery at this place has come to its end."""
        with self._changed:
            self.page.finish(settlement)
            self.page.clear(place)
            self._finished.append(settlement)
            self._free.append(place)
            self.done += 1
            self._changed.notify_all()

    def mark(self, place: int, delivery: Delivery) -> tuple[float | None, float | None]:
        """A delivery starts at this place. Returns its (hard, soft) limits in seconds."""
        message = delivery.message
        hard, soft = self.plan.time_limit, self.plan.soft_time_limit
        if message is not None:
            hard, soft = message.time_limit or hard, message.soft_time_limit or soft
            hard, soft = self.plan.task_limits.get(message.task, (hard, soft))
        # the supervisor would kill the whole process for one task, so it is told of no deadlines
        self.page.start(place, delivery.id, place, time.monotonic(), 0.0, 0.0)
        return hard, soft

    def abandon(self, place: int, delivery: Delivery) -> None:
        """The delivery could not be run; it is given back."""
        self.finished(place, Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt))

    # -- the two loops -------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Reserves and starts until told to stop. Runs in a thread of its own, or in the main one."""
        try:
            while not self._ends():
                self._audit()
                places = self._free_places()
                if not places:
                    continue
                try:
                    deliveries = self._reserve(len(places)) or self._await_work(len(places))
                except BaseException:
                    self._give_back_places(places)
                    raise
                self._start(places, deliveries)
            self._rest()
        except NodeLost:
            self.exit_code = EXIT_LEASE_LOST
        except Exception:
            logger.exception("Process %d cannot go on", self.plan.process)
            self.exit_code = EXIT_BROKEN
        finally:
            with self._changed:
                self._taking = False
                self._changed.notify_all()

    def settle(self) -> None:
        """Settles what is finished until nothing more can come. Runs in a thread of its own."""
        try:
            self._settle_all()
        except Exception:
            logger.exception("Process %d cannot settle", self.plan.process)
            self.exit_code = EXIT_BROKEN

    def _settle_all(self) -> None:
        while True:
            with self._changed:
                while not self._finished:
                    if not self._taking and len(self._free) == self.plan.places:
                        return
                    if self.exit_code in _AT_ONCE:
                        return
                    self._changed.wait(WAIT_SECONDS)
                batch = list(self._finished)
            self._settle(batch)
            with self._changed:
                for settlement in batch:
                    self._finished.popleft()
                    self._in_hand.discard(settlement.id)
                self.page.begin_batch(0)
                for settlement in self._finished:
                    self.page.finish(settlement)
                self.page.count(self.done)

    def _settle(self, batch: list[Settlement]) -> None:
        while True:
            try:
                for task_id in self.settler.settle(batch):
                    logger.warning(
                        "The outcome of %s was refused: its lease had run out, and the task belongs to somebody else now.", task_id
                    )
                self._trouble.over()
                return
            except EngineUnavailable as error:
                self._trouble.seen(error)
                if os.getppid() != self.plan.supervisor_pid:
                    return
                time.sleep(RETRY_SECONDS)

    def _ends(self) -> bool:
        if self.exit_code in _AT_ONCE:
            return True
        if os.getppid() != self.plan.supervisor_pid:
            self.exit_code = EXIT_ORPHANED
            return True
        if self.plan.max_tasks is not None and self.begun >= self.plan.max_tasks:
            self.exit_code = EXIT_RECYCLED
            return True
        return bool(self.page.command()[1])

    def _stops(self) -> bool:
        return self.exit_code in _AT_ONCE or bool(self.page.command()[1])

    def _free_places(self) -> list[int]:
        """Takes the free places; waits a moment when there are none."""
        with self._changed:
            if not self._free:
                self._changed.wait(WAIT_SECONDS)
                return []
            places = self._free[-LARGEST_RESERVATION:]
            del self._free[-LARGEST_RESERVATION:]
            return places

    def _await_work(self, limit: int) -> list[Delivery]:
        """Waits for what comes next. [] now and then, and when we are to end."""
        self.page.set_state(ProcessState.IDLE)
        for _ in range(WAITS):
            deliveries = self._reserve(limit, WAIT_SECONDS)
            if deliveries or self._ends():
                return deliveries
        return []

    def _reserve(self, limit: int, wait_seconds: float = 0.0) -> list[Delivery]:
        if self.plan.max_tasks is not None:
            limit = min(limit, max(1, self.plan.max_tasks - self.begun))
        while not self._ends():
            try:
                if self._unanswered:
                    deliveries = self.settler.sifted(self._overlooked())
                else:
                    deliveries = self.settler.reserve(self.plan.queues, limit, self.holder, wait_seconds)
            except EngineUnavailable as error:
                self._unanswered = True
                self._trouble.seen(error)
                time.sleep(RETRY_SECONDS)
                continue
            self._trouble.over()
            if self._unanswered:
                self._unanswered = False
                if not deliveries:
                    continue
            self.begun += len(deliveries)
            self._in_hand.update(delivery.id for delivery in deliveries)
            return deliveries
        return []

    def _rest(self) -> None:
        """What runs may run for long, and we wait for nothing more."""
        if self._in_hand and self.exit_code not in _AT_ONCE:
            with suppress(EngineUnavailable):
                self.broker.held(self.holder.node, self.holder.process)

    def _overlooked(self) -> list[Delivery]:
        """What the engine has given us with an answer that was lost on its way."""
        known = set(self._in_hand)  # first: what is settled meanwhile was ours, and is not overlooked
        return [delivery for delivery in self.broker.held(self.holder.node, self.holder.process) if delivery.id not in known]

    def _audit(self) -> None:
        """Gives back now and then what has ended, but the engine has forgotten it: nobody else would ever get it."""
        if self._unanswered or time.monotonic() < self._audit_at:
            return
        self._audit_at = time.monotonic() + self._audit_seconds
        try:
            forgotten = self._overlooked()
            if forgotten:
                report_forgotten(forgotten)
                self.broker.settle(
                    [Settlement(id=one.id, verdict=Verdict.RELEASED, lease=one.lease, receipt=one.receipt) for one in forgotten]
                )
        except EngineUnavailable as error:
            self._trouble.seen(error)

    def _start(self, places: list[int], deliveries: list[Delivery]) -> None:
        if self._stops():  # they came while we waited, and we are to end now
            for delivery in deliveries:
                self.abandon(places.pop(), delivery)
            deliveries = []
        suspects = [delivery for delivery in deliveries if delivery.crashes and self.plan.places > 1]
        others = [delivery for delivery in deliveries if delivery not in suspects] if suspects else deliveries
        if others:
            self.page.set_state(ProcessState.BUSY)
            self.start(list(zip(places, others, strict=False)))
        unused = places[len(others) :]
        while suspects:
            self._run_alone(unused, suspects.pop(0))
        self._give_back_places(unused)

    def _give_back_places(self, places: list[int]) -> None:
        with self._changed:
            self._free.extend(places)
            self._changed.notify_all()

    def _run_alone(self, unused: list[int], suspect: Delivery) -> None:
        """Waits until nothing else runs, starts the suspect, and lets nothing start before its end."""
        place = unused.pop()
        with self._changed:
            while self.plan.places > len(self._free) + len(unused) + 1 and not self._stops():
                self._changed.wait(WAIT_SECONDS)
        if self._stops():
            self.abandon(place, suspect)
            return
        self.start([(place, suspect)])
        with self._changed:
            while place not in self._free and not self._stops():
                self._changed.wait(WAIT_SECONDS)


def listen(control: int, act: Callable[[dict[str, Any]], None]) -> None:
    """Reads the supervisor's commands until it is gone. Runs in a thread of its own."""
    waiting = b""
    while True:
        # a read that blocks would stop all greenlets; a select is patched, and waits for this one alone
        select.select([control], [], [])
        data = os.read(control, 65536)
        if not data:
            return
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            try:
                act(msgspec.json.decode(line))
            except Exception:
                logger.exception("A command of the supervisor failed: %r", line)
