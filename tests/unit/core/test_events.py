"""Signals as Celery's users know them."""

from __future__ import annotations

import gc
import logging
from typing import Any

import pytest

import celeriac.signals
from celeriac.core import events
from celeriac.core.events import Signal

CELERY = """
before_task_publish after_task_publish task_prerun task_postrun task_success task_retry task_failure task_internal_error task_received task_revoked
task_unknown task_rejected task_sent import_modules celeryd_init celeryd_after_setup worker_init worker_ready worker_shutting_down worker_shutdown
worker_before_create_process worker_process_init worker_process_shutdown heartbeat_sent setup_logging after_setup_logger after_setup_task_logger
beat_init beat_embedded_init eventlet_pool_started eventlet_pool_preshutdown eventlet_pool_postshutdown eventlet_pool_apply user_preload_options
""".split()


class Listener:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def __call__(self, **arguments: Any) -> str:
        self.heard.append(arguments)
        return "heard"

    def method(self, **arguments: Any) -> None:
        self.heard.append(arguments)


@pytest.fixture
def signal() -> Signal:
    return Signal("something", ("value",))


@pytest.mark.parametrize("name", CELERY)
def test_celerys_signals_exist(name: str) -> None:
    found = getattr(celeriac.signals, name)
    assert isinstance(found, Signal) and found.name == name and getattr(events, name) is found and name in celeriac.signals.__all__
    assert not found.receivers


def test_receivers_are_told(signal: Signal) -> None:
    listener = Listener()
    assert signal.send(sender="me") == []
    assert signal.connect(listener) is listener
    assert signal.send(sender="me", value=1) == [(listener, "heard")]
    assert listener.heard == [{"signal": signal, "sender": "me", "value": 1}]
    assert signal.receivers and signal.has_listeners("me")
    assert signal.disconnect(listener) and not signal.disconnect(listener)
    assert signal.send(sender="me") == [] and not signal.receivers


def test_as_a_decorator(signal: Signal) -> None:
    heard = []

    @signal.connect
    def one(**arguments: Any) -> None:
        heard.append("one")

    @signal.connect(sender="me")
    def two(sender: Any = None, **arguments: Any) -> None:
        heard.append("two")

    signal.send(sender="me")
    signal.send(sender="you")
    assert heard == ["one", "two", "one"]


def test_senders_are_told_apart(signal: Signal) -> None:
    one, two, listener = object(), object(), Listener()
    signal.connect(listener, sender=one)
    signal.send(sender=two)
    signal.send(sender=None)
    assert not listener.heard
    signal.send(sender=one)
    assert len(listener.heard) == 1
    assert not signal.disconnect(listener) and signal.disconnect(listener, sender=one)


def test_a_task_is_known_by_its_name(signal: Signal) -> None:
    class Task:
        name = "shop.mail"

        def apply_async(self) -> None: ...

    listener = Listener()
    signal.connect(listener, sender=Task())
    signal.send(sender=Task())
    signal.send(sender="shop.mail")
    assert len(listener.heard) == 2


def test_receivers_that_nobody_holds_are_forgotten(signal: Signal) -> None:
    listener = Listener()
    signal.connect(listener)
    signal.connect(listener.method)
    signal.send()
    assert len(listener.heard) == 2
    del listener
    gc.collect()
    assert not signal.receivers and signal.send() == []


def test_strong_receivers_stay(signal: Signal) -> None:
    heard = []
    signal.connect(lambda **arguments: heard.append(1), weak=False)
    gc.collect()
    signal.send()
    assert heard == [1]


def test_connecting_twice_calls_once(signal: Signal) -> None:
    listener = Listener()
    for _ in range(2):
        signal.connect(listener)
        signal.connect(listener.method)
    assert len(signal.receivers) == 2


def test_dispatch_uid(signal: Signal) -> None:
    one, two = Listener(), Listener()
    signal.connect(one, dispatch_uid="only")
    signal.connect(two, dispatch_uid="only")
    signal.send()
    assert len(one.heard) == 1 and not two.heard
    assert signal.disconnect(dispatch_uid="only") and not signal.receivers


def test_what_a_receiver_raises_is_logged_and_stays_there(signal: Signal, caplog: pytest.LogCaptureFixture) -> None:
    def broken(**arguments: Any) -> None:
        raise ValueError("no")

    listener = Listener()
    signal.connect(broken)
    signal.connect(listener)
    with caplog.at_level(logging.ERROR):
        answers = signal.send()
    assert [type(answer) for _, answer in answers] == [ValueError, str]
    assert "broken" in caplog.text and "something" in caplog.text


def test_retry(signal: Signal) -> None:
    tries = []

    def flaky(**arguments: Any) -> str:
        tries.append(1)
        if len(tries) < 3:
            raise ValueError
        return "done"

    signal.connect(flaky, retry=True)
    assert signal.send()[0][1] == "done" and len(tries) == 3
    assert signal.disconnect(flaky)


def test_a_receiver_must_be_callable(signal: Signal) -> None:
    with pytest.raises(TypeError, match="must be callable"):
        signal.connect(5)  # type: ignore[call-overload]


def test_connecting_while_sending(signal: Signal) -> None:
    late = Listener()

    def early(**arguments: Any) -> None:
        signal.connect(late)

    signal.connect(early)
    signal.send()
    assert not late.heard
    signal.send()
    assert len(late.heard) == 1


def test_repr(signal: Signal) -> None:
    assert repr(signal) == "<Signal: something providing value>"
