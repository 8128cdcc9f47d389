"""What an engine promises about joins: the state behind chords, kept where the messages are.

A join is opened with the messages that are its members, or before them; each member's end arrives with its settlement; the last one publishes
what comes then. All of it happens inside `publish`, `settle`, `revoke` and whatever ends a revoked message; here is the rest.

        open               arrive, enlarge             the last arrives                  the last of `then` leaves
    ──────────▶ waiting ─────────────────▶ waiting ─────────────────────▶ complete ─────────────────────────────▶ forgotten

The cost of an arrival does not depend on the size of the join.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from ..core.message import Arrival, Join, Message


class JoinState(Struct, frozen=True, kw_only=True):
    """How far a join is."""

    id: str
    size: int | None
    """How many members it has, with those it was enlarged by; None as long as it is not sealed."""
    arrived: int = 0
    failed: int = 0
    """How many of those that arrived had failed."""


class Joins(Protocol):
    """A join is complete as soon as it has a size and so many members have arrived; it stays complete, and `then` is published once. An arrival at an index that has
    arrived already, or at a join that the engine does not hold (any more), changes nothing: so a member that is replayed or repeated counts
    once, as what it was at first.

    A join is held until as many messages have left it as `then` has (one, when that is empty). Joins to which nothing has happened for longer than `result_expires` are removed by `prune`, with the old results.
    """

    def seal(self, id: str, size: int) -> None:
        """The join has `size` members (and those it was enlarged by). If they have all arrived, what comes then is published in this step.
        A join that has a size already, or is not held, stays as it is."""
        ...

    def joins(self, ids: Sequence[str]) -> dict[str, JoinState]:
        """The joins of these ids that the engine holds."""
        ...

    def arrivals(self, id: str) -> list[Arrival]:
        """The members that have arrived, by their index; [] for a join that the engine does not hold."""
        ...

    def arrive(
        self,
        arrivals: Sequence[Arrival],
        *,
        opens: Sequence[Join] = (),
        enlarges: Mapping[str, int] | None = None,
        seals: Mapping[str, int] | None = None,
    ) -> list[Message]:
        """For members whose messages live in another engine: opens, enlarges, seals and counts, in this order and in one step. Publishes nothing, and returns what
        is to be published there: `then` of each join that this call completes.

        It may be repeated: the call in which the arrival, the opening or the sealing occurs that had completed a join returns its `then` again, as long as the join is held. So who died before
        publishing it is made good by whoever does his work again. `enlarges` belongs to the first of the arrivals, and is left out when that one had arrived before.
        """
        ...

    def leave(self, ids: Sequence[str]) -> None:
        """One of the messages of `then` has used the results of each of these joins. As `Settlement.leaves`, for messages of another engine; not to be repeated."""
        ...
