"""A message as the RabbitMQ engine holds it: what is read of its headers, and how it is published again with others."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec

from ..core.ids import new_id
from ..core.message import Delivery, Holder, Lease
from . import rabbitmq_wire as wire
from .rabbitmq_sender import Publication, Topology

_SINCE = b"\x0eceleriac-sinced"
_UNUSUAL = (b"celeriac-counts", b"x-delivery-count", b"celeriac-left", b"celeriac-again")
_json = msgspec.json.Decoder().decode
_double = struct.Struct(">d")


class Held(msgspec.Struct, array_like=True):
    """A message that RabbitMQ has given us."""

    id: str
    queue: str
    properties: bytes
    body: bytes
    crashes: int = 0
    interruptions: int = 0
    token: int = 0
    since: float = 0.0
    again: bool = False
    """It may be a second copy of a message that is done."""
    tag: int | None = None
    """The broker's number of it; None while it is lost, when it was acknowledged before it ran, or when its queue of custody is gone: then only we have it."""
    kept: bool = False
    """That number is of its copy in custody."""
    lost: bool = False
    """The connection that held it is gone: the broker gives it to whoever comes first, maybe to us again."""
    holder: Holder | None = None
    taken_at: float = 0.0
    revoked: bool = False
    place: tuple[int, float, int, float] = (0, 0.0, 0, 0.0)
    """Its place among those that are buffered."""
    base: int = 0
    """The highest token of a lease that had ended when it was published."""
    copy: bool = False
    """It is a copy that was in custody, not what a settlement has published."""
    doubtful: bool = False
    """It was given to somebody before and came back without a word."""
    returns: int = 0
    """How often that was, as its queue counts: there may be a limit, at which RabbitMQ drops it."""


def read_slip(properties: bytes, body: bytes, queue: str, tag: int, redelivered: bool, now: float) -> tuple[Held, float]:
    """What has to be known of a message, mostly without a look at all of its headers; and for how many seconds it is not due yet."""
    try:
        at = properties.find(_SINCE)
        id = wire.read_id(properties)
        if at >= 0 and id and not redelivered and not any(word in properties for word in _UNUSUAL):
            return Held(
                id=id, queue=queue, properties=properties, body=body, since=_double.unpack_from(properties, at + 16)[0], tag=tag
            ), 0.0
        headers, _ = wire.read_properties(properties)
    except (ValueError, IndexError, struct.error):
        return Held(id=f"undecodable-{new_id()}", queue=queue, properties=properties, body=body, since=now, tag=tag), 0.0
    id = str(headers.get("id") or id or _id_of_protocol_1(body) or f"undecodable-{new_id()}")
    counts = headers.get("celeriac-counts") or [0, 0, 0]
    lost = headers.get("x-delivery-count")
    if lost is None:
        lost = 1 if redelivered else 0  # a classic queue tells only that there was a first time
    wait = float(headers.get("celeriac-left") or 0.0)
    since = headers.get("celeriac-since")
    if since is None:
        since = now
        eta = headers.get("eta")
        if eta:
            with suppress(ValueError, TypeError):
                moment = datetime.fromisoformat(str(eta))
                wait = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now
    held = Held(
        id=id,
        queue=queue,
        properties=properties,
        body=body,
        crashes=counts[0],
        interruptions=counts[1] + lost,
        token=counts[2] + lost,
        since=float(since),
        again=bool(headers.get("celeriac-again")),
        tag=tag,
        base=counts[2],
        copy=len(counts) > 3,
        doubtful=lost > 0 or len(counts) > 3,
        returns=lost,
    )
    return held, wait


def _id_of_protocol_1(body: bytes) -> str:
    with suppress(msgspec.DecodeError):
        old = _json(body)
        if isinstance(old, dict):
            return str(old.get("id") or "")
    return ""


def readdressed(
    held: Held, topology: Topology, *, crashes: int | None = None, interruptions: int | None = None, seconds: float = 0.0
) -> Publication:
    """The message as it was, with these counts, to the queue of what was given back; after so many seconds."""
    counts = [held.crashes if crashes is None else crashes, held.interruptions if interruptions is None else interruptions, held.token]
    properties = relabelled(held.properties, {"celeriac-counts": counts, "celeriac-since": held.since})
    return addressed(topology, "returned", held.queue, topology.returned(held.queue), properties, held.body, seconds)


def addressed(topology: Topology, kind: str, name: str, queue: str, properties: bytes, body: bytes, seconds: float) -> Publication:
    """To a queue of ours, now or after so many seconds."""
    if seconds <= 0.0:
        return Publication("", queue, properties, body, ((kind, name),))
    exchange, key, left = topology.delayed(queue, seconds)
    if left or b"celeriac-left" in properties:
        properties = relabelled(properties, {"celeriac-left": left})
    needs: tuple[tuple[str, str], ...] = ((kind, name), ("delays", ""), ("due", queue))
    if kind == "queue" and not topology.deletes_itself(name):
        needs += (("returned", name), ("stray", name))
    return Publication(exchange, key, properties, body, needs)


def relabelled(properties: bytes, more: dict[str, Any]) -> bytes:
    """The same properties with these headers (without those that are None); without what the broker has added on the way."""
    try:
        headers, others = wire.read_properties(properties)
    except (ValueError, IndexError, struct.error):
        headers, others = {"celeriac-raw": properties}, {}
    headers = {name: value for name, value in headers.items() if not name.startswith("x-")}
    headers.update(more)
    headers = {name: value for name, value in headers.items() if name not in more or value is not None}
    return wire.properties(
        headers,
        content_type=others.get("content_type", "application/json"),
        content_encoding=others.get("content_encoding", "utf-8"),
        priority=others.get("priority", 0),
        correlation_id=others.get("correlation_id", ""),
        reply_to=others.get("reply_to", ""),
    )


def delivery(held: Held, decode: Callable[[Held], Any], now: float) -> Delivery:
    """What a worker gets of it."""
    message, error = decode(held)
    assert held.holder is not None
    return Delivery(
        id=held.id,
        queue=held.queue,
        lease=Lease(held.holder, held.token),
        receipt=None,
        message=message,
        crashes=held.crashes,
        interruptions=held.interruptions,
        waiting_since=held.since,
        expired=message is not None and message.expires is not None and now > message.expires.timestamp(),
        revoked=held.revoked,
        repeated=held.again,
        raw_message=b"" if message is not None else held.body,
        error=error,
    )
