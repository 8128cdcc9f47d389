"""One delivery from start to outcome, step by step.

    judge → decode → join → acknowledge early (if asked) → announce the start → call → settle

`judge` ends a delivery that must not run: undecodable, revoked, expired, doomed, poisoned, unknown here. What calls the function and its hooks is `tasks/run.py`, the
same code as in eager mode; what comes of it becomes a Settlement here, with all that follows from it in its workflow (`canvas/advance.py`).
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, cast

from msgspec import Raw, json, structs

from ..canvas.advance import Advance, advance, chord_error
from ..contracts.broker import Broker
from ..contracts.joins import Joins
from ..contracts.results import ResultBackend
from ..core import events, states
from ..core.errors import (
    ChordError,
    EngineUnavailable,
    NotRegistered,
    Reject,
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)
from ..core.message import Attempt, Delivery, Lease, Message, Record, Settlement, Verdict
from ..core.serialize import decode_body, decode_exception, decode_value, encode_exception, encode_value
from ..tasks.callbacks import arrival, never_coming
from ..tasks.producer import Producer, short_repr
from ..tasks.request import Request
from ..tasks.run import Outcome, acall, call, conclude
from ..tasks.task import Task

logger = logging.getLogger("celeriac.worker")

UNKNOWN_TASK_PAUSE_SECONDS = 5.0
"""How long a message that no task here answers to rests before anybody reserves it again."""


class ExecutorSettings(Protocol):
    """What of the settings matters here."""

    @property
    def accept_content(self) -> Any: ...
    @property
    def task_acks_late(self) -> bool: ...
    @property
    def task_track_started(self) -> bool: ...
    @property
    def task_store_errors_even_if_ignored(self) -> bool: ...
    @property
    def task_max_crashes(self) -> int: ...
    @property
    def task_unknown_expires(self) -> float: ...


class Executor:
    """Runs deliveries of one process. Holds every part it uses, and nothing of any single delivery."""

    def __init__(
        self,
        *,
        tasks: Mapping[str, Task[Any, Any]],
        broker: Broker,
        backend: ResultBackend,
        producer: Producer,
        settings: ExecutorSettings,
        hostname: str,
        gate: Callable[[Task[Any, Any]], float] | None = None,
        lease_until: Callable[[], float] = lambda: math.inf,
        acknowledged: Callable[[str], None] = lambda task_id: None,
    ) -> None:
        """`gate` says for how many seconds a task has to wait for its rate limit; 0.0 lets it through. `lease_until`: what is held is certain to be ours until that
        moment (seconds of the monotonic clock). `acknowledged` is told of what is, before it runs."""
        self.tasks = tasks
        self.broker = broker
        self.backend = backend
        self.producer = producer
        self.settings = settings
        self.hostname = hostname
        self.gate = gate
        self.lease_until = lease_until
        self.acknowledged = acknowledged
        self.joins = cast("Joins", broker if broker.capabilities.joins else backend)
        self.fences_records = backend is broker  # type: ignore[comparison-overlap]
        self.accept = frozenset(settings.accept_content)
        self.running: dict[str, Request] = {}
        """The calls under way, by the id of their task."""

    # -- the path of one delivery --------------------------------------------------------------------------------

    def run(self, delivery: Delivery) -> Settlement:
        """Runs a delivery to its end. Never raises for what the task does.

        Raises: EngineUnavailable: before the function was called; the delivery is untouched.
        """
        try:
            prepared = self.prepare(delivery)
            if isinstance(prepared, Settlement):
                return prepared
            task, request, early = prepared
            self.running[delivery.id] = request
            try:
                outcome = call(task, request)
            finally:
                del self.running[delivery.id]
            return self.settlement(delivery, task, request, outcome, early)
        except EngineUnavailable:
            raise
        except Exception as error:  # a message that breaks us must neither end the process nor come back for ever
            logger.exception("Message %s could not be handled", delivery.id)
            return self._dead(delivery, error)

    async def arun(self, delivery: Delivery, why_cancelled: Callable[[], BaseException | None] = lambda: None) -> Settlement:
        """As `run`, for a task that is a coroutine function, in the loop we are in.

        When it is cancelled, it ends with what `why_cancelled` says; without a reason, CancelledError goes through.
        """
        import asyncio

        started_at = datetime.now(UTC)
        try:
            prepared = self.prepare(delivery)
            if isinstance(prepared, Settlement):
                return prepared
            task, request, early = prepared
            self.running[delivery.id] = request
            try:
                outcome = await acall(task, request)
            except asyncio.CancelledError:
                reason = why_cancelled()
                if reason is None:
                    raise
                outcome = conclude(task, request, reason, started_at)
            finally:
                del self.running[delivery.id]
            return self.settlement(delivery, task, request, outcome, early)
        except EngineUnavailable:
            raise
        except Exception as error:
            logger.exception("Message %s could not be handled", delivery.id)
            return self._dead(delivery, error)

    def prepare(self, delivery: Delivery) -> Settlement | tuple[Task[Any, Any], Request, bool]:
        """All that comes before the call: a Settlement if there will be no call."""
        judged = self._judge(delivery) if delivery.success is None else self._followed_up(delivery, delivery.success)
        if judged is not None:
            return judged
        message = delivery.message
        assert message is not None
        if logger.isEnabledFor(logging.DEBUG):  # a line in the log costs as much as a whole short task
            logger.debug("Task %s[%s] received", message.task, delivery.id)
        task = self.tasks[message.task]
        try:
            args, kwargs, embed = decode_body(message, self.accept)
        except ValueError as error:
            return self._dead(delivery, error)
        if message.joined is not None:
            failed, args = self._joined(message, args)
            if failed is not None:
                return self.concluded(delivery, failed)
        request = Request(message, args, kwargs, embed, hostname=self.hostname, delivery=delivery)
        if not self.fences_records:
            request.is_held = lambda: self._holds(delivery)
        if self.gate is not None and task.rate_limit is not None:
            pause = self.gate(task)
            if pause > 0.0:
                return _released(delivery, pause)
        late, announced = task.acks_late, task.track_started
        early = not (self.settings.task_acks_late if late is None else late)
        if early and (message.join is not None or embed.get("chain")):
            self._mark_start(delivery, request)
            return task, request, False
        if early and not self._acknowledge(delivery):
            logger.warning(
                "%s[%s] asks to run at most once, and others may have its message by now: it is not begun here.", message.task, delivery.id
            )
            return _released(delivery, 0.0)
        if self.settings.task_track_started if announced is None else announced:
            self._announce_start(delivery, request, None if early else delivery.lease)
        return task, request, early

    def settlement(self, delivery: Delivery, task: Task[Any, Any], request: Request, outcome: Outcome, early: bool = False) -> Settlement:
        """What an outcome means for the message, its result and its follow-ups."""
        try:
            settlement = self._settled(delivery, task, request, outcome, early)
        except Exception as error:  # such as a retry with arguments that cannot be sent, or a next step that has nowhere to go
            failure = conclude(task, request, error, outcome.started_at)
            request.embed = {"chain": request.embed.get("chain")}
            settlement = self._settled(delivery, task, request, failure, early)
        if request.kept_steps is not None and request.kept_steps.used and settlement.verdict is Verdict.DONE:
            return structs.replace(settlement, forgets=True)
        return settlement

    def _settled(self, delivery: Delivery, task: Task[Any, Any], request: Request, outcome: Outcome, early: bool) -> Settlement:
        self._log(request, outcome)
        state = outcome.state
        message = request.message
        if state == states.PAUSED:
            # It was in time to start, so it is in time to go on.
            going_on = None if message.expires is None else structs.replace(message, expires=None)
            return Settlement(
                id=delivery.id, verdict=Verdict.RETRY, lease=delivery.lease, receipt=delivery.receipt, message=going_on, pause=outcome.pause
            )
        if message.join is not None and state == states.SUCCESS and outcome.encoded is not None and not _goes_on(request):
            return Settlement(  # what most members of a chord come to: `advance` would say the same
                id=delivery.id,
                verdict=Verdict.DONE,
                lease=delivery.lease,
                receipt=delivery.receipt,
                record=self._record(task, request, outcome),
                arrival=arrival(message, outcome.encoded),
                leaves=message.joined,
            )
        follows = advance(task, request, outcome, self.producer) if _has_followers(request, outcome) else _NOTHING_FOLLOWS
        verdict, changed = Verdict.DONE, None
        if state == states.RETRY and outcome.retry is not None:
            verdict, changed = Verdict.RETRY, self.producer.retry_message(message, outcome.retry, request, whole=early)
            changed = structs.replace(changed, attempts=[*message.attempts, self._attempt(outcome)])
        elif state == states.REJECTED:
            verdict = Verdict.RELEASED if outcome.requeue else Verdict.DEAD
        elif state == states.FAILURE and not self._acknowledges(task, outcome.error):
            verdict = Verdict.DEAD
        record = self._record(task, request, outcome)
        published = follows.messages
        if early:
            if changed is not None:
                published = [*published, changed]
            settlement = Settlement(id=delivery.id, verdict=Verdict.DONE, lease=None, record=record, follow_ups=published)
        else:
            settlement = Settlement(
                id=delivery.id,
                verdict=verdict,
                lease=delivery.lease,
                receipt=delivery.receipt,
                message=changed,
                reason=outcome.reason or (_shown(outcome.error) if verdict is Verdict.DEAD else ""),
                record=record,
                follow_ups=published,
            )
        if follows is _NOTHING_FOLLOWS and message.joined is None:
            return settlement
        return structs.replace(
            settlement,
            more_records=follows.records,
            opens=follows.joins,
            enlarges=follows.enlarges,
            arrival=follows.arrival,
            leaves=None if early else _left(message, verdict, changed),
        )

    # -- deliveries that do not run --------------------------------------------------------------------------------

    def _judge(self, delivery: Delivery) -> Settlement | None:
        message = delivery.message
        if message is None:
            logger.error("Message %s cannot be decoded and went to the dead letters of %r: %s", delivery.id, delivery.queue, delivery.error)
            return _dead_letter(delivery, delivery.error, _failure(delivery.id, None, ValueError(delivery.error), self.hostname))
        if delivery.revoked:
            return self._revoked(delivery, message, "revoked")
        if message.task not in self.tasks:
            return self._unknown(delivery, message)
        if message.doom is not None:
            return self.concluded(delivery, decode_exception(Raw(json.encode(message.doom))))
        if delivery.expired:
            return self._revoked(delivery, message, "expired")
        if delivery.lease.token > 1 and self._was_its_only_start(delivery, message):
            error = WorkerLostError(
                f"{message.task}[{delivery.id}] asked to run at most once (acks_late=False), and its worker ended while it ran."
            )
            return self.concluded(delivery, error)
        if delivery.crashes:
            return self._poisoned(delivery, self.tasks[message.task])
        return None

    def _holds(self, delivery: Delivery) -> bool:
        if time.monotonic() < self.lease_until():
            return True
        holder = delivery.lease.holder
        return any((held.id, held.lease) == (delivery.id, delivery.lease) for held in self.broker.held(holder.node, holder.process))

    def _followed_up(self, delivery: Delivery, record: Record) -> Settlement | None:
        """Ends a delivery whose result is stored: its worker died before it could publish what follows, or before it could say that it had."""
        message = delivery.message
        if message is None or message.task not in self.tasks:
            return self._judge(delivery)
        task = self.tasks[message.task]
        args, kwargs, embed = decode_body(message, self.accept)
        request = Request(message, args, kwargs, embed, hostname=self.hostname, delivery=delivery)
        attempt = record.attempts[-1] if record.attempts else None
        outcome = Outcome(
            state=states.SUCCESS,
            value=decode_value(record.result),
            encoded=record.result,
            started_at=attempt.started_at if attempt is not None else datetime.now(UTC),
            runtime_seconds=attempt.runtime_seconds if attempt is not None else 0.0,
        )
        return structs.replace(self.settlement(delivery, task, request, outcome), record=None)

    def _poisoned(self, delivery: Delivery, task: Task[Any, Any]) -> Settlement | None:
        limit = self.settings.task_max_crashes
        if delivery.crashes < limit and task.reject_on_worker_lost is not False:
            return None
        error = WorkerLostError(
            f"The process that ran {task.name}[{delivery.id}] died {delivery.crashes} times under it; "
            f"it will not be started again (task_max_crashes = {limit}). "
            f"It is in the dead letters of {delivery.queue!r}: `celeriac dead replay {delivery.id}` puts it back."
        )
        return self.concluded(delivery, error, dead=True)

    def concluded(self, delivery: Delivery, error: BaseException, *, dead: bool = False) -> Settlement:
        """Ends a delivery as failed without running it: hooks, error callbacks and result as for any failure."""
        message = delivery.message
        assert message is not None
        task = self.tasks[message.task]
        try:
            args, kwargs, embed = decode_body(message, self.accept)
        except ValueError as decode_error:
            return self._dead(delivery, decode_error)
        request = Request(message, args, kwargs, embed, hostname=self.hostname, delivery=delivery)
        outcome = conclude(task, request, error, datetime.now(UTC))
        settlement = self.settlement(delivery, task, request, outcome)
        return structs.replace(settlement, verdict=Verdict.DEAD, reason=str(error)) if dead else settlement

    def _dead(self, delivery: Delivery, error: Exception) -> Settlement:
        logger.error("Message %s went to the dead letters of %r: %s", delivery.id, delivery.queue, error)
        record = _failure(delivery.id, delivery.message, error, self.hostname)
        return self._not_run(_dead_letter(delivery, str(error), record), delivery.message, record)

    def _revoked(self, delivery: Delivery, message: Message, why: str) -> Settlement:
        logger.info("Discarding revoked task: %s[%s] (%s)", message.task, delivery.id, why)
        request = Request(message, (), {}, {}, hostname=self.hostname, delivery=delivery)
        if events.task_revoked.receivers:
            events.task_revoked.send(
                sender=self.tasks.get(message.task), request=request, terminated=False, signum=None, expired=why == "expired"
            )
        record = _failure(delivery.id, message, TaskRevokedError(why), self.hostname, state=states.REVOKED)
        settlement = Settlement(
            id=delivery.id,
            verdict=Verdict.DONE,
            lease=delivery.lease,
            receipt=delivery.receipt,
            record=None if message.ignore_result else record,
            leaves=message.joined,
        )
        return self._not_run(settlement, message, record)

    def _unknown(self, delivery: Delivery, message: Message) -> Settlement:
        waited = self.broker.now() - delivery.waiting_since
        error = NotRegistered(
            f"Task {message.task!r} is not registered in this worker ({len(self.tasks)} tasks are). "
            f"Is the module that defines it imported here (`imports`, `autodiscover_tasks()`), and deployed?"
        )
        if events.task_unknown.receivers:
            events.task_unknown.send(sender=None, name=message.task, id=delivery.id, message=message, exc=error)
        if waited < self.settings.task_unknown_expires:
            if delivery.interruptions == 0:
                logger.error("%s The message waits for a worker that knows it.", error)
            return _released(delivery, min(UNKNOWN_TASK_PAUSE_SECONDS, self.settings.task_unknown_expires - waited))
        logger.error("%s The message waited %.0f s and went to the dead letters of %r.", error, waited, delivery.queue)
        record = _failure(delivery.id, message, error, self.hostname)
        return self._not_run(_dead_letter(delivery, str(error), record), message, record)

    def _not_run(self, settlement: Settlement, message: Message | None, record: Record) -> Settlement:
        """With the end that this is in its workflow: at its join, and for the steps after it."""
        if message is None:
            return settlement
        try:
            _, _, embed = decode_body(message, self.accept)
        except ValueError:
            embed = {}
        return structs.replace(
            settlement,
            arrival=arrival(message, record.result, failed=True),
            more_records=never_coming(embed, record.status, record.result, None),
        )

    # -- steps ---------------------------------------------------------------------------------------------------------

    def _joined(self, message: Message, args: tuple[Any, ...]) -> tuple[BaseException | None, tuple[Any, ...]]:
        """What the join that a message has waited for comes to: an error when a member has failed, else the message's arguments after the members' results."""
        assert message.joined is not None
        if message.immutable:
            state = self.joins.joins([message.joined]).get(message.joined)
            if state is not None and not state.failed:
                return None, args
        arrivals = self.joins.arrivals(message.joined)
        if not arrivals and message.joined not in self.joins.joins([message.joined]):
            return ChordError(
                f"The results of join {message.joined}, which {message.task}[{message.id}] waited for, are not kept any more (result_expires)."
            ), args
        for member in arrivals:
            if member.failed:
                return chord_error(member), args
        return None, args if message.immutable else ([decode_value(member.result) for member in arrivals], *args)

    def _acknowledge(self, delivery: Delivery) -> bool:
        """At most once: out of the engine before the first line runs. False: it is not ours any more."""
        assert delivery.message is not None
        self.acknowledged(delivery.id)
        done = Settlement(
            id=delivery.id, verdict=Verdict.DONE, lease=delivery.lease, receipt=delivery.receipt, early=True, leaves=delivery.message.joined
        )
        return not self.broker.settle([done])

    def _mark_start(self, delivery: Delivery, request: Request) -> None:
        """At most once, for a part of a workflow: its message stays, so that its end can count where it is waited for; whoever gets the message again sees that it has begun."""
        record = self._started(request)
        self.backend.store([record], lease=delivery.lease if self.fences_records else None)

    def _was_its_only_start(self, delivery: Delivery, message: Message) -> bool:
        """Whether this asked to run at most once and has begun before."""
        if not delivery.crashes and not delivery.interruptions:
            return False
        task = self.tasks[message.task]
        if self.settings.task_acks_late if task.acks_late is None else task.acks_late:
            return False
        record = self.backend.fetch([delivery.id]).get(delivery.id)
        return record is not None and record.status == states.STARTED

    def _announce_start(self, delivery: Delivery, request: Request, lease: Lease | None) -> None:
        if request.ignore_result:
            return
        try:
            self.backend.store([self._started(request)], lease=lease if self.fences_records else None)
        except EngineUnavailable as error:
            logger.warning("The start of %s[%s] could not be announced: %s", request.task, delivery.id, error)

    def _started(self, request: Request) -> Record:
        meta = encode_value({"pid": os.getpid(), "hostname": self.hostname})
        return Record(task_id=request.message.id, status=states.STARTED, result=meta, name=request.task, worker=self.hostname)

    def _acknowledges(self, task: Task[Any, Any], error: BaseException | None) -> bool:
        """Whether a failure ends the message, or makes a dead letter of it."""
        timed_out = isinstance(error, (TimeLimitExceeded, SoftTimeLimitExceeded))
        own = task.acks_on_timeout if timed_out else task.acks_on_failure
        return bool(task.acks_on_failure_or_timeout if own is None else own)

    def _record(self, task: Task[Any, Any], request: Request, outcome: Outcome) -> Record | None:
        state, error = outcome.state, outcome.error
        if state == states.REJECTED and not outcome.requeue:  # a dead letter: nobody should wait for it for ever
            state, error = states.FAILURE, Reject(outcome.reason)
        if state in (states.IGNORED, states.REJECTED):
            return None
        if request.ignore_result and not (state == states.FAILURE and self._stores_errors(task)):
            return None
        message = request.message
        result = outcome.encoded if outcome.encoded is not None else Raw(b"null")
        if error is not None:
            result = encode_exception(error)
        return Record(
            task_id=message.id,
            status=state,
            result=result,
            traceback=outcome.traceback,
            date_done=datetime.now(UTC) if state in states.READY_STATES else None,
            children=request.children_as_tuples(),
            name=message.task,
            args=message.argsrepr if message.joined is None else short_repr(request.args),
            kwargs=message.kwargsrepr,
            worker=self.hostname,
            queue=message.queue,
            retries=message.retries,
            root_id=message.root_id,
            parent_id=message.parent_id,
            group_id=message.group,
            attempts=[*message.attempts, self._attempt(outcome)],
        )

    def _stores_errors(self, task: Task[Any, Any]) -> bool:
        own = task.store_errors_even_if_ignored
        return self.settings.task_store_errors_even_if_ignored if own is None else own

    def _attempt(self, outcome: Outcome) -> Attempt:
        return Attempt(
            worker=self.hostname,
            started_at=outcome.started_at,
            runtime_seconds=outcome.runtime_seconds,
            state=outcome.state,
            error="" if outcome.error is None else _shown(outcome.error),
        )

    def _log(self, request: Request, outcome: Outcome) -> None:
        match outcome.state:
            case states.SUCCESS:
                if logger.isEnabledFor(logging.INFO):
                    logger.info("Task %s[%s] succeeded in %.6gs: %.200r", request.task, request.id, outcome.runtime_seconds, outcome.value)
            case states.PAUSED if outcome.pause is not None:
                logger.info("Task %s[%s] waits at step %r", request.task, request.id, outcome.pause.step)
            case states.RETRY:
                logger.info("Task %s[%s] retry: %s", request.task, request.id, outcome.retry)
            case states.FAILURE if outcome.expected:
                logger.info("Task %s[%s] raised expected: %s", request.task, request.id, _shown(outcome.error))
            case states.FAILURE:
                logger.error(
                    "Task %s[%s] raised unexpected: %s\n%s", request.task, request.id, _shown(outcome.error), outcome.traceback or ""
                )
            case states.REVOKED | states.IGNORED | states.REJECTED:
                logger.info("Task %s[%s] %s: %s", request.task, request.id, outcome.state.lower(), outcome.reason)
            case _:
                pass


def _shown(error: BaseException | None) -> str:
    try:
        return repr(error)[:500]
    except Exception as problem:
        return f"{type(error).__name__}, whose repr() raises {type(problem).__name__}"


_NOTHING_FOLLOWS = Advance()


def _has_followers(request: Request, outcome: Outcome) -> bool:
    """Whether anything comes of this task's end but its own record."""
    return request.message.join is not None or outcome.replaced_by is not None or _goes_on(request)


def _goes_on(request: Request) -> bool:
    """Whether its message or its run names something that comes after it."""
    get = request.embed.get
    return bool(get("callbacks") or get("errbacks") or get("chain") or request.additions)


def _left(message: Message, verdict: Verdict, changed: Message | None) -> str | None:
    """The join whose results this message does not need any more."""
    if verdict is Verdict.DONE or (verdict is Verdict.RETRY and changed is not None and changed.joined is None):
        return message.joined
    return None


def _released(delivery: Delivery, pause_seconds: float) -> Settlement:
    return Settlement(id=delivery.id, verdict=Verdict.RELEASED, lease=delivery.lease, receipt=delivery.receipt, delay_seconds=pause_seconds)


def _dead_letter(delivery: Delivery, reason: str, record: Record) -> Settlement:
    return Settlement(id=delivery.id, verdict=Verdict.DEAD, lease=delivery.lease, receipt=delivery.receipt, reason=reason, record=record)


def _failure(task_id: str, message: Message | None, error: BaseException, hostname: str, state: str = states.FAILURE) -> Record:
    """The record of a task that never ran."""
    return Record(
        task_id=task_id,
        status=state,
        result=encode_exception(error),
        date_done=datetime.now(UTC),
        name=message.task if message else None,
        args=message.argsrepr if message else None,
        kwargs=message.kwargsrepr if message else None,
        worker=hostname,
        retries=message.retries if message else 0,
        attempts=message.attempts if message else [],
    )
