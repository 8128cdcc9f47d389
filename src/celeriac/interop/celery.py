"""Celery's wire format: a `Message` as the headers, properties and body of Celery's task protocol 2, and back. Pure functions; no I/O, no AMQP.

    headers      one for each field that Celery knows, under Celery's name; the caller's own beside them; and, when something of ours is not as usual,
                 `celeriac`: a string of JSON with the fields that Celery has no word for
    properties   correlation_id, reply_to, priority, content_type, content_encoding
    body         the JSON array `[args, kwargs, embed]` itself; in other formats, the bytes of that format

What Celery writes is read, protocol 1 included (empty headers, all in the body). A message of a foreign producer needs `task` and `id`, no more.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Raw, structs

from ..core.errors import DecodeError
from ..core.message import Message

JSON = "application/json"
OURS = "celeriac"
"""The header with what Celery has no word for."""

_CELERYS = frozenset(
    {
        "id", "task", "body", "priority", "content_type", "eta", "expires", "root_id", "parent_id", "group", "group_index", "retries",
        "time_limit", "soft_time_limit", "shadow", "argsrepr", "kwargsrepr", "origin", "reply_to", "ignore_result", "replaced_task_nesting",
        "stamped_headers", "stamps", "headers", "queue",
    }
)  # fmt: skip
_OWN_FIELDS = [field for field in structs.fields(Message) if field.name not in _CELERYS]
_PLAIN = {field.name: field.default_factory() if field.default is msgspec.NODEFAULT else field.default for field in _OWN_FIELDS}
_HEADERS = frozenset(
    {
        "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries", "timelimit", "root_id", "parent_id", "argsrepr",
        "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps", "compression", OURS,
    }
)  # fmt: skip
_THE_BROKERS = ("x-", "celeriac-")
"""Headers that brokers and engines add on the way begin so."""
_SAME_NAMES = (
    "shadow", "group", "group_index", "retries", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin", "ignore_result",
    "replaced_task_nesting", "stamped_headers", "stamps",
)  # fmt: skip
_NOT_NULL = frozenset({"retries", "argsrepr", "kwargsrepr", "origin", "ignore_result", "replaced_task_nesting", "stamps"})
_encode = msgspec.json.Encoder().encode
_any_json = msgspec.json.Decoder(Raw).decode
_json = msgspec.json.Decoder().decode
_TEXT = frozenset({"application/json", "application/x-yaml", "text/plain"})


def headers_of(message: Message) -> dict[str, Any]:
    """The headers, as Celery's protocol 2 has them. `celeriac` is among them only when a field of ours is not as usual."""
    headers: dict[str, Any] = {
        "lang": "py",
        "task": message.task,
        "id": message.id,
        "shadow": message.shadow,
        "eta": message.eta.isoformat() if message.eta is not None else None,
        "expires": message.expires.isoformat() if message.expires is not None else None,
        "group": message.group,
        "group_index": message.group_index,
        "retries": message.retries,
        "timelimit": [message.time_limit, message.soft_time_limit],
        "root_id": message.root_id,
        "parent_id": message.parent_id,
        "argsrepr": message.argsrepr,
        "kwargsrepr": message.kwargsrepr,
        "origin": message.origin,
        "ignore_result": message.ignore_result,
        "replaced_task_nesting": message.replaced_task_nesting,
        "stamped_headers": message.stamped_headers,
        "stamps": message.stamps,
    }
    if message.headers:
        headers.update(message.headers)
    own = {name: value for name, plain in _PLAIN.items() if (value := getattr(message, name)) != plain}
    if own:
        headers[OURS] = _encode(own).decode()
    return headers


def body_of(message: Message) -> bytes:
    """The body, as it travels."""
    if message.content_type == JSON:
        return bytes(message.body)
    return b64decode(_json(message.body))


def content_encoding_of(message: Message) -> str:
    return "utf-8" if message.content_type in _TEXT else "binary"


def message_of(headers: dict[str, Any], properties: dict[str, Any], body: bytes, *, queue: str) -> Message:
    """The message that Celery, or we, sent. `properties` bears AMQP's names; those that are missing are as usual.

    Raises: DecodeError: it is none, and why.
    """
    try:
        if "task" not in headers:
            headers, body = _from_protocol_1(properties, body)
        return _message_of(headers, properties, body, queue)
    except DecodeError:
        raise
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, AttributeError, IndexError) as problem:
        raise DecodeError(f"It is no message of Celery's task protocol: {problem}") from problem


def _message_of(headers: dict[str, Any], properties: dict[str, Any], body: bytes, queue: str) -> Message:
    content_type = properties.get("content_type") or JSON
    compression = headers.get("compression")
    if compression:
        body = _decompressed(body, str(compression))
    values: dict[str, Any] = {
        "id": headers.get("id") or properties.get("correlation_id"),
        "task": headers["task"],
        "queue": queue,
        "priority": min(properties.get("priority") or 0, 9),
        "content_type": content_type,
        "reply_to": properties.get("reply_to") or "",
    }
    for name in _SAME_NAMES:
        value = headers.get(name)
        if value is not None or name not in _NOT_NULL:
            values[name] = value
    limits = headers.get("timelimit")
    if limits:
        values["time_limit"], values["soft_time_limit"] = limits
    for name in ("eta", "expires"):
        if headers.get(name) is not None:
            values[name] = _moment(headers[name])
    if not _HEADERS.issuperset(headers):
        others = {name: value for name, value in headers.items() if name not in _HEADERS and not name.startswith(_THE_BROKERS)}
        if others:
            values["headers"] = others
    own = headers.get(OURS)
    if own:
        for name, value in _json(own).items():
            if name in _PLAIN:
                values[name] = value
    message = msgspec.convert({**values, "body": None}, _Unbodied, strict=True)
    raw = _any_json(body) if content_type == JSON else Raw(_encode(b64encode(body).decode()))
    return Message(body=raw, **{name: getattr(message, name) for name in _UNBODIED})


class _Unbodied(Message, frozen=True, kw_only=True):
    body: None = None  # type: ignore[assignment]


_UNBODIED = [field.name for field in structs.fields(Message) if field.name != "body"]


def _moment(value: Any) -> datetime:
    """Naive ones are UTC, as with Celery."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _from_protocol_1(properties: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """All that a message of protocol 1 says is in its body."""
    if (properties.get("content_type") or JSON) != JSON:
        raise DecodeError("It has no header `task`, and its body is not JSON; so it is no task.")
    old = _json(body)
    if not isinstance(old, dict) or "task" not in old or "id" not in old:
        raise DecodeError("It has no header `task`, and its body names none; so it is no task.")
    args, kwargs = old.get("args") or [], old.get("kwargs") or {}
    headers = {
        "task": old["task"],
        "id": old["id"],
        "root_id": old["id"],
        "eta": old.get("eta"),
        "expires": old.get("expires"),
        "group": old.get("group") or old.get("taskset"),
        "group_index": old.get("group_index"),
        "retries": old.get("retries") or 0,
        "timelimit": old.get("timelimit") or [None, None],
        "argsrepr": repr(tuple(args)),
        "kwargsrepr": repr(kwargs),
    }
    embed = {"callbacks": old.get("callbacks"), "errbacks": old.get("errbacks"), "chain": None, "chord": old.get("chord")}
    return headers, _encode([args, kwargs, embed])


def _decompressed(body: bytes, method: str) -> bytes:
    import bz2
    import zlib

    try:
        match method:
            case "application/x-gzip" | "zlib" | "gzip":
                return zlib.decompress(body)
            case "application/x-bz2" | "bzip2" | "bzip":
                return bz2.decompress(body)
    except (zlib.error, OSError, ValueError) as problem:
        raise DecodeError(f"Its body is said to be compressed by {method}, and is not: {problem}") from problem
    raise DecodeError(f"Its body is compressed by {method!r}, which is not known here. zlib and bzip2 are.")
