"""AMQP 0-9-1 as the RabbitMQ engine speaks it: frames to bytes and back, and one connection. Blocking, with a deadline for everything; knows nothing of tasks.

Written by hand because the client decides the speed of RabbitMQ, and because ours has two readers: see docs/decisions for what was measured.
Only the dozen methods that the engine uses are here. A connection is used by one thread at a time.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from ..core.errors import EngineUnavailable, ImproperlyConfigured

# class and method, as one number
CONNECTION_START, CONNECTION_START_OK = 0x000A000A, 0x000A000B
CONNECTION_TUNE, CONNECTION_TUNE_OK = 0x000A001E, 0x000A001F
CONNECTION_OPEN, CONNECTION_OPEN_OK = 0x000A0028, 0x000A0029
CONNECTION_CLOSE, CONNECTION_CLOSE_OK = 0x000A0032, 0x000A0033
CONNECTION_BLOCKED, CONNECTION_UNBLOCKED = 0x000A003C, 0x000A003D
CHANNEL_OPEN, CHANNEL_OPEN_OK, CHANNEL_CLOSE, CHANNEL_CLOSE_OK = 0x0014000A, 0x0014000B, 0x00140028, 0x00140029
CHANNEL_FLOW, CHANNEL_FLOW_OK = 0x00140014, 0x00140015
EXCHANGE_DECLARE, EXCHANGE_DECLARE_OK, EXCHANGE_BIND, EXCHANGE_BIND_OK = 0x0028000A, 0x0028000B, 0x0028001E, 0x0028001F
QUEUE_DECLARE, QUEUE_DECLARE_OK, QUEUE_BIND, QUEUE_BIND_OK = 0x0032000A, 0x0032000B, 0x00320014, 0x00320015
QUEUE_PURGE, QUEUE_PURGE_OK = 0x0032001E, 0x0032001F
BASIC_QOS, BASIC_QOS_OK, BASIC_CONSUME, BASIC_CONSUME_OK = 0x003C000A, 0x003C000B, 0x003C0014, 0x003C0015
BASIC_CANCEL, BASIC_CANCEL_OK, BASIC_PUBLISH, BASIC_RETURN = 0x003C001E, 0x003C001F, 0x003C0028, 0x003C0032
BASIC_DELIVER, BASIC_GET, BASIC_GET_OK, BASIC_GET_EMPTY = 0x003C003C, 0x003C0046, 0x003C0047, 0x003C0048
BASIC_ACK, BASIC_REJECT, BASIC_NACK = 0x003C0050, 0x003C005A, 0x003C0078
CONFIRM_SELECT, CONFIRM_SELECT_OK = 0x0055000A, 0x0055000B

NOT_FOUND, PRECONDITION_FAILED, ACCESS_REFUSED = 404, 406, 403
HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"
END = b"\xce"
FRAME_BYTES = 131072
"""The largest frame that RabbitMQ allows unless it is told otherwise."""
RECEIVE_BYTES = 262144

_head = struct.Struct(">BHI")
_content = struct.Struct(">HHQ")
_short, _long, _longlong = struct.Struct(">H"), struct.Struct(">I"), struct.Struct(">Q")


class Refused(Exception):
    """The server closed the channel because of what was asked. `code` is AMQP's reply code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Arrived(NamedTuple):
    """One method from the server; of those with content, also its properties, undecoded, and its body."""

    method: int
    channel: int
    arguments: memoryview | bytes
    properties: bytes = b""
    body: bytes = b""


class Moment(NamedTuple):
    """Seconds since 1970, to travel as AMQP's timestamp."""

    seconds: float


# -- values ----------------------------------------------------------------------------------------------------------


def shortstr(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    if len(raw) > 255:
        raise ImproperlyConfigured(f"RabbitMQ takes names of up to 255 bytes; this one has {len(raw)}: {raw[:40]!r}…")
    return bytes((len(raw),)) + raw


def longstr(raw: bytes) -> bytes:
    return _long.pack(len(raw)) + raw


def table(values: dict[str, Any]) -> bytes:
    """A field table, with its length before it. Raises TypeError for what AMQP has no type for."""
    inner = b"".join([shortstr(name) + value(item) for name, item in values.items()])
    return _long.pack(len(inner)) + inner


def value(item: Any) -> bytes:
    """One value of a table or list: its type, and itself."""
    if isinstance(item, str):
        return b"S" + longstr(item.encode())
    if item is None:
        return b"V"
    if item is True or item is False:
        return b"t\x01" if item else b"t\x00"
    if isinstance(item, int):
        if -0x80000000 <= item < 0x80000000:
            return b"I" + struct.pack(">i", item)
        if -(1 << 63) <= item < (1 << 63):
            return b"l" + struct.pack(">q", item)
        return b"S" + longstr(str(item).encode())
    if isinstance(item, float):
        return b"d" + struct.pack(">d", item)
    if isinstance(item, dict):
        return b"F" + table({str(name): one for name, one in item.items()})
    if isinstance(item, Moment):
        return b"T" + _longlong.pack(int(item.seconds))
    if isinstance(item, (list, tuple)):
        return b"A" + longstr(b"".join([value(one) for one in item]))
    if isinstance(item, (bytes, bytearray)):
        return b"x" + longstr(bytes(item))
    if isinstance(item, datetime):
        return b"T" + _longlong.pack(int(item.timestamp()))
    raise TypeError(f"{item!r} cannot be a header of a message: AMQP has no type for {type(item).__name__}.")


def read_table(raw: bytes, at: int) -> tuple[dict[str, Any], int]:
    """The table that begins (with its length) at `at`, and where it ends. Raises ValueError, IndexError or struct.error when it is none."""
    (size,) = _long.unpack_from(raw, at)
    at += 4
    end = at + size
    found: dict[str, Any] = {}
    while at < end:
        after = at + 1 + raw[at]
        name = raw[at + 1 : after].decode()
        found[name], at = read_value(raw, after)
    return found, end


def read_value(raw: bytes, at: int) -> tuple[Any, int]:
    kind = raw[at]
    at += 1
    if kind == 0x53:  # S
        (size,) = _long.unpack_from(raw, at)
        end = at + 4 + size
        text = raw[at + 4 : end]
        try:
            return text.decode(), end
        except UnicodeDecodeError:
            return text, end
    if kind == 0x56:  # V
        return None, at
    if kind == 0x49:  # I
        return int.from_bytes(raw[at : at + 4], "big", signed=True), at + 4
    if kind == 0x74:  # t
        return raw[at] != 0, at + 1
    if kind == 0x46:  # F
        return read_table(raw, at)
    if kind == 0x41:  # A
        (size,) = _long.unpack_from(raw, at)
        at += 4
        end = at + size
        items = []
        while at < end:
            item, at = read_value(raw, at)
            items.append(item)
        return items, end
    if kind in _NUMBERS:
        form = _NUMBERS[kind]
        return form.unpack_from(raw, at)[0], at + form.size
    if kind == 0x54:  # T
        return datetime.fromtimestamp(_longlong.unpack_from(raw, at)[0], UTC), at + 8
    if kind == 0x44:  # D
        return Decimal(struct.unpack_from(">i", raw, at + 1)[0]).scaleb(-raw[at]), at + 5
    if kind == 0x78:  # x
        (size,) = _long.unpack_from(raw, at)
        return raw[at + 4 : at + 4 + size], at + 4 + size
    raise ValueError(f"a value of the unknown type {chr(kind)!r}")


_NUMBERS = {ord(letter): struct.Struct(f">{form}") for letter, form in zip("bBsuilLfd", "bBhHIqqfd", strict=True)}
_NUMBERS[ord("s")] = struct.Struct(">h")


# -- methods that are sent -------------------------------------------------------------------------------------------


def frame(channel: int, method: int, arguments: bytes = b"") -> bytes:
    return b"\x01" + _short.pack(channel) + _long.pack(len(arguments) + 4) + _long.pack(method) + arguments + END


def publication(
    channel: int,
    exchange: bytes,
    routing_key: bytes,
    properties: bytes,
    body: bytes,
    *,
    mandatory: bool = False,
    largest: int = FRAME_BYTES,
) -> bytes:
    """A message, whole: method, header and body. `exchange` and `routing_key` are short strings already."""
    size = len(body)
    arguments = b"\x00\x00" + exchange + routing_key + (b"\x01" if mandatory else b"\x00")
    ends = _short.pack(channel)
    head = b"".join(
        (
            b"\x01", ends, _long.pack(len(arguments) + 4), b"\x00\x3c\x00\x28", arguments, b"\xce\x02", ends,
            _long.pack(12 + len(properties)), _content.pack(60, 0, size), properties, END,
        )
    )  # fmt: skip
    if size <= largest - 8:
        return b"".join((head, b"\x03", ends, _long.pack(size), body, END)) if size else head
    parts = [head]
    for start in range(0, size, largest - 8):
        part = body[start : start + largest - 8]
        parts += [b"\x03", ends, _long.pack(len(part)), part, END]
    return b"".join(parts)


def acknowledgement(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    return (
        b"\x01"
        + _short.pack(channel)
        + b"\x00\x00\x00\x0d\x00\x3c\x00\x50"
        + _longlong.pack(tag)
        + (b"\x01\xce" if multiple else b"\x00\xce")
    )


def refusal(channel: int, tag: int, *, requeue: bool = True) -> bytes:
    return frame(channel, BASIC_NACK, _longlong.pack(tag) + (b"\x02" if requeue else b"\x00"))


def declare_queue(channel: int, name: str, arguments: dict[str, Any] | None = None, *, passive: bool = False, flags: int = 2) -> bytes:
    """`flags`: 2 durable, 4 exclusive, 8 auto-delete."""
    return frame(channel, QUEUE_DECLARE, b"\x00\x00" + shortstr(name) + bytes((1 if passive else flags,)) + table(arguments or {}))


def declare_exchange(channel: int, name: str, kind: str, arguments: dict[str, Any] | None = None, *, auto_delete: bool = False) -> bytes:
    flags = b"\x06" if auto_delete else b"\x02"
    return frame(channel, EXCHANGE_DECLARE, b"\x00\x00" + shortstr(name) + shortstr(kind) + flags + table(arguments or {}))


def bind_queue(channel: int, queue: str, exchange: str, key: str, arguments: dict[str, Any] | None = None) -> bytes:
    return frame(channel, QUEUE_BIND, b"\x00\x00" + shortstr(queue) + shortstr(exchange) + shortstr(key) + b"\x00" + table(arguments or {}))


def bind_exchange(channel: int, destination: str, source: str, key: str) -> bytes:
    return frame(channel, EXCHANGE_BIND, b"\x00\x00" + shortstr(destination) + shortstr(source) + shortstr(key) + b"\x00" + table({}))


def purge_queue(channel: int, name: str) -> bytes:
    return frame(channel, QUEUE_PURGE, b"\x00\x00" + shortstr(name) + b"\x00")


def prefetch(channel: int, count: int) -> bytes:
    """For the consumers that are begun after it."""
    return frame(channel, BASIC_QOS, b"\x00\x00\x00\x00" + _short.pack(count) + b"\x00")


def consume(channel: int, queue: str, tag: str, arguments: dict[str, Any] | None = None, *, acknowledged: bool = True) -> bytes:
    return frame(
        channel,
        BASIC_CONSUME,
        b"\x00\x00" + shortstr(queue) + shortstr(tag) + (b"\x00" if acknowledged else b"\x02") + table(arguments or {}),
    )


def cancel(channel: int, tag: str) -> bytes:
    return frame(channel, BASIC_CANCEL, shortstr(tag) + b"\x00")


def get(channel: int, queue: str, *, acknowledged: bool = True) -> bytes:
    return frame(channel, BASIC_GET, b"\x00\x00" + shortstr(queue) + (b"\x00" if acknowledged else b"\x01"))


# -- methods that arrive ---------------------------------------------------------------------------------------------


def read_short(raw: bytes | memoryview, at: int) -> tuple[str, int]:
    end = at + 1 + raw[at]
    return bytes(raw[at + 1 : end]).decode("utf-8", "replace"), end


def delivered(arrived: Arrived) -> tuple[str, int, bool, str, str]:
    """Of a BASIC_DELIVER: consumer, delivery tag, redelivered, exchange, routing key."""
    raw = arrived.arguments
    consumer, at = read_short(raw, 0)
    (tag,) = _longlong.unpack_from(raw, at)
    exchange, after = read_short(raw, at + 9)
    key, _ = read_short(raw, after)
    return consumer, tag, bool(raw[at + 8]), exchange, key


def gotten(arrived: Arrived) -> tuple[int, bool, str, str]:
    """Of a BASIC_GET_OK: delivery tag, redelivered, exchange, routing key."""
    raw = arrived.arguments
    exchange, at = read_short(raw, 9)
    key, _ = read_short(raw, at)
    return _longlong.unpack_from(raw, 0)[0], bool(raw[8]), exchange, key


def returned(arrived: Arrived) -> str:
    """Of a BASIC_RETURN: the routing key."""
    _, at = read_short(arrived.arguments, 2)
    _, at = read_short(arrived.arguments, at)
    return read_short(arrived.arguments, at)[0]


def counted(arrived: Arrived) -> tuple[str, int]:
    """Of a QUEUE_DECLARE_OK: the queue's name, and how many messages are ready in it."""
    name, at = read_short(arrived.arguments, 0)
    return name, _long.unpack_from(arrived.arguments, at)[0]


# -- properties of a message -------------------------------------------------------------------------------------------

PERSISTENT = 2


def properties(
    headers: dict[str, Any],
    *,
    content_type: str,
    content_encoding: str,
    priority: int,
    correlation_id: str,
    reply_to: str = "",
    mode: int = PERSISTENT,
) -> bytes:
    """The properties of a message. An id that is too long for AMQP is left out; the header `id` has it."""
    raw_id = correlation_id.encode()
    flags = 0xF800
    end = b""
    if len(raw_id) < 256:
        flags |= 0x0400
        end = bytes((len(raw_id),)) + raw_id
    if reply_to:
        flags |= 0x0200
        end += shortstr(reply_to)
    return b"".join((_short.pack(flags), shortstr(content_type), shortstr(content_encoding), table(headers), bytes((mode, priority)), end))


def read_properties(raw: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Headers, and the other properties by AMQP's names. Raises ValueError, IndexError or struct.error when they are none."""
    (flags,) = _short.unpack_from(raw, 0)
    at = 2
    headers: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for bit, name in _PROPERTIES:
        if not flags & bit:
            continue
        if name == "headers":
            headers, at = read_table(raw, at)
        elif name in ("delivery_mode", "priority"):
            found[name] = raw[at]
            at += 1
        elif name == "timestamp":
            found[name] = _longlong.unpack_from(raw, at)[0]
            at += 8
        else:
            end = at + 1 + raw[at]
            found[name] = raw[at + 1 : end].decode()
            at = end
    return headers, found


def read_id(raw: bytes) -> str:
    """The correlation id of a message, without a look at its headers; empty when it has none."""
    (flags,) = _short.unpack_from(raw, 0)
    if not flags & 0x0400:
        return ""
    at = 2
    if flags & 0x8000:
        at += 1 + raw[at]
    if flags & 0x4000:
        at += 1 + raw[at]
    if flags & 0x2000:
        at += 4 + int.from_bytes(raw[at : at + 4], "big")
    at += bool(flags & 0x1000) + bool(flags & 0x0800)
    return raw[at + 1 : at + 1 + raw[at]].decode()


_PROPERTIES = [
    (0x8000 >> place, name)
    for place, name in enumerate(
        (
            "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to", "expiration", "message_id",
            "timestamp", "type", "user_id", "app_id", "cluster_id",
        )
    )
]  # fmt: skip


# -- where the server is -----------------------------------------------------------------------------------------------


class Address(NamedTuple):
    """What a URL says: `amqp://user:password@host:port/vhost?heartbeat=…`; several hosts are separated by `;` or given as several URLs."""

    host: str
    port: int
    user: str
    password: str
    vhost: str
    tls: bool
    options: dict[str, str]

    @classmethod
    def parse(cls, url: str) -> list[Address]:
        return [cls._parse_one(one.strip()) for one in url.split(";") if one.strip()]

    @classmethod
    def _parse_one(cls, url: str) -> Address:
        parts = urlsplit(url)
        tls = parts.scheme == "amqps"
        try:
            port = parts.port or (5671 if tls else 5672)
        except ValueError as problem:
            raise ImproperlyConfigured(f"The port in {parts.scheme}://…@{parts.hostname} is no number from 1 to 65535.") from problem
        # As Celery reads it: no path, and a path of one slash, are the virtual host "/"; "/shop" is "shop", "//shop" is "/shop"
        vhost = unquote(parts.path[1:]) or "/"
        return cls(
            parts.hostname or "127.0.0.1", port, unquote(parts.username or "guest"), unquote(parts.password or "guest"), vhost, tls,
            dict(parse_qsl(parts.query)),
        )  # fmt: skip

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


# -- a connection ----------------------------------------------------------------------------------------------------


class Connection:
    """One connection with its channels. What arrives is kept in the order in which it came, until somebody takes it."""

    def __init__(self, address: Address, deadline: float, *, heartbeat_seconds: int = 0, tls: Any = None, name: str = "") -> None:
        """Raises EngineUnavailable when it is not open by `deadline` (of `time.monotonic`)."""
        self.address = address
        self.arrived: deque[Arrived] = deque()
        self.blocked = ""
        """Why the server takes no messages just now (memory, disk); empty when it does."""
        self.closed = ""
        self.sent_at = self.heard_at = time.monotonic()
        self.heartbeat_seconds = heartbeat_seconds
        self._buffer = bytearray()
        self._at = 0
        self._partial: tuple[int, int, bytes, bytes, int, list[bytes]] | None = None
        self._socket = self._connected(address, deadline, tls)
        try:
            self._greet(address, deadline, name)
        except BaseException:
            self.drop("")
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    # -- sending and reading -----------------------------------------------------------------------------------------

    def send(self, data: bytes, deadline: float) -> None:
        """All of it, or EngineUnavailable; then the connection is dropped, for nobody knows how much of it arrived."""
        if self.closed:
            raise EngineUnavailable(self.closed)
        try:
            self._socket.settimeout(max(0.001, deadline - time.monotonic()))
            self._socket.sendall(data)
        except OSError as problem:
            self._lost(problem)
        self.sent_at = time.monotonic()

    def read(self, deadline: float) -> bool:
        """Waits until something has come, or until the deadline: False. A deadline of the past is a look."""
        if self.closed:
            raise EngineUnavailable(self.closed)
        left = deadline - time.monotonic()
        try:
            if not self._pending_tls():
                self._socket.settimeout(left if left > 0 else 0.0)
            data = self._socket.recv(RECEIVE_BYTES)
        except (TimeoutError, BlockingIOError):
            return False
        except OSError as problem:
            if type(problem).__name__ in ("SSLWantReadError", "SSLWantWriteError"):
                return False
            self._lost(problem)
        if not data:
            self._lost(None)
        self.heard_at = time.monotonic()
        self._buffer += data
        self._split()
        return True

    def _pending_tls(self) -> bool:
        pending = getattr(self._socket, "pending", None)
        return bool(pending is not None and pending())

    def take(self, channel: int, methods: Iterable[int]) -> Arrived | None:
        """The first of these methods that has come on the channel, taken out; None when there is none. Raises Refused when the channel was closed."""
        wanted = frozenset(methods)
        for position, arrived in enumerate(self.arrived):
            if arrived.channel != channel:
                continue
            if arrived.method in wanted:
                del self.arrived[position]
                return arrived
            if arrived.method == CHANNEL_CLOSE:
                del self.arrived[position]
                self._answer_close(arrived)
        return None

    def ask(self, channel: int, request: bytes, answer: int, deadline: float) -> Arrived:
        """Sends, and waits for the answer. Raises Refused, and EngineUnavailable at the deadline."""
        self.send(request, deadline)
        return self.await_one(channel, (answer,), deadline)

    def await_one(self, channel: int, methods: Sequence[int], deadline: float) -> Arrived:
        while (found := self.take(channel, methods)) is None:
            if not self.read(deadline) and time.monotonic() >= deadline:
                self.drop(f"RabbitMQ at {self.address} did not answer in time.")
                raise EngineUnavailable(self.closed)
        return found

    def heartbeat(self) -> None:
        """Says that we live, when it is time to, and notices when the server does not."""
        if not self.heartbeat_seconds or self.closed:
            return
        now = time.monotonic()
        if now - self.sent_at >= self.heartbeat_seconds / 2:
            self.send(HEARTBEAT, now + self.heartbeat_seconds)
        if now - self.heard_at > 2 * self.heartbeat_seconds:
            self.drop(f"RabbitMQ at {self.address} has not been heard of for {now - self.heard_at:.0f} s.")
            raise EngineUnavailable(self.closed)

    def is_dead(self) -> bool:
        """A look, before something is sent, at whether the server has closed it meanwhile."""
        try:
            self.read(0.0)
        except EngineUnavailable:
            return True
        return bool(self.closed)

    def open_channel(self, channel: int, deadline: float) -> None:
        self.ask(channel, frame(channel, CHANNEL_OPEN, b"\x00"), CHANNEL_OPEN_OK, deadline)

    def close(self) -> None:
        """Politely, without waiting for long."""
        if not self.closed:
            try:
                deadline = time.monotonic() + 0.5
                self.send(frame(0, CONNECTION_CLOSE, b"\x00\xc8\x00\x00\x00\x00\x00"), deadline)
                while self.take(0, (CONNECTION_CLOSE_OK,)) is None and self.read(deadline):
                    pass
            except EngineUnavailable:
                pass
        self.drop("The connection was closed.")

    def drop(self, reason: str) -> None:
        """At once, and without a word."""
        self.closed = self.closed or reason or "The connection is gone."
        self._socket.close()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _lost(self, problem: Exception | None) -> None:
        why = f": {problem}" if problem is not None and str(problem) else ""
        self.drop(f"The connection to RabbitMQ at {self.address} is gone{why}.")
        raise EngineUnavailable(self.closed) from problem

    def _split(self) -> None:
        """Makes methods of the bytes that have come."""
        buffer, at = self._buffer, 0
        end = len(buffer)
        partial = self._partial
        while end - at >= 8:
            kind, channel, size = _head.unpack_from(buffer, at)
            after = at + 7 + size
            if after >= end:
                break
            payload = bytes(memoryview(buffer)[at + 7 : after])
            if buffer[after] != 0xCE:
                self.drop(f"What came from {self.address} is not AMQP.")
                raise EngineUnavailable(self.closed)
            at = after + 1
            if kind == 1:
                method = int.from_bytes(payload[:4], "big")
                if method in _WITH_CONTENT:
                    partial = (method, channel, payload[4:], b"", 0, [])
                elif channel == 0 and method in _OF_CONNECTION:
                    self._hear(method, payload[4:])
                else:
                    self.arrived.append(Arrived(method, channel, payload[4:]))
            elif kind == 2 and partial is not None:
                size = int.from_bytes(payload[4:12], "big")
                if size:
                    partial = (*partial[:3], payload[12:], size, [])
                else:
                    self.arrived.append(Arrived(*partial[:3], payload[12:], b""))
                    partial = None
            elif kind == 3 and partial is not None:
                left = partial[4] - len(payload)
                if left > 0:
                    partial[5].append(payload)
                    partial = (*partial[:4], left, partial[5])
                else:
                    body = b"".join([*partial[5], payload]) if partial[5] else payload
                    self.arrived.append(Arrived(*partial[:4], body))
                    partial = None
        self._partial = partial
        if at:
            del buffer[:at]

    def _hear(self, method: int, arguments: bytes) -> None:
        if method == CONNECTION_BLOCKED:
            self.blocked = read_short(arguments, 0)[0] or "no resources"
        elif method == CONNECTION_UNBLOCKED:
            self.blocked = ""
        else:
            code = int.from_bytes(arguments[:2], "big")
            text, _ = read_short(arguments, 2)
            try:
                self._socket.sendall(frame(0, CONNECTION_CLOSE_OK))
            except OSError:
                pass
            self.drop(f"RabbitMQ at {self.address} closed the connection: {text or code}")
            if code in (ACCESS_REFUSED, 530):
                raise _Misused(self.closed)
            raise EngineUnavailable(self.closed)

    def _answer_close(self, arrived: Arrived) -> None:
        code = int.from_bytes(arrived.arguments[:2], "big")
        text, _ = read_short(arrived.arguments, 2)
        self.arrived = deque(other for other in self.arrived if other.channel != arrived.channel)
        self.send(frame(arrived.channel, CHANNEL_CLOSE_OK), time.monotonic() + 1.0)
        raise Refused(code, text)

    def _connected(self, address: Address, deadline: float, tls: Any) -> socket.socket:
        from .network import in_time, is_address

        left = max(0.001, deadline - time.monotonic())
        try:
            if is_address(address.host):
                found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
            else:
                found = in_time(lambda: socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM), left)
        except OSError as problem:
            raise EngineUnavailable(f"RabbitMQ's host {address.host!r} cannot be found: {problem}") from problem
        trouble: OSError | None = None
        for family, kind, protocol, _, where in found:
            link = socket.socket(family, kind, protocol)
            try:
                link.settimeout(max(0.001, deadline - time.monotonic()))
                link.connect(where)
                link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _keep_alive(link)
                if address.tls or tls is not None:
                    import ssl

                    context = tls or _tls_context(address.options)
                    link = context.wrap_socket(link, server_hostname=address.options.get("server_hostname", address.host))
                    assert isinstance(link, ssl.SSLSocket)
                return link
            except OSError as problem:
                link.close()
                trouble = problem
        raise EngineUnavailable(f"RabbitMQ at {address} cannot be reached: {trouble}") from trouble

    def _greet(self, address: Address, deadline: float, name: str) -> None:
        self.send(b"AMQP\x00\x00\x09\x01", deadline)
        try:
            self.await_one(0, (CONNECTION_START,), deadline)
            properties = table(
                {
                    "product": "Celeriac",
                    "platform": "Python",
                    "connection_name": name or "celeriac",
                    "capabilities": {
                        "publisher_confirms": True,
                        "consumer_cancel_notify": True,
                        "connection.blocked": True,
                        "authentication_failure_close": True,
                        "basic.nack": True,
                    },
                }
            )
            secret = f"\0{address.user}\0{address.password}".encode()
            login = properties + shortstr("PLAIN") + longstr(secret) + shortstr("en_US")
            tune = self.ask(0, frame(0, CONNECTION_START_OK, login), CONNECTION_TUNE, deadline)
            channels, largest, theirs = struct.unpack(">HIH", tune.arguments)
            self.largest_frame = min(largest or FRAME_BYTES, FRAME_BYTES)
            beat = self.heartbeat_seconds
            self.send(
                frame(0, CONNECTION_TUNE_OK, struct.pack(">HIH", channels, self.largest_frame, beat))
                + frame(0, CONNECTION_OPEN, shortstr(address.vhost) + b"\x00\x00"),
                deadline,
            )
            self.await_one(0, (CONNECTION_OPEN_OK,), deadline)
        except Refused as problem:
            raise EngineUnavailable(problem.text) from problem


class _Misused(EngineUnavailable):
    """The server knows us, or does not, and lets us not in: waiting does not help much."""


def _keep_alive(link: socket.socket) -> None:
    """So that a server that is gone without a word is noticed, and routers do not forget an idle connection."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        option = getattr(socket, name, None)
        if option is not None:
            link.setsockopt(socket.IPPROTO_TCP, option, seconds)


def _tls_context(options: dict[str, str]) -> Any:
    import ssl

    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs") or options.get("cafile"))
    certificate = options.get("ssl_certfile") or options.get("certfile")
    if certificate:
        context.load_cert_chain(certificate, options.get("ssl_keyfile") or options.get("keyfile"))
    if options.get("ssl_cert_reqs", "").lower() in ("none", "cert_none"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


_WITH_CONTENT = frozenset((BASIC_DELIVER, BASIC_GET_OK, BASIC_RETURN))
_OF_CONNECTION = frozenset((CONNECTION_CLOSE, CONNECTION_BLOCKED, CONNECTION_UNBLOCKED))
