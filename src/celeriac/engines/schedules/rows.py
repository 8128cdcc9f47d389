"""Entries as rows: what the engines that are databases have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ...contracts.schedules import Entry, EntryState, LedgerLine

_encode = msgspec.json.Encoder().encode
_decode_entry = msgspec.json.Decoder(Entry).decode

_POLICY_FIELDS = (
    "description", "misfire", "misfire_window_seconds", "misfire_grace_seconds", "overlap", "jitter_seconds", "starts_at", "ends_at",
    "max_runs", "expires_seconds",
)  # fmt: skip

DEFINITION = ("name", "schedule", "task", "args", "kwargs", "options", "policy", "source")
"""The columns of an entry that people may change."""
STATE = (*DEFINITION, "version", "enabled", "planned_at", "due_at", "resumed", "queued_at", "last_planned_at", "last_run_at", "last_message_id",
         "total_run_count")  # fmt: skip
"""The columns that `state_of_row` wants, in this order."""
LINE = ("entry", "planned_at", "outcome", "due_at", "fired_at", "message_id", "why", "occurrences", "until", "suppressed")
"""The columns of a line of the ledger, in the order of its fields."""


def definition(entry: Entry) -> tuple[str, ...]:
    """The values of the columns `DEFINITION`, all of them text."""
    told = msgspec.json.decode(_encode(entry))
    policy = {name: told[name] for name in _POLICY_FIELDS if name in told}
    return (
        entry.name,
        entry.schedule,
        entry.task,
        bytes(entry.args).decode(),
        bytes(entry.kwargs).decode(),
        bytes(entry.options).decode(),
        _encode(policy).decode(),
        entry.source,
    )


def when(entry: Entry) -> tuple[str, float | None, float | None]:
    """What of an entry says when it comes."""
    return entry.schedule, entry.starts_at, entry.ends_at


def state_of_row(row: Sequence[Any]) -> EntryState:
    """An entry of the columns `STATE`. What people have written there by hand may be anything: then the state says what is wrong."""
    name, schedule, task, args, kwargs, options, policy, source, version, enabled, planned_at, due_at, resumed, *rest = row
    queued_at, last_planned_at, last_run_at, last_message_id, total_run_count = rest
    entry, error = None, ""
    try:
        entry = _decode_entry(_as_json(name, schedule, task, args, kwargs, options, policy, source))
    except (msgspec.MsgspecError, ValueError, TypeError) as problem:
        error = f"The row of this entry cannot be read: {problem}"
    return EntryState(
        name=str(name),
        entry=entry,
        error=error,
        version=version,
        enabled=bool(enabled),
        planned_at=planned_at,
        due_at=due_at,
        resumed=bool(resumed),
        queued_at=queued_at,
        last_planned_at=last_planned_at,
        last_run_at=last_run_at,
        last_message_id=last_message_id,
        total_run_count=total_run_count,
    )


def line_of_row(row: Sequence[Any]) -> LedgerLine:
    return LedgerLine(**dict(zip(LINE, row, strict=True)))


def row_of_line(line: LedgerLine) -> tuple[Any, ...]:
    return tuple([getattr(line, name) for name in LINE])


def _as_json(name: Any, schedule: Any, task: Any, args: Any, kwargs: Any, options: Any, policy: Any, source: Any) -> bytes:
    parts = [b'{"name":', _encode(str(name)), b',"schedule":', _encode(str(schedule)), b',"task":', _encode(task)]
    for key, value, opening in ((b"args", args, "["), (b"kwargs", kwargs, "{"), (b"options", options, "{")):
        text = value.decode() if isinstance(value, bytes) else str(value)
        if not text.lstrip().startswith(opening):
            raise ValueError(f"{key.decode()} must be a JSON {'array' if opening == '[' else 'object'}, not {text[:80]!r}.")
        parts += [b',"', key, b'":', text.encode()]
    parts += [b',"source":', _encode(str(source))]
    rest = (policy.decode() if isinstance(policy, bytes) else str(policy)).strip()
    if not (rest.startswith("{") and rest.endswith("}")):
        raise ValueError(f"policy must be a JSON object, not {rest[:80]!r}.")
    inside = rest[1:-1].strip()
    parts += [b",", inside.encode(), b"}"] if inside else [b"}"]
    return b"".join(parts)
