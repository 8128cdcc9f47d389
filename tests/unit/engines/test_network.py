"""What engines of servers on a network share."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from celeriac.core.errors import EngineUnavailable
from celeriac.engines.network import FAILURES, PROBE_SECONDS, Breaker, in_time, is_address, readable


class Seconds:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Seconds:
    return Seconds()


def broken(seconds: Seconds) -> Breaker:
    breaker = Breaker(seconds)
    for number in range(FAILURES):
        breaker.check(seconds.now + 5)
        breaker.failed(f"Trouble {number}.")
    return breaker


def test_calls_fail_at_once_after_some_failures_and_say_the_last_one(seconds: Seconds) -> None:
    breaker = broken(seconds)
    with pytest.raises(
        EngineUnavailable, match=r"Trouble 2\. \(Not tried again now: the last 3 tries failed, the next is in 1\.0 s\.\)"
    ) as caught:
        breaker.check(seconds.now + 5)
    assert not caught.value.tried


def test_one_call_is_let_through_to_try_and_nobody_else_while_it_does(seconds: Seconds) -> None:
    breaker = broken(seconds)
    seconds.now += PROBE_SECONDS
    breaker.check(seconds.now + 5)
    seconds.now += 4.9
    with pytest.raises(EngineUnavailable):
        breaker.check(seconds.now + 5)
    breaker.failed("Still.")
    seconds.now += PROBE_SECONDS
    breaker.check(seconds.now + 0.1)
    with pytest.raises(EngineUnavailable, match="Still"):
        breaker.check(seconds.now + 0.1)


def test_a_try_that_got_a_connection_and_then_broke_holds_up_the_next_one_no_longer_than_a_failure(seconds: Seconds) -> None:
    breaker = broken(seconds)
    seconds.now += PROBE_SECONDS
    breaker.check(seconds.now + 60)
    breaker.connected()
    with pytest.raises(EngineUnavailable):
        breaker.check(seconds.now + 60)
    seconds.now += PROBE_SECONDS
    breaker.check(seconds.now + 60)


def test_an_answer_ends_the_trouble(seconds: Seconds) -> None:
    breaker = broken(seconds)
    breaker.answered()
    for _ in range(10):
        breaker.check(seconds.now)


def test_an_engine_says_which_error_it_wants(seconds: Seconds) -> None:
    class Refused(EngineUnavailable):
        pass

    with pytest.raises(Refused):
        broken(seconds).check(seconds.now, Refused)


def test_what_cannot_be_interrupted_is_left_behind() -> None:
    go_on, told = threading.Event(), threading.Event()
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        in_time(go_on.wait, 0.01, too_late=told.set)
    assert not told.is_set()
    go_on.set()
    assert told.wait(10)


def test_what_ends_in_time_gives_its_answer_or_its_error() -> None:
    assert in_time(lambda: 7, 10) == 7
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 // 0, 10)


@pytest.mark.parametrize(("host", "expected"), [("10.0.0.1", True), ("::1", True), ("localhost", False), ("redis.example.com", False)])
def test_addresses_need_no_resolver(host: str, expected: bool) -> None:
    assert is_address(host) is expected


@pytest.mark.parametrize("eventlet", [False, True])
def test_readable(monkeypatch: pytest.MonkeyPatch, eventlet: bool) -> None:
    if eventlet:
        monkeypatch.delattr("select.poll")
    one, two = socket.socketpair()
    reader, writer = os.pipe()
    try:
        assert readable((one.fileno(), reader), 0.0) == []
        os.write(writer, b"!")
        assert readable((one.fileno(), reader), 10.0) == [reader]
        two.close()
        assert readable((one.fileno(), reader), 10.0) == [one.fileno(), reader]
    finally:
        one.close()
        two.close()
        os.close(reader)
        os.close(writer)
