"""What people and dashboards may read of an engine, and the few things they may change by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from ..core.message import Message


class Depth(Struct, frozen=True, kw_only=True):
    """How many messages of a queue are in which state."""

    ready: int = 0
    scheduled: int | None = 0
    leased: int | None = 0
    """None, like `scheduled`: the engine cannot say (`Capabilities.counts`)."""
    dead: int = 0
    paused_by: str | None = None
    """Who paused the queue; None when it is not paused."""

    @property
    def waiting(self) -> int:
        """Ready and scheduled, as far as the engine can say."""
        return self.ready + (self.scheduled or 0)


class Waiting(Struct, frozen=True, kw_only=True):
    """A message where it is now."""

    id: str
    queue: str
    state: str
    """ready, scheduled, leased or dead."""
    message: Message | None
    """None when it cannot be decoded."""
    due_at: float | None = None
    """Seconds since 1970, for scheduled ones; None for those that wait for an event, however long it takes."""
    waiting_since: float = 0.0
    ahead: int | None = None
    """How many ready ones of the same queue come before it; only `find` counts them."""
    node: str | None = None
    process: int | None = None
    crashes: int = 0
    interruptions: int = 0
    reason: str = ""
    """Why it is dead."""
    died_at: float | None = None


class Inspector(Protocol):
    """Reads take no lease and change nothing."""

    def now(self) -> float:
        """The engine's clock: seconds since 1970."""
        ...

    def queues(self) -> list[str]:
        """The names of all queues that hold a message, dead letters included, or are paused."""
        ...

    def depth(self, queues: Sequence[str] | None = None) -> dict[str, Depth]:
        """Counts for the given queues (also empty ones), or for all that `queues()` names."""
        ...

    def peek(self, queue: str, *, state: str = "ready", limit: int = 100, offset: int = 0) -> list[Waiting]:
        """Messages of a queue in the order in which they would be reserved (dead ones: latest first)."""
        ...

    def find(self, ids: Sequence[str]) -> dict[str, Waiting]:
        """Where these messages are; ids that the engine does not hold are absent. Of a dead letter and a message of the same id: the message."""
        ...

    def revoked(self) -> list[str]:
        """The ids that are remembered as revoked, though the engine holds no waiting message of that id."""
        ...

    def purge(self, queues: Sequence[str]) -> int:
        """ready, scheduled → gone, unrecoverably. Returns how many. Leased ones and dead letters stay."""
        ...

    def pause(self, queues: Sequence[str], *, by: str) -> None:
        """Nothing more is reserved from these queues until `resume`. Publishing goes on. Lasts over restarts."""
        ...

    def resume(self, queues: Sequence[str]) -> None:
        """Undoes `pause`, and wakes those who wait."""
        ...

    def replay(self, ids: Sequence[str]) -> list[str]:
        """dead → ready, with crash count 0. Returns the ids that were dead letters. One whose id was published again
        meanwhile, and waits or is leased, stays where it is and is not returned."""
        ...

    def discard(self, ids: Sequence[str]) -> list[str]:
        """dead → gone. Returns the ids that were dead letters."""
        ...
