"""Schedules in the memory of one process, under the one lock of their engine."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import msgspec

from ...contracts.schedules import Due, EntryState, Firing, LedgerLine, Planning
from ...core.message import Message
from .rows import when

if TYPE_CHECKING:
    from ...contracts.schedules import Schedules
    from ..memory import MemoryEngine

_encode = msgspec.json.Encoder().encode
_decode_message = msgspec.json.Decoder(Message).decode
_replace = msgspec.structs.replace


class _Kept:
    """What one storage keeps of schedules."""

    def __init__(self) -> None:
        self.states: dict[str, EntryState] = {}
        self.due: list[tuple[float, str]] = []
        """The entries that are due one day, in that order."""
        self.ledger: dict[tuple[str, float], LedgerLine] = {}
        """In the order in which the lines were written."""
        self.messages: dict[str, tuple[float, bytes, tuple[str, float]]] = {}
        """id → since when it is kept, the message, and its line."""


_kept: WeakKeyDictionary[Any, _Kept] = WeakKeyDictionary()


class MemorySchedules:
    """`MemoryEngine.schedules`."""

    def __init__(self, engine: MemoryEngine) -> None:
        self._engine = engine
        self._clock = engine._clock
        self._lock = engine._storage.lock
        self._kept = _kept.setdefault(engine._storage, _Kept())

    def now(self) -> float:
        return self._clock.time()

    def put(self, plannings: Sequence[Planning]) -> list[str]:
        for planning in plannings:
            _encode(planning)
        refused = []
        with self._lock:
            for planning in plannings:
                if not self._put(planning):
                    refused.append(planning.entry.name)
        return refused

    def remove(self, names: Sequence[str]) -> list[str]:
        with self._lock:
            there = [name for name in dict.fromkeys(names) if name in self._kept.states]
            for name in there:
                self._forget_due(self._kept.states.pop(name))
            return there

    def pause(self, names: Sequence[str]) -> list[str]:
        with self._lock:
            changed = [name for name in self._known(names) if self._kept.states[name].enabled]
            for name in changed:
                self._change(self._kept.states[name], enabled=False, due_at=None)
            return changed

    def resume(self, names: Sequence[str]) -> list[str]:
        with self._lock:
            changed = [name for name in self._known(names) if not self._kept.states[name].enabled]
            for name in changed:
                self._change(self._kept.states[name], enabled=True, due_at=0.0, resumed=True)
            return changed

    def entries(
        self, names: Sequence[str] | None = None, *, source: str | None = None, after: str = "", limit: int = 1000
    ) -> list[EntryState]:
        with self._lock:
            states = self._kept.states
            wanted = sorted(name for name in (states if names is None else self._known(names)) if name > after or not after)
            found = [states[name] for name in wanted if source is None or _source(states[name]) == source]
            return found[:limit]

    def due(self, limit: int) -> Due:
        with self._lock:
            now = self._clock.time()
            end = bisect_left(self._kept.due, (now, "\U0010ffff"))
            names = [name for _, name in self._kept.due[: min(end, limit)]]
            next_due_at = self._kept.due[end][0] if end < len(self._kept.due) else None
            return Due(now=now, states=[self._kept.states[name] for name in names], next_due_at=next_due_at)

    def fire(self, firings: Sequence[Firing], *, publish: bool = True) -> list[str]:
        bodies = {message.id: _encode(message) for firing in firings for message in firing.messages}
        with self._lock:
            return [firing.name for firing in firings if not self._fire(firing, bodies, publish)]

    def kept(self, limit: int, *, older_than_seconds: float = 0.0) -> list[Message]:
        with self._lock:
            horizon = self._clock.time() - older_than_seconds
            bodies = [body for at, body, _ in self._kept.messages.values() if at <= horizon]
        return [_decode_message(body) for body in bodies[:limit]]

    def sent(self, ids: Sequence[str]) -> None:
        with self._lock:
            for id in ids:
                found = self._kept.messages.pop(id, None)
                if found is not None and (line := self._kept.ledger.get(found[2])) is not None:
                    self._kept.ledger[found[2]] = _replace(line, outcome="sent")

    def history(self, entry: str | None = None, *, limit: int = 100, before: float | None = None) -> list[LedgerLine]:
        with self._lock:
            lines = [
                line for line in self._kept.ledger.values() if entry in (None, line.entry) and (before is None or line.planned_at < before)
            ]
        lines.sort(key=lambda line: line.planned_at, reverse=True)
        return lines[:limit]

    def prune(self, older_than_seconds: float, *, limit: int = 1000) -> int:
        with self._lock:
            horizon = self._clock.time() - older_than_seconds
            old = [key for key, line in self._kept.ledger.items() if line.fired_at < horizon and line.outcome != "kept"][:limit]
            for key in old:
                del self._kept.ledger[key]
            return len(old)

    # -- steps; all of them under the lock -------------------------------------------------------------------------------

    def _known(self, names: Sequence[str]) -> list[str]:
        return [name for name in dict.fromkeys(names) if name in self._kept.states]

    def _put(self, planning: Planning) -> bool:
        entry = planning.entry
        state = self._kept.states.get(entry.name)
        if state is None:
            due_at = planning.due_at if entry.enabled else None
            self._keep(EntryState(name=entry.name, entry=entry, enabled=entry.enabled, planned_at=planning.planned_at, due_at=due_at))
            return True
        before = state.entry
        assert before is not None
        if before.source != entry.source:
            return False
        entry = _replace(entry, enabled=before.enabled)
        if entry == before:
            return True
        if when(entry) != when(before) or (state.enabled and state.due_at is None):
            due_at = planning.due_at if state.enabled else None
            self._change(state, entry=entry, planned_at=planning.planned_at, due_at=due_at, queued_at=None)
        else:
            self._change(state, entry=entry)
        return True

    def _fire(self, firing: Firing, bodies: dict[str, bytes], publish: bool) -> bool:
        state = self._kept.states.get(firing.name)
        if state is None or state.version != firing.version:
            for line in firing.lines:
                self._suppress(line)
            return False
        now = self._clock.time()
        by_id = {message.id: message for message in firing.messages}
        changes: dict[str, Any] = {}
        count = state.total_run_count
        for line in firing.lines:
            message = by_id.get(line.message_id or "")
            if not self._write(_replace(line, fired_at=now, outcome="kept" if message is not None and not publish else line.outcome)):
                continue
            if message is not None:
                count += 1
                changes = {"last_planned_at": line.planned_at, "last_run_at": now, "last_message_id": message.id, "total_run_count": count}
                if publish:
                    self._engine._publish(message, bodies[message.id], now)
                else:
                    self._kept.messages[message.id] = (now, bodies[message.id], (line.entry, line.planned_at))
        due_at = firing.due_at if state.enabled else None
        self._change(state, planned_at=firing.planned_at, due_at=due_at, queued_at=firing.queued_at, resumed=False, **changes)
        return True

    def _write(self, line: LedgerLine) -> bool:
        key = (line.entry, line.planned_at)
        before = self._kept.ledger.get(key)
        if before is not None and before.outcome != "queued":
            self._suppress(line)
            return False
        self._kept.ledger.pop(key, None)
        self._kept.ledger[key] = _replace(line, suppressed=before.suppressed) if before is not None else line
        return True

    def _suppress(self, line: LedgerLine) -> None:
        key = (line.entry, line.planned_at)
        known = self._kept.ledger.get(key)
        if known is not None and line.message_id is not None:
            self._kept.ledger[key] = _replace(known, suppressed=known.suppressed + 1)

    def _change(self, state: EntryState, **changes: Any) -> None:
        self._forget_due(state)
        self._keep(_replace(state, version=state.version + 1, **changes))

    def _keep(self, state: EntryState) -> None:
        self._kept.states[state.name] = state
        if state.due_at is not None:
            insort(self._kept.due, (state.due_at, state.name))

    def _forget_due(self, state: EntryState) -> None:
        if state.due_at is not None:
            del self._kept.due[bisect_left(self._kept.due, (state.due_at, state.name))]


def _source(state: EntryState) -> str:
    return state.entry.source if state.entry is not None else ""


if TYPE_CHECKING:
    _complete: type[Schedules] = MemorySchedules
