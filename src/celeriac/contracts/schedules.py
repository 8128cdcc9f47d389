"""What an engine promises about schedules: entries that come again and again, and a ledger with a line for each time that they did, or why not.

        put                      due                        fire
    ──────────▶ planned ──────────────────▶ due ──────────────────────────▶ planned again, or finished
                   ▲   (the engine's clock)      (claim + ledger + publish)
                   └──── changed, resumed: to be planned anew

An engine knows nothing of calendars, misfires or overlaps: it keeps for each entry the time at which somebody has to look at it, and whoever looks computes what is
to happen and says so with `fire`. Whoever comes second is refused, since each transition gives the entry a new version. So any number of beats may do the same at once, and one that dies
in the midst of it leaves nothing half done. `celeriac.testing.contract` is the definition.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Raw, Struct

from ..core.message import Message


class Misfire(StrEnum):
    """What becomes of occurrences that nobody sent in time, because no beat was there."""

    SKIP = "skip"
    """They are not sent."""
    ONCE = "once"
    """The last of them is sent, for all."""
    ALL = "all"
    """Each is sent, if it is not older than the window."""


class Overlap(StrEnum):
    """What becomes of an occurrence when the task of the one before it has not ended."""

    ALLOW = "allow"
    """It is sent all the same."""
    SKIP = "skip"
    """It is not sent."""
    QUEUE = "queue"
    """One of them is sent when the one before it has ended; the others are not."""
    CANCEL = "cancel"
    """The one before it is revoked and stopped."""


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A schedule with a planned call, as data: what somebody wants to happen, and when."""

    name: str
    schedule: str
    """As `core.schedules.as_data` writes it: a cron string, a number of seconds, or a JSON object."""
    task: str
    args: Raw = Raw(b"[]")
    """JSON values, as `encode_value` writes them; so are the other two."""
    kwargs: Raw = Raw(b"{}")
    options: Raw = Raw(b"{}")
    """What `apply_async` takes."""
    enabled: bool = True
    """Whether it begins as a paused one. Of an entry that the engine holds already, `pause` and `resume` decide."""
    source: str = ""
    """Whose it is: "" for a stored entry, else the app whose settings name it."""
    description: str = ""
    misfire: Misfire = Misfire.ONCE
    misfire_window_seconds: float | None = None
    """What was missed by more than this is not sent by any policy. None: for ALL one day, else no limit."""
    misfire_grace_seconds: float = 10.0
    """What is late by no more than this counts as sent in time."""
    overlap: Overlap = Overlap.ALLOW
    jitter_seconds: float = 0.0
    """Each occurrence is sent up to so much later than planned, at random; but not after the next is planned."""
    starts_at: float | None = None
    """Nothing is planned before this: seconds since 1970. An interval counts from here."""
    ends_at: float | None = None
    """Nothing is planned after this."""
    max_runs: int | None = None
    """After so many it is finished."""
    expires_seconds: float | None = None
    """A message that nobody has started so long after its planned time is not run."""


class EntryState(Struct, frozen=True, kw_only=True):
    """An entry where it stands."""

    name: str
    entry: Entry | None
    """None: what the engine holds cannot be read (somebody wrote it by hand), and `error` says why."""
    error: str = ""
    version: int = 0
    """Another one after each change, whoever makes it."""
    enabled: bool = True
    planned_at: float | None = None
    """The next occurrence; None: there is none, or (with `due_at` 0) it has to be computed."""
    due_at: float | None = None
    """When somebody has to look at it: 0 for at once, None for never (paused or finished)."""
    resumed: bool = False
    """It was paused until now: what was planned meanwhile is not sent."""
    queued_at: float | None = None
    """The planned time of an occurrence that waits until the one before it has ended."""
    last_planned_at: float | None = None
    """The planned time of the last occurrence that was sent."""
    last_run_at: float | None = None
    """When it was sent."""
    last_message_id: str | None = None
    total_run_count: int = 0


class Planning(Struct, frozen=True, kw_only=True):
    """An entry to keep, and its first occurrence, should it be new or have another schedule."""

    entry: Entry
    planned_at: float | None
    due_at: float | None


class LedgerLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an occurrence: (entry, planned_at) names it."""

    entry: str
    planned_at: float
    outcome: str
    """sent · queued (waits until the one before it has ended) · skipped · kept (as `Schedules.fire` says)"""
    due_at: float = 0.0
    """When it was to be sent: `planned_at`, and the jitter."""
    fired_at: float = 0.0
    """When this was decided, by the engine's clock; the engine fills it in."""
    message_id: str | None = None
    why: str = ""
    """Why not: paused, overlap, misfire …; or for what reason it was sent out of its time."""
    occurrences: int = 1
    """For how many this line stands, up to the one at `until`."""
    until: float | None = None
    suppressed: int = 0
    """How many others wanted to send it too, and were refused."""

    @property
    def late_seconds(self) -> float:
        """How much later than it should have."""
        return max(0.0, self.fired_at - self.due_at)


class Firing(Struct, frozen=True, kw_only=True):
    """One transition of an entry: what comes of the occurrences that are due, and which is the next."""

    name: str
    version: int
    """Of the state that this was computed from."""
    planned_at: float | None
    due_at: float | None
    queued_at: float | None = None
    lines: Sequence[LedgerLine] = ()
    messages: Sequence[Message] = ()
    """Each belongs to the line of outcome `sent` that bears its id."""


class Due(Struct, frozen=True, kw_only=True):
    """What `Schedules.due` has seen."""

    now: float
    """The engine's clock."""
    states: list[EntryState]
    next_due_at: float | None
    """When the first of all others is due; None: there is none."""


class Schedules(Protocol):
    """Where schedules are kept: `engine.schedules`, with the connection and in the transactions of its engine. Raises `EngineUnavailable` from every
    verb when it cannot be reached; then nothing has changed. All times are seconds since 1970 by the engine's clock.

    Where the engine is a database, people may change the table `schedules` by SQL: the database itself then gives the row a new version, and a `due_at` of 0, or none
    if it is paused now. A changed schedule loses its `planned_at`; a row that is enabled again gets `resumed`.
    """

    def now(self) -> float:
        """The engine's clock."""
        ...

    def put(self, plannings: Sequence[Planning]) -> list[str]:
        """→ planned. All of them or none, except those refused.

        A new entry begins at what its planning says; with `enabled` false it is paused. One that the engine holds is replaced, with its counts kept; if its `schedule`, `starts_at` or `ends_at` is another now, or it was finished, it
        goes on at what the planning says, else where it stood. What is the same as before changes nothing at all. Returns the names of those refused: an entry of that name
        from another `source` is held.
        """
        ...

    def remove(self, names: Sequence[str]) -> list[str]:
        """→ gone; the ledger keeps its lines. Returns the names of those that were there."""
        ...

    def pause(self, names: Sequence[str]) -> list[str]:
        """Nothing of these entries is due until `resume`. Lasts over restarts. Returns the names of those that were not paused."""
        ...

    def resume(self, names: Sequence[str]) -> list[str]:
        """They are due at once, with `resumed` set. Returns the names of those that were paused."""
        ...

    def entries(
        self, names: Sequence[str] | None = None, *, source: str | None = None, after: str = "", limit: int = 1000
    ) -> list[EntryState]:
        """These entries, or all, or all of one source, by name; those whose name comes after `after`, up to `limit`."""
        ...

    def due(self, limit: int) -> Due:
        """Up to `limit` entries that are due, the longest due first. Changes nothing. The cost does not depend on how many entries there are."""
        ...

    def fire(self, firings: Sequence[Firing], *, publish: bool = True) -> list[str]:
        """due → planned again, each as its firing says; each in one step: the claim, the lines in the ledger, the messages in their queues.

        Returns the names of those that were refused, because the entry's version is another by now (it was changed, or somebody else has fired it) or it is gone: of these nothing happens, but that
        the ledger's lines of the occurrences that they wanted to send count it (`suppressed`).

        An occurrence has one line and is sent once, whatever is fired: a line replaces one that says `queued`; any other stays as it is, counts the attempt, and the message is not published.
        For each message sent, `last_planned_at`, `last_run_at`, `last_message_id` and `total_run_count` follow. `resumed` is over. An entry that is paused stays so.

        `publish=False`, for a broker that is another engine: the messages are kept instead, and their lines say `kept`, until `sent`.
        """
        ...

    def kept(self, limit: int, *, older_than_seconds: float = 0.0) -> list[Message]:
        """Messages that were fired with `publish=False`, longer ago than that, and that nobody has reported as `sent`; the oldest first."""
        ...

    def sent(self, ids: Sequence[str]) -> None:
        """These kept messages are published: their lines say `sent`, and the messages are forgotten."""
        ...

    def history(self, entry: str | None = None, *, limit: int = 100, before: float | None = None) -> list[LedgerLine]:
        """The ledger's lines of one entry, or of all: by planned time, the latest first; those planned before `before`."""
        ...

    def prune(self, older_than_seconds: float, *, limit: int = 1000) -> int:
        """Removes up to `limit` lines that were written longer ago, those of kept messages excepted. Returns how many."""
        ...


class SchedulingEngine(Protocol):
    """An engine whose `capabilities.schedules` is true."""

    @property
    def schedules(self) -> Schedules:
        """Always the same object."""
        ...
