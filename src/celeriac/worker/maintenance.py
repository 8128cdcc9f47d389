"""What has to be done now and then, by any worker: expired results are pruned. No beat is needed for it."""

from __future__ import annotations

import logging
import time

from ..contracts.results import ResultBackend

logger = logging.getLogger("celeriac.worker")

PRUNE_EVERY_SECONDS = 30.0
PRUNE_LIMIT = 1000


class Upkeep:
    """The chores of one supervisor, a little at a time."""

    def __init__(self, backend: ResultBackend) -> None:
        self._backend = backend
        self._next_prune = time.monotonic() + PRUNE_EVERY_SECONDS

    def run(self) -> None:
        """Does what is due. Raises EngineUnavailable."""
        now = time.monotonic()
        if now < self._next_prune:
            return
        pruned = self._backend.prune(PRUNE_LIMIT)
        self._next_prune = now + (1.0 if pruned == PRUNE_LIMIT else PRUNE_EVERY_SECONDS)
