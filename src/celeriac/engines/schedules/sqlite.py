"""Schedules in the engine's SQLite file: a row for each entry, one for each line of the ledger. A firing is one transaction, with the messages.

What comes due is found by an index, so that the cost of a look does not depend on how many entries there are. A trigger sees to rows that people change by SQL.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from ...contracts.schedules import Due, EntryState, Firing, LedgerLine, Planning
from ...core.message import Message
from ..sqlite import _Transaction
from .rows import DEFINITION, LINE, STATE, definition, line_of_row, row_of_line, state_of_row, when

if TYPE_CHECKING:
    from ...contracts.schedules import Schedules
    from ..sqlite import SQLiteEngine

NAMES_EACH = 500
"""How many names one query asks for; SQLite has a limit."""

_STATE = f"SELECT {', '.join(STATE)} FROM schedules"
_LINE = f"SELECT {', '.join(LINE)} FROM ledger"

DUE = f"{_STATE} WHERE due_at <= ? ORDER BY due_at LIMIT ?"
NEXT_DUE = "SELECT min(due_at) FROM schedules WHERE due_at > ?"
BY_NAME = f"{_STATE} WHERE name > ? ORDER BY name LIMIT ?"
BY_SOURCE = f"{_STATE} WHERE source = ? AND name > ? ORDER BY name LIMIT ?"
NEW = (
    f"INSERT INTO schedules ({', '.join(DEFINITION)}, enabled, planned_at, due_at) VALUES ({', '.join('?' * len(DEFINITION))}, ?, ?, ?)"
    " ON CONFLICT (name) DO NOTHING"
)
REDEFINE = f"UPDATE schedules SET {', '.join(f'{name} = ?' for name in DEFINITION[1:])}, version = version + 1 WHERE name = ?"
PLAN = "UPDATE schedules SET planned_at = ?, due_at = CASE WHEN enabled THEN ? END, queued_at = NULL, version = version + 1 WHERE name = ?"
PAUSE = "UPDATE schedules SET enabled = 0, due_at = NULL, version = version + 1 WHERE name = ? AND enabled"
RESUME = "UPDATE schedules SET enabled = 1, due_at = 0, resumed = 1, version = version + 1 WHERE name = ? AND NOT enabled"
CLAIM = (
    "UPDATE schedules SET version = version + 1, planned_at = ?, due_at = CASE WHEN enabled THEN ? END, queued_at = ?, resumed = 0"
    " WHERE name = ? AND version = ?"
)
RAN = (
    "UPDATE schedules SET version = version + 1, last_planned_at = ?, last_run_at = ?, last_message_id = ?,"
    " total_run_count = total_run_count + ? WHERE name = ?"
)
WRITE = (
    f"INSERT INTO ledger ({', '.join(LINE)}, message) VALUES ({', '.join('?' * len(LINE))}, ?)"
    " ON CONFLICT (entry, planned_at) DO UPDATE SET outcome = excluded.outcome, due_at = excluded.due_at, fired_at = excluded.fired_at,"
    " message_id = excluded.message_id, why = excluded.why, occurrences = excluded.occurrences, until = excluded.until, message = excluded.message"
    " WHERE ledger.outcome = 'queued'"
)
SUPPRESS = "UPDATE ledger SET suppressed = suppressed + 1 WHERE entry = ? AND planned_at = ?"
KEPT = "SELECT message FROM ledger WHERE message IS NOT NULL AND fired_at <= ? ORDER BY fired_at, n LIMIT ?"
SENT = "UPDATE ledger SET message = NULL, outcome = 'sent' WHERE message IS NOT NULL AND message_id = ?"
HISTORY = f"{_LINE} WHERE planned_at < ? ORDER BY planned_at DESC, n DESC LIMIT ?"
HISTORY_OF_ENTRY = f"{_LINE} WHERE entry = ? AND planned_at < ? ORDER BY planned_at DESC LIMIT ?"
# Lines are written one after the other, so the oldest come first, and no index by age is needed.
OLDEST = "SELECT fired_at FROM ledger WHERE message IS NULL ORDER BY n LIMIT 1"
PRUNE = "DELETE FROM ledger WHERE fired_at < ? AND n IN (SELECT n FROM ledger WHERE message IS NULL ORDER BY n LIMIT ?)"

_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(Message).decode
_END_OF_TIME = 1e300


class SQLiteSchedules:
    """`SQLiteEngine.schedules`."""

    def __init__(self, engine: SQLiteEngine) -> None:
        self._engine = engine
        self._clock = engine._clock

    def now(self) -> float:
        return self._clock.time()

    def put(self, plannings: Sequence[Planning]) -> list[str]:
        rows = [(planning, definition(planning.entry)) for planning in plannings]
        refused: list[str] = []
        with _Transaction(self._engine) as db:
            for planning, row in rows:
                if not _put(db, planning, row):
                    refused.append(planning.entry.name)
        return refused

    def remove(self, names: Sequence[str]) -> list[str]:
        return self._each("DELETE FROM schedules WHERE name = ?", names)

    def pause(self, names: Sequence[str]) -> list[str]:
        return self._each(PAUSE, names)

    def resume(self, names: Sequence[str]) -> list[str]:
        return self._each(RESUME, names)

    def _each(self, statement: str, names: Sequence[str]) -> list[str]:
        """Those of the names of which the statement changes something."""
        with _Transaction(self._engine) as db:
            return [name for name in dict.fromkeys(names) if db.execute(statement, (name,)).rowcount == 1]

    def entries(
        self, names: Sequence[str] | None = None, *, source: str | None = None, after: str = "", limit: int = 1000
    ) -> list[EntryState]:
        if names is None:
            rows = (
                self._engine._query(BY_NAME, (after, limit)) if source is None else self._engine._query(BY_SOURCE, (source, after, limit))
            )
            return [state_of_row(row) for row in rows]
        wanted = sorted(name for name in dict.fromkeys(names) if name > after)
        states: list[EntryState] = []
        for start in range(0, len(wanted), NAMES_EACH):
            some = wanted[start : start + NAMES_EACH]
            sql = f"{_STATE} WHERE name IN ({', '.join('?' * len(some))}) AND source = coalesce(?, source) ORDER BY name LIMIT ?"
            states += [state_of_row(row) for row in self._engine._query(sql, (*some, source, limit - len(states)))]
        return states

    def due(self, limit: int) -> Due:
        now = self._clock.time()
        rows = self._engine._query(DUE, (now, limit))
        ((next_due_at,),) = self._engine._query(NEXT_DUE, (now,))
        return Due(now=now, states=[state_of_row(row) for row in rows], next_due_at=next_due_at)

    def fire(self, firings: Sequence[Firing], *, publish: bool = True) -> list[str]:
        # What cannot be encoded is to fail before anything is changed.
        prepared = [(firing, {message.id: (message, _encode(message)) for message in firing.messages}) for firing in firings]
        queues: set[str] = set()
        refused: list[str] = []
        with _Transaction(self._engine) as db:
            now = self._clock.time()
            for firing, messages in prepared:
                if not self._fire(db, firing, messages, now, queues if publish else None):
                    refused.append(firing.name)
        if queues:
            self._engine._pipes.ring_queues(queues)
        return refused

    def kept(self, limit: int, *, older_than_seconds: float = 0.0) -> list[Message]:
        rows = self._engine._query(KEPT, (self._clock.time() - older_than_seconds, limit))
        return [_decode_message(body) for (body,) in rows]

    def sent(self, ids: Sequence[str]) -> None:
        with _Transaction(self._engine) as db:
            db.executemany(SENT, [(id,) for id in ids])

    def history(self, entry: str | None = None, *, limit: int = 100, before: float | None = None) -> list[LedgerLine]:
        end = _END_OF_TIME if before is None else before
        rows = self._engine._query(HISTORY, (end, limit)) if entry is None else self._engine._query(HISTORY_OF_ENTRY, (entry, end, limit))
        return [line_of_row(row) for row in rows]

    def prune(self, older_than_seconds: float, *, limit: int = 1000) -> int:
        horizon = self._clock.time() - older_than_seconds
        oldest = self._engine._query(OLDEST)
        if not oldest or oldest[0][0] >= horizon:
            return 0
        with _Transaction(self._engine) as db:
            return db.execute(PRUNE, (horizon, limit)).rowcount

    def _fire(
        self, db: sqlite3.Connection, firing: Firing, messages: dict[str, tuple[Message, bytes]], now: float, queues: set[str] | None
    ) -> bool:
        """One firing. Without `queues`, the messages are kept."""
        claim = (firing.planned_at, firing.due_at, firing.queued_at, firing.name, firing.version)
        if db.execute(CLAIM, claim).rowcount != 1:
            db.executemany(SUPPRESS, [(line.entry, line.planned_at) for line in firing.lines if line.message_id is not None])
            return False
        last: LedgerLine | None = None
        count = 0
        for line in firing.lines:
            message, body = messages.get(line.message_id or "", (None, None))
            keep = message is not None and queues is None
            values = list(row_of_line(line))
            values[_FIRED_AT] = now
            if keep:
                values[_OUTCOME] = "kept"
            if db.execute(WRITE, (*values, body if keep else None)).rowcount != 1:
                if line.message_id is not None:
                    db.execute(SUPPRESS, (line.entry, line.planned_at))
            elif message is not None:
                last = line
                count += 1
                if queues is not None:
                    self._engine._publish(db, (message,), now, queues)
        if last is not None:
            db.execute(RAN, (last.planned_at, now, last.message_id, count, firing.name))
        return True


# -- steps of a transaction ------------------------------------------------------------------------------------------------


def _put(db: sqlite3.Connection, planning: Planning, row: tuple[str, ...]) -> bool:
    entry = planning.entry
    due_at = planning.due_at if entry.enabled else None
    if db.execute(NEW, (*row, entry.enabled, planning.planned_at, due_at)).rowcount == 1:
        return True
    held = db.execute(f"{_STATE} WHERE name = ?", (entry.name,)).fetchone()
    before = state_of_row(held)
    if str(held[DEFINITION.index("source")]) != entry.source:
        return False
    if tuple(held[: len(DEFINITION)]) == row:
        return True
    db.execute(REDEFINE, (*row[1:], entry.name))
    if before.entry is None or when(before.entry) != when(entry) or (before.enabled and before.due_at is None):
        db.execute(PLAN, (planning.planned_at, planning.due_at, entry.name))
    return True


_FIRED_AT = LINE.index("fired_at")
_OUTCOME = LINE.index("outcome")

if TYPE_CHECKING:
    _complete: type[Schedules] = SQLiteSchedules
