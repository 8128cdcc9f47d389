"""Schedules in the engine's Redis server: a firing is one script, with the messages. What comes due is found in a sorted set, so that the cost of a look does not depend on
how many entries there are.

se      name → the entry, JSON                                sl      key → the line of the ledger; a key is "planned_at entry"
ss      name → {version, enabled, planned_at, due_at,         sh      key, by planned_at; sh:entry the same of one entry
        resumed, queued_at, last_planned_at, last_run_at,     sw      key, by when it was written; lines of kept messages are not there
        last_message_id, total_run_count, source, when}       sk      id of a kept message, in the order of firing; sb  id → {when, message, key}
sd      name, by due_at                                       sn      names; sn:source the same of one source
sv      the last version

Where there is nothing, Lua has `false`: a list must not have holes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from ...contracts.schedules import Due, Entry, EntryState, Firing, LedgerLine, Planning
from ...core.message import Message
from .. import redis_scripts as scripts
from ..redis import _decode_message, _row, _unpack
from .rows import when

if TYPE_CHECKING:
    from ...contracts.schedules import Schedules
    from ..redis import RedisEngine

# -- Lua -----------------------------------------------------------------------------------------------------------

ENTRIES = (
    scripts.HEAD
    + """
-- Of an entry's state; and of a line, whose fields are in the order of `LedgerLine`.
local VERSION, ENABLED, PLANNED, DUE_AT, RESUMED, QUEUED, LAST_PLANNED, LAST_RUN, LAST_ID, COUNT, SOURCE, WHEN = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local OUTCOME, FIRED, MESSAGE_ID, SUPPRESSED = 3, 5, 6, 10
local function get(name)
  local packed = call('HGET', P .. 'ss', name)
  return packed and open(packed)
end
local function keep(name, s)
  s[VERSION] = call('INCR', P .. 'sv')
  call('HSET', P .. 'ss', name, pack(s))
  if s[DUE_AT] then call('ZADD', P .. 'sd', s[DUE_AT], name) else call('ZREM', P .. 'sd', name) end
end
"""
)

PUT = (
    ENTRIES
    + """
local refused = {}
local function put(name, entry, source, at, enabled, planned_at, due_at)
  local s = get(name)
  if not s then
    call('HSET', P .. 'se', name, entry)
    call('ZADD', P .. 'sn', 0, name)
    call('ZADD', P .. 'sn:' .. source, 0, name)
    keep(name, {0, enabled, planned_at, enabled and due_at, false, false, false, false, false, 0, source, at})
  elseif s[SOURCE] ~= source then
    return false
  elseif call('HGET', P .. 'se', name) ~= entry then
    call('HSET', P .. 'se', name, entry)
    if s[WHEN] ~= at or (s[ENABLED] and not s[DUE_AT]) then
      s[PLANNED], s[DUE_AT], s[QUEUED], s[WHEN] = planned_at, s[ENABLED] and due_at, false, at
    end
    keep(name, s)
  end
  return true
end
for _, p in ipairs(A[5]) do
  if not put(unpack(p)) then refused[#refused + 1] = p[1] end
end
return refused
"""
)
REMOVE = (
    ENTRIES
    + """
local removed = {}
for _, name in ipairs(A[5]) do
  local s = get(name)
  if s then
    removed[#removed + 1] = name
    call('HDEL', P .. 'ss', name)
    call('HDEL', P .. 'se', name)
    call('ZREM', P .. 'sd', name)
    call('ZREM', P .. 'sn', name)
    call('ZREM', P .. 'sn:' .. s[SOURCE], name)
  end
end
return removed
"""
)
SWITCH = (
    ENTRIES
    + """
local changed, enabled = {}, A[6]
for _, name in ipairs(A[5]) do
  local s = get(name)
  if s and s[ENABLED] ~= enabled then
    changed[#changed + 1] = name
    s[ENABLED], s[DUE_AT] = enabled, enabled and 0
    if enabled then s[RESUMED] = true end
    keep(name, s)
  end
end
return changed
"""
)
NAMED = (
    ENTRIES
    + """
local found = {}
for _, name in ipairs(A[5]) do
  local packed = call('HGET', P .. 'ss', name)
  if packed then found[#found + 1] = {name, call('HGET', P .. 'se', name) or '', packed} end
end
return found
"""
)
LISTED = (
    ENTRIES
    + """
local found = {}
for _, name in ipairs(call('ZRANGEBYLEX', P .. A[5], A[6] == '' and '-' or '(' .. A[6], '+', 'LIMIT', 0, A[7])) do
  found[#found + 1] = {name, call('HGET', P .. 'se', name) or '', call('HGET', P .. 'ss', name)}
end
return found
"""
)
DUE = (
    ENTRIES
    + """
local found = {}
for _, name in ipairs(call('ZRANGEBYSCORE', P .. 'sd', '-inf', now, 'LIMIT', 0, A[5])) do
  found[#found + 1] = {name, call('HGET', P .. 'se', name) or '', call('HGET', P .. 'ss', name)}
end
return {format('%.17g', now), found, call('ZRANGEBYSCORE', P .. 'sd', format('(%.17g', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)}
"""
)

LEDGER = """
local function key_of(line) return format('%.17g ', line[2]) .. line[1] end
local function suppress(line)
  local key = key_of(line)
  local known = line[MESSAGE_ID] and call('HGET', P .. 'sl', key)
  if known then
    known = open(known)
    known[SUPPRESSED] = known[SUPPRESSED] + 1
    call('HSET', P .. 'sl', key, pack(known))
  end
end
local function write(line)
  local key = key_of(line)
  local known = call('HGET', P .. 'sl', key)
  if known then
    known = open(known)
    if known[OUTCOME] ~= 'queued' then
      suppress(line)
      return false
    end
    line[SUPPRESSED] = known[SUPPRESSED]
  end
  call('HSET', P .. 'sl', key, pack(line))
  call('ZADD', P .. 'sh', line[2], key)
  call('ZADD', P .. 'sh:' .. line[1], line[2], key)
  if line[OUTCOME] == 'kept' then call('ZREM', P .. 'sw', key) else call('ZADD', P .. 'sw', line[FIRED], key) end
  return true
end
"""
FIRE = (
    ENTRIES
    + scripts.PUBLISHING
    + LEDGER
    + """
local pen, refused = P .. 'p:' .. ARGV[2], {}
local before = call('GET', pen)
if before and before:sub(1, 20) >= ARGV[3] then return open(before:sub(21)) end
local function fire(name, version, planned_at, due_at, queued_at, lines, rows)
  local s = get(name)
  if not s or s[VERSION] ~= version then
    for _, line in ipairs(lines) do suppress(line) end
    return false
  end
  for i, line in ipairs(lines) do
    local row = rows[i]
    line[FIRED] = now
    if row and not A[6] then line[OUTCOME] = 'kept' end
    if write(line) and row then
      s[LAST_PLANNED], s[LAST_RUN], s[LAST_ID], s[COUNT] = line[2], now, row[1], s[COUNT] + 1
      if A[6] then
        publish(row)
      else
        call('HSET', P .. 'sb', row[1], pack({now, row[6], key_of(line)}))
        call('ZADD', P .. 'sk', call('INCR', P .. 'sv'), row[1])
      end
    end
  end
  s[PLANNED], s[DUE_AT], s[QUEUED], s[RESUMED] = planned_at, s[ENABLED] and due_at, queued_at, false
  keep(name, s)
  return true
end
for _, f in ipairs(A[5]) do
  if not fire(unpack(f)) then refused[#refused + 1] = f[1] end
end
"""
    + scripts.KEEPING
    + scripts.ANNOUNCING
    + """
call('SET', pen, ARGV[3] .. pack(refused), 'EX', PEN_SECONDS)
return refused
"""
)
KEPT = (
    scripts.HEAD
    + """
local texts = {}
for _, id in ipairs(call('ZRANGE', P .. 'sk', 0, A[5] - 1)) do
  local kept = open(call('HGET', P .. 'sb', id))
  if kept[1] <= now - A[6] then texts[#texts + 1] = kept[2] end
end
return texts
"""
)
SENT = (
    ENTRIES
    + LEDGER
    + """
for _, id in ipairs(A[5]) do
  local kept = call('HGET', P .. 'sb', id)
  if kept then
    local key = open(kept)[3]
    local line = open(call('HGET', P .. 'sl', key))
    line[OUTCOME] = 'sent'
    call('HSET', P .. 'sl', key, pack(line))
    call('ZADD', P .. 'sw', line[FIRED], key)
    call('HDEL', P .. 'sb', id)
    call('ZREM', P .. 'sk', id)
  end
end
return 1
"""
)
HISTORY = (
    scripts.HEAD
    + """
local keys = call('ZREVRANGEBYSCORE', P .. A[5], A[6] and format('(%.17g', A[6]) or '+inf', '-inf', 'LIMIT', 0, A[7])
return many('HMGET', P .. 'sl', keys)
"""
)
PRUNE = (
    scripts.HEAD
    + """
local keys = call('ZRANGEBYSCORE', P .. 'sw', '-inf', format('(%.17g', now - A[5]), 'LIMIT', 0, A[6])
for _, key in ipairs(keys) do
  call('HDEL', P .. 'sl', key)
  call('ZREM', P .. 'sh', key)
  call('ZREM', P .. 'sh:' .. key:match('^%S+ (.*)$'), key)
  call('ZREM', P .. 'sw', key)
end
return #keys
"""
)

_encode = msgspec.json.Encoder().encode
_decode_entry = msgspec.json.Decoder(Entry).decode


class RedisSchedules:
    """`RedisEngine.schedules`."""

    def __init__(self, engine: RedisEngine) -> None:
        self._engine = engine

    def now(self) -> float:
        return self._engine.now()

    def put(self, plannings: Sequence[Planning]) -> list[str]:
        return _texts(self._engine._run(PUT, [_planning_row(planning) for planning in plannings]))

    def remove(self, names: Sequence[str]) -> list[str]:
        return _texts(self._engine._run(REMOVE, list(dict.fromkeys(names))))

    def pause(self, names: Sequence[str]) -> list[str]:
        return _texts(self._engine._run(SWITCH, list(dict.fromkeys(names)), False))

    def resume(self, names: Sequence[str]) -> list[str]:
        return _texts(self._engine._run(SWITCH, list(dict.fromkeys(names)), True))

    def entries(
        self, names: Sequence[str] | None = None, *, source: str | None = None, after: str = "", limit: int = 1000
    ) -> list[EntryState]:
        if names is None:
            return [_state(row) for row in self._engine._run(LISTED, "sn" if source is None else f"sn:{source}", after, limit)]
        wanted = sorted(name for name in dict.fromkeys(names) if name > after or not after)
        states = [_state(row) for row in self._engine._run(NAMED, wanted)]
        return [state for state in states if source is None or (state.entry is not None and state.entry.source == source)][:limit]

    def due(self, limit: int) -> Due:
        now, rows, following = self._engine._run(DUE, limit)
        return Due(now=float(now), states=[_state(row) for row in rows], next_due_at=float(following[1]) if following else None)

    def fire(self, firings: Sequence[Firing], *, publish: bool = True) -> list[str]:
        if not firings:
            return []
        key = ("fire", *[(firing.name, firing.version) for firing in firings])
        rows = [_firing_row(firing) for firing in firings]
        return _texts(self._engine._once(FIRE, key, self._engine._seconds, rows, publish))

    def kept(self, limit: int, *, older_than_seconds: float = 0.0) -> list[Message]:
        return [_decode_message(text.partition(b"\n")[2]) for text in self._engine._run(KEPT, limit, older_than_seconds)]

    def sent(self, ids: Sequence[str]) -> None:
        self._engine._run(SENT, list(ids))

    def history(self, entry: str | None = None, *, limit: int = 100, before: float | None = None) -> list[LedgerLine]:
        return [_line(packed) for packed in self._engine._run(HISTORY, "sh" if entry is None else f"sh:{entry}", before, limit)]

    def prune(self, older_than_seconds: float, *, limit: int = 1000) -> int:
        return int(self._engine._run(PRUNE, older_than_seconds, limit))


# -- what goes in and out ------------------------------------------------------------------------------------------


def _planning_row(planning: Planning) -> tuple[Any, ...]:
    entry = planning.entry
    text = _encode(msgspec.structs.replace(entry, enabled=True)).decode()
    return (
        entry.name,
        text,
        entry.source,
        _encode(when(entry)).decode(),
        entry.enabled,
        _or_false(planning.planned_at),
        _or_false(planning.due_at),
    )


def _firing_row(firing: Firing) -> tuple[Any, ...]:
    messages = {message.id: _row(message) for message in firing.messages}
    lines = [[_or_false(getattr(line, name)) for name in LedgerLine.__struct_fields__] for line in firing.lines]
    rows = [messages.get(line.message_id or "", False) for line in firing.lines]
    times = [_or_false(at) for at in (firing.planned_at, firing.due_at, firing.queued_at)]
    return (firing.name, firing.version, *times, lines, rows)


def _or_false(value: Any) -> Any:
    return False if value is None else value


def _state(row: Any) -> EntryState:
    name, text, packed = row
    version, enabled, planned, due, resumed, queued, last_planned, last_run, last_id, count, _, _ = _unpack(packed)
    entry, error = None, ""
    try:
        entry = _decode_entry(text)
    except msgspec.MsgspecError as problem:
        error = f"This entry cannot be read: {problem}"
    return EntryState(
        name=name.decode(),
        entry=entry,
        error=error,
        version=version,
        enabled=enabled,
        planned_at=_time(planned),
        due_at=_time(due),
        resumed=resumed,
        queued_at=_time(queued),
        last_planned_at=_time(last_planned),
        last_run_at=_time(last_run),
        last_message_id=last_id or None,
        total_run_count=count,
    )


def _line(packed: bytes) -> LedgerLine:
    entry, planned, outcome, due, fired, message_id, why, occurrences, until, suppressed = _unpack(packed)
    return LedgerLine(
        entry=entry,
        planned_at=float(planned),
        outcome=outcome,
        due_at=float(due),
        fired_at=float(fired),
        message_id=message_id or None,
        why=why,
        occurrences=occurrences,
        until=_time(until),
        suppressed=suppressed,
    )


def _time(value: Any) -> float | None:
    return None if value is False else float(value)


def _texts(values: Iterable[bytes]) -> list[str]:
    return [value.decode() for value in values]


if TYPE_CHECKING:
    _complete: type[Schedules] = RedisSchedules
