"""Why a task is not running, or what became of it: the exact reason, as data and as sentences.

    why(app, id)  →  where is the message?  dead letter · held by a node · not due · ready
                     else what says its record?  done · failed · revoked · unfinished
                     else what can be said of an id that nobody knows?

Reads only; it may ask the one node that holds the task since when it runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

from msgspec import Struct

from ..contracts.inspect import Depth, Waiting
from ..contracts.mailbox import Node
from ..contracts.steps import Step, Steps
from ..core import states
from ..core.message import Attempt, Message, Record
from ..core.serialize import decode_exception, decode_value
from ..core.settings import mask_url
from .control import Control, ControlledApp

__all__ = ["Explanation", "duration_in_words", "moment_in_words", "why"]


class Explanation(Struct, frozen=True, kw_only=True):
    """What is known of one task."""

    id: str
    state: str
    """unknown, scheduled, waiting, reserved, running, dead, succeeded, failed, revoked, unfinished."""
    reasons: list[str]
    """Machines' words for it, the weightiest first: not-due, retrying, sleeping, awaiting-event, queue-paused, no-worker, unknown-task, given-back, in-line, next, expired, …"""
    sentences: list[str]
    """The same for people; each says what to do where something can be done."""
    task: str | None = None
    queue: str | None = None
    facts: dict[str, Any] = {}
    """The figures behind the sentences: due_at, ahead, paused_by, node, pid, crashes, error, …"""

    def __str__(self) -> str:
        return "\n".join(self.sentences)


def why(app: ControlledApp, id: str, *, ask_node: bool = True, timeout_seconds: float = 1.0) -> Explanation:
    """The exact reason why task `id` is not running, or what became of it.

    With `ask_node`, a node that holds the task is asked for at most `timeout_seconds` whether and since when it runs; and, as long, so
    are all nodes about a task that has begun and is held by none.
    """
    waiting = app.broker.find([id]).get(id)
    record = _record(app, id)
    if waiting is None:
        return _finished(app, id, record, timeout_seconds) if record is not None else _unheard_of(app, id)
    story = _Story(app, waiting, record)
    if waiting.state == "dead":
        return story.dead()
    if waiting.state == "leased":
        return story.held(timeout_seconds if ask_node else None)
    return story.waiting()


class _Story:
    """A message that the engine holds, told from its state."""

    def __init__(self, app: ControlledApp, waiting: Waiting, record: Record | None) -> None:
        self.app = app
        self.where = waiting
        self.message = waiting.message
        self.record = record
        self.now = app.broker.now()
        self.reasons: list[str] = []
        self.sentences: list[str] = []
        self.facts: dict[str, Any] = {}

    def told(self, state: str) -> Explanation:
        return Explanation(
            id=self.where.id,
            state=state,
            reasons=self.reasons,
            sentences=self.sentences,
            task=self.message.task if self.message is not None else None,
            queue=self.where.queue,
            facts=self.facts,
        )

    def say(self, reason: str, sentence: str, **facts: Any) -> None:
        if reason:
            self.reasons.append(reason)
        self.sentences.append(sentence)
        self.facts.update(facts)

    def named(self) -> str:
        return f"'{self.message.task}'" if self.message is not None else "The message (it cannot be decoded)"

    # -- one method for each place a message can be in ------------------------------------------------------------

    def dead(self) -> Explanation:
        where = self.where
        since = f" since {moment_in_words(where.died_at)}" if where.died_at else ""
        self.say(
            "dead",
            f"{self.named()} is a dead letter of queue '{where.queue}'{since}: {where.reason or 'no reason was given'}.",
            cause=where.reason,
            died_at=where.died_at,
            crashes=where.crashes,
        )
        self._say_attempts()
        if self.record is not None and self.record.status in states.READY_STATES:
            self.sentences.append(f"Its result says {self.record.status}.")
            self.facts["status"] = self.record.status
        self.sentences.append(f"`celeriac dead replay {where.id}` runs it again; `celeriac dead discard {where.id}` throws it away.")
        return self.told("dead")

    def held(self, timeout_seconds: float | None) -> Explanation:
        where = self.where
        node = next((node for node in self.app.broker.nodes() if node.id == where.node), None)
        if node is None or node.lease_left_seconds <= 0:
            self._say_holder_lost(node)
            return self.told("reserved")
        self.facts.update(node=node.name, process=where.process, waiting_since=where.waiting_since)
        state, info = self._asked(node, timeout_seconds)
        if state in ("reserved", "scheduled", "ready"):
            self.say(
                "reserved",
                f"{self.named()} was taken by {node.name}, which runs something else first; it starts as soon as a slot there is free.",
            )
            self._say_attempts()
            return self.told("reserved")
        pid = info.get("worker_pid")
        started_at = info.get("time_start") or self._recorded_start()
        process = f"process {pid}" if pid else f"process number {where.process}"
        since = f" since {moment_in_words(started_at)} ({duration_in_words(self.now - started_at)})" if started_at else ""
        self.say("running", f"{self.named()} is running on {node.name}, {process}{since}.", pid=pid, started_at=started_at)
        if state is None and timeout_seconds is not None:
            self.sentences.append(f"{node.name} did not say more within {timeout_seconds:g} s; it may also wait there behind another task.")
        if self.record is not None and self.record.status not in states.ALL_STATES:
            meta = _shortened(decode_value(self.record.result))
            self.say("", f"It says of itself: {self.record.status} {meta}.", status=self.record.status)
        self._say_attempts()
        return self.told("running")

    def waiting(self) -> Explanation:
        if self.message is not None and self.message.expires is not None and self.message.expires.timestamp() <= self.now:
            moment = moment_in_words(self.message.expires.timestamp())
            self.say("expired", f"{self.named()} expired at {moment}: it will be revoked, not run, when its turn comes.")
        if self.message is not None and self.message.doom is not None:
            self.say("doomed", f"{self.named()} was killed; the next worker process concludes it with {_error_of(self.message.doom)}.")
        not_due = self.where.state == "scheduled" and (self.where.due_at is None or self.where.due_at > self.now)
        # A retry counts interruptions anew, so what waits with one was given back for a while, by a worker that could not run it.
        given_back = not_due and self.where.interruptions > 0
        if given_back:
            self._say_obstacles(then=True)
            self._say_given_back()
        elif not_due:
            self._say_not_due()
        self._say_attempts()
        if not given_back:
            self._say_obstacles(then=not_due)
        return self.told("scheduled" if not_due else "waiting")

    # -- the steps ---------------------------------------------------------------------------------------------

    def _say_not_due(self) -> None:
        wait = self._wait()
        if wait is not None:
            self._say_wait(wait)
            return
        due_at = self.where.due_at or 0.0
        when = f"{moment_in_words(due_at)}, in {duration_in_words(due_at - self.now)}"
        tries = self.message.retries if self.message is not None else 0
        self.facts.update(due_at=due_at, due_in_seconds=due_at - self.now)
        if tries:
            self.say("retrying", f"{self.named()} waits for its retry number {tries}, which is due {when}.", retries=tries)
        else:
            self.say("not-due", f"{self.named()} is not due yet: it may start {when}.")

    def _wait(self) -> Step | None:
        """The durable step at which it waits, if it does."""
        if not self.app.broker.capabilities.steps:
            return None
        steps = cast("Steps", self.app.broker).recall(self.where.id).values()
        return next((step for step in steps if step.result is None and step.until == self.where.due_at), None)

    def _say_wait(self, wait: Step) -> None:
        limit = "" if wait.until is None else f"{moment_in_words(wait.until)}, in {duration_in_words(wait.until - self.now)}"
        facts = {"step": wait.name, "event": wait.event, "due_at": wait.until}
        if wait.event is None:
            self.say("sleeping", f"{self.named()} sleeps at its step {wait.name!r} until {limit}.", **facts)
        else:
            at_most = f" It waits until {limit}, and no longer." if limit else ""
            self.say(
                "awaiting-event",
                f"{self.named()} waits for the event {wait.event!r}: `app.occur({wait.event!r}, …)` lets it go on.{at_most}",
                **facts,
            )

    def _say_given_back(self) -> None:
        due_at = self.where.due_at or 0.0
        self.say(
            "given-back",
            f"{self.named()} was given back by a worker that could not run it; it is offered again in {duration_in_words(due_at - self.now)}.",
            due_at=due_at,
        )

    def _say_attempts(self) -> None:
        attempts: Sequence[Attempt] = self.message.attempts if self.message is not None else ()
        if attempts:
            last = attempts[-1]
            count = f"{len(attempts)} {_plural('time', len(attempts))}"
            error = f": {last.error}" if last.error else f" ({last.state})"
            self.say(
                "",
                f"It was tried {count} before; the last try, on {last.worker} at {moment_in_words(last.started_at.timestamp())}, "
                f"ended after {duration_in_words(last.runtime_seconds)}{error}.",
                attempts=len(attempts),
                last_error=last.error,
            )
        if self.where.crashes and self.where.state != "dead":
            count = f"{self.where.crashes} {_plural('process', self.where.crashes)}"
            self.say("", f"{count} died while running it.", crashes=self.where.crashes)
        if self.where.interruptions and self.where.state != "dead":
            count = f"{self.where.interruptions} {_plural('time', self.where.interruptions)}"
            self.say(
                "", f"It was given back {count} by a worker that stopped or had other work first.", interruptions=self.where.interruptions
            )

    def _say_obstacles(self, then: bool) -> None:
        """What keeps a ready message from running; for a scheduled one, what would."""
        queue = self.where.queue
        depth = self.app.broker.depth([queue]).get(queue, Depth())
        nodes = self.app.broker.nodes()
        live = [node for node in nodes if node.lease_left_seconds > 0]
        consumers = [node for node in live if queue in node.queues]
        blocked = False
        if depth.paused_by is not None:
            blocked = True
            self.say(
                "queue-paused",
                f"Queue '{queue}' is paused by {depth.paused_by}; `celeriac queues resume {queue}` lets it go on.",
                paused_by=depth.paused_by,
            )
        if not consumers:
            blocked = True
            self.say("no-worker", _nobody_consumes(queue, nodes, live), live_nodes=[node.name for node in live])
        elif self.message is not None and not any(self.message.task in node.tasks for node in consumers):
            blocked = True
            self.say("unknown-task", _nobody_knows(self.message, queue, consumers, live), consumers=[node.name for node in consumers])
        if then:
            return
        ahead = self.where.ahead
        slots = sum(node.concurrency for node in consumers)
        taken = f", and {depth.leased} are taken now" if depth.leased is not None else ""
        running = f"; the workers of this queue run up to {slots} at once{taken}" if slots else ""
        if ahead:
            self.say("in-line", f"{ahead} {_plural('message', ahead)} of queue '{queue}' {_are(ahead)} ahead of it{running}.", ahead=ahead)
        elif not blocked and "expired" not in self.reasons:
            age = self.now - self.where.waiting_since if self.where.waiting_since else 0.0
            self.say(
                "next", f"{self.named()} is next in line in queue '{queue}', where it waits for {duration_in_words(age)}{running}.", ahead=0
            )
        self.facts["waiting_since"] = self.where.waiting_since

    def _say_holder_lost(self, node: Node | None) -> None:
        name = node.name if node is not None else "a worker that is gone"
        others = [other for other in self.app.broker.nodes() if other.lease_left_seconds > 0]
        rescue = (
            f"{others[0].name} gives it to a live process within seconds."
            if others
            else "No worker is alive to take it over: start one, and it runs again at once."
        )
        silent = (
            f", which has not been heard of since its lease ended {duration_in_words(-node.lease_left_seconds)} ago"
            if node is not None
            else ""
        )
        self.say("holder-lost", f"{self.named()} is held by {name}{silent}. {rescue}", node=node.name if node is not None else None)
        self._say_attempts()

    def _asked(self, node: Node, timeout_seconds: float | None) -> tuple[str | None, dict[str, Any]]:
        if timeout_seconds is None:
            return None, {}
        answer = Control(self.app).inspect(destination=[node.name], timeout=timeout_seconds).query_task(self.where.id)
        found = (answer or {}).get(node.name)
        entry = found.get(self.where.id) if isinstance(found, dict) else None
        if not entry:
            return None, {}
        state, info = entry[0], entry[1]
        return str(state), info if isinstance(info, dict) else {}

    def _recorded_start(self) -> float | None:
        record = self.record
        started = record is not None and record.status == states.STARTED and record.date_done is not None
        return record.date_done.timestamp() if started and record is not None and record.date_done is not None else None


# -- not in the engine any more ----------------------------------------------------------------------------------


def _finished(app: ControlledApp, id: str, record: Record, timeout_seconds: float) -> Explanation:
    name = f"'{record.name}'" if record.name else "The task"
    when = f" at {moment_in_words(record.date_done.timestamp())}" if record.date_done else ""
    where = f" on {record.worker}" if record.worker else ""
    facts: dict[str, Any] = {"status": record.status, "worker": record.worker, "retries": record.retries, "attempts": len(record.attempts)}
    sentences: list[str] = []
    if record.status == states.SUCCESS:
        state, reason = "succeeded", "succeeded"
        sentences.append(f"{name} succeeded{where}{when}{_took(record)}.")
    elif record.status == states.FAILURE:
        state, reason = "failed", "failed"
        facts["error"] = _error_of(record.result)
        sentences.append(f"{name} failed{where}{when}{_took(record)}: {facts['error']}.")
        if record.traceback:
            sentences.append(f"`celeriac result --traceback {id}` shows where.")
    elif record.status == states.REVOKED:
        state = "revoked"
        word = _first_word(record)
        reason = "expired" if word == "expired" else "revoked"
        facts["cause"] = word
        done = {"expired": "expired before it was started", "terminated": "was terminated while it ran"}.get(
            word, "was revoked before it ran"
        )
        sentences.append(f"{name} {done}{when}.")
    else:
        return _unfinished(app, id, record, name, facts, timeout_seconds)
    if record.retries:
        sentences.append(f"It was retried {record.retries} {_plural('time', record.retries)}.")
    return Explanation(id=id, state=state, reasons=[reason], sentences=sentences, task=record.name, queue=record.queue, facts=facts)


def _unfinished(app: ControlledApp, id: str, record: Record, name: str, facts: dict[str, Any], timeout_seconds: float) -> Explanation:
    """A record without an end, and no message: it was acknowledged before it ran (`acks_late=False`), or the message is lost to a purge."""
    answers = Control(app).inspect(timeout=timeout_seconds).query_task(id) or {}
    for node, found in answers.items():
        if isinstance(found, dict) and found.get(id):
            facts["node"] = node
            sentence = f"{name} is running on {node}; it was acknowledged before it started, so only that node knows of it."
            return Explanation(
                id=id, state="running", reasons=["running"], sentences=[sentence], task=record.name, queue=record.queue, facts=facts
            )
    when = f" since {moment_in_words(record.date_done.timestamp())}" if record.date_done else ""
    where = f" on {record.worker}" if record.worker else ""
    sentences = [
        f"{name} is in state {record.status}{where}{when}, but no queue holds it and no live worker has it.",
        "Either its message was purged, or it was acknowledged before it ran (`acks_late=False`) and its process died: then it is not run again.",
    ]
    return Explanation(id=id, state="unfinished", reasons=["lost"], sentences=sentences, task=record.name, queue=record.queue, facts=facts)


def _unheard_of(app: ControlledApp, id: str) -> Explanation:
    if id in app.broker.revoked():
        sentences = ["It is revoked: no queue holds it, and should it come yet, it will be dropped."]
        return Explanation(id=id, state="revoked", reasons=["revoked"], sentences=sentences)
    engine = f"No queue of {mask_url(app.broker.url)} holds a task '{id}', and no result of it is kept."
    made_at = _made_at(id)
    keep_seconds = _result_expires_seconds(app.conf)
    now = app.broker.now()
    if made_at is not None and keep_seconds is not None and made_at < now - keep_seconds:
        facts = {"made_at": made_at, "result_expires_seconds": keep_seconds}
        sentence = (
            f"Its id was made at {moment_in_words(made_at)}, and results are kept for {duration_in_words(keep_seconds)} (`result_expires`): "
            "if it ran, its result has expired."
        )
        return Explanation(id=id, state="unknown", reasons=["result-expired"], sentences=[engine, sentence], facts=facts)
    sentences = [engine]
    if not _keeps_results(app):
        sentences[0] = f"No queue of {mask_url(app.broker.url)} holds a task '{id}', and results are not kept at all (`result_backend`)."
    facts = {}
    if made_at is not None and made_at <= now + 60:
        facts["made_at"] = made_at
        sentences.append(f"Its id was made {duration_in_words(now - made_at)} ago.")
    sentences.append(
        "So it was sent to another engine (compare `broker_url` where it is sent), or has run with `ignore_result`, was purged, "
        "or its result was forgotten; or the id is mistyped."
    )
    return Explanation(id=id, state="unknown", reasons=["unknown"], sentences=sentences, facts=facts)


def _record(app: ControlledApp, id: str) -> Record | None:
    return app.backend.fetch([id]).get(id) if _keeps_results(app) else None


def _keeps_results(app: ControlledApp) -> bool:
    return not str(app.backend.url).startswith("disabled")


def _made_at(id: str) -> float | None:
    """When an id of version 7 was made: its first 48 bits are milliseconds."""
    digits = id.replace("-", "")
    if len(id) != 36 or len(digits) != 32 or digits[12] != "7":
        return None
    try:
        made_at = int(digits[:12], 16) / 1000
    except ValueError:
        return None
    return made_at if 1_577_836_800 < made_at < time.time() + 31_536_000 else None


def _result_expires_seconds(conf: Any) -> float | None:
    """`result_expires` as seconds, None when results are kept for ever; settings may hold a timedelta."""
    value = conf.result_expires
    if not value:
        return None
    return float(value.total_seconds()) if hasattr(value, "total_seconds") else float(value)


# -- sentences ---------------------------------------------------------------------------------------------------


def _nobody_consumes(queue: str, nodes: Sequence[Node], live: Sequence[Node]) -> str:
    start = f"Start one: `celeriac -A … worker -Q {queue}`."
    if live:
        which = "; ".join(f"{node.name} consumes {', '.join(node.queues) or 'nothing'}" for node in live[:5])
        return f"No live worker consumes queue '{queue}' ({which}). {start}"
    silent = [node for node in nodes if queue in node.queues]
    if silent:
        last = max(silent, key=lambda node: node.lease_left_seconds)
        return f"No worker is alive. {last.name} consumed queue '{queue}'; its lease ran out {duration_in_words(-last.lease_left_seconds)} ago. {start}"
    return f"No worker is alive. {start}"


def _nobody_knows(message: Message, queue: str, consumers: Sequence[Node], live: Sequence[Node]) -> str:
    if len(consumers) == 1:
        text = f"{consumers[0].name}, the only live worker of queue '{queue}', does not know task '{message.task}'"
    else:
        text = f"None of the {len(consumers)} live workers of queue '{queue}' knows task '{message.task}'"
    elsewhere = [node for node in live if message.task in node.tasks]
    if elsewhere:
        return f"{text}. {elsewhere[0].name} does, but does not consume queue '{queue}'."
    return f"{text}. It waits for one that does: deploy the code there and restart the workers, or check the task's name."


def _took(record: Record) -> str:
    return f" after {duration_in_words(record.attempts[-1].runtime_seconds)}" if record.attempts else ""


def _first_word(record: Record) -> str:
    error = decode_exception(record.result)
    return str(error.args[0]) if error.args else ""


def _error_of(result: Any) -> str:
    """`KeyError('x')`, from an exception as data."""
    if isinstance(result, dict):
        from msgspec import json

        result = json.encode(result)
    return _shortened(decode_exception(result))


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:297]}…"


def _plural(noun: str, count: int) -> str:
    if count == 1:
        return noun
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def moment_in_words(seconds: float) -> str:
    """`2026-01-31 12:00:00 UTC`."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (OverflowError, ValueError, OSError):
        return f"{seconds:g} s after 1970"


def duration_in_words(seconds: float) -> str:
    """The two largest units that matter: `0.3 s`, `42 s`, `3 min 20 s`, `2 h 5 min`, `12 days 3 h`."""
    seconds = max(0.0, seconds)
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms"
    whole = int(seconds)
    for unit_seconds, unit, part_seconds, part in ((86400, "days", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit_seconds:
            count, rest = divmod(whole, unit_seconds)
            name = "day" if unit == "days" and count == 1 else unit
            return f"{count} {name} {rest // part_seconds} {part}" if rest // part_seconds else f"{count} {name}"
    return f"{whole} s"
