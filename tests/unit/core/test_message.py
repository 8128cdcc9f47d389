"""Messages as they are stored: small, typed on the way in, and the same on the way out."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from msgspec import Raw

from celeriac.core.message import Attempt, Message, Record
from celeriac.core.serialize import encode_body


def test_come_back_as_they_were() -> None:
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    attempt = Attempt(worker="w", started_at=now, runtime_seconds=0.5, state="RETRY")
    message = Message(id="ü", task="t", body=encode_body((now, "\ud800"), {})[1], eta=now, headers={"a": [1]}, attempts=[attempt])
    back = msgspec.json.decode(msgspec.json.encode(message), type=Message)
    assert bytes(back.body) == bytes(message.body)
    assert msgspec.structs.replace(back, body=message.body) == message


def test_defaults_are_not_written() -> None:
    message = Message(id="1", task="t", body=Raw(b"[[],{},null]"))
    assert msgspec.json.encode(message) == b'{"id":"1","task":"t","body":[[],{},null]}'


def test_are_frozen() -> None:
    message = Message(id="1", task="t", body=Raw(b"null"))
    with pytest.raises(AttributeError):
        message.id = "2"  # type: ignore[misc]


@pytest.mark.parametrize(
    "raw",
    [b"{}", b'{"id":1,"task":"t","body":1}', b'{"id":"1","task":"t","body":1,"retries":"x"}', b'{"id":"1","task":"t","body":1,"eta":"x"}'],
)
def test_what_is_malformed_is_refused(raw: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(raw, type=Message)


def test_unknown_fields_of_a_newer_version_are_ignored() -> None:
    assert msgspec.json.decode(b'{"task_id":"1","status":"SUCCESS","new":1}', type=Record).task_id == "1"
