"""One process of a worker: reserve, run, settle, repeat.

What is finished is settled and what is next is reserved in one trip to the engine. Between two tasks the process looks at the two words with
which its supervisor commands (see `slots.py`). It starts nothing once its supervisor is dead.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import cast

from msgspec import structs

from ..contracts.broker import Broker
from ..contracts.joins import Joins
from ..contracts.results import ResultBackend
from ..core.errors import EngineUnavailable, NodeLost
from ..core.message import Delivery, Holder, Record, Settlement, Verdict
from ..core.states import READY_STATES, RETRY, SUCCESS
from ..core.trouble import Trouble
from .batches import BatchSize
from .executor import Executor
from .slots import EVERYTHING, HARVEST_SECONDS, Harvest, Page, ProcessState

logger = logging.getLogger("celeriac.worker")

WAIT_SECONDS = 0.25
"""How long an idle process waits before it looks at its supervisor again."""
WAITS = 8
"""After so many in vain it looks whether there is work all the same."""
RETRY_SECONDS = 0.2

EXIT_OK = 0
EXIT_RECYCLED = 80
"""The process has run as many tasks as it may (`max_tasks_per_child`)."""
EXIT_ORPHANED = 81
EXIT_LEASE_LOST = 82


class Orphaned(Exception):
    """The supervisor is dead."""


class Settler:
    """Stores results, counts at joins and settles deliveries, in the order that the engines allow.

    Where one engine keeps all, one step does it all. Where results or joins live elsewhere: results first, then joins, then what follows is published, then the
    message is acknowledged. A crash in between repeats the task, and finds done what it does again: records are replaced by their like, members count once,
    and follow-ups have derived ids.
    """

    def __init__(
        self, broker: Broker, backend: ResultBackend, *, together: bool, lease_until: Callable[[], float] = lambda: math.inf
    ) -> None:
        """`lease_until`: what is held is certain to be ours until that moment (seconds of the monotonic clock)."""
        self.broker = broker
        self.backend = backend
        self.together = together
        self._lease_until = lease_until
        self._joins_apart = not broker.capabilities.joins
        # Only a backend that sends results to who called (`rpc://`) has to know who that was; it can look nothing up.
        self._expect: Callable[[Sequence[Delivery]], None] | None = getattr(backend, "expect", None)
        self._own: set[Holder] = set()
        self._keeps = self._expect is None and not str(backend.url).startswith("disabled")

    def exchange(
        self, settlements: Sequence[Settlement], queues: Sequence[str], limit: int, holder: Holder
    ) -> tuple[list[str], list[Delivery]]:
        """Settles, and reserves what is next. Raises EngineUnavailable or NodeLost; then it may be called again with the same settlements."""
        if self.together:
            return self.broker.exchange(settlements, queues, limit=limit, holder=holder)
        self._own = {holder}
        mine, stale = self._ours(settlements)
        refused, deliveries = self.broker.exchange(self._stored(mine), queues, limit=limit, holder=holder)
        self._leave(mine, refused)
        return stale + refused, self.sifted(deliveries)

    def reserve(self, queues: Sequence[str], limit: int, holder: Holder, wait_seconds: float) -> list[Delivery]:
        """Waits for what is next. Raises EngineUnavailable or NodeLost."""
        self._own = {holder}
        return self.sifted(self.broker.reserve(queues, limit=limit, holder=holder, wait_seconds=wait_seconds))

    def settle(self, settlements: Sequence[Settlement]) -> list[str]:
        """Settles. Raises EngineUnavailable; then it may be called again with the same settlements."""
        if self.together:
            return self.broker.settle(settlements)
        mine, stale = self._ours(settlements)
        refused = self.broker.settle(self._stored(mine))
        self._leave(mine, refused)
        return stale + refused

    def _ours(self, settlements: Sequence[Settlement]) -> tuple[Sequence[Settlement], list[str]]:
        """Those whose results may be stored, and the ids of those that are somebody else's by now: the fence of the engine comes too late for a result elsewhere."""
        if time.monotonic() < self._lease_until() or not settlements:
            return settlements, []
        holders = {settlement.lease.holder for settlement in settlements if settlement.lease is not None}
        leases = {held.id: held.lease for holder in holders for held in self.broker.held(holder.node, holder.process)}
        mine = [settlement for settlement in settlements if settlement.lease is None or leases.get(settlement.id) == settlement.lease]
        kept = {settlement.id for settlement in mine}
        return mine, [settlement.id for settlement in settlements if settlement.id not in kept]

    def sifted(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Those that are not done already; these are acknowledged here. What came back and has its result, but maybe not what follows, says so (`success`)."""
        if self._expect is not None:
            self._expect(deliveries)
        if self.together or not self._keeps:
            return deliveries
        doubtful = [delivery for delivery in deliveries if delivery.repeated or not _is_fresh(delivery)]
        if not doubtful:
            return deliveries
        records = self.backend.fetch([delivery.id for delivery in doubtful])
        ended = {
            delivery.id: record
            for delivery in doubtful
            if (record := records.get(delivery.id)) is not None and _has_ended(record, delivery) and _is_of(record, delivery)
        }
        over = {one.id: one for one in doubtful if one.id in ended and _is_over(one, ended[one.id])}
        if over:
            self.broker.settle([Settlement(id=one.id, verdict=Verdict.DONE, lease=one.lease, receipt=one.receipt) for one in over.values()])
        return [
            structs.replace(delivery, success=ended[delivery.id])
            if delivery.id in ended and ended[delivery.id].status == SUCCESS
            else delivery
            for delivery in deliveries
            if delivery.id not in over
        ]

    def _stored(self, settlements: Sequence[Settlement]) -> Sequence[Settlement]:
        """What is left for the broker to do."""
        records: list[Record] = []
        for settlement in settlements:
            if settlement.record is not None:
                records.append(settlement.record)
            records += settlement.more_records
        if records:
            if self._expect is not None:
                self._ask_who_called(settlements)
            self.backend.store(records)
        return [self._counted(settlement) for settlement in settlements]

    def _ask_who_called(self, settlements: Sequence[Settlement]) -> None:
        """Of what another process was given: a supervisor settles what it leaves."""
        if self._expect is not None:
            for holder in {settlement.lease.holder for settlement in settlements if settlement.lease is not None} - self._own:
                self._expect(self.broker.held(holder.node, holder.process))

    def _counted(self, settlement: Settlement) -> Settlement:
        joining = self._joins_apart and (settlement.arrival is not None or settlement.opens or settlement.enlarges)
        if not joining:
            if settlement.record is None and not settlement.more_records:
                return settlement
            return structs.replace(settlement, record=None, more_records=[])
        joins = cast("Joins", self.backend)
        arrivals = [settlement.arrival] if settlement.arrival is not None else []
        complete = joins.arrive(arrivals, opens=settlement.opens, enlarges=settlement.enlarges)
        return structs.replace(
            settlement, record=None, more_records=[], opens=[], enlarges={}, arrival=None, follow_ups=[*settlement.follow_ups, *complete]
        )

    def _leave(self, settlements: Sequence[Settlement], refused: Sequence[str]) -> None:
        if not self._joins_apart:
            return
        left = [settlement.leaves for settlement in settlements if settlement.leaves is not None and settlement.id not in refused]
        if left:
            try:
                cast("Joins", self.backend).leave(left)
            except EngineUnavailable as error:  # the messages are settled; `prune` removes these joins in its time
                logger.warning("Joins that have been used are left behind: %s", error)


def _is_fresh(delivery: Delivery) -> bool:
    """Nobody has had it before: it is not a run that was cut short and has to be brought to its end."""
    return not delivery.crashes and not delivery.interruptions


def _has_ended(record: Record, delivery: Delivery) -> bool:
    """Nobody runs it. A second copy need not wait for the last try: who ran the first copy has published the next one, or has the first copy still."""
    return record.status in READY_STATES or (record.status == RETRY and delivery.repeated and _is_fresh(delivery))


def _is_of(record: Record, delivery: Delivery) -> bool:
    """Whether this result is of the same call, in this try or a later one, and not of a call before it with the same id."""
    if delivery.message is None or record.retries < delivery.message.retries:
        return False
    return delivery.repeated or (record.date_done is not None and record.date_done.timestamp() >= delivery.waiting_since)


def _is_over(delivery: Delivery, record: Record) -> bool:
    """It is a second copy of what is done, or a later try has ended: whoever did that has published, or will, what follows."""
    return _is_fresh(delivery) or (delivery.message is not None and record.retries > delivery.message.retries)


class Worker:
    """The loop of a process that runs one task at a time."""

    def __init__(
        self,
        *,
        settler: Settler,
        executor: Executor,
        page: Page,
        holder: Holder,
        queues: Sequence[str],
        supervisor_pid: int,
        time_limits: tuple[float | None, float | None] = (None, None),
        task_limits: Mapping[str, tuple[float | None, float | None]] | None = None,
        max_tasks: int | None = None,
        audit_seconds: float = 0.0,
    ) -> None:
        """`time_limits`: hard and soft, in seconds, for tasks whose message names none; `task_limits`: by task name, before all
        others. `max_tasks`: end after so many. `audit_seconds`: how often to ask what we are thought to hold; 0.0: never."""
        self.settler = settler
        self.broker = settler.broker
        self.executor = executor
        self.page = page
        self.holder = holder
        self.queues = queues
        self.supervisor_pid = supervisor_pid
        self.hard_limit, self.soft_limit = time_limits
        self.task_limits = task_limits or {}
        self.max_tasks = max_tasks
        self.batch_size = BatchSize()
        self.done = 0
        self._unanswered = True
        """There may be deliveries that we were given and do not know of: an answer was lost, or a dead process of our number was given them
        after its supervisor had looked (a server may carry out the last request of a client that is gone)."""
        self._audit_seconds = audit_seconds or math.inf
        self._audit_at = time.monotonic() + self._audit_seconds
        self._generation = 0
        """The supervisor's word when the batch began."""
        self.trouble = Trouble(logger, "The engine")

    def run(self) -> int:
        """Works until told to stop. Returns the exit code."""
        finished: list[Settlement] = []
        try:
            while not self._ends():
                deliveries = self._exchange(finished) or self._await_work()
                finished = self._run_batch(deliveries) if deliveries else []
            self._settle(finished)
        except Orphaned:
            return EXIT_ORPHANED
        except NodeLost:
            return EXIT_LEASE_LOST
        return EXIT_RECYCLED if self._spent() else EXIT_OK

    def _ends(self) -> bool:
        self._check_supervisor()
        return bool(self.page.command()[1]) or self._spent()

    def _spent(self) -> bool:
        return self.max_tasks is not None and self.done >= self.max_tasks

    def _check_supervisor(self) -> None:
        if os.getppid() != self.supervisor_pid:
            raise Orphaned

    # -- the engine ------------------------------------------------------------------------------------------------

    def _exchange(self, finished: list[Settlement]) -> list[Delivery]:
        """Settles and reserves. When an answer was lost on its way, what we may have been given with it is asked for; and now and then what we are thought to hold,
        in the moment in which we hold nothing: nobody else would ever get a message whose settlement the server has forgotten."""
        limit = self.batch_size.limit()
        if self.max_tasks is not None:
            limit = min(limit, self.max_tasks - self.done)
        while True:
            try:
                if self._unanswered or time.monotonic() >= self._audit_at:
                    if finished:
                        refused = self.settler.settle(finished)
                        if not self._unanswered:  # else it had been settled, and only the answer was lost
                            self._report(refused)
                        finished = []
                    deliveries = self.settler.sifted(self.broker.held(self.holder.node, self.holder.process))
                    if deliveries and not self._unanswered:
                        report_forgotten(deliveries)
                    self._unanswered = False
                    self._audit_at = time.monotonic() + self._audit_seconds
                    if not deliveries:
                        continue
                else:
                    refused, deliveries = self.settler.exchange(finished, self.queues, limit, self.holder)
                    self._report(refused)
            except EngineUnavailable as error:
                self._unanswered = True
                self._pause(error)
                if not finished and self._ends():
                    return []
                continue
            self.trouble.over()
            if deliveries:
                self.batch_size.came(len(deliveries))
            self._begin_batch(len(deliveries))
            return deliveries

    def _settle(self, finished: list[Settlement]) -> None:
        while finished:
            try:
                self._report(self.settler.settle(finished))
                self.trouble.over()
                break
            except EngineUnavailable as error:
                self._pause(error)
        self.page.begin_batch(0)

    def _await_work(self) -> list[Delivery]:
        """Waits for what comes next: one message, since others may be idle too. [] now and then, and when we are to end."""
        self.page.set_state(ProcessState.IDLE)
        self.batch_size.idle()
        try:
            for _ in range(WAITS):
                deliveries = self.settler.reserve(self.queues, self.batch_size.limit(), self.holder, WAIT_SECONDS)
                if deliveries or self._ends():
                    self._begin_batch(len(deliveries))
                    return deliveries
        except EngineUnavailable as error:
            self._unanswered = True
            self._pause(error)
        return []

    def _begin_batch(self, size: int) -> None:
        self._generation, _ = self.page.command()
        self.page.begin_batch(size)
        if size:
            self.page.set_state(ProcessState.BUSY)

    def _pause(self, error: EngineUnavailable) -> None:
        self.trouble.seen(error)
        self._check_supervisor()
        time.sleep(RETRY_SECONDS)

    def _report(self, refused: Sequence[str]) -> None:
        for task_id in refused:
            logger.warning("The outcome of %s was refused: its lease had run out, and the task belongs to somebody else now.", task_id)

    # -- a batch -----------------------------------------------------------------------------------------------------

    def _run_batch(self, deliveries: list[Delivery]) -> list[Settlement]:
        """Runs a batch, as far as the supervisor lets us, and returns what is to be settled."""
        page = self.page
        generation = self._generation
        finished: list[Settlement] = []
        began = time.monotonic()
        for position, delivery in enumerate(deliveries):
            self._mark_start(delivery, position)
            command, stop = page.command()
            if stop or command != generation or os.getppid() != self.supervisor_pid:
                page.clear(0)
                if position:
                    self.batch_size.ran(position, time.monotonic() - began)
                return self._give_back(deliveries, position, finished, generation)
            settlement = self._run_one(delivery)
            finished.append(settlement)
            if not page.finish(settlement):
                page.end_batch()
                self._settle(self._unharvested(finished, generation)[0])
                finished = []
                page.begin_batch(len(deliveries) - position)
            page.clear(0)
            self.done += 1
        page.count(self.done)
        self.batch_size.ran(len(deliveries), time.monotonic() - began)
        page.end_batch()
        return self._unharvested(finished, generation)[0]

    def _run_one(self, delivery: Delivery) -> Settlement:
        try:
            return self.executor.run(delivery)
        except EngineUnavailable as error:
            self._pause(error)
            return Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt)

    def _mark_start(self, delivery: Delivery, position: int) -> None:
        now = time.monotonic()
        message = delivery.message
        hard, soft = self.hard_limit, self.soft_limit
        if message is not None:
            hard = message.time_limit or hard
            soft = message.soft_time_limit or soft
            if self.task_limits and message.task in self.task_limits:
                hard, soft = self.task_limits[message.task]
        self.page.start(0, delivery.id, position, now, now + soft if soft else 0.0, now + hard if hard else 0.0)

    def _give_back(self, deliveries: list[Delivery], position: int, finished: list[Settlement], generation: int) -> list[Settlement]:
        """We stand before `position`, told to stop or harvested, or orphaned. Returns what is ours to settle."""
        self._check_supervisor()
        self.page.count(self.done)
        self.page.end_batch()
        unstarted = deliveries[position:]
        finished, harvest = self._unharvested(finished, generation)
        if harvest is not None and harvest.kept != EVERYTHING:
            unstarted = [delivery for delivery in unstarted if delivery is deliveries_at(deliveries, harvest.kept)]
        released = [
            Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt) for delivery in unstarted
        ]
        return [*finished, *released]

    def _unharvested(self, finished: list[Settlement], generation: int) -> tuple[list[Settlement], Harvest | None]:
        """What no harvest has settled, and the last harvest since that generation, if there was one. The batch has to be closed."""
        command, _ = self.page.command()
        if command == generation or not finished:
            return finished, None if command == generation else self._await_harvest(command)
        harvest = self._await_harvest(command)
        return finished[self.page.taken() :], harvest

    def _await_harvest(self, generation: int) -> Harvest:
        deadline = time.monotonic() + HARVEST_SECONDS
        while (harvest := self.page.harvest(generation)) is None:
            self._check_supervisor()
            if time.monotonic() > deadline:  # the fence refuses what the supervisor has settled meanwhile
                return Harvest(taken=0, kept=EVERYTHING)
            time.sleep(0.0005)
        return harvest


def report_forgotten(deliveries: Sequence[Delivery]) -> None:
    logger.warning(
        "The engine thinks that %d tasks run here that have ended: it has forgotten the end of them. They run again.", len(deliveries)
    )


def deliveries_at(deliveries: list[Delivery], position: int) -> Delivery | None:
    """The delivery at a position, or None beyond the end (`slots.NOTHING`)."""
    return deliveries[position] if position < len(deliveries) else None
