"""What an engine promises about durable steps: what a task has finished before it was interrupted, and what it waits for without holding a place.

A task that is run again, after a retry, a crash or a deploy, recalls its finished steps and goes on behind them. A step may be a wait: for a time, or for an event.
Then the task is settled with a `Pause`, and its message is scheduled: it costs what any scheduled message costs.

                    settle (RETRY, pause)                     occur, or its time has come
    leased ─────────────────────────────▶ scheduled ────────────────────────────────────▶ ready
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Raw, Struct

from ..core.message import Lease


class Step(Struct, frozen=True, kw_only=True):
    """A step of a task: finished, or a wait."""

    name: str
    result: Raw | None = None
    """A JSON value: what it came to; None as long as it is a wait without an outcome."""
    failed: bool = False
    """The result is that of a failure: the event did not come in time, say."""
    event: str | None = None
    """What it waits or waited for."""
    until: float | None = None
    """When the wait ends, by the engine's clock, in seconds since 1970; None: it has no limit, or is no wait."""


class Steps(Protocol):
    """Steps are kept as long as the engine holds the message of their task, dead letters too, and then until `result_expires`, like events: `prune` removes them.
    A settlement with `forgets` and the revocation of a waiting message forget them at once."""

    def remember(self, task_id: str, name: str, result: Raw, *, failed: bool = False, lease: Lease | None = None) -> Step | None:
        """Keeps the outcome of a step, only while this lease holds. Returns the step as it is kept now: of two outcomes the first stays, that of a wait too.
        None: the lease does not hold, and nothing was stored. Without a lease it is stored in any case."""
        ...

    def recall(self, task_id: str) -> dict[str, Step]:
        """The steps of a task, by name, in the order in which they were first named."""
        ...

    def occur(self, event: str, value: Raw) -> list[str]:
        """An event occurs: it is the outcome of each step that waits for it, and the messages of these are ready, all in one step. Returns the ids of these tasks.

        It is kept, so that who waits for it later has it at once; of two, the later one counts for those who come later.
        """
        ...
