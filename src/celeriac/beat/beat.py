"""Beat: looks what is due, by the engine's clock, says what becomes of it, and sleeps until the next.

    due → decide (planning.py) → fire: claimed, written into the ledger and published in one step → sleep

It holds nothing that matters: where an entry stands is in the engine. So any number of beats may run, on any machines, and be killed, stopped or resumed at any moment; a
claim that came too late, because another beat made it or somebody changed the entry meanwhile, changes nothing. Its own clock only measures how long it sleeps.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..app import Celeriac
from ..contracts.schedules import Entry, EntryState, Firing, LedgerLine, Overlap
from ..core import events, states
from ..core.errors import CeleriacError, EngineUnavailable, EnqueueError, ImproperlyConfigured
from ..core.message import Message
from ..core.schedules.data import from_data
from ..core.trouble import Trouble
from ..tasks.entries import fire, occurrence_message, publish_kept, timetable
from .entries import take_over
from .planning import Decision, Sending, decide

logger = logging.getLogger("celeriac.beat")

LOOK_SECONDS = 1.0
"""How often a beat looks for what others have changed, when nothing is due."""
MOST_SECONDS = 5.0
"""No setting makes it look less often: within this time a change takes effect."""
BATCH = 500
"""How many entries one step fires."""
UNKNOWN_SECONDS = 5.0
"""So long an entry is left to those who know its schedule."""
BROKEN_SECONDS = 60.0
"""So long an entry is left alone whose schedule or call raised an error."""
LEFT_BEHIND_SECONDS = 2.0
"""A message that was claimed, and that nobody has published for so long, lost its beat in between."""
PRUNE_EVERY_SECONDS = 60.0
PRUNE_LIMIT = 5000


def run_beat(app: Celeriac, *, max_interval_seconds: float | None = None, embedded: bool = False) -> int:
    """Runs a beat until it is told to stop: TERM, INT or QUIT. Returns the exit code of the program.

    Raises: ImproperlyConfigured: an entry of the settings makes no sense, or the engine keeps no schedules.
    """
    beat = Beat(app, max_interval_seconds=max_interval_seconds)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(signum, lambda *_: beat.stop())
    if embedded:
        events.beat_embedded_init.send(sender=beat)
    logger.info("beat: Starting...")
    try:
        beat.run()
    finally:
        app.close()
    logger.info("beat: Stopped.")
    return 0


class Beat:
    """One beat of an app. `run` until `stop`."""

    def __init__(self, app: Celeriac, *, max_interval_seconds: float | None = None) -> None:
        self.app = app
        self.store = app.schedule_store
        self.producer = app.producer
        wanted = max_interval_seconds or app.conf.beat_max_loop_interval or LOOK_SECONDS
        self.max_interval_seconds = min(wanted, MOST_SECONDS)
        self._stopped = False
        self._alarm: tuple[int, int] | None = None
        """A pipe that `run` sleeps on: a signal handler may write to it at any moment, as it may not to a lock."""
        self._trouble = Trouble(logger, "The engine")
        self._own: dict[str, Any] = {}
        self._begun = False
        self._next_prune = 0.0
        self._next_rescue = 0.0
        # Schedules hold no state, so that entries with the same one share it.
        self._schedule = lru_cache(4096)(lambda text: from_data(text, app))

    # -- the life of a beat --------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`. An engine that is away is waited for."""
        self._alarm = os.pipe()
        try:
            while not self._stopped:
                try:
                    self.begin()
                    pause = self.tick()
                    self._trouble.over()
                except (EngineUnavailable, EnqueueError, OSError) as problem:
                    self._trouble.seen(problem)
                    pause = self.max_interval_seconds
                if pause > 0:
                    select.select([self._alarm[0]], (), (), pause)
        finally:
            alarm, self._alarm = self._alarm, None
            for end in alarm:
                os.close(end)

    def stop(self) -> None:
        """Ends `run` after the step it is at. May be called by a signal handler, and from any thread."""
        self._stopped = True
        if self._alarm is not None:
            os.write(self._alarm[1], b"!")

    def begin(self) -> None:
        """Once: the entries of the settings are in the engine afterwards."""
        if not self._begun:
            self._own = take_over(self.app, self.store)
            self._begun = True
            events.beat_init.send(sender=self)

    def tick(self) -> float:
        """Fires what is due. Returns in how many seconds to look again; 0 when there may be more."""
        due = self.store.due(BATCH)
        if due.states:
            self._fire(due.states, due.now)
        self._keep_house()
        if due.states:
            return 0.0
        if due.next_due_at is None:
            return self.max_interval_seconds
        return min(self.max_interval_seconds, max(0.0, due.next_due_at - due.now))

    # -- what is due -----------------------------------------------------------------------------------------------------

    def _fire(self, due: Sequence[EntryState], now: float) -> None:
        running = self._still_running(due, now)
        firings = [self._firing(state, now, state.last_message_id in running) for state in due]
        refused = set(fire(self.store, self.producer, firings))
        for firing in firings:
            if firing.name in refused:
                logger.debug("Scheduler: %s was taken by another beat, or has just been changed.", firing.name)
                continue
            for message in firing.messages:
                logger.info("Scheduler: Sending due task %s (%s)", firing.name, message.task)
            for line in firing.lines:
                if line.outcome != "sent":
                    level = logging.INFO if line.why in _USUAL else logging.WARNING
                    logger.log(level, "Scheduler: %s is not sent%s: %s", firing.name, _how_often(line), line.why)

    def _firing(self, state: EntryState, now: float, running: bool) -> Firing:
        if state.entry is None:
            return _given_up(state, now, state.error)
        try:
            return self._decided(state, state.entry, now, running)
        except _Unreadable as problem:
            return _given_up(state, now, str(problem))
        except _Unknown:
            return _unchanged(state, now + UNKNOWN_SECONDS)
        except Exception as problem:
            logger.exception("It cannot be told when the entry %r comes; it is left alone for %g s.", state.name, BROKEN_SECONDS)
            return _left_alone(state, now, f"{type(problem).__name__}: {problem}")

    def _decided(self, state: EntryState, entry: Entry, now: float, running: bool) -> Firing:
        decision = decide(state, entry, timetable(entry, self._schedule_of(entry)), now, running=running)
        lines, messages = [], []
        for sending in decision.sendings:
            message = self._message(entry, sending, now, decision)
            if message is not None:
                lines.append(_sent(entry, sending, message))
                messages.append(message)
        if messages and decision.cancels and state.last_message_id is not None:
            # First this: whoever dies in between leaves the occurrence to the next beat, and nothing runs beside it.
            self._cancel(state.last_message_id, entry)
        return Firing(
            name=state.name,
            version=state.version,
            planned_at=decision.planned_at,
            due_at=decision.due_at,
            queued_at=decision.queued_at,
            lines=[*decision.lines, *lines],
            messages=messages,
        )

    def _schedule_of(self, entry: Entry) -> Any:
        try:
            return self._schedule(entry.schedule)
        except LookupError:
            own = self._own.get(entry.name)
            if own is None:
                raise _Unknown from None
            return own
        except ImproperlyConfigured as problem:
            logger.error("The entry %r is left to other beats: %s", entry.name, problem)
            raise _Unknown from None
        except ValueError as problem:
            raise _Unreadable(f"its schedule cannot be read: {problem}") from None

    def _message(self, entry: Entry, sending: Sending, now: float, decision: Decision) -> Message | None:
        try:
            return occurrence_message(self.producer, self.app.tasks.get, entry, sending.planned_at, now)
        except (CeleriacError, ValueError, TypeError) as problem:
            decision.leave_out(sending, f"cannot be sent: {problem}")
            return None

    # -- overlaps ----------------------------------------------------------------------------------------------------------

    def _still_running(self, due: Sequence[EntryState], now: float) -> set[str]:
        """The last messages of these entries that have not ended, where it matters."""
        watched = [state for state in due if state.entry is not None and state.entry.overlap is not Overlap.ALLOW]
        ids = [state.last_message_id for state in watched if state.last_message_id is not None]
        if not ids:
            return set()
        broker = self.app.broker
        if broker.capabilities.ids:
            return {id for id, waiting in broker.find(ids).items() if waiting.state != "dead"}
        # This broker does not know messages by their ids; their records tell when they have ended.
        records = self.app.backend.fetch(ids)
        expires = self.app.conf.result_expires or float("inf")
        return {
            state.last_message_id
            for state in watched
            if state.last_message_id is not None
            and now - (state.last_run_at or now) < expires
            and (state.last_message_id not in records or records[state.last_message_id].status not in states.READY_STATES)
        }

    def _cancel(self, id: str, entry: Entry) -> None:
        self.app.control.revoke_ids([id], terminate=True)
        logger.info("Scheduler: %s: the task before (%s) is stopped.", entry.name, id)

    # -- upkeep ------------------------------------------------------------------------------------------------------------

    def _keep_house(self) -> None:
        now = time.monotonic()
        if not self.producer.broker.capabilities.schedules and now >= self._next_rescue:
            publish_kept(self.store, self.producer, older_than_seconds=LEFT_BEHIND_SECONDS)
            self._next_rescue = now + LEFT_BEHIND_SECONDS
        keep_seconds = self.app.conf.beat_ledger_expires
        if keep_seconds and now >= self._next_prune:
            full = self.store.prune(keep_seconds, limit=PRUNE_LIMIT) == PRUNE_LIMIT
            self._next_prune = now + (LOOK_SECONDS if full else PRUNE_EVERY_SECONDS)


class _Unknown(Exception):
    """This beat cannot tell the schedule; another may."""


class _Unreadable(Exception):
    """Nobody can."""


_USUAL = ("paused", "overlap", "misfire", "misfire window", "expired")
"""Reasons that a policy gives; others are somebody's mistake."""

# -- firings ---------------------------------------------------------------------------------------------------------------


def _sent(entry: Entry, sending: Sending, message: Message) -> LedgerLine:
    return LedgerLine(
        entry=entry.name,
        planned_at=sending.planned_at,
        due_at=sending.due_at,
        outcome="sent",
        why=sending.why,
        message_id=message.id,
    )


def _unchanged(state: EntryState, due_at: float | None, lines: Sequence[LedgerLine] = ()) -> Firing:
    return Firing(
        name=state.name, version=state.version, planned_at=state.planned_at, due_at=due_at, queued_at=state.queued_at, lines=lines
    )


def _given_up(state: EntryState, now: float, why: str) -> Firing:
    """Nobody looks at it again until somebody changes it."""
    return _unchanged(state, None, [LedgerLine(entry=state.name, planned_at=now, due_at=now, outcome="skipped", why=why)])


def _left_alone(state: EntryState, now: float, why: str) -> Firing:
    """It is tried again later; what was planned meanwhile is then judged as missed."""
    line = LedgerLine(entry=state.name, planned_at=now, due_at=now, outcome="skipped", why=why)
    return _unchanged(state, now + BROKEN_SECONDS, [line])


def _how_often(line: LedgerLine) -> str:
    return f" ({line.occurrences} times)" if line.occurrences > 1 else ""
