"""What engines of servers on a network share."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from celeriac.core.errors import EngineUnavailable
from celeriac.engines import network
from celeriac.engines.network import (
    FAILURES,
    PROBE_SECONDS,
    SPIN_CREDIT,
    SPIN_PAUSE,
    SPIN_TRIES,
    Breaker,
    Spin,
    in_time,
    is_address,
    readable,
)


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


@pytest.fixture
def offers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """How often a wait offered the processor to others: once for each look while it stays awake."""
    seen: list[str] = []
    monkeypatch.setattr(network, "_SEVERAL_PROCESSORS", True)
    monkeypatch.setattr(network.threading, "active_count", lambda: 1)
    monkeypatch.setattr(network.os, "sched_yield", lambda: seen.append("offered"))
    yield seen


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    both = os.pipe()
    yield both
    for descriptor in both:
        os.close(descriptor)


def test_what_comes_while_it_is_awake_is_seen_without_sleeping(
    offers: list[str], pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe

    def offer() -> None:
        offers.append("offered")
        if len(offers) == 3:
            os.write(writer, b"!")

    monkeypatch.setattr(network.os, "sched_yield", offer)
    monkeypatch.setattr(network, "readable", lambda *_: pytest.fail("it slept"))
    assert Spin(60.0).readable((reader,), 60.0) == [reader]
    assert len(offers) == 3
    assert Spin(60.0).readable((reader,), 60.0) == [reader], "what is there already takes one look"
    assert len(offers) == 3


def test_what_comes_later_is_seen_too(offers: list[str], pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe

    def asleep(descriptors: tuple[int, ...], seconds: float) -> list[int]:
        os.write(writer, b"!")
        return readable(descriptors, seconds)

    monkeypatch.setattr(network, "readable", asleep)
    assert Spin(0.05).readable((reader,), 60.0) == [reader]
    assert offers


def test_waits_that_are_long_stay_awake_ever_less(offers: list[str], pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    spin = Spin(1e-9)

    def awake() -> bool:
        """Whether the next wait, in which nothing comes, is awake at first."""
        before = len(looks)
        assert spin.readable((reader,), 0.001) == []
        return len(looks) > before

    looks: list[float] = []
    clock, here = network.time.monotonic, threading.get_ident()
    with pytest.MonkeyPatch.context() as patch:
        # Other threads may have the time, too.
        patch.setattr(network.time, "monotonic", lambda: (threading.get_ident() == here and looks.append(0.0)) or clock())
        rounds = [awake() for _ in range(2 * (SPIN_TRIES + SPIN_PAUSE))]
        assert rounds == 2 * ([True] * SPIN_TRIES + [False] * SPIN_PAUSE)
        os.write(writer, b"!")
        assert spin.readable((reader,), 1.0) == [reader]
        os.read(reader, 1)
        assert [awake() for _ in range(SPIN_CREDIT + 1)] == [True] * SPIN_CREDIT + [False], "one that paid gives credit"


@pytest.mark.parametrize("why", ["threads", "greenlets", "eventlet", "one processor", "no time"])
def test_who_would_be_in_the_way_sleeps_at_once(
    offers: list[str], pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    reader, _ = pipe
    if why == "threads":
        monkeypatch.setattr(network.threading, "active_count", lambda: 2)
    elif why == "greenlets":

        class Poll:
            def register(self, *_: int) -> None: ...

            def poll(self, _: int) -> list[tuple[int, int]]:
                return []

        monkeypatch.setattr(network.select, "poll", Poll)
    elif why == "eventlet":
        monkeypatch.delattr(network.select, "poll")
    elif why == "one processor":
        monkeypatch.setattr(network, "_SEVERAL_PROCESSORS", False)
    assert Spin(0.01).readable((reader,), 0.0 if why == "no time" else 0.02) == []
    assert offers == []
