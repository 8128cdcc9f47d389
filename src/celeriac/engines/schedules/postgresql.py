"""Schedules in the schema of the PostgreSQL engine: a row for each entry, one for each line of the ledger. A firing is one transaction and one trip, with the messages.

What comes due is found by an index, so that the cost of a look does not depend on how many entries there are. A trigger sees to rows that people change by SQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ...contracts.schedules import Due, EntryState, Firing, LedgerLine, Planning
from ...core.message import Message
from ..postgresql_wire import Json, Transaction, booleans, clean, floats, texts
from .rows import DEFINITION, LINE, STATE, definition, line_of_row, state_of_row, when

if TYPE_CHECKING:
    from ...contracts.schedules import Schedules
    from ..postgresql import PostgreSQLEngine

_STATE = f"SELECT {', '.join(STATE)} FROM {{s}}.schedules"
_LINE = f"SELECT {', '.join(LINE)} FROM {{s}}.ledger"

OUTLOOK = "SELECT n.now, (SELECT min(s.due_at) FROM {s}.schedules s WHERE s.due_at > n.now) FROM (SELECT coalesce($1::float8, {s}.now()) AS now) n"
DUE = f"{_STATE} WHERE due_at <= $1 ORDER BY due_at LIMIT $2::int"
ENTRIES = f"{_STATE} WHERE name > $1 ORDER BY name LIMIT $2::int"
BY_SOURCE = f"{_STATE} WHERE source = $3 AND name > $1 ORDER BY name LIMIT $2::int"
BY_NAME = f"{_STATE} WHERE name = ANY ($3::text[]) AND name > $1 AND source = coalesce($4::text, source) ORDER BY name LIMIT $2::int"
HELD = f"{_STATE} WHERE name = ANY ($1::text[]) ORDER BY name FOR UPDATE"
NEW = (
    f"INSERT INTO {{s}}.schedules ({', '.join(DEFINITION)}, enabled, planned_at, due_at)"
    f" SELECT * FROM unnest({', '.join(f'${number}::text[]' for number in range(1, len(DEFINITION) + 1))}, $9::boolean[], $10::float8[], $11::float8[]) u (name)"
    ' ORDER BY u.name COLLATE "C" ON CONFLICT (name) DO NOTHING RETURNING name'
)
REDEFINE = f"UPDATE {{s}}.schedules SET {', '.join(f'{name} = ${number}' for number, name in enumerate(DEFINITION[1:], 2))}, version = version + 1 WHERE name = $1"
PLAN = "UPDATE {s}.schedules SET planned_at = $2, due_at = CASE WHEN enabled THEN $3::float8 END, queued_at = NULL, version = version + 1 WHERE name = $1"
REMOVE = "DELETE FROM {s}.schedules WHERE name = ANY ($1::text[]) RETURNING name"
PAUSE = "UPDATE {s}.schedules SET enabled = false, due_at = NULL, version = version + 1 WHERE name = ANY ($1::text[]) AND enabled RETURNING name"
RESUME = "UPDATE {s}.schedules SET enabled = true, due_at = 0, resumed = true, version = version + 1 WHERE name = ANY ($1::text[]) AND NOT enabled RETURNING name"
FIRE = "SELECT {s}.fire($1, $2, $3)"
KEPT = "SELECT message FROM {s}.ledger WHERE message IS NOT NULL AND fired_at <= coalesce($1::float8, {s}.now()) - $2::float8 ORDER BY fired_at, n LIMIT $3::int"
SENT = "UPDATE {s}.ledger SET message = NULL, outcome = 'sent' WHERE message IS NOT NULL AND message_id = ANY ($1::text[])"
HISTORY = f"{_LINE} WHERE planned_at < $1 ORDER BY planned_at DESC, n DESC LIMIT $2::int"
HISTORY_OF_ENTRY = f"{_LINE} WHERE planned_at < $1 AND entry = $3 ORDER BY planned_at DESC LIMIT $2::int"
PRUNE = (
    "DELETE FROM {s}.ledger WHERE n IN (SELECT l.n FROM {s}.ledger l WHERE l.fired_at < coalesce($1::float8, {s}.now()) - $2::float8 AND l.message IS NULL"
    " ORDER BY l.fired_at LIMIT $3::int FOR UPDATE SKIP LOCKED)"
)

_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(Message).decode
_END_OF_TIME = 1e300
_SOURCE = DEFINITION.index("source")


class PostgreSQLSchedules:
    """`PostgreSQLEngine.schedules`."""

    def __init__(self, engine: PostgreSQLEngine) -> None:
        self._engine = engine
        self._database = engine._database

    def now(self) -> float:
        return self._engine.now()

    def put(self, plannings: Sequence[Planning]) -> list[str]:
        # One statement takes each name once; of several plannings of one name the last stays.
        rounds: list[dict[str, tuple[Planning, tuple[str, ...]]]] = [{}]
        for planning in plannings:
            if planning.entry.name in rounds[-1]:
                rounds.append({})
            rounds[-1][planning.entry.name] = (planning, definition(planning.entry))
        if not plannings:
            return []
        return self._database.in_transaction(lambda run: [name for each in rounds for name in _put(run, each)])

    def remove(self, names: Sequence[str]) -> list[str]:
        return self._each(REMOVE, names)

    def pause(self, names: Sequence[str]) -> list[str]:
        return self._each(PAUSE, names)

    def resume(self, names: Sequence[str]) -> list[str]:
        return self._each(RESUME, names)

    def entries(
        self, names: Sequence[str] | None = None, *, source: str | None = None, after: str = "", limit: int = 1000
    ) -> list[EntryState]:
        if names is not None:
            rows = self._database.rows(BY_NAME, (after, limit, texts(names), source))
        elif source is not None:
            rows = self._database.rows(BY_SOURCE, (after, limit, source))
        else:
            rows = self._database.rows(ENTRIES, (after, limit))
        return [state_of_row(row) for row in rows]

    def due(self, limit: int) -> Due:
        ((now, next_due_at),) = self._database.rows(OUTLOOK, (self._engine._now(),))
        return Due(now=now, states=[state_of_row(row) for row in self._database.rows(DUE, (now, limit))], next_due_at=next_due_at)

    def fire(self, firings: Sequence[Firing], *, publish: bool = True) -> list[str]:
        if not firings:
            return []
        told = Json(_encode([_told(place, firing) for place, firing in enumerate(firings)]))
        return [name for (name,) in self._database.rows(FIRE, (told, publish, self._engine._now()))]

    def kept(self, limit: int, *, older_than_seconds: float = 0.0) -> list[Message]:
        return [_decode_message(body) for (body,) in self._database.rows(KEPT, (self._engine._now(), older_than_seconds, limit))]

    def sent(self, ids: Sequence[str]) -> None:
        self._database.run(SENT, (texts(ids),))

    def history(self, entry: str | None = None, *, limit: int = 100, before: float | None = None) -> list[LedgerLine]:
        end = _END_OF_TIME if before is None else before
        rows = self._database.rows(HISTORY, (end, limit)) if entry is None else self._database.rows(HISTORY_OF_ENTRY, (end, limit, entry))
        return [line_of_row(row) for row in rows]

    def prune(self, older_than_seconds: float, *, limit: int = 1000) -> int:
        return self._database.run(PRUNE, (self._engine._now(), older_than_seconds, limit)).command_tuples or 0

    def _each(self, statement: str, names: Sequence[str]) -> list[str]:
        """Those of the names of which the statement changes something."""
        changed = {name for (name,) in self._database.rows(statement, (texts(dict.fromkeys(names)),))}
        return [name for name in dict.fromkeys(names) if name in changed]


def _put(run: Transaction, wanted: dict[str, tuple[Planning, tuple[str, ...]]]) -> list[str]:
    """Returns the names of those refused."""
    entries = [planning.entry for planning, _ in wanted.values()]
    columns = [texts(column) for column in zip(*(row for _, row in wanted.values()), strict=True)]
    planned = floats([planning.planned_at for planning, _ in wanted.values()])
    due = floats([planning.due_at if planning.entry.enabled else None for planning, _ in wanted.values()])
    new = {name for (name,) in run(NEW, *columns, booleans([entry.enabled for entry in entries]), planned, due)}
    refused = []
    for held in run(HELD, texts([name for name in wanted if name not in new])):
        planning, row = wanted[held[0]]
        before, entry = state_of_row(held), planning.entry
        if held[_SOURCE] != entry.source:
            refused.append(entry.name)
        elif tuple(held[: len(DEFINITION)]) != row:
            run(REDEFINE, *row)
            if before.entry is None or when(before.entry) != when(entry) or (before.enabled and before.due_at is None):
                run(PLAN, entry.name, planning.planned_at, planning.due_at)
    return refused


def _told(place: int, firing: Firing) -> dict[str, Any]:
    """For `fire`."""
    return {
        "place": place,
        "name": clean(firing.name),
        "version": firing.version,
        "planned_at": firing.planned_at,
        "due_at": firing.due_at,
        "queued_at": firing.queued_at,
        "lines": [
            {
                "place": number,
                "entry": clean(line.entry),
                "planned_at": line.planned_at,
                "outcome": clean(line.outcome),
                "due_at": line.due_at,
                "message_id": None if line.message_id is None else clean(line.message_id),
                "why": clean(line.why),
                "occurrences": line.occurrences,
                "until": line.until,
                "suppressed": line.suppressed,
            }
            for number, line in enumerate(firing.lines)
        ],
        "messages": [
            {
                "place": place,
                "id": clean(message.id),
                "queue": clean(message.queue),
                "priority": message.priority,
                "delay": message.delay_seconds,
                "eta": message.eta.timestamp() if message.eta is not None else None,
                "body": _encode(message),
            }
            for message in firing.messages
        ],
    }


if TYPE_CHECKING:
    _complete: type[Schedules] = PostgreSQLSchedules
