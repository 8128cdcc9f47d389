"""How the PostgreSQL engine talks to its server: addresses, connections with deadlines, a pool of them, errors in words, and PostgreSQL's binary format.

The client is libpq itself through `psycopg.pq`, not a cursor: that saves half of a verb's Python, and gives each verb a deadline of its own, also while it connects.
A connection must not live through a fork: a child closes its copy without a word to the server, and opens its own.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ..core.errors import EncodeError, EngineUnavailable, EngineUnsure, ImproperlyConfigured
from .network import Breaker, in_time, is_address, readable, writable

if TYPE_CHECKING:
    from psycopg import pq

T = TypeVar("T")

# -- errors ------------------------------------------------------------------------------------------------------------


class Refused(EngineUnavailable):
    """The server answered with an error; nothing was changed. `code` is its SQLSTATE, `detail` its own words."""

    def __init__(self, message: str, code: str, detail: str) -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail


class Deadlock(Refused):
    """The server chose this one to end among several that waited for each other; it may be tried again."""


class Ambiguous(EngineUnsure):
    """It was sent, and the answer did not come: nobody can tell whether it was done. `silent`: the connection stood, and nothing came."""

    def __init__(self, message: str, *, silent: bool) -> None:
        super().__init__(message)
        self.silent = silent


class _Late(Exception):
    """The deadline has passed."""


# -- all connections of a process --------------------------------------------------------------------------------------


class Database:
    """One schema of one database, through up to `size` connections. Every statement is a transaction of its own, unless it is run in one."""

    def __init__(
        self,
        server: Server,
        schema: str,
        *,
        size: int,
        prepares: bool,
        timeout_seconds: float,
        ensure: Callable[[Connection, float], None],
    ) -> None:
        self.server = server
        self.schema = schema
        self.timeout_seconds = timeout_seconds
        self._size = size
        self._prepares = prepares
        self._ensure = ensure
        self._ensured = False
        self._statements: dict[str, str] = {}
        self._idle: deque[Connection] = deque()
        self._used: set[Connection] = set()
        self._breaker = Breaker()
        self.losses = 0
        """How many connections were found broken: the server may have crashed, and have forgotten what it had not yet written."""

    def run(self, sql: str, parameters: Sequence[Any] = (), deadline: float | None = None) -> pq.abc.PGresult:
        """One statement, which is one transaction and one trip. `{s}` in it stands for the schema."""
        if deadline is None:
            deadline = time.monotonic() + self.timeout_seconds
        tries = 3
        while True:
            connection = self._acquire(deadline)
            try:
                result = connection.run(self.statement(sql), parameters, deadline)
            except BaseException as error:
                self.losses += not isinstance(error, Refused)
                self._release(connection)
                tries -= 1
                if tries and isinstance(error, Deadlock):
                    continue
                self._judge(error)
                raise
            self._breaker.answered()
            self._release(connection)
            return result

    def run_on(self, connection: Connection, sql: str, parameters: Sequence[Any]) -> pq.abc.PGresult:
        """The same on a connection that is the caller's own."""
        try:
            result = connection.run(self.statement(sql), parameters, time.monotonic() + self.timeout_seconds)
        except BaseException as error:
            self.losses += not isinstance(error, Refused)
            self._judge(error)
            raise
        self._breaker.answered()
        return result

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        return rows_of(self.run(sql, parameters))

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Commits at the end of the block, or changes nothing."""
        deadline = time.monotonic() + self.timeout_seconds
        connection = self._acquire(deadline)
        try:
            connection.run("BEGIN", (), deadline)
            yield Transaction(self, connection, deadline)
            connection.run("COMMIT", (), deadline)
            self._breaker.answered()
        except BaseException as error:
            connection.roll_back(deadline)
            self._judge(error)
            raise
        finally:
            self._release(connection)

    def in_transaction(self, work: Callable[[Transaction], T]) -> T:
        """What `work` returns; it is done again when the server had to end it, since two that waited for each other had locked things in different orders."""
        for _ in range(2):
            with suppress(Deadlock), self.transaction() as run:
                return work(run)
        with self.transaction() as run:
            return work(run)

    def statement(self, sql: str) -> str:
        """With the name of our schema in it."""
        try:
            return self._statements[sql]
        except KeyError:
            return self._statements.setdefault(sql, sql.replace("{s}", self.schema))

    def connect(self, deadline: float) -> Connection:
        """A connection for the caller alone. The first one of a process makes the schema, or brings it up to date."""
        self._breaker.check(deadline)
        try:
            connection = self.server.connect(deadline, prepares=self._prepares)
        except EngineUnavailable as trouble:
            self._breaker.failed(str(trouble))
            raise
        self._breaker.connected()
        try:
            if not self._ensured:
                self._ensure(connection, deadline)
                self._ensured = True
        except BaseException as error:
            connection.close()
            self._judge(error)
            raise
        return connection

    def ensure_schema(self) -> None:
        if not self._ensured:
            self._release(self._acquire(time.monotonic() + self.timeout_seconds))

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def abandon(self) -> None:
        """In a child: what is open belongs to the parent."""
        for connection in [*self._idle, *self._used]:
            connection.abandon()
        self._idle = deque()
        self._used = set()

    def _acquire(self, deadline: float) -> Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            self._used.add(connection)
            if connection.is_alive():
                return connection
            self.losses += 1
            self._release(connection)
        while len(self._used) >= self._size:
            if time.monotonic() >= deadline:
                raise EngineUnavailable(
                    f"All {self._size} connections of this process to {self.server} are in use. Raise the option pool_size, or call from fewer threads."
                )
            time.sleep(0.001)
            with suppress(IndexError):
                connection = self._idle.pop()
                self._used.add(connection)
                return connection
        connection = self.connect(deadline)
        self._used.add(connection)
        return connection

    def _release(self, connection: Connection) -> None:
        if connection.is_usable() and connection in self._used:
            self._used.discard(connection)
            self._idle.append(connection)
        else:
            self._used.discard(connection)
            connection.close()

    def _judge(self, error: BaseException) -> None:
        """Draws the conclusions from an error that a statement met."""
        if isinstance(error, Ambiguous) and error.silent:
            self._breaker.failed(str(error))
        elif isinstance(error, Refused):
            if error.code in ("42P01", "42883", "3F000"):
                self._ensured = False  # somebody dropped the schema; the next connection makes it anew
                self.close()
            elif error.code.startswith("54"):
                raise EncodeError(f"PostgreSQL cannot index an id or a queue name of that length: {error.detail}.", "id") from error


class Transaction:
    """What `with database.transaction() as run` gives: `run(sql, …)` returns rows."""

    __slots__ = ("_connection", "_database", "_deadline")

    def __init__(self, database: Database, connection: Connection, deadline: float) -> None:
        self._database = database
        self._connection = connection
        self._deadline = deadline

    def __call__(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return rows_of(self._connection.run(self._database.statement(sql), parameters, self._deadline))

    def count(self, sql: str, *parameters: Any) -> int:
        return self._connection.run(self._database.statement(sql), parameters, self._deadline).command_tuples or 0


# -- one connection ------------------------------------------------------------------------------------------------


class Connection:
    """A connection of libpq, that waits for the server no longer than it is told."""

    def __init__(self, server: Server, pgconn: pq.abc.PGconn, *, prepares: bool) -> None:
        self.server = server
        self._pgconn = pgconn
        self._prepares = prepares
        self._statements: dict[str, bytes] = {}
        self._owed = False
        self._broken = False
        self.socket = pgconn.socket

    def run(self, sql: str, parameters: Sequence[Any], deadline: float) -> pq.abc.PGresult:
        """One statement. When this raises anything but Refused, the connection is of no use any more."""
        try:
            self._send(sql, parameters, deadline)
            return self._checked(self._receive(deadline))
        except Refused:
            raise
        except BaseException as error:
            self._broken = True
            raise self._translated(error) from error

    def _send(self, sql: str, parameters: Sequence[Any], deadline: float) -> None:
        pgconn = self._pgconn
        values: list[bytes | None] = []
        formats: list[int] = []
        for parameter in parameters:
            kind = type(parameter)
            if kind is Json:
                values.append(parameter)
                formats.append(0)
            elif kind is Array or kind is bytes:
                values.append(parameter)
                formats.append(1)
            else:
                values.append(None if parameter is None else _parameter(parameter))
                formats.append(0)
        if self._owed:
            self._obeyed(self._receive(deadline))
        if not self._prepares:
            pgconn.send_query_params(sql.encode(), values, param_formats=formats, result_format=1)
            return
        name = self._statements.get(sql)
        if name is None:
            name = b"celeriac_%d" % len(self._statements)
            pgconn.send_prepare(name, sql.encode())
            self._checked(self._receive(deadline))
            self._statements[sql] = name
        pgconn.send_query_prepared(name, values, param_formats=formats, result_format=1)

    def script(self, sql: str, deadline: float) -> None:
        """Several statements without parameters."""
        try:
            self._pgconn.send_query(sql.encode())
            self._checked(self._receive(deadline))
        except Refused:
            raise
        except BaseException as error:
            self._broken = True
            raise self._translated(error) from error

    def send(self, sql: str, parameters: Sequence[Any]) -> None:
        """A statement whose answer nobody waits for: it is read before the next one, or with the next notification. If it is an error, the connection counts as lost."""
        try:
            self._send(sql, parameters, time.monotonic() + 1.0)
            self._pgconn.flush()
            self._owed = True
        except BaseException as error:
            self._broken = True
            raise self._translated(error) from error

    def notifications(self) -> list[str]:
        """What has been told meanwhile. Does not wait."""
        pgconn = self._pgconn
        try:
            pgconn.consume_input()
            while self._owed and not pgconn.is_busy():
                result = pgconn.get_result()
                self._owed = result is not None
                self._obeyed(result)
        except BaseException as error:
            self._broken = True
            raise self._translated(error) from error
        found = []
        while (told := pgconn.notifies()) is not None:
            found.append(told.extra.decode())
        return found

    def roll_back(self, deadline: float) -> None:
        if self.is_usable():
            return
        if not self._broken:
            with suppress(EngineUnavailable):
                self.run("ROLLBACK", (), deadline)

    def is_usable(self) -> bool:
        """Nothing is amiss, and no transaction is open."""
        return not self._broken and self._pgconn.status == 0 and self._pgconn.transaction_status == 0

    def is_alive(self) -> bool:
        """As far as can be told without asking the server: a connection that it closed is readable."""
        if readable((self.socket,), 0.0):
            try:
                self.notifications()
                return not readable((self.socket,), 0.0)
            except EngineUnavailable:
                return False
        return True

    def close(self) -> None:
        self._broken = True
        self._pgconn.finish()

    def abandon(self) -> None:
        """In a child: the session is the parent's. (A PGconn of another process does not say good-bye when it is forgotten.)"""
        self._broken = True
        with suppress(OSError):
            os.close(self.socket)

    def _receive(self, deadline: float) -> pq.abc.PGresult | None:
        """The last result of what was sent."""
        pgconn = self._pgconn
        while pgconn.flush():
            _wait(self.socket, deadline, write=True)
            if readable((self.socket,), 0.0):
                pgconn.consume_input()
        last = None
        while True:
            while pgconn.is_busy():
                _wait(self.socket, deadline)
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None:
                self._owed = False
                return last
            if last is None or last.status in _GOOD:
                last = result

    def _checked(self, result: pq.abc.PGresult | None) -> pq.abc.PGresult:
        if result is None:
            raise OSError("the connection is closed")
        if result.status in _GOOD:
            return result
        code = (result.error_field(67) or b"").decode()
        detail = (result.error_field(77) or result.error_message or b"").decode(errors="replace").strip()
        if self._pgconn.status != 0 or code.startswith("57"):
            self._broken = True  # cut off, or cancelled: a session may then keep an advisory lock that it was about to give back
        if not code:
            raise OSError(detail)
        kind = Deadlock if code in ("40P01", "40001") else Refused
        raise kind(self.server.refusal(code, detail), code, detail)

    @staticmethod
    def _obeyed(result: pq.abc.PGresult | None) -> None:
        """Of what nobody waited for: when it was not done, nobody knows what the session still holds."""
        if result is not None and result.status not in _GOOD:
            raise OSError((result.error_message or b"").decode(errors="replace").strip())

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, _Late):
            return Ambiguous(
                f"{self.server} has not answered in time. Is it overloaded, is the disk full or slow, or does somebody hold a lock"
                " (pg_stat_activity shows who)? Or has the network lost it?",
                silent=True,
            )
        if isinstance(error, (EngineUnavailable, ImproperlyConfigured)) or not isinstance(error, Exception):
            return error
        detail = str(error).strip() or type(error).__name__
        return Ambiguous(
            f"The connection to {self.server} was lost ({detail}). Has the server been restarted, or a firewall cut in? The next call connects anew.",
            silent=False,
        )


_GOOD = (1, 2)
"""COMMAND_OK, TUPLES_OK."""


# -- where it is ---------------------------------------------------------------------------------------------------------


class Server:
    """Where the database is, and how to get there."""

    def __init__(self, url: str) -> None:
        try:
            from psycopg import pq
        except ImportError as error:
            raise ImproperlyConfigured(
                f"The PostgreSQL engine needs psycopg ({error}). Install it: pip install 'celeriac[postgresql]'."
            ) from None
        self._pq = pq
        try:
            parsed = pq.Conninfo.parse(url.encode())
        except Exception as error:
            raise ImproperlyConfigured(f"The URL of the PostgreSQL engine is wrong: {str(error).strip()}.") from None
        given = {option.keyword.decode(): option.val.decode() for option in parsed if option.val is not None}
        defaults = {option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val is not None}
        self._hosts = (given.get("host") or defaults.get("host") or "").split(",")
        self._addresses = given.get("hostaddr", "").split(",") if given.get("hostaddr") else []
        self._ports = (given.get("port") or defaults.get("port") or "5432").split(",")
        for name in ("host", "hostaddr", "port", "connect_timeout"):
            given.pop(name, None)
        usual = {
            "application_name": "celeriac",
            "client_encoding": "UTF8",
            "target_session_attrs": "read-write",
            "keepalives_idle": "10",
            "keepalives_interval": "5",
            "keepalives_count": "3",
        }
        self._options = {**usual, **given}
        self._name = f"{given.get('user', '')}@{','.join(self._hosts)}:{','.join(self._ports)}/{given.get('dbname', '')}".removeprefix("@")

    def __str__(self) -> str:
        return f"the PostgreSQL server {self._name}"

    def connect(self, deadline: float, *, prepares: bool) -> Connection:
        """To the first that lets us in and can be written, within the deadline."""
        targets = self._targets(deadline)
        trouble = ""
        for number, target in enumerate(targets):
            now = time.monotonic()
            try:
                pgconn = self._open(target, now + (deadline - now) / (len(targets) - number))
            except _Late:
                trouble = trouble or "no answer in time"
            except OSError as error:
                trouble = str(error)
            else:
                pgconn.nonblocking = 1
                return Connection(self, pgconn, prepares=prepares)
        raise EngineUnavailable(self._unreachable(trouble))

    def _targets(self, deadline: float) -> list[dict[str, str]]:
        targets: list[dict[str, str]] = []
        error = ""
        for number, host in enumerate(self._hosts):
            port = self._ports[number] if number < len(self._ports) else self._ports[0]
            if number < len(self._addresses):
                targets.append({"host": host, "hostaddr": self._addresses[number], "port": port})
            elif not host or host.startswith(("/", "@")) or is_address(host):
                targets.append({"host": host, "port": port} if host else {"port": port})
            else:
                # The system's resolver cannot be told how long it may take.
                try:
                    addresses = in_time(lambda host=host: _resolve(host), deadline - time.monotonic())  # type: ignore[misc]
                    targets += [{"host": host, "hostaddr": address, "port": port} for address in addresses]
                except OSError as trouble:
                    error = str(trouble)
        if not targets:
            raise EngineUnavailable(
                f"The host name of {self} cannot be resolved ({error}). Is it spelled right, and does the name server answer?"
            )
        return targets

    def _open(self, target: dict[str, str], deadline: float) -> pq.abc.PGconn:
        words = {**self._options, **target}
        conninfo = " ".join(f"{name}='{_quoted(value)}'" for name, value in words.items())
        pgconn = self._pq.PGconn.connect_start(conninfo.encode())
        try:
            polling = 2
            while polling != 3:
                if pgconn.status == 1 or polling == 0:
                    raise OSError((pgconn.error_message or b"").decode(errors="replace").strip())
                _wait(pgconn.socket, deadline, write=polling == 2)
                polling = pgconn.connect_poll()
        except BaseException:
            pgconn.finish()
            raise
        return pgconn

    def _unreachable(self, detail: str) -> str:
        """What kept us out, in words that say what to do. libpq tells it in words only."""
        low = detail.lower()
        if "no answer in time" in low:
            advice = "Does it run, and does no firewall swallow the packets?"
        elif "password" in low or "authentication" in low or "pg_hba" in low or ("role" in low and "does not exist" in low):
            advice = "Check user and password in the URL, and the server's pg_hba.conf."
        elif "ssl" in low or "certificate" in low or "tls" in low:
            advice = "Check sslmode, sslrootcert and the like in the URL, and the server's certificate."
        elif "database" in low and "does not exist" in low:
            advice = "Create it (createdb), or change the name in the URL."
        elif "too many" in low or "connection slots" in low or "connection limit" in low:
            advice = "Raise max_connections there, lower the option pool_size here, or put PgBouncer between."
        elif "starting up" in low or "shutting down" in low or "recovery" in low:
            advice = "It is starting or stopping; it will be back."
        elif "read-only" in low or "not accept" in low:
            advice = "It is a replica, or set read-only: name the primary in the URL, or all hosts, separated by commas."
        else:
            advice = "Does it run there, and can it be reached from here?"
        return f"Cannot connect to {self} ({detail}). {advice}"

    def refusal(self, code: str, detail: str) -> str:
        """An error that the server answered with, and what to do."""
        match code:
            case "25006":
                advice = "It has become a replica, or was set read-only. Name the primary in the URL, or all hosts, separated by commas."
            case "53100":
                advice = "The server's disk is full. Make room there; nothing was changed."
            case "53200":
                advice = (
                    "The server is out of memory, or has no room for more locks; nothing was changed. In the second case raise max_locks_per_transaction:"
                    " who waits for messages holds a lock for each of its queues."
                )
            case "53300" | "53400":
                advice = "Raise the server's limits, or lower the option pool_size here."
            case "57014":
                advice = "A statement_timeout is set for this user or database, and it has passed. Raise it, or look for what is slow."
            case "55P03":
                advice = "Somebody holds a lock for long (pg_stat_activity shows who); nothing was changed. Try again later."
            case "57P01" | "57P02" | "57P03":
                advice = "The server is being stopped or restarted, or somebody ended this connection. Try again."
            case "42501":
                advice = "This user lacks a permission: grant it all on the schema and what is in it."
            case "42P01" | "42883" | "3F000":
                advice = "Somebody removed what Celeriac keeps there. It is made anew with the next call; what it held is gone."
            case _:
                advice = f"Nothing was changed (SQLSTATE {code})."
        return f"The PostgreSQL server {self._name} refused an operation: {detail}. {advice}"


# -- PostgreSQL's binary format ----------------------------------------------------------------------------------------


class Array(bytes):
    """An array, as it travels."""


class Json(bytes):
    """A JSON value. Bytes in it are base64."""


_BOOL, _BYTEA, _INT8, _INT2, _INT4, _TEXT, _FLOAT8 = 16, 17, 20, 21, 23, 25, 701
_length = struct.Struct("!i").pack
_head = struct.Struct("!iiIii").pack
_one = struct.Struct("!iiIiii").pack
_double = struct.Struct("!d").unpack
_NULL = _length(-1)


def _array(oid: int, values: Sequence[bytes | None]) -> Array:
    if len(values) == 1 and values[0] is not None:
        return Array(_one(1, 0, oid, 1, 1, len(values[0])) + values[0])
    parts: list[bytes] = [b""]
    for value in values:
        if value is None:
            parts.append(_NULL)
        else:
            parts += (_length(len(value)), value)
    if len(parts) == 1:
        return Array(_head(0, 0, oid, 0, 0)[:12])
    parts[0] = _head(1, 1, oid, len(values), 1)
    return Array(b"".join(parts))


def texts(values: Iterable[str | None]) -> Array:
    return _array(_TEXT, [None if value is None else clean(value).encode() for value in values])


def bodies(values: Sequence[bytes | None]) -> Array:
    return _array(_BYTEA, values)


def _packer(oid: int, format: str) -> Callable[[Sequence[Any]], Array]:
    pack = struct.Struct(format).pack

    def pack_all(values: Sequence[Any]) -> Array:
        return _array(oid, [None if value is None else pack(value) for value in values])

    return pack_all


ints, longs, smalls = _packer(_INT4, "!i"), _packer(_INT8, "!q"), _packer(_INT2, "!h")
floats, booleans = _packer(_FLOAT8, "!d"), _packer(_BOOL, "!?")


def _parameter(value: Any) -> bytes:
    if isinstance(value, str):
        return clean(value).encode()
    if isinstance(value, bool):
        return b"t" if value else b"f"
    return repr(value).encode()


def clean(text: str) -> str:
    """PostgreSQL's text has no room for NUL; what stands for it is doubled where it is meant."""
    if "\0" in text or "\x1a" in text:
        return text.replace("\x1a", "\x1a1").replace("\0", "\x1a0")
    return text


def text_of(value: bytes) -> str:
    text = value.decode()
    if "\x1a" in text:
        return text.replace("\x1a0", "\0").replace("\x1a1", "\x1a")
    return text


def int_of(value: bytes) -> int:
    return int.from_bytes(value, "big", signed=True)


def float_of(value: bytes) -> float:
    return _double(value)[0]  # type: ignore[no-any-return]


def _text_array(value: bytes) -> list[str]:
    (dimensions,) = struct.unpack_from("!i", value)
    if not dimensions:
        return []
    (count,) = struct.unpack_from("!i", value, 12)
    found, place = [], 20
    for _ in range(count):
        (length,) = struct.unpack_from("!i", value, place)
        found.append(text_of(value[place + 4 : place + 4 + length]))
        place += 4 + length
    return found


_DECODERS: dict[int, Callable[[bytes], Any]] = {
    _BOOL: lambda value: value == b"\1",
    _BYTEA: bytes,
    _INT8: int_of,
    _INT2: int_of,
    _INT4: int_of,
    _TEXT: text_of,
    _FLOAT8: float_of,
    1009: _text_array,
    2278: lambda value: None,
}


def rows_of(result: pq.abc.PGresult) -> list[tuple[Any, ...]]:
    columns = range(result.nfields)
    decoders = [_DECODERS[result.ftype(column)] for column in columns]
    found = []
    for row in range(result.ntuples):
        values = [result.get_value(row, column) for column in columns]
        found.append(tuple(None if value is None else decode(value) for value, decode in zip(values, decoders, strict=True)))
    return found


# -- helpers -----------------------------------------------------------------------------------------------------------


def _wait(descriptor: int, deadline: float, *, write: bool = False) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _Late
    ready = writable(descriptor, left) if write else bool(readable((descriptor,), left))
    if not ready and time.monotonic() >= deadline:
        raise _Late


def _resolve(host: str) -> list[str]:
    return list(dict.fromkeys(str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)))


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
