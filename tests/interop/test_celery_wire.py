"""Celery's wire format, byte for byte as Celery 5.7 was seen to write it, and back."""

from __future__ import annotations

import bz2
import zlib
from base64 import b64encode
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from celeriac.core.errors import DecodeError
from celeriac.core.message import Attempt, Message
from celeriac.engines import rabbitmq_wire as wire
from celeriac.interop.celery import body_of, content_encoding_of, headers_of, message_of
from celeriac.testing.contract.publishing import FULL

ID = "0e1b4c40-7f5e-4a6c-b1a5-3d1c2f0c9f11"
CAPTURED_HEADERS: dict[str, Any] = {
    "lang": "py",
    "task": "proj.add",
    "id": ID,
    "shadow": None,
    "eta": "2026-11-21T03:37:28.176490+00:00",
    "expires": None,
    "group": None,
    "group_index": None,
    "retries": 0,
    "timelimit": [20, 10],
    "root_id": ID,
    "parent_id": None,
    "argsrepr": "(2, 3)",
    "kwargsrepr": "{}",
    "origin": "gen61@host",
    "ignore_result": False,
    "replaced_task_nesting": 0,
    "stamped_headers": None,
    "stamps": {},
}
CAPTURED_PROPERTIES: dict[str, Any] = {
    "correlation_id": ID,
    "reply_to": "8f93ca63-58a4-31b4-87c5-2c1e2e55ab5b",
    "content_type": "application/json",
    "content_encoding": "utf-8",
    "delivery_mode": 2,
    "priority": 3,
}
CAPTURED_BODY = b'[[2, 3], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'


def read(headers: dict[str, Any], body: bytes = b"[[],{},{}]", **properties: Any) -> Message:
    return message_of(headers, properties, body, queue="celery")


def test_what_celery_writes_is_read() -> None:
    message = message_of(CAPTURED_HEADERS, CAPTURED_PROPERTIES, CAPTURED_BODY, queue="shop")
    assert (message.id, message.task, message.queue, message.priority) == (ID, "proj.add", "shop", 3)
    assert message.eta == datetime(2026, 11, 21, 3, 37, 28, 176490, tzinfo=UTC)
    assert (message.time_limit, message.soft_time_limit) == (20.0, 10.0), "the hard limit comes first"
    assert message.reply_to == CAPTURED_PROPERTIES["reply_to"]
    assert bytes(message.body) == CAPTURED_BODY
    assert message.headers == {}


def test_we_write_what_celery_writes() -> None:
    message = message_of(CAPTURED_HEADERS, CAPTURED_PROPERTIES, CAPTURED_BODY, queue="shop")
    assert headers_of(message) == CAPTURED_HEADERS
    assert list(headers_of(message)) == list(CAPTURED_HEADERS)
    assert body_of(message) == CAPTURED_BODY
    assert content_encoding_of(message) == "utf-8"


@pytest.mark.parametrize(
    "message",
    [
        FULL,
        Message(id="a", task="t", body=Raw(b"[[],{},null]")),
        Message(id="a", task="t", body=Raw(b'"gAJ9cQAu"'), content_type="application/x-python-serialize"),
        Message(id="a", task="t", body=Raw(b"[]"), join="j", join_index=3, joined="k", doom={"exc_type": "TimeLimitExceeded", "exc_message": [1]}),
        Message(id="a", task="t", body=Raw(b"[]"), headers={"celery_beat_task": True, "tenant": "é", "n": [1, None, {"x": 2.5}]}),
        Message(id="a", task="t", body=Raw(b"[]"), expires=datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=-5)))),
        Message(id="a", task="t", body=Raw(b"[]"), attempts=[Attempt(worker="w", started_at=datetime(2020, 1, 1, tzinfo=UTC), runtime_seconds=0.25, state="RETRY")]),
    ],
)  # fmt: skip
def test_there_and_back(message: Message) -> None:
    """Through AMQP's tables too, as it really travels."""
    raw = wire.properties(
        headers_of(message),
        content_type=message.content_type,
        content_encoding=content_encoding_of(message),
        priority=message.priority,
        correlation_id=message.id,
        reply_to=message.reply_to,
    )
    headers, properties = wire.read_properties(raw)
    assert wire.read_id(raw) == message.id
    assert message_of(headers, properties, body_of(message), queue=message.queue) == message


def test_what_celery_does_not_know_is_one_header() -> None:
    message = Message(id="a", task="t", body=Raw(b"[]"), join="j")
    extra = headers_of(message).keys() - CAPTURED_HEADERS.keys()
    assert extra == {"celeriac"}
    assert msgspec.json.decode(headers_of(message)["celeriac"]) == {"join": "j"}


def test_a_foreign_producer_gives_three_headers() -> None:
    message = read({"lang": "go", "task": "proj.add", "id": "x"}, b"[[1],{},null]")
    assert message == Message(id="x", task="proj.add", body=Raw(b"[[1],{},null]"))


def test_naive_times_are_utc() -> None:
    assert read({"task": "t", "id": "x", "eta": "2026-01-02T03:04:05"}).eta == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_headers_that_brokers_add_are_not_the_callers() -> None:
    assert read({"task": "t", "id": "x", "x-delivery-count": 3, "x-death": [{}], "celeriac-since": 1.5, "mine": 1}).headers == {"mine": 1}


def test_a_priority_beyond_ours_is_the_highest() -> None:
    assert read({"task": "t", "id": "x"}, priority=200).priority == 9


@pytest.mark.parametrize(("name", "compress"), [("application/x-gzip", zlib.compress), ("application/x-bz2", bz2.compress)])
def test_compressed_bodies(name: str, compress: Any) -> None:
    assert bytes(read({"task": "t", "id": "x", "compression": name}, compress(CAPTURED_BODY)).body) == CAPTURED_BODY


def test_other_formats_travel_as_base64() -> None:
    message = read({"task": "t", "id": "x"}, b"\x80\x02}q\x00.", content_type="application/x-python-serialize")
    assert msgspec.json.decode(message.body) == b64encode(b"\x80\x02}q\x00.").decode()
    assert body_of(message) == b"\x80\x02}q\x00."


def test_protocol_1() -> None:
    old = {
        "task": "proj.add", "id": "x", "args": [1, 2], "kwargs": {"z": 3}, "group": None, "retries": 2, "eta": "2026-11-21T03:37:28+00:00",
        "expires": None, "utc": True, "callbacks": [{"task": "c"}], "errbacks": None, "timelimit": [5, None], "taskset": "g", "chord": None,
    }  # fmt: skip
    message = read({}, msgspec.json.encode(old))
    assert (message.id, message.task, message.retries, message.group, message.time_limit) == ("x", "proj.add", 2, "g", 5.0)
    args, kwargs, embed = msgspec.json.decode(message.body)
    assert (args, kwargs, embed["callbacks"]) == ([1, 2], {"z": 3}, [{"task": "c"}])


@pytest.mark.parametrize(
    ("headers", "body", "properties"),
    [
        ({}, b"hello", {}),
        ({}, b"[1]", {}),
        ({}, b"\x80\x02", {"content_type": "application/x-python-serialize"}),
        ({"task": "t", "id": "x"}, b"[[1", {}),
        ({"task": "t", "id": "x"}, b"", {}),
        ({"task": 5, "id": "x"}, b"[]", {}),
        ({"task": "t", "id": None}, b"[]", {}),
        ({"task": "t", "id": "x", "retries": "many"}, b"[]", {}),
        ({"task": "t", "id": "x", "eta": "tomorrow"}, b"[]", {}),
        ({"task": "t", "id": "x", "timelimit": [1]}, b"[]", {}),
        ({"task": "t", "id": "x", "compression": "zstd"}, b"[]", {}),
        ({"task": "t", "id": "x", "compression": "zlib"}, b"no zlib", {}),
        ({"task": "t", "id": "x", "celeriac": "{"}, b"[]", {}),
    ],
)
def test_what_is_no_task_says_why(headers: dict[str, Any], body: bytes, properties: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match=r"\w"):
        read(headers, body, **properties)
