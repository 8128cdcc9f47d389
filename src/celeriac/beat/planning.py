"""What is to become of the occurrences of an entry that are due: pure functions of its state and of the engine's clock.

planned anew, or paused until now  →  missed while nobody was there  →  expired  →  the one before still runs  →  enough runs  →  the next
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from ..contracts.schedules import Entry, EntryState, LedgerLine, Misfire, Overlap
from ..core.schedules.timetable import Timetable

MOST_AT_ONCE = 200
"""So many occurrences of one entry are sent in one step; the others follow in the next."""
WINDOW_SECONDS = 86400.0
"""How far back `Misfire.ALL` goes when the entry does not say."""
LOOK_AGAIN_SECONDS = 1.0
"""How often a beat looks whether a queued occurrence may be sent."""


class Sending(Struct, frozen=True):
    """An occurrence that is to be sent."""

    planned_at: float
    due_at: float
    why: str = ""


class Decision(Struct, kw_only=True):
    """What comes of an entry now."""

    name: str
    planned_at: float | None
    """The next occurrence."""
    due_at: float | None = None
    queued_at: float | None = None
    sendings: list[Sending] = []
    lines: list[LedgerLine] = []
    """Of those that are not sent."""
    cancels: bool = False
    """The task of the occurrence before is to be stopped first."""

    def leave_out(self, sending: Sending, why: str, *, outcome: str = "skipped", last: float | None = None, occurrences: int = 1) -> None:
        """A line for an occurrence that is not sent, or for all from it to the one at `last`."""
        line = LedgerLine(
            entry=self.name,
            planned_at=sending.planned_at,
            due_at=sending.due_at,
            outcome=outcome,
            why=why,
            occurrences=occurrences,
            until=last if occurrences > 1 else None,
        )
        self.lines.append(line)


def decide(state: EntryState, entry: Entry, table: Timetable, now: float, *, running: bool) -> Decision:
    """`running`: the task of the occurrence that was sent last has not ended (only asked for where an overlap is not allowed)."""
    decision = Decision(name=state.name, planned_at=state.planned_at, queued_at=state.queued_at)
    if state.planned_at is None and state.due_at == 0 and state.queued_at is None:
        decision.planned_at = _planned_anew(state, table, now)
    elif state.resumed:
        _pass_over(decision, table, now, "paused")
    due = [sending for sending in _caught_up(decision, entry, table, now) if not _has_expired(decision, entry, sending, now)]
    _OVERLAPS[entry.overlap](decision, due, running)
    _end_after_the_last(decision, entry, state)
    if decision.planned_at is not None:
        decision.due_at = table.due_at(decision.planned_at)
    if decision.queued_at is not None:
        decision.due_at = min(now + LOOK_AGAIN_SECONDS, decision.due_at or now + LOOK_AGAIN_SECONDS)
    return decision


def _planned_anew(state: EntryState, table: Timetable, now: float) -> float | None:
    found = table.first(now)
    if found is not None and state.last_planned_at is not None and found <= state.last_planned_at:
        return table.after(state.last_planned_at)
    return found


# -- missed ----------------------------------------------------------------------------------------------------------------


def _caught_up(decision: Decision, entry: Entry, table: Timetable, now: float) -> list[Sending]:
    """The occurrences that are due and to be sent, oldest first, as the entry's misfire policy has it; `decision` moves on to the one after them."""
    if decision.planned_at is None or decision.planned_at > now:
        return []
    # Waiting for the jitter belongs to the plan: it makes nobody late.
    in_time_from = now - entry.misfire_grace_seconds - entry.jitter_seconds
    window = entry.misfire_window_seconds
    missed, last_missed = table.until(decision.planned_at, in_time_from)
    if not missed:
        return _take(decision, table, now)
    if entry.misfire is Misfire.ALL:
        oldest = now - (WINDOW_SECONDS if window is None else window)
        _pass_over(decision, table, min(oldest, in_time_from), "misfire window")
        return _take(decision, table, now, in_time_from)
    following = table.after(last_missed)
    in_time = following is not None and following <= now and table.due_at(following) <= now
    if entry.misfire is Misfire.ONCE and not in_time:
        if window is None or last_missed >= now - window:
            _pass_over(decision, table, last_missed, "misfire")
            decision.planned_at = following
            return [Sending(last_missed, table.due_at(last_missed), "misfire")]
        _pass_over(decision, table, in_time_from, "misfire window")
    _pass_over(decision, table, in_time_from, "misfire")
    return _take(decision, table, now)


def _take(decision: Decision, table: Timetable, now: float, in_time_from: float = 0.0) -> list[Sending]:
    """Those that are due."""
    taken: list[Sending] = []
    for planned_at in table.occurrences(decision.planned_at):
        decision.planned_at = planned_at
        if planned_at > now or (due_at := table.due_at(planned_at)) > now or len(taken) == MOST_AT_ONCE:
            return taken
        taken.append(Sending(planned_at, due_at, "misfire" if planned_at < in_time_from else ""))
    decision.planned_at = None
    return taken


def _pass_over(decision: Decision, table: Timetable, end: float, why: str) -> None:
    """One line for all occurrences before `end`; what is planned comes after them."""
    first = decision.planned_at
    if first is None:
        return
    count, last = table.until(first, end)
    if count:
        decision.leave_out(Sending(first, table.due_at(first)), why, occurrences=count, last=last)
        decision.planned_at = table.after(last)


# -- limits ----------------------------------------------------------------------------------------------------------------


def _has_expired(decision: Decision, entry: Entry, sending: Sending, now: float) -> bool:
    if entry.expires_seconds is None or sending.planned_at + entry.expires_seconds > now:
        return False
    decision.leave_out(sending, "expired")
    return True


def _end_after_the_last(decision: Decision, entry: Entry, state: EntryState) -> None:
    if entry.max_runs is None:
        return
    left = max(0, entry.max_runs - state.total_run_count)
    del decision.sendings[left:]
    if len(decision.sendings) == left:
        decision.planned_at = decision.queued_at = None


# -- the one before still runs ---------------------------------------------------------------------------------------------


def _allow(decision: Decision, due: Sequence[Sending], running: bool) -> None:
    decision.queued_at = None
    decision.sendings.extend(due)


def _skip(decision: Decision, due: Sequence[Sending], running: bool) -> None:
    decision.queued_at = None
    for sending in due:
        if running:
            decision.leave_out(sending, "overlap")
        else:
            decision.sendings.append(sending)
            running = True


def _queue(decision: Decision, due: Sequence[Sending], running: bool) -> None:
    if decision.queued_at is not None and not running:
        decision.sendings.append(Sending(decision.queued_at, decision.queued_at, "overlap"))
        decision.queued_at, running = None, True
    for sending in due:
        if not running:
            decision.sendings.append(sending)
            running = True
        elif decision.queued_at is None:
            decision.leave_out(sending, "overlap", outcome="queued")
            decision.queued_at = sending.planned_at
        else:
            decision.leave_out(sending, "overlap")


def _cancel(decision: Decision, due: Sequence[Sending], running: bool) -> None:
    decision.queued_at = None
    for sending in due[:-1]:
        decision.leave_out(sending, "overlap")
    decision.sendings.extend(due[-1:])
    decision.cancels = running and bool(due)


_OVERLAPS = {Overlap.ALLOW: _allow, Overlap.SKIP: _skip, Overlap.QUEUE: _queue, Overlap.CANCEL: _cancel}
