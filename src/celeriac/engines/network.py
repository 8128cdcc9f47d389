"""What engines of servers on a network share: when not to try, how to wait, and two things that the system has no time limit for."""

from __future__ import annotations

import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import BuiltinFunctionType
from typing import TypeVar

from ..core.errors import EngineUnavailable

FAILURES = 3
"""After so many in a row the server counts as away: calls fail at once …"""
PROBE_SECONDS = 1.0
"""… and one of them is let through to try every so often."""

SPIN_CREDIT = 8
"""After so many waits in a row that were not over while they spun …"""
SPIN_PAUSE = 32
"""… so many sleep at once, …"""
SPIN_TRIES = 4
"""… and then so many are tried again."""

T = TypeVar("T")


class Breaker:
    """Spares those who call a server that is away the wait: a view must not hang because the last one did."""

    __slots__ = ("_failures", "_monotonic", "_probe_at", "_trouble", "failed_at")

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failures = 0
        self._probe_at = 0.0
        self._trouble = ""
        self.failed_at = -math.inf
        """When a try failed last: a connection that has not been heard of since then may be dead, too."""

    def check(self, deadline: float, error: type[EngineUnavailable] = EngineUnavailable) -> None:
        """Before a call that ends by `deadline` (`time.monotonic()`). Raises `error` while the server counts as away; the one who is to try passes."""
        if self._failures < FAILURES:
            return
        now = self._monotonic()
        if now < self._probe_at:
            refusal = error(
                f"{self._trouble} (Not tried again now: the last {self._failures} tries failed, the next is in {self._probe_at - now:.1f} s.)"
            )
            refusal.tried = False
            raise refusal
        # Nobody else tries while this one does.
        self._probe_at = now + max(PROBE_SECONDS, deadline - now)

    def fails(self) -> bool:
        """The last try did."""
        return self._failures > 0

    def failed(self, trouble: str) -> None:
        self._failures += 1
        self._trouble = trouble
        self.failed_at = self._monotonic()
        self._probe_at = self.failed_at + PROBE_SECONDS

    def connected(self) -> None:
        """No answer yet, but quick enough: whatever becomes of this try, others need not wait for its deadline."""
        self._probe_at = min(self._probe_at, self._monotonic() + PROBE_SECONDS)

    def answered(self) -> None:
        """An answer counts; a connection alone, to a proxy whose server is gone, does not."""
        self._failures = 0


def in_time(action: Callable[[], T], seconds: float, *, too_late: Callable[[], object] = lambda: None) -> T:
    """What `action` returns or raises; TimeoutError after `seconds`. For what nothing can interrupt, such as the system's resolver: a thread does it, and may be left behind.

    `too_late` is called there when `action` ends after all.
    """
    answer: list[T] = []
    problem: list[BaseException] = []
    given_up = threading.Event()

    def run() -> None:
        try:
            answer.append(action())
        except BaseException as error:
            problem.append(error)
        if given_up.is_set():
            with suppress(Exception):
                too_late()

    thread = threading.Thread(target=run, name="celeriac-connect", daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if problem:
        raise problem[0]
    if answer:
        return answer[0]
    given_up.set()
    raise TimeoutError(f"no answer within {seconds:.3g} s")


def is_address(host: str) -> bool:
    """It needs no resolver."""
    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):
            socket.inet_pton(family, host)
            return True
    return False


class Spin:
    """Waits for descriptors, awake at first (spin, then park). To put a thread to sleep and to wake it takes a virtual machine some 35 µs, longer than many an answer; where the answer comes
    meanwhile, looking for it again and again costs little more processor time than that, and it is in hand at once. Where it does not come, most of the next waits sleep at once.

    The processor is offered to others between two looks. A process of several threads does not spin, lest it keep the interpreter from them, nor does one that has a single processor, or whose
    threads are greenlets. See docs/decisions/0026-awake-for-a-moment.md.
    """

    __slots__ = ("_credit", "_pause", "_seconds")

    def __init__(self, seconds: float) -> None:
        """`seconds`: for how long it stays awake."""
        self._seconds = seconds
        self._credit = SPIN_TRIES
        self._pause = 0

    def readable(self, descriptors: Sequence[int], seconds: float) -> list[int]:
        """As the function of that name."""
        if self._pause:
            self._pause -= 1
        elif _SEVERAL_PROCESSORS and seconds > 0 and threading.active_count() == 1 and type(_SYSTEM.get("poll")) is BuiltinFunctionType:
            look, now, offer = _poll(descriptors, select.POLLIN).poll, time.monotonic, os.sched_yield
            until = now() + min(seconds, self._seconds)
            while not (ready := look(0)) and now() < until:
                offer()
            if ready:
                self._credit = SPIN_CREDIT
                return [descriptor for descriptor, _ in ready]
            self._credit -= 1
            if not self._credit:
                self._credit, self._pause = SPIN_TRIES, SPIN_PAUSE
        return readable(descriptors, seconds)


_SYSTEM = vars(select)
"""gevent puts a class in the place of `poll`, and eventlet nothing at all."""
_SEVERAL_PROCESSORS = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0)) > 1


def readable(descriptors: Sequence[int], seconds: float) -> list[int]:
    """Those of them that can be read or are broken, as soon as there is one; [] after `seconds`."""
    if not hasattr(select, "poll"):  # eventlet takes it away
        return list(select.select([one for one in descriptors if one >= 0], (), (), max(0.0, seconds))[0])
    return [descriptor for descriptor, _ in _poll(descriptors, select.POLLIN).poll(_milliseconds(seconds))]


def writable(descriptor: int, seconds: float) -> bool:
    """Whether it can be written to, or is broken, within `seconds`."""
    if not hasattr(select, "poll"):
        return bool(select.select((), (descriptor,), (), max(0.0, seconds))[1])
    return bool(_poll((descriptor,), select.POLLOUT).poll(_milliseconds(seconds)))


def _poll(descriptors: Sequence[int], events: int) -> select.poll:
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, events)
    return poll


def _milliseconds(seconds: float) -> int:
    return math.ceil(max(0.0, min(seconds, 1e6)) * 1000)
