"""A foreseen trouble (the engine is away) is one log line when it starts and one when it ends."""

from __future__ import annotations

import logging
import time


class Trouble:
    """Watches one thing that may fail for a while."""

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._logger = logger
        self._what = what
        self._since: float | None = None

    @property
    def lasts(self) -> bool:
        """It has failed, and has not worked since."""
        return self._since is not None

    def seen(self, error: BaseException) -> None:
        """It failed (again)."""
        if self._since is None:
            self._since = time.monotonic()
            self._logger.error("%s is in trouble; trying again until it is back: %s", self._what, error)

    def over(self) -> None:
        """It works."""
        if self._since is not None:
            self._logger.warning("%s is back after %.1f s.", self._what, time.monotonic() - self._since)
            self._since = None
