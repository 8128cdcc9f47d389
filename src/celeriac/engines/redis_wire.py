"""How the Redis engine reaches its server: what the URL says, connections, Sentinel and Cluster, what is repeated on another connection, what a refusal means.

redis-py makes and authenticates a connection; from there on we write and read it ourselves (hiredis reads), since each call has one deadline for all of it.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha1
from importlib import import_module
from typing import Any
from urllib.parse import unquote
from weakref import WeakSet

from ..core.errors import EngineUnavailable, EngineUnsure, ImproperlyConfigured
from ..core.settings import mask_url
from .network import Breaker, Spin, in_time, is_address, readable, writable

try:
    # Untyped, since its types are others in each version.
    _connection: Any = import_module("redis.connection")
    _retry: Any = import_module("redis.retry")
    _backoff: Any = import_module("redis.backoff")
    _crc: Any = import_module("redis.crc")
    _RedisError: Any = import_module("redis.exceptions").RedisError
    _Reader: Any = import_module("hiredis").Reader
except ImportError as missing:
    raise ImproperlyConfigured(
        "redis:// URLs need the packages redis and hiredis. Install them: pip install 'celeriac[redis]'."
    ) from missing

PING_SECONDS = 5.0
"""How often a subscription that hears nothing asks whether its connection lives."""
TRIES = 3
"""How often one call is sent when connections break under it."""
IDLE_LINKS = 32
"""How many unused connections a process keeps."""
CHUNK_BYTES = 65536
ANSWER_SPIN_SECONDS = 0.0001
"""For so long who has asked stays awake. A server on the same host has answered by then."""
EVENT_SPIN_SECONDS = 0.0003
"""… and who waits for a message, or for a result: as long as a short task takes from its call to its result."""

OPTIONS = ("key_prefix", "global_keyprefix", "cluster", "master_name", "sentinel_kwargs", "socket_timeout", "socket_connect_timeout")
CONNECTION_OPTIONS = (
    "db", "username", "password", "client_name", "socket_keepalive", "socket_keepalive_options", "ssl_keyfile", "ssl_certfile", "ssl_cert_reqs",
    "ssl_ca_certs", "ssl_ca_path", "ssl_ca_data", "ssl_check_hostname", "ssl_password", "ssl_min_version", "ssl_ciphers",
)  # fmt: skip
MEANINGLESS = (
    "visibility_timeout", "priority_steps", "sep", "queue_order_strategy", "fanout_prefix", "fanout_patterns", "retry_on_timeout", "max_connections",
    "health_check_interval", "polling_interval", "unacked_restore_limit", "result_chord_ordered", "virtual_host", "max_retries", "interval_start",
    "interval_step", "interval_max",
)  # fmt: skip
"""What Celery's Redis transport needs to be told, and this engine does not."""


# -- requests ----------------------------------------------------------------------------------------------------


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def command(*parts: bytes) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join([bulk(part) for part in parts])


class Script:
    """A script, and how a request for it begins."""

    __slots__ = ("head", "load", "sha", "text")

    def __init__(self, text: str, keys: Sequence[bytes], arguments: int) -> None:
        self.text = text.encode()
        self.sha = sha1(self.text).hexdigest().encode()
        self.load = command(b"SCRIPT", b"LOAD", self.text)
        self.head = b"*%d\r\n" % (3 + len(keys) + arguments) + b"".join(
            bulk(part) for part in (b"EVALSHA", self.sha, b"%d" % len(keys), *keys)
        )


# -- connections -------------------------------------------------------------------------------------------------


class ServerError(Exception):
    """What the server said instead of an answer."""


class Refused(EngineUnavailable):
    """Nothing was changed for certain: nothing was sent, or the server answered, and the answer is no."""

    code = ""
    """The word with which the server said so."""


class Link:
    """One connection, made and authenticated by redis-py. From there on we read it ourselves, each call with one deadline for all of it."""

    def __init__(self, connection: Any, address: tuple[Any, Any]) -> None:
        self.process = os.getpid()
        self.address = address
        self._connection = connection
        self._socket: Any = connection._sock
        # Without a timeout of its own, for which Python asks the system before each step and after it.
        self._socket.setblocking(False)
        self._decrypted: Callable[[], int] = getattr(self._socket, "pending", lambda: 0)
        self._reader = _Reader(protocolError=_protocol_error, replyError=ServerError)
        self._leaving = False
        self._farewell = b""
        """Goes before the next request."""
        self._mixes = False
        self._answers = Spin(ANSWER_SPIN_SECONDS)
        self._events = Spin(EVENT_SPIN_SECONDS)

    def fileno(self) -> int:
        return int(self._socket.fileno()) if self._socket is not None else -1

    def ask(self, request: bytes, deadline: float, *, blocks: bool = False) -> Any:
        """`blocks`: the server may wait before it answers."""
        self.send(request, deadline)
        if self._leaving:
            self._left(deadline)
        return self._read(deadline, self._events if blocks else None)

    def ask_after(self, first: bytes, request: bytes, deadline: float) -> Any:
        """In one trip; the server comes to `request` when it has answered `first`. An error of either is the answer."""
        before = self.ask(first + request, deadline, blocks=True)
        after = self._read(deadline)
        return before if isinstance(before, Exception) else after

    def send(self, request: bytes, deadline: float) -> None:
        if self._farewell:
            request, self._farewell = self._farewell + request, b""
        sent = 0
        while sent < len(request):
            if self._socket is None:
                raise ConnectionError("the connection is closed")
            try:
                sent += self._socket.send(request[sent:] if sent else request)
            except OSError as error:
                if not _is_not_yet(error):
                    raise
                wait = writable if type(error).__name__ != "SSLWantReadError" else _can_be_read
                if not wait(self.fileno(), deadline - time.monotonic()):
                    raise TimeoutError("the server does not take the request") from None

    def subscribe(self, channels: list[bytes], question: bytes, deadline: float) -> Any:
        """Hears these channels from now on. Returns the answer to `question`, which comes right after that in the same trip; an Exception: it is to be asked elsewhere."""
        requests = command(b"SUBSCRIBE", *channels) + question
        mixes, self._mixes = self._mixes, True
        self.send(requests if mixes else _SPEAK_RESP3 + requests, deadline)
        if self._leaving:
            self._left(deadline)
        if not mixes:
            self._read(deadline)
        waiting = len(channels)
        while True:
            frame = self._read(deadline)
            if isinstance(frame, list) and frame and frame[0] == b"subscribe":
                waiting -= 1
            elif not waiting:
                if not _is_news(frame):  # what is told before the answer is in the answer
                    return frame
            elif isinstance(frame, Exception):
                raise ConnectionError(str(frame))

    def leave(self) -> None:
        """Hears nothing from the next request on, which spares a trip."""
        self._farewell = command(b"UNSUBSCRIBE")
        self._leaving = True

    def hear(self, seconds: float) -> list[Any]:
        """What has come, or comes within so many seconds."""
        frames = self._parsed()
        if not frames and (self._decrypted() or self._events.readable((self.fileno(),), seconds)):
            self._take_in()
            frames = self._parsed()
        return frames

    def close(self) -> None:
        self._socket = None
        with suppress(Exception):
            self._connection.disconnect()

    def abandon(self) -> None:
        """In a child: the file is closed, and the server, which talks to the parent, is told nothing."""
        connected, self._socket = self._socket, None
        if connected is not None:
            with suppress(OSError):
                os.close(connected.detach())
        self._connection._sock = None

    def _left(self, deadline: float) -> None:
        """Reads what came until the server knew that we unsubscribed."""
        while True:
            frame = self._read(deadline)
            if isinstance(frame, list) and len(frame) == 3 and frame[0] == b"unsubscribe" and frame[2] == 0:
                self._leaving = False
                return

    def _read(self, deadline: float, spin: Spin | None = None) -> Any:
        spin = spin or self._answers
        while (reply := self._reader.gets()) is False:
            if not self._decrypted() and not spin.readable((self.fileno(),), deadline - time.monotonic()):
                raise TimeoutError("the answer did not come in time")
            self._take_in()
        return reply

    def _parsed(self) -> list[Any]:
        frames = []
        while (frame := self._reader.gets()) is not False:
            frames.append(frame)
        return frames

    def _take_in(self) -> None:
        """Reads what there is."""
        if self._socket is None:
            raise ConnectionError("the connection is closed")
        try:
            chunk = self._socket.recv(CHUNK_BYTES)
        except OSError as error:
            if _is_not_yet(error):
                return
            raise
        if not chunk:
            raise ConnectionError("the server closed the connection")
        self._reader.feed(chunk)


_SPEAK_RESP3 = command(b"HELLO", b"3")
"""Who hears may ask, too, in this version of the protocol alone. Where the server does not speak it, the question is answered by an error."""


def _is_not_yet(error: OSError) -> bool:
    return isinstance(error, (BlockingIOError, InterruptedError)) or type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError")


def _can_be_read(descriptor: int, seconds: float) -> bool:
    return bool(readable((descriptor,), seconds))


def _is_news(frame: Any) -> bool:
    return isinstance(frame, list) and len(frame) == 3 and frame[0] == b"message"


def _protocol_error(text: str) -> Exception:
    return ConnectionError(f"the server does not speak Redis's protocol: {text}")


class Server:
    """Where the server is, the connections to it, and what is known of its health."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._idle: deque[Link] = deque()
        self._links: WeakSet[Link] = WeakSet()
        self._primary: tuple[Any, Any] | None = None
        self._known: list[tuple[Any, Any]] = list(place.addresses)
        self._breaker = Breaker()

    def ask(
        self,
        request: bytes,
        seconds: float,
        script: Script | None = None,
        *,
        first: bytes = b"",
        blocked_seconds: float = 0.0,
    ) -> Any:
        """One request and its answer. What was sent on a connection that broke is sent again on another. `first`, which may block for so long, goes before it, and is not
        repeated when it has been answered."""
        deadline = time.monotonic() + seconds
        tries = 0
        lost = False
        while True:
            try:
                link = self.take(deadline)
            except Refused as refusal:
                raise EngineUnsure(str(refusal)) if lost else refusal from None
            tries += 1
            try:
                if first:
                    reply = link.ask_after(first, request, deadline + blocked_seconds)
                    first, lost = b"", isinstance(reply, Exception)  # which of the two it is about is not known
                else:
                    reply = link.ask(request, deadline + blocked_seconds, blocks=blocked_seconds > 0)
                if isinstance(reply, Exception) and script is not None and str(reply).startswith("NOSCRIPT"):
                    loaded = link.ask(script.load, deadline)
                    reply = loaded if isinstance(loaded, Exception) else link.ask(request, deadline)
            except OSError as error:
                link.close()
                last = isinstance(error, TimeoutError) or tries >= TRIES or time.monotonic() >= deadline
                # One that broke says little of the server; whether another can be made says more.
                trouble = self.failed(error, counts=last)
                if last:
                    raise trouble from error
                lost = True
                continue
            except BaseException:
                link.close()
                raise
            if not isinstance(reply, Exception):
                self._breaker.answered()
                self.give(link)
                return reply
            if not self._redirected(link, reply) or tries >= TRIES or time.monotonic() >= deadline:
                answer = self._refusal(reply, lost)
                if self.place.cluster and _code(reply) in ("MOVED", "CLUSTERDOWN"):
                    self._breaker.failed(str(answer))  # others answer for the one that has our keys, and is away
                raise answer

    def take(self, deadline: float) -> Link:
        """A connection for the caller alone. Raises EngineUnavailable: there is none to be had before the deadline."""
        self._breaker.check(deadline, Refused)
        while True:
            try:
                link = self._idle.pop()
            except IndexError:
                return self._connect(deadline)
            if link.process == os.getpid():
                return link
            link.abandon()

    def give(self, link: Link) -> None:
        if len(self._idle) < IDLE_LINKS:
            self._idle.append(link)
        else:
            link.close()

    def failed(self, error: BaseException, *, counts: bool = True) -> EngineUnsure:
        """A connection broke, or none could be made: the others are as good as broken."""
        trouble = self.place.sentence(error)
        if counts:
            self._breaker.failed(trouble)
        self._primary = None
        self.close()
        return EngineUnsure(trouble)

    def close(self) -> None:
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                break

    def after_fork_in_child(self) -> None:
        self._idle = deque()
        for link in list(self._links):
            link.abandon()
        self._links = WeakSet()

    def _redirected(self, link: Link, reply: Exception) -> bool:
        """True when another server is to be asked."""
        words = str(reply).split()
        code = words[0] if words else ""
        if code == "MOVED" and len(words) >= 3:
            link.close()
            self.close()
            host, _, port = words[2].rpartition(":")
            self._primary = (host or link.address[0], int(port))
            if self._primary not in self._known:
                self._known.append(self._primary)
            return True
        if (code in ("UNBLOCKED", "ASK", "TRYAGAIN") or _code(reply) == "READONLY") and (self.place.cluster or self.place.sentinels):
            link.close()
            self.close()
            self._primary = None
            time.sleep(0.02)
            return True
        if code in ("UNBLOCKED", "NOAUTH") or _code(reply) == "READONLY":
            link.close()
        else:
            self.give(link)
        return False

    def _refusal(self, reply: Exception, lost: bool) -> Exception:
        text = str(reply)
        code = _code(reply)
        if lost and code != "NODELOST":
            return EngineUnsure(self.place.refusal(code, text))
        refused = Refused(self.place.refusal(code, text))
        refused.code = code
        return refused

    # -- connecting ------------------------------------------------------------------------------------------------

    def _connect(self, deadline: float) -> Link:
        problem: BaseException | None = None
        for address in self._addresses(deadline):
            seconds = min(deadline - time.monotonic(), self.place.connect_seconds)
            if seconds <= 0:
                problem = problem or TimeoutError("no time was left to connect")
                break
            try:
                link = self._connect_to(address, seconds, self.place.connection_options)
                if "password" not in self.place.connection_options:
                    # A server that wants one closes the connection at the first long request, and its answer may be lost with it.
                    answer = link.ask(command(b"PING"), deadline)
                    if isinstance(answer, Exception) and _code(answer) == "NOAUTH":
                        link.close()
                        raise answer
            except (OSError, _RedisError, ServerError) as error:
                code = _code(error)
                if code in ("NOAUTH", "WRONGPASS", "NOPERM", "LOADING", "MASTERDOWN") and not self.place.cluster:
                    self._breaker.answered()
                    raise Refused(self.place.refusal(code, str(error))) from error
                problem = error
                continue
            if self.place.cluster and self._primary is None:
                primary = self._learn(link, deadline)
                if primary not in (None, address):
                    link.close()
                    return self._connect(deadline)
            return link
        raise Refused(str(self.failed(problem or ConnectionError("no server is known")))) from problem

    def _connect_to(self, address: tuple[Any, Any], seconds: float, options: dict[str, Any], kind: Any = None) -> Link:
        place = self.place
        where: dict[str, Any]
        if address[1] is None:
            connection_class, where = _connection.UnixDomainSocketConnection, {"path": address[0]}
        else:
            connection_class, where = kind or place.connection_class, {"host": address[0], "port": address[1]}
        # A name may take longer to resolve than anybody wants to wait, and nothing can interrupt that: so a thread does it, and may be left behind.
        named = address[1] is not None and address[0] != "localhost" and not is_address(address[0])
        step_seconds = seconds if named else max(0.01, seconds / 2)
        connection = connection_class(
            **where,
            **options,
            socket_timeout=step_seconds,
            socket_connect_timeout=step_seconds,
            protocol=2,
            retry=_retry.Retry(_backoff.NoBackoff(), 0),
        )
        if named:
            in_time(connection.connect, seconds, too_late=connection.disconnect)
        else:
            connection.connect()
        link = Link(connection, address)
        self._links.add(link)
        return link

    def _addresses(self, deadline: float) -> list[tuple[Any, Any]]:
        if self.place.sentinels:
            return [self._ask_sentinels(deadline)]
        if self._primary is not None:
            return [self._primary, *(address for address in self._known if address != self._primary)]
        return list(self._known)

    def _ask_sentinels(self, deadline: float) -> tuple[Any, Any]:
        """Where the primary is now."""
        problem: BaseException | None = None
        sentinels = self.place.sentinels
        for number, address in enumerate(sentinels):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                link = self._connect_to(address, left / (len(sentinels) - number), self.place.sentinel_options, kind=_connection.Connection)
                try:
                    answer = link.ask(command(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self.place.master_name.encode()), deadline)
                finally:
                    link.close()
            except (OSError, _RedisError) as error:
                problem = error
                continue
            if isinstance(answer, list):
                return (answer[0].decode(), int(answer[1]))
            problem = ConnectionError(
                f"the sentinel {address[0]}:{address[1]} knows no primary named {self.place.master_name!r} ({answer})"
            )
        raise Refused(str(self.failed(problem or TimeoutError("no sentinel answered"))))

    def _learn(self, link: Link, deadline: float) -> tuple[Any, Any] | None:
        """Which server of the Cluster holds our keys, and which others there are."""
        answer = link.ask(command(b"CLUSTER", b"SLOTS"), deadline)
        if not isinstance(answer, list):
            return None  # we may not ask; then the server will say MOVED
        slot = _crc.key_slot(self.place.key_prefix.encode())
        known = []
        for first, last, *nodes in answer:
            for number, node in enumerate(nodes):
                address = ((node[0] or b"").decode() or link.address[0], int(node[1]))
                known.append(address)
                if number == 0 and first <= slot <= last:
                    self._primary = address
        self._known = list(dict.fromkeys([*self.place.addresses, *known]))
        return self._primary


# -- subscriptions -----------------------------------------------------------------------------------------------


class Subscription:
    """A connection of our own while it lasts; it goes back to the others afterwards."""

    def __init__(self, server: Server, channels: list[bytes], seconds: float, hear: Callable[[dict[bytes, bytes | None]], object]) -> None:
        """`hear` gets what is stored under the channels' names when this begins (None: nothing), and what is told from then on."""
        self._server = server
        self._channels = channels
        self._question = command(b"MGET", *channels)
        self._hear = hear
        self._seconds = seconds
        self._closed = False
        self._link = self._begin()

    def fileno(self) -> int:
        return self._link.fileno()

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + timeout_seconds
        asked_at: float | None = None
        while True:
            try:
                left = deadline - time.monotonic()
                frames = self._link.hear(max(0.0, min(left, PING_SECONDS)))
                told = {frame[1]: frame[2] for frame in frames if _is_news(frame)}
                if told:
                    self._hear(told)
                    return True
                now = time.monotonic()
                if now >= deadline:
                    return False
                if frames:
                    asked_at = None
                elif asked_at is None and left > PING_SECONDS:
                    self._link.send(command(b"PING"), now + self._seconds)
                    asked_at = now
                elif asked_at is not None and now > asked_at + self._seconds:
                    raise TimeoutError("no answer")
            except OSError:
                # What came meanwhile was not told: so the caller is to look.
                self._link.close()
                self._link = self._begin()
                return True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        link = self._link
        if link.process != os.getpid():
            link.abandon()
            return
        link.leave()
        if len(self._channels) > 1:  # of one there is hardly more to come
            try:
                link.send(b"", time.monotonic() + self._seconds)
            except OSError:
                link.close()
                return
        self._server.give(link)

    def __del__(self) -> None:
        if not self.__dict__.get("_closed", True) and "_link" in self.__dict__:
            self._closed = True
            self._link.close()

    def _begin(self) -> Link:
        server, deadline = self._server, time.monotonic() + self._seconds
        for tries in range(1, TRIES + 1):
            link = server.take(deadline)
            try:
                known = link.subscribe(self._channels, self._question, deadline)
            except OSError as error:
                link.close()
                trouble = server.failed(error)
                if tries == TRIES or time.monotonic() >= deadline:
                    raise trouble from error
            except BaseException:
                link.close()
                raise
            else:
                if isinstance(known, list):
                    self._hear(dict(zip(self._channels, known, strict=True)))
                return link
        raise AssertionError("unreachable")


# -- addresses ---------------------------------------------------------------------------------------------------


class Place:
    """What the URL and the options say."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        scheme, _, rest = url.partition("://")
        self.url = mask_url(url)
        self.cluster = scheme in ("redis+cluster", "rediss+cluster")
        self.sentinels: list[tuple[Any, Any]] = []
        if scheme in ("redis+socket", "unix"):
            place, _, query = rest.partition("?")
            given: dict[str, Any] = dict(_connection.parse_url(f"unix://{place}?{query.replace('virtual_host=', 'db=')}"))
            self.addresses: list[tuple[Any, Any]] = [(given.pop("path", "/run/redis/redis-server.sock"), None)]
        else:
            # Celery joins whole URLs by ";", others join the hosts by ",".
            first, *others = rest.split(";")
            authority = re.split("[/?]", first, maxsplit=1)[0]
            path = first[len(authority) :]
            login, at, hosts = authority.rpartition("@")
            names = [*hosts.split(","), *(re.split("[/?]", other.rpartition("://")[2])[0].rpartition("@")[2] for other in others)]
            port = 26379 if scheme == "sentinel" else 6379
            try:
                given = dict(_connection.parse_url(f"redis://{login}{at}localhost{path}"))
                self.addresses = [_address(name, port) for name in names]
            except ValueError as error:
                raise ImproperlyConfigured(f"The URL {self.url} is wrong: {error}. Write redis://user:password@host:6379/0.") from None
            given.pop("host", None)
            given.pop("port", None)
            if scheme == "sentinel":
                self.sentinels, self.addresses = self.addresses, []
        given.pop("connection_class", None)
        given.update(options)
        tls = scheme in ("rediss", "rediss+cluster") or _truth(given.pop("ssl", False))
        self.connection_class = _connection.SSLConnection if tls else _connection.Connection
        for name in MEANINGLESS:
            given.pop(name, None)
        unknown = sorted(given.keys() - {*OPTIONS, *CONNECTION_OPTIONS})
        if unknown:
            raise ImproperlyConfigured(
                f"The Redis engine has no option {', '.join(unknown)}. It has {', '.join([*OPTIONS, *CONNECTION_OPTIONS])}."
            )
        self.cluster = self.cluster or _truth(given.pop("cluster", False))
        self.master_name = str(given.pop("master_name", None) or "mymaster")
        self.timeout_seconds = _seconds(given, "socket_timeout", 5.0)
        self.connect_seconds = _seconds(given, "socket_connect_timeout", min(5.0, self.timeout_seconds))
        sentinel_options = dict(given.pop("sentinel_kwargs", None) or {})
        self.sentinel_options = {name: sentinel_options[name] for name in sentinel_options if name in CONNECTION_OPTIONS}
        prefix = str(given.pop("key_prefix", None) or given.get("global_keyprefix") or "")
        given.pop("global_keyprefix", None)
        if prefix and prefix[-1] not in ":_-.":
            prefix += "_"  # as Celery does
        if self.cluster and not re.search(r"\{[^}]+\}", prefix):
            prefix = "{" + (prefix.rstrip(":_-.") or "celeriac") + "}:"
        self.key_prefix = prefix
        if isinstance(given.get("ssl_cert_reqs"), str):
            given["ssl_cert_reqs"] = given["ssl_cert_reqs"].removeprefix("CERT_").lower()
        if not tls:
            given = {name: value for name, value in given.items() if not name.startswith("ssl_")}
        self.connection_options: dict[str, Any] = given

    def sentence(self, error: BaseException) -> str:
        """Why there is no connection, and what to do."""
        text = str(error).rstrip(". ") or type(error).__name__
        lowered = text.lower()
        start = f"Redis at {self.url} cannot be reached: {text}."
        if "ssl" in lowered or "certificate" in lowered or "tls" in lowered:
            return f"{start} The TLS handshake failed: check that the port speaks TLS (rediss://), and ssl_ca_certs, ssl_certfile and ssl_cert_reqs."
        if isinstance(error, TimeoutError) or "timed out" in lowered or "timeout" in lowered:
            return f"{start} It did not answer in time: is it overloaded, stopped, or behind a firewall? Nothing is known to have been changed."
        if "name or service" in lowered or "resolve" in lowered or "nodename" in lowered or "name resolution" in lowered:
            return f"{start} Check the host's name in the URL, and the DNS."
        if "refused" in lowered or "no such file" in lowered:
            return f"{start} Start the server, or correct the URL."
        return f"{start} Check that the server runs and that the network lets us through."

    def refusal(self, code: str, text: str) -> str:
        """Why the server said no, and what to do."""
        advice = {
            "NOAUTH": "It wants a password: write redis://user:password@host:port/db.",
            "WRONGPASS": "The user name or the password in the URL is wrong.",
            "NOPERM": f"Its ACL forbids that. The user needs ~{self.key_prefix or '*'}{'*' if self.key_prefix else ''}, "
            f"&{self.key_prefix or '*'}{'*' if self.key_prefix else ''} and the categories @read @write @scripting @pubsub @connection @blocking, and the command time.",
            "LOADING": "It is loading its data after a start; try again in a moment.",
            "OOM": "It has reached maxmemory, so it stores nothing more. Raise maxmemory, or find out why tasks pile up. Nothing was changed.",
            "READONLY": "It is a replica: connect to the primary, or use sentinel:// or redis+cluster://, which find it. Nothing was changed.",
            "MISCONF": "It cannot save to its disk, so it refuses to write. Make room on the disk, and look at its log. Nothing was changed.",
            "NOREPLICAS": "Too few replicas are connected (min-replicas-to-write). Nothing was changed.",
            "MASTERDOWN": "It is a replica without its primary. Wait for the failover, or look at the primary.",
            "CLUSTERDOWN": "Some of the Cluster's slots have no server. Wait for the failover, or look at its nodes.",
            "BUSY": "A script of somebody else keeps it busy.",
            "MOVED": "It is part of a Cluster: write redis+cluster://, or set the option cluster.",
            "CROSSSLOT": "It is part of a Cluster: write redis+cluster://, or set the option cluster.",
            "WRONGTYPE": "Another program uses our keys: give this one a key_prefix of its own.",
        }.get(code, "Is it Redis 6.2 or newer, or Valkey?")
        return f"Redis at {self.url} refused: {text.rstrip('. ')}. {advice}"


def _address(text: str, port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        return host, int(rest.removeprefix(":") or port)
    host, _, given = text.partition(":")
    return unquote(host) or "localhost", int(given or port)


def _truth(value: Any) -> bool:
    return str(value).lower() not in ("", "0", "no", "false", "off", "none")


def _seconds(given: dict[str, Any], name: str, default: float) -> float:
    value = given.pop(name, None)
    try:
        seconds = default if value is None else float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if seconds <= 0:
        raise ImproperlyConfigured(f"The Redis engine's option {name} is {value!r}; it must be a number of seconds above 0.")
    return seconds


# -- refusals ----------------------------------------------------------------------------------------------------

_CODES = re.compile(
    r"\b(NOAUTH|WRONGPASS|NOPERM|LOADING|OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|BUSY|MOVED|CROSSSLOT|WRONGTYPE|NODELOST)\b"
)


def _code(error: BaseException) -> str:
    """The word that says what the server means; from within a script it comes in the middle of a sentence."""
    text = str(error)
    found = _CODES.search(text)
    if found:
        return found[1]
    if "user executing the script can't" in text:
        return "NOPERM"
    if "unauthenticated" in text or "Authentication required" in text:  # redis-py takes the word NOAUTH off
        return "NOAUTH"
    name = type(error).__name__
    if name == "AuthenticationError" or "invalid username-password pair" in text or "invalid password" in text:
        return "WRONGPASS"
    return {"BusyLoadingError": "LOADING", "AuthenticationWrongNumberOfArgsError": "WRONGPASS", "NoPermissionError": "NOPERM"}.get(name, "")
