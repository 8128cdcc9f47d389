"""A process beside those that run tasks, for something else that a worker is asked to do: beat. Its supervisor starts it again when it dies, and ends it with itself."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from .logs import name_process
from .process import die_with

logger = logging.getLogger("celeriac.worker")

PAUSE_SECONDS = 1.0
"""Between two starts of one that dies as soon as it starts; doubled each time."""
LONGEST_PAUSE_SECONDS = 30.0
STOP_SECONDS = 5.0
"""How long it may take to stop before it is killed."""


class Companion:
    """One such process, as its supervisor sees it."""

    def __init__(self, name: str, work: Callable[[], int]) -> None:
        self.name = name
        self.pid = 0
        self._work = work
        self._stopping = False
        self._started_at = 0.0
        self._not_before = 0.0
        self._pause = PAUSE_SECONDS

    def watch(self) -> None:
        """Starts it, if it does not run and is not to stop. Never waits."""
        if self.ended() and not self._stopping and time.monotonic() >= self._not_before:
            self._start()

    def stop(self) -> None:
        """Tells it to stop, once."""
        if not self._stopping:
            self._stopping = True
            self._signal(signal.SIGTERM)

    def end(self) -> None:
        """Waits for its end, and makes it."""
        self.stop()
        deadline = time.monotonic() + STOP_SECONDS
        while not self.ended():
            if time.monotonic() > deadline:
                self._signal(signal.SIGKILL)
            time.sleep(0.005)

    def ended(self) -> bool:
        """True when it does not run (any more)."""
        if not self.pid:
            return True
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0
        if not pid:
            return False
        self.pid = 0
        if not self._stopping:
            self._consider_end(os.waitstatus_to_exitcode(status))
        return True

    def _consider_end(self, code: int) -> None:
        now = time.monotonic()
        lived_seconds = now - self._started_at
        self._pause = PAUSE_SECONDS if lived_seconds > LONGEST_PAUSE_SECONDS else min(self._pause * 2, LONGEST_PAUSE_SECONDS)
        self._not_before = now + (0.0 if lived_seconds > PAUSE_SECONDS else self._pause)
        logger.warning("The process of %s ended with exit code %s; it is started again.", self.name, code)

    def _start(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._started_at = time.monotonic()
        supervisor_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            logger.error("The process of %s cannot be started: %s. Trying again.", self.name, error)
            self._not_before = self._started_at + PAUSE_SECONDS
            return
        if pid:
            self.pid = pid
            return
        self._live(supervisor_pid)

    def _live(self, supervisor_pid: int) -> NoReturn:
        code = 70
        try:
            die_with(supervisor_pid)
            name_process(self.name.capitalize())
            # Its own handlers come with its work; until then a TERM of its supervisor ends it. The terminal's hang-up is the supervisor's to act on.
            for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                signal.signal(signum, signal.SIG_DFL)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            code = self._work()
        except BaseException:
            logger.exception("The process of %s could not work", self.name)
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _signal(self, signum: int) -> None:
        if self.pid:
            try:
                os.kill(self.pid, signum)
            except ProcessLookupError:
                pass
