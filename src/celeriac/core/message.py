"""The vocabulary that travels: Message, Delivery, Settlement. Data only, no behaviour.

All of them are `msgspec.Struct`s: frozen, keyword-only, and encoded or decoded in C in well under a microsecond, with every field's type checked on the way in.
Times that people read are aware UTC datetimes; durations are float seconds.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from msgspec import Raw, Struct


class Attempt(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished try of a task: who ran it, from when, for how long, and what went wrong."""

    worker: str
    started_at: datetime
    runtime_seconds: float
    state: str
    error: str = ""


class Message(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call as it travels. The fields are the headers of Celery's task protocol 2, and ours.

    `body` is a JSON value: the array `[args, kwargs, embed]` itself when `content_type` is
    `application/json`, else a string with the base64 of the encoded body.
    """

    id: str
    task: str
    body: Raw
    queue: str = "celery"
    priority: int = 0
    """0 to 9, 9 first, on every engine."""
    content_type: str = "application/json"

    delay_seconds: float | None = None
    """Wait so long from the moment the engine accepts it (the engine's clock). Goes before `eta`."""
    eta: datetime | None = None
    """Not to be started before this moment. With `delay_seconds` it is the caller's own estimate, for people to read."""
    expires: datetime | None = None
    """Not to be started after this moment."""

    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    group_index: int | None = None
    retries: int = 0
    time_limit: float | None = None
    soft_time_limit: float | None = None
    shadow: str | None = None
    argsrepr: str = ""
    kwargsrepr: str = ""
    origin: str = ""
    reply_to: str = ""
    ignore_result: bool = False
    replaced_task_nesting: int = 0
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    """What the caller gave as `headers=`; JSON values."""
    exchange: str = ""
    routing_key: str = ""
    attempts: list[Attempt] = []
    """The finished tries before this one, oldest first."""
    join: str | None = None
    """The join of which this message is a member: how it ends counts there (see `Arrival`)."""
    join_index: int = 0
    """Its place among the members of that join."""
    joined: str | None = None
    """The join whose outcomes this message was waiting for. Whoever runs it reads them (`Joins.arrivals`) and puts the members' results, in
    order, before the arguments; when a member failed, it ends the message with that failure instead of running it."""
    immutable: bool = False
    """With `joined`: it takes nothing from the members, and only waits for them."""
    doom: dict[str, Any] | None = None
    """An exception as data (as in `Record.result`). Whoever reserves the message next concludes it with this failure and does
    not run it: so a supervisor, which runs no user code, ends a task that was killed for its time limit or terminated."""


class Holder(Struct, frozen=True):
    """Who takes deliveries: one process of one node."""

    node: str
    """The id of one incarnation of a worker: new at each start, never a host name."""
    process: int = 0


class Lease(Struct, frozen=True):
    """The proof that a delivery is ours: who holds it, and the token that only this holding has."""

    holder: Holder
    token: int
    """How many times the message has been reserved, this time included; so no two holdings share one."""


class Delivery(Struct, frozen=True, kw_only=True):
    """A message in our hands.

    `raw_message` instead of `message` is given when what the engine holds cannot be decoded;
    then `error` says why, and the only sensible verdict is `Verdict.DEAD`.
    """

    id: str
    queue: str
    lease: Lease
    receipt: Any = None
    """The engine's own handle of what it stores; nobody else reads it."""
    message: Message | None
    crashes: int = 0
    """How many processes have died while running it."""
    interruptions: int = 0
    """How often it was given back by a shutdown or a hostage release."""
    waiting_since: float = 0.0
    """When it became ready to run for the first time: seconds of the engine's clock since 1970."""
    expired: bool = False
    """True when its `expires` had passed, by the engine's clock, as it was reserved."""
    revoked: bool = False
    """True when its id had been revoked before it was reserved."""
    repeated: bool = False
    """It may be a second copy of a message that is done already: only of engines that do not know ids (`Capabilities.ids`), whose results live elsewhere."""
    success: Record | None = None
    """The result that an earlier run of it has stored, somewhere else than in the engine, before its worker died: nothing is to be run again, only what follows is missing."""
    raw_message: bytes = b""
    error: str = ""


class Join(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A meeting of messages: when all its members have ended, the engine publishes `then`, in the same step as the last end.

    It counts; it does not judge. Whether a failed member fails the rest is for those who run `then` to say: so a join leads to the same number of
    messages however it ends.
    """

    id: str
    size: int | None = None
    """How many members it has; None as long as nobody knows (they are still being published): `Joins.seal` tells it."""
    then: list[Message] = []
    """Each bears `joined`, the id of this join. Their delays begin when they are published."""


class Arrival(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of one member of a join."""

    join: str
    index: int
    task_id: str
    failed: bool = False
    result: Raw = Raw(b"null")
    """A JSON value: what the member returned, or its exception as data (as in `Record.result`)."""


class Verdict(StrEnum):
    """Where a settlement sends a leased message."""

    DONE = "done"
    """Out of the engine: it succeeded, failed for good, was revoked, expired or ignored."""
    RETRY = "retry"
    """Waits again, as `Settlement.message` says (a new number of retries, eta, arguments)."""
    RELEASED = "released"
    """Ready again as it was; nobody ran it to an end. Counts as an interruption."""
    CRASHED = "crashed"
    """Ready again as it was; the process that ran it died. Counts as a crash."""
    DEAD = "dead"
    """Into the dead letters, with `Settlement.reason`."""


class Pause(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a task gives its place back before it has ended: a step of it is a wait."""

    step: str
    """The name of the step, unique within the task."""
    event: str | None = None
    """It waits until this occurs (see contracts/steps.py); None: for time alone."""
    seconds: float | None = None
    """And no longer than this; None: as long as it takes."""


class Settlement(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to become of one leased message, with all that must happen in the same step."""

    id: str
    verdict: Verdict
    lease: Lease | None
    """None for a message that was acknowledged before it ran (`acks_late=False`): there is nothing left to
    remove or to fence, and only the rest is stored: record, follow-ups, joins."""
    receipt: Any = None
    early: bool = False
    """The task runs after this (`acks_late=False`): when `settle` returns, nobody else gets the message any more, also if a connection is lost then."""
    message: Message | None = None
    """With RETRY: what waits from now on. With RELEASED and CRASHED: an updated message, if it changed."""
    delay_seconds: float = 0.0
    """With RELEASED: not to be reserved again before so long."""
    reason: str = ""
    pause: Pause | None = None
    """With RETRY, by an engine that keeps steps: it waits for this, whatever delays its message names. If that step waits already, it goes on waiting until
    the same moment; if it has an outcome, or its event has occurred, the message is ready at once."""
    forgets: bool = False
    """The steps of this task are forgotten in the same step."""
    record: Record | None = None
    """The result to store in the same step; None when there is none, or when the results live in another engine."""
    more_records: list[Record] = []
    """Results to store in the same step of tasks that will never come: the steps of a chain after one that failed."""
    follow_ups: list[Message] = []
    """Messages that are published in the same step."""
    opens: list[Join] = []
    """Joins that are opened in the same step, before the follow-ups come."""
    enlarges: dict[str, int] = {}
    """Joins, by id, that get so many members more in the same step, before the arrival counts. One that is complete stays as it is."""
    arrival: Arrival | None = None
    """This is the end of a member of a join."""
    leaves: str | None = None
    """The join whose results this message has used: with the last of its `then`, the join is forgotten, with all that has arrived."""


class Record(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is known of a task's outcome: the fields of a Celery result record, and ours."""

    task_id: str
    status: str
    result: Raw = Raw(b"null")
    """A JSON value: the return value, the meta of a custom state, or an exception as data
    `{"exc_type", "exc_message", "exc_module"}`."""
    traceback: str | None = None
    date_done: datetime | None = None
    children: list[Any] = []
    """Celery's result tuples: `[[id, parent], null]`."""
    name: str | None = None
    args: str | None = None
    kwargs: str | None = None
    worker: str | None = None
    queue: str | None = None
    retries: int = 0
    root_id: str | None = None
    parent_id: str | None = None
    group_id: str | None = None
    attempts: list[Attempt] = []


class Revocation(Struct, frozen=True, kw_only=True):
    """One task that must not run (any more)."""

    id: str
    terminate: bool = False
    """Also stop it when it is running now."""
    signal: str = "SIGTERM"
    record: Record | None = None
    """Stored in the same step when the message was waiting (and the results live in the same engine)."""
    arrival: Arrival | None = None
    """Counted in the same step when the message was waiting; when it was running, kept, and counted if the revocation becomes its end."""
