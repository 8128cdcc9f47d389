"""What an engine promises about results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..core.message import Lease, Record


class Subscription(Protocol):
    """A wait for results that somebody began. Close it: nothing of it remains in the engine then."""

    def fileno(self) -> int:
        """A file descriptor that is readable when `changed` has something to say; for event loops."""
        ...

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        """True when one of the results may have changed since the subscription began or since the last True; waits up to `timeout_seconds`."""
        ...

    def close(self) -> None: ...


class ResultBackend(Protocol):
    """Where results are kept until they expire. Raises `EngineUnavailable` when it cannot be reached."""

    url: str

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        """Keeps the records, each instead of the one before it. A record in a ready state is never replaced by one in an unready state.

        With `lease` (one record, an engine that also holds the message): only while this lease holds; a zombie stores nothing.
        Returns the ids of the records that were refused. (A settlement is not refused because of its record: that alone is left out.)
        """
        ...

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        """The records of these tasks; those of which nothing is known are absent."""
        ...

    def forget(self, ids: Sequence[str]) -> None:
        """Removes records."""
        ...

    def subscribe(self, ids: Sequence[str]) -> Subscription:
        """From now on changes of these results are told. Look with `fetch` after this call, then wait: so none is missed."""
        ...

    def prune(self, limit: int = 1000) -> int:
        """Removes up to `limit` records that were stored longer than `result_expires` ago, by the engine's clock. Returns how many."""
        ...

    def close(self) -> None: ...
